from __future__ import annotations

import json
import os
import random
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imagefs.formats import Read
from imagefs.formats.detect import HEAD, Format, inspect
from imagefs.types import DISK_FORMATS

MIB = 1 << 20

needs_qemu = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


def run(*command: str | Path) -> str:
    return subprocess.run(list(map(str, command)), check=True, timeout=60, capture_output=True, text=True).stdout


def of(data: bytes) -> Format:
    return inspect(lambda offset, length: data[offset : offset + length], len(data))


def counted(path: Path) -> tuple[Format, int]:
    """What a file is, and how many bytes were asked for."""
    asked = 0
    with path.open("rb") as file:

        def read(offset: int, length: int) -> bytes:
            nonlocal asked
            asked += length
            return os.pread(file.fileno(), length, offset)

        return inspect(read, path.stat().st_size), asked


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw disk of 40 MiB with data at both ends and in the middle."""
    path = tmp_path_factory.mktemp("disk") / "disk.raw"
    with path.open("wb") as file:
        file.truncate(40 * MIB)
        for offset in (MIB, 17 * MIB, 39 * MIB):
            file.seek(offset)
            file.write(random.Random(offset).randbytes(100_000))
    return path


REAL = {
    "qcow2 v3": ("qcow2", "qcow2"),
    "qcow2 v2": ("qcow2", "qcow2", "-o", "compat=0.10"),
    "qcow2 compressed": ("qcow2", "qcow2", "-c"),
    "qcow2 zstd": ("qcow2", "qcow2", "-c", "-o", "compression_type=zstd"),
    "qcow2 small clusters": ("qcow2", "qcow2", "-o", "cluster_size=512"),
    "vmdk monolithicSparse": ("vmdk", "vmdk"),
    "vmdk streamOptimized": ("vmdk", "vmdk", "-o", "subformat=streamOptimized"),
    "vdi": ("vdi", "vdi"),
    "vdi static": ("vdi", "vdi", "-o", "static=on"),
    "vhd dynamic": ("vpc", "vhd"),
    "vhd dynamic, exact size": ("vpc", "vhd", "-o", "force_size=on"),
    "vhdx dynamic": ("vhdx", "vhdx"),
    "vhdx fixed": ("vhdx", "vhdx", "-o", "subformat=fixed"),
}


@needs_qemu
@pytest.mark.parametrize(("driver", "name", "options"), [(d, n, o) for d, n, *o in REAL.values()], ids=REAL)
def test_a_real_image_is_what_qemu_img_made(driver, name, options, disk, tmp_path):
    path = tmp_path / "image"
    run("qemu-img", "convert", "-f", "raw", "-O", driver, *options, disk, path)
    found, asked = counted(path)
    info = json.loads(run("qemu-img", "info", "-f", driver, "--output=json", path))
    assert found == Format(name, info["virtual-size"])
    assert found.disk_format in DISK_FORMATS
    assert asked <= HEAD


@needs_qemu
@pytest.mark.parametrize(
    ("driver", "options"),
    [("raw", []), ("vpc", ["-o", "subformat=fixed"])],
    ids=["raw", "vhd fixed"],
)
def test_what_is_served_as_a_plain_disk_is_raw(driver, options, disk, tmp_path):
    path = tmp_path / "image"
    run("qemu-img", "convert", "-f", "raw", "-O", driver, *options, disk, path)
    assert counted(path)[0] == Format("raw", path.stat().st_size)
    assert json.loads(run("qemu-img", "info", "--output=json", path))["format"] == "raw"


@needs_qemu
@pytest.mark.parametrize("driver", ["qed", "qcow"])
def test_formats_without_a_name_in_the_image_service(driver, tmp_path):
    path = tmp_path / "image"
    run("qemu-img", "create", "-f", driver, path, "40M")
    assert counted(path)[0] == Format(None, None)


@needs_qemu
def test_an_overlay_has_the_size_of_its_own_header(tmp_path):
    run("qemu-img", "create", "-f", "qcow2", tmp_path / "base", "40M")
    overlay = tmp_path / "overlay"
    run("qemu-img", "create", "-f", "qcow2", "-b", tmp_path / "base", "-F", "qcow2", overlay, "80M")
    assert counted(overlay)[0] == Format("qcow2", 80 * MIB)


@needs_qemu
def test_only_the_head_of_a_huge_file_is_read(tmp_path):
    path = tmp_path / "huge"
    run("qemu-img", "create", "-f", "qcow2", path, "1T")
    os.truncate(path, 1 << 40)
    found, asked = counted(path)
    assert found == Format("qcow2", 1 << 40)
    assert asked <= HEAD
    os.truncate(path, 0)
    os.truncate(path, 1 << 40)
    found, asked = counted(path)
    assert found == Format("raw", 1 << 40)
    assert asked <= MIB


@pytest.mark.parametrize("tool", ["xorriso", "genisoimage", "mkisofs"])
def test_a_real_iso(tool, tmp_path):
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "hello").write_text("hello")
    command = ["xorriso", "-as", "mkisofs"] if tool == "xorriso" else [tool]
    run(*command, "-quiet", "-o", tmp_path / "image.iso", tmp_path / "tree")
    found, _ = counted(tmp_path / "image.iso")
    assert found.disk_format == "iso"
    assert found.virtual_size is not None
    assert found.virtual_size <= (tmp_path / "image.iso").stat().st_size


def iso(sectors: int = 100) -> bytes:
    """System area and primary volume descriptor of an ISO 9660 file system."""
    descriptor = bytearray(2048)
    descriptor[:7] = b"\1CD001\1"
    struct.pack_into("<I", descriptor, 80, sectors)
    struct.pack_into("<H", descriptor, 128, 2048)
    return (bytes(32768) + descriptor).ljust(sectors * 2048, b"\0")


def partitioned(gpt: bool) -> bytes:
    """A disk with one partition from the first MiB on."""
    data = bytearray(2 * MIB)
    data[446:462] = struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE if gpt else 0x83, b"\xff" * 3, 1, 4095)
    data[510:512] = b"\x55\xaa"
    if gpt:
        data[512:520] = b"EFI PART"
    return bytes(data)


def test_an_iso_is_as_large_as_its_volume():
    assert of(iso()) == Format("iso", 100 * 2048)


def test_an_iso_that_boots_from_disks_as_well_is_an_iso():
    hybrid = bytearray(iso())
    hybrid[446:512] = partitioned(gpt=False)[446:512]
    assert of(bytes(hybrid)).disk_format == "iso"


@pytest.mark.parametrize("gpt", [False, True], ids=["mbr", "gpt"])
def test_a_partitioned_disk_is_raw(gpt):
    assert of(partitioned(gpt)) == Format("raw", 2 * MIB)


def test_an_encrypted_disk_is_raw():
    assert of(b"LUKS\xba\xbe\0\1" + bytes(MIB - 8)) == Format("raw", MIB)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 40000])
def test_small_files_are_raw(size):
    assert of(bytes(size)) == Format("raw", size)


QCOW2 = struct.pack(">4sIQIIQ", b"QFI\xfb", 3, 0, 0, 16, 10 * MIB).ljust(512, b"\0")


def test_the_marks_of_two_formats_are_raw():
    both = QCOW2 + iso()[512:]
    assert of(QCOW2 + bytes(MIB)).disk_format == "qcow2"
    assert of(both) == Format("raw", len(both))


def test_a_size_that_no_disk_has_is_no_size():
    boast = QCOW2[:24] + b"\xff" * 8 + QCOW2[32:]
    assert of(boast) == Format("qcow2", None)


def test_a_text_about_a_vmdk_has_no_size():
    text = b'# Disk DescriptorFile\nversion=1\ncreateType="monolithicFlat"\nRW 80 FLAT "x-flat.vmdk" 0\n'
    assert of(text.ljust(600)) == Format("vmdk", None)


HEADS: list[bytes] = [
    QCOW2,
    b"QED\0",
    b"conectix" + bytes(32) + b"\xff" * 8,
    b"vhdxfile",
    b"KDMV" + struct.pack("<IIQQQQIQQ", 1, 3, 999, 128, 1, 20, 512, 21, (1 << 64) - 1),
    bytes(0x40) + b"\x7f\x10\xda\xbe",
    b'createType="monolithicSparse"\n',
    b"LUKS\xba\xbe",
    iso(40),
]


@given(st.sampled_from(HEADS), st.binary(max_size=700), st.integers(0, 600), st.integers(0, 300_000))
@example(HEADS[3], b"regi", 192 * 1024, 0)
@example(HEADS[3], b"regi" + b"\xff" * 12, 192 * 1024, 70_000)
@example(HEADS[6], b"\n" * 600, 31, 0)
def test_garbage_is_some_format_or_raw(head, noise, at, padding):
    data = bytearray(head.ljust(at, b"\0"))
    data[at : at + len(noise)] = noise
    data += bytes(padding)
    found = of(bytes(data))
    assert found.disk_format is None or found.disk_format in DISK_FORMATS
    assert found.virtual_size is None or 0 <= found.virtual_size < 1 << 63


def vhdx(metadata_at: int, entries: int, item: bytes, item_length: int) -> bytes:
    """Region and metadata tables that name a virtual size."""
    data = bytearray(4 * MIB)
    data[:8] = b"vhdxfile"
    region = bytes.fromhex("06a27c8b90479a4bb8fe575f050f886e")
    struct.pack_into("<4sIII16sQII", data, 192 << 10, b"regi", 0, 1, 0, region, metadata_at, MIB, 1)
    if metadata_at + 65536 <= len(data):
        struct.pack_into("<8sHH20x", data, metadata_at, b"metadata", 0, entries)
        size = bytes.fromhex("2442a52f1bcd7648b2115dbed83bf4b8")
        struct.pack_into("<16sIII", data, metadata_at + 32, size, 65536, item_length, 0)
        data[metadata_at + 65536 : metadata_at + 65536 + len(item)] = item
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (vhdx(2 * MIB, 1, struct.pack("<Q", 7 * MIB), 8), 7 * MIB),
        (vhdx(1 << 40, 1, b"", 8), None),
        (vhdx(2 * MIB, 1, bytes(9), 9), None),
        (vhdx(2 * MIB, 1, b"", 0), None),
        (vhdx(2 * MIB, 2047, struct.pack("<Q", 1 << 63), 8), None),
    ],
    ids=["good", "metadata far away", "nine bytes", "no bytes", "too large"],
)
def test_what_a_vhdx_says_of_its_size_is_checked(data, size):
    assert of(data) == Format("vhdx", size)


def test_the_file_may_be_shorter_than_it_was(tmp_path):
    read: Read = lambda offset, length: b""  # noqa: E731
    assert inspect(read, MIB) == Format("raw", MIB)
