"""The verbs that every node of the tree has, refused unless a kind of node says otherwise.

A node is made for one request from its inode number and holds no state; the catalog has it all. Kinds:
the directories and files of every mount (fixed), by-name/ (by_name), images/ and images/<id>/ (by_id),
and the files of an image (files).
"""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from imagefs.catalog import Attrs
from imagefs.errors import (
    Exists,
    IsADirectory,
    NotADirectory,
    NotEmpty,
    NotFound,
    NotSupported,
    Refused,
)
from imagefs.images.content import shared_bytes
from imagefs.images.opens import Handle, OpenFiles
from imagefs.images.repository import Repository
from imagefs.images.service import Images
from imagefs.tree.attr import Attr, Entry, SetAttr, of_data, of_directory
from imagefs.types import Caller, Image, Ino

DOT, DOT_DOT = 1, 2
"""Cookies of the first two entries of every directory; all others are inode numbers above them."""

Change = Callable[[Image], Image]
SHARED_KEPT = 1000
"""Drafts over maps whose shared bytes are kept counted."""


class Context:
    """What the nodes of one mount work with. `fields` are set on new images (owner, visibility, ...)."""

    def __init__(
        self, repo: Repository, images: Images, open_files: OpenFiles, uid: int, gid: int,
        fields: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self.repo = repo
        self.catalog = repo.catalog
        self.images = images
        self.open_files = open_files
        self.uid = uid
        self.gid = gid
        self.fields = fields
        self._lock = threading.Lock()
        """Guards `_changed` and `_shared`; nothing is taken under it but the catalog."""
        self._shared: dict[tuple[UUID, int, int], int] = {}
        self._changed = (-1, 0)
        """The newest generation of the catalog that was looked at, and when that was."""

    def directory(self, ino: Ino, links: int = 2) -> Attr:
        """Attributes of a directory that every mount has. Lists of images change with the catalog."""
        born = self.repo.superblock.created_ns
        time_ns = self._last_change() if ino in (Ino.IMAGES, Ino.BY_NAME) else born
        return of_directory(ino, links, self.uid, self.gid, time_ns, born)

    def owner(self, caller: Caller) -> tuple[int, int]:
        """(uid, gid) of what the caller makes: their own, unless the mount gives all files to somebody."""
        uid, gid = self.repo.config.uid, self.repo.config.gid
        return caller.uid if uid is None else uid, caller.gid if gid is None else gid

    def staging_stat(self, attrs: Attrs) -> os.stat_result | None:
        """The status of the file that holds an image's draft; None when there is no draft."""
        return self.repo.staging.stat(attrs.id, attrs.draft_gen) if attrs.has_draft else None

    def data_attr(self, attrs: Attrs) -> Attr:
        """Attributes of an image's data."""
        attr = of_data(attrs, self.staging_stat(attrs))
        if attrs.based:
            attr.blocks += self._shared_bytes(attrs) // 512
        return attr

    def _shared_bytes(self, attrs: Attrs) -> int:
        """Bytes that a draft takes from maps, counted anew when that has changed."""
        key = attrs.id, attrs.draft_gen, self.repo.opens.bases.changes(attrs.id, attrs.draft_gen)
        with self._lock:
            if key in self._shared:
                return self._shared[key]
        shared = shared_bytes(self.repo, attrs)
        with self._lock:
            if len(self._shared) == SHARED_KEPT:
                self._shared.clear()
            self._shared[key] = shared
        return shared

    def _last_change(self) -> int:
        generation = self.catalog.generation()
        with self._lock:
            if generation > self._changed[0]:
                self._changed = generation, time.time_ns()
            return self._changed[1]


class Node(ABC):
    """An inode."""

    def __init__(self, context: Context) -> None:
        self.context = context

    @abstractmethod
    def attr(self) -> Attr:
        """Its attributes now."""

    @abstractmethod
    def open(self, flags: int, caller: Caller, fh: int) -> Handle:
        """It as an open file with the number `fh`."""

    def set_attr(self, change: SetAttr, caller: Caller) -> None:
        """Changes its attributes. Here: those of what every mount has, which nobody changes but for times,
        which `rsync -a` and `tar` set on the directory they fill, and which are not kept.
        """
        own = self.attr()
        for wanted, value in ((change.mode, own.mode & 0o7777), (change.uid, own.uid), (change.gid, own.gid)):
            if wanted not in (None, value):
                raise Refused("Mode and owner of this are given by the mount.")

    def record(self) -> Image | None:
        """The record whose extended attributes it shows; None if it has no such attributes."""
        return None

    def update(self, change: Change) -> None:
        """Replaces that record by `change(record)`, in one transaction."""
        raise NotSupported("Only images have extended attributes.")


class Directory(Node):
    """An inode with names in it."""

    def open(self, flags: int, caller: Caller, fh: int) -> Handle:
        """Refused: a directory is listed by `children`."""
        raise IsADirectory("A directory cannot be opened as a file.")

    def parent_attr(self) -> Attr:
        """Attributes of the directory that it is in."""
        return self.context.directory(Ino.ROOT, 5)

    def children(self, after: int, limit: int) -> list[Entry]:
        """Up to `limit` entries behind the cookie `after`, `.` and `..` first, in the order of cookies."""
        dots = []
        if after < DOT:
            own = self.attr()
            dots.append(Entry(DOT, b".", own.ino, own))
        if after < DOT_DOT:
            above = self.parent_attr()
            dots.append(Entry(DOT_DOT, b"..", above.ino, above))
        rest = limit - len(dots)
        return dots[:limit] if rest <= 0 else dots + self.entries(max(after, DOT_DOT), rest)

    @abstractmethod
    def entries(self, after: int, limit: int) -> list[Entry]:
        """The same without `.` and `..`."""

    @abstractmethod
    def find(self, name: bytes) -> Attr | None:
        """What `name` stands for; None if there is nothing of this name."""

    def lookup(self, name: bytes) -> Attr:
        """The same; NotFound."""
        attr = self.find(name)
        if attr is None:
            raise NotFound(f"There is no {name!r} in this directory.")
        return attr

    def require_absent(self, name: bytes) -> None:
        """Returns if there is nothing of this name; Exists."""
        if self.find(name) is not None:
            raise Exists(f"{name!r} exists.")

    def make_directory(self, name: bytes, mode: int, caller: Caller) -> None:
        """Makes a directory."""
        self.require_absent(name)
        raise Refused("The only directories are images: they are made in images/, under an id.")

    def make_file(self, name: bytes, mode: int, caller: Caller) -> None:
        """Makes an empty file. Exists."""
        self.require_absent(name)
        raise Refused("Files are made in by-name/ and in images/<id>/ only.")

    def remove_file(self, name: bytes) -> None:
        """Takes a file's name away."""
        if self.lookup(name).is_dir:
            raise IsADirectory(f"{name!r} is a directory.")
        raise Refused(f"{name!r} is part of every mount.")

    def remove_directory(self, name: bytes) -> None:
        """Takes a directory away."""
        if not self.lookup(name).is_dir:
            raise NotADirectory(f"{name!r} is a file.")
        raise NotEmpty(f"{name!r} is part of every mount.")

    def rename(self, old: bytes, new: bytes, *, overwrite: bool) -> None:
        """Gives `old` the name `new` in this directory; Exists if that is taken, without `overwrite`."""
        self.lookup(old)
        raise Refused(f"{old!r} keeps its name.")
