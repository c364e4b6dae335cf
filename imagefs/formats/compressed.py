"""Disk images whose clusters are compressed one by one with deflate, whatever format they are in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from imagefs.formats import Read

MOST_CLUSTERS = 1 << 20
"""64 GiB of guest disk in qemu's clusters: a table of 32 MiB. Larger images stay as they are."""


class Cluster(NamedTuple):
    """One compressed cluster, as the image's tables say; nothing says yet that they are right."""

    file_off: int
    """Where its stream begins in the file."""
    room: int
    """The stream has at most so many bytes."""
    guest_off: int
    """Where its plain bytes lie on the guest's disk."""


@dataclass(frozen=True, slots=True)
class Compressed:
    """What an image file holds in compressed form."""

    unit: int
    """Plain bytes of every cluster, a power of two from 4 KiB on."""
    wbits: tuple[int, ...]
    """Windows that its streams may have, as zlib counts them."""
    clusters: list[Cluster] = field(repr=False)
    """In the order of the guest's disk, no two at the same place of it."""


class NotThis(Exception):
    """The file's tables are not as the format has them."""


def table(read: Read, offset: int, length: int) -> bytes:
    """Exactly these bytes of the file; NotThis when it ends before."""
    found = read(offset, length)
    if len(found) != length:
        raise NotThis
    return found


def in_order(clusters: Iterator[Cluster], size: int) -> list[Cluster]:
    """Those that lie in the file, by guest offset, until there are more than anybody wants."""
    kept: list[Cluster] = []
    for cluster in clusters:
        if 0 < cluster.file_off < size:
            kept.append(cluster._replace(room=min(cluster.room, size - cluster.file_off)))
        if len(kept) > MOST_CLUSTERS:
            break
    return kept
