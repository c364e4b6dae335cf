"""The layout `recode`: a file whose compressed clusters are kept plain, and made again when it is read.

A map of this kind has three areas, all of ordinary blocks, each from a whole GiB on:

    TABLE     a header, the index, and which stream comes from which cluster, in pages by file offset
    GUEST     the plain bytes of the clusters, where they lie on the guest's disk: they dedup with raw images
    skeleton  the file itself at its own offsets, zeros where a stream was that can be made again

So whoever only counts or moves blocks (gc, rewriting, fsck) need not know of it. The table's integers are
little-endian; a page is 4 KiB of 128 rows, column by column, so that it compresses and a column is searched
as it lies.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from blake3 import blake3

from imagefs.blocks.digest import Buffer
from imagefs.blocks.maprows import QUARTER, Row
from imagefs.errors import Damaged, NewerVersion, UnknownFeature
from imagefs.types import BLOCK

KIND = 1
"""Of a map: in the catalog's row and in the manifest. 0 is a plain one."""
GIB = 1 << 30
TABLE, GUEST = 0, GIB
"""First byte of two areas; the header has that of the third."""
ROWS = 128
"""Rows of a page."""
CHECK = 8
"""Bytes of BLAKE3 over a stream: what is made is compared with them before a byte is handed on."""
DEFLATE = 1
"""Algorithm of a codec."""

_VERSION = 1
_MAGIC = b"IFSRECO1"
_HEAD = struct.Struct("<8sHHBBHIIQQ")
_CODEC = struct.Struct("<BBbBB3x8s")
_COLUMNS = (8 * ROWS, 16 * ROWS, 20 * ROWS, 24 * ROWS)
"""Where the columns after file_off end: guest_off, length, codec with its padding, check."""
MOST_CODECS = 64

Read = Callable[[int, int], Buffer]
"""(first byte, length) of the map, whole blocks: its bytes there."""


class Stream(NamedTuple):
    """One row: `length` bytes of the file that a codec makes from one cluster of the guest's disk."""

    file_off: int
    length: int
    guest_off: int
    codec: int
    """Number in the header's list."""
    check: bytes


class CodecRow(NamedTuple):
    """How streams are made."""

    algorithm: int
    level: int
    wbits: int
    mem_level: int
    strategy: int
    probe: bytes
    """8 bytes: what the encoder makes from the probe text. An encoder that makes another thing is not it."""


@dataclass(frozen=True, slots=True)
class Header:
    """The table's first block."""

    size: int
    """Bytes of the file."""
    skeleton: int
    """First byte of its area: a whole GiB behind that of the guest."""
    unit: int
    """Plain bytes of a cluster."""
    streams: int
    codecs: tuple[CodecRow, ...]

    @property
    def pages(self) -> int:
        return -(-self.streams // ROWS)

    @property
    def index_blocks(self) -> int:
        return -(-8 * self.pages // BLOCK)


def check_of(stream: Buffer) -> bytes:
    """What the table keeps of a stream: 8 bytes."""
    return blake3(stream).digest(CHECK)


def skeleton_at(guest_end: int) -> int:
    """Where the skeleton begins when the guest's disk has that many bytes."""
    return GUEST + -(-guest_end // GIB) * GIB


def shifted(rows: Iterable[Row], area: int) -> list[tuple[int, bytes]]:
    """The rows of a map that was built from 0 on, moved to an area of this layout."""
    return [(quarter + area // (QUARTER * BLOCK), bytes(value)) for quarter, value in rows]


# -- writing -----------------------------------------------------------------------------------------


def encode(header: Header, streams: Sequence[Stream]) -> Iterator[bytes]:
    """The blocks of a table: header, index, pages. `streams` are by file offset and do not overlap."""
    codecs = b"".join(_CODEC.pack(*codec) for codec in header.codecs)
    head = _HEAD.pack(
        _MAGIC, _VERSION, 0, header.unit.bit_length() - 1, len(header.codecs), 0, header.streams, 0, header.size,
        header.skeleton,
    )  # fmt: skip
    yield (head + codecs).ljust(BLOCK, b"\0")
    index = b"".join(struct.pack("<Q", streams[at].file_off) for at in range(0, len(streams), ROWS))
    for at in range(0, len(index), BLOCK):
        yield index[at : at + BLOCK].ljust(BLOCK, b"\0")
    rows = iter(streams)
    while page := list(islice(rows, ROWS)):
        yield _page(page)


def _page(rows: list[Stream]) -> bytes:
    pad = ROWS - len(rows)
    columns = (
        struct.pack(f"<{ROWS}Q", *(row.file_off for row in rows), *[0] * pad),
        struct.pack(f"<{ROWS}Q", *(row.guest_off for row in rows), *[0] * pad),
        struct.pack(f"<{ROWS}I", *(row.length for row in rows), *[0] * pad),
        bytes(row.codec for row in rows).ljust(4 * ROWS, b"\0"),
        b"".join(row.check for row in rows).ljust(CHECK * ROWS, b"\0"),
    )
    return b"".join(columns)


# -- reading -----------------------------------------------------------------------------------------


class Table:
    """The table of one map. Immutable; pages are read when they are needed, the index is kept."""

    def __init__(self, read: Read, name: str) -> None:
        """Raises Damaged, its message beginning with `name`, NewerVersion or UnknownFeature."""
        self._read = read
        self._name = name
        self.header = _header(read(TABLE, BLOCK), name)
        raw = bytes(read(TABLE + BLOCK, self.header.index_blocks * BLOCK)) if self.header.pages else b""
        self._index = array("Q", raw[: 8 * self.header.pages])
        self._pages = TABLE + (1 + self.header.index_blocks) * BLOCK
        if len(self._index) != self.header.pages:
            raise Damaged(f"{name}: the index of the table is truncated.")

    def streams(self, start: int, end: int = 1 << 64) -> Iterator[tuple[int, Stream]]:
        """(number, row) of the streams that have bytes between two offsets of the file, in order."""
        page = max(bisect_right(self._index, start) - 1, 0)
        for number in range(page, self.header.pages):
            if self._index[number] >= end:
                return
            for at, row in enumerate(self._rows(number), number * ROWS):
                if row.file_off >= end:
                    return
                if row.file_off + row.length > start:
                    yield at, row

    def run(self, first: int, count: int) -> list[Stream]:
        """Rows by number."""
        found: list[Stream] = []
        for number in range(first // ROWS, (first + count - 1) // ROWS + 1):
            rows = self._rows(number)
            found += rows[max(first - number * ROWS, 0) : first + count - number * ROWS]
        return found

    def _rows(self, number: int) -> list[Stream]:
        page = bytes(self._read(self._pages + number * BLOCK, BLOCK))
        count = min(ROWS, self.header.streams - number * ROWS)
        offs = struct.unpack_from(f"<{count}Q", page)
        guests = struct.unpack_from(f"<{count}Q", page, _COLUMNS[0])
        lengths = struct.unpack_from(f"<{count}I", page, _COLUMNS[1])
        codecs = page[_COLUMNS[2] : _COLUMNS[2] + count]
        checks = [page[at : at + CHECK] for at in range(_COLUMNS[3], _COLUMNS[3] + count * CHECK, CHECK)]
        if count and offs[0] != self._index[number]:
            raise Damaged(f"{self._name}: page {number} of the table is not where the index has it.")
        return [Stream(*row) for row in zip(offs, lengths, guests, codecs, checks, strict=True)]


def _header(block: Buffer, name: str) -> Header:
    magic, version, flags, log2, ncodecs, _, streams, _, size, skeleton = _HEAD.unpack_from(block)
    if magic != _MAGIC:
        raise Damaged(f"{name} has no table of layout recode.")
    if version > _VERSION:
        raise NewerVersion(f"{name}: the table has layout {version}; this imagefs reads up to {_VERSION}.")
    if flags or ncodecs > MOST_CODECS or not 12 <= log2 <= 24:
        raise UnknownFeature(f"{name}: the table has flags, codecs or clusters that are unknown here.")
    rows = [CodecRow(*row) for row in _codecs(bytes(block), ncodecs)]
    return Header(size, skeleton, 1 << log2, streams, tuple(rows))


def _codecs(block: bytes, count: int) -> Iterator[tuple[int, int, int, int, int, bytes]]:
    return islice(_CODEC.iter_unpack(block[_HEAD.size : _HEAD.size + count * _CODEC.size]), count)
