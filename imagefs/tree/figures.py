"""Figures among the attributes that the record alone does not tell."""

from __future__ import annotations

import contextlib

from imagefs.errors import TimedOut
from imagefs.images.arming import blocked_reason
from imagefs.images.repository import Repository
from imagefs.images.usage import space_of, stored_bytes
from imagefs.types import Image

SEAL_BLOCKED, STORED_BYTES = b"user.imagefs.seal_blocked", b"user.imagefs.stored_bytes"
UNIQUE_BYTES, SHARED_BYTES = b"user.imagefs.unique_bytes", b"user.imagefs.shared_bytes"
PATIENCE_S = 5.0
"""Longest look for images that share blocks; a program waits for the attribute meanwhile."""


def read(repo: Repository, image: Image, name: bytes) -> bytes | None:
    """The figure's text; None when it is none of these, or there is nothing to say."""
    if name == STORED_BYTES and image.sealed:
        return str(stored_bytes(repo.catalog, image.map_id)).encode()
    if name in (UNIQUE_BYTES, SHARED_BYTES) and image.sealed:
        with contextlib.suppress(TimedOut):
            space = space_of(repo.catalog, image, within_s=PATIENCE_S)
            return str(space.unique if name == UNIQUE_BYTES else space.shared).encode()
    if name == SEAL_BLOCKED:
        reason = seal_blocked(repo, image)
        return reason.encode() if reason else None
    return None


def seal_blocked(repo: Repository, image: Image) -> str | None:
    """Why a draft is not sealed: what hinders it, or how the last try failed, which will be repeated."""
    draft = image.draft
    if draft is None or repo.staging.stat(image.id, draft.gen) is None:
        return None
    return blocked_reason(repo, image) or draft.failed
