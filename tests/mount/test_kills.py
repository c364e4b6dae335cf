"""SIGKILL of worker and supervisor together at random moments: what was acknowledged is there afterwards."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.mount import workload
from tests.mounted import TRANSPORTS, Mounted

KILLS = int(os.environ.get("IMAGEFS_KILLS", "100"))


def check(mounted: Mounted, journal: Path) -> int:
    """How many images were found whole; fails if one is missing, different or half-done."""
    contents, attributes, touched = workload.folded(journal)
    found = set(os.listdir(mounted.by_name))
    assert set(contents) - set(touched) <= found
    assert found <= set(contents) | set(touched), "something that nobody made"
    for name in set(contents) - set(touched):
        path = mounted.by_name / name
        assert hashlib.sha256(path.read_bytes()).hexdigest() == contents[name], name
        assert mounted.attribute(path, "user.property.counter") == attributes.get(name), name
        assert mounted.image_status(path) in ("saving", "active")
    for name in set(touched) & found:  # half-done is not an option, whichever half it would be
        path = mounted.by_name / name
        if mounted.image_status(path) == "active":
            path.read_bytes()
        path.unlink()
    # What the last step touched is gone now, whatever it was.
    with journal.open("a") as file:
        for name in set(touched) & set(contents):
            file.write(workload.json.dumps({"done": "remove", "names": [name]}) + "\n")
    return len(set(contents) - set(touched))


def live_through_kills(mounted: Mounted, kills: int, seed: int) -> int:
    """Mounts, works, kills, checks, so many times; how many images were found whole in all."""
    journal = mounted.base / "journal"
    journal.touch()
    chance, seen = random.Random(seed), 0
    for number in range(kills):
        mounted.stir()
        user = subprocess.Popen(
            [sys.executable, workload.__file__, mounted.by_name, journal, str(seed + number)],
            stderr=subprocess.DEVNULL,
        )
        gc = None
        try:
            time.sleep(chance.uniform(0.05, 2))
            if chance.random() < 0.3:
                gc = subprocess.Popen(
                    [sys.executable, "-m", "imagefs", "--repo", mounted.repo, "gc"],
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )  # fmt: skip
                time.sleep(chance.uniform(0, 0.5))
            mounted.kill()
        finally:
            for process in filter(None, (user, gc)):
                process.kill()
        mounted.mount()
        # Only now: a dead worker's thread may still hold the connection, and with it whoever waits for an
        # answer, until the next mount has cleared it away.
        for process in filter(None, (user, gc)):
            process.wait(30)
        seen += check(mounted, journal)
        if number % 10 == 9:
            mounted.command("fsck")
    mounted.command("gc")
    mounted.command("fsck")
    return seen


@pytest.mark.slow
@pytest.mark.timeout(60 + 30 * KILLS)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_kills_at_random_moments(tmp_path: Path, transport: str) -> None:
    """S5: a crash at any instant loses no sealed image, no fsynced draft, no committed metadata."""
    with Mounted(tmp_path, transport=transport, settle=0.1) as mounted:
        assert live_through_kills(mounted, KILLS if transport == "kernel" else KILLS // 4, seed=1) > KILLS // 4


def test_a_few_kills(tmp_path: Path) -> None:
    with Mounted(tmp_path, settle=0.1) as mounted:
        live_through_kills(mounted, 3, seed=500)
        mounted.umount()
