"""Requests about open files: decode, call the handle, encode. Handles are numbered by their OPEN request."""

from __future__ import annotations

import errno
import os
import stat
from struct import Struct
from typing import TYPE_CHECKING

from imagefs.errors import Exists
from imagefs.fuse.kernel import encoding
from imagefs.fuse.kernel.protocol import (
    COPY_FILE_RANGE_IN,
    COPY_FILE_RANGE_OUT,
    CREATE_IN,
    FALLOCATE_IN,
    FLUSH_IN,
    FSYNC_FDATASYNC,
    FSYNC_IN,
    LSEEK_IN,
    LSEEK_OUT,
    OPEN_IN,
    OPEN_OUT,
    READ_IN,
    RELEASE_IN,
    WRITE_IN,
    WRITE_OUT,
    Opcode,
    Open,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from imagefs.fuse.kernel.request import Operation, Request, Served
    from imagefs.images.opens import Handle
    from imagefs.tree.attr import Attr

DONE = b""
INO = Struct("<Q")
"""What a CREATE leaves in its reply slot."""
LONGEST_COPY = (1 << 31) - (1 << 12)
"""COPY_FILE_RANGE answers with 32 bits; COPY_FILE_RANGE_64 (7.45) with 64."""


def _open(fs: Served, request: Request) -> bytes:
    # Sent again it opens the same handle again, so it needs no reply slot.
    flags, _ = request.unpack(OPEN_IN)
    attr = fs.tree.attrs(request.node)
    return _opened(fs.tree.open(request.node, flags, request.caller, request.identity), attr)


def _create(fs: Served, request: Request) -> bytes:
    flags, mode, _, _ = request.unpack(CREATE_IN)
    name, caller, fh = request.text(CREATE_IN), request.caller, request.identity

    def change() -> bytes:
        return INO.pack(fs.tree.create(request.node, name, stat.S_IMODE(mode), caller).ino)

    fresh = True
    try:
        (ino,) = INO.unpack(fs.journal.once(request, change))
    except Exists:
        if flags & os.O_EXCL:
            raise
        ino, fresh = fs.tree.lookup(request.node, name).ino, False
    # Outside of the transaction, before which the open files' locks are taken; asked again it is the same.
    handle = fs.tree.open(ino, flags, caller, fh, fresh=fresh)
    attr = fs.tree.attrs(ino)
    return encoding.entry(attr) + _opened(handle, attr)


def _opened(handle: Handle, attr: Attr) -> bytes:
    if handle.backing_id:
        # Alone: together with a flag about caching it is EIO.
        return OPEN_OUT.pack(handle.fh, Open.PASSTHROUGH, handle.backing_id)
    return OPEN_OUT.pack(handle.fh, _caching(attr), 0)


def _caching(attr: Attr) -> Open:
    """FOPEN flags. Pages of an earlier open are kept where the content cannot have changed; what must never
    be cached is rendered at open, and its size may be another than the attributes said."""
    if attr.valid == 0:
        return Open.DIRECT_IO
    return Open.KEEP_CACHE if attr.keep else Open(0)


def _read(fs: Served, request: Request) -> Buffer:
    fh, offset, size, *_ = request.unpack(READ_IN)
    return fs.tree.handle(request.node, fh).pread(offset, size)


def _write(fs: Served, request: Request) -> bytes:
    fh, offset, size, *_ = request.unpack(WRITE_IN)
    handle = fs.tree.handle(request.node, fh)
    return WRITE_OUT.pack(handle.pwrite(offset, request.data(WRITE_IN, size), request.pid), 0)


def _flush(fs: Served, request: Request) -> bytes:
    fh, *_ = request.unpack(FLUSH_IN)
    fs.tree.handle(request.node, fh).flush(request.pid)
    return DONE


def _release(fs: Served, request: Request) -> bytes:
    fh, *_ = request.unpack(RELEASE_IN)
    fs.tree.release(fh)
    return DONE


def _fsync(fs: Served, request: Request) -> bytes:
    fh, flags, _ = request.unpack(FSYNC_IN)
    fs.tree.handle(request.node, fh).fsync(bool(flags & FSYNC_FDATASYNC))
    return DONE


def _lseek(fs: Served, request: Request) -> bytes:
    fh, offset, whence, _ = request.unpack(LSEEK_IN)
    if whence not in {os.SEEK_DATA, os.SEEK_HOLE}:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))  # the kernel does the others itself
    return LSEEK_OUT.pack(fs.tree.handle(request.node, fh).seek(offset, whence))


def _fallocate(fs: Served, request: Request) -> bytes:
    fh, offset, length, mode, _ = request.unpack(FALLOCATE_IN)
    fs.tree.handle(request.node, fh).fallocate(mode, offset, length)
    return DONE


def _copied(fs: Served, request: Request, most: int) -> int:
    source_fh, source_offset, node, fh, offset, length, _ = request.unpack(COPY_FILE_RANGE_IN)
    source, target = fs.tree.handle(request.node, source_fh), fs.tree.handle(node, fh)
    return target.copy_range(source, source_offset, offset, min(length, most))


def _copy_file_range(fs: Served, request: Request) -> bytes:
    return WRITE_OUT.pack(_copied(fs, request, LONGEST_COPY), 0)


def _copy_file_range_64(fs: Served, request: Request) -> bytes:
    return COPY_FILE_RANGE_OUT.pack(_copied(fs, request, 1 << 62))


def _no_ioctl(fs: Served, request: Request) -> bytes:
    raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))


OPERATIONS: dict[Opcode, Operation] = {
    Opcode.OPEN: _open,
    Opcode.CREATE: _create,
    Opcode.READ: _read,
    Opcode.WRITE: _write,
    Opcode.FLUSH: _flush,
    Opcode.RELEASE: _release,
    Opcode.FSYNC: _fsync,
    Opcode.LSEEK: _lseek,
    Opcode.FALLOCATE: _fallocate,
    Opcode.COPY_FILE_RANGE: _copy_file_range,
    Opcode.COPY_FILE_RANGE_64: _copy_file_range_64,
    Opcode.IOCTL: _no_ioctl,
}
