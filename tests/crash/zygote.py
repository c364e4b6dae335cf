"""A process without threads and open files that forks one child for each crash: far quicker than starting Python.

    python -m tests.crash.zygote     reads one JSON object a line, answers with one

A request is {"path", "last", "power", "seed", "after_s"}: make a repository in `path`, run the workload up to step
`last`, or kill it after that many seconds while a second process collects garbage; look at what is left. The
answer has "ended" (whether it came to that), "steps", "journal" and "error".
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imagefs.images.repository import Repository
from tests.crash import workload
from tests.crash.examine import examine
from tests.crash.steps import END, Power, Steps

PATIENCE_S = 60


def forked(body: Callable[[], None]) -> int:
    """Runs `body` in a child; its exit status, 0 when it ended well, negative for a signal."""
    return waited(started(body))


def started(body: Callable[[], None]) -> int:
    """A child that runs `body`."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(PATIENCE_S)
            body()
            status = 0
        except BaseException:  # noqa: BLE001 - the parent gets it as text
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return pid


def waited(pid: int) -> int:
    """The exit status of a child."""
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def crash(path: Path, last: int | None, *, power: bool, seed: int | None) -> dict[str, Any]:
    """One crash and the look at what it left."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    journal, counted, said = path / "journal", path / "steps", path / "said"
    repository = path / "repository"

    def work() -> None:
        _say_into(said)
        workload.make_small()
        steps = Steps(last, Power(path / "repository", path / "backup", seed) if power else None)
        note = _journal(journal, steps)
        steps.install()
        Repository.create(repository, workload.CONFIG)
        note("created")
        workload.run(repository, note)
        counted.write_text("\n".join(steps.trace))

    status = forked(work)
    answer = {"ended": status == END, "journal": journal.read_text(), "error": None}
    answer["steps"] = counted.read_text().split("\n") if counted.exists() else []
    if status not in (0, END):
        answer["error"] = f"the workload ended with {status}: {said.read_text()}"
    elif "created" in answer["journal"]:
        answer["error"] = look(repository, answer["journal"], said, power=power)
    return answer


def kill(path: Path, after_s: float) -> dict[str, Any]:
    """SIGKILL of a process at work and one that collects, at some moment; and the look at what they left."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    repository, journal, said = path / "repository", path / "journal", path / "said"
    Repository.create(repository, workload.CONFIG)

    def work() -> None:
        _say_into(said)
        workload.make_small()
        workload.run(repository, _journal(journal, Steps(None)))

    def collect() -> None:
        _say_into(said.with_name("said by gc"))
        workload.collect_for_ever(repository)

    begun = time.monotonic()
    worker, collector = started(work), started(collect)
    try:
        while (
            time.monotonic() - begun < after_s
            and os.waitid(os.P_PID, worker, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        ):
            time.sleep(0.002)
    finally:
        for pid in (worker, collector):
            os.kill(pid, signal.SIGKILL)
    status, others = waited(worker), waited(collector)
    answer = {"ended": status == -signal.SIGKILL, "journal": journal.read_text() if journal.exists() else ""}
    answer |= {"steps": [], "took_s": time.monotonic() - begun, "error": None}
    if status not in (0, -signal.SIGKILL):
        answer["error"] = f"the workload ended with {status}: {said.read_text()}"
    elif others != -signal.SIGKILL:
        answer["error"] = f"gc ended with {others}: {said.with_name('said by gc').read_text()}"
    else:
        answer["error"] = look(repository, answer["journal"], said, power=False)
    return answer


def look(repository: Path, journal: str, said: Path, *, power: bool) -> str | None:
    """What is wrong with what was left, None if nothing is."""

    def body() -> None:
        _say_into(said)
        workload.make_small()
        examine(repository, workload.models(journal), power=power)

    status = forked(body)
    return None if status == 0 else f"exit status {status}\n{said.read_text()}"


def _journal(path: Path, steps: Steps) -> Callable[[str], None]:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    write = os.write

    def note(text: str) -> None:
        steps.step(f"journal {text}")
        write(fd, f"{text}\n".encode())

    return note


def _say_into(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(fd, 2)
    os.close(fd)


def main() -> None:
    """Serves until its input ends."""
    for line in sys.stdin:
        request = json.loads(line)
        path = Path(request["path"])
        if request["after_s"] is not None:
            answer = kill(path, request["after_s"])
        else:
            answer = crash(path, request["last"], power=request["power"], seed=request["seed"])
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
