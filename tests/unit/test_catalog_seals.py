"""Sealing, cloning, ending: the transactions T1 to T7 and T10 with every guard."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from imagefs.catalog import Catalog, Op, PackDone, PackKind, PackState
from imagefs.errors import Busy, Exists, InvalidValue, NotFound, PacksGone, SealBlocked, SealCancelled
from imagefs.types import BLOCK, ZERO_PACK, Extent, Image, Status
from tests.catalogs import (
    BLOCKS,
    acknowledge,
    assert_sound,
    commit_of,
    cookie_of,
    done,
    draft,
    opened,
    own_packs,
    rows_of,
    sealed,
    session,
    writes,
)

GIB = (1 << 30) // BLOCK


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with opened(tmp_path / "catalog") as opened_catalog:
        yield opened_catalog


def states(catalog: Catalog) -> dict[int, str]:
    return {row.no: row.state.name.lower() for row in catalog.packs.scan()}


def collect(catalog: Catalog) -> None:
    """Ends everything that can be ended."""
    acknowledge(catalog)
    for image_id in catalog.seals.finalisable():
        assert catalog.seals.finalise(image_id)
    acknowledge(catalog)
    catalog.packs.doom(row.no for row in catalog.packs.doomable(0, catalog.clock()))
    catalog.packs.forget(row.no for row in catalog.packs.doomed())


def test_reserve_gives_names_never_used_before(catalog: Catalog) -> None:
    image = draft(catalog)
    given = catalog.packs.reserve(image.id)
    assert len({no for no, _ in given}) == len({name for _, name in given}) == 64
    row = catalog.packs.get(given[0][0])
    assert (row.state, row.kind, row.owner, row.refs, row.done) == (
        PackState.PEND,
        PackKind.PACK,
        image.id,
        0,
        False,
    )
    assert row.object_name == f"packs/{given[0][1].hex()[:2]}/{given[0][1].hex()}"
    assert catalog.packs.by_name(given[0][1]) == row
    assert catalog.packs.by_name(bytes(16)) is None
    assert [pack.no for pack in catalog.packs.pending(image.id)] == [no for no, _ in given]
    with pytest.raises(NotFound):
        catalog.packs.get(12345)


def test_commit_makes_everything_at_once(catalog: Catalog) -> None:
    sealer, image = session(catalog), draft(catalog, "a")
    commit = commit_of(catalog, image, sealer, packs=2)
    active = catalog.seals.commit(commit)
    assert (active.status, active.size, active.draft, active.map_id) == (
        Status.ACTIVE,
        commit.size,
        None,
        commit.map_id,
    )
    assert active.map_uuid == commit.map_uuid and active.root == commit.fields["root"] and active.draft_gen == 1
    assert catalog.images.get(image.id) == active
    info = catalog.maps.info(active.map_id)
    assert (info.refs, info.size, info.uuid) == (1, commit.size, commit.map_uuid)
    assert catalog.maps.by_uuid(info.uuid) == active.map_id
    first, second = own_packs(catalog, active)
    assert catalog.maps.extents(active.map_id, 15, 2) == [Extent(first, 15, 1), Extent(second, 0, 1)]
    assert catalog.maps.extents(active.map_id, 31, 3) == [Extent(second, 15, 1), Extent(ZERO_PACK, 0, 2)]
    row = catalog.packs.get(first)
    assert (row.state, row.refs, row.blocks, row.stored, row.done) == (PackState.LIVE, 1, BLOCKS, 1000, True)
    assert (row.footer_off, row.footer_digest) == (900, bytes(32))
    assert catalog.packs.frames(first) == bytes(24) and catalog.packs.frames(first, 1, 5) == b""
    manifest = catalog.packs.by_name(info.uuid.bytes)
    assert manifest is not None and manifest.object_name == f"maps/{info.uuid}"
    assert (manifest.state, manifest.refs, manifest.kind) == (PackState.LIVE, 1, PackKind.MANIFEST)
    # The number that was reserved and never put is gone, not trash.
    assert set(states(catalog).values()) == {"live"} and catalog.seals.get(image.id) is None
    assert [row.op for row in catalog.log.rows()][-1] == Op.SEAL
    totals = catalog.packs.totals()
    assert (totals.live, totals.live_bytes, totals.stored_bytes) == (3, 2500, 2500)


def test_claim_has_one_owner(catalog: Catalog) -> None:
    first, second, image = session(catalog), session(catalog), draft(catalog)
    seal = catalog.seals.claim(image.id, first, 0)
    assert catalog.seals.claim(image.id, first, 0) == seal
    with pytest.raises(Busy):
        catalog.seals.claim(image.id, second, 0)
    catalog.sessions.end(first)
    assert catalog.images.get(image.id).draft == image.draft
    assert catalog.seals.claim(image.id, second, 0).map_id == seal.map_id
    catalog.seals.abandon(image.id, second, None)
    assert catalog.seals.claim(image.id, session(catalog), 0).map_id == seal.map_id
    with pytest.raises(SealBlocked):
        catalog.seals.claim(catalog.images.add(Image(id=uuid4())).id, second, 0)
    with pytest.raises(NotFound):
        catalog.seals.claim(uuid4(), second, 0)


def test_only_the_sealer_reserves(catalog: Catalog) -> None:
    """Names that a sealer reserves after it was replaced would be taken for never put ones of the next."""
    first, second, image = session(catalog), session(catalog), draft(catalog)
    with pytest.raises(SealCancelled):
        catalog.seals.reserve(image.id, first)
    catalog.seals.claim(image.id, first, 0)
    assert len(catalog.seals.reserve(image.id, first, count=3)) == 3
    catalog.sessions.reap(first)
    catalog.seals.claim(image.id, second, 0)
    with pytest.raises(SealCancelled):
        catalog.seals.reserve(image.id, first)
    catalog.images.unlink(image.id)
    with pytest.raises(SealCancelled):
        catalog.seals.reserve(image.id, second)


def test_abandon_says_why(catalog: Catalog) -> None:
    sealer, image = session(catalog), draft(catalog)
    catalog.seals.claim(image.id, sealer, 0)
    catalog.seals.abandon(image.id, session(catalog), "another one")
    left = catalog.images.get(image.id).draft
    assert left is not None and left.sealer == sealer and left.failed is None
    catalog.seals.abandon(image.id, sealer, "full")
    left = catalog.images.get(image.id).draft
    assert left is not None and left.sealer is None and left.failed == "full" and left.blocked is None
    catalog.seals.abandon(uuid4(), sealer, "no such image")


def test_checkpoints_are_gone_on_from(catalog: Catalog) -> None:
    sealer, image = session(catalog), draft(catalog)
    catalog.seals.claim(image.id, sealer, 0)
    cookie = cookie_of(image)
    seal = catalog.seals.complete(image.id, cookie)
    assert (seal.next_offset, seal.cookie, seal.packs, seal.unsure) == (0, cookie, (), ())
    (put, _), (unknown, _) = catalog.packs.reserve(image.id, count=2)
    rows = rows_of([(put, 0, BLOCKS)])
    catalog.seals.checkpoint(image.id, sealer, cookie, BLOCKS * BLOCK, rows, [done(put)])
    catalog.sessions.reap(sealer)

    heir = session(catalog)
    claimed = catalog.seals.claim(image.id, heir, 0)
    assert claimed == catalog.seals.get(image.id)
    assert (claimed.next_offset, claimed.map_id, claimed.cookie) == (BLOCKS * BLOCK, seal.map_id, cookie)
    assert [row.no for row in claimed.packs] == [put] and [row.no for row in claimed.unsure] == [unknown]
    assert list(catalog.maps.rows(claimed.map_id)) == rows
    assert catalog.seals.complete(image.id, cookie).next_offset == BLOCKS * BLOCK
    commit = commit_of(catalog, catalog.images.get(image.id), heir, packs=0)
    active = catalog.seals.commit(replace(commit, size=BLOCKS * BLOCK))
    assert own_packs(catalog, active) == [put]
    assert states(catalog)[unknown] == "trash", "its put may have happened"


def test_other_content_starts_again(catalog: Catalog) -> None:
    sealer, image = session(catalog), draft(catalog)
    catalog.seals.claim(image.id, sealer, 0)
    seal = catalog.seals.complete(image.id, cookie_of(image))
    (put, _), *_ = catalog.packs.reserve(image.id)
    catalog.seals.checkpoint(image.id, sealer, cookie_of(image), 4096, rows_of([(put, 0, 1)]), [done(put)])
    again = catalog.seals.complete(image.id, cookie_of(image, mtime_ns=2))
    assert (again.next_offset, again.cookie) == (0, cookie_of(image, mtime_ns=2))
    assert again.map_id != seal.map_id and again.map_uuid != seal.map_uuid
    assert [row.no for row in again.packs] == [put], "found again by its digests"
    assert list(catalog.maps.rows(seal.map_id)) == []
    assert catalog.packs.get(seal.manifest_no).state == PackState.TRASH
    with pytest.raises(SealCancelled):
        catalog.seals.checkpoint(image.id, sealer, cookie_of(image), 4096, [], [])


def test_packs_that_are_not_reserved_are_refused(catalog: Catalog) -> None:
    sealer, image, other = session(catalog), draft(catalog), draft(catalog)
    catalog.seals.claim(image.id, sealer, 0)
    catalog.seals.complete(image.id, cookie_of(image))
    (foreign, _), *_ = catalog.packs.reserve(other.id)
    (ended, _), *_ = catalog.packs.reserve(image.id)
    catalog.packs.discard([ended])
    for no in (foreign, ended, 99_999):
        with pytest.raises(SealCancelled):
            catalog.seals.checkpoint(image.id, sealer, cookie_of(image), 4096, [], [done(no)])


@pytest.mark.parametrize("what", ["written", "ended", "deleted", "sealer", "another draft", "reaped", "map"])
def test_commit_is_cancelled_by(catalog: Catalog, what: str) -> None:
    sealer, image = session(catalog), draft(catalog, "a")
    commit = commit_of(catalog, image, sealer)
    if what == "written":
        catalog.images.update(image.id, writes, Op.DRAFT)
    elif what == "ended":
        catalog.images.update(image.id, lambda i: replace(i, status=Status.QUEUED, draft=None), Op.DRAFT)
    elif what == "deleted":
        catalog.images.unlink(image.id)
    elif what == "sealer":
        catalog.seals.abandon(image.id, sealer, None)
    elif what == "another draft":
        catalog.siblings.add(image.id, b"tmp", Image(id=image.id, mode=0o600))
        catalog.siblings.promote(image.id, b"tmp")
    elif what == "reaped":
        catalog.sessions.reap(sealer)
    else:
        catalog.seals.complete(image.id, cookie_of(image, mtime_ns=2))
    before = states(catalog), catalog.generation()
    with pytest.raises(SealCancelled):
        catalog.seals.commit(commit)
    assert (states(catalog), catalog.generation()) == before
    catalog.seals.abandon(image.id, sealer, None)


def test_hits_are_shared(catalog: Catalog) -> None:
    sealer = session(catalog)
    first = sealed(catalog, sealer, "a")
    (pack,) = own_packs(catalog, first)
    second = sealed(catalog, sealer, "b", hits=[(pack, 0, 4), (0, 0, 5), (pack, 8, 4)], packs=0)
    assert catalog.packs.get(pack).refs == 2
    assert catalog.maps.packs_of(second.map_id) == {pack: 8}
    assert catalog.maps.allocated(second.map_id) == 8 * BLOCK
    catalog.images.unlink(first.id)
    collect(catalog)
    assert catalog.packs.get(pack).refs == 1 and catalog.packs.get(pack).state == PackState.LIVE
    catalog.images.unlink(second.id)
    collect(catalog)
    assert states(catalog) == {}


@pytest.mark.parametrize("state", ["live", "trash", "doomed", "gone", "foreign pend"])
def test_hits_are_checked_at_the_commit(catalog: Catalog, state: str) -> None:
    """A pack that was live when it was looked up may be anything by now (T3)."""
    sealer = session(catalog)
    victim = sealed(catalog, sealer)
    (pack,) = own_packs(catalog, victim)
    if state == "foreign pend":
        ((pack, _),) = catalog.packs.reserve(draft(catalog).id, count=1)
    image = draft(catalog)
    commit = commit_of(catalog, image, sealer, hits=[(pack, 0, 4)])
    if state in ("trash", "doomed", "gone"):
        catalog.images.unlink(victim.id)
        acknowledge(catalog)
        assert catalog.seals.finalise(victim.id)
        assert catalog.packs.get(pack).state == PackState.TRASH
    if state in ("doomed", "gone"):
        acknowledge(catalog)
        assert catalog.packs.doom([pack]) == [pack]
    if state == "gone":
        catalog.packs.forget([pack])
    if state in ("live", "trash"):
        catalog.seals.commit(commit)
        assert catalog.packs.get(pack).state == PackState.LIVE
        return
    with pytest.raises(PacksGone) as caught:
        catalog.seals.commit(commit)
    assert caught.value.packs == {pack}
    assert catalog.images.get(image.id).status == Status.SAVING
    # Stored anew, the second round goes through, whatever the first left of the map.
    (again, _), *_ = catalog.packs.reserve(image.id)
    own = commit.packs[0].no
    rows = rows_of([(own, 0, BLOCKS), (again, 0, 4)])
    active = catalog.seals.commit(replace(commit, rows=rows, packs=[*commit.packs, done(again)]))
    assert own_packs(catalog, active) == sorted([own, again])


def test_own_packs_must_be_stored(catalog: Catalog) -> None:
    sealer, image = session(catalog), draft(catalog)
    commit = commit_of(catalog, image, sealer)
    with pytest.raises(PacksGone):
        catalog.seals.commit(replace(commit, packs=[]))


def test_a_row_replaces_the_quarters_below_it(catalog: Catalog) -> None:
    """Rows of a GiB that was split, then made again with fewer runs: no old quarter may be found (wrong
    bytes)."""
    sealer, image = session(catalog), draft(catalog)
    catalog.seals.claim(image.id, sealer, 0)
    seal = catalog.seals.complete(image.id, cookie_of(image))
    (a, _), (b, _) = catalog.packs.reserve(image.id, count=2)
    scattered = [(pack, block % 2048, 1) for block in range(3500) for pack in (a, b)]
    split = rows_of([*scattered, (0, 0, GIB // 2), *scattered])
    assert len(split) > 1
    catalog.seals.checkpoint(image.id, sealer, cookie_of(image), 1 << 30, split, [done(a), done(b)])
    whole = rows_of([(b, 0, 2048), (0, 0, GIB - 2048)])
    commit = commit_of(catalog, catalog.images.get(image.id), sealer, packs=0)
    active = catalog.seals.commit(replace(commit, rows=whole, size=1 << 30))
    assert list(catalog.maps.rows(active.map_id)) == whole
    assert catalog.maps.extents(active.map_id, 0, GIB) == [
        Extent(b, 0, 2048),
        Extent(ZERO_PACK, 0, GIB - 2048),
    ]
    assert catalog.packs.get(a).state == PackState.TRASH and seal.map_id == active.map_id


def test_extents_over_several_gib(catalog: Catalog) -> None:
    sealer = session(catalog)
    (pack,) = own_packs(catalog, sealed(catalog, sealer))
    image = sealed(catalog, sealer, hits=[(0, 0, 3 * GIB - 2), (pack, 0, 4), (0, 0, GIB), (pack, 2, 1)], packs=0)
    assert catalog.maps.extents(image.map_id, 3 * GIB - 3, 6) == [
        Extent(ZERO_PACK, 0, 1),
        Extent(pack, 0, 4),
        Extent(ZERO_PACK, 0, 1),
    ]
    assert catalog.maps.extents(image.map_id, 4 * GIB + 2, 1) == [Extent(pack, 2, 1)]
    assert catalog.maps.extents(image.map_id, 100 * GIB, 7) == [Extent(ZERO_PACK, 0, 7)]
    assert [quarter for quarter, _ in catalog.maps.rows(image.map_id)] == [8, 12, 16]
    assert {map_id: info.refs for map_id, info in catalog.maps.scan()} == {1: 1, 2: 1}
    assert list(catalog.maps.numbers()) == [1, 2]
    with pytest.raises(NotFound):
        catalog.maps.info(99)


def test_clone_touches_no_pack(catalog: Catalog) -> None:
    sealer = session(catalog)
    source = sealed(catalog, sealer, "a")
    rows = list(catalog.packs.scan())
    new = Image(id=uuid4(), name="b", disk_format="raw", owner="me")
    clone = catalog.seals.clone(source.id, new)
    assert (clone.status, clone.map_id, clone.size, clone.root) == (
        Status.ACTIVE,
        source.map_id,
        source.size,
        source.root,
    )
    assert (clone.disk_format, clone.owner, clone.entry) == ("raw", "me", b"b")
    assert list(catalog.packs.scan()) == rows and catalog.maps.info(source.map_id).refs == 2
    assert [row.op for row in catalog.log.rows()][-1] == Op.CLONE
    with pytest.raises(Exists):
        catalog.seals.clone(source.id, new)
    catalog.images.unlink(source.id)
    with pytest.raises(NotFound):
        catalog.seals.clone(source.id, replace(new, id=uuid4()))
    collect(catalog)
    assert catalog.maps.info(clone.map_id).refs == 1 and catalog.packs.get(rows[0].no).state == PackState.LIVE
    with pytest.raises(InvalidValue):
        catalog.seals.clone(draft(catalog).id, replace(new, id=uuid4()))
    catalog.images.unlink(clone.id)
    collect(catalog)
    assert not list(catalog.maps.scan()) and list(catalog.packs.pending(uuid4())) == []


def test_share_moves_no_data(catalog: Catalog) -> None:
    sealer = session(catalog)
    source = sealed(catalog, sealer, "a")
    source = catalog.images.update(source.id, lambda i: replace(i, checksum="c" * 32, disk_format="qcow2"))
    copy = draft(catalog, "b")
    map_id = source.map_id
    catalog.bases.refer(copy.id, 1, copy.data_ino, [map_id])
    catalog.seals.claim(copy.id, sealer, 0)
    with pytest.raises(SealCancelled):
        catalog.seals.share(copy.id, sealer, 1, 5, map_id, {})
    with pytest.raises(SealCancelled):
        catalog.seals.share(copy.id, None, 1, 0, map_id, {})
    shared = catalog.seals.share(copy.id, sealer, 1, 0, map_id, {"container_format": "bare", "virtual_size": None})
    for field in [
        "map_id",
        "map_uuid",
        "size",
        "allocated",
        "root",
        "checksum",
        "disk_format",
        "virtual_size",
    ]:
        assert getattr(shared, field) == getattr(source, field), field
    assert (shared.status, shared.container_format, shared.draft) == (Status.ACTIVE, "bare", None)
    assert catalog.maps.info(map_id).refs == 3, "who has the draft open may be reading the map by its number"
    catalog.bases.drop(copy.id, 1)
    assert catalog.maps.info(map_id).refs == 2
    assert catalog.sessions.packs_held(sealer) == []


def test_share_without_a_twin(catalog: Catalog) -> None:
    sealer = session(catalog)
    source = sealed(catalog, sealer, "a")
    copy = draft(catalog, "b")
    with pytest.raises(NotFound):
        catalog.seals.share(copy.id, None, 1, 0, 999, {})
    catalog.bases.refer(copy.id, 1, copy.data_ino, [source.map_id])
    catalog.images.unlink(source.id)
    collect(catalog)
    shared = catalog.seals.share(copy.id, None, 1, 0, source.map_id, {"disk_format": "raw"})
    catalog.bases.drop(copy.id, 1)
    assert (shared.size, shared.allocated, shared.disk_format) == (source.size, source.allocated, "raw")
    assert catalog.maps.info(source.map_id).refs == 1


def test_finalise_waits_for_every_session(catalog: Catalog) -> None:
    sealer, reader = session(catalog), session(catalog)
    image = sealed(catalog, sealer, "a")
    catalog.images.unlink(image.id)
    assert not catalog.seals.finalise(image.id) and catalog.seals.finalisable() == []
    catalog.sessions.ack(sealer, catalog.generation())
    assert not catalog.seals.finalise(image.id)
    catalog.sessions.ack(reader, catalog.generation(), [image.id])
    assert not catalog.seals.finalise(image.id), "the reader holds it"
    assert catalog.maps.info(image.map_id).refs == 1
    catalog.sessions.release_hold(image.id, reader)
    assert catalog.seals.finalisable() == [image.id]
    assert catalog.seals.finalise(image.id) and not catalog.seals.finalise(image.id)
    with pytest.raises(NotFound):
        catalog.images.get(image.id, deleted=True)
    assert set(states(catalog).values()) == {"trash"}
    assert not catalog.seals.finalise(sealed(catalog, sealer).id), "it is not deleted"


def test_a_dead_session_counts_until_it_is_reaped(catalog: Catalog) -> None:
    sealer, dead = session(catalog), session(catalog)
    image = sealed(catalog, sealer)
    catalog.sessions.hold(image.id, dead)
    catalog.images.unlink(image.id)
    catalog.sessions.ack(sealer, catalog.generation())
    assert not catalog.seals.finalise(image.id)
    catalog.sessions.reap(dead)
    assert catalog.seals.finalise(image.id)


def test_doom_checks_everything_again(catalog: Catalog) -> None:
    sealer, other = session(catalog), session(catalog)
    catalog.clock = lambda: 10**12
    image = sealed(catalog, sealer)
    (pack,) = own_packs(catalog, image)
    catalog.images.unlink(image.id)
    acknowledge(catalog)
    catalog.seals.finalise(image.id)
    assert catalog.packs.doomable(0, 10**12) == [] and catalog.packs.doom([pack]) == [], "not acknowledged"
    acknowledge(catalog)
    assert catalog.packs.doomable(3600, 10**12) == [], "kept for an hour"
    assert {row.no for row in catalog.packs.doomable(0, 10**12)} > {pack}
    catalog.sessions.hold_pack(pack, other)
    assert catalog.packs.doom([pack]) == []
    catalog.sessions.release_pack(pack, other)
    catalog.sessions.hold(image.id, other)
    assert catalog.packs.doom([pack]) == [], "a put for it may be on its way"
    catalog.sessions.release_hold(image.id, other)
    assert catalog.packs.doom([pack, pack, 999]) == [pack]
    assert [row.no for row in catalog.packs.doomed()] == [pack]
    catalog.packs.discard([pack])
    assert catalog.packs.get(pack).state == PackState.DOOMED, "nothing brings it back"
    catalog.packs.forget([pack])
    assert catalog.packs.find(pack) is None
    with pytest.raises(NotFound):
        catalog.packs.frames(pack)


def test_forget_leaves_what_is_not_doomed(catalog: Catalog) -> None:
    image = sealed(catalog, session(catalog))
    before = states(catalog)
    catalog.packs.forget([*before, 12345])
    catalog.packs.discard(before)
    assert states(catalog) == before
    assert own_packs(catalog, image)


def test_what_a_live_sealer_may_be_putting_is_not_doomed(catalog: Catalog) -> None:
    """Its put would come after the delete and leave an object that no table knows."""
    sealer = session(catalog)
    for ending in ("draft", "image"):
        image = draft(catalog)
        commit_of(catalog, image, sealer)
        reserved = {row.no for row in catalog.packs.pending(image.id)}
        if ending == "draft":
            catalog.images.update(image.id, lambda i: replace(i, status=Status.QUEUED, draft=None), Op.DRAFT)
        else:
            catalog.images.unlink(image.id)
            acknowledge(catalog)
            assert catalog.seals.finalise(image.id)
        acknowledge(catalog)
        assert set(catalog.sessions.packs_held(sealer)) == reserved
        assert catalog.packs.doom(reserved) == []
        catalog.seals.abandon(image.id, sealer, None)
        assert catalog.packs.doom(reserved) == sorted(reserved)


def test_an_unfinished_draft_leaves_trash(catalog: Catalog) -> None:
    sealer, image = session(catalog), draft(catalog, "a")
    commit_of(catalog, image, sealer)
    catalog.images.unlink(image.id)
    assert set(states(catalog).values()) == {"pend"}, "the deletion is not acknowledged"
    catalog.sessions.reap(sealer)
    left = catalog.images.get(image.id, deleted=True).draft
    assert left is not None and left.sealer is None
    assert catalog.seals.finalise(image.id)
    assert set(states(catalog).values()) == {"trash"}
    collect(catalog)
    assert states(catalog) == {} and list(catalog.maps.numbers()) == []


def test_killed_ends_the_draft(catalog: Catalog) -> None:
    sealer, image = session(catalog), draft(catalog, "a")
    commit_of(catalog, image, sealer)
    catalog.images.update(image.id, lambda i: replace(i, status=Status.KILLED, draft=None), Op.DRAFT)
    assert set(states(catalog).values()) == {"trash"} and catalog.seals.get(image.id) is None
    assert catalog.images.get(image.id).entry == b"a", "shown until it is deleted"


def test_no_session_means_nobody_to_wait_for(catalog: Catalog) -> None:
    image = draft(catalog)
    catalog.packs.reserve(image.id)
    catalog.images.unlink(image.id)
    assert catalog.seals.finalisable() == [image.id] and catalog.seals.finalise(image.id)
    assert len(catalog.packs.doomable(0, catalog.clock())) == 64


def test_manifests_are_put_with_their_map(catalog: Catalog) -> None:
    sealer, image = session(catalog), draft(catalog)
    commit = commit_of(catalog, image, sealer)
    with pytest.raises(SealCancelled):
        catalog.seals.commit(replace(commit, packs=[*commit.packs, PackDone(12345, stored=1)]))
    assert_sound(catalog)
    catalog.seals.commit(commit)
