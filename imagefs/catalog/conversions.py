"""Giving sealed data another layout: what is stored for it, and the transaction that swaps the map."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from uuid import UUID, uuid4

from imagefs.blocks import maprows
from imagefs.catalog.counters import Counters
from imagefs.catalog.env import Environment
from imagefs.catalog.images import Images
from imagefs.catalog.log import Op
from imagefs.catalog.maps import Maps
from imagefs.catalog.packrows import PackDone, PackKind, PackState
from imagefs.catalog.packs import Packs
from imagefs.catalog.queries import Query
from imagefs.catalog.sessions import Sessions
from imagefs.errors import NotFound, PacksGone, SealCancelled
from imagefs.types import Image

_EVERY = 1 << 31


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """The map that takes the place of another one; both stand for the same bytes."""

    session: UUID
    sources: Collection[int]
    """The maps that go: all of equal bytes."""
    uuid: UUID
    """Of the map that comes, as `begin` gave it."""
    size: int
    """Bytes of the file."""
    kind: int
    layout: str
    rows: Sequence[tuple[int, bytes]]
    manifest: PackDone


class Conversions:
    """Each method is one transaction, or joins the thread's open one.

    What is reserved belongs to a session that was begun for the conversion alone: when it ends, by whatever
    death, the objects that no map names go to trash.
    """

    def __init__(
        self, env: Environment, counters: Counters, sessions: Sessions, packs: Packs, maps: Maps, images: Images
    ) -> None:
        self._env = env
        self._counters = counters
        self._sessions = sessions
        self._packs = packs
        self._maps = maps
        self._images = images

    def begin(self, session: UUID) -> tuple[UUID, int]:
        """T1 for the manifest: (uuid of the map to come, its pack number). NotFound when the session was
        ended."""
        uuid = uuid4()
        with self._env.write():
            self._require(session)
            return uuid, self._packs.reserve_named(session, PackKind.MANIFEST, uuid.bytes)

    def reserve(self, session: UUID, count: int = 16) -> list[tuple[int, bytes]]:
        """T1: `count` new (number, name16) of packs, pend. NotFound when the session was ended."""
        with self._env.write():
            self._require(session)
            return self._packs.reserve(session, count=count)

    def stored(self, session: UUID, packs: Sequence[PackDone]) -> None:
        """Records packs that are durable, so that they can be read before any map names them. SealCancelled
        when they are not the session's any more."""
        with self._env.write():
            self._require_pend(session, packs)
            self._packs.finished(packs)

    def commit(self, done: Conversion) -> list[Image]:
        """Swaps the map of every image that has one of the sources: references, pend to live, the old maps' to
        trash, the log rows. Returns the images.

        SealCancelled when no image has one any more, or the session was ended. PacksGone if packs that the
        map names are neither the session's nor live or trash: nothing is changed.
        """
        with self._env.write():
            if not self._with_maps(done.sources):
                raise SealCancelled(f"No image has any of the maps {sorted(done.sources)} any more.")
            self._require_pend(done.session, [done.manifest])
            named = set(maprows.packs_of(done.rows))
            self._require_usable(done.session, named)
            self._packs.finished([done.manifest])
            map_id = self._counters.take("map")
            self._maps.put_rows(map_id, done.rows)
            self._maps.create(map_id, done.uuid, done.size, sorted(named), done.kind)
            return self.adopt(done.sources, map_id, done.layout)

    def adopt(self, sources: Collection[int], map_id: int, layout: str) -> list[Image]:
        """Gives every image that has one of the sources another map of the same bytes. NotFound for that one."""
        with self._env.write():
            uuid = self._maps.info(map_id).uuid
            return [
                self._images.update(
                    image.id, lambda now: replace(now, map_id=map_id, map_uuid=uuid, layout=layout), Op.UPDATE
                )
                for image in self._with_maps(sources)
            ]

    def _with_maps(self, map_ids: Collection[int]) -> list[Image]:
        return [image for no in sorted(map_ids) for image in self._images.query(Query(map_id=no, limit=_EVERY))]

    def _require(self, session: UUID) -> None:
        if not self._sessions.exists(session):
            raise NotFound(f"Session {session} has been ended.")

    def _require_pend(self, session: UUID, packs: Sequence[PackDone]) -> None:
        for done in packs:
            row = self._packs.find(done.no)
            if row is None or row.state != PackState.PEND or row.owner != session:
                raise SealCancelled(f"Pack {done.no} is not reserved for this conversion any more.")

    def _require_usable(self, session: UUID, named: set[int]) -> None:
        gone = set()
        for no in named:
            row = self._packs.find(no)
            own = row is not None and row.state == PackState.PEND and row.owner == session and row.done
            if row is None or not (own or row.state in (PackState.LIVE, PackState.TRASH)):
                gone.add(no)
        if gone:
            raise PacksGone(frozenset(gone))
