"""The janitor: what happens by itself. One process of a repository at a time, by a file lock.

Seals drafts when they have settled, fills in hashes, collects garbage, flushes the log, recovers what a
crash left. Its threads share nothing but a queue; every rule is checked where it acts.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from uuid import UUID

from imagefs.catalog import LogRow, Op
from imagefs.errors import Busy, ImagefsError, NotFound, SealCancelled
from imagefs.images import recovery
from imagefs.images.arming import seal_due
from imagefs.images.compaction import Compactor
from imagefs.images.converting import BackgroundConversions
from imagefs.images.gc import PENDING_DELETE_S, Collector
from imagefs.images.hashtask import fill_in_hashes, needs_hashes
from imagefs.images.listing import with_status
from imagefs.images.rate import TokenBucket
from imagefs.images.service import Images
from imagefs.images.usage import survey_when_due
from imagefs.types import Image, Status

log = logging.getLogger(__name__)

TICK_S = 0.1
GC_EVERY_S = 2.0
FLUSH_EVERY_S = 4.0
"""A change is in a log object, which survives the loss of the catalog, after 5 s at most."""
UPKEEP_EVERY_S = 60.0
COMPACT_EVERY_S = 300.0
CONVERT_EVERY_S = 3600.0
GC_BURST_S = 1.0
"""So many seconds of the rate may be moved at once."""
RETRY_S = 10.0
"""Between two tries to seal a draft whose sealing failed (S14)."""


class Janitor:
    """Runs while this process holds the janitor lock; waits for it otherwise. start() and stop() once each."""

    def __init__(self, images: Images, settle_s: float) -> None:
        self._images = images
        self._repo = images.repo
        self._settle_s = settle_s
        self._collector = Collector(self._repo)
        self._compacted = -1
        """Generation at which nothing was left to be moved."""
        self._lock_fd = -1
        self._stop = threading.Event()
        self._mutex = threading.Lock()
        """Guards `_due` and nothing else; nothing is called under it."""
        self._due: dict[UUID, float] = {}
        """Drafts to look at, by the monotonic time at which."""
        self._running: dict[UUID, Future[None]] = {}
        rate = self._repo.config.gc_bytes_per_second
        self._compactor = Compactor(self._repo, TokenBucket(rate, rate * GC_BURST_S, self._stop.wait).take)
        self._next = dict.fromkeys(("gc", "upkeep"), 0.0)
        self._next["compact"] = time.monotonic() + COMPACT_EVERY_S
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="seal")
        self._hashes = ThreadPoolExecutor(1, thread_name_prefix="hashes")
        self._compacting = ThreadPoolExecutor(1, thread_name_prefix="compact")
        self._conversions = BackgroundConversions(self._repo, self._stop)
        self._thread = threading.Thread(target=self._run, name="janitor", daemon=True)
        # Of its own: collecting garbage or filling a fresh index may take minutes.
        self._flushing = threading.Thread(target=self._flush, name="log-flush", daemon=True)

    def start(self) -> None:
        """Begins to wait for the lock and then to work."""
        self._repo.space.on_low = self._room_is_needed
        self._thread.start()
        self._flushing.start()

    def stop(self) -> None:
        """Ends all work: a seal under way stops before its commit and goes on at the next start."""
        self._stop.set()
        self._thread.join(timeout=60)
        self._flushing.join(timeout=60)
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._hashes.shutdown(wait=True, cancel_futures=True)
        self._compacting.shutdown(wait=True, cancel_futures=True)
        self._conversions.close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)

    def changed(self, rows: Sequence[LogRow] | None) -> None:
        """A listener of the log's tail: drafts that were released become due, deletions wake the collector."""
        if rows is None:
            self._look_at_all()
            return
        for row in rows:
            if row.record.status == Status.SAVING:
                self._look_at(row.record)
            elif row.op in (Op.SEAL, Op.CLONE, Op.CREATE) and self._lock_fd >= 0:
                self._hash_later(row.record)
            elif row.record.status in (Status.DELETED, Status.PENDING_DELETE, Status.QUEUED):
                self._next["gc"] = 0.0
            if row.op in (Op.SEAL, Op.CLONE, Op.UPDATE) and self._lock_fd >= 0:
                # An update too: its hashes may just have become known.
                self._conversions.consider(row.record)

    def _look_at(self, image: Image) -> None:
        if image.draft is not None and image.draft.released_ns is not None:
            with self._mutex:
                self._due[image.id] = time.monotonic()

    def _look_at_all(self) -> None:
        for image in with_status(self._repo.catalog, Status.SAVING):
            self._look_at(image)

    # -- the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.wait(TICK_S):
            try:
                if self._lock_fd >= 0 or self._take_over():
                    self._tick()
            except (ImagefsError, OSError):
                log.exception("upkeep failed; trying again")
                self._stop.wait(1.0)

    def _take_over(self) -> bool:
        fd = os.open(self._repo.path / "locks" / "janitor", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._lock_fd = fd
        recovery.recover(self._repo)
        self._look_at_all()
        for image in with_status(self._repo.catalog, Status.ACTIVE):
            self._hash_later(image)
        self._next["convert"] = 0.0
        return True

    def _tick(self) -> None:
        now = time.monotonic()
        with self._mutex:
            due = [image_id for image_id, at in self._due.items() if at <= now]
        for image_id in due:
            self._seal_if_due(image_id, now)
        if self._is_time("gc", GC_EVERY_S, now):
            self._collector.run(pending_s=PENDING_DELETE_S)
            recovery.remove_stray_staging(self._repo)
        if self._is_time("compact", COMPACT_EVERY_S, now):
            self._compacting.submit(self._compact)
            self._compacting.submit(self._survey)
        if self._is_time("convert", CONVERT_EVERY_S, now):
            self._conversions.consider_all()
        if self._is_time("upkeep", UPKEEP_EVERY_S, now):
            self._repo.catalog.reader_check()
            self._repo.logs.snapshot_when_due()
            self._repo.catalog.log.prune(time.time_ns())

    def _flush(self) -> None:
        """Every process that serves a mount flushes, whoever is the janitor: the one that comes first does it."""
        while not self._stop.wait(FLUSH_EVERY_S):
            try:
                self._repo.logs.flush()
            except (ImagefsError, OSError) as error:
                log.warning("flushing the log failed, trying again: %s", error)

    def _is_time(self, what: str, every_s: float, now: float) -> bool:
        if now < self._next[what]:
            return False
        self._next[what] = now + every_s
        return True

    def _survey(self) -> None:
        """Brings the figures up to date that only a look at every map tells."""
        try:
            survey_when_due(self._repo.catalog)
        except ImagefsError as error:
            log.warning("the survey of all maps failed: %s", error)

    def _room_is_needed(self) -> bool:
        """A writer meets a full disk: the collector comes at once. Whether it can find anything."""
        self._next["gc"] = 0.0
        return self._lock_fd >= 0 and not self._stop.is_set() and self._collector.trash.left()

    def _compact(self) -> None:
        """Moves blocks, in a thread of its own, where something has changed since nothing was left to move."""
        if self._compacted == self._repo.catalog.generation():
            return
        try:
            plan = self._compactor.plan()
            done = self._compactor.execute(plan)
            if done.blocks:
                log.info("moved %d blocks; %d packs, %d images", done.blocks, done.packs, done.images)
            elif not self._stop.is_set():
                self._compacted = plan.generation
        except Busy as error:
            log.info("%s", error)
        except (ImagefsError, OSError) as error:
            log.warning("moving blocks failed: %s", error)

    # -- sealing -----------------------------------------------------------------------------------

    def _seal_if_due(self, image_id: UUID, now: float) -> None:
        running = self._running.get(image_id)
        if running is not None and not running.done():
            return
        try:
            wait_s = seal_due(self._repo, self._repo.catalog.images.get(image_id), self._settle_s)
        except NotFound:
            wait_s = None
        with self._mutex:
            if wait_s is None:
                self._due.pop(image_id, None)
                self._running.pop(image_id, None)
                return
            # Storing begins while the draft still settles; only the commit waits for the end of that.
            # Not at once: qemu-img opens what it makes several times in a row.
            early = self._settle_s - min(self._settle_s / 4, 0.2)
            self._due[image_id] = now + max(wait_s - early, 0.0) if wait_s > early else now + RETRY_S
        if wait_s <= early:
            self._running[image_id] = self._pool.submit(self._seal, image_id)

    def _seal(self, image_id: UUID) -> None:
        def settle() -> None:
            while True:
                wait_s = seal_due(self._repo, self._repo.catalog.images.get(image_id), self._settle_s)
                if wait_s is None:
                    raise SealCancelled(f"Image {image_id} is being written again.")
                if wait_s <= 0:
                    return
                if self._stop.wait(min(TICK_S, wait_s)):
                    raise SealCancelled("The mount is ending; the draft is sealed at the next start.")

        try:
            self._images.sealer.seal(image_id, before_commit=settle)
        except (SealCancelled, NotFound, Busy) as error:
            log.info("%s", error)
        except (ImagefsError, OSError) as error:
            log.warning("sealing image %s failed: %s", image_id, error)

    def _hash_later(self, image: Image) -> None:
        if needs_hashes(image):
            with contextlib.suppress(RuntimeError):  # stopping
                self._hashes.submit(self._fill_in, image.id)

    def _fill_in(self, image_id: UUID) -> None:
        try:
            fill_in_hashes(self._repo, image_id, self._stop.is_set)
        except NotFound as error:  # deleted meanwhile
            log.info("%s", error)
        except (ImagefsError, OSError) as error:
            log.warning("hashing image %s failed: %s", image_id, error)
