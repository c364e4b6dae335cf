"""Images: the verbs that every front (mount, command line, REST) uses. Rules are here, not in the fronts."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from imagefs.catalog import Op
from imagefs.errors import Busy, Exists, InvalidValue, Protected, Refused, Sealed
from imagefs.images import drafts
from imagefs.images.drafts import Change
from imagefs.images.fields import check_collections
from imagefs.images.quota import require_room
from imagefs.images.repository import Repository
from imagefs.types import Draft, Image, Status, Visibility

if TYPE_CHECKING:
    from imagefs.images.sealing import Sealer

POLL_S = 0.05
RELEASED_S = 1.0
SEALED_ELSEWHERE_S = 3600.0
"""Longest wait for another process that is sealing the same draft; it may be storing 1 TiB."""


class Images:
    """What one can do with the images of a repository. Any thread; each change is one transaction."""

    def __init__(self, repo: Repository) -> None:
        self.repo = repo
        self._catalog = repo.catalog
        self._lock = Lock()
        """Guards `_sealer`; nothing is taken under it."""
        self._sealer: Sealer | None = None

    @property
    def sealer(self) -> Sealer:
        """Who seals drafts: one in this process, which knows what its threads are sealing."""
        # Imported here: hashing and storing are a tenth of what `imagefs clone` would import, and needs nothing of.
        from imagefs.images.sealing import Sealer  # noqa: PLC0415

        with self._lock:
            if self._sealer is None:
                self._sealer = Sealer(self.repo)
            return self._sealer

    def get(self, image_id: UUID) -> Image:
        """The record; NotFound for an unknown or deleted image."""
        return self._catalog.images.get(image_id)

    def create(
        self,
        name: str | None = None,
        id: UUID | None = None,
        *,
        owner: str | None = None,
        visibility: Visibility = Visibility.SHARED,
        uid: int = 0,
        gid: int = 0,
        mode: int = 0o644,
        dir_mode: int = 0o755,
        draft: bool = False,
        **fields: Any,
    ) -> Image:
        """A new image, `queued`, or `saving` with an empty draft that is open for writing.

        Raises Exists when the id is taken (also by an image that was deleted a moment ago), InvalidValue,
        QuotaExceeded for data where not a byte of it would fit.
        """
        image = Image(
            id=id or uuid4(),
            name=name,
            owner=owner or self.repo.config.project,
            visibility=visibility,
            uid=uid,
            gid=gid,
            mode=mode & 0o7777,
            dir_mode=dir_mode & 0o7777,
            **fields,
        )
        check_collections(image)
        if draft:
            require_room(self.repo, image, 0)
            image = replace(image, status=Status.SAVING, draft=self._new_draft(1), draft_gen=1)
        with self._catalog.transaction():
            image = self._catalog.images.add(image)
            if draft:
                self.repo.staging.create(image.id, 1)
        return image

    def update(self, image_id: UUID, change: Callable[[Image], Image], op: Op = Op.UPDATE) -> Image:
        """The record after the pure function `change`; nothing is changed when it raises."""

        def checked(image: Image) -> Image:
            changed = change(image)
            if changed.tags != image.tags or changed.properties != image.properties:
                check_collections(changed)
            return changed

        return self._catalog.images.update(image_id, checked, op)

    def set_fields(self, image_id: UUID, fields: Mapping[str, Any]) -> Image:
        """The record with these fields (names of Image) replaced."""
        return self.update(image_id, lambda image: replace(image, **fields))

    def rename(self, image_id: UUID, entry: bytes, *, replace_existing: bool = True) -> Image:
        """Gives an image the name that `entry` spells in by-name/, and exactly this entry.

        An image that has it is deleted in the same transaction. Raises Protected for that one, Refused when
        it may not be replaced.
        """
        victim = self._catalog.images.by_entry(entry)
        if victim == image_id:
            return self.get(image_id)
        if victim is not None:
            if not replace_existing:
                raise Exists(f"by-name/{entry.decode()} exists.")
            self._require_unprotected(self.get(victim))
        return self._catalog.images.rename(image_id, entry, victim)

    # -- drafts ------------------------------------------------------------------------------------

    def begin_draft(self, image_id: UUID) -> Image:
        """Makes a queued image `saving`, with an empty draft that is open for writing."""

        def begun(image: Image) -> Image:
            if image.status != Status.QUEUED:
                raise Refused(f"Image {image.id} is {image.status}: it cannot take data.")
            gen = image.draft_gen + 1
            return replace(image, status=Status.SAVING, draft=self._new_draft(gen), draft_gen=gen)

        require_room(self.repo, self.get(image_id), 0)
        with self._catalog.transaction():
            image = self._catalog.images.update(image_id, begun, Op.DRAFT)
            self.repo.staging.create(image.id, image.draft_gen)
        return image

    def _new_draft(self, gen: int) -> Draft:
        return Draft(gen=gen, writer=self.repo.session.id)

    def update_draft(self, image_id: UUID, change: Change) -> Image:
        """The record with its draft changed; Refused when there is none any more."""

        def changed(image: Image) -> Image:
            if image.draft is None:
                raise Sealed(f"Image {image.id} is {image.status}: it has no draft.")
            return replace(image, draft=change(image.draft))

        return self._catalog.images.update(image_id, changed, Op.DRAFT)

    def staging_stat(self, image: Image) -> os.stat_result | None:
        """Size, times and blocks of the image's draft; None without one."""
        return self.repo.staging.stat(image.id, image.draft.gen) if image.draft else None

    def seal(self, image_id: UUID) -> Image:
        """Seals the draft now; see Sealer.seal for what it raises.

        A draft that settles while another sealer has stored it already is committed by that one at once.
        """
        begun = time.monotonic()
        deadline = begun + SEALED_ELSEWHERE_S
        while True:
            try:
                return self.sealer.seal(image_id)
            except Busy:
                image = self.get(image_id)
                if self.repo.opens.writers(image.data_ino):
                    # close(2) returns before the kernel sends its RELEASE: 20 to 70 ms were seen.
                    deadline = min(deadline, begun + RELEASED_S)
                if time.monotonic() > deadline:
                    raise
            with contextlib.suppress(Sealed):
                self.update_draft(image_id, drafts.hurried)
            time.sleep(POLL_S)

    # -- ends and copies ---------------------------------------------------------------------------

    def delete(self, image_id: UUID) -> None:
        """Deletes the image. Who has it open reads on until closing it. Raises Protected."""
        self._require_unprotected(self.get(image_id))
        self._catalog.images.unlink(image_id)

    def unlink_data(self, image_id: UUID) -> Image:
        """Takes the data away: a draft makes the image queued again, sealed data pending_delete (S1, S7)."""

        def unlinked(image: Image) -> Image:
            self._require_unprotected(image)
            if image.status == Status.DEACTIVATED:
                raise Refused(f"Image {image.id} is deactivated: its data cannot be removed.")
            if image.status == Status.SAVING:
                ino = self._catalog.images.new_ino()
                return replace(image, status=Status.QUEUED, draft=None, data_ino=ino)
            if image.status == Status.ACTIVE:
                return replace(image, status=Status.PENDING_DELETE)
            raise Refused(f"Image {image.id} is {image.status}: it has no data to remove.")

        before = self.get(image_id)
        op = Op.DRAFT if before.status == Status.SAVING else Op.UNLINK_DATA
        # The staging file goes when the log's tail sees this: an aborted transaction must not lose it.
        return self._catalog.images.update(image_id, unlinked, op)

    def clone(self, source_id: UUID, name: str, **fields: Any) -> Image:
        """A new image of the same data: one transaction, nothing is copied. InvalidValue unless sealed."""
        source = self.get(source_id)
        if source.status != Status.ACTIVE:
            raise InvalidValue(f"Image {source_id} is {source.status}: only an active image can be cloned.")
        new = Image(id=uuid4(), name=name, **inherited(source))
        image = self._catalog.seals.clone(source_id, replace(new, **fields))
        self.repo.logs.flush()
        return image

    @staticmethod
    def _require_unprotected(image: Image) -> None:
        if image.protected:
            raise Protected(f"Image {image.id} ({image.name}) is protected against deletion.")


def inherited(source: Image) -> dict[str, Any]:
    """What a copy has of its source's record."""
    return {
        "owner": source.owner,
        "visibility": source.visibility,
        "tags": source.tags,
        "properties": dict(source.properties),
        "min_disk": source.min_disk,
        "min_ram": source.min_ram,
        "uid": source.uid,
        "gid": source.gid,
        "mode": source.mode,
    }
