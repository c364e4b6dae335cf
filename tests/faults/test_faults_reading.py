"""Stores that fail, hang, lose and change what is read: an error at once, never wrong bytes (S11, S14)."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imagefs.errors import BackendFailed, BackendTimeout, Damaged
from imagefs.images import fsck
from imagefs.stores.faults import Fault, Kind
from imagefs.types import FRAME
from tests.content import KIB, noise
from tests.repositories import CONFIG, USER, Opened, opened

MIXED = noise(150 * KIB, 1) + b"compressible " * 9000 + bytes(100 * KIB) + noise(3000, 2)
"""Raw frames, a compressed one, a hole, a short end."""
WHOLE = 64 << 20


@pytest.fixture
def it(repo_dir: Path) -> Iterator[Opened]:
    with opened(repo_dir) as it:
        yield it


class TestErrors:
    def test_a_store_that_fails_is_an_error_and_the_next_try_works(self, it: Opened) -> None:
        image = it.sealed("image", MIXED)
        it.plan.add(Fault("get", Kind.FAIL, 1))
        with pytest.raises(BackendFailed):
            it.read(image.id)
        assert it.read(image.id) == MIXED

    def test_a_store_that_hangs_is_an_error_at_its_deadline(self, it: Opened) -> None:
        image = it.sealed("image", MIXED)
        it.plan.add(Fault("get", Kind.HANG, 1, amount=1))
        begun = time.monotonic()
        with pytest.raises(BackendTimeout):
            it.read(image.id)
        assert time.monotonic() - begun < 5
        assert it.read(image.id) == MIXED

    @pytest.mark.expect_log("map .*packs/")
    @pytest.mark.parametrize("missing", [1, 100, FRAME])
    def test_a_short_answer_is_damage(self, it: Opened, missing: int) -> None:
        image = it.sealed("image", MIXED)
        it.plan.add(Fault("get", Kind.SHORT, 1, amount=missing))
        with pytest.raises(Damaged):
            it.read(image.id)
        assert it.read(image.id) == MIXED

    @pytest.mark.expect_log("map .*packs/")
    def test_flipped_bits_are_damage_wherever_they_are(self, it: Opened) -> None:
        image = it.sealed("image", MIXED)
        chance = random.Random(1)
        for _ in range(60):
            it.plan.add(Fault("get", Kind.FLIP, 1, amount=chance.randrange(8 << 20)))
            try:
                content = it.read(image.id)
            except Damaged:
                pass
            else:
                assert content == MIXED, "wrong bytes"
            it.plan.clear()
        assert it.read(image.id) == MIXED

    @pytest.mark.expect_log("map .*packs/")
    def test_no_mixture_of_faults_gives_wrong_bytes(self, it: Opened) -> None:
        image = it.sealed("image", MIXED)
        chance = random.Random(2)
        kinds = (Kind.FAIL, Kind.FAIL_AFTER, Kind.SHORT, Kind.FLIP)
        outcomes = {True: 0, False: 0}
        ino, fh = image.data_ino, it.files.new_fh()
        handle = it.files.open(ino, 0, USER, fh)
        for _ in range(300):
            it.plan.clear()
            if chance.random() < 0.7:
                it.plan.add(Fault("get", chance.choice(kinds), 1, amount=chance.randrange(1, 1 << 20)))
            offset, length = chance.randrange(len(MIXED)), chance.randrange(1, 100_000)
            try:
                content = handle.pread(offset, length)
            except (Damaged, BackendFailed):
                outcomes[False] += 1
            else:
                outcomes[True] += 1
                assert content == MIXED[offset : offset + length]
        assert min(outcomes.values()) > 30, outcomes

    def test_drafts_do_not_need_the_store(self, it: Opened) -> None:
        draft = it.draft("draft", MIXED)
        it.plan.add(Fault("*", Kind.FAIL))
        assert it.read(draft) == MIXED


def spoil_frame(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096 + 100] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:5000])


def empty(path: Path) -> None:
    path.chmod(0o600)
    path.write_bytes(b"")


def remove(path: Path) -> None:
    path.unlink()


class TestDamagedObjects:
    """Something on the disk changed: the image that needs it is hit, by name in the log, and no other."""

    @pytest.mark.parametrize("spoil", [spoil_frame, cut, empty, remove])
    def test_only_the_image_that_needs_it_is_hit(
        self, repo_dir: Path, spoil: Callable[[Path], None], expect_log: Callable[[str], None]
    ) -> None:
        with opened(repo_dir) as it:
            bad, good = it.sealed("bad", noise(100_000, 1)), it.sealed("good", noise(100_000, 2))
            (name,) = it.objects_of(bad)
        spoil(repo_dir / "store" / name)
        expect_log(f"map {bad.map_id}.*{name}")
        with opened(repo_dir) as it:
            with pytest.raises(Damaged, match=name):
                it.read(bad.id)
            assert it.read(good.id) == noise(100_000, 2)
            findings = fsck.check(it.repo)
            assert all(finding.subject == name for finding in findings)
            assert findings or spoil is spoil_frame, "only a scrub reads the frames"

    def test_fsck_finds_a_damaged_footer(self, repo_dir: Path) -> None:
        with opened(repo_dir) as it:
            (name,) = it.objects_of(it.sealed("image", noise(100_000, 1)))
        path = repo_dir / "store" / name
        content = bytearray(path.read_bytes())
        content[-100] ^= 4
        path.chmod(0o600)
        path.write_bytes(content)
        with opened(repo_dir) as it:
            assert [finding.subject for finding in fsck.check(it.repo)] == [name]

    @pytest.mark.expect_log("map .*packs/")
    def test_bits_that_flipped_on_their_way_in_never_come_out(self, it: Opened) -> None:
        chance = random.Random(3)
        damaged = 0
        for number in range(20):
            content = noise(70_000, number)
            it.plan.add(Fault("put", Kind.FLIP, 1, "packs/", chance.randrange(8 * 70_000)))
            image = it.sealed(f"image {number}", content)
            it.plan.clear()
            try:
                assert it.read(image.id) == content
            except Damaged:
                damaged += 1
        assert damaged >= 5

    def test_a_store_that_loses_what_it_took_is_found_out(self, it: Opened, expect_log: Callable[[str], None]) -> None:
        good = it.sealed("good", noise(100_000, 2))
        it.plan.add(Fault("put", Kind.LOST, 1, "packs/"))
        bad = it.sealed("bad", noise(100_000, 1))
        (name,) = it.objects_of(bad)
        expect_log(f"map {bad.map_id}.*{name}")
        with pytest.raises(Damaged, match=name):
            it.read(bad.id)
        assert it.read(good.id) == noise(100_000, 2)
        assert {finding.subject for finding in fsck.check(it.repo)} == {name}

    def test_a_store_that_does_not_delete_is_found_out(self, it: Opened) -> None:
        image = it.sealed("image", noise(100_000, 1))
        (name,) = it.objects_of(image)
        it.plan.add(Fault("delete", Kind.LOST, None, "packs/"))
        it.delete_all()
        assert [finding.subject for finding in fsck.check(it.repo)] == [name]

    def test_a_delete_that_fails_is_done_later(self, it: Opened) -> None:
        it.sealed("image", noise(100_000, 1))
        it.plan.add(Fault("delete", Kind.FAIL, 1, "packs/"))
        it.plan.add(Fault("delete", Kind.FAIL_AFTER, 2, "packs/"))
        for _ in range(2):
            with pytest.raises(BackendFailed):
                it.delete_all()
        it.collect()
        assert not it.objects()
        assert not fsck.check(it.repo)


class TestTogether:
    THREADS = 8

    @pytest.fixture
    def cached(self, repo_dir: Path) -> Iterator[Opened]:
        from dataclasses import replace

        with opened(repo_dir, replace(CONFIG, frame_cache_bytes=WHOLE)) as it:
            yield it

    def test_many_readers_of_a_frame_fetch_it_once(self, cached: Opened) -> None:
        image = cached.sealed("image", noise(FRAME, 1))
        before = cached.plan.calls["get"]
        cached.plan.add(Fault("get", Kind.HANG, None, amount=30))
        with ThreadPoolExecutor(self.THREADS) as pool:
            reads = [pool.submit(cached.repo.reader.pread, image.map_id, FRAME, 0, FRAME) for _ in range(self.THREADS)]
            _wait_until(lambda: cached.plan.calls["get"] > before)
            time.sleep(0.2)  # for the others to come and wait
            cached.plan.release()
            assert {read.result(30) for read in reads} == {noise(FRAME, 1)}
        assert cached.plan.calls["get"] == before + 1

    def test_who_waited_for_a_fetch_that_failed_tries_for_himself(self, cached: Opened) -> None:
        image = cached.sealed("image", noise(FRAME, 1))
        hold = threading.Event()

        def fail(message: str) -> Exception:
            hold.wait(30)
            return BackendFailed(message)

        cached.plan.add(Fault("get", Kind.FAIL, 1, error=fail))
        before = cached.plan.calls["get"]
        with ThreadPoolExecutor(self.THREADS) as pool:
            reads = [pool.submit(cached.repo.reader.pread, image.map_id, FRAME, 0, FRAME) for _ in range(self.THREADS)]
            _wait_until(lambda: cached.plan.calls["get"] > before)
            time.sleep(0.2)
            hold.set()
            errors = [read.exception(30) for read in reads]
        assert sum(isinstance(error, BackendFailed) for error in errors) == 1
        assert sum(error is None for error in errors) == self.THREADS - 1
        assert cached.plan.calls["get"] == before + 2

    def test_a_read_that_hangs_holds_up_no_other(self, cached: Opened) -> None:
        slow, quick = cached.sealed("slow", noise(FRAME, 1)), cached.sealed("quick", noise(FRAME, 2))
        (name,) = cached.objects_of(slow)
        cached.plan.add(Fault("get", Kind.HANG, None, name, amount=30))
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(cached.repo.reader.pread, slow.map_id, FRAME, 0, FRAME)
            assert cached.read(quick.id) == noise(FRAME, 2)
            assert not waiting.done()
            cached.plan.release()
            assert waiting.result(30) == noise(FRAME, 1)

    def test_a_sealed_image_is_read_with_few_gets(self, cached: Opened) -> None:
        """One ranged get for each pack that a read touches, none for what is in memory."""
        content = noise(10 * FRAME, 1)
        image = cached.sealed("image", content)
        before = cached.plan.calls["get"]
        assert cached.read(image.id) == content
        assert cached.plan.calls["get"] == before + 1
        assert cached.read(image.id) == content
        assert cached.plan.calls["get"] == before + 1


def _wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.005)
