"""The catalog against a dictionary: any sequence of its operations keeps every rule, and loses nothing.

The model knows each image's state, name, tags and which packs its data lies in. After every step all rules of
`imagefs.catalog.rules` hold; when a step looks, listings and look-ups agree with the model. A pack of the
model's "store" is deleted only when the catalog says so, and then no image that can be read may lie in it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from imagefs.catalog import Catalog, Op, PackState, Query, entries, rules
from imagefs.errors import Exists, InvalidValue, NotFound, PacksGone, SealCancelled
from imagefs.types import Draft, Image, Kind, Status
from tests.catalogs import BLOCKS, commit_of, done, rows_of

NAMES = st.sampled_from([None, "a", "b", "a~12", "%", "x" * 300, "é/"])
TAGS = st.lists(st.sampled_from(["t", "u", "v,w"]), unique=True).map(tuple)

seen: Counter[str] = Counter()
"""Events over all examples: a machine that never reaches them proves nothing."""


@dataclass
class Known:
    """What the model knows of an image."""

    status: Status
    name: str | None
    tags: tuple[str, ...] = ()
    packs: frozenset[int] = frozenset()
    readers: set[UUID] = field(default_factory=set)


class CatalogMachine(RuleBasedStateMachine):
    """Sessions come and go, images are made, sealed, cloned and deleted, gc runs at any time."""

    images = Bundle("images")
    sessions = Bundle("sessions")

    @initialize(target=sessions)
    def begin(self) -> UUID:
        self.directory = Path(tempfile.mkdtemp(prefix="imagefs-model-"))
        self.catalog = Catalog.create(self.directory / "catalog", uuid4())
        self.known: dict[UUID, Known] = {}
        self.stored: set[int] = set()
        """Packs that are on the model's store."""
        return self.start()

    def teardown(self) -> None:
        if hasattr(self, "catalog"):
            self.catalog.close()
            shutil.rmtree(self.directory)

    # -- sessions ----------------------------------------------------------------------------------

    @rule(target=sessions)
    def start(self) -> UUID:
        session = uuid4()
        self.catalog.sessions.start(session, "mount", "host", "boot")
        return session

    @rule(session=consumes(sessions))
    def end(self, session: UUID) -> None:
        for known in self.known.values():
            known.readers.discard(session)
        self.catalog.sessions.end(session)

    @rule(session=sessions)
    def acknowledge(self, session: UUID) -> None:
        held = [image_id for image_id, known in self.known.items() if session in known.readers]
        self.catalog.sessions.ack(session, self.catalog.generation(), held)

    @rule(image=images, session=sessions)
    def open(self, image: UUID, session: UUID) -> None:
        known = self.known.get(image)
        if known is not None and known.status == Status.ACTIVE and self.catalog.sessions.exists(session):
            known.readers.add(session)

    @rule(image=images, session=sessions)
    def close(self, image: UUID, session: UUID) -> None:
        if image in self.known:
            self.known[image].readers.discard(session)
            self.catalog.sessions.release_hold(image, session)

    # -- records -----------------------------------------------------------------------------------

    @rule(target=images, name=NAMES, tags=TAGS, saving=st.booleans())
    def add(self, name: str | None, tags: tuple[str, ...], saving: bool) -> UUID:
        status = Status.SAVING if saving else Status.QUEUED
        draft = Draft(gen=1) if saving else None
        made = self.catalog.images.add(
            Image(id=uuid4(), name=name, tags=tags, status=status, draft=draft, draft_gen=int(saving))
        )
        self.known[made.id] = Known(status, name, tags)
        return made.id

    @rule(image=images, name=NAMES, tags=TAGS, protected=st.booleans())
    def update(self, image: UUID, name: str | None, tags: tuple[str, ...], protected: bool) -> None:
        known = self.known.get(image)
        change = {"name": name, "tags": tags, "protected": protected}
        if known is None or known.status == Status.DELETED:
            with pytest.raises(NotFound):
                self.catalog.images.update(image, lambda i: replace(i, **change))
            return
        self.catalog.images.update(image, lambda i: replace(i, **change), Op.RENAME)
        known.name, known.tags = name, tags

    @rule(image=images, victim=images)
    def rename_onto(self, image: UUID, victim: UUID) -> None:
        if not (self.alive(image) and self.alive(victim)) or image == victim:
            return
        entry = self.catalog.images.get(victim).entry
        try:
            self.catalog.images.replace(image, victim)
        except InvalidValue:
            assert entry is None or _unspelt(entry)
            return
        seen["replaced"] += 1
        assert entry is not None
        self.known[victim].status = Status.DELETED
        self.known[image].name = entries.decode(entry)

    @rule(image=images)
    def unlink(self, image: UUID) -> None:
        if self.alive(image):
            self.catalog.images.unlink(image)
            self.known[image].status = Status.DELETED
            seen["deleted sealed" if self.known[image].packs else "deleted"] += 1

    @rule(image=images, back=st.booleans())
    def unlink_data(self, image: UUID, back: bool) -> None:
        known = self.known.get(image)
        if known is not None and known.status == Status.ACTIVE:
            self.catalog.images.update(image, lambda i: replace(i, status=Status.PENDING_DELETE), Op.UNLINK_DATA)
            known.status = Status.PENDING_DELETE
            if back:
                self.catalog.images.update(image, lambda i: replace(i, status=Status.ACTIVE))
                known.status = Status.ACTIVE

    # -- drafts ------------------------------------------------------------------------------------

    @rule(image=images)
    def begin_or_end_draft(self, image: UUID) -> None:
        known = self.known.get(image)
        if known is None or known.status not in (Status.QUEUED, Status.SAVING):
            return
        if known.status == Status.QUEUED:
            gen = self.catalog.images.get(image).draft_gen + 1
            change = {"status": Status.SAVING, "draft": Draft(gen=gen), "draft_gen": gen}
        else:
            change = {"status": Status.QUEUED, "draft": None, "data_ino": self.catalog.images.new_ino()}
        self.catalog.images.update(image, lambda i: replace(i, **change), Op.DRAFT)
        known.status = Status(change["status"])

    @rule(image=images)
    def write(self, image: UUID) -> None:
        known = self.known.get(image)
        if known is not None and known.status == Status.SAVING:
            self.catalog.images.update(
                image,
                lambda i: replace(i, draft=i.draft and replace(i.draft, writes=i.draft.writes + 1)),
                Op.DRAFT,
            )

    @rule(image=images, promote=st.booleans())
    def sibling(self, image: UUID, promote: bool) -> None:
        known = self.known.get(image)
        if known is None or known.status not in (Status.QUEUED, Status.SAVING):
            return
        try:
            self.catalog.siblings.add(image, b"tmp", Image(id=image))
        except Exists:
            self.catalog.siblings.remove(image, b"tmp")
            return
        if promote:
            self.catalog.siblings.promote(image, b"tmp")
            known.status = Status.SAVING
            seen["promoted"] += 1

    @rule(target=images, name=NAMES, saving=st.booleans())
    def copy_over(self, name: str | None, saving: bool) -> UUID:
        """What rsync does: a temporary file, renamed onto `data`."""
        image = self.add(name, (), saving)
        self.sibling(image, True)
        return image

    @rule(image=images, session=sessions, hits=st.lists(images, max_size=2), late=st.booleans())
    def seal(self, image: UUID, session: UUID, hits: list[UUID], late: bool) -> None:
        """Looks packs of other images up, lets a gc run before the commit if `late`, then commits."""
        known = self.known.get(image)
        if known is None or known.status != Status.SAVING or not self.catalog.sessions.exists(session):
            return
        hit = {no for other in hits if other in self.known for no in self.known[other].packs}
        hit = {no for no in hit if (row := self.catalog.packs.find(no)) and row.state == PackState.LIVE}
        now = self.catalog.images.get(image)
        if now.draft is None or now.draft.based:
            return
        sealer = now.draft.sealer
        if sealer not in (None, session):
            self.catalog.seals.abandon(image, sealer, None)
        commit = commit_of(self.catalog, now, session, [(no, 0, 4) for no in sorted(hit)])
        own = {pack.no for pack in commit.packs if pack.frames_row}
        self.stored |= {pack.no for pack in commit.packs}
        if late:
            for victim in hits:
                self.unlink(victim)
            self.collect(everybody=True)
        try:
            self.catalog.seals.commit(commit)
        except PacksGone as error:
            seen["packs gone"] += 1
            (again, _), *_ = self.catalog.packs.reserve(image)
            self.stored.add(again)
            runs = [(no, 0, BLOCKS) for no in sorted(own)] + [(no, 0, 4) for no in sorted(hit - error.packs)]
            rows = rows_of([*runs, (again, 0, BLOCKS)])
            self.catalog.seals.commit(replace(commit, rows=rows, packs=[*commit.packs, done(again)]))
            own, hit = own | {again}, hit - error.packs
        except SealCancelled:
            assert late and not self.alive(image)
            self.catalog.seals.abandon(image, session, None)
            return
        known.status, known.packs = Status.ACTIVE, frozenset(own | hit)
        seen["sealed with hits" if hit else "sealed"] += 1

    @rule(target=images, name=NAMES, session=sessions, hits=st.lists(images, max_size=1))
    def add_sealed(self, name: str | None, session: UUID, hits: list[UUID]) -> UUID:
        """What most users do: a new image with data, in one step, so that there is something to delete."""
        image = self.add(name, (), True)
        self.seal(image, session, hits, False)
        return image

    @rule(session=sessions, name=NAMES)
    def seal_what_goes_away(self, session: UUID, name: str | None) -> None:
        """Looks blocks of an image up, which is deleted and collected before the commit."""
        victim = self.add_sealed(name, session, [])
        image = self.add(name, (), True)
        self.seal(image, session, [victim], True)

    @rule(target=images, session=sessions, name=NAMES, replace_it=st.booleans())
    def share(self, session: UUID, name: str | None, replace_it: bool) -> UUID:
        """Three images that lie in one pack, one of them renamed onto another."""
        first = self.add_sealed(name, session, [])
        second = self.add_sealed("other", session, [first])
        third = self.clone(first, name, share=replace_it)
        self.rename_onto(third, second if replace_it else first)
        return third

    @rule(image=images)
    def delete_and_collect(self, image: UUID) -> None:
        """`rm`, and the gc that follows it a moment later."""
        self.unlink(image)
        self.collect(everybody=True)

    @rule(image=images, session=sessions, much=st.booleans())
    def leave_half_sealed(self, image: UUID, session: UUID, much: bool) -> None:
        known = self.known.get(image)
        if known is None or known.status != Status.SAVING or not self.catalog.sessions.exists(session):
            return
        now = self.catalog.images.get(image)
        if now.draft is None or now.draft.sealer not in (None, session):
            return
        commit = commit_of(self.catalog, now, session)
        if much:
            done_packs = [pack for pack in commit.packs if pack.frames_row]
            cookie = self.catalog.images.get(image).draft
            assert cookie is not None and cookie.complete is not None
            self.catalog.seals.checkpoint(image, session, cookie.complete, 4096, commit.rows, done_packs)
            self.stored |= {pack.no for pack in done_packs}

    @rule(target=images, source=images, name=NAMES, share=st.booleans())
    def clone(self, source: UUID, name: str | None, share: bool) -> UUID:
        known = self.known.get(source)
        new = Image(id=uuid4(), name=name)
        if known is None or known.status != Status.ACTIVE:
            with pytest.raises((InvalidValue, NotFound)):
                self.catalog.seals.clone(source, new)
            return source
        if not share:
            self.catalog.seals.clone(source, new)
        else:
            draft = replace(new, status=Status.SAVING, draft=Draft(gen=1), draft_gen=1)
            self.catalog.images.add(draft)
            origin = self.catalog.images.get(source)
            self.catalog.bases.refer(new.id, 1, self.catalog.images.get(new.id).data_ino, [origin.map_id])
            self.catalog.seals.share(new.id, None, 1, 0, origin.map_id, {})
            self.catalog.bases.drop(new.id, 1)
        self.known[new.id] = Known(Status.ACTIVE, name, packs=known.packs)
        seen["cloned"] += 1
        return new.id

    # -- gc ----------------------------------------------------------------------------------------

    @rule(everybody=st.booleans())
    def collect(self, everybody: bool) -> None:
        """Every step of a gc, with whatever the sessions have acknowledged or with all of it."""
        for step in range(2):
            if everybody:
                for row in self.catalog.sessions.list():
                    self.acknowledge(row.id)
            if step == 0:
                for image_id in self.catalog.seals.finalisable():
                    self.finalise(image_id)
        nos = self.catalog.packs.doom(row.no for row in self.catalog.packs.doomable(0, self.catalog.clock()))
        for row in self.catalog.packs.doomed():
            self.stored.discard(row.no)
            seen["object deleted"] += 1
        self.catalog.packs.forget(nos)

    def finalise(self, image_id: UUID) -> None:
        known = self.known[image_id]
        assert not known.readers, "somebody has it open"
        assert known.status == Status.DELETED and self.catalog.seals.finalise(image_id)
        del self.known[image_id]
        seen["finalised"] += 1

    # -- what must hold ------------------------------------------------------------------------------

    @invariant()
    def every_rule_holds(self) -> None:
        if hasattr(self, "catalog"):
            findings = [finding for check in rules.RULES for finding in check(self.catalog)]
            assert not findings, "\n".join(map(str, findings))

    @invariant()
    def everything_readable_is_stored(self) -> None:
        for image_id, known in getattr(self, "known", {}).items():
            readable = known.packs and (known.status != Status.DELETED or known.readers)
            assert not readable or known.packs <= self.stored, f"{image_id} has lost data"

    @rule()
    def look(self) -> None:
        """The catalog shows what the model knows."""
        alive = {image_id: known for image_id, known in self.known.items() if self.alive(image_id)}
        assert self.catalog.images.count() == len(alive)
        walked = {attrs.id: attrs.status for _, attrs in self.catalog.images.walk(Kind.DIRECTORY)}
        assert walked == {image_id: known.status for image_id, known in alive.items()}
        shown = {i for i, known in alive.items() if known.name and known.status != Status.PENDING_DELETE}
        listed = self.catalog.images.walk(Kind.DATA)
        assert {attrs.id for _, attrs in listed} == shown
        assert len({attrs.entry for _, attrs in listed}) == len(shown)
        assert all(attrs.entry and self.catalog.images.by_entry(attrs.entry) == attrs.id for _, attrs in listed)
        for tag in ("t", "v,w"):
            found = self.catalog.images.query(Query(tags=(tag,), sort="name"))
            assert {image.id for image in found} == {i for i, known in alive.items() if tag in known.tags}
        for image_id, known in alive.items():
            image = self.catalog.images.get(image_id)
            assert (image.name, image.status) == (known.name, known.status)
            used = self.catalog.maps.packs_of(image.map_id) if image.map_id else {}
            assert frozenset(used) == known.packs
            assert all(self.catalog.packs.get(no).state == PackState.LIVE for no in used)

    @rule()
    def reopen(self) -> None:
        self.catalog.close()
        self.catalog = Catalog.open(self.directory / "catalog")

    def alive(self, image: UUID) -> bool:
        return image in self.known and self.known[image].status != Status.DELETED


def _unspelt(entry: bytes) -> bool:
    try:
        entries.decode(entry)
    except InvalidValue:
        return True
    return False


def test_the_catalog_is_a_dictionary() -> None:
    examples = settings().max_examples // 2
    run_state_machine_as_test(CatalogMachine, settings=settings(stateful_step_count=30, max_examples=examples))
    wanted = {
        "cloned", "deleted", "deleted sealed", "finalised", "object deleted", "packs gone", "promoted",
        "replaced", "sealed", "sealed with hits",
    }  # fmt: skip
    assert all(seen[event] for event in wanted), seen
