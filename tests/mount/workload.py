"""A user who never rests: works in a mount and writes down what it was told had been done.

`python workload.py BY_NAME JOURNAL SEED` appends JSON lines to the journal, outside the mount: what it is
about to do, and then what it has done. It ends when the mount does not answer any more.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

Content = dict[str, str]
"""SHA-256 of each image by its name."""


class Journal:
    """Lines of {"do": ...} and {"done": ...}; what counts is what a reader finds after a kill."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a")

    def write(self, **record: object) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()


def folded(journal: Path) -> tuple[Content, dict[str, str], list[str]]:
    """Contents and attributes by name that must be there, and the names the last step may have touched."""
    contents: Content = {}
    attributes: dict[str, str] = {}
    touched: list[str] = []
    for line in journal.read_text().splitlines():
        record = json.loads(line)
        if "do" in record:
            touched = record["names"]
            continue
        touched = []
        name = record["names"][0]
        match record["done"]:
            case "write" | "draft":
                contents[name] = record["digest"]
                attributes.pop(name, None)
            case "copy":
                contents[record["names"][1]] = contents[name]
                attributes.pop(record["names"][1], None)
            case "rename":
                contents[record["names"][1]] = contents.pop(name)
                attributes.pop(record["names"][1], None)
                if name in attributes:
                    attributes[record["names"][1]] = attributes.pop(name)
            case "attribute":
                attributes[name] = record["value"]
            case "remove":
                del contents[name]
                attributes.pop(name, None)
    return contents, attributes, touched


class User:
    """Does one random thing after another."""

    def __init__(self, by_name: Path, journal: Path, seed: int) -> None:
        self.by_name, self.random = by_name, random.Random(seed)
        self.journal = Journal(journal)
        self.names = set(folded(journal)[0])

    def step(self) -> None:
        kinds = ["write", "write", "draft"]
        if self.names:
            kinds += ["copy", "rename", "attribute", "attribute", "remove", "replace"]
        if len(self.names) > 12:
            kinds = ["remove"]
        getattr(self, self.random.choice(kinds))()

    def some(self) -> str:
        return self.random.choice(sorted(self.names))

    def fresh(self) -> str:
        return f"image-{self.random.getrandbits(40):010x}"

    def _write(self, kind: str, name: str, *, sync: bool) -> None:
        content = self.random.randbytes(self.random.choice([1, 5_000, 70_000, 400_000, 3_000_000]))
        self.journal.write(do=kind, names=[name])
        with (self.by_name / name).open("wb", buffering=0) as file:
            if sync:
                os.setxattr(file.fileno(), "user.imagefs.draft", b"1")
            file.write(content)
            if sync:
                os.fsync(file.fileno())
        self.journal.write(done=kind, names=[name], digest=hashlib.sha256(content).hexdigest())
        self.names.add(name)

    def write(self) -> None:
        self._write("write", self.fresh(), sync=False)

    def draft(self) -> None:
        self._write("draft", self.fresh(), sync=True)

    def copy(self) -> None:
        names = [self.some(), self.fresh()]
        self.journal.write(do="copy", names=names[1:])
        way = self.random.choice(["auto", "never"])
        paths = [self.by_name / name for name in names]
        subprocess.run(["cp", f"--sparse={way}", *paths], check=True, stderr=subprocess.DEVNULL)
        self.journal.write(done="copy", names=names)
        self.names.add(names[1])

    def _rename(self, old: str, new: str) -> None:
        self.journal.write(do="rename", names=[old, new])
        (self.by_name / old).rename(self.by_name / new)
        self.journal.write(done="rename", names=[old, new])
        self.names.discard(old)
        self.names.add(new)

    def rename(self) -> None:
        self._rename(self.some(), self.fresh())

    def replace(self) -> None:
        old, new = self.some(), self.some()
        if old != new:
            self._rename(old, new)

    def attribute(self) -> None:
        name, value = self.some(), str(self.random.getrandbits(30))
        self.journal.write(do="attribute", names=[name])
        os.setxattr(self.by_name / name, "user.property.counter", value.encode())
        self.journal.write(done="attribute", names=[name], value=value)

    def remove(self) -> None:
        name = self.some()
        self.journal.write(do="remove", names=[name])
        (self.by_name / name).unlink()
        self.journal.write(done="remove", names=[name])
        self.names.discard(name)


def main() -> None:
    user = User(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    try:
        while True:
            user.step()
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"stopped: {error}")


if __name__ == "__main__":
    main()
