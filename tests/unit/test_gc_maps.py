"""The pure parts of moving blocks: rows of maps with blocks at new places, and what reading a map decodes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.blocks import maprows
from imagefs.blocks.maprows import GIB, QUARTER
from imagefs.blocks.maps import MapBuilder
from imagefs.images import relay
from imagefs.images.relay import Place
from imagefs.images.rewrite import relocated

RUN = st.tuples(st.integers(0, 5), st.integers(0, 40), st.integers(1, 40))
"""(pack, first block, count); pack 0 stands for zeros."""


def built(runs: list[tuple[int, int, int]], before: int = 0) -> MapBuilder:
    builder = MapBuilder()
    builder.zeros(before)
    for pack, first, count in runs:
        if pack:
            builder.append(pack, first, count)
        else:
            builder.zeros(count)
    return builder


def blocks(rows: list[tuple[int, bytes]]) -> dict[int, Place]:
    """Where each block that is not zeros lies."""
    return {block + n: (pack, first + n) for block, pack, first, count in maprows.runs(rows) for n in range(count)}


@given(st.lists(RUN, max_size=12), st.sampled_from([0, QUARTER - 50, GIB - 50, 3 * GIB]), st.sets(st.integers(1, 5)))
def test_every_block_is_where_it_should_be(runs: list[tuple[int, int, int]], before: int, packs: set[int]) -> None:
    rows = built(runs, before).rows()
    old = blocks(rows)
    moved = sorted({place for place in old.values() if place[0] in packs})
    places = {place: (10 + number // 30, number % 30) for number, place in enumerate(moved)}
    move = relocated(7, rows, places)
    wanted = {block: places.get(place, place) for block, place in old.items()}
    if move is None:
        assert not moved
        return
    assert move.map_id == 7
    changed = {quarter for quarter, _ in move.old}
    after = sorted([row for row in rows if row[0] not in changed] + list(move.new))
    maprows.verify(after, 100, "the map")
    assert blocks(after) == wanted
    assert set(move.old) <= set(rows)
    named, names = {pack for pack, _ in old.values()}, {pack for pack, _ in wanted.values()}
    assert (move.arrived, move.left) == (names - named, named - names)


def test_a_row_that_grows_is_split_and_one_that_shrinks_joined() -> None:
    """A GiB of one run becomes one of 70,000 runs, and back."""
    rows = built([(1, n % 60000, 1) for n in range(70_000)]).rows()
    places = {(1, n): (2, (7919 * n) % 60_000) for n in range(60_000)}
    move = relocated(1, rows, places)
    assert move is not None
    assert len(move.old) == 1
    assert [quarter for quarter, _ in move.new] == [0, 1]
    assert blocks(list(move.new)) == {n: places[1, n % 60000] for n in range(70_000)}
    back = relocated(1, move.new, {new: old for old, new in places.items()})
    assert back is not None
    assert [*back.new] == rows
    assert (back.arrived, back.left) == ({1}, {2})


# -- amplification -----------------------------------------------------------------------------------------


def test_an_image_in_its_own_packs_reads_what_it_has() -> None:
    rows = built([(1, 0, 2048), (0, 0, 500), (2, 0, 77)]).rows()
    found = relay.reading(rows, {1: 2048, 2: 77}.__getitem__)
    assert (found.read, found.decoded, found.amplification) == (2125, 2125, 1.0)
    assert relay.reading([], {}.__getitem__).amplification == 1.0


def test_a_frame_counts_as_a_whole_and_once_while_it_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = built([(1, 0, 1), (2, 0, 1), (1, 5, 1)]).rows()
    assert relay.reading(rows, lambda pack: 16).decoded == 32
    monkeypatch.setattr(relay, "REMEMBERED", 1)
    assert relay.reading(rows, lambda pack: 16).decoded == 48


@given(st.randoms(use_true_random=False), st.sampled_from([1.0, 1.5, 2.0]))
def test_what_is_given_up_brings_it_to_the_target(chance: random.Random, target: float) -> None:
    runs = [(chance.randint(1, 4), chance.randrange(250), chance.randint(1, 6)) for _ in range(chance.randint(1, 60))]
    rows = built(runs).rows()
    frames = relay.scattered(rows, lambda pack: 256, target)
    copied = list(relay.places(rows, frames))
    assert len(copied) == len(set(copied))
    assert {(pack, block // 16) for pack, block in copied} == frames
    move = relocated(1, rows, {place: (9, number) for number, place in enumerate(copied)})
    before = relay.reading(rows, lambda pack: 256)
    assert before.amplification <= relay.most(rows)
    if move is None:
        assert before.amplification <= target or not frames
        return
    after = relay.reading(move.new, lambda pack: len(copied) if pack == 9 else 256)
    assert after.read == before.read
    assert after.amplification <= max(target, 1.0) + 16 / after.read + len(runs) / after.read
    assert after.decoded < before.decoded


def test_the_frames_with_the_least_of_the_image_go_first() -> None:
    rows = built([(1, 0, 15), (1, 16, 1), (1, 32, 8), (1, 48, 16)]).rows()
    read, decoded = 40, 64
    assert relay.reading(rows, lambda pack: 64) == relay.Reading(read, decoded)
    assert relay.scattered(rows, lambda pack: 64, 1.6) == set()
    assert relay.scattered(rows, lambda pack: 64, 1.3) == {(1, 1)}
    assert relay.scattered(rows, lambda pack: 64, 1.1) == {(1, 1), (1, 2)}
    assert relay.scattered(rows, lambda pack: 64, 1.0) == {(1, 1), (1, 2), (1, 0)}
