"""Sealing when the store fails, and beside others that seal, delete and collect at the same time."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from imagefs.catalog import PackState
from imagefs.errors import BackendFailed, Busy, Damaged, NoSpace, NotFound, SealCancelled
from imagefs.images import fsck
from imagefs.images.arming import blocked_reason, seal_due
from imagefs.images.gc import Collector
from imagefs.images.janitor import Janitor
from imagefs.images.service import Images
from imagefs.stores.faults import Fault, Kind
from imagefs.types import BLOCK, Status
from tests.content import KIB, noise
from tests.repositories import USER, Opened, opened

CONTENT = noise(300 * KIB, 1)


@pytest.fixture
def it(repo_dir: Path) -> Iterator[Opened]:
    with opened(repo_dir) as it:
        yield it


class TestFailures:
    @pytest.mark.parametrize("error", [BackendFailed, NoSpace])
    def test_a_seal_that_failed_is_due_again(self, it: Opened, error: type[Exception]) -> None:
        """S14: it stays saving and readable, with the reason, and is tried again."""
        draft = it.draft("draft", CONTENT)
        it.plan.add(Fault("put", Kind.FAIL, 1, error=error))
        with pytest.raises(error):
            it.images.seal(draft)
        image = it.images.get(draft)
        assert image.draft is not None
        assert "as planned" in (image.draft.failed or "")
        assert blocked_reason(it.repo, image) is None
        assert seal_due(it.repo, image, 0.0) is not None

    @pytest.mark.timeout(60)
    @pytest.mark.expect_log("sealing image .* failed")
    def test_the_janitor_tries_again(self, it: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("imagefs.images.janitor.RETRY_S", 0.5)
        draft = it.draft("draft", CONTENT)
        it.plan.add(Fault("put", Kind.FAIL, 1, "packs/"))
        janitor = Janitor(it.images, 0.0)
        janitor.start()
        try:
            deadline = time.monotonic() + 20
            while it.images.get(draft).status != Status.ACTIVE and time.monotonic() < deadline:
                time.sleep(0.05)
        finally:
            janitor.stop()
        assert it.images.get(draft).status == Status.ACTIVE
        assert it.read(draft) == CONTENT

    def test_a_store_that_hangs_delays_the_seal_and_nothing_else(self, it: Opened) -> None:
        old, draft = it.sealed("old", noise(100_000, 2)), it.draft("draft", CONTENT)
        it.plan.add(Fault("put", Kind.HANG, 1, "packs/", amount=60))
        before = it.plan.calls["put"]
        with ThreadPoolExecutor(1) as pool:
            seal = pool.submit(it.images.seal, draft)
            _wait_until(lambda: it.plan.calls["put"] > before)
            assert it.read(old.id) == noise(100_000, 2)
            assert it.read(draft) == CONTENT
            it.images.clone(old.id, "clone")
            it.images.delete(old.id)
            it.collect()
            assert not seal.done()
            it.plan.release()
            assert seal.result(30).status == Status.ACTIVE
        assert it.read(draft) == CONTENT

    def test_a_log_object_that_cannot_be_put_comes_later(self, it: Opened) -> None:
        draft = it.draft("draft", CONTENT)
        it.plan.add(Fault("put", Kind.FAIL, 1, "log/"))
        with pytest.raises(BackendFailed):
            it.images.seal(draft)
        assert it.images.get(draft).status == Status.ACTIVE, "its commit was before"
        assert it.read(draft) == CONTENT
        it.repo.logs.flush()
        assert it.repo.catalog.log.flushed() == it.repo.catalog.log.newest()
        assert not fsck.check(it.repo)

    def test_a_pack_whose_list_is_damaged_is_not_used_for_dedup(self, it: Opened) -> None:
        first = it.sealed("first", CONTENT)
        for name in it.objects_of(first):
            path = it.path_of(name)
            content = bytearray(path.read_bytes())
            content[-200] ^= 1
            path.chmod(0o600)
            path.write_bytes(content)
        it.inner.close()  # open descriptors of the files as they were
        second = it.sealed("second", CONTENT)
        assert it.read(second.id) == CONTENT
        assert not set(it.objects_of(second)) & set(it.objects_of(first))

    def test_a_stale_index_is_a_hint_only(self, it: Opened) -> None:
        """It names packs that are gone, and blocks that are others."""
        first = it.sealed("first", CONTENT)
        (number,) = it.repo.catalog.maps.packs_of(first.map_id)
        digests = it.repo.digests.blocks(memoryview(CONTENT))
        it.repo.index.add([(digest, number, len(digests) - block) for block, digest in enumerate(digests)])
        (digest,) = it.repo.digests.blocks(memoryview(noise(BLOCK, 9)))
        it.repo.index.add([(digest, number + 1000, 0)])
        second = it.sealed("second", CONTENT + noise(BLOCK, 9))
        assert it.read(second.id) == CONTENT + noise(BLOCK, 9)
        it.images.delete(first.id)
        it.images.delete(second.id)
        it.collect()
        third = it.sealed("third", CONTENT)
        assert it.read(third.id) == CONTENT

    @pytest.mark.parametrize("step", ["packs/", "maps/"])
    def test_a_write_while_it_is_being_sealed_cancels(self, it: Opened, step: str) -> None:
        draft = it.draft("draft", CONTENT)
        image = it.images.get(draft)
        it.plan.add(Fault("put", Kind.HANG, 1, step, amount=60))
        before = it.plan.calls["put"]
        with ThreadPoolExecutor(1) as pool:
            seal = pool.submit(it.images.seal, draft)
            _wait_until(lambda: it.plan.calls["put"] > before + (step == "maps/"))
            handle = it.files.open(image.data_ino, 2, USER, it.files.new_fh())
            handle.pwrite(5000, memoryview(b"changed"))
            it.plan.release()
            with pytest.raises((SealCancelled, Busy)):
                seal.result(30)
            it.files.release(handle.fh)
        changed = CONTENT[:5000] + b"changed" + CONTENT[5007:]
        assert it.read(draft) == changed
        it.images.seal(draft)
        assert it.read(draft) == changed
        it.delete_all()
        assert not it.objects()


class TestTogether:
    @pytest.mark.timeout(100)
    def test_seals_beside_deletions_and_collections(self, it: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
        """Sealers share blocks with images that vanish under their hands; what is sealed has its bytes for good."""
        monkeypatch.setattr(it.repo, "config", replace(it.repo.config, pack_blocks=16))
        chance = Random(1)
        pieces = [noise(2 * BLOCK, number) for number in range(30)]
        stop = time.monotonic() + 6
        sealed: dict[object, bytes] = {}
        events: Counter[str] = Counter()
        lock = threading.Lock()

        def sealing(seed: int) -> None:
            own = Random(seed)
            while time.monotonic() < stop:
                content = b"".join(own.sample(pieces, 8)) + own.randbytes(BLOCK)
                image = it.sealed(f"image {own.random()}", content)
                with lock:
                    sealed[image.id] = content
                events["sealed"] += 1

        def deleting() -> None:
            while time.monotonic() < stop:
                with lock:
                    ids = list(sealed)
                    image_id = chance.choice(ids) if len(ids) > 3 else None
                    if image_id is not None:
                        del sealed[image_id]
                if image_id is None:
                    time.sleep(0.01)
                    continue
                it.images.delete(image_id)
                events["deleted"] += 1

        def collecting() -> None:
            collector = Collector(it.repo, retention_s=0)
            while time.monotonic() < stop:
                it.repo.catalog.sessions.ack(it.repo.session.id, it.repo.catalog.generation())
                events["objects"] += collector.run().objects

        def reading() -> None:
            while time.monotonic() < stop:
                with lock:
                    known = list(sealed.items())[-5:]
                for image_id, content in known:
                    try:
                        assert it.read(image_id) == content
                    except (NotFound, Damaged):  # deleted meanwhile: no session of its own holds it here
                        assert image_id not in sealed
                    events["read"] += 1
                time.sleep(0.001)

        with ThreadPoolExecutor(6) as pool:
            works: list[Callable[[], None]] = [
                lambda: sealing(1),
                lambda: sealing(2),
                deleting,
                collecting,
                reading,
            ]
            for work in [pool.submit(work) for work in works]:
                work.result(60)
        for image_id, content in sealed.items():
            assert it.read(image_id) == content
        it.collect()
        assert not fsck.check(it.repo)
        assert {row.state for row in it.repo.catalog.packs.scan()} == {PackState.LIVE}
        it.delete_all()
        assert not it.objects()
        assert min(events[name] for name in ("sealed", "deleted", "objects", "read")) > 20, events

    @pytest.mark.timeout(60)
    def test_two_processes_do_not_seal_one_draft(self, repo_dir: Path) -> None:
        code = (
            "import sys; from pathlib import Path; from uuid import UUID; from tests.repositories import opened\n"
            "with opened(Path(sys.argv[1])) as it: print(it.images.seal(UUID(sys.argv[2])).status)"
        )
        with opened(repo_dir) as it:
            drafts = [it.draft(f"draft {number}", noise(200_000, number)) for number in range(3)]
            for number, draft in enumerate(drafts):
                command = [sys.executable, "-c", code, str(repo_dir), str(draft)]
                other = subprocess.Popen(
                    command,
                    cwd=Path(__file__).parents[2],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                time.sleep(0.2 * number)
                try:
                    it.images.seal(draft)
                except Busy:
                    pass
                output, errors = other.communicate(timeout=30)
                assert output.strip() == "active" or "Busy" in errors, errors
                assert it.images.get(draft).status == Status.ACTIVE
                assert it.read(draft) == noise(200_000, number)
            it.collect()
            assert not fsck.check(it.repo)


def _wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_who_is_too_late_to_seal_gets_what_the_other_sealed(it: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    image_id = it.draft("image", noise(100 * KIB, 1))
    seals, claim = it.repo.catalog.seals, it.repo.catalog.seals.claim

    def late(*args: object) -> object:
        monkeypatch.setattr(seals, "claim", claim)
        Images(it.repo).seal(image_id)  # with a sealer of its own, as another process has
        return claim(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(seals, "claim", late)
    assert it.images.seal(image_id).status == Status.ACTIVE
    assert it.read(image_id) == noise(100 * KIB, 1)
