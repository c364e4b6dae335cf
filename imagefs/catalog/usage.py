"""What is stored, counted as it changes: `status` and quotas read a few rows, whatever the catalog holds.

Every figure here follows from other tables by scan (`counted`), which is how an older catalog gets them and how
fsck checks them. The exception is what a map added (`added`): that depends on what was there when it was sealed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from imagefs.blocks import maprows
from imagefs.catalog import records, schema
from imagefs.catalog.packrows import PackKind, PackRow, PackState, Totals
from imagefs.catalog.packrows import decode as decode_pack
from imagefs.types import Image, Status

if TYPE_CHECKING:
    from imagefs.catalog.env import Environment, Txn

_STATE, _STATUS, _OWNER, _USED, _ADDED, _ALL = b"p", b"s", b"o", b"u", b"a", b"t"
_SURVEY, _FILLED = b"survey", b"filled"
_COUNT, _OBJECTS, _FIGURES = Struct(">q"), Struct(">qq"), Struct(">qqqq")
_COUNTED = (Status.ACTIVE, Status.DEACTIVATED)


@dataclass(frozen=True, slots=True)
class Figures:
    """What sealed images come to that are neither deleted nor pending_delete; sizes in bytes."""

    images: int = 0
    logical: int = 0
    """Their sizes as readers see them."""
    allocated: int = 0
    """Their blocks that are not zeros."""
    unique: int = 0
    """What their maps added to the store when they were sealed, each map once for its owner; of all owners
    together: the live objects on the store."""


@dataclass(frozen=True, slots=True)
class Survey:
    """Figures that only a look at every map tells, and when that was. Bytes on the store."""

    generation: int
    time_ns: int
    unique: int
    """Of blocks that one image alone has."""
    shared: int
    """Of blocks that several images have."""
    unused: int
    """Of blocks in live packs that no image has: gc frees them when deleted images are kept no longer, or when it
    rewrites these packs."""
    took_ms: int
    """How long it took."""


class Charge(NamedTuple):
    """What one image counts for."""

    owner: str | None
    map_id: int
    size: int
    allocated: int


def charge_of(image: Image | None) -> Charge | None:
    """What an image counts for; None before it is sealed and from its deletion on."""
    if image is None or not image.map_id or image.status not in _COUNTED:
        return None
    return Charge(image.owner, image.map_id, image.size or 0, image.allocated)


class Usage:
    """Reading is one transaction a call; changes are parts of others' write transactions."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._rows = env.table(schema.USAGE.name)

    # -- reading -----------------------------------------------------------------------------------

    def totals(self) -> Totals:
        """Objects and bytes on the store by state."""
        found: dict[str, int] = {}
        with self._env.read() as txn:
            for state in PackState:
                name = state.name.lower()
                found[name], found[f"{name}_bytes"] = _OBJECTS.unpack(
                    txn.get(_STATE + bytes([state]), bytes(16), db=self._rows)
                )
        return Totals(**found)

    def by_status(self) -> dict[Status, int]:
        """Images that are not deleted by their state, states without images left out."""
        with self._env.read() as txn:
            counts = {status: self._count(txn, _status_key(status)) for status in Status}
        return {status: count for status, count in counts.items() if count}

    def of_owner(self, owner: str | None) -> Figures:
        """The sealed images of one project; None: of those that have none."""
        with self._env.read() as txn:
            return self._figures(txn, _OWNER + schema.text(owner))

    def of_all(self) -> Figures:
        """All sealed images."""
        with self._env.read() as txn:
            return replace(self._figures(txn, _ALL), unique=self.totals().live_bytes)

    def added(self, map_id: int) -> int:
        """Bytes of the objects that came to the store with this map: shared ones count for the first map."""
        with self._env.read() as txn:
            return self._count(txn, _ADDED + schema.U64.pack(map_id))

    def charged(self, owner: str | None, map_id: int) -> bool:
        """Whether an image of this project has the map already."""
        with self._env.read() as txn:
            return self._count(txn, _used_key(owner, map_id)) > 0

    def survey(self) -> Survey | None:
        """The last survey."""
        with self._env.read() as txn:
            raw = txn.get(_SURVEY, db=self._rows)
        return Survey(**json.loads(raw)) if raw else None

    # -- changing ----------------------------------------------------------------------------------

    def put_survey(self, survey: Survey) -> None:
        """Keeps it as the last one."""
        value = json.dumps({field.name: getattr(survey, field.name) for field in fields(survey)})
        with self._env.write() as txn:
            txn.put(_SURVEY, value.encode(), db=self._rows)

    def pack_changed(self, old: PackRow | None, new: PackRow | None) -> None:
        """A row of `packs` came, changed or went."""
        before, after = (_objects(row) for row in (old, new))
        if before == after:
            return
        with self._env.write() as txn:
            for objects, sign in ((before, -1), (after, 1)):
                if objects is not None:
                    key = _STATE + bytes([objects[0]])
                    count, size = _OBJECTS.unpack(txn.get(key, bytes(16), db=self._rows))
                    txn.put(key, _OBJECTS.pack(count + sign, size + sign * objects[1]), db=self._rows)

    def map_created(self, map_id: int, packs: Iterable[PackRow]) -> None:
        """A map came; `packs` are the rows that it names, as they were before it counted them."""
        with self._env.write() as txn:
            added = sum(pack.stored for pack in packs if not pack.refs)
            txn.put(_ADDED + schema.U64.pack(map_id), _COUNT.pack(added), db=self._rows)

    def map_removed(self, map_id: int) -> None:
        """A map went; no image has it."""
        with self._env.write() as txn:
            txn.delete(_ADDED + schema.U64.pack(map_id), db=self._rows)

    def image_changed(self, old: Image | None, new: Image | None) -> None:
        """A record came, changed or went."""
        with self._env.write() as txn:
            before, after = _listed(old), _listed(new)
            if before != after:
                for status, sign in ((before, -1), (after, 1)):
                    if status is not None:
                        self._add(txn, _status_key(status), sign)
            if (charge := charge_of(old)) != charge_of(new):
                self._charge(txn, charge, -1)
                self._charge(txn, charge_of(new), 1)

    def fill(self) -> None:
        """Counts everything, where nothing was counted yet: the catalog comes from an earlier imagefs."""
        with self._env.read() as txn:
            if txn.get(_FILLED, db=self._rows) is not None:
                return
        self.count_again()

    def count_again(self) -> None:
        """Counts everything anew, in one transaction: a few seconds for 100,000 images."""
        with self._env.write() as txn:
            txn.drop(self._rows, delete=False)
            for key, value in counted(self._env, txn).items():
                txn.put(key, value, db=self._rows)
            txn.put(_FILLED, b"1", db=self._rows)

    # ------------------------------------------------------------------------------------------------

    def _charge(self, txn: Txn, charge: Charge | None, sign: int) -> None:
        if charge is None:
            return
        key = _used_key(charge.owner, charge.map_id)
        images = self._add(txn, key, sign)
        first_or_last = images == (1 if sign > 0 else 0)
        unique = self._count(txn, _ADDED + schema.U64.pack(charge.map_id)) if first_or_last else 0
        for name in (_OWNER + schema.text(charge.owner), _ALL):
            now = self._figures(txn, name)
            new = (now.images + sign, now.logical + sign * charge.size, now.allocated + sign * charge.allocated)
            if any(new):
                txn.put(name, _FIGURES.pack(*new, now.unique + sign * unique), db=self._rows)
            else:
                txn.delete(name, db=self._rows)

    def _figures(self, txn: Txn, key: bytes) -> Figures:
        return Figures(*_FIGURES.unpack(txn.get(key, bytes(32), db=self._rows)))

    def _count(self, txn: Txn, key: bytes) -> int:
        count: int = _COUNT.unpack(txn.get(key, bytes(8), db=self._rows))[0]
        return count

    def _add(self, txn: Txn, key: bytes, delta: int) -> int:
        count = self._count(txn, key) + delta
        if count:
            txn.put(key, _COUNT.pack(count), db=self._rows)
        else:
            txn.delete(key, db=self._rows)
        return count


def counted(env: Environment, txn: Txn, *, added: bool = False) -> dict[bytes, bytes]:
    """The rows that packs, maps and images make, from a scan of them; rows of zeros are left out.

    What each map added is as it was counted, with `added`; else as if all maps had been sealed in the order of
    their numbers.
    """
    sums: dict[bytes, list[int]] = {}

    def add(key: bytes, *deltas: int) -> None:
        row = sums.setdefault(key, [0] * len(deltas))
        row[:] = [have + delta for have, delta in zip(row, deltas, strict=True)]

    packs = {row.no: row for row in (decode_pack(k, v) for k, v in txn.cursor(db=env.table(schema.PACKS.name)))}
    for row in packs.values():
        if (objects := _objects(row)) is not None:
            add(_STATE + bytes([objects[0]]), 1, objects[1])
    for map_id, size in _kept(env, txn) if added else _added(env, txn, packs):
        add(_ADDED + schema.U64.pack(map_id), size)
    for _, raw in txn.cursor(db=env.table(schema.IMAGES.name)):
        image = records.decode(raw)
        if (status := _listed(image)) is not None:
            add(_status_key(status), 1)
        if (charge := charge_of(image)) is not None:
            key = _used_key(charge.owner, charge.map_id)
            unique = 0 if key in sums else sums.get(_ADDED + schema.U64.pack(charge.map_id), [0])[0]
            add(key, 1)
            for name in (_OWNER + schema.text(charge.owner), _ALL):
                add(name, 1, charge.size, charge.allocated, unique)
    structs = {1: _COUNT, 2: _OBJECTS, 4: _FIGURES}
    return {key: structs[len(row)].pack(*row) for key, row in sums.items() if any(row)}


def _added(env: Environment, txn: Txn, packs: dict[int, PackRow]) -> Iterator[tuple[int, int]]:
    """(map, bytes of the objects that no map with a lower number names)."""
    manifests = {row.name16: row.stored for row in packs.values() if row.kind == PackKind.MANIFEST}
    taken: set[int] = set()
    rows = txn.cursor(db=env.table(schema.MAPSEG.name))
    for key, raw in txn.cursor(db=env.table(schema.MAPS.name)):
        named: set[int] = set()
        if rows.set_range(key):
            for quarter, value in rows:
                if not quarter.startswith(key):
                    break
                named |= maprows.packs_of([(0, value)]).keys()
        new = named - taken
        taken |= new
        stored = sum(packs[no].stored for no in new if no in packs)
        yield schema.U64.unpack(key)[0], stored + manifests.get(schema.MAP.unpack(raw)[3], 0)


def _kept(env: Environment, txn: Txn) -> Iterator[tuple[int, int]]:
    """(map, what it added) as it was counted."""
    for key, _ in txn.cursor(db=env.table(schema.MAPS.name)):
        value = txn.get(_ADDED + key, bytes(_COUNT.size), db=env.table(schema.USAGE.name))
        yield schema.U64.unpack(key)[0], _COUNT.unpack(value)[0]


def difference(env: Environment, txn: Txn) -> Iterator[tuple[str, str]]:
    """(figure, what it says and what is there) of every row that a scan does not bear out."""
    wanted = counted(env, txn, added=True)
    there = {key: value for key, value in txn.cursor(db=env.table(schema.USAGE.name)) if any(value)}
    for key in (_SURVEY, _FILLED):
        there.pop(key, None)
    for key in sorted(wanted.keys() | there.keys()):
        if wanted.get(key) != there.get(key):
            yield repr(key), f"counts {there.get(key, b'').hex() or 0}, there are {wanted.get(key, b'').hex() or 0}"


def _objects(row: PackRow | None) -> tuple[PackState, int] | None:
    """What counts of an object: nothing before it is known to be on the store."""
    return (row.state, row.stored) if row is not None and row.done else None


def _listed(image: Image | None) -> Status | None:
    return image.status if image is not None and image.status != Status.DELETED else None


def _status_key(status: Status) -> bytes:
    return _STATUS + bytes([records.STATUSES.index(status)])


def _used_key(owner: str | None, map_id: int) -> bytes:
    return _USED + schema.text(owner) + schema.U64.pack(map_id)
