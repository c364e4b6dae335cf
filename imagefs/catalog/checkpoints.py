"""The rows of `seals`: how far the sealing of a draft has come."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NamedTuple
from uuid import UUID, uuid4

from imagefs.catalog import records, schema
from imagefs.catalog.counters import Counters
from imagefs.catalog.env import Environment
from imagefs.catalog.maps import Maps
from imagefs.catalog.packrows import PackKind
from imagefs.catalog.packs import Packs
from imagefs.catalog.sessions import Sessions
from imagefs.types import Cookie, Draft


class Checkpoint(NamedTuple):
    """Everything before `next_offset` of the content `cookie` is in the rows of a provisional map."""

    session: UUID
    """The last claimant."""
    map_id: int
    map_uuid: UUID
    manifest_no: int
    first_no: int
    """Pack numbers from here on were reserved since the last claim."""
    cookie: Cookie | None = None
    next_offset: int = 0


class Checkpoints:
    """Each method is one transaction, or joins the thread's open one."""

    def __init__(
        self,
        env: Environment,
        counters: Counters,
        sessions: Sessions,
        packs: Packs,
        maps: Maps,
        new_uuid: Callable[[], UUID] = uuid4,
    ) -> None:
        self._env = env
        self._counters = counters
        self._sessions = sessions
        self._packs = packs
        self._maps = maps
        self._new_uuid = new_uuid
        self._rows = env.table(schema.SEALS.name)

    def get(self, image_id: UUID) -> Checkpoint | None:
        """The image's row, if any."""
        with self._env.read() as txn:
            raw = txn.get(image_id.bytes, db=self._rows)
        return decode(raw) if raw is not None else None

    def put(self, image_id: UUID, row: Checkpoint) -> None:
        """Sets the image's row."""
        with self._env.write() as txn:
            txn.put(image_id.bytes, encode(row), db=self._rows)

    def claim(self, image_id: UUID, session: UUID) -> Checkpoint:
        """The row for a sealer that begins or goes on: what is reserved by now may have been put by
        another."""
        with self._env.write():
            row = self.get(image_id) or self.begin(image_id, session)
            row = row._replace(session=session, first_no=self._counters.get("pack"))
            self.put(image_id, row)
        return row

    def begin(self, image_id: UUID, session: UUID) -> Checkpoint:
        """A row at offset 0, with a new map and a reserved manifest; what an older row had checkpointed is
        dropped."""
        with self._env.write():
            old = self.get(image_id)
            if old is not None:
                self._maps.drop_rows(old.map_id)
                self._packs.discard([old.manifest_no])
            first = old.first_no if old is not None else 0
            uuid = self._new_uuid()
            manifest_no = self._packs.reserve_named(image_id, PackKind.MANIFEST, uuid.bytes)
            row = Checkpoint(session, self._counters.take("map"), uuid, manifest_no, first)
            self.put(image_id, row)
        return row

    def remove(self, image_id: UUID) -> None:
        """Drops the row alone: its map has become the image's."""
        with self._env.write() as txn:
            txn.delete(image_id.bytes, db=self._rows)

    def end_draft(self, image_id: UUID, draft: Draft) -> None:
        """A draft ends unsealed: the checkpoint and its rows go, everything that was reserved goes to trash.

        A sealer may be putting a pack at this moment: its session holds them until it abandons the sealing,
        so that no delete comes before its put.
        """
        with self._env.write():
            row = self.get(image_id)
            if row is not None:
                self._maps.drop_rows(row.map_id)
                self.remove(image_id)
            nos = [pack.no for pack in self._packs.pending(image_id)]
            if draft.sealer is not None and self._sessions.exists(draft.sealer):
                for no in nos:
                    self._sessions.hold_pack(no, draft.sealer)
            self._packs.discard(nos)

    def let_go(self, image_id: UUID, session: UUID) -> None:
        """The sealer has stopped: packs that `end_draft` made its session hold are released."""
        with self._env.write():
            for no in self._sessions.packs_held(session):
                pack = self._packs.find(no)
                if pack is None or pack.owner == image_id:
                    self._sessions.release_pack(no, session)

    def images(self) -> list[UUID]:
        """Images that have a row."""
        with self._env.read() as txn:
            return [UUID(bytes=key) for key in txn.cursor(db=self._rows).iternext(keys=True, values=False)]


def encode(row: Checkpoint) -> bytes:
    """The value of a row of `seals`."""
    value = {
        "session": str(row.session),
        "map": row.map_id,
        "uuid": str(row.map_uuid),
        "manifest": row.manifest_no,
        "first": row.first_no,
        "cookie": row.cookie and records.cookie_out(row.cookie),
        "next": row.next_offset,
    }
    return json.dumps(value).encode()


def decode(raw: bytes) -> Checkpoint:
    """The row of a value of `seals`."""
    value = json.loads(raw)
    cookie = Cookie(*value["cookie"]) if value["cookie"] else None
    return Checkpoint(
        UUID(value["session"]),
        value["map"],
        UUID(value["uuid"]),
        value["manifest"],
        value["first"],
        cookie,
        value["next"],
    )
