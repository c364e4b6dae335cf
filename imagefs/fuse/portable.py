"""The same tree through fusepy and libfuse 2, for systems without the Linux kernel protocol.

Decodes, calls, encodes; names are bytes everywhere (latin-1 makes a str of them and back without loss).

What libfuse 2's high-level interface or fusepy cannot express, and what happens instead:

    copy_file_range     no such request: the kernel copies through the page cache, nothing is shared
    SEEK_HOLE/DATA      no lseek request: the kernel says that everything is data
    fallocate           not in fusepy's table of operations: EOPNOTSUPP, tools write zeros instead
    RENAME_NOREPLACE    rename has no flags: EINVAL, `mv -n` looks first
    birth time          no statx request: unknown
    notifications       not in fusepy: entries and attributes are cached for a second, so that changes by
                        other processes are seen within that time
    fstat after unlink  asked for by path: ENOENT; reading and writing go on
    resending           the connection ends with its process: ENOTCONN, and a new mount recovers
    128 KiB requests    the largest that libfuse 2 takes
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuse import FUSE, FuseOSError, fuse_get_context

from imagefs.errors import NameTooLong, Refused
from imagefs.fuse.errnos import errno_of
from imagefs.tree.attr import NOW, Attr, Now, SetAttr
from imagefs.types import Caller, Ino

if TYPE_CHECKING:
    from imagefs.images.opens import Handle, OpenFiles
    from imagefs.tree.tree import Tree
    from imagefs.tree.xattrs import Mode

log = logging.getLogger(__name__)

CODEC = "latin-1"
REQUEST = 128 << 10
PAGE = 1000
"""Directory entries read at a time."""
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
"""Nanoseconds of utimensat(2) that are none; libfuse passes them on with 0 seconds."""
XATTR_MODES: dict[int, Mode] = {0: "any", os.XATTR_CREATE: "create", os.XATTR_REPLACE: "replace"}


class PortableOperations:
    """What libfuse calls, from any of its threads. fusepy offers exactly the operations defined here.

    `ready` is called once the kernel has accepted the mount. An `fi` is libfuse's fuse_file_info.
    """

    use_ns = True
    flag_nullpath_ok = flag_nopath = 1
    """Open files are known by their handles: libfuse need not make a path, which a deleted one has not."""
    flag_utime_omit_ok = 1

    def __init__(self, tree: Tree, open_files: OpenFiles, ready: Callable[[], None] = lambda: None) -> None:
        self._tree = tree
        self._new_fh = open_files.new_fh
        self._ready = ready

    def __call__(self, operation: str, *args: Any) -> Any:
        """Runs an operation; raises OSError only, since fusepy makes EINVAL of anything else."""
        with translated(operation):
            return getattr(self, operation)(*args)

    def init(self, path: str) -> None:
        self._ready()

    # -- looking -----------------------------------------------------------------------------------

    def getattr(self, path: str | None, fi: Any = None) -> dict[str, int]:
        if path is None:
            return _stat(self._tree.attrs(self._handle(fi).ino))
        return _stat(self._attr(path))

    def opendir(self, path: str) -> int:
        """The directory's inode, which libfuse hands to readdir."""
        return self._attr(path).ino

    def readdir(self, path: str | None, ino: int) -> Iterator[tuple[str, dict[str, int], int]]:
        # A generator: fusepy runs it after __call__ has returned.
        with translated("readdir"):
            after = 0
            while page := self._tree.children(ino, after, PAGE):
                for entry in page:
                    yield entry.name.decode(CODEC), {"st_ino": entry.ino, "st_mode": entry.attr.mode}, 0
                after = page[-1].cookie

    def statfs(self, path: str) -> dict[str, int]:
        sizes = self._tree.statfs()
        return {
            "f_bsize": sizes.bsize, "f_frsize": sizes.bsize, "f_blocks": sizes.blocks, "f_bfree": sizes.bfree,
            "f_bavail": sizes.bavail, "f_files": sizes.files, "f_ffree": sizes.ffree,
            "f_favail": sizes.ffree, "f_namemax": sizes.namelen,
        }  # fmt: skip

    # -- names -------------------------------------------------------------------------------------

    def mkdir(self, path: str, mode: int) -> None:
        self._tree.mkdir(*self._place(path), stat.S_IMODE(mode), _caller())

    def mknod(self, path: str, mode: int, device: int) -> None:
        if not stat.S_ISREG(mode):
            raise Refused("Only regular files and directories can be made here.")
        self._tree.create(*self._place(path), stat.S_IMODE(mode), _caller())

    def create(self, path: str, mode: int, fi: Any) -> None:
        fh = self._new_fh()
        attr, _ = self._tree.create_open(*self._place(path), fi.flags, stat.S_IMODE(mode), _caller(), fh)
        _opened(fi, fh, attr)

    def unlink(self, path: str) -> None:
        self._tree.unlink(*self._place(path), _caller())

    def rmdir(self, path: str) -> None:
        self._tree.rmdir(*self._place(path), _caller())

    def rename(self, old: str, new: str) -> None:
        self._tree.rename(*self._place(old), *self._place(new), 0, _caller())

    # -- open files --------------------------------------------------------------------------------

    def open(self, path: str, fi: Any) -> None:
        attr, fh = self._attr(path), self._new_fh()
        self._tree.open(attr.ino, fi.flags, _caller(), fh)
        _opened(fi, fh, attr)

    def read(self, path: str | None, size: int, offset: int, fi: Any) -> bytes:
        return self._handle(fi).pread(offset, size)

    def write(self, path: str | None, data: bytes, offset: int, fi: Any) -> int:
        return self._handle(fi).pwrite(offset, memoryview(data), _caller().pid)

    def flush(self, path: str | None, fi: Any) -> None:
        self._handle(fi).flush(_caller().pid)

    def fsync(self, path: str | None, datasync: int, fi: Any) -> None:
        self._handle(fi).fsync(bool(datasync))

    def release(self, path: str | None, fi: Any) -> None:
        self._tree.release(fi.fh)

    # -- attributes --------------------------------------------------------------------------------

    def chmod(self, path: str, mode: int) -> None:
        self._set(path, SetAttr(mode=stat.S_IMODE(mode)))

    def chown(self, path: str, uid: int, gid: int) -> None:
        self._set(path, SetAttr(uid=None if uid == -1 else uid, gid=None if gid == -1 else gid))

    def truncate(self, path: str | None, size: int, fi: Any = None) -> None:
        if fi is not None:
            self._tree.setattr(self._handle(fi).ino, SetAttr(size=size), _caller(), fi.fh)
        elif path is not None:
            self._set(path, SetAttr(size=size))

    def utimens(self, path: str, times: tuple[int, int] | None) -> None:
        atime, mtime = times or (UTIME_NOW, UTIME_NOW)
        self._set(path, SetAttr(atime=_time(atime), mtime=_time(mtime)))

    def getxattr(self, path: str, name: str) -> bytes:
        return self._tree.getxattr(self._attr(path).ino, name.encode(CODEC))

    def listxattr(self, path: str) -> list[str]:
        return [name.decode(CODEC) for name in self._tree.listxattr(self._attr(path).ino)]

    def setxattr(self, path: str, name: str, value: bytes, flags: int) -> None:
        if flags not in XATTR_MODES:
            raise FuseOSError(errno.EINVAL)
        try:
            self._tree.setxattr(self._attr(path).ino, name.encode(CODEC), value, XATTR_MODES[flags], _caller())
        except NameTooLong as error:
            raise FuseOSError(errno.E2BIG) from error  # the documented number for values

    def removexattr(self, path: str, name: str) -> None:
        self._tree.removexattr(self._attr(path).ino, name.encode(CODEC), _caller())

    # -- paths -------------------------------------------------------------------------------------

    def _attr(self, path: str) -> Attr:
        attr = self._tree.attrs(Ino.ROOT)
        for name in path.split("/"):
            if name:
                attr = self._tree.lookup(attr.ino, name.encode(CODEC))
        return attr

    def _place(self, path: str) -> tuple[int, bytes]:
        """(inode of its directory, its name)."""
        directory, _, name = path.rpartition("/")
        return self._attr(directory).ino, name.encode(CODEC)

    def _set(self, path: str, change: SetAttr) -> None:
        self._tree.setattr(self._attr(path).ino, change, _caller())

    def _handle(self, fi: Any) -> Handle:
        return self._tree.handle(0, fi.fh)


@contextmanager
def translated(operation: str) -> Iterator[None]:
    """Makes OSErrors of all errors, by the one table; EIO, and a line in the log, of unexpected ones."""
    try:
        yield
    except Exception as error:
        number = errno_of(error)
        if number is None:
            log.exception("%s failed", operation)
            number = errno.EIO
        raise FuseOSError(number) from error


def serve(
    tree: Tree, open_files: OpenFiles, mountpoint: Path, *, source: str, allow_other: bool = False,
    ready: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Mounts and serves until the mount is gone. Call it in the main thread of a process made for it:
    libfuse takes over the signals, and ends the mount on SIGTERM, SIGINT and SIGHUP. RuntimeError when it
    could not mount; the reason is on standard error.
    """
    FUSE(
        PortableOperations(tree, open_files, ready),
        os.fsencode(mountpoint).decode(CODEC),
        raw_fi=True,
        encoding=CODEC,
        foreground=True,
        fsname=os.fsencode(source).decode(CODEC).replace("\\", "\\\\").replace(",", "\\,"),
        subtype="imagefs",
        allow_other=allow_other,
        # Only where others are let in; see mounting.SHARED.
        default_permissions=allow_other,
        use_ino=True,
        # Without it a deleted open file stays in by-name/ as .fuse_hidden..., an image of its own.
        hard_remove=True,
        big_writes=True,
        max_read=REQUEST,
        max_write=REQUEST,
        attr_timeout=1,
        entry_timeout=1,
    )


def _caller() -> Caller:
    return Caller(*fuse_get_context())


def _opened(fi: Any, fh: int, attr: Attr) -> None:
    fi.fh = fh
    fi.direct_io = attr.valid == 0
    fi.keep_cache = attr.keep


def _time(nanoseconds: int) -> int | Now | None:
    return {UTIME_NOW: NOW, UTIME_OMIT: None}.get(nanoseconds, nanoseconds)


def _stat(attr: Attr) -> dict[str, int]:
    return {
        "st_ino": attr.ino, "st_mode": attr.mode, "st_nlink": attr.nlink, "st_uid": attr.uid,
        "st_gid": attr.gid, "st_size": attr.size, "st_blocks": attr.blocks, "st_blksize": attr.blksize,
        "st_atime": attr.atime, "st_mtime": attr.mtime, "st_ctime": attr.ctime,
    }  # fmt: skip
