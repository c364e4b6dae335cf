"""INIT: what kernel and server agree on, once per connection.

A pure function of the kernel's offer, so that the supervisor answers it alone and any later worker gets
the result as three numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

from imagefs.errors import MountFailed
from imagefs.fuse.kernel.protocol import (
    IN_HEADER,
    INIT_IN,
    INIT_IN_FLAGS2,
    INIT_OUT,
    MAJOR,
    MAX_WRITE,
    MINOR,
    OLDEST_MINOR,
    OUT_HEADER,
    Init,
    Opcode,
)

WANTED = (
    Init.ASYNC_READ
    # OPEN carries O_TRUNC: one request instead of two, and no moment between them.
    | Init.ATOMIC_O_TRUNC
    | Init.BIG_WRITES
    | Init.DO_READDIRPLUS
    | Init.READDIRPLUS_AUTO
    | Init.ASYNC_DIO
    | Init.PARALLEL_DIROPS
    | Init.MAX_PAGES
    # Instead of AUTO_INVAL_DATA: a changed mtime (chown, utimens) would drop the hot cache of sealed data.
    | Init.EXPLICIT_INVAL_DATA
    # Without it every write costs a GETXATTR of security.capability.
    | Init.HANDLE_KILLPRIV_V2
    | Init.INIT_EXT
    | Init.HAS_EXPIRE_ONLY
    # A new worker asks for what its predecessor left unanswered (Linux 6.9).
    | Init.HAS_RESEND
    # Plain files are read without a request (Linux 6.9; unless root serves, registering one fails).
    | Init.PASSTHROUGH
)
"""Left out on purpose: POSIX_LOCKS and FLOCK_LOCKS (the kernel's own locks survive a worker),
WRITEBACK_CACHE (the kernel would own size and mtime), POSIX_ACL, NO_OPEN, NO_OPENDIR, SUBMOUNTS,
OVER_IO_URING (dies with the process), REQUEST_TIMEOUT (one slow request aborts the connection)."""

MAX_READAHEAD = 1 << 20
MAX_BACKGROUND = 64
CONGESTION_THRESHOLD = 48


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What holds for a connection: protocol minor, bytes per WRITE, INIT flags (all 64 bits)."""

    minor: int
    max_write: int
    flags: Init

    @property
    def resend(self) -> bool:
        """Whether a new worker can have its predecessor's unanswered requests."""
        return Init.HAS_RESEND in self.flags


def answer(request: bytes | memoryview) -> tuple[bytes, Negotiated | None]:
    """The reply to an INIT request, and what was agreed.

    None: the kernel speaks a newer major version and will ask again with ours. Raises MountFailed when
    the message is no INIT or the kernel is too old.
    """
    _, opcode, unique, *_ = IN_HEADER.unpack_from(request)
    if opcode != Opcode.INIT:
        raise MountFailed(f"The kernel began with request {opcode} instead of INIT.")
    major, minor, readahead, low = INIT_IN.unpack_from(request, IN_HEADER.size)
    if major > MAJOR:
        return _reply(unique, INIT_OUT.pack(MAJOR, MINOR, *(0,) * 11)), None
    if major < MAJOR or minor < OLDEST_MINOR:
        raise MountFailed(f"The kernel speaks FUSE {major}.{minor}; {MAJOR}.{OLDEST_MINOR} is needed.")
    offered = Init(low)
    if Init.INIT_EXT in offered:
        offered |= Init(INIT_IN_FLAGS2.unpack_from(request, IN_HEADER.size + INIT_IN.size)[0] << 32)
    agreed = Negotiated(min(minor, MINOR), MAX_WRITE, WANTED & offered)
    body = INIT_OUT.pack(
        MAJOR,
        agreed.minor,
        min(readahead, MAX_READAHEAD),
        agreed.flags & 0xFFFFFFFF,
        MAX_BACKGROUND,
        CONGESTION_THRESHOLD,
        agreed.max_write,
        1,  # time_gran: times are kept to the nanosecond
        MAX_WRITE // 4096,
        0,
        agreed.flags >> 32,
        # Files of a filesystem that is itself stacked on none; without it there is no passthrough.
        1 if Init.PASSTHROUGH in agreed.flags else 0,
        0,
    )
    return _reply(unique, body), agreed


def _reply(unique: int, body: bytes) -> bytes:
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, unique) + body
