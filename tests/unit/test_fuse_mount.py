"""What processes see of a mount that the kernel transport serves: a real one, of a fake tree."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mounted import ok, wait_until
from tests.unit.fuse_mounted import FakeMount

pytestmark = [
    pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="there is no /dev/fuse to open"),
    pytest.mark.timeout(120),
]
MIB = 1 << 20


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeMount]:
    mount = FakeMount(tmp_path_factory.mktemp("mount"))
    (mount.state / "watch").touch()
    with mount:
        yield mount


def number_of(action: Any, *arguments: Any) -> int | None:
    """The error number that the call fails with."""
    try:
        action(*arguments)
    except OSError as error:
        return error.errno
    return None


def python(code: str, *words: str | Path) -> str:
    """Runs code in a process of its own: page faults in the mount would hold this one's interpreter."""
    return ok(sys.executable, "-c", code, *words, timeout=30)


def test_mount_shows_the_repository(mounted: FakeMount) -> None:
    line = ok("findmnt", "-n", "-o", "SOURCE,FSTYPE", mounted.path)
    assert "fuse.imagefs" in line
    assert os.stat(mounted.path).st_ino == 1
    assert os.statvfs(mounted.path).f_bavail == 400


def test_cp_in_and_out_with_holes(mounted: FakeMount, tmp_path: Path) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    with source.open("wb") as file:
        file.write(os.urandom(3 * MIB + 17))
        file.seek(20 * MIB)
        file.write(b"end")
    ok("cp", source, mounted.dir / "copy")
    ok("cp", mounted.dir / "copy", back)
    ok("cmp", source, back)
    assert back.stat().st_blocks * 512 < 5 * MIB
    assert (mounted.dir / "copy").stat().st_blocks * 512 < 5 * MIB


def test_seek_finds_data_and_holes(mounted: FakeMount) -> None:
    path = mounted.dir / "sparse"
    with path.open("w+b", buffering=0) as file:
        file.truncate(10 * MIB)
        os.pwrite(file.fileno(), b"x" * 4096, 5 * MIB)
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 5 * MIB
        assert os.lseek(file.fileno(), 5 * MIB, os.SEEK_HOLE) == 5 * MIB + 4096
        assert number_of(os.lseek, file.fileno(), 6 * MIB, os.SEEK_DATA) == errno.ENXIO


def test_requests_are_one_mebibyte(mounted: FakeMount) -> None:
    before = mounted.ask("count['WRITE']")
    with (mounted.dir / "big").open("wb", buffering=0) as file:
        file.write(os.urandom(16 * MIB))
    assert mounted.ask("count['WRITE']") - before == 16


def test_random_writes_truncate_and_reopen(mounted: FakeMount) -> None:
    path = mounted.dir / "random"
    with path.open("w+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"tail", 100_000)
        os.pwrite(file.fileno(), b"head", 0)
        os.fsync(file.fileno())
        file.truncate(50_000)
    assert path.stat().st_size == 50_000
    assert path.read_bytes() == b"head" + bytes(49_996)
    with path.open("ab", buffering=0) as file:
        file.write(b"more")
    assert path.stat().st_size == 50_004
    path.write_bytes(b"short")
    assert path.read_bytes() == b"short"


def test_direct_io(mounted: FakeMount) -> None:
    path = mounted.dir / "direct"
    ok("dd", "if=/dev/urandom", f"of={path}", "bs=1M", "count=3", "oflag=direct")
    first = ok("sha256sum", path).split()[0]
    out = ok("bash", "-c", f"dd if={path} bs=64k iflag=direct status=none | sha256sum")
    assert out.split()[0] == first


def test_private_and_shared_maps(mounted: FakeMount) -> None:
    path = mounted.dir / "mapped"
    path.write_bytes(b"a" * 100_000)
    code = """
import mmap, sys
with open(sys.argv[1], "r+b") as file:
    view = mmap.mmap(file.fileno(), 0)
    assert view[50_000:50_003] == b"aaa"
    view[99_990:99_993] = b"XYZ"
    view.flush()
    private = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    private[0:1] = b"-"
print(open(sys.argv[1], "rb").read()[99_990:99_993])
"""
    assert python(code, path) == "b'XYZ'\n"
    assert path.read_bytes()[:1] == b"a"


def test_copy_file_range_is_one_request(mounted: FakeMount) -> None:
    source, target = mounted.dir / "cfr-a", mounted.dir / "cfr-b"
    source.write_bytes(os.urandom(3 * MIB))
    before = mounted.ask("count['COPY_FILE_RANGE'] + count['COPY_FILE_RANGE_64']")
    with source.open("rb") as a, target.open("wb") as b:
        assert os.copy_file_range(a.fileno(), b.fileno(), 3 * MIB) == 3 * MIB
    assert mounted.ask("count['COPY_FILE_RANGE'] + count['COPY_FILE_RANGE_64']") == before + 1
    assert source.read_bytes() == target.read_bytes()


def test_names(mounted: FakeMount) -> None:
    directory = mounted.path / "images" / "names"
    directory.mkdir(mode=0o750)
    assert directory.stat().st_mode & 0o777 == 0o750
    (directory / "a").write_bytes(b"1")
    os.mknod(directory / "node", 0o600)
    assert number_of(os.mkfifo, directory / "fifo") == errno.EPERM
    assert number_of(os.symlink, "a", directory / "s") == errno.EPERM
    assert number_of(os.link, directory / "a", directory / "l") == errno.EPERM
    assert number_of(os.mkdir, directory / "a") == errno.EEXIST
    assert number_of(os.unlink, directory / "absent") == errno.ENOENT
    assert number_of(os.mkdir, directory / "refused") == errno.EPERM
    assert number_of(os.rmdir, directory) == errno.ENOTEMPTY
    assert number_of(os.mkdir, directory / ("x" * 300)) == errno.ENAMETOOLONG
    assert sorted(os.listdir(directory)) == ["a", "node"]
    (directory / "a").unlink()
    (directory / "node").unlink()
    directory.rmdir()
    assert number_of(os.stat, directory) == errno.ENOENT


def test_rename(mounted: FakeMount) -> None:
    old, new = mounted.dir / "ren-a", mounted.dir / "ren-b"
    old.write_bytes(b"a")
    new.write_bytes(b"b")
    code = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
a, b = (os.fsencode(word) for word in sys.argv[1:3])
print(libc.renameat2(-100, a, -100, b, int(sys.argv[3])), ctypes.get_errno())
"""
    assert python(code, old, new, "1") == f"-1 {errno.EEXIST}\n"
    assert python(code, old, new, "2") == f"-1 {errno.EINVAL}\n"
    old.rename(new)
    assert new.read_bytes() == b"a"
    assert not old.exists()
    assert python(code, new, old, "1") == "0 0\n"
    assert old.read_bytes() == b"a"


def test_attributes(mounted: FakeMount) -> None:
    path = mounted.dir / "attr"
    path.write_bytes(b"")
    path.chmod(0o604)
    os.chown(path, 12, 34)
    os.utime(path, ns=(1_000_000_001, 2_000_000_002))
    status = path.stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o604, 12, 34)
    assert (status.st_atime_ns, status.st_mtime_ns) == (1_000_000_001, 2_000_000_002)
    os.utime(path)
    assert abs(path.stat().st_mtime - time.time()) < 60
    assert ok("stat", "-c", "%W", path).strip() not in {"0", "-"}


def test_xattrs(mounted: FakeMount) -> None:
    path = mounted.dir / "xattr"
    path.write_bytes(b"")
    os.setxattr(path, "user.a", b"\0bytes\xff")
    os.setxattr(path, "user.empty", b"", os.XATTR_CREATE)
    assert os.getxattr(path, "user.a") == b"\0bytes\xff"
    assert os.getxattr(path, "user.empty") == b""
    assert sorted(os.listxattr(path)) == ["user.a", "user.empty"]
    assert number_of(os.setxattr, path, "user.a", b"", os.XATTR_CREATE) == errno.EEXIST
    assert number_of(os.setxattr, path, "user.no", b"", os.XATTR_REPLACE) == errno.ENODATA
    assert number_of(os.getxattr, path, "user.no") == errno.ENODATA
    assert number_of(os.getxattr, path, "security.selinux") == errno.EOPNOTSUPP
    assert number_of(os.getxattr, path, "system.posix_acl_access") == errno.EOPNOTSUPP
    os.removexattr(path, "user.a")
    assert number_of(os.removexattr, path, "user.a") == errno.ENODATA
    assert os.listxattr(path) == ["user.empty"]
    code = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
buffer = ctypes.create_string_buffer(2)
print(libc.getxattr(os.fsencode(sys.argv[1]), b"user.long", buffer, 2), ctypes.get_errno())
"""
    os.setxattr(path, "user.long", b"12345")
    assert python(code, path) == f"-1 {errno.ERANGE}\n"


def test_sealed_data_stays_cached(mounted: FakeMount) -> None:
    path = mounted.dir / "sealed"
    path.write_bytes(os.urandom(MIB))
    os.setxattr(path, "user.imagefs.seal", b"1")
    path.read_bytes()
    before = mounted.ask("count['READ']")
    path.read_bytes()
    assert mounted.ask("count['READ']") == before
    assert number_of(os.open, path, os.O_WRONLY) == errno.EPERM


def test_a_vanished_node_is_looked_up_again(mounted: FakeMount) -> None:
    path = mounted.dir / "vanishing"
    path.write_bytes(b"1")
    with path.open("rb"):
        mounted.ask("fs.unlink(3, b'vanishing', None)")
        assert number_of(os.open, path, os.O_RDONLY) == errno.ENOENT
    path.write_bytes(b"2")
    assert path.read_bytes() == b"2"


def test_notifications_are_seen(mounted: FakeMount) -> None:
    path, other = mounted.dir / "noted", mounted.dir / "noted-b"
    path.write_bytes(b"1")
    ino = path.stat().st_ino
    os.listdir(mounted.dir)
    mounted.ask(
        "(fs.rename(3, b'noted', 3, b'noted-b', 0, None), push(op=Op.RENAME,"
        f"old_entry=b'noted', old_data_ino={ino}, origin=None,"
        f"record=NS(id='x', entry=b'noted-b', data_ino={ino}, dir_ino=1000)))[1]"
    )
    wait_until(lambda: not path.exists() and other.exists(), 2, "the new name")
    assert "noted-b" in os.listdir(mounted.dir)
    assert "noted" not in os.listdir(mounted.dir)


def test_changes_and_notifications_side_by_side(mounted: FakeMount) -> None:
    """Notifications about a directory in which names are being changed: nothing locks up."""
    code = """
import os, sys
for number in range(300):
    path = f"{sys.argv[1]}/{sys.argv[2]}-{number}"
    open(path, "w").close()
    os.unlink(path)
"""
    writers = [subprocess.Popen([sys.executable, "-c", code, str(mounted.dir), name]) for name in ("x", "y")]
    row = (
        "push(op=Op.DELETE, old_entry=b'x-1', old_data_ino=5, origin=None,"
        "record=NS(id='i', entry=None, data_ino=5, dir_ino=2))"
    )
    while any(writer.poll() is None for writer in writers):
        mounted.ask(row)
    assert [writer.wait(30) for writer in writers] == [0, 0]


def test_requests_that_wait_do_not_hold_up_others(mounted: FakeMount) -> None:
    path = mounted.dir / "waited-for"
    path.write_bytes(b"")
    os.setxattr(path, "user.hang", b"now")
    mounted.ask("fs.hang.clear()")
    waiting = [subprocess.Popen(["getfattr", "-n", "user.hang", path]) for _ in range(9)]
    try:
        wait_until(lambda: mounted.ask("len(device.lanes())") > 9, 10, "more threads")
        (mounted.dir / "meanwhile").write_bytes(b"x")
        (mounted.dir / "meanwhile").unlink()
    finally:
        mounted.ask("fs.hang.set()")
    assert [process.wait(10) for process in waiting] == [0] * 9
    wait_until(lambda: os.getxattr(path, "user.hang") and mounted.ask("len(device.lanes())") < 8, 20, "fewer threads")


def test_a_bug_answers_eio(mounted: FakeMount) -> None:
    assert number_of(os.mkdir, mounted.dir / "bug") == errno.EIO
    assert "ZeroDivisionError" in mounted.log.read_text()


def test_locks_are_the_kernels(mounted: FakeMount) -> None:
    path = mounted.dir / "locked"
    path.write_bytes(b"")
    code = """
import fcntl, sys
with open(sys.argv[1]) as file:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        print("locked")
    except BlockingIOError:
        print("refused")
"""
    assert python(code, path) == "locked\n"
    with path.open() as file:
        __import__("fcntl").flock(file, 2)
        assert python(code, path) == "refused\n"


def test_an_ioctl_is_refused_politely(mounted: FakeMount) -> None:
    path = mounted.dir / "ioctl"
    path.write_bytes(b"")
    with path.open() as file:
        assert not file.isatty()


def test_a_listing_of_ten_thousand(mounted: FakeMount) -> None:
    directory = mounted.path / "images" / "many"
    directory.mkdir()
    mounted.ask(f"fs.populate({directory.stat().st_ino}, 10000)")
    before = mounted.ask("count['GETXATTR']"), mounted.ask("count['LOOKUP']")
    lines = ok("ls", "-l", directory).splitlines()
    assert len(lines) == 10_001
    assert len(set(lines)) == 10_001
    assert mounted.ask("count['GETXATTR']") - before[0] < 10
    assert mounted.ask("count['LOOKUP']") - before[1] < 10
