"""Sealed data: from a map and packs to bytes, every frame verified before a byte of it is used."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator
from functools import partial

from imagefs.blocks import frames as codec
from imagefs.blocks import recode
from imagefs.catalog import Catalog
from imagefs.errors import Damaged, MapGone, NotFound, UnknownFeature
from imagefs.images.frames import FrameCache
from imagefs.images.recode import RecodedFile, Remaker
from imagefs.stores import Store
from imagefs.types import BLOCK, FRAME_BLOCKS, ZERO_PACK, Extent

log = logging.getLogger(__name__)

ZEROS = bytes(1 << 20)
MOST_FRAMES = 4096
"""Frames of the largest pack that the format allows: 65,536 blocks."""
ROWS_CACHED = 1024
"""Frame tables kept decoded from the catalog: 128 frames x 24 B each, 3 MiB in all."""
MAPS_CACHED = 256
"""Maps whose layout is known; a recoded one keeps 8 B for each 128 of its clusters."""


class BlockReader:
    """Reads maps. Safe for any number of threads: no lock but the caches' own, no write to the catalog."""

    def __init__(self, catalog: Catalog, store: Store, cache_bytes: int) -> None:
        self._catalog = catalog
        self._store = store
        self._cache = FrameCache(cache_bytes)
        self._rows: OrderedDict[int, tuple[str, list[codec.FrameRow]]] = OrderedDict()
        self._rows_lock = threading.Lock()
        """Guards `_rows` and `_recoded`; nothing is taken under it."""
        self._recoded: OrderedDict[int, RecodedFile | None] = OrderedDict()
        self._remaker = Remaker()

    def pread(self, map_id: int, size: int, offset: int, length: int) -> bytes:
        """Bytes `offset` .. `offset + length` of a file of `size` bytes that has this map, whatever its
        layout; shorter at the end, b"" behind it.

        Raises Damaged when stored bytes do not verify or an object is gone, BackendFailed when the store
        does not answer, MapGone when the map was replaced (its image has another one now).
        """
        length = min(length, size - offset)
        if length <= 0:
            return b""
        recoded = self._layout(map_id)
        return self.stored(map_id, offset, length) if recoded is None else recoded.pread(offset, length)

    def stored(self, map_id: int, offset: int, length: int) -> bytes:
        """Bytes of the map itself: of a plain one those of the file, of others those of an area (blocks.recode).
        Errors as for `pread`."""
        first = offset // BLOCK
        count = (offset + length - 1) // BLOCK - first + 1
        try:
            parts = self._found(map_id, first, count)
        except Damaged as error:
            log.error("map %d, bytes %d to %d: %s", map_id, offset, offset + length, error)
            raise
        skip = offset - first * BLOCK
        if len(parts) == 1 and skip == 0 and len(parts[0]) == length:
            return bytes(parts[0])
        return b"".join(parts)[skip : skip + length]

    def read(self, extent: Extent) -> bytes:
        """Blocks of one pack. NotFound when it is gone, else as `pread`."""
        return b"".join(self._blocks(extent))

    def _found(self, map_id: int, first: int, count: int) -> list[bytes | memoryview]:
        """The blocks, looked up again when they were moved to another pack between the look-up and the read."""
        extents = None
        while True:
            before, extents = extents, self._catalog.maps.extents(map_id, first, count)
            try:
                return self._parts(map_id, extents)
            except MapGone:
                raise
            except NotFound as error:
                # The map knows where they are now; when it still names what is missing, that is lost.
                if extents == before:
                    raise Damaged(f"A stored object of map {map_id} is missing: {error}") from error

    def _parts(self, map_id: int, extents: list[Extent]) -> list[bytes | memoryview]:
        parts: list[bytes | memoryview] = []
        if len(extents) == 1 and extents[0].pack == ZERO_PACK:
            # A map that is gone has no rows either, and its file is not zeros.
            self.require(map_id)
        for extent in extents:
            if extent.pack == ZERO_PACK:
                parts.extend(_zeros(extent.count * BLOCK))
            else:
                parts.extend(self._blocks(extent))
        return parts

    def _blocks(self, extent: Extent) -> Iterator[bytes | memoryview]:
        low = extent.first // FRAME_BLOCKS
        high = (extent.first + extent.count - 1) // FRAME_BLOCKS
        frames = self._cache.get(
            extent.pack, low, high - low + 1, lambda first, count: self._fetch(extent.pack, first, count)
        )
        begin = (extent.first - low * FRAME_BLOCKS) * BLOCK
        left = extent.count * BLOCK
        for frame in frames:
            take = min(left, len(frame) - begin)
            yield frame if take == len(frame) else memoryview(frame)[begin : begin + take]
            left -= take
            begin = 0
        if left:
            raise Damaged(f"Pack {extent.pack} ends before block {extent.first + extent.count}.")

    def _fetch(self, pack: int, first: int, count: int) -> list[bytes]:
        """Frames of one pack: one ranged get for all of them, since neighbours lie side by side."""
        name, rows = self._frame_rows(pack)
        wanted = rows[first : first + count]
        if len(wanted) < count:
            raise Damaged(f"{name} has no frame {first + count - 1}.")
        base = wanted[0].offset
        stored = memoryview(self._store.get(name, base, wanted[-1].offset + wanted[-1].length - base))
        plain = []
        for number, row in enumerate(wanted, first):
            at = row.offset - base
            where = f"{name}, frame {number}"
            plain.append(codec.decode(stored[at : at + row.length], row.codec, row.digest, name=where))
        return plain

    def _frame_rows(self, pack: int) -> tuple[str, list[codec.FrameRow]]:
        with self._rows_lock:
            known = self._rows.get(pack)
            if known is not None:
                self._rows.move_to_end(pack)
                return known
        row = self._catalog.packs.get(pack)
        table = codec.unpack_rows(self._catalog.packs.frames(pack, 0, MOST_FRAMES))
        with self._rows_lock:
            self._rows[pack] = row.object_name, table
            if len(self._rows) > ROWS_CACHED:
                self._rows.popitem(last=False)
            return self._rows[pack]

    def data_ranges(self, map_id: int, size: int, start: int = 0) -> Iterator[tuple[int, int]]:
        """(offset, length) of what is not zero from `start` on, in order, at block granularity."""
        recoded = self._layout(map_id)
        ranges = partial(self._stored_ranges, map_id)
        return ranges(start, size) if recoded is None else recoded.data_ranges(ranges, start, size)

    def _stored_ranges(self, map_id: int, start: int, size: int) -> Iterator[tuple[int, int]]:
        step = (256 << 20) // BLOCK
        first, end = start // BLOCK, -(-size // BLOCK)
        begin, found = None, False
        while first < end:
            for extent in self._catalog.maps.extents(map_id, first, min(step, end - first)):
                if extent.pack == ZERO_PACK and begin is not None:
                    yield begin * BLOCK, (first - begin) * BLOCK
                    begin = None
                elif extent.pack != ZERO_PACK and begin is None:
                    begin, found = first, True
                first += extent.count
        if begin is not None:
            yield begin * BLOCK, min(end * BLOCK, size) - begin * BLOCK
        elif not found:
            self.require(map_id)

    # -- layouts -------------------------------------------------------------------------------------

    def require(self, map_id: int) -> None:
        """Returns when the map is there or being made; MapGone otherwise."""
        if not self._catalog.maps.exists(map_id):
            raise MapGone(f"Map {map_id} was replaced, or its image has ended.")

    def _layout(self, map_id: int) -> RecodedFile | None:
        """How to read a map that is not plain. A map's number and meaning never change."""
        with self._rows_lock:
            if map_id in self._recoded:
                self._recoded.move_to_end(map_id)
                return self._recoded[map_id]
        try:
            kind = self._catalog.maps.info(map_id).kind
        except NotFound:
            return None  # being made, or gone: what reads it will see
        if kind not in (0, recode.KIND):
            raise UnknownFeature(f"Map {map_id} has layout {kind}, which is unknown here.")
        recoded = self.recoded(map_id) if kind else None
        with self._rows_lock:
            self._recoded[map_id] = recoded
            if len(self._recoded) > MAPS_CACHED:
                self._recoded.popitem(last=False)
        return recoded

    def recoded(self, map_id: int) -> RecodedFile:
        """A map read as layout `recode`, also while it is being made. Errors as for RecodedFile."""

        return RecodedFile(map_id, partial(self.stored, map_id), self._remaker)


def _zeros(length: int) -> Iterator[bytes | memoryview]:
    while length > 0:
        take = min(length, len(ZEROS))
        yield ZEROS if take == len(ZEROS) else memoryview(ZEROS)[:take]
        length -= take
