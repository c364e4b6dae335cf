"""The table of images: looking them up, listing, and every change of a record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID

from imagefs.catalog import entries, records, schema, steps
from imagefs.catalog.imagerows import ImageRows
from imagefs.catalog.log import Op
from imagefs.catalog.queries import Finder, Query
from imagefs.catalog.records import STATUSES, Attrs
from imagefs.errors import Exists, InvalidValue, NotFound, Stale
from imagefs.types import Image, Kind, Status

if TYPE_CHECKING:
    from imagefs.catalog.checkpoints import Checkpoints
    from imagefs.catalog.counters import Counters
    from imagefs.catalog.env import Environment
    from imagefs.catalog.log import Log
    from imagefs.catalog.maps import Maps
    from imagefs.catalog.quotas import Quotas
    from imagefs.catalog.usage import Usage

_DELETED = STATUSES.index(Status.DELETED)


class Images:
    """Each method is one transaction, or joins the thread's open one."""

    def __init__(
        self,
        env: Environment,
        counters: Counters,
        log: Log,
        maps: Maps,
        checkpoints: Checkpoints,
        clock: Callable[[], int],
        usage: Usage,
        quotas: Quotas,
    ) -> None:
        self._env = env
        self._counters = counters
        self._log = log
        self._maps = maps
        self._clock = clock
        self._rows = ImageRows(env, maps, checkpoints, usage, quotas)
        self._finder = Finder(env)
        self._images = env.table(schema.IMAGES.name)
        self._inos = env.table(schema.BY_INO.name)
        self._entries = env.table(schema.ENTRY.name)
        self._unlinked = env.table(schema.UNLINKED.name)
        self._created = env.table(schema.I_CREATED.name)

    # -- looking up --------------------------------------------------------------------------------

    def get(self, image_id: UUID, *, deleted: bool = False) -> Image:
        """The record. NotFound; deleted images, whose rows stay until finalised, only with `deleted`."""
        return records.decode(self._row(image_id, deleted))

    def attrs(self, image_id: UUID, *, deleted: bool = False) -> Attrs:
        """The record's header alone, about ten times cheaper than `get`. NotFound."""
        return records.attrs(self._row(image_id, deleted))

    def find(self, prefix: str) -> list[UUID]:
        """Ids that begin with `prefix` (hex digits; dashes do not matter), at most 100 of them."""
        digits = prefix.replace("-", "").lower()
        if not digits or len(digits) > 32 or set(digits) - set("0123456789abcdef"):
            return []
        found: list[UUID] = []
        with self._env.read() as txn:
            cursor = txn.cursor(db=self._images)
            if cursor.set_range(bytes.fromhex(digits.ljust(32, "0"))):
                for key, raw in cursor:
                    if not key.hex().startswith(digits) or len(found) == 100:
                        break
                    if records.attrs(raw).status_code != _DELETED:
                        found.append(UUID(bytes=key))
        return found

    def by_ino(self, ino: int, *, deleted: bool = False) -> tuple[UUID, Kind]:
        """Whose inode it is. Stale when no image has it (any more); deleted ones only with `deleted`."""
        with self._env.read() as txn:
            raw = txn.get(schema.U64.pack(ino), db=self._inos) if 0 < ino < 1 << 64 else None
            row = txn.get(raw[:16], db=self._images) if raw is not None else None
        if raw is None or row is None or (not deleted and records.attrs(row).status_code == _DELETED):
            raise Stale(f"No image has inode {ino} any more.")
        return UUID(bytes=raw[:16]), Kind(raw[16])

    def by_entry(self, entry: bytes) -> UUID | None:
        """The image that by-name/ shows under this entry."""
        if not 0 < len(entry) <= entries.ENTRY_MAX:
            return None
        with self._env.read() as txn:
            raw = txn.get(entry, db=self._entries)
        return UUID(bytes=raw) if raw is not None else None

    def named(self, name: str) -> list[UUID]:
        """Images with exactly this name, oldest first."""
        return self._finder.with_term(schema.I_NAME.name, schema.text(name))

    def with_status(self, status: Status) -> list[UUID]:
        """Images in this state, oldest first; deleted ones are in `unlinked`."""
        return self._finder.with_term(schema.I_STATUS.name, schema.text(status))

    def with_map(self, map_id: int) -> list[UUID]:
        """Images whose data is this map, oldest first; no deleted ones. Reads no record."""
        return self._finder.with_term(schema.I_MAP.name, schema.U64.pack(map_id))

    def query(self, query: Query) -> list[Image]:
        """One page of records. NotFound for a marker that is no image, InvalidValue for an unknown order."""
        return self._finder.page(query)

    def count(self) -> int:
        """Images that are not deleted."""
        with self._env.read() as txn:
            return txn.stat(db=self._created)["entries"]

    def walk(self, kind: Kind, after_ino: int = 0, limit: int = 1000) -> list[tuple[int, Attrs]]:
        """Up to `limit` (ino, header) with ino above `after_ino`, in inode order.

        DIRECTORY: every image that is not deleted. DATA: those that by-name/ shows (`Attrs.entry`). An
        image is listed once and in the same place however many others come and go.
        """
        found: list[tuple[int, Attrs]] = []
        unpack, attrs, want = schema.U64.unpack, records.attrs, int(kind)
        with self._env.read() as txn:
            cursor = txn.cursor(db=self._inos)
            if not cursor.set_range(schema.U64.pack(after_ino + 1)):
                return found
            for key, owner in cursor:
                if owner[16] != want:
                    continue
                head = attrs(txn.get(owner[:16], b"", db=self._images))
                if head.entry is None if want == Kind.DATA else head.status_code == _DELETED:
                    continue
                found.append((unpack(key)[0], head))
                if len(found) == limit:
                    break
        return found

    def unlinked(self) -> list[tuple[int, UUID]]:
        """(generation of its deletion, id) of deleted images whose rows are still there, oldest first."""
        with self._env.read() as txn:
            keys = txn.cursor(db=self._unlinked).iternext(keys=True, values=False)
            return [(schema.U64.unpack(key[:8])[0], UUID(bytes=key[8:])) for key in keys]

    def unlinked_at(self, image_id: UUID) -> int | None:
        """The generation of a deleted image's deletion; quick for the oldest ones, which are ended first."""
        with self._env.read() as txn:
            for key in txn.cursor(db=self._unlinked).iternext(keys=True, values=False):
                if key.endswith(image_id.bytes):
                    return int(schema.U64.unpack(key[:8])[0])
        return None

    # -- changing ----------------------------------------------------------------------------------

    def add(self, image: Image, op: Op = Op.CREATE) -> Image:
        """Makes the record and returns it with what the catalog gave it: dir_ino, data_ino (metadata.json is
        dir_ino + 1), its entry, and created_at, updated_at, atime, mtime, ctime where they were 0.

        Numbers and times that are not 0 are kept. Exists (id taken, also by a deleted image); NoSpace;
        NotFound for a map that is not there; InvalidValue.
        """
        self._env.require_space()
        steps.check(image)
        with self._env.write() as txn:
            if txn.get(image.id.bytes, db=self._images) is not None:
                raise Exists(f"There is an image {image.id} already.")
            for map_id in steps.maps_of(image):
                self._maps.info(map_id)
            dir_ino, data_ino = self._numbers(image)
            entry = self._rows.entry_for(txn, image, None)
            new = replace(self.timed(image), dir_ino=dir_ino, data_ino=data_ino, entry=entry)
            value = self._rows.store(txn, None, new)
            self._log.append(op, value, new, None)
        return new

    def update(self, image_id: UUID, change: Callable[[Image], Image], op: Op = Op.UPDATE) -> Image:
        """Replaces the record by `change(record)` and returns it.

        Indexes, by_ino, the entry and references of maps follow by difference. Another name gives a new entry
        (S6); pending_delete gives it up. When the draft ends here, or another one takes its place, what was
        reserved for it goes to trash and its checkpoint is dropped. updated_at follows Glance's fields,
        ctime all but the draft and atime, unless `change` sets them. An unchanged record writes nothing.

        NotFound; InvalidValue for a step that TRANSITIONS lacks or a record that cannot be: nothing is
        changed.
        """
        with self._env.write() as txn:
            old = self.get(image_id)
            new = change(old)
            if new == old:
                return old
            steps.check_step(old, new)
            for map_id in steps.maps_of(new):
                self._maps.info(map_id)
            new = steps.touched(old, new, self._clock())
            if (entry := self._rows.entry_for(txn, new, old)) != new.entry:
                new = replace(new, entry=entry)
            self._log.append(op, self._rows.store(txn, old, new), new, old)
        return new

    def rename(self, image_id: UUID, entry: bytes, victim: UUID | None = None) -> Image:
        """Gives the image exactly this entry and the name it spells; `victim`, who has it, is unlinked first.

        NotFound, Exists if an image that is not `victim` has the entry; InvalidValue, NotText or
        NameTooLong for an entry that spells no name. Whether the victim is protected is for the caller to
        check.
        """
        name = entries.decode(entry)
        with self._env.write() as txn:
            old = self.get(image_id)
            if old.entry == entry:
                return old
            owner = self.by_entry(entry)
            if owner is not None and owner != victim:
                raise Exists(f"Image {owner} has the entry {entry.decode()}.")
            if owner is not None:
                self.unlink(owner)
            new = steps.touched(old, replace(old, name=name), self._clock())
            new = replace(new, entry=entry if steps.shown(new) else None)
            self._log.append(Op.RENAME, self._rows.store(txn, old, new), new, old)
        return new

    def replace(self, image_id: UUID, victim: UUID) -> Image:
        """Unlinks `victim` and gives its entry and name to the image, in one transaction. InvalidValue if
        it has none."""
        with self._env.write():
            entry = self.get(victim).entry
            if entry is None:
                raise InvalidValue(f"Image {victim} has no entry in by-name/ to take.")
            return self.rename(image_id, entry, victim)

    def unlink(self, image_id: UUID) -> Image:
        """T4: deleted, out of all indexes, by_entry and listings at once. Returns the tombstone.

        The row, the map and what its draft reserved stay until finalised. NotFound.
        """
        with self._env.write() as txn:
            old = self.get(image_id)
            new = steps.touched(old, replace(old, status=Status.DELETED, entry=None), self._clock())
            gen = self._log.append(Op.DELETE, self._rows.store(txn, old, new), new, old)
            txn.put(schema.U64.pack(gen) + image_id.bytes, old.status.encode(), db=self._unlinked)
        return new

    def undelete(self, image_id: UUID) -> Image:
        """The reverse of `unlink` while the row is there: the status it had (pending_delete becomes active), an
        entry for its name by S6. NotFound; InvalidValue for one without sealed data."""
        with self._env.write() as txn:
            gen, old = self.unlinked_at(image_id), self.get(image_id, deleted=True)
            if gen is None:
                raise NotFound(f"Image {image_id} is not deleted.")
            if not old.sealed:
                raise InvalidValue(f"Image {image_id} had no sealed data when it was deleted.")
            key = schema.U64.pack(gen) + image_id.bytes
            # An earlier schema did not keep the status.
            was = Status((txn.get(key, db=self._unlinked) or Status.ACTIVE.encode()).decode())
            status = Status.ACTIVE if was == Status.PENDING_DELETE else was
            new = steps.touched(old, replace(old, status=status), self._clock())
            new = replace(new, entry=self._rows.entry_for(txn, new, None))
            # As a new one: whoever follows the log has forgotten it.
            self._log.append(Op.CREATE, self._rows.store(txn, old, new), new, None)
            txn.delete(key, db=self._unlinked)
        return new

    def remove(self, gen: int, image_id: UUID) -> None:
        """The end of a deleted image's row and of all that hangs on it; part of T5."""
        with self._env.write() as txn:
            old = self.get(image_id, deleted=True)
            self._rows.store(txn, old, None)
            txn.delete(schema.U64.pack(gen) + image_id.bytes, db=self._unlinked)

    def amend(self, image: Image) -> None:
        """Replaces a record as it is: no log row, no times. For a deleted image's draft."""
        with self._env.write() as txn:
            self._rows.store(txn, self.get(image.id, deleted=True), image)

    def restore(self, image: Image) -> Image:
        """Puts back a record of a catalog that was lost, as it was: no log row, its numbers and times kept; its
        entry too unless another image has it. Exists; NotFound for a map that is not there."""
        with self._env.write() as txn:
            if txn.get(image.id.bytes, db=self._images) is not None:
                raise Exists(f"Image {image.id} is there already.")
            for map_id in steps.maps_of(image):
                self._maps.info(map_id)
            entry = image.entry if image.entry is None or self.by_entry(image.entry) is None else None
            if entry is None:
                entry = self._rows.entry_for(txn, image, None)
            restored = replace(image, entry=entry)
            self._rows.store(txn, None, restored)
        return restored

    def free_entry(self, image: Image) -> bytes:
        """An entry that the image can have by S6, as if it had none. InvalidValue for one that shows none."""
        with self._env.write() as txn:
            entry = self._rows.entry_for(txn, image, None)
        if entry is None:
            raise InvalidValue(f"Image {image.id} is {image.status}: by-name/ does not show it.")
        return entry

    def note(self, image_id: UUID, op: Op) -> None:
        """A log row for something beside the record that changed; nothing for a deleted image."""
        with self._env.write():
            image = self.get(image_id, deleted=True)
            if image.status != Status.DELETED:
                self._log.append(op, records.encode(image), image, image)

    def timed(self, image: Image) -> Image:
        """The record with the present time where it has none."""
        return steps.timed(image, self._clock())

    def new_ino(self) -> int:
        """A number never given before, for a new draft's `data_ino`."""
        return self._counters.take("ino")

    # ------------------------------------------------------------------------------------------------

    def _row(self, image_id: UUID, deleted: bool) -> bytes:
        with self._env.read() as txn:
            raw = txn.get(image_id.bytes, db=self._images)
        if raw is None or (not deleted and records.attrs(raw).status_code == _DELETED):
            raise NotFound(f"There is no image {image_id}.")
        return raw

    def _numbers(self, image: Image) -> tuple[int, int]:
        """(dir_ino, data_ino): if not given, three in a row for directory, metadata.json and data."""
        if not image.dir_ino and not image.data_ino:
            first = self._counters.take("ino", 3)
            return first, first + 2
        dir_ino = image.dir_ino or self._counters.take("ino", 2)
        data_ino = image.data_ino or self.new_ino()
        self._counters.set("ino", max(self._counters.get("ino"), dir_ino + 2, data_ino + 1))
        return dir_ino, data_ino
