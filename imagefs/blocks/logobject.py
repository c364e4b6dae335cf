"""Log objects and snapshots: catalog rows as stored objects, from which a lost catalog is rebuilt."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple
from uuid import UUID

from imagefs.blocks import trailer
from imagefs.blocks.digest import Buffer
from imagefs.errors import Damaged

_HEAD = struct.Struct("<8s16sQQI")
_RECORD = struct.Struct("<QB16sI")
_MAGIC = b"IFSLOG01"


class Record(NamedTuple):
    """One change, or in a snapshot one live row."""

    gen: int
    """The catalog's generation at the change."""
    op: int
    """What happened, as the catalog's log numbers it."""
    image_id: UUID
    body: bytes
    """The image's full new record as JSON."""


@dataclass(frozen=True, slots=True)
class LogObject:
    """A batch of changes in order of generation, or a snapshot of all live rows."""

    repo: UUID
    epoch: int
    """Epoch of the host that owned the repository: fences one that comes back."""
    first_gen: int
    """Log: generation of the first record. Snapshot: the generation that it shows."""
    records: tuple[Record, ...]


def object_name(last_gen: int) -> str:
    """Where the batch that ends with generation `last_gen` lies on the store: log/<16 hex>."""
    return f"log/{last_gen:016x}"


def snapshot_name(gen: int) -> str:
    """Where the snapshot of generation `gen` lies on the store: snap/<16 hex>."""
    return f"snap/{gen:016x}"


def encode(repo: UUID, first_gen: int, records: Sequence[Record], epoch: int = 0) -> bytes:
    """The bytes of a log object, or of a snapshot whose generation `first_gen` is.

    A log object has at least one record, the first of them of generation `first_gen`.
    """
    parts = [_HEAD.pack(_MAGIC, repo.bytes, epoch, first_gen, len(records))]
    for record in records:
        parts.append(_RECORD.pack(record.gen, record.op, record.image_id.bytes, len(record.body)))
        parts.append(record.body)
    return trailer.seal(b"".join(parts))


def decode(data: Buffer, name: str) -> LogObject:
    """What the log object or snapshot `data` says, verified against its trailer and its name.

    Raises Damaged, NewerVersion.
    """
    content = trailer.content(data, name)
    if len(content) < _HEAD.size:
        raise Damaged(f"{name} is truncated.")
    magic, repo, epoch, first_gen, count = _HEAD.unpack_from(content)
    if magic != _MAGIC:
        raise Damaged(f"{name} is no log object.")
    records = tuple(_records(content[_HEAD.size :], name))
    if len(records) != count:
        raise Damaged(f"{name} has {len(records)} records and says {count}.")
    if name not in _names(first_gen, records):
        raise Damaged(f"{name} is another object: it has {count} records from generation {first_gen} on.")
    return LogObject(UUID(bytes=repo), epoch, first_gen, records)


def _names(first_gen: int, records: Sequence[Record]) -> list[str]:
    """Names that an object with these records can have."""
    gens = [first_gen, *(record.gen for record in records)]
    names = [snapshot_name(first_gen)] if max(gens) == first_gen else []
    if records and gens[0] == gens[1] and all(a < b for a, b in pairwise(gens[1:])):
        names.append(object_name(records[-1].gen))
    return names


def _records(body: memoryview, name: str) -> Iterator[Record]:
    at = 0
    while at < len(body):
        if len(body) - at < _RECORD.size:
            raise Damaged(f"{name}: a record is truncated.")
        gen, op, image_id, length = _RECORD.unpack_from(body, at)
        at += _RECORD.size
        if len(body) - at < length:
            raise Damaged(f"{name}: a record is truncated.")
        yield Record(gen, op, UUID(bytes=image_id), bytes(body[at : at + length]))
        at += length
