"""S5, S13-S15: what goes wrong, and what is left then."""

from __future__ import annotations

import contextlib
import ctypes.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.content import MIB, noise
from tests.mounted import Mounted, alive, fails, ok, run, wait_until
from tests.semantics.making import draft, seal, sealed, stored

READ_AND_WRITE = """
import os, sys
reading, writing = os.open(sys.argv[1], os.O_RDONLY), os.open(sys.argv[2], os.O_RDWR | os.O_CREAT)
os.write(writing, b"before")
print("open", flush=True)
sys.stdin.readline()
out = open(sys.argv[3], "wb")
for offset in range(0, 12 << 20, 1 << 18):
    out.write(os.pread(reading, 1 << 18, offset))
    os.write(writing, b"after!" * 1000)
os.fsync(writing)
"""

READ = """
import os, sys
try:
    data = os.pread(os.open(sys.argv[1], os.O_RDONLY), 65536, 0)
except OSError as error:
    sys.exit(error.strerror)
sys.stdout.buffer.write(data[:6])
"""


def test_a_crash_in_the_middle_of_sealing(own_mount: Mounted) -> None:
    """S5: A crash at any instant loses no sealed image, no fsynced draft and no committed metadata."""
    older = sealed(own_mount, "older", noise(2 * MIB, 1))
    os.setxattr(older, "user.property.x", b"y")
    before, content = stored(own_mount), os.urandom(64 * MIB)
    path = draft(own_mount, "crashed", content)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    os.removexattr(path, "user.imagefs.draft")
    wait_until(lambda: stored(own_mount) - before, 20, "the first pack")
    own_mount.kill()
    own_mount.mount()
    assert older.read_bytes() == noise(2 * MIB, 1)
    assert own_mount.attribute(older, "user.property.x") == "y"
    assert path.read_bytes() == content
    own_mount.wait_status(path)
    assert path.read_bytes() == content
    own_mount.command("fsck")


def test_a_killed_worker(own_mount: Mounted) -> None:
    """S13: With the kernel transport on Linux 6.9 or newer the worker may be killed while files are open:
    I/O waits, then goes on, and no one sees an error.
    """
    content = noise(12 * MIB, 13)
    image, written, out = (
        sealed(own_mount, "read", content),
        own_mount.by_name / "written",
        own_mount.outside / "out",
    )
    worker = own_mount.processes()[0]
    with subprocess.Popen(
        [sys.executable, "-c", READ_AND_WRITE, image, written, out],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as user:  # fmt: skip
        assert user.stdin is not None
        assert user.stdout is not None
        assert user.stdout.readline() == "open\n"
        os.kill(worker, signal.SIGKILL)
        user.stdin.close()
        assert user.wait(40) == 0
    assert not alive(worker)
    own_mount.pids = own_mount.serving()
    assert worker not in own_mount.pids
    assert out.read_bytes() == content
    own_mount.wait_status(written)
    assert written.read_bytes() == b"before" + b"after!" * 48_000


@pytest.mark.skipif(ctypes.util.find_library("fuse") is None, reason="libfuse 2 is not installed")
def test_a_killed_daemon_elsewhere(unmounted: Mounted) -> None:
    """S13: Elsewhere what was open gets ECONNABORTED or ENOTCONN, and a new `imagefs mount` recovers."""
    unmounted.transport = "fusepy"
    unmounted.mount()
    path = sealed(unmounted, "image", noise(3 * MIB, 14))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert os.pread(descriptor, 10, 0) == noise(3 * MIB, 14)[:10]
        os.kill(unmounted.processes()[0], signal.SIGKILL)
        wait_until(lambda: run("stat", path).returncode, 20, "the end of the connection")
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        with pytest.raises(OSError, match=r"not connected|connection abort"):
            os.pread(descriptor, 10, 0)
    finally:
        with contextlib.suppress(OSError):  # it is closed, whatever close says
            os.close(descriptor)
    unmounted.mount()
    assert path.read_bytes() == noise(3 * MIB, 14)


def test_a_failing_backend(own_mount: Mounted) -> None:
    """S14: A backend that fails gives EIO, or the retry succeeds; one that hangs holds up those who wait for
    it and nobody else: reads of local data go on meanwhile. A seal that fails leaves the image `saving` and
    readable, with the reason, and is tried again.
    """
    cold = sealed(own_mount, "cold", b"cold!!" * 9999)
    own_mount.remount()
    local = draft(own_mount, "local", noise(MIB, 15))
    packs = own_mount.repo / "store" / "packs"
    packs.rename(packs.with_name("unplugged"))
    packs.touch()
    try:
        fails("cat", cold, says="Input/output error")
        with pytest.raises(OSError, match="Input/output error"):
            seal(local)
        os.removexattr(local, "user.imagefs.draft")
        wait_until(lambda: own_mount.blocked(local), 10, "the reason")
        assert own_mount.image_status(local) == "saving"
        assert local.read_bytes() == noise(MIB, 15)
    finally:
        packs.unlink()
        packs.with_name("unplugged").rename(packs)
    assert cold.read_bytes() == b"cold!!" * 9999
    own_mount.wait_status(local, deadline=15)
    assert local.read_bytes() == noise(MIB, 15)


def test_a_hanging_backend(own_mount: Mounted) -> None:
    """S14: A backend that fails gives EIO, or the retry succeeds; one that hangs holds up those who wait for
    it and nobody else: reads of local data go on meanwhile.
    """
    hanging, other = sealed(own_mount, "hanging", b"hangs!" * 9999), draft(own_mount, "other", b"local" * 999)
    own_mount.remount()
    [pack] = stored(own_mount)
    pack.rename(pack.with_name("away"))
    os.mkfifo(pack)  # opening it waits for a writer, as a dead disk makes everybody wait
    with subprocess.Popen([sys.executable, "-c", READ, hanging], stdout=subprocess.PIPE) as reader:
        try:
            time.sleep(0.5)
            assert reader.poll() is None
            for _ in range(3):
                assert other.read_bytes() == b"local" * 999
                os.setxattr(other, "user.property.x", b"y")
                ok("ls", "-l", own_mount.by_name, timeout=10)
        finally:
            os.close(os.open(pack, os.O_RDWR | os.O_NONBLOCK))
            pack.unlink()
            pack.with_name("away").rename(pack)
        assert reader.wait(20) in (0, 1)
    assert hanging.read_bytes() == b"hangs!" * 9999


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 filesystem of 400 MiB on a loop device."""
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        pytest.skip("a small filesystem needs root and the loop driver")
    file, where = tmp_path / "disk.ext4", tmp_path / "disk"
    with file.open("wb") as image:
        image.truncate(400 * MIB)
    where.mkdir()
    ok("mke2fs", "-q", "-t", "ext4", "-m", "0", file)
    ok("mount", "-o", "loop", file, where)
    yield where
    wait_until(lambda: run("umount", where).returncode == 0, 20, "the small filesystem to be free")


def free(where: Path) -> int:
    """Free bytes of a filesystem."""
    found = os.statvfs(where)
    return found.f_bavail * found.f_frsize


def test_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    """S15: A full disk gives ENOSPC to the writer that hits it, counting what sealing will need. Everything
    stored stays readable; `rm` and `imagefs gc` still work on a full disk.
    """
    with Mounted(tmp_path, repo=small_disk / "repo") as mount:
        older, victim = (sealed(mount, name, noise(16 * MIB, seed)) for seed, name in enumerate(("older", "victim")))
        fitting, full = mount.by_name / "fitting", mount.by_name / "full"
        ok("dd", "if=/dev/urandom", f"of={fitting}", "bs=1M", "count=40")
        fails("dd", "if=/dev/urandom", f"of={full}", "bs=1M", "count=400", says="No space left")
        mount.wait_status(fitting)  # what was accepted has its room
        assert mount.image_status(full) == "saving"
        wait_until(lambda: mount.blocked(full), 10, "the reason")

        filler = small_disk / "filler"
        run("dd", "if=/dev/zero", f"of={filler}", "bs=1M")
        assert free(small_disk) < 1 * MIB
        fails("cp", "/etc/hostname", mount.by_name / "no-room", says="No space left")
        mount.remount()
        assert older.read_bytes() == noise(16 * MIB, 0)
        used = mount.status()["stored_bytes"]
        ok("rm", full, victim)
        mount.command("gc")
        wait_until(lambda: mount.status()["stored_bytes"] <= used - 15 * MIB, 15, "the victim's data to go")
        assert free(small_disk) > 15 * MIB
        filler.unlink()
        assert mount.put("newer", noise(16 * MIB, 3)).read_bytes() == noise(16 * MIB, 3)
        mount.command("fsck")


def test_plain_files_yield(small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S15: The plain files in `cache/` are given up before a writer is refused."""
    settings = tmp_path / "imagefs.toml"
    settings.write_text("cache_bytes = 1000000000\n")
    monkeypatch.setenv("IMAGEFS_CONFIG", str(settings))
    with Mounted(tmp_path, repo=small_disk / "repo") as mount:
        old = sealed(mount, "old", noise(MIB, 1) * 80)
        assert len(list((mount.repo / "cache").iterdir())) == 1
        assert free(small_disk) < 2 * 125 * MIB, "the next one would fit without"
        new = sealed(mount, "new", noise(MIB, 2) * 125)
        assert old.read_bytes() == noise(MIB, 1) * 80
        assert new.read_bytes() == noise(MIB, 2) * 125
