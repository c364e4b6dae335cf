"""Death at every durable step of healing, rebuilding and restoring: done again, everything is right."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.crash.crashes import ROOT

CASES = [("heal", False), ("heal", True), ("rebuild", False), ("restore", False)]


def crash_at(what: str, first: int, every: int, *, power: bool) -> None:
    run("tests.crash.recovering", what, str(first), str(every), *(["power"] if power else []))


def run(module: str, *words: str) -> None:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="imagefs-", dir=memory if memory.is_dir() else None) as place:
        command = [sys.executable, "-m", module, place, *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3000, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[-2]) > 20, "there are hardly any steps"


@pytest.mark.parametrize(("what", "power"), CASES)
def test_death_at_some_steps(what: str, power: bool) -> None:
    crash_at(what, 5, 17, power=power)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("what", "power"), CASES)
def test_death_at_every_step(what: str, power: bool) -> None:
    crash_at(what, 1, 1, power=power)


def test_the_catalog_lost_at_some_steps() -> None:
    """What had been flushed comes back, and nothing that had been deleted."""
    run("tests.crash.losing", "13", "71")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_catalog_lost_at_every_step() -> None:
    run("tests.crash.losing", "1", "1")
