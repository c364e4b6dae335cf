"""Mounts as the kernel lists them: which belong to a repository, which are dead, how to end one by force.

Nothing here touches a mount from this process: an access to a mount whose server hangs may hang as well.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from imagefs.fuse.mounting import FSTYPE, mount_filesystem, umount

MOUNTINFO = Path("/proc/self/mountinfo")
CONNECTIONS = Path("/sys/fs/fuse/connections")
"""Where fusectl is mounted; not every system mounts it."""
PROBE = """
import os, sys
try:
    os.statvfs(sys.argv[1])
except OSError as error:
    sys.exit(error.errno)
"""
"""statvfs, because the kernel never answers it from a cache."""


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/self/mountinfo."""

    mountpoint: str
    source: str
    fstype: str
    device: str
    """major:minor. The minor is the connection's number in fusectl."""

    @property
    def connection(self) -> int:
        """The number under /sys/fs/fuse/connections."""
        return int(self.device.partition(":")[2])


class State(StrEnum):
    """Whether anybody serves a mount."""

    ALIVE = "alive"
    DEAD = "dead"
    """Its server is gone: every access fails with ENOTCONN."""
    HUNG = "hung"
    """No answer before the deadline."""


def parse(mountinfo: str) -> list[Mount]:
    """The lines of a mountinfo file (proc_pid_mountinfo(5)), in mount order."""
    found = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, (fstype, source, *_) = before.split(" "), after.split(" ")
        found.append(Mount(_unescaped(fields[4]), _unescaped(source), fstype, fields[2]))
    return found


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def listed() -> list[Mount]:
    """All mounts that this process sees. Paths are bytes to the kernel: odd ones have surrogates."""
    return parse(MOUNTINFO.read_text(encoding="utf-8", errors="surrogateescape"))


def of_repository(source: str | Path) -> list[Mount]:
    """A repository's mounts on this host, dead ones too, by the source they were mounted with."""
    return [mount for mount in listed() if mount.fstype == FSTYPE and mount.source == str(source)]


def at(mountpoint: str | Path) -> Mount | None:
    """What is mounted at exactly this path: the last one, which hides the others."""
    wanted = str(mountpoint)
    return next((mount for mount in reversed(listed()) if mount.mountpoint == wanted), None)


def state(mount: Mount, deadline: float = 5.0) -> State:
    """Asks the mount for its sizes, in a process that may hang instead of this one."""
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", PROBE, mount.mountpoint], stdin=subprocess.DEVNULL, cwd="/"
    )
    try:
        status = child.wait(deadline)
    except subprocess.TimeoutExpired:
        child.kill()
        # It ends once its request is answered or the connection is aborted, however it was killed.
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(1)
        return State.HUNG
    return State.DEAD if status in {errno.ENOTCONN, errno.ECONNABORTED} else State.ALIVE


def clear_dead(source: str | Path) -> list[Mount]:
    """Unmounts the dead mounts of a repository; returns them.

    To be done before anything looks at leases: a dead connection keeps open the files it had been given.
    Raises Busy or MountFailed if one cannot be unmounted.
    """
    dead = [mount for mount in of_repository(source) if state(mount) is State.DEAD]
    for mount in dead:
        umount(mount.mountpoint, lazy=True)
    return dead


def abort(connection: int) -> bool:
    """Ends a connection whose server no longer answers: who waits for it gets ECONNABORTED.

    `connection` is `Mount.connection`, which outlives a lazy unmount. True if the kernel was told; False
    where there is no such connection, or no right to end it (root and the mount's own user have it).
    """
    control = CONNECTIONS / str(connection) / "abort"
    if not control.exists() and os.geteuid() == 0:
        with contextlib.suppress(OSError):
            mount_filesystem("fusectl", str(CONNECTIONS), "fusectl")
    try:
        control.write_text("1")
    except OSError:
        return False
    return True


def raise_readahead(mount: Mount, kib: int = 4096) -> bool:
    """Sets how far the kernel reads ahead, of which FUSE itself grants 128 KiB; whether it could.

    4 MiB are four requests under way, one for each serving thread: a third more from cold than with 1 MiB.
    """
    try:
        Path(f"/sys/class/bdi/{mount.device}/read_ahead_kb").write_text(str(kib))
    except OSError:  # not root, or no sysfs
        return False
    return True
