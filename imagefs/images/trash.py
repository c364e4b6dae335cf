"""The trash: deleted images, which can be brought back until their time is over or the disk needs the room.

A deleted image keeps its row, its map and all references (T4); what is in the trash costs its space and nothing
else, and is found by deduplication like everything that is stored. Ending it (T5) is the collector's work.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from uuid import UUID

from imagefs.catalog import Attrs, Op, PackRow
from imagefs.errors import Ambiguous, NotFound
from imagefs.images.listing import with_status
from imagefs.images.repository import Repository
from imagefs.types import Image, Status

LOW_WATER = 4 << 30
"""Bytes of room under which the trash yields, or 1/20 of a smaller disk: a copy at 1.5 GB/s takes more than a
round of the collector to use that up, so that writers do not meet a full disk while the trash is full."""


@dataclass(frozen=True, slots=True)
class Deleted:
    """An image that can be brought back."""

    image: Image
    until_ns: int
    """When its time is over; 0 in a repository that keeps nothing."""

    @property
    def deleted_ns(self) -> int:
        """When it was deleted."""
        return self.image.updated_at


@dataclass(frozen=True, slots=True)
class Due:
    """A deleted image that is to be ended."""

    gen: int
    """Generation of the deletion: one that was brought back and deleted again has another."""
    image_id: UUID
    map_id: int


class Trash:
    """The deleted images of one repository. `retention_s`: how long they are kept."""

    def __init__(self, repo: Repository, retention_s: float) -> None:
        self._repo = repo
        self._retention_ns = int(retention_s * 1e9)

    # -- bringing back -----------------------------------------------------------------------------

    def deleted(self) -> list[Deleted]:
        """What can be brought back, the oldest deletion first."""
        images = [image for image in with_status(self._repo.catalog, Status.PENDING_DELETE) if image.sealed]
        for _, image_id in self._repo.catalog.images.unlinked():
            with contextlib.suppress(NotFound):  # ended meanwhile
                image = self._repo.catalog.images.get(image_id, deleted=True)
                if image.sealed:
                    images.append(image)
        images.sort(key=lambda image: image.updated_at)
        return [Deleted(image, image.updated_at + self._retention_ns) for image in images]

    def find(self, word: str) -> Image:
        """The deleted image with this id, name, or beginning of an id. NotFound; Ambiguous if there are several."""
        images = [one.image for one in self.deleted()]
        digits = word.replace("-", "").lower()
        found = [image for image in images if image.name == word or image.id.hex == digits]
        found = found or [image for image in images if digits and image.id.hex.startswith(digits)]
        if not found:
            raise NotFound(f"No deleted image {word!r} is left to be brought back.")
        if len(found) > 1:
            raise Ambiguous(f"{word!r} means several deleted images: {', '.join(str(one.id) for one in found)}.")
        return found[0]

    def undelete(self, image: Image) -> Image:
        """The image as it was, its entry in by-name/ by S6 if the old one is taken. NotFound when it is too late."""
        images = self._repo.catalog.images
        if image.status == Status.PENDING_DELETE:
            image = images.update(image.id, lambda now: replace(now, status=Status.ACTIVE), Op.CREATE)
        else:
            image = images.undelete(image.id)
        self._repo.logs.flush()
        return image

    # -- ending ------------------------------------------------------------------------------------

    def due(self, now_ns: int) -> list[Due]:
        """What is to be ended: images without sealed data, those whose time is over, and as many of the others,
        the oldest first, as the disk needs room."""
        latest = now_ns - self._retention_ns
        kept: list[Due] = []
        found: list[Due] = []
        for gen, attrs in self._unlinked():
            over = not attrs.sealed or attrs.updated_at <= latest
            (found if over else kept).append(Due(gen, attrs.id, attrs.map_id))
        if kept and (need := self.pressure()) > 0:
            found += self._yielding(found, kept, need)
        return found

    def pressure(self) -> int:
        """Bytes that the disk needs soon and that only the trash can give; 0 or less when there is room."""
        disk = os.statvfs(self._repo.path)
        water = min(LOW_WATER, disk.f_blocks * disk.f_frsize // 20)
        room = self._repo.space.room() + self._repo.materialised.allocated()
        return water - room - sum(row.stored for row in self._going())

    def left(self) -> bool:
        """Whether deleting anything that nobody needs could still make room."""
        return bool(self._going() or any(attrs.sealed for _, attrs in self._unlinked()))

    def _going(self) -> list[PackRow]:
        return [*self._repo.catalog.packs.trash(), *self._repo.catalog.packs.doomed()]

    def _unlinked(self) -> Iterator[tuple[int, Attrs]]:
        for gen, image_id in self._repo.catalog.images.unlinked():
            with contextlib.suppress(NotFound):
                yield gen, self._repo.catalog.images.attrs(image_id, deleted=True)

    def _yielding(self, ending: Iterable[Due], kept: Iterable[Due], need: int) -> Iterator[Due]:
        freed = Freed(self._repo)
        for due in ending:
            need -= freed.by(due.map_id)
        for due in kept:
            if need <= 0:
                return
            need -= freed.by(due.map_id)
            yield due


class Freed:
    """Counts what ending one image after another frees: packs that no map names after it. Changes nothing."""

    def __init__(self, repo: Repository) -> None:
        self._repo = repo
        self._maps: Counter[int] = Counter()
        self._packs: Counter[int] = Counter()

    def by(self, map_id: int) -> int:
        """Bytes on the store that the end of one more image with this map frees; 0 for no map."""
        maps, packs = self._repo.catalog.maps, self._repo.catalog.packs
        self._maps[map_id] += 1
        freed = 0
        with contextlib.suppress(NotFound):  # 0, or ended meanwhile
            if maps.info(map_id).refs > self._maps[map_id]:
                return 0
            for no in maps.packs_of(map_id):
                self._packs[no] += 1
                row = packs.get(no)
                freed += row.stored if row.refs <= self._packs[no] else 0
        return freed
