"""The catalog made anew from the store."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from imagefs.blocks import logobject
from imagefs.errors import Busy, CatalogBehind, CatalogDamaged
from imagefs.images import fsck, logs
from imagefs.images.compaction import Compactor
from imagefs.images.convert import Converter
from imagefs.images.hashtask import fill_in_hashes
from imagefs.images.heal import Healer
from imagefs.images.logs import live
from imagefs.images.rebuild import REBUILT, UNKNOWN, Rebuild, Rebuilt
from imagefs.images.scrub import Scrub
from imagefs.types import Image, Status
from tests import compressed
from tests.content import KIB, noise
from tests.repositories import CONFIG, Opened, opened

LOCAL = {"map_id": 0, "draft": None}
"""Fields with numbers of one catalog."""


SMALL = replace(CONFIG, pack_blocks=32)


def everything(it: Opened) -> dict[str, object]:
    """All that a user sees: records, entries, attributes, bytes."""
    found: dict[str, object] = {}
    for image in live(it.repo.catalog):
        found[str(image.id)] = replace(image, **LOCAL), bool(image.map_id), image.draft is not None
        if image.sealed:
            found[f"{image.id} bytes"] = it.read(image.id)
    return found


def fill(it: Opened) -> list[Image]:
    """Images of all kinds that have nothing open."""
    shared = noise(200 * KIB, 1)
    first = it.sealed("first", shared + bytes(300 * KIB) + noise(10_001, 2))
    second = it.sealed("second", noise(64 * KIB, 3) + shared)
    clone = it.images.clone(first.id, "clone", owner="project")
    same_name = it.sealed("first", b"short")
    it.images.set_fields(first.id, {"tags": ("a,b", "c"), "properties": {"os": "debian"}, "protected": True})
    it.images.set_fields(second.id, {"xattrs": {"user.note": b"\xff\x00"}, "mode": 0o600, "uid": 7, "min_ram": 5})
    it.images.rename(clone.id, "Ä%2Fb".encode())
    it.images.create("queued")
    it.images.unlink_data(it.sealed("pending", noise(9000, 4)).id)
    return [first, second, clone, same_name]


def lose_and_rebuild(path: Path) -> Rebuilt:
    shutil.rmtree(path / "catalog")
    return Rebuild(path).run()


def test_everything_comes_back(repo_dir: Path) -> None:
    with opened(repo_dir, SMALL) as it:
        fill(it)
        it.repo.logs.flush()
        before = everything(it)
    with pytest.raises(CatalogDamaged, match="imagefs rebuild"):
        shutil.rmtree(repo_dir / "catalog")
        opened(repo_dir).__enter__()
    result = Rebuild(repo_dir).run()
    assert result.lost == []
    assert result.images == 6
    with opened(repo_dir) as it:
        assert everything(it) == before
        assert not fsck.check(it.repo)
        assert it.repo.catalog.generation() >= it.repo.logs.newest()
        # And it works on: new numbers, sharing with what was there, deleting all.
        new = it.sealed("new", noise(200 * KIB, 1) + b"more")
        assert it.read(new.id) == noise(200 * KIB, 1) + b"more"
        assert not fsck.check(it.repo)
        it.images.set_fields(next(iter(live(it.repo.catalog))).id, {"protected": False})
        for image in list(live(it.repo.catalog)):
            it.images.set_fields(image.id, {"protected": False})
        it.delete_all()
        assert it.objects() == []


def test_deleted_images_stay_deleted(repo_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the snapshot took the place of their tombstones, and when a clone keeps their manifest."""
    monkeypatch.setattr(logs, "SNAPSHOT_EVERY", 1)
    with opened(repo_dir) as it:
        gone = it.sealed("gone", noise(50_000, 1))
        source = it.sealed("source", noise(60_000, 2))
        clone = it.images.clone(source.id, "clone")
        it.images.delete(gone.id)
        it.images.delete(source.id)
        for _ in range(2):
            it.repo.catalog.sessions.ack(it.repo.session.id, it.repo.catalog.generation())
            it.repo.catalog.seals.finalise(gone.id)
            it.repo.catalog.seals.finalise(source.id)
        it.repo.logs.flush()
        it.repo.logs.snapshot_when_due()
        assert not list(it.repo.store.list("log/"))
        assert len(list(it.repo.store.list("maps/"))) == 2, "nothing was collected yet"
    assert lose_and_rebuild(repo_dir).lost == []
    with opened(repo_dir) as it:
        assert [image.id for image in live(it.repo.catalog)] == [clone.id]
        assert it.read(clone.id) == noise(60_000, 2)
        assert not fsck.check(it.repo)
        it.collect()
        assert len(it.objects()) == 2


def test_a_sealed_image_that_no_log_object_has(repo_dir: Path) -> None:
    with opened(repo_dir) as it:
        image = it.sealed("image", noise(50_000, 1))
    shutil.rmtree(repo_dir / "store" / "log")
    assert lose_and_rebuild(repo_dir).lost == []
    with opened(repo_dir) as it:
        assert it.read(image.id) == noise(50_000, 1)
        assert it.images.get(image.id).entry == b"image"
        assert not fsck.check(it.repo)


def test_drafts_stay_drafts_and_say_why(repo_dir: Path) -> None:
    with opened(repo_dir) as it:
        known = it.draft("known", noise(30_000, 1))
        it.repo.logs.flush()
        lost = it.draft("lost", b"x")
        it.repo.logs.flush()
        it.repo.staging.remove(lost, 1)
        unknown = it.draft("unknown", noise(30_000, 2))
    (log_of_unknown,) = sorted((repo_dir / "store" / "log").iterdir())[2:] or [None]
    assert log_of_unknown is None, "nobody flushed it"
    result = lose_and_rebuild(repo_dir)
    assert result.drafts == 2
    assert len(result.lost) == 1
    assert str(lost) in result.lost[0]
    with opened(repo_dir) as it:
        for image_id, reason, content in ((known, REBUILT, noise(30_000, 1)), (unknown, UNKNOWN, noise(30_000, 2))):
            image = it.images.get(image_id)
            assert image.status == Status.SAVING
            assert image.draft is not None
            assert image.draft.blocked == reason
            assert it.read(image_id) == content
            assert it.images.seal(image_id).status == Status.ACTIVE
            assert it.read(image_id) == content
        assert it.images.get(lost).status == Status.QUEUED
        assert not fsck.check(it.repo)


def test_what_is_sealed_wins_when_the_log_has_the_draft_only(repo_dir: Path) -> None:
    with opened(repo_dir) as it:
        image_id = it.draft("image", noise(30_000, 1))
        it.repo.logs.flush()
        newest = it.repo.logs.newest()
        it.images.seal(image_id)
        it.repo.staging.remove(image_id, 1)
    for path in (repo_dir / "store" / "log").iterdir():
        if int(path.name, 16) > newest:
            path.unlink()
    assert lose_and_rebuild(repo_dir).lost == []
    with opened(repo_dir) as it:
        assert it.read(image_id) == noise(30_000, 1)
        assert not fsck.check(it.repo)


def test_a_catalog_that_is_behind_is_refused_and_rebuilt(repo_dir: Path, tmp_path: Path) -> None:
    with opened(repo_dir) as it:
        it.sealed("old", noise(30_000, 1))
    shutil.copytree(repo_dir / "catalog", tmp_path / "copy")
    with opened(repo_dir) as it:
        new = it.sealed("new", noise(30_000, 2))
        before = everything(it)
    shutil.rmtree(repo_dir / "catalog")
    shutil.copytree(tmp_path / "copy", repo_dir / "catalog")
    with pytest.raises(CatalogBehind, match="imagefs rebuild"):
        opened(repo_dir).__enter__()
    result = Rebuild(repo_dir).run()
    assert result.old is not None
    assert result.old.is_dir()
    with opened(repo_dir) as it:
        assert everything(it) == before
        assert it.read(new.id) == noise(30_000, 2)


def test_a_repository_in_use_is_left_alone(repo_dir: Path) -> None:
    with opened(repo_dir) as it:
        it.sealed("image", b"x")
        with pytest.raises(Busy, match="in use"):
            Rebuild(repo_dir).run()
    assert not (repo_dir / "catalog.rebuilt").exists()


def damaged(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)


def test_what_is_damaged_is_named_and_nothing_else_suffers(repo_dir: Path) -> None:
    with opened(repo_dir) as it:
        hit, whole = it.sealed("hit", noise(30_000, 1)), it.sealed("whole", noise(30_000, 2))
        it.repo.logs.flush()
        manifest = it.path_of(f"maps/{hit.map_uuid}")
    damaged(manifest, 200)
    result = lose_and_rebuild(repo_dir)
    assert any(f"maps/{hit.map_uuid}" in line for line in result.lost)
    with opened(repo_dir) as it:
        assert it.images.get(hit.id).status == Status.KILLED
        assert it.read(whole.id) == noise(30_000, 2)
    # Put back from a copy, it comes back as well.
    damaged(manifest, 200)
    assert lose_and_rebuild(repo_dir).lost == []
    with opened(repo_dir) as it:
        assert it.read(hit.id) == noise(30_000, 1)
        assert not fsck.check(it.repo)


def test_a_damaged_snapshot_is_replaced_by_another_one(repo_dir: Path) -> None:
    with opened(repo_dir) as it:
        image = it.sealed("image", b"x")
        it.repo.logs.snapshot()
        (name,) = it.repo.store.list("snap/")
        damaged(it.path_of(name), 50)
        it.repo.logs.snapshot()
        (other,) = it.repo.store.list("snap/")
        assert other != name
        assert len(logobject.decode(it.repo.store.get(other), other).records) == 1
    assert lose_and_rebuild(repo_dir).lost == []
    with opened(repo_dir) as it:
        assert it.read(image.id) == b"x"


@pytest.mark.parametrize("where", ["", "store"])
def test_one_copy_of_the_superblock_is_enough(repo_dir: Path, where: str) -> None:
    with opened(repo_dir) as it:
        image = it.sealed("image", b"x")
    (repo_dir / where / "imagefs.json").unlink()
    if where == "":
        assert lose_and_rebuild(repo_dir).lost == []
    with opened(repo_dir) as it:
        assert it.read(image.id) == b"x"
        if where:
            Healer(it.repo).run()
            assert (repo_dir / where / "imagefs.json").read_bytes() == (repo_dir / "imagefs.json").read_bytes()


def test_numbers_of_inodes_are_not_given_again(repo_dir: Path) -> None:
    with opened(repo_dir) as it:
        highest = it.images.create("last").data_ino
        it.repo.logs.flush()
    lose_and_rebuild(repo_dir)
    with opened(repo_dir) as it:
        assert it.images.create("next").dir_ino > highest + 1000


def test_an_interrupted_rebuild_is_run_again(repo_dir: Path) -> None:
    with opened(repo_dir) as it:
        image = it.sealed("image", noise(30_000, 1))
        it.repo.logs.flush()
    shutil.rmtree(repo_dir / "catalog")
    (repo_dir / "catalog.rebuilt").mkdir()
    (repo_dir / "catalog.rebuilt" / "data.mdb").write_bytes(b"half")
    Rebuild(repo_dir).run()
    with opened(repo_dir) as it:
        assert it.read(image.id) == noise(30_000, 1)


def test_converted_images_and_moved_blocks(repo_dir: Path) -> None:
    """Layouts other than plain come back as they are; blocks that gc moved are found where they are now."""
    disk = compressed.disk(1, 11)
    qcow2 = compressed.qcow2(disk)
    with opened(repo_dir, SMALL) as it:
        raw, inside = it.sealed("raw", disk), it.sealed("inside", qcow2)
        fill_in_hashes(it.repo, inside.id, lambda: False)
        Converter(it.repo).convert(inside.id)
        half = it.sealed("half", disk[: len(disk) // 3 // 4096 * 4096])
        it.images.delete(raw.id)
        it.collect()
        everybody = lambda nbytes: True  # noqa: E731
        compactor = Compactor(it.repo, everybody, sparse=1.0)
        moved = compactor.execute(compactor.plan()).blocks
        it.collect()
        it.repo.logs.flush()
        before = everything(it)
        assert it.images.get(inside.id).layout == "recode"
    result = lose_and_rebuild(repo_dir)
    assert moved > 0
    assert result.lost == []
    with opened(repo_dir, SMALL) as it:
        assert everything(it) == before
        assert it.read(inside.id) == qcow2
        assert it.read(half.id) == disk[: half.size]
        it.collect()
        assert not fsck.check(it.repo)
        assert not Scrub(it.repo, deep=True).run().damaged
