"""The table of layout `recode`, byte by byte, and what is refused."""

from __future__ import annotations

import random
import struct

import pytest

from imagefs.blocks import recode
from imagefs.blocks.recode import CodecRow, Header, Stream, Table
from imagefs.errors import Damaged, NewerVersion, UnknownFeature
from imagefs.types import BLOCK

CODEC = CodecRow(recode.DEFLATE, 6, -12, 9, 0, b"probe678")


def streams(count: int) -> list[Stream]:
    source = random.Random(count)
    made, at = [], 5000
    for number in range(count):
        length = source.randrange(1, 40000)
        made.append(Stream(at, length, (count - number) << 16, number % 2, source.randbytes(recode.CHECK)))
        at += length + source.choice((0, 0, 77, 70000))
    return made


def table_of(rows: list[Stream]) -> bytes:
    header = Header(1 << 40, recode.skeleton_at(123), 1 << 16, len(rows), (CODEC, CODEC._replace(level=9)))
    blocks = list(recode.encode(header, rows))
    assert {len(block) for block in blocks} <= {BLOCK}
    return b"".join(blocks)


def opened(data: bytes) -> Table:
    return Table(lambda offset, length: data[offset - recode.TABLE : offset - recode.TABLE + length], "map 7")


@pytest.mark.parametrize("count", [0, 1, 127, 128, 129, 1000, 512 * 128 + 1])
def test_what_was_written_is_read(count: int) -> None:
    rows = streams(count)
    table = opened(table_of(rows))
    assert table.header == Header(1 << 40, 2 << 30, 1 << 16, count, (CODEC, CODEC._replace(level=9)))
    assert list(table.streams(0)) == list(enumerate(rows))
    if count:
        assert table.run(count // 2, count - count // 2) == rows[count // 2 :]


def test_streams_of_a_range() -> None:
    rows = streams(400)
    table = opened(table_of(rows))
    source = random.Random(1)
    for _ in range(300):
        start = source.randrange(0, rows[-1].file_off + 50000)
        end = start + source.choice((1, 4096, 1 << 20))
        wanted = [(n, row) for n, row in enumerate(rows) if row.file_off < end and row.file_off + row.length > start]
        assert list(table.streams(start, end)) == wanted


def test_the_layout_of_the_bytes() -> None:
    """As docs/format.md has it."""
    data = table_of(streams(200))
    assert data[:8] == b"IFSRECO1"
    assert struct.unpack_from("<HHBBHIIQQ", data, 8) == (1, 0, 16, 2, 0, 200, 0, 1 << 40, 2 << 30)
    assert struct.unpack_from("<BBbBB3x8s", data, 40) == CODEC
    rows = streams(200)
    assert struct.unpack_from("<2Q", data, BLOCK) == (rows[0].file_off, rows[128].file_off)
    page = data[3 * BLOCK :]
    assert struct.unpack_from("<72Q", page) == tuple(row.file_off for row in rows[128:])
    assert struct.unpack_from("<72Q", page, 1024) == tuple(row.guest_off for row in rows[128:])
    assert struct.unpack_from("<72I", page, 2048) == tuple(row.length for row in rows[128:])
    assert page[2560 : 2560 + 72] == bytes(row.codec for row in rows[128:])
    assert page[3072 : 3072 + 8 * 72] == b"".join(row.check for row in rows[128:])


@pytest.mark.parametrize(
    ("at", "value", "error"),
    [(0, b"X", Damaged), (8, b"\x02", NewerVersion), (10, b"\x01", UnknownFeature), (12, b"\x05", UnknownFeature)],
)
def test_what_is_refused(at: int, value: bytes, error: type[Exception]) -> None:
    data = bytearray(table_of(streams(3)))
    data[at : at + 1] = value
    with pytest.raises(error, match="map 7"):
        opened(bytes(data))


def test_an_index_that_leads_elsewhere() -> None:
    data = bytearray(table_of(streams(300)))
    data[BLOCK : BLOCK + 8] = struct.pack("<Q", 1)
    with pytest.raises(Damaged, match="page 0"):
        list(opened(bytes(data)).streams(0))
