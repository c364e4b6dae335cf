"""SIGKILL at random moments of two processes that use one repository on a real disk."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.crash.crashes import Zygote


def kill_at_random(path: Path, times: int) -> None:
    chance = random.Random()
    seed = chance.randrange(1 << 32)
    chance.seed(seed)
    ended = 0
    with Zygote(path) as zygote:
        whole = zygote.kill(60)
        assert whole["error"] is None, whole["error"]
        assert not whole["ended"]
        for number in range(times):
            answer = zygote.kill(chance.uniform(0, whole["took_s"]))
            ended += answer["ended"]
            last = answer["journal"].strip().rpartition("\n")[2]
            assert answer["error"] is None, f"seed {seed}, kill {number}, in {last!r}: {answer['error']}"
    assert ended >= times // 2, "most kills came too late"


@pytest.mark.timeout(120)
def test_some_kills(tmp_path: Path) -> None:
    kill_at_random(tmp_path, 10)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_kills(tmp_path: Path) -> None:
    kill_at_random(tmp_path, int(os.environ.get("IMAGEFS_KILLS", "300")))
