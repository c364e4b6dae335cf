"""Machines boot from the path of an image, in every way qemu can open it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.disks import Disk, boot, debian
from tests.disks.boot import start
from tests.disks.packages import Unavailable
from tests.mounted import TRANSPORTS, Mounted, ok

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module", params=TRANSPORTS)
def booting(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, mini_disk: Disk
) -> Iterator[Mounted]:
    """A mount with the small disk as mini.raw and mini.qcow2, active."""
    with Mounted(tmp_path_factory.mktemp("boot"), transport=request.param, patience=390) as mounted:
        for source in (mini_disk.raw, mini_disk.qcow2):
            target = mounted.by_name / f"mini{source.suffix}"
            ok("cp", source, target)
            mounted.wait_status(target)
        yield mounted


@pytest.fixture
def mount(booting: Mounted) -> Mounted:
    booting.stir()
    return booting


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
@pytest.mark.parametrize(
    ("cache", "aio"),
    [
        ("none", "threads"),
        ("none", "native"),
        ("none", "io_uring"),
        ("writeback", "threads"),
        ("writeback", "io_uring"),
        ("directsync", "threads"),
        ("directsync", "native"),
        ("directsync", "io_uring"),
    ],
)
def test_boot(mount: Mounted, mini_disk: Disk, tmp_path: Path, fmt: str, cache: str, aio: str) -> None:
    """Native aio exists only with direct I/O, so not with writeback."""
    image = mount.by_name / f"mini.{fmt}"
    guest = boot(image, tmp_path / "console", fmt=fmt, cache=cache, aio=aio, readonly=True)
    assert guest == {"mode": "ro", "payload": mini_disk.payload, "boots": "0", "written": "no"}


@pytest.mark.parametrize("cache", ["none", "writeback"])
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_boot_with_a_snapshot(mount: Mounted, mini_disk: Disk, tmp_path: Path, fmt: str, cache: str) -> None:
    image = mount.by_name / f"mini.{fmt}"
    guest = boot(image, tmp_path / "console", fmt=fmt, cache=cache, snapshot=True)
    assert guest == {"mode": "rw", "payload": mini_disk.payload, "boots": "0", "written": "ok"}
    ok("cmp", mini_disk.raw.with_suffix(f".{fmt}"), image)


def test_boot_of_an_overlay(mount: Mounted, mini_disk: Disk, tmp_path: Path) -> None:
    data = mount.images / str(mount.id(mount.by_name / "mini.qcow2")) / "data"
    overlay = tmp_path / "overlay.qcow2"
    ok("qemu-img", "create", "-q", "-f", "qcow2", "-b", data, "-F", "qcow2", overlay)
    for boots in ("0", "1"):
        guest = boot(overlay, tmp_path / "console", fmt="qcow2", cache="none", aio="native")
        assert guest == {"mode": "rw", "payload": mini_disk.payload, "boots": boots, "written": "ok"}
    ok("cmp", mini_disk.qcow2, data)


def test_two_guests_at_once(mount: Mounted, mini_disk: Disk, tmp_path: Path) -> None:
    image = mount.by_name / "mini.raw"
    guests = [
        start(image, tmp_path / f"console-{number}", fmt="raw", cache="none", snapshot=True) for number in range(2)
    ]
    try:
        for guest in guests:
            assert guest.wait(deadline=180)["payload"] == mini_disk.payload
    finally:
        for guest in guests:
            guest.stop()


def test_boot_of_a_draft_that_the_guest_writes(mount: Mounted, mini_disk: Disk, tmp_path: Path) -> None:
    """S2: a draft is an ordinary writable file, also for a guest; afterwards it becomes an image."""
    image = mount.by_name / "installed.raw"
    ok("truncate", "-s", str(mini_disk.raw.stat().st_size), image)
    ok("setfattr", "-n", "user.imagefs.draft", "-v", "1", image)
    ok("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", mini_disk.raw, image)
    ways = [("none", "native"), ("writeback", "threads"), ("none", "io_uring")]
    for boots, (cache, aio) in enumerate(ways):
        guest = boot(image, tmp_path / "console", fmt="raw", cache=cache, aio=aio)
        assert guest == {"mode": "rw", "payload": mini_disk.payload, "boots": str(boots), "written": "ok"}
    ok("setfattr", "-x", "user.imagefs.draft", image)
    mount.wait_status(image)
    guest = boot(image, tmp_path / "console", fmt="raw", cache="none", readonly=True)
    assert guest["boots"] == "3"


def test_boot_with_the_kernel_beside_it(mount: Mounted, mini_disk: Disk, tmp_path: Path) -> None:
    image = mount.by_name / "mini.raw"
    guest = boot(image, tmp_path / "console", fmt="raw", readonly=True, kernel_of=mini_disk)
    assert guest["payload"] == mini_disk.payload


@pytest.fixture(scope="module")
def debian_disk() -> Disk:
    """A whole Debian (see tests.disks)."""
    try:
        return debian()
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_whole_debian(debian_disk: Disk, tmp_path: Path, transport: str, fmt: str) -> None:
    """In by cp, the same after another mount, no larger than its source, and up to the login line."""
    source = debian_disk.raw.with_suffix(f".{fmt}")
    with Mounted(tmp_path, transport=transport, patience=800) as mounted:
        image = mounted.by_name / f"debian.{fmt}"
        ok("cp", source, image, timeout=200)
        mounted.wait_status(image, deadline=200)
        mounted.remount()
        ok("cmp", source, image, timeout=200)
        assert image.stat().st_blocks <= source.stat().st_blocks * 1.05
        copy = mounted.outside / "copy"
        ok("cp", image, copy, timeout=200)
        ok("cmp", source, copy, timeout=200)
        if transport == "kernel":  # libfuse 2 cannot tell cp where the holes are
            assert copy.stat().st_blocks <= source.stat().st_blocks * 1.05
        copy.unlink()
        direct = {"cache": "none", "aio": "native"}
        guest = start(image, tmp_path / "console", fmt=fmt, snapshot=True, memory=512, **direct)
        assert guest.wait("login:", 300)["payload"] == debian_disk.payload


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["raw", "qcow2", "vmdk", "vdi", "vpc", "vhdx"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_large_disk_in_every_format(debian_disk: Disk, tmp_path: Path, transport: str, kind: str) -> None:
    options = ["-o", "force_size=on"] * (kind == "vpc")
    with Mounted(tmp_path, transport=transport, patience=800) as mounted:
        image, back = mounted.by_name / f"large.{kind}", mounted.outside / "large.raw"
        words = ["qemu-img", "convert", "-f", "raw", "-O", kind, *options, debian_disk.raw, image]
        ok(*words, timeout=300)
        mounted.wait_status(image, deadline=200)
        if kind not in ("raw", "vpc"):
            ok("qemu-img", "check", "-f", kind, image, timeout=100)
        ok("qemu-img", "info", "-f", kind, image)
        ok("qemu-img", "compare", "-f", "raw", "-F", kind, debian_disk.raw, image, timeout=200)
        ok("qemu-img", "convert", "-f", kind, "-O", "raw", image, back, timeout=300)
        ok("cmp", debian_disk.raw, back, timeout=200)
