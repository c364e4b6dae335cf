"""What the process does that is ended at some step: a bit of everything, each operation noted before and after.

`OPERATIONS` is a list of (name, what it does, what it changes in `Model`). Whoever looks at the repository
afterwards knows from the journal which operations are done, and which one may or may not be.
"""

from __future__ import annotations

import contextlib
import copy
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from imagefs.config import Config
from imagefs.errors import Mismatch
from imagefs.images import ingest, logs, materialised, recovery, sealing
from imagefs.images.gc import Collector
from imagefs.images.opens import Handle, OpenFiles
from imagefs.images.repository import Repository
from imagefs.images.service import Images
from imagefs.images.tail import LogTail
from imagefs.types import BLOCK, Caller, Draft, Image, Status
from tests.content import KIB, noise

CONFIG = Config(sampling=1)
PACK, CHECKPOINT = 128 * KIB, 256 * KIB
"""Bytes, once `make_small` was called."""
USER = Caller(0, 0)
A, B, D, E, F, G, H = (UUID(int=0xA0 + number) for number in range(7))
C = UUID(int=0xC0)
CONTENT = {
    A: noise(600 * KIB, 1) + bytes(300 * KIB) + noise(100 * KIB + 17, 2),
    B: noise(600 * KIB, 1)[: 256 * KIB] + bytes(128 * KIB) + noise(70 * KIB, 3),
    D: noise(90_000, 4),
    E: noise(20_000, 5),
    F: noise(64 * KIB, 6),
    H: noise(30_000, 8),
}
CONTENT[C] = CONTENT[A]
CONTENT[G] = CONTENT[B]


def make_small() -> None:
    """Packs, checkpoints, snapshots and plain files come after a few KiB, and one thread stores packs: the same
    steps each time."""
    ingest.PACK_BLOCKS = PACK // BLOCK
    ingest.PACKERS = 1
    sealing.WINDOW = PACK
    sealing.CHECKPOINT = CHECKPOINT
    logs.SNAPSHOT_EVERY = 3
    materialised.LEAST = BLOCK


@dataclass
class Expected:
    """What is known of an image. Its bytes are known when it is sealed, or a draft that was synced."""

    name: str
    status: Status
    content: bytes | None = None
    synced: bool = False
    tags: tuple[str, ...] = ()
    properties: dict[str, str] = field(default_factory=dict)


Model = dict[UUID, Expected]


class Operation(NamedTuple):
    """`change` says what the model is after it; states in between count as before or after."""

    name: str
    do: Callable[[Work], object]
    change: Callable[[Model], object]


class Work:
    """One process at work."""

    def __init__(self, path: Path) -> None:
        self.repo = Repository.open(path, CONFIG, "mount")
        self.images = Images(self.repo)
        self.files = OpenFiles(self.images, self.repo.session.id)
        self.tail = LogTail(self.repo, self.files, ())
        self.collector = Collector(self.repo, retention_s=0)
        self.handles: dict[UUID, Handle] = {}

    def open(self, image_id: UUID, flags: int = os.O_RDWR, *, fresh: bool = False) -> Handle:
        ino = self.images.get(image_id).data_ino
        handle = self.files.open(ino, flags, USER, self.files.new_fh(), fresh=fresh)
        self.handles[image_id] = handle
        return handle

    def release(self, image_id: UUID) -> None:
        self.files.release(self.handles.pop(image_id).fh)

    def collect(self) -> None:
        for _ in range(3):
            self.tail.catch_up()
            self.tail.acknowledge()
            self.collector.run()

    def close(self) -> None:
        for image_id in list(self.handles):
            self.release(image_id)
        self.repo.close()


def _create(image_id: UUID, name: str, **fields: object) -> Operation:
    def do(work: Work) -> None:
        work.images.create(name, image_id, draft=True, **fields)  # type: ignore[arg-type]
        work.open(image_id, fresh=True)

    def change(model: Model) -> None:
        model[image_id] = Expected(name, Status.SAVING)

    return Operation(f"create {name}", do, change)


def _write(image_id: UUID) -> Operation:
    def do(work: Work) -> None:
        handle, content = work.handles[image_id], memoryview(CONTENT[image_id])
        for offset in range(0, len(content), 128 * KIB):
            piece = content[offset : offset + 128 * KIB]
            if any(piece):
                handle.pwrite(offset, piece)
        handle.truncate(len(content))

    def change(model: Model) -> None:
        model[image_id].content = CONTENT[image_id]
        model[image_id].synced = False

    return Operation(f"write {image_id}", do, change)


def _fsync(image_id: UUID) -> Operation:
    def change(model: Model) -> None:
        model[image_id].synced = True

    return Operation(f"fsync {image_id}", lambda work: work.handles[image_id].fsync(), change)


def _release(image_id: UUID) -> Operation:
    return Operation(f"release {image_id}", lambda work: work.release(image_id), lambda model: None)


def _seal(image_id: UUID) -> Operation:
    def change(model: Model) -> None:
        model[image_id].status = Status.ACTIVE
        model[image_id].content = CONTENT[image_id]

    return Operation(f"seal {image_id}", lambda work: _sealed(work, image_id), change)


def _sealed(work: Work, image_id: UUID) -> None:
    work.images.seal(image_id)


def _quiet(name: str, do: Callable[[Work], object]) -> Operation:
    """Changes nothing that can be seen."""
    return Operation(name, do, lambda model: None)


def _clone(work: Work) -> None:
    work.images.clone(A, "c", id=C)


def _cloned(model: Model) -> None:
    model[C] = Expected("c", Status.ACTIVE, CONTENT[C])


def _renamed_over(model: Model) -> None:
    model[C].name = "b"
    del model[B]


def _set(work: Work) -> None:
    work.images.set_fields(C, {"tags": ("one", "two"), "properties": {"os": "debian"}})


def _was_set(model: Model) -> None:
    model[C].tags, model[C].properties = ("one", "two"), {"os": "debian"}


def _delete(image_id: UUID) -> Operation:
    return Operation(f"delete {image_id}", lambda work: work.images.delete(image_id), lambda model: model.pop(image_id))


def _declare(work: Work) -> None:
    work.images.update_draft(E, _expecting)


def _expecting(draft: Draft) -> Draft:
    changed = copy.copy(draft)
    object.__setattr__(changed, "expected", {"checksum": "0" * 32})
    return changed


def _seal_wrong(work: Work) -> None:
    with contextlib.suppress(Mismatch):
        work.images.seal(E)


def _killed(model: Model) -> None:
    model[E] = Expected("e", Status.KILLED)


def _unlinked(model: Model) -> None:
    model[F] = Expected("f", Status.QUEUED)


def _begun(model: Model) -> None:
    model[F] = Expected("f", Status.SAVING)


def _share(work: Work) -> None:
    source = work.open(C, os.O_RDONLY)
    handle = work.handles[G]
    assert handle.copy_range(source, 0, 0, source.size) == source.size
    work.release(C)


def _shared(model: Model) -> None:
    model[G].content = CONTENT[C]


def _sealed_share(model: Model) -> None:
    model[G].status = Status.ACTIVE


def _sibling(work: Work) -> None:
    with work.repo.catalog.transaction():
        sibling = work.repo.catalog.siblings.add(H, b".data.tmp", Image(id=H, mode=0o600))
        work.repo.staging.create(H, sibling.gen)
    handle = work.files.open(sibling.ino, os.O_RDWR, USER, work.files.new_fh(), fresh=True)
    handle.pwrite(0, memoryview(CONTENT[H]))
    handle.fsync()
    work.files.release(handle.fh)


def _promoted(model: Model) -> None:
    model[H] = Expected("h", Status.SAVING, CONTENT[H], synced=True)


def _queued(model: Model) -> None:
    model[H] = Expected("h", Status.QUEUED)


def _pending(model: Model) -> None:
    model[C].status, model[C].content = Status.PENDING_DELETE, None


def _snapshot(work: Work) -> None:
    for number in range(3):
        work.images.set_fields(D, {"min_ram": number})
        work.repo.logs.flush()
    work.repo.logs.snapshot_when_due()


OPERATIONS: tuple[Operation, ...] = (
    _create(A, "a"), _write(A), _fsync(A), _release(A), _seal(A),
    _create(B, "b"), _write(B), _release(B), _seal(B),
    Operation("clone", _clone, _cloned),
    Operation("rename over b", lambda work: work.images.rename(C, b"b"), _renamed_over),
    Operation("set", _set, _was_set),
    _quiet("gc", lambda work: work.collect()),
    _create(D, "d"), _write(D), _fsync(D),
    _quiet("open a", lambda work: work.open(A, os.O_RDONLY)),
    _delete(A),
    _quiet("gc", lambda work: work.collect()),
    _quiet("close a", lambda work: work.release(A)),
    _quiet("gc", lambda work: work.collect()),
    _quiet("snapshot", _snapshot),
    _create(E, "e"), _write(E), _quiet("declare", _declare), _release(E), Operation("kill", _seal_wrong, _killed),
    _create(F, "f"), _write(F), _release(F),
    Operation("unlink data", lambda work: work.images.unlink_data(F), _unlinked),
    Operation("begin again", lambda work: work.images.begin_draft(F), _begun),
    _quiet("open f", lambda work: work.open(F, fresh=True)),
    _write(F), _fsync(F), _release(F), _seal(F),
    _create(G, "g"), Operation("share", _share, _shared), _fsync(G), _release(G),
    Operation("seal g", lambda work: _sealed(work, G), _sealed_share),
    Operation("create h", lambda work: work.images.create("h", H), _queued),
    _quiet("sibling", _sibling),
    Operation("promote", lambda work: work.repo.catalog.siblings.promote(H, b".data.tmp"), _promoted),
    _seal(H),
    Operation("unlink data of c", lambda work: work.images.unlink_data(C), _pending),
    Operation("gc of c", lambda work: work.collect(), lambda model: model.pop(C)),
    _delete(F),
    _quiet("gc", lambda work: work.collect()),
    _quiet("flush", lambda work: work.repo.logs.flush()),
    _quiet("prune", lambda work: work.repo.catalog.log.prune(1 << 62)),
)  # fmt: skip
CONTENT[G] = CONTENT[C]


def run(path: Path, note: Callable[[str], None]) -> None:
    """All of it, from the opening of the repository on; each operation noted when it begins and when it is done."""
    work = Work(path)
    for number, operation in enumerate(OPERATIONS):
        note(f"begin {number}")
        operation.do(work)
        note(f"done {number}")
    note("close")
    work.close()


def collect_for_ever(path: Path) -> None:
    """What another process does meanwhile."""
    work = Work(path)
    while True:
        work.tail.catch_up()
        work.tail.acknowledge()
        work.collector.run(pending_s=3600)
        recovery.remove_stray_staging(work.repo)
        time.sleep(0.001)


def models(journal: str) -> list[Model]:
    """What may be: one model when no operation was under way, else that before and that after it."""
    lines = journal.split("\n")
    done = {int(line.split()[1]) for line in lines if line.startswith("done")}
    begun = {int(line.split()[1]) for line in lines if line.startswith("begin")}
    model: Model = {}
    for number in sorted(done):
        OPERATIONS[number].change(model)
    after = copy.deepcopy(model)
    for number in sorted(begun - done):
        OPERATIONS[number].change(after)
    return [model, after]
