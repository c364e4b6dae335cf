"""How often a worker is replaced before its mount is given up. Pure counting, no clock and no process."""

from __future__ import annotations

from dataclasses import dataclass

MOST_FAILED = 10
"""Workers in a row that end before they serve anything."""
MOST_SHORT = 100
"""Workers in a row that live less than LONG_S: a request that kills whoever executes it comes again and
again. More than a test or a person with kill(1) is likely to get through."""
LONG_S = 10.0
LONGEST_PAUSE_S = 1.0


@dataclass
class Restarts:
    """The deaths so far of one mount's workers."""

    failed: int = 0
    short: int = 0

    def pause(self, *, served: bool, lived_s: float) -> float | None:
        """Seconds to wait before the next worker after one died; None to give up.

        The first death costs nothing: whoever waits for an answer should not notice.
        """
        self.failed = 0 if served else self.failed + 1
        self.short = 0 if lived_s >= LONG_S else self.short + 1
        if self.failed >= MOST_FAILED or self.short >= MOST_SHORT:
            return None
        steps = max(self.failed, self.short // 10)
        return 0.0 if steps < 2 else min(0.02 * 2**steps, LONGEST_PAUSE_S)
