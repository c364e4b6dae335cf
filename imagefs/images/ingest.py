"""From bytes to packs: hash, look up, compress and put, overlapped in threads with bounded memory.

The caller's thread hashes and looks up, which needs the GIL; the packer's threads compress and put whole
packs, which does not (zstd and the file system release it). Reading overlaps with all that by the kernel's
read-ahead. On two cores zstd is what an ingest of new data waits for, hashing what one of known data does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from uuid import UUID

from imagefs.blocks.dedup import Matcher, Place
from imagefs.blocks.digest import WIDTH, is_zero
from imagefs.blocks.maps import MapBuilder
from imagefs.blocks.root import Root
from imagefs.images.packing import Cut, Packer, Reserve, Stored
from imagefs.images.repository import Repository
from imagefs.images.wholes import Wholes
from imagefs.types import BLOCK, ZERO_PACK, Extent

WINDOW = 1 << 20
"""Bytes hashed and looked up at a time: 256 blocks, the unit of matching."""
LISTED = 64
"""Digest lists kept for taking blocks over, 41 KB each: a copy with 1 % rewritten comes back to a pack 40 times."""


class Ingest:
    """One image's way into packs. Used by one thread; its own threads end with the `with` block."""

    def __init__(
        self, repo: Repository, image_id: UUID, maps: MapBuilder, reserve: Reserve | None = None,
        digest_list: Callable[[int], bytes | None] | None = None,
    ) -> None:  # fmt: skip
        """Goes on behind what `maps` has. Names of packs are reserved as they are needed: for the draft
        `image_id`, or as `reserve` does. `digest_list` says which packs may be shared, if not all that are
        live."""
        self.maps = maps
        self.root = Root(repo.digests.zero)
        self._repo = repo
        self._others = digest_list or repo.digest_list
        self._sampling = repo.superblock.sampling
        self._matcher = Matcher(self._look_up, self._digest_list, self._sampling)
        self._wholes = Wholes(repo, self._digest_list)
        self._recent: tuple[dict[bytes, Place], dict[bytes, Place]] = ({}, {})
        """Sampled blocks stored since the last cut, and between the two before: the index has the older ones."""
        self._packer = Packer(repo, reserve or (lambda: repo.catalog.seals.reserve(image_id, repo.session.id)))

        self._listed: dict[int, bytes | None] = {}
        """Digest lists of packs whose blocks were taken over."""

    def __enter__(self) -> Ingest:
        return self

    def __exit__(self, *_: object) -> None:
        self._packer.close()

    @property
    def stored(self) -> int:
        """Bytes that were new, and have been or are being stored."""
        return self._packer.blocks * BLOCK

    # -- in the order of the image -----------------------------------------------------------------

    def hole(self, blocks: int) -> None:
        """Appends blocks of zeros that were never read."""
        self.maps.zeros(blocks)
        self.root.hole(blocks)

    def write(self, plain: memoryview) -> None:
        """Appends whole blocks, at most a window. The memory may be used again when this returns.

        Waits while too many packs are on their way to the store; raises what putting one of them raised.
        """
        if is_zero(plain):
            self.hole(len(plain) // BLOCK)
            return
        key = self._wholes.key(plain) if len(plain) == WINDOW else None
        found = self._wholes.find(key) if key is not None else None
        if found is not None and self._matcher.admits(found[0]):
            extents, digests = found
            self.root.update(digests, WINDOW // BLOCK)
            self._append(extents)
            return
        listed = self._repo.digests.blocks(plain)
        digests = b"".join(listed)
        self.root.update(digests, len(listed))
        extents = self._place(plain, listed)
        self._append(extents)
        if key is not None:
            self._wholes.note(key, digests, extents)

    def reuse(self, map_id: int, first: int, count: int) -> None:
        """Appends blocks of an image's map as they are, from its block `first` on: nothing is read or stored.

        For what a draft over a base did not overwrite. Only the digests are fetched, for the root: from the
        packs' footers, or from the blocks themselves where a footer cannot be had. The caller sees to it
        that the map stays (a draft's base is counted as a reference). Raises Damaged, BackendFailed.
        """
        for extent in self._repo.catalog.maps.extents(map_id, first, count):
            if extent.pack == ZERO_PACK:
                self.root.hole(extent.count)
            else:
                self.root.update(self._digests_of(map_id, first, extent), extent.count)
            self._append([extent])
            first += extent.count

    def reused(self, map_id: int, first: int, count: int) -> None:
        """Adds blocks of an image's map to the root that an earlier run has taken over, before anything is
        appended."""
        for extent in self._repo.catalog.maps.extents(map_id, first, count):
            if extent.pack == ZERO_PACK:
                self.root.hole(extent.count)
            else:
                self.root.update(self._digests_of(map_id, first, extent), extent.count)
            first += extent.count

    def known(self, plain: memoryview) -> None:
        """Adds blocks to the root that an earlier run has stored, before anything is appended."""
        digests = self._repo.digests.blocks(plain)
        self.root.update(b"".join(digests), len(digests))

    def store_again(self, plain: memoryview, gone: Iterable[int]) -> None:
        """Appends blocks that were in packs which are gone; their digests are in the root already."""
        self._matcher.forget(gone)
        self._append(self._place(plain, self._repo.digests.blocks(plain)))

    # -- towards the store -------------------------------------------------------------------------

    def cut(self) -> Cut:
        """Ends the open pack; the packs since the last cut. Does not wait for them."""
        self._wholes.flush()
        self._recent = ({}, self._recent[0])
        return self._packer.cut()

    def flush(self) -> list[Stored]:
        """The packs since the last cut, when they are durable on the store."""
        return self.cut().stored()

    # ------------------------------------------------------------------------------------------------

    def _append(self, extents: Iterable[Extent]) -> None:
        for extent in extents:
            if extent.pack == ZERO_PACK:
                self.maps.zeros(extent.count)
            else:
                self.maps.append(extent.pack, extent.first, extent.count)

    def _place(self, plain: memoryview, digests: list[bytes]) -> list[Extent]:
        """Where blocks are stored, those that nobody has being stored now."""
        found = self._matcher.match(digests)
        fresh: dict[bytes, Place] = {}
        mask = self._sampling - 1
        extents: list[Extent] = []
        at = 0
        for kind, count in _runs(digests, found, self._repo.digests.zero):
            if kind is None:
                extents += self._store(plain[at * BLOCK : (at + count) * BLOCK], digests[at : at + count], fresh)
            elif kind == _ZERO:
                extents.append(Extent(ZERO_PACK, 0, count))
            elif kind == _AGAIN:
                extents += [Extent(*fresh[digest], 1) for digest in digests[at : at + count]]
            else:
                extents.append(Extent(*kind, count))
            at += count
        self._recent[0].update((digest, place) for digest, place in fresh.items() if not digest[0] & mask)
        return extents

    def _store(self, plain: memoryview, digests: Sequence[bytes], fresh: dict[bytes, Place]) -> list[Extent]:
        """Stores blocks that nobody has, in order, and notes where."""
        extents = self._packer.append(plain, digests)
        at = 0
        for extent in extents:
            stored = digests[at : at + extent.count]
            self._matcher.learn(extent.pack, stored, extent.first)
            fresh.update((digest, (extent.pack, block)) for block, digest in enumerate(stored, extent.first))
            at += extent.count
        return extents

    def _look_up(self, digests: Sequence[bytes]) -> list[Place | None]:
        """Where copies of sampled blocks are, in this image or, as far as the index knows, in others."""
        new, old = self._recent
        found = self._repo.index.lookup_many(digests)
        return [new.get(digest) or old.get(digest) or place for digest, place in zip(digests, found, strict=True)]

    def _digest_list(self, pack: int) -> bytes | None:
        """Digests of the blocks of a pack that may be shared: one of this image's own, or one that is live."""
        own = self._packer.digests(pack)
        return self._others(pack) if own is None else own

    def _digests_of(self, map_id: int, first: int, extent: Extent) -> bytes:
        """Digests of the blocks of an extent that is at block `first` of a map."""
        if extent.pack not in self._listed:
            if len(self._listed) == LISTED:
                self._listed.clear()
            self._listed[extent.pack] = self._repo.digest_list(extent.pack)
        listed = self._listed[extent.pack]
        if listed is not None:
            return listed[extent.first * WIDTH : (extent.first + extent.count) * WIDTH]
        found: list[bytes] = []
        for plain in self._made(map_id, first, extent.count):
            found += self._repo.digests.blocks(plain)
        return b"".join(found)

    def _made(self, map_id: int, first: int, count: int) -> Iterator[memoryview]:
        """Blocks of an image's map as they are read, a window at a time."""
        size = self._repo.catalog.maps.info(map_id).size
        for at in range(first, first + count, WINDOW // BLOCK):
            length = min(WINDOW, (first + count - at) * BLOCK)
            yield memoryview(self._repo.reader.pread(map_id, size, at * BLOCK, length).ljust(length, b"\0"))


_ZERO, _AGAIN = (-1, -1), (-2, -2)
"""Kinds of blocks besides those that are new (None) and those that are stored (their place)."""


def _runs(digests: list[bytes], places: list[Place | None], zero: bytes) -> Iterator[tuple[Place | None, int]]:
    """Runs of blocks of one kind: (None, n) new, (_AGAIN, n) new but met before in these, (_ZERO, n) zeros,
    ((pack, first), n) stored and consecutive there."""
    unique = len(set(digests)) == len(digests)
    if unique and zero not in digests and not any(places):
        yield None, len(digests)
        return
    start: Place | None = None
    count = 0
    for kind in _kinds(digests, places, zero):
        if count and _continues(start, count, kind):
            count += 1
            continue
        if count:
            yield start, count
        start, count = kind, 1
    if count:
        yield start, count


def _kinds(digests: list[bytes], places: list[Place | None], zero: bytes) -> Iterator[Place | None]:
    met: set[bytes] = set()
    for digest, place in zip(digests, places, strict=True):
        if digest == zero:
            yield _ZERO
        elif place is None and digest in met:
            yield _AGAIN
        else:
            met.add(digest)
            yield place


def _continues(start: Place | None, count: int, kind: Place | None) -> bool:
    if start is None or kind is None or start[0] < 0 or kind[0] < 0:
        return start == kind
    return kind == (start[0], start[1] + count)
