"""Finding mounts, telling dead ones from live ones, mounting without being root."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from imagefs.errors import Busy, MountFailed
from imagefs.fuse import mounting, mounts
from imagefs.fuse.mounts import Mount, State
from tests.mounted import run, wait_until
from tests.unit.fuse_mounted import ROOT, FakeMount

DEVICE = Path("/dev/fuse")
needs_fuse = pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="there is no /dev/fuse to open")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

MOUNTINFO = r"""
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
40 22 0:39 / /mnt/with\040space rw,nosuid shared:1 master:2 - fuse.imagefs /srv/a\134b\011c rw,user_id=0
41 22 0:40 / /mnt/with\040space rw - fuse.sshfs host: rw
""".strip()


def test_lines_of_mountinfo() -> None:
    assert mounts.parse(MOUNTINFO) == [
        Mount("/", "/dev/sda1", "ext4", "8:1"),
        Mount("/mnt/with space", "/srv/a\\b\tc", "fuse.imagefs", "0:39"),
        Mount("/mnt/with space", "host:", "fuse.sshfs", "0:40"),
    ]


def test_the_last_mount_hides_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTINFO)
    monkeypatch.setattr(mounts, "MOUNTINFO", tmp_path / "mountinfo")
    found = mounts.at("/mnt/with space")
    assert found is not None
    assert found.fstype == "fuse.sshfs"
    assert [mount.connection for mount in mounts.of_repository("/srv/a\\b\tc")] == [39]
    assert mounts.of_repository("host:") == []
    assert mounts.at("/mnt") is None


@pytest.mark.parametrize(("path", "says"), [("absent", "No such file"), ("file", "not a directory")])
def test_what_cannot_be_mounted_on(tmp_path: Path, path: str, says: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MountFailed, match=says):
        mounting.mount(tmp_path / path, "x", allow_other=False)


def test_unmounting_what_is_not_mounted(tmp_path: Path) -> None:
    with pytest.raises(MountFailed):
        mounting.umount(tmp_path)


def test_aborting_what_is_not_there() -> None:
    assert mounts.abort(999_999) is False


@needs_fuse
def test_a_live_mount(tmp_path: Path) -> None:
    with FakeMount(tmp_path) as mount:
        found = mounts.of_repository(mount.source)
        assert [one.mountpoint for one in found] == [str(mount.path)]
        assert mounts.state(found[0]) is State.ALIVE
        assert mounts.clear_dead(mount.source) == []
        with (mount.dir / "open").open("w"), pytest.raises(Busy):
            mounting.umount(mount.path)
        if os.geteuid() == 0:
            assert Path(f"/sys/class/bdi/{found[0].device}/read_ahead_kb").read_text().strip() == "4096"


@needs_fuse
def test_a_dead_mount_is_cleared_away(tmp_path: Path) -> None:
    with FakeMount(tmp_path) as mount:
        for pid in (mount.supervisor.pid, mount.worker):
            os.kill(pid, signal.SIGKILL)
        mount.supervisor.wait(10)
        found = mounts.of_repository(mount.source)
        wait_until(lambda: mounts.state(found[0]) is State.DEAD, 10, "the mount's death")
        assert mounts.clear_dead(mount.source) == found
        assert mounts.of_repository(mount.source) == []


@needs_fuse
@needs_root
def test_a_hung_mount_is_found_and_aborted(tmp_path: Path) -> None:
    with FakeMount(tmp_path) as mount:
        for pid in (mount.supervisor.pid, mount.worker):
            os.kill(pid, signal.SIGSTOP)
        try:
            found = mounts.of_repository(mount.source)
            assert mounts.state(found[0], deadline=0.5) is State.HUNG
            assert mounts.abort(mount.connection)
            wait_until(lambda: mounts.state(found[0]) is State.DEAD, 10, "the mount's death")
        finally:
            for pid in (mount.worker, mount.supervisor.pid):
                os.kill(pid, signal.SIGCONT)
        wait_until(lambda: not mounts.of_repository(mount.source), 10, "the supervisor's clean end")


AS_NOBODY = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from imagefs.fuse import mounts
from tests.unit.fuse_mounted import FakeMount
with FakeMount(Path(sys.argv[1])) as mount:
    (mount.dir / "mine").write_bytes(b"1" * 3_000_000)
    print(len((mount.dir / "mine").read_bytes()), (mount.dir / "mine").stat().st_uid)
    mount.kill_worker()
    print(len((mount.dir / "mine").read_bytes()))
    print(*(found.mountpoint == str(mount.path) for found in mounts.of_repository(mount.source)))
print(mount.supervisor.returncode)
"""


@needs_fuse
@needs_root
@pytest.mark.skipif(not DEVICE.exists() or DEVICE.stat().st_mode & 6 != 6, reason="/dev/fuse is for root only")
def test_mounting_as_somebody_else(tmp_path: Path) -> None:
    for directory in (tmp_path, *tmp_path.parents[:3]):
        if directory.is_relative_to("/tmp") and directory != Path("/tmp"):
            directory.chmod(0o755)
    nobody: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": [], "cwd": "/"}
    try:
        assert run(sys.executable, "-c", "import lmdb", **nobody).returncode == 0
    except (PermissionError, AssertionError):
        pytest.skip("nobody else can run this interpreter")
    base = tmp_path / "base"
    base.mkdir()
    os.chown(base, 65534, 65534)
    done = run(sys.executable, "-c", AS_NOBODY, base, ROOT, **nobody)
    assert done.stdout.split() == ["3000000", "65534", "3000000", "True", "0"], done.stderr
