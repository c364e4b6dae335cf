"""A repository: everything of one store of images on this host, opened together.

imagefs.json   superblock         staging/    drafts               sessions/  one locked file a session
catalog/       LMDB, synchronous  index/      LMDB, disposable     locks/     janitor, log
volatile/      open files         store/      packs, maps, log     run/       what is mounted
cache/         plain files of sealed images, which any process may remove
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from imagefs.blocks import superblock as superblocks
from imagefs.blocks.dedup import sample
from imagefs.blocks.digest import Digests
from imagefs.blocks.superblock import Superblock
from imagefs.catalog import Catalog, DedupIndex, OpenTable, PackDone, PackKind, PackState
from imagefs.config import Config
from imagefs.errors import CatalogBehind, Damaged, Exists, NoSpace, NotARepository, NotFound
from imagefs.images.holding import PackHolds
from imagefs.images.logs import EPOCH, LogFlusher
from imagefs.images.materialised import Materialised
from imagefs.images.session import Session, boot_id
from imagefs.images.space import SpaceGuard
from imagefs.images.staging import Staging, sync
from imagefs.stores import FileStore

if TYPE_CHECKING:
    from imagefs.images.reader import BlockReader

DIRECTORIES = ("staging", "sessions", "locks", "run", "store", "cache")


class Repository:
    """What a process needs to work with one repository. Made by open(), after any fork; ended by close()."""

    def __init__(self, path: Path, config: Config, superblock: Superblock) -> None:
        self.path = path
        self.config = config
        self.superblock = superblock
        self.boot = boot_id()
        self.digests = Digests(superblock.digest_key)
        self.store = FileStore(path / "store")
        self.staging = Staging(path / "staging")
        self.materialised = Materialised(path / "cache", config.cache_bytes)
        self.space = SpaceGuard(path, self.staging, self.materialised)
        self.catalog = Catalog.open(path / "catalog")
        self.logs = LogFlusher(superblock.repo, self.catalog, self.store, path / "locks" / "log")
        self.holds = PackHolds(self.catalog)
        self.session: Session
        self._opening = threading.Lock()
        """One thread opens `_opens` or `_index`; nothing is taken under it but what opening them takes."""
        self._opens: OpenTable | None = None
        self._index: DedupIndex | None = None

    @classmethod
    def create(cls, path: Path, config: Config) -> None:
        """Makes an empty repository in `path`, a directory that is empty or not there. Raises Exists.

        What a creation left that was interrupted, so that nothing can be in it yet, is cleared away.
        """
        path.mkdir(parents=True, exist_ok=True)
        there = {entry.name for entry in path.iterdir()} - {"lost+found"}
        if not there <= {*DIRECTORIES, "catalog", f"{superblocks.OBJECT_NAME}.tmp"}:
            raise Exists(f"{path} is not empty: it cannot become a repository.")
        for name in there:
            _clear(path / name)
        for name in DIRECTORIES:
            (path / name).mkdir(mode=0o700)
        superblock = Superblock.new(uuid4(), sampling=config.sampling)
        Catalog.create(path / "catalog", superblock.repo).close()
        store = FileStore(path / "store")
        store.put(superblocks.OBJECT_NAME, superblock.dump())
        store.put("owner.json", json.dumps({"host": os.uname().nodename, "epoch": EPOCH}).encode())
        store.close()
        # Last and by rename: what has a superblock is whole, also after a power cut.
        temporary = path / f"{superblocks.OBJECT_NAME}.tmp"
        temporary.write_bytes(superblock.dump())
        sync(temporary)
        sync(path)
        temporary.rename(path / superblocks.OBJECT_NAME)
        sync(path)
        sync(path.parent)

    @classmethod
    def open(
        cls, path: Path, config: Config, kind: str, *, session: UUID | None = None, lock_fd: int | None = None
    ) -> Repository:
        """The repository in `path`, with a session of `kind` (mount, rest, cli) begun or joined.

        Raises NotARepository, NewerVersion, UnknownFeature, CatalogDamaged, and CatalogBehind when the
        catalog was restored from a backup older than the log on the store.
        """
        try:
            text = (path / superblocks.OBJECT_NAME).read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotARepository(
                f"{path} is not an imagefs repository: it has no {superblocks.OBJECT_NAME}."
            ) from error
        superblock = Superblock.load(text, str(path))
        superblock.check(write=True, where=str(path))
        repo = cls(path, config, superblock)
        try:
            known, logged = repo.catalog.generation(), repo.logs.newest()
            if known < logged:
                raise CatalogBehind(
                    f"The catalog of {path} is at change {known}, its log on the store at {logged}: it was "
                    "restored from an older copy. Nothing was written; `imagefs rebuild` brings it up to date."
                )
            repo.session = Session(path / "sessions", repo.catalog, kind, id=session, lock_fd=lock_fd)
            repo.catalog.session = repo.session.id
        except BaseException:
            repo._close_files()
            raise
        return repo

    def close(self, *, end: bool = True) -> None:
        """Ends the session (not with `end` False: a worker that is followed by another) and closes all."""
        with contextlib.suppress(NotFound):
            self.session.close(end=end)
        self._close_files()

    def _close_files(self) -> None:
        for environment in (self._index, self._opens):
            if environment is not None:
                environment.close()
        self.catalog.close()
        self.store.close()

    # -- what many commands do not need: opened when it is first used ------------------------------

    @cached_property
    def reader(self) -> BlockReader:
        """Reads sealed data."""
        # Imported here: codecs and thread pools are 8 ms that a command which reads no data does not spend.
        from imagefs.images.reader import BlockReader  # noqa: PLC0415

        return BlockReader(self.catalog, self.store, self.config.frame_cache_bytes)

    @property
    def opens(self) -> OpenTable:
        """Who has which file open. Opening it and ending it are three fsyncs, as for the index."""
        if self._opens is None:
            with self._opening:
                if self._opens is None:
                    self._opens = OpenTable(self.path / "volatile", self.boot)
        return self._opens

    @property
    def index(self) -> DedupIndex:
        """Where the stored blocks are."""
        if self._index is None:
            with self._opening:
                if self._index is None:
                    self._index = DedupIndex(self.path / "index", self.boot)
        return self._index

    # -- dedup index -------------------------------------------------------------------------------

    def digest_list(self, pack: int) -> bytes | None:
        """Digests of all blocks of a pack, 20 B each, from its footer; None when it may not be hit."""
        try:
            row = self.catalog.packs.get(pack)
            if row.state != PackState.LIVE or self.catalog.scrubs.get(pack) is not None:
                return None
            # Imported here, like the reader.
            from imagefs.blocks.packs import read_footer  # noqa: PLC0415

            return read_footer(self.store, row.name16).digests
        except (NotFound, Damaged):
            return None

    def index_packs(self, packs: Iterable[tuple[PackDone, bytes]]) -> None:
        """Puts the sampled blocks of packs into the index: (pack, its digest list).

        The index is a hint: on a full disk it does without, here and when packs go.
        """
        with contextlib.suppress(NoSpace):
            for done, digests in packs:
                rows = sample(digests, self.superblock.sampling)
                self.index.add([(digest, done.no, block) for digest, block in rows])

    def index_wholes(self, rows: Iterable[tuple[bytes, bytes, int]]) -> None:
        """Puts rows for whole MiBs into the index."""
        with contextlib.suppress(NoSpace):
            self.index.add_wholes(rows)

    def unindex_packs(self, packs: Iterable[int]) -> None:
        """Takes packs out of the index that are gone or going."""
        with contextlib.suppress(NoSpace):
            self.index.remove(packs)

    def rebuild_index(self) -> None:
        """Fills a fresh index from the footers of all live packs; a damaged footer's blocks stay unknown."""
        for row in self.catalog.packs.scan():
            if row.kind == PackKind.PACK and row.state == PackState.LIVE:
                digests = self.digest_list(row.no)
                if digests is not None:
                    self.index_packs([(PackDone(no=row.no), digests)])
        self.index.mark_built()


def _clear(path: Path) -> None:
    """Removes a file, or a directory with all that is in it."""
    # Imported here: 3 ms that only `init` spends.
    from shutil import rmtree  # noqa: PLC0415

    path.unlink() if path.is_file() else rmtree(path)
