"""Death at every durable step of a workload that does a bit of everything, by a kill and by a power cut."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.crashes import Zygote


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    # What a kill leaves does not depend on the disk, and a power cut is played: in memory it is ten times as quick.
    memory = Path("/dev/shm")
    place = memory if memory.is_dir() else None
    with (
        tempfile.TemporaryDirectory(prefix="imagefs-", dir=place) as directory,
        Zygote(Path(directory)) as zygote,
    ):
        yield zygote


def steps_of(zygote: Zygote) -> list[str]:
    """The steps of the whole workload; that it ends well is a test of its own."""
    answer = zygote.crash(None)
    assert answer["error"] is None, answer["error"]
    assert not answer["ended"]
    return answer["steps"]


def crash_at(zygote: Zygote, points: range, *, power: bool, seeds: bool = False) -> None:
    """Ends before each of these steps; all failures together, since one cause shows at many."""
    steps = steps_of(zygote)
    failed: list[str] = []
    for point in points:
        if point > len(steps):
            break
        answer = zygote.crash(point, power=power, seed=point if seeds else None)
        if answer["error"] is not None:
            last = answer["journal"].strip().rpartition("\n")[2]
            failed.append(f"step {point} ({steps[point - 1]}) in {last}: {answer['error']}")
            if len(failed) == 5:
                break
    assert not failed, "\n\n".join(failed)


EVERYTHING = range(1, 1 << 30)


@pytest.mark.timeout(120)
def test_a_kill_at_some_steps(zygote: Zygote) -> None:
    crash_at(zygote, range(7, 1 << 30, 19), power=False)


@pytest.mark.timeout(120)
def test_a_power_cut_at_some_steps(zygote: Zygote) -> None:
    crash_at(zygote, range(11, 1 << 30, 23), power=True)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_kill_at_every_step(zygote: Zygote) -> None:
    crash_at(zygote, EVERYTHING, power=False)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_power_cut_at_every_step(zygote: Zygote) -> None:
    crash_at(zygote, EVERYTHING, power=True)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_power_cut_that_leaves_a_part(zygote: Zygote) -> None:
    crash_at(zygote, EVERYTHING, power=True, seeds=True)
