"""Bad input and bad repositories: a clear message, the right error, and nothing changed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from uuid import uuid4

import pytest

from tests.content import MIB, noise
from tests.mounted import Mounted, alive, fails, ok, run, wait_until


def refused(mounted: Mounted, *says: str) -> str:
    """What `imagefs mount` says on stderr; fails unless it refused, in time, naming each of `says`."""
    done = mounted.imagefs("mount", mounted.path, timeout=30)
    assert done.returncode != 0, done.stdout
    assert not mounted.is_mounted()
    assert "Traceback" not in done.stderr
    for words in says:
        assert words in done.stderr, done.stderr
    return done.stderr


@pytest.fixture
def unmounted(tmp_path: Path):  # type: ignore[no-untyped-def]
    """A repository with one sealed image, not mounted."""
    mounted = Mounted(tmp_path)
    with mounted:
        mounted.put("kept", noise(2 * MIB, 1))
        mounted.umount()
        yield mounted


def test_not_a_repository(tmp_path: Path) -> None:
    mounted = Mounted(tmp_path)
    mounted.repo.mkdir()
    (mounted.repo / "holiday.jpg").write_bytes(b"not yours")
    try:
        refused(mounted, str(mounted.repo))
        assert os.listdir(mounted.repo) == ["holiday.jpg"]
    finally:
        mounted.destroy()


def test_missing_mountpoint(tmp_path: Path) -> None:
    mounted = Mounted(tmp_path)
    mounted.path.rmdir()
    try:
        refused(mounted, str(mounted.path))
    finally:
        mounted.destroy()


def test_a_mountpoint_in_use(own_mount: Mounted, tmp_path: Path) -> None:
    own_mount.put("kept", b"kept" * 1000)
    other = own_mount.imagefs("--repo", tmp_path / "other", "mount", own_mount.path, timeout=30)
    assert other.returncode != 0
    assert str(own_mount.path) in other.stderr
    assert "Traceback" not in other.stderr
    assert (own_mount.by_name / "kept").read_bytes() == b"kept" * 1000


def test_a_file_as_mountpoint(tmp_path: Path) -> None:
    mounted = Mounted(tmp_path)
    mounted.path.rmdir()
    mounted.path.write_text("a file")
    try:
        refused(mounted, str(mounted.path))
    finally:
        mounted.destroy()


def _superblock(repo: Path) -> Path:
    """The one JSON object of the repository that has a format."""
    for path in sorted(repo.rglob("*")):
        if path.is_file() and path.stat().st_size < 65_536:
            try:
                record = json.loads(path.read_bytes())
            except (UnicodeDecodeError, json.JSONDecodeError):
                continue
            if isinstance(record, dict) and "format" in record:
                return path
    pytest.fail("the repository has no superblock")


@pytest.mark.parametrize("change", ["min_reader", "features"])
def test_a_newer_repository(unmounted: Mounted, change: str) -> None:
    superblock = _superblock(unmounted.repo)
    record = json.loads(superblock.read_bytes())
    record["format"][change] = 99 if change == "min_reader" else ["quantum-packs"]
    if change == "min_reader":
        record["format"]["version"] = record["format"]["min_writer"] = 99
    superblock.chmod(0o600)
    superblock.write_text(json.dumps(record))
    refused(unmounted, "newer" if change == "min_reader" else "quantum-packs")


def test_a_truncated_catalog(unmounted: Mounted) -> None:
    """LMDB itself would die with SIGBUS of a file that is shorter than its meta page says."""
    [data] = (unmounted.repo / "catalog").glob("data.mdb")
    os.truncate(data, 3 * 4096)
    refused(unmounted, "catalog")


def test_a_catalog_older_than_its_log(unmounted: Mounted) -> None:
    catalog = unmounted.repo / "catalog"
    older = unmounted.base / "older"
    ok("cp", "-a", catalog, older)
    with unmounted:
        unmounted.put("newer", noise(1 * MIB, 2))
        ok("setfattr", "-n", "user.property.key", "-v", "value", unmounted.by_name / "newer")
        unmounted.umount()
    ok("rm", "-r", catalog)
    ok("mv", older, catalog)
    refused(unmounted, "log")


def _flip(pack: Path, offset: int) -> None:
    pack.chmod(0o600)
    with pack.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0xFF]))


def test_a_corrupted_pack_is_eio_and_harms_no_other(own_mount: Mounted) -> None:
    """S11: what cannot be verified is EIO, never wrong bytes; named in the log, other images unaffected."""
    good, bad = noise(1 * MIB, 21), noise(1 * MIB, 22)
    own_mount.put("good", good)
    before = set(own_mount.repo.rglob("packs/**/*"))
    own_mount.put("bad", bad)
    [pack] = [path for path in set(own_mount.repo.rglob("packs/**/*")) - before if path.is_file()]
    own_mount.umount()
    for copy in own_mount.repo.glob("cache/**/*"):  # a local copy would go on serving the true bytes
        if copy.is_file():
            copy.unlink()
    _flip(pack, 200_000)
    own_mount.mount()
    assert (own_mount.by_name / "good").read_bytes() == good
    image = own_mount.by_name / "bad"
    fails("cat", image, says="Input/output error")
    with image.open("rb", buffering=0) as file:
        for offset in range(0, MIB, 65_536):
            try:
                assert os.pread(file.fileno(), 65_536, offset) == bad[offset : offset + 65_536]
            except OSError as error:
                assert error.strerror == "Input/output error"
    logs = "".join(path.read_text() for path in own_mount.repo.glob("log/*"))
    assert pack.name in logs, logs


def test_two_mounts_of_one_repository(own_mount: Mounted, tmp_path: Path) -> None:
    """A second mount is allowed; writers of one draft from two mounts are not (EBUSY)."""
    own_mount.needs("notify")
    second = tmp_path / "second"
    second.mkdir()
    image = own_mount.put("shared", b"shared" * 1000)
    own_mount.command("mount", "--settle", "0.3", second)
    try:
        there = second / "by-name" / "shared"
        assert there.read_bytes() == b"shared" * 1000
        with (own_mount.by_name / "contested").open("wb", buffering=0) as file:
            file.write(b"c" * 5000)
            fails("sh", "-c", f"echo x >> {second}/by-name/contested", says="busy")
        ok("rm", there)
        wait_until(lambda: not image.exists(), 1.5, "the other mount to see the removal")
    finally:
        workers = [own_mount.imagefs("umount", second).returncode]
        run("umount", "-l", second)
        assert workers == [0]


def test_umount_of_what_is_not_mounted(tmp_path: Path) -> None:
    mounted = Mounted(tmp_path)
    done = mounted.imagefs("umount", mounted.path, timeout=30)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert str(mounted.path) in done.stderr


def test_a_dead_mount_is_cleared_away(own_mount: Mounted) -> None:
    own_mount.put("survivor", b"s" * 5000)
    own_mount.kill()
    fails("ls", own_mount.path)
    own_mount.mount()
    assert (own_mount.by_name / "survivor").read_bytes() == b"s" * 5000
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines()
              if line.split()[4] == str(own_mount.path)]  # fmt: skip
    assert len(mounts) == 1


def test_umount_while_files_are_open(own_mount: Mounted) -> None:
    image = own_mount.put("open", b"o" * 5000)
    with image.open("rb"):
        done = own_mount.imagefs("umount", own_mount.path, timeout=30)
        assert done.returncode != 0, "a busy mount is refused, as by umount(8)"
        assert "in use" in done.stderr
        assert own_mount.is_mounted()
    assert all(map(alive, own_mount.pids))


def test_files_with_impossible_ids(mount: Mounted) -> None:
    for name in ("not-a-uuid", "11111111-2222-3333-4444-55555555555", "..data", "A" * 36):
        with pytest.raises(OSError, match=r"not permitted|Invalid|No such"):
            (mount.images / name).mkdir()
    identity = uuid4()
    (mount.images / str(identity)).mkdir()
    with pytest.raises(FileExistsError):
        (mount.images / str(identity)).mkdir()
    (mount.images / str(identity)).rmdir()


def test_cross_links_and_devices(mount: Mounted) -> None:
    image = mount.put("linked", b"l" * 5000)
    for words in (
        ["ln", image, mount.by_name / "hard-link"],
        ["ln", "-s", image, mount.by_name / "symbolic-link"],
        ["mkfifo", mount.by_name / "fifo"],
        ["mknod", mount.by_name / "device", "c", "1", "3"],
        ["mkdir", mount.by_name / "directory"],
        ["rmdir", mount.by_name],
        ["rmdir", mount.images],
        ["mv", mount.by_name, mount.path / "elsewhere"],
        ["mv", image, mount.images / "elsewhere"],
    ):
        assert run(*words).returncode != 0, words
    assert "linked" in os.listdir(mount.by_name)
    assert image.read_bytes() == b"l" * 5000
