"""Staging files: the local sparse files that hold drafts (S2), named `staging/<id>.<generation>`.

A staging file is an ordinary file of the host's filesystem, so what was written survives the death of
the daemon, and what was fsynced survives power loss, without any help from imagefs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from imagefs.errors import Busy, NotSupported
from imagefs.types import Cookie

if TYPE_CHECKING:
    from ctypes import CDLL

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x01, 0x02, 0x10
"""Modes of fallocate(2), from linux/falloc.h."""
MODES = (0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE)

_SYNC_FILE_RANGE_WRITE = 2


class Staging:
    """The directory of staging files of one repository. Holds no state; safe for any thread."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, image_id: UUID, gen: int) -> Path:
        """Where the staging file of an image's draft `gen` lies."""
        return self.directory / f"{image_id}.{gen}"

    def create(self, image_id: UUID, gen: int) -> None:
        """Makes an empty staging file, replacing what a crashed transaction may have left there."""
        flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC
        os.close(os.open(self.path(image_id, gen), flags, 0o600))

    def open(self, image_id: UUID, gen: int, *, write: bool = False) -> int:
        """A descriptor of the staging file; made empty when power loss took the file but not the record."""
        flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_CREAT | os.O_CLOEXEC
        return os.open(self.path(image_id, gen), flags, 0o600)

    def stat(self, image_id: UUID, gen: int) -> os.stat_result | None:
        """The staging file's status, None when there is no such file."""
        try:
            return os.stat(self.path(image_id, gen))
        except FileNotFoundError:
            return None

    def remove(self, image_id: UUID, gen: int) -> None:
        """Deletes a staging file; a missing one is fine. Open descriptors go on working."""
        self.path(image_id, gen).unlink(missing_ok=True)

    def sync_directory(self) -> None:
        """Makes the names of staging files durable."""
        sync(self.directory)

    def files(self) -> Iterator[tuple[UUID, int, Path]]:
        """Every staging file as (image, generation, path); other names are passed over."""
        for entry in os.scandir(self.directory):
            stem, _, gen = entry.name.partition(".")
            with contextlib.suppress(ValueError):
                yield UUID(stem), int(gen), Path(entry.path)

    def allocated(self) -> int:
        """Bytes on disk of all staging files: what sealing may still need in packs (S15)."""
        total = 0
        for entry in os.scandir(self.directory):
            with contextlib.suppress(FileNotFoundError):
                total += entry.stat().st_blocks * 512
        return total


def cookie(fd: int, draft_gen: int) -> Cookie:
    """The identity of the content behind `fd` now: equal cookies mean that nobody wrote between."""
    status = os.fstat(fd)
    return Cookie(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, draft_gen)


def require_no_writer(fd: int, what: str) -> None:
    """Raises Busy while any process has the file open for writing or mapped writable.

    The kernel grants a read lease only when nobody writes, which sees passthrough writers and shared
    mappings that no request ever tells us about. `fd` must be read-only; the lease is dropped at once.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError as error:
        raise Busy(f"{what} is still open for writing or mapped by a process.") from error
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def data_ranges(fd: int, start: int, size: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of what is not a hole between `start` and `size`, in order."""
    while start < size:
        try:
            data = os.lseek(fd, start, os.SEEK_DATA)
        except OSError:  # ENXIO: no data after start
            return
        if data >= size:
            return
        hole = min(os.lseek(fd, data, os.SEEK_HOLE), size)
        yield data, hole - data
        start = hole


@cache
def _libc() -> CDLL:
    """The C library; what it refuses is an OSError."""
    # Imported here: 2 ms that a command which writes no draft does not spend.
    import ctypes  # noqa: PLC0415

    def checked(result: Any, *_: object) -> Any:
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return result

    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    for call in (libc.fallocate, libc.sync_file_range):
        call.errcheck = checked
    return libc


def allocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2), which the standard library lacks; NotSupported for modes that would move data."""
    if mode not in MODES:
        raise NotSupported(f"fallocate mode {mode:#x} is not possible here.")
    _libc().fallocate(fd, mode, offset, length)


def start_writeback(fd: int) -> None:
    """Has the kernel begin to write the file's dirty pages, without waiting: the fdatasync before sealing
    finds little left to do. Only a hint, so what it answers does not matter."""
    with contextlib.suppress(OSError):
        _libc().sync_file_range(fd, 0, 0, _SYNC_FILE_RANGE_WRITE)


def sync(path: Path) -> None:
    """Syncs a file or directory: its bytes, or its names, survive power loss."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
