"""Following the change log: what other processes did reaches this one within a second (S12, T8)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from uuid import UUID

from imagefs.catalog import LogRow, Op
from imagefs.errors import ImagefsError, LogGap, NotFound
from imagefs.images.opens import OpenFiles
from imagefs.images.repository import Repository
from imagefs.types import Status

log = logging.getLogger(__name__)

POLL_S = 0.2
ACK_EVERY_S = 0.3
"""An acknowledgement is a commit of its own: not one for each of 10,000 new images."""
Listener = Callable[[Sequence[LogRow] | None], None]
"""Gets new rows in order, or None when rows were lost and everything may have changed."""


class LogTail:
    """A thread that reads new log rows, holds deleted images that are open here, tells the listeners, and
    acknowledges. Own commits wake it at once; those of other processes are found by polling the generation."""

    def __init__(self, repo: Repository, opens: OpenFiles | None, listeners: Sequence[Listener]) -> None:
        self._repo = repo
        self._opens = opens
        self._listeners = listeners
        self._wake = threading.Event()
        self._stop = False
        self._gen = self._acked = repo.catalog.generation()
        self._deleted: set[UUID] = set()
        """Images whose deletion is not acknowledged yet."""
        self._next_ack = 0.0
        self._thread = threading.Thread(target=self._run, name="log-tail", daemon=True)

    def start(self) -> None:
        """Begins to follow. From here on each commit of this process wakes the thread."""
        self._repo.catalog.on_commit = self._wake.set
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._repo.catalog.on_commit = None
        self._stop = True
        self._wake.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stop:
            self._wake.wait(POLL_S)
            self._wake.clear()
            try:
                self.catch_up()
                if self._acked < self._gen and time.monotonic() >= self._next_ack:
                    self.acknowledge()
            except (ImagefsError, OSError):
                log.exception("following the change log failed; trying again")

    def catch_up(self) -> None:
        """Tells the listeners what is new."""
        gen = self._repo.catalog.generation()
        if gen == self._gen:
            return
        rows: Sequence[LogRow] | None
        try:
            rows = self._repo.catalog.log.since(self._gen)
            for row in rows:
                self._note(row)
        except LogGap:
            rows = None
            self._deleted |= {image_id for _, image_id in self._repo.catalog.images.unlinked()}
        for listener in self._listeners:
            listener(rows)
        self._gen = max(gen, rows[-1].gen if rows else 0)

    def _note(self, row: LogRow) -> None:
        if row.record.status == Status.DELETED:
            self._deleted.add(row.image_id)
        elif row.op == Op.CREATE and row.record.sealed:
            # Brought back from the trash: who closes it looks for a hold on deleted images only.
            self._deleted.discard(row.image_id)
            self._repo.catalog.sessions.release_hold(row.image_id, self._repo.session.id)

    def acknowledge(self) -> None:
        """Holds what is deleted and open here, and in the same transaction acknowledges all that was seen."""
        self._next_ack = time.monotonic() + ACK_EVERY_S
        held = self._opens.held() & self._deleted if self._opens else set()
        try:
            self._repo.catalog.sessions.ack(self._repo.session.id, self._gen, held)
        except NotFound:
            log.error("session %s was reaped: it acknowledges nothing any more", self._repo.session.id)
            self._stop = True
        # Closed between the look and the hold: nobody else would let go of it.
        for image_id in held - (self._opens.held() if self._opens else set()):
            self._repo.catalog.sessions.release_hold(image_id, self._repo.session.id)
        self._acked = self._gen
        self._deleted.clear()
