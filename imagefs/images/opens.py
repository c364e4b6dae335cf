"""Open files: who has which inode open, and the data behind it. Shared by both kernel adapters.

Every handle is a row in the durable open table before its OPEN is answered, so that a worker that
follows a killed one serves the same handles, and never seals a draft that somebody is still writing.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol
from uuid import UUID

from imagefs.blocks.digest import is_zero
from imagefs.catalog import Open
from imagefs.errors import Busy, Deactivated, ImagefsError, NotFound, Refused, Sealed, Stale
from imagefs.images import drafts, writers
from imagefs.images.bases import COPY_AT_MOST
from imagefs.images.drafts import Change
from imagefs.images.files import PIECE, DataFile, DraftFile, EmptyFile, MaterialisedFile, SealedFile
from imagefs.images.service import Images
from imagefs.types import BLOCK, Caller, Image, Kind, Status

log = logging.getLogger(__name__)

OWN_HANDLES = 1 << 62
"""Handles that no kernel request made are numbered from here: no `unique` gets this far."""


class Backing(Protocol):
    """What lets the kernel read plain files by itself."""

    def open(self, fd: int) -> int:
        """The id of a file that is open for reading; 0 when that cannot be."""
        ...

    def close(self, backing_id: int) -> None:
        """The id is not used any more."""
        ...


class Node:
    """One inode while it is open. `lock` guards the counts and the file; order: it, then the catalog.

    Inside a catalog transaction only the lock of a node that was just made may be taken.
    """

    def __init__(self, ino: int) -> None:
        self.ino = ino
        self.lock = threading.RLock()
        self.users = 0
        """Handles, and opens under way; guarded by OpenFiles' lock."""
        self.writers = 0
        self.image: Image | None = None
        self.kind = Kind.DATA
        self.file: DataFile | None = None
        self.backing_id: int | None = None
        """How the kernel reads it, 0: by requests. Settled by the first open and kept until the last release:
        an open that is answered differently fails with EIO."""


class Handle:
    """One open file of one process. Reads and writes need no lock: the host's filesystem orders them."""

    def __init__(self, files: OpenFiles, node: Node, fh: int, flags: int, *, restored: bool = False) -> None:
        self.fh = fh
        self.ino = node.ino
        self.writable = is_writable(flags)
        self.node = node
        self._files = files
        self._threads: set[int] = set()
        self._writers: set[int] | None = None if restored else set()
        """Processes that wrote; None after a worker's death, when it may have been any."""

    @property
    def file(self) -> DataFile:
        file = self.node.file
        assert file is not None  # set before any handle of the node exists
        return file

    @property
    def backing_id(self) -> int:
        """The plain file that the kernel reads for it; 0 when it sends requests."""
        return self.node.backing_id or 0

    @property
    def size(self) -> int:
        return self.file.size

    def pread(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes; b"" at the end. Damaged, BackendFailed."""
        return self.file.pread(offset, length)

    def pwrite(self, offset: int, data: memoryview, pid: int = 0) -> int:
        """Bytes written. NoSpace (also for room that sealing will need), Sealed."""
        if pid not in self._threads:
            self._threads.add(pid)
            if self._writers is not None:
                self._writers.add(writers.process_of(pid))
        return self.file.pwrite(offset, data)

    def truncate(self, size: int) -> None:
        self.file.truncate(size)

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        self.file.fallocate(mode, offset, length)

    def seek(self, offset: int, whence: int) -> int:
        return self.file.seek(offset, whence)

    def fsync(self, datasync: bool = False) -> None:
        self.file.fsync(datasync)

    def flush(self, pid: int) -> None:
        """What close(2) of one descriptor means: the moment to see whether a writer is dying (S3)."""
        if not self.writable or not isinstance(self.file, DraftFile):
            return
        if self._writers is None or writers.process_of(pid) in self._writers:
            reason = writers.death_of(pid)
            if reason is not None:
                with contextlib.suppress(NotFound, Sealed):  # deleted meanwhile
                    self.file.block(reason)
            elif self._threads and self._files.seal_on_close:
                self._files.seal(self)

    def copy_range(self, source: Handle, source_offset: int, offset: int, length: int) -> int:
        """Bytes copied, maybe fewer than asked for; whole blocks that lie alike in both are shared (S10)."""
        length = min(length, source.size - source_offset)
        if length <= 0:
            return 0
        ours = self.file
        if not isinstance(ours, DraftFile) or (source_offset - offset) % BLOCK:
            return self._copy(source, source_offset, offset, min(length, COPY_AT_MOST))
        done = self._copy(source, source_offset, offset, min(-offset % BLOCK, length))
        if done < length and not (offset + done) % BLOCK:
            done += ours.share(source.file, source_offset + done, offset + done, length - done)
        left = length - done
        if done == 0 or left < BLOCK:
            done += self._copy(source, source_offset + done, offset + done, min(left, COPY_AT_MOST))
        return done

    def _copy(self, source: Handle, source_offset: int, offset: int, length: int) -> int:
        done = 0
        while done < length:
            piece = source.pread(source_offset + done, min(PIECE, length - done))
            if not piece:
                break
            if is_zero(piece) and offset + done >= self.size:
                self.file.truncate(offset + done + len(piece))
            else:
                self.pwrite(offset + done, memoryview(piece))
            done += len(piece)
        return done


class OpenFiles:
    """The open files of one connection. `_lock` guards the dicts only and is never held over anything."""

    def __init__(
        self, images: Images, connection: UUID, *, seal_on_close: bool = False, backing: Backing | None = None,
        slow: Callable[[Image], None] = lambda image: None,
    ) -> None:  # fmt: skip
        """`slow` is told of each sealed image without a plain file that is opened, and returns at once."""
        self._images = images
        self._repo = images.repo
        self.connection = connection
        self.seal_on_close = seal_on_close
        self._backing = backing
        self._slow = slow
        self._lock = threading.Lock()
        self._nodes: dict[int, Node] = {}
        self._handles: dict[int, Handle] = {}
        self._own = itertools.count(OWN_HANDLES)

    def new_fh(self) -> int:
        """A number for a handle that the kernel did not number."""
        return next(self._own)

    def open(self, ino: int, flags: int, caller: Caller, fh: int, *, fresh: bool = False) -> Handle:
        """A handle; the same one when `fh` is open already (a request that came twice).

        A queued image opened for writing begins its draft; `fresh` says that the caller made the draft just
        now. Raises Stale, Sealed (writing to sealed data), Deactivated, Refused (no data in this state),
        Busy (written through another mount).
        """
        known = self.get(fh)
        if known is not None:
            return known
        if flags & os.O_TRUNC and not is_writable(flags):
            self.truncate(ino, 0, caller)
        node = self._enter(ino)
        try:
            with node.lock:
                self._admit(node, flags, caller, fresh=fresh)
                if node.backing_id is None:
                    node.backing_id = self._back(node)
                row = Open(self.connection, fh, ino, flags, caller.pid, backing_id=node.backing_id)
                self._repo.opens.put(row)
                return self._register(node, fh, flags)
        except BaseException:
            self._leave(node)
            raise

    def _register(self, node: Node, fh: int, flags: int, *, restored: bool = False) -> Handle:
        handle = Handle(self, node, fh, flags, restored=restored)
        if handle.writable:
            node.writers += 1
        with self._lock:
            self._handles[fh] = handle
        return handle

    def _back(self, node: Node) -> int:
        if self._backing is None or not isinstance(node.file, MaterialisedFile):
            return 0
        return self._backing.open(node.file.fd)

    def get(self, fh: int) -> Handle | None:
        """The open handle with this number."""
        with self._lock:
            return self._handles.get(fh)

    def image_of(self, ino: int) -> Image | None:
        """The record, as it was at open, of an inode that is open here though the catalog lost it."""
        with self._lock:
            node = self._nodes.get(ino)
        return node.image if node else None

    def held(self) -> set[UUID]:
        """Images that this connection has open: to be held when they are deleted (T8)."""
        with self._lock:
            return {node.image.id for node in self._nodes.values() if node.image is not None}

    def release(self, fh: int) -> None:
        """The last descriptor of the handle is closed and nothing maps it. An unknown one is fine."""
        with self._lock:
            handle = self._handles.pop(fh, None)
        self._repo.opens.delete(self.connection, fh)
        if handle is None:
            return
        node = handle.node
        with node.lock:
            if handle.writable:
                node.writers -= 1
                if node.writers == 0:
                    self._end_writing(node)
        self._leave(node)

    def truncate(self, ino: int, size: int, caller: Caller) -> None:
        """truncate(2) of a path: an open for writing of its own."""
        handle = self.open(ino, os.O_WRONLY, caller, self.new_fh())
        try:
            handle.truncate(size)
        finally:
            self.release(handle.fh)

    def restore(self) -> None:
        """Opens again what a killed worker of this connection had open; call before the first request."""
        for row in self._repo.opens.of_connection(self.connection):
            node = self._enter(row.ino)
            try:
                with node.lock:
                    node.backing_id = row.backing_id
                    self._admit(node, row.flags & ~os.O_TRUNC, Caller(0, 0, row.pid), fresh=True, restoring=True)
                    self._register(node, row.fh, row.flags, restored=True)
            except (ImagefsError, OSError) as error:
                log.warning("handle %d of inode %d is lost: %s", row.fh, row.ino, error)
                self._leave(node)
                self._repo.opens.delete(self.connection, row.fh)

    def seal(self, handle: Handle) -> None:
        """Seals in close(2) (`--seal=close`): later writes through the same handle are refused."""
        node = handle.node
        with node.lock:
            image = node.image
            if image is None or node.writers != 1 or not isinstance(node.file, DraftFile):
                return
            node.writers, handle.writable = 0, False
            self._repo.opens.put(Open(self.connection, handle.fh, node.ino, os.O_RDONLY))
            self._end_writing(node)
        self._images.seal(image.id)

    # -- nodes -------------------------------------------------------------------------------------

    def _enter(self, ino: int) -> Node:
        """The node, counted in: it is seen by `held` before the record is read, so that a deletion between
        the two is either seen by that reading or finds the image held."""
        with self._lock:
            node = self._nodes.get(ino)
            if node is None:
                node = self._nodes[ino] = Node(ino)
            node.users += 1
        if node.image is None:
            with contextlib.suppress(NotFound):
                node.image, node.kind = self._record(ino)
        return node

    def _leave(self, node: Node) -> None:
        with self._lock:
            node.users -= 1
            if node.users:
                return
            del self._nodes[node.ino]
        if node.backing_id and self._backing is not None:
            self._backing.close(node.backing_id)
        if node.file is not None:
            node.file.close()
        if node.image is not None and self._is_deleted(node.image.id):
            self._repo.catalog.sessions.release_hold(node.image.id, self._repo.session.id)

    def _is_deleted(self, image_id: UUID) -> bool:
        try:
            self._repo.catalog.images.attrs(image_id)
        except NotFound:
            return True
        return False

    def _record(self, ino: int, *, deleted: bool = False) -> tuple[Image, Kind]:
        image_id, kind = self._repo.catalog.images.by_ino(ino, deleted=deleted)
        if kind == Kind.SIBLING:
            return self._repo.catalog.siblings.by_ino(ino).record, kind
        if kind != Kind.DATA:
            raise Stale(f"Inode {ino} is no file.")
        return self._repo.catalog.images.get(image_id, deleted=deleted), kind

    def _admit(self, node: Node, flags: int, caller: Caller, *, fresh: bool, restoring: bool = False) -> None:
        """Checks an open against the image's state and makes the node's file ready for it."""
        image, node.kind = self._record(node.ino, deleted=restoring)
        node.image = image
        if is_writable(flags) and node.writers == 0:
            image = node.image = self._begin_writing(node, image, fresh=fresh)
        elif is_writable(flags) and image.draft is None:
            raise self._unwritable(image)
        elif is_writable(flags) and image.draft is not None and image.draft.streamed:
            raise Busy(f"Image {image.id} is being uploaded.")
        if image.status == Status.DEACTIVATED and caller.uid != 0:
            raise Deactivated(f"Image {image.id} is deactivated.")
        if node.file is None or (isinstance(node.file, EmptyFile) and image.status != Status.QUEUED):
            node.file = self._file(node.ino, image)
        if isinstance(node.file, DraftFile) and is_writable(flags):
            node.file.begin_writing()
            if flags & os.O_TRUNC:
                node.file.truncate(0)

    def _file(self, ino: int, image: Image) -> DataFile:
        if image.draft is not None:
            return DraftFile(self._repo, image.id, image.draft, lambda change: self._record_draft(ino, change))
        if image.sealed:
            fd = self._repo.materialised.open(image)
            if fd is not None:
                return MaterialisedFile(self._repo, image, fd)
            self._slow(image)
            return SealedFile(self._repo, image)
        return EmptyFile(image.id)

    def _begin_writing(self, node: Node, image: Image, *, fresh: bool) -> Image:
        if image.status == Status.QUEUED and node.kind == Kind.DATA:
            return self._images.begin_draft(image.id)
        if image.draft is None:
            raise self._unwritable(image)
        if self._repo.opens.writers(node.ino) and not fresh:
            raise Busy(f"The draft of image {image.id} is being written through another mount.")
        return image if fresh else self._record_draft(node.ino, drafts.reopened(self._repo.session.id))

    @staticmethod
    def _unwritable(image: Image) -> Refused:
        if image.sealed:
            return Sealed(f"The data of image {image.id} is sealed: it cannot be opened for writing.")
        return Refused(f"Image {image.id} is {image.status}: it cannot take data.")

    def _end_writing(self, node: Node) -> None:
        if isinstance(node.file, DraftFile):
            node.file.end_writing()
        if node.image is not None and node.image.draft is not None:
            # The draft may have ended meanwhile: then there is nothing to note.
            with contextlib.suppress(NotFound, Sealed):
                node.image = self._record_draft(node.ino, drafts.released(time.time_ns(), self._repo.boot))

    def _record_draft(self, ino: int, change: Change) -> Image:
        """Changes the draft that has this inode, be it an image's or a sibling's."""
        image_id, kind = self._repo.catalog.images.by_ino(ino)
        if kind == Kind.DATA:
            return self._images.update_draft(image_id, change)
        sibling = self._repo.catalog.siblings.by_ino(ino)

        def changed(record: Image) -> Image:
            return replace(record, draft=record.draft and change(record.draft))

        return self._repo.catalog.siblings.update(image_id, sibling.name, changed).record


def is_writable(flags: int) -> bool:
    """Whether open(2) flags let the handle change the file."""
    return flags & os.O_ACCMODE != os.O_RDONLY
