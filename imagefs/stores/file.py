"""Objects as files below a directory of this host: the default backend."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from typing import TYPE_CHECKING

from imagefs.errors import Exists, NotFound
from imagefs.stores.base import TEMPORARY, Space, check_name, check_prefix, is_name, views
from imagefs.stores.descriptors import DescriptorCache
from imagefs.stores.oserrors import storage_error
from imagefs.stores.temporary import new_file, unlink_stale, write

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from imagefs.stores.base import Parts

_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""What the system says where there is no object: a part of its name may be a file, or all a directory."""


class FileStore:
    """Objects below `root`, which is made when it is missing. Files 0400, directories 0700.

    Without `fsync` nothing is synced: for stores that need not survive power loss.
    """

    name = "file"

    def __init__(self, root: Path, fsync: bool = True, *, descriptors: int = 128) -> None:
        self._root = os.path.abspath(root)
        self._fsync = fsync
        self._descriptors = DescriptorCache(descriptors)
        self._durable: set[str] = set()
        """Directories that are known to survive power loss; read without a lock."""
        # Held while a directory is made and synced, so that nobody relies on one that is not durable yet.
        self._making = threading.Lock()
        try:
            self._make_root()
        except OSError as error:
            raise storage_error(error, f"Making {self._root}") from error

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        path = self._path(name)
        try:
            return self._descriptors.get(path).read(offset, length)
        except _MISSING as error:
            raise NotFound(f"The store has no {name}.") from error
        except OSError as error:
            self._descriptors.drop(path)  # a network filesystem may have forgotten this one only
            raise storage_error(error, f"Reading {name}") from error

    def put(self, name: str, parts: Parts) -> None:
        path = self._path(name)
        directory = os.path.dirname(path)
        try:
            self._make(directory)
            taken = not self._write_new(path, views(parts))
            # Also when it is taken: whoever put it may not have come to this yet, and callers that meet
            # Exists count on the object.
            self._sync(directory)
        except OSError as error:
            raise storage_error(error, f"Writing {name}") from error
        if taken:
            raise Exists(f"The store has {name} already.")

    def delete(self, name: str) -> None:
        path = self._path(name)
        directory = os.path.dirname(path)
        try:
            with contextlib.suppress(*_MISSING):
                os.unlink(path)
            self._descriptors.drop(path)
            # Also for one that was not there: its unlink may be as little durable as ours.
            self._sync(directory)
        except _MISSING:
            return
        except OSError as error:
            raise storage_error(error, f"Deleting {name}") from error

    def size(self, name: str) -> int:
        try:
            status = os.stat(self._path(name))
        except _MISSING as error:
            raise NotFound(f"The store has no {name}.") from error
        except OSError as error:
            raise storage_error(error, f"Looking at {name}") from error
        if not stat.S_ISREG(status.st_mode):
            raise NotFound(f"The store has no {name}.")
        return status.st_size

    def list(self, prefix: str) -> Iterator[str]:
        above, _, _ = check_prefix(prefix).rpartition("/")
        if above and not is_name(above):
            return iter(())
        return (name for name in self._files(above) if name.startswith(prefix) and is_name(name))

    def space(self) -> Space:
        self._descriptors.drop_deleted()
        try:
            status = os.statvfs(self._root)
        except OSError as error:
            raise storage_error(error, f"Looking at {self._root}") from error
        return Space(status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize)

    def close(self) -> None:
        self._descriptors.clear()

    def purge(self) -> int:
        """Remove what writers that died have left behind; how many files that were.

        Safe at any time: a writer holds a lock on its file as long as it lives.
        """
        try:
            stale = (name for name in self._files("") if name.endswith(TEMPORARY))
            return sum(unlink_stale(f"{self._root}/{name}") for name in stale)
        except OSError as error:
            raise storage_error(error, f"Purging {self._root}") from error

    def _path(self, name: str) -> str:
        return f"{self._root}/{check_name(name)}"

    def _write_new(self, path: str, content: Sequence[memoryview]) -> bool:
        """Whether `path` was free and is now a file with that content."""
        with new_file(path) as (number, temporary):
            write(number, content)
            if self._fsync:
                os.fdatasync(number)
            try:
                os.link(temporary, path)  # unlike a rename it never replaces
            except FileExistsError:
                return False
        return True

    def _make_root(self) -> None:
        missing = []
        above = self._root
        while not os.path.isdir(above):
            missing.append(above)
            above = os.path.dirname(above)
        for directory in reversed(missing):
            self._make_one(directory)

    def _make(self, directory: str) -> None:
        """Make sure that a directory is there and will be after power loss, and all above it up to root."""
        if directory in self._durable:
            return
        with self._making:
            self._make_below_root(directory)

    def _make_below_root(self, directory: str) -> None:
        if directory == self._root or directory in self._durable:
            return
        self._make_below_root(os.path.dirname(directory))
        self._make_one(directory)
        self._durable.add(directory)

    def _make_one(self, directory: str) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o700)
        # Also when it was there: perhaps made a moment ago by a process that has not synced it yet.
        self._sync(os.path.dirname(directory))

    def _sync(self, directory: str) -> None:
        if not self._fsync:
            return
        number = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(number)
        finally:
            os.close(number)

    def _files(self, above: str) -> Iterator[str]:
        """Every file below the directory `above`, temporary ones too, in the order of their names."""
        try:
            with os.scandir(f"{self._root}/{above}") as entries:
                found = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in entries)
        except _MISSING:
            return
        except OSError as error:
            raise storage_error(error, f"Listing {above or self._root}") from error
        for entry in found:
            name = f"{above}/{entry}" if above else entry
            if not entry.endswith("/"):
                yield name
            elif is_name(name[:-1]):
                yield from self._files(name[:-1])
