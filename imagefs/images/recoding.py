"""One image's way into layout `recode`: the areas of its map stored, read back, and committed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple
from uuid import UUID

from imagefs.blocks import manifest, maprows, recode
from imagefs.blocks import maps as columns
from imagefs.blocks.maps import MapBuilder
from imagefs.blocks.recode import CodecRow, Header, Stream
from imagefs.blocks.root import Root
from imagefs.catalog import Conversion, PackDone
from imagefs.catalog.records import dumps
from imagefs.errors import NotConvertible, NotFound, PacksGone
from imagefs.formats.deflate import probe_digest
from imagefs.images import packing
from imagefs.images.ingest import WINDOW, Ingest
from imagefs.images.inside import Inside, lower
from imagefs.images.recode import RecodedFile, Remaker
from imagefs.images.repository import Repository
from imagefs.types import BLOCK, LAYOUTS, ZERO_PACK, Extent, Image

Rows = list[tuple[int, bytes]]


class Stored(NamedTuple):
    """What was put, durable and recorded, but named by no map yet."""

    rows: Rows
    packs: list[packing.Stored]

    @property
    def bytes(self) -> int:
        """On the store."""
        return sum(pack.done.stored for pack in self.packs)


class RootOf:
    """The root of a file that is read from the beginning in pieces of whole blocks, but for the last."""

    def __init__(self, repo: Repository) -> None:
        self._digests = repo.digests
        self._root = Root(repo.digests.zero)

    def add(self, piece: bytes) -> None:
        digests = self._digests.blocks(piece)
        self._root.update(b"".join(digests), len(digests))

    def hexdigest(self) -> str:
        return self._root.hexdigest()


@dataclass(frozen=True, slots=True)
class Recoding:
    """One attempt. What it reserves belongs to `session`. Used by one thread."""

    repo: Repository
    session: UUID
    image: Image
    inside: Inside
    pace: Callable[[int], None]
    """Told bytes of the file that were worked on."""
    nice: bool = False

    def store(self, digest_list: Callable[[int], bytes | None]) -> Stored:
        """Puts the three areas; what `digest_list` has is not stored again. NotConvertible when hardly a stream
        is made again; errors of the store."""
        rows: Rows = []
        conversions = self.repo.catalog.conversions
        with Ingest(
            self.repo, self.image.id, MapBuilder(), lambda: conversions.reserve(self.session), digest_list
        ) as ingest:
            area = _Area(ingest)
            streams = self._guest(area)
            rows += area.end(recode.GUEST)
            skeleton = recode.skeleton_at(max(row.guest_off for row in streams) + self.inside.compressed.unit)
            for offset, plain in self.inside.skeleton([(row.file_off, row.length) for row in streams]):
                area.put(offset, plain)
            rows += area.end(skeleton)
            for number, block in enumerate(recode.encode(self._header(len(streams), skeleton), streams)):
                area.put(number * BLOCK, block)
            rows += area.end(recode.TABLE)
            packs = ingest.flush()
        conversions.stored(self.session, [pack.done for pack in packs])
        return Stored(sorted(rows), packs)

    def _guest(self, area: _Area) -> list[Stream]:
        """Stores what is inside; the streams that can be made again, by file offset."""
        found: list[Stream] = []
        for cluster, plain, length, check in self.inside.pieces(remake=True, nice=self.nice):
            self.pace(length)
            if check is not None:
                area.put(cluster.guest_off, plain)
                found.append(Stream(cluster.file_off, length, cluster.guest_off, 0, check))
        apart: list[Stream] = []
        for row in sorted(found):
            # Tables may lead twice to the same bytes: the second stream stays in the skeleton.
            if not apart or apart[-1].file_off + apart[-1].length <= row.file_off:
                apart.append(row)
        if len(apart) * 2 < len(self.inside.compressed.clusters):
            raise NotConvertible(f"Of image {self.image.id} too few streams are made again.")
        return apart

    def _header(self, streams: int, skeleton: int) -> Header:
        codec = self.inside.codec
        row = CodecRow(recode.DEFLATE, codec.level, codec.wbits, codec.mem_level, codec.strategy, probe_digest(codec))
        return Header(self.inside.size, skeleton, self.inside.compressed.unit, streams, (row,))

    @contextmanager
    def file(self, stored: Stored) -> Iterator[tuple[RecodedFile, RootOf]]:
        """The file as it is made from what was stored, from nothing else; and a root to compare."""
        rows = dict(stored.rows)

        def covering(quarter: int) -> tuple[int, bytes] | None:
            first = quarter if quarter in rows else quarter - quarter % 4
            return (first, rows[first]) if first in rows else None

        def blocks(extent: Extent) -> bytes:
            return bytes(extent.count * BLOCK) if extent.pack == ZERO_PACK else self.repo.reader.read(extent)

        def read(offset: int, length: int) -> bytes:
            try:
                return b"".join(map(blocks, columns.extents(covering, offset // BLOCK, length // BLOCK)))
            except NotFound as error:  # a gc took what had been found
                raise PacksGone(frozenset()) from error

        remaker = Remaker(begin=lower if self.nice else None)
        try:
            # No map has this number: what is made is kept apart from that of other images.
            yield RecodedFile(-1, read, remaker), RootOf(self.repo)
        finally:
            remaker.close()

    def commit(self, stored: Stored, sources: Collection[int]) -> list[Image]:
        """Puts the manifest and swaps the maps. PacksGone, SealCancelled: nothing is changed."""
        catalog = self.repo.catalog
        uuid, number = catalog.conversions.begin(self.session)
        layout = LAYOUTS[recode.KIND]
        record = replace(self.image, map_uuid=uuid, layout=layout)
        names = self._names(stored.rows)
        body = manifest.encode(dumps(record), names, stored.rows, self.image.root or "", recode.KIND)
        self.repo.store.put(manifest.object_name(uuid), body)
        images = catalog.conversions.commit(
            Conversion(
                session=self.session,
                sources=sources,
                uuid=uuid,
                size=self.inside.size,
                kind=recode.KIND,
                layout=layout,
                rows=stored.rows,
                manifest=PackDone(no=number, stored=len(body)),
            )
        )
        self.repo.index_packs(stored.packs)
        return images

    def _names(self, rows: Rows) -> dict[int, bytes]:
        try:
            return {no: self.repo.catalog.packs.get(no).name16 for no in maprows.packs_of(rows)}
        except NotFound as error:
            raise PacksGone(frozenset()) from error


class _Area:
    """Gathers blocks by the MiB, the unit of matching, and fills the gaps with zeros."""

    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest
        self._window = bytearray()

    def put(self, offset: int, plain: bytes) -> None:
        """Adds whole blocks behind everything added before."""
        if offset // BLOCK != self._ingest.maps.blocks + len(self._window) // BLOCK:
            self._flush()
            self._ingest.hole(offset // BLOCK - self._ingest.maps.blocks)
        self._window += plain
        while len(self._window) >= WINDOW:
            window, self._window = self._window[:WINDOW], self._window[WINDOW:]
            self._ingest.write(memoryview(window))

    def end(self, area: int) -> Rows:
        """The rows of everything added, in their place; the next area begins."""
        self._flush()
        rows = recode.shifted(self._ingest.maps.rows(), area)
        self._ingest.maps = MapBuilder()
        return rows

    def _flush(self) -> None:
        if self._window:
            window, self._window = self._window, bytearray()
            self._ingest.write(memoryview(window))
