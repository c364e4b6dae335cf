"""Rows of extent maps: columns of runs, as the catalog and the manifests keep them.

A row's key is the first 256 MiB quarter that it covers; it covers 1 GiB, or one quarter when flag bit 0 is
set. Its value: u16 version, u16 flags, u32 n, then little-endian columns start[n] u32 (block in the row),
pack[n] u32, first[n] u16. A run ends where the next one starts, the last one at the row's end. What has no
row is zeros; a GiB split in quarters always has a row for the first of them, so that writing it replaces
an older row that covered the whole GiB.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable, Iterator, Mapping

from imagefs.blocks.digest import Buffer
from imagefs.errors import Damaged, NewerVersion, UnknownFeature
from imagefs.types import BLOCK, ZERO_PACK

if sys.byteorder != "little":
    # Columns are searched as they lie in LMDB's mapped pages, in this machine's byte order.
    raise ImportError("imagefs needs a little-endian machine")

Row = tuple[int, Buffer]
"""(first quarter, value)."""

QUARTER = (256 << 20) // BLOCK
"""Blocks in a quarter."""
GIB = 4 * QUARTER
"""Blocks in 1 GiB, what a row covers unless it is flagged ONE_QUARTER."""
VERSION = 1
ONE_QUARTER = 1
"""Flag: the row covers one quarter."""
MAX_FIRST = 1 << 16
"""Blocks of a pack are numbered with 16 bits."""

HEAD = struct.Struct("<HHI")
"""Version, flags, n."""


def span(value: Buffer) -> int:
    """How many blocks a row with this value covers. Raises Damaged for a value too short to be one."""
    if len(value) < HEAD.size:
        raise Damaged(f"A map row of {len(value)} bytes is not made of runs.")
    return QUARTER if value[2] & ONE_QUARTER else GIB


def columns(value: Buffer) -> Iterator[tuple[int, int, int, int]]:
    """A row's runs, zeros too, as they stand in it: (start, end, pack, first). Raises Damaged."""
    view = memoryview(value)
    n = (len(view) - 8) // 10
    if n < 1 or len(view) != 8 + 10 * n:
        raise Damaged(f"A map row of {len(view)} bytes is not made of runs.")
    starts = view[8 : 8 + 4 * n].cast("I").tolist()
    packs = view[8 + 4 * n : 8 + 8 * n].cast("I").tolist()
    firsts = view[8 + 8 * n :].cast("H").tolist()
    return zip(starts, [*starts[1:], span(value)], packs, firsts, strict=True)


def runs(rows: Iterable[Row]) -> Iterator[tuple[int, int, int, int]]:
    """All runs that are not zeros, in order: (block of the image, pack, first block in it, count)."""
    for quarter, value in rows:
        base = quarter * QUARTER
        for start, end, pack, first in columns(value):
            if pack != ZERO_PACK:
                yield base + start, pack, first, end - start


def packs_of(rows: Iterable[Row]) -> dict[int, int]:
    """The packs that a map names, each with the number of the image's blocks that lie in it."""
    used: dict[int, int] = {}
    for _, pack, _, count in runs(rows):
        used[pack] = used.get(pack, 0) + count
    return used


def packs_column(value: Buffer) -> memoryview:
    """The packs that a row names, zeros too, run by run: to see quickly whether it names one of some packs."""
    n = (len(value) - 8) // 10
    return memoryview(value)[8 + 4 * n : 8 + 8 * n].cast("I")


def renumber(rows: Iterable[Row], numbers: Mapping[int, int]) -> Iterator[tuple[int, bytes]]:
    """The same rows with each pack's number replaced. Raises KeyError for a pack that `numbers` lacks."""
    for quarter, value in rows:
        view = memoryview(value)
        n = (len(view) - 8) // 10
        packs = view[8 + 4 * n : 8 + 8 * n].cast("I").tolist()
        column = struct.pack(f"<{n}I", *(p if p == ZERO_PACK else numbers[p] for p in packs))
        yield quarter, b"".join([view[: 8 + 4 * n], column, view[8 + 8 * n :]])


def verify(rows: Iterable[Row], packs: int, name: str) -> None:
    """Refuses rows that no writer makes: those out of a manifest with `packs` packs in its table.

    Raises Damaged, its message beginning with `name`, NewerVersion for a later layout, UnknownFeature for
    unknown flags.
    """
    end = 0
    for quarter, value in rows:
        if len(value) < HEAD.size:
            raise Damaged(f"{name}: the map row at quarter {quarter} is truncated.")
        version, flags, n = HEAD.unpack_from(value)
        if version > VERSION:
            raise NewerVersion(f"{name}: the map has layout {version}; this imagefs reads up to {VERSION}.")
        if flags & ~ONE_QUARTER:
            raise UnknownFeature(f"{name}: the map has flags that this imagefs does not know ({flags:#x}).")
        if quarter < end or (quarter % 4 and not flags) or not n or len(value) != 8 + 10 * n:
            raise Damaged(f"{name}: the map row at quarter {quarter} is not as rows are.")
        end = quarter + (1 if flags else 4)
        _verify_runs(value, packs, f"{name}: a run of the map row at quarter {quarter}")


def _verify_runs(value: Buffer, packs: int, name: str) -> None:
    end = 0
    for start, stop, pack, first in columns(value):
        known = pack == ZERO_PACK or (pack < packs and first + stop - start <= MAX_FIRST)
        if start != end or stop <= start or not known:
            raise Damaged(f"{name} is not as runs are.")
        end = stop
