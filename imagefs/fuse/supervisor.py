"""The supervisor of a mount: holds what must outlive a worker, and starts workers.

It holds the /dev/fuse descriptor and the descriptor of the session's lock, answers INIT (so that no worker
can die within it), starts the worker, and another one when it dies: requests wait meanwhile, nobody sees an
error. It knows neither the catalog nor the tree, and never has its working directory or a file in the mount.

    python -m imagefs.fuse.supervisor --mountpoint M --source REPO --transport kernel --lock-fd N \\
        [--ready-fd N] [--allow-other] -- WORKER...

WORKER is the worker's command line. With the kernel transport these words are added to it:

    --device-fd N        /dev/fuse, INIT answered
    --lock-fd N          the session's lock, held
    --connection UUID    names this kernel connection, the same for all its workers
    --minor N --max-write N --init-flags N    what INIT agreed on (kernel.init.Negotiated)
    --incarnation N      how many workers the connection has had before; above 0 the worker has to
                         restore the open files, and begins by having requests sent again
    --ready-fd N         a pipe: it writes `ready` when it serves, or a sentence about what went wrong,
                         and closes it

and with the portable transport --lock-fd and --ready-fd alone. Standard error is the supervisor's own.

A worker ends with 0 when the mount is gone, with EXIT_DRAINED when it stopped on SIGTERM for another to take
over, with EXIT_HOPELESS when no other one could do better (the catalog cannot be opened). After anything else
another one is started, until `restarts` says that it is no use. The supervisor ends with 0 after an unmount,
else with 1.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from imagefs.errors import Busy, ImagefsError, MountFailed
from imagefs.fuse import mounting, mounts
from imagefs.fuse.kernel import init
from imagefs.fuse.kernel.init import Negotiated
from imagefs.fuse.restarts import Restarts

log = logging.getLogger(__name__)

EXIT_DRAINED = 3
EXIT_HOPELESS = 4
READY = "ready"
GRACE_S = 10.0
"""How long a worker may take to answer what it has read when the supervisor is told to end."""
STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
WATCHED = (*STOP, signal.SIGCHLD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to mount and how to serve it."""

    mountpoint: Path
    """Absolute, without symbolic links."""
    source: str
    """The repository's path, as mount(8) will show it."""
    transport: str
    """kernel or portable."""
    worker: tuple[str, ...]
    lock_fd: int
    allow_other: bool = False


class Supervisor:
    """One mount, from mount(2) to its end. Single-threaded; signals are waited for, not handled."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._device = -1
        self._agreed: Negotiated | None = None
        self._connection = 0
        self._id = uuid4()
        self._pid = 0
        self._started = 0.0
        self._ready = -1
        """Where the worker says that it serves; the first one says it to whoever started the supervisor."""
        self._restarts = Restarts()

    def run(self, ready_fd: int | None) -> int:
        """Mounts and serves until unmounted; the exit status. Raises MountFailed when it cannot begin.

        `ready_fd` goes to the first worker and is closed here when that has started: who reads the other end
        sees its end when nobody is left to write.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.chdir("/")
        if self.plan.transport == "kernel":
            self._mount()
        try:
            return self._run_workers(ready_fd)
        except OSError as error:
            self._end(f"its worker cannot be run: {error}")
            raise

    def _run_workers(self, ready_fd: int | None) -> int:
        incarnation = 0
        while True:
            if ready_fd is None:
                self._ready, ready_fd = os.pipe()
                os.set_blocking(self._ready, False)
            self._start(incarnation, ready_fd)
            os.close(ready_fd)
            ready_fd = None
            status = self._wait()
            if status is None:
                return self._stop()
            if status == 0:
                return self._end("")
            reason = self._hopeless(status)
            if reason:
                return self._end(reason)
            incarnation += 1

    # -- the mount -----------------------------------------------------------------------------

    def _mount(self) -> None:
        plan = self.plan
        self._device = mounting.mount(plan.mountpoint, plan.source, allow_other=plan.allow_other)
        try:
            self._agreed = _handshake(self._device)
        except BaseException:
            with suppress(ImagefsError):
                mounting.umount(plan.mountpoint, lazy=True)
            raise
        mount = mounts.at(plan.mountpoint)
        if mount is not None:
            self._connection = mount.connection
            mounts.raise_readahead(mount)

    def _end(self, reason: str) -> int:
        """Takes the mount away if it is still there: nobody shall wait for an answer that will not come."""
        if reason:
            log.error("%s is given up: %s", self.plan.mountpoint, reason)
            if self._connection:
                mounts.abort(self._connection)
        if self._device >= 0:
            os.close(self._device)
        mount = mounts.at(self.plan.mountpoint)
        if mount is not None and mount.fstype == mounting.FSTYPE and mount.source == self.plan.source:
            with suppress(ImagefsError):
                mounting.umount(self.plan.mountpoint, lazy=True)
        return 1 if reason else 0

    def _stop(self) -> int:
        """The supervisor was told to end: unmounts, lazily if somebody is in there, and ends the worker."""
        try:
            mounting.umount(self.plan.mountpoint)
        except Busy:
            log.warning("%s is in use; who has files open there will get errors", self.plan.mountpoint)
            with suppress(ImagefsError):
                mounting.umount(self.plan.mountpoint, lazy=True)
            os.kill(self._pid, signal.SIGTERM)
        except MountFailed as error:
            log.warning("%s", error)
            os.kill(self._pid, signal.SIGTERM)
        if not self._worker_ends(GRACE_S):
            os.kill(self._pid, signal.SIGKILL)
            self._worker_ends(GRACE_S)
        return self._end("")

    # -- the worker ----------------------------------------------------------------------------

    def _start(self, incarnation: int, ready_fd: int) -> None:
        inherited = {"--lock-fd": self.plan.lock_fd, "--ready-fd": ready_fd}
        words: list[str] = []
        if self._agreed is not None:
            inherited["--device-fd"] = self._device
            agreed = self._agreed
            words = ["--connection", str(self._id), "--incarnation", str(incarnation)]
            words += ["--minor", str(agreed.minor), "--max-write", str(agreed.max_write)]
            words += ["--init-flags", str(int(agreed.flags))]
        for option, fd in inherited.items():
            words += [option, str(fd)]
            os.set_inheritable(fd, True)
        command = [*self.plan.worker, *words]
        # A process group of its own: Ctrl-C in a terminal is for the supervisor.
        self._pid = os.posix_spawn(command[0], command, os.environ, setsigmask=(), setpgroup=0)
        self._started = time.monotonic()

    def _wait(self) -> int | None:
        """The worker's exit status, negative for a signal; None when the supervisor is told to end."""
        half_dead = 0
        while True:
            info = signal.sigtimedwait(WATCHED, 1.0)
            if info is not None and info.si_signo in STOP:
                return None
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == self._pid:
                return os.waitstatus_to_exitcode(status)
            # A thread that waits in the kernel for the answer of its own process keeps a killed worker from
            # ever being reaped. The next worker's answer lets it go, and then it is reaped here.
            half_dead = half_dead + 1 if _is_zombie(self._pid) else 0
            if half_dead > 1:
                return -signal.SIGKILL

    def _hopeless(self, status: int) -> str:
        """Why no other worker is started after one that ended so; empty if one is, after a pause."""
        served = self._served()
        if status == EXIT_DRAINED:
            return ""
        if self._agreed is None or status == EXIT_HOPELESS:
            return f"its worker {_ended(status)}"
        if not self._agreed.resend:
            return f"its worker {_ended(status)}, and this kernel (before 6.9) cannot send requests again"
        pause = self._restarts.pause(served=served, lived_s=time.monotonic() - self._started)
        if pause is None:
            return f"its worker {_ended(status)}, as those before it did"
        log.warning("worker %d of %s %s; starting another", self._pid, self.plan.mountpoint, _ended(status))
        time.sleep(pause)
        return ""

    def _served(self) -> bool:
        """Whether the worker that ended had begun to serve; not known of the first one."""
        if self._ready < 0:
            return False
        try:
            return os.read(self._ready, 4096) == READY.encode()
        except BlockingIOError:  # a process that it started has the pipe still open
            return False
        finally:
            os.close(self._ready)
            self._ready = -1

    def _worker_ends(self, within: float) -> bool:
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            if os.waitpid(self._pid, os.WNOHANG)[0]:
                return True
            signal.sigtimedwait({signal.SIGCHLD}, 0.2)
        return False


def _handshake(device: int) -> Negotiated:
    """Answers INIT, which the kernel sends by itself right after the mount."""
    while True:
        reply, agreed = init.answer(os.read(device, 1 << 17))
        os.write(device, reply)
        if agreed is not None:
            return agreed


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False


def _ended(status: int) -> str:
    return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"


def main() -> int:
    """The command line of the module's docstring; the exit status."""
    parser = argparse.ArgumentParser(prog="imagefs-supervisor")
    parser.add_argument("--mountpoint", type=Path, required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--transport", choices=("kernel", "portable"), required=True)
    parser.add_argument("--lock-fd", type=int, required=True)
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--allow-other", action="store_true")
    parser.add_argument("worker", nargs="+")
    words = parser.parse_args()
    logging.basicConfig(format="%(asctime)s imagefs supervisor: %(levelname)s: %(message)s")
    plan = Plan(
        mountpoint=words.mountpoint, source=words.source, transport=words.transport,
        worker=tuple(words.worker), lock_fd=words.lock_fd, allow_other=words.allow_other,
    )  # fmt: skip
    try:
        return Supervisor(plan).run(words.ready_fd)
    except (ImagefsError, OSError) as error:
        log.error("%s", error)
        if words.ready_fd is not None:
            with suppress(OSError):
                os.write(words.ready_fd, str(error).encode())
        return 1


if __name__ == "__main__":
    sys.exit(main())
