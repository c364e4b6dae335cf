"""The trash: what is deleted can be brought back until its time is over or the disk needs the room."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import click
import pytest
from click.testing import CliRunner, Result

from imagefs.catalog import PackState
from imagefs.cli.app import cli
from imagefs.cli.trash import complete_deleted, undelete_command
from imagefs.config import Config
from imagefs.errors import Ambiguous, InvalidValue, NotFound
from imagefs.images import fsck
from imagefs.images.gc import Collector
from imagefs.images.tail import LogTail
from imagefs.images.trash import Trash
from imagefs.types import BLOCK, Image, Status
from tests.content import KIB, noise
from tests.repositories import USER, Opened

HOUR_NS = 3600 * 10**9
CONFIG = Config(sampling=1, frame_cache_bytes=0, retention_seconds=3600)


@pytest.fixture
def it(repo_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    # The disk that tests run on may be nearly full.
    monkeypatch.setattr(Trash, "pressure", lambda self: 0)
    opened = Opened(repo_dir, CONFIG)
    opened.collector = Collector(opened.repo)
    yield opened
    opened.close()


@pytest.fixture
def trash(it: Opened) -> Trash:
    return Trash(it.repo, 3600)


def stays(it: Opened, image: Image) -> bool:
    """Whether a round of gc leaves a deleted image and all its objects."""
    before = it.objects()
    it.collect()
    return it.objects() == before and image.id in [found for _, found in it.repo.catalog.images.unlinked()]


def later(it: Opened, ns: int) -> None:
    """Collects as if that much time had passed."""
    for _ in range(3):
        it.repo.catalog.sessions.ack(it.repo.session.id, it.repo.catalog.generation())
        it.collector.execute(it.collector.plan(now_ns=time.time_ns() + ns))


def test_a_deleted_image_comes_back_as_it_was(it: Opened, trash: Trash) -> None:
    content = noise(100 * KIB, 1)
    image = it.sealed("debian", content)
    it.images.set_fields(image.id, {"tags": ("a", "b"), "properties": {"os": "debian"}})
    image = it.images.get(image.id)
    it.images.delete(image.id)
    assert stays(it, image)
    (found,) = trash.deleted()
    assert (found.image.id, found.image.name) == (image.id, "debian")
    assert found.until_ns - found.deleted_ns == HOUR_NS
    assert abs(found.deleted_ns - time.time_ns()) < 60 * 10**9
    back = trash.undelete(trash.find("debian"))
    times = {"updated_at": back.updated_at, "ctime": back.ctime}
    assert back == replace(image, **times)  # type: ignore[arg-type]
    assert it.repo.catalog.images.by_entry(b"debian") == image.id
    assert it.read(image.id) == content
    assert not trash.deleted()
    it.collect()
    assert not fsck.check(it.repo)
    it.delete_all()
    later(it, 2 * HOUR_NS)
    assert not it.objects()


def test_its_name_may_be_taken_meanwhile(it: Opened, trash: Trash) -> None:
    first = it.sealed("name", noise(BLOCK, 1))
    it.images.delete(first.id)
    second = it.sealed("name", noise(BLOCK, 2))
    back = trash.undelete(trash.find("name"))
    assert back.entry == f"name~{first.id.hex[:8]}".encode()
    assert it.images.get(second.id).entry == b"name"


def test_an_image_that_was_replaced_by_a_rename_comes_back(it: Opened, trash: Trash) -> None:
    victim, image = it.sealed("b", noise(BLOCK, 1)), it.sealed("a", noise(BLOCK, 2))
    it.images.rename(image.id, b"b")
    assert it.read(trash.undelete(trash.find(str(victim.id))).id) == noise(BLOCK, 1)


@pytest.mark.parametrize("status", [Status.DEACTIVATED, Status.PENDING_DELETE])
def test_other_states(it: Opened, trash: Trash, status: Status) -> None:
    """A deactivated one stays so; one whose data was unlinked has it again, before gc has ended it and after."""
    image = it.sealed("x", noise(BLOCK, 1))
    it.images.update(image.id, lambda now: replace(now, status=status))
    if status == Status.PENDING_DELETE:
        back = trash.undelete(trash.find("x"))
        assert (back.status, back.entry) == (Status.ACTIVE, b"x")
        it.images.unlink_data(image.id)
        it.collect()
    else:
        it.images.delete(image.id)
    back = trash.undelete(trash.find("x"))
    assert back.status == (Status.ACTIVE if status == Status.PENDING_DELETE else status)
    assert not fsck.check(it.repo)


def test_what_has_no_sealed_data_goes_at_once(it: Opened, trash: Trash) -> None:
    draft = it.draft("draft", noise(BLOCK, 1))
    queued = it.images.create("queued").id
    for image_id in (draft, queued):
        it.images.delete(image_id)
    assert not trash.deleted()
    with pytest.raises(InvalidValue):
        it.repo.catalog.images.undelete(draft)
    it.collect()
    assert not it.repo.catalog.images.unlinked()
    assert not list(it.repo.staging.files())


def test_which_one_is_meant(it: Opened, trash: Trash) -> None:
    ids = [it.sealed("twice", noise(BLOCK, number)).id for number in range(2)]
    with pytest.raises(NotFound):
        trash.find("twice")
    for image_id in ids:
        it.images.delete(image_id)
    with pytest.raises(Ambiguous, match=str(ids[0])):
        trash.find("twice")
    assert trash.find(str(ids[0])).id == ids[0]
    assert trash.find(ids[1].hex[:12]).id == ids[1]
    with pytest.raises(NotFound):
        it.repo.catalog.images.undelete(it.sealed("live", noise(BLOCK, 3)).id)


def test_its_time_is_over(it: Opened, trash: Trash) -> None:
    image = it.sealed("old", noise(BLOCK, 1))
    it.images.delete(image.id)
    later(it, HOUR_NS - 60 * 10**9)
    assert trash.deleted()
    later(it, HOUR_NS)
    assert not trash.deleted()
    assert not it.objects()
    with pytest.raises(NotFound):
        it.repo.catalog.images.undelete(image.id)


def test_a_plan_made_before_it_came_back_does_not_end_it(it: Opened, trash: Trash) -> None:
    image = it.sealed("x", noise(BLOCK, 1))
    it.images.delete(image.id)
    it.repo.catalog.sessions.ack(it.repo.session.id, it.repo.catalog.generation())
    plan = it.collector.plan(now_ns=time.time_ns() + 2 * HOUR_NS)
    assert [due.image_id for due in plan.finalise] == [image.id]
    trash.undelete(trash.find("x"))
    assert it.collector.execute(plan).images == 0
    it.images.delete(image.id)
    it.repo.catalog.sessions.ack(it.repo.session.id, it.repo.catalog.generation())
    assert it.collector.execute(plan).images == 0, "it was deleted again: its time begins anew"
    assert it.read(trash.undelete(trash.find("x")).id) == noise(BLOCK, 1)


def test_deleted_data_is_shared_by_what_is_stored_next(it: Opened, trash: Trash) -> None:
    content = noise(50 * BLOCK, 1)
    it.images.delete(it.sealed("x", content).id)
    it.sealed("y", content)
    assert sum(row.blocks for row in it.repo.catalog.packs.scan()) == 50
    later(it, 2 * HOUR_NS)
    assert it.read(it.repo.catalog.images.named("y")[0]) == content


def test_who_had_it_open_holds_nothing_after_it_came_back(it: Opened, trash: Trash) -> None:
    image = it.sealed("x", noise(BLOCK, 1))
    tail = LogTail(it.repo, it.files, ())
    handle = it.files.open(image.data_ino, os.O_RDONLY, USER, it.files.new_fh())
    it.images.delete(image.id)
    tail.catch_up()
    tail.acknowledge()
    assert it.repo.catalog.sessions.held(image.id)
    trash.undelete(trash.find("x"))
    tail.catch_up()
    tail.acknowledge()
    it.files.release(handle.fh)
    assert not it.repo.catalog.sessions.held(image.id)
    it.images.delete(image.id)
    later(it, 2 * HOUR_NS)
    assert not it.objects()


# -- pressure --------------------------------------------------------------------------------------------


def test_the_oldest_yield_and_only_as_many_as_needed(it: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = noise(100 * BLOCK, 1)
    images = [it.sealed("base", shared), it.sealed("clone", shared)]
    images += [it.sealed(f"image {number}", noise(100 * BLOCK, 10 + number)) for number in range(3)]
    for image in images:
        it.images.delete(image.id)
    it.repo.catalog.sessions.ack(it.repo.session.id, it.repo.catalog.generation())
    monkeypatch.setattr(Trash, "pressure", lambda self: 150 * BLOCK)
    plan = it.collector.plan()
    # The end of base alone frees nothing: clone has its blocks.
    assert [due.image_id for due in plan.finalise] == [image.id for image in images[:3]]
    assert it.collector.freed(plan) > 200 * BLOCK
    monkeypatch.setattr(Trash, "pressure", lambda self: 1 << 60)
    assert len(it.collector.plan().finalise) == 5
    monkeypatch.setattr(Trash, "pressure", lambda self: -1)
    assert not it.collector.plan().finalise


@pytest.mark.parametrize(("room", "yields"), [(1 << 50, False), (0, True)])
def test_the_disk_decides(repo_dir: Path, monkeypatch: pytest.MonkeyPatch, room: int, yields: bool) -> None:
    opened = Opened(repo_dir, CONFIG)
    monkeypatch.setattr(opened.repo.space, "room", lambda: room)
    trash = Trash(opened.repo, 3600)
    assert (trash.pressure() > 0) == yields
    opened.images.delete(opened.sealed("x", noise(BLOCK, 1)).id)
    assert len(trash.due(time.time_ns())) == yields
    opened.close()


def test_what_is_going_anyway_counts_as_room(it: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(it.repo.space, "room", lambda: 0)
    trash = Trash(it.repo, 0)
    before = trash.pressure()
    image = it.sealed("x", noise(100 * BLOCK, 1))
    it.images.delete(image.id)
    it.repo.catalog.sessions.ack(it.repo.session.id, it.repo.catalog.generation())
    assert it.repo.catalog.seals.finalise(image.id)
    going = [row for row in it.repo.catalog.packs.scan() if row.state == PackState.TRASH]
    assert before - trash.pressure() == sum(row.stored for row in going) > 100 * BLOCK


# -- commands ----------------------------------------------------------------------------------------------

Run = Callable[..., Result]


@pytest.fixture
def run(repo_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    config = tmp_path / "config.toml"
    config.write_text("retention_seconds = 3600\n")
    monkeypatch.setenv("IMAGEFS_REPO", str(repo_dir))
    monkeypatch.setenv("IMAGEFS_CONFIG", str(config))
    monkeypatch.setattr(Trash, "pressure", lambda self: 0)
    runner = CliRunner()

    def invoke(*words: object, code: int = 0) -> Result:
        result = runner.invoke(cli, [str(word) for word in words])
        assert result.exit_code == code, result.output
        return result

    invoke("init")
    return invoke


def made(run: Run, tmp_path: Path, name: str, content: bytes) -> str:
    (tmp_path / "file").write_bytes(content)
    return run("create", "--file", tmp_path / "file", name).stdout.strip()


def test_undelete_and_list_deleted(run: Run, tmp_path: Path) -> None:
    content = noise(3 * BLOCK + 7, 1)
    image = made(run, tmp_path, "debian", content)
    run("undelete", "debian", code=3)
    run("delete", "debian")
    assert not json.loads(run("list", "--json").stdout)
    (row,) = json.loads(run("list", "--deleted", "--json").stdout)
    assert (row["id"], row["name"], row["size"]) == (image, "debian", len(content))
    assert row["deleted_at"] < row["until"]
    assert image in run("list", "--deleted").stdout
    assert run("list", "--deleted", "-q").stdout.split() == [image]
    done = json.loads(run("gc", "--json").stdout)
    assert done["images"] == 0, "its time is not over"
    (back,) = json.loads(run("undelete", "debian", "--json").stdout)
    assert (back["id"], back["entry"], back["status"]) == (image, "debian", "active")
    run("save", "debian", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == content
    run("fsck", "--here")


def test_gc_now_empties_the_trash(run: Run, tmp_path: Path, repo_dir: Path) -> None:
    image = made(run, tmp_path, "x", noise(300 * BLOCK, 1))
    run("delete", "x")
    plan = json.loads(run("gc", "--dry-run", "--json").stdout)
    assert (plan["images"], plan["freed_bytes"]) == ([], 0)
    plan = json.loads(run("gc", "--now", "--dry-run", "--json").stdout)
    assert plan["images"] == [image]
    assert plan["freed_bytes"] > 300 * BLOCK
    done = json.loads(run("gc", "--now", "--json").stdout)
    assert (done["images"], done["objects"]) == (1, 2)
    assert not [path for path in (repo_dir / "store" / "packs").rglob("*") if path.is_file()]
    run("undelete", "x", code=3)


def test_the_plan_is_printed(run: Run, tmp_path: Path) -> None:
    made(run, tmp_path, "old", noise(600 * BLOCK, 1))
    made(run, tmp_path, "kept", noise(600 * BLOCK, 1)[: 300 * BLOCK // 2] + noise(300 * BLOCK, 2))
    run("delete", "old")
    printed = run("gc", "--dry-run", "--now")
    assert "end image" in printed.stdout
    run("gc", "--now")
    made(run, tmp_path, "next", noise(BLOCK, 3))
    done = json.loads(run("gc", "--json").stdout)
    assert done["packs_rewritten"] == 0
    run("fsck", "--here")


def test_gc_rewrites_what_is_mostly_unused(run: Run, tmp_path: Path) -> None:
    old = noise(600 * BLOCK, 1)
    made(run, tmp_path, "old", old)
    made(run, tmp_path, "kept", old[: 280 * BLOCK])
    run("delete", "old")
    assert "rewrite" not in run("gc", "--dry-run").stdout, "it may come back"
    done = json.loads(run("gc", "--now", "--json").stdout)
    assert (done["packs_rewritten"], done["moved_bytes"]) == (1, 280 * BLOCK)
    run("save", "kept", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == old[: 280 * BLOCK]
    run("fsck", "--here")


def test_ids_stay_taken(it: Opened) -> None:
    image = it.sealed("x", noise(BLOCK, 1))
    it.images.delete(image.id)
    assert it.repo.catalog.images.get(UUID(str(image.id)), deleted=True).status == Status.DELETED


def test_the_shell_completes_what_can_be_brought_back(run: Run, tmp_path: Path, repo_dir: Path) -> None:
    for number, name in enumerate(("debian 12", "debian 13", "fedora")):
        made(run, tmp_path, name, noise(BLOCK, number))
    run("delete", "debian 12", "fedora")
    ctx = click.Context(cli)
    ctx.params = {"repo": repo_dir, "config": None}
    (argument,) = (one for one in undelete_command.params if one.name == "images")
    assert complete_deleted(ctx, argument, "deb") == ["debian 12"]
    ctx.params = {"repo": tmp_path / "nowhere", "config": None}
    assert complete_deleted(ctx, argument, "") == []
