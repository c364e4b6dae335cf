from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagefs.blocks import maprows
from imagefs.blocks.maprows import GIB, ONE_QUARTER, QUARTER
from imagefs.blocks.maps import SPLIT_ABOVE, MapBuilder, extents
from imagefs.errors import Damaged, NewerVersion, UnknownFeature
from imagefs.types import ZERO_PACK, Extent

Rows = list[tuple[int, bytes]]
Run = tuple[int, int, int]
"""(pack, first, count) as appended; zeros are of ZERO_PACK."""


def lookup_in(rows: Rows):
    """What the catalog does: the row at a quarter, else the one at the start of its GiB."""
    table = dict(rows)

    def lookup(quarter: int) -> tuple[int, memoryview] | None:
        for key in (quarter, quarter & ~3):
            if key in table:
                return key, memoryview(table[key])
        return None

    return lookup


def built(runs: list[Run]) -> MapBuilder:
    builder = MapBuilder()
    for pack, first, count in runs:
        if pack == ZERO_PACK:
            builder.zeros(count)
        else:
            builder.append(pack, first, count)
    return builder


def blocks_of(found: list[Extent]) -> list[tuple[int, int]]:
    """Every block's place."""
    return [
        (ZERO_PACK, 0) if extent.pack == ZERO_PACK else (extent.pack, extent.first + n)
        for extent in found
        for n in range(extent.count)
    ]


data_runs = st.tuples(st.integers(0, 5), st.integers(0, 2000), st.integers(1, 48))
holes = st.tuples(st.just(ZERO_PACK), st.just(0), st.integers(1, 200))
wide_holes = st.tuples(
    st.just(ZERO_PACK),
    st.just(0),
    st.sampled_from([QUARTER - 3, QUARTER, GIB - 5, GIB, 2 * GIB + 9]),
)
several_runs = st.lists(st.one_of(data_runs, data_runs, data_runs, holes, wide_holes), max_size=40)


class PlainList:
    """The map as a list of blocks, without the holes wider than the test."""

    def __init__(self, runs: list[Run]) -> None:
        self.places: dict[int, tuple[int, int]] = {}
        self.size = 0
        for pack, first, count in runs:
            if pack != ZERO_PACK:
                self.places.update((self.size + n, (pack, first + n)) for n in range(count))
            self.size += count

    def __getitem__(self, blocks: range) -> list[tuple[int, int]]:
        return [self.places.get(block, (ZERO_PACK, 0)) for block in blocks]


@given(several_runs, st.data())
def test_a_map_is_the_list_of_its_blocks(runs, data):
    plain, builder = PlainList(runs), built(runs)
    rows = builder.rows()
    assert builder.blocks == plain.size
    maprows.verify(rows, 6, "map")
    edges = sorted({0, plain.size, *plain.places})
    for _ in range(8):
        near = data.draw(st.sampled_from(edges)) + data.draw(st.integers(-20, 20))
        first, count = max(near, 0), data.draw(st.integers(1, 400))
        found = extents(lookup_in(rows), first, count)
        assert blocks_of(found) == plain[range(first, first + count)]
        assert len(found) == len(merged(found)), "neighbours are merged"


def merged(found: list[Extent]) -> list[Extent]:
    out: list[Extent] = []
    for extent in found:
        last = out[-1] if out else None
        if last and last.pack == extent.pack and extent.pack == ZERO_PACK:
            out[-1] = Extent(ZERO_PACK, 0, last.count + extent.count)
        elif last and last.pack == extent.pack and last.first + last.count == extent.first:
            out[-1] = Extent(last.pack, last.first, last.count + extent.count)
        else:
            out.append(extent)
    return out


@given(several_runs)
def test_all_runs_of_a_map(runs):
    plain, builder = PlainList(runs), built(runs)
    found = {
        block + n: (pack, first + n) for block, pack, first, count in maprows.runs(builder.rows()) for n in range(count)
    }
    assert found == plain.places
    used = maprows.packs_of(builder.rows())
    assert used == {p: sum(1 for pack, _ in plain.places.values() if pack == p) for p in used}
    assert builder.packs() == set(used) == {pack for pack, _ in plain.places.values()}
    at = 0
    for block, extent in builder.extents():
        assert block == at
        at += extent.count
    assert at == plain.size


@given(several_runs, several_runs)
def test_a_map_goes_on_from_its_rows(before, after):
    first = built(before)
    resumed = MapBuilder.load(first.rows(), first.blocks)
    for builder in (first, resumed):
        for pack, start, count in after:
            if pack == ZERO_PACK:
                builder.zeros(count)
            else:
                builder.append(pack, start, count)
    assert resumed.rows() == first.rows()
    assert resumed.blocks == first.blocks


@given(several_runs, several_runs)
def test_rows_since_a_checkpoint_are_those_that_changed(before, after):
    builder = built(before)
    checkpoint, since = dict(builder.rows()), builder.blocks
    for pack, start, count in after:
        if pack == ZERO_PACK:
            builder.zeros(count)
        else:
            builder.append(pack, start, count)
    checkpoint.update(builder.rows(since))
    assert sorted(checkpoint.items()) == builder.rows()


def scattered(nblocks: int, seed: int = 1) -> list[Run]:
    """One block here, one there: no two merge."""
    source = random.Random(seed)
    return [(source.randrange(300), 2 * source.randrange(1000), 1) for _ in range(nblocks)]


def test_a_gib_of_many_runs_is_split_in_quarters():
    runs = [*scattered(5000), (ZERO_PACK, 0, QUARTER - 2500), *scattered(5000, 2)]
    builder = built(runs)
    rows = builder.rows()
    assert [quarter for quarter, _ in rows] == [0, 1]
    assert all(struct.unpack_from("<HH", value) == (1, ONE_QUARTER) for _, value in rows)
    plain = PlainList(runs)
    for first in (0, 2490, 4999, QUARTER - 10, QUARTER + 2490, QUARTER + 7499, GIB - 3):
        assert blocks_of(extents(lookup_in(rows), first, 30)) == plain[range(first, first + 30)]
    maprows.verify(rows, 300, "map")


def test_rows_are_split_when_they_pass_64_kib_and_not_before():
    most = (SPLIT_ABOVE - 8) // 10
    assert [len(value) for _, value in built(scattered(most - 1)).rows()] == [8 + 10 * most]
    rows = built(scattered(most)).rows()
    assert [quarter for quarter, _ in rows] == [0]
    assert rows[0][1][2] == ONE_QUARTER


def test_splitting_replaces_the_row_that_covered_the_whole_gib():
    # Otherwise a checkpoint's row would go on to answer for quarters that have none of their own.
    builder = MapBuilder()
    builder.zeros(QUARTER + 5)
    builder.append(1, 0, 1)
    assert [quarter for quarter, _ in builder.rows()] == [0]
    for pack, first, count in scattered(7000):
        builder.append(pack, first, count)
    rows = builder.rows()
    assert [quarter for quarter, _ in rows] == [0, 1]
    assert maprows.packs_of(rows[:1]) == {}
    assert extents(lookup_in(rows), 0, QUARTER) == [Extent(ZERO_PACK, 0, QUARTER)]


def test_a_run_over_the_border_of_a_quarter_goes_on_in_its_middle():
    runs = [*scattered(7000), (ZERO_PACK, 0, QUARTER - 7010), (9, 100, 20)]
    rows = built(runs).rows()
    assert [quarter for quarter, _ in rows] == [0, 1]
    assert extents(lookup_in(rows), QUARTER - 10, 20) == [Extent(9, 100, 20)]
    assert list(maprows.runs(rows[1:])) == [(QUARTER, 9, 110, 10)]


def test_zeros_have_no_rows():
    assert built([(ZERO_PACK, 0, 8192 * GIB)]).rows() == []
    assert extents(lookup_in([]), 12345, 10) == [Extent(ZERO_PACK, 0, 10)]
    rows = built([(ZERO_PACK, 0, 5 * GIB), (1, 0, 1)]).rows()
    assert [quarter for quarter, _ in rows] == [20]


def test_a_row_of_another_gib_does_not_answer():
    rows = built([(1, 0, 1), (ZERO_PACK, 0, QUARTER)]).rows()
    split = [(0, struct.pack("<HHIIIH", 1, ONE_QUARTER, 1, 0, 7, 3))]
    assert extents(lookup_in(rows), GIB, 1) == [Extent(ZERO_PACK, 0, 1)]
    assert extents(lookup_in(split), QUARTER, 1) == [Extent(ZERO_PACK, 0, 1)]


@pytest.mark.parametrize(("pack", "first", "count"), [(ZERO_PACK, 0, 1), (-1, 0, 1), (1, -1, 1), (1, 65530, 7)])
def test_a_place_that_no_pack_has_is_refused(pack, first, count):
    with pytest.raises(ValueError, match="cannot have"):
        MapBuilder().append(pack, first, count)


@given(several_runs)
def test_renumbering_changes_packs_and_nothing_else(runs):
    rows = built(runs).rows()
    numbers = {number: number * 1000 + 3 for number in range(6)}
    there = list(maprows.renumber(rows, numbers))
    assert [(b, (p - 3) // 1000, f, c) for b, p, f, c in maprows.runs(there)] == list(maprows.runs(rows))
    assert list(maprows.renumber(there, {new: old for old, new in numbers.items()})) == rows


def row(n: int, *words: int, version: int = 1, flags: int = 0) -> bytes:
    """A value of n runs from its columns."""
    return struct.pack(f"<HHI{n}I{n}I{n}H", version, flags, n, *words)


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        ([(0, b"")], Damaged),
        ([(0, row(0))], Damaged),
        ([(0, row(1, 0, 0, 0) + b"x")], Damaged),
        ([(0, row(1, 5, ZERO_PACK, 0))], Damaged),
        ([(0, row(2, 0, 0, 0, 0, 0, 0))], Damaged),
        ([(0, row(2, 0, GIB, 0, 0, 0, 0))], Damaged),
        ([(0, row(1, 0, 4, 0, flags=1))], Damaged),
        ([(0, row(2, 0, 9, 0, ZERO_PACK, 65530, 0))], Damaged),
        ([(1, row(1, 0, ZERO_PACK, 0))], Damaged),
        ([(0, row(1, 0, ZERO_PACK, 0)), (1, row(1, 0, ZERO_PACK, 0, flags=1))], Damaged),
        ([(4, row(1, 0, ZERO_PACK, 0)), (0, row(1, 0, ZERO_PACK, 0))], Damaged),
        ([(0, row(1, 0, ZERO_PACK, 0, version=2))], NewerVersion),
        ([(0, row(1, 0, ZERO_PACK, 0, flags=2))], UnknownFeature),
    ],
    ids=[
        "empty",
        "none",
        "tail",
        "start",
        "twice",
        "beyond",
        "pack",
        "block",
        "unaligned",
        "overlap",
        "order",
        "version",
        "flags",
    ],
)
def test_rows_that_no_writer_makes_are_refused(rows, error):
    with pytest.raises(error, match="maps/x"):
        maprows.verify(rows, 4, "maps/x")


@settings(max_examples=200)
@given(st.binary(max_size=200), st.integers(0, GIB - 1), st.integers(1, 100))
def test_a_value_that_is_no_row_never_crashes_a_reader(value, first, count):
    try:
        extents(lambda quarter: (0, value), first, count)
    except Damaged:
        pass
