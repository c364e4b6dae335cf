"""The compressed grains of a streamOptimized VMDK (VMware, Virtual Disk Format 5.0: hosted sparse extents)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from imagefs.formats import Read
from imagefs.formats.compressed import MOST_CLUSTERS, Cluster, Compressed, NotThis, in_order, table

MAGIC = b"KDMV"
SECTOR = 512
_HEAD = struct.Struct("<4sIIQQQQIQQQB4sH")
_MARKER = struct.Struct("<QI")
"""Before each grain's stream: its first sector on the disk, and the stream's length."""
_COMPRESSED, _MARKERS = 1 << 16, 1 << 17
_DEFLATE = 1
_AT_END = 0xFFFF_FFFF_FFFF_FFFF
WINDOW = 15
"""Streams have zlib's header and its largest window."""


def look(read: Read, size: int) -> Compressed | None:
    """Its grains; None for another format or kind of VMDK. Raises NotThis for tables that lead nowhere."""
    head = read(0, _HEAD.size)
    if len(head) < _HEAD.size or head[:4] != MAGIC:
        return None
    _, _, flags, capacity, grain, *_, per_table, _, directory, _, _, _, algorithm = _HEAD.unpack(head)
    if not flags & _COMPRESSED or not flags & _MARKERS or algorithm != _DEFLATE:
        return None
    if directory == _AT_END:
        # The footer, a copy of the header that knows: the last sector but one.
        directory = _HEAD.unpack(table(read, size - 2 * SECTOR, _HEAD.size))[9]
    unit = grain * SECTOR
    if unit.bit_count() != 1 or not 4096 <= unit <= 1 << 21 or not 0 < per_table <= 1 << 16:
        return None
    tables = -(-capacity // (grain * per_table))
    if tables > MOST_CLUSTERS:
        raise NotThis
    pointers = struct.unpack(f"<{tables}I", table(read, directory * SECTOR, 4 * tables))
    return Compressed(unit, (WINDOW,), in_order(_grains(read, pointers, per_table, unit), size))


def _grains(read: Read, pointers: tuple[int, ...], per_table: int, unit: int) -> Iterator[Cluster]:
    for number, pointer in enumerate(pointers):
        if not pointer:
            continue
        entries = struct.unpack(f"<{per_table}I", table(read, pointer * SECTOR, 4 * per_table))
        for slot, sector in enumerate(entries):
            if sector > 1:  # 0: nothing there, 1: zeros
                guest = (number * per_table + slot) * unit
                at = sector * SECTOR
                first, length = _MARKER.unpack(table(read, at, _MARKER.size))
                if first * SECTOR == guest:
                    yield Cluster(at + _MARKER.size, length, guest)
