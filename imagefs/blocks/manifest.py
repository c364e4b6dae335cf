"""Manifests: map, pack table and record of a sealed image in one immutable object named by the map's uuid."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from imagefs.blocks import maprows, recode, trailer
from imagefs.blocks.digest import Buffer
from imagefs.blocks.maprows import Row
from imagefs.errors import Damaged, NewerVersion, UnknownFeature

VERSION = 1
CRITICAL = 1 << 31
"""Bit of a section's type: who does not know the section must refuse the manifest."""

RECORD, PACKS, MAP, LAYOUT, ROOT = 1, 2, 3, 4, 6
"""Section types. LAYOUT is critical, and there unless the map is plain. 5 is kept."""

_HEAD = struct.Struct("<8sHHI")
_SECTION = struct.Struct("<IIQQ32s")
_ROW = struct.Struct("<II")
_MAGIC = b"IFSMANI1"
_SECTION_VERSION = 1
_NAME = 16
_ROOT = 32


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest's content. Pack numbers in `rows` are rows of `packs`."""

    record: bytes
    """The image's record as JSON; it names the map's uuid, which the object's name repeats."""
    packs: tuple[bytes, ...]
    """Pack table: name16 of each pack."""
    rows: tuple[tuple[int, bytes], ...]
    """Map rows: (first quarter, value)."""
    root: str
    """The image's BLAKE3 root, 64 hex digits."""
    kind: int = 0
    """The map's kind: 0 plain, 1 recode (blocks.recode)."""

    def rows_for(self, numbers: Sequence[int]) -> list[tuple[int, bytes]]:
        """The map rows for a catalog that has `packs[i]` under the number `numbers[i]`."""
        return list(maprows.renumber(self.rows, dict(enumerate(numbers))))


def object_name(map_uuid: UUID) -> str:
    """Where the manifest of a map lies on the store: maps/<uuid>."""
    return f"maps/{map_uuid}"


def encode(record: bytes, packs: Mapping[int, bytes], rows: Iterable[Row], root: str, kind: int = 0) -> bytes:
    """A manifest's bytes. `rows` have the catalog's pack numbers, `packs` their names (and may have more).

    `root` is the image's BLAKE3 root in hex, `kind` the map's.
    """
    kept = [(quarter, bytes(value)) for quarter, value in rows]
    used = sorted(maprows.packs_of(kept))
    renumbered = maprows.renumber(kept, {number: row for row, number in enumerate(used)})
    segments = b"".join(_ROW.pack(quarter, len(value)) + value for quarter, value in renumbered)
    table = b"".join(packs[number] for number in used)
    sections = {RECORD: record, PACKS: table, MAP: segments, ROOT: bytes.fromhex(root)}
    return _assemble(sections | ({LAYOUT | CRITICAL: bytes([kind])} if kind else {}))


def _assemble(sections: Mapping[int, bytes]) -> bytes:
    table = [_HEAD.pack(_MAGIC, VERSION, 0, len(sections))]
    at = _HEAD.size + len(sections) * _SECTION.size
    for kind, body in sections.items():
        table.append(_SECTION.pack(kind, _SECTION_VERSION, at, len(body), trailer.digest_of(body)))
        at += len(body)
    content = b"".join([*table, *sections.values()])
    return trailer.seal(content)


def decode(data: Buffer, name: str) -> Manifest:
    """What the manifest `data` of object `name` says, all of it verified.

    Raises Damaged, NewerVersion, and UnknownFeature for a critical section that this version does not know.
    """
    content = trailer.content(data, name)
    if len(content) < _HEAD.size:
        raise Damaged(f"{name} is truncated.")
    magic, version, flags, count = _HEAD.unpack_from(content)
    if magic != _MAGIC:
        raise Damaged(f"{name} is no manifest.")
    if version > VERSION:
        raise NewerVersion(f"{name} has layout {version}; this imagefs reads up to {VERSION}.")
    if flags:
        raise UnknownFeature(f"{name} has flags that this imagefs does not know ({flags:#x}).")
    sections = _sections(content, count, name)
    packs = _packs(sections[PACKS], name)
    rows = tuple(_rows(sections[MAP], name))
    maprows.verify(rows, len(packs), name)
    if len(sections[ROOT]) != _ROOT:
        raise Damaged(f"{name}: the root has {len(sections[ROOT])} bytes.")
    kind = _kind(sections.get(LAYOUT, b"\0"), name)
    return Manifest(bytes(sections[RECORD]), packs, rows, sections[ROOT].hex(), kind)


def _sections(content: memoryview, count: int, name: str) -> dict[int, memoryview]:
    table = content[_HEAD.size : _HEAD.size + count * _SECTION.size]
    if len(table) != count * _SECTION.size:
        raise Damaged(f"{name}: the table of sections is truncated.")
    found: dict[int, memoryview] = {}
    for kind, version, at, length, digest in _SECTION.iter_unpack(table):
        body = content[at : at + length]
        if len(body) != length or trailer.digest_of(body) != digest or kind & ~CRITICAL in found:
            raise Damaged(f"{name}: section {kind & ~CRITICAL} does not match its digest.")
        if kind & ~CRITICAL not in (RECORD, PACKS, MAP, LAYOUT, ROOT):
            if kind & CRITICAL:
                raise UnknownFeature(f"{name} has section {kind & ~CRITICAL}, which is unknown here.")
            continue
        if version > _SECTION_VERSION:
            raise NewerVersion(f"{name}: section {kind & ~CRITICAL} has layout {version}.")
        found[kind & ~CRITICAL] = body
    missing = {RECORD, PACKS, MAP, ROOT} - found.keys()
    if missing:
        raise Damaged(f"{name} lacks sections {sorted(missing)}.")
    return found


def _kind(body: Buffer, name: str) -> int:
    if len(body) != 1 or body[0] > recode.KIND:
        raise UnknownFeature(f"{name} has a map of a layout that is unknown here.")
    return body[0]


def _packs(body: memoryview, name: str) -> tuple[bytes, ...]:
    if len(body) % _NAME:
        raise Damaged(f"{name}: the pack table has {len(body)} bytes.")
    return tuple(bytes(body[at : at + _NAME]) for at in range(0, len(body), _NAME))


def _rows(body: memoryview, name: str) -> Iterable[tuple[int, bytes]]:
    at = 0
    while at < len(body):
        if len(body) - at < _ROW.size:
            raise Damaged(f"{name}: the map is truncated.")
        quarter, length = _ROW.unpack_from(body, at)
        at += _ROW.size
        value = bytes(body[at : at + length])
        if len(value) != length:
            raise Damaged(f"{name}: the map is truncated.")
        yield quarter, value
        at += length
