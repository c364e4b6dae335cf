"""A real mount for tests: its own repository, its own daemon, gone with the test whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import UUID, uuid4

import pytest

ROOT = Path(__file__).parents[1]
TRANSPORTS = ("kernel", "fusepy")

PORTABLE_LACKS = {
    "lseek": "libfuse 2 has no lseek request: SEEK_HOLE finds the whole file full of data",
    "fallocate": "fusepy offers no fallocate",
    "copy_file_range": "libfuse 2 has no copy_file_range request",
    "birth time": "libfuse 2 has no statx request",
    "resend": "libfuse 2 ends the connection with its process",
    "notify": "fusepy offers no notifications",
}
"""What cannot be expressed through fusepy and libfuse 2, and so is skipped there."""

WATCHDOG = 'while read -r -t "$1"; do :; done; umount -f -l "$2"'
"""Ends the connection when the test process has not stirred for so long, or is dead (end of its pipe).

A forced unmount frees every process that waits for an answer, also one in a page fault that no signal
and no thread of the test process could end.
"""


def wait_until(true: Callable[[], object], deadline: float, what: str | Callable[[], str]) -> None:
    """Returns when `true()` is; fails saying `what` was awaited when `deadline` seconds passed."""
    end = time.monotonic() + deadline
    while not true():
        if time.monotonic() > end:
            pytest.fail(f"{deadline} s passed, waiting for {what if isinstance(what, str) else what()}")
        time.sleep(0.02)


def run(*command: str | Path, timeout: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
    """The finished command with its output as text; it has not been checked for success."""
    words = [str(word) for word in command]
    options.setdefault("stdin", subprocess.DEVNULL)
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", **options
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return subprocess.CompletedProcess(words, process.returncode, out, err)


def ok(*command: str | Path, timeout: float = 60, **options: Any) -> str:
    """What the command printed on stdout; fails with all it printed if it did not succeed."""
    done = run(*command, timeout=timeout, **options)
    assert done.returncode == 0, f"{done.args} = {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def fails(*command: str | Path, says: str = "", timeout: float = 60, **options: Any) -> str:
    """What the command printed on stderr; fails if it succeeded or `says` is not in it."""
    done = run(*command, timeout=timeout, **options)
    assert done.returncode != 0, f"{done.args} succeeded\n{done.stdout}{done.stderr}"
    assert says in done.stderr, f"{done.args} says\n{done.stderr}"
    return done.stderr


def alive(pid: int) -> bool:
    """Whether a process of that id runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


class Mounted:
    """A repository and its mount under `base`; use it as a context manager.

    Files in the mount are used as anybody would. Maps of them are not (see `run_python`): a page fault
    holds the interpreter's lock, and then nothing in this process ends any more.
    """

    def __init__(
        self, base: Path, *, transport: str = "kernel", settle: float = 0.3, repo: Path | None = None,
        patience: float = 100,
    ) -> None:  # fmt: skip
        self.base = base
        self.repo = repo or base / "repo"
        self.path = base / "mnt"
        self.outside = base / "outside"
        """A plain directory for what is copied in and out."""
        self.transport = transport
        self.settle = settle
        self.patience = patience
        self.options: tuple[str, ...] = ()
        """Further options of `imagefs mount`, also for each mount after the first."""
        self.prefix: tuple[str, ...] = ()
        """What stands before each `imagefs`: a command that runs it as somebody else."""
        self.pids: set[int] = set()
        self._watchdog: subprocess.Popen[bytes] | None = None
        for directory in (self.path, self.outside):
            directory.mkdir(parents=True, exist_ok=True)

    # -- paths ---------------------------------------------------------------------------------

    @property
    def by_name(self) -> Path:
        return self.path / "by-name"

    @property
    def images(self) -> Path:
        return self.path / "images"

    def new_directory(self) -> Path:
        """A new images/<uuid>."""
        path = self.images / str(uuid4())
        path.mkdir()
        return path

    def id(self, path: Path) -> UUID:
        return UUID(self.attribute(path, "user.image.id"))

    # -- daemon --------------------------------------------------------------------------------

    def __enter__(self) -> Mounted:
        try:
            self.mount()
        except BaseException:
            self.destroy()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.destroy()

    def imagefs(self, *words: str | Path, timeout: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
        """The finished command `imagefs WORDS...` on this repository, not checked."""
        environment = os.environ | {"IMAGEFS_REPO": str(self.repo), "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
        options.setdefault("env", environment)
        command = (*self.prefix, sys.executable, "-m", "imagefs", *words)
        return run(*command, timeout=timeout, cwd=self.base, **options)

    def command(self, *words: str | Path, timeout: float = 60) -> str:
        """What `imagefs WORDS...` printed; fails if it did not succeed."""
        done = self.imagefs(*words, timeout=timeout)
        assert done.returncode == 0, f"imagefs {words} = {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def mount(self, *options: str) -> None:
        """Mounts, and from then on watches the test."""
        self._release_watchdog()
        words = ("--transport", self.transport, "--settle", str(self.settle), *self.options, *options)
        self._watchdog = subprocess.Popen(
            ["bash", "-c", WATCHDOG, "watchdog", str(int(self.patience)), str(self.path)],
            stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self.command("mount", *words, self.path)
        assert self.is_mounted(), "imagefs mount succeeded and there is no mount"
        self.pids |= self.serving()

    def umount(self) -> None:
        """Unmounts as a user does; the daemon's processes end by themselves."""
        self.command("umount", self.path)
        assert not self.is_mounted(), "imagefs umount succeeded and the mount is still there"
        wait_until(lambda: not any(map(alive, self.pids)), 15, f"the end of the processes {self.pids}")
        self.pids.clear()
        self._release_watchdog()

    def remount(self) -> None:
        self.umount()
        self.mount()

    def stir(self) -> None:
        """Gives the test `patience` seconds from now."""
        if self._watchdog is not None and self._watchdog.stdin is not None:
            self._watchdog.stdin.write(b"\n")
            self._watchdog.stdin.flush()

    def is_mounted(self) -> bool:
        wanted = str(self.path)
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return any(line.split()[4] == wanted for line in lines)

    def status(self) -> dict[str, Any]:
        found = json.loads(self.command("status", "--json"))
        assert isinstance(found, dict)
        return found

    def processes(self) -> list[int]:
        """The worker's process id, then its supervisor's."""
        status = self.status()
        worker = int(status["worker_pid"])
        parent = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1]
        return [worker, *({int(status.get("supervisor_pid") or parent)} - {0, 1, worker, os.getpid()})]

    def serving(self) -> set[int]:
        """The processes that have this mountpoint in their command line; quicker to find than to ask for."""
        words, found = b"\0--mountpoint\0" + os.fsencode(self.path) + b"\0", set()
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                if words in (directory / "cmdline").read_bytes():
                    found.add(int(directory.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
        return found

    def kill(self) -> None:
        """SIGKILL to worker and supervisor together; the mount stays behind dead."""
        pids = self.processes()
        for pid in reversed(pids):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not any(map(alive, pids)), 10, f"the death of {pids}")
        self.pids -= set(pids)

    def destroy(self) -> None:
        """Whatever state it is in: no mount and none of its processes is left."""
        try:
            if self.is_mounted():
                try:
                    self.imagefs("umount", self.path, timeout=20)
                except subprocess.TimeoutExpired:
                    pass
            while self.is_mounted():
                forced = run("umount", "-f", "-l", self.path, timeout=20)
                assert forced.returncode == 0 or not self.is_mounted(), forced.stderr
        finally:
            self._release_watchdog()
            self._end_processes()

    def _release_watchdog(self) -> None:
        if self._watchdog is not None:
            self._watchdog.kill()
            self._watchdog.wait(10)
            if self._watchdog.stdin is not None:
                self._watchdog.stdin.close()
            self._watchdog = None

    def _end_processes(self) -> None:
        end = time.monotonic() + 10
        while any(map(alive, self.pids)) and time.monotonic() < end:
            time.sleep(0.05)
        left = {pid for pid in self.pids if alive(pid)}
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert not left, f"processes {left} outlived their mount"

    # -- what tests look at --------------------------------------------------------------------

    def needs(self, ability: str) -> None:
        """Skips the test on the portable transport, which cannot express `ability`."""
        if self.transport == "fusepy":
            pytest.skip(PORTABLE_LACKS[ability])

    def attribute(self, path: Path, name: str) -> str | None:
        """An extended attribute's text; None if there is none."""
        try:
            return os.getxattr(path, name).decode()
        except OSError as error:
            if error.strerror == "No data available":
                return None
            raise

    def image_status(self, path: Path) -> str | None:
        return self.attribute(path, "user.image.status")

    def blocked(self, path: Path) -> str | None:
        """Why the draft is not sealed by itself; None if nothing hinders it."""
        return self.attribute(path, "user.imagefs.seal_blocked") or None

    def wait_status(self, path: Path, status: str = "active", deadline: float = 30) -> None:
        wait_until(
            lambda: self.image_status(path) == status,
            deadline,
            lambda: f"{path.name} to be {status}; it is {self.image_status(path)}, {self.blocked(path)}",
        )

    def stays_draft(self, path: Path) -> str:
        """Waits until the draft is known to be blocked and far longer than `settle`; why it is."""
        wait_until(lambda: self.blocked(path), 10, f"a reason why {path.name} is not sealed")
        assert self.settle < 2, "with a long settle time this would take long and prove nothing"
        time.sleep(self.settle + 1)
        assert self.image_status(path) == "saving"
        return self.blocked(path) or ""

    def put(self, name: str, content: bytes) -> Path:
        """An active image of these bytes, copied in with cp."""
        source = self.outside / f"source-{uuid4().hex}"
        source.write_bytes(content)
        target = self.by_name / name
        ok("cp", source, target)
        source.unlink()
        self.wait_status(target)
        return target

    def run_python(self, code: str, *words: str | Path, timeout: float = 60) -> str:
        """What the code printed, run in a process of its own; fails if it did not succeed."""
        return ok(sys.executable, "-c", code, *words, timeout=timeout)
