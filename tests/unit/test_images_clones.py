"""Drafts that copy: how they are sealed, who keeps their maps, what an earlier version left."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from imagefs.catalog import Op
from imagefs.errors import Damaged, Mismatch, Stale
from imagefs.images import bases, drafts
from imagefs.images.arming import blocked_reason
from imagefs.images.files import DraftFile
from imagefs.images.opens import Handle
from imagefs.types import BLOCK, Draft, Image, Status
from tests.content import MIB, noise
from tests.repositories import USER, Opened, opened

CONTENT = noise(5 * MIB, 1) + bytes(MIB) + noise(2 * MIB + 100, 2)


@pytest.fixture
def it(repo_dir: Path) -> Iterator[Opened]:
    with opened(repo_dir) as repository:
        yield repository


@pytest.fixture
def source(it: Opened) -> Image:
    return it.sealed("source", CONTENT)


def handle(it: Opened, image_id: UUID, flags: int, *, fresh: bool = False) -> Handle:
    return it.files.open(it.images.get(image_id).data_ino, flags, USER, it.files.new_fh(), fresh=fresh)


def copied(it: Opened, source: Image, name: str = "copy", **fields: object) -> UUID:
    """A draft that is a copy, and closed."""
    new = it.images.create(name, draft=True, **fields)  # type: ignore[arg-type]
    target = handle(it, new.id, os.O_RDWR, fresh=True)
    theirs = handle(it, source.id, os.O_RDONLY)
    assert target.copy_range(theirs, 0, 0, 1 << 30) == len(CONTENT)
    for one in (target, theirs):
        it.files.release(one.fh)
    return new.id


def changed(it: Opened, image_id: UUID, offset: int, data: bytes) -> None:
    target = handle(it, image_id, os.O_RDWR)
    target.pwrite(offset, memoryview(data))
    it.files.release(target.fh)


def test_a_whole_copy_has_its_source_s_map(it: Opened, source: Image) -> None:
    before = it.objects()
    image = it.images.seal(copied(it, source))
    assert (image.map_id, image.root, image.size) == (source.map_id, source.root, source.size)
    assert it.objects() == before


def test_a_copy_whose_holes_were_written_has_its_source_s_map(it: Opened, source: Image) -> None:
    """`cp --sparse=never` copies what is data, and writes zeros where its source has holes."""
    new = it.images.create("copy", draft=True)
    target, theirs = handle(it, new.id, os.O_RDWR, fresh=True), handle(it, source.id, os.O_RDONLY)
    target.copy_range(theirs, 0, 0, 5 * MIB)
    target.pwrite(5 * MIB, memoryview(bytes(MIB)))
    target.copy_range(theirs, 6 * MIB, 6 * MIB, 2 * MIB + 100)
    for one in (target, theirs):
        it.files.release(one.fh)
    before = it.objects()
    assert it.images.seal(new.id).map_id == source.map_id
    assert it.objects() == before


def test_the_beginning_of_an_image_is_not_all_of_it(it: Opened, source: Image) -> None:
    image_id = copied(it, source)
    target = handle(it, image_id, os.O_RDWR)
    target.truncate(4 * MIB)
    it.files.release(target.fh)
    image = it.images.seal(image_id)
    assert image.map_id != source.map_id
    assert it.read(image_id) == CONTENT[: 4 * MIB]


def test_sealing_a_changed_copy_reads_only_what_changed(
    it: Opened, source: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id = copied(it, source)
    changed(it, image_id, 4 * MIB + 100, b"x" * 10)
    read, pread = [], it.repo.reader.pread

    def counted(map_id: int, size: int, offset: int, length: int) -> bytes:
        read.append(length)
        return pread(map_id, size, offset, length)

    before = sum(it.inner.size(name) for name in it.objects())
    monkeypatch.setattr(it.repo.reader, "pread", counted)
    image = it.images.seal(image_id)
    monkeypatch.undo()
    assert sum(read) <= 4 * MIB, "no more than what tells the format"
    assert it.read(image_id) == CONTENT[: 4 * MIB + 100] + b"x" * 10 + CONTENT[4 * MIB + 110 :]
    assert image.root == it.sealed("plain", it.read(image_id)).root
    assert sum(it.inner.size(name) for name in it.objects()) - before < 32 << 10


def test_who_has_a_draft_open_reads_on_by_its_maps(it: Opened, source: Image) -> None:
    image_id = copied(it, source)
    changed(it, image_id, 0, b"changed")
    reader = handle(it, image_id, os.O_RDONLY)
    it.images.seal(image_id)
    for gone in (source.id, image_id):
        it.images.delete(gone)
    it.collect()
    assert reader.pread(0, 1 << 30) == b"changed" + CONTENT[7:]
    it.files.release(reader.fh)
    it.collect()
    assert not it.objects() and not list(it.repo.staging.files()) and not it.repo.catalog.bases.drafts()


def test_a_draft_that_was_unlinked_reads_on(it: Opened, source: Image) -> None:
    image_id = copied(it, source)
    reader = handle(it, image_id, os.O_RDONLY)
    it.images.unlink_data(image_id)
    it.images.delete(source.id)
    it.collect()
    assert reader.pread(0, 1 << 30) == CONTENT
    it.files.release(reader.fh)
    it.collect()
    assert not it.objects()


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.expect_log("is killed")
def test_what_was_declared_of_a_copy_is_checked(it: Opened, source: Image, right: bool) -> None:
    md5 = hashlib.md5(CONTENT if right else b"", usedforsecurity=False).hexdigest()
    image_id = copied(it, source)
    it.images.update_draft(
        image_id, lambda draft: replace(draft, expected={"checksum": md5, "size": str(len(CONTENT))})
    )
    if right:
        assert it.images.seal(image_id).checksum == md5
    else:
        with pytest.raises(Mismatch):
            it.images.seal(image_id)
        assert it.images.get(image_id).status == Status.KILLED


def test_a_draft_of_an_earlier_version(it: Opened, source: Image) -> None:
    """It could be the beginning of one map; its staging file was a hole of that size."""
    new = it.images.create("old", draft=True)
    size = 3 * MIB + 5
    with it.repo.staging.path(new.id, 1).open("r+b") as file:
        file.truncate(size)

    def as_it_was(image: Image) -> Image:
        old = Draft(gen=1, base_map=source.map_id, base_size=len(CONTENT), base_uuid=source.map_uuid)
        return replace(image, draft=drafts.released(time.time_ns(), it.repo.boot)(old))

    it.repo.catalog.images.update(new.id, as_it_was, Op.DRAFT)
    assert it.read(new.id) == CONTENT[:size]
    draft = it.images.get(new.id).draft
    assert draft is not None and draft.based and not draft.base_map
    changed(it, new.id, size + 10, b"behind")
    assert it.read(it.images.seal(new.id).id) == CONTENT[:size] + bytes(10) + b"behind"
    it.delete_all()
    assert not it.objects()


def test_a_copy_whose_maps_were_lost_is_never_zeros(it: Opened, source: Image) -> None:
    """As after a rebuild of the catalog, which numbers maps anew."""
    image_id = copied(it, source)
    it.repo.catalog.bases.drop(image_id, 1)
    with pytest.raises(Damaged, match="lost with the catalog"):
        it.read(image_id)
    with pytest.raises(Damaged, match="lost with the catalog"):
        it.images.seal(image_id)


def test_a_base_that_was_overwritten_is_let_go(it: Opened, source: Image) -> None:
    image_id = copied(it, source)
    target = handle(it, image_id, os.O_RDWR)
    target.truncate(2 * BLOCK)
    target.pwrite(0, memoryview(b"y" * 2 * BLOCK))
    it.files.release(target.fh)
    assert it.repo.catalog.bases.referred(image_id, 1) == {source.map_id}
    assert it.read(it.images.seal(image_id).id) == b"y" * 2 * BLOCK
    assert not it.repo.catalog.bases.referred(image_id, 1)


def test_a_sibling_shares_too(it: Opened, source: Image) -> None:
    """S6: what rsync makes beside `data` becomes the draft by a rename, with what it took from maps."""
    new = it.images.create("with a sibling")
    with it.repo.catalog.transaction():
        sibling = it.repo.catalog.siblings.add(new.id, b".data.tmp", Image(id=new.id))
        it.repo.staging.create(new.id, sibling.gen)
    target = it.files.open(sibling.ino, os.O_RDWR, USER, it.files.new_fh(), fresh=True)
    theirs = handle(it, source.id, os.O_RDONLY)
    assert target.copy_range(theirs, 0, 0, 1 << 30) == len(CONTENT)
    for one in (target, theirs):
        it.files.release(one.fh)
    it.repo.catalog.siblings.promote(new.id, b".data.tmp")
    it.collect()
    assert it.repo.catalog.bases.referred(new.id, sibling.gen) == {source.map_id}
    assert it.images.seal(new.id).map_id == source.map_id
    assert it.read(new.id) == CONTENT


def test_a_failed_sync_loses_nothing(it: Opened, source: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """What changed since the last sync that succeeded is made durable by the next one that does."""
    image_id = copied(it, source)
    draft = it.images.get(image_id).draft
    assert draft is not None
    file = DraftFile(it.repo, image_id, draft, lambda change: it.images.update_draft(image_id, change))
    file.begin_writing()
    file.fsync(True)
    file.pwrite(BLOCK, memoryview(b"z" * BLOCK))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", _failing)
        with pytest.raises(OSError, match="lost"):
            file.fsync(True)
    assert len(it.repo.catalog.bases.find(image_id, 1)) == 1
    file.fsync(True)
    assert len(it.repo.catalog.bases.find(image_id, 1)) == 2
    file.close()


def _failing(fd: int) -> None:
    raise OSError(5, "the disk was lost")


def test_a_record_that_was_read_before_the_draft_ended(it: Opened, source: Image) -> None:
    """Somebody lists drafts while one of them is sealed: it has ended, and nothing was lost."""
    image_id = copied(it, source)
    changed(it, image_id, 10, b"other")
    old = it.images.get(image_id)
    it.images.seal(image_id)
    bases.drop_ended(it.repo)
    assert blocked_reason(it.repo, old) is None
    assert old.draft is not None
    with pytest.raises(Stale):
        DraftFile(it.repo, image_id, old.draft, lambda change: old)
