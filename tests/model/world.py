"""Several processes on one repository, in one: each has its session, its lock, its open files and its tail of the
log; they share the catalog, the store and the dedup index as processes do. What each does next, the test decides.

The invariants are those of docs/protocol.md, looked at after every step.
"""

from __future__ import annotations

import contextlib
import copy
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from imagefs.blocks.packs import object_name
from imagefs.catalog import PackState
from imagefs.config import Config
from imagefs.errors import Busy, ImagefsError, InvalidValue, NotFound, Stale
from imagefs.images import drafts, fsck, packing, recovery
from imagefs.images.compaction import Compactor
from imagefs.images.gc import Collector
from imagefs.images.listing import with_status
from imagefs.images.logs import LogFlusher
from imagefs.images.opens import OpenFiles
from imagefs.images.reader import BlockReader
from imagefs.images.repository import Repository
from imagefs.images.service import Images
from imagefs.images.session import Session
from imagefs.images.tail import LogTail
from imagefs.stores import MemoryStore
from imagefs.types import BLOCK, Caller, Image, Kind, Status
from tests.content import noise
from tests.model.stepping import Actor, SteppedEnvironment, SteppedPool, SteppedStore, atomic

USER = Caller(0, 0)
NOW = Config(sampling=1, retention_seconds=0)
"""Every digest is in the index: two blocks are enough for a hit."""


class _Flusher(LogFlusher):
    """Log objects play no part in the protocol: putting them is one step, under a lock of their own."""

    def flush(self) -> None:
        with atomic("logs.flush"):
            super().flush()


class Process:
    """One user of the repository: a mount's worker, a command."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.world = world
        self.repo = copy.copy(world.repo)
        self.store = SteppedStore(world.store)
        self.session = Session(self.repo.path / "sessions", self.repo.catalog, "mount")
        self.repo.session = self.session
        self.repo.store = self.store  # type: ignore[assignment]
        self.alive = True
        self.actors: list[Actor] = []
        self.start()

    def start(self) -> None:
        """What a worker makes for itself, the first or one that follows."""
        repo = self.repo
        repo.reader = BlockReader(repo.catalog, self.store, 0)
        repo.logs = _Flusher(repo.superblock.repo, repo.catalog, self.world.store, repo.path / "locks" / "log")
        self.images = Images(repo)
        self.files = OpenFiles(self.images, self.session.id)
        self.tail = LogTail(repo, self.files, ())

    def acts(self, body: Callable[[], Any], *, fine: bool = False) -> Actor:
        """Something that a thread of this process does."""
        actor = Actor(self.name, body, fine=fine)
        self.actors.append(actor)
        return actor

    def acknowledge(self) -> None:
        """T8: what the thread of the log's tail does whenever there is something new."""
        self.tail.catch_up()
        self.tail.acknowledge()

    def kill_worker(self) -> None:
        """SIGKILL of the process that serves; the session's lock is another's and stays."""
        for actor in self.actors:
            actor.kill()
        self.actors.clear()
        _close_files(self.files)

    def die(self) -> None:
        """SIGKILL of all: the kernel lets go of the lock, the rows stay."""
        self.kill_worker()
        os.close(self.session._lock_fd)
        self.alive = False

    def take_over(self) -> None:
        """Another worker follows: as imagefs.cli.daemon does it."""
        self.start()
        catalog = self.repo.catalog
        catalog.sessions.start(self.session.id, "mount", "", "")
        self.files.restore()
        gen = catalog.generation()
        deleted = {image_id for _, image_id in catalog.images.unlinked()}
        catalog.sessions.ack(self.session.id, gen, self.files.held() & deleted)

    def end(self) -> None:
        """Ends as it should; nothing of a dead one is left to end."""
        if self.alive:
            self.alive = False
            _close_files(self.files)
            self.repo.opens.drop(self.session.id)
            self.session.close()


def _close_files(files: OpenFiles) -> None:
    for node in files._nodes.values():
        if node.file is not None:
            node.file.close()
    files._nodes.clear()


class World:
    """One repository that many runs use one after another: each begins and ends with nothing in it."""

    def __init__(self, path: Path) -> None:
        Repository.create(path, NOW)
        self.repo = Repository.open(path, NOW, "cli")
        # Before the copies of it that stand for processes: a process opens an LMDB environment once.
        assert self.repo.opens
        assert self.repo.index
        # Not its own session: it would have to acknowledge everything.
        self.repo.session.close()
        self.repo.store.close()
        self.repo.catalog.env.__class__ = SteppedEnvironment
        self.store = MemoryStore()
        packing.ThreadPoolExecutor = SteppedPool  # type: ignore[attr-defined]
        self.processes: list[Process] = []
        self.seed = 0
        self.contents: dict[UUID, bytes] = {}
        self._checked: Any = None

    def close(self) -> None:
        """Also in the middle of a run that failed: threads that wait for their next step must end."""
        for process in self.processes:
            for actor in process.actors:
                with contextlib.suppress(Exception):
                    actor.kill()
            process.end()
        self.repo._close_files()
        packing.ThreadPoolExecutor = ThreadPoolExecutor  # type: ignore[attr-defined]

    @property
    def catalog(self) -> Any:
        return self.repo.catalog

    # -- what a run begins with ------------------------------------------------------------------------

    def begin(self) -> None:
        """Old (a sealed image of 2 blocks) and New (a draft of these 2 blocks, a hole and 1 new block)."""
        for process in self.processes:
            process.end()
        self.processes.clear()
        self.contents.clear()
        for name in list(self.store.list("")):
            self.store.delete(name)
        self.seed += 1
        shared = noise(2 * BLOCK, 2 * self.seed)
        maker = self.process("maker")
        self.old = self.draft(maker, "old", shared)
        maker.images.sealer.seal(self.old)
        self.new = self.draft(maker, "new", shared + bytes(BLOCK) + noise(1000, 2 * self.seed + 1))
        maker.end()
        self.processes.clear()

    def process(self, name: str) -> Process:
        process = Process(self, name)
        self.processes.append(process)
        return process

    def draft(self, process: Process, name: str, content: bytes) -> UUID:
        """A draft that was written, synced and closed."""
        image = process.images.create(name, draft=True)
        self.repo.staging.path(image.id, 1).write_bytes(content)
        process.images.update_draft(image.id, drafts.released(time.time_ns(), self.repo.boot))
        self.contents[image.id] = content
        return image.id

    # -- what processes do -----------------------------------------------------------------------------

    def read(self, process: Process, image_id: UUID, *, times: int = 2) -> bool:
        """Opens, reads some times, closes; False when it was not there to be opened. An open file never fails."""
        fh = process.files.new_fh()
        try:
            ino = self.catalog.images.get(image_id).data_ino
            process.files.open(ino, os.O_RDONLY, USER, fh)
        except NotFound:  # Stale too
            return False
        for _ in range(times):
            handle = process.files.get(fh)
            assert handle is not None
            assert handle.pread(0, 1 << 20) == self.contents[image_id]
        process.files.release(fh)
        return True

    def clone(self, process: Process, image_id: UUID) -> Image | None:
        """A clone, None when the source was gone."""
        clone_id = uuid4()
        self.contents[clone_id] = self.contents[image_id]
        try:
            return process.images.clone(image_id, "clone", id=clone_id)
        except (NotFound, InvalidValue):
            return None

    def delete(self, process: Process, image_id: UUID) -> None:
        with contextlib.suppress(NotFound):
            process.images.delete(image_id)

    def collect(self, process: Process) -> None:
        """One round of a collector, retention 0."""
        Collector(process.repo, retention_s=0).run()

    def compact(self, process: Process) -> None:
        """Moves every block that there is to new packs; another process may be at it."""
        compactor = Compactor(process.repo, sparse=1.1)
        plan = compactor.plan()
        with contextlib.suppress(Busy):
            compactor.execute(plan)

    def undelete(self, process: Process, image_id: UUID) -> Image | None:
        """Brings a deleted image back, None when it is not in the trash."""
        try:
            return self.catalog.images.undelete(image_id)
        except NotFound:
            return None

    def acknowledge_all(self) -> None:
        """Every living process does it, in one step."""
        with atomic("acknowledge"):
            for process in self.processes:
                if process.alive:
                    process.acknowledge()

    def sweep(self, process: Process, image_id: UUID | None) -> None:
        """Deletes an image, if one is given, and collects, all acknowledging as they do within a second."""
        if image_id is not None:
            self.delete(process, image_id)
        for _ in range(3):
            self.acknowledge_all()
            self.collect(process)

    # -- what must hold ----------------------------------------------------------------------------------

    def check(self) -> None:
        """After each step: what is mapped is stored, what is stored is in a table."""
        catalog = self.catalog
        stored = {name for name in self.store.list("") if name.startswith(("packs/", "maps/"))}
        moment = catalog.env._env.info()["last_txnid"], stored
        if moment == self._checked:
            return
        self._checked = moment
        unknown = {name for name in stored if catalog.packs.by_name(name16(name)) is None}
        assert not unknown, f"stored and in no table: {unknown}"
        for map_id, info in catalog.maps.scan():
            named = [catalog.packs.find(no) for no in catalog.maps.packs_of(map_id)]
            assert None not in named, f"map {map_id} names a pack that has no row"
            objects = {f"maps/{info.uuid}", *(row.object_name for row in named if row is not None)}
            assert objects <= stored, f"DATA LOSS: map {map_id} needs {objects - stored}"

    def run(self, *actors: Actor) -> None:
        """Each to its end, one after another, the invariants checked after every step."""
        for actor in actors:
            while actor.step():
                self.check()

    def settle(self) -> None:
        """When all have done what they could: nothing is left of what is deleted, all that is left is intact,
        a draft can be sealed; and when all is deleted, nothing is left at all."""
        self._collect_all()
        self._require_only(self._expected())
        last = self.process("last")
        for image in list(with_status(self.catalog, Status.SAVING)):
            last.images.sealer.seal(image.id)
            self.check()
        for image in list(with_status(self.catalog, Status.ACTIVE)):
            assert self.read(last, image.id), f"{image.name} cannot be opened"
        findings = fsck.check(last.repo)
        assert not findings, f"fsck: {len(findings)} findings: {findings[:5]}"
        for image_id in self.contents:
            self.delete(last, image_id)
        self._collect_all()
        self._require_only(set())
        for process in self.processes:
            process.end()
        assert not self.catalog.sessions.list(), "sessions left"
        info = self.catalog.info()
        tables = (
            "images",
            "by_ino",
            "entry",
            "unlinked",
            "maps",
            "mapseg",
            "packs",
            "pack_name",
            "pack_owner",
        )
        tables += ("frames", "trash", "doomed", "seals", "holds", "sibling", "map_uuid")
        left = {name: info[name] for name in tables if info[name]}
        assert not left, f"rows left: {left}"
        assert not list(self.repo.staging.files()), "staging files left"

    def _collect_all(self) -> None:
        """The dead are reaped, the living acknowledge, gc runs until nothing changes."""
        collector = self.process("collector")
        before = -1
        while before != self.catalog.generation():
            before = self.catalog.generation()
            self.acknowledge_all()
            self.collect(collector)
            recovery.remove_stray_staging(collector.repo)
            self.check()
        collector.end()

    def _expected(self) -> set[str]:
        """Objects of images that are there: of their maps, and what their drafts have reserved."""
        catalog = self.catalog
        objects = {row.object_name for image_id in self.contents for row in catalog.packs.pending(image_id)}
        for _, info in catalog.maps.scan():
            objects.add(f"maps/{info.uuid}")
        for map_id, _ in catalog.maps.scan():
            objects |= {object_name(catalog.packs.get(no).name16) for no in catalog.maps.packs_of(map_id)}
        return objects

    def _require_only(self, expected: set[str]) -> None:
        catalog = self.catalog
        rows = {row.object_name: row for row in catalog.packs.scan()}
        stored = {name for name in self.store.list("") if name.startswith(("packs/", "maps/"))}
        assert set(rows) == expected, f"left over in the table: {[rows[n] for n in set(rows) - expected]}"
        assert stored <= expected, f"left over on the store: {stored - expected}"
        left = [row for row in rows.values() if row.state in (PackState.TRASH, PackState.DOOMED)]
        assert not left, f"in the trash, though nobody needs it: {left}"
        there = {attrs.id for _, attrs in catalog.images.walk(Kind.DIRECTORY)}
        for row in rows.values():
            if row.state == PackState.PEND:
                assert row.owner in there, f"reserved for an image that is gone: {row}"
        assert not catalog.images.unlinked(), "deleted images that nobody has open"
        assert not catalog.info()["holds"], "holds of what nobody has open"


def name16(name: str) -> bytes:
    """The 16 bytes that an object's name ends in."""
    return bytes.fromhex(name.rpartition("/")[2].replace("-", ""))


@contextlib.contextmanager
def refused(*errors: type[ImagefsError]) -> Iterator[None]:
    """What may happen to whoever came too late."""
    with contextlib.suppress(*(errors or (NotFound, Stale))):
        yield
