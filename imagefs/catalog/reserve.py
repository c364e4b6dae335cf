"""Disk space set aside behind an LMDB file, so that deleting still works when the disk is full."""

from __future__ import annotations

import os
import time
from pathlib import Path

RESERVE = 64 << 20
"""Bytes. 8 MiB were enough for 5,000 commits on a full disk; deletions need pages before they free any."""
KEEP_SIZE = 1
"""FALLOC_FL_KEEP_SIZE."""


class Reserve:
    """Preallocates blocks past the end of one file and tells how much of that is left.

    Best effort: filesystems without fallocate(2) simply have no reserve. Any thread may call.
    """

    def __init__(self, path: Path) -> None:
        # Not LMDB's lock file: closing any descriptor of that one would drop the process's fcntl locks on it.
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._next_try = 0.0

    def keep(self, used: int) -> None:
        """After a commit: makes the file at least `used` bytes long and tops up the reserve behind them.

        LMDB does not write the last pages of a transaction that it freed again in it (seen after 1,176 of
        46,001 commits, up to 4 MiB): such a file looks truncated at the next open. Growing it with fallocate
        is safe beside other writers, ftruncate could cut off what one of them has just appended.
        """
        stat = os.fstat(self._fd)
        if stat.st_size < used:
            self._allocate(0, stat.st_size, used - stat.st_size)
        left = stat.st_blocks * 512 - used
        if left >= RESERVE // 2 or time.monotonic() < self._next_try:
            return
        target = min(RESERVE, (self._free() + max(0, left)) // 10)
        if left < target // 2 and not self._allocate(KEEP_SIZE, used, target):
            self._next_try = time.monotonic() + 1.0

    def left(self, used: int) -> int:
        """Bytes allocated behind the first `used` ones."""
        return max(0, os.fstat(self._fd).st_blocks * 512 - used)

    def only(self) -> bool:
        """Whether there is nothing but the reserve: the disk is full, to 8 MiB or 1/64 of it."""
        space = os.fstatvfs(self._fd)
        return self._free() < min(8 << 20, space.f_blocks * space.f_frsize // 64)

    def close(self) -> None:
        """Closes the descriptor; the reserved blocks stay."""
        os.close(self._fd)

    def _free(self) -> int:
        space = os.fstatvfs(self._fd)
        return space.f_bavail * space.f_frsize

    def _allocate(self, mode: int, offset: int, length: int) -> bool:
        """False when it could not be done (no space, not supported): then things are as they were."""
        # Imported here: 2 ms that the many commands which find the reserve in place do not spend.
        import ctypes  # noqa: PLC0415

        fallocate = getattr(ctypes.CDLL(None), "fallocate", None)
        if fallocate is None or length <= 0:
            return False
        done: int = fallocate(self._fd, ctypes.c_int(mode), ctypes.c_int64(offset), ctypes.c_int64(length))
        return done == 0
