"""A real mount against a plain directory: the same operations, the same results, bytes and errors.

Where the store has rules of its own, and only there, the expectation is the machine's: sealed data refuses
to change (S4), sealing refuses what is open for writing (S3), holes are told by the block (S9).
"""

from __future__ import annotations

import ctypes.util
import itertools
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from tests.file_agent import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, Answer, FileAgent
from tests.mounted import TRANSPORTS, Mounted

BLOCK = 4096
SIZES = st.one_of(
    st.integers(0, 3 * BLOCK),
    st.sampled_from([BLOCK - 1, BLOCK, BLOCK + 1, 65_535, 65_536, 65_537, 300_000]),
)
SPOTS = st.one_of(SIZES, st.integers(0, 400_000))
NAMES = st.sampled_from(["a", "b", "c"])
SEEDS = st.integers(0, 1 << 30)
OPENS = st.sampled_from(
    [os.O_RDONLY, os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_CREAT, os.O_RDWR | os.O_CREAT | os.O_TRUNC,
     os.O_RDWR | os.O_CREAT | os.O_EXCL, os.O_RDWR | os.O_TRUNC]
)  # fmt: skip


@dataclass
class Content:
    """What the machine knows of a file beyond what the plain directory knows."""

    sealed: bool = False
    writers: int = 0
    gone: bool = False
    """It has no name any more."""
    touched: set[int] = field(default_factory=set)
    """Blocks that may be data: written or allocated since they were last a hole."""

    def touch(self, offset: int, length: int) -> None:
        if length:
            self.touched.update(range(offset // BLOCK, (offset + length - 1) // BLOCK + 1))

    def punch(self, offset: int, length: int) -> None:
        self.touched.difference_update(range(-(-offset // BLOCK), (offset + length) // BLOCK))

    def cut(self, size: int) -> None:
        self.touched = {block for block in self.touched if block * BLOCK < size}


@dataclass
class Handle:
    """An open file of both directories."""

    number: int
    content: Content
    writable: bool


class MountMachine(RuleBasedStateMachine):
    """Three names, up to four handles; every operation is done in both directories and compared."""

    store: FileAgent
    plain: FileAgent
    portable: bool
    events: Counter[str]
    runs = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.prefix = f"run{next(self.runs)}-"
        self.numbers = itertools.count(1)
        self.files: dict[str, Content] = {}
        self.handles: list[Handle] = []

    # -- comparing -----------------------------------------------------------------------------

    def both(self, operation: str, *arguments: object) -> Answer:
        """The answer of both directories, which must be one."""
        expected = getattr(self.plain, operation)(*arguments)
        got = getattr(self.store, operation)(*arguments)
        assert got == expected, f"{operation}{arguments}: {_short(got)}, in a directory {_short(expected)}"
        return got

    def refused(self, error: str, operation: str, *arguments: object) -> None:
        got = getattr(self.store, operation)(*arguments)
        assert got == (None, error), f"{operation}{arguments}: {_short(got)} instead of {error}"
        self.events[f"{operation} refused"] += 1

    def path(self, name: str) -> str:
        return self.prefix + name

    def pick(self, choice: int) -> Handle:
        return self.handles[choice % len(self.handles)]

    def is_sealed(self, name: str) -> bool:
        return name in self.files and self.files[name].sealed

    # -- opening and closing -------------------------------------------------------------------

    @precondition(lambda self: len(self.handles) < 4)
    @rule(name=NAMES, flags=OPENS)
    def open(self, name: str, flags: int) -> None:
        writable = flags & os.O_ACCMODE != os.O_RDONLY
        number = next(self.numbers)
        if self.is_sealed(name) and writable and not flags & os.O_EXCL:
            self.refused("EPERM", "open", number, self.path(name), flags)
            return
        _, error = self.both("open", number, self.path(name), flags)
        if error:
            return
        content = self.files.setdefault(name, Content())
        if flags & os.O_TRUNC:
            content.touched.clear()
        content.writers += writable
        self.handles.append(Handle(number, content, writable))

    @precondition(lambda self: self.handles)
    @rule(choice=st.integers(0, 3))
    def close(self, choice: int) -> None:
        handle = self.handles.pop(choice % len(self.handles))
        self.both("close", handle.number)
        handle.content.writers -= handle.writable

    # -- data ----------------------------------------------------------------------------------

    @precondition(lambda self: self.handles)
    @rule(choice=st.integers(0, 3), offset=SPOTS, length=SIZES, seed=SEEDS)
    def pwrite(self, choice: int, offset: int, length: int, seed: int) -> None:
        handle = self.pick(choice)
        _, error = self.both("pwrite", handle.number, offset, seed, length)
        if not error:
            handle.content.touch(offset, length)
            self.events["written"] += 1

    @rule(name=NAMES, length=SIZES, seed=SEEDS)
    def append(self, name: str, length: int, seed: int) -> None:
        if self.is_sealed(name):
            self.refused("EPERM", "append", self.path(name), seed, length)
            return
        size, _ = self.both("size", self.path(name))
        _, error = self.both("append", self.path(name), seed, length)
        if not error:
            self.files[name].touch(size, length)

    @precondition(lambda self: self.handles)
    @rule(choice=st.integers(0, 3), offset=SPOTS, length=SIZES)
    def pread(self, choice: int, offset: int, length: int) -> None:
        self.both("pread", self.pick(choice).number, offset, length)

    @rule(name=NAMES)
    def read_all(self, name: str) -> None:
        self.both("content", self.path(name))
        self.both("size", self.path(name))

    @rule(name=NAMES, size=SPOTS)
    def truncate(self, name: str, size: int) -> None:
        if self.is_sealed(name):
            self.refused("EPERM", "truncate", self.path(name), size)
            return
        _, error = self.both("truncate", self.path(name), size)
        if not error:
            self.files[name].cut(size)

    @precondition(lambda self: self.handles)
    @rule(choice=st.integers(0, 3), size=SPOTS)
    def ftruncate(self, choice: int, size: int) -> None:
        handle = self.pick(choice)
        _, error = self.both("ftruncate", handle.number, size)
        if not error:
            handle.content.cut(size)

    @precondition(lambda self: self.handles and not self.portable)
    @rule(
        choice=st.integers(0, 3),
        mode=st.sampled_from([0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE]),
        offset=SPOTS,
        length=SIZES,
    )
    def fallocate(self, choice: int, mode: int, offset: int, length: int) -> None:
        handle = self.pick(choice)
        _, error = self.both("fallocate", handle.number, mode, offset, length)
        if error:
            return
        if mode & PUNCH_HOLE:
            handle.content.punch(offset, length)
            self.events["punched"] += 1
        else:
            handle.content.touch(offset, length)

    @precondition(lambda self: self.handles)
    @rule(choice=st.integers(0, 3), offset=SPOTS, length=SIZES, seed=SEEDS)
    def map_write(self, choice: int, offset: int, length: int, seed: int) -> None:
        handle = self.pick(choice)
        _, error = self.both_mapping("map_write", handle, offset, seed, length)
        if not error:
            handle.content.touch(offset, length)
            self.events["mapped"] += 1

    @precondition(lambda self: self.handles)
    @rule(choice=st.integers(0, 3))
    def map_read(self, choice: int) -> None:
        self.both_mapping("map_read", self.pick(choice))

    def both_mapping(self, operation: str, handle: Handle, *arguments: object) -> Answer:
        """Like `both`, but for empty files, which Python refuses to map before asking the kernel."""
        if self.portable and handle.content.gone:
            return (
                None,
                "libfuse 2 knows no attributes of a file without a name, and mapping asks for its size",
            )
        size, _ = self.both("fstat_size", handle.number)
        return self.both(operation, handle.number, *arguments) if size else (None, "empty")

    @precondition(lambda self: self.handles)
    @rule(choice=st.integers(0, 3), data_only=st.booleans())
    def fsync(self, choice: int, data_only: bool) -> None:
        self.both("fsync", self.pick(choice).number, data_only)

    @precondition(lambda self: self.handles and not self.portable)
    @rule(choice=st.integers(0, 3))
    def seek(self, choice: int) -> None:
        """Data is told to be where bytes other than zero are, and nowhere that was never written."""
        handle = self.pick(choice)
        size, _ = self.both("fstat_size", handle.number)
        content, error = self.plain.pread(handle.number, 0, size)
        if error:  # open for writing only
            return
        got, error = self.store.data_ranges(handle.number)
        assert error is None
        told = {block for start, end in got for block in range(start // BLOCK, -(-end // BLOCK))}
        blocks = -(-size // BLOCK)
        full = {block for block in range(blocks) if any(content[block * BLOCK : (block + 1) * BLOCK])}
        if handle.content.sealed:
            assert told == full
            self.events["holes of sealed data"] += 1
        else:
            assert full <= told <= handle.content.touched & set(range(blocks))

    # -- names ---------------------------------------------------------------------------------

    @rule(old=NAMES, new=NAMES)
    def rename(self, old: str, new: str) -> None:
        _, error = self.both("rename", self.path(old), self.path(new))
        if not error and old != new:
            self.leave(new)
            self.files[new] = self.files.pop(old)

    @rule(name=NAMES)
    def unlink(self, name: str) -> None:
        _, error = self.both("unlink", self.path(name))
        if not error:
            self.leave(name)

    def leave(self, name: str) -> None:
        """The file of this name, if there is one, has lost it."""
        gone = self.files.pop(name, None)
        if gone is not None:
            gone.gone = True
            self.events["gone"] += 1
            self.events["gone while open"] += any(handle.content is gone for handle in self.handles)

    @rule()
    def list(self) -> None:
        self.both("names", self.prefix)

    # -- sealing -------------------------------------------------------------------------------

    @rule(name=NAMES)
    def seal(self, name: str) -> None:
        content = self.files.get(name)
        if content is None:
            self.refused("ENOENT", "seal", self.path(name))
        elif content.writers and not content.sealed:
            self.refused("EBUSY", "seal", self.path(name))
        elif not content.sealed:
            deadline = time.monotonic() + 5
            # The kernel tells of a last close after close(2) has returned.
            while (got := self.store.seal(self.path(name))) == (
                None,
                "EBUSY",
            ) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert got == (None, None)
            assert self.store.status(self.path(name)) == ("active", None)
            content.sealed = True
            self.events["sealed"] += 1

    @precondition(lambda self: len(self.handles) < 4)
    @rule(
        name=NAMES,
        pieces=st.lists(st.tuples(SPOTS, SIZES, SEEDS), min_size=1, max_size=4),
        size=st.one_of(st.none(), SPOTS),
        read=SPOTS,
        at_last=NAMES,
    )
    def new_image(
        self, name: str, pieces: list[tuple[int, int, int]], size: int | None, read: int, at_last: str
    ) -> None:
        """Unlink, create, write, cut, close, seal, read, rename: what a copy does, at one go."""
        self.unlink(name)
        self.open(name, os.O_RDWR | os.O_CREAT)
        last = len(self.handles) - 1
        for offset, length, seed in pieces:
            self.pwrite(last, offset, length, seed)
        if size is not None:
            self.ftruncate(last, size)
        self.close(last)
        self.seal(name)
        self.open(name, os.O_RDWR)
        self.truncate(name, read)
        if len(self.handles) < 4:
            self.open(name, os.O_RDONLY)
            last = len(self.handles) - 1
            self.pread(last, read, 100_000)
            self.map_read(last)
            if not self.portable:
                self.seek(last)
        self.rename(name, at_last)
        self.read_all(at_last)

    @precondition(lambda self: len(self.handles) < 4)
    @rule(name=NAMES, length=st.integers(1, 400_000), offset=SPOTS, hole=SIZES, seed=SEEDS)
    def new_draft(self, name: str, length: int, offset: int, hole: int, seed: int) -> None:
        """A file that is written, mapped and punched, and stays open."""
        self.unlink(name)
        self.open(name, os.O_RDWR | os.O_CREAT)
        last = len(self.handles) - 1
        self.pwrite(last, 0, length, seed)
        self.map_write(last, offset, hole, seed)
        if not self.portable:
            self.fallocate(last, PUNCH_HOLE | KEEP_SIZE, offset, max(1, hole))
            self.seek(last)
        self.map_read(last)

    def teardown(self) -> None:
        while self.handles:
            self.close(0)
        self.list()
        for name in list(self.files):
            self.read_all(name)
            self.unlink(name)


def _short(answer: Answer) -> str:
    return repr(answer) if len(repr(answer)) < 200 else f"{repr(answer)[:100]}... of {len(answer[0])}"


@pytest.fixture(params=TRANSPORTS)
def mounted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mounted]:
    """A mount that seals nothing by itself while the machine runs."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no access to /dev/fuse")
    if request.param == "fusepy" and ctypes.util.find_library("fuse") is None:
        pytest.skip("libfuse 2 is not installed (Debian: libfuse2)")
    with Mounted(tmp_path, transport=request.param, settle=3600, patience=1800) as mounted:
        yield mounted


@pytest.mark.timeout(1800)
def test_the_mount_is_a_directory(mounted: Mounted, tmp_path: Path) -> None:
    directory = tmp_path / "plain"
    directory.mkdir()
    events: Counter[str] = Counter()
    profile = settings.get_current_profile_name()
    examples = max(10, settings.get_profile(profile).max_examples // 2)
    with FileAgent(mounted.by_name) as store, FileAgent(directory) as plain:
        portable = mounted.transport == "fusepy"
        machine = type(
            "Machine",
            (MountMachine,),
            {"store": store, "plain": plain, "portable": portable, "events": events},
        )
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    # A machine can be green and blind: it must have met what it is there for.
    wanted = {"sealed", "written", "mapped", "open refused", "truncate refused", "gone", "gone while open"}
    wanted |= set() if portable else {"punched", "holes of sealed data"}
    assert {event: events[event] for event in wanted if events[event] < 3} == {}
    mounted.command("fsck")
