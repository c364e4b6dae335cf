"""Makes a small repository of the present format, for tests of every later imagefs.

    python tests/repositories/make.py tests/repositories/v1.tar.xz

Run once for each version of the format, by the imagefs that introduces it; the archive is never made anew.
What is in it, and must still be there when a later imagefs opens it, is in CONTENT and `manifest.json`.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

MIB = 1 << 20
LEFT_OUT = ("index", "volatile", "log", "run")
"""Made anew by whoever opens the repository."""


def words(seed: str, length: int) -> bytes:
    """Text that compresses, the same at every run."""
    lines = (hashlib.sha256(f"{seed} {n}".encode()).hexdigest()[:24] * 6 for n in range(length // 145 + 1))
    return "\n".join(lines).encode()[:length]


def sparse(*parts: tuple[int, bytes], size: int) -> bytes:
    """A file of `size` bytes with these parts in it and zeros between."""
    content = bytearray(size)
    for offset, part in parts:
        content[offset : offset + len(part)] = part
    return bytes(content)


CONTENT = {
    "first": sparse((0, words("a", 300_000)), (2 * MIB, words("b", 50_000)), size=3 * MIB + 17),
    "shares": sparse((0, words("a", 300_000)), (400 * 4096, words("c", 70_000)), size=2 * MIB),
    "noise": hashlib.shake_128(b"noise").digest(20_000),
    "empty": b"",
    "deleted": words("d", 40_000),
}
"""Name -> bytes; `far` is made apart: its data lie behind 1 GiB and behind 256 MiB quarters."""
FAR = ((0, words("e", 5000)), (300 * MIB, words("a", 100_000)), (1100 * MIB, words("f", 9000)))
FAR_SIZE = 1200 * MIB


def make(base: Path) -> dict[str, object]:
    """A repository `base`/repository, and what must be found in it."""
    repo = base / "repository"

    def imagefs(*more: object) -> str:
        command = [sys.executable, "-m", "imagefs", "--repo", str(repo), *map(str, more)]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout.strip()

    imagefs("init")
    ids: dict[str, str] = {}
    for name, content in CONTENT.items():
        (base / name).write_bytes(content)
        ids[name] = imagefs("create", "--file", base / name, name)
    with (base / "far").open("wb") as file:
        for offset, part in FAR:
            file.seek(offset)
            file.write(part)
        file.truncate(FAR_SIZE)
    ids["far"] = imagefs("create", "--file", base / "far", "--property", "os_distro=debian", "--tag", "a,b", "far")
    imagefs("set", "shares", "--name", "renamed \u20ac")
    ids["renamed \u20ac"] = ids.pop("shares")
    imagefs("delete", "deleted")
    del ids["deleted"]
    imagefs("gc")
    # Last: the imagefs of version 1 put its log on the store when it sealed and cloned, or in the background.
    ids["copy"] = imagefs("clone", "first", "copy")
    imagefs("fsck")
    return {"images": ids}


def main(target: Path) -> None:
    """Writes the archive."""
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        found = json.dumps(make(base), indent=2).encode()
        with tarfile.open(target, "w:xz", preset=9) as archive:
            archive.add(
                base / "repository", "repository", filter=lambda info: None if _left_out(info.name) else _plain(info)
            )
            info = tarfile.TarInfo("manifest.json")
            info.size = len(found)
            archive.addfile(info, io.BytesIO(found))
    print(f"{target}: {target.stat().st_size} bytes")


def _left_out(name: str) -> bool:
    return name.removeprefix("repository/").partition("/")[0] in LEFT_OUT or name.endswith((".lock", "lock.mdb"))


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


if __name__ == "__main__":
    main(Path(sys.argv[1]))
