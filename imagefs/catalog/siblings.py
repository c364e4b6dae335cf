"""Temporary files beside `data` (rsync, editors) that a rename may make the draft (S6)."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple
from uuid import UUID

from imagefs.catalog import records, schema
from imagefs.catalog.env import Environment, Txn
from imagefs.catalog.images import Images
from imagefs.catalog.log import Op
from imagefs.catalog.maps import Maps
from imagefs.errors import Exists, NotFound, Sealed, Stale, TooMany
from imagefs.types import Draft, Image, Kind, Status

MOST = 8
"""For one image: rsync and editors need one or two at a time."""
_KEPT = (
    "disk_format",
    "container_format",
    "visibility",
    "owner",
    "min_disk",
    "min_ram",
    "protected",
    "os_hidden",
)
"""Fields that the image takes from a sibling where they were set on it."""


class Sibling(NamedTuple):
    """One temporary file."""

    name: bytes
    """File name in images/<id>/."""
    record: Image
    """What was set on it so far, as if it were the image: draft, mode, owner, times, attributes, tags.
    `record.id` is the image's; `record.data_ino` and `record.draft` are its own."""

    @property
    def ino(self) -> int:
        """Its inode number, which it keeps when it becomes the draft."""
        return self.record.data_ino

    @property
    def gen(self) -> int:
        """Names its staging file: staging/<image id>.<gen>."""
        return self.record.draft.gen if self.record.draft else 0


class Siblings:
    """Each method is one transaction, or joins the thread's open one. At most 8 for an image; not in log
    objects.

    A change of the set of an image's siblings writes a log row of the image, so that other mounts drop their
    listing of its directory; a change of one sibling's record does not.
    """

    def __init__(self, env: Environment, images: Images, maps: Maps) -> None:
        self._env = env
        self._images = images
        self._maps = maps
        self._rows = env.table(schema.SIBLING.name)
        self._inos = env.table(schema.BY_INO.name)

    def get(self, image_id: UUID, name: bytes) -> Sibling | None:
        """The image's sibling of this name."""
        with self._env.read() as txn:
            raw = txn.get(image_id.bytes + name, db=self._rows) if len(name) <= 255 else None
        return Sibling(name, records.decode(raw)) if raw is not None else None

    def by_ino(self, ino: int) -> Sibling:
        """Stale when there is none with this inode, or its image is deleted."""
        with self._env.read() as txn:
            image_id, kind = self._images.by_ino(ino)
            raw = txn.get(schema.U64.pack(ino), b"", db=self._inos)
            sibling = self.get(image_id, raw[17:]) if kind == Kind.SIBLING else None
        if sibling is None:
            raise Stale(f"No temporary file has inode {ino} any more.")
        return sibling

    def list(self, image_id: UUID) -> list[Sibling]:
        """An image's siblings by name."""
        found: list[Sibling] = []
        with self._env.read() as txn:
            cursor = txn.cursor(db=self._rows)
            if cursor.set_range(image_id.bytes):
                for key, raw in cursor:
                    if not key.startswith(image_id.bytes):
                        break
                    found.append(Sibling(key[16:], records.decode(raw)))
        return found

    def add(self, image_id: UUID, name: bytes, record: Image) -> Sibling:
        """A new one with an inode and a draft generation of its own; the rest is from `record`.

        Exists, TooMany, NotFound (the image), NoSpace.
        """
        self._env.require_space()
        with self._env.write() as txn:
            there = self.list(image_id)
            if any(one.name == name for one in there):
                raise Exists(f"Image {image_id} has a file {name.decode()} already.")
            if len(there) >= MOST:
                raise TooMany(f"Image {image_id} has {MOST} temporary files already.")
            gen = self._images.get(image_id).draft_gen + 1
            draft = replace(record.draft or Draft(gen=gen), gen=gen)
            new = replace(
                self._images.timed(record), id=image_id, status=Status.SAVING, draft=draft,
                data_ino=self._images.new_ino(),
            )  # fmt: skip
            self._put(txn, name, None, new)
            self._images.update(image_id, lambda image: replace(image, draft_gen=gen), Op.SIBLING)
        return Sibling(name, new)

    def update(self, image_id: UUID, name: bytes, change: Callable[[Image], Image]) -> Sibling:
        """Replaces its record by `change(record)`. NotFound."""
        with self._env.write() as txn:
            old = self._existing(image_id, name)
            new = change(old.record)
            if new != old.record:
                new = replace(new, id=image_id, data_ino=old.ino)
                self._put(txn, name, old.record, new)
        return Sibling(name, new)

    def remove(self, image_id: UUID, name: bytes) -> Sibling | None:
        """Takes it away and returns it; its staging file is the caller's to remove."""
        with self._env.write() as txn:
            old = self.get(image_id, name)
            if old is not None:
                self._delete(txn, old)
                self._images.note(image_id, Op.SIBLING)
        return old

    def rename(self, image_id: UUID, old: bytes, new: bytes) -> Sibling:
        """Another name, in place of a sibling that has it. NotFound."""
        with self._env.write() as txn:
            sibling = self._existing(image_id, old)
            if new != old:
                replaced = self.get(image_id, new)
                if replaced is not None:
                    self._delete(txn, replaced)
                txn.delete(image_id.bytes + old, db=self._rows)
                self._put(txn, new, sibling.record, sibling.record)
                self._images.note(image_id, Op.SIBLING)
        return Sibling(new, sibling.record)

    def promote(self, image_id: UUID, name: bytes) -> Image:
        """The sibling becomes the image's draft: its inode, staging file, mode, owner and times;
        attributes, tags and properties that were set on it win over the image's. A draft that was there
        ends.

        Sealed unless the image is queued or saving; NotFound.
        """
        with self._env.write() as txn:
            sibling = self._existing(image_id, name)
            image = self._images.get(image_id)
            if image.status not in (Status.QUEUED, Status.SAVING):
                raise Sealed(f"The data of image {image_id} ({image.status}) cannot be replaced.")
            # The image takes its references first: the base map must not go with the sibling's.
            promoted = self._images.update(image_id, lambda image: _merged(image, sibling.record), Op.DRAFT)
            txn.delete(image_id.bytes + name, db=self._rows)
            self._refer(sibling.record, None)
        return promoted

    def drop(self, image_id: UUID) -> None:
        """Removes all of an image that ends."""
        with self._env.write() as txn:
            for sibling in self.list(image_id):
                self._delete(txn, sibling)

    def scan(self) -> builtins.list[Sibling]:
        """All there are, of all images."""
        with self._env.read() as txn:
            return [Sibling(key[16:], records.decode(raw)) for key, raw in txn.cursor(db=self._rows)]

    # ------------------------------------------------------------------------------------------------

    def _existing(self, image_id: UUID, name: bytes) -> Sibling:
        sibling = self.get(image_id, name)
        if sibling is None:
            raise NotFound(f"Image {image_id} has no file {name!r}.")
        return sibling

    def _put(self, txn: Txn, name: bytes, old: Image | None, new: Image) -> None:
        txn.put(new.id.bytes + name, records.encode(new), db=self._rows)
        txn.put(schema.U64.pack(new.data_ino), new.id.bytes + bytes([Kind.SIBLING]) + name, db=self._inos)
        self._refer(old, new)

    def _delete(self, txn: Txn, sibling: Sibling) -> None:
        txn.delete(sibling.record.id.bytes + sibling.name, db=self._rows)
        txn.delete(schema.U64.pack(sibling.ino), db=self._inos)
        self._refer(sibling.record, None)

    def _refer(self, old: Image | None, new: Image | None) -> None:
        """Keeps the reference of a draft's base map."""
        before = old.draft.base_map if old and old.draft else 0
        after = new.draft.base_map if new and new.draft else 0
        if before != after:
            if after:
                self._maps.use(after)
            if before:
                self._maps.release(before)


def _merged(image: Image, sibling: Image) -> Image:
    blank = Image(id=image.id)
    kept = {f: getattr(sibling, f) for f in _KEPT if getattr(sibling, f) != getattr(blank, f)}
    return replace(
        image,
        status=Status.SAVING,
        draft=sibling.draft,
        data_ino=sibling.data_ino,
        mode=sibling.mode,
        uid=sibling.uid,
        gid=sibling.gid,
        atime=sibling.atime,
        mtime=sibling.mtime,
        tags=sibling.tags or image.tags,
        properties={**image.properties, **sibling.properties},
        xattrs={**image.xattrs, **sibling.xattrs},
        **kept,
    )
