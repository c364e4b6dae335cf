"""Twenty generations of an image: what is stored, what reading the newest decodes, and what gc makes of it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagefs.config import Config
from imagefs.images import fsck
from imagefs.images.compaction import Compactor
from imagefs.images.relay import Reading, reading
from imagefs.types import BLOCK, Image
from tests.repositories import Opened

MIB = 1 << 20
GENERATIONS = 20


def changed(content: bytearray, chance: random.Random, share: float) -> int:
    """Rewrites that share of the blocks in runs of 1 to 7; returns how many."""
    blocks = len(content) // BLOCK
    touched: set[int] = set()
    while len(touched) < share * blocks:
        first = chance.randrange(blocks)
        touched |= set(range(first, min(first + chance.randint(1, 7), blocks)))
    for block in touched:
        content[block * BLOCK : (block + 1) * BLOCK] = chance.randbytes(BLOCK)
    return len(touched)


class Generations:
    """The images made so far, and the blocks that an ideal store would have for them."""

    def __init__(self, it: Opened, size: int, seed: int = 1) -> None:
        self.it = it
        self.ideal = size // BLOCK
        self.images: list[Image] = []
        self._chance = random.Random(seed)
        self.content = bytearray(b"".join(self._chance.randbytes(MIB) for _ in range(size // MIB)))
        self._seal()

    def _seal(self) -> None:
        self.images.append(self.it.sealed(f"generation {len(self.images)}", bytes(self.content)))

    def go_on(self, share: float = 0.03) -> None:
        self.ideal += changed(self.content, self._chance, share)
        self._seal()

    def stored(self) -> float:
        """Blocks in packs for each block of the ideal store."""
        return sum(row.blocks for row in self.it.repo.catalog.packs.scan()) / self.ideal

    def reading(self, number: int = -1) -> Reading:
        catalog = self.it.repo.catalog
        rows = catalog.maps.rows(self.images[number].map_id)
        return reading(rows, lambda no: catalog.packs.get(no).blocks)


@pytest.fixture
def it(repo_dir: Path) -> Iterator[Opened]:
    opened = Opened(repo_dir, Config(sampling=16, retention_seconds=0))
    yield opened
    opened.close()


def twenty(it: Opened, size: int) -> tuple[float, float]:
    generations = Generations(it, size)
    for _ in range(GENERATIONS - 1):
        generations.go_on()
    stored, amplification = generations.stored(), generations.reading().amplification
    assert it.read(generations.images[-1].id) == bytes(generations.content)
    return stored, amplification


@pytest.mark.timeout(120)
def test_twenty_generations_stay_small_and_readable(it: Opened) -> None:
    stored, amplification = twenty(it, 48 * MIB)
    assert stored <= 1.1
    assert amplification <= 1.6


@pytest.mark.timeout(120)
def test_gc_gives_back_what_old_generations_leave(it: Opened) -> None:
    generations = Generations(it, 16 * MIB)
    for _ in range(9):
        generations.go_on(0.06)
    for image in generations.images[:-2]:
        it.images.delete(image.id)
    it.collect()
    before = generations.reading().amplification
    compactor = Compactor(it.repo)
    compactor.execute(compactor.plan())
    it.collect()
    left = sum(row.blocks for row in it.repo.catalog.packs.scan())
    needed = 16 * 256 + 16 * 256 * 0.06
    assert left <= 1.15 * needed
    assert generations.reading().amplification < before
    assert it.read(generations.images[-1].id) == bytes(generations.content)
    assert not fsck.check(it.repo)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_generations_of_half_a_gigabyte(it: Opened) -> None:
    stored, amplification = twenty(it, 512 * MIB)
    assert stored <= 1.1
    assert amplification <= 1.6
