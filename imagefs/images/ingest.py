"""From bytes to packs: hash, look up, compress and put, overlapped in threads with bounded memory.

The caller's thread hashes and looks up, which needs the GIL; two threads compress and put whole packs,
which does not (zstd and the file system release it). A job is one pack and not one frame: 16,384 futures
per GiB cost half a second of Python, 128 cost nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

from imagefs.blocks import frames
from imagefs.blocks.dedup import Matcher
from imagefs.blocks.maps import MapBuilder
from imagefs.blocks.packs import PACK_BLOCKS, PackBuilder, object_name
from imagefs.blocks.root import Root
from imagefs.catalog import PackDone
from imagefs.images.repository import Repository
from imagefs.types import BLOCK, FRAME_BLOCKS

WINDOW = 1 << 20
"""Bytes hashed and looked up at a time: 256 blocks, the unit of matching."""
PACKERS = 2
PACKS_IN_FLIGHT = 4
"""Packs of plain data in memory besides the one being filled: 4 x 8 MiB."""


class Stored(NamedTuple):
    """What one pack's job leaves: the catalog's row and the digests of its blocks, 20 B each."""

    done: PackDone
    digests: bytes


class Cut(NamedTuple):
    """The packs between two places of the image."""

    packs: list[Future[Stored]]

    def done(self) -> bool:
        """Whether everything before the cut is durable on the store, or has failed."""
        return all(pack.done() for pack in self.packs)

    def stored(self) -> list[Stored]:
        """Waits for them. Raises what putting one of them raised."""
        return [pack.result() for pack in self.packs]


@dataclass(slots=True)
class _Open:
    """The pack being filled: its frames' plain bytes and all its block digests."""

    number: int
    name: bytes
    plain: list[memoryview | bytearray] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)


class Ingest:
    """One image's way into packs. Used by one thread; its own threads end with close()."""

    def __init__(self, repo: Repository, image_id: UUID, maps: MapBuilder) -> None:
        """Goes on behind what `maps` has. Names of packs are reserved for `image_id` as they are needed."""
        self.maps = maps
        self.root = Root(repo.digests.zero)
        self._repo = repo
        self._image_id = image_id
        self._matcher = Matcher(repo.index.lookup, repo.digest_list, repo.superblock.sampling)
        self._names: deque[tuple[int, bytes]] = deque()
        self._since_cut: list[Future[Stored]] = []
        self._open: _Open | None = None
        self._jobs: deque[Future[Stored]] = deque()
        self._pool = ThreadPoolExecutor(PACKERS, thread_name_prefix="pack")

    def __enter__(self) -> Ingest:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def hole(self, blocks: int) -> None:
        """Appends blocks of zeros that were never read."""
        self.maps.zeros(blocks)
        self.root.hole(blocks)

    def write(self, plain: memoryview) -> None:
        """Appends whole blocks, at most a window. The memory must stay unchanged: it is not copied."""
        digests = self._repo.digests.blocks(plain)
        self.root.update(b"".join(digests), len(digests))
        self._place(plain, digests)

    def store_again(self, plain: memoryview, gone: Iterable[int]) -> None:
        """Appends blocks that were in packs which are gone; their digests are in the root already."""
        self._matcher.forget(gone)
        self._place(plain, self._repo.digests.blocks(plain))

    def known(self, plain: memoryview) -> None:
        """Adds blocks to the root that an earlier run has stored, before anything is appended."""
        digests = self._repo.digests.blocks(plain)
        self.root.update(b"".join(digests), len(digests))

    def _place(self, plain: memoryview, digests: list[bytes]) -> None:
        zero = self._repo.digests.zero
        hits = self._matcher.match(digests)
        if zero not in digests and not any(hits):
            self._append(plain, digests)
            return
        at = 0
        for kind, count in _kinds(digests, hits, zero):
            if kind is None:
                self._append(plain[at * BLOCK : (at + count) * BLOCK], digests[at : at + count])
            elif kind == _ZERO:
                self.maps.zeros(count)
            else:
                self.maps.append(kind[0], kind[1], count)
            at += count

    def _append(self, plain: memoryview, digests: list[bytes]) -> None:
        """Stores blocks that nobody has, in order, whole frames without a copy."""
        at = 0
        while at < len(digests):
            pack = self._open or self._begin()
            filled = len(pack.digests) % FRAME_BLOCKS
            take = min(len(digests) - at, FRAME_BLOCKS - filled)
            piece = plain[at * BLOCK : (at + take) * BLOCK]
            self.maps.append(pack.number, len(pack.digests), take)
            if filled:
                partial = pack.plain[-1]
                pack.plain[-1] = bytearray(b"".join((partial, piece)))
            else:
                pack.plain.append(piece)
            pack.digests += digests[at : at + take]
            at += take
            if len(pack.digests) == PACK_BLOCKS:
                self._finish_pack()

    def _begin(self) -> _Open:
        if not self._names:
            self._names.extend(self._repo.catalog.seals.reserve(self._image_id, self._repo.session.id))
        self._open = _Open(*self._names.popleft())
        return self._open

    def _finish_pack(self) -> None:
        pack, self._open = self._open, None
        if pack is None:
            return
        self._matcher.learn(pack.number, b"".join(pack.digests))
        job = self._pool.submit(self._put, pack)
        self._since_cut.append(job)
        self._jobs.append(job)
        while len(self._jobs) > PACKS_IN_FLIGHT:
            self._jobs.popleft().result()

    def _put(self, pack: _Open) -> Stored:
        builder = PackBuilder(pack.name, self._repo.superblock.repo, self._repo.session.id)
        for number, plain in enumerate(pack.plain):
            first = number * FRAME_BLOCKS
            builder.add_frame(frames.encode(plain), pack.digests[first : first + FRAME_BLOCKS])
        built = builder.finish()
        self._repo.store.put(object_name(pack.name), built.parts)
        done = PackDone(
            no=pack.number,
            frames_row=built.frames_row,
            nblocks=built.nblocks,
            stored=built.stored_bytes,
            footer_off=built.footer_off,
            footer_digest=built.footer_digest,
        )
        return Stored(done, built.digests)

    def cut(self) -> Cut:
        """Ends the open pack; the packs since the last cut. Does not wait for them."""
        self._finish_pack()
        cut, self._since_cut = Cut(self._since_cut), []
        return cut

    def flush(self) -> list[Stored]:
        """The packs since the last cut, when they are durable on the store."""
        return self.cut().stored()


_ZERO = (-1, -1)
Hit = tuple[int, int]


def _kinds(digests: list[bytes], hits: list[Hit | None], zero: bytes) -> Iterator[tuple[Hit | None, int]]:
    """Runs of blocks of one kind: (None, n) new, (_ZERO, n) zeros, ((pack, first), n) known and consecutive."""
    start: Hit | None = None
    count = 0
    for digest, hit in zip(digests, hits, strict=True):
        kind = _ZERO if digest == zero else hit
        if count and _continues(start, count, kind):
            count += 1
            continue
        if count:
            yield start, count
        start, count = kind, 1
    if count:
        yield start, count


def _continues(start: Hit | None, count: int, kind: Hit | None) -> bool:
    if start is None or kind is None or _ZERO in (start, kind):
        return start == kind
    return kind == (start[0], start[1] + count)
