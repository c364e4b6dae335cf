"""A repository in this process whose store goes wrong as planned, for tests that need no death."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

from imagefs.config import Config
from imagefs.images import drafts, recovery
from imagefs.images.gc import Collector
from imagefs.images.logs import LogFlusher
from imagefs.images.opens import OpenFiles
from imagefs.images.reader import BlockReader
from imagefs.images.repository import Repository
from imagefs.images.service import Images
from imagefs.stores.faults import FaultyStore, Plan
from imagefs.types import Caller, Image, Kind

CONFIG = Config(sampling=1, frame_cache_bytes=0, retention_seconds=0)
USER = Caller(0, 0)


class Opened:
    """The repository in `path`, made if need be, behind a store that does as `plan` says."""

    def __init__(self, path: Path, config: Config = CONFIG) -> None:
        if not path.exists():
            Repository.create(path, config)
        self.repo = Repository.open(path, config, "mount")
        self.inner = self.repo.store
        self.plan = Plan()
        self.store = FaultyStore(self.inner, self.plan)
        self.store.purge = self.inner.purge  # type: ignore[attr-defined]
        repo = self.repo
        repo.store = self.store  # type: ignore[assignment]
        repo.reader = BlockReader(repo.catalog, self.store, config.frame_cache_bytes)
        repo.logs = LogFlusher(repo.superblock.repo, repo.catalog, self.store, path / "locks" / "log")
        self.images = Images(repo)
        self.files = OpenFiles(self.images, repo.session.id)
        self.collector = Collector(repo, retention_s=0)

    def close(self) -> None:
        self.plan.release()
        for fh in list(self.files._handles):
            self.files.release(fh)
        self.repo.close()

    def draft(self, name: str, content: bytes) -> UUID:
        """A draft that was written and closed."""
        image = self.images.create(name, draft=True)
        self.repo.staging.path(image.id, 1).write_bytes(content)
        self.images.update_draft(image.id, drafts.released(time.time_ns(), self.repo.boot))
        return image.id

    def sealed(self, name: str, content: bytes) -> Image:
        return self.images.seal(self.draft(name, content))

    def read(self, image_id: UUID) -> bytes:
        """All bytes, through an open file."""
        ino, fh = self.images.get(image_id).data_ino, self.files.new_fh()
        handle = self.files.open(ino, 0, USER, fh)
        try:
            return handle.pread(0, 1 << 30)
        finally:
            self.files.release(fh)

    def objects_of(self, image: Image) -> list[str]:
        """Names of the packs that an image is in, in the order of their numbers."""
        packs = self.repo.catalog.packs
        return [packs.get(no).object_name for no in sorted(self.repo.catalog.maps.packs_of(image.map_id))]

    def path_of(self, name: str) -> Path:
        """The file of an object."""
        return self.repo.path / "store" / name

    def collect(self) -> None:
        """gc until nothing is left to do."""
        for _ in range(3):
            self.repo.catalog.sessions.ack(self.repo.session.id, self.repo.catalog.generation())
            self.collector.run()
        recovery.remove_stray_staging(self.repo)

    def delete_all(self) -> None:
        for _, attrs in self.repo.catalog.images.walk(Kind.DIRECTORY):
            self.images.delete(attrs.id)
        self.collect()

    def objects(self) -> list[str]:
        """Packs and manifests on the store."""
        return [name for prefix in ("packs/", "maps/") for name in self.inner.list(prefix)]


@contextlib.contextmanager
def opened(path: Path, config: Config = CONFIG) -> Iterator[Opened]:
    it = Opened(path, config)
    try:
        yield it
    finally:
        it.close()
