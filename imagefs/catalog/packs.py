"""The table of stored objects: packs and manifests, their states (T1-T7), frames and references."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING
from uuid import UUID

from imagefs.catalog import schema
from imagefs.catalog.counters import Counters
from imagefs.catalog.env import Environment, Txn
from imagefs.catalog.packrows import PackDone, PackKind, PackRow, PackState, Totals, decode, encode
from imagefs.catalog.sessions import Sessions
from imagefs.catalog.usage import Usage
from imagefs.errors import NotFound

if TYPE_CHECKING:
    from imagefs.catalog.env import Table

FRAME_ROW = 24
"""Bytes for each frame in a row of `frames`."""
BATCH = 1000


class Packs:
    """Each method is one transaction, or joins the thread's open one. Only `live` packs answer dedup
    look-ups."""

    def __init__(
        self, env: Environment, counters: Counters, sessions: Sessions, clock: Callable[[], int], usage: Usage
    ) -> None:
        self._env = env
        self._counters = counters
        self._sessions = sessions
        self._clock = clock
        self._usage = usage
        self._packs = env.table(schema.PACKS.name)
        self._names = env.table(schema.PACK_NAME.name)
        self._owners = env.table(schema.PACK_OWNER.name)
        self._frames = env.table(schema.FRAMES.name)
        self._damage = env.table(schema.DAMAGE.name)
        self._trash = env.table(schema.TRASH.name)
        self._doomed = env.table(schema.DOOMED.name)

    # -- looking up --------------------------------------------------------------------------------

    def get(self, no: int) -> PackRow:
        """The row. NotFound."""
        row = self.find(no)
        if row is None:
            raise NotFound(f"There is no pack {no}.")
        return row

    def find(self, no: int) -> PackRow | None:
        """The row, None if there is none."""
        key = schema.U32.pack(no)
        with self._env.read() as txn:
            raw = txn.get(key, db=self._packs)
        return decode(key, raw) if raw is not None else None

    def by_name(self, name16: bytes) -> PackRow | None:
        """The row of the object with this name."""
        with self._env.read() as txn:
            raw = txn.get(name16, db=self._names)
            return self.find(schema.U32.unpack(raw)[0]) if raw is not None else None

    def frames(self, no: int, first: int = 0, count: int | None = None) -> bytes:
        """A copy of `count` frame rows of 24 B from frame `first` on (None: all); fewer at the end.
        NotFound."""
        with self._env.read() as txn:
            raw = txn.get(schema.U32.pack(no), db=self._frames)
        if raw is None:
            raise NotFound(f"Pack {no} has no frames in the catalog.")
        return raw[first * FRAME_ROW : None if count is None else (first + count) * FRAME_ROW]

    def scan(self) -> Iterator[PackRow]:
        """All rows by number, read in batches: one that changes meanwhile is seen before or after."""
        no = 0
        while page := self._page(no):
            yield from page
            no = page[-1].no + 1

    def pending(self, image_id: UUID) -> list[PackRow]:
        """The pend rows that this image's draft owns, by number."""
        with self._env.read() as txn:
            keys: list[bytes] = []
            cursor = txn.cursor(db=self._owners)
            if cursor.set_range(image_id.bytes):
                for key in cursor.iternext(keys=True, values=False):
                    if not key.startswith(image_id.bytes):
                        break
                    keys.append(key)
            return [self.get(schema.U32.unpack(key[16:])[0]) for key in keys]

    def totals(self) -> Totals:
        """Counts and bytes by state, as they are counted with every change."""
        return self._usage.totals()

    # -- a draft's packs (T1, T3) --------------------------------------------------------------------

    def reserve(self, image_id: UUID, kind: PackKind = PackKind.PACK, count: int = 64) -> list[tuple[int, bytes]]:
        """The part of T1 that only the table of packs knows: `Seals.reserve` is the guarded whole."""
        names = [os.urandom(16) for _ in range(count)]
        with self._env.write():
            return [(self.reserve_named(image_id, kind, name), name) for name in names]

    def reserve_named(self, image_id: UUID, kind: PackKind, name16: bytes) -> int:
        """T1 for one object whose name is given: a manifest has its map's uuid."""
        with self._env.write() as txn:
            no = self._counters.take("pack")
            gen, now = self._counters.get("gen"), self._clock()
            self._put(txn, None, PackRow(no, name16, kind, PackState.PEND, image_id, gen, now))
            txn.put(name16, schema.U32.pack(no), db=self._names)
        return no

    def finished(self, done: Iterable[PackDone]) -> None:
        """Records what is known now that these pend objects are on the store."""
        with self._env.write() as txn:
            for pack in done:
                old = self.get(pack.no)
                new = replace(
                    old, blocks=pack.nblocks, stored=pack.stored, footer_off=pack.footer_off,
                    footer_digest=pack.footer_digest,
                )  # fmt: skip
                self._put(txn, old, new)
                if pack.frames_row:
                    txn.put(schema.U32.pack(pack.no), pack.frames_row, db=self._frames)

    def use(self, nos: Iterable[int]) -> None:
        """Another map names these: one reference more each, and live from now on."""
        with self._env.write() as txn:
            move = self._mover(PackState.LIVE)
            for no in nos:
                old = self.get(no)
                self._put(txn, old, move(replace(old, refs=old.refs + 1)))

    def release(self, nos: Iterable[int]) -> None:
        """A map that named these is gone: one reference less each; to trash without any."""
        with self._env.write() as txn:
            move = self._mover(PackState.TRASH)
            for no in nos:
                old = self.get(no)
                new = replace(old, refs=old.refs - 1)
                self._put(txn, old, new if new.refs else move(new))

    def discard(self, nos: Iterable[int]) -> None:
        """Pend rows whose put may have begun and will not be finished: to trash. Others are left alone."""
        with self._env.write() as txn:
            move = self._mover(PackState.TRASH)
            for no in nos:
                old = self.find(no)
                if old is not None and old.state == PackState.PEND:
                    self._put(txn, old, move(old))

    def unreserve(self, nos: Iterable[int]) -> None:
        """Pend rows whose object was certainly never put: removed."""
        with self._env.write() as txn:
            for no in nos:
                old = self.find(no)
                if old is not None and old.state == PackState.PEND:
                    self._delete(txn, old)

    # -- the end (T6, T7) ----------------------------------------------------------------------------

    def doomable(self, retention_s: float, now_ns: int) -> list[PackRow]:
        """Trash rows that `doom` would take now and whose retention is over: a plan, nothing is changed."""
        latest = now_ns - int(retention_s * 1e9)
        with self._env.read():
            least = self._sessions.acknowledged()
            return [row for row in self.trash() if row.time_ns <= latest and self._may_doom(row, least)]

    def trash(self) -> list[PackRow]:
        """Rows that no map names, oldest first, whoever still reads them."""
        with self._env.read() as txn:
            keys = list(txn.cursor(db=self._trash).iternext(keys=True, values=False))
            return [self.get(schema.GEN_NO.unpack(key)[1]) for key in keys]

    def doom(self, nos: Iterable[int]) -> list[int]:
        """T6: dooms those that are trash with no reference, acknowledged by every session and held by none.

        Returns them. The others are left alone.
        """
        taken: list[int] = []
        with self._env.write() as txn:
            least = self._sessions.acknowledged()
            move = self._mover(PackState.DOOMED)
            for no in nos:
                old = self.find(no)
                if old is not None and self._may_doom(old, least):
                    self._put(txn, old, move(old))
                    taken.append(no)
        return taken

    def doomed(self) -> list[PackRow]:
        """Rows whose object is to be deleted from the store, then forgotten."""
        with self._env.read() as txn:
            keys = list(txn.cursor(db=self._doomed).iternext(keys=True, values=False))
            return [self.get(schema.U32.unpack(key)[0]) for key in keys]

    def forget(self, nos: Iterable[int]) -> None:
        """T7: removes doomed rows, after their objects are gone from the store. Others are left alone."""
        with self._env.write() as txn:
            for no in nos:
                old = self.find(no)
                if old is not None and old.state == PackState.DOOMED:
                    self._delete(txn, old)

    # -- repairs -------------------------------------------------------------------------------------

    def correct(self, row: PackRow, *, refs: int, state: PackState) -> None:
        """Sets what a count found; another state is a change like any other, for the sessions to acknowledge."""
        with self._env.write() as txn:
            old = self.get(row.no)
            self._put(txn, old, self._mover(state)(replace(old, refs=refs)))

    # ------------------------------------------------------------------------------------------------

    def _may_doom(self, row: PackRow, acknowledged: int | None) -> bool:
        return (
            row.state == PackState.TRASH
            and row.refs == 0
            and (acknowledged is None or acknowledged >= row.gen)
            and not self._sessions.pack_held(row.no)
            # A sealer that is still putting this draft's packs holds the image: its put must not come after
            # the delete.
            and not self._sessions.held(row.owner)
        )

    def _mover(self, state: PackState) -> Callable[[PackRow], PackRow]:
        """Puts rows into a state; those that change share one new generation for the sessions to
        acknowledge."""
        gen = 0
        now = self._clock()

        def move(row: PackRow) -> PackRow:
            nonlocal gen
            if row.state == state:
                return row
            gen = gen or self._counters.next_gen()
            return replace(row, state=state, gen=gen, time_ns=now)

        return move

    def _put(self, txn: Txn, old: PackRow | None, new: PackRow) -> None:
        """Writes the row and, by difference, its row in pack_owner, trash or doomed."""
        before, after = self._listed(old), self._listed(new)
        if before != after:
            if before is not None:
                txn.delete(before[1], db=before[0])
            if after is not None:
                txn.put(after[1], b"", db=after[0])
        txn.put(schema.U32.pack(new.no), encode(new), db=self._packs)
        self._usage.pack_changed(old, new)

    def _delete(self, txn: Txn, row: PackRow) -> None:
        if (listed := self._listed(row)) is not None:
            txn.delete(listed[1], db=listed[0])
        key = schema.U32.pack(row.no)
        for table in (self._packs, self._frames, self._damage):
            txn.delete(key, db=table)
        txn.delete(row.name16, db=self._names)
        self._usage.pack_changed(row, None)

    def _listed(self, row: PackRow | None) -> tuple[Table, bytes] | None:
        """The table besides `packs` where a row of this state is listed, and its key there."""
        if row is None or row.state == PackState.LIVE:
            return None
        if row.state == PackState.PEND:
            return self._owners, row.owner.bytes + schema.U32.pack(row.no)
        if row.state == PackState.TRASH:
            return self._trash, schema.GEN_NO.pack(row.gen, row.no)
        return self._doomed, schema.U32.pack(row.no)

    def _page(self, no: int) -> list[PackRow]:
        """Up to BATCH rows from number `no` on."""
        with self._env.read() as txn:
            cursor = txn.cursor(db=self._packs)
            if not cursor.set_range(schema.U32.pack(no)):
                return []
            return [decode(key, value) for key, value in islice(cursor, BATCH)]
