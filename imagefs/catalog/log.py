"""The change log: every write of a record as a row with its full new value."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import NamedTuple
from uuid import UUID

from imagefs.catalog import records, schema
from imagefs.catalog.counters import Counters
from imagefs.catalog.env import Environment
from imagefs.catalog.sessions import Sessions
from imagefs.errors import LogGap
from imagefs.types import Image

KEPT_NS = 3600 * 10**9
"""Rows stay this long, so that a process which was stopped for a while finds what it missed."""
TAIL_MAX = 50_000
"""Rows that `since` returns at most: dropping all caches is cheaper than reading more."""
BATCH = 1000


class Op(IntEnum):
    """What a log row says happened; the record in the row is the state after it."""

    PUT = 0
    """A live record as it is: rows of snapshots."""
    CREATE = 1
    UPDATE = 2
    """Attributes, tags, properties, times, modes."""
    RENAME = 3
    """The name changed, and with it the entry: the old one is in the row."""
    DRAFT = 4
    """A draft began, changed or ended, or data got another inode."""
    SEAL = 5
    CLONE = 6
    UNLINK_DATA = 7
    """Sealed `data` was removed: pending_delete, no entry any more."""
    DELETE = 8
    """A tombstone: the record's status is deleted."""
    SIBLING = 9
    """A temporary file beside `data` came, went or changed its name."""


class LogRow(NamedTuple):
    """One change of one image."""

    gen: int
    op: Op
    image_id: UUID
    record: Image
    """The full record after the change."""
    old_entry: bytes | None
    """Its name in by-name/ before the change, None if it had none."""
    old_data_ino: int
    """The data's inode before the change, 0 if the image was new."""
    origin: UUID
    """Session that wrote it (`Catalog.session`); all zero for none."""
    time_ns: int


class Log:
    """Each method is one transaction, or joins the thread's open one. Rows are appended by the other
    tables."""

    def __init__(self, env: Environment, counters: Counters, sessions: Sessions, clock: Callable[[], int]) -> None:
        self._env = env
        self._counters = counters
        self._sessions = sessions
        self._clock = clock
        self._rows = env.table(schema.LOG.name)
        self.origin = UUID(int=0)
        """Session named in the rows that this process writes."""
        self.on_append: Callable[[], None] = lambda: None
        """Called once after the commit of a transaction that appended rows."""

    def append(self, op: Op, value: bytes, record: Image, old: Image | None) -> int:
        """Adds the row of a change to `record` (`value` as in images) from `old`, part of the change's
        transaction. Returns its generation."""
        old_entry = (old.entry if old else None) or b""
        ino = old.data_ino if old else 0
        head = schema.LOG_ROW.pack(op, record.id.bytes, self.origin.bytes, self._clock(), ino, len(old_entry))
        with self._env.write() as txn:
            gen = self._counters.next_gen()
            key = schema.U64.pack(gen)
            txn.put(key, b"".join((head, old_entry, value)), append=True, db=self._rows)
            self._counters.set("logged", gen)
            self._env.after_commit(self.on_append)
        return gen

    def since(self, gen: int) -> list[LogRow]:
        """Rows with a generation above `gen`, oldest first, up to the newest one: whole transactions.

        Raises LogGap if some of them were pruned or there are more than 50,000: the reader must drop all that
        it has cached and go on from the present generation.
        """
        with self._env.read():
            if gen < self._counters.get("pruned") or self.newest() - gen > TAIL_MAX:
                raise LogGap(f"The change log does not reach back to {gen} any more.")
            rows: list[LogRow] = []
            while page := self._page(rows[-1].gen if rows else gen):
                rows += page
        return rows

    def newest(self) -> int:
        """The generation of the newest row, pruned or not; `Catalog.generation` may be above it."""
        return self._counters.get("logged")

    def unflushed(self) -> Iterator[LogRow]:
        """Rows that no log object on the store has yet, oldest first, read in batches."""
        return self._iterate(self.flushed())

    def mark_flushed(self, gen: int) -> None:
        """Records that log objects on the store have every row up to `gen`."""
        with self._env.write():
            if gen > self.flushed():
                self._counters.set("flushed", gen)

    def flushed(self) -> int:
        """The generation up to which rows are in log objects; all are when it is not below `newest`."""
        return self._counters.get("flushed")

    def prune(self, now_ns: int) -> int:
        """Removes rows older than 1 h that are flushed and that every session has acknowledged; returns how
        many."""
        with self._env.write() as txn:
            least = self._sessions.acknowledged()
            limit = self.flushed() if least is None else min(least, self.flushed())
            gone = 0
            cursor = txn.cursor(db=self._rows)
            while cursor.first():
                key, value = cursor.item()
                gen, time_ns = schema.U64.unpack(key)[0], schema.LOG_ROW.unpack_from(value)[3]
                # 10,000 deletions take about 50 ms, in which no other process can write.
                if gen > limit or time_ns > now_ns - KEPT_NS or gone == 10_000:
                    break
                txn.delete(key, db=self._rows)
                self._counters.set("pruned", gen)
                gone += 1
        return gone

    def rows(self) -> Iterator[LogRow]:
        """All rows there are, oldest first, read in batches."""
        return self._iterate(0)

    def _iterate(self, gen: int) -> Iterator[LogRow]:
        while page := self._page(gen):
            yield from page
            gen = page[-1].gen

    def _page(self, gen: int) -> list[LogRow]:
        """Up to BATCH rows above `gen`."""
        rows: list[LogRow] = []
        with self._env.read() as txn:
            cursor = txn.cursor(db=self._rows)
            if cursor.set_range(schema.U64.pack(gen + 1)):
                for key, value in cursor:
                    rows.append(_decode(key, value))
                    if len(rows) == BATCH:
                        break
        return rows


def _decode(key: bytes, value: bytes) -> LogRow:
    op, image_id, origin, time_ns, ino, length = schema.LOG_ROW.unpack_from(value)
    start = schema.LOG_ROW.size + length
    return LogRow(
        gen=schema.U64.unpack(key)[0],
        op=Op(op),
        image_id=UUID(bytes=image_id),
        record=records.decode(value[start:]),
        old_entry=value[schema.LOG_ROW.size : start] or None,
        old_data_ino=ino,
        origin=UUID(bytes=origin),
        time_ns=time_ns,
    )
