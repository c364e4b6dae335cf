"""Copies of the catalog while it is in use, and going back to them."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from imagefs.catalog import Catalog
from imagefs.errors import Busy, CatalogDamaged, Exists, InvalidValue, NotFound, Refused
from imagefs.images import fsck
from imagefs.images.backup import backup, restore
from imagefs.images.logs import live
from imagefs.images.rebuild import rebuild
from imagefs.types import Status
from tests.catalogs import assert_sound
from tests.content import noise
from tests.repositories import opened


def test_a_backup_made_while_others_write_is_consistent(repo_dir: Path, tmp_path: Path) -> None:
    with opened(repo_dir) as it:
        for number in range(5):
            it.sealed(f"image {number}", noise(9000, number))
        stop = threading.Event()

        def write() -> None:
            number = 0
            while not stop.is_set():
                image = it.images.create(f"new {number}")
                it.images.set_fields(image.id, {"tags": (str(number),)})
                number += 1

        writer = threading.Thread(target=write)
        writer.start()
        try:
            files = [backup(it.repo, tmp_path / f"{number}.catalog") for number in range(10)]
        finally:
            stop.set()
            writer.join(timeout=30)
    counts = []
    for number, file in enumerate(files):
        place = tmp_path / str(number)
        place.mkdir()
        shutil.copy(file, place / "data.mdb")
        catalog = Catalog.open(place)
        assert_sound(catalog)
        counts.append(catalog.images.count())
        catalog.close()
    assert counts == sorted(counts)
    assert counts[0] >= 5


def test_restoring_goes_back_and_forward_again(repo_dir: Path, tmp_path: Path) -> None:
    with opened(repo_dir) as it:
        old = it.sealed("old", noise(30_000, 1))
        gone = it.sealed("gone", noise(30_000, 2))
        file = backup(it.repo, tmp_path)
        assert file.parent == tmp_path
        it.images.delete(gone.id)
        it.collect()
        it.images.set_fields(old.id, {"tags": ("later",)})
        new = it.sealed("new", noise(30_000, 3))
        clone = it.images.clone(old.id, "clone")
        it.repo.logs.flush()
    shutil.rmtree(repo_dir / "catalog")
    result = restore(repo_dir, file)
    assert result.lost == []
    with opened(repo_dir) as it:
        assert it.images.get(old.id).tags == ("later",)
        assert it.read(old.id) == it.read(clone.id) == noise(30_000, 1)
        assert it.read(new.id) == noise(30_000, 3)
        with pytest.raises(NotFound):
            it.images.get(gone.id)
        assert not fsck.check(it.repo)
    assert not (repo_dir / "catalog.backup").exists()


def test_a_backup_fills_in_what_the_store_has_lost(repo_dir: Path, tmp_path: Path) -> None:
    with opened(repo_dir) as it:
        image = it.sealed("image", noise(30_000, 1))
        file = backup(it.repo, tmp_path / "copy")
        (pack,) = it.inner.list("packs/")
        content = it.path_of(pack).read_bytes()
        it.path_of(pack).chmod(0o600)
        it.path_of(pack).write_bytes(content[:-70] + b"\0" + content[-69:])
    for name in ("log", "maps"):
        shutil.rmtree(repo_dir / "store" / name)
    shutil.rmtree(repo_dir / "catalog")
    restore(repo_dir, file)
    with opened(repo_dir) as it:
        assert it.images.get(image.id).status == Status.ACTIVE
        assert it.read(image.id) == noise(30_000, 1)


def test_what_is_no_backup_of_this_repository_changes_nothing(repo_dir: Path, tmp_path: Path) -> None:
    with opened(tmp_path / "other") as it:
        file = backup(it.repo, tmp_path / "copy")
        with pytest.raises(Exists):
            backup(it.repo, file)
        backup(it.repo, file, replace=True)
    with opened(repo_dir) as it:
        it.sealed("image", b"x")
        with pytest.raises(Busy):
            restore(repo_dir, backup(it.repo, tmp_path / "own"))
    with pytest.raises(InvalidValue, match="backup of repository"):
        restore(repo_dir, file)
    file.write_bytes(b"no catalog at all" * 1000)
    with pytest.raises(CatalogDamaged):
        restore(repo_dir, file)
    with opened(repo_dir) as it:
        assert len(list(live(it.repo.catalog))) == 1


def test_a_whole_catalog_is_not_rebuilt_by_mistake(repo_dir: Path) -> None:
    with opened(repo_dir) as it:
        it.sealed("image", b"x")
        unflushed = it.images.create("unflushed")
    with pytest.raises(Refused, match="--force"):
        rebuild(repo_dir)
    assert rebuild(repo_dir, force=True).images == 2
    with opened(repo_dir) as it:
        assert it.images.get(unflushed.id).name == "unflushed"
    data = repo_dir / "catalog" / "data.mdb"
    data.write_bytes(data.read_bytes()[:20_000])
    rebuild(repo_dir)
    with opened(repo_dir) as it:
        assert {image.name for image in live(it.repo.catalog)} >= {"image"}
