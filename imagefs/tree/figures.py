"""Figures among the attributes that the record alone does not tell."""

from __future__ import annotations

from imagefs.catalog import Catalog
from imagefs.tree.xattrs import STORED_BYTES
from imagefs.types import Image


def read(catalog: Catalog, image: Image, name: bytes) -> bytes | None:
    """The figure's text; None when it is none of these, or there is nothing to count."""
    if name == STORED_BYTES and image.sealed:
        return str(stored_bytes(catalog, image.map_id)).encode()
    return None


def stored_bytes(catalog: Catalog, map_id: int) -> int:
    """Bytes on the store that the blocks of a map take, shared ones included: each pack's stored bytes
    in the proportion of its blocks that the map uses.
    """
    total = 0
    for number, used in catalog.maps.packs_of(map_id).items():
        pack = catalog.packs.get(number)
        if pack.blocks:
            total += pack.stored * used // pack.blocks
    return total
