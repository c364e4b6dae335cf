"""Files as the tree shows them: attributes, what opening means, rendered texts (S1, S4, S7, S8, S9)."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from imagefs.config import Config
from imagefs.errors import (
    AttributeMissing,
    Deactivated,
    InvalidValue,
    IsADirectory,
    NotSupported,
    Refused,
    Sealed,
    Stale,
)
from imagefs.images import drafts
from imagefs.tree import NOW, SetAttr
from imagefs.types import Ino, Status
from tests.trees import ROOT, USER, Bench, bench


@pytest.fixture
def tree(repo_dir: Path) -> Iterator[Bench]:
    with bench(repo_dir) as made:
        yield made


# -- attributes ------------------------------------------------------------------------------------


def test_the_fixed_directories(tree: Bench) -> None:
    for path, links in (("", 5), ("images", 2), ("by-name", 2), (".imagefs", 2)):
        attr = tree.attr(path)
        assert (attr.mode, attr.nlink, attr.uid, attr.gid) == (stat.S_IFDIR | 0o755, links, 7, 8)


def test_the_time_of_a_listing_changes_with_it(tree: Bench) -> None:
    before = tree.attr("by-name").mtime
    assert tree.attr("by-name").mtime == before
    tree.mknod("by-name/x")
    assert tree.attr("by-name").mtime > before
    assert tree.attr("images").mtime > before


def test_a_drafts_attributes_are_its_files(tree: Bench) -> None:
    handle = tree.create("by-name/x", mode=0o640, caller=USER)
    assert tree.attr("by-name/x").size == 0
    handle.pwrite(1 << 20, memoryview(b"x" * 8192), 1)
    attr = tree.attr("by-name/x")
    assert (attr.mode, attr.uid, attr.gid) == (stat.S_IFREG | 0o640, 1000, 1000)
    assert (attr.size, attr.blocks) == ((1 << 20) + 8192, 16)
    assert abs(attr.mtime - time.time_ns()) < 10_000_000_000
    assert attr.valid <= 1.0
    assert not attr.keep
    handle.truncate(10)
    assert tree.attr("by-name/x").size == 10
    tree.close(handle)


def test_sealed_attributes(tree: Bench) -> None:
    """S4, S8, S9: no write bits, and the blocks that are not zero."""
    handle = tree.create("by-name/x", mode=0o666)
    handle.pwrite(1 << 20, memoryview(b"x" * 5000), 1)
    handle.truncate(1 << 21)
    tree.close(handle)
    before = tree.attr("by-name/x")
    tree.seal("by-name/x")
    attr = tree.attr("by-name/x")
    assert (attr.ino, attr.mode, attr.nlink) == (before.ino, stat.S_IFREG | 0o444, 2)
    assert (attr.size, attr.blocks) == (1 << 21, 16)
    assert attr.mtime == before.mtime
    assert attr.keep
    assert attr.valid > 60


def test_chmod_chown_and_utimens_are_kept(tree: Bench) -> None:
    """S8, on a draft and on sealed data; sealed data never has write bits."""
    path = tree.put("sealed")
    tree.write("by-name/draft", b"x")
    for name in (path, "by-name/draft"):
        attr = tree.set_attr(name, SetAttr(mode=0o751, uid=3, gid=4, atime=1_000, mtime=2_000_000_000_123))
        assert (attr.uid, attr.gid, attr.atime, attr.mtime) == (3, 4, 1_000, 2_000_000_000_123)
        assert attr.mode & 0o7777 == (0o551 if name == path else 0o751)
        assert abs(attr.ctime - time.time_ns()) < 10_000_000_000
        attr = tree.set_attr(name, SetAttr(mtime=NOW))
        assert attr.atime == 1_000
        assert abs(attr.mtime - time.time_ns()) < 10_000_000_000
        assert tree.attr(name) == attr
    tree.set_attr("by-name/draft", SetAttr(mtime=5))
    tree.seal("by-name/draft")
    assert tree.attr("by-name/draft").mtime == 5
    assert tree.attr("by-name/draft").mode & 0o7777 == 0o551


def test_attributes_of_an_images_directory(tree: Bench) -> None:
    path = tree.mkdir()
    attr = tree.set_attr(path, SetAttr(mode=0o700, uid=3, gid=4, mtime=5))
    assert (attr.mode, attr.uid, attr.gid, attr.nlink) == (stat.S_IFDIR | 0o700, 3, 4, 2)
    assert tree.attr(f"{path}/metadata.json").uid == 3
    before = tree.attr(path).mtime
    tree.mknod(f"{path}/data")
    assert tree.attr(path).mtime > before
    assert tree.attr(path).btime == tree.attr(f"{path}/data").btime


def test_the_fixed_directories_keep_mode_and_owner(tree: Bench) -> None:
    for path in ("", "by-name", "images", ".imagefs", ".imagefs/status"):
        tree.set_attr(path, SetAttr(mode=tree.attr(path).mode & 0o7777, uid=7, gid=8, mtime=5, atime=NOW))
        for change in (SetAttr(mode=0o700), SetAttr(uid=9), SetAttr(gid=9)):
            with pytest.raises(Refused):
                tree.set_attr(path, change)


def test_the_mount_may_give_all_files_to_somebody(repo_dir: Path) -> None:
    with bench(repo_dir, Config(uid=55, gid=66, project="p1")) as tree:
        tree.write("by-name/x", b"x")
        path = tree.mkdir(caller=USER)
        for name in ("by-name/x", path):
            attr = tree.attr(name)
            assert (attr.uid, attr.gid) == (55, 66)
            assert tree.get(name, "user.image.owner") == "p1"


def test_statfs(tree: Bench) -> None:
    sizes, disk = tree.tree.statfs(), os.statvfs(tree.repo.path)
    assert (sizes.bsize, sizes.namelen) == (4096, 255)
    assert abs(sizes.blocks * 4096 - disk.f_blocks * disk.f_frsize) < 4096
    assert 0 < sizes.bavail <= sizes.bfree <= sizes.blocks


def test_inodes_stay_over_a_restart(repo_dir: Path) -> None:
    with bench(repo_dir) as tree:
        path = tree.directory(tree.put("x"))
        names = ("by-name/x", path, f"{path}/data", f"{path}/metadata.json")
        before = {name: tree.ino(name) for name in names}
    with bench(repo_dir) as tree:
        assert {name: tree.ino(name) for name in names} == before
        assert before[f"{path}/metadata.json"] == before[path] + 1


# -- opening, writing, truncating ------------------------------------------------------------------


def test_sealed_data_is_not_written(tree: Bench) -> None:
    """S4: opening for writing and truncating are EPERM, for root as well."""
    path = tree.put("x", b"content")
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
        with pytest.raises(Sealed):
            tree.open(path, flags)
    with pytest.raises(Sealed):
        tree.set_attr(path, SetAttr(size=0))
    reader = tree.open(path)
    with pytest.raises(Sealed):
        tree.tree.setattr(reader.ino, SetAttr(size=0), ROOT, reader.fh)
    tree.close(reader)
    assert tree.read(path) == b"content"


def test_truncating_drafts(tree: Bench) -> None:
    tree.write("by-name/x", b"content")
    assert tree.set_attr("by-name/x", SetAttr(size=3)).size == 3
    assert tree.set_attr("by-name/x", SetAttr(size=6)).size == 6
    assert tree.read("by-name/x") == b"con\0\0\0"
    path = tree.mkdir()
    tree.set(path, "user.image.name", "queued")
    assert tree.set_attr("by-name/queued", SetAttr(size=5)).size == 5
    assert tree.status(path) == "saving"
    with pytest.raises(IsADirectory):
        tree.set_attr(path, SetAttr(size=5))


def test_deactivated_images_are_opened_by_root_only(tree: Bench) -> None:
    """S7: EACCES."""
    path = tree.put("x", b"content")
    tree.images.set_fields(tree.id(path), {"status": Status.DEACTIVATED})
    with pytest.raises(Deactivated):
        tree.open(path, caller=USER)
    assert tree.read(path) == b"content"
    assert tree.attr(path).size == 7


def test_directories_are_not_opened_as_files(tree: Bench) -> None:
    for path in ("", "by-name", "images", tree.mkdir()):
        with pytest.raises(IsADirectory):
            tree.open(path)


def test_a_deleted_file_lives_until_it_is_closed(tree: Bench) -> None:
    """S7: open readers go on; nobody new finds it, by path or by a stale inode number."""
    tree.put("sealed", b"content")
    tree.write("by-name/draft", b"content")
    for path in ("by-name/sealed", "by-name/draft"):
        handle = tree.open(path)
        before = tree.attr(path)
        tree.unlink(path)
        assert handle.pread(0, 100) == b"content"
        attr = tree.tree.attrs(handle.ino)
        assert (attr.ino, attr.nlink, attr.size, attr.mode) == (before.ino, 0, 7, before.mode)
        assert tree.tree.getxattr(handle.ino, b"user.image.name") == path.removeprefix("by-name/").encode()
        with pytest.raises(Stale):
            tree.tree.open(handle.ino, os.O_RDONLY, ROOT, tree.files.new_fh())
        tree.close(handle)
        with pytest.raises(Stale):
            tree.tree.attrs(before.ino)


def test_an_unlinked_draft_can_be_written_to_its_end(tree: Bench) -> None:
    path = tree.mkdir()
    handle = tree.create(f"{path}/data")
    tree.unlink(f"{path}/data")
    handle.pwrite(0, memoryview(b"x" * 100), 1)
    assert tree.tree.attrs(handle.ino).size == 100
    assert tree.tree.setattr(handle.ino, SetAttr(size=50), ROOT, handle.fh).size == 50
    tree.write(f"{path}/data", b"second")
    assert tree.ino(f"{path}/data") != handle.ino
    assert handle.size == 50
    tree.close(handle)
    assert tree.read(f"{path}/data") == b"second"


@pytest.mark.parametrize("ino", [0, 4, 6, 19, 63, 10_000])
def test_inodes_that_never_were(tree: Bench, ino: int) -> None:
    for call in (tree.tree.attrs, tree.tree.children, tree.tree.listxattr):
        with pytest.raises(Stale):
            call(ino)


def test_inodes_of_deleted_images_are_stale(tree: Bench) -> None:
    """The kernel then walks the path again, and the user gets what is true."""
    path = tree.directory(tree.put("x"))
    inodes = [tree.ino(name) for name in (path, f"{path}/data", f"{path}/metadata.json")]
    tree.unlink("by-name/x")
    for ino in inodes:
        with pytest.raises(Stale):
            tree.tree.attrs(ino)
        with pytest.raises(Stale):
            tree.tree.open(ino, os.O_RDONLY, ROOT, 1)
    with pytest.raises(Stale):
        tree.tree.lookup(inodes[0], b"data")


# -- rendered files --------------------------------------------------------------------------------


def test_metadata_json(tree: Bench) -> None:
    path = tree.directory(tree.put("x", b"content"))
    tree.set(path, "user.property.os_distro", "debian")
    attr = tree.attr(f"{path}/metadata.json")
    text = tree.read(f"{path}/metadata.json")
    assert len(text) == attr.size
    assert json.loads(text)["os_distro"] == "debian"
    assert attr.mode == stat.S_IFREG | 0o444
    tree.set_attr(path + "/data", SetAttr(mode=0o600))
    assert tree.attr(f"{path}/metadata.json").mode == stat.S_IFREG | 0o400


def test_an_open_text_stays_what_it_was(tree: Bench) -> None:
    path = tree.directory(tree.put("x"))
    handle = tree.open(f"{path}/metadata.json")
    before = handle.pread(0, 100_000)
    tree.set(path, "user.property.more", "x" * 1000)
    assert handle.pread(0, 100_000) == before
    assert handle.size == len(before)
    assert handle.pread(10, 5) == before[10:15]
    assert handle.seek(0, os.SEEK_DATA) == 0
    assert handle.seek(3, os.SEEK_HOLE) == len(before)
    handle.flush(1)
    handle.fsync()
    assert tree.tree.handle(handle.ino, handle.fh) is handle
    tree.close(handle)
    with pytest.raises(Stale):
        tree.tree.handle(0, handle.fh)


def test_texts_are_rendered_again_by_the_next_worker(tree: Bench) -> None:
    path = tree.directory(tree.put("x"))
    ino = tree.ino(f"{path}/metadata.json")
    assert tree.tree.handle(ino, 12345).pread(0, 1) == b"{"
    assert tree.tree.handle(0, 12345).pread(0, 1) == b"{"
    tree.tree.release(12345)
    with pytest.raises(Stale):
        tree.tree.handle(tree.ino("by-name/x"), 12345)


@pytest.mark.parametrize("file", ["metadata.json", ".imagefs/status", ".imagefs/health", ".imagefs/tasks"])
def test_rendered_files_are_read_only(tree: Bench, file: str) -> None:
    path = f"{tree.directory(tree.put('x'))}/{file}" if file == "metadata.json" else file
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
        with pytest.raises(Refused):
            tree.open(path, flags)
    with pytest.raises(Refused):
        tree.set_attr(path, SetAttr(size=0))
    handle = tree.open(path)
    for call in (lambda: handle.pwrite(0, memoryview(b"x"), 1), lambda: handle.truncate(0)):
        with pytest.raises(Refused):
            call()
    tree.close(handle)
    assert tree.list(path) == []
    with pytest.raises(NotSupported):
        tree.set(path, "user.x", "y")
    for call in (tree.get, tree.remove):
        with pytest.raises(AttributeMissing):
            call(path, "user.x")


def test_status(tree: Bench) -> None:
    tree.put("x", os.urandom(100_000))
    figures = dict(line.split(": ") for line in tree.read(".imagefs/status").decode().splitlines())
    assert figures["images"] == "1"
    assert int(figures["stored_bytes"]) > 100_000
    assert figures["repository"] == str(tree.repo.path)
    assert tree.attr(".imagefs/status").size > 0
    assert tree.attr(".imagefs/status").valid == 0


def test_health_and_tasks(tree: Bench) -> None:
    assert tree.read(".imagefs/health") == b"ok\n"
    assert tree.read(".imagefs/tasks") == b""
    handle = tree.create("by-name/new%0Aline")
    handle.pwrite(0, memoryview(b"x" * 10), 1)
    task = tree.read(".imagefs/tasks").decode()
    assert task == f"{tree.id('by-name/new%0Aline')} new%0Aline: being written, 10 bytes\n"
    tree.close(handle)
    assert "closed" in tree.read(".imagefs/tasks").decode()
    tree.set("by-name/new%0Aline", "user.imagefs.draft", "1")
    assert "held back" in tree.read(".imagefs/tasks").decode()


# -- extended attributes through the tree ----------------------------------------------------------


def test_attributes_are_those_of_directory_and_data_alike(tree: Bench) -> None:
    path = tree.put("x")
    directory = tree.directory(path)
    tree.set(path, "user.property.os_distro", "debian")
    tree.set(directory, "user.image.tags", "one,two")
    tree.set(f"{directory}/data", "user.other", "kept")
    for name in (path, directory, f"{directory}/data"):
        assert tree.get(name, "user.property.os_distro") == "debian"
        assert tree.get(name, "user.image.tags") == "one,two"
        assert tree.get(name, "user.other") == "kept"
        assert tree.list(name) == tree.list(path)
    tree.remove(path, "user.other")
    assert tree.find(directory, "user.other") is None


def test_setting_changes_the_time_of_change(tree: Bench) -> None:
    path = tree.put("x")
    before = tree.attr(path)
    tree.set(path, "user.image.min_ram", "0")
    assert tree.attr(path) == before, "nothing was changed"
    tree.set(path, "user.image.min_ram", "1")
    assert tree.attr(path).ctime > before.ctime
    assert tree.attr(path).mtime == before.mtime


def test_attributes_of_a_file_beside_data_go_with_it(tree: Bench) -> None:
    """`rsync -aX` sets them on its temporary file before the rename."""
    path = tree.mkdir()
    tree.write(f"{path}/.tmp", b"content")
    tree.set(f"{path}/.tmp", "user.property.os_distro", "debian")
    tree.set(f"{path}/.tmp", "user.image.size", "7")
    tree.set_attr(f"{path}/.tmp", SetAttr(mode=0o600, mtime=5))
    assert tree.find(path, "user.property.os_distro") is None
    tree.rename(f"{path}/.tmp", f"{path}/data")
    assert tree.get(path, "user.property.os_distro") == "debian"
    attr = tree.attr(f"{path}/data")
    assert (attr.mode & 0o7777, attr.mtime) == (0o600, 5)
    tree.seal(path)
    assert tree.status(path) == "active"


def test_sealing_by_attribute(tree: Bench) -> None:
    """S3: seals now and reports errors."""
    path = "by-name/x"
    tree.write(path, b"content")
    assert tree.get(path, "user.imagefs.seal") == "0"
    for value in ("0", "yes", ""):
        with pytest.raises(InvalidValue):
            tree.set(path, "user.imagefs.seal", value)
    assert tree.tree.waits(b"user.imagefs.seal")
    tree.seal(path)
    assert tree.status(path) == "active"
    assert tree.get(path, "user.imagefs.seal") == "1"
    assert int(tree.get(path, "user.imagefs.stored_bytes")) > 0
    assert tree.get(path, "user.imagefs.layout") == "plain"
    tree.seal(path)
    with pytest.raises(InvalidValue):
        tree.set("by-name", "user.imagefs.seal", "1")


def test_why_a_draft_is_not_sealed(tree: Bench) -> None:
    """S3, S14: `user.imagefs.seal_blocked` says why."""

    def reason(path: str = "by-name/x") -> str | None:
        return tree.find(path, "user.imagefs.seal_blocked")

    handle = tree.create("by-name/x")
    assert reason() is None, "it is being written"
    tree.close(handle)
    assert reason(), "it is blank"
    tree.write("by-name/x", b"content")
    assert reason() is None
    tree.set("by-name/x", "user.imagefs.draft", "1")
    assert "user.imagefs.draft" in (reason() or "")
    tree.remove("by-name/x", "user.imagefs.draft")
    tree.images.update_draft(tree.id("by-name/x"), drafts.blocked("the writer was killed"))
    assert reason() == "the writer was killed"
    tree.images.update_draft(tree.id("by-name/x"), drafts.blocked(None))
    tree.images.update_draft(tree.id("by-name/x"), lambda draft: replace(draft, failed="the disk is full"))
    assert reason() == "the disk is full"
    tree.seal("by-name/x")
    assert reason() is None
    assert reason(tree.mkdir()) is None


def test_a_record_is_carried_over_by_its_attributes(tree: Bench) -> None:
    """S8: what `cp -a`, `rsync -X` and `tar --xattrs` do between two mounts."""
    source = tree.put("source", b"content")
    tree.set(source, "user.image.min_ram", "512")
    tree.set(source, "user.image.tags", "a,b")
    tree.set(source, "user.property.os_distro", "debian")
    tree.set(source, "user.other", "kept")
    tree.write("by-name/copy", b"content")
    for name in tree.list(source):
        tree.set("by-name/copy", name, tree.get(source, name))
    tree.seal("by-name/copy")
    assert tree.get("by-name/copy", "user.image.name") == "copy"
    own = {"user.image.name", "user.image.id", "user.image.created_at", "user.image.updated_at"}
    for name in set(tree.list(source)) - own:
        assert tree.get("by-name/copy", name) == tree.get(source, name)


def test_a_second_rsync_without_attributes_keeps_the_file(tree: Bench) -> None:
    """`rsync -X` removes from the copy every attribute that the source lacks, the name too."""
    path = tree.put("x", b"content")
    tree.set(path, "user.property.os_distro", "debian")
    for name in tree.list(path):
        tree.remove(path, name)
    assert tree.names("by-name") == ["x"]
    assert tree.status(path) == "active"
    assert tree.find(path, "user.property.os_distro") is None


def test_the_root_has_no_attributes(tree: Bench) -> None:
    assert tree.tree.listxattr(Ino.ROOT) == []
    with pytest.raises(AttributeMissing):
        tree.tree.getxattr(Ino.ROOT, b"user.x")
    with pytest.raises(NotSupported):
        tree.tree.getxattr(Ino.ROOT, b"system.posix_acl_access")
