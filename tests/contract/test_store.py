"""What every store must do: one body for all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from imagefs.errors import Exists, InvalidValue, NotFound
from imagefs.stores import FileStore, MemoryStore, Store
from imagefs.stores.faults import FaultyStore

PACK = "packs/ab/ab00112233445566778899aabbccddee"
MANIFEST = "maps/8b0e1a52-6f0c-4e0e-9b87-0f2a4f6f6d11"

Make = Callable[[Path], Store]

STORES: dict[str, Make] = {
    "file": FileStore,
    "file-without-fsync": lambda path: FileStore(path, fsync=False),
    "file-with-one-descriptor": lambda path: FileStore(path, descriptors=1),
    "memory": lambda _: MemoryStore(),
    "faulty-file": lambda path: FaultyStore(FileStore(path)),
    "faulty-memory": lambda _: FaultyStore(MemoryStore()),
}


@pytest.fixture(params=STORES.values(), ids=STORES.keys())
def make(request: pytest.FixtureRequest) -> Make:
    return request.param


@pytest.fixture
def store(make: Make, tmp_path: Path) -> Iterator[Store]:
    made = make(tmp_path / "store")
    yield made
    made.close()


def test_an_object_reads_back_as_it_was_put(store: Store) -> None:
    content = bytes(range(256)) * 1000
    store.put(PACK, content)
    assert store.get(PACK) == content
    assert store.size(PACK) == len(content)


def test_parts_follow_one_another_in_the_object(store: Store) -> None:
    parts = [b"head", bytearray(b"-"), memoryview(b"xbodyx")[1:-1], b"", memoryview(b"12345678").cast("I")]
    store.put(PACK, parts)
    assert store.get(PACK) == b"head-body12345678"


def test_an_object_may_have_thousands_of_parts(store: Store) -> None:
    parts = [index.to_bytes(3, "big") for index in range(5000)]
    store.put(PACK, parts)
    assert store.get(PACK) == b"".join(parts)


@pytest.mark.parametrize("empty", [b"", [], [b"", b""]], ids=["bytes", "no parts", "empty parts"])
def test_an_object_may_be_empty(store: Store, empty: bytes | list[bytes]) -> None:
    store.put(PACK, empty)
    assert (store.get(PACK), store.size(PACK), list(store.list(""))) == (b"", 0, [PACK])


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, None, b"0123456789"),
        (3, None, b"3456789"),
        (0, 4, b"0123"),
        (3, 4, b"3456"),
        (8, 4, b"89"),
        (10, 4, b""),
        (10, None, b""),
        (99, 1, b""),
        (99, None, b""),
        (5, 0, b""),
    ],
)
def test_a_range_is_what_the_object_has_of_it(store: Store, offset: int, length: int | None, expected: bytes) -> None:
    store.put(PACK, b"0123456789")
    assert store.get(PACK, offset, length) == expected


def test_what_comes_back_does_not_change_with_the_buffers_that_were_put(store: Store) -> None:
    buffer = bytearray(b"before")
    store.put(PACK, buffer)
    buffer[:] = b"after!"
    assert store.get(PACK) == b"before"


def test_a_name_is_given_once(store: Store) -> None:
    store.put(PACK, b"first")
    with pytest.raises(Exists, match=PACK):
        store.put(PACK, b"second")
    assert store.get(PACK) == b"first"
    assert list(store.list("")) == [PACK]


def test_of_many_who_put_the_same_name_one_succeeds(store: Store) -> None:
    together = threading.Barrier(8, timeout=30)

    def put(number: int) -> bytes | None:
        content = bytes([number]) * 100_000
        together.wait()
        try:
            store.put(PACK, content)
        except Exists:
            return None
        return content

    with ThreadPoolExecutor(8) as pool:
        winners = [content for content in pool.map(put, range(8)) if content]
    assert winners == [store.get(PACK)]
    assert list(store.list("")) == [PACK]


def test_missing_objects_are_not_found(store: Store) -> None:
    store.put(PACK, b"x")
    for name in (MANIFEST, "owner.json", "packs/ab", "packs/cd/ef", PACK + "/below", PACK[:-1]):
        with pytest.raises(NotFound, match=name):
            store.get(name)
        with pytest.raises(NotFound, match=name):
            store.get(name, 5, 5)
        with pytest.raises(NotFound, match=name):
            store.size(name)


def test_a_deleted_object_is_gone_and_its_name_free(store: Store) -> None:
    store.put(PACK, b"first")
    store.get(PACK)
    store.delete(PACK)
    assert list(store.list("")) == []
    with pytest.raises(NotFound):
        store.get(PACK)
    with pytest.raises(NotFound):
        store.size(PACK)
    store.put(PACK, b"second")
    assert store.get(PACK) == b"second"


def test_deleting_what_is_not_there_succeeds(store: Store) -> None:
    store.put(PACK, b"x")
    for name in (MANIFEST, "packs/ab", "packs/cd/ef", PACK + "/below"):
        store.delete(name)
    assert store.get(PACK) == b"x"


def test_a_listing_has_what_begins_with_the_prefix_in_order(store: Store) -> None:
    names = ["log/00", "log/01", "owner.json", "packs/ab/1", "packs/ab.x", "packs/ab-x", "packs/abc/2", "p"]
    for name in names:
        store.put(name, b"")
    assert list(store.list("")) == sorted(names)
    assert list(store.list("packs/")) == ["packs/ab-x", "packs/ab.x", "packs/ab/1", "packs/abc/2"]
    assert list(store.list("packs/ab")) == ["packs/ab-x", "packs/ab.x", "packs/ab/1", "packs/abc/2"]
    assert list(store.list("packs/ab/")) == ["packs/ab/1"]
    assert list(store.list("packs/ab/1")) == ["packs/ab/1"]
    assert list(store.list("log/0")) == ["log/00", "log/01"]
    assert list(store.list("maps/")) == []
    assert list(store.list("owner.json/")) == []


def test_what_a_listing_names_may_be_deleted_meanwhile(store: Store) -> None:
    names = [f"packs/{number:02x}/{number:04x}" for number in range(50)]
    for name in names:
        store.put(name, b"x")
    for name in store.list("packs/"):
        store.delete(name)
    assert list(store.list("")) == []


ELSEWHERE = ["", "/", "/abs", "a/", "a//b", ".", "..", "a/../b", "../a", ".hidden", "a/.hidden"]
NO_NAMES = ["a.tmp", "a/b.tmp", "a\0", "a\n", "ä", "a b", "a%2fb", "a\\b", "x" * 256]


@pytest.mark.parametrize("name", [*ELSEWHERE, *NO_NAMES])
def test_names_that_lead_elsewhere_are_refused(store: Store, tmp_path: Path, name: str) -> None:
    for operation in (store.get, store.size, store.delete, lambda name: store.put(name, b"x")):
        with pytest.raises(InvalidValue):
            operation(name)
    assert list(store.list("")) == []
    assert [path.name for path in tmp_path.iterdir() if path.name != "store"] == []


@pytest.mark.parametrize("prefix", ["ä", "a b", "a\0"])
def test_a_prefix_that_no_name_has_is_refused(store: Store, prefix: str) -> None:
    with pytest.raises(InvalidValue):
        store.list(prefix)


@pytest.mark.parametrize("prefix", ["../", "/", "a//", "./", ".."])
def test_a_listing_does_not_leave_the_store(store: Store, tmp_path: Path, prefix: str) -> None:
    (tmp_path / "outside").write_bytes(b"")
    store.put(PACK, b"x")
    assert list(store.list(prefix)) == []


def test_space_is_in_bytes_and_sane(store: Store) -> None:
    store.put(PACK, bytes(100_000))
    space = store.space()
    assert 0 < space.free <= space.total


def test_many_threads_may_do_anything_at_once(store: Store) -> None:
    def life(number: int) -> None:
        for turn in range(10):
            name = f"packs/{number:02x}/{turn:08x}"
            content = bytes([number, turn]) * 5000
            store.put(name, content)
            assert store.get(name, 5001, 3) == content[5001:5004]
            assert name in list(store.list(f"packs/{number:02x}/"))
            assert store.size(name) == len(content)
            if turn % 2:
                store.delete(name)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(life, range(6), timeout=60))
    assert len(list(store.list(""))) == 6 * 5


def test_readers_see_an_object_whole_or_not_at_all(store: Store) -> None:
    content = b"0123456789abcdef" * 65_536
    done = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not done.is_set():
            try:
                seen.append(len(store.get(PACK)))
            except NotFound:
                continue

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(20):
            store.put(PACK, [content[:1000], content[1000:]])
            store.delete(PACK)
    finally:
        done.set()
        reader.join(30)
    assert set(seen) <= {len(content)}


NAMES = [PACK, MANIFEST, "owner.json", "log/0000000000000001", "packs/ab/x", "packs/cd/x"]


class StoreMachine(RuleBasedStateMachine):
    """Any sequence of calls answers as a dictionary would."""

    make: Callable[[], Store]

    @initialize()
    def start(self) -> None:
        self.store = self.make()
        self.model: dict[str, bytes] = {}

    @rule(name=st.sampled_from(NAMES), content=st.binary(max_size=200))
    def put(self, name: str, content: bytes) -> None:
        if name in self.model:
            with pytest.raises(Exists):
                self.store.put(name, content)
        else:
            self.store.put(name, content)
            self.model[name] = content

    @rule(name=st.sampled_from(NAMES))
    def delete(self, name: str) -> None:
        self.store.delete(name)
        self.model.pop(name, None)

    @rule(
        name=st.sampled_from(NAMES),
        offset=st.integers(0, 250),
        length=st.none() | st.integers(0, 250),
    )
    def get(self, name: str, offset: int, length: int | None) -> None:
        if name not in self.model:
            with pytest.raises(NotFound):
                self.store.get(name, offset, length)
        else:
            end = None if length is None else offset + length
            assert self.store.get(name, offset, length) == self.model[name][offset:end]

    @rule(prefix=st.sampled_from(["", "packs/", "packs/ab", "packs/ab/", "log/00"]))
    def names(self, prefix: str) -> None:
        assert list(self.store.list(prefix)) == sorted(n for n in self.model if n.startswith(prefix))

    @invariant()
    def sizes_are_right(self) -> None:
        for name, content in self.model.items():
            assert self.store.size(name) == len(content)

    def teardown(self) -> None:
        self.store.close()


def test_any_sequence_of_calls_answers_as_a_dictionary_would(make: Make, tmp_path: Path) -> None:
    runs = iter(range(1_000_000))

    class Machine(StoreMachine):
        make = staticmethod(lambda: make(tmp_path / str(next(runs))))

    settings = hypothesis.settings(max_examples=20, stateful_step_count=25)
    hypothesis.stateful.run_state_machine_as_test(Machine, settings=settings)
