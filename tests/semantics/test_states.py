"""S1-S4: from a draft to an image."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.content import KIB, MIB, noise
from tests.mounted import Mounted, fails, ok, run, wait_until
from tests.semantics.making import by_id, data, draft, seal, sealed, stored

ORDINARY = """
import ctypes, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open(sys.argv[1], os.O_RDWR)
for offset in (300000, 7, 150001, 4095):
    os.pwrite(fd, b"written at random" * 99, offset)
os.ftruncate(fd, 200000)
os.ftruncate(fd, 900000)
os.posix_fallocate(fd, 0, 1000000)
punch = 1 | 2  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
assert libc.fallocate(fd, punch, ctypes.c_long(8192), ctypes.c_long(70000)) == 0, ctypes.get_errno()
os.close(fd)
fd = os.open(sys.argv[1], os.O_RDWR | os.O_APPEND)
os.write(fd, b"opened again")
with mmap.mmap(fd, 0) as shared:
    os.close(fd)
    shared[500000:500006] = b"mapped"
"""

HOLD_MAPPED = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
with mmap.mmap(fd, 0) as shared:
    os.close(fd)
    print("mapped", flush=True)
    sys.stdin.readline()
    shared[:6] = b"mapped"
"""

FAILS_WITH_THE_FILE_OPEN = """
import os, sys
os.write(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT), b"partial" * 9999)
os._exit(1)
"""


def test_states(mount: Mounted) -> None:
    """S1: An image's states and their transitions are Glance's. `queued`: it has no data yet.
    `saving`: it has a draft. `active`: its data is sealed.
    """
    directory = mount.new_directory()

    def states() -> tuple[object, ...]:
        return mount.image_status(directory), json.loads((directory / "metadata.json").read_text())["status"]

    assert states() == ("queued", "queued")
    assert os.listdir(directory) == ["metadata.json"]
    (directory / "data").write_bytes(b"s" * 9000)
    assert states() == ("saving", "saving")
    mount.wait_status(directory / "data")
    assert states() == ("active", "active")


def test_unlinked_data(mount: Mounted) -> None:
    """S1: Unlinking a draft makes the image `queued` again; unlinking the sealed `data` makes it
    `pending_delete`.
    """
    path = data(mount, b"draft")
    path.unlink()
    assert mount.image_status(path.parent) == "queued"
    path.write_bytes(b"sealed" * 1000)
    mount.wait_status(path)
    path.unlink()
    assert mount.image_status(path.parent) == "pending_delete"


def test_a_draft_is_an_ordinary_file(mount: Mounted) -> None:
    """S2: A draft can be written at random, truncated, preallocated, punched, closed and opened again,
    and mapped shared.
    """
    path, ordinary = draft(mount, "ordinary", b""), mount.outside / "ordinary"
    ordinary.touch()
    for file in (path, ordinary):
        mount.run_python(ORDINARY, file)
    ok("cmp", path, ordinary)
    seal(path)
    ok("cmp", path, ordinary)


def test_active_is_durable(mount: Mounted) -> None:
    """S2: When `cp` returns, the bytes are as safe as after any `cp`; `active` means durable on the
    backend.
    """
    source, path, out = mount.outside / "durable", mount.by_name / "durable", mount.outside / "durable-out"
    source.write_bytes(noise(MIB, 1))
    ok("cp", source, path)
    ok("cmp", source, path)
    [staged] = (mount.repo / "staging").glob(f"{mount.id(path)}*")
    ok("cmp", source, staged)
    mount.wait_status(path)
    wait_until(lambda: not staged.exists(), 15, "the draft's file to go")
    mount.command("save", str(mount.id(path)), out)  # by a process that has nothing but the backend
    ok("cmp", source, out)


def test_nobody_has_it_open_or_mapped(mount: Mounted) -> None:
    """S3: A draft is sealed by itself once nobody has had it open for writing or mapped for the settle
    time (2 seconds unless `--settle` says otherwise), and it is armed: data was written; no error went
    to a writer; no writing process was killed or failed with the file open; it is not blank (one hole,
    or a disk format without guest data yet, so that `qemu-img create` followed by an installer works);
    and it has no `user.imagefs.draft` mark.

    S3: a file that is open for writing is refused (EBUSY).
    """
    by_itself, held = mount.by_name / "by-itself", mount.by_name / "held"
    mapped = draft(mount, "mapped", b"m" * 9000)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_MAPPED, mapped], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder, held.open("wb", buffering=0) as file:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "mapped\n"
        os.removexattr(mapped, "user.imagefs.draft")
        file.write(b"h" * 9000)
        by_itself.write_bytes(b"b" * 9000)
        mount.wait_status(by_itself)
        time.sleep(mount.settle)
        for path in (held, mapped):
            assert mount.image_status(path) == "saving"
            with pytest.raises(OSError, match="busy"):
                os.setxattr(path, "user.imagefs.seal", b"1")
        holder.stdin.close()
        assert holder.wait(20) == 0
    mount.wait_status(held)
    mount.wait_status(mapped)
    assert mapped.read_bytes() == b"mapped" + b"m" * 8994


def test_what_is_not_armed_stays_a_draft(mount: Mounted) -> None:
    """S3: Otherwise it stays `saving`, and `user.imagefs.seal_blocked` says why.

    S3: An interrupted copy is never sealed by itself; the section "What cannot be detected" lists the
    exceptions.
    """
    killed, failed = mount.by_name / "killed", mount.by_name / "failed"
    hollow, disk = mount.by_name / "hollow", mount.by_name / "disk.qcow2"
    with subprocess.Popen(["cp", "/dev/zero", killed]) as copy:
        wait_until(lambda: killed.exists() and killed.stat().st_size > 0, 20, "the first bytes")
        copy.kill()
    assert run(sys.executable, "-c", FAILS_WITH_THE_FILE_OPEN, failed).returncode == 1
    ok("truncate", "-s", "1M", hollow)
    ok("qemu-img", "create", "-q", "-f", "qcow2", disk, "64M")
    reasons = {path: mount.blocked(path) for path in (draft(mount, "marked", b"m" * 9000), hollow, disk)}
    for path in (killed, failed):
        wait_until(lambda path=path: mount.blocked(path), 10, f"the reason for {path.name}")
        reasons[path] = mount.blocked(path)
    time.sleep(mount.settle + 0.5)
    assert {mount.image_status(path) for path in reasons} == {"saving"}
    assert all(reasons.values()), reasons
    ok("qemu-io", "-f", "qcow2", "-c", "write -P 0x5a 1M 1M", disk)
    mount.wait_status(disk)
    killed.unlink()


def test_sealing_now(unmounted: Mounted) -> None:
    """S3: `setfattr -n user.imagefs.seal -v 1 F` or `imagefs seal` seals at once and reports errors;

    S3: `umount` waits for nothing: drafts go on at the next start.
    """
    mount = unmounted
    mount.settle = 60
    mount.mount()
    for number in range(20):
        (mount.by_name / str(number)).write_bytes(b"closed" * 3000)
        os.setxattr(mount.by_name / str(number), "user.imagefs.seal", b"1")
    one, two, wrong = (mount.by_name / name for name in ("one", "two", "wrong"))
    for path in (one, two, wrong):
        path.write_bytes(b"now" * 3000)
    ok("setfattr", "-n", "user.imagefs.seal", "-v", "1", one)
    assert mount.image_status(one) == "active"
    mount.command("seal", "two", timeout=15)
    assert mount.image_status(two) == "active"
    os.setxattr(wrong, "user.image.size", b"1")
    fails("setfattr", "-n", "user.imagefs.seal", "-v", "1", wrong, says="Bad message")

    later = mount.by_name / "later"
    later.write_bytes(b"later" * 3000)
    begun = time.monotonic()
    mount.umount()
    assert time.monotonic() - begun < 15
    mount.settle = 0.3
    mount.mount()
    mount.wait_status(later)


def test_opening_cancels_a_seal(mount: Mounted) -> None:
    """S3: Opening a draft for writing cancels a seal that is under way."""
    path, before = mount.by_name / "cancelled", stored(mount)
    content = os.urandom(96 * MIB)
    path.write_bytes(content)
    wait_until(lambda: stored(mount) - before, 20, "the first pack")
    with path.open("ab", buffering=0) as file:
        assert mount.image_status(path) == "saving"
        time.sleep(mount.settle + 0.5)
        assert mount.image_status(path) == "saving"
        file.write(b"more")
    mount.wait_status(path)
    assert path.stat().st_size == len(content) + 4
    assert path.read_bytes() == content + b"more"
    path.unlink()


def test_sealing_in_close(unmounted: Mounted) -> None:
    """S3: With `--seal=close` sealing happens in close(2), so that the writer sees every error."""
    unmounted.options = ("--seal=close",)
    unmounted.mount()
    path, wrong = unmounted.by_name / "closed", unmounted.by_name / "wrong"
    path.write_bytes(b"c" * 9000)
    assert unmounted.image_status(path) == "active"
    descriptor = os.open(wrong, os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"w" * 9000)
    os.setxattr(wrong, "user.image.size", b"1")
    with pytest.raises(OSError, match="Bad message"):
        os.close(descriptor)


def test_sealed_data_never_changes(mount: Mounted, tmp_path: Path) -> None:
    """S4: Opening it for writing, truncating it or replacing it fails with EPERM, for root as well. That
    is what lets overlays be built on it and the kernel cache it.
    """
    ok("qemu-img", "create", "-q", "-f", "qcow2", mount.outside / "base", "16M")
    ok("qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 1M", mount.outside / "base")
    path = sealed(mount, "unchanging", (mount.outside / "base").read_bytes())
    overlay = tmp_path / "overlay"
    ok("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", path, overlay)
    ok("qemu-io", "-f", "qcow2", "-c", "write -P 9 1M 4k", overlay)
    for name in (path, by_id(mount, path) / "data"):
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND):
            with pytest.raises(PermissionError, match="Operation not permitted"):
                os.open(name, flags)
        with pytest.raises(PermissionError, match="Operation not permitted"):
            os.truncate(name, 5)
        fails("cp", "/etc/hostname", name, says="Operation not permitted")
    ok("cmp", path, mount.outside / "base")
    ok("qemu-io", "-r", "-f", "qcow2", "-c", "read -P 9 1M 4k", "-c", "read -P 7 1028k 4k", overlay)


def test_a_new_copy_is_a_new_image(mount: Mounted) -> None:
    """S4: `cp -f`, or `rm` and then `cp`, makes a new image."""
    path = sealed(mount, "copied-over", b"first" * 1000)
    ids = {mount.id(path)}
    ok("cp", "-f", "/etc/hostname", path)
    ids.add(mount.id(path))
    mount.wait_status(path)
    ok("rm", path)
    ok("cp", "/etc/hostname", path)
    ids.add(mount.id(path))
    assert len(ids) == 3
    ok("cmp", path, "/etc/hostname")


def test_what_was_written_survives(mount: Mounted) -> None:
    """S2: What was written survives the death of the daemon; what was fsynced, with `fsync` or `sync`,
    survives power loss.
    """
    path = draft(mount, "survives", noise(300 * KIB, 2))
    with path.open("r+b") as file:
        os.fsync(file.fileno())
    ok("sync", "-f", path)
    [worker, *_] = mount.processes()
    os.kill(worker, 9)
    assert path.read_bytes() == noise(300 * KIB, 2)
    mount.pids |= mount.serving()
