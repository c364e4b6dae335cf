"""The last 64 bytes of every stored object: where its footer is, and a digest over header and footer."""

from __future__ import annotations

import struct
from typing import NamedTuple

from blake3 import blake3

from imagefs.blocks.crc import crc32c
from imagefs.blocks.digest import Buffer
from imagefs.errors import Damaged, NewerVersion

VERSION = 1
"""Layout of the objects this module closes; a reader refuses greater ones."""
_LAYOUT = struct.Struct("<QII32sH6s8s")
SIZE = _LAYOUT.size
_MAGIC = b"IFSEND01"
_PAD = bytes(6)


class Trailer(NamedTuple):
    """What the trailer says, its own checksum verified."""

    footer_off: int
    footer_len: int
    digest: bytes


def digest_of(*covered: Buffer) -> bytes:
    """32 bytes: BLAKE3 over the pieces one after the other."""
    hasher = blake3()
    for piece in covered:
        hasher.update(piece)
    return hasher.digest()


def encode(footer_off: int, footer_len: int, digest: bytes) -> bytes:
    """The 64 bytes that end an object."""
    zeroed = _LAYOUT.pack(footer_off, footer_len, 0, digest, VERSION, _PAD, _MAGIC)
    return _LAYOUT.pack(footer_off, footer_len, crc32c(zeroed), digest, VERSION, _PAD, _MAGIC)


def decode(data: Buffer, name: str, size: int) -> Trailer:
    """What the last 64 bytes of `data`, the end of object `name` of `size` bytes, say.

    Raises Damaged when they do not verify or point outside of the object, NewerVersion for a layout that
    this version cannot read. The footer's digest is left to the caller, who has the covered bytes.
    """
    if len(data) < SIZE:
        raise Damaged(f"{name} is truncated: {size} bytes.")
    off, length, crc, digest, version, _, magic = _LAYOUT.unpack(data[-SIZE:])
    if magic != _MAGIC:
        raise Damaged(f"{name} does not end in a trailer.")
    zeroed = bytearray(data[-SIZE:])
    zeroed[12:16] = bytes(4)
    if crc32c(bytes(zeroed)) != crc:
        raise Damaged(f"{name}: the trailer does not match its checksum.")
    if version > VERSION:
        raise NewerVersion(f"{name} has layout {version}; this imagefs reads up to {VERSION}.")
    if off + length + SIZE != size:
        raise Damaged(f"{name}: the footer at {off} and the trailer do not end at {size} bytes.")
    return Trailer(off, length, digest)


def content(data: Buffer, name: str) -> memoryview:
    """What stands before the trailer, verified, of an object whose footer is all of it (manifests, logs).

    Raises Damaged, NewerVersion.
    """
    end = decode(data, name, len(data))
    covered = memoryview(data)[:-SIZE]
    if end.footer_off or digest_of(covered) != end.digest:
        raise Damaged(f"{name} does not match its digest.")
    return covered


def seal(covered: bytes) -> bytes:
    """An object whose footer is all of it: the bytes given and the trailer over them."""
    return covered + encode(0, len(covered), digest_of(covered))
