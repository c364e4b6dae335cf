"""Materialised images: sealed data that also lies in one plain local file, `cache/<map's uuid>`.

A staging file that was just sealed becomes its image's plain file, so that the first readers, who mostly
come right then, read at the speed of the disk. Nothing depends on these files: the packs have every byte,
and a file goes when it is the longest unused one and the room is wanted for something else.

Nobody writes to one. It is known by its size and its modification time, which is set to a number made from
the uuid: whatever wrote to the file, or took its place, left another time.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from imagefs.types import Image

LEAST = 64 << 20
"""Smaller images are not kept: read from the packs they are there in 0.15 s, and in the page cache then."""
SHARE = 10
"""Without a setting the files may fill one part in so many of the disk."""


class Materialised:
    """The plain files of one repository. Any thread of any process; holds no state but the directory."""

    def __init__(self, directory: Path, limit: int | None) -> None:
        """`limit`: bytes on disk that the files may take up; None: a tenth of the disk; 0: none are kept."""
        self._directory = directory
        self._limit = limit
        self._lock = threading.Lock()
        """One eviction at a time in this process; others may evict too, which does no harm."""
        directory.mkdir(mode=0o700, exist_ok=True)

    def has_place(self, size: int) -> bool:
        """Whether a file of so many bytes could stay."""
        return size <= self._most()

    def adopt(self, path: Path, image: Image, least: int | None = None) -> bool:
        """Makes a file with the image's sealed and synced bytes its plain file; False: it is not wanted.

        `least`: bytes of the smallest image that gets one; None: LEAST.
        """
        if image.map_uuid is None or (image.size or 0) < (LEAST if least is None else least) or self._limit == 0:
            return False
        try:
            os.utime(path, ns=(time.time_ns(), _mark(image.map_uuid)))
            path.chmod(0o400)
            path.rename(self._path(image.map_uuid))
        except FileNotFoundError:  # taken for one that nobody wants any more
            return False
        return True

    def open(self, image: Image) -> int | None:
        """A descriptor to read the image's plain file by, which the caller closes; None if there is none.

        A file that is not what was adopted is removed.
        """
        if image.map_uuid is None:
            return None
        path = self._path(image.map_uuid)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        status, mark = os.fstat(fd), _mark(image.map_uuid)
        if (status.st_size, status.st_mtime_ns) != (image.size, mark):
            os.close(fd)
            path.unlink(missing_ok=True)
            return None
        os.utime(fd, ns=(time.time_ns(), mark))  # used now
        return fd

    def follow(self, old: UUID, new: UUID) -> None:
        """The same bytes have another map now: its plain file, if there is one, is that map's from here on.

        Who opens it in between finds a mark that is not the new one, and removes it.
        """
        path = self._path(new)
        with contextlib.suppress(FileNotFoundError):
            self._path(old).rename(path)
            os.utime(path, ns=(time.time_ns(), _mark(new)))

    def trim(self) -> None:
        """Removes the longest unused files until the others keep to the limit."""
        self.evict(self.allocated() - self._most())

    def evict(self, nbytes: int) -> int:
        """Removes the longest unused files until they had `nbytes` on the disk in all; how many they had.

        Who has one open goes on reading, and its bytes are free when the last one has closed it.
        """
        freed = 0
        with self._lock:
            for _, path, allocated in sorted(self._files()) if nbytes > 0 else ():
                if freed >= nbytes:
                    break
                path.unlink(missing_ok=True)
                freed += allocated
        return freed

    def keep(self, wanted: Callable[[UUID], bool]) -> None:
        """Removes the files of maps that are not `wanted`, and what is not such a file at all."""
        for path in self.paths():
            try:
                keep = wanted(UUID(path.name))
            except ValueError:
                keep = False
            if not keep:
                path.unlink(missing_ok=True)

    def paths(self) -> list[Path]:
        """Every file there is now, by its name."""
        return sorted(self._directory.iterdir())

    def allocated(self) -> int:
        """Bytes on disk of all the files."""
        return sum(allocated for _, _, allocated in self._files())

    def _most(self) -> int:
        if self._limit is not None:
            return self._limit
        disk = os.statvfs(self._directory)
        return disk.f_blocks * disk.f_frsize // SHARE

    def _path(self, map_uuid: UUID) -> Path:
        return self._directory / str(map_uuid)

    def _files(self) -> list[tuple[int, Path, int]]:
        """(time of the last use, path, bytes on disk) of each."""
        found = []
        for path in self.paths():
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_atime_ns, path, status.st_blocks * 512))
        return found


def _mark(map_uuid: UUID) -> int:
    """The modification time, in ns, that marks the plain file of this map: some whole second before 2004."""
    return map_uuid.int % (1 << 30) * 10**9
