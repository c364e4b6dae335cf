"""Packs on their way to the store: filled in order, compressed and put by threads, in bounded memory.

What is appended is copied, 25 us for 1 MiB, into one of a few buffers of a pack's size that are used again
and again. Views of the caller's memory would spare the copy, and a pack made of single blocks out of 2,048
windows would then hold 2 GiB. A job is one pack and not one frame: 16,384 futures per GiB cost half a
second of Python, 128 cost nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import NamedTuple

from imagefs.blocks import frames
from imagefs.blocks.packs import PackBuilder, object_name, read_footer
from imagefs.catalog import PackDone
from imagefs.images.repository import Repository
from imagefs.types import BLOCK, FRAME_BLOCKS, Extent

PACKERS = 3
"""Threads: two that compress keep two cores busy while a third one waits for the disk."""
PACKS_IN_FLIGHT = 4
"""Packs of plain data in memory besides the one being filled: 4 x 8 MiB."""
Reserve = Callable[[], Sequence[tuple[int, bytes]]]
"""Gives numbers and names of new packs, reserved in the catalog (T1)."""


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


class _Open(NamedTuple):
    """The pack being filled: its plain bytes so far, and the digests of its blocks."""

    number: int
    name: bytes
    plain: memoryview
    digests: list[bytes]


class Packer:
    """One image's way into packs. Used by one thread; its own threads end with close()."""

    def __init__(self, repo: Repository, reserve: Reserve) -> None:
        self._repo = repo
        self._reserve = reserve
        self._capacity = repo.config.pack_blocks // FRAME_BLOCKS * FRAME_BLOCKS
        self.blocks = 0
        """Blocks that were appended."""
        self._names: deque[tuple[int, bytes]] = deque()
        self._buffers: SimpleQueue[memoryview] = SimpleQueue()
        """Those that no pack uses now."""
        self._made = 0
        self._since_cut: list[Future[Stored]] = []
        self._jobs: deque[tuple[int, Future[Stored]]] = deque()
        """Packs on their way and their numbers, the oldest first."""
        self._stored_names: dict[int, bytes] = {}
        """Of packs that were filled: about 100 B for 8 MiB."""
        self._open: _Open | None = None
        self._pool = ThreadPoolExecutor(PACKERS, thread_name_prefix="pack")

    def close(self) -> None:
        """Ends the threads. Packs that no cut waited for may not be stored."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def append(self, plain: memoryview, digests: Sequence[bytes]) -> list[Extent]:
        """Stores blocks, of whose bytes it keeps a copy; where they lie.

        Waits while PACKS_IN_FLIGHT packs are being stored. Raises what storing one of them raised.
        """
        extents = []
        self.blocks += len(digests)
        at = 0
        while at < len(digests):
            pack = self._open or self._begin()
            first = len(pack.digests)
            take = min(len(digests) - at, self._capacity - first)
            pack.plain[first * BLOCK : (first + take) * BLOCK] = plain[at * BLOCK : (at + take) * BLOCK]
            pack.digests.extend(digests[at : at + take])
            extents.append(Extent(pack.number, first, take))
            at += take
            if first + take == self._capacity:
                self._finish()
        return extents

    def cut(self) -> Cut:
        """Ends the open pack; the packs since the last cut. Does not wait for them."""
        self._finish()
        cut, self._since_cut = Cut(self._since_cut), []
        return cut

    def digests(self, no: int) -> bytes | None:
        """Digests of the blocks of a pack that this packer fills or has filled, 20 B each; None for another's.

        Raises what storing it raised, NotFound or Damaged when it went wrong since.
        """
        if self._open is not None and self._open.number == no:
            return b"".join(self._open.digests)
        name = self._stored_names.get(no)
        if name is None:
            return None
        for number, job in self._jobs:
            if number == no:
                return job.result().digests
        return read_footer(self._repo.store, name).digests

    def _begin(self) -> _Open:
        if not self._names:
            self._names.extend(self._reserve())
        self._open = _Open(*self._names.popleft(), self._buffer(), [])
        return self._open

    def _buffer(self) -> memoryview:
        """Memory for a pack, as soon as there is some."""
        while self._jobs and self._jobs[0][1].done():
            self._jobs.popleft()[1].result()
        if self._buffers.empty() and self._made <= PACKS_IN_FLIGHT:
            self._made += 1
            return memoryview(bytearray(self._capacity * BLOCK))
        return self._buffers.get()

    def _finish(self) -> None:
        pack, self._open = self._open, None
        if pack is not None:
            job = self._pool.submit(self._put, pack)
            self._since_cut.append(job)
            self._jobs.append((pack.number, job))
            self._stored_names[pack.number] = pack.name

    def _put(self, pack: _Open) -> Stored:
        try:
            return self._stored(pack)
        finally:
            self._buffers.put(pack.plain)

    def _stored(self, pack: _Open) -> Stored:
        builder = PackBuilder(pack.name, self._repo.superblock.repo, self._repo.session.id, self._capacity)
        plain = pack.plain[: len(pack.digests) * BLOCK]
        for number, frame in enumerate(frames.encode_all(plain)):
            builder.add_frame(frame, pack.digests[number * FRAME_BLOCKS : (number + 1) * FRAME_BLOCKS])
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
