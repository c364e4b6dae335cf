"""Memory of an ingest does not grow with the image."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imagefs.config import Config
from imagefs.images.repository import Repository
from tests.content import GIB, MIB

LIMIT = 400 * MIB
"""RssAnon: pages of files and of LMDB's map are the kernel's to take back."""


def anonymous_memory(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


def highest_memory(process: subprocess.Popen[bytes], deadline_s: float) -> int:
    """The most that a process had while it ran."""
    highest, end = 0, time.monotonic() + deadline_s
    while process.poll() is None:
        assert time.monotonic() < end
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            highest = max(highest, anonymous_memory(process.pid))
        time.sleep(0.02)
    return highest


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("piped", [False, True])
def test_a_sparse_image_of_20_gib(repo_dir: Path, tmp_path: Path, piped: bool) -> None:
    source = tmp_path / "sparse.raw"
    with source.open("wb") as file:
        for number in range(64):
            os.pwrite(file.fileno(), os.urandom(16 * MIB), number * 320 * MIB + 12345)
        file.truncate(20 * GIB)
    Repository.create(repo_dir, Config())
    size = 2 * GIB if piped else 20 * GIB  # through a pipe zeros are hashed like other bytes
    words = [sys.executable, "-m", "imagefs", "--repo", str(repo_dir), "create", "--file"]
    if piped:
        with subprocess.Popen(["head", "-c", str(size), str(source)], stdout=subprocess.PIPE) as producer:
            process = subprocess.Popen([*words, "-", "sparse"], stdin=producer.stdout)
            highest = highest_memory(process, 600)
    else:
        process = subprocess.Popen([*words, str(source), "sparse"])
        highest = highest_memory(process, 600)
    assert process.returncode == 0
    assert 0 < highest < LIMIT
    print(f"{highest / MIB:.0f} MiB")
