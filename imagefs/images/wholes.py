"""Whole MiBs that are stored already, found with one hash of all their bytes instead of 256.

BLAKE3 of 1 MiB takes a third of the time that its 256 blocks take one by one. A row of the index says which
blocks of which packs a MiB with this digest is made of:

    BLAKE3-16 of the MiB's digest, its 256 blocks' digests and what follows | n x (u32 pack, u16 first, u16 count)

It is a hint like everything in the index. It is used only when the packs are there and their footers have the
very block digests that the row was made with, so a row that is stale or damaged finds nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from struct import Struct

from blake3 import blake3

from imagefs.blocks.digest import WIDTH, Buffer
from imagefs.images.repository import Repository
from imagefs.types import BLOCK, ZERO_PACK, Extent

MIB = 1 << 20
BLOCKS = MIB // BLOCK
MOST_EXTENTS = 32
"""A MiB in more pieces is left to the look-up of single blocks, which may store some anew."""
ROWS = 256
"""Rows that are added to the index together."""
LISTS = 16
"""Digest lists at hand, 41 KB each."""
_CHECK = 16
_EXTENT = Struct("<IHH")


class Wholes:
    """Finds and notes whole MiBs. Used by one thread."""

    def __init__(self, repo: Repository, digest_list: Callable[[int], bytes | None] | None = None) -> None:
        """`digest_list` gives the digests of a pack that may be shared, None for another."""
        self._repo = repo
        self._digest_list = digest_list or repo.digest_list
        self._lists: OrderedDict[int, bytes] = OrderedDict()
        self._rows: list[tuple[bytes, bytes, int]] = []

    def key(self, plain: Buffer) -> bytes:
        """Digest of 1 MiB, which takes about 0.2 ms."""
        key = self._repo.superblock.digest_key
        return (blake3(plain) if key is None else blake3(plain, key=key)).digest(WIDTH)

    def find(self, key: bytes) -> tuple[list[Extent], bytes] | None:
        """Where a MiB lies, and the digests of its blocks; None when that is not known."""
        row = self._repo.index.whole(key)
        if row is None or (len(row) - _CHECK) % _EXTENT.size:
            return None
        extents = [Extent(*extent) for extent in _EXTENT.iter_unpack(row[_CHECK:])]
        digests = self._digests(extents)
        if digests is None or _check(key, digests, row[_CHECK:]) != row[:_CHECK]:
            return None
        return extents, digests

    def note(self, key: bytes, digests: bytes, extents: Sequence[Extent]) -> None:
        """Notes where a MiB and its blocks were found or are being stored, if that is worth a row."""
        packs = [extent.pack for extent in extents if extent.pack != ZERO_PACK]
        if packs and len(extents) <= MOST_EXTENTS:
            where = b"".join(_EXTENT.pack(extent.pack, extent.first, extent.count) for extent in extents)
            self._rows.append((key, _check(key, digests, where) + where, packs[-1]))
        if len(self._rows) >= ROWS:
            self.flush()

    def flush(self) -> None:
        """Adds what was noted to the index."""
        rows, self._rows = self._rows, []
        if rows:
            self._repo.index_wholes(rows)

    def _digests(self, extents: Sequence[Extent]) -> bytes | None:
        """Digests of the blocks, from the packs' footers; None when they are not all there."""
        parts = []
        for extent in extents:
            if extent.pack == ZERO_PACK:
                parts.append(self._repo.digests.zero * extent.count)
                continue
            listed = self._list(extent.pack)
            if listed is None:
                return None
            parts.append(listed[extent.first * WIDTH : (extent.first + extent.count) * WIDTH])
        digests = b"".join(parts)
        return digests if len(digests) == BLOCKS * WIDTH else None

    def _list(self, pack: int) -> bytes | None:
        listed = self._lists.get(pack)
        if listed is None:
            listed = self._digest_list(pack)
            if listed is None:
                return None
            self._lists[pack] = listed
            if len(self._lists) > LISTS:
                self._lists.popitem(last=False)
        return listed


def _check(key: bytes, digests: bytes, where: bytes) -> bytes:
    return blake3(key + digests + where).digest(_CHECK)
