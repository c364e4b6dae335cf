"""What drafts take from maps: intervals that behave as a list of blocks does, references, the two environments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.catalog import MOST, Catalog, LiveBases, Op, OpenTable, Part
from imagefs.errors import NotFound
from imagefs.types import Status
from tests.catalogs import assert_sound, draft, opened, sealed, session

BLOCKS = 24
ID = UUID(int=7)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with opened(tmp_path / "catalog") as opened_catalog:
        yield opened_catalog


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveBases]:
    table = OpenTable(tmp_path_factory.mktemp("volatile"), "boot")
    yield table.bases
    table.close()


Blocks = list[tuple[int, int] | None]
"""For each block of a draft its map and the block there."""


def blocks_of(parts: list[Part]) -> Blocks:
    found: Blocks = [None] * BLOCKS
    for part in parts:
        for at in range(part.nblocks):
            assert found[part.block + at] is None, "two parts have the same block"
            found[part.block + at] = part.map_id, part.first + at
    return found


RANGES = st.tuples(st.integers(0, BLOCKS - 1), st.integers(1, BLOCKS)).map(lambda r: (r[0], min(BLOCKS, r[0] + r[1])))


@given(st.lists(st.tuples(RANGES, st.sampled_from([0, 1, 2]), st.integers(0, 3)), max_size=12), RANGES)
def test_parts_are_as_a_list_of_blocks(
    live: LiveBases, changes: list[tuple[tuple[int, int], int, int]], looked_at: tuple[int, int]
) -> None:
    live.drop(ID, 1)
    live.load(ID, 1, [])
    # Neighbours in the table: they are other drafts'.
    live.load(ID, 0, [Part(0, BLOCKS, 9, 0)])
    live.load(ID, 2, [Part(0, BLOCKS, 9, 0)])
    model: Blocks = [None] * BLOCKS
    for (low, high), map_id, shift in changes:
        parts = [Part(low, high - low, map_id, low + shift)] if map_id else []
        live.replace(ID, 1, low, high, parts)
        model[low:high] = [(map_id, at + shift) if map_id else None for at in range(low, high)]
    assert blocks_of(live.find(ID, 1)) == model
    low, high = looked_at
    inside = blocks_of(live.find(ID, 1, low, high))
    assert inside == [None] * low + model[low:high] + [None] * (BLOCKS - high)
    whole = live.find(ID, 1)
    joined = [a for a, b in pairwise(whole) if (a.end, a.map_id, a.first + a.nblocks) == b[:1] + b[2:]]
    assert not joined, "what goes on is one row"
    assert live.find(ID, 0) == live.find(ID, 2) == [Part(0, BLOCKS, 9, 0)]


def test_what_this_boot_has_wins_over_the_catalog(tmp_path: Path) -> None:
    synced, later = [Part(0, 4, 1, 0)], [Part(2, 2, 1, 2)]
    for boot, expected in (("first", later), ("first", later), ("second", synced)):
        table = OpenTable(tmp_path / "volatile", boot)
        table.bases.load(ID, 1, synced)
        if not table.bases.changes(ID, 1) and boot == "first":
            table.bases.replace(ID, 1, 0, 2)
        assert table.bases.loaded(ID, 1)
        assert table.bases.find(ID, 1) == expected
        table.close()


def test_a_base_keeps_its_map(catalog: Catalog) -> None:
    sealer = session(catalog)
    source, other = sealed(catalog, sealer, "a"), sealed(catalog, sealer, "b")
    copy = draft(catalog, "c")
    bases = catalog.bases
    bases.refer(copy.id, 1, copy.data_ino, [source.map_id])
    bases.refer(copy.id, 1, copy.data_ino, [source.map_id, other.map_id])
    assert bases.referred(copy.id, 1) == {source.map_id, other.map_id}
    assert [info.refs for _, info in catalog.maps.scan()] == [2, 2]
    bases.put(copy.id, 1, [(0, MOST, [Part(0, 4, source.map_id, 0)])])
    assert_sound(catalog)
    assert bases.release(copy.id, 1)
    assert bases.referred(copy.id, 1) == {source.map_id}
    catalog.images.unlink(source.id)
    catalog.sessions.ack(sealer, catalog.generation())
    assert catalog.seals.finalise(source.id)
    assert catalog.maps.info(source.map_id).refs == 1, "the draft needs it"
    catalog.images.update(copy.id, lambda i: replace(i, status=Status.QUEUED, draft=None), Op.DRAFT)
    assert [tuple(based) for based in bases.drafts()] == [(copy.id, 1, copy.data_ino)], "its readers need it"
    bases.drop(copy.id, 1)
    assert not bases.drafts() and not bases.find(copy.id, 1)
    with pytest.raises(NotFound):
        catalog.maps.info(source.map_id)
    with pytest.raises(NotFound):
        bases.refer(copy.id, 1, copy.data_ino, [source.map_id])
    assert_sound(catalog)


def test_a_part_without_a_reference_is_found(catalog: Catalog) -> None:
    source, copy = sealed(catalog, session(catalog), "a"), draft(catalog, "c")
    catalog.bases.put(copy.id, 1, [(0, MOST, [Part(0, 4, source.map_id, 0)])])
    with pytest.raises(AssertionError, match="uncounted"):
        assert_sound(catalog)
    catalog.bases.drop(copy.id, 1)
