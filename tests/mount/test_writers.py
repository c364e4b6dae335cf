"""Drafts become images when they are complete, and only then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.content import KIB, MIB, noise
from tests.mounted import Mounted, alive, fails, ok, run, wait_until

FAILING_WRITER = """
import os, sys
descriptor = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
os.write(descriptor, b"partial " * 8192)
os._exit(3)
"""

LAZY_WRITER = """
import os, sys
descriptor = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
os.write(descriptor, b"whole " * 8192)
os._exit(0)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_killed_writers_make_no_images(mount: Mounted, how: signal.Signals) -> None:
    """S3: an interrupted copy is never sealed by itself; seal_blocked says why, an explicit seal works."""
    image = mount.by_name / f"killed-by-{how.name}"
    # cp dies of any of them; a writer that catches one and closes its file, as dd does, looks complete.
    with subprocess.Popen(["cp", "/dev/zero", image]) as writer:
        wait_until(lambda: image.exists() and image.stat().st_size > MIB, 20, "the first MiB")
        writer.send_signal(how)
        assert writer.wait(20) != 0
    reason = mount.stays_draft(image)
    assert reason
    size = image.stat().st_size
    os.setxattr(image, "user.imagefs.seal", b"1")
    mount.wait_status(image)
    assert image.stat().st_size == size


def test_killed_cp_makes_no_image(mount: Mounted) -> None:
    source, image = mount.outside / "endless", mount.by_name / "killed-cp"
    os.mkfifo(source)
    with subprocess.Popen(["cp", source, image]) as writer, source.open("wb", buffering=0) as pipe:
        pipe.write(noise(500_000))
        wait_until(lambda: image.exists() and image.stat().st_size > 0, 20, "the first bytes")
        writer.kill()
        writer.wait(20)
    source.unlink()
    mount.stays_draft(image)
    ok("cp", "/etc/hostname", image)
    mount.wait_status(image)
    ok("cmp", "/etc/hostname", image)


def test_failed_exit_with_the_file_open_makes_no_image(mount: Mounted) -> None:
    image = mount.by_name / "failed-exit"
    assert run(sys.executable, "-c", FAILING_WRITER, image).returncode == 3
    mount.stays_draft(image)


def test_clean_exit_with_the_file_open_makes_an_image(mount: Mounted) -> None:
    image = mount.by_name / "lazy-exit"
    mount.run_python(LAZY_WRITER, image)
    mount.wait_status(image)
    assert image.read_bytes() == b"whole " * 8192


def test_a_bystander_that_dies_blames_nobody(mount: Mounted) -> None:
    """Only processes that wrote count: a shell that passes the descriptor on flushes it as well."""
    image = mount.by_name / "bystander"
    code = f"exec 3>'{image}'; head -c 100000 /dev/zero | tr '\\0' x >&3; exec 3>&-; exit 7"
    assert run("bash", "-c", code).returncode == 7
    mount.wait_status(image)
    assert image.read_bytes() == b"x" * 100_000


def test_an_open_draft_is_not_sealed(mount: Mounted) -> None:
    image = mount.by_name / "held-open"
    with image.open("wb", buffering=0) as file:
        file.write(b"o" * 5000)
        time.sleep(mount.settle + 1)
        assert mount.image_status(image) == "saving"
        with pytest.raises(OSError, match="busy"):
            os.setxattr(image, "user.imagefs.seal", b"1")
    mount.wait_status(image)


def test_a_duplicated_descriptor_keeps_the_draft_open(mount: Mounted) -> None:
    """close(2) of one of two descriptors is a FLUSH, not the end."""
    image = mount.by_name / "duplicated"
    first = os.open(image, os.O_WRONLY | os.O_CREAT)
    second = os.dup(first)
    try:
        os.write(first, b"1" * 5000)
        os.close(first)
        time.sleep(mount.settle + 1)
        assert mount.image_status(image) == "saving"
        os.write(second, b"2" * 5000)
    finally:
        os.close(second)
    mount.wait_status(image)
    assert image.read_bytes() == b"1" * 5000 + b"2" * 5000


def test_the_draft_mark(mount: Mounted) -> None:
    image = mount.by_name / "marked"
    os.mknod(image)
    os.setxattr(image, "user.imagefs.draft", b"1")
    image.write_bytes(b"m" * 5000)
    mount.stays_draft(image)
    os.removexattr(image, "user.imagefs.draft")
    mount.wait_status(image)


def test_explicit_seal_is_at_once(tmp_path: Path) -> None:
    with Mounted(tmp_path, settle=60) as mount:
        image = mount.by_name / "sealed-now"
        image.write_bytes(b"n" * 5000)
        ok("setfattr", "-n", "user.imagefs.seal", "-v", "1", image, timeout=20)
        mount.wait_status(image, deadline=10)
        other = mount.by_name / "sealed-by-command"
        other.write_bytes(b"n" * 5000)
        mount.command("seal", str(mount.id(other)))
        mount.wait_status(other, deadline=10)


def test_qemu_img_create_can_be_installed_into_later(mount: Mounted) -> None:
    """S3: a disk format with no guest data yet is blank: it waits for the installer."""
    image = mount.by_name / "new-disk.qcow2"
    ok("qemu-img", "create", "-q", "-f", "qcow2", image, "64M")
    mount.stays_draft(image)
    ok("qemu-io", "-f", "qcow2", "-c", "write -P 0x5a 1M 3M", "-c", "flush", image)
    mount.wait_status(image)
    ok("qemu-io", "-r", "-f", "qcow2", "-c", "read -P 0x5a 1M 3M", image)
    assert mount.attribute(image, "user.image.virtual_size") == str(64 * MIB)


def test_declared_checksums_are_checked(mount: Mounted) -> None:
    """S8: on a draft size, checksum and os_hash_value become expectations; a mismatch makes it killed."""
    content = b"declared" * 1000
    for name, value, status in (
        ("size-right", "8000", "active"),
        ("size-wrong", "8001", "killed"),
        ("checksum-wrong", "0" * 32, "killed"),
    ):
        image = mount.by_name / name
        os.mknod(image)
        os.setxattr(image, "user.imagefs.draft", b"1")
        image.write_bytes(content)
        os.setxattr(image, f"user.image.{name.split('-')[0]}", value.encode())
        os.removexattr(image, "user.imagefs.draft")
        mount.wait_status(image, status)


def test_drafts_go_on_after_a_remount(own_mount: Mounted) -> None:
    """S3: umount waits for nothing; drafts go on at the next start."""
    own_mount.settle = 3
    own_mount.remount()
    image, marked = own_mount.by_name / "goes-on", own_mount.by_name / "marked"
    os.mknod(marked)
    os.setxattr(marked, "user.imagefs.draft", b"1")
    for path in (image, marked):
        path.write_bytes(b"g" * 50_000)
    own_mount.settle = 0.3
    own_mount.remount()
    own_mount.wait_status(image)
    assert image.read_bytes() == marked.read_bytes() == b"g" * 50_000
    assert own_mount.image_status(marked) == "saving"


def test_unmounted_and_mounted_again_it_is_the_same(own_mount: Mounted) -> None:
    contents = {f"again-{number}": noise(number * 700 * KIB + number, number) for number in range(1, 5)}
    for name, content in contents.items():
        own_mount.put(name, content)
    own_mount.remount()
    for name, content in contents.items():
        assert (own_mount.by_name / name).read_bytes() == content
        assert own_mount.image_status(own_mount.by_name / name) == "active"


def test_killed_daemon_leaves_a_repository_that_mounts(own_mount: Mounted) -> None:
    """S5, S2: after SIGKILL of everything no sealed image is lost and no draft that was written."""
    sealed = own_mount.put("killed-sealed", noise(2 * MIB, 1))
    draft = own_mount.by_name / "killed-draft"
    os.mknod(draft)
    os.setxattr(draft, "user.imagefs.draft", b"1")
    with draft.open("wb") as file:
        file.write(noise(3 * MIB, 2))
        file.flush()
        os.fsync(file.fileno())
    own_mount.kill()
    own_mount.mount()
    assert sealed.read_bytes() == noise(2 * MIB, 1)
    assert draft.read_bytes() == noise(3 * MIB, 2)
    assert own_mount.image_status(draft) == "saving"
    os.removexattr(draft, "user.imagefs.draft")
    own_mount.wait_status(draft)
    own_mount.command("fsck")


def test_worker_killed_under_a_reader(kernel_mount: Mounted) -> None:
    """S13: with the kernel transport the worker may be killed while files are open; no one sees an error."""
    kernel_mount.needs("resend")
    content = noise(16 * MIB, 3)
    image = kernel_mount.put("worker-killed", content)
    worker = kernel_mount.processes()[0]
    reader = (
        "import os, sys, time; fd = os.open(sys.argv[1], os.O_RDONLY); print('open', flush=True); "
        "sys.stdin.readline(); out = open(sys.argv[2], 'wb'); "
        "[out.write(os.pread(fd, 65536, o)) for o in range(0, 16 << 20, 65536)]"
    )
    copy = kernel_mount.outside / "worker-killed"
    with subprocess.Popen(
        [sys.executable, "-c", reader, image, copy], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: not alive(worker), 10, "the worker's death")
        process.stdin.write("\n")
        process.stdin.close()
        assert process.wait(40) == 0
    assert copy.read_bytes() == content
    replaced = kernel_mount.processes()[0]
    assert replaced != worker
    kernel_mount.pids.add(replaced)
    kernel_mount.pids.discard(worker)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 filesystem of 320 MiB on a loop device."""
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        pytest.skip("a small filesystem needs root and the loop driver")
    image, where = tmp_path / "small.ext4", tmp_path / "small"
    with image.open("wb") as file:
        file.truncate(320 * MIB)
    where.mkdir()
    ok("mke2fs", "-q", "-t", "ext4", "-m", "0", image)
    ok("mount", "-o", "loop", image, where)
    yield where
    wait_until(lambda: run("umount", where).returncode == 0, 20, "the small filesystem to be free")


@pytest.mark.parametrize("transport", ["kernel", "fusepy"])
def test_a_full_disk(full_disk: Path, tmp_path: Path, transport: str) -> None:
    """S15: ENOSPC to the writer that hits it; everything stored stays readable; rm and gc free space."""
    with Mounted(tmp_path, transport=transport, repo=full_disk / "repo") as mount:
        older = mount.put("older", noise(20 * MIB, 1))
        victim = mount.put("victim", noise(20 * MIB, 2))
        full = mount.by_name / "full"
        fails("dd", "if=/dev/urandom", f"of={full}", "bs=1M", "count=400", says="No space left")
        assert mount.stays_draft(full)
        assert older.read_bytes() == noise(20 * MIB, 1)
        ok("rm", full, victim)
        mount.command("gc")
        source, newer = mount.outside / "newer", mount.by_name / "newer"
        source.write_bytes(noise(20 * MIB, 3))
        wait_until(lambda: run("cp", source, newer).returncode == 0, 30, "free space")
        mount.wait_status(newer)
        assert newer.read_bytes() == noise(20 * MIB, 3)
        mount.command("fsck")
