from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import zstandard
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from imagefs.blocks import frames
from imagefs.blocks.frames import RAW, ZSTD, FrameRow
from imagefs.errors import Damaged
from imagefs.types import BLOCK, FRAME

NOISE = random.Random(7).randbytes(FRAME)
TEXT = (b"Images live in by-name/. " * 3000)[:FRAME]


def mixed(noise: int) -> bytes:
    """A frame of which `noise` bytes cannot be compressed."""
    return NOISE[:noise] + bytes(FRAME - noise)


@given(st.integers(1, 16), st.integers(0, FRAME), st.booleans())
def test_a_frame_comes_back_as_it_was(nblocks, noise, as_view):
    plain = mixed(noise)[-nblocks * BLOCK :]
    frame = frames.encode(memoryview(plain) if as_view else plain)
    assert frame.nblocks == nblocks
    assert frames.decode(frame.stored, frame.codec, frame.digest, nblocks) == plain
    assert frames.decode(memoryview(frame.stored), frame.codec, frame.digest) == plain


def test_a_short_last_block_is_zero_padded():
    frame = frames.encode(TEXT[: BLOCK + 1])
    assert frame.nblocks == 2
    assert frames.decode(frame.stored, frame.codec, frame.digest, 2) == TEXT[: BLOCK + 1] + bytes(BLOCK - 1)


@pytest.mark.parametrize("length", [0, FRAME + 1])
def test_a_frame_has_one_to_sixteen_blocks(length):
    with pytest.raises(ValueError, match=str(length)):
        frames.encode(bytes(length))


def test_what_saves_less_than_5_percent_is_stored_raw():
    for noise in range(0, FRAME + 1, BLOCK // 2):
        plain = mixed(noise)
        frame = frames.encode(plain)
        saved = 1 - len(zstandard.ZstdCompressor(level=3).compress(plain)) / FRAME
        assert (frame.codec == RAW) == (saved < 0.05), f"saves {saved:.1%}"
        assert frame.codec == ZSTD or frame.stored == plain


def test_raw_bytes_are_copied_out_of_the_callers_buffer():
    buffer = bytearray(NOISE)
    frame = frames.encode(memoryview(buffer))
    buffer[:] = bytes(FRAME)
    assert frames.decode(frame.stored, frame.codec, frame.digest) == NOISE


@pytest.mark.parametrize("plain", [TEXT, NOISE])
def test_every_flipped_bit_is_found(plain):
    frame = frames.encode(plain)
    for bit in range(0, len(frame.stored) * 8, 97):
        stored = bytearray(frame.stored)
        stored[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Damaged, match=r"^packs/x: "):
            frames.decode(stored, frame.codec, frame.digest, 16, "packs/x")


def decode_hostile(stored: bytes, codec: int = ZSTD, nblocks: int = 16) -> bytes:
    """Decodes bytes whose digest is right: the row and the object were both made by an attacker."""
    return frames.decode(stored, codec, blake3(stored).digest(16), nblocks, "packs/x")


HOSTILE = {
    "no zstd": NOISE[:100],
    "empty": b"",
    "no content size": zstandard.ZstdCompressor(write_content_size=False).compress(TEXT),
    "truncated": zstandard.ZstdCompressor().compress(TEXT)[:-5],
    "bytes behind the frame": zstandard.ZstdCompressor().compress(TEXT) + b"x",
    "two frames": zstandard.ZstdCompressor().compress(TEXT[:BLOCK]) * 2,
    "claims 64 GiB": bytes.fromhex("28b52ffde0") + (64 << 30).to_bytes(8, "little") + NOISE[:20],
    "a bomb": zstandard.ZstdCompressor().compress(bytes(1 << 28)),
    "one block too many": zstandard.ZstdCompressor().compress(bytes(17 * BLOCK)),
    "half a block": zstandard.ZstdCompressor().compress(TEXT[:2048]),
    "nothing": zstandard.ZstdCompressor().compress(b""),
}


@pytest.mark.parametrize("stored", HOSTILE.values(), ids=HOSTILE)
def test_a_frame_that_does_not_decode_to_whole_blocks_is_damaged(stored):
    with pytest.raises(Damaged, match=r"^packs/x: "):
        decode_hostile(stored)


def test_a_codec_that_nobody_knows_is_damaged():
    with pytest.raises(Damaged, match="codec 2"):
        decode_hostile(TEXT, codec=2)


def test_a_frame_longer_than_its_place_is_damaged():
    with pytest.raises(Damaged, match="1 to 15 blocks"):
        decode_hostile(NOISE, codec=RAW, nblocks=15)


def test_threads_do_not_share_contexts():
    plains = [mixed(n * 97) for n in range(600)]

    def there_and_back(plain: bytes) -> bytes:
        frame = frames.encode(plain)
        return frames.decode(frame.stored, frame.codec, frame.digest)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(there_and_back, plains)) == plains


rows = st.builds(
    FrameRow,
    st.integers(0, (1 << 32) - 1),
    st.integers(0, (1 << 24) - 1),
    st.integers(0, 255),
    st.binary(min_size=16, max_size=16),
)


@given(st.lists(rows, max_size=20))
def test_frame_rows_come_back(table):
    value = frames.pack_rows(table)
    assert len(value) == 24 * len(table)
    assert frames.unpack_rows(value) == frames.unpack_rows(memoryview(value)) == table


def test_half_a_frame_row_is_damaged():
    with pytest.raises(Damaged, match="25 bytes"):
        frames.unpack_rows(bytes(25))
