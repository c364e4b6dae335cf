"""When a mount is given up."""

from __future__ import annotations

from imagefs.fuse.restarts import LONG_S, LONGEST_PAUSE_S, MOST_FAILED, MOST_SHORT, Restarts


def test_workers_that_never_serve() -> None:
    restarts = Restarts()
    pauses = [restarts.pause(served=False, lived_s=0.3) for _ in range(MOST_FAILED)]
    assert pauses[0] == 0
    assert None not in pauses[:-1]
    assert pauses[-1] is None
    assert sorted(pauses[:-1], key=lambda pause: pause or 0) == pauses[:-1]


def test_workers_that_serve_a_moment() -> None:
    restarts = Restarts()
    pauses = [restarts.pause(served=True, lived_s=0.3) for _ in range(MOST_SHORT)]
    assert pauses[:10] == [0.0] * 10
    assert max(pause or 0 for pause in pauses) == LONGEST_PAUSE_S
    assert pauses.index(None) == MOST_SHORT - 1


def test_a_worker_that_lasts_clears_the_slate() -> None:
    restarts = Restarts()
    for _ in range(10):
        for _ in range(MOST_FAILED - 1):
            assert restarts.pause(served=False, lived_s=0.1) is not None
        assert restarts.pause(served=True, lived_s=LONG_S) == 0
