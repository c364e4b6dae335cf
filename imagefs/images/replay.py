"""What the log on the store says: the last known record of every image."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

from imagefs.blocks import logobject
from imagefs.blocks.logobject import LogObject
from imagefs.catalog import Catalog
from imagefs.catalog.records import loads
from imagefs.errors import Damaged, NewerVersion
from imagefs.images.logs import gone, live
from imagefs.stores import Store
from imagefs.types import Image, Status


@dataclass(slots=True)
class Replayed:
    """The images of a repository as its log has them."""

    gen: int = 0
    """The newest generation that anything here speaks of."""
    ino: int = 0
    """The highest inode number that any record had."""
    images: dict[UUID, Image] = field(default_factory=dict)
    """Those that are not deleted. map_id and base_map are 0: the log names maps by their uuids."""
    deleted: set[UUID] = field(default_factory=set)
    """Images, and in a snapshot the maps that no image had."""
    damaged: list[str] = field(default_factory=list)
    """Objects that could not be read, as sentences."""

    def put(self, image: Image) -> None:
        """The record of an image after a change."""
        self.ino = max(self.ino, image.dir_ino + 1, image.data_ino)
        if image.status == Status.DELETED:
            self.images.pop(image.id, None)
            self.deleted.add(image.id)
        else:
            self.images[image.id] = image
            self.deleted.discard(image.id)


def replay(store: Store, repo: UUID, older: Catalog | None = None) -> Replayed:
    """Reads the newest snapshot that verifies and the log objects after it, in order.

    With `older`, a catalog of this repository that is behind or a backup, its records take the place of a
    snapshot that is older still. A damaged object is named and left out. BackendFailed, NewerVersion.
    """
    found = Replayed()
    since = _snapshot(store, repo, found, older.generation() if older else 0)
    if older is not None and older.generation() > since:
        since = older.generation()
        found.gen = max(found.gen, since)
        for image in (*live(older), *gone(older)):
            found.put(image)
    for name in store.list("log/"):
        gen = _generation(name)
        found.gen = max(found.gen, gen)
        if gen > since and (batch := _read(store, name, repo, found)) is not None:
            _apply(batch, found, since)
    return found


def _snapshot(store: Store, repo: UUID, found: Replayed, least: int) -> int:
    """Takes over the newest snapshot above generation `least` that verifies; its generation, 0 for none."""
    for name in sorted(store.list("snap/"), reverse=True):
        gen = _generation(name)
        found.gen = max(found.gen, gen)
        if gen > least and (snapshot := _read(store, name, repo, found)) is not None:
            _apply(snapshot, found, 0)
            return gen
    return 0


def _apply(batch: LogObject, found: Replayed, since: int) -> None:
    for record in batch.records:
        if record.gen <= since:
            continue
        try:
            found.put(loads(record.body))
        except Damaged as error:
            found.damaged.append(f"The record of image {record.image_id} at change {record.gen}: {error}")


def _read(store: Store, name: str, repo: UUID, found: Replayed) -> LogObject | None:
    try:
        content = logobject.decode(store.get(name), name)
        if content.repo != repo:
            raise Damaged(f"{name} belongs to repository {content.repo}.")
    except NewerVersion:
        raise
    except Damaged as error:
        found.damaged.append(str(error))
        return None
    return content


def _generation(name: str) -> int:
    return int(name.rpartition("/")[2], 16)
