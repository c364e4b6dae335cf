"""Workers come and go; who has files open in the mount notices nothing (S13)."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagefs.errors import MountFailed
from imagefs.fuse import mounts, starting
from imagefs.fuse.kernel.device import Device, Ended
from imagefs.fuse.kernel.request import Served
from tests.mounted import alive, ok, wait_until
from tests.unit.fuse_mounted import FakeMount

pytestmark = [
    pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="there is no /dev/fuse to open"),
    pytest.mark.timeout(120),
]
MIB = 1 << 20
needs_resend = pytest.mark.skipif(
    tuple(map(int, os.uname().release.split(".")[:2])) < (6, 9),
    reason="requests are sent again since Linux 6.9",
)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[FakeMount]:
    mount = FakeMount(tmp_path)
    (mount.state / "watch").touch()
    with mount:
        yield mount


@needs_resend
def test_a_killed_worker_is_replaced_under_open_files(mounted: FakeMount) -> None:
    path = mounted.dir / "file"
    content = os.urandom(4 * MIB)
    with path.open("w+b", buffering=0) as file:
        file.write(content[:MIB])
        for n in range(1, 4):
            mounted.kill_worker()
            file.write(content[n * MIB : (n + 1) * MIB])
        file.seek(0)
        assert file.read() == content
    assert path.read_bytes() == content
    mounted.kill_worker()
    assert path.stat().st_size == 4 * MIB


@needs_resend
def test_sigkills_while_a_file_is_copied_and_read(mounted: FakeMount, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(24 * MIB))
    code = """
import os, subprocess, sys
source, target = sys.argv[1:]
for number in range(6):
    subprocess.run(["cp", source, target], check=True)
    subprocess.run(["cmp", source, target], check=True)
    os.rename(target, target + "-2")
    os.unlink(target + "-2")
"""
    with subprocess.Popen([sys.executable, "-c", code, source, mounted.dir / "target"]) as copying:
        killed = 0
        while copying.poll() is None and killed < 8:
            time.sleep(0.15)
            old = mounted.worker
            os.kill(old, signal.SIGKILL)
            killed += 1
            mounted.wait_for_another(old)
        assert copying.wait(60) == 0
    assert killed >= 3


@needs_resend
@pytest.mark.parametrize(
    ("opcode", "change"),
    [
        ("UNLINK", "os.unlink(d + '/a')"),
        ("MKDIR", "os.mkdir(d + '/b')"),
        ("CREATE", "os.close(os.open(d + '/b', os.O_CREAT | os.O_EXCL | os.O_WRONLY))"),
        ("MKNOD", "os.mknod(d + '/b')"),
        ("RENAME", "os.rename(d + '/a', d + '/b')"),
        ("SETXATTR", "os.setxattr(d + '/a', 'user.x', b'1', os.XATTR_CREATE)"),
        ("REMOVEXATTR", "os.setxattr(d + '/a', 'user.x', b'1'), os.removexattr(d + '/a', 'user.x')"),
        ("OPEN", "open(d + '/a', 'wb').close()"),
        ("RELEASE", "open(d + '/a', 'rb').close()"),
        ("WRITE", "open(d + '/a', 'r+b').write(b'22')"),
        ("SETATTR", "os.truncate(d + '/a', 1)"),
        ("RMDIR", "os.mkdir(d + '/c'), os.rmdir(d + '/c')"),
    ],
)
def test_what_was_executed_and_not_answered_happens_once(mounted: FakeMount, opcode: str, change: str) -> None:
    (mounted.dir / "a").write_bytes(b"1")
    old = mounted.worker
    mounted.die_after(opcode)
    ok(sys.executable, "-c", f"import os\nd = {str(mounted.dir)!r}\n{change}", timeout=30)
    mounted.wait_for_another(old)
    assert not (mounted.state / "die").exists()
    expected = {
        "UNLINK": [], "MKDIR": ["a", "b"], "CREATE": ["a", "b"], "MKNOD": ["a", "b"], "RENAME": ["b"],
    }.get(opcode, ["a"])  # fmt: skip
    assert sorted(os.listdir(mounted.dir)) == expected
    wait_until(lambda: mounted.ask("len(fs.handles)") == 0, 10, "the last release")


@needs_resend
def test_notifications_after_a_new_worker(mounted: FakeMount) -> None:
    (mounted.dir / "a").write_bytes(b"1")
    os.kill(mounted.supervisor.pid, signal.SIGSTOP)
    old = mounted.worker
    os.kill(old, signal.SIGKILL)
    # Changed while nobody could say so: the next worker has the kernel look every name up again.
    code = "from tests.unit.fuse_fake import *; Tree(Disk(Path(sys.argv[1]))).unlink(3, b'a', None)"
    ok(sys.executable, "-c", code, mounted.state)
    os.kill(mounted.supervisor.pid, signal.SIGCONT)
    mounted.wait_for_another(old)
    wait_until(lambda: not (mounted.dir / "a").exists(), 5, "the name to be gone")


@needs_resend
def test_a_worker_that_is_asked_to_go_is_replaced(mounted: FakeMount) -> None:
    with (mounted.dir / "a").open("wb", buffering=0) as file:
        old = mounted.worker
        os.kill(old, signal.SIGTERM)
        mounted.wait_for_another(old)
        file.write(b"x")
    assert (mounted.dir / "a").read_bytes() == b"x"
    assert "killed" not in mounted.log.read_text()


@pytest.mark.timeout(20)
def test_the_signal_to_go_waits_for_nothing() -> None:
    """Its handler interrupts the main thread anywhere, also where that has a lock."""
    reading, writing = os.pipe()
    with os.fdopen(reading), os.fdopen(writing):
        device = Device(reading, Served(None, None), 1 << 20)  # type: ignore[arg-type] # no request ever comes
        with device._lock:
            device.drain()
            device.drain()
        assert device.serve() is Ended.DRAINED


def test_unmounting_ends_both(mounted: FakeMount) -> None:
    worker = mounted.worker
    ok("umount", mounted.path)
    assert mounted.supervisor.wait(20) == 0
    assert not alive(worker)


@needs_resend
@pytest.mark.parametrize("force", [[], ["-f"]])
def test_unmounting_while_there_is_no_worker(mounted: FakeMount, force: list[str]) -> None:
    (mounted.dir / "a").write_bytes(b"1")
    os.kill(mounted.supervisor.pid, signal.SIGSTOP)
    os.kill(mounted.worker, signal.SIGKILL)
    ok("umount", "-l", *force, mounted.path)
    os.kill(mounted.supervisor.pid, signal.SIGCONT)
    assert mounted.supervisor.wait(20) == 0


def test_a_lazy_unmount_lets_open_files_go_on(mounted: FakeMount) -> None:
    with (mounted.dir / "a").open("w+b", buffering=0) as file:
        ok("umount", "-l", mounted.path)
        file.write(b"still")
        file.seek(0)
        assert file.read() == b"still"
        assert mounted.supervisor.poll() is None
    assert mounted.supervisor.wait(20) == 0


def test_sigterm_unmounts(mounted: FakeMount) -> None:
    mounted.supervisor.send_signal(signal.SIGTERM)
    assert mounted.supervisor.wait(20) == 0
    assert mounts.at(mounted.path) is None


def test_sigterm_with_files_open(mounted: FakeMount) -> None:
    worker = mounted.worker
    fd = os.open(mounted.dir / "a", os.O_CREAT | os.O_RDWR)
    try:
        mounted.supervisor.send_signal(signal.SIGTERM)
        assert mounted.supervisor.wait(20) == 0
        assert mounts.at(mounted.path) is None
        assert not alive(worker)
        with pytest.raises(OSError) as raised:
            os.pwrite(fd, b"x", 0)
        assert raised.value.errno in {errno.ENOTCONN, errno.ECONNABORTED}
    finally:
        with pytest.raises(OSError):
            os.close(fd)


@needs_resend
def test_a_worker_that_dies_again_and_again_is_given_up(mounted: FakeMount) -> None:
    (mounted.state / "broken").touch()
    os.kill(mounted.worker, signal.SIGKILL)
    with pytest.raises(OSError) as raised:
        os.stat(mounted.dir / "a")
    assert raised.value.errno in {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO}
    assert mounted.supervisor.wait(60) == 1
    assert mounts.at(mounted.path) is None
    assert "given up" in mounted.log.read_text()


def test_a_worker_that_cannot_start_says_why(tmp_path: Path) -> None:
    mount = FakeMount(tmp_path)
    (mount.state / "broken").touch()
    with pytest.raises(MountFailed, match="the state is broken"), mount:
        pass
    assert mounts.at(mount.path) is None


def test_a_worker_that_is_no_program(tmp_path: Path) -> None:
    mount = FakeMount(tmp_path)
    mount.worker_program = "/no/program"
    with pytest.raises(MountFailed, match="/no/program"), mount:
        pass
    assert mounts.at(mount.path) is None


def test_a_mountpoint_that_is_missing_says_so(tmp_path: Path) -> None:
    mount = FakeMount(tmp_path)
    mount.path.rmdir()
    with pytest.raises(MountFailed, match="No such file"), mount:
        pass


def test_the_supervisor_imports_little(mounted: FakeMount) -> None:
    mapped = Path(f"/proc/{mounted.supervisor.pid}/maps").read_text()
    assert "lmdb" not in mapped
    assert "blake3" not in mapped
    assert os.readlink(f"/proc/{mounted.supervisor.pid}/cwd") == "/"
    assert starting.READY == "ready"
