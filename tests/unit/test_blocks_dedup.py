from __future__ import annotations

import random
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from imagefs.blocks.dedup import FRAMES_NEW, Matcher, sample
from imagefs.types import FRAME_BLOCKS, ZERO_PACK, Extent


def digest(number: int) -> bytes:
    """A digest whose first byte is `number` modulo 256: every 16th is sampled."""
    return bytes([number & 255]) + number.to_bytes(19, "big")


class Packs:
    """Packs with their digest lists, the index over them, and a count of what was asked."""

    def __init__(self, sampling: int = 16) -> None:
        self.lists: dict[int, list[bytes]] = {}
        self.index: dict[bytes, tuple[int, int]] = {}
        self.sampling = sampling
        self.lookups = 0
        self.loads: list[int] = []

    def add(self, pack: int, digests: list[bytes]) -> None:
        self.lists[pack] = digests
        self.index.update({d: (pack, block) for d, block in sample(b"".join(digests), self.sampling)})

    def lookup(self, wanted: Sequence[bytes]) -> list[tuple[int, int] | None]:
        self.lookups += 1
        assert list(wanted) == sorted(wanted)
        return [self.index.get(digest) for digest in wanted]

    def digest_list(self, pack: int) -> bytes | None:
        self.loads.append(pack)
        return b"".join(self.lists[pack]) if pack in self.lists else None

    def matcher(self, lists: int = 8, frames_new: int = 1 << 20) -> Matcher:
        return Matcher(self.lookup, self.digest_list, self.sampling, lists=lists, frames_new=frames_new)


def runs(first: int, count: int) -> list[bytes]:
    return [digest(number) for number in range(first, first + count)]


def test_the_sample_is_what_the_index_holds():
    digests = runs(0, 100)
    assert sample(b"".join(digests), 16) == [(digest(n), n) for n in range(0, 100, 16)]
    assert sample(b"".join(digests), 1) == [(digest(n), n) for n in range(100)]


def test_one_sampled_block_finds_all_its_neighbours():
    packs = Packs()
    packs.add(7, runs(1000, 2048))
    matcher = packs.matcher()
    assert matcher.match(runs(1500, 256)) == [(7, block) for block in range(500, 756)]
    assert (packs.lookups, packs.loads) == (1, [7]), "one look-up and one list are enough"


def test_what_was_loaded_finds_blocks_that_nobody_sampled():
    packs = Packs()
    packs.add(7, runs(1000, 100))
    matcher = packs.matcher()
    assert matcher.match(runs(1001, 1)) == [None]
    matcher.match(runs(1000, 100))
    assert matcher.match(runs(1001, 1)) == [(7, 1)]


def test_the_index_is_a_hint():
    packs = Packs()
    packs.add(7, runs(0, 50))
    packs.index[digest(16 * 99)] = (7, 3)
    packs.index[digest(16 * 98)] = (8, 3)
    matcher = packs.matcher()
    assert matcher.match([digest(16 * 99), digest(16 * 98), digest(16)]) == [None, None, (7, 16)]
    assert matcher.match([digest(16 * 98)]) == [None]
    assert packs.loads == [7, 8], "a pack that may not be used is asked for once"


def test_packs_just_built_are_known_without_the_index():
    packs = Packs()
    matcher = packs.matcher()
    matcher.learn(3, runs(100, 10))
    matcher.learn(3, runs(500, 10), first=10)
    assert matcher.match([digest(505), digest(100), digest(9)]) == [(3, 15), (3, 0), None]


def test_the_newest_copy_is_preferred():
    matcher = Packs().matcher()
    matcher.learn(3, runs(100, 10))
    matcher.learn(4, runs(100, 5))
    assert matcher.match(runs(104, 2)) == [(4, 4), (3, 5)]


def test_forgotten_packs_are_never_answered_again():
    packs = Packs()
    packs.add(7, runs(0, 50))
    matcher = packs.matcher()
    assert matcher.match([digest(16)]) == [(7, 16)]
    matcher.forget({7, 99})
    assert matcher.match([digest(16), digest(17)]) == [None, None]


def test_lists_not_used_lately_give_way():
    packs = Packs()
    for pack in range(4):
        packs.add(pack, runs(pack * 1600, 32))
    matcher = packs.matcher(lists=2)
    for pack in (0, 1, 0, 2):
        matcher.match([digest(pack * 1600)])
    assert packs.loads == [0, 1, 2]
    matcher.match([digest(0)])
    assert packs.loads == [0, 1, 2], "0 was used after 1"
    assert matcher.match([digest(1600)]) == [(1, 0)]
    assert packs.loads == [0, 1, 2, 1]


def test_a_mib_takes_blocks_from_few_frames():
    packs = Packs(sampling=1)
    packs.add(1, runs(0, 2048))
    matcher = packs.matcher(frames_new=FRAMES_NEW)
    # 40 frames of the pack, of which the first 24 have two blocks in this MiB and the others one.
    wanted = [digest(frame * FRAME_BLOCKS + n) for frame in range(40) for n in range(2 if frame < 24 else 1)]
    found = matcher.match(wanted)
    assert {place[1] // FRAME_BLOCKS for place in found if place} == set(range(24))
    assert sum(place is None for place in found) == 16
    again = matcher.match(wanted)
    assert all(again), "frames touched lately cost nothing: 24 and 16 are fewer than 64"


def test_frames_touched_long_ago_count_again():
    packs = Packs(sampling=1)
    packs.add(1, runs(0, 2048))
    matcher = packs.matcher(frames_new=2)
    assert all(matcher.match([digest(0), digest(16)]))
    for frame in range(2, 64, 2):
        assert all(matcher.match([digest(frame * 16), digest(frame * 16 + 16)]))
    assert all(matcher.match([digest(0), digest(16), digest(65 * 16), digest(66 * 16)]))
    for frame in range(64, 128, 2):
        matcher.match([digest(frame * 16), digest(frame * 16 + 16)])
    assert sum(p is None for p in matcher.match([digest(0), digest(16), digest(32)])) == 1


def test_a_whole_mib_is_admitted_within_the_same_cap():
    matcher = Packs().matcher(frames_new=FRAMES_NEW)
    scattered = [Extent(1, frame * FRAME_BLOCKS, 1) for frame in range(FRAMES_NEW + 1)]
    assert not matcher.admits(scattered)
    assert matcher.admits([Extent(1, 8, 250), Extent(ZERO_PACK, 0, 6)]), "17 frames"
    assert matcher.admits(scattered), "17 of them were touched just now"


numbers = st.integers(0, 60)


@given(
    st.lists(st.lists(numbers, min_size=1, max_size=30, unique=True), min_size=1, max_size=6),
    st.lists(st.lists(st.integers(0, 80), min_size=1, max_size=40), min_size=1, max_size=4),
)
def test_with_a_full_index_and_all_lists_it_is_a_dictionary(stored, windows):
    packs = Packs(sampling=1)
    for pack, content in enumerate(stored):
        packs.add(pack, [digest(number) for number in content])
    known = {number for content in stored for number in content}
    matcher = packs.matcher(lists=6)
    for window in windows:
        found = matcher.match([digest(number) for number in window])
        for number, place in zip(window, found, strict=True):
            assert (place is not None) == (number in known)
            assert place is None or packs.lists[place[0]][place[1]] == digest(number)


@given(st.integers(0, 10_000), st.sampled_from([1, 2, 16, 256]), st.integers(1, 4), st.integers(1, 30))
def test_a_match_is_always_a_stored_copy(seed, sampling, lists, frames_new):
    source = random.Random(seed)
    packs = Packs(sampling)
    for pack in range(5):
        packs.add(pack, [digest(source.randrange(4000)) for _ in range(300)])
    matcher = packs.matcher(lists, frames_new)
    for _ in range(5):
        first = source.randrange(4000)
        window = [digest(n if source.random() < 0.8 else source.randrange(9000)) for n in range(first, first + 60)]
        for wanted, place in zip(window, matcher.match(window), strict=True):
            assert place is None or packs.lists[place[0]][place[1]] == wanted
