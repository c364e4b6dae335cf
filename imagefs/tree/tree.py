"""The tree: how the catalog looks as files, here and only here. Adapters decode, call, encode.

    /                     images/<id>/data            the bytes
      images/             images/<id>/metadata.json   the record, rendered
      by-name/<entry>     the same file as data
      .imagefs/           status, health, tasks

Every method may be called by any thread, takes no lock for reading and keeps nothing but what is open.
Inode numbers are the catalog's, so they are the same in every process and for ever. Methods raise the
errors of imagefs.errors; Stale for an inode that is gone, after which the kernel walks the path again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

from imagefs.errors import (
    AttributeMissing,
    CrossDirectory,
    Exists,
    InvalidValue,
    IsADirectory,
    NameTooLong,
    NotADirectory,
    Sealed,
    Stale,
)
from imagefs.images.opens import Handle, OpenFiles
from imagefs.images.repository import Repository
from imagefs.images.service import Images
from imagefs.tree import figures, xattrs
from imagefs.tree.attr import LONGEST_NAME, Attr, Entry, SetAttr, Statfs
from imagefs.tree.by_id import ImageDirectory, ImagesDirectory
from imagefs.tree.by_name import ByName
from imagefs.tree.files import Data, Metadata, SiblingFile, Unlinked
from imagefs.tree.fixed import FILES, Control, ControlFile, Root
from imagefs.tree.nodes import Context, Directory, Node
from imagefs.types import BLOCK, Caller, Ino, Kind

RENAME_NOREPLACE = 1
"""Flag of renameat2(2): fail with Exists when the new name is taken. No other flag is known here."""

FIXED: Mapping[int, type[Directory]] = {
    Ino.ROOT: Root, Ino.IMAGES: ImagesDirectory, Ino.BY_NAME: ByName, Ino.CONTROL: Control,
}  # fmt: skip


class Tree:
    """The tree of one mount. `uid` and `gid` own its fixed directories, new images have the `defaults`."""

    def __init__(
        self, repo: Repository, images: Images, open_files: OpenFiles, *, uid: int = 0, gid: int = 0,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self._context = Context(repo, images, open_files, uid, gid, defaults or {})
        self._catalog = repo.catalog
        self._images = images
        self._open_files = open_files
        self._rendered: dict[int, Handle] = {}
        self._lock = threading.Lock()
        """Guards `_rendered` alone."""

    # -- looking -----------------------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> Attr:
        """What `name` stands for in a directory. NotFound, NotADirectory, NameTooLong."""
        return self._directory(parent, name).lookup(name)

    def attrs(self, ino: int, fh: int | None = None) -> Attr:
        """An inode's attributes now; also of a deleted one that is open here (with no links).

        The open file that asks makes no difference: fstat(2) does not name it either.
        """
        return self._node(ino).attr()

    def children(self, ino: int, after: int = 0, limit: int = 1000) -> list[Entry]:
        """Up to `limit` entries of a directory behind the cookie `after`; none at the end.

        Cookies never change: an entry that is there all the time is seen exactly once, whatever comes and
        goes. The cost is that of the entries returned.
        """
        return self._directory(ino).children(after, limit)

    def statfs(self) -> Statfs:
        """Room on the disk that holds drafts and packs, in blocks of 4 KiB."""
        disk = os.statvfs(self._context.repo.path)
        unit = disk.f_frsize / BLOCK
        count = self._catalog.images.count()
        return Statfs(
            blocks=int(disk.f_blocks * unit),
            bfree=int(disk.f_bfree * unit),
            bavail=int(disk.f_bavail * unit),
            files=count + disk.f_favail,
            ffree=disk.f_favail,
        )

    # -- names -------------------------------------------------------------------------------------

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Attr:
        """A new directory, which is a new image: in images/, under an id. Exists, InvalidValue, Refused."""
        directory = self._directory(parent, name)
        directory.make_directory(name, mode, caller)
        return directory.lookup(name)

    def create(self, parent: int, name: bytes, mode: int, caller: Caller) -> Attr:
        """A new empty file: in by-name/ an image, in images/<id>/ its data or a file beside it."""
        directory = self._directory(parent, name)
        directory.make_file(name, mode, caller)
        return directory.lookup(name)

    def create_open(
        self, parent: int, name: bytes, flags: int, mode: int, caller: Caller, fh: int
    ) -> tuple[Attr, Handle]:
        """The same, opened under the number `fh`. One that is there is opened, unless O_EXCL is in `flags`.

        Asked again with an `fh` that is open it answers the same: a CREATE that came twice is done once.
        """
        known = self._open_files.get(fh)
        if known is not None:
            return self.attrs(known.ino), known
        fresh = True
        try:
            ino = self.create(parent, name, mode, caller).ino
        except Exists:
            if flags & os.O_EXCL:
                raise
            ino, fresh = self.lookup(parent, name).ino, False
        handle = self.open(ino, flags, caller, fh, fresh=fresh)
        return self.attrs(ino), handle

    def unlink(self, parent: int, name: bytes, caller: Caller) -> None:
        """Takes a file's name away (S7). NotFound, IsADirectory, Refused, Protected."""
        self._directory(parent, name).remove_file(name)

    def rmdir(self, parent: int, name: bytes, caller: Caller) -> None:
        """Deletes an image that has no data. NotFound, NotADirectory, NotEmpty, Protected."""
        self._directory(parent, name).remove_directory(name)

    def rename(self, old_parent: int, old: bytes, new_parent: int, new: bytes, flags: int, caller: Caller) -> None:
        """Another name in the same directory (S6). `flags` is RENAME_NOREPLACE or 0.

        NotFound, Exists, Refused, Protected, Sealed, InvalidValue; CrossDirectory between directories,
        so that `mv` copies.
        """
        if flags & ~RENAME_NOREPLACE:
            raise InvalidValue(f"Rename flags {flags:#x} are not known here: names cannot be exchanged.")
        source, target = self._directory(old_parent, old), self._directory(new_parent, new)
        moved, replaced = source.lookup(old), target.find(new)
        if replaced is not None:
            if flags & RENAME_NOREPLACE:
                raise Exists(f"{new!r} exists.")
            if replaced.ino == moved.ino:
                return  # two names of one file: rename(2) does nothing
            if replaced.is_dir != moved.is_dir:
                raise (IsADirectory if replaced.is_dir else NotADirectory)(f"{new!r} is in the way.")
        if old_parent != new_parent:
            if replaced is not None and replaced.keep and new_parent != Ino.BY_NAME:
                # CrossDirectory would make `mv` remove the target before it copies.
                raise Sealed(f"{new!r} is sealed data: nothing takes its place.")
            raise CrossDirectory("A file cannot move between these directories; it can be copied.")
        source.rename(old, new, overwrite=not flags & RENAME_NOREPLACE)

    # -- open files --------------------------------------------------------------------------------

    def open(self, ino: int, flags: int, caller: Caller, fh: int, *, fresh: bool = False) -> Handle:
        """The file as an open one, numbered `fh` until `release`; begins a draft where S1 says so.

        `fresh`: the caller has just made it. Never inside a transaction: the open files' locks come first.
        Stale, IsADirectory, Sealed, Deactivated, Busy, Refused.
        """
        if fresh:
            return self._open_files.open(ino, flags, caller, fh, fresh=True)
        handle = self._node(ino).open(flags, caller, fh)
        if self._open_files.get(fh) is None:
            with self._lock:
                self._rendered[fh] = handle
        return handle

    def handle(self, ino: int, fh: int) -> Handle:
        """The open file of this inode with this number. Stale when there is none.

        A rendered file that an earlier worker had open is rendered again: the durable open table has only
        data. Who cannot be followed by another worker may give 0 for the inode.
        """
        known = self._open_files.get(fh) or self._rendered.get(fh)
        if known is not None:
            return known
        if not isinstance(self._node(ino), Metadata | ControlFile):
            raise Stale(f"Inode {ino} is not open under {fh}.")
        return self.open(ino, os.O_RDONLY, Caller(0, 0), fh)

    def release(self, fh: int) -> None:
        """Ends an open file; an unknown one is fine."""
        with self._lock:
            rendered = self._rendered.pop(fh, None)
        if rendered is None:
            self._open_files.release(fh)

    # -- attributes --------------------------------------------------------------------------------

    def setattr(self, ino: int, change: SetAttr, caller: Caller, fh: int | None = None) -> Attr:
        """Sets attributes and returns what they are then; `fh` if it was done through an open file.

        Sealed (the size of sealed data), Refused, NoSpace, IsADirectory, Busy.
        """
        node = self._node(ino)
        if change.size is not None:
            self._truncate(node, ino, change.size, caller, fh)
        node.set_attr(change, caller)
        return node.attr()

    def _truncate(self, node: Node, ino: int, size: int, caller: Caller, fh: int | None) -> None:
        handle = None if fh is None else self._open_files.get(fh)
        if handle is not None:
            handle.truncate(size)
        elif isinstance(node, Data | SiblingFile):
            self._open_files.truncate(ino, size, caller)
        else:
            node.open(os.O_WRONLY, caller, 0)  # says why not

    def getxattr(self, ino: int, name: bytes) -> bytes:
        """An attribute's value. AttributeMissing; NotSupported outside `user.`."""
        xattrs.split(name)
        image = self._node(ino).record()
        value = None
        if image is not None:
            value = xattrs.read(image, name)
            if value is None:
                value = figures.read(self._context.repo, image, name)
        if value is None:
            raise AttributeMissing(f"Inode {ino} has no attribute {name!r}.")
        return value

    def listxattr(self, ino: int) -> list[bytes]:
        """The names of an image's attributes, at most 64 KiB of them; [] for what is no image's."""
        image = self._node(ino).record()
        return xattrs.names(image) if image else []

    def setxattr(self, ino: int, name: bytes, value: bytes, mode: xattrs.Mode, caller: Caller) -> None:
        """Sets an attribute (S8). `user.imagefs.seal` seals the draft before it returns (see `waits`).

        InvalidValue, Refused, Exists, AttributeMissing, TooMany, NotSupported; what sealing raises.
        """
        xattrs.split(name)
        node = self._node(ino)
        if name == xattrs.SEAL:
            image = node.record()
            if image is None or value.strip() != b"1":
                raise InvalidValue("user.imagefs.seal takes the value 1, on an image.")
            self._images.seal(image.id)
        else:
            node.update(lambda image: xattrs.changed(image, name, value, mode))

    @staticmethod
    def waits(name: bytes) -> bool:
        """Whether setting this attribute takes long: then no transaction may be open around it."""
        return name == xattrs.SEAL

    def removexattr(self, ino: int, name: bytes, caller: Caller) -> None:
        """Removes an attribute, or puts a field back to its default (S8). AttributeMissing, NotSupported."""
        xattrs.split(name)
        node = self._node(ino)
        if node.record() is None:
            raise AttributeMissing(f"Inode {ino} has no attribute {name!r}.")
        node.update(lambda image: xattrs.removed(image, name))

    # -- nodes -------------------------------------------------------------------------------------

    def _directory(self, ino: int, *names: bytes) -> Directory:
        """The directory, to do something about these names in it."""
        for name in names:
            if len(name) > LONGEST_NAME:
                raise NameTooLong(f"A file name has {LONGEST_NAME} bytes at most, not {len(name)}.")
        node = self._node(ino)
        if not isinstance(node, Directory):
            raise NotADirectory(f"Inode {ino} is not a directory.")
        return node

    def _node(self, ino: int) -> Node:
        if ino < Ino.FIRST_FREE:
            return self._fixed(ino)
        try:
            image_id, kind = self._catalog.images.by_ino(ino)
        except Stale:
            return self._other(ino)
        if kind == Kind.DIRECTORY:
            return ImageDirectory(self._context, image_id)
        if kind == Kind.SIBLING:
            return SiblingFile(self._context, ino, image_id)
        return Data(self._context, ino, image_id)

    def _fixed(self, ino: int) -> Node:
        if ino in FILES:
            return ControlFile(self._context, ino)
        if ino in FIXED:
            return FIXED[ino](self._context)
        raise Stale(f"There is no inode {ino}.")

    def _other(self, ino: int) -> Node:
        """A metadata.json, whose number is one above its directory's, or a deleted file that is open."""
        image = self._open_files.image_of(ino)
        if image is not None:
            return Unlinked(self._context, ino, image)
        image_id, kind = self._catalog.images.by_ino(ino - 1)
        if kind != Kind.DIRECTORY:
            raise Stale(f"Inode {ino} has been deleted.")
        return Metadata(self._context, image_id)
