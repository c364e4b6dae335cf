"""Sessions: who is using the repository, alive exactly as long as a file lock is held.

A session is one mount, REST server or CLI command. Its row is in the catalog, its life is the flock on
`sessions/<uuid>.lock`: never a pid, never a time. For a mount the supervisor holds the lock and hands the
descriptor to each worker, so the session lives as long as the kernel's mount, whatever workers die.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from uuid import UUID, uuid4

from imagefs.catalog import Catalog


def boot_id() -> str:
    """Identifies this boot of the host: a draft released before another boot may have lost bytes."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def lock_path(directory: Path, session: UUID) -> Path:
    """Where a session's lock file lies below the repository's `sessions` directory."""
    return directory / f"{session}.lock"


def take_lock(directory: Path, session: UUID) -> int:
    """Makes and locks a session's file; the descriptor is inheritable by whoever it is passed to."""
    fd = os.open(lock_path(directory, session), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return fd


def is_dead(directory: Path, session: UUID) -> bool:
    """Whether nobody holds the session's lock any more. The file stays for the reaper."""
    try:
        fd = os.open(lock_path(directory, session), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(fd)


class Session:
    """This process's session. `kind` is mount, cli or rest."""

    def __init__(
        self,
        directory: Path,
        catalog: Catalog,
        kind: str,
        *,
        id: UUID | None = None,
        lock_fd: int | None = None,
    ) -> None:
        """Joins the session `id` whose lock `lock_fd` holds, or begins a new one."""
        self.id = id or uuid4()
        self.boot = boot_id()
        self._directory = directory
        self._catalog = catalog
        self._lock_fd = take_lock(directory, self.id) if lock_fd is None else lock_fd
        catalog.sessions.start(self.id, kind, os.uname().nodename, self.boot)

    def close(self, *, end: bool = True) -> None:
        """Ends the session; with `end` False (a worker that another one follows) only lets go of the lock."""
        if end:
            self._catalog.sessions.end(self.id)
            lock_path(self._directory, self.id).unlink(missing_ok=True)
        os.close(self._lock_fd)
