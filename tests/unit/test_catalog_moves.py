"""T9 in the catalog: what a move of a map's blocks checks, and what it changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from imagefs.catalog import Catalog, Move, PackState
from imagefs.errors import NotFound
from imagefs.types import Image
from tests.catalogs import BLOCKS, acknowledge, done, opened, own_packs, rows_of, sealed, session


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with opened(tmp_path / "catalog") as catalog:
        yield catalog


@pytest.fixture
def mover(catalog: Catalog) -> UUID:
    return session(catalog)


def move_of(catalog: Catalog, image: Image, new: int) -> Move:
    """All blocks of an image of one pack to pack `new`."""
    old = list(catalog.maps.rows(image.map_id))
    (pack,) = own_packs(catalog, image)
    return Move(image.map_id, old, rows_of([(new, 0, BLOCKS)]), frozenset({new}), frozenset({pack}))


def state(catalog: Catalog, no: int) -> PackState:
    return catalog.packs.get(no).state


def test_a_move_changes_rows_and_references(catalog: Catalog, mover: UUID) -> None:
    image = sealed(catalog, mover)
    clone = catalog.seals.clone(image.id, Image(id=uuid4(), name="clone"))
    (old,) = own_packs(catalog, image)
    ((new, _),) = catalog.moves.reserve(mover, 1)
    assert catalog.moves.commit(mover, move_of(catalog, image, new), [done(new)])
    assert own_packs(catalog, image) == own_packs(catalog, clone) == [new]
    assert (state(catalog, new), catalog.packs.get(new).refs) == (PackState.LIVE, 1)
    assert state(catalog, old) == PackState.TRASH
    assert catalog.packs.frames(new)
    acknowledge(catalog)
    assert catalog.packs.doom([old]) == [old]


def test_a_pack_that_others_name_stays(catalog: Catalog, mover: UUID) -> None:
    image = sealed(catalog, mover)
    (old,) = own_packs(catalog, image)
    other = sealed(catalog, mover, hits=[(old, 3, 2)], packs=0)
    ((new, _),) = catalog.moves.reserve(mover, 1)
    assert catalog.moves.commit(mover, move_of(catalog, image, new), [done(new)])
    assert (state(catalog, old), catalog.packs.get(old).refs) == (PackState.LIVE, 1)
    second = Move(
        other.map_id, list(catalog.maps.rows(other.map_id)), rows_of([(new, 3, 2)]), frozenset({new}), frozenset({old})
    )
    assert catalog.moves.commit(mover, second, [done(new)])
    assert (catalog.packs.get(new).refs, state(catalog, old)) == (2, PackState.TRASH)


def test_rows_that_are_not_what_they_were(catalog: Catalog, mover: UUID) -> None:
    image = sealed(catalog, mover)
    (old,) = own_packs(catalog, image)
    first, second = (no for no, _ in catalog.moves.reserve(mover, 2))
    stale = move_of(catalog, image, second)
    assert catalog.moves.commit(mover, move_of(catalog, image, first), [done(first)])
    assert not catalog.moves.commit(mover, stale, [done(second)])
    assert own_packs(catalog, image) == [first]
    assert (state(catalog, second), state(catalog, old)) == (PackState.PEND, PackState.TRASH)


def test_a_map_that_is_gone(catalog: Catalog, mover: UUID) -> None:
    image = sealed(catalog, mover)
    ((new, _),) = catalog.moves.reserve(mover, 1)
    move = move_of(catalog, image, new)
    catalog.images.unlink(image.id)
    acknowledge(catalog)
    assert catalog.seals.finalise(image.id)
    assert not catalog.moves.commit(mover, move, [done(new)])
    assert not catalog.moves.commit(mover, move._replace(old=[], new=[]), [done(new)])


@pytest.mark.parametrize("why", ["foreign", "not put", "doomed", "forgotten"])
def test_packs_that_a_map_may_not_begin_to_name(catalog: Catalog, mover: UUID, why: str) -> None:
    image = sealed(catalog, mover)
    owner = session(catalog) if why == "foreign" else mover
    ((new, _),) = catalog.moves.reserve(owner, 1)
    move, packs = move_of(catalog, image, new), [done(new)]
    if why == "not put":
        packs = []
    if why in ("doomed", "forgotten"):
        catalog.packs.discard([new])
        acknowledge(catalog)
        assert catalog.packs.doom([new]) == [new]
    if why == "forgotten":
        catalog.packs.forget([new])
    before = own_packs(catalog, image)
    assert not catalog.moves.commit(mover, move, packs)
    assert own_packs(catalog, image) == before
    assert state(catalog, before[0]) == PackState.LIVE


def test_a_pack_in_the_trash_is_live_again(catalog: Catalog, mover: UUID) -> None:
    """The first image that was moved there is gone when the second one's turn comes."""
    first, second = sealed(catalog, mover), sealed(catalog, mover)
    ((new, _),) = catalog.moves.reserve(mover, 1)
    assert catalog.moves.commit(mover, move_of(catalog, first, new), [done(new)])
    catalog.images.unlink(first.id)
    acknowledge(catalog)
    assert catalog.seals.finalise(first.id)
    assert state(catalog, new) == PackState.TRASH
    assert catalog.moves.commit(mover, move_of(catalog, second, new), [done(new)])
    assert (state(catalog, new), catalog.packs.get(new).refs) == (PackState.LIVE, 1)


def test_what_is_reserved_goes_with_the_session(catalog: Catalog) -> None:
    ended, joined = session(catalog), session(catalog)
    numbers = {one: catalog.moves.reserve(one, 1)[0][0] for one in (ended, joined)}
    assert all(state(catalog, no) == PackState.PEND for no in numbers.values())
    catalog.sessions.end(ended)
    assert (state(catalog, numbers[ended]), state(catalog, numbers[joined])) == (PackState.TRASH, PackState.PEND)
    catalog.sessions.start(joined, "mount", "host", "boot")
    assert state(catalog, numbers[joined]) == PackState.TRASH
    with pytest.raises(NotFound):
        catalog.moves.reserve(ended, 1)
