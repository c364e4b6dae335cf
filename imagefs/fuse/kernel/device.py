"""The server of one connection: threads that read requests from /dev/fuse and write the replies.

Several threads share the one inherited descriptor (a cloned one would take the requests read through it
with it when it dies). Each has one buffer for everything it reads, laid out so that the data of a WRITE
begins on a page boundary.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
import signal
import sys
import threading
from enum import Enum
from typing import TYPE_CHECKING

from imagefs.errors import ImagefsError
from imagefs.fuse.errnos import errno_of
from imagefs.fuse.kernel.encoding import message
from imagefs.fuse.kernel.operations import OPERATIONS, UNANSWERED
from imagefs.fuse.kernel.protocol import DATA_OFFSET, Opcode
from imagefs.fuse.kernel.request import Request, Served

if TYPE_CHECKING:
    from typing_extensions import Buffer

log = logging.getLogger(__name__)

LANES = 4
"""Serving threads at rest."""
MOST_LANES = 64
"""Serving threads at most: also the number of reply slots that one worker uses."""
INCARNATIONS = 16
"""Workers after which reply slots are used again."""
STALL_S = 0.2
"""When all threads have been busy with one request each for so long, their number is doubled: reads that wait
for a slow store do not keep others from local data (S14)."""
LAST_REPLIES_S = 30.0
"""How long the end waits for threads that still work on a request nobody waits for any more."""
SWITCH_S = 0.00002
"""After how long a thread that computes lets another one have the interpreter. With CPython's 5 ms every
request waits so long while anything else computes in this process: beside one busy thread 128 KiB writes ran
at 23 MB/s and lookups at 300 a second, with this at 450 MB/s and 6,600; the busy thread lost nothing that
could be measured."""
PAGE = mmap.PAGESIZE


class Ended(Enum):
    """Why serve() returned."""

    UNMOUNTED = "unmounted"
    DRAINED = "drained"
    """On request (drain): what had been read is answered, another worker may take over."""


def _resident(size: int) -> mmap.mmap:
    """Memory that the kernel can copy a request to without a page fault.

    A thread of a worker that is being killed may still take a request off the queue. In a page that is not
    there, or that a fork made copy-on-write, the kernel cannot put it then, and the caller gets EIO instead
    of sending it again (seen in 3 of 22 kills with untouched buffers, in none with these).
    """
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
    memory.madvise(mmap.MADV_DONTFORK)
    return memory


class Lane(threading.Thread):
    """One serving thread."""

    def __init__(self, device: Device, number: int) -> None:
        super().__init__(name=f"fuse-{number}", daemon=True)
        self.number = number
        self.turns = 0
        """Odd while a request is being served; written by this thread alone."""
        self._buffer = memoryview(_resident(PAGE + device.max_write + PAGE))[PAGE - DATA_OFFSET :]
        self.request = Request(self._buffer, device.incarnation % INCARNATIONS * MOST_LANES + number)
        self._device = device

    def run(self) -> None:
        """Serves until the connection ends or the device drains."""
        try:
            self._serve()
        except Exception as error:  # thread top
            log.exception("serving thread %d failed", self.number)
            self._device.failure = error
        self._device.left(self)

    def _serve(self) -> None:
        device, request = self._device, self.request
        into = (self._buffer,)
        while not device.draining:
            try:
                length = os.readv(device.fd, into)
            except OSError as error:
                # ENOENT: the request was taken back while it was being read. EAGAIN: draining.
                if error.errno in {errno.ENOENT, errno.EINTR, errno.EAGAIN}:
                    continue
                if error.errno in {errno.ENODEV, errno.ECONNABORTED}:
                    device.unmounted = True
                    return
                raise
            self.turns += 1
            self._answer(request.arrived(length))
            self.turns += 1
            if self.number >= LANES and device.rested:
                return

    def _answer(self, opcode: int) -> None:
        request = self.request
        payload: Buffer = b""
        number = 0
        try:
            operation = OPERATIONS.get(opcode)
            if operation is not None:
                payload = operation(self._device.served, request)
            elif opcode in UNANSWERED:
                return
            else:
                number = errno.ENOSYS
        except Exception as error:  # noqa: BLE001 -- thread top: whatever happens, the caller gets an answer
            number = self._errno(opcode, error)
        self._reply(number, payload if number == 0 else b"")

    def _reply(self, number: int, payload: Buffer) -> None:
        unique = self.request.unique
        try:
            os.writev(self._device.fd, message(unique, -number, payload))
        except OSError as error:
            # ENOENT: the caller has been killed meanwhile. ENODEV: unmounted, as the next read will say.
            if error.errno in {errno.ENOENT, errno.ENODEV, errno.ECONNABORTED}:
                return
            log.error("the kernel refused a reply of %d bytes: %s", len(memoryview(payload)), error)
            with contextlib.suppress(OSError):
                os.writev(self._device.fd, message(unique, -errno.EIO, b""))

    def _errno(self, opcode: int, error: Exception) -> int:
        number = errno_of(error)
        if number is None:
            log.error("request %d on inode %d failed", opcode, self.request.node, exc_info=error)
            return errno.EIO
        if number == errno.EIO and isinstance(error, ImagefsError):
            log.error("%s of inode %d: %s", Opcode(opcode).name, self.request.node, error)
        else:
            log.debug("%s of inode %d: %r", Opcode(opcode).name, self.request.node, error)
        return number


class Device:
    """Serves one connection in this process.

    `incarnation` counts the connection's earlier workers: reply slots that they left are not overwritten
    as long as their requests may still come again.
    """

    def __init__(self, fd: int, served: Served, max_write: int, incarnation: int = 0) -> None:
        self.fd = fd
        self.served = served
        self.max_write = max_write
        self.incarnation = incarnation
        self.draining = False
        self.unmounted = False
        self.failure: Exception | None = None
        self._lock = threading.Lock()
        """Guards `_lanes`; nothing is taken under it."""
        self._lanes: dict[int, Lane] = {}
        self._bell = threading.Lock()
        """Held, but when serve() is to look around. A signal handler may ring it: unlike setting an Event, that
        never waits, and so not for the thread that the handler interrupted either."""
        self._bell.acquire()

    def serve(self) -> Ended:
        """Answers requests until the mount is gone or drain() was called. In the main thread, SIGTERM drains.

        Raises OSError when the descriptor cannot be read.
        """
        os.set_blocking(self.fd, True)  # a worker that drained left it so
        sys.setswitchinterval(SWITCH_S)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: self.drain())
            signal.signal(signal.SIGUSR1, lambda *_: None)
        for _ in range(LANES):
            self._add_lane()
        before: dict[int, int] = {}
        while not (self.unmounted or self.draining or self.failure):
            self._bell.acquire(timeout=STALL_S)
            before = self._reinforce(before)
        if self.draining:
            self._interrupt_lanes()
        self._await_lanes()
        if self.failure:
            raise self.failure
        return Ended.UNMOUNTED if self.unmounted else Ended.DRAINED

    def drain(self) -> None:
        """Makes serve() return once every request that has been read is answered. Needs serve() to run in
        the main thread, whose signal handlers wake the threads that read."""
        self.draining = True
        self._ring()

    def _ring(self) -> None:
        with contextlib.suppress(RuntimeError):  # rung already
            self._bell.release()

    def _interrupt_lanes(self) -> None:
        """Ends the reads that wait for a request, and has the next ones not wait."""
        os.set_blocking(self.fd, False)
        for lane in self.lanes():
            if lane.ident is not None and lane.is_alive():
                signal.pthread_kill(lane.ident, signal.SIGUSR1)

    def lanes(self) -> list[Lane]:
        """The serving threads of this moment."""
        with self._lock:
            return list(self._lanes.values())

    @property
    def rested(self) -> bool:
        """Whether one of the first threads waits for requests, so that further ones are not needed."""
        return any(lane.number < LANES and lane.turns % 2 == 0 for lane in self.lanes())

    def left(self, lane: Lane) -> None:
        """Called by a serving thread when it ends."""
        with self._lock:
            del self._lanes[lane.number]
        if self.unmounted or self.failure:
            self._ring()

    def _add_lane(self) -> None:
        with self._lock:
            number = next(n for n in range(MOST_LANES + 1) if n not in self._lanes)
            if number == MOST_LANES:
                return
            lane = self._lanes[number] = Lane(self, number)
        lane.start()

    def _reinforce(self, before: dict[int, int]) -> dict[int, int]:
        """Starts threads if all have been busy with one request each since `before`; the state now."""
        now = {lane.number: lane.turns for lane in self.lanes()}
        if all(turns % 2 and before.get(number) == turns for number, turns in now.items()):
            for _ in now:
                self._add_lane()
        return now

    def _await_lanes(self) -> None:
        deadline = LAST_REPLIES_S
        for lane in self.lanes():
            if self.failure is None and lane.is_alive():
                lane.join(deadline)
            if lane.is_alive():
                deadline = 0.0
