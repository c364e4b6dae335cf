"""Reading everything that is stored, to find what has changed on the disk before somebody needs it.

A scrub looks at each object in the order of its number, goes on after an interruption where it was, and
records what it finds in the catalog: `status`, `show` and `fsck` name it, `imagefs scrub --heal` puts it right.
Every byte of a pack is covered: header, footer and trailer by their digest, frames by theirs, and what lies
between is zeros.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from imagefs.blocks import frames, logobject, manifest, trailer
from imagefs.blocks import superblock as superblocks
from imagefs.blocks.digest import WIDTH
from imagefs.blocks.frames import FrameRow
from imagefs.blocks.packs import HEADER, Footer, footer_of
from imagefs.catalog import Damage, PackKind, PackRow, PackState
from imagefs.errors import BackendFailed, Damaged, NewerVersion, NotFound
from imagefs.images.plain import verify_plain_files
from imagefs.images.rate import TokenBucket
from imagefs.images.repository import Repository
from imagefs.images.roots import wrong_roots
from imagefs.types import FRAME_BLOCKS

KEPT = (PackState.LIVE, PackState.TRASH)
SAVE_EVERY_S = 2.0
"""An interrupted scrub looks again at what it saw in the last seconds."""
BURST = 32 << 20
"""Bytes that are read at once, whatever the rate: some packs."""


@dataclass(slots=True)
class Scrubbed:
    """What one run looked at."""

    objects: int = 0
    bytes: int = 0
    damaged: list[Damage] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    """What is wrong with objects that are in no table (log, snapshots, superblock), and with roots."""
    plain: list[str] = field(default_factory=list)
    """Plain files of images that were wrong and are removed: nothing is lost by it."""
    complete: bool = False
    """Whether everything was looked at, by this run and those that it goes on after."""


class Scrub:
    """Looks at the stored objects of one repository, which may be in use. Used by one thread.

    `rate` is in bytes a second, 0 for no bound. `deep` decodes every block too, and compares the blocks'
    digests and the images' roots. `progress` is told the bytes looked at.
    """

    def __init__(
        self,
        repo: Repository,
        *,
        deep: bool = False,
        rate: float = 0.0,
        progress: Callable[[int], None] = lambda nbytes: None,
        stop: threading.Event | None = None,
    ) -> None:
        self._repo = repo
        self._deep = deep
        self._progress = progress
        self._stop = stop or threading.Event()
        self._bucket = TokenBucket(rate, BURST, self._stop.wait) if rate else None

    def run(self, *, restart: bool = False) -> Scrubbed:
        """Goes on where the last scrub of this depth was interrupted, or begins. Ends early when it is stopped.

        BackendFailed when the store does not answer; NewerVersion.
        """
        scrubs = self._repo.catalog.scrubs
        state = scrubs.state()
        if restart or not state.next_no or state.deep != self._deep:
            scrubs.begin(time.time_ns(), deep=self._deep)
        done = Scrubbed()
        if not self._objects(scrubs.state().next_no, done):
            return done
        self._others(done)
        done.plain = verify_plain_files(self._repo, self._take, self._stop)
        if self._deep and not self._stop.is_set():
            done.other += wrong_roots(self._repo, self._stop.is_set)
        if not self._stop.is_set():
            scrubs.end(time.time_ns())
            done.complete = True
        return done

    def _objects(self, first: int, done: Scrubbed) -> bool:
        """Packs and manifests from number `first` on; False when it was stopped."""
        at, saved = first, time.monotonic()
        try:
            for row in self._repo.catalog.packs.scan():
                if row.no < first or row.state not in KEPT or not row.done:
                    continue
                if not self._take(row.stored):
                    return False
                damage = self.look_at(row)
                self._note(row, damage)
                done.damaged += [damage] if damage else []
                done.objects += 1
                done.bytes += row.stored
                at = row.no + 1
                self._progress(row.stored)
                if time.monotonic() > saved + SAVE_EVERY_S:
                    self._repo.catalog.scrubs.reached(at)
                    saved = time.monotonic()
        finally:
            self._repo.catalog.scrubs.reached(at)
        return True

    def _take(self, nbytes: int) -> bool:
        """Waits until these bytes may be read; False when the work is to end."""
        return not self._stop.is_set() and (self._bucket is None or self._bucket.take(nbytes))

    def _note(self, row: PackRow, damage: Damage | None) -> None:
        if damage is not None:
            self._repo.catalog.scrubs.found(damage)
        else:
            self._repo.catalog.scrubs.sound([row.no])

    # -- one object --------------------------------------------------------------------------------------

    def look_at(self, row: PackRow) -> Damage | None:
        """What is wrong with one object now; None for a sound one and one that gc took away meanwhile."""
        try:
            if row.kind == PackKind.MANIFEST:
                return self._manifest(row)
            return self._pack(row)
        except NotFound:
            now = self._repo.catalog.packs.find(row.no)
            gone = now is None or now.state not in KEPT
            return None if gone else Damage(row.no, time.time_ns(), missing=True)

    def _manifest(self, row: PackRow) -> Damage | None:
        try:
            content = self._repo.store.get(row.object_name)
            manifest.decode(content, row.object_name)
            if len(content) != row.stored:
                raise Damaged(f"{row.object_name} has {len(content)} bytes, not {row.stored}.")
        except NewerVersion:
            raise
        except Damaged as error:
            return Damage(row.no, time.time_ns(), other=str(error))
        return None

    def _pack(self, row: PackRow) -> Damage | None:
        frames_row = self._repo.catalog.packs.frames(row.no)
        table = frames.unpack_rows(frames_row)
        data = memoryview(self._read(row, table))
        wrong = {number for number, frame in enumerate(table) if not _is_sound(data, frame)}
        others: list[str] = []
        if len(data) != row.stored:
            others.append(f"it has {len(data)} bytes, not {row.stored}")
        footer = self._footer(row, data, others)
        if footer is not None and footer.frames_row != frames_row:
            others.append("its frame table is not that of the catalog")
        if not _gaps_are_zeros(data, table, row.footer_off):
            others.append("what lies between its frames is not zeros")
        if footer is not None and self._deep:
            mixed = self._mixed(data, table, footer, wrong)
            wrong |= mixed
            others += ["blocks are not what their digests say"] if mixed else []
        if not wrong and not others:
            return None
        return Damage(row.no, time.time_ns(), frames=tuple(sorted(wrong)), other="; ".join(others) or None)

    @staticmethod
    def _footer(row: PackRow, data: memoryview, others: list[str]) -> Footer | None:
        try:
            return footer_of(row.name16, data)
        except NewerVersion:
            raise
        except Damaged as error:
            others.append(str(error))
            return None

    def _mixed(self, data: memoryview, table: list[FrameRow], footer: Footer, wrong: set[int]) -> set[int]:
        """Frames that verify and hold other blocks than the footer says."""
        found = set()
        for number, row in enumerate(table):
            if number in wrong:
                continue
            first = number * FRAME_BLOCKS * WIDTH
            try:
                plain = frames.decode(data[row.offset : row.offset + row.length], row.codec, row.digest)
            except Damaged:
                found.add(number)
                continue
            digests = b"".join(self._repo.digests.blocks(plain))
            if footer.digests[first : first + FRAME_BLOCKS * WIDTH] != digests:
                found.add(number)
        return found

    def _read(self, row: PackRow, table: list[FrameRow]) -> bytes:
        """The whole object; what the disk cannot read of it is zeros. BackendFailed when that is everything."""
        store, name = self._repo.store, row.object_name
        try:
            return store.get(name)
        except BackendFailed as error:
            pieces = [(0, HEADER), *((one.offset, one.length) for one in table)]
            pieces.append((row.footer_off, row.stored - row.footer_off))
            content, failed = bytearray(row.stored), 0
            for offset, length in pieces:
                try:
                    piece = store.get(name, offset, length)
                except BackendFailed:
                    failed += 1
                else:
                    content[offset : offset + len(piece)] = piece
            if failed == len(pieces):
                raise error
            return bytes(content)

    # -- what is in no table -----------------------------------------------------------------------------

    def damaged_logs(self) -> list[str]:
        """Log objects and snapshots that do not verify, as sentences."""
        store = self._repo.store
        found: list[str] = []
        for prefix in ("log/", "snap/"):
            for name in store.list(prefix):
                try:
                    logobject.decode(store.get(name), name)
                except NotFound:
                    continue  # a snapshot took its place
                except NewerVersion:
                    raise
                except Damaged as error:
                    found.append(str(error))
        return found

    def _others(self, done: Scrubbed) -> None:
        """Log objects, snapshots, and the two copies of the superblock."""
        done.other += self.damaged_logs()
        store = self._repo.store
        here = Path(self._repo.path / superblocks.OBJECT_NAME).read_bytes()
        try:
            if store.get(superblocks.OBJECT_NAME) != here:
                done.other.append(f"{superblocks.OBJECT_NAME} on the store is another one than in {self._repo.path}.")
        except NotFound:
            done.other.append(f"{superblocks.OBJECT_NAME} is not on the store.")


def _is_sound(data: memoryview, row: FrameRow) -> bool:
    return frames.digest_of(data[row.offset : row.offset + row.length]) == row.digest


def _gaps_are_zeros(data: memoryview, table: list[FrameRow], end: int) -> bool:
    at = HEADER
    for row in (*table, FrameRow(min(end, len(data) - trailer.SIZE), 0, 0, b"")):
        if row.offset > at and any(data[at : row.offset]):
            return False
        at = row.offset + row.length
    return True
