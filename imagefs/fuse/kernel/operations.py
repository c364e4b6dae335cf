"""The opcode table: which function answers which request."""

from __future__ import annotations

from itertools import chain

from imagefs.fuse.kernel import files, namespace
from imagefs.fuse.kernel.protocol import Opcode
from imagefs.fuse.kernel.request import Operation

OPERATIONS: dict[int, Operation] = dict(chain(namespace.OPERATIONS.items(), files.OPERATIONS.items()))
"""Any other opcode is answered with ENOSYS, after which the kernel does without it for good: ACCESS (rights
are checked by the kernel where they matter: mounting.SHARED), GETLK, SETLK, SETLKW (its own locks), POLL, BMAP,
TMPFILE."""

UNANSWERED = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.NOTIFY_REPLY})
"""Requests without a reply. Nothing is done for them: inode numbers are permanent, so lookups are not
counted, and a request that was read is answered soon enough."""
