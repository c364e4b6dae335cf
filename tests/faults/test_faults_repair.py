"""Everything that fsck can find, broken on purpose: `fsck --repair` puts right what can be, and says so."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from imagefs.catalog import Damage, parts, records, schema
from imagefs.catalog.schema import SubDb
from imagefs.images import fsck
from imagefs.images.repair import repair
from imagefs.images.session import Session
from imagefs.types import Image, Status
from tests.content import noise
from tests.repositories import Opened, opened


@pytest.fixture
def it(repo_dir: Path) -> Iterator[Opened]:
    with opened(repo_dir) as it:
        image = it.sealed("image", noise(100_000, 1))
        it.images.clone(image.id, "clone", tags=("a", "b"))
        it.draft("draft", noise(100_000, 2))
        it.images.create("queued")
        it.sealed("other", noise(50_000, 3))
        assert not fsck.check(it.repo)
        yield it


def named(it: Opened, name: str) -> Image:
    (image_id,) = it.repo.catalog.images.named(name)
    return it.images.get(image_id)


def put(it: Opened, table: SubDb, key: bytes, value: bytes = b"") -> None:
    env = it.repo.catalog.env
    with env.write() as txn:
        txn.put(key, value, db=env.table(table.name))


def delete_first(it: Opened, table: SubDb) -> None:
    env = it.repo.catalog.env
    with env.write() as txn:
        cursor = txn.cursor(db=env.table(table.name))
        assert cursor.first()
        cursor.delete()


def set_record(it: Opened, image: Image) -> None:
    put(it, schema.IMAGES, image.id.bytes, records.encode(image))


def change_map(it: Opened) -> None:
    info = it.repo.catalog.maps.info(named(it, "image").map_id)
    value = schema.MAP.pack(7, info.size, info.kind, info.uuid.bytes)
    put(it, schema.MAPS, schema.U64.pack(named(it, "image").map_id), value)


def extra_map(it: Opened) -> None:
    uuid = uuid4()
    put(it, schema.MAPS, schema.U64.pack(99), schema.MAP.pack(1, 4096, 0, uuid.bytes))
    put(it, schema.MAP_UUID, uuid.bytes, schema.U64.pack(99))


def wrong_refs(it: Opened) -> None:
    packs = it.repo.catalog.packs
    row = next(row for row in packs.scan() if row.refs)
    with it.repo.catalog.transaction():
        packs.correct(row, refs=5, state=row.state)


def same_entry(it: Opened) -> None:
    set_record(it, replace(named(it, "clone"), entry=b"image"))


def same_inode(it: Opened) -> None:
    set_record(it, replace(named(it, "clone"), data_ino=named(it, "image").data_ino))


def dead_sealer(it: Opened) -> None:
    draft = named(it, "draft")
    assert draft.draft is not None
    set_record(it, replace(draft, draft=replace(draft.draft, sealer=uuid4())))


def not_listed_as_deleted(it: Opened) -> None:
    it.images.delete(named(it, "queued").id)
    delete_first(it, schema.UNLINKED)


def orphan_sibling(it: Opened) -> None:
    record = replace(named(it, "draft"), id=uuid4(), data_ino=it.repo.catalog.images.new_ino(), name=None, entry=None)
    put(it, schema.SIBLING, record.id.bytes + b"x.tmp", records.encode(record))


def uncounted_base(it: Opened) -> None:
    draft = named(it, "draft")
    key = parts.owner(draft.id, draft.draft_gen) + schema.U64.pack(5)
    put(it, schema.BASE, key, b"".join(map(schema.U64.pack, (1, named(it, "image").map_id, 0))))


CATALOG: dict[str, Callable[[Opened], object]] = {
    "an index row is missing": lambda it: delete_first(it, schema.I_TAG),
    "an index row too many": lambda it: put(it, schema.I_NAME, schema.text("x") + schema.tail(1, uuid4())),
    "an entry is missing": lambda it: delete_first(it, schema.ENTRY),
    "an entry of nobody": lambda it: put(it, schema.ENTRY, b"nobody", uuid4().bytes),
    "two images with one entry": same_entry,
    "an inode is missing": lambda it: delete_first(it, schema.BY_INO),
    "two images with one inode": same_inode,
    "the next inode is too low": lambda it: it.repo.catalog.counters.set("ino", 65),
    "a map counts wrong": change_map,
    "a map of nobody": extra_map,
    "a map's name is missing": lambda it: delete_first(it, schema.MAP_UUID),
    "a draft's base that is not counted": uncounted_base,
    "rows of no map": lambda it: it.repo.catalog.maps.put_rows(98, [*it.repo.catalog.maps.rows(1)]),
    "a pack counts wrong": wrong_refs,
    "a pack's name is missing": lambda it: delete_first(it, schema.PACK_NAME),
    "trash that is none": lambda it: put(it, schema.TRASH, schema.GEN_NO.pack(1, 1)),
    "frames of no pack": lambda it: put(it, schema.FRAMES, schema.U32.pack(999), bytes(24)),
    "damage of no pack": lambda it: put(it, schema.DAMAGE, schema.U32.pack(999), b"{}"),
    "names reserved for nobody": lambda it: it.repo.catalog.packs.reserve(uuid4(), count=3),
    "a deleted image that is not listed": not_listed_as_deleted,
    "an image listed as deleted": lambda it: put(it, schema.UNLINKED, schema.U64.pack(1) + named(it, "image").id.bytes),
    "a sealer that is nobody": dead_sealer,
    "a hold of nobody": lambda it: put(it, schema.HOLDS, b"i" + uuid4().bytes + uuid4().bytes),
    "a generation of the future": lambda it: it.repo.catalog.counters.set("flushed", 10_000),
    "a sibling of no image": orphan_sibling,
}


@pytest.mark.parametrize("what", CATALOG)
def test_tables_are_made_right_from_others(it: Opened, what: str) -> None:
    before = {name: it.read(named(it, name).id) for name in ("image", "clone", "other", "draft")}
    CATALOG[what](it)
    assert fsck.check(it.repo)
    result = repair(it.repo)
    assert result.left == []
    assert result.done
    assert not fsck.check(it.repo)
    assert {name: it.read(named(it, name).id) for name in before} == before
    it.delete_all()
    assert it.objects() == []


def change(path: Path, at: int = -70) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)


def object_of(it: Opened, prefix: str) -> str:
    return next(iter(it.inner.list(prefix)))


def damage_object(it: Opened, prefix: str) -> None:
    change(it.path_of(object_of(it, prefix)))
    it.inner.close()


def dead_session(it: Opened) -> None:
    dead = Session(it.repo.path / "sessions", it.repo.catalog, "mount")
    it.repo.catalog.seals.claim(named(it, "draft").id, dead.id, 0)
    os.close(dead._lock_fd)


def wrong_frames(it: Opened) -> None:
    no = min(it.repo.catalog.maps.packs_of(named(it, "image").map_id))
    put(it, schema.FRAMES, schema.U32.pack(no), bytes(len(it.repo.catalog.packs.frames(no))))


def missing_in_trash(it: Opened) -> None:
    it.repo.catalog.sessions.ack(it.repo.session.id, it.repo.catalog.generation())
    other = named(it, "other")
    it.images.delete(other.id)
    it.repo.catalog.sessions.ack(it.repo.session.id, it.repo.catalog.generation())
    it.repo.catalog.seals.finalise(other.id)
    it.repo.staging.remove(other.id, 1)
    (row,) = [row for row in it.repo.catalog.packs.trash() if row.blocks]
    it.inner.delete(row.object_name)


STORE: dict[str, Callable[[Opened], object]] = {
    "a pack in no table": lambda it: it.inner.put("packs/ab/ab" + "0" * 30, b"whatever"),
    "a manifest in no table": lambda it: it.inner.put(f"maps/{uuid4()}", b"whatever"),
    "a manifest is missing": lambda it: it.inner.delete(object_of(it, "maps/")),
    "a manifest is damaged": lambda it: damage_object(it, "maps/"),
    "a footer is damaged": lambda it: damage_object(it, "packs/"),
    "a log object is damaged": lambda it: damage_object(it, "log/"),
    "the sealer is dead": dead_session,
    "a frame table is wrong": wrong_frames,
    "a frame table is lost": lambda it: delete_first(it, schema.FRAMES),
    "trash is missing": missing_in_trash,
}


@pytest.mark.parametrize("what", STORE)
def test_objects_are_made_right(it: Opened, what: str) -> None:
    before = {name: it.read(named(it, name).id) for name in ("image", "clone", "draft")}
    STORE[what](it)
    assert fsck.check(it.repo)
    result = repair(it.repo)
    assert result.left == []
    assert result.done or what == "trash is missing"
    assert {name: it.read(named(it, name).id) for name in before} == before
    it.delete_all()
    assert it.objects() == []


def test_a_draft_whose_file_is_lost(it: Opened) -> None:
    draft = named(it, "draft")
    it.repo.staging.remove(draft.id, 1)
    result = repair(it.repo)
    assert result.left == []
    assert it.images.get(draft.id).status == Status.QUEUED
    assert str(draft.id) in result.done[0][1]


@pytest.mark.expect_log("stay where they are|missing|do not match|log")
def test_what_cannot_be_put_right_is_left_and_named(it: Opened) -> None:
    image = named(it, "image")
    it.repo.staging.remove(image.id, 1)
    (name,) = it.objects_of(image)
    it.inner.delete(name)
    result = repair(it.repo)
    assert {finding.rule for finding in result.left} == {"objects_are_there", "known_damage"}
    assert any(str(image.id) in finding.message for finding in result.left)
    assert it.repo.catalog.scrubs.damaged() == [
        Damage(result_no, found, missing=True)
        for result_no, found in [(one.no, one.found_ns) for one in it.repo.catalog.scrubs.damaged()]
    ]
    assert it.read(named(it, "other").id) == noise(50_000, 3)
