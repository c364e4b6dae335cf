"""Making the catalog anew from what is on the store: superblock, log, manifests, packs' footers (S5).

The new catalog is filled beside the old one and takes its place by a rename, so an interrupted rebuild is
simply run again. Nothing on the store is changed. What no image needs goes to the trash of the new catalog,
where gc finds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import UUID

from imagefs.blocks import superblock as superblocks
from imagefs.blocks.superblock import Superblock
from imagefs.catalog import Catalog, Op
from imagefs.catalog.probe import require_readable
from imagefs.errors import Busy, CatalogDamaged, NotARepository, Refused
from imagefs.images.inventory import Inventory
from imagefs.images.logs import newest
from imagefs.images.replay import Replayed, replay
from imagefs.images.session import is_dead
from imagefs.images.staging import Staging, sync
from imagefs.stores import FileStore, Store
from imagefs.types import Draft, Image, Status

NEW = "catalog.rebuilt"
REBUILT = "the catalog was rebuilt while it was a draft: look at its data, then seal it"
UNKNOWN = "a draft of which the log knows nothing: look at its data, then name and seal it"
BASE_LOST = "it is a copy, and which of its blocks come from another image was lost with the catalog"
BATCH = 500
"""Images restored in one transaction."""
INO_STEP = 1 << 16
"""Numbers given in the last seconds before the loss are in no log object: a rebuilt catalog begins far above."""


@dataclass(slots=True)
class Rebuilt:
    """What a rebuild brought back."""

    images: int = 0
    """All of them, drafts too."""
    drafts: int = 0
    objects: int = 0
    """Packs and manifests on the store."""
    trash: int = 0
    """Those of them that no image needs."""
    lost: list[str] = field(default_factory=list)
    """What could not be brought back or read, as sentences."""
    old: Path | None = None
    """Where the catalog is now that was there before."""


class Rebuild:
    """Rebuilds the catalog of the repository in `path`. `progress` is told the bytes of each object looked at.

    `older` is another copy of the catalog (an old one, a backup) that fills in what the store lacks.
    """

    def __init__(
        self, path: Path, *, older: Catalog | None = None, progress: Callable[[int], None] = lambda nbytes: None
    ) -> None:
        self._path = path
        self._older = older
        self._progress = progress
        self._staging = Staging(path / "staging")
        self.result = Rebuilt()

    def run(self) -> Rebuilt:
        """The new catalog is in place and durable when this returns.

        Raises Busy while a session uses the repository, NotARepository, NewerVersion, BackendFailed, NoSpace:
        then all is as it was.
        """
        with _alone(self._path):
            store = FileStore(self._path / "store")
            try:
                superblock = self._superblock(store)
                new = self._path / NEW
                shutil.rmtree(new, ignore_errors=True)
                catalog = Catalog.create(new, superblock.repo)
                try:
                    self._fill(catalog, store, superblock)
                finally:
                    catalog.close()
            finally:
                store.close()
            self._swap()
        return self.result

    # -- the parts -----------------------------------------------------------------------------------

    def _superblock(self, store: Store) -> Superblock:
        place = self._path / superblocks.OBJECT_NAME
        try:
            text = place.read_bytes()
        except FileNotFoundError:
            if superblocks.OBJECT_NAME not in store.list(superblocks.OBJECT_NAME):
                raise NotARepository(f"{self._path} has no {superblocks.OBJECT_NAME}, nor has its store.") from None
            text = store.get(superblocks.OBJECT_NAME)
        superblock = Superblock.load(text, str(self._path))
        superblock.check(write=True, where=str(self._path))
        if not place.exists():
            temporary = place.with_name(f"{place.name}.tmp")
            temporary.write_bytes(text)
            sync(temporary)
            temporary.rename(place)
        return superblock

    def _fill(self, catalog: Catalog, store: Store, superblock: Superblock) -> None:
        replayed = replay(store, superblock.repo, self._older)
        catalog.restore_counters(replayed.gen, (replayed.ino | (INO_STEP - 1)) + 1)
        inventory = Inventory(catalog, store, superblock.repo, self._older)
        self.result.objects = inventory.take(self._progress)
        drafts = {image.id: image for image in self._drafts(replayed)}
        images = [image for image in replayed.images.values() if image.id not in drafts]
        self._restore(catalog, inventory, images)
        for image in drafts.values():
            self._load_maps(inventory, image)
        sealed = inventory.orphans()
        for image in drafts.values():
            # The file of a draft goes once its data is sealed: then the manifest has it.
            if image.draft is not None or image.id not in sealed:
                self._restore_draft(catalog, inventory, image)
                sealed.pop(image.id, None)
        known = replayed.images.keys() - drafts.keys() | replayed.deleted
        sealed = {id: image for id, image in sealed.items() if not known & {id, image.map_uuid}}
        for image in self._unknown(known | drafts.keys()):
            # Whoever has a manifest was sealed, and has been deleted unless that one is still to be restored.
            if image.id not in inventory.sealed or self._was_written(image, sealed.get(image.id)):
                self._restore_draft(catalog, inventory, image)
                sealed.pop(image.id, None)
        self._restore_sealed(catalog, inventory, sealed.values())
        if self._older is not None:
            for quota in self._older.quotas.list():
                catalog.quotas.set(quota.owner, quota.limits, total=quota.total)
        self.result.trash = inventory.discard_unused()
        self.result.images = catalog.images.count()
        self.result.lost += [*replayed.damaged, *inventory.damaged]

    @staticmethod
    def _load_maps(inventory: Inventory, image: Image) -> None:
        """Outside of any transaction: the manifests come from the store."""
        for uuid in (image.map_uuid, image.draft.base_uuid if image.draft else None):
            if uuid is not None:
                inventory.load(uuid)

    def _restore(self, catalog: Catalog, inventory: Inventory, images: list[Image]) -> None:
        """The records that the log has, whose data is sealed or not there."""
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            for image in batch:
                self._load_maps(inventory, image)
            with catalog.transaction():
                for image in batch:
                    catalog.images.restore(self._mapped(inventory, image))

    def _mapped(self, inventory: Inventory, image: Image) -> Image:
        """The record with its map's number here."""
        if image.map_uuid is None:
            return image
        map_id = inventory.map_of(image.map_uuid)
        if map_id is not None and image.status == Status.KILLED:
            image = replace(image, status=Status.ACTIVE)  # its manifest was missing at an earlier rebuild
        elif map_id is None and image.status != Status.PENDING_DELETE:
            self.result.lost.append(f"Image {image.id} ({image.name}) is killed: its manifest is lost.")
            image = replace(image, status=Status.KILLED)
        return replace(image, map_id=map_id or 0)

    @staticmethod
    def _restore_sealed(catalog: Catalog, inventory: Inventory, images: Iterable[Image]) -> None:
        """Images that were sealed in the last moment, of which the log does not know it."""
        for image in images:
            if image.map_uuid is not None and (map_id := inventory.load(image.map_uuid)) is not None:
                with catalog.transaction():
                    catalog.images.restore(replace(image, map_id=map_id))
                    catalog.images.note(image.id, Op.SEAL)

    # -- drafts ----------------------------------------------------------------------------------------

    def _drafts(self, replayed: Replayed) -> Iterator[Image]:
        """Images that were drafts, and those that the log has as queued and that have a newer file: the records
        to restore."""
        files = self._files()
        for image in replayed.images.values():
            gen = files.get(image.id, 0)
            if image.status == Status.QUEUED and gen > image.draft_gen:
                yield _draft(image, gen, UNKNOWN)
            elif image.draft is not None and gen:
                there = self._staging.stat(image.id, image.draft.gen) is not None
                yield _draft(image, image.draft.gen if there else gen, REBUILT)
            elif image.status == Status.SAVING:
                yield replace(image, status=Status.QUEUED, draft=None)

    def _unknown(self, known: set[UUID]) -> Iterator[Image]:
        """Drafts of which there is a file alone."""
        for image_id, gen in self._files().items():
            if image_id not in known:
                now = time.time_ns()
                record = Image(id=image_id, created_at=now, updated_at=now, atime=now, mtime=now, ctime=now)
                yield _draft(record, gen, UNKNOWN)

    def _files(self) -> dict[UUID, int]:
        """The newest generation of which each image has a file."""
        files: dict[UUID, int] = {}
        for image_id, gen, _ in self._staging.files():
            files[image_id] = max(gen, files.get(image_id, 0))
        return files

    def _was_written(self, draft: Image, sealed: Image | None) -> bool:
        """Whether a draft's file is another one than was sealed; False when what was sealed is gone."""
        status = self._staging.stat(draft.id, draft.draft_gen)
        if sealed is None or status is None:
            return False
        return (status.st_size, status.st_mtime_ns) != (sealed.size, sealed.mtime)

    def _restore_draft(self, catalog: Catalog, inventory: Inventory, image: Image) -> None:
        if image.draft is None:
            self.result.lost.append(f"Image {image.id} ({image.name}) is queued: the file of its draft is lost.")
        else:
            self.result.drafts += 1
            image = replace(image, draft=_based(image.draft, inventory))
        dir_ino = image.dir_ino or catalog.counters.take("ino", 2)
        image = replace(image, dir_ino=dir_ino, data_ino=image.data_ino or catalog.images.new_ino())
        with catalog.transaction():
            catalog.images.restore(image)
            catalog.images.note(image.id, Op.DRAFT)

    # -- the end -----------------------------------------------------------------------------------------

    def _swap(self) -> None:
        """Puts the new catalog in place of the old one, which is kept; drops what has numbers of the old one."""
        for name in ("index", "volatile"):
            shutil.rmtree(self._path / name, ignore_errors=True)
        old = self._path / "catalog"
        if old.exists():
            kept = self._path / f"catalog.{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
            while kept.exists():
                kept = kept.with_name(f"{kept.name}~")
            old.rename(kept)
            self.result.old = kept
        (self._path / NEW).rename(old)
        sync(self._path)
        for lock in (self._path / "sessions").glob("*.lock"):
            lock.unlink(missing_ok=True)


def _draft(image: Image, gen: int, reason: str) -> Image:
    draft = replace(image.draft or Draft(gen=gen), gen=gen, sealer=None, writer=None)
    draft = replace(draft, blocked=draft.blocked or reason, released_ns=draft.released_ns or time.time_ns())
    return replace(image, status=Status.SAVING, draft=draft, draft_gen=max(gen, image.draft_gen))


def _based(draft: Draft, inventory: Inventory) -> Draft:
    """The draft on its base map, if that came back. Which blocks a draft shares is in no log object."""
    if draft.based:
        # It stays `based`: without its parts it is refused with Damaged, never read as zeros.
        return replace(draft, blocked=BASE_LOST)
    if draft.base_uuid is None:
        return draft
    map_id = inventory.map_of(draft.base_uuid)
    if map_id is None:
        return replace(draft, base_map=0, base_size=0, base_uuid=None, blocked=BASE_LOST)
    return replace(draft, base_map=map_id)


def rebuild(path: Path, *, force: bool = False, progress: Callable[[int], None] = lambda nbytes: None) -> Rebuilt:
    """Rebuilds the catalog, with what there still is of the old one. Errors as for `Rebuild.run`; Refused for a
    catalog that is whole and up to date, unless `force`."""
    with contextlib.ExitStack() as stack:
        older = None
        with contextlib.suppress(CatalogDamaged):
            require_readable(path / "catalog")
            older = Catalog.open(path / "catalog")
            stack.callback(older.close)
        if older is not None and not force:
            store = FileStore(path / "store")
            stack.callback(store.close)
            if newest(store) <= older.generation():
                raise Refused(f"The catalog of {path} is whole and up to date. --force makes it anew all the same.")
        return Rebuild(path, older=older, progress=progress).run()


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Nobody uses the repository: no session lives, and none becomes the janitor. Busy otherwise."""
    for name in ("staging", "sessions", "locks", "run"):
        (path / name).mkdir(mode=0o700, exist_ok=True)
    fd = os.open(path / "locks" / "janitor", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"{path} is in use: unmount it first.") from None
        for lock in (path / "sessions").glob("*.lock"):
            if not is_dead(path / "sessions", UUID(lock.stem)):
                raise Busy(f"{path} is in use by session {lock.stem}: unmount it, let commands end.")
        yield
    finally:
        os.close(fd)
