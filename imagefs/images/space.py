"""Room on the disk under drafts: refuses a write whose sealing would not fit (S15).

`cp` has returned when packs are written, so a full disk must be found while the writer can still be
told: a draft's byte is accepted only when the disk could hold it once more as a pack (nothing
compresses or dedups in the worst case).
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from imagefs.errors import NoSpace
from imagefs.images.materialised import Materialised
from imagefs.images.staging import Staging

RESERVE = 64 << 20
CREDIT = 64 << 20
"""At most this much is accepted between two looks at the disk."""


class SpaceGuard:
    """Counts accepted bytes against the free space measured last. Leaf lock: nothing is taken under it."""

    def __init__(self, directory: Path, staging: Staging, materialised: Materialised) -> None:
        self._directory = directory
        self._staging = staging
        self._materialised = materialised
        self._lock = threading.Lock()
        self._credit = 0

    def require(self, nbytes: int) -> None:
        """Returns when `nbytes` more may be written to drafts; raises NoSpace otherwise."""
        with self._lock:
            if self._credit < nbytes:
                room = self.room()
                if room < nbytes and self._materialised.evict(nbytes - room + CREDIT):
                    room = self.room()
                if room < nbytes:
                    self._credit = 0
                    raise NoSpace(
                        f"The disk under {self._directory} has no room for {nbytes} more bytes and their packs."
                    )
                # Half of the room: the byte written now is counted as a staging byte and as a pack byte.
                self._credit = min(CREDIT, max(nbytes, room // 2))
            self._credit -= nbytes

    def room(self) -> int:
        """Bytes that drafts can still grow by; 0 or less when the disk is full."""
        disk = os.statvfs(self._directory)
        reserve = min(RESERVE, disk.f_blocks * disk.f_frsize // 20)
        return disk.f_bavail * disk.f_frsize - self._staging.allocated() - reserve
