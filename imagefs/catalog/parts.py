"""Rows that say which blocks of a draft come from a map: intervals that never overlap, in one table.

    draft (id, generation u32), first block u64   count u64, map number u64, first block in the map u64

Neighbours that go on with each other are one row. The same rows are kept twice: in the catalog as they were
when the draft was last synced, and in the volatile environment as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from imagefs.catalog import schema
from imagefs.catalog.env import Txn

if TYPE_CHECKING:
    from imagefs.catalog.env import Table

MOST = (1 << 63) - 1
"""Behind the last block of any file."""
_OWNER = Struct(">16sI")
_VALUE = Struct(">QQQ")


class Part(NamedTuple):
    """Blocks of a draft that are those of a map."""

    block: int
    """The first one in the draft."""
    nblocks: int
    map_id: int
    first: int
    """The first one in the map."""

    @property
    def end(self) -> int:
        """The draft's block behind them."""
        return self.block + self.nblocks

    def cut(self, low: int, high: int) -> Part:
        """What of it lies from block `low` to before block `high` of the draft; they overlap."""
        block = max(low, self.block)
        return Part(block, min(high, self.end) - block, self.map_id, self.first + block - self.block)


def owner(image_id: UUID, gen: int) -> bytes:
    """The beginning of the keys of a draft's rows."""
    return _OWNER.pack(image_id.bytes, gen)


def owner_of(key: bytes) -> tuple[UUID, int]:
    """The draft that a key belongs to: image, generation."""
    raw, gen = _OWNER.unpack_from(key)
    return UUID(bytes=raw), gen


def find(txn: Txn, table: Table, draft: bytes, low: int, high: int) -> list[Part]:
    """The parts between two blocks of a draft, in order, cut to them. Takes 3 us when there is one."""
    return [part.cut(low, high) for part in _overlapping(txn, table, draft, low, high)]


def replace(txn: Txn, table: Table, draft: bytes, low: int, high: int, parts: Iterable[Part]) -> bool:
    """Puts `parts`, which lie between two blocks of a draft, in the place of all that was there.

    Returns whether that changed anything.
    """
    # One block more on both sides, for neighbours that the new parts go on with.
    old = _overlapping(txn, table, draft, max(low - 1, 0), high + 1)
    new: list[Part] = []
    for part in (*_before(old, low), *parts, *_behind(old, high)):
        if new and _continues(new[-1], part):
            new[-1] = new[-1]._replace(nblocks=new[-1].nblocks + part.nblocks)
        else:
            new.append(part)
    gone, come = set(old).difference(new), set(new).difference(old)
    for part in gone:
        txn.delete(draft + schema.U64.pack(part.block), db=table)
    for part in come:
        txn.put(draft + schema.U64.pack(part.block), _VALUE.pack(*part[1:]), db=table)
    return bool(gone or come)


def drop(txn: Txn, table: Table, draft: bytes) -> None:
    """Removes every row of a draft."""
    cursor = txn.cursor(db=table)
    while cursor.set_range(draft) and cursor.key().startswith(draft):
        cursor.delete()


def decode(key: bytes, value: bytes) -> Part:
    """The part in a row."""
    return Part(schema.U64.unpack_from(key, _OWNER.size)[0], *_VALUE.unpack(value))


def _before(old: Iterable[Part], low: int) -> list[Part]:
    return [part.cut(0, low) for part in old if part.block < low]


def _behind(old: Iterable[Part], high: int) -> list[Part]:
    return [part.cut(high, MOST) for part in old if part.end > high]


def _continues(last: Part, part: Part) -> bool:
    return (last.end, last.map_id, last.first + last.nblocks) == (part.block, part.map_id, part.first)


def _overlapping(txn: Txn, table: Table, draft: bytes, low: int, high: int) -> list[Part]:
    """Whole rows that have a block from `low` to before `high`."""
    found: list[Part] = []
    cursor = txn.cursor(db=table)
    key = draft + schema.U64.pack(low)
    there = cursor.set_range(key)
    if not there or cursor.key() != key:
        # The row before may reach into the range.
        if not (cursor.prev() if there else cursor.last()):
            there = there and cursor.set_range(key)
        elif not cursor.key().startswith(draft) or decode(*cursor.item()).end <= low:
            there = cursor.next()
        else:
            there = True
    while there and cursor.key().startswith(draft):
        part = decode(*cursor.item())
        if part.block >= high:
            break
        found.append(part)
        there = cursor.next()
    return found
