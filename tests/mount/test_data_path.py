"""Ways of reading and writing that hypervisors and databases use: all of them tell the truth."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from tests.content import KIB, MIB, data_ranges, noise, write_sparse
from tests.mounted import Mounted, fails, ok, run, wait_until

DIRECT_READ = """
import mmap, os, sys
with mmap.mmap(-1, 1 << 20) as buffer:
    fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
    out = open(sys.argv[2], "wb")
    offset = 0
    while length := os.preadv(fd, [buffer], offset):
        out.write(buffer[:length])
        offset += length
"""

MMAP_READ = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
flags = {"private": mmap.MAP_PRIVATE, "shared": mmap.MAP_SHARED}[sys.argv[3]]
with mmap.mmap(fd, 0, flags=flags, prot=mmap.PROT_READ) as mapped:
    open(sys.argv[2], "wb").write(mapped)
"""

MMAP_WRITE = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
with mmap.mmap(fd, 0) as mapped:
    os.close(fd)
    mapped[5000:5005] = b"hello"
    mapped[-3:] = b"end"
    mapped.flush()
    print("written", flush=True)
    sys.stdin.readline()
    mapped[6000:6005] = b"later"
"""

PRIVATE_COPY = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
with mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
    mapped[:5] = b"mine!"
    assert mapped[:5] == b"mine!"
"""


def test_direct_reads(mount: Mounted) -> None:
    content = noise(2 * MIB + 777, 1)
    image, copy = mount.put("direct", content), mount.outside / "direct.copy"
    mount.run_python(DIRECT_READ, image, copy)
    assert copy.read_bytes() == content


def test_direct_writes(mount: Mounted) -> None:
    source, image = mount.outside / "direct.source", mount.by_name / "direct-written"
    source.write_bytes(noise(4 * MIB, 2))
    ok("dd", f"if={source}", f"of={image}", "bs=64k", "oflag=direct")
    mount.wait_status(image)
    ok("cmp", source, image)


@pytest.mark.parametrize("kind", ["private", "shared"])
def test_mapped_reads(mount: Mounted, kind: str) -> None:
    content = noise(3 * MIB + 99, 3)
    image, copy = mount.put(f"mapped-{kind}", content), mount.outside / "mapped.copy"
    mount.run_python(MMAP_READ, image, copy, kind)
    assert copy.read_bytes() == content


def test_private_maps_change_nothing(mount: Mounted) -> None:
    image = mount.put("mapped-private-write", b"image" * 2000)
    mount.run_python(PRIVATE_COPY, image)
    assert image.read_bytes() == b"image" * 2000


def test_a_map_keeps_the_draft_open(mount: Mounted) -> None:
    """S3: sealed when nobody has it open for writing or mapped; what the map wrote is in the image."""
    from subprocess import PIPE, Popen
    from sys import executable

    image = mount.by_name / "mapped-shared-write"
    content = bytearray(noise(1 * MIB, 4))
    os.mknod(image)
    os.setxattr(image, "user.imagefs.draft", b"1")
    image.write_bytes(content)
    with Popen([executable, "-c", MMAP_WRITE, image], stdin=PIPE, stdout=PIPE, text=True) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        assert writer.stdout.readline() == "written\n"
        os.removexattr(image, "user.imagefs.draft")
        with pytest.raises(OSError, match="busy"):
            os.setxattr(image, "user.imagefs.seal", b"1")
        wait_until(lambda: image.read_bytes()[5000:5005] == b"hello", 5, "the map's bytes")
        assert mount.image_status(image) == "saving"
        writer.stdin.write("\n")
        writer.stdin.close()
        assert writer.wait(20) == 0
    mount.wait_status(image)
    content[5000:5005], content[6000:6005], content[-3:] = b"hello", b"later", b"end"
    assert image.read_bytes() == content


@pytest.mark.parametrize("engine", ["psync", "io_uring", "libaio"])
@pytest.mark.parametrize("direct", [0, 1])
def test_fio_verifies_its_writes(mount: Mounted, engine: str, direct: int) -> None:
    image = mount.by_name / f"fio-{engine}-{direct}"
    words = [
        *("fio", "--name=verify", f"--filename={image}", "--size=8M", "--bs=4k"),
        *(f"--ioengine={engine}", f"--direct={direct}", "--iodepth=8", "--verify=crc32c", "--end_fsync=1"),
    ]  # fmt: skip
    ok(*words, "--rw=randwrite", cwd=mount.outside)
    mount.wait_status(image)
    ok(*words, "--rw=randread", cwd=mount.outside)


def test_seek_hole_and_data_tell_the_truth(mount: Mounted) -> None:
    """S9: of a draft, of sealed data, and after a new mount."""
    mount.needs("lseek")
    source, image = mount.outside / "islands", mount.by_name / "islands"
    islands = write_sparse(source, seed=11)
    ok("cp", source, image)
    assert data_ranges(image) == islands
    mount.wait_status(image)
    assert data_ranges(image) == islands
    with image.open("rb", buffering=0) as file, pytest.raises(OSError, match="No such device"):
        os.lseek(file.fileno(), 24 * MIB - 5, os.SEEK_DATA)
    with image.open("rb", buffering=0) as file:
        assert os.lseek(file.fileno(), 24 * MIB - 5, os.SEEK_HOLE) == 24 * MIB - 5
        assert os.lseek(file.fileno(), 100, os.SEEK_DATA) == 100
        assert os.lseek(file.fileno(), 100, os.SEEK_HOLE) == 192 * KIB
        with pytest.raises(OSError, match="No such device"):
            os.lseek(file.fileno(), 24 * MIB, os.SEEK_HOLE)


def test_fallocate(mount: Mounted) -> None:
    mount.needs("fallocate")
    image = mount.by_name / "allocated"
    content = bytearray(noise(1 * MIB, 6))
    os.mknod(image)
    os.setxattr(image, "user.imagefs.draft", b"1")
    image.write_bytes(content)
    ok("fallocate", "-p", "-o", "64KiB", "-l", "128KiB", image)
    ok("fallocate", "-z", "-o", "512KiB", "-l", "1000", image)
    ok("fallocate", "-l", "2MiB", image)
    content[64 * KIB : 192 * KIB] = bytes(128 * KIB)
    content[512 * KIB : 512 * KIB + 1000] = bytes(1000)
    content += bytes(1 * MIB)
    assert image.read_bytes() == content
    for mode in ("--collapse-range", "--insert-range"):
        fails("fallocate", mode, "-o", "4KiB", "-l", "4KiB", image, says="not supported")
    os.removexattr(image, "user.imagefs.draft")
    mount.wait_status(image)
    assert image.read_bytes() == content
    fails("fallocate", "-p", "-l", "4KiB", image, says="Operation not permitted")


def test_copy_file_range(mount: Mounted) -> None:
    """S10: copy_file_range inside the mount; whole, and in pieces with odd offsets."""
    content = noise(2 * MIB + 10, 7)
    image = mount.put("range-source", content)
    code = (
        "import os, sys; a = os.open(sys.argv[1], os.O_RDONLY); "
        "b = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT); "
        "n = os.copy_file_range(a, b, int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])); print(n)"
    )
    whole, part = mount.by_name / "range-whole", mount.by_name / "range-part"
    assert int(mount.run_python(code, image, whole, str(len(content)), "0", "0")) == len(content)
    assert 0 < int(mount.run_python(code, image, part, "100000", "5000", "777")) <= 100_000
    assert int(mount.run_python(code, image, part, "1000", str(len(content)), "0")) == 0
    mount.wait_status(whole)
    mount.wait_status(part)
    assert whole.read_bytes() == content
    copied = part.stat().st_size - 777
    assert part.read_bytes() == bytes(777) + content[5000 : 5000 + copied]


def test_two_readers(mount: Mounted) -> None:
    content = noise(8 * MIB, 8)
    image = mount.put("two-readers", content)
    own = [mount.outside / f"reader-{number}" for number in range(2)]
    threads = [threading.Thread(target=ok, args=("cp", image, path)) for path in own]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(path.read_bytes() == content for path in own)


def test_random_reads_of_every_alignment(mount: Mounted) -> None:
    content = noise(300 * KIB, 9) + bytes(400 * KIB) + noise(123, 10)
    image = mount.put("alignments", content)
    with image.open("rb", buffering=0) as file:
        for offset in (0, 1, 4095, 4096, 65535, 65537, 300 * KIB - 1, 700 * KIB, len(content) - 1):
            for length in (1, 4095, 4097, 65537, 200_000):
                assert os.pread(file.fileno(), length, offset) == content[offset : offset + length]
        assert os.pread(file.fileno(), 10, len(content)) == b""
        assert os.pread(file.fileno(), 10, len(content) + 10 * MIB) == b""


def test_deleted_images_stay_readable_while_open(mount: Mounted) -> None:
    """S7: open readers go on reading a deleted image until they close it."""
    content = noise(4 * MIB, 12)
    image = mount.put("deleted-open", content)
    with image.open("rb", buffering=0) as file:
        assert os.pread(file.fileno(), 1000, 0) == content[:1000]
        ok("rm", image)
        mount.command("gc")
        got = b"".join(os.pread(file.fileno(), MIB, offset) for offset in range(0, 4 * MIB, MIB))
        assert got == content
    assert not image.exists()


def test_unlinked_draft_stays_writable_while_open(mount: Mounted) -> None:
    image = mount.by_name / "draft-unlinked"
    with image.open("w+b", buffering=0) as file:
        file.write(b"before")
        ok("rm", image)
        file.write(b"after")
        assert os.pread(file.fileno(), 100, 0) == b"beforeafter"
    assert not image.exists()


def test_unlinking_data_makes_a_draft_queued_again(mount: Mounted) -> None:
    """S1: unlinking a draft makes the image queued again; unlinking sealed data pending_delete."""
    directory = mount.new_directory()
    (directory / "data").write_bytes(b"draft")
    (directory / "data").unlink()
    assert mount.image_status(directory) == "queued"
    (directory / "data").write_bytes(b"sealed" * 1000)
    mount.wait_status(directory / "data")
    (directory / "data").unlink()
    assert mount.image_status(directory) == "pending_delete"
    with pytest.raises(PermissionError):
        (directory / "data").write_bytes(b"again")


def test_append_and_reopen(mount: Mounted) -> None:
    """S2, S3: a draft opened again before it is sealed goes on; opening it cancels a seal."""
    image = mount.by_name / "appended"
    expected = b""
    for number in range(20):
        piece = noise(10_000, number)
        with image.open("ab") as file:
            file.write(piece)
        expected += piece
    mount.wait_status(image)
    assert image.read_bytes() == expected


def test_fsync(mount: Mounted) -> None:
    image = mount.by_name / "synced"
    with image.open("wb") as file:
        file.write(b"s" * 100_000)
        file.flush()
        os.fsync(file.fileno())
        os.fdatasync(file.fileno())
    directory = os.open(mount.by_name, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    ok("sync", "-f", mount.path)


def test_locks_keep_a_second_writer_out(mount: Mounted) -> None:
    """The kernel's own locks: what keeps two hypervisors from writing one disk."""
    image = mount.by_name / "locked"
    with image.open("wb") as file:
        file.write(b"l" * 1000)
        ok("flock", "-n", image, "true")
        held = f"flock -n {image} sh -c 'flock -n {image} true'"
        assert run("sh", "-c", held).returncode == 1


def test_loop_device(mount: Mounted, tmp_path: Path) -> None:
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        pytest.skip("loop devices need root and the loop driver")
    content = noise(4 * MIB, 14)
    image = mount.put("looped", content)
    device = ok("losetup", "--find", "--show", "--read-only", image).strip()
    try:
        copy = tmp_path / "looped"
        ok("dd", f"if={device}", f"of={copy}", "bs=256k", "status=none")
        assert copy.read_bytes() == content
        copy.unlink()
        ok("dd", f"if={device}", f"of={copy}", "bs=256k", "iflag=direct", "status=none")
        assert copy.read_bytes() == content
    finally:
        ok("losetup", "--detach", device)
    wait_until(lambda: device not in ok("losetup", "--list"), 10, "the end of the loop device")
