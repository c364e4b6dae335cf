"""Compressed images in the mount: what is inside becomes shared by itself, and nobody can see it in the bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from imagefs.images import materialising
from tests import compressed
from tests.disks import Disk, boot
from tests.mounted import Mounted, ok, wait_until


def test_a_mount_converts_by_itself(kernel_mount: Mounted) -> None:
    mount = kernel_mount
    disk = compressed.disk(2, 31)
    content = compressed.qcow2(disk)
    raw, source = mount.outside / "raw", mount.outside / "image.qcow2"
    raw.write_bytes(disk)
    source.write_bytes(content)
    for path in (raw, source):
        ok("cp", path, mount.by_name)
        mount.wait_status(mount.by_name / path.name)
    image = mount.by_name / source.name
    with image.open("rb") as reader:
        assert reader.read(1000) == content[:1000]
        wait_until(lambda: mount.attribute(image, "user.imagefs.layout") == "recode", 60, "the conversion")
        assert reader.read() == content[1000:]
    mount.remount()
    ok("cmp", source, image)
    shown = json.loads(mount.command("show", source.name, "--json"))
    assert shown["layout"] == "recode"
    assert shown["layout_saves_bytes"] > len(content) * 0.8
    assert "recode" in mount.command("show", source.name)


def test_reading_makes_it_whole(kernel_mount: Mounted) -> None:
    mount = kernel_mount
    source = mount.outside / "whole.qcow2"
    source.write_bytes(compressed.qcow2(compressed.disk(8, 33)))
    assert source.stat().st_size > materialising.LEAST
    ok("cp", source, mount.by_name)
    image = mount.by_name / source.name
    mount.wait_status(image)
    wait_until(lambda: mount.attribute(image, "user.image.os_hash_value") is not None, 30, "the hashes")
    mount.command("convert", source.name, "--ratio", "2")
    assert mount.attribute(image, "user.imagefs.layout") == "recode"
    cache = mount.repo / "cache"
    assert list(cache.iterdir()) == []
    mount.remount()  # so that no request is left over
    with image.open("rb") as reader:
        assert reader.read(100) == source.read_bytes()[:100]
        wait_until(lambda: list(cache.iterdir()), 60, "the plain file")
        ok("cmp", source, image)
    assert [path.read_bytes() for path in cache.iterdir()] == [source.read_bytes()]
    ok("cmp", source, image)


def test_convert_now(kernel_mount: Mounted) -> None:
    mount = kernel_mount
    source = mount.outside / "alone.qcow2"
    source.write_bytes(compressed.qcow2(compressed.disk(1, 32)))
    ok("cp", source, mount.by_name)
    image = mount.by_name / source.name
    mount.wait_status(image)
    wait_until(lambda: mount.attribute(image, "user.image.os_hash_value") is not None, 30, "the hashes")
    estimate = json.loads(mount.command("convert", source.name, "--dry-run", "--json"))
    assert estimate["known"] == 0
    assert estimate["blocks"] > 256
    refused = mount.imagefs("convert", source.name)
    assert refused.returncode == 9
    assert "stored already" in refused.stderr
    done = json.loads(mount.command("convert", source.name, "--ratio", "2", "--json"))
    assert done["images"] == [str(mount.id(image))]
    assert mount.attribute(image, "user.imagefs.layout") == "recode"
    ok("cmp", source, image)


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
@pytest.mark.parametrize("options", [("-c", "-O", "qcow2"), ("-O", "vmdk", "-o", "subformat=streamOptimized")])
def test_qemu_reads_a_converted_image(kernel_mount: Mounted, options: tuple[str, ...]) -> None:
    mount = kernel_mount
    raw, source = mount.outside / "disk.raw", mount.outside / "disk.compressed"
    raw.write_bytes(compressed.disk(2, 33))
    ok("qemu-img", "convert", "-f", "raw", *options, raw, source)
    for path in (raw, source):
        ok("cp", path, mount.by_name)
        mount.wait_status(mount.by_name / path.name)
    image = mount.by_name / source.name
    wait_until(lambda: mount.attribute(image, "user.imagefs.layout") == "recode", 60, "the conversion")
    mount.remount()
    kind = mount.attribute(image, "user.image.disk_format")
    assert kind in options
    ok("qemu-img", "check", "-f", kind, image)
    ok("qemu-img", "compare", "-f", "raw", "-F", kind, raw, image)
    ok("cmp", source, image)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_boot_of_a_converted_image(kernel_mount: Mounted, mini_disk: Disk, tmp_path: Path) -> None:
    mount = kernel_mount
    source = mount.outside / "mini.qcow2"
    ok("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", mini_disk.raw, source)
    for path in (mini_disk.raw, source):
        ok("cp", path, mount.by_name)
        mount.wait_status(mount.by_name / path.name)
    image = mount.by_name / source.name
    wait_until(lambda: mount.attribute(image, "user.imagefs.layout") == "recode", 120, "the conversion")
    mount.remount()
    guest = boot(image, tmp_path / "console", fmt="qcow2", cache="none", aio="native", readonly=True)
    assert guest == {"mode": "ro", "payload": mini_disk.payload, "boots": "0", "written": "no"}
    ok("cmp", source, image)
