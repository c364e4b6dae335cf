"""The dedup index: sampled block digests -> where a copy is. A hint, never authoritative; disposable.

    idx     digest of 20 B                  pack number u32, block u16: the newest copy
    packs   pack number u32, block u16      20 B digests that were added with it, for removal
    wholes  digest of 1 MiB                 where its blocks are, see images/wholes.py
    parts   pack number u32, digest of 20 B b"": rows of `wholes` to be removed with the pack
    meta    'built'                         b"": everything that should be in it is

Rows that point into packs which are no longer live do no harm: whoever hits one looks the pack up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING

from imagefs.catalog import schema
from imagefs.catalog.disposable import Disposable

if TYPE_CHECKING:
    from imagefs.catalog.env import Txn

WIDTH = 20
"""Bytes of a digest."""
BATCH = 50_000
"""Rows in one transaction: they share the writer lock with other sealers, 50,000 take about 0.1 s."""
_WHERE = Struct(">IH")


class DedupIndex:
    """Any thread and any process may call. Open it after fork, never before, and once in a process."""

    def __init__(self, path: Path, boot: str) -> None:
        """In the directory `path`; emptied if it may have lost writes in a power cut (`boot`: this boot's
        id)."""
        # Without read-ahead a cold look-up reads 5 KiB instead of 204 KiB.
        self._disposable = Disposable(path, boot, ("idx", "packs", "wholes", "parts", "meta"), readahead=False)
        self._env = self._disposable.env
        self._rows = self._env.table("idx")
        self._packs = self._env.table("packs")
        self._wholes = self._env.table("wholes")
        self._parts = self._env.table("parts")
        self._meta = self._env.table("meta")

    @property
    def fresh(self) -> bool:
        """Whether it was emptied and waits for a rebuild from the packs' footers (then `mark_built`)."""
        with self._env.read() as txn:
            return txn.get(b"built", db=self._meta) is None

    def mark_built(self) -> None:
        """It has everything that it should have."""
        with self._env.write() as txn:
            txn.put(b"built", b"", db=self._meta)

    def lookup(self, digest: bytes) -> tuple[int, int] | None:
        """(pack number, block in it) of the newest known copy."""
        with self._env.read() as txn:
            raw = txn.get(digest, db=self._rows)
        return _WHERE.unpack(raw) if raw is not None else None

    def lookup_many(self, digests: Sequence[bytes]) -> list[tuple[int, int] | None]:
        """The same for many, in their order, from one snapshot; quickest when they are sorted."""
        unpack = _WHERE.unpack
        with self._env.read() as txn:
            raws = [txn.get(digest, db=self._rows) for digest in digests]
        return [unpack(raw) if raw is not None else None for raw in raws]

    def add(self, rows: Iterable[tuple[bytes, int, int]]) -> None:
        """(digest, pack number, block): replaces what was known of the digest."""
        pending = sorted(rows, key=itemgetter(0))
        for start in range(0, len(pending), BATCH):
            batch = pending[start : start + BATCH]
            with self._env.write() as txn:
                for digest, pack, block in batch:
                    txn.put(digest, _WHERE.pack(pack, block), db=self._rows)
                batch.sort(key=itemgetter(1, 2))
                for pack, members in groupby(batch, key=itemgetter(1)):
                    of_pack = list(members)
                    digests = b"".join(digest for digest, _, _ in of_pack)
                    self._note(txn, _WHERE.pack(pack, of_pack[0][2]), digests)

    def whole(self, digest: bytes) -> bytes | None:
        """What was added for a MiB with this digest."""
        with self._env.read() as txn:
            return txn.get(digest, db=self._wholes)

    def add_wholes(self, rows: Iterable[tuple[bytes, bytes, int]]) -> None:
        """(digest, value, a pack number): replaces what was known; the row goes with that pack."""
        with self._env.write() as txn:
            for digest, value, pack in sorted(rows):
                txn.put(digest, value, db=self._wholes)
                txn.put(schema.U32.pack(pack) + digest, b"", db=self._parts)

    def remove(self, packs: Iterable[int]) -> None:
        """Forgets all rows that point into these packs."""
        with self._env.write() as txn:
            for pack in packs:
                prefix = schema.U32.pack(pack)
                cursor = txn.cursor(db=self._packs)
                while cursor.set_range(prefix) and cursor.key().startswith(prefix):
                    digests = cursor.value()
                    cursor.delete()
                    for at in range(0, len(digests), WIDTH):
                        self._forget(txn, digests[at : at + WIDTH], prefix)
                cursor = txn.cursor(db=self._parts)
                while cursor.set_range(prefix) and cursor.key().startswith(prefix):
                    txn.delete(cursor.key()[len(prefix) :], db=self._wholes)
                    cursor.delete()

    def count(self) -> int:
        """Digests it knows."""
        with self._env.read() as txn:
            return txn.stat(db=self._rows)["entries"]

    def clear(self) -> None:
        """Empties it; `fresh` from then on."""
        with self._env.write() as txn:
            for table in (self._rows, self._packs, self._wholes, self._parts, self._meta):
                txn.drop(table, delete=False)

    def close(self) -> None:
        """Ends it for this process."""
        self._disposable.close()

    def _note(self, txn: Txn, key: bytes, digests: bytes) -> None:
        """Adds digests to a pack's list; the same ones given again change nothing."""
        known = txn.get(key, b"", db=self._packs)
        if not known.startswith(digests):
            txn.put(key, known + digests, db=self._packs)

    def _forget(self, txn: Txn, digest: bytes, prefix: bytes) -> None:
        raw = txn.get(digest, db=self._rows)
        if raw is not None and raw.startswith(prefix):
            txn.delete(digest, db=self._rows)
