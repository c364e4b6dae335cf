"""The trash on a disk that fills up: it yields, oldest first, before writers are told that the disk is full (S15)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from imagefs.images import fsck
from imagefs.images.gc import Collector
from imagefs.images.janitor import Janitor
from imagefs.images.tail import LogTail
from imagefs.images.trash import Trash
from tests.content import MIB, noise
from tests.faults.test_faults_space import fill, write
from tests.repositories import CONFIG, Opened

MountDisk = Callable[[int], Path]
RETENTION_S = 3600.0


@contextlib.contextmanager
def opened_with_trash(path: Path) -> Iterator[Opened]:
    it = Opened(path, replace(CONFIG, retention_seconds=RETENTION_S))
    it.collector = Collector(it.repo)
    try:
        yield it
    finally:
        it.close()


@contextlib.contextmanager
def served(it: Opened) -> Iterator[None]:
    """As in a mount: the janitor at work, the log followed."""
    janitor = Janitor(it.images, 0.0)
    tail = LogTail(it.repo, it.files, (janitor.changed,))
    tail.start()
    janitor.start()
    try:
        yield
    finally:
        janitor.stop()
        tail.stop()


def test_copies_go_on_while_the_trash_is_full_of_what_they_replaced(small_disk: MountDisk) -> None:
    """A disk of 180 MiB, and ten times 20 MiB that are copied and deleted again: that much trash does not fit."""
    with opened_with_trash(small_disk(180) / "repository") as it:
        trash = Trash(it.repo, RETENTION_S)
        kept = []
        with served(it):
            for number in range(10):
                image = it.images.seal(write(it, f"image {number}", noise(20 * MIB, number)))
                it.images.delete(image.id)
                kept.append(len(trash.deleted()))
        assert kept[:3] == [1, 2, 3], "there was room"
        assert kept[-1] < 10
        names = [one.image.name for one in trash.deleted()]
        assert names == [f"image {number}" for number in range(10 - len(names), 10)], "the oldest went first"
        back = trash.undelete(trash.find("image 9"))
        assert it.read(back.id) == noise(20 * MIB, 9)
        assert not fsck.check(it.repo)


def test_a_full_disk_empties_it(small_disk: MountDisk) -> None:
    disk = small_disk(160)
    with opened_with_trash(disk / "repository") as it:
        images = [it.images.seal(write(it, f"image {number}", noise(3 * MIB, number))) for number in range(4)]
        fill(disk)
        for image in images[:3]:
            it.images.delete(image.id)
        it.collect()
        space = os.statvfs(disk)
        assert space.f_bavail * space.f_frsize > 8 * MIB
        assert not Trash(it.repo, RETENTION_S).deleted()
        assert it.read(images[3].id) == noise(3 * MIB, 3)
        assert not fsck.check(it.repo)
