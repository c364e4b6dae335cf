"""Reading layout `recode`: compressed clusters made again from plain blocks, checked before a byte is used."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from heapq import merge

from imagefs.blocks import recode
from imagefs.blocks.recode import CodecRow, Stream, Table
from imagefs.errors import CannotRemake, Damaged
from imagefs.formats.deflate import Codec, Encode, encoder
from imagefs.images.frames import FrameCache
from imagefs.types import BLOCK

MADE_BYTES = 32 << 20
"""Streams kept that were made: a page of a booting guest's file system is read in many small pieces."""
THREADS = max(2, os.cpu_count() or 1)
Stored = Callable[[int, int], bytes]
"""(first byte, length) of a map's blocks, verified."""
Ranges = Callable[[int, int], Iterator[tuple[int, int]]]
"""(first byte, end) of a map: (offset, length) of what is not zero there, in order."""


class Remaker:
    """What recoded images share that are read by a process: the threads that encode, and what they made last.

    zlib releases the GIL, so that a read of 1 MiB keeps all cores busy. A task never waits for another.
    """

    def __init__(self, cache_bytes: int = MADE_BYTES, begin: Callable[[], None] | None = None) -> None:
        """`begin` is called first in each of its threads."""
        self._begin = begin
        self.made = FrameCache(cache_bytes)
        self._lock = threading.Lock()
        """Guards the making of the pool; nothing is taken under it."""
        self._pool: ThreadPoolExecutor | None = None

    @property
    def pool(self) -> ThreadPoolExecutor:
        """Begun at the first read: most processes never need it."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(THREADS, "remake", self._begin)
            return self._pool

    def close(self) -> None:
        """Ends the threads. Nothing is read through it afterwards."""
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(wait=True, cancel_futures=True)


class RecodedFile:
    """One map of layout `recode` as the file it stands for. Safe for any number of threads."""

    def __init__(self, map_id: int, stored: Stored, remaker: Remaker) -> None:
        """Reads the table's header and index. Raises Damaged, NewerVersion, UnknownFeature, CannotRemake when
        this machine's encoder is another one than the streams were checked against."""
        self._map_id = map_id
        self._stored = stored
        self._remaker = remaker
        self._name = f"map {map_id}"
        self.table = Table(stored, self._name)
        self.size = self.table.header.size
        self._skeleton = self.table.header.skeleton
        self._encoders = [_encoder(row, self._name) for row in self.table.header.codecs]

    def pread(self, offset: int, length: int) -> bytes:
        """Bytes `offset` .. `offset + length` of the file; shorter at the end, b"" behind it."""
        length = min(length, self.size - offset)
        if length <= 0:
            return b""
        streams = list(self.table.streams(offset, offset + length))
        inside = [number for number, row in streams if _covers(row, offset, length)]
        found = bytearray(length) if inside else bytearray(self._literal(offset, length))
        if streams:
            first = streams[0][0]
            made = self._remaker.made.get(self._map_id, first, len(streams), self._make)
            for (_, row), data in zip(streams, made, strict=True):
                low, high = max(row.file_off, offset), min(row.file_off + row.length, offset + length)
                found[low - offset : high - offset] = memoryview(data)[low - row.file_off : high - row.file_off]
        return bytes(found)

    def _literal(self, offset: int, length: int) -> bytes:
        """What the skeleton has of a range."""
        low = offset // BLOCK * BLOCK
        high = -(-(offset + length) // BLOCK) * BLOCK
        return self._stored(self._skeleton + low, high - low)[offset - low : offset - low + length]

    def _make(self, first: int, count: int) -> list[bytes]:
        """Streams by number, made and checked, all cores at work."""
        rows = self.table.run(first, count)
        if len(rows) == 1:
            return [self._stream(rows[0])]
        return list(self._remaker.pool.map(self._stream, rows))

    def _stream(self, row: Stream) -> bytes:
        if row.codec >= len(self._encoders):
            raise Damaged(f"{self._name}: the stream at {row.file_off} has codec {row.codec}: there is none.")
        made = self._encoders[row.codec](self._stored(recode.GUEST + row.guest_off, self.table.header.unit))
        if len(made) != row.length or recode.check_of(made) != row.check:
            raise Damaged(f"{self._name}: the stream at {row.file_off} of the file is not what it was.")
        return made

    def data_ranges(self, ranges: Ranges, start: int, size: int) -> Iterator[tuple[int, int]]:
        """(offset, length) of what is not zero from `start` to `size`, in order, at block granularity; `ranges`
        are the map's."""
        literal = (
            (offset - self._skeleton, offset - self._skeleton + length)
            for offset, length in ranges(self._skeleton + start, self._skeleton + size)
        )
        made = (_blocks(row) for _, row in self.table.streams(start, size))
        low = high = start // BLOCK * BLOCK
        for begin, end in merge(literal, made):
            if begin > high:
                if high > low:
                    yield low, high - low
                low = begin
            high = max(high, end)
        if min(high, size) > low:
            yield low, min(high, size) - low


def _covers(row: Stream, offset: int, length: int) -> bool:
    """Whether a range lies in one stream, so that the skeleton has nothing of it."""
    return row.file_off <= offset and offset + length <= row.file_off + row.length


def _blocks(row: Stream) -> tuple[int, int]:
    return row.file_off // BLOCK * BLOCK, -(-(row.file_off + row.length) // BLOCK) * BLOCK


@lru_cache(maxsize=256)
def _encoder(row: CodecRow, name: str) -> Encode:
    """What makes the streams of a codec, seen to be the same encoder. CannotRemake when there is none."""
    codec = Codec(row.level, row.wbits, row.mem_level, row.strategy)
    found = encoder(codec, row.probe) if row.algorithm == recode.DEFLATE else None
    if found is None:
        raise CannotRemake(
            f"{name}: its file was compressed by an encoder that neither this machine's zlib nor imagefs has (level "
            f"{row.level}, window {row.wbits}). Read it on a machine with the zlib it was stored with."
        )
    return found
