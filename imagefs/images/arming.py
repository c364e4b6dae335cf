"""When a draft is sealed by itself (S3): nobody writes it, it has settled, and it is armed."""

from __future__ import annotations

import contextlib
import os
import time

from imagefs.errors import Stale
from imagefs.formats.blank import is_blank
from imagefs.images.content import Content
from imagefs.images.repository import Repository
from imagefs.images.staging import cookie
from imagefs.types import Draft, Image, Status


def blocked_reason(repo: Repository, image: Image) -> str | None:
    """Why the draft is not sealed by itself, in words for `user.imagefs.seal_blocked`; None when it is armed."""
    draft = image.draft
    if image.status != Status.SAVING or draft is None:
        return None
    if draft.streamed:
        return None if repo.opens.writers(image.data_ino) else "its upload was interrupted"
    if draft.marked:
        return "user.imagefs.draft is set"
    if draft.blocked:
        return draft.blocked
    if draft.released_ns is None:
        return None if repo.opens.writers(image.data_ino) else "it was never closed after writing"
    if draft.boot != repo.boot and not _is_complete(repo, image, draft):
        return "the machine was restarted before all of it was on the disk"
    with contextlib.suppress(Stale):  # it has ended since
        if _is_blank(repo, image, draft):
            return "it holds no data yet"
    return None


def seal_due(repo: Repository, image: Image, settle_s: float) -> float | None:
    """Seconds until the draft may be sealed by itself, 0.0 or less when it may now; None: not at all."""
    draft = image.draft
    if image.status != Status.SAVING or draft is None or draft.released_ns is None:
        return None
    if repo.opens.writers(image.data_ino) or blocked_reason(repo, image) is not None:
        return None
    return settle_s - (time.time_ns() - draft.released_ns) / 1e9


def _is_complete(repo: Repository, image: Image, draft: Draft) -> bool:
    if draft.complete is None:
        return False
    fd = repo.staging.open(image.id, draft.gen)
    try:
        return cookie(fd, draft.gen) == draft.complete
    finally:
        os.close(fd)


def _is_blank(repo: Repository, image: Image, draft: Draft) -> bool:
    fd = repo.staging.open(image.id, draft.gen)
    try:
        content = Content(repo, image.id, draft, fd)
        return is_blank(content.pread, content.size, content.data_ranges(0, content.size))
    finally:
        os.close(fd)
