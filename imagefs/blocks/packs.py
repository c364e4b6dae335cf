"""Packs: objects of frames, written once under a random name that is never used again."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from uuid import UUID

from imagefs.blocks import footer, trailer
from imagefs.blocks.digest import WIDTH, Buffer
from imagefs.blocks.footer import MAX_BLOCKS, Moved
from imagefs.blocks.frames import RAW, Frame, FrameRow, pack_rows
from imagefs.errors import Damaged, NewerVersion, UnknownFeature
from imagefs.stores import Store
from imagefs.types import BLOCK, FRAME_BLOCKS

PACK_BLOCKS = 2048
"""Blocks of a full pack on a local store: 8 MiB of plain data in 128 frames."""
HEADER = 4096
"""Bytes before the first frame: the frames begin aligned."""
VERSION = 1

_HEAD = struct.Struct("<8sHHI16s16s16sQ")
_MAGIC = b"IFSPACK1"
_TAIL = 64 << 10
"""Bytes of a first read at the end of a pack: 44.5 KB of footer and trailer when it has 2,048 blocks."""


class BuiltPack(NamedTuple):
    """A finished pack: what to put and what the catalog keeps of it."""

    name16: bytes
    parts: list[Buffer]
    """The object's bytes in order; for 2,048 blocks at most 259 pieces."""
    frames_row: bytes
    """The catalog's `frames` value: 24 bytes a frame."""
    nblocks: int
    stored_bytes: int
    """Length of the object."""
    footer_off: int
    footer_digest: bytes
    """32 bytes: the trailer's digest over header and footer."""
    digests: bytes
    """Digests of the blocks in order, 20 bytes each."""


class Footer(NamedTuple):
    """A pack as its own header and footer describe it, verified."""

    name16: bytes
    repo: UUID
    session: UUID
    """Session that wrote it."""
    created_ns: int
    frames_row: bytes
    digests: bytes
    moved: tuple[Moved, ...]
    stored_bytes: int
    footer_off: int
    footer_digest: bytes

    @property
    def nblocks(self) -> int:
        """Blocks in the pack."""
        return len(self.digests) // WIDTH


def object_name(name16: bytes) -> str:
    """Where a pack lies on the store: packs/ab/<32 hex>."""
    name = name16.hex()
    return f"packs/{name[:2]}/{name}"


class PackBuilder:
    """Collects frames into one object. Used by one thread."""

    def __init__(self, name16: bytes, repo: UUID, session: UUID, capacity: int = PACK_BLOCKS) -> None:
        if not 0 < capacity <= MAX_BLOCKS or capacity % FRAME_BLOCKS:
            raise ValueError(f"A pack cannot be made for {capacity} blocks.")
        self._name16 = name16
        self._capacity = capacity
        header = _HEAD.pack(_MAGIC, VERSION, 0, 0, repo.bytes, name16, session.bytes, time.time_ns())
        self._parts: list[Buffer] = [header.ljust(HEADER, b"\0")]
        self._size = HEADER
        self._rows: list[FrameRow] = []
        self._digests = bytearray()

    @property
    def nblocks(self) -> int:
        """Blocks added so far; the number that the next block will have."""
        return len(self._digests) // WIDTH

    @property
    def full(self) -> bool:
        """Whether the pack has all the blocks it may have."""
        return self.nblocks >= self._capacity

    def add_frame(self, frame: Frame, digests: Iterable[bytes]) -> None:
        """Appends a frame and the digests of its blocks. Only the last frame may have less than 16 blocks."""
        known = b"".join(digests)
        if len(known) != frame.nblocks * WIDTH:
            raise ValueError(f"A frame of {frame.nblocks} blocks came with {len(known) // WIDTH} digests.")
        if self.nblocks % FRAME_BLOCKS or self.nblocks + frame.nblocks > self._capacity:
            raise ValueError(f"A frame of {frame.nblocks} blocks does not fit behind {self.nblocks}.")
        if frame.codec == RAW and self._size % BLOCK:
            self._add(bytes(-self._size % BLOCK))
        self._rows.append(FrameRow(self._size, len(frame.stored), frame.codec, frame.digest))
        self._digests += known
        self._add(frame.stored)

    def _add(self, part: Buffer) -> None:
        self._parts.append(part)
        self._size += len(part)

    def finish(self, moved: Sequence[Moved] = ()) -> BuiltPack:
        """The whole object. `moved` says which blocks a rewrite took over from which older packs."""
        closing = footer.encode(self._rows, self._digests, moved)
        digest = trailer.digest_of(self._parts[0], closing)
        end = trailer.encode(self._size, len(closing), digest)
        return BuiltPack(
            name16=self._name16,
            parts=[*self._parts, closing, end],
            frames_row=pack_rows(self._rows),
            nblocks=self.nblocks,
            stored_bytes=self._size + len(closing) + len(end),
            footer_off=self._size,
            footer_digest=digest,
            digests=bytes(self._digests),
        )


def read_footer(store: Store, name16: bytes) -> Footer:
    """A stored pack's footer, verified against its trailer, its checksum and its name: two small reads.

    The frames themselves are not read. Raises NotFound, Damaged, NewerVersion, UnknownFeature.
    """
    name = object_name(name16)
    size = store.size(name)
    tail_at = max(size - _TAIL, 0)
    tail = store.get(name, tail_at, size - tail_at)
    if len(tail) != size - tail_at:
        raise Damaged(f"{name} is truncated: it ends before {size} bytes.")
    end = trailer.decode(tail, name, size)
    if end.footer_off < HEADER:
        raise Damaged(f"{name}: the footer at {end.footer_off} overlaps the header.")
    if end.footer_off < tail_at:
        tail = store.get(name, end.footer_off, tail_at - end.footer_off) + tail
        tail_at = end.footer_off
    closing = tail[end.footer_off - tail_at : -trailer.SIZE]
    header = tail[:HEADER] if tail_at == 0 else store.get(name, 0, HEADER)
    if trailer.digest_of(header, closing) != end.digest:
        raise Damaged(f"{name}: header and footer do not match their digest.")
    return _footer(name16, header, closing, end, size)


def footer_of(name16: bytes, data: Buffer) -> Footer:
    """The same of a pack that is at hand, whole. Raises Damaged, NewerVersion, UnknownFeature."""
    name = object_name(name16)
    end = trailer.decode(data, name, len(data))
    if end.footer_off < HEADER:
        raise Damaged(f"{name}: the footer at {end.footer_off} overlaps the header.")
    header, closing = bytes(data[:HEADER]), bytes(data[end.footer_off : -trailer.SIZE])
    if trailer.digest_of(header, closing) != end.digest:
        raise Damaged(f"{name}: header and footer do not match their digest.")
    return _footer(name16, header, closing, end, len(data))


def _footer(name16: bytes, header: bytes, closing: bytes, end: trailer.Trailer, size: int) -> Footer:
    name = object_name(name16)
    magic, version, flags, _, repo, named, session, created = _HEAD.unpack_from(header)
    if magic != _MAGIC or named != name16:
        raise Damaged(f"{name} is another object: its header names {named.hex()}.")
    if version > VERSION:
        raise NewerVersion(f"{name} has layout {version}; this imagefs reads up to {VERSION}.")
    if flags:
        raise UnknownFeature(f"{name} has flags that this imagefs does not know ({flags:#x}).")
    contents = footer.decode(closing, name, HEADER, end.footer_off)
    return Footer(
        name16=name16,
        repo=UUID(bytes=repo),
        session=UUID(bytes=session),
        created_ns=created,
        frames_row=contents.frames_row,
        digests=contents.digests,
        moved=contents.moved,
        stored_bytes=size,
        footer_off=end.footer_off,
        footer_digest=end.digest,
    )
