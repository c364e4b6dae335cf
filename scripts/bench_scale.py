"""Benchmark of size: how the catalog, opening, planning and memory grow with the images of a repository.

    scripts/bench scale [--images N ...] [--size GIB] [--data MIB] [--dir DIRECTORY] [--json FILE]

Each image is a sparse disk of --size GiB with --data MiB in 64 pieces of 4 KiB to 256 KiB, spread over it: half of
them new, half from earlier images. Everything is stored through the same code as by a mount. The default is 1 TiB
logical in 1,000 images, measured at 10, 100 and 1,000 of them, each time in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from imagefs.config import Config
from imagefs.images import drafts
from imagefs.images.compaction import Compactor
from imagefs.images.gc import Collector
from imagefs.images.logs import live
from imagefs.images.repository import Repository
from imagefs.images.service import Images
from imagefs.images.usage import space_of, survey

GIB, MIB, BLOCK = 1 << 30, 1 << 20, 4096
PIECES = 64
PATIENCE_S = 1200


def fill(repo: Repository, images: Images, count: int, size: int, data: int, made: int) -> None:
    """Adds images until there are `count`; the same bytes at every run."""
    for number in range(made, count):
        image = images.create(f"image-{number:05}", draft=True)
        path = repo.staging.path(image.id, 1)
        with path.open("r+b", buffering=0) as file:
            file.truncate(size)
            for piece in range(PIECES):
                # Every second piece is that of another image: the seed alone makes its bytes.
                source = (
                    number if piece % 2 == 0 or not number else random.Random(number * PIECES + piece).randrange(number)
                )
                content = random.Random(source * PIECES + piece - piece % 2).randbytes(data // PIECES // BLOCK * BLOCK)
                file.seek((piece * size // PIECES + number * BLOCK) // BLOCK * BLOCK)
                file.write(content)
        images.update_draft(image.id, drafts.released(time.time_ns(), repo.boot))
        images.seal(image.id)


def timed(action: Callable[[], object]) -> float:
    """Milliseconds that the action took."""
    begin = time.monotonic()
    action()
    return (time.monotonic() - begin) * 1e3


def anonymous() -> float:
    """MiB of anonymous memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon:"))


def measure(path: Path) -> dict[str, float]:
    """The figures of a repository, by this process, which does nothing else."""
    begun = anonymous()
    begin = time.monotonic()
    repo = Repository.open(path, Config(), "cli")
    opened_ms = (time.monotonic() - begin) * 1e3
    try:
        catalog = repo.catalog
        images = list(islice(live(catalog), 1000))
        figures = {
            "images": catalog.usage.of_all().images,
            "logical GiB": catalog.usage.of_all().logical / GIB,
            "stored MiB": catalog.packs.totals().stored_bytes / MIB,
            "catalog MiB": catalog.env.used() / MIB,
            "index MiB": (path / "index" / "data.mdb").stat().st_size / MIB,
            "open ms": opened_ms,
            "status figures ms": timed(
                lambda: (catalog.usage.by_status(), catalog.usage.of_all(), catalog.packs.totals())
            ),
            "survey of all maps ms": timed(lambda: survey(catalog)),
            "space of one image ms": timed(lambda: space_of(catalog, images[len(images) // 2])),
            "gc plan ms": timed(Collector(repo).plan),
            "rewrite plan ms": timed(Compactor(repo).plan),
            "memory MiB": anonymous(),
            "memory before MiB": begun,
        }
    finally:
        repo.close()
    unique = figures["stored MiB"]
    return figures | {"index MiB per stored TiB": figures["index MiB"] / unique * (1 << 20)}


def main() -> None:
    """The command line of the module's docstring."""
    parser = argparse.ArgumentParser(prog="scripts/bench scale", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--size", type=float, default=1.024, help="GiB of each image")
    parser.add_argument("--data", type=int, default=4, help="MiB of data in each image")
    parser.add_argument("--dir", type=Path, help="where to work (default: the system's temporary directory)")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.measure:
        print(json.dumps(measure(words.measure)))
        return
    found: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(dir=words.dir) as name:
        path = Path(name) / "repository"
        Repository.create(path, Config())
        made = 0
        for count in sorted(words.images):
            repo = Repository.open(path, Config(), "cli")
            try:
                seconds = timed(lambda repo=repo, made=made, count=count: fill(
                    repo, Images(repo), count, int(words.size * GIB) // BLOCK * BLOCK, words.data * MIB, made
                )) / 1e3  # fmt: skip
            finally:
                repo.close()
            again = [sys.executable, __file__, "--measure", str(path)]
            done = subprocess.run(again, stdout=subprocess.PIPE, text=True, check=True, timeout=PATIENCE_S)
            found.append({**json.loads(done.stdout), "ms to store an image": seconds * 1e3 / max(count - made, 1)})
            made = count
            print(f"{count} images done", file=sys.stderr, flush=True)
    for name in found[0]:
        print(f"{name:26}" + "".join(f"{figures[name]:12.1f}" for figures in found))
    if words.json:
        words.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
