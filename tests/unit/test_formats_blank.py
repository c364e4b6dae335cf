from __future__ import annotations

import contextlib
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagefs.formats.blank import MAX_RANGES, MAX_READ, is_blank

MIB = 1 << 20

needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-img") is None or shutil.which("qemu-io") is None,
    reason="qemu-img and qemu-io are not installed",
)


def run(*command: str | Path) -> None:
    subprocess.run(list(map(str, command)), check=True, timeout=60, capture_output=True)


def data_ranges(fd: int) -> Iterator[tuple[int, int]]:
    at = 0
    while True:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            return
        at = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, at - start


def blank(path: Path) -> bool:
    """Asked twice: the answer must not depend on what the first question left in the page cache."""
    asked = 0
    with path.open("rb") as file:

        def read(offset: int, length: int) -> bytes:
            nonlocal asked
            asked += length
            return os.pread(file.fileno(), length, offset)

        size = path.stat().st_size
        answers = [is_blank(read, size, data_ranges(file.fileno())) for _ in range(2)]
    assert answers[0] == answers[1]
    assert asked <= 2 * MAX_READ
    return answers[0]


CREATED = {
    "raw": ("raw",),
    "raw falloc": ("raw", "preallocation=falloc"),
    "qcow2": ("qcow2",),
    "qcow2 v2": ("qcow2", "compat=0.10"),
    "qcow2 metadata": ("qcow2", "preallocation=metadata"),
    "qcow2 falloc": ("qcow2", "preallocation=falloc"),
    "qcow2 small clusters": ("qcow2", "cluster_size=512"),
    "qcow2 extended L2": ("qcow2", "extended_l2=on,preallocation=metadata"),
    "qed": ("qed",),
    "vmdk": ("vmdk",),
    "vmdk zeroed grains": ("vmdk", "zeroed_grain=on"),
    "vmdk streamOptimized": ("vmdk", "subformat=streamOptimized"),
    "vdi": ("vdi",),
    "vdi static": ("vdi", "static=on"),
    "vhd": ("vpc",),
    "vhd fixed": ("vpc", "subformat=fixed"),
    "vhdx": ("vhdx",),
    "vhdx fixed": ("vhdx", "subformat=fixed"),
    "parallels": ("parallels",),
}


@needs_qemu
@pytest.mark.parametrize(("driver", "options"), [(d, o) for d, *o in CREATED.values()], ids=CREATED)
def test_what_qemu_img_creates_is_blank_until_a_guest_writes(driver, options, tmp_path):
    path = tmp_path / "image"
    run("qemu-img", "create", "-f", driver, *(["-o", options[0]] if options else []), path, "100M")
    assert blank(path)
    run("qemu-io", "-f", driver, "-c", "write -P 5 0 64k", path)
    assert not blank(path)


@needs_qemu
@pytest.mark.parametrize("driver", ["raw", "qcow2", "qed", "vmdk", "vdi", "vpc", "vhdx", "parallels"])
def test_a_byte_at_the_end_of_the_disk_is_guest_data(driver, tmp_path):
    path = tmp_path / "image"
    run("qemu-img", "create", "-f", driver, path, "100M")
    run("qemu-io", "-f", driver, "-c", f"write -P 5 {99 * MIB} 512", path)
    assert not blank(path)


@needs_qemu
def test_a_large_preallocated_disk_is_blank(tmp_path):
    path = tmp_path / "image"
    run("qemu-img", "create", "-f", "qcow2", "-o", "preallocation=metadata", path, "200G")
    assert blank(path)
    run("qemu-io", "-f", "qcow2", "-c", f"write -P 5 {150 << 30} 4k", path)
    assert not blank(path)


@needs_qemu
def test_an_overlay_is_blank_and_one_with_a_snapshot_is_not(tmp_path):
    run("qemu-img", "create", "-f", "raw", tmp_path / "base", "100M")
    overlay = tmp_path / "overlay"
    run("qemu-img", "create", "-f", "qcow2", "-b", tmp_path / "base", "-F", "raw", overlay)
    assert blank(overlay)
    run("qemu-img", "snapshot", "-c", "before", overlay)
    assert not blank(overlay)


@needs_qemu
def test_an_encrypted_disk_is_blank_though_its_keys_are_not_zero(tmp_path):
    path = tmp_path / "image"
    secret = ["--object", "secret,id=s,data=abc"]
    options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=100"
    for _ in range(20):  # it measures its own CPU time, and now and then finds that it took none
        with contextlib.suppress(subprocess.CalledProcessError):
            run("qemu-img", "create", *secret, "-f", "qcow2", "-o", options, path, "10M")
            break
    else:
        pytest.skip("qemu-img cannot measure its CPU time here")
    assert blank(path)


@needs_qemu
@pytest.mark.parametrize("driver", ["qcow2", "vmdk", "vdi", "vpc", "vhdx"])
def test_a_converted_disk_is_not_blank(driver, tmp_path):
    with (tmp_path / "disk").open("wb") as file:
        file.truncate(50 * MIB)
        file.seek(20 * MIB)
        file.write(os.urandom(MIB))
    run("qemu-img", "convert", "-f", "raw", "-O", driver, tmp_path / "disk", tmp_path / "image")
    assert not blank(tmp_path / "image")


def of(data: bytes, ranges: list[tuple[int, int]] | None = None, size: int | None = None) -> bool:
    return is_blank(
        lambda offset, length: data[offset : offset + length],
        len(data) if size is None else size,
        [(0, len(data))] if ranges is None else ranges,
    )


def test_no_data_at_all_is_blank():
    assert of(b"", [], 0)
    assert of(b"", [], 1 << 40)


def test_zeros_that_were_written_are_data_but_for_the_first_block():
    assert of(bytes(4096), size=MIB)
    assert not of(bytes(MIB))
    assert not of(bytes(MIB), [(MIB - 4096, 4096)])


def test_plain_data_is_not_blank():
    assert not of(b"\1" + bytes(4095))
    assert not of(bytes(4095) + b"\1", size=MIB)
    assert not of(b"hello")


def test_work_is_bounded():
    qed = struct.pack("<4sIIIQQQQQ", b"QED\0", 65536, 4, 1, 0, 0, 0, 65536, MIB)
    asked = 0

    def read(offset: int, length: int) -> bytes:
        nonlocal asked
        asked += length
        return (qed.ljust(length, b"\0") if offset == 0 else bytes(length))[:length]

    size = 1 << 40
    assert is_blank(read, size, [(0, 65536 * 5 + MIB)])
    assert not is_blank(read, size, [(0, size)])
    assert asked <= 2 * MAX_READ
    assert not is_blank(read, size, ((n * 8192, 4096) for n in range(1 << 40)))
    assert is_blank(read, size, ((n * 8192, 4096) for n in range(MAX_RANGES)))


MARKS = [
    b"QFI\xfb\0\0\0\3",
    b"QED\0",
    b"KDMV",
    b"conectix",
    b"vhdxfile",
    b"WithoutFreeSpace",
    b"WithouFreSpacExt",
]


@settings(max_examples=300)
@given(st.sampled_from(MARKS), st.binary(max_size=600), st.integers(0, 1 << 20))
def test_garbage_is_blank_or_not_and_nothing_else(mark, noise, size):
    data = mark + noise
    assert of(data, size=max(size, len(data))) in (True, False)
    assert of(bytes(0x40) + b"\x7f\x10\xda\xbe" + noise) in (True, False)


def test_a_qcow2_whose_tables_are_everywhere_has_data():
    header = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 3, 0, 0, 16, 1 << 40, 0, 1 << 25, 65536, 0, 0, 0, 0)
    assert not of(header.ljust(65536, b"\0") + b"\1" * 4096)
    header = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 3, 0, 0, 16, 1 << 40, 0, 1 << 17, 65536, 0, 0, 0, 0)
    assert not of(header.ljust(65536, b"\0") + b"\1" * MIB + b"\2")
