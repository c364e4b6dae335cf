"""Drafts that copy blocks of sealed images and of each other, against bytearrays.

A process may be killed before any step that changes a file or a table; the machine may lose its power at any
time, and then any part of what was not synced. A draft is always what a plain file could be.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from blake3 import blake3
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from imagefs.catalog.env import Environment
from imagefs.images import bases, files, fsck
from imagefs.images.content import Content
from imagefs.images.drafts import Change
from imagefs.images.files import DraftFile, SealedFile
from imagefs.images.opens import Handle, Node
from imagefs.images.staging import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from imagefs.types import BLOCK, Image
from tests.content import noise
from tests.repositories import Opened

MOST = 12 * BLOCK
ODD = 5 * BLOCK + 777
SOURCES = (
    noise(8 * BLOCK, 1),
    noise(2 * BLOCK, 2) + bytes(3 * BLOCK) + noise(ODD - 5 * BLOCK, 3),
    bytes(4 * BLOCK) + noise(4 * BLOCK, 4) + bytes(BLOCK),
)
BLOCKS = st.integers(0, 11).map(lambda block: block * BLOCK)
OFFSETS = BLOCKS | st.builds(int.__add__, BLOCKS, st.sampled_from([1, 100, BLOCK - 1]))
LENGTHS = st.sampled_from([1, 100, BLOCK - 1, BLOCK + 1]) | st.integers(1, 8).map(lambda blocks: blocks * BLOCK)
MODES = (0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE)
STEPS = ("pwrite", "ftruncate", "copy_file_range", "utime")


class Killed(BaseException):
    """The process was killed here."""


class Death:
    """Ends what is done before its step number `left`."""

    def __init__(self) -> None:
        self.left = -1

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in STEPS:
                patch.setattr(os, name, self._counted(getattr(os, name)))
            for module in (bases, files):
                patch.setattr(module, "allocate", self._counted(module.allocate))
            patch.setattr(Environment, "_commit", self._counted(Environment._commit))
            yield

    def _counted(self, call: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.step()
            return call(*args, **kwargs)

        return counted


class Draft:
    """One draft, the bytes that it must have, and those that it may have after a power cut."""

    def __init__(self, it: Opened, name: str) -> None:
        self.it = it
        self.id: UUID = it.images.create(name, draft=True).id
        self.path: Path = it.repo.staging.path(self.id, 1)
        self.bytes = bytearray()
        self.open()
        self.synced()

    def open(self) -> None:
        draft = self.it.images.get(self.id).draft
        assert draft is not None
        self.file = DraftFile(self.it.repo, self.id, draft, self._record)
        self.file.begin_writing()
        node = Node(1)
        node.file = self.file
        self.handle = Handle(self.it.files, node, 1, os.O_RDWR)

    def _record(self, change: Change) -> Image:
        return self.it.images.update_draft(self.id, change)

    def synced(self) -> None:
        self.staged = self.path.read_bytes()
        self.possible = [bytes(self.bytes)]

    def write(self, offset: int, data: bytes) -> None:
        if offset > len(self.bytes):
            self.bytes += bytes(offset - len(self.bytes))
        self.bytes[offset : offset + len(data)] = data


def one_of(found: bytes, possible: list[bytes]) -> bool:
    """Whether each byte is that of one of the contents, which are zeros behind their ends, or a zero where a
    shorter one ended."""
    longest = max(map(len, possible))
    if not min(map(len, possible)) <= len(found) <= longest:
        return False
    padded = [content.ljust(longest, b"\0") for content in possible]
    for at in range(0, len(found), 64):
        piece = found[at : at + 64]
        if not any(content[at : at + 64] == piece for content in padded):
            for byte in range(at, min(at + 64, len(found))):
                if all(content[byte] != found[byte] for content in padded):
                    return False
    return True


class Copies(RuleBasedStateMachine):
    it: Opened
    sources: list[Image]

    @classmethod
    def prepare(cls, path: Path) -> None:
        cls.it = Opened(path)
        cls.sources = [cls.it.sealed(f"source {number}", content) for number, content in enumerate(SOURCES)]

    def __init__(self) -> None:
        super().__init__()
        self.death = Death()
        self.drafts: list[Draft] = []

    @initialize()
    def begin(self) -> None:
        self.drafts = [Draft(self.it, f"draft {number}") for number in range(2)]
        self._copy(0, 0, 0, 0, MOST, 0)
        self._copy(1, 1, 0, 2 * BLOCK, 5 * BLOCK, 0)
        self.drafts[0].file.fsync(True)
        self.drafts[0].synced()

    @contextlib.contextmanager
    def change(self, draft: Draft, kill: int) -> Iterator[None]:
        """Around an operation; killed before its step `kill`, if it has so many."""
        before = bytes(draft.bytes)
        self.death.left = kill
        try:
            with self.death.installed():
                yield
        except Killed:
            draft.file.close()
            draft.open()
            found = draft.file.pread(0, MOST * 4)
            assert one_of(found, [before, bytes(draft.bytes)]), "killed: neither what was nor what was to be"
            draft.bytes = bytearray(found)
        draft.possible.append(bytes(draft.bytes))

    WHICH = st.integers(0, 1)
    KILL = st.sampled_from([0, 0, 1, 2, 3, 4])

    @rule(which=WHICH, offset=OFFSETS, length=LENGTHS, seed=st.integers(0, 1 << 20), zeros=st.booleans(), kill=KILL)
    def write(self, which: int, offset: int, length: int, seed: int, zeros: bool, kill: int) -> None:
        draft = self.drafts[which]
        data = bytes(length) if zeros else random.Random(seed).randbytes(length)
        with self.change(draft, kill):
            draft.write(offset, data)
            assert draft.file.pwrite(offset, memoryview(data)) == length

    @rule(which=WHICH, size=OFFSETS, kill=KILL)
    def truncate(self, which: int, size: int, kill: int) -> None:
        draft = self.drafts[which]
        with self.change(draft, kill):
            draft.bytes = draft.bytes[:size].ljust(size, b"\0")
            draft.file.truncate(size)

    @rule(which=WHICH, mode=st.sampled_from(MODES), offset=OFFSETS, length=LENGTHS, kill=KILL)
    def fallocate(self, which: int, mode: int, offset: int, length: int, kill: int) -> None:
        draft = self.drafts[which]
        with self.change(draft, kill):
            end = offset + length
            if not mode & KEEP_SIZE:
                draft.bytes = draft.bytes.ljust(end, b"\0")
            if mode & (PUNCH_HOLE | ZERO_RANGE):
                stop = min(end, len(draft.bytes))
                draft.bytes[offset:stop] = bytes(max(stop - offset, 0))
            draft.file.fallocate(mode, offset, length)

    @rule(
        which=WHICH, source=st.integers(0, 3), start=OFFSETS, offset=OFFSETS, length=LENGTHS | st.just(MOST), kill=KILL
    )
    def copy_bytes(self, which: int, source: int, start: int, offset: int, length: int, kill: int) -> None:
        """From a sealed image or the other draft."""
        self._copy(which, source, start, offset, length, kill)

    @rule(which=WHICH, source=st.integers(0, 3), start=BLOCKS, offset=BLOCKS, length=LENGTHS | st.just(MOST), kill=KILL)
    def copy_blocks(self, which: int, source: int, start: int, offset: int, length: int, kill: int) -> None:
        """The same where whole blocks can be shared."""
        self._copy(which, source, start, offset, length, kill)

    def _copy(self, which: int, source: int, start: int, offset: int, length: int, kill: int) -> None:
        draft = self.drafts[which]
        if source < len(SOURCES):
            content, node = SOURCES[source], Node(2)
            node.file = SealedFile(self.it.repo, self.sources[source])
            handle = Handle(self.it.files, node, 2, os.O_RDONLY)
        else:
            other = self.drafts[1 - which]
            content, handle = bytes(other.bytes), other.handle
        length = min(length, len(content) - start)
        if length <= 0:
            return
        with self.change(draft, kill):
            draft.write(offset, content[start : start + length])
            done = 0
            while done < length:
                count = draft.handle.copy_range(handle, start + done, offset + done, length - done)
                assert 0 < count <= length - done
                done += count

    @rule(which=WHICH, kill=KILL)
    def fsync(self, which: int, kill: int) -> None:
        draft = self.drafts[which]
        before, finished = draft.staged, False
        with self.change(draft, kill):
            draft.file.fsync(True)
            finished = True
        if finished:
            draft.synced()
        else:
            assert draft.staged == before

    @rule(which=WHICH)
    def killed(self, which: int) -> None:
        """Between two operations, by SIGKILL: nothing is lost."""
        draft = self.drafts[which]
        draft.file.close()
        draft.open()

    @rule(which=WHICH, seed=st.none() | st.integers(0, 1 << 20))
    def power_cut(self, which: int, seed: int | None) -> None:
        """What was not synced is lost, all of it or each block with a probability of 1/2."""
        draft = self.drafts[which]
        draft.file.close()
        now, synced, chance = draft.path.read_bytes(), draft.staged, random.Random(seed)
        left = bytearray(synced if seed is None or chance.random() < 0.5 else now[: len(now)])
        for at in range(0, len(left), BLOCK) if seed is not None else ():
            old, new = (content[at : at + BLOCK].ljust(BLOCK, b"\0") for content in (synced, now))
            left[at : at + BLOCK] = (new if chance.random() < 0.5 else old)[: len(left) - at]
        draft.path.write_bytes(left)
        self.it.repo.opens.bases.drop(draft.id, 1)
        draft.open()
        found = draft.file.pread(0, MOST * 4)
        assert one_of(found, draft.possible), "cut: a block is neither as it was synced nor as it was since"
        draft.bytes = bytearray(found)
        draft.file.fsync(False)
        draft.synced()

    @rule(which=WHICH)
    def seal(self, which: int) -> None:
        draft = self.drafts[which]
        before = draft.file.pread(0, MOST * 4)
        reader = DraftFile(self.it.repo, draft.id, self.it.images.get(draft.id).draft, draft._record)  # type: ignore[arg-type]
        draft.file.close()
        image = self.it.images.seal(draft.id)
        assert self.it.read(image.id) == before
        assert image.root == root_of(self.it, before)
        assert reader.pread(0, MOST * 4) == before, "who has the draft open reads on"
        reader.close()
        self.it.images.delete(draft.id)
        self.drafts[which] = Draft(self.it, f"draft {which}")
        self._copy(which, 2, 0, BLOCK, MOST, 0)

    @invariant()
    def bytes_are_right(self) -> None:
        for draft in self.drafts:
            assert draft.file.size == len(draft.bytes)
            assert draft.file.pread(0, MOST * 4) == bytes(draft.bytes)

    @precondition(lambda self: self.drafts)
    @rule(which=WHICH, offset=OFFSETS, length=LENGTHS)
    def read(self, which: int, offset: int, length: int) -> None:
        draft = self.drafts[which]
        assert draft.file.pread(offset, length) == bytes(draft.bytes[offset : offset + length])

    @rule(which=WHICH)
    def holes(self, which: int) -> None:
        """What is called a hole is zeros; what is shared and zeros is called a hole."""
        draft = self.drafts[which]
        fd = os.open(draft.path, os.O_RDONLY)
        try:
            record = self.it.images.get(draft.id).draft
            assert record is not None
            content = Content(self.it.repo, draft.id, record, fd)
            at = 0
            for offset, length in content.data_ranges(0, len(draft.bytes)):
                assert not any(draft.bytes[at:offset])
                at = offset + length
            assert not any(draft.bytes[at:])
        finally:
            os.close(fd)

    def teardown(self) -> None:
        for draft in self.drafts:
            draft.file.close()
            self.it.images.delete(draft.id)
        self.it.collect()
        assert not self.it.repo.catalog.bases.drafts(), "references are left"
        findings = fsck.check(self.it.repo)
        assert not findings, findings


def root_of(it: Opened, content: bytes) -> str:
    digests = b"".join(it.repo.digests.blocks(content))
    leaves = blake3(digests).digest() if digests else b""
    return blake3(leaves).hexdigest()


CHANGES: dict[str, Callable[[Copies, int], object]] = {
    "blocks": lambda m, kill: Copies.write(m, 0, BLOCK, 2 * BLOCK, 1, zeros=False, kill=kill),
    "zeros": lambda m, kill: Copies.write(m, 0, BLOCK, 2 * BLOCK, 1, zeros=True, kill=kill),
    "within a block": lambda m, kill: Copies.write(m, 0, BLOCK + 100, 50, 1, zeros=False, kill=kill),
    "over the end": lambda m, kill: Copies.write(m, 0, 7 * BLOCK + 9, 3 * BLOCK, 1, zeros=False, kill=kill),
    "punch": lambda m, kill: Copies.fallocate(m, 0, PUNCH_HOLE | KEEP_SIZE, 100, 3 * BLOCK, kill),
    "zero": lambda m, kill: Copies.fallocate(m, 0, ZERO_RANGE, 6 * BLOCK, 5 * BLOCK - 1, kill),
    "cut": lambda m, kill: Copies.truncate(m, 0, 3 * BLOCK + 7, kill),
    "cut at a block": lambda m, kill: Copies.truncate(m, 0, 3 * BLOCK, kill),
    "grow": lambda m, kill: Copies.truncate(m, 0, MOST, kill),
    "copy over": lambda m, kill: m._copy(0, 1, 0, BLOCK, 4 * BLOCK, kill),
    "copy behind": lambda m, kill: m._copy(0, 1, 0, 9 * BLOCK, ODD, kill),
    "copy from a draft": lambda m, kill: m._copy(0, 3, 0, BLOCK, 6 * BLOCK, kill),
    "sync": lambda m, kill: Copies.fsync(m, 0, kill),
}


@pytest.mark.parametrize("change", CHANGES)
def test_death_before_every_step(tmp_path: Path, change: str) -> None:
    """By SIGKILL, and by a power cut after it that leaves all or nothing of what was not synced."""
    Copies.prepare(tmp_path / "repository")
    try:
        for kill in range(1, 30):
            for seed in (None, 3):
                machine = Copies()
                Copies.begin(machine)
                machine.drafts[1].file.pwrite(2 * BLOCK, memoryview(noise(BLOCK, 9)))
                machine.drafts[1].write(2 * BLOCK, noise(BLOCK, 9))
                CHANGES[change](machine, kill)
                over = machine.death.left > 0
                machine.bytes_are_right()
                # What was cut off must not show again.
                Copies.truncate(machine, 0, MOST + 5 * BLOCK, 0)
                machine.bytes_are_right()
                Copies.power_cut(machine, 0, seed)
                machine.bytes_are_right()
                Copies.seal(machine, 0)
                machine.teardown()
            if over:
                return
        pytest.fail("there is no end of steps")
    finally:
        Copies.it.close()


@pytest.mark.timeout(300)
def test_copies_are_as_files(tmp_path: Path) -> None:
    Copies.prepare(tmp_path / "repository")
    try:
        case = Copies.TestCase
        case.settings = settings(settings.default, stateful_step_count=25)
        case().runTest()
    finally:
        Copies.it.close()
