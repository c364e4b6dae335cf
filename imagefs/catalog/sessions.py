"""The table of sessions, what they acknowledged (T8) and what they hold."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable, Iterable
from typing import NamedTuple
from uuid import UUID

from imagefs.catalog import schema
from imagefs.catalog.counters import Counters
from imagefs.catalog.env import Environment, Txn
from imagefs.errors import NotFound


class SessionRow(NamedTuple):
    """One mount, REST server or command."""

    id: UUID
    kind: str
    """mount, rest or cli."""
    host: str
    boot: str
    ack: int
    """Generation up to which it has tailed the log and written its holds."""
    started_ns: int


class Sessions:
    """Each method is one transaction, or joins the thread's open one.

    A row counts until it is ended or reaped, however dead its process is. Only a process that could take the
    session's lock file may reap it: never by pid, never by time.
    """

    def __init__(self, env: Environment, counters: Counters, clock: Callable[[], int]) -> None:
        self._env = env
        self._counters = counters
        self._clock = clock
        self._sessions = env.table(schema.SESSIONS.name)
        self._holds = env.table(schema.HOLDS.name)
        self.on_end: Callable[[UUID], builtins.list[UUID]] = lambda _: []
        """Called inside the transaction that ends a session: clears it as sealer, returns the drafts."""
        self.on_join: Callable[[UUID], None] = lambda _: None
        """Called inside the transaction in which another worker follows in a session."""

    def start(self, session: UUID, kind: str, host: str, boot: str) -> int:
        """Adds the row, acknowledged up to now, and returns that generation; take the lock file first.

        A row that is there already (a mount's next worker joins its session) keeps what it has acknowledged.
        """
        with self._env.write() as txn:
            raw = txn.get(session.bytes, db=self._sessions)
            if raw is not None:
                self.on_join(session)
                return _row(session, raw).ack
            gen = self._counters.get("gen")
            self._put(txn, SessionRow(session, kind, host, boot, gen, self._clock()))
        return gen

    def ack(self, session: UUID, gen: int, holds: Iterable[UUID] = ()) -> None:
        """T8, in one transaction: adds a hold for each of these images, then acknowledges `gen`.

        `holds` are the deleted images that this session has open, or whose data it is putting on a store.
        Holds are only added here; `release_hold` removes them. NotFound when the session was reaped: stop
        writing.
        """
        with self._env.write() as txn:
            raw = txn.get(session.bytes, db=self._sessions)
            if raw is None:
                raise NotFound(f"Session {session} has been ended.")
            for image_id in holds:
                txn.put(_image_hold(image_id, session), b"", db=self._holds)
            row = _row(session, raw)
            if gen > row.ack:
                self._put(txn, SessionRow(row.id, row.kind, row.host, row.boot, gen, row.started_ns))

    def list(self) -> list[SessionRow]:
        """All sessions, dead ones that nobody has reaped yet included."""
        with self._env.read() as txn:
            return [_row(UUID(bytes=key), raw) for key, raw in txn.cursor(db=self._sessions)]

    def exists(self, session: UUID) -> bool:
        """Whether it has a row."""
        with self._env.read() as txn:
            return txn.get(session.bytes, db=self._sessions) is not None

    def acknowledged(self) -> int | None:
        """The generation that every session has acknowledged; None when there is no session."""
        return min((row.ack for row in self.list()), default=None)

    def acked(self, gen: int) -> bool:
        """Whether every session has acknowledged `gen`."""
        least = self.acknowledged()
        return least is None or least >= gen

    def held(self, image_id: UUID) -> bool:
        """Whether any session holds the image."""
        return self._any(b"i" + image_id.bytes)

    def pack_held(self, no: int) -> bool:
        """Whether any session holds the pack."""
        return self._any(b"p" + schema.U32.pack(no))

    def hold(self, image_id: UUID, session: UUID) -> None:
        """Keeps a deleted image from being finalised, and what its draft put on a store from being doomed."""
        with self._env.write() as txn:
            txn.put(_image_hold(image_id, session), b"", db=self._holds)

    def release_hold(self, image_id: UUID, session: UUID) -> None:
        """Takes a hold back; no error if there is none."""
        with self._env.write() as txn:
            txn.delete(_image_hold(image_id, session), db=self._holds)

    def holds(self, session: UUID) -> builtins.list[UUID]:
        """Images that this session holds."""
        with self._env.read() as txn:
            keys = txn.cursor(db=self._holds).iternext(keys=True, values=False)
            return [UUID(bytes=key[1:17]) for key in keys if key[:1] == b"i" and key[-16:] == session.bytes]

    def hold_pack(self, no: int, session: UUID) -> None:
        """Keeps a pack from being doomed."""
        with self._env.write() as txn:
            txn.put(_pack_hold(no, session), b"", db=self._holds)

    def release_pack(self, no: int, session: UUID) -> None:
        """Takes a pack's hold back; no error if there is none."""
        with self._env.write() as txn:
            txn.delete(_pack_hold(no, session), db=self._holds)

    def packs_held(self, session: UUID) -> builtins.list[int]:
        """Packs that this session holds."""
        with self._env.read() as txn:
            keys = txn.cursor(db=self._holds).iternext(keys=True, values=False)
            held = [key for key in keys if key[:1] == b"p" and key[-16:] == session.bytes]
        return [schema.U32.unpack(key[1:5])[0] for key in held]

    def end(self, session: UUID) -> builtins.list[UUID]:
        """The session is over: its row and holds go. Returns the drafts it was sealing, which have no
        sealer now."""
        with self._env.write() as txn:
            if not txn.delete(session.bytes, db=self._sessions):
                return []
            keys = txn.cursor(db=self._holds).iternext(keys=True, values=False)
            for key in [key for key in keys if key[-16:] == session.bytes]:
                txn.delete(key, db=self._holds)
            return self.on_end(session)

    def reap(self, session: UUID) -> builtins.list[UUID]:
        """`end` for a session whose lock file the caller could take."""
        return self.end(session)

    def _put(self, txn: Txn, row: SessionRow) -> None:
        value = {
            "kind": row.kind,
            "host": row.host,
            "boot": row.boot,
            "ack": row.ack,
            "started_ns": row.started_ns,
        }
        txn.put(row.id.bytes, json.dumps(value).encode(), db=self._sessions)

    def _any(self, prefix: bytes) -> bool:
        with self._env.read() as txn:
            cursor = txn.cursor(db=self._holds)
            return cursor.set_range(prefix) and cursor.key().startswith(prefix)


def _row(session: UUID, raw: bytes) -> SessionRow:
    return SessionRow(session, **json.loads(raw))


def _image_hold(image_id: UUID, session: UUID) -> bytes:
    return b"i" + image_id.bytes + session.bytes


def _pack_hold(no: int, session: UUID) -> bytes:
    return b"p" + schema.U32.pack(no) + session.bytes
