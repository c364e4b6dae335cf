"""What the store has, brought into an empty catalog: packs by their footers, maps by their manifests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import NamedTuple
from uuid import UUID

from imagefs.blocks import manifest, maprows
from imagefs.blocks.footer import Moved
from imagefs.blocks.manifest import Manifest
from imagefs.blocks.maps import MapBuilder
from imagefs.blocks.packs import Footer, object_name, read_footer
from imagefs.catalog import Catalog, Damage, PackDone, PackKind
from imagefs.catalog.records import loads
from imagefs.errors import Damaged, NewerVersion, NotFound
from imagefs.stores import Store
from imagefs.types import Image, Status

BATCH = 256
"""Packs recorded in one transaction."""
READERS = 4
NOBODY = UUID(int=0)
"""Who reserved packs whose writer is not known any more."""


class Content(NamedTuple):
    """What a map is made of."""

    owner: UUID
    """Image that was sealed with it."""
    size: int
    kind: int
    names: tuple[bytes, ...]
    """Pack table."""
    rows: tuple[tuple[int, bytes], ...]
    """Map rows with places in the table instead of pack numbers."""


class Inventory:
    """Fills `catalog`, which must be empty. Used by one thread, outside of transactions but for `map_of`.

    A footer's list of moved blocks always wins over the place that a manifest names: the blocks are the same
    when both are there, and when the old pack was damaged only the new place is good.
    """

    def __init__(self, catalog: Catalog, store: Store, repo: UUID, older: Catalog | None = None) -> None:
        self.damaged: list[str] = []
        """Objects that did not verify or are missing, as sentences."""
        self.sealed: set[UUID] = set()
        """Images of which a manifest was read: they were sealed at some time."""
        self._catalog = catalog
        self._store = store
        self._repo = repo
        self._older = older
        self._moved: dict[bytes, list[tuple[Moved, bytes]]] = {}
        """Old pack -> where its blocks are now, as (Moved, name of the new pack)."""
        self._manifests: set[UUID] = set()
        self._maps: dict[UUID, int | None] = {}

    def take(self, progress: Callable[[int], None]) -> int:
        """Records every pack and manifest that the store has; returns how many."""
        count = 0
        names = (name16 for name in self._store.list("packs/") if (name16 := _name16(name)) is not None)
        with ThreadPoolExecutor(READERS, thread_name_prefix="footer") as pool:
            while batch := list(islice(names, BATCH)):
                footers = list(pool.map(self._footer, batch))
                with self._catalog.transaction():
                    for name16, footer in zip(batch, footers, strict=True):
                        progress(self._record(name16, footer))
                count += len(batch)
        for name in self._store.list("maps/"):
            if (name16 := _name16(name)) is not None:
                self._manifests.add(UUID(bytes=name16))
        return count + len(self._manifests)

    def load(self, uuid: UUID) -> int | None:
        """The number of the map with this manifest, made if need be; None when the manifest is lost."""
        if uuid not in self._maps:
            self._maps[uuid] = self._make(uuid)
        return self._maps[uuid]

    def map_of(self, uuid: UUID) -> int | None:
        """The number of a map that `load` made; None if it could not."""
        return self._maps.get(uuid)

    def orphans(self) -> dict[UUID, Image]:
        """The records in manifests that no map was made from, by their image; call it when all maps are loaded
        that records name."""
        found: dict[UUID, Image] = {}
        for uuid in sorted(self._manifests - self._maps.keys()):
            decoded = self._decoded(uuid)
            if decoded is not None:
                record = replace(loads(decoded.record), map_uuid=uuid, status=Status.ACTIVE, draft=None)
                found.setdefault(record.id, record)
        return found

    def discard_unused(self) -> int:
        """What no map names goes to trash; how many objects that are."""
        with self._catalog.transaction():
            for uuid in self._manifests:
                if self._maps.get(uuid) is None and self._catalog.packs.by_name(uuid.bytes) is None:
                    self._manifest_row(uuid, self._owner(uuid))
            unused = [row.no for row in self._catalog.packs.scan() if not row.refs]
            self._catalog.packs.discard(unused)
        return len(unused)

    # -- packs -------------------------------------------------------------------------------------------

    def _footer(self, name16: bytes) -> Footer | str | None:
        """The footer, or what is wrong with it; None for an object that has gone."""
        try:
            footer = read_footer(self._store, name16)
        except NotFound:
            return None
        except NewerVersion:
            raise
        except Damaged as error:
            return str(error)
        if footer.repo != self._repo:
            return f"{object_name(name16)} belongs to repository {footer.repo}."
        return footer

    def _record(self, name16: bytes, footer: Footer | str | None) -> int:
        if footer is None:
            return 0
        no = self._catalog.packs.reserve_named(NOBODY, PackKind.PACK, name16)
        if isinstance(footer, Footer):
            for moved in footer.moved:
                self._moved.setdefault(moved.name16, []).append((moved, name16))
            done = PackDone(
                no, footer.frames_row, footer.nblocks, footer.stored_bytes, footer.footer_off, footer.footer_digest
            )
        else:
            done = self._salvaged(no, name16)
            self.damaged.append(footer)
            self._catalog.scrubs.found(Damage(no, time.time_ns(), other=footer))
        self._catalog.packs.finished([done])
        return done.stored

    def _salvaged(self, no: int, name16: bytes) -> PackDone:
        """A pack without a footer: the other catalog may know its frames."""
        size = self._store.size(object_name(name16))
        row = self._older.packs.by_name(name16) if self._older is not None else None
        if row is None or self._older is None or not row.done:
            return PackDone(no, stored=size)
        frames_row = self._older.packs.frames(row.no)
        return PackDone(no, frames_row, row.blocks, row.stored, row.footer_off, row.footer_digest)

    # -- maps --------------------------------------------------------------------------------------------

    def _make(self, uuid: UUID) -> int | None:
        found = self._manifest(uuid) or self._from_older(uuid)
        if found is None:
            return None
        owner, size, kind, names, located = found
        rows = self._located(names, located)
        with self._catalog.transaction():
            self._manifest_row(uuid, owner)
            map_id = self._catalog.counters.take("map")
            self._catalog.maps.put_rows(map_id, rows)
            self._catalog.maps.create(map_id, uuid, size, sorted(maprows.packs_of(rows)), kind)
        return map_id

    def _manifest(self, uuid: UUID) -> Content | None:
        """What a manifest on the store says."""
        decoded = self._decoded(uuid)
        if decoded is None:
            return None
        record = loads(decoded.record)
        return Content(record.id, record.size or 0, decoded.kind, decoded.packs, decoded.rows)

    def _decoded(self, uuid: UUID) -> Manifest | None:
        name = manifest.object_name(uuid)
        try:
            decoded = manifest.decode(self._store.get(name), name)
            self.sealed.add(loads(decoded.record).id)
            return decoded
        except NotFound:
            problem = f"{name} is not on the store."
        except NewerVersion:
            raise
        except Damaged as error:
            problem = str(error)
        if problem not in self.damaged:
            self.damaged.append(problem)
        return None

    def _from_older(self, uuid: UUID) -> Content | None:
        """The same out of the other catalog."""
        older = self._older
        map_id = older.maps.by_uuid(uuid) if older is not None else None
        if older is None or map_id is None:
            return None
        rows = list(older.maps.rows(map_id))
        numbers = sorted(maprows.packs_of(rows))
        names = tuple(older.packs.get(no).name16 for no in numbers)
        kept = maprows.renumber(rows, {no: place for place, no in enumerate(numbers)})
        row = older.packs.by_name(uuid.bytes)
        info = older.maps.info(map_id)
        return Content(row.owner if row else NOBODY, info.size, info.kind, names, tuple(kept))

    def _located(self, names: tuple[bytes, ...], rows: Iterable[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        """The rows of a manifest with the numbers of this catalog, its blocks where they are now."""
        if not any(name in self._moved for name in names):
            return list(maprows.renumber(rows, {place: self._number(name) for place, name in enumerate(names)}))
        builder = MapBuilder()
        for block, pack, first, count in maprows.runs(rows):
            builder.zeros(block - builder.blocks)
            for name16, at, length in self._places(names[pack], first, count):
                builder.append(self._number(name16), at, length)
        return builder.rows()

    def _places(self, name16: bytes, first: int, count: int) -> Iterator[tuple[bytes, int, int]]:
        """(pack, first block, count) of where blocks of a pack are now, in order."""
        moved = self._moved.get(name16, ())
        end = first + count
        while first < end:
            stop = end
            for span, new in moved:
                if span.old_first <= first < span.old_first + span.nblocks:
                    length = min(end, span.old_first + span.nblocks) - first
                    yield from self._places(new, span.new_first + first - span.old_first, length)
                    first += length
                    break
                if first < span.old_first:
                    stop = min(stop, span.old_first)
            else:
                yield name16, first, stop - first
                first = stop

    def _number(self, name16: bytes) -> int:
        row = self._catalog.packs.by_name(name16)
        if row is not None:
            return row.no
        no = self._catalog.packs.reserve_named(NOBODY, PackKind.PACK, name16)
        self._catalog.scrubs.found(Damage(no, time.time_ns(), missing=True))
        self.damaged.append(f"{object_name(name16)} is not on the store.")
        return no

    # -- manifests -----------------------------------------------------------------------------------------

    def _manifest_row(self, uuid: UUID, owner: UUID) -> None:
        no = self._catalog.packs.reserve_named(owner, PackKind.MANIFEST, uuid.bytes)
        try:
            stored = self._store.size(manifest.object_name(uuid))
        except NotFound:
            self._catalog.scrubs.found(Damage(no, time.time_ns(), missing=True))
        else:
            self._catalog.packs.finished([PackDone(no, stored=stored)])

    def _owner(self, uuid: UUID) -> UUID:
        decoded = self._decoded(uuid)
        return loads(decoded.record).id if decoded is not None else NOBODY


def _name16(name: str) -> bytes | None:
    """The 16 bytes that an object's name ends in; None for a name that no writer of ours gives."""
    try:
        name16 = bytes.fromhex(name.rpartition("/")[2].replace("-", ""))
    except ValueError:
        return None
    return name16 if len(name16) == 16 else None
