"""The one place that writes image records, with all that follows from a record: index rows, inode numbers,
the entry in by-name/, references of maps, the end of a draft. Everything is kept up by difference."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from imagefs.catalog import entries, records, schema
from imagefs.catalog.checkpoints import Checkpoints
from imagefs.catalog.env import Environment, Txn
from imagefs.catalog.indexes import Indexes
from imagefs.catalog.maps import Maps
from imagefs.catalog.quotas import Quotas
from imagefs.catalog.steps import maps_of, shown
from imagefs.catalog.usage import Usage
from imagefs.errors import Exists
from imagefs.types import Image, Kind


class ImageRows:
    """Used inside a write transaction."""

    def __init__(self, env: Environment, maps: Maps, checkpoints: Checkpoints, usage: Usage, quotas: Quotas) -> None:
        self._maps = maps
        self._checkpoints = checkpoints
        self._usage = usage
        self._quotas = quotas
        self._indexes = Indexes(env)
        self._images = env.table(schema.IMAGES.name)
        self._inos = env.table(schema.BY_INO.name)
        self._entries = env.table(schema.ENTRY.name)

    def store(self, txn: Txn, old: Image | None, new: Image | None) -> bytes:
        """Puts `new` in the place of `old`; None for a row that comes or goes. Returns the row's value.

        NotText or InvalidValue for a record that cannot be written, QuotaExceeded for one that may not: nothing
        is.
        """
        value = records.encode(new) if new is not None else b""
        self._quotas.admit(old, new)
        self._usage.image_changed(old, new)
        if new is not None:
            txn.put(new.id.bytes, value, db=self._images)
        elif old is not None:
            txn.delete(old.id.bytes, db=self._images)
        self._indexes.change(txn, old, new)
        before, after = _places(old), _places(new)
        for ino in before.inos.keys() - after.inos.keys():
            txn.delete(schema.U64.pack(ino), db=self._inos)
        for ino in after.inos.keys() - before.inos.keys():
            txn.put(schema.U64.pack(ino), after.inos[ino], db=self._inos)
        if before.entry != after.entry:
            if before.entry is not None:
                txn.delete(before.entry, db=self._entries)
            if after.entry is not None and new is not None:
                txn.put(after.entry, new.id.bytes, db=self._entries)
        # References are added before any is taken: a draft that becomes its base map keeps it alive.
        for map_id in (after.maps - before.maps).elements():
            self._maps.use(map_id)
        for map_id in (before.maps - after.maps).elements():
            self._maps.release(map_id)
        if old is not None and old.draft is not None and (new is None or _gen(new) != old.draft.gen):
            self._checkpoints.end_draft(old.id, old.draft)
        return value

    def entry_for(self, txn: Txn, new: Image, old: Image | None) -> bytes | None:
        """The entry by S6: kept while the name is, else the first spelling that is free."""
        if not shown(new):
            return None
        if old is not None and old.entry is not None and old.name == new.name:
            return old.entry
        spelt = entries.encode(new.name or "")
        for digits in (0, 8, 16, 32):
            entry = entries.disambiguated(spelt, new.id, digits) if digits else spelt
            if len(entry) <= entries.ENTRY_MAX:
                owner = txn.get(entry, db=self._entries)
                if owner is None or owner == new.id.bytes:
                    return entry
        raise Exists(f"Every entry for the name of image {new.id} is taken.")


@dataclass(frozen=True, slots=True)
class _Places:
    """What besides the indexes a record stands in."""

    inos: dict[int, bytes]
    entry: bytes | None
    maps: Counter[int]


def _places(image: Image | None) -> _Places:
    if image is None:
        return _Places({}, None, Counter())
    kinds = {image.dir_ino: Kind.DIRECTORY, image.data_ino: Kind.DATA}
    inos = {ino: image.id.bytes + bytes([kind]) for ino, kind in kinds.items()}
    return _Places(inos, image.entry, Counter(maps_of(image)))


def _gen(image: Image) -> int:
    return image.draft.gen if image.draft else 0
