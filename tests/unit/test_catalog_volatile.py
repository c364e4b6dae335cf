"""The open table and the dedup index: environments without sync."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from imagefs.catalog import DedupIndex, Open, OpenTable

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 30.0
MOUNT, OTHER = UUID(int=1), UUID(int=2)


@contextmanager
def opens(path: Path, boot: str = "boot") -> Iterator[OpenTable]:
    table = OpenTable(path, boot)
    try:
        yield table
    finally:
        table.close()


@contextmanager
def index(path: Path, boot: str = "boot") -> Iterator[DedupIndex]:
    made = DedupIndex(path, boot)
    try:
        yield made
    finally:
        made.close()


def test_the_table_says_who_has_what_open(tmp_path: Path) -> None:
    with opens(tmp_path) as table:
        reader = Open(MOUNT, 1, 66, os.O_RDONLY, pid=5)
        writer = Open(MOUNT, 2, 66, os.O_RDWR | os.O_APPEND, pid=6, mode=1, backing_id=7)
        elsewhere = Open(OTHER, 1, 66, os.O_WRONLY)
        for row in (reader, writer, elsewhere, Open(MOUNT, (1 << 63) - 1, 67, os.O_RDONLY)):
            table.put(row)
        assert table.get(MOUNT, 1) == reader and table.get(OTHER, 2) is None
        assert table.handles(66) == [reader, writer, elsewhere] and table.handles(6) == []
        assert table.writers(66) == 2 and table.writers(67) == 0
        assert [row.fh for row in table.of_connection(MOUNT)] == [1, 2, (1 << 63) - 1]
        assert table.connections() == {MOUNT, OTHER}
        # Set, not counted: what comes twice does no harm.
        table.put(writer)
        assert table.writers(66) == 2
        assert table.delete(MOUNT, 2) == writer and table.delete(MOUNT, 2) is None
        table.put(Open(MOUNT, 1, 70, os.O_RDONLY))
        assert table.handles(66) == [elsewhere] and len(table.handles(70)) == 1
        assert len(table.drop(MOUNT)) == 2 and table.drop(MOUNT) == []
        assert table.connections() == {OTHER}


def test_the_table_survives_sigkill_and_not_a_reboot(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from uuid import UUID
from imagefs.catalog import Open, OpenTable
table = OpenTable(Path(sys.argv[1]), "boot")
table.put(Open(UUID(int=1), 1, 66, 2))
print("put", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        assert process.stdout is not None and process.stdout.readline() == "put\n"
        with opens(tmp_path) as table:
            assert table.writers(66) == 1, "two processes share it"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=DEADLINE_S)
    with opens(tmp_path) as table:
        assert table.writers(66) == 1
        (tmp_path / "boot").write_text("boot".ljust(64) + "\n")  # as if it were not closed cleanly
    with opens(tmp_path) as table:
        table.put(Open(MOUNT, 9, 70, os.O_RDONLY))
        assert len(table.connections()) == 1
        boot_file = (tmp_path / "boot").read_text()
    assert boot_file.strip() == "boot" and (tmp_path / "boot").read_text().strip() == "clean"


def test_a_torn_file_of_another_boot_is_not_looked_at(tmp_path: Path) -> None:
    with opens(tmp_path) as table:
        table.put(Open(MOUNT, 1, 66, os.O_RDWR))
    (tmp_path / "boot").write_text("another boot".ljust(64) + "\n")
    os.truncate(tmp_path / "data.mdb", 8192)
    with opens(tmp_path) as table:
        assert table.connections() == set()
    with opens(tmp_path, "next boot") as table:
        assert table.connections() == set()


def test_what_was_closed_cleanly_is_kept_over_a_boot(tmp_path: Path) -> None:
    with index(tmp_path) as made:
        assert made.fresh
        made.add([(b"a" * 20, 7, 3)])
        made.mark_built()
    with index(tmp_path, "next boot") as made:
        assert not made.fresh and made.lookup(b"a" * 20) == (7, 3)
    (tmp_path / "boot").write_text("a boot that crashed".ljust(64) + "\n")
    with index(tmp_path, "third boot") as made:
        assert made.fresh and made.count() == 0


def test_the_index_answers_with_the_newest_copy(tmp_path: Path) -> None:
    digests = [os.urandom(20) for _ in range(100)]
    with index(tmp_path) as made:
        made.add((digest, 1, block) for block, digest in enumerate(digests))
        made.add((digest, 2, block) for block, digest in enumerate(digests[:10]))
        assert made.count() == 100
        assert made.lookup(digests[5]) == (2, 5) and made.lookup(digests[50]) == (1, 50)
        assert made.lookup(bytes(20)) is None
        wanted = [*sorted(digests), bytes(20)]
        found = made.lookup_many(wanted)
        assert [made.lookup(digest) for digest in wanted] == found and found[-1] is None
        made.clear()
        assert made.count() == 0 and made.fresh


def test_removing_packs_leaves_newer_copies(tmp_path: Path) -> None:
    digests = [os.urandom(20) for _ in range(100)]
    with index(tmp_path) as made:
        made.add((digest, 1, block) for block, digest in enumerate(digests[:50]))
        made.add((digest, 1, block) for block, digest in enumerate(digests[:50]))
        made.add((digest, 1, 50 + block) for block, digest in enumerate(digests[50:]))
        made.add((digest, 256, block) for block, digest in enumerate(digests[:10]))
        made.remove([1, 999])
        assert made.count() == 10
        assert made.lookup(digests[5]) == (256, 5) and made.lookup(digests[50]) is None
        made.remove([256])
        assert made.count() == 0


@pytest.mark.parametrize("rows", [0, 120_000])
def test_many_rows(tmp_path: Path, rows: int) -> None:
    with index(tmp_path) as made:
        made.add((n.to_bytes(20, "little"), n // 128 + 1, n % 128) for n in range(rows))
        assert made.count() == rows
        made.remove(range(1, 1000))
        assert made.count() == 0


def test_two_connections_do_not_meet(tmp_path: Path) -> None:
    with opens(tmp_path) as table:
        for connection in (uuid4(), uuid4()):
            table.put(Open(connection, 1, 66, os.O_RDWR))
        assert len(table.connections()) == 2 and table.writers(66) == 2
