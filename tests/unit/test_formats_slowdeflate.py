"""The deflate in Python makes the streams of zlib, bit by bit."""

from __future__ import annotations

import random
import zlib

import pytest

from imagefs.formats import slowdeflate
from tests import compressed

KIB = 1 << 10


def contents() -> dict[str, bytes]:
    source = random.Random(4)
    text = compressed.text(64 * KIB, 1)
    return {
        "nothing": b"",
        "one byte": b"a",
        "too short to match": b"ab",
        "a short run": b"ab" * 5,
        "text": text,
        "zeros": bytes(64 * KIB),
        "noise": source.randbytes(64 * KIB),
        "noise, short": source.randbytes(3000),
        "noise and text": source.randbytes(20 * KIB) + text[: 30 * KIB] + source.randbytes(9 * KIB),
        "far repeats": (source.randbytes(5000) + bytes(300)) * 9,
        "few symbols": bytes(source.choices(b"ab", k=30 * KIB)),
        "lengths beyond 15 bits": b"".join(bytes([n]) * (1 << n) for n in range(18)),
        "lazy matches": b"".join(b"%dabc%dabcd" % (n % 97, n % 89) for n in range(6000)),
    }


CONTENTS = contents()


def made(plain: bytes, level: int, wbits: int, mem_level: int) -> bytes:
    encoder = zlib.compressobj(level, zlib.DEFLATED, wbits, mem_level)
    return encoder.compress(plain) + encoder.flush()


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize(("wbits", "mem_level"), [(-12, 9), (15, 8)], ids=["qcow2", "vmdk"])
def test_it_makes_what_zlib_makes(name: str, wbits: int, mem_level: int) -> None:
    plain = CONTENTS[name]
    assert slowdeflate.encode(plain, 6, wbits, mem_level) == made(plain, 6, wbits, mem_level)


@pytest.mark.parametrize("level", range(1, 10))
def test_every_level(level: int) -> None:
    for name in ("text", "noise and text", "few symbols"):
        plain = CONTENTS[name][: 24 * KIB]
        for wbits, mem_level in ((-12, 9), (9, 1), (-15, 8)):
            assert slowdeflate.encode(plain, level, wbits, mem_level) == made(plain, level, wbits, mem_level), name


def test_pieces_of_any_length() -> None:
    source = random.Random(5)
    for _ in range(40):
        plain = CONTENTS["noise and text"][source.randrange(50 * KIB) :][: source.randrange(9000)]
        level, mem_level = source.choice((1, 4, 6, 9)), source.choice((8, 9))
        assert slowdeflate.encode(plain, level, -12, mem_level) == made(plain, level, -12, mem_level)
