"""Moving blocks and bringing images back, at each step of whatever else goes on; and the traces F6 and F6b.

The roles and the runs are those of test_protocol.py. Every pack counts as sparse here, so that a rewrite moves all
that any image has.
"""

from __future__ import annotations

import os

import pytest

from imagefs.catalog import PackKind, PackState
from imagefs.types import Status
from tests.model import test_protocol
from tests.model.stepping import Actor
from tests.model.test_protocol import played
from tests.model.world import USER, Process, World

ROLES = test_protocol.ROLES | {
    "rewrite": lambda world: world.compact,
    "second": lambda world: world.compact,
    "undelete": lambda world: lambda process: world.undelete(process, world.old),
    "keep": lambda world: lambda process: world.read(process, world.old, times=4),
}
TOGETHER = [
    ("seal", "rewrite", "collect"),
    ("seal", "rewrite", "delete"),
    ("rewrite", "read", "collect"),
    ("rewrite", "clone", "delete"),
    ("rewrite", "second", "read"),
    ("try", "drop", "rewrite"),
    ("undelete", "delete", "read"),
    ("undelete", "delete", "rewrite"),
]


@pytest.fixture(autouse=True)
def more_roles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_protocol, "ROLES", ROLES)


def enumerate_switches(world: World, roles: tuple[str, ...], every: int) -> None:
    events = played(world, roles, every)
    wanted = {"Moves.commit"} if "rewrite" in roles else {"Images.undelete"}
    wanted |= {"store.delete"} if {"delete", "collect"} & set(roles) else set()
    assert {event for event in wanted if not events[event]} == set(), events


@pytest.mark.timeout(120)
@pytest.mark.parametrize("roles", TOGETHER, ids="-".join)
def test_some_interleavings_with_two_switches(world: World, roles: tuple[str, ...]) -> None:
    enumerate_switches(world, roles, 17)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("roles", TOGETHER, ids="-".join)
def test_every_interleaving_with_two_switches(world: World, roles: tuple[str, ...]) -> None:
    enumerate_switches(world, roles, 1)


# -- traces ----------------------------------------------------------------------------------------------


def moving(world: World, process: Process) -> Actor:
    return process.acts(lambda: world.compact(process))


def packs_of(world: World) -> set[str]:
    image = world.catalog.images.get(world.old)
    return {world.catalog.packs.get(no).object_name for no in world.catalog.maps.packs_of(image.map_id)}


def test_f6_a_reader_that_looked_before_the_move_looks_again(world: World) -> None:
    """R.open > R.look > W.put > W.commit > G.doom P0 > G.delete P0 > R.EIO."""
    reader, gc = world.process("reader"), world.process("gc")
    (old,) = packs_of(world)
    r = reader.acts(lambda: world.read(reader, world.old))
    r.before("store.get packs/")
    world.run(moving(world, gc))
    world.sweep(gc, None)
    assert old not in world.store.list("packs/")
    world.run(r)
    world.settle()


def test_f6b_nothing_is_deleted_before_every_session_knows(world: World) -> None:
    reader, gc = world.process("reader"), world.process("gc")
    (old,) = packs_of(world)
    world.run(moving(world, gc))
    assert packs_of(world).isdisjoint({old})
    for _ in range(3):
        gc.acknowledge()
        world.collect(gc)
    assert old in world.store.list("packs/"), "the reader's session has not acknowledged"
    reader.acknowledge()
    world.sweep(gc, None)
    assert old not in world.store.list("packs/")
    world.settle()


def test_a_read_survives_two_moves(world: World) -> None:
    """Looked up, moved and deleted; looked up again, moved and deleted again."""
    reader, gc = world.process("reader"), world.process("gc")
    r = reader.acts(lambda: world.read(reader, world.old, times=1))
    for _ in range(2):
        r.before("store.get packs/")
        world.run(moving(world, gc))
        world.sweep(gc, None)
        r.step()
    world.run(r)
    world.settle()


def test_a_seal_that_hit_the_old_pack_stores_its_blocks_itself(world: World) -> None:
    writer, gc = world.process("writer"), world.process("gc")
    w = writer.acts(lambda: writer.images.sealer.seal(world.new))
    w.before("Seals.commit")
    world.run(moving(world, gc))
    world.sweep(gc, None)
    world.run(w)
    assert w.trail.count("Seals.commit") == 2, "the first one must be refused"
    assert world.catalog.images.get(world.new).status == Status.ACTIVE
    world.settle()


def test_a_seal_between_plan_and_move_keeps_the_old_pack(world: World) -> None:
    """The mover does not know the new map: its pack stays, until the next plan."""
    writer, gc = world.process("writer"), world.process("gc")
    (old,) = packs_of(world)
    m = moving(world, gc)
    m.before("Moves.commit")
    world.run(writer.acts(lambda: writer.images.sealer.seal(world.new)))
    world.run(m)
    world.sweep(gc, None)
    assert old in world.store.list("packs/")
    world.run(moving(world, gc))
    world.sweep(gc, None)
    assert old not in world.store.list("packs/")
    world.settle()


@pytest.mark.parametrize("stop", ["store.put", "Moves.commit", "Packs.unreserve"])
def test_a_mover_that_dies_leaves_nothing(world: World, stop: str) -> None:
    mover, gc = world.process("mover"), world.process("gc")
    m = moving(world, mover)
    m.before(stop)
    mover.die()
    world.check()
    world.sweep(gc, None)
    left = [row for row in world.catalog.packs.scan() if row.kind == PackKind.PACK and row.owner == mover.session.id]
    assert all(row.state == PackState.LIVE for row in left)
    assert len(left) == (stop == "Packs.unreserve")
    world.settle()


def test_a_worker_that_follows_clears_what_the_mover_left(world: World) -> None:
    process, gc = world.process("mount"), world.process("gc")
    m = moving(world, process)
    m.through("store.put")
    process.kill_worker()
    process.take_over()
    world.sweep(gc, None)
    assert not [row for row in world.catalog.packs.scan() if row.owner == process.session.id]
    world.settle()


def test_an_image_that_comes_back_while_it_is_ended(world: World) -> None:
    """Whichever transaction is first wins, and the other one is refused."""
    user, gc = world.process("user"), world.process("gc")
    world.delete(user, world.old)
    world.acknowledge_all()
    g = gc.acts(lambda: world.collect(gc))
    g.before("Seals.finalise")
    assert world.undelete(user, world.old)
    world.run(g)
    assert world.read(user, world.old)
    world.delete(user, world.old)
    world.acknowledge_all()
    g = gc.acts(lambda: world.collect(gc))
    g.through("Seals.finalise")
    assert world.undelete(user, world.old) is None
    world.run(g)
    world.settle()


def test_a_changed_copy_is_sealed_while_the_blocks_it_keeps_are_moved(world: World) -> None:
    """The draft has only what was written: what it keeps must be found where it is now."""
    writer, gc = world.process("writer"), world.process("gc")
    source = world.contents[world.old]
    copy = writer.images.create("copy", draft=True)
    handle = writer.files.open(copy.data_ino, os.O_RDWR, USER, writer.files.new_fh(), fresh=True)
    reading = writer.files.open(world.catalog.images.get(world.old).data_ino, os.O_RDONLY, USER, writer.files.new_fh())
    assert handle.copy_range(reading, 0, 0, len(source)) == len(source)
    handle.pwrite(len(source), memoryview(b"changed"))
    writer.files.release(reading.fh)
    writer.files.release(handle.fh)
    world.contents[copy.id] = source + b"changed"
    w = writer.acts(lambda: writer.images.sealer.seal(copy.id))
    w.before("Seals.commit")
    world.run(moving(world, gc))
    world.sweep(gc, None)
    world.run(w)
    assert world.read(gc, copy.id)
    world.settle()
