"""Copies inside the mount that are written to: what is not overwritten stays the source's (S10)."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.content import KIB, MIB, data_ranges, noise
from tests.mounted import Mounted, ok, wait_until

SIZE = 8 * MIB + 4 * KIB + 100
COPY = """
import os, sys
source, target = os.open(sys.argv[1], os.O_RDONLY), os.open(sys.argv[2], os.O_RDWR | os.O_CREAT)
at, to, left = map(int, sys.argv[3:])
while left:
    done = os.copy_file_range(source, target, left, at, to)
    assert done
    at, to, left = at + done, to + done, left - done
"""


@pytest.fixture
def source(mount: Mounted) -> tuple[Path, bytes]:
    """A sealed image with a hole, whose size is no multiple of a block, and its bytes."""
    mount.needs("copy_file_range")
    content = noise(3 * MIB, 1) + bytes(2 * MIB) + noise(SIZE - 5 * MIB, 2)
    path = mount.by_name / "clones-source"
    return (path if path.exists() else mount.put(path.name, content)), content


def marked_copy(mount: Mounted, source: Path, name: str) -> Path:
    """A copy that stays a draft until `sealed` is called."""
    target = mount.by_name / name
    ok("cp", "--sparse=never", source, target)
    os.setxattr(target, "user.imagefs.draft", b"1")
    return target


def sealed(mount: Mounted, target: Path, content: bytes, at_most: int) -> None:
    """Seals it, and checks its bytes and what it stored beyond what was there."""
    assert target.read_bytes() == content, "as a draft"
    before = mount.status()["stored_bytes"]
    os.removexattr(target, "user.imagefs.draft")
    mount.wait_status(target)
    wait_until(lambda: target.read_bytes() == content, 5, "the sealed bytes to be those of the draft")
    assert mount.status()["stored_bytes"] - before < at_most


def test_a_copy_with_one_percent_changed_stores_as_much(mount: Mounted, source: tuple[Path, bytes]) -> None:
    path, content = source
    target, changed = marked_copy(mount, path, "changed"), bytearray(content)
    with target.open("r+b", buffering=0) as file:
        for number in random.Random(1).sample(range(SIZE // (4 * KIB)), 20):
            piece = noise(4 * KIB, 100 + number)
            os.pwrite(file.fileno(), piece, number * 4 * KIB)
            changed[number * 4 * KIB : (number + 1) * 4 * KIB] = piece
    assert target.stat().st_size == SIZE
    sealed(mount, target, bytes(changed), 140 * KIB)


def test_dd_into_a_copy(mount: Mounted, source: tuple[Path, bytes]) -> None:
    path, content = source
    target, changed = marked_copy(mount, path, "dd-into"), bytearray(content)
    piece = mount.outside / "piece"
    piece.write_bytes(noise(70_000, 3))
    ok("dd", f"if={piece}", f"of={target}", "bs=1000", "seek=1234", "conv=notrunc,fsync")
    changed[1_234_000 : 1_234_000 + 70_000] = piece.read_bytes()
    ok("dd", f"if={piece}", f"of={target}", "bs=7", "seek=599000", "count=1", "conv=notrunc")
    changed[4_193_000:4_193_007] = piece.read_bytes()[:7]
    sealed(mount, target, bytes(changed), 160 * KIB)


def test_qemu_io_into_a_copy(mount: Mounted, source: tuple[Path, bytes]) -> None:
    path, content = source
    target, changed = marked_copy(mount, path, "qemu-io"), bytearray(content)
    words = ["write -P 0x5a 64k 128k", "write -z 1M 192k", "discard 2M 64k", "write -P 0x11 5000 700", "flush"]
    ok("qemu-io", "-f", "raw", "-d", "unmap", *[word for command in words for word in ("-c", command)], target)
    changed[64 * KIB : 192 * KIB] = b"\x5a" * (128 * KIB)
    changed[MIB : MIB + 192 * KIB] = bytes(192 * KIB)
    changed[5000:5700] = b"\x11" * 700
    found = target.read_bytes()[2 * MIB : 2 * MIB + 64 * KIB]
    assert found in (bytes(64 * KIB), content[2 * MIB : 2 * MIB + 64 * KIB]), "a discard may or may not zero"
    changed[2 * MIB : 2 * MIB + 64 * KIB] = found
    sealed(mount, target, bytes(changed).ljust(target.stat().st_size, b"\0"), 160 * KIB)


@pytest.mark.parametrize(
    ("at", "to", "length"),
    [
        (0, 0, SIZE),
        (MIB, 0, 2 * MIB),
        (0, 4 * KIB, SIZE),
        (5 * KIB, 9 * KIB, MIB),
        (7, 3, 70_000),
        (4 * MIB, MIB, SIZE - 4 * MIB),
    ],
)
def test_copy_file_range(mount: Mounted, source: tuple[Path, bytes], at: int, to: int, length: int) -> None:
    """Part of an image into a new one at another place, and into the middle of one that has data."""
    path, content = source
    for filled in (False, True):
        target = mount.by_name / f"range-{at}-{to}-{filled}"
        expected = bytearray(noise(9 * MIB, 4) if filled else b"")
        target.write_bytes(expected)
        os.setxattr(target, "user.imagefs.draft", b"1")
        mount.run_python(COPY, path, target, str(at), str(to), str(length))
        expected[:] = expected.ljust(to, b"\0")
        expected[to : to + length] = content[at : at + length]
        assert target.read_bytes() == expected
        os.removexattr(target, "user.imagefs.draft")
        mount.wait_status(target)
        assert target.read_bytes() == expected


def test_draft_to_draft(mount: Mounted, source: tuple[Path, bytes]) -> None:
    """What the first draft took from an image the second one takes too; the rest is copied."""
    path, content = source
    first, changed = marked_copy(mount, path, "draft-1"), bytearray(content)
    with first.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), noise(10_000, 5), 3 * MIB - 5000)
        changed[3 * MIB - 5000 : 3 * MIB + 5000] = noise(10_000, 5)
    second = marked_copy(mount, first, "draft-2")
    with first.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"later" * 1000, 0)
    sealed(mount, second, bytes(changed), 160 * KIB)
    changed[:5000] = b"later" * 1000
    sealed(mount, first, bytes(changed), 160 * KIB)


def test_holes_of_a_copy(mount: Mounted, source: tuple[Path, bytes]) -> None:
    """S9: SEEK_HOLE and SEEK_DATA of a draft that is a copy find the holes of its source, and its own."""
    path, _ = source
    target = marked_copy(mount, path, "holes-of-a-copy")
    ok("fallocate", "--punch-hole", "--offset", str(MIB), "--length", str(64 * KIB), target)
    assert data_ranges(target) == [
        (0, MIB),
        (MIB + 64 * KIB, 2 * MIB - 64 * KIB),
        (5 * MIB, SIZE - 5 * MIB),
    ]


def test_the_source_may_go(mount: Mounted) -> None:
    """The blocks that a draft takes stay although the image they came from is deleted and collected."""
    mount.needs("copy_file_range")
    content = noise(2 * MIB, 9)
    source = mount.put("going", content)
    target = marked_copy(mount, source, "staying")
    source.unlink()
    mount.command("gc")
    with target.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"x" * 10, 100)
    changed = content[:100] + b"x" * 10 + content[110:]
    assert target.read_bytes() == changed
    os.removexattr(target, "user.imagefs.draft")
    mount.wait_status(target)
    mount.command("gc")
    assert target.read_bytes() == changed


def test_a_copy_survives_the_worker(kernel_mount: Mounted) -> None:
    """S2: what was written to a copy, and what was not, survives SIGKILL of the daemon."""
    content = noise(4 * MIB, 11)
    source = kernel_mount.put("killed-source", content)
    target, changed = marked_copy(kernel_mount, source, "killed"), bytearray(content)
    with target.open("r+b", buffering=0) as file:
        for round_number in range(3):
            for number in random.Random(round_number).sample(range(1000), 30):
                piece = noise(3000, number)
                os.pwrite(file.fileno(), piece, number * 4000)
                changed[number * 4000 : number * 4000 + 3000] = piece
            os.kill(kernel_mount.processes()[0], 9)
            assert target.read_bytes() == changed
    os.setxattr(target, "user.imagefs.seal", b"1")
    kernel_mount.wait_status(target)
    assert target.read_bytes() == changed


def test_blocks_of_a_copy(mount: Mounted, source: tuple[Path, bytes]) -> None:
    """S9: st_blocks of a draft counts what it shares, and not the holes."""
    path, _ = source
    target = marked_copy(mount, path, "blocks-of-a-copy")
    about = path.stat().st_blocks
    assert about <= target.stat().st_blocks <= about + 16
    with target.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), noise(MIB, 6), 4 * MIB)
        os.fsync(file.fileno())
    wait_until(lambda: about + 2048 <= target.stat().st_blocks <= about + 2080, 3, "the written blocks to be counted")
