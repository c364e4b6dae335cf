"""The root of an image: one digest of all its bytes, cheap over holes and resumable at a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable

from blake3 import blake3

from imagefs.types import BLOCK

LEAF_BLOCKS = (256 << 20) // BLOCK
"""Blocks under one leaf."""


class Root:
    """BLAKE3 over the leaves, each being BLAKE3 over the digests of 256 MiB of blocks; the last may be short.

    Equal root and size mean equal bytes. Leaves make a hole cheap: its whole leaves are all the same, so
    that 1 TiB of hole costs one leaf's hashing and not 5 GB of it. Used by one thread.
    """

    def __init__(self, zero: bytes, leaves: Iterable[bytes] = ()) -> None:
        """`zero` is the digest of a block of zeros; `leaves` those of what was added before."""
        self.leaves = list(leaves)
        """Finished leaves, 32 bytes each: with them another hasher goes on at a multiple of 256 MiB."""
        self._zero = zero
        self._hole: bytes | None = None
        self._leaf = blake3()
        self._filled = 0

    def update(self, digests: bytes, count: int) -> None:
        """Adds `count` blocks: their digests in order, concatenated."""
        width = len(self._zero)
        view = memoryview(digests)
        while count:
            take = min(count, LEAF_BLOCKS - self._filled)
            self._leaf.update(view[: take * width])
            self._advance(take)
            view, count = view[take * width :], count - take

    def hole(self, count: int) -> None:
        """Adds `count` blocks of zeros."""
        while count:
            take = min(count, LEAF_BLOCKS - self._filled)
            if take == LEAF_BLOCKS:
                self.leaves.append(self._whole_hole())
            else:
                self._leaf.update(self._zero * take)
                self._advance(take)
            count -= take

    def _whole_hole(self) -> bytes:
        if self._hole is None:
            self._hole = blake3(self._zero * LEAF_BLOCKS).digest()
        return self._hole

    def _advance(self, blocks: int) -> None:
        self._filled += blocks
        if self._filled == LEAF_BLOCKS:
            self.leaves.append(self._leaf.digest())
            self._leaf, self._filled = blake3(), 0

    def hexdigest(self) -> str:
        """The root of everything added so far, 64 hex digits; more may be added afterwards."""
        last = [self._leaf.digest()] if self._filled else []
        return blake3(b"".join([*self.leaves, *last])).hexdigest()
