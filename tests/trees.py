"""A tree over a real repository, used by path: what tests of the tree and of its adapters begin with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID, uuid4

from imagefs.config import Config
from imagefs.errors import AttributeMissing
from imagefs.images.opens import Handle, OpenFiles
from imagefs.images.repository import Repository
from imagefs.images.service import Images
from imagefs.tree import Attr, SetAttr, Tree
from imagefs.types import Caller, Ino

ROOT = Caller(0, 0, os.getpid())
USER = Caller(1000, 1000, os.getpid())


class Bench:
    """Paths instead of inodes: `by-name/x`, `images/<id>/data`; `ROOT` asks unless said otherwise."""

    def __init__(self, repo: Repository) -> None:
        self.repo = repo
        self.images = Images(repo)
        self.files = OpenFiles(self.images, uuid4())
        self.tree = Tree(repo, self.images, self.files, uid=7, gid=8)

    def attr(self, path: str) -> Attr:
        attr = self.tree.attrs(Ino.ROOT)
        for name in filter(None, path.split("/")):
            attr = self.tree.lookup(attr.ino, name.encode())
        return attr

    def ino(self, path: str) -> int:
        return self.attr(path).ino

    def place(self, path: str) -> tuple[int, bytes]:
        directory, _, name = path.rpartition("/")
        return self.ino(directory), name.encode()

    def id(self, path: str) -> UUID:
        return UUID(self.get(path, "user.image.id"))

    def directory(self, path: str) -> str:
        """images/<id> of the image at this path."""
        return f"images/{self.id(path)}"

    def names(self, path: str, page: int = 1000) -> list[str]:
        """All but `.` and `..`, read in pages of so many."""
        found, after = [], 0
        while entries := self.tree.children(self.ino(path), after, page):
            assert len(entries) <= page
            found += [entry.name.decode() for entry in entries]
            after = entries[-1].cookie
        assert found[:2] == [".", ".."]
        return found[2:]

    # -- changes -----------------------------------------------------------------------------------

    def create(self, path: str, flags: int = os.O_RDWR, mode: int = 0o644, caller: Caller = ROOT) -> Handle:
        _, handle = self.tree.create_open(*self.place(path), flags, mode, caller, self.files.new_fh())
        return handle

    def open(self, path: str, flags: int = os.O_RDONLY, caller: Caller = ROOT) -> Handle:
        return self.tree.open(self.ino(path), flags, caller, self.files.new_fh())

    def close(self, handle: Handle) -> None:
        self.tree.release(handle.fh)

    def write(self, path: str, content: bytes) -> None:
        """A new file, or an old one written from the beginning."""
        handle = self.create(path)
        handle.pwrite(0, memoryview(content), ROOT.pid)
        self.close(handle)

    def put(self, name: str, content: bytes = b"content") -> str:
        """by-name/<name> of a new active image."""
        path = f"by-name/{name}"
        self.write(path, content)
        self.seal(path)
        return path

    def seal(self, path: str) -> None:
        self.tree.setxattr(self.ino(path), b"user.imagefs.seal", b"1", "any", ROOT)

    def read(self, path: str) -> bytes:
        handle = self.open(path)
        try:
            return handle.pread(0, 1 << 24)
        finally:
            self.close(handle)

    def mkdir(self, image_id: UUID | None = None, caller: Caller = ROOT) -> str:
        path = f"images/{image_id or uuid4()}"
        self.tree.mkdir(*self.place(path), 0o755, caller)
        return path

    def mknod(self, path: str, mode: int = 0o644, caller: Caller = ROOT) -> Attr:
        return self.tree.create(*self.place(path), mode, caller)

    def unlink(self, path: str) -> None:
        self.tree.unlink(*self.place(path), ROOT)

    def rmdir(self, path: str) -> None:
        self.tree.rmdir(*self.place(path), ROOT)

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        self.tree.rename(*self.place(old), *self.place(new), flags, ROOT)

    def set_attr(self, path: str, change: SetAttr) -> Attr:
        return self.tree.setattr(self.ino(path), change, ROOT)

    # -- attributes --------------------------------------------------------------------------------

    def get(self, path: str, name: str) -> str:
        return self.tree.getxattr(self.ino(path), name.encode()).decode()

    def find(self, path: str, name: str) -> str | None:
        try:
            return self.get(path, name)
        except AttributeMissing:
            return None

    def set(self, path: str, name: str, value: str) -> None:
        self.tree.setxattr(self.ino(path), name.encode(), value.encode(), "any", ROOT)

    def remove(self, path: str, name: str) -> None:
        self.tree.removexattr(self.ino(path), name.encode(), ROOT)

    def list(self, path: str) -> list[str]:
        return [name.decode() for name in self.tree.listxattr(self.ino(path))]

    def status(self, path: str) -> str:
        return self.get(path, "user.image.status")


@contextmanager
def bench(path: Path, config: Config | None = None) -> Iterator[Bench]:
    """A bench on the repository in `path`, which is made when it is not there."""
    config = config or Config()
    if not path.exists():
        Repository.create(path, config)
    repo = Repository.open(path, config, "mount")
    try:
        yield Bench(repo)
    finally:
        repo.close()
