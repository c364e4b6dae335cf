"""Extended attributes as pure functions of a record (S8)."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest

from imagefs.errors import (
    AttributeMissing,
    Exists,
    InvalidValue,
    NameTooLong,
    NotSupported,
    NotText,
    Refused,
    TooMany,
)
from imagefs.tree import xattrs
from imagefs.types import Draft, Image, Status, Visibility

ID = UUID("0b7e3e0c-6d0a-4f0e-9f5e-2b1d4c5a6f70")
QUEUED = Image(id=ID, created_at=1_700_000_000_000_000_000, updated_at=1_700_000_001_000_000_000)
DRAFT = replace(QUEUED, status=Status.SAVING, draft=Draft(gen=1), name="cp-target", entry=b"cp-target")
SEALED = replace(
    QUEUED, status=Status.ACTIVE, map_id=7, name="a", entry=b"a", size=10, checksum="0" * 32,
    disk_format="raw",
)  # fmt: skip


def set_on(image: Image, **values: str) -> Image:
    for key, value in values.items():
        image = xattrs.changed(image, f"user.image.{key}".encode(), value.encode())
    return image


def test_listed_is_what_is_settable_and_what_is_known() -> None:
    image = replace(
        SEALED, tags=("x",), properties={"os_distro": "debian"},
        xattrs={"user.other": b"\0\1", "user.imagefs.pinned": b"1"},
    )  # fmt: skip
    names = xattrs.names(image)
    for name in (b"user.image.name", b"user.image.status", b"user.image.tags", b"user.property.os_distro"):
        assert name in names
    assert b"user.other" in names
    assert b"user.image.virtual_size" not in names, "not known, so there is nothing to read"
    assert not [name for name in names if name.startswith(b"user.imagefs.")]
    for name in names:
        assert xattrs.read(image, name) is not None
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("visibility", "public", Visibility.PUBLIC),
        ("disk_format", "qcow2", "qcow2"),
        ("disk_format", "", None),
        ("container_format", "bare", "bare"),
        ("min_disk", "20", 20),
        ("min_ram", "0", 0),
        ("protected", "True", True),
        ("os_hidden", "0", False),
        ("owner", "project-1", "project-1"),
    ],
)
def test_settable_fields(key: str, text: str, value: object) -> None:
    assert getattr(set_on(SEALED, **{key: text}), key) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("user.image.min_ram", b"lots"),
        ("user.image.min_ram", b"-1"),
        ("user.image.protected", b"perhaps"),
        ("user.image.visibility", b"everybody"),
        ("user.image.disk_format", b"floppy"),
        ("user.image.colour", b"blue"),
        ("user.image.name", b""),
        ("user.image.name", b"\xff"),
        ("user.image.name", b"n" * 256),
        ("user.image.tags", b"a,,b"),
        ("user.property.name", b"a property cannot hide a field"),
        ("user.property.essay", b"\xff"),
        ("user.property.", b"no key"),
        ("user.", b"no name"),
        ("user.imagefs.stored_bytes", b"1"),
        ("user.imagefs.pinned", b"perhaps"),
        ("user.imagefs.draft", b"1"),
        ("user.big", b"x" * 65_537),
    ],
)
def test_bad_values_are_invalid(name: str, value: bytes) -> None:
    """S8: a bad value or an unknown field is EINVAL and changes nothing."""
    with pytest.raises(InvalidValue):
        xattrs.changed(SEALED, name.encode(), value)


@pytest.mark.parametrize("name", [b"trusted.x", b"security.selinux", b"system.posix_acl_access", b"plain"])
def test_other_namespaces_are_not_kept(name: bytes) -> None:
    with pytest.raises(NotSupported):
        xattrs.read(SEALED, name)
    with pytest.raises(NotSupported):
        xattrs.changed(SEALED, name, b"1")
    with pytest.raises(NotSupported):
        xattrs.removed(SEALED, name)


def test_names_of_attributes() -> None:
    with pytest.raises(NotText):
        xattrs.changed(SEALED, b"user.\xff", b"1")
    with pytest.raises(NameTooLong):
        xattrs.changed(SEALED, b"user." + b"n" * 251, b"1")
    assert xattrs.read(xattrs.changed(SEALED, b"user." + b"n" * 250, b"1"), b"user." + b"n" * 250) == b"1"


def test_a_drafts_read_only_fields_become_expectations() -> None:
    """S8: size, checksum and os_hash_value are checked at sealing, the other read-only ones ignored."""
    digest = "ABCDEF0123456789" * 8
    image = set_on(
        DRAFT, size="0010", checksum="A" * 32, os_hash_algo="sha512", os_hash_value=digest,
        id=str(UUID(int=1)), status="queued", created_at="2020-01-01T00:00:00Z", virtual_size="5",
    )  # fmt: skip
    assert image.draft is not None
    assert image.draft.expected == {
        "size": "10", "checksum": "a" * 32, "os_hash_algo": "sha512", "os_hash_value": digest.lower(),
    }  # fmt: skip
    assert replace(image, draft=DRAFT.draft) == DRAFT
    assert xattrs.read(image, b"user.image.size") == b"10"
    assert b"user.image.checksum" in xattrs.names(image)


@pytest.mark.parametrize(
    ("key", "value"),
    [("size", "many"), ("checksum", "xyz"), ("os_hash_value", ""), ("os_hash_algo", "crc32")],
)
def test_expectations_must_make_sense(key: str, value: str) -> None:
    with pytest.raises(InvalidValue):
        set_on(DRAFT, **{key: value})


def test_a_sealed_images_facts_stay() -> None:
    """S8: on sealed data a read-only field refuses another value with EPERM."""
    assert set_on(SEALED, size="10", id=str(ID), status="active", checksum="0" * 32) is SEALED
    for key, value in (("size", "11"), ("id", str(UUID(int=1))), ("status", "queued"), ("virtual_size", "1")):
        with pytest.raises(Refused):
            set_on(SEALED, **{key: value})
    assert set_on(QUEUED, size="11") is QUEUED


def test_the_name() -> None:
    """S8: setting the name renames; on a draft that has an entry it is ignored, for `cp -a a b`."""
    assert set_on(SEALED, name="b").name == "b"
    assert set_on(QUEUED, name="b").name == "b"
    assert set_on(DRAFT, name="b") is DRAFT
    nameless = replace(DRAFT, name=None, entry=None)
    assert set_on(nameless, name="b").name == "b"


def test_removing() -> None:
    """S8: read-only: nothing happens; settable: the default; any other: it is deleted."""
    image = replace(SEALED, min_disk=3, protected=True, tags=("x",), properties={"a": "1"}, xattrs={"user.x": b"y"})
    for name in (b"user.image.size", b"user.image.id", b"user.image.status", b"user.image.name"):
        assert xattrs.removed(image, name) is image
    assert xattrs.removed(image, b"user.image.min_disk").min_disk == 0
    assert xattrs.removed(image, b"user.image.protected").protected is False
    assert xattrs.removed(image, b"user.image.disk_format").disk_format is None
    assert xattrs.removed(image, b"user.image.tags").tags == ()
    assert xattrs.removed(image, b"user.property.a").properties == {}
    assert xattrs.removed(image, b"user.x").xattrs == {}
    for name in (b"user.image.colour", b"user.property.b", b"user.y", b"user.imagefs.seal"):
        with pytest.raises(AttributeMissing):
            xattrs.removed(image, name)


@pytest.mark.parametrize("tags", [(), ("one",), ("a,b", "100%", "%2C"), ("two words", "ü")])
def test_tags_survive_their_spelling(tags: tuple[str, ...]) -> None:
    spelt = xattrs.read(replace(SEALED, tags=tags), b"user.image.tags")
    assert xattrs.changed(SEALED, b"user.image.tags", spelt or b"").tags == tags


def test_tags_are_a_set() -> None:
    assert set_on(SEALED, tags="b,a,b").tags == ("b", "a")


def test_create_and_replace() -> None:
    with pytest.raises(Exists):
        xattrs.changed(SEALED, b"user.image.disk_format", b"raw", "create")
    with pytest.raises(AttributeMissing):
        xattrs.changed(SEALED, b"user.x", b"1", "replace")
    image = xattrs.changed(SEALED, b"user.x", b"1", "create")
    assert xattrs.changed(image, b"user.x", b"2", "replace").xattrs == {"user.x": b"2"}


def test_controls() -> None:
    marked = xattrs.changed(DRAFT, b"user.imagefs.draft", b"1")
    assert marked.draft is not None
    assert marked.draft.marked
    assert xattrs.read(marked, b"user.imagefs.draft") == b"1"
    assert xattrs.removed(marked, b"user.imagefs.draft") == DRAFT
    assert xattrs.changed(marked, b"user.imagefs.draft", b"0") == DRAFT
    pinned = xattrs.changed(SEALED, b"user.imagefs.pinned", b"true")
    assert xattrs.read(pinned, b"user.imagefs.pinned") == b"1"
    assert xattrs.changed(pinned, b"user.imagefs.pinned", b"0") == SEALED
    assert xattrs.read(SEALED, b"user.imagefs.layout") == b"plain"


def test_limits() -> None:
    image = replace(SEALED, properties={f"{number:0200}": "" for number in range(128)})
    with pytest.raises(InvalidValue):
        xattrs.changed(image, b"user.property.one_more", b"")
    image = replace(SEALED, xattrs={f"user.{number:0200}": b"" for number in range(128)})
    with pytest.raises(TooMany):
        xattrs.changed(image, b"user.one_more", b"")
    with pytest.raises(TooMany):
        xattrs.changed(replace(SEALED, xattrs={f"user.{n}": b"x" * 65_536 for n in range(16)}), b"user.one_more", b"x")


def test_a_list_is_never_longer_than_the_kernel_takes() -> None:
    """Other fronts may set more and longer properties than attributes can show."""
    image = replace(SEALED, properties={f"{number:0200}": "" for number in range(500)} | {"k" * 255: ""})
    names = xattrs.names(image)
    assert sum(len(name) + 1 for name in names) <= 65_536
    assert max(map(len, names)) <= 255
    assert b"user.image.id" in names


def test_unchanged_is_the_same_record() -> None:
    assert set_on(SEALED, disk_format="raw", min_ram="0") is SEALED
