"""The traces by which plausible shortcuts in the protocol lose data, driven along the same path on the real code.

They are named as in the search that found them, F1 to F13, and quoted in its words: W writes (seals), R reads, D
deletes, C clones, G collects, P0 is an old pack and N0 a new one. F6 is about moving blocks:
see test_gc_protocol.py. Along each path the real code refuses, does it again or survives.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from imagefs.catalog import PackState
from imagefs.errors import Busy, NotFound, SealBlocked, SealCancelled
from imagefs.images.session import lock_path
from imagefs.types import Status
from tests.model.stepping import Actor
from tests.model.world import USER, Process, World, name16, refused


def seal(world: World, process: Process) -> Actor:
    return process.acts(lambda: process.images.sealer.seal(world.new))


def collect(world: World, process: Process) -> Actor:
    return process.acts(lambda: world.collect(process))


STOPS: dict[str, Callable[[Actor], None]] = {
    "reserve": lambda actor: actor.through("store.get packs/"),  # the look-up that found the duplicate
    "put pack": lambda actor: actor.before("store.put packs/"),
    "put manifest": lambda actor: actor.before("store.put maps/"),
    "commit": lambda actor: actor.before("Seals.commit"),
}
"""What a sealer is about to do."""


def old_packs(world: World) -> set[str]:
    """Object names of what the sealed image consists of."""
    image = world.catalog.images.get(world.old)
    return {world.catalog.packs.get(no).object_name for no in world.catalog.maps.packs_of(image.map_id)}


def row_of(world: World, name: str) -> Any:
    return world.catalog.packs.by_name(name16(name))


def test_f1_a_pack_that_went_away_is_stored_again(world: World) -> None:
    """W.lookup > W.pin > W.put > D.unlink > G.finalise > G.doom P0 > W.commit > G.delete P0: lost P0."""
    writer, gc = world.process("writer"), world.process("gc")
    (old,) = old_packs(world)
    w, g = seal(world, writer), collect(world, gc)
    w.before("Seals.commit")
    world.delete(gc, world.old)
    world.acknowledge_all()
    g.through("Seals.finalise")
    world.acknowledge_all()
    g.through("Packs.doom", times=2)
    assert row_of(world, old).state == PackState.DOOMED
    w.through("Seals.commit")
    world.run(w, g)
    assert w.trail.count("Seals.commit") == 2, "the first one must be refused"
    assert old not in world.store.list("packs/")
    world.settle()


def test_f1_a_pack_that_is_forgotten_is_stored_again(world: World) -> None:
    """The same, when the collector is done with it before the commit looks."""
    writer, gc = world.process("writer"), world.process("gc")
    w = seal(world, writer)
    w.before("store.put maps/")
    world.run(gc.acts(lambda: world.sweep(gc, world.old)))
    world.run(w)
    assert world.catalog.images.get(world.new).status == Status.ACTIVE
    world.settle()


@pytest.mark.parametrize("stop", ["reserve", "put pack"])
def test_f1_a_pack_that_is_forgotten_early_is_stored_again(world: World, stop: str) -> None:
    writer, gc = world.process("writer"), world.process("gc")
    w = seal(world, writer)
    STOPS[stop](w)
    world.run(gc.acts(lambda: world.sweep(gc, world.old)))
    world.run(w)
    assert world.catalog.images.get(world.new).status == Status.ACTIVE
    world.settle()


def test_f1c_a_pack_in_the_trash_is_not_offered(world: World) -> None:
    """D.unlink > G.finalise > W.lookup > W.put > G.doom P0 > W.commit > G.delete P0: lost P0."""
    writer, gc = world.process("writer"), world.process("gc")
    (old,) = old_packs(world)
    world.delete(gc, world.old)
    world.acknowledge_all()
    g = collect(world, gc)
    g.through("Seals.finalise")
    assert row_of(world, old).state == PackState.TRASH
    w = seal(world, writer)
    w.before("Seals.commit")
    world.acknowledge_all()
    world.run(g)
    world.run(w)
    assert w.trail.count("Seals.commit") == 1
    world.settle()


def test_f2_a_commit_between_plan_and_doom_keeps_the_pack(world: World) -> None:
    """... G.plan P0 > W.commit > G.delete P0: lost P0."""
    writer, gc = world.process("writer"), world.process("gc")
    (old,) = old_packs(world)
    w, g = seal(world, writer), collect(world, gc)
    w.before("Seals.commit")
    world.delete(gc, world.old)
    world.acknowledge_all()
    g.through("Seals.finalise")
    world.acknowledge_all()
    g.before("Packs.doom", times=2)
    assert row_of(world, old).state == PackState.TRASH
    world.run(w)
    world.run(g)
    assert row_of(world, old).state == PackState.LIVE
    assert not any(step.startswith("store.delete packs/") for step in g.trail)
    world.settle()


def test_f2b_a_commit_after_the_delete_is_refused(world: World) -> None:
    """... G.plan P0 > G.delete P0 > W.commit: lost P0. So it is with one gc after another that died."""
    writer, gc, second = world.process("writer"), world.process("gc"), world.process("gc 2")
    w, g = seal(world, writer), collect(world, gc)
    w.before("Seals.commit")
    world.delete(gc, world.old)
    world.acknowledge_all()
    g.through("Seals.finalise")
    world.acknowledge_all()
    g.through("store.delete packs/")
    gc.die()
    world.run(w)
    assert w.trail.count("Seals.commit") == 2
    world.acknowledge_all()
    world.run(collect(world, second))
    world.settle()


def test_f3_a_late_delete_meets_no_new_object(world: World) -> None:
    """... G.pick P0 > W.pin > W.put > W.commit > G.delete P0: lost P0, where names come from contents."""
    writer, gc = world.process("writer"), world.process("gc")
    (old,) = old_packs(world)
    g = collect(world, gc)
    world.delete(gc, world.old)
    world.acknowledge_all()
    g.through("Seals.finalise")
    world.acknowledge_all()
    g.before("store.delete packs/")
    world.run(seal(world, writer))
    image = world.catalog.images.get(world.new)
    new = {world.catalog.packs.get(no).object_name for no in world.catalog.maps.packs_of(image.map_id)}
    assert old not in new
    world.run(g)
    world.settle()


def test_f3b_names_are_not_put_again_after_a_failure(world: World) -> None:
    writer, other = world.process("writer"), world.process("other")
    w = seal(world, writer)
    w.before("Seals.commit")
    first = set(world.store.list("packs/"))
    writer.die()
    world.run(collect(world, other))
    world.run(other.acts(lambda: other.images.sealer.seal(world.new)))
    puts = [step for step in other.actors[-1].trail if step.startswith("store.put packs/")]
    assert puts
    assert not {step.removeprefix("store.put ") for step in puts} & first
    world.settle()


def test_f4_nothing_goes_before_every_reader_knows(world: World) -> None:
    """R.open > D.delete > G.doom P0 > G.delete P0 > R.EIO."""
    reader, gc = world.process("reader"), world.process("gc")
    r = reader.acts(lambda: world.read(reader, world.old))
    r.before("store.get")
    world.delete(gc, world.old)
    for _ in range(3):
        gc.acknowledge()
        world.run(collect(world, gc))
    assert world.catalog.images.unlinked(), "the reader's session has not acknowledged"
    world.run(r)
    world.settle()


def test_f4b_the_map_of_a_deleted_image_stays_until_then(world: World) -> None:
    """R.open > D.delete (without unlinked) > R.ack > G.doom P0 > G.delete P0 > R.EIO."""
    reader, gc = world.process("reader"), world.process("gc")
    r = reader.acts(lambda: world.read(reader, world.old))
    r.before("store.get")
    map_id = world.catalog.images.get(world.old).map_id
    world.delete(gc, world.old)
    assert world.catalog.maps.info(map_id).refs == 1
    world.acknowledge_all()
    world.run(collect(world, gc))
    world.run(r)
    world.settle()


def test_f5_a_deleted_image_that_is_open_is_held(world: World) -> None:
    """R.open > D.unlink > R.ack > G.finalise > G.doom P0 > G.delete P0 > R.EIO."""
    reader, gc = world.process("reader"), world.process("gc")
    r = reader.acts(lambda: world.read(reader, world.old))
    r.before("store.get")
    for _ in range(3):
        world.sweep(gc, world.old)
    assert world.catalog.sessions.holds(reader.session.id) == [world.old]
    r.through("store.get")
    for _ in range(3):
        world.sweep(gc, world.old)
    world.run(r)
    assert world.catalog.sessions.holds(reader.session.id) == []
    world.settle()


def test_f7_a_killed_worker_is_no_dead_session(world: World) -> None:
    """R.open > R.worker killed > D.unlink > G.reap > G.finalise > G.doom P0 > G.delete P0 > R.EIO."""
    reader, gc = world.process("reader"), world.process("gc")
    ino, fh = world.catalog.images.get(world.old).data_ino, 7
    reader.files.open(ino, os.O_RDONLY, USER, fh)
    reader.kill_worker()
    world.delete(gc, world.old)
    for _ in range(3):
        gc.acknowledge()
        world.run(collect(world, gc))
    reader.take_over()
    for _ in range(3):
        world.acknowledge_all()
        world.run(collect(world, gc))
    handle = reader.files.get(fh)
    assert handle is not None, "the kernel still has it open"
    assert handle.pread(0, 1 << 20) == world.contents[world.old]
    reader.files.release(fh)
    world.settle()


def test_f8_a_clone_of_what_went_meanwhile_is_refused(world: World) -> None:
    """C.readmap > D.unlink > G.finalise > C.putmap: a map that points into the trash."""
    steps = world.process("cloner").acts(lambda: world.clone(world.processes[0], world.old), fine=True)
    steps.finish()
    refused_at = []
    for stop in range(len(steps.trail)):
        world.settle()
        world.begin()
        cloner, gc = world.process("cloner"), world.process("gc")
        c = cloner.acts(lambda cloner=cloner: world.clone(cloner, world.old), fine=True)
        for _ in range(stop):
            c.step()
        world.run(gc.acts(lambda gc=gc: world.sweep(gc, world.old)))
        world.run(c)
        if world.catalog.images.count() == 1:  # the draft; no clone
            refused_at.append(stop)
    world.settle()
    # Up to its one transaction, and never after it.
    assert refused_at == list(range(steps.trail.index("Seals.clone") + 1))


def test_f9_names_are_in_the_table_before_anything_is_put(world: World) -> None:
    """W.put-unpinned: stored and in no table."""
    writer = world.process("writer")
    w = seal(world, writer)
    for _ in range(2):  # a pack and the manifest
        w.before("store.put")
        assert w.next is not None
        row = world.catalog.packs.by_name(name16(w.next))
        assert row is not None
        assert row.state == PackState.PEND
        assert row.owner == world.new
        w.step()
    world.run(w)
    world.settle()


def test_f10_a_writer_that_dies_after_its_commit_lost_nothing(world: World) -> None:
    """W.pin > W.commit: maps what is not stored."""
    writer = world.process("writer")
    w = seal(world, writer)
    w.through("Seals.commit")
    world.check()
    writer.die()
    assert world.catalog.images.get(world.new).status == Status.ACTIVE
    world.settle()


def test_f11_nobody_is_dead_because_time_has_passed(world: World) -> None:
    """W.pin > W.expire > G.reap > G.doom N0 > G.delete N0 > W.put > G.forget N0: stored and in no table."""
    world.catalog.clock = lambda: 1
    writer, gc = world.process("writer"), world.process("gc")
    os.utime(lock_path(world.repo.path / "sessions", writer.session.id), (1, 1))
    w = seal(world, writer)
    w.before("store.put")
    for _ in range(3):
        world.acknowledge_all()
        world.run(collect(world, gc))
    assert writer.session.id in {row.id for row in world.catalog.sessions.list()}
    world.run(w)
    assert world.catalog.images.get(world.new).status == Status.ACTIVE
    world.settle()


@pytest.mark.parametrize("stop", ["reserve", "put pack", "put manifest", "commit"])
def test_f12_who_lost_the_session_commits_nothing(world: World, stop: str) -> None:
    """W.put > W.expire > G.reap > G.doom N0 > W.commit > G.delete N0: lost N0. And no put is an orphan."""
    writer, gc = world.process("writer"), world.process("gc")
    w = seal(world, writer)
    STOPS[stop](w)
    os.close(writer.session._lock_fd)  # as if it had died, but it goes on
    writer.alive = False
    for _ in range(3):
        world.acknowledge_all()
        world.run(collect(world, gc))
    with pytest.raises(SealCancelled):
        world.run(w)
    assert world.catalog.images.get(world.new).status == Status.SAVING
    world.settle()


@pytest.mark.parametrize("stop", ["put pack", "put manifest", "commit"])
def test_f13_a_put_in_flight_when_the_draft_ends(world: World, stop: str) -> None:
    """W.pin > ... > G.doom N0 > G.delete N0 > late put lands > G.forget N0: stored and in no table."""
    writer, gc = world.process("writer"), world.process("gc")
    w = seal(world, writer)
    STOPS[stop](w)
    world.run(gc.acts(lambda: world.sweep(gc, world.new)))
    with pytest.raises(SealCancelled):
        world.run(w)
    world.settle()


def test_a_draft_that_is_gone_reserves_nothing_more(world: World) -> None:
    """W.claim > D.unlink > G.finalise > W.reserve: rows that belong to no image, for ever."""
    writer, gc = world.process("writer"), world.process("gc")
    w = seal(world, writer)
    STOPS["reserve"](w)
    world.run(gc.acts(lambda: world.sweep(gc, world.new)))
    with refused(SealCancelled, NotFound):
        world.run(w)
    world.settle()


def test_a_hold_that_comes_after_the_close_does_not_stay(world: World) -> None:
    """R.open > D.unlink > R decides to hold > R.close > R.ack: a hold that nobody takes back."""
    reader, gc = world.process("reader"), world.process("gc")
    ino = world.catalog.images.get(world.old).data_ino
    reader.files.open(ino, os.O_RDONLY, USER, 7)
    world.delete(gc, world.old)
    tail = reader.acts(reader.acknowledge)
    tail.before("Sessions.ack")
    reader.files.release(7)
    world.run(tail)
    world.settle()


def test_who_comes_second_to_seal_finds_it_sealed(world: World) -> None:
    """Both ask for the same: `imagefs seal` while the mount seals by itself."""
    first, second = world.process("first"), world.process("second")
    late = second.acts(lambda: second.images.sealer.seal(world.new), fine=True)
    late.through("Images")  # it has seen the draft
    world.run(seal(world, first))
    with refused(Busy, SealBlocked):
        world.run(late)
    world.settle()


@pytest.mark.parametrize("stop", ["reserve", "put pack", "put manifest", "commit"])
def test_two_threads_of_one_process_seal_the_same_draft(world: World, stop: str) -> None:
    """The mount seals by itself while somebody sets `user.imagefs.seal`: they are one session."""
    first, gc = world.process("first"), world.process("gc")
    w = first.acts(lambda: first.images.sealer.seal(world.new))
    STOPS[stop](w)
    other = first.acts(lambda: first.images.sealer.seal(world.new))
    with refused(Busy, SealCancelled):
        world.run(other)
    world.run(gc.acts(lambda: world.sweep(gc, None)))
    with refused(Busy, SealCancelled):
        world.run(w)
    assert world.catalog.images.get(world.new).status == Status.ACTIVE, "one of them seals it"
    world.settle()


def test_two_collectors_do_not_disturb_each_other(world: World) -> None:
    first, second = world.process("gc"), world.process("gc 2")
    world.delete(first, world.old)
    world.acknowledge_all()
    one, two = collect(world, first), collect(world, second)
    one.through("Seals.finalise")
    world.acknowledge_all()
    one.before("store.delete")
    world.run(two)
    world.run(one)
    world.settle()
