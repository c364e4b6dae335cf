"""The protocol of docs/protocol.md on the real code: sealing, reading, cloning, deleting and collecting, interleaved
step by step.

First the traces by which plausible shortcuts lose data (named as in the search that found them, F1 to F13; F6 is
about rewriting packs, which does not exist): driven along the same path, the real code refuses, does it again or
survives. Then every interleaving with at most two switches, and random ones with deaths.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from imagefs.catalog import PackState
from imagefs.errors import Busy, InvalidValue, NotFound, SealBlocked, SealCancelled, Sealed
from imagefs.images.session import lock_path
from imagefs.types import Status
from tests.model.stepping import Actor, atomic
from tests.model.world import USER, Process, World, name16, refused


@pytest.fixture
def world() -> Iterator[World]:
    # In memory: what is tested here is order, and a commit on a disk takes ten times as long.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="imagefs-", dir=memory if memory.is_dir() else None) as directory:
        world = World(Path(directory) / "repository")
        world.begin()
        yield world
        world.close()


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


class TestTraces:
    def test_f1_a_pack_that_went_away_is_stored_again(self, world: World) -> None:
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

    def test_f1_a_pack_that_is_forgotten_is_stored_again(self, world: World) -> None:
        """The same, when the collector is done with it before the commit looks."""
        writer, gc = world.process("writer"), world.process("gc")
        w = seal(world, writer)
        w.before("store.put maps/")
        world.run(gc.acts(lambda: world.sweep(gc, world.old)))
        world.run(w)
        assert world.catalog.images.get(world.new).status == Status.ACTIVE
        world.settle()

    @pytest.mark.parametrize("stop", ["reserve", "put pack"])
    def test_f1_a_pack_that_is_forgotten_early_is_stored_again(self, world: World, stop: str) -> None:
        writer, gc = world.process("writer"), world.process("gc")
        w = seal(world, writer)
        STOPS[stop](w)
        world.run(gc.acts(lambda: world.sweep(gc, world.old)))
        world.run(w)
        assert world.catalog.images.get(world.new).status == Status.ACTIVE
        world.settle()

    def test_f1c_a_pack_in_the_trash_is_not_offered(self, world: World) -> None:
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

    def test_f2_a_commit_between_plan_and_doom_keeps_the_pack(self, world: World) -> None:
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

    def test_f2b_a_commit_after_the_delete_is_refused(self, world: World) -> None:
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

    def test_f3_a_late_delete_meets_no_new_object(self, world: World) -> None:
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

    def test_f3b_names_are_not_put_again_after_a_failure(self, world: World) -> None:
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

    def test_f4_nothing_goes_before_every_reader_knows(self, world: World) -> None:
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

    def test_f4b_the_map_of_a_deleted_image_stays_until_then(self, world: World) -> None:
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

    def test_f5_a_deleted_image_that_is_open_is_held(self, world: World) -> None:
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

    def test_f7_a_killed_worker_is_no_dead_session(self, world: World) -> None:
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

    def test_f8_a_clone_of_what_went_meanwhile_is_refused(self, world: World) -> None:
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

    def test_f9_names_are_in_the_table_before_anything_is_put(self, world: World) -> None:
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

    def test_f10_a_writer_that_dies_after_its_commit_lost_nothing(self, world: World) -> None:
        """W.pin > W.commit: maps what is not stored."""
        writer = world.process("writer")
        w = seal(world, writer)
        w.through("Seals.commit")
        world.check()
        writer.die()
        assert world.catalog.images.get(world.new).status == Status.ACTIVE
        world.settle()

    def test_f11_nobody_is_dead_because_time_has_passed(self, world: World) -> None:
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
    def test_f12_who_lost_the_session_commits_nothing(self, world: World, stop: str) -> None:
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
    def test_f13_a_put_in_flight_when_the_draft_ends(self, world: World, stop: str) -> None:
        """W.pin > ... > G.doom N0 > G.delete N0 > late put lands > G.forget N0: stored and in no table."""
        writer, gc = world.process("writer"), world.process("gc")
        w = seal(world, writer)
        STOPS[stop](w)
        world.run(gc.acts(lambda: world.sweep(gc, world.new)))
        with pytest.raises(SealCancelled):
            world.run(w)
        world.settle()

    def test_a_draft_that_is_gone_reserves_nothing_more(self, world: World) -> None:
        """W.claim > D.unlink > G.finalise > W.reserve: rows that belong to no image, for ever."""
        writer, gc = world.process("writer"), world.process("gc")
        w = seal(world, writer)
        STOPS["reserve"](w)
        world.run(gc.acts(lambda: world.sweep(gc, world.new)))
        with refused(SealCancelled, NotFound):
            world.run(w)
        world.settle()

    def test_a_hold_that_comes_after_the_close_does_not_stay(self, world: World) -> None:
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

    def test_who_comes_second_to_seal_finds_it_sealed(self, world: World) -> None:
        """Both ask for the same: `imagefs seal` while the mount seals by itself."""
        first, second = world.process("first"), world.process("second")
        late = second.acts(lambda: second.images.sealer.seal(world.new), fine=True)
        late.through("Images")  # it has seen the draft
        world.run(seal(world, first))
        with refused(Busy, SealBlocked):
            world.run(late)
        world.settle()

    @pytest.mark.parametrize("stop", ["reserve", "put pack", "put manifest", "commit"])
    def test_two_threads_of_one_process_seal_the_same_draft(self, world: World, stop: str) -> None:
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

    def test_two_collectors_do_not_disturb_each_other(self, world: World) -> None:
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


# -- every interleaving with at most two switches ---------------------------------------------------------------


def _seal(world: World) -> Callable[[Process], object]:
    return lambda process: process.images.sealer.seal(world.new)


def _seal_if_it_lasts(world: World) -> Callable[[Process], object]:
    """Where another role takes the draft away."""

    def body(process: Process) -> None:
        with refused(SealCancelled, SealBlocked, NotFound, Busy, InvalidValue):
            process.images.sealer.seal(world.new)

    return body


def _reopen(world: World) -> Callable[[Process], object]:
    """Opens the draft for writing, changes nothing, closes it: cancels a seal that is under way."""

    def body(process: Process) -> None:
        fh = process.files.new_fh()
        with refused(NotFound, Busy, Sealed):
            image = process.images.get(world.new)
            if image.status == Status.SAVING:
                process.files.open(image.data_ino, os.O_RDWR, USER, fh)
                process.files.release(fh)

    return body


ROLES: dict[str, Callable[[World], Callable[[Process], object]]] = {
    "seal": _seal,
    "try": _seal_if_it_lasts,
    "reopen": _reopen,
    "read": lambda world: lambda process: world.read(process, world.old),
    "clone": lambda world: lambda process: world.clone(process, world.old),
    "delete": lambda world: lambda process: world.sweep(process, world.old),
    "drop": lambda world: lambda process: world.sweep(process, world.new),
    "collect": lambda world: lambda process: world.sweep(process, None),
}
TOGETHER = [
    ("seal", "read", "clone", "delete"),
    ("seal", "delete", "collect"),
    ("try", "drop", "collect"),
    ("try", "reopen", "delete"),
]
"""Roles that meet in one run."""


def lengths(world: World, roles: tuple[str, ...]) -> dict[str, int]:
    """Steps that each takes alone."""
    found = {}
    for role in roles:
        process = world.process(role)
        actor = process.acts(lambda role=role, process=process: ROLES[role](world)(process))
        world.run(actor)
        found[role] = len(actor.trail)
        world.settle()
        world.begin()
    return found


def schedules(steps: dict[str, int]) -> list[tuple[tuple[str, int], ...]]:
    """(role, steps) one after another: two switches, then whoever is left goes to its end in a fixed order."""
    found: list[tuple[tuple[str, int], ...]] = []
    for a, b, c in product(steps, repeat=3):
        if b not in (a, c):
            for i, j in product(range(steps[a] + 1), range(1, steps[b] + 1)):
                found.append(((a, i), (b, j), (c, 1 << 30)))
    return found


def play(world: World, roles: tuple[str, ...], schedule: tuple[tuple[str, int], ...]) -> Counter[str]:
    """One run; returns what happened in it."""
    actors = {}
    for role in roles:
        process = world.process(role)
        actors[role] = process.acts(lambda role=role, process=process: ROLES[role](world)(process))
    try:
        for role, steps in schedule:
            for _ in range(steps):
                if not actors[role].step():
                    break
                world.check()
        world.run(*actors.values())
        world.settle()
    except Exception as error:
        error.add_note(f"schedule: {schedule}")
        for role, actor in actors.items():
            error.add_note(f"{role}: {' > '.join(actor.trail)}")
        raise
    events: Counter[str] = Counter()
    for actor in actors.values():
        events.update({step.partition(" ")[0] for step in actor.trail})
        events["redone"] += actor.trail.count("Seals.commit") > 1
        events["released"] += "OpenFiles._leave" in actor.trail or "Sessions.release_hold" in actor.trail
    return events


def enumerate_switches(world: World, roles: tuple[str, ...], every: int) -> None:
    planned = schedules(lengths(world, roles))
    events: Counter[str] = Counter()
    for schedule in planned[len(planned) % every :: every]:
        events += play(world, roles, schedule)
        world.begin()
    world.settle()
    wanted = {"Seals.commit", "Images.unlink", "Seals.finalise", "Packs.doom", "store.delete", "Packs.forget"}
    wanted |= {"redone"} if "delete" in roles else set()
    wanted |= {"released"} if "read" in roles else set()
    assert {event for event in wanted if not events[event]} == set(), events


@pytest.mark.timeout(120)
@pytest.mark.parametrize("roles", TOGETHER, ids="-".join)
def test_some_interleavings_with_two_switches(world: World, roles: tuple[str, ...]) -> None:
    enumerate_switches(world, roles, 13)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("roles", TOGETHER, ids="-".join)
def test_every_interleaving_with_two_switches(world: World, roles: tuple[str, ...]) -> None:
    enumerate_switches(world, roles, 1)


# -- random interleavings, with deaths --------------------------------------------------------------------------------


class Chaos:
    """One random run: everybody at once, every transaction a step, some die, some are followed by another."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.random = random.Random(seed)
        self.events: Counter[str] = Counter()
        self.over = False
        self.actors: dict[Actor, Process] = {}
        self.speeds: dict[Actor, float] = {}
        """Some are a thousand times slower than others: only then much happens between two steps of one."""
        for role in self._roles():
            self._add(world.process(role.__name__.strip("_")), role)

    def _roles(self) -> Iterator[Callable[[Process], object]]:
        yield _seal_if_it_lasts(self.world)
        yield self._deleting_old
        yield self._keeping_open if self.random.random() < 0.4 else ROLES["read"](self.world)
        others = (
            (_seal_if_it_lasts(self.world), 0.3), (self._cloning, 0.3), (self._deleting_new, 0.2),
            (_reopen(self.world), 0.2), (self._collecting, 0.3),
        )  # fmt: skip
        for role, probability in others:
            if self.random.random() < probability:
                yield role

    def _add(self, process: Process, body: Callable[[Process], object]) -> None:
        fine = self.random.random() < 0.5
        actor = process.acts(lambda: body(process), fine=fine)
        tail = Actor(f"tail of {process.name}", lambda: self._following(process), fine=fine)
        process.actors.append(tail)
        self.actors |= {actor: process, tail: process}
        self.speeds |= {actor: 10 ** self.random.uniform(-3, 0), tail: 10 ** self.random.uniform(-1, 0)}

    def _following(self, process: Process) -> None:
        while not self.over:
            with atomic("idle"):
                pass
            process.acknowledge()

    def _collecting(self, process: Process) -> None:
        for _ in range(6):
            self.world.collect(process)

    def _deleting_old(self, process: Process) -> None:
        self.world.delete(process, self.world.old)
        self._collecting(process)

    def _deleting_new(self, process: Process) -> None:
        self.world.delete(process, self.world.new)

    def _cloning(self, process: Process) -> None:
        self.world.clone(process, self.world.old)

    def _keeping_open(self, process: Process) -> None:
        with refused(NotFound):
            ino = self.world.catalog.images.get(self.world.old).data_ino
            process.files.open(ino, os.O_RDONLY, USER, process.files.new_fh())
        self._going_on(process)

    def _going_on(self, process: Process) -> None:
        """What programs do with the files that they have open: read for a long time, then close."""
        for fh, handle in list(process.files._handles.items()):
            for _ in range(0 if handle.writable else 4):
                assert handle.pread(0, 1 << 20) == self.world.contents[self.world.old]
                self.events["kept open"] += 1
            process.files.release(fh)

    def run(self) -> Counter[str]:
        running = [actor for actor in self.actors if not actor.name.startswith("tail")]
        actor = running[0]
        while any(not actor.finished for actor in running):
            if actor.finished or self.random.random() < 0.4:
                ready = [actor for actor in self.actors if self._has_to_do(actor)]
                (actor,) = self.random.choices(ready, [self.speeds[actor] for actor in ready])
            if actor.step():
                self.world.check()
            if self.random.random() < 0.01:
                self._death(running)
        self.over = True
        for actor in self.actors:
            actor.finish()
            self._count(actor)
        self.world.settle()
        return self.events

    def _has_to_do(self, actor: Actor) -> bool:
        if actor.next == "idle":
            return self.actors[actor].tail._acked < self.world.catalog.generation()
        return not actor.finished

    def _death(self, running: list[Actor]) -> None:
        """A worker that has files open is followed by another half of the time, all else dies for good."""
        process = self.random.choice([*self.actors.values()])
        if not process.alive:
            return
        if process.files._handles and self.random.random() < 0.5:
            self.events["take over"] += 1
            process.kill_worker()
            self.world.check()
            process.take_over()
            self._add(process, self._going_on)
            running.append(list(self.actors)[-2])
        elif self.random.random() < 0.3:
            self.events["death"] += 1
            process.die()

    def _count(self, actor: Actor) -> None:
        self.events["redone"] += actor.trail.count("Seals.commit") > 1
        self.events["released"] += "Sessions.release_hold" in actor.trail
        self.events["reaped"] += "Sessions.end" in actor.trail
        self.events["cancelled"] += "Seals.abandon" in actor.trail
        self.events["cloned"] += "Seals.clone" in actor.trail
        self.events["collected"] += any(step.startswith("store.delete packs/") for step in actor.trail)


def wander(world: World, seeds: range) -> None:
    events: Counter[str] = Counter()
    for seed in seeds:
        chaos = Chaos(world, seed)
        try:
            events += chaos.run()
        except Exception as error:
            error.add_note(f"seed: {seed}")
            for actor in chaos.actors:
                error.add_note(f"{actor.name}: {' > '.join(actor.trail)}")
            raise
        world.begin()
    world.settle()
    wanted = (
        "redone",
        "released",
        "reaped",
        "cancelled",
        "cloned",
        "collected",
        "death",
        "take over",
        "kept open",
    )
    assert not {event for event in wanted if events[event] < len(seeds) // 100}, events


@pytest.mark.timeout(120)
def test_random_interleavings(world: World) -> None:
    wander(world, range(200))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_random_interleavings(world: World) -> None:
    wander(world, range(1000, int(os.environ.get("IMAGEFS_INTERLEAVINGS", "20000")) + 1000))
