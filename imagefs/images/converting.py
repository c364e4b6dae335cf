"""Conversions that happen by themselves: which images, when, and how slowly."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

from imagefs.errors import Busy, ImagefsError, NotConvertible, NotFound, SealCancelled
from imagefs.images.convert import Converter
from imagefs.images.listing import with_status
from imagefs.images.rate import TokenBucket
from imagefs.images.repository import Repository
from imagefs.types import LAYOUTS, Image, Status

log = logging.getLogger(__name__)

FORMATS = ("qcow2", "vmdk")
"""Disk formats whose files may hold compressed clusters."""
AGAIN_S = 86400.0
"""An image that was not worth it is looked at again after a day: others like it may have come."""
BUSY_S = 5.0
"""Between two looks whether another process's conversion has ended."""


class BackgroundConversions:
    """Converts one image after the other in a thread that gives way to others. Any thread may call."""

    def __init__(self, repo: Repository, stop: threading.Event) -> None:
        """Ends what it is doing when `stop` is set; nothing is lost by that but the time."""
        self._repo = repo
        self._stop = stop
        self._ratio = repo.config.convert_ratio
        rate = float(repo.config.convert_bytes_per_second)
        self._converter = Converter(repo, take=TokenBucket(rate, rate, stop.wait).take, nice=True)
        self._lock = threading.Lock()
        """Guards `_looked`; nothing is taken under it."""
        self._looked: dict[int, float] = {}
        """Maps that were queued, and when."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="convert")

    def close(self) -> None:
        """Waits for the end of what is under way; `stop` is set before."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def consider_all(self) -> None:
        """Queues every image that may be worth it and was not looked at for long."""
        for image in with_status(self._repo.catalog, Status.ACTIVE):
            self.consider(image)

    def consider(self, image: Image) -> None:
        """Queues an image if it may be worth it."""
        known = image.status == Status.ACTIVE and image.os_hash_value is not None
        if not known or image.layout != LAYOUTS[0] or image.disk_format not in FORMATS or not self._ratio:
            return
        now = time.monotonic()
        with self._lock:
            if now - self._looked.get(image.map_id, -AGAIN_S) < AGAIN_S:
                return
            self._looked[image.map_id] = now
        with contextlib.suppress(RuntimeError):  # stopping
            self._pool.submit(self._convert, image.id)

    def _convert(self, image_id: UUID) -> None:
        while not self._stop.is_set():
            try:
                done = self._converter.convert(image_id, ratio=self._ratio)
                log.info("converted image %s: %d bytes in the place of %d", image_id, done.stored, done.freed)
            except Busy:
                self._stop.wait(BUSY_S)
                continue
            except (NotConvertible, SealCancelled, NotFound) as error:
                log.info("%s", error)
            except (ImagefsError, OSError) as error:
                log.warning("converting image %s failed: %s", image_id, error)
            return
