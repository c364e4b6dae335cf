"""People look around in the mount: listings, sizes, types, attributes."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import time
from pathlib import Path

import pytest

from tests.content import MIB, noise
from tests.mounted import Mounted, fails, ok, wait_until


def test_the_root(mount: Mounted) -> None:
    assert {"images", "by-name", ".imagefs"} <= set(os.listdir(mount.path))
    assert mount.path.stat().st_uid == os.getuid()
    for name in os.listdir(mount.path / ".imagefs"):
        assert (mount.path / ".imagefs" / name).read_text() is not None


def test_both_names_are_one_file(mount: Mounted) -> None:
    image = mount.put("twins", b"twin" * 1000)
    twin = mount.images / str(mount.id(image)) / "data"
    one, two = image.stat(), twin.stat()
    assert (one.st_ino, one.st_nlink) == (two.st_ino, two.st_nlink)
    assert one.st_nlink == 2
    assert set(ok("find", mount.path, "-samefile", image).split()) == {str(image), str(twin)}


def test_ls_find_du_df_stat(mount: Mounted) -> None:
    content = noise(2 * MIB + 5)
    image = mount.put("listed.raw", content)
    assert f" {len(content)} " in ok("ls", "-l", image)
    listing = ok("ls", "-la", mount.by_name)
    assert re.search(rf"^-r--r--r--\s+2 \S+ \S+\s+{len(content)} .* listed\.raw$", listing, re.MULTILINE)
    assert str(image) in ok("find", mount.path, "-name", "*.raw", "-size", "+2M").splitlines()
    assert ok("find", mount.images, "-mindepth", "2", "-name", "metadata.json")
    assert int(ok("du", "-k", image).split()[0]) == (2 * MIB + 4096) // 1024
    assert int(ok("du", "-sk", "--count-links", mount.by_name).split()[0]) >= 2048
    total, free = map(int, ok("df", "-B1", "--output=size,avail", mount.path).splitlines()[1].split())
    assert total > free > 0
    assert ok("stat", "-f", "-c", "%T", mount.path).strip().startswith("fuse")


def test_birth_time(mount: Mounted) -> None:
    mount.needs("birth time")
    before = time.time()
    image = mount.put("born", b"x" * 100)
    assert before - 1 <= int(ok("stat", "-c", "%W", image)) <= time.time()


def test_listings_are_stable_while_files_come_and_go(mount: Mounted) -> None:
    names = {f"stable-{number:03}" for number in range(160)}
    for name in names:
        os.mknod(mount.by_name / name)
    try:
        seen: list[str] = []
        with os.scandir(mount.by_name) as entries:
            for entry in entries:
                seen.append(entry.name)
                if len(seen) == 10:
                    os.mknod(mount.by_name / "stable-zzz")
                    (mount.by_name / "stable-150").unlink()
        assert names - {"stable-150"} <= set(seen)
        assert len(seen) == len(set(seen))
        assert set(os.listdir(mount.by_name)) >= (names | {"stable-zzz"}) - {"stable-150"}
    finally:
        for name in (names | {"stable-zzz"}) - {"stable-150"}:
            (mount.by_name / name).unlink()


def test_inodes_stay_over_a_remount(own_mount: Mounted) -> None:
    image = own_mount.put("inode", b"i" * 999)
    directory = own_mount.images / str(own_mount.id(image))
    before = [os.stat(path).st_ino for path in (image, directory, directory / "metadata.json")]
    own_mount.remount()
    assert [os.stat(path).st_ino for path in (image, directory, directory / "metadata.json")] == before


def test_file_tells_the_type(mount: Mounted) -> None:
    disk = mount.outside / "typed.qcow2"
    ok("qemu-img", "create", "-q", "-f", "qcow2", disk, "64M")
    ok("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 1M", disk)
    ok("cp", disk, mount.by_name)
    image = mount.by_name / disk.name
    mount.wait_status(image)
    assert "QCOW" in ok("file", "-b", image)
    assert mount.attribute(image, "user.image.disk_format") == "qcow2"
    assert mount.attribute(image, "user.image.virtual_size") == str(64 * MIB)


def test_metadata_json(mount: Mounted) -> None:
    image = mount.put("described", b"d" * 5000)
    os.setxattr(image, "user.property.os_distro", b"debian")
    path = mount.images / str(mount.id(image)) / "metadata.json"
    record = json.loads(path.read_text())
    assert record["id"] == str(mount.id(image))
    assert (record["name"], record["status"], record["size"]) == ("described", "active", 5000)
    assert record["os_distro"] == "debian"
    assert stat.S_IMODE(path.stat().st_mode) & 0o222 == 0
    assert path.stat().st_size == len(path.read_bytes())
    fails("sh", "-c", f"echo x >> {path}")


def test_getfattr_and_setfattr(mount: Mounted) -> None:
    image = mount.put("attributes", b"a" * 5000)
    directory = mount.images / str(mount.id(image))
    ok("setfattr", "-n", "user.property.os_distro", "-v", "debian", image)
    ok("setfattr", "-n", "user.image.tags", "-v", "one,two", directory)
    ok("setfattr", "-n", "user.backup", "-v", "daily", image)
    for path in (image, directory, directory / "data"):
        dump = ok("getfattr", "-d", path)
        assert 'user.property.os_distro="debian"' in dump
        assert 'user.image.tags="one,two"' in dump
        assert 'user.image.status="active"' in dump
        assert 'user.backup="daily"' in dump
        assert "user.imagefs." not in dump, "controls are not listed"
    ok("setfattr", "-x", "user.property.os_distro", image)
    ok("setfattr", "-x", "user.image.tags", image)
    ok("setfattr", "-x", "user.image.status", image)
    assert "os_distro" not in ok("getfattr", "-d", image)
    assert not mount.attribute(image, "user.image.tags")
    assert mount.image_status(image) == "active", "removing a read-only field succeeds and does nothing"


def test_setting_the_name_renames(mount: Mounted) -> None:
    image = mount.put("named-before", b"n" * 5000)
    os.setxattr(image, "user.image.name", b"named-after")
    wait_until(lambda: "named-after" in os.listdir(mount.by_name), 1.5, "the new name")
    assert "named-before" not in os.listdir(mount.by_name)
    assert (mount.by_name / "named-after").read_bytes() == b"n" * 5000


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("user.image.min_ram", b"lots", "Invalid argument"),
        ("user.image.visibility", b"everybody", "Invalid argument"),
        ("user.image.protected", b"perhaps", "Invalid argument"),
        ("user.image.colour", b"blue", "Invalid argument"),
        ("user.image.id", b"00000000-0000-0000-0000-000000000000", "Operation not permitted"),
        ("user.image.size", b"7", "Operation not permitted"),
        ("user.image.status", b"queued", "Operation not permitted"),
        ("user.image.name", b"\xff\xfe", ""),
        ("trusted.other", b"1", "Operation not supported"),
        ("security.selinux", b"1", "Operation not supported"),
    ],
)
def test_attributes_that_are_refused(mount: Mounted, name: str, value: bytes, says: str) -> None:
    """S8: a bad value or an unknown field is EINVAL, a read-only field EPERM; nothing changes."""
    image = mount.by_name / "refusing"
    if not image.exists():
        mount.put("refusing", b"r" * 5000)
        wait_until(lambda: mount.attribute(image, "user.image.checksum"), 20, "the hashes")
    before = ok("getfattr", "-d", image)
    with pytest.raises(OSError, match=says or "Invalid|illegal"):
        os.setxattr(image, name, value)
    assert ok("getfattr", "-d", image) == before


def test_attribute_sizes(mount: Mounted) -> None:
    image = mount.put("long-attributes", b"r" * 5000)
    os.setxattr(image, "user.image.disk_format", b"raw")
    with pytest.raises(OSError, match=r"[Ii]nvalid|too long|large|Argument list"):
        os.setxattr(image, "user.property.essay", b"x" * 65_537)
    with pytest.raises(OSError, match=r"Numerical|range|too long|Invalid"):
        os.setxattr(image, "user." + "n" * 300, b"x")
    with pytest.raises(OSError, match="No data available"):
        os.getxattr(image, "user.property.absent")
    with pytest.raises(OSError, match="No data available"):
        os.removexattr(image, "user.absent")
    with pytest.raises(OSError, match="File exists"):
        os.setxattr(image, "user.image.disk_format", b"raw", os.XATTR_CREATE)
    with pytest.raises(OSError, match="No data available"):
        os.setxattr(image, "user.absent", b"raw", os.XATTR_REPLACE)


def test_acls_are_refused_once_and_for_all(mount: Mounted) -> None:
    """`ls -l` would ask for two attributes of each file otherwise."""
    image = mount.put("no-acl", b"r" * 5000)
    for name in ("system.posix_acl_access", "security.selinux"):
        with pytest.raises(OSError, match="not supported"):
            os.getxattr(image, name)


def test_changes_by_a_command_are_seen_within_a_second(mount: Mounted) -> None:
    """S12: a change made through any process is seen in every mount within one second."""
    mount.needs("notify")
    image = mount.put("elsewhere", b"e" * 5000)
    identity = str(mount.id(image))
    ok("ls", "-l", mount.by_name, mount.images)
    mount.command("set", identity, "--name", "elsewhere-renamed")
    time.sleep(1)
    assert not image.exists()
    renamed = mount.by_name / "elsewhere-renamed"
    assert renamed.stat().st_ino
    mount.command("set", identity, "--property", "os_distro=debian")
    time.sleep(1)
    assert mount.attribute(renamed, "user.property.os_distro") == "debian"
    assert json.loads((mount.images / identity / "metadata.json").read_text())["os_distro"] == "debian"
    mount.command("delete", identity)
    time.sleep(1)
    assert not renamed.exists()
    assert "elsewhere-renamed" not in os.listdir(mount.by_name)
    assert identity not in os.listdir(mount.images)


def test_gio_and_ls_recursive(mount: Mounted) -> None:
    mount.put("recursive", b"r" * 100)
    listing = ok("ls", "-lR", mount.path)
    assert "recursive" in listing
    assert "metadata.json" in listing


def test_many_images_are_listed_fast(own_mount: Mounted) -> None:
    count = 600
    for _ in range(count):
        own_mount.new_directory()
    started = time.monotonic()
    assert len(ok("ls", "-l", own_mount.images).splitlines()) == count + 1
    cold = time.monotonic() - started
    assert cold < 2, f"{cold:.2f} s for {count} images"
    by_inode = subprocess.run(
        ["ls", "-i", own_mount.images], capture_output=True, text=True, check=True, timeout=30
    ).stdout.split()
    assert len(set(by_inode[::2])) == count


def test_names(mount: Mounted) -> None:
    """S6: what a directory entry cannot hold is percent-encoded; non-UTF-8 is EILSEQ."""
    directory = mount.new_directory()
    for name, entry in {
        "a/b": "a%2Fb",
        "100%": "100%25",
        "new\nline": "new%0Aline",
        "..": "%2E%2E",
        "grün ☃ 雪": "grün ☃ 雪",
    }.items():
        os.setxattr(directory, "user.image.name", name.encode())
        wait_until(lambda entry=entry: entry in os.listdir(mount.by_name), 1.5, entry)  # type: ignore[misc]
        assert mount.attribute(directory, "user.image.name") == name
    os.setxattr(directory, "user.image.name", b"n" * 255)
    wait_until(lambda: "n" * 255 in os.listdir(mount.by_name), 1.5, "the new name")
    for size in (256, 1000):
        with pytest.raises(OSError, match="Argument list too long"):
            os.setxattr(directory, "user.image.name", b"n" * size)
    os.setxattr(directory, "user.image.name", ("ü" * 200).encode())
    end = "~" + directory.name[:8]
    entry = "ü" * ((255 - len(end)) // 2) + end
    wait_until(lambda: entry in os.listdir(mount.by_name), 1.5, entry)
    with pytest.raises(OSError, match=r"[Ii]nvalid or incomplete|Illegal byte"):
        os.mknod(os.fsencode(mount.by_name) + b"/\xff\xfe")
    with pytest.raises(OSError, match="File name too long"):
        os.mknod(mount.by_name / ("x" * 1000))


def test_a_taken_name_gets_the_id_behind_it(mount: Mounted) -> None:
    """S6: the name itself if it is free, else <name>~<first 8 of id>; the path never changes meaning."""
    first = mount.put("taken", b"first" * 100)
    directory = mount.new_directory()
    os.setxattr(directory, "user.image.name", b"taken")
    second = mount.by_name / f"taken~{directory.name[:8]}"
    wait_until(lambda: second.name in os.listdir(mount.by_name), 1.5, "the second entry")
    assert mount.attribute(directory, "user.image.name") == "taken"
    ok("rm", first)
    assert not first.exists()
    assert second.name in os.listdir(mount.by_name)


@pytest.mark.parametrize("where", ["root", "images", "image"])
def test_places_where_nothing_can_be_made(mount: Mounted, where: str) -> None:
    directory = {"root": mount.path, "images": mount.images, "image": mount.new_directory()}[where]
    name = Path(directory) / ("not-a-uuid" if where == "images" else "subdirectory")
    with pytest.raises(OSError, match=r"not permitted|Invalid|denied|not supported|not implemented"):
        name.mkdir()
    with pytest.raises(OSError, match=r"not permitted|not supported|denied|not implemented"):
        (directory / "link").symlink_to("x")
    assert not name.exists()
