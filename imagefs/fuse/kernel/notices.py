"""Notifications: what the kernel must forget when the catalog has changed, as messages for /dev/fuse.

Pure functions. Own changes are among those answered for: the kernel has put right the directory and the
name that a request was about, but not the file's other name, nor metadata.json.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING
from uuid import UUID

from imagefs.catalog.log import Op
from imagefs.fuse.kernel.protocol import EXPIRE_ONLY, INVAL_ENTRY_OUT, INVAL_INODE_OUT, OUT_HEADER, Notify
from imagefs.types import Ino

if TYPE_CHECKING:
    from imagefs.catalog import LogRow

DATA = b"data"
APPEARING = frozenset({Op.PUT, Op.CREATE, Op.CLONE})
EPOCH_MINOR = 44
"""First minor version with INC_EPOCH."""


def _message(code: Notify, body: bytes = b"") -> bytes:
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), code, 0) + body


def attributes(ino: int) -> bytes:
    """The inode's attributes may have changed; its content has not."""
    return _message(Notify.INVAL_INODE, INVAL_INODE_OUT.pack(ino, -1, 0))


def content(ino: int) -> bytes:
    """The file's bytes, or the directory's listing, may have changed, and the attributes with them."""
    return _message(Notify.INVAL_INODE, INVAL_INODE_OUT.pack(ino, 0, 0))


def gone(directory: int, name: bytes) -> bytes:
    """The name is no longer there."""
    return _entry(directory, name, 0)


def moved(directory: int, name: bytes) -> bytes:
    """The name may stand for another file now; it is looked up before its next use, and stays what it is
    (`/proc/<pid>/fd` does not show it as deleted) if that finds the same file. Before Linux 6.2 as `gone`."""
    return _entry(directory, name, EXPIRE_ONLY)


def _entry(directory: int, name: bytes, flags: int) -> bytes:
    return _message(Notify.INVAL_ENTRY, INVAL_ENTRY_OUT.pack(directory, len(name), flags) + name + b"\0")


def resend() -> bytes:
    """Send again what an earlier worker has read and not answered (7.40)."""
    return _message(Notify.RESEND)


def everything(minor: int) -> list[bytes]:
    """Nothing that the kernel knows of names can be trusted: changes were missed."""
    listings = [content(Ino.IMAGES), content(Ino.BY_NAME)]
    if minor >= EPOCH_MINOR:
        return [_message(Notify.INC_EPOCH), *listings]
    # Dropping the two directories drops what is below them.
    return [gone(Ino.ROOT, b"images"), gone(Ino.ROOT, b"by-name"), *listings]


def of_row(row: LogRow, own: UUID) -> list[bytes]:
    """What to send for one row of the change log, in order. `own` is the session of this mount."""
    if row.op is Op.DELETE:
        return list(_deleted(row))
    return [*_names(row), *_listings(row), *_inodes(row, own)]


def _deleted(row: LogRow) -> Iterator[bytes]:
    image = row.record
    if row.old_entry is not None:
        yield gone(Ino.BY_NAME, row.old_entry)
    yield gone(image.dir_ino, DATA)
    yield gone(Ino.IMAGES, str(image.id).encode())
    # A name that the kernel has not looked up is not found, and its directory's listing then stays.
    yield content(Ino.BY_NAME)
    yield content(Ino.IMAGES)
    yield attributes(image.data_ino)


def _names(row: LogRow) -> Iterator[bytes]:
    image = row.record
    if row.old_entry is not None and row.old_entry != image.entry:
        yield gone(Ino.BY_NAME, row.old_entry)
    if image.entry is not None and (row.op is Op.RENAME or _other_inode(row)):
        yield moved(Ino.BY_NAME, image.entry)
    if row.op is Op.UNLINK_DATA:
        yield gone(image.dir_ino, DATA)
    elif _other_inode(row):
        yield moved(image.dir_ino, DATA)


def _listings(row: LogRow) -> Iterator[bytes]:
    image = row.record
    if row.old_entry != image.entry:
        yield content(Ino.BY_NAME)
    if row.op in APPEARING:
        yield content(Ino.IMAGES)
    elif row.op is not Op.UPDATE:  # `data` or a sibling of it came or went
        yield content(image.dir_ino)


def _inodes(row: LogRow, own: UUID) -> Iterator[bytes]:
    image = row.record
    # What another process sealed it may have written too, past this mount's page cache.
    foreign = row.op is Op.SEAL and row.origin != own
    yield content(image.data_ino) if foreign else attributes(image.data_ino)
    if _other_inode(row):
        yield attributes(row.old_data_ino)
    yield attributes(image.dir_ino)
    yield content(image.dir_ino + 1)  # metadata.json


def _other_inode(row: LogRow) -> bool:
    return row.old_data_ino not in {0, row.record.data_ino}
