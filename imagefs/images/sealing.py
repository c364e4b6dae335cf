"""Sealing: how a draft becomes an immutable image, atomically (S3, S5).

The order is the promise. fdatasync(staging) -> transaction `complete` -> [reserve names -> put packs ->
checkpoint transaction] every 256 MiB -> declared hashes -> the cookie again -> put the manifest ->
commit transaction (T3) -> log object -> dedup index. A crash at any point leaves a draft that the next
sealer goes on with from the last checkpoint, or a sealed image; never anything between.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from uuid import UUID

from imagefs.blocks import maprows
from imagefs.blocks.maps import MapBuilder
from imagefs.catalog import Op, Query
from imagefs.errors import (
    BackendFailed,
    Busy,
    Damaged,
    Mismatch,
    NoSpace,
    PacksGone,
    QuotaExceeded,
    SealBlocked,
    SealCancelled,
)
from imagefs.images import drafts
from imagefs.images.bases import make_durable
from imagefs.images.checkpointing import Checkpointing
from imagefs.images.committing import Sealing, commit, kill
from imagefs.images.content import Content
from imagefs.images.hashing import hashes
from imagefs.images.ingest import WINDOW, Ingest
from imagefs.images.packing import Stored
from imagefs.images.repository import Repository
from imagefs.images.staging import cookie, require_no_writer
from imagefs.types import BLOCK, Cookie, Draft, Image, Status

log = logging.getLogger(__name__)

TRIES = 5
"""Rounds of T3: each stores anew what a gc took away between the look-up and the commit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedSealing(Sealing):
    """One attempt to seal a staging file: what it was when it was claimed."""

    cookie: Cookie
    fd: int
    content: Content


SEALED = (Status.ACTIVE, Status.DEACTIVATED)


class Sealer:
    """Seals drafts of one repository. Any thread; one draft has one sealer, guarded by the catalog."""

    def __init__(self, repo: Repository) -> None:
        self._repo = repo
        self._lock = threading.Lock()
        """Guards `_active`; nothing is taken under it."""
        self._active: set[UUID] = set()
        """What threads of this process are sealing: the catalog tells sessions apart, not threads."""

    def seal(self, image_id: UUID, *, before_commit: Callable[[], None] = lambda: None) -> Image:
        """The image, active. Everything it needs is durable on the backend when this returns.

        `before_commit` is called when all data is stored and may wait or raise SealCancelled. Raises Busy
        while the draft is open for writing, SealBlocked for an image without a draft, SealCancelled when the
        draft changed on the way, Mismatch (the image is `killed`) when the data is not what was declared,
        NoSpace, BackendFailed or Damaged when storing failed: the draft stays and can be sealed again.
        """
        repo = self._repo
        image = repo.catalog.images.get(image_id)
        if image.status in SEALED:
            return image
        if image.status == Status.KILLED:
            raise Mismatch(f"Image {image_id} was killed: its data is not what was declared.")
        if image.status != Status.SAVING or image.draft is None:
            raise SealBlocked(f"Image {image_id} is {image.status}: it has no draft to seal.")
        if image.draft.streamed:
            raise SealBlocked(f"Image {image_id} is being uploaded, or its upload was interrupted.")
        if repo.opens.writers(image.data_ino):
            raise Busy(f"Image {image_id} is open for writing.")
        with self._alone(image_id):
            try:
                return self._claimed(image, image.draft, before_commit)
            except SealBlocked:
                sealed = repo.catalog.images.get(image_id)
                if sealed.status not in SEALED:
                    raise
                return sealed  # another process was quicker

    @contextmanager
    def _alone(self, image_id: UUID) -> Iterator[None]:
        with self._lock:
            if image_id in self._active:
                raise Busy(f"Image {image_id} is being sealed.")
            self._active.add(image_id)
        try:
            yield
        finally:
            with self._lock:
                self._active.discard(image_id)

    def _claimed(self, image: Image, draft: Draft, before_commit: Callable[[], None]) -> Image:
        repo, image_id = self._repo, image.id
        repo.catalog.seals.claim(image_id, repo.session.id, time.time_ns())
        reason, ended = None, False
        try:
            sealed = self._seal(image, draft, before_commit)
            ended = True
        except Mismatch as error:
            kill(repo, image_id, str(error))
            raise
        except QuotaExceeded as error:
            # Not tried again by itself: what is new to the store is known only when all of it was stored.
            self._block(image_id, str(error))
            raise
        except (NoSpace, BackendFailed, Damaged, Busy, OSError) as error:
            reason = str(error)
            raise
        finally:
            if not ended:
                repo.catalog.seals.abandon(image_id, repo.session.id, reason)
        return sealed

    def _seal(self, image: Image, draft: Draft, before_commit: Callable[[], None]) -> Image:
        repo = self._repo
        fd = repo.staging.open(image.id, draft.gen)
        try:
            require_no_writer(fd, f"Image {image.id}")
            size = os.fstat(fd).st_size
            # Before anything is stored for it; other drafts may be sealed later or never.
            repo.catalog.quotas.require_room(image.owner, size, size)
            content = Content(repo, image.id, draft, fd)
            whole = content.whole_map()
            if whole and self._is_declared(image, draft, whole):
                before_commit()
                sealed = self._share(image, draft, whole)
            else:
                make_durable(repo, image.id, draft, content, lambda: self._sync(fd))
                now = cookie(fd, draft.gen)
                seal = repo.catalog.seals.complete(image.id, now)
                # Names that an earlier sealer may have begun to put: never put again, deleted by gc.
                repo.catalog.packs.discard(pack.no for pack in seal.unsure)
                work = StagedSealing(
                    image_id=image.id,
                    draft=draft,
                    seal=seal,
                    size=now.size,
                    mtime_ns=now.mtime_ns,
                    read=content.pread,
                    hashes=lambda algorithm: self._hashes(content, now.size, algorithm),
                    cookie=now,
                    fd=fd,
                    content=content,
                )
                sealed = self._store(work, before_commit)
        finally:
            os.close(fd)
        if not draft.based:  # otherwise it lacks what maps have, and may still be read with them: it ends later
            staging = repo.staging.path(image.id, draft.gen)
            if draft.base_map or not repo.materialised.adopt(staging, sealed):
                repo.staging.remove(image.id, draft.gen)
        repo.logs.flush()
        return sealed

    def _sync(self, fd: int) -> None:
        os.fdatasync(fd)
        self._repo.staging.sync_directory()

    def _is_declared(self, image: Image, draft: Draft, map_id: int) -> bool:
        """Whether all that was declared is known to be true of a map's data."""
        twins = self._repo.catalog.images.query(Query(map_id=map_id, limit=1))
        expected = draft.expected.items()
        return all(twins and str(getattr(twins[0], name)) == value for name, value in expected)

    def _share(self, image: Image, draft: Draft, map_id: int) -> Image:
        """Seals a draft that is exactly a copy of a map: one transaction, no data moves."""
        fields = {"disk_format": image.disk_format, "container_format": image.container_format or "bare"}
        session = self._repo.session.id
        return self._repo.catalog.seals.share(image.id, session, draft.gen, draft.writes, map_id, fields)

    def _copied(self, work: StagedSealing, rows: list[tuple[int, bytes]]) -> int:
        """The map that the draft is a copy of after all, as when zeros were written where it has holes; or 0."""
        maps = self._repo.catalog.maps
        for map_id in {part.map_id for part in work.content.parts()}:
            if maps.info(map_id).size == work.size and list(maps.rows(map_id)) == rows:
                return map_id
        return 0

    def _store(self, work: StagedSealing, before_commit: Callable[[], None]) -> Image:
        done, at = work.seal.next_offset, 0
        rows = self._repo.catalog.maps.rows(work.seal.map_id) if done else ()
        with Ingest(self._repo, work.image_id, MapBuilder.load(rows, done // BLOCK)) as ingest:
            for offset, length, map_id, first in work.content.stretches(0, done, WINDOW):
                ingest.root.hole((offset - at) // BLOCK)
                if map_id:
                    ingest.reused(map_id, first, length // BLOCK)
                else:
                    ingest.known(work.content.read_blocks(offset, length))
                at = offset + length
            ingest.root.hole((done - at) // BLOCK)
            stored = self._ingest(work, ingest, done)
            for _ in range(TRIES):
                if cookie(work.fd, work.draft.gen) != work.cookie:
                    raise SealCancelled(f"Image {work.image_id} was written while it was being sealed.")
                before_commit()
                image = self._repo.catalog.images.get(work.image_id)
                copied = self._copied(work, ingest.maps.rows())
                if copied and image.draft is not None and self._is_declared(image, image.draft, copied):
                    return self._share(image, work.draft, copied)
                try:
                    return commit(self._repo, work, ingest, stored)
                except PacksGone as error:
                    stored += self._again(work, ingest, error.packs)
        raise BackendFailed(f"Image {work.image_id}: packs went away {TRIES} times while it was being sealed.")

    def _ingest(self, work: StagedSealing, ingest: Ingest, at: int) -> list[Stored]:
        """Stores everything from offset `at` on; returns the packs that no checkpoint has recorded yet."""
        checkpoints = Checkpointing(self._repo, work.image_id, work.cookie, ingest, at)
        for offset, length, map_id, first in work.content.stretches(at, work.size, WINDOW):
            checkpoints.reached(at)
            ingest.hole((offset - at) // BLOCK)
            if map_id:
                ingest.reuse(map_id, first, length // BLOCK)
            else:
                ingest.write(work.content.read_blocks(offset, length))
            at = offset + length
        ingest.hole(-(-work.size // BLOCK) - at // BLOCK)
        return checkpoints.end()

    @staticmethod
    def _hashes(content: Content, size: int, algorithm: str) -> tuple[str, str]:
        found = hashes(content.pread, content.data_ranges(0, size), size, algorithm=algorithm)
        assert found is not None  # nothing cancels it
        return found

    def _again(self, work: StagedSealing, ingest: Ingest, gone: frozenset[int]) -> list[Stored]:
        """Stores anew the blocks that the map finds in packs which are gone; the draft has them."""
        self._repo.unindex_packs(gone)
        old, ingest.maps = ingest.maps, MapBuilder()
        for block, pack, first, count in maprows.runs(old.rows()):
            ingest.maps.zeros(block - ingest.maps.blocks)
            if pack not in gone:
                ingest.maps.append(pack, first, count)
                continue
            for at in range(block, block + count, WINDOW // BLOCK):
                take = min(WINDOW // BLOCK, block + count - at)
                ingest.store_again(work.content.read_blocks(at * BLOCK, take * BLOCK), gone)
        ingest.maps.zeros(old.blocks - ingest.maps.blocks)
        return ingest.flush()

    def _block(self, image_id: UUID, reason: str) -> None:
        def blocked(image: Image) -> Image:
            return replace(image, draft=image.draft and drafts.blocked(reason)(image.draft))

        self._repo.catalog.images.update(image_id, blocked, Op.DRAFT)
