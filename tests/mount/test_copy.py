"""Image files go in and out with the tools people have: what arrives is what was sent."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.content import KIB, MIB, noise, write_sparse
from tests.mounted import Mounted, fails, ok, wait_until


@pytest.fixture
def source(mount: Mounted) -> Path:
    """A file of 3 MiB and a bit, which is no multiple of any block."""
    path = mount.outside / "source.raw"
    path.write_bytes(noise(3 * MIB + 1234))
    return path


def test_cp_in_by_name(mount: Mounted, source: Path) -> None:
    image = mount.by_name / "cp-in.raw"
    ok("cp", source, image)
    ok("cmp", source, image)
    mount.wait_status(image)
    ok("cmp", source, image)
    assert mount.attribute(image, "user.image.name") == "cp-in.raw"
    assert mount.attribute(image, "user.image.size") == str(source.stat().st_size)


def test_cp_into_a_directory_of_images(mount: Mounted, source: Path) -> None:
    directory = mount.new_directory()
    assert mount.image_status(directory) == "queued"
    ok("cp", source, directory / "data")
    mount.wait_status(directory / "data")
    assert mount.image_status(directory) == "active"
    ok("cmp", source, directory / "data")
    assert sorted(os.listdir(directory)) == ["data", "metadata.json"]


@pytest.mark.parametrize("sparse", ["auto", "never", "always"])
def test_cp_out(mount: Mounted, sparse: str) -> None:
    source = mount.outside / "sparse.raw"
    write_sparse(source)
    image = mount.by_name / f"out-{sparse}.raw"
    ok("cp", f"--sparse={sparse}", source, image)
    mount.wait_status(image)
    copy = mount.outside / "copy.raw"
    ok("cp", f"--sparse={sparse}", image, copy)
    ok("cmp", source, copy)
    copy.unlink()


def test_du_of_a_sparse_image_is_that_of_its_source(mount: Mounted) -> None:
    """S9: st_blocks counts non-zero blocks; a sparse image is never inflated on the way in or out."""
    mount.needs("lseek")
    source, image, copy = mount.outside / "hollow", mount.by_name / "hollow", mount.outside / "hollow-copy"
    write_sparse(source)
    ok("cp", source, image)
    mount.wait_status(image)
    assert image.stat().st_blocks * 512 <= source.stat().st_blocks * 512 * 1.05
    assert image.stat().st_size == source.stat().st_size
    ok("cp", image, copy)
    assert copy.stat().st_blocks * 512 <= source.stat().st_blocks * 512 * 1.05


def test_written_zeros_become_holes(mount: Mounted) -> None:
    """S9: written zeros become holes at sealing."""
    image = mount.put("zeros", noise(64 * KIB) + bytes(4 * MIB) + noise(64 * KIB))
    assert image.stat().st_blocks * 512 == 128 * KIB


def test_cp_a_keeps_mode_times_and_attributes(mount: Mounted, source: Path) -> None:
    source.chmod(0o640)
    os.utime(source, ns=(1_600_000_000_123456789, 1_500_000_000_987654321))
    os.setxattr(source, "user.property.os_distro", b"debian")
    os.setxattr(source, "user.comment", b"\x00binary\xff")
    image = mount.by_name / "cp-a.raw"
    ok("cp", "-a", source, image)
    mount.wait_status(image)
    wait_until(lambda: stat.S_IMODE(image.stat().st_mode) == 0o440, 1.5, "sealed data to have no write bits")
    assert image.stat().st_mtime_ns == 1_500_000_000_987654321
    assert mount.attribute(image, "user.property.os_distro") == "debian"
    assert os.getxattr(image, "user.comment") == b"\x00binary\xff"
    copy = mount.outside / "cp-a.copy"
    ok("cp", "-a", image, copy)
    ok("cmp", source, copy)
    assert os.getxattr(copy, "user.property.os_distro") == b"debian"
    assert copy.stat().st_mtime_ns == 1_500_000_000_987654321


def test_cp_inside_is_a_second_image(mount: Mounted, source: Path) -> None:
    first = mount.put("inside-a", source.read_bytes())
    for way in ("auto", "never"):
        second = mount.by_name / f"inside-{way}"
        ok("cp", f"--sparse={way}", first, second)
        mount.wait_status(second)
        ok("cmp", source, second)
        assert mount.id(first) != mount.id(second)


def test_copies_inside_store_nothing_new(mount: Mounted) -> None:
    """S10: such a cp stores nothing new; what grows is the map and the record."""
    mount.put("stored-a", noise(8 * MIB, 77))
    before = mount.status()["stored_bytes"]
    ok("cp", mount.by_name / "stored-a", mount.by_name / "stored-b")
    mount.wait_status(mount.by_name / "stored-b")
    assert mount.status()["stored_bytes"] - before < 256 * KIB


def test_cp_over_sealed_data_is_refused(mount: Mounted, source: Path) -> None:
    """S4: replacing sealed data fails with EPERM for root as well; cp -f makes a new image."""
    image = mount.put("over", b"first" * 1000)
    before = mount.id(image)
    fails("cp", source, image, says="Operation not permitted")
    assert image.read_bytes() == b"first" * 1000
    ok("cp", "-f", source, image)
    mount.wait_status(image)
    ok("cmp", source, image)
    assert mount.id(image) != before


def test_cp_over_a_draft_writes_it_anew(mount: Mounted, source: Path) -> None:
    image = mount.by_name / "redrafted"
    ok("cp", source, image)
    os.setxattr(image, "user.imagefs.draft", b"1")
    ok("cp", "/etc/hostname", image)
    ok("cmp", "/etc/hostname", image)
    os.removexattr(image, "user.imagefs.draft")
    mount.wait_status(image)
    ok("cmp", "/etc/hostname", image)


def test_install(mount: Mounted, source: Path) -> None:
    image = mount.by_name / "installed"
    ok("install", "-m", "0644", source, image)
    mount.wait_status(image)
    ok("cmp", source, image)
    wait_until(lambda: stat.S_IMODE(image.stat().st_mode) == 0o444, 1.5, "sealed data to have no write bits")


def test_mv_in_and_out(mount: Mounted, source: Path) -> None:
    moved, image, back = mount.outside / "moved", mount.by_name / "moved", mount.outside / "back"
    moved.write_bytes(source.read_bytes())
    ok("mv", moved, image)
    assert not moved.exists()
    mount.wait_status(image)
    ok("cmp", source, image)
    ok("mv", image, back)
    assert not image.exists()
    ok("cmp", source, back)


def test_mv_inside_renames_the_image(mount: Mounted) -> None:
    image = mount.put("mv-a", b"renamed" * 999)
    before, target = mount.id(image), mount.by_name / "mv-b"
    ok("mv", image, target)
    assert not image.exists()
    assert mount.id(target) == before
    assert mount.attribute(target, "user.image.name") == "mv-b"
    assert target.read_bytes() == b"renamed" * 999


def test_mv_onto_an_image_replaces_it(mount: Mounted) -> None:
    """S6: rename onto an existing entry replaces that image."""
    winner, loser = mount.put("mv-winner", b"w" * 5000), mount.put("mv-loser", b"l" * 5000)
    ids = mount.id(winner), mount.id(loser)
    ok("mv", winner, loser)
    assert not winner.exists()
    assert mount.id(loser) == ids[0]
    assert loser.read_bytes() == b"w" * 5000
    wait_until(lambda: str(ids[1]) not in os.listdir(mount.images), 1.5, "the loser to go")


def test_rm_deletes_the_image(mount: Mounted) -> None:
    image = mount.put("rm-a", b"gone" * 999)
    directory = mount.images / str(mount.id(image))
    assert (directory / "data").stat().st_ino == image.stat().st_ino
    ok("rm", image)
    assert not image.exists()
    wait_until(lambda: not directory.exists(), 1.5, "the other name to go (S12: within a second)")
    assert "rm-a" not in os.listdir(mount.by_name)
    wait_until(lambda: directory.name not in os.listdir(mount.images), 1.5, "the listing to change")


def test_rm_r_deletes_the_image(mount: Mounted) -> None:
    image = mount.put("rm-r", b"gone" * 999)
    directory = mount.images / str(mount.id(image))
    ok("rm", "-r", directory)
    assert not directory.exists()
    wait_until(lambda: not image.exists(), 1.5, "the other name to go (S12: within a second)")
    wait_until(lambda: "rm-r" not in os.listdir(mount.by_name), 1.5, "the listing to change")


def test_a_name_can_be_used_again_after_rm(mount: Mounted) -> None:
    first = mount.put("again", b"1" * 10_000)
    before = mount.id(first), first.stat().st_ino
    ok("rm", first)
    second = mount.put("again", b"2" * 20_000)
    assert (mount.id(second), second.stat().st_ino) != before
    assert second.read_bytes() == b"2" * 20_000


def test_dd(mount: Mounted, source: Path) -> None:
    image, copy = mount.by_name / "dd.raw", mount.outside / "dd.copy"
    ok("dd", f"if={source}", f"of={image}", "bs=1M", "conv=fsync")
    mount.wait_status(image)
    ok("dd", f"if={image}", f"of={copy}", "bs=333", "count=2000", "skip=77", "status=none")
    assert copy.read_bytes() == source.read_bytes()[77 * 333 : 2077 * 333]


def test_dd_in_the_middle_of_a_draft(mount: Mounted, source: Path) -> None:
    image = mount.by_name / "dd-middle"
    ok("dd", f"if={source}", f"of={image}", "bs=64k", "conv=notrunc", "seek=10")
    ok("dd", f"if={source}", f"of={image}", "bs=1000", "conv=notrunc", "seek=3", "count=9")
    mount.wait_status(image)
    data = source.read_bytes()
    expected = bytearray(10 * 64 * KIB) + data
    expected[3000:12000] = data[:9000]
    assert image.read_bytes() == expected


def test_truncate(mount: Mounted, source: Path) -> None:
    image = mount.by_name / "truncated"
    ok("truncate", "-s", "1M", image)
    assert image.stat().st_size == MIB
    assert "no data" in mount.stays_draft(image)
    ok("cp", source, image)
    os.setxattr(image, "user.imagefs.draft", b"1")
    ok("truncate", "-s", "100000", image)
    ok("truncate", "-s", "300000", image)
    os.removexattr(image, "user.imagefs.draft")
    mount.wait_status(image)
    assert image.read_bytes() == source.read_bytes()[:100_000] + bytes(200_000)


def test_tar(mount: Mounted, source: Path, tmp_path: Path) -> None:
    """tar carries an image from one name to another, holes and attributes with it."""
    write_sparse(mount.outside / "tarred")
    ok("cp", mount.outside / "tarred", mount.by_name / "tarred")
    mount.wait_status(mount.by_name / "tarred")
    os.setxattr(mount.by_name / "tarred", "user.property.key", b"value")
    archive = tmp_path / "archive.tar"
    ok("tar", "-c", "--xattrs", "-S", "-f", archive, "-C", mount.by_name, "tarred")
    if mount.transport == "kernel":
        assert archive.stat().st_size < 4 * MIB
    ok("rm", mount.by_name / "tarred")
    ok("tar", "-x", "--xattrs", "-S", "-f", archive, "-C", mount.by_name)
    mount.wait_status(mount.by_name / "tarred")
    ok("cmp", mount.outside / "tarred", mount.by_name / "tarred")
    assert mount.attribute(mount.by_name / "tarred", "user.property.key") == "value"


@pytest.mark.parametrize("inplace", [False, True], ids=["renamed", "inplace"])
def test_rsync(mount: Mounted, source: Path, inplace: bool) -> None:
    """S6: a temporary sibling renamed into place is the same draft under its final name."""
    image = mount.by_name / f"rsync-{inplace}"
    os.setxattr(source, "user.property.os_version", b"12")
    ok("rsync", "-aX", *(["--inplace"] * inplace), source, image)
    mount.wait_status(image)
    ok("cmp", source, image)
    assert mount.attribute(image, "user.property.os_version") == "12"
    assert mount.attribute(image, "user.image.name") == image.name
    assert not [name for name in os.listdir(mount.by_name) if name.startswith(".")]
    back = mount.outside / "rsync-back"
    ok("rsync", "-aX", image, back)
    ok("cmp", source, back)
    assert os.getxattr(back, "user.property.os_version") == b"12"


def test_rsync_into_a_directory_of_images(mount: Mounted, source: Path) -> None:
    directory = mount.new_directory()
    ok("rsync", "-a", source, directory / "data")
    mount.wait_status(directory / "data")
    ok("cmp", source, directory / "data")
    assert sorted(os.listdir(directory)) == ["data", "metadata.json"]


def test_rsync_over_sealed_data_is_refused_in_its_directory(mount: Mounted, source: Path) -> None:
    """S6: a temporary sibling renamed over a sealed `data` is EPERM."""
    image = mount.put("rsync-sealed", b"sealed" * 1000)
    directory = mount.images / str(mount.id(image))
    fails("rsync", "-a", source, directory / "data", says="Operation not permitted")
    assert image.read_bytes() == b"sealed" * 1000


def test_shell_redirection_and_pipes(mount: Mounted, source: Path) -> None:
    image = mount.by_name / "piped"
    ok("sh", "-c", f"cat '{source}' | head -c 100000 > '{image}'; cat '{source}' >> '{image}'")
    mount.wait_status(image)
    data = source.read_bytes()
    assert image.read_bytes() == data[:100_000] + data


def test_two_mounts_exchange_records(mount: Mounted, tmp_path: Path) -> None:
    """S8: cp -a between two mounts carries the record over."""
    image = mount.put("exchanged", noise(100_000, 5))
    for name, value in {"tags": b"a,b", "min_ram": b"512", "disk_format": b"raw"}.items():
        os.setxattr(image, f"user.image.{name}", value)
    os.setxattr(image, "user.property.os_distro", b"debian")
    with Mounted(tmp_path, transport=mount.transport) as other:
        for command in (["cp", "-a"], ["rsync", "-aX"]):
            target = other.by_name / f"by-{command[0]}"
            ok(*command, image, target)
            other.wait_status(target)
            ok("cmp", image, target)
            for name in ("image.tags", "image.min_ram", "image.disk_format", "property.os_distro"):
                assert other.attribute(target, f"user.{name}") == mount.attribute(image, f"user.{name}"), name
            assert other.attribute(target, "user.image.name") == target.name
