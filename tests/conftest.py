"""What every test gets: a place for a repository, and a watch over its log and its descriptors."""

from __future__ import annotations

import gc
import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from imagefs.stores import MemoryStore

os.environ.setdefault("IMAGEFS_CONFIG", str(Path(__file__).with_name("imagefs.toml")))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A script's background: what the tests start would ignore it too, and some of that is to die of it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile(
    "dev", max_examples=60, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile("ci", hypothesis.settings.get_profile("dev"), max_examples=300)
hypothesis.settings.register_profile("deep", hypothesis.settings.get_profile("dev"), max_examples=5000)
hypothesis.settings.load_profile(os.environ.get("IMAGEFS_HYPOTHESIS", "dev"))


@pytest.fixture
def repo_dir(tmp_path: Path) -> Path:
    """Where a repository may be made: a path that does not exist yet, on a real filesystem."""
    return tmp_path / "repository"


@pytest.fixture
def memory_store() -> Iterator[MemoryStore]:
    """An empty store that forgets everything at the end of the test."""
    store = MemoryStore()
    yield store
    store.close()


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1]:
            text += f": {record.exc_info[1]!r}"
        self.messages.append(f"{record.levelname} {record.name} {text}")


@pytest.fixture(autouse=True)
def expect_log(request: pytest.FixtureRequest) -> Iterator[Callable[[str], None]]:
    """Fails the test if imagefs logs a warning or worse that was not announced.

    Announced by the marker `expect_log(pattern)`, or by calling this fixture with a pattern: a regular
    expression, searched in "LEVEL logger message".
    """
    patterns = [pattern for mark in request.node.iter_markers("expect_log") for pattern in mark.args]
    handler = _Warnings()
    logger = logging.getLogger("imagefs")
    logger.addHandler(handler)
    yield patterns.append
    logger.removeHandler(handler)
    unexpected = [m for m in handler.messages if not any(re.search(p, m) for p in patterns)]
    if unexpected:
        pytest.fail("unexpected log messages:\n" + "\n".join(unexpected), pytrace=False)


def _descriptors() -> dict[int, str]:
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        if int(entry.name) <= 2:  # pytest redirects these as it goes
            continue
        try:
            found[int(entry.name)] = str(entry.readlink()).removesuffix(" (deleted)")
        except FileNotFoundError:  # the one of this listing
            continue
    return found


@pytest.fixture(autouse=True)
def _fd_leak(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails the test if it leaves descriptors open; the marker `fd_leak(reason)` allows it."""
    before = _descriptors()
    yield
    if request.node.get_closest_marker("fd_leak"):
        return
    deadline = time.monotonic() + 2  # threads that the test told to stop may still be stopping
    while leaked := {fd: to for fd, to in _descriptors().items() if before.get(fd) != to}:
        if time.monotonic() > deadline:
            pytest.fail(f"descriptors left open: {leaked}", pytrace=False)
        gc.collect()
        time.sleep(0.05)
