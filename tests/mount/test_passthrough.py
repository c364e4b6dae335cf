"""Sealed images that the kernel reads by itself, from the plain file that sealing left."""

from __future__ import annotations

import hashlib
import os
import platform
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagefs.images.materialised import LEAST
from tests.content import noise
from tests.mounted import Mounted, ok, wait_until

SIZE = LEAST + 4096 + 17
READER = """
import os, signal, sys
path, worker = sys.argv[1], int(sys.argv[2])
fd = os.open(path, os.O_RDONLY)
os.kill(worker, signal.SIGSTOP)
try:
    sys.stdout.write(os.pread(fd, 100, 1 << 20).hex())
    sys.stdout.flush()
finally:
    os.kill(worker, signal.SIGCONT)
"""
"""Reads at an offset while nobody can answer a request. Prints nothing but what it read."""


def _passes_through() -> bool:
    major, minor = platform.release().split(".")[:2]
    return os.geteuid() == 0 and (int(major), int(minor)) >= (6, 9)


pytestmark = pytest.mark.skipif(not _passes_through(), reason="passthrough needs root and Linux 6.9")


@pytest.fixture
def content() -> bytes:
    return noise(1 << 20, 5) * (SIZE >> 20) + noise(SIZE % (1 << 20), 6)


@pytest.fixture
def image(kernel_mount: Mounted, content: bytes) -> Iterator[Path]:
    yield kernel_mount.put("image", content)


def cached(mounted: Mounted) -> list[str]:
    return os.listdir(mounted.repo / "cache")


def read_without_worker(mounted: Mounted, path: Path, content: bytes) -> None:
    worker = mounted.processes()[0]
    said = mounted.run_python(READER, path, str(worker), timeout=20)
    assert bytes.fromhex(said) == content[1 << 20 :][:100]


def test_no_request_is_needed(kernel_mount: Mounted, image: Path, content: bytes) -> None:
    assert len(cached(kernel_mount)) == 1
    read_without_worker(kernel_mount, image, content)
    assert image.read_bytes() == content
    assert kernel_mount.status()["cache_bytes"] >= SIZE


def test_after_a_remount_and_for_a_clone(kernel_mount: Mounted, image: Path, content: bytes) -> None:
    kernel_mount.remount()
    read_without_worker(kernel_mount, image, content)
    kernel_mount.command("clone", "image", "clone")
    read_without_worker(kernel_mount, kernel_mount.by_name / "clone", content)
    assert len(cached(kernel_mount)) == 1  # they share it


def test_from_the_packs_once_the_file_is_gone(kernel_mount: Mounted, image: Path, content: bytes) -> None:
    for name in cached(kernel_mount):
        (kernel_mount.repo / "cache" / name).unlink()
    assert image.read_bytes() == content


def test_both_ways_of_reading_meet(kernel_mount: Mounted, image: Path, content: bytes) -> None:
    """An inode that is open is read in one way, whatever becomes of the plain file: another one is EIO."""
    plain = kernel_mount.repo / "cache" / cached(kernel_mount)[0]
    with image.open("rb") as passed:
        plain.rename(kernel_mount.base / "aside")
        with image.open("rb") as again:
            assert again.read() == content
        passed.seek(0)
        assert passed.read() == content
    with image.open("rb") as requested:
        (kernel_mount.base / "aside").rename(plain)
        with image.open("rb") as again:
            assert again.read() == content
        assert requested.read() == content
    # The release follows the close, and the way is chosen anew after it.
    time.sleep(0.2)
    read_without_worker(kernel_mount, image, content)


def test_a_reader_from_before_the_sealing(kernel_mount: Mounted, content: bytes) -> None:
    path = kernel_mount.by_name / "draft"
    source = kernel_mount.outside / "source"
    source.write_bytes(content)
    ok("cp", source, path)
    with path.open("rb") as early:
        kernel_mount.wait_status(path)
        assert path.read_bytes() == content
        assert early.read() == content


def test_killed_workers(kernel_mount: Mounted, image: Path, content: bytes) -> None:
    with image.open("rb") as held:
        for _ in range(3):
            worker = kernel_mount.processes()[0]
            os.kill(worker, signal.SIGKILL)
            held.seek(12345)
            assert held.read(100) == content[12345:][:100]
            with image.open("rb") as again:  # with the id that the first worker registered
                assert again.read(4096) == content[:4096]
            wait_until(lambda pid=worker: kernel_mount.processes()[0] != pid, 20, "another worker")
            kernel_mount.stir()
    time.sleep(0.2)
    read_without_worker(kernel_mount, image, content)


def test_a_deleted_image_is_read_to_its_end(kernel_mount: Mounted, image: Path, content: bytes) -> None:
    with image.open("rb") as held:
        image.unlink()
        kernel_mount.command("gc")
        assert held.read() == content
    assert not image.exists()
    wait_until(lambda: not cached(kernel_mount), 20, "the plain file to go")


def test_direct_mapped_and_copied(kernel_mount: Mounted, image: Path, content: bytes) -> None:
    copy = kernel_mount.outside / "direct"
    ok("dd", f"if={image}", f"of={copy}", "bs=1M", "count=2", "iflag=direct", "status=none")
    assert copy.read_bytes() == content[: 2 << 20]
    mapped = kernel_mount.run_python(
        "import hashlib, mmap, sys\n"
        "file = open(sys.argv[1], 'rb')\n"
        "print(hashlib.sha256(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)).hexdigest())",
        image,
    )
    assert mapped.strip() == hashlib.sha256(content).hexdigest()
    stored = kernel_mount.status()["stored_bytes"]
    ok("cp", "--sparse=never", image, kernel_mount.by_name / "copy")
    kernel_mount.wait_status(kernel_mount.by_name / "copy")
    assert (kernel_mount.by_name / "copy").read_bytes() == content
    assert kernel_mount.status()["stored_bytes"] - stored < 100_000


def test_no_cache_when_it_is_switched_off(
    kernel_mount: Mounted, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel_mount.umount()
    settings = kernel_mount.base / "imagefs.toml"
    settings.write_text("cache_bytes = 0\n")
    monkeypatch.setenv("IMAGEFS_CONFIG", str(settings))
    kernel_mount.mount()
    image = kernel_mount.put("image", content)
    assert cached(kernel_mount) == []
    wait_until(lambda: not os.listdir(kernel_mount.repo / "staging"), 10, "the staging file to go")
    assert image.read_bytes() == content
