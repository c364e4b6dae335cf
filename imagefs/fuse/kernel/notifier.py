"""Tells the kernel what it must forget, from a thread of its own."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING
from uuid import UUID

from imagefs.fuse.kernel import notices

if TYPE_CHECKING:
    from imagefs.catalog import LogRow
    from imagefs.fuse.kernel.device import Device

log = logging.getLogger(__name__)

LONGEST_QUEUE = 20_000
"""Messages that may wait; more, and forgetting all names is cheaper."""
PATIENCE_S = 1.0
POLL_S = 0.0005


class Notifier:
    """A queue and the one thread that writes notifications.

    Never a serving thread: an INVAL_ENTRY waits in the kernel for the lock of its directory, which is held by
    whoever made the request that is being served: a deadlock that no signal ends. For the same reason the
    thread holds no lock and no transaction while it writes, and first lets the requests be answered that were
    changing names when the notification was queued.
    """

    def __init__(self, device: Device, minor: int, own: UUID) -> None:
        """`own` is this mount's session, as in the change log's rows."""
        self._device = device
        self._minor = minor
        self._own = own
        self._queue: deque[bytes] = deque()
        self._wake = threading.Condition()
        """Guards `_queue` and `_stopped`; nothing is taken under it."""
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="fuse-notifier", daemon=True)
        self._thread.start()

    def push(self, rows: Sequence[LogRow] | None) -> None:
        """Committed rows of the change log, by this process or another, oldest first; returns at once.

        None: changes were missed. Names and listings are then looked up anew, as when too much waits.
        """
        messages: list[bytes] | None = None
        if rows is not None:
            messages = [message for row in rows for message in notices.of_row(row, self._own)]
        with self._wake:
            if messages is None or len(self._queue) + len(messages) > LONGEST_QUEUE:
                self._queue.clear()
                messages = notices.everything(self._minor)
            self._queue.extend(messages)
            self._wake.notify()

    def stop(self) -> None:
        """Ends the thread; what waits is dropped: the mount is gone, or another worker begins afresh."""
        with self._wake:
            self._stopped = True
            self._wake.notify()
        self._thread.join(PATIENCE_S)

    def _run(self) -> None:
        while batch := self._next():
            self._let_changes_end()
            # Once is enough, as late as the last of them stood.
            for message in reversed(dict.fromkeys(reversed(batch))):
                self._send(message)

    def _next(self) -> list[bytes]:
        """All that is queued, once there is something; nothing after stop()."""
        with self._wake:
            while not self._queue and not self._stopped:
                self._wake.wait()
            batch = [] if self._stopped else list(self._queue)
            self._queue.clear()
            return batch

    def _let_changes_end(self) -> None:
        waiting = [(lane, lane.turns) for lane in self._device.lanes() if lane.request.changing]
        deadline = time.monotonic() + PATIENCE_S
        for lane, turn in waiting:
            while turn % 2 and lane.turns == turn and time.monotonic() < deadline:
                time.sleep(POLL_S)

    def _send(self, message: bytes) -> None:
        try:
            os.write(self._device.fd, message)
        except OSError as error:
            # ENOENT: the kernel does not know the name or inode. ENODEV: unmounted.
            if error.errno not in {errno.ENOENT, errno.ENODEV, errno.ECONNABORTED}:
                log.warning("the kernel refused a notification of %d bytes: %s", len(message), error)
