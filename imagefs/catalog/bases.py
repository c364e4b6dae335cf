"""What drafts take from maps: durable rows in the catalog, and the rows as they are in this boot.

A write to a draft changes them at every block that it overwrites first. That may not cost a durable commit
each time, must survive SIGKILL, and must not be on the disk before the bytes are that were written: otherwise
a power cut would leave zeros where the map's bytes were. So there are two: `LiveBases` in an environment
without sync that counts for this boot only, and `Bases` in the catalog, brought up to date after each sync of
the staging file.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from typing import NamedTuple
from uuid import UUID

from imagefs.catalog import parts, schema
from imagefs.catalog.env import Environment
from imagefs.catalog.maps import Maps
from imagefs.catalog.parts import MOST, Part

LIVE_TABLES = ("base", "base_boot")
_STATE = Struct(">Q")


class Based(NamedTuple):
    """A draft, ended or not, that refers to maps."""

    image_id: UUID
    gen: int
    ino: int
    """Its inode number: who has it open may still be reading the maps."""


class Bases:
    """Parts and references of maps, durable. Each method is one transaction, or joins the thread's open one."""

    def __init__(self, env: Environment, maps: Maps) -> None:
        self._env = env
        self._maps = maps
        self._rows = env.table(schema.BASE.name)
        self._refs = env.table(schema.BASE_MAP.name)

    def refer(self, image_id: UUID, gen: int, ino: int, map_ids: Iterable[int]) -> None:
        """Adds a reference to each of these maps that the draft does not refer to yet. NotFound (a map), NoSpace."""
        self._env.require_space()
        draft = parts.owner(image_id, gen)
        with self._env.write() as txn:
            for map_id in sorted(set(map_ids) - self.referred(image_id, gen)):
                self._maps.use(map_id)
                txn.put(draft + schema.U64.pack(map_id), schema.U64.pack(ino), db=self._refs)

    def referred(self, image_id: UUID, gen: int) -> set[int]:
        """The maps that the draft refers to."""
        draft = parts.owner(image_id, gen)
        found: set[int] = set()
        with self._env.read() as txn:
            cursor = txn.cursor(db=self._refs)
            if cursor.set_range(draft):
                for key in cursor.iternext(keys=True, values=False):
                    if not key.startswith(draft):
                        break
                    found.add(schema.U64.unpack_from(key, len(draft))[0])
        return found

    def find(self, image_id: UUID, gen: int, low: int = 0, high: int = MOST) -> list[Part]:
        """The draft's parts between two blocks as they were when it was last synced."""
        with self._env.read() as txn:
            return parts.find(txn, self._rows, parts.owner(image_id, gen), low, high)

    def put(self, image_id: UUID, gen: int, changed: Iterable[tuple[int, int, list[Part]]]) -> None:
        """After a sync of the staging file: what there is between blocks `low` and `high`, for each of them.

        Writes nothing where that is so already.
        """
        draft = parts.owner(image_id, gen)
        with self._env.write() as txn:
            for low, high, found in changed:
                parts.replace(txn, self._rows, draft, low, high, found)

    def release(self, image_id: UUID, gen: int) -> bool:
        """Ends references to maps of which no part is left; whether the draft still refers to any."""
        draft = parts.owner(image_id, gen)
        with self._env.write() as txn:
            used = {part.map_id for part in self.find(image_id, gen)}
            for map_id in self.referred(image_id, gen) - used:
                txn.delete(draft + schema.U64.pack(map_id), db=self._refs)
                self._maps.release(map_id)
        return bool(used)

    def drop(self, image_id: UUID, gen: int) -> None:
        """Ends all of it: the draft has ended and nobody has it open."""
        with self._env.write() as txn:
            parts.drop(txn, self._rows, parts.owner(image_id, gen))
            self.release(image_id, gen)

    def drafts(self) -> list[Based]:
        """Every draft that refers to a map."""
        found: dict[tuple[UUID, int], Based] = {}
        with self._env.read() as txn:
            for key, value in txn.cursor(db=self._refs):
                draft = parts.owner_of(key)
                found[draft] = Based(*draft, schema.U64.unpack(value)[0])
        return [*found.values()]


class LiveBases:
    """The parts as they are, for every process of this boot. Survives SIGKILL, not a reboot."""

    def __init__(self, env: Environment, boot: str) -> None:
        """In an environment without sync that has LIVE_TABLES."""
        self._env = env
        self._boot = boot.encode()
        self._rows = env.table("base")
        self._states = env.table("base_boot")

    def load(self, image_id: UUID, gen: int, synced: list[Part]) -> None:
        """Begins with what the catalog says, unless the rows of this boot are there."""
        draft = parts.owner(image_id, gen)
        with self._env.write() as txn:
            if not self.loaded(image_id, gen):
                parts.drop(txn, self._rows, draft)
                parts.replace(txn, self._rows, draft, 0, MOST, synced)
                txn.put(draft, _STATE.pack(0) + self._boot, db=self._states)

    def loaded(self, image_id: UUID, gen: int) -> bool:
        """Whether the rows of this boot are there."""
        with self._env.read() as txn:
            raw = txn.get(parts.owner(image_id, gen), b"", db=self._states)
        return raw[_STATE.size :] == self._boot

    def changes(self, image_id: UUID, gen: int) -> int:
        """Grows with every change of the draft's parts in this boot; 0 when it never had any."""
        with self._env.read() as txn:
            raw = txn.get(parts.owner(image_id, gen), db=self._states)
        return _STATE.unpack_from(raw)[0] if raw is not None else 0

    def find(self, image_id: UUID, gen: int, low: int = 0, high: int = MOST) -> list[Part]:
        """The draft's parts between two blocks, cut to them."""
        with self._env.read() as txn:
            return parts.find(txn, self._rows, parts.owner(image_id, gen), low, high)

    def replace(self, image_id: UUID, gen: int, low: int, high: int, found: Iterable[Part] = ()) -> None:
        """Puts these parts in the place of what there is between two blocks. NoSpace."""
        draft = parts.owner(image_id, gen)
        with self._env.write() as txn:
            if parts.replace(txn, self._rows, draft, low, high, found):
                raw = txn.get(draft, _STATE.pack(0) + self._boot, db=self._states)
                count = _STATE.unpack_from(raw)[0] + 1
                txn.put(draft, _STATE.pack(count) + raw[_STATE.size :], db=self._states)

    def drop(self, image_id: UUID, gen: int) -> None:
        """Removes all of a draft that has ended."""
        draft = parts.owner(image_id, gen)
        with self._env.write() as txn:
            parts.drop(txn, self._rows, draft)
            txn.delete(draft, db=self._states)
