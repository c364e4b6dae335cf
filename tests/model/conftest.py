"""A world for tests of the protocol."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.model.world import World


@pytest.fixture
def world() -> Iterator[World]:
    # In memory: what is tested here is order, and a commit on a disk takes ten times as long.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="imagefs-", dir=memory if memory.is_dir() else None) as directory:
        world = World(Path(directory) / "repository")
        world.begin()
        yield world
        world.close()
