"""Work in the background that leaves the disk to others: so many bytes a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class TokenBucket:
    """Lets `rate` bytes a second through, up to `burst` of them at once. Any thread.

    The lock is held over a look at the clock, never over the wait. Who takes more than there is leaves a
    debt and waits until it is paid, so that a piece may be larger than the burst.
    """

    def __init__(
        self,
        rate: float,
        burst: float,
        wait: Callable[[float], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`wait(seconds)` is that of an Event: true, at once, when the work is to end."""
        self._rate = rate
        self._burst = burst
        self._wait = wait
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens = burst
        self._at = clock()

    def take(self, nbytes: int) -> bool:
        """Waits until these bytes may be moved; False when the work is to end."""
        with self._lock:
            now = self._clock()
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate) - nbytes
            self._at = now
            delay = -self._tokens / self._rate
        return not self._wait(max(0.0, delay))
