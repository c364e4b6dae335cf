"""Data behind an open file: a draft's staging file, a sealed image's map, or nothing yet.

All three have the same verbs, so that whoever holds a file open need not know when it is sealed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol
from uuid import UUID

from imagefs.blocks.digest import is_zero
from imagefs.errors import NoData, NoSpace, NotSupported, Sealed
from imagefs.images import drafts
from imagefs.images.drafts import Change
from imagefs.images.repository import Repository
from imagefs.images.staging import PUNCH_HOLE, allocate, start_writeback
from imagefs.types import Draft, Image

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
        self._image_id = image.id
        self.map_id = image.map_id
        self._size = image.size or 0

    @property
    def size(self) -> int:
        return self._size

    def pread(self, offset: int, length: int) -> bytes:
        return self._reader.pread(self.map_id, self._size, offset, length)

    def seek(self, offset: int, whence: int) -> int:
        if not 0 <= offset < self._size:
            raise NoData(f"Offset {offset} is behind the end of image {self._image_id}.")
        for start, length in self._reader.data_ranges(self.map_id, self._size, offset):
            if whence == os.SEEK_DATA:
                return max(start, offset)
            return offset if offset < start else min(start + length, self._size)
        if whence == os.SEEK_DATA:
            raise NoData(f"Image {self._image_id} has no data behind offset {offset}.")
        return offset

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
    """A draft's staging file, and the base map below it while nothing was overwritten.

    `_lock` guards the base and the write descriptor, so that copying the base up happens once and before
    any write; plain reads and writes do not take it. Order: this lock, then catalog transactions.
    """

    def __init__(self, repo: Repository, image_id: UUID, draft: Draft, record: Callable[[Change], object]) -> None:
        """`record` applies a change to the draft's record in the catalog."""
        self._repo = repo
        self._record = record
        self._image_id = image_id
        self._gen = draft.gen
        self._base = draft.base_map
        """While it is not 0 the content is the map's first `size` bytes, and the staging file a hole of that
        size: the copy may grow without a commit for each piece."""
        self._blocked = draft.blocked is not None
        self._lock = threading.Lock()
        # Readers use a descriptor of their own: a read lease is granted only when nobody can write.
        self._read = repo.staging.open(image_id, draft.gen)
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

    def end_writing(self) -> None:
        """The last writer has gone: the file can be leased, and so sealed."""
        with self._lock:
            if self._write >= 0:
                os.close(self._write)
                self._write = -1

    def pread(self, offset: int, length: int) -> bytes:
        base = self._base
        if base:
            return self._repo.reader.pread(base, self.size, offset, length)
        return os.pread(self._read, length, offset)

    def pwrite(self, offset: int, data: memoryview) -> int:
        try:
            if self._base and self._goes_on(offset, data):
                return len(data)
            self._own_all()
            self._require_room(offset, len(data))
            done = 0
            while done < len(data):
                done += os.pwrite(self._write, data[done:] if done else data, offset + done)
            self._dirty += done
            if self._dirty >= WRITEBACK_EVERY:
                self._dirty = 0
                start_writeback(self._write)
            return done
        except (NoSpace, OSError) as error:
            self.block(f"a write failed: {error}")
            raise

    def _require_room(self, offset: int, length: int) -> None:
        try:
            self._repo.space.require(length)
        except NoSpace:
            # Writing over what is allocated already needs no room, neither here nor at sealing.
            if offset >= self.size or os.lseek(self._read, offset, os.SEEK_HOLE) < offset + length:
                raise

    def truncate(self, size: int) -> None:
        """Cuts or grows the draft. Cut to nothing, it is a new start: earlier write errors are forgotten."""
        if size == 0:
            with self._lock:
                self._drop_base()
        self._own_all()
        os.ftruncate(self._write, size)
        if size == 0 and self._blocked:
            self._blocked = False
            self._record(drafts.blocked(None))

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        """Modes 0, KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE of fallocate(2); NotSupported for those that move data."""
        self._own_all()
        try:
            if not mode & PUNCH_HOLE:
                self._repo.space.require(length)
            allocate(self._write, mode, offset, length)
        except (NoSpace, OSError) as error:
            self.block(f"a reservation failed: {error}")
            raise

    def seek(self, offset: int, whence: int) -> int:
        if self._base:
            return SealedFile(self._repo, self._as_sealed()).seek(offset, whence)
        if offset >= self.size:
            raise NoData(f"Offset {offset} is behind the end of the draft.")
        try:
            return os.lseek(self._read, offset, whence)
        except OSError as error:  # ENXIO, the only way to fail behind the check above
            raise NoData(f"The draft has no data behind offset {offset}.") from error

    def fsync(self, datasync: bool) -> None:
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

    # -- the base ----------------------------------------------------------------------------------

    def share(self, source: SealedFile, offset: int, length: int) -> bool:
        """Makes the draft a longer prefix of the source by sharing its blocks; False when that cannot be."""
        with self._lock:
            size = self.size
            end = min(offset + length, source.size)
            if offset != size or end <= offset or (self._base != source.map_id if size else self._base):
                return False
            if not size:
                self._repo.catalog.seals.set_base(self._image_id, source.map_id, source.size)
                self._base = source.map_id
            os.ftruncate(self._write, end)
            return True

    def _goes_on(self, offset: int, data: memoryview) -> bool:
        """Takes zeros behind the shared prefix as a longer prefix where the base has zeros there too.

        `cp --sparse=never` writes the source's holes and copies what lies between.
        """
        with self._lock:
            base, end = self._base, offset + len(data)
            if not base or offset != self.size or not is_zero(data):
                return False
            whole = self._repo.catalog.maps.info(base).size
            if end > whole or any(start < end for start, _ in self._repo.reader.data_ranges(base, end, offset)):
                return False
            os.ftruncate(self._write, end)
            return True

    def _own_all(self) -> None:
        """Copies the base into the staging file, so that the draft can be changed."""
        if self._base:
            with self._lock:
                self._copy_base()

    def _copy_base(self) -> None:
        map_id, size = self._base, self.size
        if not map_id:
            return  # done by another thread meanwhile
        for start, length in self._repo.reader.data_ranges(map_id, size):
            for offset in range(start, start + length, PIECE):
                piece = self._repo.reader.pread(map_id, size, offset, min(PIECE, start + length - offset))
                self._repo.space.require(len(piece))
                os.pwrite(self._write, piece, offset)
        self._drop_base()

    def _drop_base(self) -> None:
        if self._base:
            self._base = 0
            self._repo.catalog.seals.drop_base(self._image_id)

    def _as_sealed(self) -> Image:
        return replace(Image(id=self._image_id), map_id=self._base, size=self.size)


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
