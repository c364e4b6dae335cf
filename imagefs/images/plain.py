"""Verifying plain files of sealed images: nothing else would notice that their bytes changed on the disk."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from imagefs.blocks.root import Root
from imagefs.catalog import Query
from imagefs.images.repository import Repository
from imagefs.images.staging import data_ranges
from imagefs.types import BLOCK

WINDOW = 1 << 20
Take = Callable[[int], bool]
"""Asked before so many bytes are read; False ends the work."""


def verify_plain_files(repo: Repository, take: Take, stop: threading.Event) -> list[str]:
    """Removes plain files that do not have the root which their image was sealed with, and says so: readers go on
    with the packs."""
    found: list[str] = []
    for path in repo.materialised.paths():
        root = _recorded(repo, path)
        if root is None:
            continue
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # evicted
            continue
        try:
            made = _root_of(repo, fd, take)
        finally:
            os.close(fd)
        if stop.is_set():
            return found
        if made is not None and made != root:
            path.unlink(missing_ok=True)
            found.append(f"The plain file {path} had other bytes than were sealed; it is removed.")
    return found


def _recorded(repo: Repository, path: Path) -> str | None:
    """The root of the image whose plain file it is; None when it is nobody's."""
    try:
        map_id = repo.catalog.maps.by_uuid(UUID(path.name))
    except ValueError:
        return None
    images = repo.catalog.images.query(Query(map_id=map_id, limit=1)) if map_id is not None else []
    return images[0].root if images else None


def _root_of(repo: Repository, fd: int, take: Take) -> str | None:
    """None when the work was to end."""
    size = os.fstat(fd).st_size
    root, at = Root(repo.digests.zero), 0
    for offset, length in data_ranges(fd, 0, size):
        start, end = max(at, offset // BLOCK * BLOCK), min(-(-(offset + length) // BLOCK) * BLOCK, size)
        root.hole((start - at) // BLOCK)
        while start < end:
            piece = min(WINDOW, end - start)
            if not take(piece):
                return None
            digests = repo.digests.blocks(os.pread(fd, piece, start))
            root.update(b"".join(digests), len(digests))
            start += piece
        at = -(-start // BLOCK) * BLOCK
    root.hole(-(-size // BLOCK) - at // BLOCK)
    return root.hexdigest()
