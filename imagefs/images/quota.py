"""Quotas while data comes in: a draft grows as long as its project and all together may store that much.

What counts is sealed data; whether a draft will fit is told to its writer as early as it can be known. The
logical limit is checked as the file grows, with all other drafts counted at their present sizes. How much of a
draft will be new to the store nobody knows before it is sealed, so the unique limit only refuses drafts once it is
reached; sealing checks both, in the transaction that makes the image active.
"""

from __future__ import annotations

import threading
from uuid import UUID

from imagefs.errors import NotFound, QuotaExceeded
from imagefs.images.listing import with_status
from imagefs.images.repository import Repository
from imagefs.types import Image, Status

STEP = 64 << 20
"""A draft grows by so much between two looks at the catalog."""


class DraftQuota:
    """How far one draft may grow. Any thread; `_lock` is a leaf but for catalog reads."""

    def __init__(self, repo: Repository, image_id: UUID) -> None:
        self._repo = repo
        self._image_id = image_id
        self._lock = threading.Lock()
        self.granted = 0
        """Size that it may have without another look."""

    def require(self, size: int) -> None:
        """Returns when the draft may be `size` bytes long; QuotaExceeded. 0.1 us below what was granted."""
        if size <= self.granted:
            return
        with self._lock:
            quotas = self._repo.catalog.quotas
            if not quotas.any():
                self.granted = size + STEP
                return
            try:
                image = self._repo.catalog.images.get(self._image_id)
            except NotFound:
                return  # deleted while it is open: it will count for nobody
            try:
                require_room(self._repo, image, size + STEP)
                self.granted = size + STEP
            except QuotaExceeded:
                require_room(self._repo, image, size)
                self.granted = size


def require_room(repo: Repository, image: Image, size: int) -> None:
    """Returns when the image's draft may come to have `size` bytes beside all other drafts; QuotaExceeded."""
    if not repo.catalog.quotas.any():
        return
    own = everybody = size
    for other in with_status(repo.catalog, Status.SAVING):
        if other.id != image.id and other.draft is not None:
            status = repo.staging.stat(other.id, other.draft.gen)
            length = status.st_size if status is not None else 0
            everybody += length
            own += length if other.owner == image.owner else 0
    repo.catalog.quotas.require_room(image.owner, own, everybody)
