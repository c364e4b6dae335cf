from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.blocks import trailer
from imagefs.errors import Damaged, NewerVersion


@given(st.integers(0, 1 << 40), st.integers(0, (1 << 32) - 1), st.binary(min_size=32, max_size=32))
def test_a_trailer_comes_back(off, length, digest):
    end = trailer.encode(off, length, digest)
    assert len(end) == 64
    assert trailer.decode(b"before" + end, "x", off + length + 64) == (off, length, digest)


def test_every_flipped_bit_is_found():
    end = trailer.encode(1000, 24, bytes(32))
    for bit in range(64 * 8):
        flipped = bytearray(end)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Damaged, match=r"^log/x"):
            trailer.decode(flipped, "log/x", 1088)


@pytest.mark.parametrize("size", [0, 64, 1087, 1089])
def test_a_footer_that_does_not_end_where_the_object_ends_is_damage(size):
    with pytest.raises(Damaged, match=f"do not end at {size}"):
        trailer.decode(trailer.encode(1000, 24, bytes(32)), "log/x", size)


def test_a_later_layout_is_newer(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(trailer, "VERSION", 2)
        end = trailer.encode(0, 0, bytes(32))
    assert struct.unpack_from("<H", end, 48) == (2,)
    with pytest.raises(NewerVersion, match="log/x has layout 2"):
        trailer.decode(end, "log/x", 64)


def test_a_sealed_object_opens():
    assert trailer.content(trailer.seal(b"covered"), "log/x") == b"covered"


def test_a_footer_of_less_than_the_object_is_damage():
    data = b"1234" + b"5678"
    with pytest.raises(Damaged):
        trailer.content(data + trailer.encode(4, 4, trailer.digest_of(b"5678")), "log/x")
