from __future__ import annotations

import random

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from imagefs.blocks.digest import Digests, is_zero
from imagefs.blocks.root import LEAF_BLOCKS, Root
from imagefs.types import BLOCK, FRAME


def test_a_digest_is_the_first_160_bits_of_blake3():
    block = b"imagefs!" * 512
    assert Digests().of(block) == blake3(block).digest()[:20]
    assert Digests().zero.hex() == blake3(bytes(BLOCK)).hexdigest()[:40]


def test_a_key_changes_every_digest():
    block = b"imagefs!" * 512
    one, other = Digests(bytes(32)), Digests(b"k" * 32)
    assert one.of(block) == blake3(block, key=bytes(32)).digest()[:20]
    assert len({Digests().of(block), one.of(block), other.of(block)}) == 3
    assert one.blocks(block * 3) == [one.of(block)] * 3


def test_a_key_of_another_length_is_refused():
    with pytest.raises(ValueError, match="31"):
        Digests(bytes(31))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_short_last_block_counts_as_zero_padded(kind):
    digests = Digests()
    plain = random.Random(1).randbytes(3 * BLOCK)
    short = plain[: 2 * BLOCK + 100]
    padded = digests.of(short[2 * BLOCK :] + bytes(BLOCK - 100))
    assert digests.blocks(kind(short)) == [*digests.blocks(plain[: 2 * BLOCK]), padded]
    assert digests.blocks(kind(b"")) == []


@given(st.integers(0, 3 * FRAME), st.lists(st.integers(0, 3 * FRAME - 1), max_size=3))
def test_is_zero_is_what_any_says(length, ones):
    data = bytearray(length)
    for at in ones:
        if at < length:
            data[at] = 1
    assert is_zero(memoryview(data)) == (not any(data))


def root_of(digests: list[bytes]) -> str:
    """The definition, said plainly."""
    leaves = [digests[at : at + LEAF_BLOCKS] for at in range(0, len(digests), LEAF_BLOCKS)]
    return blake3(b"".join(blake3(b"".join(leaf)).digest() for leaf in leaves)).hexdigest()


def test_the_root_is_over_leaves_of_256_mib():
    digests = Digests()
    some = [digests.of(bytes([n]) * BLOCK) for n in range(1, 5)]
    blocks = some + [digests.zero] * LEAF_BLOCKS + some + [digests.zero] * (2 * LEAF_BLOCKS - 4)
    root = Root(digests.zero)
    root.update(b"".join(some), 4)
    root.hole(LEAF_BLOCKS)
    root.update(b"".join(some), 4)
    root.hole(2 * LEAF_BLOCKS - 4)
    assert root.hexdigest() == root_of(blocks)
    assert Root(digests.zero).hexdigest() == root_of([])


def test_written_zeros_and_holes_have_one_root():
    zero = Digests().zero
    holes, written = Root(zero), Root(zero)
    holes.hole(3 * LEAF_BLOCKS + 7)
    written.update(zero * (3 * LEAF_BLOCKS + 7), 3 * LEAF_BLOCKS + 7)
    assert holes.hexdigest() == written.hexdigest()


def test_a_root_goes_on_from_finished_leaves():
    digests = Digests()
    block = digests.of(b"x" * BLOCK)
    whole = Root(digests.zero)
    whole.update(block * LEAF_BLOCKS, LEAF_BLOCKS)
    resumed = Root(digests.zero, whole.leaves)
    for root in (whole, resumed):
        root.update(block, 1)
    assert resumed.hexdigest() == whole.hexdigest() == root_of([block] * (LEAF_BLOCKS + 1))
