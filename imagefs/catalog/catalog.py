"""The catalog of one repository: what exists."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from imagefs.catalog import schema
from imagefs.catalog.bases import Bases
from imagefs.catalog.checkpoints import Checkpoints
from imagefs.catalog.conversions import Conversions
from imagefs.catalog.counters import Counters
from imagefs.catalog.env import MAP_SIZE, Environment
from imagefs.catalog.images import Images
from imagefs.catalog.log import Log
from imagefs.catalog.maps import Maps
from imagefs.catalog.moves import Moves
from imagefs.catalog.packs import Packs
from imagefs.catalog.quotas import Quotas
from imagefs.catalog.scrubs import Scrubs
from imagefs.catalog.seals import Seals
from imagefs.catalog.sessions import Sessions
from imagefs.catalog.siblings import Siblings
from imagefs.catalog.slots import Slots
from imagefs.catalog.usage import Usage
from imagefs.errors import CatalogDamaged, Exists, NewerVersion

_TABLES = tuple(table.name for table in schema.ALL)


class Catalog:
    """Every public method of the tables below is one transaction: atomic, durable on return, seen by every
    process from then on. Inside `with catalog.transaction():` they join it.

    Any thread may call; a transaction belongs to the thread that began it. Open it after fork, never
    before, and once in a process. LMDB's writer lock is over all processes: call no store and compute
    nothing that takes long inside a transaction, and take no lock there whose holder may go on to begin
    one.
    """

    def __init__(self, env: Environment) -> None:
        """Made by `create` or `open`."""
        self.env = env
        """For this package and its tests."""
        self.clock: Callable[[], int] = time.time_ns
        """ns since the epoch, for the times that the catalog gives; replaceable in tests."""
        self.on_commit: Callable[[], None] | None = None
        """Called after each commit that wrote log rows, outside the transaction, in the committing thread."""

        def clock() -> int:
            return self.clock()

        self.counters = Counters(env)
        self.sessions = Sessions(env, self.counters, clock)
        self.log = Log(env, self.counters, self.sessions, clock)
        self.usage = Usage(env)
        self.quotas = Quotas(env, self.usage)
        self.packs = Packs(env, self.counters, self.sessions, clock, self.usage)
        self.scrubs = Scrubs(env, self.counters)
        self.maps = Maps(env, self.packs, self.usage)
        self.bases = Bases(env, self.maps)
        self.checkpoints = Checkpoints(env, self.counters, self.sessions, self.packs, self.maps)
        self.images = Images(env, self.counters, self.log, self.maps, self.checkpoints, clock, self.usage, self.quotas)
        self.siblings = Siblings(env, self.images, self.maps)
        self.seals = Seals(env, self.sessions, self.packs, self.maps, self.checkpoints, self.images, self.siblings)
        self.slots = Slots(env)
        self.moves = Moves(env, self.sessions, self.packs, self.maps)
        self.conversions = Conversions(env, self.counters, self.sessions, self.packs, self.maps, self.images)
        self.sessions.on_end = self._ended
        self.sessions.on_join = self.moves.let_go
        self.log.on_append = self._committed

    @classmethod
    def create(cls, path: Path, repo: UUID) -> Catalog:
        """Makes the directory `path` with an empty catalog in it, opened. Exists, NoSpace.

        It is made beside and renamed, so what is at `path` is whole.
        """
        if path.exists():
            raise Exists(f"{path} exists already.")
        made = path.with_name(path.name + ".new")
        made.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in made.iterdir():
            left.unlink()
        env = Environment(made, create=True)
        try:
            env.open_tables(_TABLES, create=True)
            with env.write() as txn:
                meta = env.table(schema.META.name)
                txn.put(b"repo", repo.bytes, db=meta)
                txn.put(b"schema", schema.U64.pack(schema.VERSION), db=meta)
        finally:
            env.close()
        made.rename(path)
        for directory in (path, path.parent):
            _sync_directory(directory)
        return cls.open(path)

    @classmethod
    def open(cls, path: Path, *, readonly: bool = False, map_size: int = MAP_SIZE) -> Catalog:
        """The catalog in `path`. CatalogDamaged (missing, truncated, unreadable), NewerVersion, Busy (open
        already in this process)."""
        env = Environment(path, readonly=readonly, map_size=map_size)
        try:
            # The version first: a newer schema may lack tables of this one.
            env.open_tables([schema.META.name])
            _check_version(env)
            if not readonly:
                _migrate(env)
            env.open_tables(_TABLES)
            if not readonly:
                Usage(env).fill()
        except BaseException:
            env.close()
            raise
        return cls(env)

    def close(self) -> None:
        """Ends it. Threads must have finished what they do with it."""
        self.env.close()

    @property
    def path(self) -> Path:
        """Its directory."""
        return self.env.path

    @property
    def repo(self) -> UUID:
        """The repository it belongs to."""
        return self.counters.repo()

    @property
    def session(self) -> UUID:
        """Origin named in the log rows that this process writes; all zero until it is set."""
        return self.log.origin

    @session.setter
    def session(self, session: UUID) -> None:
        self.log.origin = session

    def generation(self) -> int:
        """Grows with every change of a record or of an object's state. Acknowledge this one after tailing
        the log."""
        return self.counters.get("gen")

    def copy_to(self, fd: int) -> None:
        """Writes a consistent copy of the whole catalog while it is in use: a `data.mdb` that can be opened in a
        directory of its own. NoSpace, BackendFailed."""
        self.env.copy_to(fd)

    def restore_counters(self, gen: int, ino: int) -> None:
        """Makes an empty catalog go on behind generation `gen`, all of it flushed, and inode `ino`."""
        with self.env.write():
            for name in ("gen", "logged", "flushed", "pruned"):
                self.counters.set(name, gen)
            self.counters.set("ino", max(ino, self.counters.get("ino")))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """One write transaction for all calls inside, of this thread: committed at the outermost exit,
        undone when an exception leaves it. Nested ones join. NoSpace, BackendFailed at the commit."""
        with self.env.write():
            yield

    def reader_check(self) -> int:
        """Frees reader slots of dead processes, which keep pages from being used again; returns how many.

        Call it every minute.
        """
        return self.env.reader_check()

    def waiting_s(self) -> float:
        """Seconds for which a thread of this process has been waiting for the writer lock; 0.0 for none.

        Another process that is stopped inside a transaction blocks all writers: warn after 1 s.
        """
        return self.env.waiting_s()

    def info(self) -> dict[str, int]:
        """Figures for people: rows of each table, bytes used of the file, bytes in reserve, generation."""
        with self.env.read() as txn:
            rows = {name: txn.stat(db=self.env.table(name))["entries"] for name in _TABLES}
        return {
            **rows,
            "bytes": self.env.used(),
            "reserve_bytes": self.env.reserve_left(),
            "generation": self.generation(),
        }

    def _ended(self, session: UUID) -> list[UUID]:
        self.moves.let_go(session)
        return self.seals.release_all(session)

    def _committed(self) -> None:
        if self.on_commit is not None:
            self.on_commit()


def _check_version(env: Environment) -> None:
    version = Counters(env).get("schema")
    if version > schema.VERSION:
        raise NewerVersion(
            f"The catalog {env.path} has schema {version}; this imagefs knows up to {schema.VERSION}: use a newer one."
        )
    if version == 0:
        raise CatalogDamaged(f"The catalog {env.path} has no schema version.")


def _migrate(env: Environment) -> None:
    """Gives a catalog of an earlier schema the tables that it lacks; they begin empty."""
    counters = Counters(env)
    if counters.get("schema") < schema.VERSION:
        with env.write():
            env.open_tables(_TABLES, create=True)
            counters.set("schema", schema.VERSION)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
