"""Whether a disk image has no guest data yet: `qemu-img create` made it and nobody installed into it (S3).

A file counts as blank when every byte outside of its format's metadata is zero or in a hole. Where the
metadata lies is all that has to be known of a format, and it is right for preallocated images too.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from imagefs.blocks.digest import is_zero
from imagefs.formats import Read

Area = tuple[int, int]
"""(offset, length)."""

MAX_RANGES = 4096
"""A file in more pieces than this has data: `qemu-img create` leaves two for each GiB at most."""
MAX_READ = 64 << 20
"""Bytes that are compared with zero before a file counts as having data."""
MAX_TABLE = 1 << 20
"""Bytes of one table of a format; a qcow2 of 64 TiB has an L1 of that size."""
FIRST_BLOCK = 64 << 10
"""`qemu-img create` writes zeros at the start of a raw file, a page, to learn the alignment of O_DIRECT."""
_CHUNK = 1 << 20


class _HasData(Exception):
    """What was seen is enough to call the file not blank."""


class _File:
    """A sparse file read within limits. Raises _HasData at the limits.

    Holes are not read: ext4 takes preallocated blocks for data as soon as they are in the page cache.
    """

    def __init__(self, read: Read, size: int, ranges: list[Area]) -> None:
        self.size = size
        self.end = sum(ranges[-1])
        """Where the last data ends."""
        self._ranges = ranges
        self._read = read
        self._left = MAX_READ

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes, zeros behind the end of the file."""
        self._left -= length
        if self._left < 0:
            raise _HasData
        if next(self._data(offset, offset + length), None) is None:
            return bytes(length)
        return self._read(offset, length).ljust(length, b"\0")

    def _data(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Where data begins and ends between two offsets."""
        first = bisect_right(self._ranges, start, key=sum)
        for offset, length in islice(self._ranges, first, None):
            if offset >= end:
                break
            yield max(offset, start), min(offset + length, end)

    def table(self, offset: int, length: int, entry: str) -> list[int]:
        """The entries of a table that are not zero."""
        if length > MAX_TABLE:
            raise _HasData
        data = self.read(offset, length - length % struct.calcsize(entry))
        return [value for (value,) in struct.iter_unpack(entry, data) if value]

    def require_zeros(self, start: int, end: int) -> None:
        """Raises _HasData unless the file is zeros from `start` to `end`."""
        for low, high in self._data(start, end):
            for at in range(low, high, _CHUNK):
                if not is_zero(self.read(at, min(_CHUNK, high - at))):
                    raise _HasData


def is_blank(read: Read, size: int, data_ranges: Iterable[Area]) -> bool:
    """Whether a file of `size` bytes has no data, or is a disk image without guest data.

    `data_ranges` are its (offset, length) that are not holes, ascending. Known are qcow2, qed, vmdk (sparse),
    vdi, vhd (dynamic and fixed), vhdx and parallels. At most 64 MiB are read; what takes more has data.
    """
    ranges = list(islice(data_ranges, MAX_RANGES + 1))
    if not ranges:
        return True
    if len(ranges) > MAX_RANGES:
        return False
    file = _File(read, size, ranges)
    try:
        areas = _metadata(file)
        if areas is None:
            return file.end <= FIRST_BLOCK and is_zero(file.read(0, file.end))
        at = 0
        for offset, length in sorted(areas):
            file.require_zeros(at, offset)
            at = max(at, offset + length)
        file.require_zeros(at, size)
    except _HasData:
        return False
    return True


def _metadata(file: _File) -> list[Area] | None:
    """Where a disk image has its metadata; None for a file of no known format."""
    head = file.read(0, 512)
    for offset, magic, areas in _FORMATS:
        if head.startswith(magic, offset):
            return list(areas(head, file))
    tail = file.read(max(file.size - 512, 0), 512)
    if tail.startswith(b"conectix"):
        return [(file.size - 512, 512)]
    return None


def _qcow2(head: bytes, file: _File) -> Iterator[Area]:
    """docs/interop/qcow2.txt of QEMU."""
    version, cluster_bits, l1_entries, l1, refcounts, refcount_clusters, snapshots = struct.unpack_from(
        ">4xI12xI12xIQQII", head
    )
    if version not in (2, 3) or not 9 <= cluster_bits <= 21 or snapshots:
        raise _HasData
    tables = [entry & 0x00FF_FFFF_FFFF_FE00 for entry in file.table(l1, l1_entries * 8, ">Q")]
    if not tables:
        # Nothing is mapped, whatever else there is: an encrypted image has its key slots somewhere.
        yield 0, file.size
        return
    cluster = 1 << cluster_bits
    yield 0, cluster
    yield l1, l1_entries * 8
    yield refcounts, refcount_clusters * cluster
    for offset in (*tables, *file.table(refcounts, refcount_clusters * cluster, ">Q")):
        yield offset, cluster


def _qed(head: bytes, file: _File) -> Iterator[Area]:
    """docs/interop/qed_spec.rst of QEMU. L2 tables count as data: nothing allocates them ahead."""
    cluster, table_clusters, header_clusters, l1 = struct.unpack_from("<4xIII24xQ", head)
    yield 0, header_clusters * cluster
    yield l1, table_clusters * cluster


def _vmdk(head: bytes, file: _File) -> Iterator[Area]:
    """Hosted sparse extents: descriptor, directories and tables lie before the first grain."""
    (overhead,) = struct.unpack_from("<Q", head, 64)
    yield 0, overhead * 512


def _vdi(head: bytes, file: _File) -> Iterator[Area]:
    """block/vdi.c of QEMU."""
    (data,) = struct.unpack_from("<I", head, 0x158)
    yield 0, data


def _vhd(head: bytes, file: _File) -> Iterator[Area]:
    """The Virtual Hard Disk Image Format Specification: footer's copy, dynamic header, table, footer."""
    (dynamic,) = struct.unpack_from(">Q", head, 16)
    table, entries = struct.unpack_from(">QxxxxI", file.read(dynamic, 512), 16)
    yield 0, 512
    yield dynamic, 1024
    yield table, -(-entries * 4 // 512) * 512
    yield file.size - 512, 512


def _vhdx(head: bytes, file: _File) -> Iterator[Area]:
    """[MS-VHDX]: two headers that name the log, two tables of regions, the regions."""
    yield 0, 1 << 20
    for header in (64 << 10, 128 << 10):
        length, log = struct.unpack_from("<68xIQ", file.read(header, 512))
        yield log, length
    for table in (192 << 10, 256 << 10):
        data = file.read(table, 64 << 10)
        (count,) = struct.unpack_from("<I", data, 8)
        for entry in range(min(count, 2047)):
            yield struct.unpack_from("<QI", data, 32 + entry * 32)


def _parallels(head: bytes, file: _File) -> Iterator[Area]:
    """docs/interop/parallels.txt of QEMU."""
    entries, data = struct.unpack_from("<32xI12xI", head)
    yield 0, max(64 + entries * 4, data * 512)


_FORMATS: tuple[tuple[int, bytes, Callable[[bytes, _File], Iterator[Area]]], ...] = (
    (0, b"QFI\xfb", _qcow2),
    (0, b"QED\0", _qed),
    (0, b"KDMV", _vmdk),
    (0x40, b"\x7f\x10\xda\xbe", _vdi),
    (0, b"conectix", _vhd),
    (0, b"vhdxfile", _vhdx),
    (0, b"WithoutFreeSpace", _parallels),
    (0, b"WithouFreSpacExt", _parallels),
)
"""Offset and bytes of the mark, and where such a file has its metadata."""
