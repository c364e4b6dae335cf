"""`mount`, `umount` and what mount(8) runs, with real mounts."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagefs.cli import users
from imagefs.cli.running import Running, running
from tests.mounted import ROOT, TRANSPORTS, Mounted, alive, fails, ok, run, wait_until

pytestmark = pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="no /dev/fuse")


@pytest.fixture(params=TRANSPORTS)
def mounted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mounted]:
    with Mounted(tmp_path, transport=request.param) as mount:
        yield mount


@pytest.fixture
def unmounted(tmp_path: Path) -> Iterator[Mounted]:
    mount = Mounted(tmp_path)
    yield mount
    mount.destroy()


def foreground(mount: Mounted) -> list[str]:
    """The command that mounts it and stays."""
    command = [sys.executable, "-m", "imagefs", "--repo", str(mount.repo)]
    return [*command, "mount", "--foreground", str(mount.path)]


def test_mount_makes_the_repository_and_says_what_to_try(unmounted: Mounted) -> None:
    done = unmounted.imagefs("mount", unmounted.path)
    assert done.returncode == 0, done.stderr
    assert f"Created the repository {unmounted.repo}." in done.stderr
    assert f"cp disk.qcow2 {unmounted.path}/by-name/" in done.stderr
    assert sorted(path.name for path in unmounted.path.iterdir()) == [".imagefs", "by-name", "images"]
    unmounted.pids |= set(unmounted.processes())
    unmounted.umount()
    assert "Created" not in unmounted.imagefs("mount", unmounted.path).stderr
    unmounted.umount()


def test_status_of_a_mount(mounted: Mounted) -> None:
    status = mounted.status()
    assert (status["transport"], status["mountpoints"]) == (mounted.transport, [str(mounted.path)])
    assert alive(status["worker_pid"])
    assert alive(status["supervisor_pid"])
    (session,) = status["sessions"]
    assert (session["kind"], session["alive"]) == ("mount", True)
    (mount,) = status["mounts"]
    assert mount["session"] == session["id"]
    assert mount["options"]["settle_seconds"] == mounted.settle
    assert Path(mount["log"]).exists()
    assert str(mounted.path) in mounted.command("status")


def test_the_command_line_and_the_mount_see_each_other(mounted: Mounted) -> None:
    source = mounted.outside / "disk"
    source.write_bytes(os.urandom(1 << 20))
    mounted.command("create", "--file", source, "made")
    wait_until((mounted.by_name / "made").exists, 5, "the new image in the mount")
    assert (mounted.by_name / "made").read_bytes() == source.read_bytes()
    ok("cp", source, mounted.by_name / "copied")
    mounted.command("wait", "copied", "--timeout", "30")
    mounted.command("save", "copied", mounted.outside / "out")
    assert (mounted.outside / "out").read_bytes() == source.read_bytes()
    mounted.command("delete", "copied")
    wait_until(lambda: not (mounted.by_name / "copied").exists(), 5, "the end of the deleted image")
    mounted.command("set", "made", "--name", "renamed", "--property", "a=b")
    wait_until((mounted.by_name / "renamed").exists, 5, "the new name")
    wait_until(lambda: mounted.attribute(mounted.by_name / "renamed", "user.property.a") == "b", 5, "the property")
    mounted.command("fsck")


def test_umount_names_who_is_in_there(mounted: Mounted) -> None:
    with subprocess.Popen(["sleep", "60"], cwd=mounted.by_name) as process:
        try:
            said = mounted.imagefs("umount", mounted.path)
            assert said.returncode == 6
            assert f"sleep ({process.pid})" in said.stderr
            assert mounted.is_mounted()
            assert mounted.command("umount", "--lazy", mounted.path) == ""
            assert not mounted.is_mounted()
        finally:
            process.kill()
    wait_until(lambda: not any(map(alive, mounted.pids)), 20, "the end of the daemon")


def test_umount_without_a_mountpoint_takes_all_of_the_repository(mounted: Mounted) -> None:
    second = mounted.base / "second"
    second.mkdir()
    mounted.command("mount", "--transport", mounted.transport, second)
    assert sorted(mounted.status()["mountpoints"]) == sorted([str(mounted.path), str(second)])
    mounted.command("umount")
    assert str(mounted.base) not in Path("/proc/self/mountinfo").read_text()
    assert mounted.imagefs("umount").returncode == 3
    wait_until(lambda: not any(map(alive, mounted.pids)), 20, "the end of the daemons")


def test_plain_umount_ends_the_daemon(mounted: Mounted) -> None:
    ok("umount", mounted.path)
    wait_until(lambda: not any(map(alive, mounted.pids)), 20, "the end of the daemon")
    assert mounted.status()["mounts"] == []
    assert list((mounted.repo / "sessions").iterdir()) == []


def test_a_dead_mount_is_cleared_away_by_the_next(mounted: Mounted) -> None:
    (mounted.by_name / "draft").write_bytes(b"written")
    mounted.kill()
    assert mounted.status()["dead_mountpoints"] == [str(mounted.path)]
    done = mounted.imagefs("mount", "--transport", mounted.transport, mounted.path)
    assert done.returncode == 0, done.stderr
    assert "Cleared away the dead mount" in done.stderr
    mounted.pids |= set(mounted.processes())
    assert (mounted.by_name / "draft").read_bytes() == b"written"
    mounted.umount()


def test_umount_takes_a_dead_mount_away(mounted: Mounted) -> None:
    mounted.kill()
    mounted.command("umount", mounted.path)
    assert not mounted.is_mounted()


def test_the_worker_is_replaced_and_status_knows(tmp_path: Path) -> None:
    with Mounted(tmp_path) as mounted:
        before = mounted.status()
        os.kill(before["worker_pid"], signal.SIGKILL)
        wait_until(lambda: mounted.status()["worker_pid"] != before["worker_pid"], 20, "another worker")
        mounted.pids |= set(mounted.processes())
        after = mounted.status()
        assert after["supervisor_pid"] == before["supervisor_pid"]
        assert after["mounts"][0]["incarnation"] == 1
        assert len(after["sessions"]) == 1
        assert mounted.by_name.exists()
        mounted.umount()


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("absent", "mkdir -p"),
        ("file", "not a directory"),
        ("repo/below", "cannot lie in one another"),
        (".", "cannot lie in one another"),
    ],
)
def test_mountpoints_that_cannot_be_used(unmounted: Mounted, place: str, says: str) -> None:
    (unmounted.base / "file").touch()
    unmounted.command("init")
    (unmounted.repo / "below").mkdir()
    done = unmounted.imagefs("mount", unmounted.base / place)
    assert (done.returncode, says in done.stderr) == (32, True), done.stderr
    assert "Traceback" not in done.stderr


def test_a_mountpoint_in_use(mounted: Mounted) -> None:
    done = mounted.imagefs("mount", mounted.path)
    assert (done.returncode, "already" in done.stderr) == (32, True)
    done = mounted.imagefs("--repo", mounted.base / "other", "mount", mounted.path)
    assert (done.returncode, "unmount it" in done.stderr) == (32, True)
    assert not (mounted.base / "other").exists()


def test_a_directory_that_is_no_repository(unmounted: Mounted) -> None:
    unmounted.repo.mkdir()
    (unmounted.repo / "letter.txt").touch()
    done = unmounted.imagefs("mount", unmounted.path)
    assert done.returncode == 5
    assert "not empty" in done.stderr


def test_a_damaged_catalog_is_the_mounts_message(unmounted: Mounted) -> None:
    unmounted.command("init")
    os.truncate(unmounted.repo / "catalog" / "data.mdb", 4096 * 3)
    done = unmounted.imagefs("mount", unmounted.path)
    assert done.returncode == 32
    assert "log: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not unmounted.is_mounted()
    assert unmounted.imagefs("list").returncode == 13


def test_bad_settings_are_refused_before_anything_happens(unmounted: Mounted) -> None:
    assert unmounted.imagefs("mount", "--settle", "-1", unmounted.path).returncode == 7
    config = unmounted.base / "config.toml"
    config.write_text("setle_seconds = 2\n")
    done = unmounted.imagefs("--config", config, "mount", unmounted.path)
    assert (done.returncode, "setle_seconds" in done.stderr) == (7, True)
    assert not unmounted.repo.exists()


def test_settings_come_from_the_file_and_the_command_line(unmounted: Mounted) -> None:
    config = unmounted.base / "config.toml"
    config.write_text('project = "from-file"\nsettle_seconds = 0.2\n')
    unmounted.imagefs("--config", config, "mount", "--uid", "1234", unmounted.path)
    unmounted.pids |= set(unmounted.processes())
    (unmounted.by_name / "x").write_bytes(b"data")
    unmounted.wait_status(unmounted.by_name / "x")
    assert unmounted.attribute(unmounted.by_name / "x", "user.image.owner") == "from-file"
    assert unmounted.by_name.stat().st_uid == 1234
    unmounted.umount()


def test_foreground_stays_is_ready_and_ends_on_sigterm(unmounted: Mounted) -> None:
    address = str(unmounted.base / "notify")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NOTIFY_SOCKET": address}
    words = foreground(unmounted)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(60)
        with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) as process:
            assert manager.recv(100) == b"READY=1"
            unmounted.pids |= set(unmounted.processes())
            assert unmounted.by_name.is_dir()
            process.terminate()
            _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert not unmounted.is_mounted()
    wait_until(lambda: not any(map(alive, unmounted.pids)), 10, "the end of the daemon")


def test_ctrl_c_in_the_foreground_unmounts(unmounted: Mounted) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = foreground(unmounted)
    with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True, process_group=0) as process:
        assert process.stderr is not None
        while "umount" not in process.stderr.readline():
            assert process.poll() is None
        unmounted.pids |= set(unmounted.processes())
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "Traceback" not in said
    assert not unmounted.is_mounted()
    assert unmounted.status()["mounts"] == []


def test_what_mount_8_runs(unmounted: Mounted) -> None:
    words = (
        "mount-helper",
        unmounted.repo,
        unmounted.path,
        "-o",
        "rw,nosuid,x-systemd.automount,settle=0.5,uid=7",
    )
    done = unmounted.imagefs(*words)
    assert done.returncode == 0, done.stderr
    unmounted.pids |= set(unmounted.processes())
    assert unmounted.status()["mounts"][0]["options"] == {"settle_seconds": 0.5, "uid": 7}
    assert unmounted.by_name.stat().st_uid == 7
    fails("mountpoint", "-q", unmounted.repo)
    ok("umount", unmounted.path)
    wait_until(lambda: not any(map(alive, unmounted.pids)), 20, "the end of the daemon")
    done = unmounted.imagefs("mount-helper", unmounted.repo, unmounted.path, "-o", "frobnicate")
    assert (done.returncode, "frobnicate" in done.stderr) == (32, True)


def test_umount_of_what_is_not_ours(unmounted: Mounted) -> None:
    assert unmounted.imagefs("umount", "/proc").returncode == 3
    assert unmounted.imagefs("umount", unmounted.path).returncode == 3


def test_records_of_dead_mounts_are_removed(unmounted: Mounted) -> None:
    unmounted.command("init")
    record = Running(
        session="11111111-2222-4333-8444-000000000001",
        mountpoint="/nowhere", transport="kernel", worker_pid=1, supervisor_pid=1,
    )  # fmt: skip
    record.write(unmounted.repo)
    (unmounted.repo / "run" / "odd.json").write_text("{")
    assert running(unmounted.repo) == []
    assert json.loads(unmounted.command("status", "--json"))["mounts"] == []
    assert not (unmounted.repo / "run" / f"{record.session}.json").exists()


def test_users_of_a_directory(tmp_path: Path) -> None:
    held = tmp_path / "held"
    held.touch()
    with subprocess.Popen(["sleep", "60"], stdin=held.open()) as process:
        try:
            wait_until(lambda: (process.pid, "sleep") in users.users_of(str(tmp_path)), 10, "the user of the file")
        finally:
            process.kill()
    assert users.users_of(str(tmp_path / "nothing")) == []
    assert users.sentence([(n, f"p{n}") for n in range(7)]).endswith("p4 (4) and 2 more")
    assert run("true").returncode == 0


def test_doctor_knows_dead_mounts(mounted: Mounted) -> None:
    def mount_points() -> list[tuple[str, str]]:
        points = json.loads(mounted.imagefs("doctor", "--json").stdout)
        return [(point["state"], point["found"]) for point in points if point["point"] == "mount"]

    assert mount_points() == [("ok", f"{mounted.path} answers")]
    mounted.kill()
    ((state, found),) = mount_points()
    assert (state, "dead" in found) == ("note", True)


def test_a_hung_mount_is_seen_and_ended_by_force(mounted: Mounted) -> None:
    worker = mounted.status()["worker_pid"]
    os.kill(worker, signal.SIGSTOP)
    points = json.loads(mounted.imagefs("doctor", "--json").stdout)
    assert "does not answer" in next(point["found"] for point in points if point["point"] == "mount")
    mounted.command("umount", "--force", mounted.path)
    assert not mounted.is_mounted()
    assert not any(map(alive, mounted.pids))
    assert mounted.status()["sessions"] == []
    mounted.mount()
    mounted.umount()
