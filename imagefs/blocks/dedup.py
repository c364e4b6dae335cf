"""Which blocks are stored already: a sampled index finds the pack, the pack's digest list the neighbours.

One digest in 16 is in the index. A hit loads the list of that pack, and all blocks are matched against
the lists at hand, so that what was written together is found together. The index is a hint: a match is
always one of a list, and whoever commits a map checks that its packs are still there.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence

from imagefs.blocks.digest import WIDTH
from imagefs.types import FRAME_BLOCKS, ZERO_PACK, Extent

Place = tuple[int, int]
"""(pack number, block in it)."""
LISTS = 32
"""Digest lists kept at hand, 0.3 MB each. Twenty generations of an image (3 % changed each) stored 1.21 of the
ideal with 8, 1.04 with 32 and with 64: a MiB takes blocks from a pack of every generation, mostly too few to be
sampled."""
FRAMES_KEPT = 64
"""Frames touched last: matches in them cost a reader nothing."""
FRAMES_NEW = 24
"""Other frames that one MiB may take blocks from; without a cap the generations of an image scatter."""


def sample(digests: bytes, sampling: int) -> list[tuple[bytes, int]]:
    """The index rows of one pack: (digest, block) of each digest that belongs into the index.

    `digests` are those of all its blocks, concatenated.
    """
    mask = sampling - 1
    places = [at for at in range(0, len(digests), WIDTH) if not digests[at] & mask]
    return [(digests[at : at + WIDTH], at // WIDTH) for at in places]


class Matcher:
    """Finds stored copies of blocks. Used by one thread at a time; the callables run in it."""

    def __init__(
        self,
        lookup: Callable[[Sequence[bytes]], Sequence[Place | None]],
        digest_list: Callable[[int], bytes | None],
        sampling: int,
        *,
        lists: int = LISTS,
        frames_new: int = FRAMES_NEW,
    ) -> None:
        """A matcher that knows no pack yet.

        `lookup` asks the index for sampled digests, sorted, and answers in their order; `digest_list` gives
        all digests of a pack, concatenated, or None when the pack is not to be used (any more).
        """
        self._lookup = lookup
        self._digest_list = digest_list
        self._mask = sampling - 1
        self._lists: OrderedDict[int, dict[bytes, int]] = OrderedDict()
        self._capacity = lists
        self._near: set[bytes] = set()
        """All digests of the lists, and of some that gave way: one look here spares one into each list."""
        self._stale = 0
        """Lists that gave way since `_near` was made."""
        self._refused: set[int] = set()
        self._cap = _FrameCap(frames_new)

    def match(self, digests: Sequence[bytes]) -> list[Place | None]:
        """Where each block is stored already, None for those to be stored; at most 1 MiB of blocks at a time.

        256 blocks that nobody has take about 30 us. A block that is stored may be answered with None: it was
        not sampled, or its frame is one too many for this MiB.
        """
        missing = set(digests)
        places: dict[bytes, Place] = {}
        if not self._near.isdisjoint(missing):
            for pack in [*reversed(self._lists)]:
                self._take(pack, missing, places)
        self._ask(missing, places)
        if not places:
            return [None] * len(digests)
        return self._cap.admit([places.get(digest) for digest in digests])

    def _ask(self, missing: set[bytes], places: dict[bytes, Place]) -> None:
        """Loads the lists that the index names for what is sampled and still missing."""
        mask = self._mask
        wanted = sorted(digest for digest in missing if not digest[0] & mask)
        if not wanted:
            return
        for digest, place in zip(wanted, self._lookup(wanted), strict=True):
            if place is not None and digest in missing and self._load(place[0]):
                self._take(place[0], missing, places)

    def admits(self, extents: Iterable[Extent]) -> bool:
        """Whether a MiB made of these extents keeps within the cap; if so its frames count as touched."""
        return self._cap.admits(
            (extent.pack, frame)
            for extent in extents
            if extent.pack != ZERO_PACK
            for frame in range(extent.first // FRAME_BLOCKS, (extent.first + extent.count - 1) // FRAME_BLOCKS + 1)
        )

    def _take(self, pack: int, missing: set[bytes], places: dict[bytes, Place]) -> None:
        """Moves from `missing` to `places` what the list of `pack` has."""
        blocks = self._lists[pack]
        hits = missing & blocks.keys()
        if hits:
            missing -= hits
            places.update((digest, (pack, blocks[digest])) for digest in hits)
            self._lists.move_to_end(pack)

    def _load(self, pack: int) -> bool:
        """Whether the list of a pack that the index named is newly at hand."""
        if pack in self._lists or pack in self._refused:
            return False
        digests = self._digest_list(pack)
        if digests is None:
            self._refused.add(pack)
            return False
        self.learn(pack, [digests[at : at + WIDTH] for at in range(0, len(digests), WIDTH)])
        return True

    def learn(self, pack: int, digests: Sequence[bytes], first: int = 0) -> None:
        """Adds blocks of a pack from its block `first` on: their digests in order."""
        known = self._lists.setdefault(pack, {})
        known.update(zip(digests, range(first, first + len(digests)), strict=True))
        self._near.update(digests)
        self._lists.move_to_end(pack)
        if len(self._lists) > self._capacity:
            self._lists.popitem(last=False)
            self._stale += 1
            if self._stale == self._capacity:
                self._near = set().union(*self._lists.values())
                self._stale = 0

    def forget(self, packs: Iterable[int]) -> None:
        """Never answers with blocks of these packs again: numbers of packs are not used twice."""
        for pack in packs:
            self._refused.add(pack)
            self._lists.pop(pack, None)


class _FrameCap:
    """Bounds how many frames a MiB of an image is spread over: the rarest are given up, and stored anew.

    Twenty generations of an image with 3 % rewritten each time: 31 frames a MiB instead of 40, for 7 %
    more blocks; nothing is lost between images of different origin. A minimum length of runs instead
    costs up to four times the blocks.
    """

    def __init__(self, frames_new: int) -> None:
        self._frames_new = frames_new
        self._touched: OrderedDict[Place, None] = OrderedDict()

    def admit(self, places: list[Place | None]) -> list[Place | None]:
        """The same places without those in frames beyond the cap."""
        used = Counter([(place[0], place[1] // FRAME_BLOCKS) for place in places if place is not None])
        fresh = [frame for frame, _ in used.most_common() if frame not in self._touched]
        refused = set(fresh[self._frames_new :])
        self._touch(frame for frame in used if frame not in refused)
        if not refused:
            return places
        return [
            place if place is not None and (place[0], place[1] // FRAME_BLOCKS) not in refused else None
            for place in places
        ]

    def admits(self, frames: Iterable[Place]) -> bool:
        """Whether all of these may be taken together; then they are touched."""
        wanted = dict.fromkeys(frames)
        if sum(frame not in self._touched for frame in wanted) > self._frames_new:
            return False
        self._touch(wanted)
        return True

    def _touch(self, frames: Iterable[Place]) -> None:
        for frame in frames:
            self._touched[frame] = None
            self._touched.move_to_end(frame)
        while len(self._touched) > FRAMES_KEPT:
            self._touched.popitem(last=False)
