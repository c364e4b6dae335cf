"""Looking inside a compressed image: its clusters decoded, and whether their streams can be made again."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from imagefs.blocks import recode
from imagefs.blocks.digest import is_zero
from imagefs.formats import Read, deflate
from imagefs.formats.compressed import Cluster, Compressed
from imagefs.formats.deflate import Codec
from imagefs.formats.inside import look
from imagefs.types import BLOCK

SAMPLES = 12
"""Clusters that the encoder's parameters are told from."""
THREADS = max(2, os.cpu_count() or 1)
AHEAD = 64
"""Clusters decoded before they are asked for: 4 MiB."""
NICENESS = 10
WINDOW = 1 << 20


class Piece(NamedTuple):
    """One cluster decoded."""

    cluster: Cluster
    plain: bytes
    length: int
    """Of its stream."""
    check: bytes | None
    """recode.check_of the stream, if the codec makes it again; None if not, or if nobody tried."""


@dataclass(frozen=True, slots=True)
class Inside:
    """A file whose streams one codec makes, most of them at least."""

    compressed: Compressed
    codec: Codec
    read: Read
    size: int
    """Bytes of the file."""

    def pieces(self, *, remake: bool, nice: bool = False) -> Iterator[Piece]:
        """The clusters in the guest's order, without those that do not decode; with `remake` each stream is
        also made again and compared, 20 MB/s of file for each core instead of 150."""

        def piece(cluster: Cluster) -> Piece | None:
            stored = self.read(cluster.file_off, cluster.room)
            decoded = deflate.decode(stored, self.codec.wbits, self.compressed.unit)
            if decoded is None:
                return None
            plain, length = decoded
            same = remake and self.codec.encode(plain) == stored[:length]
            return Piece(cluster, plain, length, recode.check_of(stored[:length]) if same else None)

        waiting: deque[Future[Piece | None]] = deque()
        with ThreadPoolExecutor(THREADS, thread_name_prefix="inside", initializer=lower if nice else None) as pool:
            try:
                for cluster in self.compressed.clusters:
                    waiting.append(pool.submit(piece, cluster))
                    if len(waiting) > AHEAD and (found := waiting.popleft().result()) is not None:
                        yield found
                while waiting:
                    if (found := waiting.popleft().result()) is not None:
                        yield found
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def skeleton(self, streams: Iterable[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
        """(offset, whole blocks) of what is left of the file, zeros in the place of the streams; at most a
        window at a time, nothing for windows of zeros. `streams` are (offset, length) in order."""
        left = iter([*streams, (self.size, 1 << 62)])
        stream = next(left)
        for offset in range(0, self.size, WINDOW):
            end = min(offset + WINDOW, self.size)
            if stream[0] <= offset and end <= sum(stream):
                continue
            window = bytearray(self.read(offset, end - offset))
            while stream[0] < end:
                low, high = max(stream[0], offset), min(sum(stream), end)
                window[low - offset : high - offset] = bytes(high - low)
                if sum(stream) > end:
                    break
                stream = next(left)
            if not is_zero(window):
                yield offset, bytes(window).ljust(-(-len(window) // BLOCK) * BLOCK, b"\0")


def look_inside(read: Read, size: int) -> Inside | None:
    """What a file of `size` bytes holds in compressed form; None when it holds nothing, or nothing that can be
    made again with parameters of zlib."""
    compressed = look(read, size)
    if compressed is None:
        return None
    for wbits in compressed.wbits:
        samples = list(_samples(read, compressed, wbits))
        codec = deflate.probe(samples, deflate.candidates((wbits,))) if samples else None
        if codec is not None:
            return Inside(compressed, codec, read, size)
    return None


def _samples(read: Read, compressed: Compressed, wbits: int) -> Iterator[tuple[bytes, bytes]]:
    """(plain, stream) of clusters all over the image; the largest of a few neighbours says most."""
    step = max(1, len(compressed.clusters) // SAMPLES)
    for at in range(0, len(compressed.clusters), step):
        cluster = max(compressed.clusters[at : at + min(step, 8)], key=lambda one: one.room)
        stored = read(cluster.file_off, cluster.room)
        decoded = deflate.decode(stored, wbits, compressed.unit)
        if decoded is not None:
            yield decoded[0], stored[: decoded[1]]


def lower() -> None:
    """Makes the calling thread one that gives way to others (Linux has a niceness for each thread)."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
