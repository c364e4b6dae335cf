"""The protocol of docs/protocol.md on the real code: sealing, reading, cloning, deleting and collecting, interleaved.

Every interleaving with at most two switches from one role to another, one transaction or one call of the store
being a step; and random ones, in which each process follows the log by itself, some die and some are followed by
another. test_protocol_traces.py has the paths that are known to be dangerous.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product

import pytest

from imagefs.errors import Busy, InvalidValue, NotFound, SealBlocked, SealCancelled, Sealed
from imagefs.types import Status
from tests.model.stepping import Actor, atomic
from tests.model.world import USER, Process, World, refused


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


def played(world: World, roles: tuple[str, ...], every: int) -> Counter[str]:
    """What happened in one of `every` schedules of these roles with at most two switches."""
    planned = schedules(lengths(world, roles))
    events: Counter[str] = Counter()
    for schedule in planned[len(planned) % every :: every]:
        events += play(world, roles, schedule)
        world.begin()
    world.settle()
    return events


def enumerate_switches(world: World, roles: tuple[str, ...], every: int) -> None:
    events = played(world, roles, every)
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
            (_reopen(self.world), 0.2), (self._collecting, 0.3), (self._moving, 0.3), (self._bringing_back, 0.2),
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

    def _moving(self, process: Process) -> None:
        for _ in range(3):
            self.world.compact(process)

    def _bringing_back(self, process: Process) -> None:
        for _ in range(10):
            if self.world.undelete(process, self.world.old):
                self.events["brought back"] += 1
                return

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
        self.events["moved"] += "Moves.commit" in actor.trail
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
        "moved",
        "brought back",
    )
    assert not {event for event in wanted if events[event] < len(seeds) // 100}, events


@pytest.mark.timeout(120)
def test_random_interleavings(world: World) -> None:
    wander(world, range(200))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_random_interleavings(world: World) -> None:
    wander(world, range(1000, int(os.environ.get("IMAGEFS_INTERLEAVINGS", "20000")) + 1000))
