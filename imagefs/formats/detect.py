"""Which disk format the bytes of an image are in, as the Image service names it.

The answer comes from oslo.utils' format inspectors, which Glance and Nova trust with hostile files: they
are fed the head of the file in chunks and keep little of it. Nothing here follows what a header points to.
"""

from __future__ import annotations

import logging
import struct
from dataclasses import dataclass

from oslo_utils.imageutils.format_inspector import (
    ALL_FORMATS,
    FileInspector,
    ImageFormatError,
    QcowInspector,
)

from imagefs.formats import Read
from imagefs.types import DISK_FORMATS

HEAD = 4 << 20
"""Bytes looked at: a VHDX has its metadata, the farthest of all, at 1 to 3 MiB."""
_CHUNK = 64 << 10
# It reports as an error that raw data is none of its formats, once for each.
logging.getLogger("oslo_utils.imageutils.format_inspector").setLevel(logging.CRITICAL)
_CONTENT = frozenset({"raw", "gpt", "luks"})
"""Inspectors of what is on a disk: the file that holds it is raw."""
_NOT_THIS = (
    ImageFormatError,
    struct.error,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)
"""What inspectors raise over bytes that are not as they should be, or are fewer."""


@dataclass(frozen=True, slots=True)
class Format:
    """What an image file is."""

    disk_format: str | None
    """One of types.DISK_FORMATS; None for what is not raw and has no name there: qed, qcow before 2."""
    virtual_size: int | None
    """Bytes of the disk inside; None when the file does not say."""


def inspect(read: Read, size: int) -> Format:
    """The format of a file of `size` bytes. At most 4 MiB of it are read, front to back.

    Raw for whatever is nothing else: a fixed VHD (it is told by its last sector only, and qemu does not look
    there either), a partitioned disk, an encrypted one, and a file with the marks of several formats.
    """
    matches = [inspector for inspector in _inspected(read, size) if _matches(inspector)]
    if len(matches) != 1:
        return Format("raw", size)
    if matches[0].NAME not in DISK_FORMATS or _is_qcow1(matches[0]):
        return Format(None, None)
    return Format(matches[0].NAME, _virtual_size(matches[0]))


def _is_qcow1(inspector: FileInspector) -> bool:
    return isinstance(inspector, QcowInspector) and inspector.qemu_header_info["version"] not in (2, 3)


def _inspected(read: Read, size: int) -> list[FileInspector]:
    """One inspector for each format that the head of the file did not rule out."""
    feeding = [inspector() for name, inspector in ALL_FORMATS.items() if name not in _CONTENT]
    fed: list[FileInspector] = []
    offset = 0
    while feeding and offset < min(size, HEAD):
        chunk = read(offset, min(_CHUNK, HEAD - offset))
        if not chunk:
            break
        offset += len(chunk)
        feeding = [inspector for inspector in feeding if _eats(inspector, chunk)]
        fed += [inspector for inspector in feeding if inspector.complete]
        feeding = [inspector for inspector in feeding if not inspector.complete]
    return fed + feeding


def _eats(inspector: FileInspector, chunk: bytes) -> bool:
    try:
        inspector.eat_chunk(chunk)
    except _NOT_THIS:
        return False
    return True


def _matches(inspector: FileInspector) -> bool:
    try:
        return inspector.format_match
    except _NOT_THIS:
        return False


def _virtual_size(inspector: FileInspector) -> int | None:
    try:
        size = inspector.virtual_size
    except _NOT_THIS:
        return None
    return size if 0 < size < 1 << 63 else None
