"""Requests about names, attributes and directories: decode, call the tree, encode."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from imagefs.errors import InvalidValue, NameTooLong, NotSupported, Refused
from imagefs.fuse.kernel import encoding
from imagefs.fuse.kernel.protocol import (
    DIRENT,
    DIRENTPLUS,
    GETATTR_FH,
    GETATTR_IN,
    GETXATTR_IN,
    GETXATTR_OUT,
    MKDIR_IN,
    MKNOD_IN,
    OPEN_OUT,
    READ_IN,
    RENAME2_IN,
    RENAME_IN,
    RENAME_NOREPLACE,
    SETATTR_IN,
    SETXATTR_IN,
    STATX_IN,
    XATTR_CREATE,
    XATTR_REPLACE,
    Opcode,
    Open,
    SetAttrValid,
)
from imagefs.tree.attr import NOW, SetAttr

if TYPE_CHECKING:
    from imagefs.fuse.kernel.request import Operation, Request, Served
    from imagefs.tree.attr import Now
    from imagefs.tree.xattrs import Mode

DONE = b""
UNKNOWN_NAMESPACES = (b"security.", b"system.")
"""EOPNOTSUPP for these makes `ls -l` ask once per mount, ENODATA makes it ask for every file (and after an
ENOSYS the kernel would not ask for any attribute again)."""
SHORTEST_NAME = 8
"""Bytes that a name takes up at least in a listing, where it is padded."""
XATTR_MODES: dict[int, Mode] = {0: "any", XATTR_CREATE: "create", XATTR_REPLACE: "replace"}


def _lookup(fs: Served, request: Request) -> bytes:
    return encoding.entry(fs.tree.lookup(request.node, request.text()))


def _getattr(fs: Served, request: Request) -> bytes:
    flags, _, fh = request.unpack(GETATTR_IN)
    return encoding.attributes(fs.tree.attrs(request.node, fh if flags & GETATTR_FH else None))


def _statx(fs: Served, request: Request) -> bytes:
    flags, _, fh, _, _ = request.unpack(STATX_IN)
    return encoding.statx(fs.tree.attrs(request.node, fh if flags & GETATTR_FH else None))


def _setattr(fs: Served, request: Request) -> bytes:
    fields = request.unpack(SETATTR_IN)
    bits, _, fh, size, _, atime, mtime, _, atime_part, mtime_part, _, mode, _, uid, gid, _ = fields
    valid = SetAttrValid(bits)
    change = SetAttr(
        size=size if SetAttrValid.SIZE in valid else None,
        mode=stat.S_IMODE(mode) if SetAttrValid.MODE in valid else None,
        uid=uid if SetAttrValid.UID in valid else None,
        gid=gid if SetAttrValid.GID in valid else None,
        atime=_time(SetAttrValid.ATIME in valid, SetAttrValid.ATIME_NOW in valid, atime, atime_part),
        mtime=_time(SetAttrValid.MTIME in valid, SetAttrValid.MTIME_NOW in valid, mtime, mtime_part),
    )
    attr = fs.tree.setattr(request.node, change, request.caller, fh if SetAttrValid.FH in valid else None)
    return encoding.attributes(attr)


def _time(given: bool, now: bool, seconds: int, part: int) -> int | Now | None:
    if now:
        return NOW
    return seconds * encoding.SECOND + part if given else None


def _statfs(fs: Served, request: Request) -> bytes:
    return encoding.statfs(fs.tree.statfs())


# -- directories -----------------------------------------------------------------------------------


def _opendir(fs: Served, request: Request) -> bytes:
    lasting = fs.tree.attrs(request.node).valid > 0
    return OPEN_OUT.pack(request.identity, Open.CACHE_DIR | Open.KEEP_CACHE if lasting else 0, 0)


def _readdir(fs: Served, request: Request) -> bytes:
    _, cookie, size, *_ = request.unpack(READ_IN)
    most = size // (DIRENT.size + SHORTEST_NAME)
    return encoding.listing(fs.tree.children(request.node, cookie, most), size)


def _readdirplus(fs: Served, request: Request) -> bytes:
    _, cookie, size, *_ = request.unpack(READ_IN)
    most = size // (DIRENTPLUS.size + SHORTEST_NAME)
    return encoding.listing_plus(fs.tree.children(request.node, cookie, most), size)


def _nothing(fs: Served, request: Request) -> bytes:
    """RELEASEDIR (directories have no state), FSYNCDIR and SYNCFS (what was answered is in the catalog,
    which syncs each transaction), DESTROY."""
    return DONE


# -- changes, each once ----------------------------------------------------------------------------


def _mkdir(fs: Served, request: Request) -> bytes:
    mode, _ = request.unpack(MKDIR_IN)
    name, caller = request.text(MKDIR_IN), request.caller
    return fs.journal.once(
        request, lambda: encoding.entry(fs.tree.mkdir(request.node, name, stat.S_IMODE(mode), caller))
    )


def _mknod(fs: Served, request: Request) -> bytes:
    mode, *_ = request.unpack(MKNOD_IN)
    if not stat.S_ISREG(mode):
        raise Refused("Only regular files and directories can be made here.")
    name, caller = request.text(MKNOD_IN), request.caller
    return fs.journal.once(
        request, lambda: encoding.entry(fs.tree.create(request.node, name, stat.S_IMODE(mode), caller))
    )


def _unlink(fs: Served, request: Request) -> bytes:
    return fs.journal.once(request, lambda: fs.tree.unlink(request.node, request.text(), request.caller))


def _rmdir(fs: Served, request: Request) -> bytes:
    return fs.journal.once(request, lambda: fs.tree.rmdir(request.node, request.text(), request.caller))


def _rename(fs: Served, request: Request) -> bytes:
    (directory,) = request.unpack(RENAME_IN)
    return _renamed(fs, request, directory, request.text(RENAME_IN), 0)


def _rename2(fs: Served, request: Request) -> bytes:
    directory, flags, _ = request.unpack(RENAME2_IN)
    if flags & ~RENAME_NOREPLACE:
        raise InvalidValue("Two names cannot be exchanged.")
    return _renamed(fs, request, directory, request.text(RENAME2_IN), flags)


def _renamed(fs: Served, request: Request, directory: int, names: bytes, flags: int) -> bytes:
    old, _, new = names.partition(b"\0")
    return fs.journal.once(request, lambda: fs.tree.rename(request.node, old, directory, new, flags, request.caller))


def _no_links(fs: Served, request: Request) -> bytes:
    raise Refused("Images have no further links, and there are no symbolic links.")


# -- extended attributes ---------------------------------------------------------------------------


def _getxattr(fs: Served, request: Request) -> bytes:
    size, _ = request.unpack(GETXATTR_IN)
    name = request.text(GETXATTR_IN)
    if name.startswith(UNKNOWN_NAMESPACES):
        raise NotSupported(f"Attributes like {name!r} are not kept.")
    return _sized(fs.tree.getxattr(request.node, name), size)


def _listxattr(fs: Served, request: Request) -> bytes:
    size, _ = request.unpack(GETXATTR_IN)
    return _sized(b"".join(name + b"\0" for name in fs.tree.listxattr(request.node)), size)


def _sized(value: bytes, size: int) -> bytes:
    """The value for a caller with room for `size` bytes; its length alone for one that asks with 0."""
    if size == 0:
        return GETXATTR_OUT.pack(len(value), 0)
    if len(value) > size:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    return value


def _setxattr(fs: Served, request: Request) -> bytes:
    size, flags = request.unpack(SETXATTR_IN)
    name, _, value = request.rest(SETXATTR_IN).partition(b"\0")
    mode = XATTR_MODES.get(flags)
    if mode is None:
        raise InvalidValue("An attribute cannot be created and replaced at once.")

    def change() -> None:
        try:
            fs.tree.setxattr(request.node, name, value[:size], mode, request.caller)
        except NameTooLong as error:
            raise OSError(errno.E2BIG, str(error)) from error  # the documented number for values

    # Set twice it is the same, but for CREATE and REPLACE.
    if flags == 0 or fs.tree.waits(name):
        change()
        return DONE
    return fs.journal.once(request, change)


def _removexattr(fs: Served, request: Request) -> bytes:
    return fs.journal.once(request, lambda: fs.tree.removexattr(request.node, request.text(), request.caller))


OPERATIONS: dict[Opcode, Operation] = {
    Opcode.LOOKUP: _lookup,
    Opcode.GETATTR: _getattr,
    Opcode.STATX: _statx,
    Opcode.SETATTR: _setattr,
    Opcode.STATFS: _statfs,
    Opcode.OPENDIR: _opendir,
    Opcode.READDIR: _readdir,
    Opcode.READDIRPLUS: _readdirplus,
    Opcode.RELEASEDIR: _nothing,
    Opcode.FSYNCDIR: _nothing,
    Opcode.SYNCFS: _nothing,
    Opcode.DESTROY: _nothing,
    Opcode.MKDIR: _mkdir,
    Opcode.MKNOD: _mknod,
    Opcode.UNLINK: _unlink,
    Opcode.RMDIR: _rmdir,
    Opcode.RENAME: _rename,
    Opcode.RENAME2: _rename2,
    Opcode.LINK: _no_links,
    Opcode.SYMLINK: _no_links,
    Opcode.GETXATTR: _getxattr,
    Opcode.LISTXATTR: _listxattr,
    Opcode.SETXATTR: _setxattr,
    Opcode.REMOVEXATTR: _removexattr,
}
