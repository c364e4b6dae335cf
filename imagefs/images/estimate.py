"""Whether converting an image is worth it: what its plain blocks would add to the store, and what would go."""

from __future__ import annotations

import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from uuid import UUID

from imagefs.blocks.dedup import Matcher
from imagefs.images.inside import Inside, Piece
from imagefs.images.repository import Repository
from imagefs.images.usage import Masks, masks_of
from imagefs.types import BLOCK

WINDOW = 1 << 20
SKETCH = 63
"""One block in 64, by the first byte of its digest, is remembered of an image that was not worth it."""
SKETCHED = 1 << 18
"""Blocks remembered in all: those of 64 GiB of guest disks."""
ROW = 24
"""Bytes that a stream's row in the table takes, compressed."""
KIN = 0.3
"""Images that share less than this part of their blocks are not converted for each other's sake."""


@dataclass(slots=True)
class _Count:
    blocks: int = 0
    known: int = 0
    costs: int = 0
    streams: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes on the store, about."""

    costs: int
    """What would be added."""
    frees: int
    """What the present form has for itself."""
    blocks: int
    """Plain blocks inside that are not zeros."""
    known: int
    """Those of them that are stored already."""
    kin: tuple[UUID, ...]
    """Images not converted either that share much of what is inside."""

    def __str__(self) -> str:
        return (
            f"it would take {self.costs} bytes in the place of {self.frees}; {self.known} of {self.blocks} blocks "
            "inside are stored already"
        )


def leaving(repo: Repository, maps: Collection[int]) -> set[int]:
    """Packs that only these maps name: they go with them."""
    named = Counter(no for map_id in maps for no in repo.catalog.maps.packs_of(map_id))
    return {no for no, count in named.items() if repo.catalog.packs.get(no).refs == count}


def staying(repo: Repository, maps: Collection[int]) -> Callable[[int], bytes | None]:
    """Digest lists to find blocks in, without those of packs that go with these maps: one block found there
    would keep all of a pack."""
    gone = leaving(repo, maps)
    return lambda no: None if no in gone else repo.digest_list(no)


class Estimator:
    """Estimates, and remembers a sample of what images hold that were estimated. Used by one thread."""

    def __init__(self, repo: Repository) -> None:
        self._repo = repo
        self._seen: OrderedDict[bytes, UUID] = OrderedDict()

    def of(
        self, image_id: UUID, inside: Inside, maps: set[int], pace: Callable[[int], None], *, nice: bool
    ) -> Estimate:
        """For an image and the maps of its bytes, all of which are `inside`'s. `pace` is told bytes of file."""
        matcher = Matcher(self._repo.index.lookup_many, staying(self._repo, maps), self._repo.superblock.sampling)
        count = _Count()
        sample: list[bytes] = []
        for window in _windows(inside.pieces(remake=False, nice=nice)):
            plain = b"".join(piece.plain for piece in window)
            digests, new = self._new(matcher, plain)
            data = sum(digest != self._repo.digests.zero for digest in digests)
            stream = sum(piece.length for piece in window)
            count.blocks += data
            count.known += data - len(new)
            count.costs += stream * len(new) // max(data, 1) + ROW * len(window)
            count.streams += [(piece.cluster.file_off, piece.length) for piece in window]
            sample += [digest for digest in digests if not digest[0] & SKETCH and digest != self._repo.digests.zero]
            pace(stream)
        for _, skeleton in inside.skeleton(sorted(count.streams)):
            _, new = self._new(matcher, skeleton)
            # Tables mostly, and clusters that could not be compressed: a look at each instead of a guess.
            count.costs += sum(len(zlib.compress(skeleton[at * BLOCK : (at + 1) * BLOCK], 1)) for at in new)
        kin = Counter(self._seen[digest] for digest in sample if digest in self._seen)
        near = tuple(other for other, shared in kin.items() if other != image_id and shared >= KIN * len(sample))
        self._remember(image_id, sample)
        return Estimate(count.costs, self._frees(maps), count.blocks, count.known, near)

    def _new(self, matcher: Matcher, plain: bytes) -> tuple[list[bytes], list[int]]:
        """(digests of the blocks, numbers of those that would be stored)."""
        digests = self._repo.digests.blocks(plain)
        zero = self._repo.digests.zero
        places = matcher.match(digests)
        return digests, [
            number
            for number, (digest, place) in enumerate(zip(digests, places, strict=True))
            if place is None and digest != zero
        ]

    def _remember(self, image_id: UUID, sample: list[bytes]) -> None:
        for digest in sample:
            self._seen[digest] = image_id
        while len(self._seen) > SKETCHED:
            self._seen.popitem(last=False)

    def forget(self, image_id: UUID) -> None:
        """The image was converted, or has gone: the index answers for its blocks."""
        for digest in [digest for digest, owner in self._seen.items() if owner == image_id]:
            del self._seen[digest]

    def _frees(self, maps: set[int]) -> int:
        """Packs that no other map names, and what compaction will take out of others.

        Reads every map, 0.2 ms each, when a pack is shared.
        """
        catalog, sparse = self._repo.catalog, self._repo.config.sparse_share
        packs = {no: catalog.packs.get(no) for map_id in maps for no in catalog.maps.packs_of(map_id)}
        alone = leaving(self._repo, maps)
        frees = sum(packs[no].stored for no in alone)
        shared = packs.keys() - alone
        if shared:
            kept: Masks = {}
            for map_id, _ in catalog.maps.scan():
                if map_id not in maps:
                    for no, mask in masks_of(catalog.maps.rows(map_id)).items():
                        kept[no] = kept.get(no, 0) | mask
            rest = [(packs[no], kept.get(no, 0).bit_count()) for no in shared if packs[no].blocks]
            rest = [(row, left) for row, left in rest if left < sparse * row.blocks]
            frees += sum(row.stored * (row.blocks - left) // row.blocks for row, left in rest)
        return frees


def _windows(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    """Pieces by the MiB."""
    window: list[Piece] = []
    for piece in pieces:
        window.append(piece)
        if sum(len(one.plain) for one in window) >= WINDOW:
            yield window
            window = []
    if window:
        yield window
