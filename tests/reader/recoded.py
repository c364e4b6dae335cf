"""The layout `recode` for the second reader, written from docs/format.md: compressed streams are made again."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from blake3 import blake3

BLOCK, ROWS = 4096, 128
TABLE, GUEST = 0, 1 << 30


class Wrong(Exception):
    """The bytes are not as docs/format.md says."""


def require(right: bool, what: str) -> None:
    """Raises Wrong."""
    if not right:
        raise Wrong(what)


class Stream(NamedTuple):
    """`length` bytes of the file that are made from a cluster of the guest's disk."""

    file_off: int
    guest_off: int
    length: int
    codec: int
    check: bytes


class Recoded:
    """A file, by what `read(offset, length)` finds in its map."""

    def __init__(self, read: Callable[[int, int], bytes]) -> None:
        self._read = read
        head = read(TABLE, BLOCK)
        magic, version, flags, log2, codecs, _, self._streams, _, self._size, self._skeleton = struct.unpack_from(
            "<8sHHBBHIIQQ", head
        )
        require((magic, version, flags) == (b"IFSRECO1", 1, 0), "the table of streams")
        self._unit = 1 << log2
        self._codecs = [struct.unpack_from("<BBbBB3x8s", head, 40 + 16 * n) for n in range(codecs)]
        require(all(codec[0] == 1 for codec in self._codecs), "an algorithm other than deflate")

    def blocks(self) -> Iterator[tuple[int, bytes]]:
        """(number, bytes) of every block of the file that is not zeros."""
        streams = self._rows()
        following = next(streams, None)
        left = b""
        for at in range(0, self._size, BLOCK):
            block = bytearray(self._read(self._skeleton + at, BLOCK))
            block[: len(left)] = left[:BLOCK]
            left = left[BLOCK:]
            while following is not None and following.file_off < at + BLOCK:
                made, begin = self._made(following), following.file_off - at
                block[begin : begin + len(made)] = made[: BLOCK - begin]
                left = left or made[BLOCK - begin :]
                following = next(streams, None)
            if any(block):
                yield at // BLOCK, bytes(block[: self._size - at]).ljust(BLOCK, b"\0")

    def _rows(self) -> Iterator[Stream]:
        pages = -(-self._streams // ROWS)
        first = TABLE + BLOCK * (1 + -(-8 * pages // BLOCK))
        for number in range(pages):
            page, count = self._read(first + number * BLOCK, BLOCK), min(ROWS, self._streams - number * ROWS)
            for n in range(count):
                (file_off,), (guest_off,) = (struct.unpack_from("<Q", page, base + 8 * n) for base in (0, 1024))
                (length,) = struct.unpack_from("<I", page, 2048 + 4 * n)
                check = page[3072 + 8 * n : 3080 + 8 * n]
                yield Stream(file_off, guest_off, length, page[2560 + n], check)

    def _made(self, stream: Stream) -> bytes:
        _, level, wbits, mem_level, strategy, _ = self._codecs[stream.codec]
        encoder = zlib.compressobj(level, zlib.DEFLATED, wbits, mem_level, strategy)
        made = encoder.compress(self._read(GUEST + stream.guest_off, self._unit)) + encoder.flush()
        require(len(made) == stream.length and blake3(made).digest(8) == stream.check, "a stream is not made again")
        return made
