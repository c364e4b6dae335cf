"""Sealing, cloning and ending of data: the transactions T3, T5, T10 and the checkpoints between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from imagefs.catalog.checkpoints import Checkpoint, Checkpoints
from imagefs.catalog.env import Environment
from imagefs.catalog.images import Images
from imagefs.catalog.log import Op
from imagefs.catalog.maps import Maps
from imagefs.catalog.packrows import PackDone, PackKind, PackRow, PackState
from imagefs.catalog.packs import Packs
from imagefs.catalog.queries import Query
from imagefs.catalog.sessions import Sessions
from imagefs.catalog.siblings import Siblings
from imagefs.errors import Busy, InvalidValue, NotFound, PacksGone, SealBlocked, SealCancelled
from imagefs.types import LAYOUTS, ZERO_PACK, Cookie, Image, Status

_DATA_FIELDS = (
    "map_id", "map_uuid", "layout", "size", "virtual_size", "allocated", "checksum", "os_hash_algo",
    "os_hash_value", "root",
)  # fmt: skip
"""What a record says of its data alone; with equal data it is equal."""


@dataclass(frozen=True, slots=True)
class Seal:
    """A claimed sealing: where to begin or go on."""

    image_id: UUID
    session: UUID
    map_id: int
    """Number of the map: provisional until the commit."""
    map_uuid: UUID
    manifest_no: int
    """The manifest's pack number, reserved with the map's uuid as its name."""
    next_offset: int
    """Bytes before it are in checkpointed rows and packs."""
    cookie: Cookie | None
    """Content that those rows describe; None before the first `complete`."""
    packs: tuple[PackRow, ...]
    """Pend packs of this image that are known to be on the store: the map may name them."""
    unsure: tuple[PackRow, ...]
    """Pend packs reserved by an earlier claim whose put may have begun: `checkpoint` them as done when their
    trailer reads back well, or `Packs.discard` them; the commit discards what is left. Never put them
    again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SealCommit:
    """Everything that T3 writes."""

    image_id: UUID
    session: UUID
    gen: int
    """`Draft.gen` and `Draft.writes` as they were when reading of the staging file began."""
    writes: int
    map_id: int
    map_uuid: UUID
    size: int
    allocated: int
    rows: Sequence[tuple[int, bytes]]
    """Rows of the map; those that a checkpoint has already may be left out or given again."""
    packs: Sequence[PackDone]
    """What was put and is in no checkpoint yet, the manifest too."""
    fields: Mapping[str, object] = field(default_factory=dict)
    """Further fields of Image to set: disk_format, virtual_size, checksum, root, mtime ..."""
    expected: Mapping[str, str] = field(default_factory=dict)
    """What the data was checked against: `Draft.expected`."""


class Seals:
    """Each method is one transaction, or joins the thread's open one. Guards are checked inside it."""

    def __init__(
        self, env: Environment, sessions: Sessions, packs: Packs, maps: Maps, checkpoints: Checkpoints,
        images: Images, siblings: Siblings,
    ) -> None:  # fmt: skip
        self._env = env
        self._sessions = sessions
        self._packs = packs
        self._maps = maps
        self._checkpoints = checkpoints
        self._images = images
        self._siblings = siblings

    # -- sealing -----------------------------------------------------------------------------------

    def claim(self, image_id: UUID, session: UUID, now_ns: int) -> Seal:
        """Makes `session` the draft's sealer; goes on from the last checkpoint.

        NotFound; SealBlocked unless saving; Busy while another session that still has a row is the sealer.
        """
        with self._env.write():
            image = self._images.get(image_id)
            if image.draft is None:
                raise SealBlocked(f"Image {image_id} is {image.status}: it has no draft to seal.")
            sealer = image.draft.sealer
            if sealer not in (None, session) and self._sessions.exists(sealer):
                raise Busy(f"Image {image_id} is being sealed by session {sealer}.")
            row = self._checkpoints.claim(image_id, session)
            self._images.update(image_id, lambda image: _with_draft(image, sealer=session), Op.DRAFT)
            return self._seal(image_id, row)

    def get(self, image_id: UUID) -> Seal | None:
        """How far the sealing of an image has come; None if it was never claimed or is over."""
        with self._env.read():
            row = self._checkpoints.get(image_id)
            return self._seal(image_id, row) if row is not None else None

    def complete(self, image_id: UUID, cookie: Cookie) -> Seal:
        """After fdatasync of the staging file: its content `cookie` is on the disk (Draft.complete).

        Go on with the Seal that this returns: a checkpoint of other content is dropped, with its map, and it
        begins at 0. SealCancelled unless the claimant is still the sealer.
        """
        with self._env.write():
            row = self._claimed(image_id, None)
            if row.cookie is not None and row.cookie != cookie:
                row = self._checkpoints.begin(image_id, row.session)
            if row.cookie is None:
                row = row._replace(cookie=cookie)
                self._checkpoints.put(image_id, row)
            self._images.update(image_id, lambda image: _with_draft(image, complete=cookie), Op.DRAFT)
            return self._seal(image_id, row)

    def reserve(self, image_id: UUID, session: UUID, count: int = 64) -> list[tuple[int, bytes]]:
        """T1: `count` new (number, name16) of packs, pend and owned by the image. Names are never used again.

        SealCancelled unless `session` is the sealer: what another one reserves would be taken for this
        one's, and what an image without a draft reserves for nobody's.
        """
        with self._env.write():
            self._claimed(image_id, session)
            return self._packs.reserve(image_id, count=count)

    def checkpoint(
        self, image_id: UUID, session: UUID, cookie: Cookie, next_offset: int,
        rows: Sequence[tuple[int, bytes]], packs: Sequence[PackDone],
    ) -> None:  # fmt: skip
        """Rows up to `next_offset` and packs that are durable. SealCancelled if the draft, its sealer or the
        content is another one now."""
        with self._env.write():
            row = self._claimed(image_id, session)
            if row.cookie != cookie:
                raise SealCancelled(f"Image {image_id} is being sealed with other content.")
            self._require_pend(image_id, packs)
            self._maps.put_rows(row.map_id, rows)
            self._packs.finished(packs)
            self._checkpoints.put(image_id, row._replace(next_offset=next_offset))

    def commit(self, commit: SealCommit) -> Image:
        """T3: the map, references, pend to live, the record active, the checkpoint gone; the log row.

        SealCancelled if the draft, its opens for writing, its sealer or its packs are not what they were.
        PacksGone if packs that the map names are neither this image's nor live or trash (trash becomes live
        again): nothing is changed, their blocks must be stored anew.
        """
        image_id = commit.image_id
        with self._env.write():
            row = self._claimed(image_id, commit.session)
            image = self._images.get(image_id)
            if row.map_id != commit.map_id or not _same_draft(image, commit.gen, commit.writes):
                raise SealCancelled(f"Image {image_id} was opened for writing while it was being sealed.")
            if image.draft is None or image.draft.expected != commit.expected:
                raise SealCancelled(f"Image {image_id}: more was declared while it was being sealed.")
            self._require_pend(image_id, commit.packs)
            # Still rows of a provisional map: harmless if the check below finds packs gone.
            self._maps.put_rows(row.map_id, commit.rows)
            named = set(self._maps.packs_of(row.map_id)) - {ZERO_PACK}
            self._require_usable(image_id, named, {pack.no for pack in commit.packs})
            self._packs.finished(commit.packs)
            self._maps.create(row.map_id, commit.map_uuid, commit.size, sorted(named))
            self._clear_unused(image_id, row)
            self._checkpoints.remove(image_id)
            data: dict[str, Any] = {"size": commit.size, "allocated": commit.allocated, **commit.fields}
            data |= {
                "map_id": row.map_id,
                "map_uuid": commit.map_uuid,
                "status": Status.ACTIVE,
                "draft": None,
            }
            return self._images.update(image_id, lambda image: replace(image, **data), Op.SEAL)

    def share(
        self, image_id: UUID, session: UUID | None, gen: int, writes: int, map_id: int, fields: Mapping[str, object]
    ) -> Image:
        """T3 for a draft whose content is exactly that of a map: the map becomes the image's own; no data
        moves.

        Size, hashes and formats are those of an image with the same map, where there is one; `fields` that
        are not None win. `session` None: for a draft that nobody is sealing. SealCancelled as in `commit`;
        NotFound when there is no such map.
        """
        with self._env.write():
            image = self._images.get(image_id)
            draft = image.draft
            if draft is None or draft.sealer != session or not _same_draft(image, gen, writes):
                raise SealCancelled(f"Image {image_id} was opened for writing while it was being sealed.")
            info = self._maps.info(map_id)
            twins = self._images.query(Query(map_id=map_id, limit=1))
            data: dict[str, Any] = {
                "virtual_size": info.size,
                "allocated": self._maps.allocated(map_id) if info.kind == 0 else info.size,
                "layout": LAYOUTS[info.kind],
            }
            if twins:
                data = {name: getattr(twins[0], name) for name in (*_DATA_FIELDS, "disk_format")}
                data["disk_format"] = image.disk_format or data["disk_format"]
            data |= {name: value for name, value in fields.items() if value is not None}
            data |= {"map_id": map_id, "map_uuid": info.uuid, "size": info.size}
            data |= {"status": Status.ACTIVE, "draft": None}
            shared = self._images.update(image_id, lambda image: replace(image, **data), Op.SEAL)
            if session is not None:
                self._checkpoints.let_go(image_id, session)
            return shared

    def abandon(self, image_id: UUID, session: UUID, reason: str | None) -> None:
        """The session has stopped sealing: it is the sealer no more, and puts nothing for this image now.

        The draft stays, with `reason` as why the try failed if one is given. Always call it after a claim
        that did not end in a commit, also when the image is gone. Nothing happens to a draft that
        another one is sealing.
        """
        with self._env.write():
            self._checkpoints.let_go(image_id, session)
            try:
                image = self._images.get(image_id, deleted=True)
            except NotFound:
                return
            if image.draft is not None and image.draft.sealer == session:
                changes: dict[str, Any] = {"sealer": None}
                if reason is not None:
                    changes["failed"] = reason
                self._set_draft(image, changes)

    def release_all(self, session: UUID) -> list[UUID]:
        """A session has ended: drafts that it was sealing have no sealer now. Returns them."""
        released: list[UUID] = []
        with self._env.write():
            unlinked = [image_id for _, image_id in self._images.unlinked()]
            for image_id in [*self._images.with_status(Status.SAVING), *unlinked]:
                image = self._images.get(image_id, deleted=True)
                if image.draft is not None and image.draft.sealer == session:
                    self._set_draft(image, {"sealer": None})
                    released.append(image_id)
        return released

    # -- clones ------------------------------------------------------------------------------------

    def clone(self, source_id: UUID, new: Image) -> Image:
        """T10: adds `new`, active, with the source's data and, where it gives none, formats: one
        transaction, no pack is touched. NotFound, InvalidValue (source not sealed), Exists, NoSpace."""
        with self._env.write():
            source = self._images.get(source_id)
            if not source.sealed or source.status == Status.PENDING_DELETE:
                raise InvalidValue(f"Image {source_id} is {source.status}: it has no sealed data to share.")
            data: dict[str, Any] = {name: getattr(source, name) for name in _DATA_FIELDS}
            for name in ("disk_format", "container_format"):
                data[name] = getattr(new, name) or getattr(source, name)
            return self._images.add(replace(new, status=Status.ACTIVE, draft=None, **data), Op.CLONE)

    # -- the end -----------------------------------------------------------------------------------

    def finalisable(self) -> list[UUID]:
        """Deleted images that `finalise` would end now."""
        with self._env.read():
            least = self._sessions.acknowledged()
            return [image_id for gen, image_id in self._images.unlinked() if self._may_end(gen, image_id, least)]

    def finalise(self, image_id: UUID, deletion: int | None = None) -> bool:
        """T5: if every session has acknowledged the deletion and none holds the image, ends it: its map's
        reference, its draft with what that reserved and its base, siblings, inode numbers, the row.

        `deletion`: only if it was deleted in that generation, not brought back and deleted again since.
        False: not yet, or no deleted image.
        """
        with self._env.write():
            gen = self._images.unlinked_at(image_id)
            if gen is None or deletion not in (None, gen):
                return False
            if not self._may_end(gen, image_id, self._sessions.acknowledged()):
                return False
            self._siblings.drop(image_id)
            self._images.remove(gen, image_id)
        return True

    # ------------------------------------------------------------------------------------------------

    def _seal(self, image_id: UUID, row: Checkpoint) -> Seal:
        packs = [pack for pack in self._packs.pending(image_id) if pack.kind == PackKind.PACK]
        return Seal(
            image_id=image_id,
            session=row.session,
            map_id=row.map_id,
            map_uuid=row.map_uuid,
            manifest_no=row.manifest_no,
            next_offset=row.next_offset,
            cookie=row.cookie,
            packs=tuple(pack for pack in packs if pack.done),
            unsure=tuple(pack for pack in packs if not pack.done and pack.no < row.first_no),
        )

    def _claimed(self, image_id: UUID, session: UUID | None) -> Checkpoint:
        """The row of a sealing that is still its claimant's (and that one is `session`, if given)."""
        row = self._checkpoints.get(image_id)
        try:
            draft = self._images.get(image_id).draft
        except NotFound:
            draft = None
        if row is None or draft is None or draft.sealer != row.session or session not in (None, row.session):
            raise SealCancelled(f"Image {image_id} is not being sealed by this session any more.")
        return row

    def _require_pend(self, image_id: UUID, packs: Sequence[PackDone]) -> None:
        for done in packs:
            row = self._packs.find(done.no)
            if row is None or row.state != PackState.PEND or row.owner != image_id:
                raise SealCancelled(f"Pack {done.no} is not reserved for image {image_id} any more.")

    def _require_usable(self, image_id: UUID, named: set[int], done: set[int]) -> None:
        """Each pack that a map names is this image's and stored, or has been others' all the time."""
        gone: set[int] = set()
        for no in named:
            row = self._packs.find(no)
            own = row is not None and row.state == PackState.PEND and row.owner == image_id
            usable = row is not None and row.state in (PackState.LIVE, PackState.TRASH)
            if not usable and not (own and row is not None and (row.done or no in done)):
                gone.add(no)
        if gone:
            raise PacksGone(frozenset(gone))

    def _clear_unused(self, image_id: UUID, row: Checkpoint) -> None:
        """What was reserved and is in no map: numbers of this claim were never put, of others one cannot
        know."""
        left = self._packs.pending(image_id)
        never = {pack.no for pack in left if not pack.done and pack.no >= row.first_no}
        self._packs.unreserve(never)
        self._packs.discard(pack.no for pack in left if pack.no not in never)

    def _set_draft(self, image: Image, changes: dict[str, Any]) -> None:
        new = _with_draft(image, **changes)
        if image.status == Status.DELETED:
            self._images.amend(new)
        else:
            self._images.update(image.id, lambda _: new, Op.DRAFT)

    def _may_end(self, gen: int, image_id: UUID, acknowledged: int | None) -> bool:
        return (acknowledged is None or acknowledged >= gen) and not self._sessions.held(image_id)


def _same_draft(image: Image, gen: int, writes: int) -> bool:
    return image.draft is not None and (image.draft.gen, image.draft.writes) == (gen, writes)


def _with_draft(image: Image, **changes: Any) -> Image:
    if image.draft is None:
        raise InvalidValue(f"Image {image.id} is {image.status}: it has no draft.")
    return replace(image, draft=replace(image.draft, **changes))
