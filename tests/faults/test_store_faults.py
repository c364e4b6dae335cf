"""Stores when things go wrong: what the file store makes of it, and that the faulty store does as planned."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from imagefs.errors import BackendFailed, BackendTimeout, Exists, NoSpace, NotFound
from imagefs.stores import FileStore, MemoryStore, Space
from imagefs.stores.faults import Fault, FaultyStore, Kind, Plan, Step

NAME = "packs/ab/ab00112233445566778899aabbccddee"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


def files(path: Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


class TestFileStore:
    @pytest.mark.parametrize(
        ("code", "error"),
        [("ENOSPC", NoSpace), ("EDQUOT", NoSpace), ("EIO", BackendFailed), ("ETIMEDOUT", BackendTimeout)],
    )
    @pytest.mark.parametrize("call", ["writev", "fdatasync", "link", "fsync"])
    def test_a_failed_put_leaves_nothing_half_done(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: str, error: type[Exception]
    ) -> None:
        store = FileStore(path)
        store.put("packs/ab/before", b"before")

        def fail(*_args: object) -> None:
            raise OSError(getattr(__import__("errno"), code), "planned")

        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(error, match=NAME):
                store.put(NAME, [b"x" * 5000, b"y"])
        assert files(path) in (["packs/ab/before"], [NAME, "packs/ab/before"])
        if files(path) == ["packs/ab/before"]:
            with pytest.raises(NotFound):
                store.get(NAME)
            store.put(NAME, b"again")
        else:  # only when the last step failed: whole, though not known to be durable
            assert call == "fsync"
            assert store.get(NAME) == b"x" * 5000 + b"y"
        store.close()

    def test_a_system_that_takes_little_at_a_time_gets_everything(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        writev, pread = os.writev, os.pread
        monkeypatch.setattr(os, "writev", lambda number, parts: writev(number, [bytes(parts[0])[:700]]))
        monkeypatch.setattr(os, "pread", lambda number, length, at: pread(number, min(length, 700), at))
        content = bytes(range(250)) * 40
        store = FileStore(path)
        store.put(NAME, [content[:1], content[1:1500], content[1500:]])
        assert store.get(NAME) == content
        assert store.get(NAME, 300, 2000) == content[300:2300]
        store.close()

    def test_an_object_that_became_shorter_is_read_as_it_is(self, path: Path) -> None:
        store = FileStore(path)
        store.put(NAME, b"0123456789")
        assert store.get(NAME, 0, 2) == b"01"
        os.truncate(path / NAME, 5)
        assert store.get(NAME, 2, 6) == b"234"
        store.close()

    def test_an_object_is_durable_before_it_has_its_name(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """File, then name, then every directory that got an entry, outermost first."""
        done: list[str] = []

        def record(call: str) -> None:
            real = getattr(os, call)

            def recorded(*args: object) -> object:
                about = args[-1]
                name = str(Path(f"/proc/self/fd/{about}").readlink()) if isinstance(about, int) else str(about)
                relative = os.path.relpath(name, path.parent)
                done.append(f"{call} {re.sub('[.][0-9a-f]+[.]tmp', '.tmp', relative)}")
                return real(*args)

            monkeypatch.setattr(os, call, recorded)

        for call in ("fsync", "fdatasync", "link"):
            record(call)
        store = FileStore(path)
        store.put(NAME, b"x")
        in_directory = f"store/{Path(NAME).parent}"
        first = ["fsync .", "fsync store", "fsync store/packs"]
        put = [f"fdatasync store/{NAME}.tmp", f"link store/{NAME}", f"fsync {in_directory}"]
        assert done == first + put
        done.clear()
        with pytest.raises(Exists):
            store.put(NAME, b"y")
        assert done == put, "the object that is there must be durable when Exists says so"
        done.clear()
        store.delete(NAME)
        assert done == [f"fsync {in_directory}"]
        store.close()

    def test_files_of_others_are_no_objects(self, path: Path) -> None:
        store = FileStore(path)
        store.put(NAME, b"x")
        for stranger in ("lost+found/x", ".snapshot/a", "packs/ab/.nfs001", "packs/ab/x.tmp", "ä"):
            file = path / stranger
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(b"")
        (path / os.fsdecode(b"\xff")).write_bytes(b"")
        assert list(store.list("")) == [NAME]
        store.close()

    def test_what_a_killed_writer_leaves_is_not_listed_and_can_be_purged(self, path: Path) -> None:
        program = (
            "import os, pathlib, sys; from imagefs.stores import FileStore\n"
            "os.fdatasync = lambda number: os._exit(9)\n"
            f"FileStore(pathlib.Path(sys.argv[1])).put({NAME!r}, b'x' * 100)"
        )
        died = subprocess.run([sys.executable, "-c", program, str(path)], timeout=60, check=False)
        assert died.returncode == 9
        assert len(files(path)) == 1
        store = FileStore(path)
        assert list(store.list("")) == []
        store.put(NAME, b"y")
        assert store.purge() == 1
        assert files(path) == [NAME]
        store.close()

    def test_purging_spares_writers_that_live(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store, other = FileStore(path), FileStore(path)
        fdatasync = os.fdatasync

        def purge_first(number: int) -> None:
            assert other.purge() == 0
            fdatasync(number)

        monkeypatch.setattr(os, "fdatasync", purge_first)
        store.put(NAME, b"x")
        assert other.get(NAME) == b"x"
        store.close()
        other.close()

    def test_a_purge_between_making_and_locking_the_file_does_no_harm(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store, other = FileStore(path), FileStore(path)
        fcntl = __import__("fcntl")
        flock = fcntl.flock
        purged: list[int] = []

        def purge_first(number: int, operation: int) -> None:
            if operation == fcntl.LOCK_SH and not purged:
                purged.append(0)
                purged[0] = other.purge()
            flock(number, operation)

        monkeypatch.setattr(fcntl, "flock", purge_first)
        store.put(NAME, b"x")
        assert purged == [1]
        assert files(path) == [NAME]
        store.close()
        other.close()

    def test_the_number_of_open_descriptors_is_bounded(self, path: Path) -> None:
        store = FileStore(path, fsync=False, descriptors=10)
        names = [f"packs/{number:02x}" for number in range(100)]
        for name in names:
            store.put(name, name.encode())
        before = len(os.listdir("/proc/self/fd"))
        for name in names * 2:
            assert store.get(name) == name.encode()
        assert len(os.listdir("/proc/self/fd")) == before + 10
        store.close()
        assert len(os.listdir("/proc/self/fd")) == before

    def test_descriptors_in_use_are_never_mixed_up(self, path: Path) -> None:
        """More readers than descriptors: one is let go while another thread reads through it."""
        store = FileStore(path, fsync=False, descriptors=2)
        names = [f"packs/{number:02x}" for number in range(16)]
        for name in names:
            store.put(name, name.encode() * 1000)
        wrong: list[str] = []

        def read(turn: int) -> None:
            for number in range(3000):
                name = names[(number * (turn + 1)) % 16]
                if store.get(name, 8 * 500, 8) != name.encode():
                    wrong.append(name)

        readers = [threading.Thread(target=read, args=(turn,)) for turn in range(6)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(60)
        assert wrong == []
        store.close()

    def test_space_of_objects_that_others_deleted_comes_back(self, path: Path) -> None:
        store, other = FileStore(path), FileStore(path)
        store.put(NAME, b"x")
        store.get(NAME)
        other.delete(NAME)
        store.space()
        targets = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
        assert not [target for target in targets if NAME in target]
        with pytest.raises(NotFound):
            store.get(NAME)
        store.close()
        other.close()

    def test_a_place_that_cannot_be_a_store_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(BackendFailed, match=re.escape(str(tmp_path / "file" / "store"))):
            FileStore(tmp_path / "file" / "store")


def faulty(*faults: Fault) -> FaultyStore:
    return FaultyStore(MemoryStore(), Plan(*faults))


class TestFaultyStore:
    def test_the_nth_operation_fails_and_no_other(self) -> None:
        store = faulty(Fault("put", Kind.FAIL, nth=2, error=NoSpace))
        store.put("a", b"")
        with pytest.raises(NoSpace, match="put b"):
            store.put("b", b"")
        store.put("c", b"")
        assert list(store.list("")) == ["a", "c"]

    def test_every_operation_on_a_prefix_fails(self) -> None:
        store = faulty(Fault("*", Kind.FAIL, prefix="packs/"))
        store.put("maps/a", b"x")
        for operation in (store.get, store.size, store.delete, store.list):
            with pytest.raises(BackendFailed):
                operation("packs/a")
        store.plan.clear()
        assert list(store.list("packs/")) == []

    def test_an_answer_gets_lost(self) -> None:
        store = faulty(Fault("put", Kind.FAIL_AFTER, nth=1))
        with pytest.raises(BackendFailed):
            store.put("a", b"x")
        assert store.get("a") == b"x"
        with pytest.raises(Exists):
            store.put("a", b"x")

    def test_a_read_is_short_or_flipped(self) -> None:
        store = faulty(Fault("get", Kind.SHORT, nth=1, amount=2), Fault("get", Kind.FLIP, nth=2, amount=9))
        store.put("a", b"abc")
        assert store.get("a") == b"a"
        assert store.get("a") == b"a`c"
        assert store.get("a") == b"abc"

    def test_stored_bytes_are_flipped(self) -> None:
        store = faulty(Fault("put", Kind.FLIP, amount=0))
        store.put("a", [b"a", b"b"])
        assert store.inner.get("a") == b"`b"

    def test_a_put_is_torn(self) -> None:
        store = faulty(Fault("put", Kind.TORN, amount=3))
        with pytest.raises(BackendFailed):
            store.put("a", [b"ab", b"cd"])
        assert store.get("a") == b"abc"

    def test_puts_and_deletes_are_lost(self) -> None:
        store = faulty(Fault("*", Kind.LOST, prefix="lost"))
        store.put("lost", b"x")
        assert list(store.list("")) == []
        store.inner.put("lost", b"x")
        store.delete("lost")
        assert store.get("lost") == b"x"

    def test_a_listing_is_stale(self) -> None:
        store = faulty()
        store.put("a", b"")
        store.put("b", b"")
        store.delete("a")
        store.delete("never-there")
        store.plan.add(Fault("list", Kind.STALE, amount=2))
        assert list(store.list("")) == ["a"]
        store.plan.clear()
        assert list(store.list("")) == ["b"]

    def test_a_call_hangs_until_released(self) -> None:
        store = faulty(Fault("put", Kind.HANG, amount=60))
        thread = threading.Thread(target=store.put, args=("a", b"x"))
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        assert list(store.list("")) == []
        store.plan.release()
        thread.join(10)
        assert store.get("a") == b"x"

    def test_a_call_that_is_never_released_times_out(self) -> None:
        store = faulty(Fault("get", Kind.HANG, amount=0))
        with pytest.raises(BackendTimeout):
            store.get("a")

    def test_every_moment_is_a_step_and_every_call_counted(self) -> None:
        steps: list[Step] = []
        store = FaultyStore(MemoryStore(), Plan(on_step=steps.append))
        store.put("a", b"x")
        store.plan.add(Fault("put", Kind.TORN))
        with pytest.raises(BackendFailed):
            store.put("b", b"xy")
        assert store.space() == Space(1 << 50, (1 << 50) - 2)
        assert [(step.number, step.op, step.name, step.moment) for step in steps] == [
            (1, "put", "a", "before"),
            (2, "put", "a", "after"),
            (3, "put", "b", "before"),
            (4, "put", "b", "torn"),
            (5, "space", "", "before"),
            (6, "space", "", "after"),
        ]
        assert store.plan.calls == {"put": 2, "space": 1}


def test_a_full_memory_store_says_so() -> None:
    store = MemoryStore(capacity=10)
    store.put("a", b"123456")
    with pytest.raises(NoSpace, match="b"):
        store.put("b", b"12345")
    assert store.space() == Space(10, 4)
    store.delete("a")
    store.put("b", b"12345")
