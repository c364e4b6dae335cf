"""Data behind an open file: a draft's staging file, a sealed image's map, or nothing yet.

All three have the same verbs, so that whoever holds a file open need not know when it is sealed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeVar
from uuid import UUID

from imagefs.blocks.digest import is_zero
from imagefs.errors import MapGone, NoData, NoSpace, NotSupported, QuotaExceeded, Sealed
from imagefs.images import drafts
from imagefs.images.bases import Base
from imagefs.images.content import Content, Piece
from imagefs.images.drafts import Change
from imagefs.images.quota import DraftQuota
from imagefs.images.repository import Repository
from imagefs.images.staging import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, allocate, start_writeback
from imagefs.types import BLOCK, Draft, Image

Result = TypeVar("Result")
PIECE = 1 << 20
WRITEBACK_EVERY = 64 << 20


class DataFile(Protocol):
    """What an open file can do. Offsets and lengths are bytes."""

    @property
    def size(self) -> int: ...
    def pread(self, offset: int, length: int) -> bytes: ...
    def pwrite(self, offset: int, data: memoryview) -> int: ...
    def truncate(self, size: int) -> None: ...
    def fallocate(self, mode: int, offset: int, length: int) -> None: ...
    def seek(self, offset: int, whence: int) -> int:
        """The next data (os.SEEK_DATA) or hole (os.SEEK_HOLE) at or behind `offset`; NoData when none."""
        ...

    def fsync(self, datasync: bool) -> None: ...
    def close(self) -> None: ...


class SealedFile:
    """A sealed image's data. Immutable: every change is refused with Sealed (S4)."""

    def __init__(self, repo: Repository, image: Image) -> None:
        self._reader = repo.reader
        self._images = repo.catalog.images
        self._image_id = image.id
        self.map_id = image.map_id
        self._size = image.size or 0

    @property
    def size(self) -> int:
        return self._size

    def pread(self, offset: int, length: int) -> bytes:
        return self._present(lambda map_id: self._reader.pread(map_id, self._size, offset, length))

    def seek(self, offset: int, whence: int) -> int:
        if not 0 <= offset < self._size:
            raise NoData(f"Offset {offset} is behind the end of image {self._image_id}.")
        return self._present(
            lambda map_id: _sought(self._reader.data_ranges(map_id, self._size, offset), offset, self._size, whence)
        )

    def _present(self, read: Callable[[int], Result]) -> Result:
        """What `read` gives for the map that the image has now: another layout may have replaced it."""
        while True:
            map_id = self.map_id
            try:
                return read(map_id)
            except MapGone:
                self.map_id = self._images.get(self._image_id, deleted=True).map_id
                if self.map_id == map_id:
                    raise

    def pieces(self, start: int, end: int) -> Iterator[Piece]:
        """Where the bytes from `start` to `end` come from: all from the map."""
        yield Piece(start, end - start, self.map_id, start)

    def _refuse(self) -> Sealed:
        return Sealed(f"The data of image {self._image_id} is sealed: it cannot be changed.")

    def pwrite(self, offset: int, data: memoryview) -> int:
        raise self._refuse()

    def truncate(self, size: int) -> None:
        raise self._refuse()

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        raise self._refuse()

    def fsync(self, datasync: bool) -> None:
        """Nothing to do: what is active is durable."""

    def close(self) -> None:
        """Nothing to do: maps and packs have no descriptors of their own."""


class MaterialisedFile(SealedFile):
    """A sealed image's data that lies in a plain file as well; `fd` is closed with it."""

    def __init__(self, repo: Repository, image: Image, fd: int) -> None:
        super().__init__(repo, image)
        self.fd = fd

    def pread(self, offset: int, length: int) -> bytes:
        return os.pread(self.fd, length, offset)

    def close(self) -> None:
        os.close(self.fd)


class DraftFile:
    """A draft's staging file, and the maps that it takes blocks from (see `content`).

    `_lock` guards the base and the write descriptor; reads, and writes that touch no part of a map, do not take
    it. Order: this lock, then catalog transactions.
    """

    def __init__(self, repo: Repository, image_id: UUID, draft: Draft, record: Callable[[Change], Image]) -> None:
        """`record` applies a change to the draft's record in the catalog. Raises Damaged as Content does."""
        self._repo = repo
        self._record = record
        self._image_id = image_id
        self._gen = draft.gen
        self._blocked = draft.blocked is not None
        self._quota = DraftQuota(repo, image_id)
        self._lock = threading.Lock()
        # Readers use a descriptor of their own: a read lease is granted only when nobody can write.
        self._read = repo.staging.open(image_id, draft.gen)
        try:
            self._content = Content(repo, image_id, draft, self._read)
        except BaseException:
            os.close(self._read)
            raise
        self._base = Base(repo, image_id, draft.gen, self._content, self._lock, record)
        self._write = -1
        self._dirty = 0
        """Bytes written since writeback was last started; a lost update of two threads does no harm."""

    @property
    def size(self) -> int:
        return os.fstat(self._read).st_size

    def begin_writing(self) -> None:
        """The first writer is there."""
        with self._lock:
            if self._write < 0:
                self._write = self._repo.staging.open(self._image_id, self._gen, write=True)
                self._base.begin(self._write)

    def end_writing(self) -> None:
        """The last writer has gone: the file can be leased, and so sealed."""
        with self._lock:
            if self._write >= 0:
                os.close(self._write)
                self._write = -1

    def _is_plain(self) -> bool:
        """Whether all of it is in the staging file for certain."""
        return self._write >= 0 and self._base.none

    def pread(self, offset: int, length: int) -> bytes:
        if self._is_plain():
            return os.pread(self._read, length, offset)
        return self._content.pread(offset, length)

    def pieces(self, start: int, end: int) -> Iterator[Piece]:
        """Where the bytes from `start` to `end` come from."""
        return self._content.pieces(start, end)

    def pwrite(self, offset: int, data: memoryview) -> int:
        end = offset + len(data)
        try:
            self._require_room(offset, len(data))
            self._require_quota(end)
            if not self._base.covers(offset, len(data)):
                return self._put(offset, data)
            with self._lock:
                if offset >= self.size and is_zero(data):
                    # `cp --sparse=never` copies what is data in its source and writes the holes between.
                    os.ftruncate(self._write, end)
                    return len(data)
                with self._base.overwriting(self._write, offset, len(data)):
                    return self._put(offset, data)
        except (NoSpace, QuotaExceeded, OSError) as error:
            self.block(f"a write failed: {error}")
            raise

    def _put(self, offset: int, data: memoryview) -> int:
        done = 0
        while done < len(data):
            done += os.pwrite(self._write, data[done:] if done else data, offset + done)
        self._dirty += done
        if self._dirty >= WRITEBACK_EVERY:
            self._dirty = 0
            start_writeback(self._write)
        return done

    def _require_room(self, offset: int, length: int) -> None:
        try:
            self._repo.space.require(length)
        except NoSpace:
            # Writing over what is allocated already needs no room, neither here nor at sealing.
            if offset >= self.size or os.lseek(self._read, offset, os.SEEK_HOLE) < offset + length:
                raise

    def _require_quota(self, end: int) -> None:
        """Asks for what the draft grows by; what is written over counts already."""
        if end > self._quota.granted and end > self.size:
            self._quota.require(end)

    def truncate(self, size: int) -> None:
        """Cuts or grows the draft. Cut to nothing, it is a new start: earlier write errors are forgotten."""
        self._require_quota(size)
        with self._lock:
            self._base.truncate(self._write, size)
        if size == 0 and self._blocked:
            self._blocked = False
            self._record(drafts.blocked(None))

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        """Modes 0, KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE of fallocate(2); NotSupported for those that move data."""
        try:
            if not mode & PUNCH_HOLE:
                self._repo.space.require(length)
            if not mode & KEEP_SIZE:
                self._require_quota(offset + length)
            if not self._base.covers(offset, length):
                allocate(self._write, mode, offset, length)
                return
            with self._lock, self._zeroing(mode, offset, length):
                allocate(self._write, mode, offset, length)
        except (NoSpace, QuotaExceeded, OSError) as error:
            self.block(f"a reservation failed: {error}")
            raise

    def _zeroing(self, mode: int, offset: int, length: int) -> AbstractContextManager[None]:
        """What is reserved stays what it is; what is punched or zeroed does not."""
        if mode & (PUNCH_HOLE | ZERO_RANGE):
            return self._base.overwriting(self._write, offset, length)
        return nullcontext()

    def seek(self, offset: int, whence: int) -> int:
        size = self.size
        if not 0 <= offset < size:
            raise NoData(f"Offset {offset} is behind the end of the draft.")
        if not self._is_plain():
            return _sought(self._content.data_ranges(offset, size), offset, size, whence)
        try:
            return os.lseek(self._read, offset, whence)
        except OSError as error:  # ENXIO, the only way to fail behind the check above
            raise NoData(f"The draft has no data behind offset {offset}.") from error

    def fsync(self, datasync: bool) -> None:
        with self._base.syncing():
            os.fdatasync(self._read) if datasync else os.fsync(self._read)
            self._repo.staging.sync_directory()

    def close(self) -> None:
        self.end_writing()
        os.close(self._read)

    def block(self, reason: str) -> None:
        """Keeps the draft from being sealed by itself; the first reason stays."""
        if not self._blocked:
            self._blocked = True
            self._record(drafts.blocked(reason))

    def share(self, source: DataFile, source_offset: int, offset: int, length: int) -> int:
        """Takes over whole blocks of another file, moving no data that is in maps; bytes done, from the beginning.

        0 where blocks do not fit on blocks, or the source is of no kind that has any.
        """
        if not isinstance(source, SealedFile | DraftFile) or offset % BLOCK or source_offset % BLOCK:
            return 0
        whole = length - length % BLOCK
        if isinstance(source, SealedFile) and source_offset + length == source.size and offset + length >= self.size:
            whole = length  # the last block, with nothing behind its end in either file
        if whole == 0:
            return 0
        fd = source._read if isinstance(source, DraftFile) else -1
        try:
            self._require_quota(offset + whole)
            pieces = source.pieces(source_offset, source_offset + whole)
            with self._lock:
                return self._base.share(self._write, pieces, offset - source_offset, fd)
        except (NoSpace, QuotaExceeded, OSError) as error:
            self.block(f"a copy failed: {error}")
            raise


def _sought(ranges: Iterable[tuple[int, int]], offset: int, size: int, whence: int) -> int:
    """The answer of lseek(2), from the data of a file from `offset` on."""
    for start, length in ranges:
        if whence == os.SEEK_DATA:
            return max(start, offset)
        return offset if offset < start else min(start + length, size)
    if whence == os.SEEK_DATA:
        raise NoData(f"There is no data behind offset {offset}.")
    return offset


class EmptyFile:
    """The data of a queued image: nothing yet."""

    size = 0

    def __init__(self, image_id: UUID) -> None:
        self._image_id = image_id

    def pread(self, offset: int, length: int) -> bytes:
        return b""

    def seek(self, offset: int, whence: int) -> int:
        raise NoData(f"Image {self._image_id} has no data yet.")

    def pwrite(self, offset: int, data: memoryview) -> int:
        raise NotSupported(f"Image {self._image_id} has no draft.")

    def truncate(self, size: int) -> None:
        raise NotSupported(f"Image {self._image_id} has no draft.")

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        raise NotSupported(f"Image {self._image_id} has no draft.")

    def fsync(self, datasync: bool) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""
