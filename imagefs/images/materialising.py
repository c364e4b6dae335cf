"""Plain files for images that are slow to read: a recoded one that somebody opens is made whole in the background.

Its clusters are compressed anew for each read, at a tenth of the speed of anything else (layout `recode`). Who has it
open goes on as it is; who opens it next reads the plain file.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

from imagefs.blocks.digest import is_zero
from imagefs.errors import ImagefsError, NotFound
from imagefs.images.files import PIECE, SealedFile
from imagefs.images.repository import Repository
from imagefs.types import Image

log = logging.getLogger(__name__)

LEAST = 1 << 20
"""Bytes of the smallest image that it is done for."""
NICENESS = 10
SUFFIX = ".plain"


class Materialiser:
    """Makes plain files in a thread of its own, one after another."""

    def __init__(self, repo: Repository) -> None:
        self._repo = repo
        self._stop = threading.Event()
        self._lock = threading.Lock()
        """Guards `_wanted`; nothing is taken under it."""
        self._wanted: set[UUID] = set()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="materialise", initializer=_be_nice)

    def opened(self, image: Image) -> None:
        """An image without a plain file was opened; returns at once. Any thread."""
        if image.layout == "plain":
            return
        with self._lock:
            if image.id in self._wanted:
                return
            self._wanted.add(image.id)
        with contextlib.suppress(RuntimeError):  # stopping
            self._pool.submit(self._make, image.id)

    def close(self) -> None:
        """Gives up what is half done."""
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _make(self, image_id: UUID) -> None:
        try:
            materialise(self._repo, image_id, self._stop.is_set)
        except NotFound:
            pass  # deleted meanwhile
        except (ImagefsError, OSError) as error:
            log.warning("image %s gets no plain file: %s", image_id, error)
        finally:
            with self._lock:
                self._wanted.discard(image_id)


def materialise(repo: Repository, image_id: UUID, cancelled: Callable[[], bool]) -> bool:
    """Makes an image's plain file from its packs, every piece verified; whether it has one then.

    It gets none when it is not worth one, or the disk has no room to spare. NotFound, Damaged, BackendFailed.
    """
    image = repo.catalog.images.get(image_id)
    size = image.size or 0
    if size < LEAST or not repo.materialised.has_place(size) or repo.space.room() < size:
        return False
    path = repo.staging.directory / f"{image.map_uuid}{SUFFIX}"
    try:
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return False  # another process is about it
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # says that somebody is about it
        if not _filled(fd, SealedFile(repo, image), cancelled):
            return False
        os.fdatasync(fd)
        return repo.materialised.adopt(path, image, LEAST)
    finally:
        os.close(fd)
        path.unlink(missing_ok=True)
        repo.materialised.trim()


def remove_half_made(directory: Path) -> None:
    """Removes what dead processes were making in the directory of staging files."""
    for path in directory.glob(f"*{SUFFIX}"):
        with contextlib.suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def _filled(fd: int, source: SealedFile, cancelled: Callable[[], bool]) -> bool:
    os.ftruncate(fd, source.size)
    for offset in range(0, source.size, PIECE):
        if cancelled():
            return False
        piece = source.pread(offset, PIECE)
        if not is_zero(piece):
            os.pwrite(fd, piece, offset)
    return True


def _be_nice() -> None:
    # Of a thread, where the system has that: Linux.
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
