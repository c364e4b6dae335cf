"""The table of maps: which blocks of which packs an image's data is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple
from uuid import UUID

from imagefs.blocks import maprows
from imagefs.blocks import maps as columns
from imagefs.catalog import schema
from imagefs.catalog.env import Environment, Txn
from imagefs.catalog.packs import Packs
from imagefs.catalog.usage import Usage
from imagefs.errors import NotFound
from imagefs.types import BLOCK, Extent

BATCH = 64
"""Rows of up to 64 KiB read in one transaction."""


class MapInfo(NamedTuple):
    """A map that some image or draft uses."""

    refs: int
    """Images that have it as their data, plus drafts and siblings that have it as their base."""
    size: int
    """Bytes of the file it describes."""
    kind: int
    """0: plain; 1: recode (blocks.recode)."""
    uuid: UUID
    """Names its manifest on the store: maps/<uuid>."""


class Maps:
    """Each method is one transaction, or joins the thread's open one. A map's meaning never changes."""

    def __init__(self, env: Environment, packs: Packs, usage: Usage) -> None:
        self._env = env
        self._packs = packs
        self._usage = usage
        self._maps = env.table(schema.MAPS.name)
        self._uuids = env.table(schema.MAP_UUID.name)
        self._rows = env.table(schema.MAPSEG.name)

    # -- looking up --------------------------------------------------------------------------------

    def info(self, map_id: int) -> MapInfo:
        """References, size and name. NotFound."""
        with self._env.read() as txn:
            raw = txn.get(schema.U64.pack(map_id), db=self._maps)
        if raw is None:
            raise NotFound(f"There is no map {map_id}.")
        return _info(raw)

    def exists(self, map_id: int) -> bool:
        """Whether records may have it."""
        with self._env.read() as txn:
            return txn.get(schema.U64.pack(map_id), db=self._maps) is not None

    def by_uuid(self, uuid: UUID) -> int | None:
        """The number of the map whose manifest this is."""
        with self._env.read() as txn:
            raw = txn.get(uuid.bytes, db=self._uuids)
        return schema.U64.unpack(raw)[0] if raw is not None else None

    def extents(self, map_id: int, first_block: int, count: int) -> list[Extent]:
        """Where these blocks lie, in order; zeros where there is no row, as for a map that is not there."""
        with self._env.read() as txn:
            return columns.extents(lambda quarter: self._covering(txn, map_id, quarter), first_block, count)

    def rows(self, map_id: int) -> Iterator[tuple[int, bytes]]:
        """(first quarter of 256 MiB, columns) of every row, in order, read in batches; provisional maps
        too."""
        quarter = 0
        while page := self._page(map_id, quarter):
            yield from page
            quarter = page[-1][0] + 1

    def packs_of(self, map_id: int) -> dict[int, int]:
        """Pack number -> blocks of it that the map uses."""
        return maprows.packs_of(self.rows(map_id))

    def allocated(self, map_id: int) -> int:
        """Bytes in its non-zero blocks."""
        return sum(self.packs_of(map_id).values()) * BLOCK

    def scan(self) -> Iterator[tuple[int, MapInfo]]:
        """All maps by number, read in batches."""
        map_id = 0
        while True:
            with self._env.read() as txn:
                cursor = txn.cursor(db=self._maps)
                found = list(islice(cursor, 1000)) if cursor.set_range(schema.U64.pack(map_id)) else []
            if not found:
                return
            for key, raw in found:
                map_id = schema.U64.unpack(key)[0]
                yield map_id, _info(raw)
            map_id += 1

    def numbers(self) -> Iterator[int]:
        """Every number that has rows, provisional maps included."""
        map_id = 0
        while True:
            with self._env.read() as txn:
                cursor = txn.cursor(db=self._rows)
                if not cursor.set_range(schema.SEG.pack(map_id, 0)):
                    return
                map_id = schema.SEG.unpack(cursor.key())[0]
            yield map_id
            map_id += 1

    # -- changing, as parts of a sealing, a clone or a deletion ------------------------------------------

    def put_rows(self, map_id: int, rows: Iterable[tuple[int, bytes]]) -> None:
        """Adds rows of a provisional map; a row replaces older ones of what it covers."""
        with self._env.write() as txn:
            for quarter, value in rows:
                if maprows.span(value) == maprows.GIB:
                    # A quarter's row would be found before the one of the whole GiB.
                    for older in range(quarter + 1, quarter + 4):
                        txn.delete(schema.SEG.pack(map_id, older), db=self._rows)
                txn.put(schema.SEG.pack(map_id, quarter), value, db=self._rows)

    def create(self, map_id: int, uuid: UUID, size: int, packs: Iterable[int], kind: int = 0) -> None:
        """Makes a provisional map one that records may use: every pack it names, and its manifest, counts it.

        It has no reference yet; the record that gets it in the same transaction adds one.
        """
        with self._env.write() as txn:
            manifest = self._packs.by_name(uuid.bytes)
            named = [*packs, manifest.no] if manifest is not None else [*packs]
            self._usage.map_created(map_id, map(self._packs.get, named))
            self._packs.use(named)
            self._put(txn, map_id, MapInfo(0, size, kind, uuid))
            txn.put(uuid.bytes, schema.U64.pack(map_id), db=self._uuids)

    def use(self, map_id: int) -> MapInfo:
        """One reference more. NotFound."""
        with self._env.write() as txn:
            info = self.info(map_id)
            info = info._replace(refs=info.refs + 1)
            self._put(txn, map_id, info)
        return info

    def release(self, map_id: int) -> None:
        """One reference less; without any the map goes, and its packs and manifest lose a reference."""
        with self._env.write() as txn:
            info = self.info(map_id)
            if info.refs > 1:
                self._put(txn, map_id, info._replace(refs=info.refs - 1))
                return
            nos = sorted(self.packs_of(map_id))
            manifest = self._packs.by_name(info.uuid.bytes)
            self._packs.release([*nos, manifest.no] if manifest is not None else nos)
            self.drop_rows(map_id)
            txn.delete(schema.U64.pack(map_id), db=self._maps)
            txn.delete(info.uuid.bytes, db=self._uuids)
            self._usage.map_removed(map_id)

    def drop_rows(self, map_id: int) -> None:
        """Removes the rows of a map, which is provisional or going."""
        with self._env.write() as txn:
            cursor = txn.cursor(db=self._rows)
            while cursor.set_range(schema.SEG.pack(map_id, 0)):
                if schema.SEG.unpack(cursor.key())[0] != map_id:
                    return
                cursor.delete()

    # ------------------------------------------------------------------------------------------------

    def _covering(self, txn: Txn, map_id: int, quarter: int) -> tuple[int, bytes] | None:
        """The row that begins at this quarter, or at the first quarter of its GiB."""
        value = txn.get(schema.SEG.pack(map_id, quarter), db=self._rows)
        if value is None and quarter % 4:
            quarter -= quarter % 4
            value = txn.get(schema.SEG.pack(map_id, quarter), db=self._rows)
        return (quarter, value) if value is not None else None

    def _page(self, map_id: int, quarter: int) -> list[tuple[int, bytes]]:
        """Up to BATCH rows from a quarter on."""
        rows: list[tuple[int, bytes]] = []
        with self._env.read() as txn:
            cursor = txn.cursor(db=self._rows)
            if cursor.set_range(schema.SEG.pack(map_id, quarter)):
                for key, value in islice(cursor, BATCH):
                    number, quarter = schema.SEG.unpack(key)
                    if number != map_id:
                        break
                    rows.append((quarter, value))
        return rows

    def _put(self, txn: Txn, map_id: int, info: MapInfo) -> None:
        value = schema.MAP.pack(info.refs, info.size, info.kind, info.uuid.bytes)
        txn.put(schema.U64.pack(map_id), value, db=self._maps)


def _info(raw: bytes) -> MapInfo:
    refs, size, kind, uuid = schema.MAP.unpack(raw)
    return MapInfo(refs, size, kind, UUID(bytes=uuid))
