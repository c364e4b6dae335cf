"""S9-S12, S16: the bytes, and how they are shared, verified and seen."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.content import KIB, MIB, data_ranges, noise, write_sparse
from tests.mounted import Mounted, ok, wait_until
from tests.semantics.making import by_id, draft, seal, sealed, stored

COPY_RANGE = """
import os, sys
source, target = os.open(sys.argv[1], os.O_RDONLY), os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT)
left = os.fstat(source).st_size
while left:
    left -= os.copy_file_range(source, target, left)
"""

SOON_S = 1.5
"""The second that S12 allows, and half of one for a machine that is busy with other tests."""


def draft_bytes(mount: Mounted) -> int:
    """What all drafts take on the disk."""
    text = (mount.path / ".imagefs" / "status").read_text()
    found = re.search(r"^draft_bytes: (\d+)$", text, re.MULTILINE)
    assert found, text
    return int(found[1])


def test_holes(mount: Mounted) -> None:
    """S9: SEEK_HOLE and SEEK_DATA answer truly, `st_blocks` counts the blocks that are not zero, and a
    sparse image is never inflated on the way in or out.
    """
    source, path, out = mount.outside / "sparse", mount.by_name / "sparse", mount.outside / "sparse-out"
    islands = write_sparse(source, seed=9)
    ok("cp", source, path)
    assert data_ranges(path) == islands
    mount.wait_status(path)
    assert data_ranges(path) == islands
    assert path.stat().st_blocks * 512 == sum(length for _, length in islands)
    ok("cp", path, out)
    ok("cmp", source, out)
    assert out.stat().st_blocks <= source.stat().st_blocks * 1.05


def test_written_zeros(mount: Mounted) -> None:
    """S9: Written zeros become holes at sealing."""
    path = sealed(mount, "zeros", noise(64 * KIB) + bytes(3 * MIB) + noise(64 * KIB))
    assert data_ranges(path) == [(0, 64 * KIB), (64 * KIB + 3 * MIB, 64 * KIB)]
    assert path.stat().st_blocks * 512 == 128 * KIB


def test_copies_share(mount: Mounted) -> None:
    """S10: copy_file_range inside the mount (`cp` of a dense file, `cp --sparse=never`) and `imagefs clone`
    of any image share the blocks and move no data.
    """
    content = noise(16 * MIB, 10)
    path = sealed(mount, "dense", content)
    [before, drafts] = stored(mount), draft_bytes(mount)
    copies = [mount.by_name / name for name in ("dense-cp", "dense-never", "dense-range", "dense-clone")]
    for copy in copies[:3]:
        os.mknod(copy)
        os.setxattr(copy, "user.imagefs.draft", b"1")
    ok("cp", path, copies[0])
    ok("cp", "--sparse=never", path, copies[1])
    mount.run_python(COPY_RANGE, path, copies[2])
    assert draft_bytes(mount) - drafts < MIB
    mount.command("clone", "dense", copies[3].name)
    for copy in copies[:3]:
        seal(copy)
    assert stored(mount) == before
    for copy in copies:
        assert copy.read_bytes() == content
        assert mount.id(copy) != mount.id(path)


def test_a_copy_of_a_sparse_file(mount: Mounted) -> None:
    """S10: `cp` of a sparse file reads and writes instead (coreutils never asks for more): it costs time,
    but stores nothing new.
    """
    source, path, copy = mount.outside / "hollow", mount.by_name / "hollow", mount.by_name / "hollow-copy"
    write_sparse(source, seed=99)
    ok("cp", source, path)
    mount.wait_status(path)
    before = stored(mount)
    ok("cp", path, copy)
    mount.wait_status(copy)
    ok("cmp", source, copy)
    assert stored(mount) == before


@pytest.mark.fd_leak("the module's mount is another one afterwards")
def test_damaged_bytes(mount: Mounted) -> None:
    """S11: Everything read from the backend is verified before a byte of it is handed on; what cannot be
    verified is EIO, never wrong bytes.
    """
    content = os.urandom(MIB)
    before = stored(mount)
    path = sealed(mount, "damaged", content)
    mount.remount()  # nothing of it is cached
    [pack] = stored(mount) - before
    pack.chmod(0o600)
    with pack.open("r+b") as file:
        file.seek(300_000)
        byte = file.read(1)
        file.seek(300_000)
        file.write(bytes([byte[0] ^ 1]))
    errors = 0
    with path.open("rb", buffering=0) as file:
        for offset in range(0, MIB, 4096):
            try:
                assert os.pread(file.fileno(), 4096, offset) == content[offset : offset + 4096]
            except OSError as error:
                assert error.strerror == "Input/output error"
                errors += 1
    assert 0 < errors < 256
    assert mount.imagefs("save", "damaged", mount.outside / "damaged").returncode == 13
    path.unlink()


@pytest.mark.fd_leak("the module's mount is another one afterwards")
def test_plain_files(mount: Mounted) -> None:
    """S11: A plain file in the repository's `cache/` is synced before it is used, and read only while it is as
    it was left there.
    """
    content = noise(MIB, 11) * 66
    path = sealed(mount, "plain", content)
    [plain] = (mount.repo / "cache").iterdir()
    assert plain.read_bytes() == content
    mount.remount()  # nothing of it is cached
    plain.chmod(0o600)
    with plain.open("r+b") as file:
        file.seek(5 * MIB)
        file.write(b"other bytes")
    assert path.read_bytes() == content
    assert not plain.exists()
    path.unlink()


@pytest.fixture
def second(mount: Mounted, tmp_path: Path) -> Iterator[Mounted]:
    """Another mount of the same repository."""
    with Mounted(tmp_path, repo=mount.repo) as second:
        yield second


def test_one_truth(mount: Mounted, second: Mounted) -> None:
    """S12: A change made through any process (a mount, the command line) is seen in every mount of the
    repository on this host within one second, and never stale from a kernel cache after that.
    """

    def soon(true: object, what: str) -> None:
        assert callable(true)
        wait_until(true, SOON_S, f"the other mount to see {what}")

    path = sealed(mount, "one-truth", b"1" * 9000)
    there = second.by_name / "one-truth"
    soon(there.exists, "the image")
    assert there.read_bytes() == b"1" * 9000
    os.setxattr(there, "user.property.x", b"from there")
    soon(lambda: mount.attribute(path, "user.property.x") == "from there", "the property")
    there.chmod(0o400)
    soon(lambda: path.stat().st_mode & 0o777 == 0o400, "the mode")
    mount.command("set", "one-truth", "--name", "another-truth")
    for mounted in (mount, second):
        soon((mounted.by_name / "another-truth").exists, "the new name")
        soon(lambda mounted=mounted: not (mounted.by_name / "one-truth").exists(), "the end of the old name")
        assert "one-truth" not in os.listdir(mounted.by_name)
    mount.command("delete", "another-truth")
    for mounted in (mount, second):
        soon(lambda mounted=mounted: not (mounted.by_name / "another-truth").exists(), "the end")
        assert "another-truth" not in os.listdir(mounted.by_name)


def test_hashes(mount: Mounted) -> None:
    """S16: The MD5 and SHA-512 that the Image service shows as `checksum` and `os_hash_value` may be filled
    in after `active` for images that came through the filesystem. The BLAKE3 root is always there, and an
    image with the same root and size gets the known hashes at once.
    """
    content = noise(24 * MIB, 16) + b"odd"
    path = sealed(mount, "hashed", content)
    root = mount.attribute(path, "user.imagefs.root")
    assert root
    wait_until(lambda: mount.attribute(path, "user.image.checksum"), 20, "the hashes")

    def hashes(of: Path) -> list[str | None]:
        return [mount.attribute(of, f"user.image.{name}") for name in ("checksum", "os_hash_algo", "os_hash_value")]

    expected = [hashlib.md5(content).hexdigest(), "sha512", hashlib.sha512(content).hexdigest()]
    assert hashes(path) == expected
    again = draft(mount, "hashed-again", content)
    seal(again)
    assert hashes(again) == expected
    assert mount.attribute(again, "user.imagefs.root") == root
    assert hashes(by_id(mount, again)) == expected
