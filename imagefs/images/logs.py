"""The catalog's change log as objects on the store: what a rebuild of the catalog reads.

Objects are `log/<last generation in it>`; every 1,000 of them a snapshot `snap/<generation>` holds every
live record, and a tombstone for what is gone while a manifest of it is still on the store; what is older
goes. A record that is 5 s old survives the loss of LMDB.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from uuid import UUID

from imagefs.blocks import logobject
from imagefs.catalog import Catalog, LogRow, Op, PackKind, PackState, Query
from imagefs.catalog.records import dumps
from imagefs.errors import Exists, NotFound
from imagefs.stores import Store
from imagefs.types import Image, Kind, Status

SNAPSHOT_EVERY = 1000
EPOCH = 1
"""Of the host that owns the repository: `owner.json` says the same."""
BATCH = 1 << 20
"""Bytes of records in one object."""


class LogFlusher:
    """Any process may flush: the file lock `locks/log` is taken first, no catalog transaction is held over I/O."""

    def __init__(self, repo: UUID, catalog: Catalog, store: Store, lock: Path) -> None:
        self._repo = repo
        self._catalog = catalog
        self._store = store
        self._lock = lock

    def flush(self) -> None:
        """Puts every row that no log object has yet, by whatever process; returns when they are durable."""
        if self._catalog.log.flushed() >= self._catalog.log.newest():
            return
        with self._locked():
            for batch in _batches(self._catalog.log.unflushed()):
                last = batch[-1].gen
                body = logobject.encode(self._repo, batch[0].gen, [_record(row) for row in batch], EPOCH)
                # A crash after the put and before the mark leaves the same rows under the same name.
                with contextlib.suppress(Exists):
                    self._store.put(logobject.object_name(last), body)
                self._catalog.log.mark_flushed(last)

    def snapshot_when_due(self) -> None:
        """Replaces the log objects by a snapshot once there are enough of them."""
        if sum(1 for _ in self._store.list("log/")) >= SNAPSHOT_EVERY:
            self.snapshot()

    def snapshot(self) -> None:
        """Replaces the log objects and the snapshot that there are, damaged ones too, by a new snapshot."""
        with self._locked():
            # A generation of its own, so that a snapshot that got damaged is not in its way. Everything up to it
            # is in the records below: rows that are flushed later and are older change nothing in a replay.
            gen = self._catalog.counters.next_gen()
            names = list(self._store.list("log/"))
            records = [logobject.Record(gen, Op.PUT, image.id, dumps(image)) for image in live(self._catalog)]
            records += [logobject.Record(gen, Op.DELETE, image.id, dumps(image)) for image in gone(self._catalog)]
            name = logobject.snapshot_name(gen)
            self._store.put(name, logobject.encode(self._repo, gen, records, EPOCH))
            for old in (*self._store.list("snap/"), *names):
                if old != name and old.rpartition("/")[2] <= name.rpartition("/")[2]:
                    self._store.delete(old)

    def newest(self) -> int:
        """The highest generation that log objects and snapshots on the store speak of; 0 without any."""
        return newest(self._store)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fd = os.open(self._lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def newest(store: Store) -> int:
    """The highest generation that log objects and snapshots on a store speak of; 0 without any."""
    last = 0
    for prefix in ("log/", "snap/"):
        for name in store.list(prefix):
            last = max(last, int(name.rpartition("/")[2], 16))
    return last


def live(catalog: Catalog) -> Iterator[Image]:
    """Every image that is not deleted."""
    after = 0
    while page := catalog.images.walk(Kind.DIRECTORY, after):
        for _, attrs in page:
            with contextlib.suppress(NotFound):
                yield catalog.images.get(attrs.id)
        after = page[-1][0]


def gone(catalog: Catalog) -> Iterator[Image]:
    """Tombstones of what a rebuild would bring back to life: deleted images, and under the uuid of their map the
    manifests that no image has, in the trash or kept by a draft."""
    for _, image_id in catalog.images.unlinked():
        yield Image(id=image_id, status=Status.DELETED)
    for row in catalog.packs.scan():
        if row.kind == PackKind.MANIFEST and row.state != PackState.PEND:
            uuid = UUID(bytes=row.name16)
            map_id = catalog.maps.by_uuid(uuid)
            if map_id is None or not catalog.images.query(Query(map_id=map_id, limit=1)):
                yield Image(id=uuid, status=Status.DELETED)


def _record(row: LogRow) -> logobject.Record:
    return logobject.Record(row.gen, row.op, row.image_id, dumps(row.record))


def _batches(rows: Iterable[LogRow]) -> Iterator[list[LogRow]]:
    batch: list[LogRow] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += len(dumps(row.record))
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
