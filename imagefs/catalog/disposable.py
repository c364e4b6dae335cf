"""LMDB environments without sync, which may be lost: kept over SIGKILL, emptied after a power cut.

Without sync LMDB's file is whole after any process died, since the kernel has all that was written, but
perhaps torn after a reboot; and a torn file can kill who opens it. So a file `boot` beside it says in which
boot it was last written, and whether it was synced and closed by all since. Every process that has the
environment open holds a shared flock on that file; the first one in looks, the last one out syncs.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from pathlib import Path

from imagefs.catalog.env import Environment

CLEAN = "clean"


class Disposable:
    """One such environment in the directory `path`. Open it after fork, never before, and once in a
    process."""

    def __init__(self, path: Path, boot: str, tables: Iterable[str], *, readahead: bool = True) -> None:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._boot = os.open(path / "boot", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._enter(path, boot)
            self.env = Environment(path, create=True, sync=False, readahead=readahead)
            self.env.open_tables(tables, create=True)
        except BaseException:
            os.close(self._boot)
            raise

    def close(self) -> None:
        """Ends it; the last process to do so leaves it on the disk for the next boot."""
        try:
            fcntl.flock(self._boot, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.env.sync()
            self._write(CLEAN)
        except BlockingIOError:
            pass  # another process still writes
        finally:
            self.env.close()
            os.close(self._boot)

    def _enter(self, path: Path, boot: str) -> None:
        """Empties what another boot left unsynced; returns with the shared lock, the file marked as of this
        boot."""
        while True:
            try:
                fcntl.flock(self._boot, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                fcntl.flock(self._boot, fcntl.LOCK_SH)
            else:
                if self._read() not in (boot, CLEAN):
                    for name in ("data.mdb", "lock.mdb"):
                        (path / name).unlink(missing_ok=True)
                self._write(boot)
                fcntl.flock(self._boot, fcntl.LOCK_SH)
            # Between the locks the last other one may have closed and marked it clean: look again then.
            if self._read() == boot:
                return
            fcntl.flock(self._boot, fcntl.LOCK_UN)

    def _read(self) -> str:
        return os.pread(self._boot, 100, 0).decode(errors="replace").strip()

    def _write(self, text: str) -> None:
        # One write, longer than any other: never a mixture of two.
        os.pwrite(self._boot, text.ljust(64).encode() + b"\n", 0)
        os.fsync(self._boot)
