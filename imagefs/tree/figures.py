"""Figures among the attributes that the record alone does not tell."""

from __future__ import annotations

from imagefs.catalog import Catalog
from imagefs.images.arming import blocked_reason
from imagefs.images.repository import Repository
from imagefs.types import Image

SEAL_BLOCKED, STORED_BYTES = b"user.imagefs.seal_blocked", b"user.imagefs.stored_bytes"


def read(repo: Repository, image: Image, name: bytes) -> bytes | None:
    """The figure's text; None when it is none of these, or there is nothing to say."""
    if name == STORED_BYTES and image.sealed:
        return str(stored_bytes(repo.catalog, image.map_id)).encode()
    if name == SEAL_BLOCKED:
        reason = seal_blocked(repo, image)
        return reason.encode() if reason else None
    return None


def seal_blocked(repo: Repository, image: Image) -> str | None:
    """Why a draft is not sealed: what hinders it, or how the last try failed, which will be repeated."""
    draft = image.draft
    if draft is None or repo.staging.stat(image.id, draft.gen) is None:
        return None
    return blocked_reason(repo, image) or draft.failed


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
