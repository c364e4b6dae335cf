"""The change log and the sessions that follow it (T8)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from imagefs.catalog import Catalog, Op
from imagefs.catalog import log as log_module
from imagefs.errors import LogGap, NotFound
from imagefs.types import Image, Status
from tests.catalogs import acknowledge, draft, opened, sealed, session

HOUR = 3600 * 10**9


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with opened(tmp_path / "catalog") as opened_catalog:
        yield opened_catalog


def named(catalog: Catalog, name: str) -> Image:
    return catalog.images.add(Image(id=uuid4(), name=name))


def test_every_write_has_a_row_with_the_full_record(catalog: Catalog) -> None:
    catalog.session = session(catalog)
    catalog.clock = lambda: 77
    image = named(catalog, "a")
    renamed = catalog.images.update(image.id, lambda i: replace(i, name="b", properties={"k": "v"}), Op.RENAME)
    gone = catalog.images.unlink(image.id)
    rows = catalog.log.since(0)
    assert [(row.op, row.record, row.old_entry, row.old_data_ino) for row in rows] == [
        (Op.CREATE, image, None, 0),
        (Op.RENAME, renamed, b"a", image.data_ino),
        (Op.DELETE, gone, b"b", image.data_ino),
    ]
    assert {(row.image_id, row.origin, row.time_ns) for row in rows} == {(image.id, catalog.session, 77)}
    assert [row.gen for row in rows] == [1, 2, 3] and catalog.generation() == catalog.log.newest() == 3
    assert catalog.log.since(2) == rows[2:] and catalog.log.since(3) == []


def test_one_transaction_is_seen_whole(catalog: Catalog) -> None:
    with catalog.transaction():
        for n in range(2500):
            named(catalog, f"n{n}")
    assert len(catalog.log.since(0)) == 2500
    assert len(list(catalog.log.rows())) == 2500


def test_other_changes_move_the_generation_alone(catalog: Catalog) -> None:
    sealer = session(catalog)
    image = sealed(catalog, sealer)
    catalog.images.unlink(image.id)
    acknowledge(catalog)
    newest = catalog.log.newest()
    catalog.seals.finalise(image.id)
    assert catalog.generation() > newest == catalog.log.newest()


def test_flushing_moves_on(catalog: Catalog) -> None:
    for name in "abc":
        named(catalog, name)
    assert [row.gen for row in catalog.log.unflushed()] == [1, 2, 3]
    catalog.log.mark_flushed(2)
    catalog.log.mark_flushed(1)
    assert catalog.log.flushed() == 2
    assert [row.gen for row in catalog.log.unflushed()] == [3]


def test_prune_keeps_what_anyone_may_need(catalog: Catalog) -> None:
    slow = session(catalog)
    for age, name in enumerate("abcd"):
        catalog.clock = lambda age=age: (age + 1) * HOUR  # type: ignore[misc]
        named(catalog, name)
    now = 3 * HOUR + HOUR  # c and d are younger than an hour
    assert catalog.log.prune(now) == 0, "not flushed"
    catalog.log.mark_flushed(4)
    assert catalog.log.prune(now) == 0, "not acknowledged"
    catalog.sessions.ack(slow, 2)
    assert catalog.log.prune(now) == 2
    assert [row.gen for row in catalog.log.since(2)] == [3, 4]
    catalog.sessions.ack(slow, 4)
    assert catalog.log.prune(now) == 1, "c is an hour old now"
    for gen in (0, 2):
        with pytest.raises(LogGap):
            catalog.log.since(gen)
    catalog.sessions.end(slow)
    assert catalog.log.prune(100 * HOUR) == 1 and catalog.log.since(4) == []
    named(catalog, "e")
    assert [row.gen for row in catalog.log.since(4)] == [5]


def test_a_tail_that_fell_far_behind_is_told_so(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "TAIL_MAX", 3)
    for name in "abcde":
        named(catalog, name)
    with pytest.raises(LogGap):
        catalog.log.since(1)
    assert len(catalog.log.since(2)) == 3


def test_a_session_begins_acknowledged_and_is_joined(catalog: Catalog) -> None:
    named(catalog, "a")
    first = uuid4()
    assert catalog.sessions.start(first, "mount", "host", "boot") == 1
    named(catalog, "b")
    assert catalog.sessions.start(first, "mount", "host", "boot") == 1, "a next worker keeps what is acknowledged"
    (row,) = catalog.sessions.list()
    assert (row.id, row.kind, row.host, row.boot, row.ack) == (first, "mount", "host", "boot", 1)
    catalog.sessions.ack(first, 2)
    catalog.sessions.ack(first, 1)
    assert catalog.sessions.list()[0].ack == 2 == catalog.sessions.acknowledged()
    assert catalog.sessions.acked(2) and not catalog.sessions.acked(3)


def test_holds_are_added_and_taken_back(catalog: Catalog) -> None:
    first, second = session(catalog), session(catalog)
    a, b = named(catalog, "a").id, named(catalog, "b").id
    catalog.sessions.ack(first, 1, [a, b])
    catalog.sessions.ack(first, 2, [])
    catalog.sessions.hold(a, second)
    assert set(catalog.sessions.holds(first)) == {a, b}, "an acknowledgement takes none back"
    catalog.sessions.release_hold(a, first)
    assert catalog.sessions.held(a) and catalog.sessions.holds(first) == [b]
    catalog.sessions.release_hold(a, first)
    catalog.sessions.hold_pack(7, second)
    assert catalog.sessions.pack_held(7) and not catalog.sessions.pack_held(70) and not catalog.sessions.pack_held(0)
    catalog.sessions.end(second)
    assert not catalog.sessions.held(a) and not catalog.sessions.pack_held(7) and catalog.sessions.held(b)


def test_a_reaped_session_may_not_go_on(catalog: Catalog) -> None:
    dead, sealer = session(catalog), session(catalog)
    saving, deleted = draft(catalog, "a"), draft(catalog, "b")
    for image in (saving, deleted):
        catalog.seals.claim(image.id, dead, 0)
    catalog.images.unlink(deleted.id)
    catalog.seals.claim(draft(catalog).id, sealer, 0)
    assert set(catalog.sessions.reap(dead)) == {saving.id, deleted.id}
    assert catalog.sessions.reap(dead) == []
    with pytest.raises(NotFound):
        catalog.sessions.ack(dead, 1)
    assert catalog.images.get(saving.id).draft == saving.draft
    assert catalog.sessions.end(uuid4()) == []


def test_nobody_is_origin_at_first(catalog: Catalog) -> None:
    named(catalog, "a")
    assert catalog.log.since(0)[0].origin == UUID(int=0) == catalog.session
    assert catalog.log.since(0)[0].record.status == Status.QUEUED
