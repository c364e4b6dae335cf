"""Full disks (S15): the writer is told, what is stored stays readable, deleting frees space, sealing goes on."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from imagefs.catalog import Catalog, rules
from imagefs.errors import NoSpace
from imagefs.images import fsck, materialised
from imagefs.types import Image, Status
from tests.content import MIB, noise
from tests.repositories import CONFIG, USER, Opened, opened

MountDisk = Callable[[int], Path]


def fill(path: Path, leave: int = 0) -> Path:
    """A file that takes all the space but `leave` bytes."""
    ballast = path / "ballast"
    with ballast.open("ab") as file, contextlib.suppress(OSError):
        while True:
            space = os.statvfs(path)
            left = space.f_bavail * space.f_frsize - leave
            if left <= 0:
                break
            file.write(bytes(min(left, MIB)))
            file.flush()
    return ballast


def write(it: Opened, name: str, content: bytes) -> UUID:
    """As a program does it: create, write, close."""
    image = it.images.create(name, draft=True)
    handle = it.files.open(image.data_ino, os.O_RDWR, USER, it.files.new_fh(), fresh=True)
    try:
        view = memoryview(content)
        for offset in range(0, len(content), MIB):
            handle.pwrite(offset, view[offset : offset + MIB])
    finally:
        it.files.release(handle.fh)
    return image.id


def test_a_writer_is_told_while_what_is_written_can_still_be_sealed(small_disk: MountDisk) -> None:
    with opened(small_disk(160) / "repository") as it:
        old = it.images.seal(write(it, "old", noise(8 * MIB, 1)))
        with pytest.raises(NoSpace):
            write(it, "big", noise(1 * MIB, 2) * 150)
        (big,) = it.repo.catalog.images.named("big")
        image = it.images.get(big)
        assert image.draft is not None
        assert image.draft.blocked, "an error went to the writer"
        written = it.read(big)
        assert it.read(old.id) == noise(8 * MIB, 1)
        sealed = it.images.seal(big)  # whatever was accepted has room as packs too
        assert sealed.status == Status.ACTIVE
        assert it.read(big) == written
        it.images.delete(big)
        it.collect()
        assert it.read(write(it, "next", noise(3 * MIB, 3))) == noise(3 * MIB, 3)
        it.collect()
        assert not fsck.check(it.repo)


def test_a_disk_that_fills_up_while_sealing(small_disk: MountDisk) -> None:
    disk = small_disk(160)
    with opened(disk / "repository") as it:
        old = it.images.seal(write(it, "old", noise(4 * MIB, 1)))
        draft = write(it, "draft", noise(20 * MIB, 2))
        ballast = fill(disk, leave=6 * MIB)
        with pytest.raises(NoSpace):
            it.images.seal(draft)
        image = it.images.get(draft)
        assert image.status == Status.SAVING
        assert image.draft is not None
        assert image.draft.sealer is None
        assert image.draft.failed or image.draft.blocked
        assert it.read(draft) == noise(20 * MIB, 2)
        assert it.read(old.id) == noise(4 * MIB, 1)
        ballast.unlink()
        it.images.seal(draft)
        assert it.read(draft) == noise(20 * MIB, 2)
        it.collect()
        assert not fsck.check(it.repo)


def test_deleting_works_on_a_full_disk(small_disk: MountDisk) -> None:
    disk = small_disk(160)
    with opened(disk / "repository") as it:
        images = [it.images.seal(write(it, f"image {number}", noise(3 * MIB, number))) for number in range(4)]
        fill(disk)
        for image in images[:2]:
            it.images.delete(image.id)
        it.collect()
        space = os.statvfs(disk)
        assert space.f_bavail * space.f_frsize > 4 * MIB, "gc frees nothing"
        for number, image in enumerate(images[2:], 2):
            assert it.read(image.id) == noise(3 * MIB, number)
        assert not fsck.check(it.repo)


def test_the_catalog_says_so_and_keeps_enough_for_deleting(small_disk: MountDisk) -> None:
    disk = small_disk(80)
    catalog = Catalog.create(disk / "catalog", uuid4())
    ids = [catalog.images.add(Image(id=uuid4(), name=f"image {number}")).id for number in range(500)]
    fill(disk)
    with pytest.raises(NoSpace):
        for number in range(20_000):
            big = {f"key {key}": "x" * 200 for key in range(100)}
            ids.append(catalog.images.add(Image(id=uuid4(), name=f"more {number}", properties=big)).id)
    assert catalog.images.count() == len(ids)
    for image_id in ids:
        catalog.images.unlink(image_id)
    for image_id in ids:
        assert catalog.seals.finalise(image_id)
    assert catalog.images.count() == 0
    assert not [finding for rule in rules.RULES for finding in rule(catalog)]
    catalog.close()


def test_a_catalog_that_met_a_full_disk_opens_again(small_disk: MountDisk, tmp_path: Path) -> None:
    """Without a reserve: the commit itself fails, and leaves what was there."""
    disk = small_disk(12)
    catalog = Catalog.create(disk / "catalog", uuid4())
    ids: list[UUID] = []
    with pytest.raises(NoSpace):
        for number in range(100_000):
            big = {f"key {key}": "x" * 200 for key in range(100)}
            ids.append(catalog.images.add(Image(id=uuid4(), name=f"image {number}", properties=big)).id)
    catalog.close()
    shutil.copytree(disk / "catalog", tmp_path / "catalog")
    for path in (disk / "catalog", tmp_path / "catalog"):
        catalog = Catalog.open(path)
        assert catalog.images.count() == len(ids)
        assert not [finding for rule in rules.RULES for finding in rule(catalog)]
        catalog.close()


def test_plain_files_of_sealed_images_yield_to_a_writer(small_disk: MountDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(materialised, "LEAST", MIB)
    config = replace(CONFIG, cache_bytes=1 << 30)
    with opened(small_disk(192) / "repository", config) as it:
        old = it.images.seal(write(it, "old", noise(MIB, 1) * 60))
        assert it.repo.materialised.allocated() >= 60 * MIB
        new = it.images.seal(write(it, "new", noise(MIB, 2) * 60))
        fd = it.repo.materialised.open(old)
        assert fd is None, "its room was needed"
        assert it.read(old.id) == noise(MIB, 1) * 60
        assert it.read(new.id) == noise(MIB, 2) * 60
