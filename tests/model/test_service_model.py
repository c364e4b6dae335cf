"""Images, open files and garbage collection against a dictionary: random operations, restarts between them.

Fine rules (create, write, release, seal) are beside the compound one (`add`): with the fine ones alone a run
hardly ever comes to delete an image that has data. What a run met is counted, and too little is a failure.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from imagefs.catalog import PackKind, PackState, rules
from imagefs.errors import Busy, Protected, Refused
from imagefs.images import fsck, recovery
from imagefs.images.opens import Handle
from imagefs.images.session import is_dead
from imagefs.images.tail import LogTail
from imagefs.types import BLOCK, Kind, Status
from tests.content import noise
from tests.repositories import CONFIG, USER, Opened

PIECES = [noise(blocks * BLOCK, number) for number, blocks in enumerate((1, 2, 3, 5, 8, 17))]
PIECES += [bytes(BLOCK), bytes(7 * BLOCK), b"compressible " * 1000, b"tail"]
CONTENTS = st.lists(st.integers(0, len(PIECES) - 1), min_size=1, max_size=4)
"""Numbers of pieces: their bytes would fill the report of a failure."""
NAMES = st.sampled_from(["a", "b", "c", "d"])
PICKS = st.integers(0, 1 << 16)
OFFSETS = st.one_of(st.integers(0, 4 * BLOCK), st.sampled_from([0, BLOCK, 65_536]))


@dataclass
class Known:
    """What the dictionary knows of an image."""

    name: str
    status: Status
    content: bytearray = field(default_factory=bytearray)
    protected: bool = False
    tags: tuple[str, ...] = ()
    writers: int = 0


@dataclass
class Held:
    """An open file, which sees its data whatever becomes of the name."""

    handle: Handle
    image_id: UUID
    known: Known
    content: bytearray
    writable: bool


class ServiceMachine(RuleBasedStateMachine):
    """One process after another on one repository."""

    events: Counter[str]

    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")
        self.directory = tempfile.mkdtemp(prefix="imagefs-", dir=memory if memory.is_dir() else None)
        self.it = Opened(Path(self.directory) / "repository", replace(CONFIG, pack_blocks=16))
        self.tail = LogTail(self.it.repo, self.it.files, ())
        self.known: dict[UUID, Known] = {}
        self.open: list[Held] = []

    # -- making images ---------------------------------------------------------------------------------

    @initialize(content=CONTENTS)
    def begin(self, content: list[int]) -> None:
        self.add("a", content)

    @rule(name=NAMES, content=CONTENTS)
    def add(self, name: str, content: list[int]) -> None:
        """What `cp` and two seconds do."""
        self.create(name)
        held = self.open[-1]
        self._write(held, 0, _bytes(content))
        with pytest.raises(Busy):
            self.it.images.sealer.seal(held.image_id)
        self._release(held)
        self._seal(held.image_id)

    @rule(name=NAMES)
    def create(self, name: str) -> None:
        image = self.it.images.create(name, draft=True)
        self.known[image.id] = Known(name, Status.SAVING)
        self._open(image.id, os.O_RDWR, fresh=True)

    @rule(name=NAMES)
    def create_empty(self, name: str) -> None:
        image = self.it.images.create(name)
        self.known[image.id] = Known(name, Status.QUEUED)

    @precondition(lambda self: self._in(Status.ACTIVE))
    @rule(pick=PICKS, name=NAMES)
    def clone(self, pick: int, name: str) -> None:
        source = self._pick(pick, Status.ACTIVE)
        image = self.it.images.clone(source, name)
        of = self.known[source]
        self.known[image.id] = Known(name, Status.ACTIVE, of.content, tags=of.tags)
        self.events["cloned"] += 1

    # -- files -------------------------------------------------------------------------------------------

    @precondition(lambda self: self.known)
    @rule(pick=PICKS, flags=st.sampled_from([os.O_RDONLY, os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC]))
    def open_file(self, pick: int, flags: int) -> None:
        image_id = self._pick(pick)
        known = self.known[image_id]
        if flags == os.O_RDONLY or known.status in (Status.SAVING, Status.QUEUED):
            self._open(image_id, flags)
        else:
            with pytest.raises(Refused):
                self._open(image_id, flags)

    @precondition(lambda self: self._writers())
    @rule(
        pick=PICKS,
        how=st.sampled_from(["write", "write", "truncate", "fsync"]),
        offset=OFFSETS,
        content=CONTENTS,
    )
    def change(self, pick: int, how: str, offset: int, content: list[int]) -> None:
        held = _choose(self._writers(), pick)
        if how == "write":
            self._write(held, offset, _bytes(content))
        elif how == "fsync":
            held.handle.fsync()
        else:
            held.handle.truncate(offset)
            del held.content[offset:]
            held.content.extend(bytes(offset - len(held.content)))

    @precondition(lambda self: self.open)
    @rule(pick=PICKS)
    def release(self, pick: int) -> None:
        self._release(_choose(self.open, pick))

    @precondition(lambda self: self.open)
    @rule(pick=PICKS, offset=OFFSETS, length=st.integers(1, 200_000))
    def read(self, pick: int, offset: int, length: int) -> None:
        held = _choose(self.open, pick)
        assert held.handle.pread(offset, length) == held.content[offset : offset + length]

    @precondition(lambda self: self._in(Status.ACTIVE))
    @rule(pick=PICKS, name=NAMES, changed=st.booleans(), sealed=st.booleans())
    def copy(self, pick: int, name: str, changed: bool, sealed: bool) -> None:
        """`cp` inside the mount, and perhaps a change of the copy."""
        theirs = self._open(self._pick(pick, Status.ACTIVE), os.O_RDONLY)
        self.create(name)
        held = self.open[-1]
        size, done = len(theirs.content), 0
        while done < size:
            done += held.handle.copy_range(theirs.handle, done, done, size - done)
        held.content[:] = theirs.content
        if changed:
            self._write(held, min(size, BLOCK), b"changed")
        self._release(held)
        self._release(theirs)
        if sealed:
            self._seal(held.image_id)
        self.events["copied"] += 1

    @precondition(lambda self: self._in(Status.ACTIVE, Status.SAVING))
    @rule(pick=PICKS, released=st.booleans())
    def delete_open(self, pick: int, released: bool) -> None:
        """What has been opened is read on, deleted and collected or not."""
        image_id = self._pick(pick, Status.ACTIVE, Status.SAVING)
        if self.known[image_id].protected:
            return
        held = self._open(image_id, os.O_RDONLY)
        self.it.images.delete(image_id)
        self._gone(image_id)
        self.acknowledge()
        self.collect()
        assert held.handle.pread(0, 1 << 30) == held.content
        self.events["read after its deletion"] += 1
        if released:
            self._release(held)

    def acknowledge(self) -> None:
        """What the tail of the log does."""
        self.tail.catch_up()
        self.tail.acknowledge()

    @precondition(lambda self: self._in(Status.SAVING))
    @rule(pick=PICKS)
    def seal(self, pick: int) -> None:
        image_id = self._pick(pick, Status.SAVING)
        if self.known[image_id].writers:
            with pytest.raises(Busy):
                self.it.images.sealer.seal(image_id)
        else:
            self._seal(image_id)

    # -- names and ends ----------------------------------------------------------------------------------

    @precondition(lambda self: self.known)
    @rule(pick=PICKS, name=NAMES, content=CONTENTS)
    def save(self, pick: int, name: str, content: list[int]) -> None:
        """What editors and `rsync` do: another image under a name of its own, then over the one that has this name."""
        self.add("new", content)
        self.rename(len(self.known) - 1, self.known[self._pick(pick)].name)
        self.rename(len(self.known) - 1, name)

    @precondition(lambda self: self.known)
    @rule(pick=PICKS, name=NAMES)
    def rename(self, pick: int, name: str) -> None:
        image_id = self._pick(pick)
        if self.it.images.get(image_id).entry is None:
            return  # pending_delete has no entry
        victim = self.it.repo.catalog.images.by_entry(name.encode())
        if victim is not None and victim != image_id and self.known[victim].protected:
            with pytest.raises(Protected):
                self.it.images.rename(image_id, name.encode())
            return
        self.it.images.rename(image_id, name.encode())
        self.known[image_id].name = name
        if victim is not None and victim != image_id:
            self._gone(victim)
            self.events["replaced"] += 1
        assert self.it.repo.catalog.images.by_entry(name.encode()) == image_id

    @precondition(lambda self: self.known)
    @rule(pick=PICKS, protected=st.booleans(), tags=st.sampled_from([(), ("x",), ("x", "y")]))
    def set(self, pick: int, protected: bool, tags: tuple[str, ...]) -> None:
        image_id = self._pick(pick)
        self.it.images.set_fields(image_id, {"protected": protected, "tags": tags})
        self.known[image_id].protected, self.known[image_id].tags = protected, tags

    @precondition(lambda self: self.known)
    @rule(pick=PICKS)
    def delete(self, pick: int) -> None:
        image_id = self._pick(pick)
        if self.known[image_id].protected:
            with pytest.raises(Protected):
                self.it.images.delete(image_id)
        else:
            self.it.images.delete(image_id)
            self._gone(image_id)

    @rule(name=NAMES, content=CONTENTS, released=st.booleans())
    def give_up(self, name: str, content: list[int], released: bool) -> None:
        """A draft that is unlinked, perhaps while it is being written."""
        self.create(name)
        self._write(self.open[-1], 0, _bytes(content))
        image_id = self.open[-1].image_id
        if released:
            self._release(self.open[-1])
        self._unlink_data(image_id)

    @precondition(lambda self: self._in(Status.ACTIVE, Status.SAVING))
    @rule(pick=PICKS)
    def unlink_data(self, pick: int) -> None:
        self._unlink_data(self._pick(pick, Status.ACTIVE, Status.SAVING))

    def _unlink_data(self, image_id: UUID) -> None:
        known = self.known[image_id]
        if known.protected:
            with pytest.raises(Protected):
                self.it.images.unlink_data(image_id)
            return
        self.it.images.unlink_data(image_id)
        was = known.status
        self.known[image_id] = Known(known.name, Status.QUEUED, protected=known.protected, tags=known.tags)
        if was == Status.ACTIVE:
            self.known[image_id].status = Status.PENDING_DELETE
            self.known[image_id].content = known.content
        self.events[f"unlinked data of {was}"] += 1

    # -- what happens by itself ----------------------------------------------------------------------------

    @rule()
    def collect(self) -> None:
        before = self._packs()
        for _ in range(3):
            self.acknowledge()
            self.it.collector.run()
        recovery.remove_stray_staging(self.it.repo)
        self.events["packs dropped"] += len(before - self._packs())
        for image_id in self._in(Status.PENDING_DELETE):
            del self.known[image_id]
        self._require_sound()

    @rule(pick=PICKS, unmount=st.booleans())
    def restart(self, pick: int, unmount: bool) -> None:
        """Of the worker, then of all; with something open, as it mostly is."""
        if sealed := self._in(Status.ACTIVE):
            self._open(_choose(sealed, pick), os.O_RDONLY)
        self._follow()
        self._require_sound()
        if unmount:
            self._unmount()
        else:
            self._die()

    def _unmount(self) -> None:
        """Unmounted and mounted again: what was open is closed first."""
        for held in list(self.open):
            self._release(held)
        self.it.close()
        self._start()
        self.events["restarted"] += 1

    def _die(self) -> None:
        """SIGKILL of everything, and another mount: what was open is lost, what was written is there."""
        if self.open:
            self.events["killed with open files"] += 1
        repo = self.it.repo
        for held in self.open:
            held.known.writers = 0
        self.open.clear()
        for node in self.it.files._nodes.values():
            if node.file is not None:
                node.file.close()
        os.close(repo.session._lock_fd)
        repo._close_files()
        assert is_dead(repo.path / "sessions", repo.session.id)
        self._start()

    def _follow(self) -> None:
        """SIGKILL of the worker, and another one that has the same files open."""
        files = self.it.files
        for node in files._nodes.values():
            if node.file is not None:
                node.file.close()
        self.it.files = type(files)(self.it.images, files.connection)
        self.it.files._own = files._own
        self.it.files.restore()
        self.tail = LogTail(self.it.repo, self.it.files, ())
        catalog = self.it.repo.catalog
        deleted = {image_id for _, image_id in catalog.images.unlinked()}
        catalog.sessions.ack(files.connection, catalog.generation(), self.it.files.held() & deleted)
        for held in list(self.open):
            handle = self.it.files.get(held.handle.fh)
            if handle is None:
                # A draft that is no image's any more ends with the worker that had it open.
                assert held.writable or held.image_id not in self.known or self._replaced(held)
                self._forget(held)
            else:
                held.handle = handle
        self.events["followed"] += bool(self.open)

    # -- what must hold --------------------------------------------------------------------------------------

    @invariant()
    def images_are_those(self) -> None:
        catalog = self.it.repo.catalog
        found = {attrs.id: attrs for _, attrs in catalog.images.walk(Kind.DIRECTORY)}
        assert found.keys() == self.known.keys()
        for image_id, known in self.known.items():
            image = catalog.images.get(image_id)
            assert (image.status, image.name, image.tags, image.protected) == (
                known.status, known.name, known.tags, known.protected,
            )  # fmt: skip
            if image.sealed:
                assert image.size == len(known.content)
        assert not [finding for check in rules.RULES for finding in check(catalog)]

    def teardown(self) -> None:
        try:
            for held in list(self.open):
                self._release(held)
            for image_id, known in self.known.items():
                if known.status in (Status.ACTIVE, Status.SAVING):
                    assert self.it.read(image_id) == known.content
                if known.protected:
                    self.it.images.set_fields(image_id, {"protected": False})
            self._require_sound()
            self.it.delete_all()
            assert not self.it.objects()
            assert not list(self.it.repo.catalog.packs.scan())
            assert not list(self.it.repo.staging.files())
        finally:
            self.it.close()
            shutil.rmtree(self.directory)

    # ----------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.it = Opened(Path(self.directory) / "repository", replace(CONFIG, pack_blocks=16))
        self.tail = LogTail(self.it.repo, self.it.files, ())
        recovery.recover(self.it.repo)
        for image_id in self._in(Status.PENDING_DELETE):
            assert self.it.images.get(image_id).status == Status.PENDING_DELETE
        self._require_sound()

    def _require_sound(self) -> None:
        findings = fsck.check(self.it.repo)
        assert not findings, findings

    def _in(self, *statuses: Status) -> list[UUID]:
        return [image_id for image_id, known in self.known.items() if known.status in statuses]

    def _pick(self, pick: int, *statuses: Status) -> UUID:
        return _choose(self._in(*statuses) if statuses else list(self.known), pick)

    def _writers(self) -> list[Held]:
        return [held for held in self.open if held.writable]

    def _open(self, image_id: UUID, flags: int, *, fresh: bool = False) -> Held:
        known = self.known[image_id]
        ino = self.it.images.get(image_id).data_ino
        handle = self.it.files.open(ino, flags, USER, self.it.files.new_fh(), fresh=fresh)
        writable = flags != os.O_RDONLY
        if writable:
            known.status = Status.SAVING
            known.writers += 1
            if flags & os.O_TRUNC:
                known.content.clear()
        held = Held(handle, image_id, known, known.content, writable)
        self.open.append(held)
        return held

    def _write(self, held: Held, offset: int, content: bytes) -> None:
        assert held.handle.pwrite(offset, memoryview(content)) == len(content)
        held.content.extend(bytes(max(0, offset - len(held.content))))
        held.content[offset : offset + len(content)] = content

    def _release(self, held: Held) -> None:
        self.it.files.release(held.handle.fh)
        self._forget(held)

    def _forget(self, held: Held) -> None:
        self.open.remove(held)
        if held.writable:
            held.known.writers -= 1

    def _replaced(self, held: Held) -> bool:
        """Whether the image has another draft, or none, since."""
        return self.known[held.image_id] is not held.known

    def _seal(self, image_id: UUID) -> None:
        before = self._packs()
        image = self.it.images.seal(image_id)
        known = self.known[image_id]
        known.status = Status.ACTIVE
        used = {name.rpartition("/")[2] for name in self.it.objects_of(image)}
        self.events["sealed"] += 1
        self.events["dedup hits"] += bool(used & before)
        self.events["holes"] += image.allocated < len(known.content) - BLOCK
        assert self.it.read(image_id) == known.content
        with pytest.raises(Refused):
            self.it.files.open(image.data_ino, os.O_RDWR, USER, self.it.files.new_fh())

    def _gone(self, image_id: UUID) -> None:
        known = self.known.pop(image_id)
        self.events["deleted with data"] += known.status == Status.ACTIVE
        self.events["deleted while open"] += any(held.image_id == image_id for held in self.open)

    def _packs(self) -> set[str]:
        rows = self.it.repo.catalog.packs.scan()
        return {row.name16.hex() for row in rows if row.kind == PackKind.PACK and row.state != PackState.PEND}


def _bytes(content: list[int]) -> bytes:
    return b"".join(PIECES[number] for number in content)


def _choose(among: list[Any], pick: int) -> Any:
    return among[pick % len(among)]


WANTED = (
    "sealed", "dedup hits", "holes", "cloned", "copied", "deleted with data", "deleted while open", "replaced",
    "read after its deletion", "packs dropped", "restarted", "killed with open files", "followed",
    "unlinked data of active", "unlinked data of saving",
)  # fmt: skip


@pytest.mark.timeout(1800)
def test_the_service_is_a_dictionary(expect_log: Callable[[str], None], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)  # a thousand restarts
    caplog.set_level(logging.WARNING, "imagefs")
    expect_log("handle .* is lost")  # of drafts that ended while they were open
    events: Counter[str] = Counter()
    machine = type("Machine", (ServiceMachine,), {"events": events})
    run_state_machine_as_test(
        machine,
        settings=settings(stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)),
    )
    # A machine can be green and blind: it must have met what it is there for.
    print(events)
    assert not {event: events[event] for event in WANTED if events[event] < 1}, events
