"""The durable open table: who has what open, over every connection. Survives SIGKILL, not a reboot.

    opens    connection id, fh u64   ino u64, flags u32, pid u32, mode u8, backing id u32
    by_ino   ino u64, connection id, fh u64   flags u32

Written before the OPEN, CREATE or RELEASE that it records is answered: a worker that is started after
another one died knows from it what the kernel has open, and so does every other process. A row is set or
deleted, nothing is counted, so a RELEASE that comes twice does no harm.
"""

from __future__ import annotations

import os
from pathlib import Path
from struct import Struct
from typing import NamedTuple
from uuid import UUID

from imagefs.catalog import schema
from imagefs.catalog.bases import LIVE_TABLES, LiveBases
from imagefs.catalog.disposable import Disposable
from imagefs.catalog.env import Txn

_ROW = Struct(">QIIBI")


class Open(NamedTuple):
    """One open file handle."""

    connection: UUID
    fh: int
    ino: int
    flags: int
    """open(2) flags."""
    pid: int = 0
    mode: int = 0
    """How the inode is served; 0: by the worker."""
    backing_id: int = 0

    @property
    def writable(self) -> bool:
        """Whether it may write."""
        return self.flags & os.O_ACCMODE != os.O_RDONLY


class OpenTable:
    """Any thread and any process may call. Open it after fork, never before, and once in a process."""

    def __init__(self, path: Path, boot: str) -> None:
        """In the directory `path`; emptied if the machine was booted since it was written (`boot`: this
        boot's id)."""
        self._disposable = Disposable(path, boot, ("opens", "by_ino", *LIVE_TABLES))
        self._env = self._disposable.env
        self.bases = LiveBases(self._env, boot)
        """What drafts take from maps lives in the same environment."""
        self._opens = self._env.table("opens")
        self._inos = self._env.table("by_ino")

    def put(self, row: Open) -> None:
        """Sets the row of (connection, fh)."""
        key = _key(row.connection, row.fh)
        value = _ROW.pack(row.ino, row.flags, row.pid, row.mode, row.backing_id)
        with self._env.write() as txn:
            self._delete(txn, key)
            txn.put(key, value, db=self._opens)
            txn.put(schema.U64.pack(row.ino) + key, schema.U32.pack(row.flags), db=self._inos)

    def get(self, connection: UUID, fh: int) -> Open | None:
        """The row, if there is one."""
        key = _key(connection, fh)
        with self._env.read() as txn:
            raw = txn.get(key, db=self._opens)
        return _decode(key, raw) if raw is not None else None

    def delete(self, connection: UUID, fh: int) -> Open | None:
        """Removes the row and returns it; None when there is none, which is no error (a RELEASE sent
        again)."""
        with self._env.write() as txn:
            return self._delete(txn, _key(connection, fh))

    def of_connection(self, connection: UUID) -> list[Open]:
        """All that this connection has open."""
        with self._env.read() as txn:
            return self._below(txn, connection.bytes)

    def handles(self, ino: int) -> list[Open]:
        """All that have this inode open, in whatever connection."""
        prefix = schema.U64.pack(ino)
        found: list[Open] = []
        with self._env.read() as txn:
            cursor = txn.cursor(db=self._inos)
            if cursor.set_range(prefix):
                for key in cursor.iternext(keys=True, values=False):
                    if not key.startswith(prefix):
                        break
                    found.append(_decode(key[8:], txn.get(key[8:], b"", db=self._opens)))
        return found

    def writers(self, ino: int) -> int:
        """How many of them may write."""
        return sum(row.writable for row in self.handles(ino))

    def drop(self, connection: UUID) -> list[Open]:
        """The connection has ended: removes and returns its rows."""
        with self._env.write() as txn:
            rows = self._below(txn, connection.bytes)
            for row in rows:
                self._delete(txn, _key(connection, row.fh))
        return rows

    def connections(self) -> set[UUID]:
        """Connections that have something open."""
        with self._env.read() as txn:
            keys = txn.cursor(db=self._opens).iternext(keys=True, values=False)
            return {UUID(bytes=raw) for raw in {key[:16] for key in keys}}

    def close(self) -> None:
        """Ends it for this process."""
        self._disposable.close()

    def _below(self, txn: Txn, prefix: bytes) -> list[Open]:
        found: list[Open] = []
        cursor = txn.cursor(db=self._opens)
        if cursor.set_range(prefix):
            for key, raw in cursor:
                if not key.startswith(prefix):
                    break
                found.append(_decode(key, raw))
        return found

    def _delete(self, txn: Txn, key: bytes) -> Open | None:
        raw = txn.pop(key, db=self._opens)
        if raw is None:
            return None
        row = _decode(key, raw)
        txn.delete(schema.U64.pack(row.ino) + key, db=self._inos)
        return row


def _key(connection: UUID, fh: int) -> bytes:
    return connection.bytes + schema.U64.pack(fh)


def _decode(key: bytes, raw: bytes) -> Open:
    return Open(UUID(bytes=key[:16]), schema.U64.unpack(key[16:])[0], *_ROW.unpack(raw))
