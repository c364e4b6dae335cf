"""A real mount of the fake tree, for the tests of the transport."""

from __future__ import annotations

import ast
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from imagefs.fuse import mounts, starting
from imagefs.fuse.supervisor import Plan
from tests.mounted import WATCHDOG, wait_until

ROOT = Path(__file__).parents[2]
PATIENCE = 60
"""Seconds after which a watchdog ends the connection, and with it whoever waits for an answer."""


class FakeMount:
    """The fake tree, mounted at `path`; the worker's state is in `state`. A context manager."""

    def __init__(self, base: Path, **options: Any) -> None:
        self.path = base / "mnt"
        self.state = base / "state"
        self.source = str(base / "repo, with a\\comma")
        self.log = base / "log"
        self.options = options
        self.worker_program = sys.executable
        self.supervisor: subprocess.Popen[bytes]
        self.connection = 0
        self._lock = -1
        for directory in (self.path, self.state):
            directory.mkdir(exist_ok=True)

    @property
    def dir(self) -> Path:
        """A writable directory in the mount."""
        return self.path / "by-name"

    @property
    def worker(self) -> int:
        return int((self.state / "pid").read_text())

    def plan(self) -> Plan:
        worker = (self.worker_program, "-m", "tests.unit.fuse_fake", str(self.state))
        return Plan(
            mountpoint=self.path, source=self.source, transport="kernel", worker=worker, lock_fd=self._lock,
            **self.options,
        )  # fmt: skip

    def __enter__(self) -> FakeMount:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path])
        self._lock = os.open(self.state / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        self._watchdog = subprocess.Popen(
            ["bash", "-c", WATCHDOG, "watchdog", str(PATIENCE), str(self.path)],
            stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            with self.log.open("ab") as log:
                self.supervisor = starting.start(self.plan(), log)
            mount = mounts.at(self.path)
            assert mount is not None
            self.connection = mount.connection
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.supervisor.poll() is None:
                self.supervisor.send_signal(signal.SIGTERM)
            self.supervisor.wait(30)
        except subprocess.TimeoutExpired:
            mounts.abort(self.connection)
            self.supervisor.kill()
            self.supervisor.wait(10)
        finally:
            while mounts.at(self.path):
                subprocess.run(["umount", "-f", "-l", self.path], check=True, timeout=20)
            self._release()
            if error is not None:
                print(self.log.read_text())

    def _release(self) -> None:
        self._watchdog.kill()
        self._watchdog.wait(10)
        assert self._watchdog.stdin is not None
        self._watchdog.stdin.close()
        os.close(self._lock)

    def ask(self, expression: str) -> Any:
        """The value of a Python expression in the worker."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(20)
            connection.connect(str(self.state / "control"))
            connection.sendall(expression.encode())
            answer = connection.recv(1 << 16).decode()
        assert not answer.startswith("failed"), answer
        return ast.literal_eval(answer)

    def die_after(self, opcode: str) -> None:
        """The worker kills itself after executing the next such request, before it answers."""
        (self.state / "die").write_text(opcode)

    def kill_worker(self) -> None:
        """SIGKILL; returns when another worker serves."""
        old = self.worker
        os.kill(old, signal.SIGKILL)
        self.wait_for_another(old)

    def wait_for_another(self, old: int) -> None:
        wait_until(lambda: self.worker != old, 20, "another worker")
