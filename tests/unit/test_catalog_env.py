"""The LMDB environment: damage, other versions, other processes, small maps, full disks."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import lmdb
import pytest

from imagefs.catalog import Catalog, probe
from imagefs.catalog.env import MAP_SIZE, Environment
from imagefs.errors import Busy, CatalogDamaged, Exists, NewerVersion, NoSpace, Refused
from imagefs.types import Image
from tests.catalogs import assert_sound, draft, opened, sealed, session

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 30.0
PRELUDE = """
import os, sys, time
from pathlib import Path
from uuid import UUID, uuid4
from imagefs.catalog import Catalog
from imagefs.types import Image
path = Path(sys.argv[1])
def say(word):
    print(word, flush=True)
"""


@contextmanager
def child(path: Path, code: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the catalog's path; killed at the end at the latest."""
    process = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=DEADLINE_S)


def heard(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def finish(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, out
    return out.strip()


def add(catalog: Catalog, name: str | None = None) -> Image:
    return catalog.images.add(Image(id=uuid4(), name=name))


def made(tmp_path: Path, images: int = 50) -> Path:
    path = tmp_path / "catalog"
    with opened(path) as catalog, catalog.transaction():
        for n in range(images):
            add(catalog, f"image {n}")
    return path


# -- opening -------------------------------------------------------------------------------------


def test_create_and_open(tmp_path: Path) -> None:
    path, repo = tmp_path / "catalog", uuid4()
    catalog = Catalog.create(path, repo)
    try:
        assert catalog.repo == repo and catalog.path == path and catalog.generation() == 0
        with pytest.raises(Busy):
            Catalog.open(path)
        info = catalog.info()
        assert info["images"] == 0 and info["reserve_bytes"] > 0
    finally:
        catalog.close()
    with pytest.raises(Exists):
        Catalog.create(path, uuid4())
    with opened(path) as again:
        assert again.repo == repo


def test_a_creation_that_died_is_begun_again(tmp_path: Path) -> None:
    half = tmp_path / "catalog.new"
    half.mkdir()
    (half / "data.mdb").write_bytes(b"")
    with opened(tmp_path / "catalog") as catalog:
        add(catalog)
    assert not half.exists()


@pytest.mark.parametrize("content", [None, b"", b"no lmdb at all", b"x" * 8192, bytes(1 << 16)])
def test_what_is_no_catalog_is_damaged(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "data.mdb").write_bytes(content)
    with pytest.raises(CatalogDamaged):
        Catalog.open(tmp_path)


@pytest.mark.parametrize("part", [0.5, 0.9, 0.1])
def test_a_truncated_file_is_refused_and_kills_nobody(tmp_path: Path, part: float) -> None:
    path = made(tmp_path, 3000)
    data = path / "data.mdb"
    os.truncate(data, int(data.stat().st_size * part) // 4096 * 4096)
    with pytest.raises(CatalogDamaged, match=r"truncated"):
        Catalog.open(path)


def test_a_short_file_that_is_whole_is_opened(tmp_path: Path) -> None:
    """LMDB does not write the last pages of a transaction that freed them again: nothing is lost with
    them."""
    rng = random.Random(5)
    with lmdb.open(str(tmp_path / "env"), map_size=1 << 30, max_dbs=4, sync=False) as env:
        tables = [env.open_db(b"t%d" % n) for n in range(3)]
        for _ in range(3000):
            with env.begin(write=True) as txn:
                keys = [(rng.randbytes(rng.choice([1, 2, 8])), rng.choice(tables)) for _ in range(rng.choice([3, 100]))]
                for key, table in keys:
                    txn.put(key, bytes(rng.choice([10, 700, 5000])), db=table)
                for key, table in keys[: rng.randrange(len(keys))]:
                    txn.delete(key, db=table)
            needed = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
            if (tmp_path / "env/data.mdb").stat().st_size < needed:
                break
        else:
            pytest.skip("this LMDB writes every page")
    probe.check(tmp_path / "env")
    os.truncate(tmp_path / "env/data.mdb", needed // 2 // 4096 * 4096)
    with pytest.raises(CatalogDamaged):
        probe.check(tmp_path / "env")


def test_a_commit_leaves_no_short_file(tmp_path: Path) -> None:
    with opened(tmp_path / "catalog") as catalog:
        rng = random.Random(2)
        images = [add(catalog, "x" * 100) for _ in range(20)]
        for _ in range(60):
            with catalog.transaction():
                for image in rng.sample(images, 5):
                    size = rng.choice([0, 10, 50_000])
                    catalog.images.update(image.id, lambda i, s=size: replace(i, xattrs={"user.x": bytes(s)}))
            assert (catalog.path / "data.mdb").stat().st_size >= catalog.env.used()


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = made(tmp_path)
    with lmdb.open(str(path), max_dbs=64, map_size=1 << 30) as env, env.begin(write=True) as txn:
        txn.put(b"schema", (99).to_bytes(8), db=env.open_db(b"meta", txn=txn))
        txn.drop(env.open_db(b"holds", txn=txn))
    with pytest.raises(NewerVersion, match="99"):
        Catalog.open(path)


@pytest.mark.parametrize("what", ["table", "version"])
def test_a_catalog_that_lacks_something_is_damaged(tmp_path: Path, what: str) -> None:
    path = made(tmp_path)
    with lmdb.open(str(path), max_dbs=64, map_size=1 << 30) as env, env.begin(write=True) as txn:
        if what == "table":
            txn.drop(env.open_db(b"holds", txn=txn))
        else:
            txn.delete(b"schema", db=env.open_db(b"meta", txn=txn))
    with pytest.raises(CatalogDamaged):
        Catalog.open(path)


def test_reading_only(tmp_path: Path) -> None:
    path = made(tmp_path)
    catalog = Catalog.open(path, readonly=True)
    try:
        assert catalog.images.count() == 50
        with pytest.raises(Refused):
            add(catalog)
    finally:
        catalog.close()


# -- other processes and threads -------------------------------------------------------------------


def test_processes_and_threads_write_together(tmp_path: Path) -> None:
    path = made(tmp_path, 0)
    code = """
catalog = Catalog.open(path)
say("ready")
for n in range(100):
    catalog.images.add(Image(id=uuid4(), name="same"))
catalog.close()
"""
    with opened(path) as catalog, child(path, code) as one, child(path, code) as two:
        assert heard(one) == heard(two) == "ready"
        threads = [threading.Thread(target=lambda: [add(catalog, "same") for _ in range(50)]) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
        finish(one), finish(two)
        assert catalog.images.count() == 300
        assert len(catalog.images.named("same")) == 300
        assert catalog.images.by_entry(b"same") is not None


def test_changes_of_others_are_seen_at_once(tmp_path: Path) -> None:
    path = made(tmp_path, 0)
    image_id = UUID(int=5)
    code = """
catalog = Catalog.open(path)
catalog.images.add(Image(id=UUID(int=5), name="theirs"))
say("done")
sys.stdin.read()
"""
    with opened(path) as catalog, child(path, code) as process:
        assert heard(process) == "done"
        assert catalog.images.get(image_id).name == "theirs"
        assert [row.image_id for row in catalog.log.since(0)] == [image_id]


def test_a_writer_that_dies_leaves_nothing_and_blocks_nobody(tmp_path: Path) -> None:
    path = made(tmp_path, 1)
    code = """
catalog = Catalog.open(path)
with catalog.transaction():
    for n in range(100):
        catalog.images.add(Image(id=uuid4(), name="never"))
    say("inside")
    time.sleep(60)
"""
    with opened(path) as catalog, child(path, code) as process:
        assert heard(process) == "inside"
        assert catalog.images.count() == 1
        process.send_signal(signal.SIGKILL)
        process.wait(DEADLINE_S)
        started = time.monotonic()
        add(catalog, "mine")
        assert time.monotonic() - started < 5
        assert catalog.images.count() == 2 and catalog.images.named("never") == []


@pytest.mark.expect_log("waited .* for the writer lock")
def test_a_stopped_writer_is_seen(tmp_path: Path) -> None:
    path = made(tmp_path, 0)
    code = """
catalog = Catalog.open(path)
with catalog.transaction():
    say("inside")
    sys.stdin.readline()
"""
    with opened(path) as catalog, child(path, code) as process:
        assert heard(process) == "inside" and catalog.waiting_s() == 0.0
        thread = threading.Thread(target=add, args=(catalog, "late"))
        thread.start()
        deadline = time.monotonic() + DEADLINE_S
        while catalog.waiting_s() < 1.1:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert catalog.images.count() == 0, "readers do not wait"
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        thread.join(DEADLINE_S)
        assert catalog.waiting_s() == 0.0 and catalog.images.count() == 1


def test_dead_readers_are_cleared_away(tmp_path: Path) -> None:
    path = made(tmp_path, 1)
    code = """
catalog = Catalog.open(path)
with catalog.env.read() as txn:
    say("reading")
    time.sleep(60)
"""
    with opened(path) as catalog, child(path, code) as process:
        assert heard(process) == "reading"
        process.send_signal(signal.SIGKILL)
        process.wait(DEADLINE_S)
        assert catalog.reader_check() >= 1
        assert catalog.reader_check() == 0


def test_nested_reads_see_one_moment(tmp_path: Path) -> None:
    with opened(made(tmp_path, 1)) as catalog:
        with catalog.env.read():
            thread = threading.Thread(target=add, args=(catalog,))
            thread.start()
            thread.join(DEADLINE_S)
            assert catalog.images.count() == 1
        assert catalog.images.count() == 2


# -- a map that does not fit -------------------------------------------------------------------------


def test_a_map_that_others_outgrow_grows(tmp_path: Path) -> None:
    path = made(tmp_path, 0)
    code = """
catalog = Catalog.open(path)
with catalog.transaction():
    for n in range(3000):
        catalog.images.add(Image(id=uuid4(), name="n%d" % n, xattrs={"user.x": bytes(3000)}))
catalog.close()
"""
    catalog = Catalog.open(path, map_size=4 << 20)
    try:
        stop = threading.Event()
        failed: list[BaseException] = []

        def read() -> None:
            try:
                while not stop.is_set():
                    catalog.images.count()
            except BaseException as error:  # noqa: BLE001 - shown by the test
                failed.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        with child(path, code) as process:
            finish(process)
        assert catalog.images.count() == 3000
        add(catalog, "more")
        stop.set()
        thread.join(DEADLINE_S)
        assert not failed
        assert catalog.images.count() == 3001
        assert_sound(catalog)
    finally:
        catalog.close()


def test_a_full_map_is_no_space(tmp_path: Path) -> None:
    catalog = Catalog.open(made(tmp_path, 0), map_size=1 << 20)
    try:
        with pytest.raises(NoSpace, match="1 MiB"):
            for n in range(10_000):
                catalog.images.add(Image(id=uuid4(), name=f"n{n}", xattrs={"user.x": bytes(3000)}))
        assert_sound(catalog)
    finally:
        catalog.close()


def test_little_address_space_is_enough(tmp_path: Path) -> None:
    path = made(tmp_path, 3)
    code = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
catalog = Catalog.open(path)
catalog.images.add(Image(id=uuid4()))
say(catalog.images.count())
say(catalog.env._map_size)
catalog.close()
"""
    with child(path, code) as process:
        count, size = finish(process).split()
    assert count == "4" and 1 << 26 <= int(size) < MAP_SIZE


# -- a disk that is full -----------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 48 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "none", str(place)], check=True, timeout=DEADLINE_S)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True, timeout=DEADLINE_S)


def fill(place: Path) -> Path:
    """Takes every byte that is left."""
    filler = place / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (1 << 20, 4096):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    assert os.statvfs(place).f_bavail == 0
    return filler


def test_removing_works_on_a_full_disk(small_disk: Path) -> None:
    """S15: rm and gc free space from the reserve; what would add is refused and changes nothing."""
    with opened(small_disk / "catalog") as catalog:
        with catalog.transaction():
            images = [add(catalog, f"n{n}") for n in range(2000)]
        sealer = session(catalog)
        big = sealed(catalog, sealer, "big", packs=60)
        assert catalog.info()["reserve_bytes"] > 2 << 20
        filler = fill(small_disk)
        for refused in (
            lambda: add(catalog, "more"),
            lambda: catalog.siblings.add(images[0].id, b"tmp", images[0]),
            lambda: catalog.seals.clone(big.id, Image(id=uuid4())),
        ):
            with pytest.raises(NoSpace):
                refused()
        for image in images:
            catalog.images.unlink(image.id)
        catalog.images.unlink(big.id)
        catalog.sessions.end(sealer)
        for image_id in catalog.seals.finalisable():
            assert catalog.seals.finalise(image_id)
        nos = catalog.packs.doom(row.no for row in catalog.packs.doomable(0, catalog.clock()))
        assert len(nos) == 61
        catalog.packs.forget(nos)
        filler.unlink()
        add(catalog, "again")
        assert catalog.images.count() == 1


def test_a_full_disk_without_a_reserve_is_no_space(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LMDB says "Input/output error" then; nothing of the transaction is there, and all goes on with
    space."""
    monkeypatch.setattr("imagefs.catalog.reserve.RESERVE", 0)
    monkeypatch.setattr(Environment, "require_space", lambda self: None)
    with opened(small_disk / "catalog") as catalog:
        image = add(catalog, "first")
        filler = fill(small_disk)
        with pytest.raises(NoSpace), catalog.transaction():
            for n in range(3000):
                add(catalog, f"n{n}")
        assert catalog.images.count() == 1 and catalog.images.get(image.id) == image
        filler.unlink()
        add(catalog, "second")
        assert catalog.images.count() == 2


def test_the_reserve_follows_the_file(tmp_path: Path) -> None:
    with opened(tmp_path / "catalog") as catalog:
        before = catalog.info()
        with catalog.transaction():
            for n in range(80):
                catalog.images.add(Image(id=uuid4(), name=f"n{n}", xattrs={"user.x": bytes(200_000)}))
        after = catalog.info()
        assert after["bytes"] > before["bytes"] + (30 << 20)
        assert catalog.info()["reserve_bytes"] > before["reserve_bytes"] // 2
        image = draft(catalog)
        assert len(catalog.packs.reserve(image.id, count=1)) == 1


def test_errors_of_the_disk_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(made(tmp_path, 0)) as catalog:
        named: Callable[[lmdb.Error], Exception] = catalog.env._named
        assert isinstance(named(lmdb.CorruptedError("x")), CatalogDamaged)
        assert isinstance(named(lmdb.MapFullError("x")), NoSpace)
        assert type(named(lmdb.Error("mdb_txn_commit: Input/output error"))).__name__ == "BackendFailed"
        full = os.statvfs_result((4096, 4096, 10, 0, 0, 0, 0, 0, 0, 255))
        monkeypatch.setattr(os, "statvfs", lambda path: full)
        assert isinstance(named(lmdb.Error("mdb_txn_commit: Input/output error")), NoSpace)
        mistake = lmdb.BadValsizeError("x")
        assert named(mistake) is mistake
