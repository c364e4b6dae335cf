"""Benchmark of ingest: bytes to an `active` image, per stage and end to end, beside zstd and restic on the same file.

    scripts/bench ingest [--file FILE] [--size MIB] [--rounds N] [--dir DIRECTORY] [--json FILE]

Without --file the file is of what a system disk holds (a tar of /usr and more), no 4 KiB block of it twice. All is
measured with the file in the page cache, in interleaved rounds, each figure being the median. Durability: "zstd" is
`zstd -3 -T2` to a file and fsync of it; "restic" is `restic backup` (its default compression, no cache) into a new
repository, "active" is packs and manifest synced, the catalog's commit on the disk. A machine that is busy shows in
the CPU seconds that a round took, which are given as well.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import sync_file
from blake3 import blake3

from imagefs.blocks import frames
from imagefs.blocks.dedup import Matcher
from imagefs.blocks.digest import Digests
from imagefs.config import Config
from imagefs.images.opens import OpenFiles
from imagefs.images.repository import Repository
from imagefs.images.service import Images
from imagefs.images.upload import Upload
from imagefs.stores import FileStore

MIB = 1 << 20
BLOCK = 4096
PATIENCE_S = 1800


class Run(NamedTuple):
    """One run of something: wall seconds, CPU seconds of it and its children, anonymous memory at its highest."""

    wall: float
    cpu: float
    memory: int = 0


def cpu_of_children() -> float:
    """CPU seconds of the processes that were waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def ran(*words: str | Path, then: Callable[[], object] = lambda: None, **environment: str) -> Run:
    """Runs a command, and `then` behind it as a part of it."""
    begin, cpu = time.monotonic(), cpu_of_children()
    subprocess.run(
        [str(word) for word in words],
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=PATIENCE_S,
        env={**os.environ, **environment},
    )
    then()
    return Run(time.monotonic() - begin, cpu_of_children() - cpu)


# -- the file ----------------------------------------------------------------------------------


def unique_file(path: Path, size: int) -> None:
    """`size` bytes of what a disk holds, without a block that repeats: what dedup finds would be no ingest."""
    places = [place for place in ("/usr", "/opt", "/var", "/home") if Path(place).is_dir()]
    tar = subprocess.Popen(["tar", "cf", "-", *places], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert tar.stdout is not None
    seen: set[bytes] = {hashlib.md5(bytes(BLOCK), usedforsecurity=False).digest()}
    with path.open("wb") as file:
        while file.tell() < size and (block := tar.stdout.read(BLOCK)):
            digest = hashlib.md5(block, usedforsecurity=False).digest()
            if digest not in seen and len(block) == BLOCK:
                seen.add(digest)
                file.write(block)
    tar.kill()
    tar.wait()


# -- stages ------------------------------------------------------------------------------------


def timed(action: Callable[[], object]) -> float:
    """Seconds that the action took."""
    begin = time.monotonic()
    action()
    return time.monotonic() - begin


def side_by_side(action: Callable[[memoryview], object], data: memoryview) -> None:
    """The action on both halves of the data in two threads."""
    half = len(data) // 2
    threads = [threading.Thread(target=action, args=(part,)) for part in (data[:half], data[half:])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def stages(source: Path, base: Path, rounds: int) -> Iterator[tuple[str, float]]:
    """(stage, MB/s alone), over the first 128 MiB of the file."""
    data = memoryview(source.read_bytes()[: 128 * MIB])
    fd = os.open(source, os.O_RDONLY)
    buffer = memoryview(bytearray(MIB))
    digests, store = Digests(), FileStore(base / "stage")
    windows = [data[at : at + MIB] for at in range(0, len(data), MIB)]
    hashed = [digests.blocks(window) for window in windows]
    stored = b"".join(bytes(frame.stored) for frame in frames.encode_all(data))
    numbers = iter(range(1 << 30))

    def put() -> None:
        for at in range(0, len(stored), 3 * MIB):
            store.put(f"packs/{next(numbers)}", stored[at : at + 3 * MIB])

    def match() -> None:
        matcher = Matcher(lambda wanted: [None] * len(wanted), lambda pack: None, 16)
        for number, window in enumerate(hashed):
            matcher.match(window)
            matcher.learn(number // 8, window, number % 8 * 256)

    actions: dict[str, Callable[[], object]] = {
        "read": lambda: [os.preadv(fd, [buffer], at) for at in range(0, len(data), MIB)],
        "BLAKE3 of each MiB": lambda: [blake3(window).digest() for window in windows],
        "BLAKE3 of each 4 KiB block": lambda: [digests.blocks(window) for window in windows],
        "look-up of new blocks": match,
        "zstd and digest of frames, 1 thread": lambda: frames.encode_all(data),
        "zstd and digest of frames, 2 threads": lambda: side_by_side(frames.encode_all, data),
        "put with fsync, of plain bytes": put,
        "md5": lambda: hashlib.md5(data, usedforsecurity=False),
        "sha512": lambda: hashlib.sha512(data),
    }
    for stage, action in actions.items():
        yield stage, len(data) / statistics.median(timed(action) for _ in range(rounds)) / 1e6
    os.close(fd)
    store.close()


# -- end to end --------------------------------------------------------------------------------


def upload(repository: Path, source: Path, name: str, hashed: bool) -> None:
    """In a process of its own: seconds to `active` and anonymous memory, on stdout."""
    repo = Repository.open(repository, Config(), "cli")
    images = Images(repo)
    files = OpenFiles(images, repo.session.id)
    fd = os.open(source, os.O_RDONLY)
    memory = 0
    usage, begin = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    with Upload(images, files, images.create(name), hashed=hashed) as stream:
        while stream.read_from(fd, stream.size, MIB):
            if stream.size % (64 * MIB) == 0:
                memory = max(memory, anonymous_memory())
        stream.seal()
    wall, now = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_SELF)
    cpu = now.ru_utime + now.ru_stime - usage.ru_utime - usage.ru_stime
    repo.close()
    print(json.dumps([wall, cpu, memory]))


def anonymous_memory() -> int:
    """Bytes of this process's anonymous memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def uploaded(repository: Path, source: Path, name: str, *, hashed: bool = False) -> Run:
    """An upload of the file into a repository."""
    words = [sys.executable, __file__, "--upload", repository, "--file", source, "--name", name]
    if hashed:
        words.append("--hashed")
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=PATIENCE_S)
    return Run(*json.loads(done.stdout))


def end_to_end(source: Path, base: Path) -> Iterator[tuple[str, Run]]:
    """(task, what it took): one round, every repository new."""
    repository, restic, squeezed = base / "repo", base / "restic", base / "out.zst"
    for path in (repository, restic):
        shutil.rmtree(path, ignore_errors=True)
    squeezed.unlink(missing_ok=True)
    os.sync()
    yield "zstd", ran("zstd", "-q", "-3", "-T2", source, "-o", squeezed, then=lambda: sync_file(squeezed))
    os.sync()
    Repository.create(repository, Config())
    yield "imagefs, new", uploaded(repository, source, "new")
    yield "imagefs, known", uploaded(repository, source, "known")
    os.sync()
    shutil.rmtree(repository)
    Repository.create(repository, Config())
    yield "imagefs, new, md5 and sha512 beside", uploaded(repository, source, "hashed", hashed=True)
    os.sync()
    if shutil.which("restic"):
        words = ("restic", "-q", "--no-cache", "-r", restic)
        ran(*words, "init", RESTIC_PASSWORD="x")
        yield "restic, new", ran(*words, "backup", source, RESTIC_PASSWORD="x")
        yield "restic, known", ran(*words, "backup", "--force", source, RESTIC_PASSWORD="x")


RATIOS = (
    ("imagefs, new", "zstd"),
    ("imagefs, new", "restic, new"),
    ("imagefs, known", "imagefs, new"),
    ("imagefs, known", "zstd"),
    ("imagefs, known", "restic, known"),
    ("imagefs, new, md5 and sha512 beside", "zstd"),
)
"""Of speeds: above 1 the first is the faster one."""


def report(rounds: list[dict[str, Run]], size: int) -> None:
    """Prints medians, and ratios of what was measured in the same round."""
    for task in rounds[0]:
        runs = [one[task] for one in rounds if task in one]
        wall, cpu = (statistics.median(figures) for figures in zip(*(run[:2] for run in runs), strict=True))
        memory = max(run.memory for run in runs) / MIB
        anonymous = f"  {memory:5.0f} MiB anonymous" if memory else ""
        print(f"{task:38} {wall:7.2f} s {size / wall / 1e6:7.0f} MB/s  CPU {cpu:6.2f} s{anonymous}")
    for first, second in RATIOS:
        pairs = [one for one in rounds if first in one and second in one]
        if pairs:
            ratios = [one[second].wall / one[first].wall for one in pairs]
            print(f"{first} / {second}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def main() -> None:
    """The command line of the module's docstring."""
    parser = argparse.ArgumentParser(prog="scripts/bench ingest", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--file", type=Path, help="what is stored (default: made of what this system has)")
    parser.add_argument("--size", type=int, default=1024, help="MiB of it that are made")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="where to work (default: the system's temporary directory)")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    for word in ("--upload", "--name"):
        parser.add_argument(word, help=argparse.SUPPRESS)
    parser.add_argument("--hashed", action="store_true", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.upload:
        upload(Path(words.upload), words.file, words.name, words.hashed)
        return
    with tempfile.TemporaryDirectory(dir=words.dir) as name:
        base = Path(name)
        source = words.file or base / "disk.raw"
        if not words.file:
            unique_file(source, words.size * MIB)
        size = source.stat().st_size
        alone = dict(stages(source, base, words.rounds))
        for stage, speed in alone.items():
            print(f"{stage:38} {speed:7.0f} MB/s", flush=True)
        rounds = [dict(end_to_end(source, base)) for _ in range(words.rounds)]
        report(rounds, size)
        print(f"load average: {os.getloadavg()[0]:.1f}")
    if words.json:
        words.json.write_text(json.dumps({"stages": alone, "rounds": rounds}, indent=2) + "\n")


if __name__ == "__main__":
    main()
