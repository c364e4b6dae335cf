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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple
from uuid import UUID

from imagefs.blocks import manifest, maprows
from imagefs.blocks.maps import MapBuilder
from imagefs.catalog import Op, PackDone, Seal, SealCommit
from imagefs.catalog.records import dumps
from imagefs.errors import (
    BackendFailed,
    Busy,
    Damaged,
    Mismatch,
    NoSpace,
    NotFound,
    PacksGone,
    SealBlocked,
    SealCancelled,
)
from imagefs.images.hashing import hashes
from imagefs.images.ingest import WINDOW, Cut, Ingest, Stored
from imagefs.images.repository import Repository
from imagefs.images.staging import cookie, data_ranges, require_no_writer
from imagefs.types import BLOCK, Cookie, Draft, Image, Status

log = logging.getLogger(__name__)

CHECKPOINT = 256 << 20
TRIES = 5
"""Rounds of T3: each stores anew what a gc took away between the look-up and the commit."""


@dataclass(frozen=True, slots=True)
class Sealing:
    """One attempt: what was claimed and what the staging file was then."""

    image: Image
    draft: Draft
    seal: Seal
    cookie: Cookie
    fd: int

    @property
    def size(self) -> int:
        return self.cookie.size


class Mark(NamedTuple):
    """A place of the image up to which a checkpoint is due."""

    offset: int
    rows: list[tuple[int, bytes]]
    cut: Cut


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
        if image.status in (Status.ACTIVE, Status.DEACTIVATED):
            return image
        if image.status == Status.KILLED:
            raise Mismatch(f"Image {image_id} was killed: its data is not what was declared.")
        if image.status != Status.SAVING or image.draft is None:
            raise SealBlocked(f"Image {image_id} is {image.status}: it has no draft to seal.")
        if repo.opens.writers(image.data_ino):
            raise Busy(f"Image {image_id} is open for writing.")
        with self._alone(image_id):
            return self._claimed(image, image.draft, before_commit)

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
            self._kill(image_id, str(error))
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
            if draft.base_map:
                before_commit()
                sealed = self._share(image, draft, os.fstat(fd).st_size)
            else:
                os.fdatasync(fd)
                repo.staging.sync_directory()
                now = cookie(fd, draft.gen)
                seal = repo.catalog.seals.complete(image.id, now)
                # Names that an earlier sealer may have begun to put: never put again, deleted by gc.
                repo.catalog.packs.discard(pack.no for pack in seal.unsure)
                sealed = self._store(Sealing(image, draft, seal, now, fd), before_commit)
        finally:
            os.close(fd)
        staging = repo.staging.path(image.id, draft.gen)
        if draft.base_map or not repo.materialised.adopt(staging, sealed):
            repo.staging.remove(image.id, draft.gen)
        repo.logs.flush()
        return sealed

    def _share(self, image: Image, draft: Draft, size: int) -> Image:
        """Seals a draft that is exactly its base: one transaction, no data moves."""
        base = self._repo.catalog.maps.info(draft.base_map)
        if size != base.size:
            raise SealBlocked(f"Image {image.id} is the first {size} bytes of a copy; the rest never came.")
        fields = {"disk_format": image.disk_format, "container_format": image.container_format or "bare"}
        return self._repo.catalog.seals.share(image.id, self._repo.session.id, draft.gen, draft.writes, fields)

    def _store(self, work: Sealing, before_commit: Callable[[], None]) -> Image:
        done, at = work.seal.next_offset, 0
        rows = self._repo.catalog.maps.rows(work.seal.map_id) if done else ()
        with Ingest(self._repo, work.image.id, MapBuilder.load(rows, done // BLOCK)) as ingest:
            for offset, length in _windows(work.fd, 0, done):
                ingest.root.hole((offset - at) // BLOCK)
                ingest.known(_read_blocks(work.fd, offset, length))
                at = offset + length
            ingest.root.hole((done - at) // BLOCK)
            stored = self._ingest(work, ingest, done)
            for _ in range(TRIES):
                if cookie(work.fd, work.draft.gen) != work.cookie:
                    raise SealCancelled(f"Image {work.image.id} was written while it was being sealed.")
                before_commit()
                # As it is now: what is declared meanwhile counts as well.
                image = self._repo.catalog.images.get(work.image.id)
                try:
                    return self._commit(work, image, ingest, stored)
                except PacksGone as error:
                    stored += self._again(work, ingest, error.packs)
        raise BackendFailed(f"Image {work.image.id}: packs went away {TRIES} times while it was being sealed.")

    def _ingest(self, work: Sealing, ingest: Ingest, at: int) -> list[Stored]:
        """Stores everything from offset `at` on; returns the packs that no checkpoint has recorded yet."""
        since = at
        mark: Mark | None = None
        for offset, length in _windows(work.fd, at, work.size):
            if mark is not None and mark.cut.done():
                self._checkpoint(work, mark)
                mark = None
            if mark is None and offset - since >= CHECKPOINT:
                # Recorded once its packs are durable; meanwhile the next ones are filled.
                mark = Mark(at, ingest.maps.rows(since // BLOCK), ingest.cut())
                since = at
            ingest.hole((offset - at) // BLOCK)
            ingest.write(_read_blocks(work.fd, offset, length))
            at = offset + length
        ingest.hole(-(-work.size // BLOCK) - at // BLOCK)
        if mark is not None:
            self._checkpoint(work, mark)
        return ingest.flush()

    def _checkpoint(self, work: Sealing, mark: Mark) -> None:
        """Records that everything before the mark is stored."""
        repo, stored = self._repo, mark.cut.stored()
        repo.catalog.seals.checkpoint(
            work.image.id,
            repo.session.id,
            work.cookie,
            mark.offset,
            mark.rows,
            [pack.done for pack in stored],
        )
        # Not answered to anybody before the commit makes the packs live.
        repo.index_packs(stored)

    def _fields(self, work: Sealing, image: Image, expected: dict[str, str], root: str) -> dict[str, object]:
        """What sealing adds to the record; raises Mismatch when it is not what was declared."""
        # Imported here: it brings all of oslo.utils, 90 ms that `imagefs clone` does not have.
        from imagefs.formats import detect  # noqa: PLC0415

        found = detect.inspect(lambda offset, length: os.pread(work.fd, length, offset), work.size)
        fields: dict[str, object] = {
            "disk_format": image.disk_format or found.disk_format,
            "container_format": image.container_format or "bare",
            "virtual_size": found.virtual_size if found.virtual_size is not None else work.size,
            "root": root,
            "mtime": work.cookie.mtime_ns,
            "os_hash_algo": expected.get("os_hash_algo", "sha512"),
        }
        if "size" in expected and int(expected["size"]) != work.size:
            raise Mismatch(f"Image {image.id} has {work.size} bytes, not the {expected['size']} declared.")
        if "checksum" in expected or "os_hash_value" in expected:
            fields |= self._declared_hashes(work, str(fields["os_hash_algo"]))
            for name in ("checksum", "os_hash_value"):
                if name in expected and expected[name] != fields[name]:
                    raise Mismatch(f"Image {image.id}: {name} is {fields[name]}, declared was {expected[name]}.")
        return fields

    @staticmethod
    def _declared_hashes(work: Sealing, algorithm: str) -> dict[str, object]:
        found = hashes(
            lambda offset, length: os.pread(work.fd, length, offset),
            data_ranges(work.fd, 0, work.size),
            work.size,
            algorithm=algorithm,
        )
        assert found is not None  # nothing cancels it
        return {"checksum": found[0], "os_hash_value": found[1]}

    def _commit(self, work: Sealing, image: Image, ingest: Ingest, stored: list[Stored]) -> Image:
        repo, seal = self._repo, work.seal
        expected = image.draft.expected if image.draft else {}
        fields = self._fields(work, image, expected, ingest.root.hexdigest())
        rows = ingest.maps.rows()
        used = maprows.packs_of(rows)
        names = self._names(used)
        record = replace(
            image,
            status=Status.ACTIVE,
            draft=None,
            map_uuid=seal.map_uuid,
            size=work.size,
            **fields,  # type: ignore[arg-type]
        )
        body = manifest.encode(dumps(record), names, rows, str(fields["root"]))
        name = manifest.object_name(seal.map_uuid)
        repo.store.delete(name)  # an earlier round's or sealer's, never committed
        repo.store.put(name, body)
        written = PackDone(no=seal.manifest_no, stored=len(body))
        sealed = repo.catalog.seals.commit(
            SealCommit(
                image_id=image.id,
                session=repo.session.id,
                gen=work.draft.gen,
                writes=work.draft.writes,
                map_id=seal.map_id,
                map_uuid=seal.map_uuid,
                size=work.size,
                allocated=sum(used.values()) * BLOCK,
                rows=rows,
                packs=[*(pack.done for pack in stored), written],
                fields=fields,
                expected=expected,
            )
        )
        repo.index_packs(stored)
        return sealed

    def _names(self, packs: Iterable[int]) -> dict[int, bytes]:
        names, gone = {}, set()
        for no in packs:
            try:
                names[no] = self._repo.catalog.packs.get(no).name16
            except NotFound:  # a gc was quicker than this seal
                gone.add(no)
        if gone:
            raise PacksGone(frozenset(gone))
        return names

    def _again(self, work: Sealing, ingest: Ingest, gone: frozenset[int]) -> list[Stored]:
        """Stores anew the blocks that the map finds in packs which are gone; the staging file has them."""
        self._repo.unindex_packs(gone)
        old, ingest.maps = ingest.maps, MapBuilder()
        for block, pack, first, count in maprows.runs(old.rows()):
            ingest.maps.zeros(block - ingest.maps.blocks)
            if pack not in gone:
                ingest.maps.append(pack, first, count)
                continue
            for at in range(block, block + count, WINDOW // BLOCK):
                take = min(WINDOW // BLOCK, block + count - at)
                ingest.store_again(_read_blocks(work.fd, at * BLOCK, take * BLOCK), gone)
        ingest.maps.zeros(old.blocks - ingest.maps.blocks)
        return ingest.flush()

    def _kill(self, image_id: UUID, reason: str) -> None:
        log.warning("image %s is killed: %s", image_id, reason)
        self._repo.catalog.images.update(
            image_id, lambda image: replace(image, status=Status.KILLED, draft=None), Op.DRAFT
        )


def _windows(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of what has data, in whole blocks and at most a window each; the file's last block may
    reach behind its end. `start` is a multiple of the block size."""
    at = start
    for offset, length in data_ranges(fd, start, end):
        stop = -(-(offset + length) // BLOCK) * BLOCK
        at = max(at, offset // BLOCK * BLOCK)
        while at < stop:
            take = min(WINDOW, stop - at)
            yield at, take
            at += take


def _read_blocks(fd: int, offset: int, length: int) -> memoryview:
    """`length` bytes from `offset`, padded with zeros behind the end of the file."""
    view = memoryview(bytearray(length))
    done = 0
    while done < length:
        count = os.preadv(fd, [view[done:]], offset + done)
        if count == 0:
            break
        done += count
    return view
