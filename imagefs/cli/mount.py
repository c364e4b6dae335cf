"""`mount` and `umount`."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any
from uuid import UUID, uuid4

import click

from imagefs.blocks.superblock import OBJECT_NAME
from imagefs.cli import exits, notify
from imagefs.cli.daemon import worker_words
from imagefs.cli.opening import create_repository
from imagefs.cli.output import say
from imagefs.cli.running import Running, running
from imagefs.cli.settings import Settings, pass_settings, repo_option
from imagefs.cli.users import is_running, sentence, users_of
from imagefs.config import Config, SealMode, Transport
from imagefs.errors import Busy, MountFailed, NotFound, TimedOut
from imagefs.fuse import mounting, mounts, starting
from imagefs.fuse.supervisor import Plan
from imagefs.images.session import is_dead, take_lock

ANSWERS_WITHIN_S = 30.0
GONE_WITHIN_S = 60.0
ABORTED_WITHIN_S = 3.0
POLL_S = 0.05
MOUNT_FAILED = exits.code_of(MountFailed())
LOG_AT_MOST = 10 << 20
"""Bytes after which a mount's log begins anew, the old one kept beside it."""


@click.command("mount")
@click.argument("mountpoint", type=Path)
@click.option("--transport", type=click.Choice([str(t) for t in Transport]), help="How to speak to the kernel.")
@click.option("--allow-other/--no-allow-other", default=None, help="Whether other users may use the mount.")
@click.option("--uid", type=int, help="Owner of new files and of the mount's directories.")
@click.option("--gid", type=int, help="Their group.")
@click.option(
    "--settle",
    "settle_seconds",
    type=float,
    metavar="SECONDS",
    help="Seal a draft so long after its last close.",
)
@click.option(
    "--seal",
    type=click.Choice([str(m) for m in SealMode]),
    help="When drafts are sealed: settled, or in close(2).",
)
@click.option("--project", metavar="ID", help="Owner of new images.")
@click.option("--foreground", is_flag=True, help="Stay here until unmounted, and log to the terminal.")
@click.option("--log", "log_file", type=click.Path(dir_okay=False, path_type=Path), help="Where the daemon logs.")
@repo_option
@pass_settings
def mount_command(
    settings: Settings, /, mountpoint: Path, foreground: bool, log_file: Path | None, **options: Any
) -> None:
    """Mount the repository at MOUNTPOINT, a directory. Makes the repository when there is none."""
    given = {name: value for name, value in options.items() if value is not None}
    config = settings.config.changed(given, "The command line")
    path = settings.path
    _abort_orphans(path)
    for dead in mounts.clear_dead(path):
        say(f"Cleared away the dead mount {dead.mountpoint}.")
    place = checked_mountpoint(mountpoint, path)
    if not (path / OBJECT_NAME).exists():
        create_repository(path, config)
        say(f"Created the repository {path}.")
    log_path = None if foreground else _log_path(path, place, log_file)
    session = uuid4()
    lock_fd = take_lock(path / "sessions", session)
    try:
        plan = Plan(
            mountpoint=place,
            source=str(path),
            transport="kernel" if transport_of(config) is Transport.KERNEL else "portable",
            worker=worker_words(settings, session, place, transport_of(config), given, log_path),
            lock_fd=lock_fd,
            allow_other=config.allow_other,
        )
        process = _start(plan, log_path, foreground=foreground)
    finally:
        os.close(lock_fd)
    _wait_until_it_answers(place)
    _welcome(place, path)
    if foreground:
        sys.exit(_stay(process))


def _abort_orphans(repository: Path) -> None:
    """Ends connections whose supervisor and worker were killed, but not whole: a thread that was in the kernel with
    a notification waits there for the answer of its own process, and keeps everybody waiting who uses the mount.
    """
    for mount in mounts.of_repository(repository):
        if mounts.state(mount) is mounts.State.HUNG:
            served = [one for one in _daemons(mount) if one.mountpoint == mount.mountpoint]
            if not any(_runs(daemon) for daemon in served):
                mounts.abort(mount.connection)


def transport_of(config: Config) -> Transport:
    """The transport that `auto` stands for on this system."""
    if config.transport is not Transport.AUTO:
        return config.transport
    return Transport.KERNEL if sys.platform == "linux" else Transport.FUSEPY


def checked_mountpoint(mountpoint: Path, repository: Path) -> Path:
    """The directory, absolute and without links. MountFailed, with what to do, when it cannot be used."""
    absolute = Path(os.path.abspath(mountpoint.expanduser()))  # noqa: PTH100 (touches nothing, which may hang)
    for place in (absolute, Path(os.path.realpath(absolute))):
        there = mounts.at(place)
        if there is not None and there.source == str(repository):
            raise MountFailed(f"{place} has this repository mounted already.")
        if there is not None and there.fstype.startswith("fuse"):
            raise MountFailed(f"{place} has {there.source} mounted ({there.fstype}): unmount it, or choose another.")
    if not place.exists():
        raise MountFailed(f"{place} does not exist: mkdir -p {place}")
    if not place.is_dir():
        raise MountFailed(f"{place} is not a directory.")
    real = Path(os.path.realpath(repository))
    if real.is_relative_to(place) or place.is_relative_to(real):
        raise MountFailed(f"The repository {repository} and the mountpoint {place} cannot lie in one another.")
    return place


def _log_path(repository: Path, place: Path, chosen: Path | None) -> Path:
    name = "-".join(place.parts[1:]) or "root"
    path = chosen.absolute() if chosen else repository / "log" / f"mount-{name[-100:]}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > LOG_AT_MOST:
        path.rename(path.with_name(f"{path.name}.1"))
    return path


def _start(plan: Plan, log_path: Path | None, *, foreground: bool) -> subprocess.Popen[bytes]:
    if log_path is None:
        return starting.start(plan, None, foreground=foreground)
    log: IO[bytes]
    with log_path.open("ab") as log:
        try:
            return starting.start(plan, log)
        except MountFailed as error:
            raise MountFailed(f"{error} (`imagefs doctor` may know why; log: {log_path})") from error


def _wait_until_it_answers(place: Path) -> None:
    deadline = time.monotonic() + ANSWERS_WITHIN_S
    while time.monotonic() < deadline:
        mount = mounts.at(place)
        if mount is not None and mounts.state(mount) is mounts.State.ALIVE:
            return
        time.sleep(POLL_S)
    raise MountFailed(
        f"{place} did not answer within {ANSWERS_WITHIN_S:.0f} s; `imagefs umount {place}` takes it away."
    )


def _welcome(place: Path, repository: Path) -> None:
    script = Path(sys.argv[0])
    command = "imagefs" if shutil.which("imagefs") or script.name != "imagefs" else script
    say(f"{repository} is mounted at {place}. Try:")
    say(f"    cp disk.qcow2 {place}/by-name/          # an image of that name")
    say(f"    ls -l {place}/by-name")
    say(f"    getfattr -d {place}/by-name/disk.qcow2")
    say(f"    {command} --repo {repository} status")
    say(f"    {command} umount {place}")


def _stay(process: subprocess.Popen[bytes]) -> int:
    """Waits for the supervisor, which Ctrl-C reaches by itself; hands SIGTERM on. Its exit status."""
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    notify.ready()
    status = process.wait()
    return MOUNT_FAILED if status else 0


@click.command("umount")
@click.argument("mountpoint", required=False, type=Path)
@click.option("--lazy", is_flag=True, help="Take it away now; who has files open goes on until closing them.")
@click.option("--force", is_flag=True, help="End a mount that no longer answers; who waits for it gets an error.")
@repo_option
@pass_settings
def umount_command(settings: Settings, /, mountpoint: Path | None, lazy: bool, force: bool) -> None:
    """Unmount MOUNTPOINT, or every mount of the repository, and wait until its daemon has ended.

    Drafts are not waited for: they are sealed at the next start.
    """
    for mount in _wanted(settings, mountpoint):
        daemon = next((one for one in _daemons(mount) if one.mountpoint == mount.mountpoint), None)
        if force:
            mounts.abort(mount.connection)
        _umount(mount, lazy=lazy or force)
        if daemon is None or lazy:
            continue
        if force and not _is_gone_within(mount, daemon, ABORTED_WITHIN_S):
            _kill_worker(daemon)
        if not _is_gone_within(mount, daemon, GONE_WITHIN_S):
            pid = daemon.worker_pid
            raise TimedOut(f"{mount.mountpoint} is unmounted; its daemon (process {pid}) has not ended yet.")


def _wanted(settings: Settings, mountpoint: Path | None) -> list[mounts.Mount]:
    if mountpoint is None:
        found = [mount for mount in mounts.listed() if _is_imagefs(mount) and mount.source == str(settings.path)]
        if not found:
            raise NotFound(f"{settings.path} is not mounted.")
        return found
    absolute = os.path.abspath(mountpoint.expanduser())  # noqa: PTH100 (touches nothing, which may hang)
    mount = mounts.at(absolute) or mounts.at(os.path.realpath(absolute))
    if mount is None:
        raise NotFound(f"Nothing is mounted at {mountpoint}.")
    if not _is_imagefs(mount):
        raise NotFound(f"{mountpoint} is a mount of {mount.source} ({mount.fstype}), not of imagefs.")
    return [mount]


def _is_imagefs(mount: mounts.Mount) -> bool:
    return mount.fstype == mounting.FSTYPE


def _daemons(mount: mounts.Mount) -> list[Running]:
    return running(Path(mount.source))


def _umount(mount: mounts.Mount, *, lazy: bool) -> None:
    try:
        mounting.umount(mount.mountpoint, lazy=lazy)
    except Busy as error:
        names = sentence(users_of(mount.mountpoint))
        raise Busy(
            f"{mount.mountpoint} is in use by {names or 'another mount or process'}; --lazy unmounts it."
        ) from error


def _is_gone_within(mount: mounts.Mount, daemon: Running, seconds: float) -> bool:
    """Whether the mount is gone and its daemon has ended before the time is over."""
    sessions = Path(mount.source) / "sessions"
    deadline = time.monotonic() + seconds
    while mounts.at(mount.mountpoint) == mount or not is_dead(sessions, UUID(daemon.session)) or _runs(daemon):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _runs(daemon: Running) -> bool:
    return any(is_running(pid) for pid in (daemon.worker_pid, daemon.supervisor_pid) if pid)


def _kill_worker(daemon: Running) -> None:
    """Ends a worker that hangs or is stopped; its supervisor puts things in order then."""
    with contextlib.suppress(OSError):  # it has ended by itself
        # The id may be another process's by now: a worker has its session on its command line.
        if daemon.session.encode() in Path(f"/proc/{daemon.worker_pid}/cmdline").read_bytes():
            os.kill(daemon.worker_pid, signal.SIGKILL)
