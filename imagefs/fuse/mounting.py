"""Mounting and unmounting: mount(2) for root, fusermount3 for everybody else."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import socket
import stat
import subprocess
from pathlib import Path

from imagefs.errors import Busy, MountFailed

SUBTYPE = "imagefs"
FSTYPE = f"fuse.{SUBTYPE}"
DEVICE = Path("/dev/fuse")
MAX_READ = 1 << 20

MS_NOSUID, MS_NODEV = 2, 4
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
PATIENCE = 30
"""Seconds for fusermount3, which only makes one system call."""

_libc = ctypes.CDLL(None, use_errno=True)


def mount(mountpoint: Path, source: str, *, allow_other: bool) -> int:
    """Mounts and returns the connection's /dev/fuse descriptor (not inheritable); INIT waits for its answer.

    `source` is what mount(8) and /proc/self/mountinfo show: the repository's path. `allow_other` lets in
    users other than this one, whose rights are checked by mode and owner as everywhere. Raises MountFailed.
    """
    try:
        mode = os.stat(mountpoint).st_mode
    except OSError as error:
        raise MountFailed(f"{mountpoint} cannot be mounted on: {error.strerror}.") from error
    if not stat.S_ISDIR(mode):
        raise MountFailed(f"{mountpoint} cannot be mounted on: it is not a directory.")
    if not DEVICE.exists():
        raise MountFailed(f"There is no {DEVICE}: the kernel's module fuse is not loaded (modprobe fuse).")
    if os.geteuid() == 0:
        return _mount_as_root(mountpoint, source, allow_other=allow_other)
    return _mount_by_fusermount(mountpoint, source, allow_other=allow_other)


def umount(mountpoint: str | Path, *, lazy: bool = False) -> None:
    """Unmounts. `lazy` also takes away what is in use, which goes on until its last user has closed it.

    Raises Busy when it is in use, MountFailed for any other reason, among them that nothing is mounted there.
    """
    if os.geteuid() != 0:
        _run_fusermount("-u", *(["-z"] if lazy else []), "--", str(mountpoint))
        return
    flags = UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0)
    if _libc.umount2(os.fsencode(mountpoint), ctypes.c_int(flags)) != 0:
        number = ctypes.get_errno()
        if number == errno.EBUSY:
            raise Busy(f"{mountpoint} is in use; `lsof +f -- {mountpoint}` shows by whom.")
        reason = "nothing is mounted there" if number == errno.EINVAL else os.strerror(number)
        raise MountFailed(f"{mountpoint} cannot be unmounted: {reason}.")


SHARED = ",allow_other,default_permissions"
"""Options of a mount for everybody: the kernel checks modes and owners. In a mount that is its user's alone it
need not, and must not: it would refuse the owner of sealed data, which has no write bits, to set attributes."""


def mount_filesystem(source: str, target: str, fstype: str, flags: int = 0, data: str = "") -> None:
    """mount(2). Raises OSError."""
    words = [os.fsencode(word) for word in (source, target, fstype)]
    if _libc.mount(*words, ctypes.c_ulong(flags), os.fsencode(data)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def _mount_as_root(mountpoint: Path, source: str, *, allow_other: bool) -> int:
    fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,max_read={MAX_READ}"
    if allow_other:
        options += SHARED
    try:
        mount_filesystem(source, str(mountpoint), FSTYPE, MS_NOSUID | MS_NODEV, options)
    except OSError as error:
        os.close(fd)
        hint = " (a container needs the capability SYS_ADMIN)" if error.errno == errno.EPERM else ""
        raise MountFailed(f"{mountpoint} cannot be mounted on: {error.strerror}{hint}.") from error
    return fd


def _mount_by_fusermount(mountpoint: Path, source: str, *, allow_other: bool) -> int:
    """fusermount3 mounts on our behalf and sends the descriptor over a socket."""
    name = source.replace("\\", "\\\\").replace(",", "\\,")
    options = f"fsname={name},subtype={SUBTYPE},nosuid,nodev,max_read={MAX_READ}"
    if allow_other:
        options += SHARED
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            _run_fusermount("-o", options, "--", str(mountpoint), descriptors=theirs)
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    if not fds:
        raise MountFailed(f"fusermount3 mounted {mountpoint} and sent no descriptor.")
    os.set_inheritable(fds[0], False)
    return fds[0]


def _run_fusermount(*words: str, descriptors: socket.socket | None = None) -> None:
    """Runs it to its end. Raises Busy or MountFailed with what it said."""
    program = shutil.which("fusermount3")
    if program is None:
        raise MountFailed("Users other than root mount with fusermount3, which is missing (package fuse3).")
    environment = os.environ | {"LC_ALL": "C"}
    inherited = []
    if descriptors is not None:
        inherited = [descriptors.fileno()]
        environment["_FUSE_COMMFD"] = str(inherited[0])
    try:
        done = subprocess.run(
            [program, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            env=environment, pass_fds=inherited, timeout=PATIENCE, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise MountFailed(f"fusermount3 did not end within {PATIENCE} s.") from error
    if done.returncode != 0:
        said = done.stderr.strip().removeprefix("fusermount3: ") or f"it ended with {done.returncode}"
        if "busy" in said:
            raise Busy(f"{words[-1]} is in use.")
        raise MountFailed(f"fusermount3: {said}")
