"""S6-S8: names, deleting, attributes."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mounted import ROOT, Mounted, fails, ok
from tests.semantics.making import by_id, data, draft, seal, sealed

DEACTIVATE = """
import sys
from pathlib import Path
from uuid import UUID
from imagefs.config import Config
from imagefs.images.repository import Repository
from imagefs.images.service import Images
from imagefs.types import Status
repo = Repository.open(Path(sys.argv[1]), Config(), "cli")
Images(repo).set_fields(UUID(sys.argv[2]), {"status": Status.DEACTIVATED})
repo.close()
"""
"""What no command does yet."""


def name_of(path: Path, name: str) -> None:
    os.setxattr(path, "user.image.name", name.encode())


def test_an_entry_is_given_once(mount: Mounted) -> None:
    """S6: The entry in `by-name/` is given once, when the image gets its name: the name itself if it is
    free, else `<name>~<first 8 of the id>`. It stays until the image is renamed or deleted, so a path
    that works never starts to mean another image.
    """
    first, second = sealed(mount, "taken", b"first" * 999), mount.new_directory()
    name_of(second, "taken")
    entry = mount.by_name / f"taken~{second.name[:8]}"
    assert entry.name in os.listdir(mount.by_name)
    assert mount.attribute(second, "user.image.name") == "taken"
    first.unlink()
    assert not first.exists()
    assert entry.name in os.listdir(mount.by_name)
    name_of(second, "renamed")
    assert {entry.name, "renamed"} & set(os.listdir(mount.by_name)) == {"renamed"}


def test_what_no_entry_can_hold(mount: Mounted) -> None:
    """S6: `%`, `/`, control characters, `.` and `..` are percent-encoded; a name that is not UTF-8 is
    refused (EILSEQ); an entry longer than 255 bytes is cut and ends in `~<first 8 of the id>`.
    """
    directory = mount.new_directory()
    names = {"50%": "50%25", "a/b": "a%2Fb", "a\tb\x7f": "a%09b%7F", ".": "%2E", "..": "%2E%2E", "é ☃": "é ☃"}
    for name, entry in names.items():
        name_of(directory, name)
        assert entry in os.listdir(mount.by_name)
        assert mount.attribute(directory, "user.image.name") == name
    with pytest.raises(OSError, match=r"Invalid or incomplete|Illegal byte"):
        os.mknod(os.fsencode(mount.by_name) + b"/\xff")
    name_of(directory, "ü" * 200)
    [entry] = [entry for entry in os.listdir(mount.by_name) if entry.startswith("üü")]
    assert len(entry.encode()) <= 255
    assert entry.endswith(f"~{directory.name[:8]}")


def test_what_by_name_shows(mount: Mounted) -> None:
    """S6: `by-name/` shows every named image that is not deleted or `pending_delete`."""
    queued, unnamed = mount.new_directory(), data(mount, b"unnamed")
    name_of(queued, "shown-queued")
    saving, active = draft(mount, "shown-saving", b"s"), sealed(mount, "shown-active", b"a" * 9000)
    shown = {"shown-queued", saving.name, active.name}
    assert {name for name in os.listdir(mount.by_name) if name.startswith("shown-")} == shown
    assert unnamed.parent.name in os.listdir(mount.images)
    (by_id(mount, active) / "data").unlink()
    saving.unlink()
    assert {name for name in os.listdir(mount.by_name) if name.startswith("shown-")} == {"shown-queued"}


def test_renaming_onto_an_image(mount: Mounted) -> None:
    """S6: Renaming onto an existing entry replaces that image: it is deleted, or the rename fails with
    EPERM if it is protected.
    """
    winner, loser = sealed(mount, "winner", b"w" * 9000), sealed(mount, "loser", b"l" * 9000)
    ids = [by_id(mount, path).name for path in (winner, loser)]
    os.setxattr(loser, "user.image.protected", b"true")
    with pytest.raises(PermissionError, match="Operation not permitted"):
        winner.rename(loser)
    assert loser.read_bytes() == b"l" * 9000
    os.setxattr(loser, "user.image.protected", b"false")
    winner.rename(loser)
    assert loser.read_bytes() == b"w" * 9000
    assert not winner.exists()
    assert [id in os.listdir(mount.images) for id in ids] == [True, False]


def test_a_temporary_file_renamed_into_place(mount: Mounted) -> None:
    """S6: A temporary file renamed into place (rsync, editors), in `by-name/` or next to `data`, is the
    same draft under its final name; over sealed `data` that fails with EPERM.
    """
    source, named, unnamed = (
        mount.outside / "placed",
        mount.by_name / "placed",
        mount.new_directory() / "data",
    )
    source.write_bytes(b"placed" * 999)
    for target in (named, unnamed):
        ok("rsync", "-a", source, target)
        mount.wait_status(target)
        ok("cmp", source, target)
        assert not [name for name in os.listdir(target.parent) if name.startswith(".")]
    fails("rsync", "-a", "--ignore-times", source, unnamed, says="Operation not permitted")
    sealing = data(mount, b"sealed" * 999)
    temporary = sealing.with_name(".data.tmp")
    temporary.write_bytes(b"another")
    seal(sealing)
    with pytest.raises(PermissionError, match="Operation not permitted"):
        temporary.rename(sealing)
    assert sealing.read_bytes() == b"sealed" * 999


def test_unlinking_a_name(mount: Mounted) -> None:
    """S7: Unlinking `by-name/x` deletes the image."""
    path = sealed(mount, "unlinked", b"u" * 9000)
    directory = by_id(mount, path)
    path.unlink()
    assert directory.name not in os.listdir(mount.images)


def test_deleting_a_directory(mount: Mounted) -> None:
    """S7: In `images/<id>/`, unlinking `data` does what S1 says, unlinking `metadata.json` succeeds and
    does nothing, and rmdir fails with ENOTEMPTY while `data` exists and deletes the image otherwise; so
    `rm -r` works.
    """
    path = data(mount, b"d" * 9000)
    directory = path.parent
    (directory / "metadata.json").unlink()
    assert json.loads((directory / "metadata.json").read_text())["id"] == directory.name
    with pytest.raises(OSError, match="Directory not empty"):
        directory.rmdir()
    path.unlink()
    assert mount.image_status(directory) == "queued"
    directory.rmdir()
    assert not directory.exists()
    other = by_id(mount, sealed(mount, "rm-r", b"r" * 9000))
    ok("rm", "-r", other)
    assert other.name not in os.listdir(mount.images)
    assert "rm-r" not in os.listdir(mount.by_name)


def test_data_of_a_pending_delete_image(mount: Mounted) -> None:
    """S7: The data of a `pending_delete` image cannot be made again (EPERM); `imagefs gc` ends it."""
    path = data(mount, b"p" * 9000)
    seal(path)
    path.unlink()
    with pytest.raises(PermissionError, match="Operation not permitted"):
        path.write_bytes(b"again")
    mount.command("gc")
    assert path.parent.name not in os.listdir(mount.images)


@pytest.mark.skipif(os.geteuid() != 0, reason="another user can only be played by root")
def test_a_deactivated_image(mount: Mounted) -> None:
    """S7: The data of a deactivated image cannot be unlinked (EPERM).

    S7: Deactivated images cannot be opened (EACCES), except by root.
    """
    path = sealed(mount, "deactivated", b"d" * 9000)
    path.chmod(0o444)
    directory = by_id(mount, path)
    nobody = {"user": 65534, "group": 65534, "extra_groups": []}
    ok("cat", path, **nobody)
    ok(sys.executable, "-c", DEACTIVATE, mount.repo, directory.name, cwd=ROOT)
    fails("cat", path, says="Permission denied", **nobody)
    assert path.read_bytes() == b"d" * 9000
    with pytest.raises(PermissionError, match="Operation not permitted"):
        (directory / "data").unlink()


def test_protected_images(mount: Mounted) -> None:
    """S7: Protected images refuse with EPERM."""
    path = sealed(mount, "protected", b"p" * 9000)
    os.setxattr(path, "user.image.protected", b"true")
    empty = mount.new_directory()
    os.setxattr(empty, "user.image.protected", b"true")
    for refused in (path.unlink, (by_id(mount, path) / "data").unlink, empty.rmdir):
        with pytest.raises(PermissionError, match="Operation not permitted"):
            refused()
    assert path.read_bytes() == b"p" * 9000


def test_readers_of_a_deleted_image(mount: Mounted) -> None:
    """S7: Whoever has an image open goes on reading it until they close it."""
    content = os.urandom(3 << 20)
    path = sealed(mount, "still-read", content)
    with path.open("rb", buffering=0) as file:
        path.unlink()
        mount.command("gc")
        assert os.pread(file.fileno(), len(content), 0) == content
    assert not path.exists()


def test_attributes(mount: Mounted) -> None:
    """S8: Metadata is extended attributes, on the directory and on the data file alike.

    S8: Listed is what can be set, and the read-only fields.
    """
    path = sealed(mount, "attributes", b"a" * 9000)
    directory = by_id(mount, path)
    values = {
        "user.image.min_ram": b"512", "user.image.visibility": b"private", "user.image.tags": b"a%2Cb,c",
        "user.property.os_distro": b"debian", "user.comment": b"\0verbatim\xff",
    }  # fmt: skip
    for number, (name, value) in enumerate(values.items()):
        os.setxattr((path, directory)[number % 2], name, value)
    for place in (path, directory):
        assert {name: os.getxattr(place, name) for name in values} == values
        listed = os.listxattr(place)
        assert set(values) | {"user.image.name", "user.image.status", "user.image.size"} <= set(listed)
        assert os.getxattr(place, "user.imagefs.stored_bytes")
        assert os.getxattr(place, "user.imagefs.seal") == b"1"
        assert not [name for name in listed if name.startswith("user.imagefs.")]
    record = json.loads((directory / "metadata.json").read_text())
    assert (record["min_ram"], record["visibility"], record["os_distro"]) == (512, "private", "debian")
    assert sorted(record["tags"]) == ["a,b", "c"]


def test_read_only_fields_of_a_draft(mount: Mounted) -> None:
    """S8: On a draft, setting a read-only field is accepted: `size`, `checksum` and `os_hash_value` become
    expectations that are checked at sealing (a mismatch makes the image `killed`); the others, and `name`
    where the draft already has an entry in `by-name/`, are ignored.

    S14: (A declared size or hash that does not match makes it `killed`, S8.)
    """
    right = {"size": b"9000", "id": b"0" * 36, "status": b"queued", "name": b"other"}
    path = draft(mount, "declared", b"d" * 9000)
    for name, value in right.items():
        os.setxattr(path, f"user.image.{name}", value)
    seal(path)
    assert mount.image_status(path) == "active"
    assert mount.attribute(path, "user.image.name") == "declared"
    for name, value in {"size": b"9001", "checksum": b"0" * 32, "os_hash_value": b"0" * 128}.items():
        wrong = draft(mount, f"declared-{name}", b"d" * 9000)
        os.setxattr(wrong, f"user.image.{name}", value)
        with pytest.raises(OSError, match="Bad message"):
            seal(wrong)
        assert mount.image_status(wrong) == "killed"


def test_a_record_goes_from_mount_to_mount(mount: Mounted, own_mount: Mounted, tmp_path: Path) -> None:
    """S8: So `cp -a`, `rsync -X` and `tar --xattrs` carry a record from one mount to another."""
    path = sealed(mount, "carried", b"c" * 9000)
    carried = {"user.image.tags": b"a,b", "user.property.os_distro": b"debian", "user.image.min_ram": b"7"}
    for name, value in carried.items():
        os.setxattr(path, name, value)
    there = own_mount.by_name
    ok("cp", "-a", path, there / "by-cp")
    ok("rsync", "-aX", path, there / "by-rsync")
    ok("tar", "-c", "--xattrs", "-f", tmp_path / "tar", "-C", mount.by_name, "carried")
    ok("tar", "-x", "--xattrs", "-f", tmp_path / "tar", "-C", there)
    for copy in (there / "by-cp", there / "by-rsync", there / "carried"):
        own_mount.wait_status(copy)
        assert {name: os.getxattr(copy, name) for name in carried} == carried
        assert own_mount.attribute(copy, "user.image.name") == copy.name
        assert own_mount.id(copy) != mount.id(path)


def test_read_only_fields_of_sealed_data(mount: Mounted) -> None:
    """S8: On sealed data a read-only field refuses another value with EPERM; setting `user.image.name`
    renames. Removing a read-only field succeeds and does nothing, removing a settable one restores its
    default (the name stays), any other attribute is deleted.
    """
    path = sealed(mount, "facts", b"f" * 9000)
    facts = {name: os.getxattr(path, f"user.image.{name}") for name in ("id", "status", "size")}
    for name, value in facts.items():
        os.setxattr(path, f"user.image.{name}", value)
        with pytest.raises(PermissionError, match="Operation not permitted"):
            os.setxattr(path, f"user.image.{name}", b"7")
        os.removexattr(path, f"user.image.{name}")
    assert {name: os.getxattr(path, f"user.image.{name}") for name in facts} == facts
    for name, value in {
        "image.min_ram": b"7",
        "image.visibility": b"public",
        "property.x": b"y",
        "z": b"z",
    }.items():
        os.setxattr(path, f"user.{name}", value)
        os.removexattr(path, f"user.{name}")
    assert mount.attribute(path, "user.image.min_ram") == "0"
    assert mount.attribute(path, "user.image.visibility") == "shared"
    assert mount.attribute(path, "user.property.x") is None
    assert mount.attribute(path, "user.z") is None
    os.removexattr(path, "user.image.name")
    assert mount.attribute(path, "user.image.name") == "facts"
    name_of(path, "facts-renamed")
    assert (mount.by_name / "facts-renamed").read_bytes() == b"f" * 9000
    assert "facts" not in os.listdir(mount.by_name)


def test_bad_values(mount: Mounted) -> None:
    """S8: A bad value or an unknown `user.image.` field is EINVAL and changes nothing."""
    path = sealed(mount, "bad-values", b"b" * 9000)
    before = {name: os.getxattr(path, name) for name in os.listxattr(path) if "hash" not in name}
    for name, value in {
        "min_ram": b"lots",
        "visibility": b"x",
        "protected": b"maybe",
        "colour": b"red",
    }.items():
        with pytest.raises(OSError, match="Invalid argument"):
            os.setxattr(path, f"user.image.{name}", value)
    assert before.items() <= {name: os.getxattr(path, name) for name in os.listxattr(path)}.items()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_modes_owners_and_times(mount: Mounted) -> None:
    """S8: chmod, chown and utimens are kept; sealed data never has write bits. New images belong to the
    mount's default project (`--project`) and are `shared`, as in the Image service.
    """
    path = draft(mount, "modes", b"m" * 9000)
    path.chmod(0o640)
    os.chown(path, 1234, 4321)
    os.utime(path, ns=(1_600_000_000_123_456_789, 1_500_000_000_987_654_321))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    seal(path)
    path.chmod(0o666)
    status = path.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o444, 1234, 4321)
    assert status.st_mtime_ns == 1_500_000_000_987_654_321
    assert mount.attribute(path, "user.image.owner") == "a-project"
    assert mount.attribute(path, "user.image.visibility") == "shared"
    out = subprocess.run(["getfattr", "-d", path], capture_output=True, text=True, timeout=20, check=True).stdout
    assert 'user.image.owner="a-project"' in out
