"""A draft's bytes, wherever they are: its staging file, and the maps that it takes blocks from.

A draft that is a copy begins as parts of maps, in steps of 4 KiB (catalog.parts): nothing of them is in the
staging file, which only has the right size. The rows of the parts decide. What a part covers is read from its
map whatever the staging file has below it; what no part covers is the staging file's, holes being zeros. So it
makes no difference which of its blocks a filesystem calls data, nor that it may keep written zeros as holes.

Everything that changes a draft keeps to these orders, so that each state that SIGKILL or a power cut can leave
is one that a plain file could have:

- A write puts its bytes below the part, then takes the overwritten blocks out of the part: until then the
  old bytes are read. A write to a piece of a block first copies the whole block up, which changes nothing.
- What is punched or zeroed is a hole in the staging file first, and out of the part then.
- A copy adds its part, then makes the file so long: parts behind the end mean nothing. What it covers stays in
  the staging file.
- Cutting shortens the file, then takes the parts behind its end away; who opens it for writing does so again.
- A part that ends in the middle of a block has zeros behind the end of the file in that block: growing shows
  zeros. A cut in the middle of a block of a map copies the block's beginning up.
- The rows of this boot are changed at once and survive SIGKILL. Those in the catalog follow an fdatasync of the
  staging file with what the rows were before it began: after a power cut each block is as it was at the last
  sync or later, never a hole where a part was given up for bytes that had not reached the disk.
- A map is referred to before a part names it, and until the draft has ended and nobody has it open.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple
from uuid import UUID

from imagefs.catalog import MOST, Attrs, Op, Part
from imagefs.errors import Damaged, NotFound, Stale
from imagefs.images.repository import Repository
from imagefs.images.staging import data_ranges
from imagefs.types import BLOCK, Draft, Image

SPAN = 1 << 30
"""Bytes whose parts are looked up at a time: of a draft of 8 TiB nobody wants all."""


class Piece(NamedTuple):
    """Consecutive bytes of a file that come from one place."""

    offset: int
    length: int
    map_id: int
    """0: the staging file, at the same offset."""
    at: int
    """Offset in the map."""

    @property
    def end(self) -> int:
        """The offset behind them."""
        return self.offset + self.length


class Stretch(NamedTuple):
    """Whole blocks to be sealed."""

    offset: int
    length: int
    map_id: int
    """0: to be read and stored; else those of a plain map, to be taken over."""
    first: int
    """The first block in the map."""


class Content:
    """The bytes of one draft for readers. Any thread; takes no lock, and follows what other processes write."""

    def __init__(self, repo: Repository, image_id: UUID, draft: Draft, fd: int) -> None:
        """`fd` is the staging file, and stays the caller's. Raises Damaged when the parts have been lost, Stale
        when the draft has ended since its record was read."""
        self._repo = repo
        self._live = repo.opens.bases
        self._image_id = image_id
        self._gen = draft.gen
        self._fd = fd
        self._maps: dict[int, tuple[int, bool]] = {}
        """Size of a map's file and whether the map is plain."""
        if draft.base_map:
            draft = _adopted(repo, image_id, draft)
        if draft.based:
            self._load()

    def _load(self) -> None:
        repo, loaded = self._repo, self._live.loaded(self._image_id, self._gen)
        referred = repo.catalog.bases.referred(self._image_id, self._gen)
        # A catalog that was rebuilt gives maps other numbers: what this boot has is not about it.
        if not referred and (not loaded or self._live.find(self._image_id, self._gen)):
            now = _draft_now(repo, self._image_id, self._gen)
            if now is None:
                raise Stale(f"The draft of image {self._image_id} has ended.")
            if not now.based:
                return  # overwritten meanwhile
            raise Damaged(
                f"The draft of image {self._image_id} is a copy, and what it copied was lost with the catalog."
            )
        if not loaded:
            self._live.load(self._image_id, self._gen, repo.catalog.bases.find(self._image_id, self._gen))

    @property
    def size(self) -> int:
        """Bytes of the draft."""
        return os.fstat(self._fd).st_size

    def parts(self, low: int = 0, high: int = MOST) -> list[Part]:
        """What it takes from maps between two blocks."""
        return self._live.find(self._image_id, self._gen, low, high)

    def pieces(self, start: int, end: int) -> Iterator[Piece]:
        """Where the bytes from `start` to `end` come from, in order."""
        at = start
        while at < end:
            stop = min(end, (at // SPAN + 1) * SPAN)
            for part in self.parts(at // BLOCK, -(-stop // BLOCK)):
                begin = max(part.block * BLOCK, at)
                if at < begin:
                    yield Piece(at, begin - at, 0, 0)
                at = min(part.end * BLOCK, stop)
                yield Piece(begin, at - begin, part.map_id, (part.first - part.block) * BLOCK + begin)
            if at < stop:
                yield Piece(at, stop - at, 0, 0)
                at = stop

    def pread(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes; b"" at the end. Damaged, BackendFailed; MapGone when the draft has ended."""
        end = min(offset + length, self.size)
        if offset >= end:
            return b""
        found = [self._read(piece) for piece in self.pieces(offset, end)]
        return found[0] if len(found) == 1 else b"".join(found)

    def _read(self, piece: Piece) -> bytes:
        if not piece.map_id:
            data = os.pread(self._fd, piece.length, piece.offset)
        else:
            data = self._repo.reader.pread(piece.map_id, self._map(piece.map_id)[0], piece.at, piece.length)
        # Behind the end of the map's file, or of a file that was cut this moment, are zeros.
        return data if len(data) == piece.length else data.ljust(piece.length, b"\0")

    def read_blocks(self, offset: int, length: int) -> memoryview:
        """Whole blocks, padded with zeros behind the end of the file."""
        return memoryview(self.pread(offset, length).ljust(length, b"\0"))

    def data_ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """(offset, length) of what is not a hole between `start` and `end`, in order; none touches the next."""
        begin = stop = start
        for offset, length in self._ranges(start, end):
            if offset > stop:
                if stop > begin:
                    yield begin, stop - begin
                begin = offset
            stop = offset + length
        if stop > begin:
            yield begin, stop - begin

    def _ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        for piece in self.pieces(start, end):
            yield from self._data_in(piece)

    def _data_in(self, piece: Piece) -> Iterator[tuple[int, int]]:
        if not piece.map_id:
            yield from data_ranges(self._fd, piece.offset, piece.end)
            return
        stop = min(piece.at + piece.length, self._map(piece.map_id)[0])
        for offset, length in self._repo.reader.data_ranges(piece.map_id, stop, piece.at):
            low, high = max(offset, piece.at), min(offset + length, stop)
            if low >= stop:
                return
            yield low - piece.at + piece.offset, high - low

    def stretches(self, start: int, end: int, window: int) -> Iterator[Stretch]:
        """All blocks that are not holes from `start`, a multiple of the block size, to `end`, which may be the end
        of the file: what is to be read in at most `window` bytes each."""
        for piece in self.pieces(start, end):
            shared = self._shareable(piece)
            if shared:
                yield Stretch(piece.offset, -(-shared // BLOCK) * BLOCK, piece.map_id, piece.at // BLOCK)
            if shared < piece.length:
                rest = Piece(piece.offset + shared, piece.length - shared, piece.map_id, piece.at + shared)
                yield from _windows(self._data_in(rest), rest.offset, window)

    def _shareable(self, piece: Piece) -> int:
        """Bytes from its beginning whose blocks are blocks of the map: not of a recoded one, nor a last block
        that was cut elsewhere than where the map ends."""
        if not piece.map_id:
            return 0
        size, plain = self._map(piece.map_id)
        if not plain:
            return 0
        return piece.length if piece.at + piece.length >= size else piece.length - piece.length % BLOCK

    def whole_map(self) -> int:
        """The map that it is a copy of from beginning to end; 0 when it is not."""
        parts, size = self.parts(), self.size
        if len(parts) != 1 or parts[0].block or parts[0].first or self._map(parts[0].map_id)[0] != size:
            return 0
        return parts[0].map_id if parts[0].end * BLOCK >= size else 0

    def _map(self, map_id: int) -> tuple[int, bool]:
        known = self._maps.get(map_id)
        if known is None:
            info = self._repo.catalog.maps.info(map_id)
            known = self._maps[map_id] = info.size, info.kind == 0
        return known


def shared_bytes(repo: Repository, attrs: Attrs) -> int:
    """Bytes that are not zeros of what a draft takes from maps; 2 ms for a GiB that lies scattered."""
    bases = repo.opens.bases if repo.opens.bases.loaded(attrs.id, attrs.draft_gen) else repo.catalog.bases
    total = attrs.base_size if attrs.base_map else 0
    for part in bases.find(attrs.id, attrs.draft_gen):
        low, high = part.first * BLOCK, (part.first + part.nblocks) * BLOCK
        with contextlib.suppress(NotFound):  # the draft has ended this moment
            stop = min(high, repo.catalog.maps.info(part.map_id).size)
            for offset, length in repo.reader.data_ranges(part.map_id, stop, low):
                total += max(0, min(offset + length, stop) - max(offset, low))
    return -(-total // BLOCK) * BLOCK


def _windows(ranges: Iterable[tuple[int, int]], start: int, window: int) -> Iterator[Stretch]:
    at = start
    for offset, length in ranges:
        stop = -(-(offset + length) // BLOCK) * BLOCK
        at = max(at, offset // BLOCK * BLOCK)
        while at < stop:
            # Cut at multiples of a window: what is stored already is found again by windows at these places.
            take = min(window - at % window, stop - at)
            yield Stretch(at, take, 0, 0)
            at += take


def _adopted(repo: Repository, image_id: UUID, draft: Draft) -> Draft:
    """The draft of an earlier version, which could only be the beginning of one map, as it is kept now."""

    def based(image: Image) -> Image:
        assert image.draft is not None
        return replace(image, draft=replace(image.draft, based=True, base_map=0, base_size=0, base_uuid=None))

    with repo.catalog.transaction():
        image = repo.catalog.images.get(image_id)
        if image.draft is None or image.draft.gen != draft.gen or not image.draft.base_map:
            return image.draft or draft
        whole = Part(0, -(-draft.base_size // BLOCK), draft.base_map, 0)
        repo.catalog.bases.refer(image_id, draft.gen, image.data_ino, [draft.base_map])
        repo.catalog.bases.put(image_id, draft.gen, [(0, MOST, [whole])])
        return repo.catalog.images.update(image_id, based, Op.DRAFT).draft or draft


def _draft_now(repo: Repository, image_id: UUID, gen: int) -> Draft | None:
    """An image's draft `gen`, or that of a sibling, as its record has it by now."""
    records = [sibling.record for sibling in repo.catalog.siblings.list(image_id) if sibling.gen == gen]
    with contextlib.suppress(NotFound):
        records.append(repo.catalog.images.get(image_id, deleted=True))
    return next((record.draft for record in records if record.draft is not None and record.draft.gen == gen), None)
