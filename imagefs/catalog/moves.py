"""Moving blocks from packs to packs (T9): a map's meaning stays, only where its blocks lie changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple
from uuid import UUID

from imagefs.catalog import schema
from imagefs.catalog.env import Environment, Txn
from imagefs.catalog.maps import Maps
from imagefs.catalog.packrows import PackDone, PackState
from imagefs.catalog.packs import Packs
from imagefs.catalog.sessions import Sessions
from imagefs.errors import NotFound

Rows = Sequence[tuple[int, bytes]]
"""Rows of a map: (first quarter, columns)."""


class Move(NamedTuple):
    """One map with some of its blocks elsewhere."""

    map_id: int
    old: Rows
    """The rows that change, as they were read."""
    new: Rows
    """What takes their place."""
    arrived: frozenset[int]
    """Packs that the map names now and did not before."""
    left: frozenset[int]
    """Packs that it names no more."""


class Moves:
    """Each method is one transaction, or joins the thread's open one.

    What a mover reserves belongs to its session: when that one ends, or when another worker follows in it,
    the objects that no map names yet go to trash. Rows of a map are changed by whoever holds the file lock
    `locks/move`, so that `Move.arrived` and `Move.left`, counted over the whole map, are still true here.
    """

    def __init__(self, env: Environment, sessions: Sessions, packs: Packs, maps: Maps) -> None:
        self._env = env
        self._sessions = sessions
        self._packs = packs
        self._maps = maps
        self._rows = env.table(schema.MAPSEG.name)

    def reserve(self, session: UUID, count: int) -> list[tuple[int, bytes]]:
        """T1: `count` new (number, name16) of packs, pend. NotFound when the session was ended."""
        with self._env.write():
            if not self._sessions.exists(session):
                raise NotFound(f"Session {session} has been ended.")
            return self._packs.reserve(session, count=count)

    def commit(self, session: UUID, move: Move, packs: Iterable[PackDone]) -> bool:
        """T9 for one map: its rows, references of packs, pend to live, and to trash what nothing names.

        `packs`: those that were put for it. False, and nothing is changed, when the map is gone or its rows
        are not what they were, or a pack that it would name is none of the session's and not stored any more.
        """
        with self._env.write() as txn:
            try:
                self._maps.info(move.map_id)
            except NotFound:
                return False
            done = {pack.no: pack for pack in packs}
            if not self._as_read(txn, move) or not all(self._usable(no, session, done) for no in move.arrived):
                return False
            self._packs.finished(done[no] for no in sorted(move.arrived) if self._is_pend(no))
            kept = {quarter for quarter, _ in move.new}
            for quarter, _ in move.old:
                if quarter not in kept:
                    txn.delete(schema.SEG.pack(move.map_id, quarter), db=self._rows)
            for quarter, value in move.new:
                txn.put(schema.SEG.pack(move.map_id, quarter), value, db=self._rows)
            self._packs.use(sorted(move.arrived))
            self._packs.release(sorted(move.left))
        return True

    def let_go(self, session: UUID) -> None:
        """What the session reserved and no map names goes to trash: nobody puts or commits it any more."""
        with self._env.write():
            self._packs.discard(pack.no for pack in self._packs.pending(session))

    def _as_read(self, txn: Txn, move: Move) -> bool:
        keys = [(schema.SEG.pack(move.map_id, quarter), value) for quarter, value in move.old]
        return all(txn.get(key, db=self._rows) == value for key, value in keys)

    def _is_pend(self, no: int) -> bool:
        return self._packs.get(no).state == PackState.PEND

    def _usable(self, no: int, session: UUID, done: dict[int, PackDone]) -> bool:
        """Whether a map may begin to name the pack: put by this session just now, or stored for another map."""
        row = self._packs.find(no)
        if row is None:
            return False
        if row.state == PackState.PEND:
            return row.owner == session and no in done
        return row.state in (PackState.LIVE, PackState.TRASH)
