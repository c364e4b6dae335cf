"""Compaction: packs of which little is used are written anew, images that are scattered are laid out again.

Both move blocks (T9) and so free what they leave behind only when the collector has deleted the old packs. The
plan comes from one look at every map: about 1 us for each run of blocks, and 400 bytes of memory for each pack.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from uuid import UUID

from imagefs.blocks import maprows
from imagefs.blocks.maprows import Row
from imagefs.catalog import PackKind, PackRow, PackState, Query
from imagefs.errors import NotFound
from imagefs.images import relay
from imagefs.images.relay import Place, Reading
from imagefs.images.repository import Repository
from imagefs.images.rewrite import Mover, batches
from imagefs.images.usage import Masks, masks_of

log = logging.getLogger(__name__)

TINY = 256
"""Blocks (1 MiB) under which a pack is merged with others, and an image is not worth laying out again."""
SCATTERED = 2.0
"""Amplification above which an image is laid out again."""
TARGET = 1.5
"""What it is brought down to; twenty generations with 3 % changed each come to 1.54 by themselves."""
BATCH_PACKS = 8
"""New packs that are stored before maps are changed: 64 MiB of plain blocks."""


@dataclass(frozen=True, slots=True)
class Sparse:
    """A pack that is mostly not used, or tiny."""

    row: PackRow
    live: int
    """Blocks that some map names."""

    @property
    def freed(self) -> int:
        """Bytes on the store of the blocks that nothing needs."""
        return self.row.stored - self.row.stored * self.live // self.row.blocks


@dataclass(frozen=True, slots=True)
class Scattered:
    """A map whose reading decodes much that is not its own."""

    map_id: int
    image_id: UUID
    name: str | None
    reading: Reading
    copied: int
    """Blocks that are stored anew."""


@dataclass(frozen=True, slots=True)
class CompactionPlan:
    """What execute would do now."""

    generation: int = 0
    sparse: list[Sparse] = field(default_factory=list)
    scattered: list[Scattered] = field(default_factory=list)

    @property
    def freed(self) -> int:
        """Bytes that rewriting packs frees, about: blocks compress differently."""
        return sum(one.freed for one in self.sparse)

    @property
    def blocks(self) -> int:
        """Blocks that are read and stored anew."""
        return sum(one.live for one in self.sparse) + sum(one.copied for one in self.scattered)


@dataclass(slots=True)
class Compacted:
    """What was done."""

    blocks: int = 0
    """Moved."""
    packs: int = 0
    """Old packs that were to be left."""
    images: int = 0
    """Laid out again."""


class Compactor:
    """Compacts one repository. Several processes may: one of them at a time moves blocks."""

    def __init__(
        self, repo: Repository, take: Callable[[int], bool] = lambda nbytes: True, *, sparse: float | None = None
    ) -> None:
        """`take(nbytes)` is asked before so many bytes are moved, with 0 before each map is read; False ends the
        work. `sparse`: the share of a pack's blocks that must be in use; None as configured."""
        self._repo = repo
        self._take = take
        self._share = repo.config.sparse_share if sparse is None else sparse
        self._mover = Mover(repo, take)
        self._batch = BATCH_PACKS * repo.config.pack_blocks
        self._blocks_of = lru_cache(maxsize=1 << 16)(self._count_blocks)

    def plan(self) -> CompactionPlan:
        """What there is to do; changes nothing. An empty plan when the work is to end."""
        catalog = self._repo.catalog
        generation = catalog.generation()
        live: Masks = {}
        scattered: list[Scattered] = []
        for map_id, _ in catalog.maps.scan():
            if not self._take(0):
                return CompactionPlan()
            rows = list(catalog.maps.rows(map_id))
            for no, mask in masks_of(iter(rows)).items():
                live[no] = live.get(no, 0) | mask
            scattered += self._scattered(map_id, rows)
        scattered.sort(key=lambda one: one.reading.amplification, reverse=True)
        return CompactionPlan(generation, self._sparse(live), scattered)

    def execute(self, plan: CompactionPlan, progress: Callable[[int], None] = lambda blocks: None) -> Compacted:
        """Carries a plan out, as far as what it says still holds; `progress` is told the blocks that were moved.
        Busy while another process does it; NoSpace, BackendFailed."""
        done = Compacted()
        with self._mover.alone():
            for one in plan.scattered:
                moved = self._lay_out(one.map_id, progress)
                done.images += moved > 0
                done.blocks += moved
            if plan.sparse:
                done.blocks += self._rewrite([one.row.no for one in plan.sparse], progress)
                done.packs += len(plan.sparse)
        return done

    # -- packs -------------------------------------------------------------------------------------

    def _sparse(self, live: Masks) -> list[Sparse]:
        """Packs to be rewritten; without those that a draft under way takes blocks from: it would have to store
        them again."""
        busy = self._provisional()
        found: list[Sparse] = []
        tiny: list[Sparse] = []
        for row in self._repo.catalog.packs.scan():
            if row.kind != PackKind.PACK or row.state != PackState.LIVE or row.no in busy or row.no not in live:
                continue
            one = Sparse(row, live[row.no].bit_count())
            if one.live < self._share * row.blocks:
                found.append(one)
            elif row.blocks < TINY:
                tiny.append(one)
        # Together they must make a pack that is not tiny any more: else this would never come to an end.
        if sum(one.live for one in (*found, *tiny)) >= TINY:
            found += tiny
        return sorted(found, key=lambda one: one.row.no)

    def _provisional(self) -> set[int]:
        maps = self._repo.catalog.maps
        known = {map_id for map_id, _ in maps.scan()}
        return {no for map_id in maps.numbers() if map_id not in known for no in maps.packs_of(map_id)}

    def _rewrite(self, nos: list[int], progress: Callable[[int], None]) -> int:
        live: Masks = {}
        users: dict[int, list[int]] = {no: [] for no in nos}
        for map_id, _ in self._repo.catalog.maps.scan():
            if not self._take(0):
                return 0
            for no, mask in masks_of(self._rows_naming(map_id, users)).items():
                if no in users:
                    live[no] = live.get(no, 0) | mask
                    users[no].append(map_id)
        moved = 0
        places = (place for no in nos for place in _places(no, live.get(no, 0)))
        for batch in batches(places, self._batch):
            maps = sorted({map_id for no in {no for no, _ in batch} for map_id in users[no]})
            moved += self._moved(batch, maps, progress)
        return moved

    def _moved(self, batch: list[Place], maps: list[int], progress: Callable[[int], None]) -> int:
        """Blocks moved: none when the work is to end, or when none of them could be read."""
        count = self._mover.move(batch, maps) if self._take(0) else 0
        progress(count)
        return count

    def _rows_naming(self, map_id: int, nos: dict[int, list[int]]) -> Iterator[Row]:
        """The rows of a map that name one of these packs."""
        rows = self._repo.catalog.maps.rows(map_id)
        return (row for row in rows if not nos.keys().isdisjoint(maprows.packs_column(row[1])))

    # -- images ------------------------------------------------------------------------------------

    def _scattered(self, map_id: int, rows: Sequence[Row]) -> Iterator[Scattered]:
        if relay.most(rows) <= SCATTERED:
            return
        reading = relay.reading(rows, self._blocks_of)
        if reading.read < TINY or reading.amplification <= SCATTERED:
            return
        for image in self._repo.catalog.images.query(Query(map_id=map_id, limit=1)):
            copied = sum(1 for _ in relay.places(rows, relay.scattered(rows, self._blocks_of, TARGET)))
            yield Scattered(map_id, image.id, image.name, reading, copied)

    def _lay_out(self, map_id: int, progress: Callable[[int], None]) -> int:
        rows = list(self._repo.catalog.maps.rows(map_id))
        frames = relay.scattered(rows, self._blocks_of, TARGET)
        moved = 0
        for batch in batches(relay.places(rows, frames), self._batch):
            moved += self._moved(batch, [map_id], progress)
        return moved

    def _count_blocks(self, no: int) -> int:
        try:
            return self._repo.catalog.packs.get(no).blocks
        except NotFound:  # moved away meanwhile, and numbers are never used again
            return 0


def _places(no: int, mask: int) -> Iterable[Place]:
    """The blocks of a mask, in order."""
    return [(no, block) for block in range(mask.bit_length()) if mask >> block & 1]
