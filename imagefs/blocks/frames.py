"""Frames: 16 blocks compressed together, the unit of decoding, verified before they are decoded (S11)."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable
from typing import NamedTuple

import zstandard
from blake3 import blake3

from imagefs.blocks.digest import Buffer
from imagefs.errors import Damaged
from imagefs.types import BLOCK, FRAME, FRAME_BLOCKS

RAW = 0
"""Codec: the plain bytes as they are, 4 KiB aligned in the pack so that a file system can share them."""
ZSTD = 1
"""Codec: one zstd frame with its content size. Level 3 saves as much as is cheap: 480 MB/s a thread."""
CODECS = frozenset({RAW, ZSTD})

DIGEST = 16
"""Bytes of a frame digest: BLAKE3 over the stored bytes, never keyed."""
_LEVEL = 3
_ROW = struct.Struct("<II16s")
ROW = _ROW.size
"""Bytes of a frame in the catalog's `frames` rows."""


class Frame(NamedTuple):
    """A frame as it is stored, still without a place in a pack."""

    stored: Buffer
    codec: int
    digest: bytes
    nblocks: int


class FrameRow(NamedTuple):
    """Where a frame lies in its pack's object, as the catalog keeps it."""

    offset: int
    length: int
    codec: int
    digest: bytes


class _Contexts(threading.local):
    """zstd contexts: not thread safe, and making one costs more than a frame: each thread keeps its own."""

    def __init__(self) -> None:
        self.compress = zstandard.ZstdCompressor(level=_LEVEL).compress
        self.decompress = zstandard.ZstdDecompressor().decompress


_contexts = _Contexts()


def encode(plain: Buffer) -> Frame:
    """A frame of up to 64 KiB of plain bytes; a short last block is zero padded.

    Stored raw when zstd saves less than 5 %. Releases the GIL while it compresses.
    """
    if not 0 < len(plain) <= FRAME:
        raise ValueError(f"A frame has 1 to {FRAME} bytes, not {len(plain)}.")
    if len(plain) % BLOCK:
        plain = bytes(plain) + bytes(-len(plain) % BLOCK)
    stored, codec = _contexts.compress(plain), ZSTD
    if len(stored) * 20 > len(plain) * 19:
        stored, codec = bytes(plain), RAW
    return Frame(stored, codec, digest_of(stored), len(plain) // BLOCK)


def encode_all(plain: memoryview) -> list[Frame]:
    """The frames of whole blocks in order. Raw ones are views of `plain`, which must stay as it is."""
    compress = _contexts.compress
    frames = []
    for at in range(0, len(plain), FRAME):
        piece = plain[at : at + FRAME]
        squeezed = compress(piece)
        stored, codec = (squeezed, ZSTD) if len(squeezed) * 20 <= len(piece) * 19 else (piece, RAW)
        frames.append(Frame(stored, codec, digest_of(stored), len(piece) // BLOCK))
    return frames


def digest_of(stored: Buffer) -> bytes:
    """16 bytes: what verifies a frame's stored bytes. 64 KiB take about 11 us."""
    return blake3(stored).digest(DIGEST)


def decode(stored: Buffer, codec: int, digest: bytes, nblocks: int = FRAME_BLOCKS, name: str = "A frame") -> bytes:
    """The plain bytes of a frame of at most `nblocks` blocks.

    Raises Damaged, beginning with `name`, when the stored bytes do not verify or do not decode to whole
    blocks. The digest is checked first, so nothing unverified ever reaches the decompressor.
    """
    if blake3(stored).digest(DIGEST) != digest:
        raise Damaged(f"{name}: the {len(stored)} stored bytes do not match their digest.")
    if codec == ZSTD:
        plain = _decompress(stored, nblocks, name)
    elif codec == RAW:
        plain = bytes(stored)
    else:
        raise Damaged(f"{name}: codec {codec} is unknown.")
    if not plain or len(plain) % BLOCK or len(plain) > nblocks * BLOCK:
        raise Damaged(f"{name}: {len(plain)} plain bytes are not 1 to {nblocks} blocks.")
    return plain


def _decompress(stored: Buffer, nblocks: int, name: str) -> bytes:
    try:
        # zstandard allocates what the frame's header claims before it decodes a byte.
        claimed = zstandard.frame_content_size(stored)
        if not 0 < claimed <= nblocks * BLOCK:
            raise Damaged(f"{name}: a content size of {claimed} bytes is not 1 to {nblocks} blocks.")
        return _contexts.decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Damaged(f"{name}: {error}.") from error


def pack_rows(rows: Iterable[FrameRow]) -> bytes:
    """The catalog's `frames` value: 24 bytes a frame (u32 offset, u24 length + u8 codec, digest)."""
    return b"".join(_ROW.pack(row.offset, row.length | row.codec << 24, row.digest) for row in rows)


def unpack_rows(value: Buffer) -> list[FrameRow]:
    """The inverse of pack_rows, of a whole value or of any run of its rows. Raises Damaged."""
    if len(value) % ROW:
        raise Damaged(f"A frame table of {len(value)} bytes is not made of rows of {ROW}.")
    return [
        FrameRow(offset, sized & 0xFFFFFF, sized >> 24, digest) for offset, sized, digest in _ROW.iter_unpack(value)
    ]
