from __future__ import annotations

import random
import struct
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.blocks import frames, trailer
from imagefs.blocks.digest import Digests
from imagefs.blocks.footer import Moved
from imagefs.blocks.packs import HEADER, PACK_BLOCKS, BuiltPack, PackBuilder, object_name, read_footer
from imagefs.errors import Damaged, NewerVersion, NotFound, UnknownFeature
from imagefs.stores import MemoryStore
from imagefs.types import BLOCK, FRAME, FRAME_BLOCKS

REPO = UUID("11111111-2222-4333-8444-555555555555")
SESSION = UUID("66666666-7777-4888-9999-aaaaaaaaaaaa")
NAME = bytes(range(0xA0, 0xB0))
DIGESTS = Digests()


def content(nblocks: int, seed: int = 0) -> bytes:
    """Blocks of which about half compress."""
    source = random.Random(seed)
    return b"".join(
        source.randbytes(BLOCK) if source.random() < 0.5 else source.randbytes(8) * (BLOCK // 8) for _ in range(nblocks)
    )


def build(plain: bytes, name: bytes = NAME, moved: tuple[Moved, ...] = ()) -> BuiltPack:
    builder = PackBuilder(name, REPO, SESSION)
    for at in range(0, len(plain), FRAME):
        piece = plain[at : at + FRAME]
        builder.add_frame(frames.encode(piece), DIGESTS.blocks(piece))
    return builder.finish(moved)


def object_of(pack: BuiltPack) -> bytes:
    return b"".join(bytes(part) for part in pack.parts)


def stored(data: bytes, name: bytes = NAME) -> MemoryStore:
    store = MemoryStore()
    store.put(object_name(name), data)
    return store


def plain_of(data: bytes, frames_row: bytes) -> bytes:
    """What a reader gets: each frame by its catalog row."""
    return b"".join(
        frames.decode(data[row.offset : row.offset + row.length], row.codec, row.digest)
        for row in frames.unpack_rows(frames_row)
    )


def test_a_pack_lies_under_the_first_byte_of_its_name():
    assert object_name(NAME) == "packs/a0/a0a1a2a3a4a5a6a7a8a9aaabacadaeaf"


@given(st.integers(1, 70), st.integers(0, 1000))
def test_a_pack_comes_back_from_its_footer(nblocks, seed):
    plain = content(nblocks, seed)
    pack = build(plain)
    data = object_of(pack)
    footer = read_footer(stored(data), NAME)
    assert (footer.name16, footer.repo, footer.session) == (NAME, REPO, SESSION)
    assert footer.digests == pack.digests == b"".join(DIGESTS.blocks(plain))
    assert footer.frames_row == pack.frames_row
    assert footer.nblocks == pack.nblocks == nblocks
    assert (footer.footer_off, footer.footer_digest) == (pack.footer_off, pack.footer_digest)
    assert footer.stored_bytes == pack.stored_bytes == len(data)
    assert footer.moved == ()
    assert plain_of(data, footer.frames_row) == plain


def test_raw_frames_are_aligned_and_others_are_not_spread():
    pack = build(content(256))
    rows = frames.unpack_rows(pack.frames_row)
    assert {row.codec for row in rows} == {frames.ZSTD}
    noisy = PackBuilder(NAME, REPO, SESSION)
    for number in range(20):
        piece = random.Random(number).randbytes(FRAME) if number % 3 else content(FRAME_BLOCKS, number)
        noisy.add_frame(frames.encode(piece), DIGESTS.blocks(piece))
    at = HEADER
    for row in frames.unpack_rows(noisy.finish().frames_row):
        assert row.offset == (at if row.codec == frames.ZSTD else -(-at // BLOCK) * BLOCK)
        at = row.offset + row.length


def test_a_full_pack_has_2048_blocks_and_its_footer_fits_one_small_read():
    builder = PackBuilder(NAME, REPO, SESSION)
    frame, digests = frames.encode(bytes(FRAME)), [DIGESTS.zero] * FRAME_BLOCKS
    for _ in range(PACK_BLOCKS // FRAME_BLOCKS):
        assert not builder.full
        builder.add_frame(frame, digests)
    assert builder.full
    with pytest.raises(ValueError, match="behind 2048"):
        builder.add_frame(frame, digests)
    pack = builder.finish()
    data = object_of(pack)
    assert len(data) - pack.footer_off < 64 << 10
    assert read_footer(stored(data), NAME).nblocks == PACK_BLOCKS


def test_packs_of_32_mib_have_footers_longer_than_the_first_read():
    builder = PackBuilder(NAME, REPO, SESSION, capacity=8192)
    frame = frames.encode(random.Random(5).randbytes(FRAME))
    for number in range(512):
        builder.add_frame(frame, [DIGESTS.of(bytes([number & 255]) * BLOCK)] * FRAME_BLOCKS)
    pack = builder.finish()
    footer = read_footer(stored(object_of(pack)), NAME)
    assert footer.nblocks == 8192
    assert footer.digests == pack.digests


@pytest.mark.parametrize("capacity", [0, 17, 1 << 17])
def test_a_pack_of_another_size_is_refused(capacity):
    with pytest.raises(ValueError, match=str(capacity)):
        PackBuilder(NAME, REPO, SESSION, capacity)


def test_only_the_last_frame_may_be_short():
    builder = PackBuilder(NAME, REPO, SESSION)
    builder.add_frame(frames.encode(bytes(BLOCK)), [DIGESTS.zero])
    with pytest.raises(ValueError, match="behind 1"):
        builder.add_frame(frames.encode(bytes(BLOCK)), [DIGESTS.zero])


def test_each_block_needs_its_digest():
    with pytest.raises(ValueError, match="2 blocks came with 1"):
        PackBuilder(NAME, REPO, SESSION).add_frame(frames.encode(bytes(2 * BLOCK)), [DIGESTS.zero])


def test_moved_blocks_are_kept():
    moved = (Moved(b"o" * 16, 100, 0, 16), Moved(b"p" * 16, 7, 16, 1))
    data = object_of(build(content(20), moved=moved))
    assert read_footer(stored(data), NAME).moved == moved


def test_moved_blocks_that_are_not_there_are_damage():
    data = object_of(build(content(20), moved=(Moved(b"o" * 16, 0, 10, 11),)))
    with pytest.raises(Damaged, match="moved"):
        read_footer(stored(data), NAME)


def test_a_pack_that_is_not_there():
    with pytest.raises(NotFound):
        read_footer(MemoryStore(), NAME)


def test_another_pack_under_the_name_is_damage():
    data = object_of(build(content(5), name=b"b" * 16))
    with pytest.raises(Damaged, match=object_name(NAME) + " is another object"):
        read_footer(stored(data), NAME)


@pytest.mark.parametrize("keep", [0, 10, 63, 64, 4096, -64, -1])
def test_a_truncated_pack_is_damage(keep):
    data = object_of(build(content(20)))
    with pytest.raises(Damaged, match=object_name(NAME)):
        read_footer(stored(data[:keep]), NAME)


class Lying(MemoryStore):
    """Says more of an object's size than it then gives."""

    def size(self, name: str) -> int:
        return super().size(name) + 100


def test_an_object_shorter_than_its_size_is_damage():
    store = Lying()
    store.put(object_name(NAME), object_of(build(content(5))))
    with pytest.raises(Damaged, match="truncated"):
        read_footer(store, NAME)


def resealed(data: bytes, footer_off: int, *, header: bytes | None = None, footer: bytes | None = None) -> bytes:
    """A pack with another header or footer under a trailer that is right about them."""
    header = data[:HEADER] if header is None else header
    footer = data[footer_off:-64] if footer is None else footer
    digest = trailer.digest_of(header, footer)
    return header + data[HEADER:footer_off] + footer + trailer.encode(footer_off, len(footer), digest)


def patched(data: bytes, at: int, fmt: str, *values: int) -> bytes:
    out = bytearray(data)
    struct.pack_into(fmt, out, at, *values)
    return bytes(out)


@pytest.mark.parametrize(
    ("at", "fmt", "value", "error"),
    [
        (8, "<H", 2, NewerVersion),
        (10, "<H", 1, UnknownFeature),
        (0, "<B", 0, Damaged),
        (32, "<B", 0, Damaged),
    ],
    ids=["version", "flags", "magic", "name"],
)
def test_headers_that_this_version_must_refuse(at, fmt, value, error):
    pack = build(content(20))
    data = object_of(pack)
    with pytest.raises(error):
        read_footer(stored(resealed(data, pack.footer_off, header=patched(data[:HEADER], at, fmt, value))), NAME)


@pytest.mark.parametrize(
    ("at", "fmt", "value", "error"),
    [
        (0, "<B", 0, Damaged),
        (8, "<I", 3, Damaged),
        (12, "<I", 70000, Damaged),
        (16, "<B", 2, UnknownFeature),
        (17, "<B", 32, UnknownFeature),
        (18, "<H", 16, UnknownFeature),
        (20, "<I", 7, UnknownFeature),
        (24, "<I", 0, Damaged),
        (28, "<I", 1 << 30, Damaged),
        (32, "<H", 1, Damaged),
        (34, "<B", 3, Damaged),
        (35, "<B", 9, Damaged),
    ],
    ids=[
        "magic",
        "nframes",
        "nblocks",
        "algorithm",
        "width",
        "block",
        "codecs",
        "offset",
        "length",
        "first",
        "blocks",
        "codec",
    ],
)
def test_footers_that_this_version_must_refuse(at, fmt, value, error):
    pack = build(content(20))
    data = object_of(pack)
    footer = patched(data[pack.footer_off : -64], at, fmt, value)
    with pytest.raises(error, match=object_name(NAME)):
        read_footer(stored(resealed(data, pack.footer_off, footer=footer)), NAME)


def test_a_trailer_of_a_later_layout_is_newer():
    data = bytearray(object_of(build(content(3))))
    struct.pack_into("<H", data, len(data) - 16, 2)
    struct.pack_into("<I", data, len(data) - 52, 0)
    struct.pack_into("<I", data, len(data) - 52, trailer.crc32c(bytes(data[-64:])))
    with pytest.raises(NewerVersion, match="layout 2"):
        read_footer(stored(bytes(data)), NAME)
