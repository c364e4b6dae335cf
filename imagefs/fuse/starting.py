"""Starting a supervisor as a daemon, and waiting until its mount answers."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

from imagefs.errors import MountFailed
from imagefs.fuse.supervisor import READY

if TYPE_CHECKING:
    from imagefs.fuse.supervisor import Plan

PATIENCE_S = 60.0
"""For the worker's start: it opens the catalog and recovers what a crash left."""


def start(plan: Plan, errors: IO[bytes] | None, *, foreground: bool = False) -> subprocess.Popen[bytes]:
    """Starts a supervisor in a fresh interpreter and returns it once the mount is being served.

    It goes on after this process has ended, unless `foreground` keeps it in this terminal's session. What
    goes wrong is written to `errors` by it and its workers (None: this process's standard error). Raises
    MountFailed with what the supervisor or the worker said, after it has cleaned up.
    """
    reading, writing = os.pipe()
    command = [
        sys.executable, "-m", "imagefs.fuse.supervisor",
        "--mountpoint", str(plan.mountpoint), "--source", plan.source,
        "--transport", plan.transport, "--lock-fd", str(plan.lock_fd), "--ready-fd", str(writing),
        *(["--allow-other"] if plan.allow_other else []), "--", *plan.worker,
    ]  # fmt: skip
    package = str(Path(__file__).parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, cwd="/",
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            pass_fds=(plan.lock_fd, writing), start_new_session=not foreground,
        )  # fmt: skip
    finally:
        os.close(writing)
    try:
        said = _read_all(reading, PATIENCE_S)
    finally:
        os.close(reading)
    if said == READY:
        return process
    process.send_signal(signal.SIGTERM)
    process.wait(PATIENCE_S)
    raise MountFailed(said or f"The worker of {plan.mountpoint} ended before it was ready; its log says why.")


def _read_all(fd: int, patience: float) -> str:
    """What is written to a pipe before its writers close it."""
    deadline = time.monotonic() + patience
    said = b""
    while True:
        readable, _, _ = select.select([fd], [], [], max(deadline - time.monotonic(), 0))
        if not readable:
            return f"The mount was not ready after {patience:.0f} s."
        piece = os.read(fd, 4096)
        if not piece:
            return said.decode(errors="replace").strip()
        said += piece
