"""Putting right what a scrub found, as far as the same bytes are somewhere else.

Blocks in use of a damaged pack are stored anew, the good ones from where they are, the others from another pack,
a draft's file, or with the one wrong bit turned back; the maps then name the new pack (T9), and the damaged one
goes to the trash. Manifests are made anew from the catalog, the log by a snapshot. What has no other copy stays
where it is and is named: reading it is EIO, never anything else (S11).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from uuid import UUID

from imagefs.blocks import frames, manifest, maprows
from imagefs.blocks import superblock as superblocks
from imagefs.blocks.digest import WIDTH
from imagefs.blocks.packs import Footer, read_footer
from imagefs.catalog import Damage, PackDone, PackKind, PackRow, PackState, Query
from imagefs.catalog.records import dumps
from imagefs.errors import BackendFailed, Busy, Damaged, Exists, NotFound
from imagefs.images.copies import Copies, corrected, frame_blocks
from imagefs.images.hits import Hit, Use, hits, uses
from imagefs.images.reader import BlockReader
from imagefs.images.repository import Repository
from imagefs.images.rewrite import Copy, Mover
from imagefs.images.scrub import Scrub
from imagefs.types import BLOCK, FRAME_BLOCKS, Extent

log = logging.getLogger(__name__)

FOOTER_HEAD = 24
"""Bytes of a footer before its frame table, and of a row of that table: where its digest list begins."""
FRAME_ENTRY = 28
PATIENCE_S = 20.0
CORRECTED_MOST = 16
"""Frames in which a wrong bit is looked for: 2 to 15 s each."""


@dataclass(slots=True)
class Healed:
    """What was put right, and what was not."""

    objects: list[str] = field(default_factory=list)
    """Names of damaged objects that nothing needs any more, or that are sound again."""
    blocks: int = 0
    """Blocks that were stored anew."""
    left: list[Damage] = field(default_factory=list)
    """Objects that are still damaged."""
    hits: list[Hit] = field(default_factory=list)
    """Bytes of images that have no other copy."""


class Healer:
    """Heals one repository, which may be in use. Used by one thread. `take` as for Mover.

    Without `correct` no wrong bit is looked for, which can take minutes.
    """

    def __init__(
        self, repo: Repository, take: Callable[[int], bool] = lambda nbytes: True, *, correct: bool = True
    ) -> None:
        self._repo = repo
        self._take = take
        self._correct = correct
        self._scrub = Scrub(repo, deep=True)
        self._mended = 0
        self._sources: dict[int, _Source] = {}

    def run(self) -> Healed:
        """Heals what is known to be damaged, after another look at it. Safe to repeat, and after any interruption.

        Raises Busy when another process goes on moving blocks, NoSpace, BackendFailed.
        """
        done = Healed()
        mover = Mover(self._repo, self._take, self._copy)
        with _patiently(mover):
            damaged = self._still_damaged(done)
            packs = {row.no: row for row, _ in damaged if row.kind == PackKind.PACK}
            used = uses(self._repo, packs)
            damages = {damage.no: damage for row, damage in damaged if row.no in packs}
            self._sources = {row.no: self._source(row, damages[row.no], used[row.no]) for row in packs.values()}
            self._search(used)
            for no, row in packs.items():
                done.blocks += self._move(mover, row, used[no])
        for row, _ in damaged:
            if row.kind == PackKind.MANIFEST:
                renew_manifest(self._repo, UUID(bytes=row.name16))
        needed = uses(self._repo, packs)
        for row, _ in damaged:
            self._judge(row, needed.get(row.no, Use()), done)
        self._heal_others()
        done.hits = hits(self._repo, done.left)
        return done

    # -- what is damaged ---------------------------------------------------------------------------------

    def _still_damaged(self, done: Healed) -> list[tuple[PackRow, Damage]]:
        found = []
        for known in self._repo.catalog.scrubs.damaged():
            row = self._repo.catalog.packs.find(known.no)
            if row is None or row.state != PackState.LIVE:
                continue
            damage = self._scrub.look_at(row)
            if damage is None:
                self._repo.catalog.scrubs.sound([row.no])
                done.objects.append(row.object_name)
            else:
                found.append((row, damage))
        return found

    def _judge(self, row: PackRow, use: Use, done: Healed) -> None:
        """Whether an object is damaged still, now that all was done."""
        scrubs = self._repo.catalog.scrubs
        now = self._repo.catalog.packs.find(row.no)
        live = now is not None and now.state == PackState.LIVE
        damage = self._scrub.look_at(now) if live and now is not None else None
        if damage is None:
            # In the trash it stays known as damaged: no draft is to take it out of there again.
            scrubs.sound([row.no] if live else [])
            done.objects.append(row.object_name)
            return
        if row.kind == PackKind.PACK:
            needed = {block // FRAME_BLOCKS for block in use.blocks}
            damage = damage._replace(frames=tuple(one for one in damage.frames if one in needed))
        scrubs.found(damage)
        done.left.append(damage)

    # -- packs -------------------------------------------------------------------------------------------

    def _source(self, row: PackRow, damage: Damage, use: Use) -> _Source:
        """What can be had of a damaged pack itself."""
        try:
            table = frames.unpack_rows(self._repo.catalog.packs.frames(row.no))
        except NotFound:
            table = []
        footer, digests = None, b""
        try:
            footer = read_footer(self._repo.store, row.name16)
            digests = footer.digests
        except (NotFound, Damaged, BackendFailed):
            # Each digest is good for itself: what is found under a wrong one is nothing at all.
            with contextlib.suppress(NotFound, BackendFailed):
                at = row.footer_off + FOOTER_HEAD + FRAME_ENTRY * len(table)
                digests = self._repo.store.get(row.object_name, at, row.blocks * WIDTH)
        bad = {block // FRAME_BLOCKS for block in use.blocks} if damage.missing else set(damage.frames)
        lost = {block for block in use.blocks if block // FRAME_BLOCKS in bad}
        return _Source(row, footer, digests, lost)

    def _search(self, used: dict[int, Use]) -> None:
        wanted = {digest for one in self._sources.values() for digest in one.wanted() if digest}
        copies = Copies(self._repo, wanted)
        copies.search()
        for no, source in self._sources.items():
            for block in sorted(source.lost):
                if (plain := copies.found.get(source.digest(block))) is not None:
                    source.found[block] = plain
            if self._correct:
                for number in sorted({block // FRAME_BLOCKS for block in source.lost - source.found.keys()}):
                    self._mend(source, number, used[no])

    def _mend(self, source: _Source, number: int, use: Use) -> None:
        """Looks for the one bit of a frame that is wrong."""
        if self._mended >= CORRECTED_MOST:
            return
        self._mended += 1
        try:
            frame = frames.unpack_rows(self._repo.catalog.packs.frames(source.row.no, number, 1))[0]
            stored = self._repo.store.get(source.row.object_name, frame.offset, frame.length)
            good = corrected(stored, frame.digest)
            plain = frames.decode(good, frame.codec, frame.digest) if good is not None else b""
        except (NotFound, Damaged, BackendFailed) as error:
            log.info("%s: %s", source.row.object_name, error)
            return
        first = number * FRAME_BLOCKS
        for block in frame_blocks(number):
            at = (block - first) * BLOCK
            if block in use.blocks and at < len(plain):
                source.found.setdefault(block, plain[at : at + BLOCK])

    def _move(self, mover: Mover, row: PackRow, use: Use) -> int:
        """Stores anew all that is in use of a pack and can be had."""
        source = self._sources[row.no]
        blocks = sorted(use.blocks - (source.lost - source.found.keys()))
        moved = mover.move([(row.no, block) for block in blocks], sorted(use.maps)) if blocks else 0
        if moved and source.footer is None:
            # What the footer said of blocks moved before is lost: the manifests shall name the new pack themselves.
            for map_id in use.maps:
                with contextlib.suppress(NotFound):
                    renew_manifest(self._repo, self._repo.catalog.maps.info(map_id).uuid)
        return moved

    def _copy(self, repo: Repository, reader: BlockReader) -> Copy:
        return _HealingCopy(repo, reader, self._sources)

    # -- what is in no table -----------------------------------------------------------------------------

    def _heal_others(self) -> None:
        """The log anew as a snapshot, the store's superblock from the directory's, when they are damaged."""
        repo, store = self._repo, self._repo.store
        if self._scrub.damaged_logs():
            repo.logs.snapshot()
        here = (repo.path / superblocks.OBJECT_NAME).read_bytes()
        try:
            there = store.get(superblocks.OBJECT_NAME)
        except NotFound:
            there = b""
        if there != here:
            store.delete(superblocks.OBJECT_NAME)
            with contextlib.suppress(Exists):
                store.put(superblocks.OBJECT_NAME, here)


@contextlib.contextmanager
def _patiently(mover: Mover) -> Iterator[None]:
    """`mover.alone()`, after a while: mounts move blocks in the background."""
    deadline = time.monotonic() + PATIENCE_S
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(mover.alone())
                break
            except Busy:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)
        yield


@dataclass(slots=True)
class _Source:
    """A damaged pack: what it still has, and where the rest comes from."""

    row: PackRow
    footer: Footer | None
    digests: bytes
    """Of its blocks; not to be trusted without a footer, and perhaps empty."""
    lost: set[int]
    """Blocks in use that cannot be read."""
    found: dict[int, bytes] = field(default_factory=dict)
    """Lost blocks that were found again."""

    def digest(self, block: int) -> bytes:
        """b"" when it is not known."""
        return self.digests[block * WIDTH : (block + 1) * WIDTH]

    def wanted(self) -> list[bytes]:
        return [self.digest(block) for block in self.lost]

    def as_footer(self) -> Footer:
        """The pack's footer, or what else is known of the pack."""
        row, nobody = self.row, UUID(int=0)
        return self.footer or Footer(
            row.name16, nobody, nobody, 0, b"", b"", (), row.stored, row.footer_off, row.footer_digest
        )


class _HealingCopy(Copy):
    """Stores blocks of damaged packs anew, from wherever they were found. Frames verify what is read as it is."""

    def __init__(self, repo: Repository, reader: BlockReader, sources: dict[int, _Source]) -> None:
        super().__init__(repo, reader)
        self._sources = sources
        for no, source in sources.items():
            self._footers[no] = source.as_footer()

    def _verified(self, extent: Extent) -> tuple[bytes, list[bytes]] | None:
        source = self._sources[extent.pack]
        try:
            plain = b"".join(self._plain(source, block) for block in range(extent.first, extent.first + extent.count))
        except (NotFound, Damaged, BackendFailed) as error:
            log.warning("pack %d: %s; its blocks stay where they are", extent.pack, error)
            return None
        return plain, self._repo.digests.blocks(plain)

    def _plain(self, source: _Source, block: int) -> bytes:
        found = source.found.get(block)
        return found if found is not None else self._reader.read(Extent(source.row.no, block, 1))


def renew_manifest(repo: Repository, uuid: UUID) -> bool:
    """Makes a map's manifest anew from the catalog and puts it in the place of what the store has under its name;
    False when no image has the map. A death between leaves it missing, which is healed in the same way."""
    catalog = repo.catalog
    map_id = catalog.maps.by_uuid(uuid)
    row = catalog.packs.by_name(uuid.bytes)
    images = catalog.images.query(Query(map_id=map_id, limit=1)) if map_id is not None else []
    if map_id is None or row is None or not images or images[0].root is None:
        return False
    rows = list(catalog.maps.rows(map_id))
    names = {no: catalog.packs.get(no).name16 for no in maprows.packs_of(rows)}
    body = manifest.encode(dumps(images[0]), names, rows, images[0].root, catalog.maps.info(map_id).kind)
    repo.store.delete(row.object_name)
    repo.store.put(row.object_name, body)
    catalog.packs.finished([PackDone(no=row.no, stored=len(body))])
    return True
