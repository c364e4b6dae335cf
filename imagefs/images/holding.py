"""Packs that uploads of this process refer to before they are committed.

A seal that finds a shared pack gone stores its blocks again out of the draft (T3). An upload comes once and
has no draft to read again, so what it shares is held: not doomed, and made live again by the commit.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from uuid import UUID

from imagefs.catalog import Catalog, PackKind, PackState
from imagefs.errors import NotFound

NEIGHBOURS = 64
"""Packs held at once, in one transaction: who shares a pack mostly goes on with those reserved with it."""


class PackHolds:
    """Counts who holds a pack: the catalog keeps one hold for a session, however many of its uploads need it.

    Any thread. Order: `_lock`, then catalog transactions.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._lock = threading.Lock()
        self._users: Counter[int] = Counter()

    def take(self, no: int, session: UUID) -> list[int]:
        """Holds a pack and its neighbours as far as they are live; those it holds, none when `no` is not live."""
        first = no - no % NEIGHBOURS
        with self._lock:
            with self._catalog.transaction():
                packs = [first + at for at in range(NEIGHBOURS) if self._is_live(first + at)]
                if no not in packs:
                    return []
                for pack in packs:
                    if not self._users[pack]:
                        self._catalog.sessions.hold_pack(pack, session)
            self._users.update(packs)
            return packs

    def release(self, nos: Iterable[int], session: UUID) -> None:
        """One user less of each."""
        with self._lock, self._catalog.transaction():
            self._users.subtract(packs := list(nos))
            for pack in packs:
                if self._users[pack] <= 0:
                    del self._users[pack]
                    self._catalog.sessions.release_pack(pack, session)

    def _is_live(self, no: int) -> bool:
        try:
            row = self._catalog.packs.get(no)
        except NotFound:
            return False
        return row.kind == PackKind.PACK and row.state == PackState.LIVE
