"""Checkpoints of a sealing: what is stored is recorded now and then, and no longer kept in memory."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from imagefs.images.ingest import Ingest
from imagefs.images.packing import Cut, Stored
from imagefs.images.repository import Repository
from imagefs.types import BLOCK, Cookie

CHECKPOINT = 256 << 20
"""Bytes of the image between two of them."""


class Mark(NamedTuple):
    """A place of the image up to which a checkpoint is due."""

    offset: int
    rows: list[tuple[int, bytes]]
    cut: Cut


class Checkpointing:
    """Records how far an ingest has come. Used by the ingest's thread."""

    def __init__(self, repo: Repository, image_id: UUID, cookie: Cookie, ingest: Ingest, at: int) -> None:
        """From offset `at` on; `cookie` is the content that the claimed sealing is of."""
        self._repo = repo
        self._image_id = image_id
        self._cookie = cookie
        self._ingest = ingest
        self._since = at
        self._mark: Mark | None = None

    def reached(self, offset: int) -> None:
        """Everything before `offset` was given to the ingest. A mark is recorded once its packs are durable;
        meanwhile the next ones are filled."""
        if self._mark is not None and self._mark.cut.done():
            self._record()
        if self._mark is None and offset - self._since >= CHECKPOINT:
            self._mark = Mark(offset, self._ingest.maps.rows(self._since // BLOCK), self._ingest.cut())
            self._since = offset

    def end(self) -> list[Stored]:
        """Waits for all packs; those that no checkpoint has recorded."""
        if self._mark is not None:
            self._record()
        return self._ingest.flush()

    def _record(self) -> None:
        mark, self._mark = self._mark, None
        if mark is None:
            return
        stored = mark.cut.stored()
        self._repo.catalog.seals.checkpoint(
            self._image_id,
            self._repo.session.id,
            self._cookie,
            mark.offset,
            mark.rows,
            [pack.done for pack in stored],
        )
        # Not answered to anybody before the commit makes the packs live.
        self._repo.index_packs(stored)
