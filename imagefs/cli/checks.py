"""What a machine needs for a mount: one function per point, each answers with what is and what to do.

Nothing here imports the rest of imagefs: `doctor` must run where everything else cannot.
"""

from __future__ import annotations

import ctypes.util
import fcntl
import importlib.util
import os
import platform
import re
import resource
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path


class State(StrEnum):
    """How a point stands."""

    OK = "ok"
    NOTE = "note"
    """Works, but less well than it could."""
    MISSING = "missing"
    """A mount, or what the point is about, will not work."""


@dataclass(frozen=True)
class Check:
    """One point: what was found, and what to do about it (empty when nothing)."""

    point: str
    state: State
    found: str
    remedy: str = ""

    def as_json(self) -> dict[str, str]:
        """The point as strings."""
        return {key: str(value) for key, value in asdict(self).items()}


MODULES = ("blake3", "click", "crc32c", "lmdb", "oslo_utils", "rich", "xattr", "zstandard")
RESEND_KERNEL = (6, 9)
"""First Linux with passthrough and with requests that outlive the worker (S13)."""
LEAST_ROOM = 1 << 30
REMOTE = ("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "fuse.sshfs", "fuse.glusterfs")
CAP_SYS_ADMIN = 21


def python_modules() -> Check:
    """The Python packages that imagefs imports."""
    absent = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if absent:
        return Check("python", State.MISSING, f"no {', '.join(absent)}", "pip install imagefs")
    return Check("python", State.OK, f"Python {platform.python_version()}, all modules present")


def fuse_device(path: str = "/dev/fuse") -> Check:
    """The device that every mount goes through."""
    try:
        if not stat.S_ISCHR(os.stat(path).st_mode):
            return Check("fuse device", State.MISSING, f"{path} is no device", "modprobe fuse")
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return Check(
            "fuse device",
            State.MISSING,
            f"no {path}",
            "modprobe fuse; in a container: --device /dev/fuse --cap-add SYS_ADMIN",
        )
    except OSError as error:
        return Check("fuse device", State.MISSING, f"{path}: {error.strerror}", f"chmod 666 {path} (as root)")
    return Check("fuse device", State.OK, path)


def privileges() -> Check:
    """Whether this user may mount by mount(2), and if not, whether fusermount3 does it."""
    if _has_sys_admin():
        return Check("privileges", State.OK, "may mount directly")
    helper = shutil.which("fusermount3")
    if helper is None:
        found = "not root, and no fusermount3"
        return Check("privileges", State.MISSING, found, "apt-get install fuse3 (as root)")
    if not os.stat(helper).st_mode & stat.S_ISUID:
        found = f"not root, and {helper} is not setuid root"
        return Check("privileges", State.MISSING, found, f"chmod u+s {helper} (as root)")
    return Check("privileges", State.OK, f"mounts through {helper}; only root has files read by the kernel itself")


def fusermount() -> Check:
    """The helper that mounts for ordinary users."""
    helper = shutil.which("fusermount3")
    if helper:
        return Check("fusermount3", State.OK, helper)
    return Check("fusermount3", State.NOTE, "not there: only root can mount", "apt-get install fuse3")


def allow_other(path: str = "/etc/fuse.conf") -> Check:
    """Whether ordinary users may let others into their mounts."""
    if os.geteuid() == 0:
        return Check("allow_other", State.OK, "root's mounts may be for everybody")
    try:
        allowed = re.search(r"^\s*user_allow_other\b", Path(path).read_text(), re.MULTILINE)
    except OSError:
        allowed = None
    if allowed:
        return Check("allow_other", State.OK, f"user_allow_other is set in {path}")
    return Check(
        "allow_other",
        State.NOTE,
        "only you will see your mounts: no other user, no hypervisor that runs as one",
        f"echo user_allow_other >> {path} (as root), then mount --allow-other",
    )


def kernel(release: str = "") -> Check:
    """What this kernel's FUSE can do."""
    release = release or platform.release()
    match = re.match(r"(\d+)\.(\d+)", release)
    if match and (int(match[1]), int(match[2])) >= RESEND_KERNEL:
        return Check("kernel", State.OK, f"Linux {release}: open files survive a killed worker, plain files need none")
    return Check(
        "kernel",
        State.NOTE,
        f"Linux {release}: open files end with an error when the worker is killed (S13), all reads go through it",
        "a kernel of 6.9 or newer (Debian 12: linux-image-amd64 from bookworm-backports)",
    )


def libfuse() -> Check:
    """The library that `--transport fusepy` needs."""
    library = ctypes.util.find_library("fuse")
    if library and importlib.util.find_spec("fuse"):
        return Check("libfuse 2", State.OK, f"{library}, for --transport fusepy")
    what = "fusepy" if library else "libfuse.so.2"
    return Check("libfuse 2", State.NOTE, f"no {what}: no --transport fusepy", "apt-get install libfuse2")


def request_timeout(path: str = "/proc/sys/fs/fuse/max_request_timeout") -> Check:
    """The limit after which the kernel aborts a whole mount for one slow request."""
    try:
        seconds = int(Path(path).read_text())
    except (OSError, ValueError):
        seconds = 0
    if not seconds:
        return Check("request timeout", State.OK, "the kernel waits for slow requests")
    return Check(
        "request timeout",
        State.NOTE,
        f"max_request_timeout is {seconds} s: one slower request ends the whole mount",
        "sysctl fs.fuse.max_request_timeout=0",
    )


def fusectl(path: str = "/sys/fs/fuse/connections") -> Check:
    """The place where a stuck mount can be aborted."""
    if os.path.ismount(path):
        return Check("fusectl", State.OK, f"echo 1 > {path}/<minor>/abort frees a stuck mount")
    return Check(
        "fusectl",
        State.NOTE,
        f"{path} is not mounted: a stuck mount cannot be aborted there",
        f"mount -t fusectl fusectl {path}",
    )


def limits() -> Check:
    """Open files and address space that this process may have."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if files != resource.RLIM_INFINITY and files < 4096:
        return Check("limits", State.NOTE, f"at most {files} open files", "ulimit -Hn 65536")
    if space != resource.RLIM_INFINITY:
        found = f"address space is limited to {space >> 20} MiB: the catalog's map will be smaller"
        return Check("limits", State.NOTE, found, "ulimit -v unlimited")
    return Check("limits", State.OK, f"{files} open files, address space unlimited")


def disk_room(directory: Path) -> Check:
    """Free space under the repository."""
    disk = os.statvfs(directory)
    free = disk.f_bavail * disk.f_frsize
    found = f"{free / (1 << 30):.1f} GiB free under {directory}"
    if free < LEAST_ROOM:
        return Check("disk", State.NOTE, found, "free some space, or put the repository elsewhere (--repo)")
    return Check("disk", State.OK, found)


def filesystem_type(directory: Path, mountinfo: str = "/proc/self/mountinfo") -> Check:
    """LMDB's locks and memory map need a local filesystem."""
    kind, longest = "unknown", -1
    for line in Path(mountinfo).read_text().splitlines():
        before, _, after = line.partition(" - ")
        place = before.split()[4].replace("\\040", " ")
        if directory.is_relative_to(place) and len(place) >= longest:
            kind, longest = after.split()[0], len(place)
    if kind in REMOTE:
        found = f"{directory} is on {kind}: the catalog needs a local filesystem"
        return Check("filesystem", State.MISSING, found, "put the repository on a local disk (--repo)")
    return Check("filesystem", State.OK, f"{directory} is on {kind}")


def filesystem_features(directory: Path) -> Iterator[Check]:
    """What drafts ask of the filesystem under them: leases, holes, extended attributes."""
    try:
        file = tempfile.NamedTemporaryFile(dir=directory, prefix=".imagefs-doctor-")  # noqa: SIM115 (with below)
    except OSError as error:
        yield Check("state directory", State.MISSING, f"{directory}: {error.strerror}", "choose one with --repo")
        return
    with file:
        yield Check("state directory", State.OK, f"{directory} is writable")
        yield _try("leases", lambda: _lease(file.name), "drafts could not be sealed safely: use a local disk")
        yield _try("holes", lambda: _hole(file.fileno()), "sparse images would be inflated", State.NOTE)
        yield _try(
            "user xattrs",
            lambda: os.setxattr(file.name, "user.imagefs.doctor", b"1"),
            "attributes of local files cannot be carried over: remount with user_xattr",
            State.NOTE,
        )


def _lease(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # The temporary file is still open for writing: the kernel must refuse, and refuse for that reason.
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return
    finally:
        os.close(fd)
    raise OSError(0, "a lease was granted on a file that is open for writing")


def _hole(fd: int) -> None:
    os.ftruncate(fd, 1 << 20)
    os.pwrite(fd, b"x", (1 << 20) - 1)
    if os.lseek(fd, 0, os.SEEK_DATA) == 0:
        raise OSError(0, "SEEK_DATA does not see holes")


def _try(point: str, probe: Callable[[], None], remedy: str, failed: State = State.MISSING) -> Check:
    try:
        probe()
    except OSError as error:
        return Check(point, failed, error.strerror or str(error), remedy)
    return Check(point, State.OK, "work")


def _has_sys_admin() -> bool:
    match = re.search(r"^CapEff:\s*([0-9a-f]+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    return bool(match and int(match[1], 16) >> CAP_SYS_ADMIN & 1)


def nearest_existing(path: Path) -> Path:
    """The path itself or the closest parent that is there."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.is_dir())


def machine(repository: Path) -> list[Check]:
    """Every point, in the order in which a mount would meet them."""
    if sys.platform != "linux":
        return [python_modules(), libfuse()]
    directory = nearest_existing(repository)
    return [
        python_modules(), fuse_device(), privileges(), fusermount(), allow_other(), kernel(), libfuse(),
        request_timeout(), fusectl(), limits(), filesystem_type(directory), disk_room(directory),
        *filesystem_features(directory),
    ]  # fmt: skip
