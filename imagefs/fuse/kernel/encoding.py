"""Replies as bytes: attributes, entries, listings. The tree's values in, the kernel's structs out."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from typing import TYPE_CHECKING

from imagefs.fuse.kernel.protocol import (
    ATTR_OUT,
    DIRENT,
    DIRENTPLUS,
    ENTRY_OUT,
    OUT_HEADER,
    STATFS_OUT,
    STATX_BASIC_STATS,
    STATX_BTIME,
    STATX_OUT,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from imagefs.tree.attr import Attr, Entry, Statfs

SECOND = 1_000_000_000


def message(unique: int, error: int, payload: Buffer) -> list[Buffer]:
    """A reply for writev: the header, and the payload without a copy of it. `error` is 0 or negative."""
    size = memoryview(payload).nbytes
    return [OUT_HEADER.pack(OUT_HEADER.size + size, error, unique), payload]


def entry(attr: Attr) -> bytes:
    """fuse_entry_out: the answer to what finds or makes a file. `valid` holds for name and attributes."""
    seconds, part = _timeout(attr)
    return ENTRY_OUT.pack(attr.ino, 0, seconds, seconds, part, part, *_fields(attr))


def attributes(attr: Attr) -> bytes:
    """fuse_attr_out."""
    return ATTR_OUT.pack(*_timeout(attr), 0, *_fields(attr))


def statx(attr: Attr) -> bytes:
    """fuse_statx_out with the time of birth."""
    seconds, part = _timeout(attr)
    return STATX_OUT.pack(
        seconds, part, 0,
        STATX_BASIC_STATS | STATX_BTIME, attr.blksize, 0, attr.nlink, attr.uid, attr.gid, attr.mode, 0,
        attr.ino, attr.size, attr.blocks, 0,
        *divmod(attr.atime, SECOND), 0, *divmod(attr.btime, SECOND), 0,
        *divmod(attr.ctime, SECOND), 0, *divmod(attr.mtime, SECOND), 0,
    )  # fmt: skip


def statfs(sizes: Statfs) -> bytes:
    """fuse_statfs_out."""
    return STATFS_OUT.pack(
        sizes.blocks, sizes.bfree, sizes.bavail, sizes.files, sizes.ffree,
        sizes.bsize, sizes.namelen, sizes.bsize,
    )  # fmt: skip


def listing(entries: Iterable[Entry], size: int) -> bytes:
    """As many entries as `size` bytes hold, for READDIR; the kernel asks again behind the last cookie."""
    out = bytearray(size)
    used = 0
    for item in entries:
        length = len(item.name)
        end = used + DIRENT.size + length
        if _aligned(end) > size:
            break
        DIRENT.pack_into(out, used, item.ino, item.cookie, length, stat.S_IFMT(item.attr.mode) >> 12)
        out[used + DIRENT.size : end] = item.name
        used = _aligned(end)
    del out[used:]
    return bytes(out)


def listing_plus(entries: Iterable[Entry], size: int) -> bytes:
    """The same with attributes, for READDIRPLUS: what `ls -l` would ask for one by one."""
    out = bytearray(size)
    used = 0
    for item in entries:
        attr, name = item.attr, item.name
        length = len(name)
        end = used + DIRENTPLUS.size + length
        if _aligned(end) > size:
            break
        seconds, part = _timeout(attr)
        # Node 0: no lookup is implied. "." and ".." must not become entries of their own.
        node = 0 if name in {b".", b".."} else attr.ino
        DIRENTPLUS.pack_into(
            out, used, node, 0, seconds, seconds, part, part, *_fields(attr),
            item.ino, item.cookie, length, stat.S_IFMT(attr.mode) >> 12,
        )  # fmt: skip
        out[used + DIRENTPLUS.size : end] = name
        used = _aligned(end)
    del out[used:]
    return bytes(out)


def _aligned(end: int) -> int:
    return (end + 7) & ~7


def _timeout(attr: Attr) -> tuple[int, int]:
    """Seconds and nanoseconds for which the kernel may cache."""
    seconds = int(attr.valid)
    return seconds, int((attr.valid - seconds) * SECOND)


def _fields(attr: Attr) -> tuple[int, ...]:
    """fuse_attr."""
    atime, atime_part = divmod(attr.atime, SECOND)
    mtime, mtime_part = divmod(attr.mtime, SECOND)
    ctime, ctime_part = divmod(attr.ctime, SECOND)
    return (
        attr.ino, attr.size, attr.blocks, atime, mtime, ctime, atime_part, mtime_part, ctime_part,
        attr.mode, attr.nlink, attr.uid, attr.gid, 0, attr.blksize, 0,
    )  # fmt: skip
