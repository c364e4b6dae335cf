"""Extent maps: looked up where their rows lie, and built from runs of blocks in the order of the image."""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator

from imagefs.blocks.digest import Buffer
from imagefs.blocks.maprows import GIB, HEAD, MAX_FIRST, ONE_QUARTER, QUARTER, VERSION, Row, runs, span
from imagefs.errors import Damaged
from imagefs.types import ZERO_PACK, Extent

RowLookup = Callable[[int], Row | None]
"""The row that begins at a quarter, or else the row that begins at the first quarter of its GiB, or None."""

SPLIT_ABOVE = 64 << 10
"""Bytes of a value above which a GiB is split in quarters: LMDB needs contiguous pages for a value."""

_FIRST = struct.Struct("<H")


def extents(rowlookup: RowLookup, first: int, count: int) -> list[Extent]:
    """Where blocks `first` to `first + count - 1` lie, in order, neighbours merged; zeros without a row.

    Nothing is decoded: a short range takes 2 to 3 us besides its look-up. Raises Damaged for a value that
    is no row.
    """
    found: list[Extent] = []
    end = first + count
    while first < end:
        quarter = first // QUARTER
        row = rowlookup(quarter)
        if row is not None and (row[0] == quarter or span(row[1]) == GIB):
            start = row[0] * QUARTER
            stop = min(end, start + span(row[1]))
            _search(found, row[1], first - start, stop - start)
        else:
            stop = min(end, (quarter + 1) * QUARTER)
            _join(found, ZERO_PACK, 0, stop - first)
        first = stop
    return found


def _search(found: list[Extent], value: Buffer, at: int, stop: int) -> None:
    """Appends what lies between two blocks of a row."""
    view = memoryview(value)
    n = (len(view) - 8) // 10
    # 32-bit words: 0 is version and flags, 1 is n, start[] begins at word 2 and pack[] n words later.
    columns = view[: 8 + 8 * n].cast("I")
    if n < 1 or len(view) != 8 + 10 * n or columns[1] != n or columns[2]:
        raise Damaged(f"A map row of {len(view)} bytes is not made of runs.")
    run = bisect_right(columns, at, 2, 2 + n) - 1
    while at < stop:
        end = min(stop, columns[run + 1]) if run <= n else stop
        pack = columns[run + n]
        if pack == ZERO_PACK:
            _join(found, pack, 0, end - at)
        else:
            within = _FIRST.unpack_from(view, 4 + 8 * n + 2 * run)[0] + at - columns[run]
            _join(found, pack, within, end - at)
        at = end
        run += 1


def _join(found: list[Extent], pack: int, first: int, count: int) -> None:
    """Appends an extent, or lengthens the last one when it goes on with it."""
    if found:
        last = found[-1]
        if last.pack == pack and (pack == ZERO_PACK or last.first + last.count == first):
            found[-1] = Extent(pack, last.first, last.count + count)
            return
    found.append(Extent(pack, first, count))


class MapBuilder:
    """Collects an image's runs in block order and merges what is consecutive. Used by one thread."""

    def __init__(self) -> None:
        self._done: list[tuple[int, bytes]] = []
        self._gib = 0
        self._columns = _Columns()

    @classmethod
    def load(cls, rows: Iterable[Row], blocks: int) -> MapBuilder:
        """A builder that goes on behind the first `blocks` blocks of a map that was built before.

        The rows alone do not say where the map ended: zeros at its end leave no trace in them.
        """
        builder = cls()
        for block, pack, first, count in runs(rows):
            if block >= blocks:
                break
            builder.zeros(block - builder.blocks)
            builder.append(pack, first, min(count, blocks - block))
        builder.zeros(blocks - builder.blocks)
        return builder

    @property
    def blocks(self) -> int:
        """Blocks appended so far; the number that the next one will have."""
        return self._gib * GIB + self._columns.end

    def append(self, pack: int, first: int, count: int) -> None:
        """Appends `count` blocks that lie in `pack` from its block `first` on."""
        if not 0 <= pack < ZERO_PACK or first < 0 or first + count > MAX_FIRST:
            raise ValueError(f"Pack {pack} cannot have blocks {first} to {first + count - 1}.")
        while count > 0:
            take = min(count, GIB - self._columns.end)
            self._add(pack, first, take)
            first += take
            count -= take

    def zeros(self, count: int) -> None:
        """Appends `count` blocks of zeros."""
        while count > 0:
            take = min(count, GIB - self._columns.end)
            self._add(ZERO_PACK, 0, take)
            count -= take

    def _add(self, pack: int, first: int, count: int) -> None:
        self._columns.add(pack, first, count)
        if self._columns.end == GIB:
            self._done += self._columns.rows(4 * self._gib)
            self._gib += 1
            self._columns = _Columns()

    def packs(self) -> set[int]:
        """Numbers of the packs that it names."""
        return {pack for _, pack, _, _ in runs(self.rows())}

    def extents(self) -> Iterator[tuple[int, Extent]]:
        """All that was appended, in order: (block of the image, extent). Zeros too, in one extent each."""
        at = 0
        for block, pack, first, count in runs(self.rows()):
            if block > at:
                yield at, Extent(ZERO_PACK, 0, block - at)
            yield block, Extent(pack, first, count)
            at = block + count
        if self.blocks > at:
            yield at, Extent(ZERO_PACK, 0, self.blocks - at)

    def rows(self, since: int = 0) -> list[tuple[int, bytes]]:
        """Rows of everything appended so far, (first quarter, value) in order; more may be appended later.

        With `since`, only those rows that a caller who has the rows of the first `since` blocks must write
        again. Blocks behind the last one count as zeros.
        """
        quarter = since // GIB * 4
        done = self._done[bisect_left(self._done, quarter, key=lambda row: row[0]) :] if since else self._done
        return [*done, *self._columns.rows(4 * self._gib)]


class _Columns:
    """The runs of one GiB, columns as they are stored."""

    def __init__(self) -> None:
        self.end = 0
        """Blocks so far."""
        self._start = array("I")
        self._pack = array("I")
        self._first = array("H")

    def add(self, pack: int, first: int, count: int) -> None:
        """Appends a run, or lengthens the last one when it goes on with it."""
        if not self._continues(pack, first):
            self._start.append(self.end)
            self._pack.append(pack)
            self._first.append(first)
        self.end += count

    def _continues(self, pack: int, first: int) -> bool:
        if not self._start or self._pack[-1] != pack:
            return False
        return pack == ZERO_PACK or self._first[-1] + self.end - self._start[-1] == first

    def rows(self, quarter: int) -> list[tuple[int, bytes]]:
        """The rows of this GiB, whose first quarter is given; what is not there yet counts as zeros."""
        if not any(pack != ZERO_PACK for pack in self._pack):
            return []
        closed = self.end == GIB or self._pack[-1] == ZERO_PACK
        if 8 + 10 * (len(self._start) + (not closed)) <= SPLIT_ABOVE:
            return [(quarter, self._row(0, len(self._start), 0, GIB, 0))]
        return [
            (quarter + number, self._quarter(number)) for number in range(4) if number == 0 or not self._is_hole(number)
        ]

    def _is_hole(self, number: int) -> bool:
        low, high = self._runs_of(number)
        return all(pack == ZERO_PACK for pack in self._pack[low:high])

    def _quarter(self, number: int) -> bytes:
        low, high = self._runs_of(number)
        return self._row(low, high, number * QUARTER, (number + 1) * QUARTER, ONE_QUARTER)

    def _runs_of(self, number: int) -> tuple[int, int]:
        """Which runs reach into a quarter; none when it is behind the end."""
        if number * QUARTER >= self.end:
            return 0, 0
        low = bisect_right(self._start, number * QUARTER) - 1
        return low, bisect_left(self._start, (number + 1) * QUARTER)

    def _row(self, low: int, high: int, begin: int, end: int, flags: int) -> bytes:
        """Runs `low` to `high` as the value of the row that covers blocks `begin` to `end` of the GiB."""
        start = array("I", (max(at, begin) - begin for at in self._start[low:high]))
        pack, first = self._pack[low:high], self._first[low:high]
        if start and pack[0] != ZERO_PACK:
            first[0] += max(begin - self._start[low], 0)
        if self.end < end and (not start or pack[-1] != ZERO_PACK):
            start.append(max(self.end - begin, 0))
            pack.append(ZERO_PACK)
            first.append(0)
        head = HEAD.pack(VERSION, flags, len(start))
        return b"".join([head, start.tobytes(), pack.tobytes(), first.tobytes()])
