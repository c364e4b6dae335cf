"""What the kernel is told about each kind of change, and in which order."""

from __future__ import annotations

import struct
from dataclasses import replace
from uuid import UUID

import pytest

from imagefs.catalog.log import LogRow, Op
from imagefs.fuse.kernel import notices
from imagefs.types import Image, Ino

ID = UUID(int=0x1234)
OWN, OTHER = UUID(int=1), UUID(int=2)
IMAGE = Image(id=ID, name="n", entry=b"n", dir_ino=100, data_ino=102)
NAMES, IMAGES = Ino.BY_NAME, Ino.IMAGES


def said(messages: list[bytes]) -> list[tuple[object, ...]]:
    """The messages in words: ("inode", ino, offset), ("entry" or "expire", directory, name), ("epoch",)."""
    words: list[tuple[object, ...]] = []
    for message in messages:
        length, code, unique = struct.unpack_from("=IiQ", message)
        assert (length, unique) == (len(message), 0)
        if code == 2:
            ino, offset, size = struct.unpack_from("=Qqq", message, 16)
            assert size == 0
            words.append(("inode", ino, offset))
        elif code == 3:
            parent, size, flags = struct.unpack_from("=QII", message, 16)
            assert message[32:] == message[32 : 32 + size] + b"\0"
            words.append(("expire" if flags else "entry", parent, message[32:-1]))
        else:
            words.append(({7: "resend", 8: "epoch"}[code],))
    return words


def row(op: Op, record: Image = IMAGE, *, entry: bytes | None = b"n", ino: int = 102, origin: UUID = OWN) -> LogRow:
    return LogRow(gen=1, op=op, image_id=ID, record=record, old_entry=entry, old_data_ino=ino, origin=origin, time_ns=0)


def told(op: Op, record: Image = IMAGE, **fields: object) -> list[tuple[object, ...]]:
    return said(notices.of_row(row(op, record, **fields), OWN))  # type: ignore[arg-type]


ATTRIBUTES = [("inode", 102, -1), ("inode", 100, -1), ("inode", 101, 0)]
"""Of data, of the directory; content of metadata.json."""


@pytest.mark.parametrize("op", [Op.CREATE, Op.CLONE])
def test_a_new_image_is_in_both_listings(op: Op) -> None:
    assert told(op, entry=None, ino=0) == [("inode", NAMES, 0), ("inode", IMAGES, 0), *ATTRIBUTES]
    unnamed = replace(IMAGE, name=None, entry=None)
    assert told(op, unnamed, entry=None, ino=0) == [("inode", IMAGES, 0), *ATTRIBUTES]


def test_attributes() -> None:
    assert told(Op.UPDATE) == ATTRIBUTES


def test_a_new_name() -> None:
    record = replace(IMAGE, name="m", entry=b"m")
    assert told(Op.RENAME, record) == [
        ("entry", NAMES, b"n"), ("expire", NAMES, b"m"), ("inode", NAMES, 0), ("inode", 100, 0), *ATTRIBUTES,
    ]  # fmt: skip


def test_a_first_name_and_the_last_one_taken_away() -> None:
    assert ("inode", NAMES, 0) in told(Op.RENAME, entry=None)
    unnamed = replace(IMAGE, name=None, entry=None)
    assert told(Op.RENAME, unnamed)[:2] == [("entry", NAMES, b"n"), ("inode", NAMES, 0)]


def test_a_draft() -> None:
    assert told(Op.DRAFT) == [("inode", 100, 0), *ATTRIBUTES]


def test_data_with_another_inode() -> None:
    assert told(Op.DRAFT, ino=90) == [
        ("expire", NAMES, b"n"), ("expire", 100, b"data"), ("inode", 100, 0),
        ("inode", 102, -1), ("inode", 90, -1), ("inode", 100, -1), ("inode", 101, 0),
    ]  # fmt: skip


def test_a_seal_keeps_the_pages_of_its_own_mount_only() -> None:
    assert told(Op.SEAL) == [("inode", 100, 0), *ATTRIBUTES]
    assert ("inode", 102, 0) in told(Op.SEAL, origin=OTHER)


def test_data_removed() -> None:
    record = replace(IMAGE, entry=None)
    assert told(Op.UNLINK_DATA, record) == [
        ("entry", NAMES, b"n"), ("entry", 100, b"data"), ("inode", NAMES, 0), ("inode", 100, 0), *ATTRIBUTES,
    ]  # fmt: skip


def test_an_image_deleted() -> None:
    assert told(Op.DELETE, replace(IMAGE, entry=None)) == [
        ("entry", NAMES, b"n"), ("entry", 100, b"data"), ("entry", IMAGES, str(ID).encode()),
        ("inode", NAMES, 0), ("inode", IMAGES, 0), ("inode", 102, -1),
    ]  # fmt: skip


def test_a_sibling() -> None:
    assert ("inode", 100, 0) in told(Op.SIBLING)


@pytest.mark.parametrize("op", list(Op))
def test_every_operation_is_known(op: Op) -> None:
    assert told(op)


def test_everything() -> None:
    listings = [("inode", IMAGES, 0), ("inode", NAMES, 0)]
    assert said(notices.everything(45)) == [("epoch",), *listings]
    assert said(notices.everything(43)) == [
        ("entry", Ino.ROOT, b"images"), ("entry", Ino.ROOT, b"by-name"), *listings,
    ]  # fmt: skip


def test_resend() -> None:
    assert said([notices.resend()]) == [("resend",)]
