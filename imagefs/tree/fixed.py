"""What every mount has: the root, .imagefs/ and the files in it."""

from __future__ import annotations

import os
import time

from imagefs.images.opens import Handle
from imagefs.tree.attr import Attr, Entry, of_control
from imagefs.tree.control import RENDERERS
from imagefs.tree.nodes import Context, Directory, Node
from imagefs.tree.rendered import refused, rendered
from imagefs.types import Caller, Ino

NAMES = {Ino.IMAGES: b"images", Ino.BY_NAME: b"by-name", Ino.CONTROL: b".imagefs"}
FILES = dict(enumerate(RENDERERS, Ino.FIRST_CONTROL_FILE))
"""Inode -> name of the files in .imagefs/."""


class Root(Directory):
    """The directory that is mounted."""

    def attr(self) -> Attr:
        """Owned by who mounted, or the kernel would keep him out of his own mount."""
        return self.context.directory(Ino.ROOT, 2 + len(NAMES))

    def parent_attr(self) -> Attr:
        """Its own: what is above is not ours."""
        return self.attr()

    def entries(self, after: int, limit: int) -> list[Entry]:
        """The directories, by inode."""
        found = [self._entry(ino) for ino in NAMES if ino + 1 > after]
        return found[:limit]

    def find(self, name: bytes) -> Attr | None:
        """One of the directories."""
        return next((self.context.directory(ino) for ino, known in NAMES.items() if known == name), None)

    def _entry(self, ino: Ino) -> Entry:
        # One more than the inode: images/ has number 2, which is the cookie of "..".
        return Entry(ino + 1, NAMES[ino], ino, self.context.directory(ino))


class Control(Directory):
    """The directory .imagefs/."""

    def attr(self) -> Attr:
        """Owned by the mount's owner."""
        return self.context.directory(Ino.CONTROL)

    def entries(self, after: int, limit: int) -> list[Entry]:
        """The files, by inode."""
        found = [Entry(ino, name, ino, self._attr(ino)) for ino, name in FILES.items() if ino > after]
        return found[:limit]

    def find(self, name: bytes) -> Attr | None:
        """One of the files."""
        return next((self._attr(ino) for ino, known in FILES.items() if known == name), None)

    def _attr(self, ino: int) -> Attr:
        return ControlFile(self.context, ino).attr()


class ControlFile(Node):
    """A file of .imagefs/, rendered anew at each open."""

    def __init__(self, context: Context, ino: int) -> None:
        super().__init__(context)
        self.ino = ino

    def attr(self) -> Attr:
        """With the size of the text now: it may be another one at open, so nothing is cached."""
        context = self.context
        born = context.repo.superblock.created_ns
        return of_control(self.ino, context.uid, context.gid, len(self._render()), time.time_ns(), born)

    def open(self, flags: int, caller: Caller, fh: int) -> Handle:
        """The text of this moment."""
        if flags & (os.O_ACCMODE | os.O_TRUNC) != os.O_RDONLY:
            raise refused()
        return rendered(self.context.open_files, self.ino, fh, self._render())

    def _render(self) -> bytes:
        return RENDERERS[FILES[self.ino]](self.context.repo).encode("utf-8", "replace")
