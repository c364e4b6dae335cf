"""Decoded frames in memory: verified once, shared by all readers, fetched by one of them (S11)."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future

from imagefs.errors import BackendTimeout

Key = tuple[int, int]
"""(pack number, frame number): pack numbers are never used again, so an entry is never stale."""

WAIT_SECONDS = 120.0
"""Longest wait for another thread's fetch; stores have deadlines of their own far below."""


class FrameCache:
    """LRU of plain frames, bounded by bytes. The lock guards the two dicts and is never held over I/O."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._used = 0
        self._frames: OrderedDict[Key, bytes] = OrderedDict()
        self._fetching: dict[Key, Future[bytes]] = {}
        self._lock = threading.Lock()

    def get(self, pack: int, first: int, count: int, fetch: Callable[[int, int], Sequence[bytes]]) -> list[bytes]:
        """Frames `first` .. `first + count - 1` of a pack, in order.

        `fetch(first, count)` is called for each run of frames that nobody has or is fetching; what it
        raises is raised here, and to every thread that waits for the same frames.
        """
        found: dict[int, bytes | Future[bytes]] = {}
        mine: list[int] = []
        with self._lock:
            for number in range(first, first + count):
                key = (pack, number)
                frame = self._frames.get(key)
                if frame is not None:
                    self._frames.move_to_end(key)
                    found[number] = frame
                elif key in self._fetching:
                    found[number] = self._fetching[key]
                else:
                    self._fetching[key] = Future()
                    mine.append(number)
        if mine:
            self._fetch(pack, mine, fetch, found)
        return [self._settled(pack, number, found[number], fetch) for number in range(first, first + count)]

    def _settled(
        self,
        pack: int,
        number: int,
        frame: bytes | Future[bytes],
        fetch: Callable[[int, int], Sequence[bytes]],
    ) -> bytes:
        if isinstance(frame, bytes):
            return frame
        try:
            return frame.result(WAIT_SECONDS)
        except CancelledError:
            return self.get(pack, number, 1, fetch)[0]
        except TimeoutError as error:
            raise BackendTimeout(f"Frame {number} of pack {pack} did not arrive in {WAIT_SECONDS} s.") from error

    def _fetch(
        self,
        pack: int,
        numbers: list[int],
        fetch: Callable[[int, int], Sequence[bytes]],
        found: dict[int, bytes | Future[bytes]],
    ) -> None:
        waiting = numbers
        try:
            for start, count in _runs(numbers):
                frames = fetch(start, count)
                self._store(pack, start, frames)
                found.update(zip(range(start, start + count), frames, strict=True))
                waiting = waiting[count:]
        finally:
            if waiting:
                self._fail(pack, waiting)

    def _store(self, pack: int, start: int, frames: Sequence[bytes]) -> None:
        with self._lock:
            for number, frame in enumerate(frames, start):
                key = (pack, number)
                self._frames[key] = frame
                self._used += len(frame)
                self._fetching.pop(key).set_result(frame)
            while self._used > self._capacity:
                _, evicted = self._frames.popitem(last=False)
                self._used -= len(evicted)

    def _fail(self, pack: int, numbers: list[int]) -> None:
        """Waiters get the cancellation and fetch for themselves, so each sees its own error."""
        with self._lock:
            for number in numbers:
                self._fetching.pop((pack, number)).cancel()


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and sum(runs[-1]) == number:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((number, 1))
    return runs
