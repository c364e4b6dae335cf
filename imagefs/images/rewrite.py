"""Moving blocks to new packs (T9): reserve, put, then one transaction for each map, then the old packs go.

    reserve names (T1) -> put packs, their footers say where the blocks came from -> for each map: its rows, and
    references of packs, in one transaction that finds them as they were read -> dedup index

Until a map's transaction it is read from the old packs, after it from the new ones; readers that looked before and
come after the old pack is deleted look again. A death leaves packs that no map names: they go to trash with the
session, or when the next worker follows in it.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby, islice

from imagefs.blocks import frames, maprows
from imagefs.blocks.digest import WIDTH
from imagefs.blocks.footer import Moved
from imagefs.blocks.maprows import GIB, Row
from imagefs.blocks.maps import MapBuilder
from imagefs.blocks.packs import Footer, PackBuilder, object_name, read_footer
from imagefs.catalog import Move, PackDone
from imagefs.errors import BackendFailed, Busy, Damaged, ImagefsError, NotFound
from imagefs.images.reader import BlockReader
from imagefs.images.relay import Place
from imagefs.images.repository import Repository
from imagefs.types import BLOCK, FRAME, FRAME_BLOCKS, Extent

log = logging.getLogger(__name__)

CACHE = 16 << 20
"""Bytes of decoded frames: blocks of one frame need not be moved one after another."""
TRIES = 3
"""Times that a map is read again when its rows changed meanwhile; nobody but the holder of the lock moves them."""


class Mover:
    """Moves blocks of one repository. Used by one thread, inside `alone()`."""

    def __init__(
        self,
        repo: Repository,
        take: Callable[[int], bool],
        copy: Callable[[Repository, BlockReader], Copy] | None = None,
    ) -> None:
        """`take(nbytes)` is asked before so many plain bytes are moved; False ends the work. `copy` makes what
        reads blocks and stores them anew, for blocks that are not to be had where the maps say."""
        self._repo = repo
        self._take = take
        self._copy = copy or Copy
        # Not the repository's own: what is moved would take the place of what people read.
        self._reader = BlockReader(repo.catalog, repo.store, CACHE)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Holds the lock that rows of maps are moved under, over all processes. Busy."""
        fd = os.open(self._repo.path / "locks" / "move", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise Busy("Another process is moving blocks.") from None
        try:
            yield
        finally:
            os.close(fd)

    def move(self, places: Sequence[Place], maps: Iterable[int]) -> int:
        """Stores these blocks anew in this order, and lets the maps name the new places.

        Blocks that do not verify stay where they are. Returns how many blocks were moved for at least one map;
        0 also when the work is to end. Raises NoSpace, BackendFailed, NotFound (the session was ended).
        """
        catalog, session = self._repo.catalog, self._repo.session.id
        capacity = self._repo.config.pack_blocks
        packs = -(-len(places) // capacity)
        names = catalog.moves.reserve(session, packs) if packs else []
        copy = self._copy(self._repo, self._reader)
        moved = False
        try:
            for at, name in zip(range(0, len(places), capacity), names, strict=True):
                piece = places[at : at + capacity]
                if not self._take(len(piece) * BLOCK):
                    return 0
                copy.put(name, piece)
            for map_id in maps:
                moved |= self._commit(map_id, copy)
        finally:
            catalog.packs.unreserve(no for no, _ in names if no not in copy.begun)
            catalog.packs.discard(no for no, _ in names)
        if moved:
            self._repo.index_packs(copy.done)
        return len(copy.places) if moved else 0

    def _commit(self, map_id: int, copy: Copy) -> bool:
        """One map's transaction; False when there was nothing to change, or the map is gone."""
        moves = self._repo.catalog.moves
        for _ in range(TRIES):
            move = relocated(map_id, self._repo.catalog.maps.rows(map_id), copy.places)
            if move is None:
                return False
            if moves.commit(self._repo.session.id, move, [done for done, _ in copy.done]):
                return True
        return False


class Copy:
    """New packs of blocks that lie elsewhere."""

    def __init__(self, repo: Repository, reader: BlockReader) -> None:
        self._repo = repo
        self._reader = reader
        self._footers: dict[int, Footer | None] = {}
        self.places: dict[Place, Place] = {}
        """Where each block lies now."""
        self.done: list[tuple[PackDone, bytes]] = []
        """Packs that are durable, each with its digest list."""
        self.begun: set[int] = set()
        """Numbers whose put may have begun."""

    def put(self, name: tuple[int, bytes], places: Sequence[Place]) -> None:
        """Stores one pack of those blocks that verify."""
        number, name16 = name
        plain, digests, taken = bytearray(), list[bytes](), list[Place]()
        for pack, first, count in _runs(places):
            found = self._verified(Extent(pack, first, count))
            if found is not None:
                plain += found[0]
                digests += found[1]
                taken += [(pack, block) for block in range(first, first + count)]
        if not taken:
            return
        builder = PackBuilder(name16, self._repo.superblock.repo, self._repo.session.id, self._repo.config.pack_blocks)
        view = memoryview(plain)
        for at in range(0, len(view), FRAME):
            first = at // BLOCK
            builder.add_frame(frames.encode(view[at : at + FRAME]), digests[first : first + FRAME_BLOCKS])
        built = builder.finish(self._moved(taken))
        self.begun.add(number)
        self._repo.store.put(object_name(name16), built.parts)
        done = PackDone(
            no=number,
            frames_row=built.frames_row,
            nblocks=built.nblocks,
            stored=built.stored_bytes,
            footer_off=built.footer_off,
            footer_digest=built.footer_digest,
        )
        self.done.append((done, built.digests))
        self.places.update((place, (number, block)) for block, place in enumerate(taken))

    def _verified(self, extent: Extent) -> tuple[bytes, list[bytes]] | None:
        """(bytes, digests) of blocks that are what their digests say; None, and a warning, for others."""
        footer = self._footer(extent.pack)
        if footer is None:
            return None
        try:
            plain = self._reader.read(extent)
        except (NotFound, Damaged, BackendFailed) as error:
            _passed_over(extent.pack, error)
            return None
        digests = self._repo.digests.blocks(plain)
        if b"".join(digests) != footer.digests[extent.first * WIDTH : (extent.first + extent.count) * WIDTH]:
            log.warning("pack %d: blocks are not what their digests say; they stay where they are", extent.pack)
            return None
        return plain, digests

    def _footer(self, pack: int) -> Footer | None:
        if pack not in self._footers:
            try:
                name16 = self._repo.catalog.packs.get(pack).name16
                self._footers[pack] = read_footer(self._repo.store, name16)
            except (NotFound, Damaged, BackendFailed) as error:
                _passed_over(pack, error)
                self._footers[pack] = None
        return self._footers[pack]

    def _moved(self, places: Sequence[Place]) -> list[Moved]:
        """Where the blocks of a new pack came from, and where those places had taken them over from before: a
        pack that is gone takes its own notes along."""
        here = {place: block for block, place in enumerate(places)}
        # Blocks of packs without a footer were not taken.
        footers = {pack: footer for pack, _ in here if (footer := self._footers[pack]) is not None}
        notes = [(footers[pack].name16, old, new) for (pack, old), new in here.items()]
        for pack, footer in footers.items():
            for name16, old_first, new_first, count in footer.moved:
                known = [(old_first + n, here.get((pack, new_first + n))) for n in range(count)]
                notes += [(name16, old, new) for old, new in known if new is not None]
        return list(_joined(sorted(notes)))


def _passed_over(pack: int, error: ImagefsError) -> None:
    # Not found is what happens when the last image that names a pack is ended meanwhile.
    level = logging.INFO if isinstance(error, NotFound) else logging.WARNING
    log.log(level, "pack %d: %s; its blocks stay where they are", pack, error)


def relocated(map_id: int, rows: Iterable[Row], places: Mapping[Place, Place]) -> Move | None:
    """The change of one map whose blocks lie at new places; None if it has none of them."""
    packs = {pack for pack, _ in places}
    before: set[int] = set()
    after: set[int] = set()
    old: list[tuple[int, bytes]] = []
    new: list[tuple[int, bytes]] = []
    for gib, group in groupby(rows, key=lambda row: row[0] // 4):
        part = [(quarter, bytes(value)) for quarter, value in group]
        named = maprows.packs_of(part).keys()
        before |= named
        if packs.isdisjoint(named):
            after |= named
            continue
        changed = [(quarter + 4 * gib, value) for quarter, value in _rebuilt(part, gib, packs, places)]
        after |= maprows.packs_of(changed).keys()
        old += part
        new += changed
    if old == new:
        return None
    return Move(map_id, old, new, frozenset(after - before), frozenset(before - after))


def _rebuilt(rows: Iterable[Row], gib: int, packs: set[int], places: Mapping[Place, Place]) -> list[tuple[int, bytes]]:
    """The rows of one GiB with its blocks at their new places, counted from its beginning."""
    builder = MapBuilder()
    for block, pack, first, count in maprows.runs(rows):
        builder.zeros(block - gib * GIB - builder.blocks)
        if pack not in packs:
            builder.append(pack, first, count)
            continue
        for at in range(first, first + count):
            builder.append(*places.get((pack, at), (pack, at)), 1)
    return builder.rows()


def _runs(places: Iterable[Place]) -> Iterator[tuple[int, int, int]]:
    """(pack, first block, count) of what lies side by side."""
    numbered = groupby(enumerate(places), key=lambda item: (item[1][0], item[1][1] - item[0]))
    for _, group in numbered:
        run = [place for _, place in group]
        yield run[0][0], run[0][1], len(run)


def _joined(notes: Iterable[tuple[bytes, int, int]]) -> Iterator[Moved]:
    """Notes of single blocks, in order, as those of runs."""
    numbered = groupby(enumerate(notes), key=lambda item: (item[1][0], item[1][1] - item[0], item[1][2] - item[0]))
    for _, group in numbered:
        run = [note for _, note in group]
        yield Moved(*run[0], len(run))


def batches(places: Iterable[Place], size: int) -> Iterator[list[Place]]:
    """The same in lists of at most `size`."""
    left = iter(places)
    while batch := list(islice(left, size)):
        yield batch
