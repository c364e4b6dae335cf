"""Drafts over maps, as the one process that writes a draft changes them: in the orders that `content` states."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from uuid import UUID

from imagefs.catalog import MOST, Op, Part
from imagefs.errors import NotFound, Sealed
from imagefs.images import drafts
from imagefs.images.content import Content, Piece
from imagefs.images.drafts import Change
from imagefs.images.repository import Repository
from imagefs.images.staging import KEEP_SIZE, PUNCH_HOLE, allocate, data_ranges
from imagefs.types import BLOCK, Draft, Image

PIECES = 1 << 16
"""Pieces that one copy takes over at most: as many as a map of 256 MiB can have."""
COPY_AT_MOST = 64 << 20
"""Bytes that one copy moves: a caller that is interrupted waits no longer than for this."""
RANGES = 1024
"""Changed ranges remembered one by one; beyond them, what lies between counts as changed."""


class Base:
    """What one draft takes from maps. Used under `lock`, the draft file's, but for `none`, `covers` and `syncing`.

    Order: the lock of `syncing`, then `lock`, then catalog transactions.
    """

    def __init__(
        self, repo: Repository, image_id: UUID, gen: int, content: Content, lock: threading.Lock,
        record: Callable[[Change], Image],
    ) -> None:  # fmt: skip
        self._repo = repo
        self._live = repo.opens.bases
        self._image_id = image_id
        self._gen = gen
        self._content = content
        self._lock = lock
        self._syncing = threading.Lock()
        self._record = record
        self._maps: set[int] = set()
        """Maps that the draft refers to."""
        self.none = True
        """Whether nothing was ever taken from a map. Only the process that writes the draft knows: after `begin`."""
        self._changed: list[tuple[int, int]] = []
        """Blocks whose rows in the catalog may not be as they are."""

    def covers(self, offset: int, length: int) -> bool:
        """Whether a change of these bytes has to be made under the lock: they are in a part, or make the file
        longer, which a copy does too."""
        if self.none:
            return False
        end = offset + length
        return end > self._content.size or bool(self._content.parts(offset // BLOCK, -(-end // BLOCK)))

    def begin(self, fd: int) -> None:
        """The first writer is there: finishes what a crash may have left half done."""
        self._maps = self._repo.catalog.bases.referred(self._image_id, self._gen)
        self.none = not self._maps
        if not self.none:
            self._changed = [(0, MOST)]
            size = self._content.size
            if size % BLOCK:
                for part in self._content.parts(size // BLOCK, size // BLOCK + 1):
                    if part.first * BLOCK + size % BLOCK != self._repo.catalog.maps.info(part.map_id).size:
                        self._copy_up(fd, part.block)
            self._set(-(-size // BLOCK), MOST)

    @contextmanager
    def overwriting(self, fd: int, offset: int, length: int) -> Iterator[None]:
        """Around a change of these bytes of the staging file, which count instead of the map's once it is made."""
        end = offset + length
        size = self._content.size
        if offset % BLOCK:
            self._copy_up(fd, offset // BLOCK)
        if end % BLOCK and end < size:
            self._copy_up(fd, end // BLOCK)
        yield
        if self._content.parts(offset // BLOCK, -(-end // BLOCK)):
            self._set(offset // BLOCK, -(-end // BLOCK))

    def _copy_up(self, fd: int, block: int) -> None:
        if self._content.parts(block, block + 1):
            data = self._content.pread(block * BLOCK, BLOCK)
            self._repo.space.require(len(data))
            _write(fd, data, block * BLOCK)
            self._set(block, block + 1)

    def truncate(self, fd: int, size: int) -> None:
        """Cuts or grows the file."""
        if self.none or size >= self._content.size:
            os.ftruncate(fd, size)
            return
        first = size // BLOCK
        begun = b""
        if size % BLOCK and self._content.parts(first, first + 1):
            begun = self._content.pread(first * BLOCK, size % BLOCK)
        os.ftruncate(fd, size)
        _write(fd, begun, first * BLOCK)
        self._set(first if begun else -(-size // BLOCK), MOST)

    def share(self, fd: int, pieces: Iterable[Piece], shift: int, source: int = -1) -> int:
        """Takes over consecutive pieces of another file, `shift` bytes further on, and returns how many bytes.

        What is in maps is shared; what is in the staging file `source` is copied there, as far as the disk can
        by sharing its blocks. 0: nothing can be taken over (any more).
        """
        wanted = _within(islice(pieces, PIECES))
        if not wanted or not self._refer({piece.map_id for piece in wanted if piece.map_id}):
            return 0
        begin, end = wanted[0].offset + shift, wanted[-1].end + shift
        parts: list[Part] = []
        for piece in wanted:
            at = piece.offset + shift
            if piece.map_id:
                parts.append(Part(at // BLOCK, -(-piece.length // BLOCK), piece.map_id, piece.at // BLOCK))
            else:
                self._copy(source, fd, piece, at)
        self._set(begin // BLOCK, -(-end // BLOCK), parts)
        if end > self._content.size:
            # Below a part, or the last byte of a hole. Not ftruncate: it would cut off what another thread, which
            # takes no lock before the first copy, writes behind it.
            os.pwrite(fd, b"\0", end - 1)
        # A copy is a change of the file, also where no byte was written: a seal goes by that.
        os.utime(fd, ns=(os.fstat(fd).st_atime_ns, time.time_ns()))
        return end - begin

    def _refer(self, map_ids: set[int]) -> bool:
        """Sees to it that the maps stay; False when one has gone, or the draft has ended."""
        if map_ids <= self._maps:
            return True
        catalog = self._repo.catalog
        try:
            with catalog.transaction():
                ino = self._record(drafts.based(True)).data_ino
                catalog.bases.refer(self._image_id, self._gen, ino, map_ids)
        except (NotFound, Sealed):
            return False
        if self.none:
            self._live.load(self._image_id, self._gen, [])
        self._maps |= map_ids
        self.none = False
        return True

    def _copy(self, source: int, fd: int, piece: Piece, to: int) -> None:
        """Makes the staging file have what the source's has; what it has not is a hole."""
        shift, at = to - piece.offset, piece.offset
        for offset, length in data_ranges(source, piece.offset, piece.end):
            self._repo.space.require(length)
            _punch(fd, at + shift, offset - at)
            at = offset + length
            done = 0
            while done < length:
                count = os.copy_file_range(source, fd, length - done, offset + done, offset + shift + done)
                if not count:
                    break  # cut this moment
                done += count
        _punch(fd, at + shift, piece.end - at)

    def _set(self, low: int, high: int, parts: Iterable[Part] = ()) -> None:
        self._note(low, high)
        self._live.replace(self._image_id, self._gen, low, high, parts)

    def _note(self, low: int, high: int) -> None:
        changed = self._changed
        if changed and low <= changed[-1][1] and changed[-1][0] <= high:
            low, high = min(low, changed[-1][0]), max(high, changed[-1][1])
            changed.pop()
        changed.append((low, high))
        if len(changed) > RANGES:
            changed[:] = [(min(low for low, _ in changed), max(high for _, high in changed))]

    @contextmanager
    def syncing(self) -> Iterator[None]:
        """Around a sync of the staging file: its parts are as durable as its bytes afterwards."""
        if self.none:
            yield
            return
        with self._syncing:
            with self._lock:
                changed, self._changed = self._changed, []
                parts = [(low, high, self._content.parts(low, high)) for low, high in changed]
            try:
                yield
                self._repo.catalog.bases.put(self._image_id, self._gen, parts)
            except BaseException:
                with self._lock:
                    self._changed += changed
                raise


def make_durable(repo: Repository, image_id: UUID, draft: Draft, content: Content, sync: Callable[[], object]) -> None:
    """Syncs a draft's staging file, and makes its parts as durable as its bytes; nobody may be writing it.

    References to maps of which nothing is left end here.
    """
    if not draft.based and not draft.base_map:
        sync()
        return
    parts = content.parts()
    sync()
    with repo.catalog.transaction():
        repo.catalog.bases.put(image_id, draft.gen, [(0, MOST, parts)])
        if not repo.catalog.bases.release(image_id, draft.gen):
            repo.catalog.images.update(image_id, _not_based, Op.DRAFT)


def drop_ended(repo: Repository) -> None:
    """Ends drafts over maps that have ended, once nobody has their file open: staging file, references, parts."""
    for image_id, gen, ino in repo.catalog.bases.drafts():
        if is_draft(repo, image_id, gen) or repo.opens.handles(ino):
            continue
        with repo.catalog.transaction():
            if is_draft(repo, image_id, gen):
                continue
            # First the file: without the references it would be taken for all of the data.
            repo.staging.remove(image_id, gen)
            repo.catalog.bases.drop(image_id, gen)
        repo.opens.bases.drop(image_id, gen)


def is_draft(repo: Repository, image_id: UUID, gen: int) -> bool:
    """Whether a record, be it of a deleted image or of a sibling, has this draft."""
    with contextlib.suppress(NotFound):
        image = repo.catalog.images.get(image_id, deleted=True)
        if image.draft is not None and image.draft.gen == gen:
            return True
    return any(sibling.gen == gen for sibling in repo.catalog.siblings.list(image_id))


def _not_based(image: Image) -> Image:
    return replace(image, draft=image.draft and drafts.based(False)(image.draft))


def _within(pieces: Iterable[Piece]) -> list[Piece]:
    """As many of them as one copy takes."""
    found: list[Piece] = []
    left = COPY_AT_MOST
    for piece in pieces:
        if not piece.map_id and piece.length > left:
            if left >= BLOCK:
                found.append(piece._replace(length=left // BLOCK * BLOCK))
            break
        left -= piece.length if not piece.map_id else 0
        found.append(piece)
    return found


def _punch(fd: int, offset: int, length: int) -> None:
    if length > 0:
        allocate(fd, PUNCH_HOLE | KEEP_SIZE, offset, length)


def _write(fd: int, data: bytes, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)
