"""A pack's footer: its frame table and the digests of its blocks, as bytes and back."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from imagefs.blocks.digest import WIDTH, Buffer
from imagefs.blocks.frames import CODECS, FrameRow, pack_rows
from imagefs.errors import Damaged, UnknownFeature
from imagefs.types import BLOCK, FRAME_BLOCKS

MAX_BLOCKS = 1 << 16
"""Map rows number a pack's blocks with 16 bits."""

_HEAD = struct.Struct("<8sIIBBHI")
_MAGIC = b"IFSFOOT1"
_FRAME = struct.Struct("<IIHBB16s")
_COUNT = struct.Struct("<I")
_MOVED = struct.Struct("<16sHHH")
_BLAKE3 = 1
_LOG2_BLOCK = BLOCK.bit_length() - 1


class Moved(NamedTuple):
    """Blocks that a rewrite took over from an older pack: maps that name the old place mean the new one."""

    name16: bytes
    old_first: int
    new_first: int
    nblocks: int


class Contents(NamedTuple):
    """What a footer says about its pack."""

    frames_row: bytes
    """The catalog's `frames` value, 24 bytes a frame."""
    digests: bytes
    """Digests of the blocks in order, 20 bytes each."""
    moved: tuple[Moved, ...]

    @property
    def nblocks(self) -> int:
        """Blocks in the pack."""
        return len(self.digests) // WIDTH


def encode(rows: Sequence[FrameRow], digests: Buffer, moved: Sequence[Moved]) -> bytes:
    """The footer of a pack whose frames are all whole but perhaps the last."""
    nblocks = len(digests) // WIDTH
    codecs = 0
    table = bytearray()
    for number, row in enumerate(rows):
        first = number * FRAME_BLOCKS
        codecs |= 1 << row.codec
        last = min(FRAME_BLOCKS, nblocks - first) - 1
        table += _FRAME.pack(row.offset, row.length, first, last, row.codec, row.digest)
    head = _HEAD.pack(_MAGIC, len(rows), nblocks, _BLAKE3, WIDTH, _LOG2_BLOCK, codecs)
    return b"".join([head, table, digests, *_moved_section(moved)])


def _moved_section(moved: Sequence[Moved]) -> list[bytes]:
    return [_COUNT.pack(len(moved)), *(_MOVED.pack(*entry) for entry in moved)] if moved else []


def decode(data: Buffer, name: str, start: int, end: int) -> Contents:
    """What the footer `data` of pack `name` says; its frames lie from `start` to `end` in the object.

    Raises Damaged for anything a writer cannot have meant, UnknownFeature for identities or codecs that
    this version does not have.
    """
    if len(data) < _HEAD.size:
        raise Damaged(f"{name}: the footer is truncated.")
    magic, nframes, nblocks, algorithm, width, log2_block, codecs = _HEAD.unpack_from(data)
    if magic != _MAGIC:
        raise Damaged(f"{name} has no footer.")
    if (algorithm, width, log2_block) != (_BLAKE3, WIDTH, _LOG2_BLOCK):
        raise UnknownFeature(f"{name}: its block digests ({algorithm}, {width}, {log2_block}) are unknown here.")
    if codecs & ~sum(1 << codec for codec in CODECS):
        raise UnknownFeature(f"{name} uses frame codecs that this imagefs does not know ({codecs:#x}).")
    if nblocks > MAX_BLOCKS or nframes != -(-nblocks // FRAME_BLOCKS):
        raise Damaged(f"{name}: {nblocks} blocks do not fit {nframes} frames.")
    table = _HEAD.size
    digests = table + nframes * _FRAME.size
    rest = digests + nblocks * WIDTH
    if len(data) < rest:
        raise Damaged(f"{name}: the footer is truncated.")
    rows = _rows(memoryview(data)[table:digests], name, nblocks, start, end)
    return Contents(pack_rows(rows), bytes(data[digests:rest]), _moved(data[rest:], name, nblocks))


def _rows(table: memoryview, name: str, nblocks: int, start: int, end: int) -> list[FrameRow]:
    rows: list[FrameRow] = []
    at = start
    for offset, length, first, last, codec, digest in _FRAME.iter_unpack(table):
        expected = len(rows) * FRAME_BLOCKS
        if first != expected or last + 1 != min(FRAME_BLOCKS, nblocks - expected) or codec not in CODECS:
            raise Damaged(f"{name}: frame {len(rows)} of the table is not as frames are.")
        if offset < at or not length or offset + length > end:
            raise Damaged(f"{name}: frame {len(rows)} lies outside of its place.")
        at = offset + length
        rows.append(FrameRow(offset, length, codec, digest))
    return rows


def _moved(data: Buffer, name: str, nblocks: int) -> tuple[Moved, ...]:
    if not data:
        return ()
    if len(data) < _COUNT.size or len(data) != _COUNT.size + _COUNT.unpack_from(data)[0] * _MOVED.size:
        raise Damaged(f"{name}: the list of moved blocks has a wrong length.")
    moved = tuple(Moved(*entry) for entry in _MOVED.iter_unpack(data[_COUNT.size :]))
    if any(entry.new_first + entry.nblocks > nblocks for entry in moved):
        raise Damaged(f"{name}: the list of moved blocks names blocks that the pack does not have.")
    return moved
