"""The compressed clusters of a qcow2 image (QEMU, docs/interop/qcow2.txt)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from imagefs.formats import Read
from imagefs.formats.compressed import MOST_CLUSTERS, Cluster, Compressed, NotThis, in_order, table

MAGIC = b"QFI\xfb"
_HEAD = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")
_DIRTY = 1
_COMPRESSED = 1 << 62
_L1_OFFSET = 0x00FF_FFFF_FFFF_FE00
_SMALLEST, _LARGEST = 12, 21
"""Cluster bits: smaller ones than a block of ours would not lie aligned; qemu has none larger."""
WINDOW = -12
"""qemu encodes and decodes with a window of 4 KiB."""


def look(read: Read, size: int) -> Compressed | None:
    """Its clusters that are compressed with deflate; None for another format, zstd, encryption, a separate
    data file or subclusters. Raises NotThis for tables that lead nowhere.

    Only what the disk shows now is looked at, not its snapshots.
    """
    head = read(0, _HEAD.size)
    if len(head) < _HEAD.size or head[:4] != MAGIC:
        return None
    _, version, _, _, bits, disk, crypt, l1_size, l1_offset, *_ = _HEAD.unpack(head)
    if version not in (2, 3) or crypt or not _SMALLEST <= bits <= _LARGEST:
        return None
    if version == 3 and _V3.unpack(table(read, _HEAD.size, _V3.size))[0] & ~_DIRTY:
        # Corrupt, a data file, another compression than deflate, subclusters, or what is not known yet.
        return None
    per_table = (1 << bits) // 8
    if l1_size > -(-disk // (per_table << bits)) or l1_size > MOST_CLUSTERS:
        raise NotThis
    l1 = struct.unpack(f">{l1_size}Q", table(read, l1_offset, 8 * l1_size))
    clusters = in_order(_clusters(read, l1, bits), size)
    return Compressed(1 << bits, (WINDOW,), [one for one in clusters if one.guest_off < disk])


def _clusters(read: Read, l1: tuple[int, ...], bits: int) -> Iterator[Cluster]:
    entries = (1 << bits) // 8
    shift = 62 - (bits - 8)
    for number, entry in enumerate(l1):
        if not entry & _L1_OFFSET:
            continue
        l2 = table(read, entry & _L1_OFFSET, 1 << bits)
        for slot, (value,) in enumerate(struct.iter_unpack(">Q", l2)):
            if value & _COMPRESSED:
                offset = value & ((1 << shift) - 1)
                sectors = (value >> shift) & ((1 << (bits - 8)) - 1)
                room = (sectors + 1) * 512 - offset % 512
                yield Cluster(offset, room, (number * entries + slot) << bits)
