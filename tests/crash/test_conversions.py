"""Death at every durable step of a conversion: the images keep their bytes, and nothing is left behind."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def enumerated(mode: str, first: int, every: int, *seed: int) -> dict[str, Any]:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="imagefs-", dir=memory if memory.is_dir() else None) as directory:
        words = [sys.executable, "-m", "tests.crash.conversion", directory, mode, *map(str, (first, every, *seed))]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=3500)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    assert not answer["failed"], "\n\n".join(f"step {step}, {what}" for step, what in answer["failed"].items())
    return answer


@pytest.mark.timeout(120)
def test_a_kill_at_some_steps() -> None:
    steps = enumerated("kill", 5, 29)["steps"]
    commits = [number for number, step in enumerate(steps) if "Conversions.commit" in step]
    assert len(commits) == 1
    before = "\n".join(steps[: commits[0]])
    # All of it is durable before the transaction that makes it the image's.
    assert "imagefs.json" in before
    assert "store/packs" in before
    assert "store/maps" in before


@pytest.mark.timeout(120)
def test_a_power_cut_at_some_steps() -> None:
    enumerated("power", 17, 31)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_kill_at_every_step() -> None:
    enumerated("kill", 1, 1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_power_cut_at_every_step() -> None:
    enumerated("power", 1, 1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_power_cut_that_leaves_a_part() -> None:
    enumerated("power", 1, 1, 7)
