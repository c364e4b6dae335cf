"""File contents that tests store: incompressible, compressible, sparse; the same in every run."""

from __future__ import annotations

import os
import random
from pathlib import Path

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def noise(size: int, seed: int = 0) -> bytes:
    """Incompressible bytes that repeat nothing."""
    return random.Random(seed).randbytes(size)


def write_sparse(path: Path, size: int = 24 * MIB, seed: int = 0) -> list[tuple[int, int]]:
    """A file of `size` bytes with a few islands of data; their (offset, length), multiples of 64 KiB.

    It ends in a hole. The islands are far enough apart to stay islands on every filesystem.
    """
    islands = [(0, 192 * KIB), (5 * MIB, 64 * KIB), (11 * MIB, 1 * MIB), (17 * MIB, 128 * KIB)]
    with path.open("wb") as file:
        for number, (offset, length) in enumerate(islands):
            os.pwrite(file.fileno(), noise(length, seed + number), offset)
        file.truncate(size)
    return islands


def data_ranges(path: Path) -> list[tuple[int, int]]:
    """The (offset, length) of what SEEK_DATA and SEEK_HOLE call data."""
    found = []
    with path.open("rb", buffering=0) as file:
        size, offset = os.fstat(file.fileno()).st_size, 0
        while offset < size:
            try:
                start = os.lseek(file.fileno(), offset, os.SEEK_DATA)
            except OSError as error:
                assert error.strerror == "No such device or address"
                break
            offset = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found.append((start, offset - start))
    return found
