"""An LMDB environment with this project's rules: one transaction per call, nested calls join, errors
named."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeAlias

import lmdb

from imagefs.catalog import probe
from imagefs.catalog.reserve import Reserve
from imagefs.errors import BackendFailed, Busy, CatalogDamaged, ImagefsError, NoSpace, Refused

if TYPE_CHECKING:
    from lmdb import _Database as Table  # the stub's name; at run time the class has another

    __all__ = ["Environment", "Reading", "Table", "Txn"]

log = logging.getLogger(__name__)

Txn: TypeAlias = "lmdb.Transaction[bytes]"

MAP_SIZE = 1 << 40
"""Address space, not disk: so large that the map never has to grow, which would void running transactions."""
MAX_READERS = 1024
"""Slots for threads that read at the same time, over all processes; LMDB's default of 126 is soon used up."""
MAX_TABLES = 64
SLOW_S = 1.0
"""Waiting this long for the writer lock is worth a warning: a stopped process may have it."""

_DAMAGED = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.VersionMismatchError)


class _Local(threading.local):
    """What this thread has open."""

    txn: Txn | None = None
    writing = False
    poisoned = False
    after: dict[Callable[[], None], None]


class Environment:
    """One LMDB environment. Open it after fork, never before, and once per process.

    Threads: any may call. A transaction belongs to the thread that began it and never leaves a method of this
    package. Lock order: LMDB's writer lock is over all processes and innermost; inside a write transaction
    take no other lock, call no store and compute nothing that takes long.
    """

    def __init__(
        self,
        path: Path,
        *,
        create: bool = False,
        readonly: bool = False,
        sync: bool = True,
        readahead: bool = True,
        map_size: int = MAP_SIZE,
    ) -> None:
        """Opens it without tables (see `open_tables`). CatalogDamaged, Busy (open already in this
        process)."""
        self.path = path
        if not create:
            probe.check(path)
        self._local = _Local()
        self._gate = threading.Condition(threading.Lock())
        self._running = 0
        self._waiting_since = 0.0
        self._tables: dict[str, Table] = {}
        self._reserve: Reserve | None = None
        # writemap is never on: with it a full disk is a SIGBUS.
        self._env, self._map_size = _open(
            path, map_size, readonly=readonly, create=create, sync=sync, readahead=readahead
        )
        self._env.reader_check()
        if sync and not readonly:
            self._reserve = Reserve(path / "data.mdb")
            self._keep_reserve()

    def open_tables(self, names: Iterable[str], *, create: bool = False) -> None:
        """Makes handles for these sub-databases. CatalogDamaged if one is missing (and not created)."""
        if create:
            with self.write() as txn:
                for name in names:
                    self._tables[name] = self._env.open_db(name.encode(), txn=txn)
            return
        for name in names:
            try:
                # Without a transaction of ours: LMDB forgets handles that were made in one that was aborted.
                self._tables[name] = self._env.open_db(name.encode(), create=False)
            except lmdb.NotFoundError:
                raise CatalogDamaged(f"{self.path} lacks the table {name}.") from None
            except lmdb.Error as error:
                raise self._named(error) from error

    def table(self, name: str) -> Table:
        """The handle of a sub-database."""
        return self._tables[name]

    def close(self) -> None:
        """Ends it; transactions of other threads fail from now on."""
        if self._reserve is not None:
            self._reserve.close()
            self._reserve = None
        self._env.close()

    def sync(self) -> None:
        """Everything written so far is on the disk (for environments opened with sync off)."""
        self._env.sync(True)

    def copy_to(self, fd: int) -> None:
        """Writes the environment as it is at this moment, without its free pages, as the data.mdb of another one;
        others go on writing meanwhile. NoSpace, BackendFailed."""
        try:
            self._env.copyfd(fd, compact=True)
        except lmdb.Error as error:
            raise self._named(error) from error

    def read(self) -> Reading:
        """`with env.read() as txn`: a snapshot, or this thread's open transaction."""
        return Reading(self)

    @contextmanager
    def write(self) -> Iterator[Txn]:
        """A write transaction, or this thread's open one: committed when the outermost block ends, undone
        when an exception leaves it.

        Methods check before they write, so the caller of a nested one may catch its refusal and go on. Any
        other exception that passes through a nested block makes the outermost one fail too.
        """
        local = self._local
        if local.writing and local.txn is not None:
            try:
                yield local.txn
            except ImagefsError:
                raise
            except BaseException:
                local.poisoned = True
                raise
            return
        outer, local.txn = local.txn, self._begin_write()
        local.writing, local.poisoned, local.after = True, False, {}
        try:
            yield local.txn
            if local.poisoned:
                raise RuntimeError("an error inside this transaction was swallowed; nothing is committed")
            self._commit(local.txn)
        except lmdb.Error as error:
            local.txn.abort()
            raise self._named(error) from error
        except BaseException:
            local.txn.abort()
            raise
        finally:
            local.txn, local.writing, after = outer, False, local.after
            self._leave()
        self._keep_reserve()
        for call in after:
            call()

    def after_commit(self, call: Callable[[], None]) -> None:
        """Calls it once, in this thread, when the open write transaction is committed and over."""
        self._local.after[call] = None

    def reader_check(self) -> int:
        """Frees the reader slots of dead processes: a slot left behind keeps every page from being used
        again."""
        return self._env.reader_check()

    def waiting_s(self) -> float:
        """Seconds for which a thread of this process has been waiting for the writer lock; 0.0 for none."""
        since = self._waiting_since
        return time.monotonic() - since if since else 0.0

    def require_space(self) -> None:
        """Raises NoSpace when only the reserve is left: for what adds rows; deleting does not ask."""
        if self._reserve is not None and self._reserve.only():
            raise NoSpace(f"The disk under {self.path} is full; what is reserved there is for deleting.")

    def used(self) -> int:
        """Bytes of the file that LMDB uses, free pages included."""
        return (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]

    def reserve_left(self) -> int:
        """Bytes set aside behind the file; 0 where the filesystem cannot."""
        return self._reserve.left(self.used()) if self._reserve is not None else 0

    def _begin_write(self) -> Txn:
        started = self._waiting_since = time.monotonic()
        try:
            txn = self._begin(write=True)
        finally:
            self._waiting_since = 0.0
        if (waited := time.monotonic() - started) > SLOW_S:
            log.warning("waited %.1f s for the writer lock of %s", waited, self.path)
        return txn

    def _begin(self, *, write: bool = False) -> Txn:
        try:
            self._enter()
            return self._env.begin(write=write)
        except lmdb.MapResizedError:
            self._leave()
            self._grow()
        except lmdb.ReadersFullError:
            self._leave()
            self._env.reader_check()
        except lmdb.Error as error:
            self._leave()
            raise self._named(error) from error
        try:
            self._enter()
            return self._env.begin(write=write)
        except lmdb.Error as error:
            self._leave()
            raise self._named(error) from error

    def _commit(self, txn: Txn) -> None:
        txn.commit()

    def _keep_reserve(self) -> None:
        if self._reserve is not None:
            self._reserve.keep(self.used())

    # Only where the full map did not fit (RLIMIT_AS) can another process outgrow it. Then, and only then,
    # transactions are counted, so that growing can wait until none is running: it would void them.

    def _enter(self) -> None:
        if self._map_size < MAP_SIZE:
            with self._gate:
                self._running += 1

    def _leave(self) -> None:
        if self._map_size < MAP_SIZE:
            with self._gate:
                self._running -= 1
                self._gate.notify_all()

    def _grow(self) -> None:
        with self._gate:
            if not self._gate.wait_for(lambda: self._running == 0, timeout=60.0):
                raise Busy(f"The catalog {self.path} has grown, and transactions that run keep its map from growing.")
            size = (self.path / "data.mdb").stat().st_size
            try:
                self._env.set_mapsize(max(2 * self._map_size, 2 * size))
            except lmdb.Error as error:
                raise self._named(error) from error
            self._map_size = self._env.info()["map_size"]

    def _named(self, error: lmdb.Error) -> Exception:
        """What happened, as one of our errors; a mistake of ours stays what it is."""
        if isinstance(error, _DAMAGED):
            return CatalogDamaged(f"The catalog {self.path} is damaged: {error}.")
        if isinstance(error, lmdb.ReadonlyError):
            return Refused(f"The catalog {self.path} is open for reading only.")
        if isinstance(error, lmdb.MapFullError):
            self._env.reader_check()  # a dead reader keeps free pages from being used
            return NoSpace(f"The catalog {self.path} has reached its {self._map_size >> 20} MiB.")
        if isinstance(error, (lmdb.BadValsizeError, lmdb.BadTxnError, lmdb.BadDbiError, lmdb.InvalidParameterError)):
            return error
        # A full disk shows as "Input/output error" at commit, not as ENOSPC.
        space = os.statvfs(self.path)
        if space.f_bavail * space.f_frsize < 1 << 20:
            return NoSpace(f"The disk under {self.path} is full ({error}).")
        return BackendFailed(f"The catalog {self.path} could not be read or written: {error}.")


class Reading:
    """A read transaction as a `with` block, or the thread's open transaction, whichever there is."""

    __slots__ = ("_env", "_outer", "_txn")

    def __init__(self, env: Environment) -> None:
        self._env = env

    def __enter__(self) -> Txn:
        local = self._env._local
        self._outer = outer = local.txn
        if outer is not None:
            return outer
        local.txn = self._txn = self._env._begin()
        return self._txn

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._outer is None:
            self._env._local.txn = None
            self._txn.abort()
            self._env._leave()
            if isinstance(error, lmdb.Error):
                raise self._env._named(error) from error


def _open(
    path: Path, map_size: int, *, readonly: bool, create: bool, sync: bool, readahead: bool
) -> tuple[lmdb.Environment, int]:
    """The environment and the size of its map: halved until it fits in the address space that is allowed."""
    while True:
        try:
            env = lmdb.Environment(
                os.fspath(path), map_size, readonly=readonly, create=create, mode=0o600, sync=sync,
                readahead=readahead, max_readers=MAX_READERS, max_dbs=MAX_TABLES, max_spare_txns=16,
            )  # fmt: skip
        except (MemoryError, lmdb.MemoryError):
            map_size //= 2
            if map_size < 1 << 24:
                raise
        except lmdb.Error as error:
            if "already open" in str(error):
                raise Busy(f"{path} is already open in this process.") from error
            raise CatalogDamaged(f"{path} cannot be opened: {error}.") from error
        else:
            return env, map_size
