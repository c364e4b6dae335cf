"""Benchmark of a mount against the native filesystem under it: interleaved rounds, medians, ratios.

    scripts/bench [--file DISK] [--rounds N] [--images N ...] [--dir DIRECTORY] [--json FILE]

Without --file the copied file is 1 GiB of what a system disk holds (a tar of /usr). Durability: "cp + sync" is
on the disk; a copy into the mount that has returned is as safe as after any cp (the host's page cache);
"active" is durable packs and manifest. Cold: page caches dropped (needs root).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from uuid import uuid4

SETTLE_S = 2.0
GIB = 1 << 30
PATIENCE_S = 600


class Mount:
    """A repository of its own and its mount below `base`."""

    def __init__(self, base: Path) -> None:
        self.repo, self.path = base / "repo", base / "mnt"
        self.path.mkdir()

    def imagefs(self, *words: str | Path) -> str:
        command = [sys.executable, "-m", "imagefs", "--repo", str(self.repo), *map(str, words)]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE_S).stdout

    def __enter__(self) -> Mount:
        self.imagefs("mount", "--settle", str(SETTLE_S), self.path)
        return self

    def __exit__(self, *_: object) -> None:
        self.imagefs("umount", self.path)

    def again(self) -> None:
        """Unmounts and mounts: every cache of the daemon and of the kernel for the mount is gone."""
        self.__exit__()
        self.__enter__()

    def await_active(self, path: Path, since: float) -> float:
        """Seconds from `since` until the image is active, without the settle time."""
        while time.monotonic() - since < PATIENCE_S:
            if os.getxattr(path, "user.image.status") == b"active":
                return time.monotonic() - since - SETTLE_S
            time.sleep(0.01)
        raise TimeoutError(f"{path} is not active")

    def drop_plain_files(self) -> None:
        """Leaves sealed images to their packs."""
        for path in (self.repo / "cache").iterdir():
            path.unlink()

    def anonymous_memory(self) -> int:
        """Bytes of anonymous memory of the worker."""
        pid = json.loads(self.imagefs("status", "--json"))["worker_pid"]
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def timed(action: Callable[[], object]) -> float:
    """Seconds that the action took."""
    begin = time.monotonic()
    action()
    return time.monotonic() - begin


def command(*words: str | Path) -> Callable[[], object]:
    """An action that runs a command and fails when it does."""
    argv = [str(word) for word in words]
    return lambda: subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, timeout=PATIENCE_S)


def drop_caches() -> None:
    """Empties the page cache, so that the next read comes from the disk."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def sync_file(path: Path) -> None:
    """fsync of one file."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_all(path: Path) -> None:
    """Reads a file to its end in pieces of 1 MiB, and drops what it read."""
    buffer = bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def default_file(directory: Path) -> Path:
    """1 GiB of what a system disk holds."""
    path = directory / "disk.raw"
    with path.open("wb") as file:
        tar = subprocess.Popen(["tar", "cf", "-", "/usr"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert tar.stdout is not None
        shutil.copyfileobj(_limited(tar.stdout, GIB), file, 1 << 20)
        tar.kill()
        tar.wait()
        file.truncate(GIB)
    return path


class _limited:  # noqa: N801 (a function in spirit: read() is all there is)
    def __init__(self, source: object, limit: int) -> None:
        self._source, self._left = source, limit

    def read(self, size: int) -> bytes:
        piece: bytes = self._source.read(min(size, self._left))  # type: ignore[attr-defined]
        self._left -= len(piece)
        return piece


def copies(mount: Mount, base: Path, source: Path, rounds: int) -> Iterator[tuple[str, list[float], list[float]]]:
    """(task, seconds native, seconds in the mount) of copying in and reading."""
    figures: dict[str, tuple[list[float], list[float]]] = {}

    def note(task: str, native: float, mounted: float) -> None:
        figures.setdefault(task, ([], []))[0].append(native)
        figures[task][1].append(mounted)

    read_all(source)
    for number in range(rounds):
        native, mounted = base / "native", mount.path / "by-name" / f"disk-{number}"
        native.unlink(missing_ok=True)
        os.sync()
        on_disk = timed(command("cp", source, native)) + timed(partial(sync_file, native))
        begin = time.monotonic()
        returned = timed(command("cp", source, mounted))
        note("cp in: returned (native: cp + fsync)", on_disk, returned)
        note("cp in: active (native: cp + fsync)", on_disk, mount.await_active(mounted, begin))
        for task in ("read cold", "read warm", "read cold, from packs alone", "read warm, from packs alone"):
            if task == "read cold, from packs alone":
                mount.drop_plain_files()
            if "cold" in task:
                mount.again()
                drop_caches()
            note(task, timed(partial(read_all, native)), timed(partial(read_all, mounted)))
        mount.imagefs("delete", mounted.name)
        # Nothing of it may be known to the next round.
        mount.imagefs("gc", "--now")
    for task, (natives, mounteds) in figures.items():
        yield task, natives, mounteds


def fdatasync_s(base: Path) -> float:
    """Median seconds of this disk's fdatasync after a write of 4 KiB."""
    fd = os.open(base / "sync", os.O_CREAT | os.O_WRONLY)
    try:
        times = []
        for number in range(200):
            os.pwrite(fd, os.urandom(4096), number * 4096)
            times.append(timed(lambda: os.fdatasync(fd)))
        return statistics.median(times)
    finally:
        os.close(fd)


def many_images(mount: Mount, base: Path, counts: list[int]) -> Iterator[tuple[str, float, str]]:
    """(task, figure, unit) of catalogs that grow to each of `counts` images."""
    made = 0
    by_name, images = mount.path / "by-name", mount.path / "images"
    for count in sorted(counts):
        new = [images / str(uuid4()) for _ in range(count - made)]
        made = count
        yield f"mkdir of {len(new)} images", timed(lambda new=new: [path.mkdir() for path in new]), "s"
        for path in new:
            os.setxattr(path, "user.image.name", f"image-{path.name[:18]}".encode())
        mount.again()
        yield f"ls -l of {count}, just mounted", timed(command("ls", "-l", by_name)), "s"
        yield f"ls -l of {count}, warm", timed(command("ls", "-l", by_name)), "s"
        yield f"anonymous memory of the worker with {count}", mount.anonymous_memory() / (1 << 20), "MiB"
    yield "fdatasync of this disk", fdatasync_s(base) * 1e3, "ms"


def main() -> None:
    """The command line of the module's docstring."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--file", type=Path, help="what is copied in (default: 1 GiB of /usr)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, nargs="*", default=[10_000], help="sizes of the catalog to list")
    parser.add_argument("--dir", type=Path, help="where to work (default: the system's temporary directory)")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    words = parser.parse_args()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(dir=words.dir) as name:
        base = Path(name)
        with Mount(base) as mount:
            source = words.file or default_file(base)
            megabytes = source.stat().st_size / 1e6
            for task, native, mounted in copies(mount, base, source, words.rounds) if words.rounds else ():
                ratio = statistics.median(m / n for n, m in zip(native, mounted, strict=True))
                n, m = statistics.median(native), statistics.median(mounted)
                print(f"{task:40} native {n:7.3f} s ({megabytes / n:6.0f} MB/s)  mount {m:7.3f} s "
                      f"({megabytes / m:6.0f} MB/s)  mount/native {ratio:5.2f}", flush=True)  # fmt: skip
                rows.append({"task": task, "native_s": native, "mount_s": mounted, "ratio": ratio})
            for task, figure, unit in many_images(mount, base, words.images):
                print(f"{task:40} {figure:10.3f} {unit}", flush=True)
                rows.append({"task": task, "figure": figure, "unit": unit})
    if words.json:
        words.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
