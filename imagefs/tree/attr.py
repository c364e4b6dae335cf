"""What the tree says about a file: attributes, directory entries, sizes of the whole.

Times are nanoseconds since the epoch. Attributes are built from the catalog's headers, without a look
at an image's full record, because a listing asks for them by the ten thousand.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from imagefs.catalog import Attrs
from imagefs.types import BLOCK, Image, Status

LONG = 3600.0
"""Seconds that the kernel may cache what changes only together with a notification (S12)."""
BRIEF = 1.0
"""The same for data that another mount may be writing, which notifies nobody."""
READABLE = frozenset({Status.SAVING, Status.ACTIVE, Status.DEACTIVATED})
"""States in which images/<id>/data exists."""
WRITE_BITS = 0o222
LONGEST_NAME = 255
"""Bytes of a file name."""


@dataclass(slots=True)
class Attr:
    """One inode. `mode` has the file type; `blocks` are 512 bytes each, of data that is not zero."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int
    btime: int
    valid: float
    """Seconds for which the kernel may cache the entry and these attributes; 0: nor pages, since the size
    is known only at open."""
    keep: bool = False
    """Whether pages cached by an earlier open are still the file's content."""
    blksize: int = BLOCK

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)


@dataclass(slots=True)
class Entry:
    """A name in a directory. `cookie` is where a listing goes on behind it, the same for ever."""

    cookie: int
    name: bytes
    ino: int
    attr: Attr


class Now:
    """The type of NOW."""


NOW = Now()
"""A time to be set to the moment of setting."""


@dataclass(frozen=True, slots=True)
class SetAttr:
    """What to change of an inode; None leaves as it is. `mode` is permission bits."""

    size: int | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime: int | Now | None = None
    mtime: int | Now | None = None


@dataclass(frozen=True, slots=True)
class Statfs:
    """Sizes of the whole, in units of `bsize` bytes; `files` counts images, `namelen` is in bytes."""

    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    bsize: int = BLOCK
    namelen: int = LONGEST_NAME


def exists(attrs: Attrs) -> bool:
    """Whether images/<id>/data exists."""
    return attrs.status in READABLE


def of_data(attrs: Attrs, staging: os.stat_result | None) -> Attr:
    """The data of an image, by either name; `staging` is the status of its draft's file, if any.

    An image without data has an empty file in by-name/, whose opening for writing begins a draft.
    """
    links = (attrs.entry is not None) + exists(attrs)
    attr = Attr(
        ino=attrs.data_ino, mode=stat.S_IFREG | attrs.mode, nlink=links, uid=attrs.uid, gid=attrs.gid,
        size=0, blocks=0, atime=attrs.atime, mtime=attrs.mtime, ctime=attrs.ctime,
        btime=attrs.created_at, valid=BRIEF,
    )  # fmt: skip
    if staging is not None:
        with_staging(attr, staging)
        return attr
    if attrs.sealed:
        attr.mode &= ~WRITE_BITS
        attr.size = attrs.size
        attr.blocks = attrs.allocated // 512
        attr.valid, attr.keep = LONG, True
    elif not attrs.has_draft:
        # Nothing changes it but the catalog, which is told of. A second `ls -l` asked again for each of 100,000.
        attr.valid = LONG
    return attr


def of_record(image: Image, ino: int) -> Attr:
    """A file without a name of an image's own: no longer, or not yet."""
    mode = image.mode & ~WRITE_BITS if image.sealed else image.mode
    return Attr(
        ino=ino, mode=stat.S_IFREG | mode, nlink=0, uid=image.uid, gid=image.gid, size=image.size or 0,
        blocks=image.allocated // 512, atime=image.atime, mtime=image.mtime, ctime=image.ctime,
        btime=image.created_at, valid=BRIEF,
    )  # fmt: skip


def with_staging(attr: Attr, staging: os.stat_result) -> Attr:
    """The same inode with the size, blocks and times of the file that holds its bytes."""
    attr.size, attr.blocks = staging.st_size, staging.st_blocks
    attr.atime, attr.mtime = staging.st_atime_ns, staging.st_mtime_ns
    attr.ctime = max(attr.ctime, staging.st_ctime_ns)
    return attr


def of_image_directory(attrs: Attrs) -> Attr:
    """images/<id>: what is in it changes with the image's status, which `updated_at` follows."""
    return Attr(
        ino=attrs.dir_ino, mode=stat.S_IFDIR | attrs.dir_mode, nlink=2, uid=attrs.uid, gid=attrs.gid,
        size=BLOCK, blocks=0, atime=attrs.updated_at, mtime=attrs.updated_at,
        ctime=max(attrs.updated_at, attrs.ctime), btime=attrs.created_at, valid=LONG,
    )  # fmt: skip


def of_metadata(attrs: Attrs, size: int) -> Attr:
    """images/<id>/metadata.json: readable by whoever may read the data, never writable."""
    return Attr(
        ino=attrs.dir_ino + 1, mode=stat.S_IFREG | (attrs.mode & 0o444), nlink=1, uid=attrs.uid,
        gid=attrs.gid, size=size, blocks=0, atime=attrs.updated_at, mtime=attrs.updated_at,
        ctime=attrs.updated_at, btime=attrs.created_at, valid=LONG,
    )  # fmt: skip


def of_directory(ino: int, links: int, uid: int, gid: int, time: int, born: int) -> Attr:
    """A directory that every repository has; `time` is when its content last changed."""
    return Attr(
        ino=ino, mode=stat.S_IFDIR | 0o755, nlink=links, uid=uid, gid=gid, size=BLOCK, blocks=0,
        atime=time, mtime=time, ctime=time, btime=born, valid=LONG,
    )  # fmt: skip


def of_control(ino: int, uid: int, gid: int, size: int, time: int, born: int) -> Attr:
    """A file of .imagefs/: another content at every look, so nothing of it is cached."""
    return Attr(
        ino=ino, mode=stat.S_IFREG | 0o444, nlink=1, uid=uid, gid=gid, size=size, blocks=0,
        atime=time, mtime=time, ctime=time, btime=born, valid=0.0,
    )  # fmt: skip
