"""Rewriting packs of which little is used, and laying scattered images out again."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagefs.blocks.packs import read_footer
from imagefs.catalog import PackKind, PackState
from imagefs.config import Config
from imagefs.errors import BackendFailed, Busy
from imagefs.images import compaction, fsck, janitor, packing
from imagefs.images.compaction import Compactor
from imagefs.images.janitor import Janitor
from imagefs.images.rate import TokenBucket
from imagefs.images.rebuild import Rebuild
from imagefs.images.relay import reading
from imagefs.images.rewrite import Mover
from imagefs.stores.faults import Fault, Kind
from imagefs.types import BLOCK, FRAME, Image
from tests.content import noise
from tests.mounted import wait_until
from tests.repositories import USER, Opened

PACK_BLOCKS = 64
CONFIG = Config(sampling=1, frame_cache_bytes=0, retention_seconds=0, pack_blocks=PACK_BLOCKS)


@pytest.fixture
def it(repo_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    monkeypatch.setattr(compaction, "TINY", 8)
    monkeypatch.setattr(packing, "PACKERS", 1)
    opened = Opened(repo_dir, CONFIG)
    yield opened
    opened.close()


def compact(it: Opened, **options: float) -> compaction.Compacted:
    compactor = Compactor(it.repo, **options)
    done = compactor.execute(compactor.plan())
    it.collect()
    return done


def live(it: Opened) -> dict[str, int]:
    """Blocks of each pack that is stored, by its object's name."""
    rows = [row for row in it.repo.catalog.packs.scan() if row.kind == PackKind.PACK]
    assert all(row.state == PackState.LIVE for row in rows)
    return {row.object_name: row.blocks for row in rows}


def require_sound(it: Opened, **contents: bytes) -> None:
    for name, content in contents.items():
        (image_id,) = it.repo.catalog.images.named(name)
        assert it.read(image_id) == content, name
    assert not fsck.check(it.repo)


def sparse(it: Opened) -> tuple[bytes, Image]:
    """An image that keeps 20 of 128 blocks of one that is gone, and 8 of its own."""
    old = noise(2 * PACK_BLOCKS * BLOCK, 1)
    kept = old[10 * BLOCK : 25 * BLOCK] + bytes(3 * BLOCK) + old[100 * BLOCK : 105 * BLOCK] + noise(8 * BLOCK, 2)
    gone = it.sealed("gone", old)
    image = it.sealed("kept", kept)
    it.images.delete(gone.id)
    it.collect()
    return kept, image


def test_packs_of_which_little_is_used_are_written_anew(it: Opened) -> None:
    kept, _ = sparse(it)
    before = live(it)
    plan = Compactor(it.repo).plan()
    assert [(one.row.blocks, one.live) for one in plan.sparse] == [(64, 15), (64, 5)]
    assert plan.blocks == 20
    assert plan.freed > 100 * BLOCK
    done = compact(it)
    assert (done.blocks, done.packs) == (20, 2)
    assert sorted(live(it).values()) == [8, 20]
    assert sum(live(it).values()) < sum(before.values())
    require_sound(it, kept=kept)
    assert not Compactor(it.repo).plan().sparse


def test_a_plan_changes_nothing(it: Opened) -> None:
    sparse(it)
    before, objects = it.repo.catalog.generation(), it.objects()
    Compactor(it.repo).plan()
    assert (it.repo.catalog.generation(), it.objects()) == (before, objects)


def test_the_new_pack_says_where_its_blocks_came_from(it: Opened) -> None:
    """And where those had come from before: the old pack's footer is gone."""
    sparse(it)
    names = {row.no: row.name16 for row in it.repo.catalog.packs.scan() if row.blocks == PACK_BLOCKS}
    compact(it)
    first = footers(it)[20]
    assert [(note.name16, note.old_first, note.nblocks) for note in first.moved] == sorted(
        [(names[min(names)], 10, 15), (names[max(names)], 36, 5)]
    )
    compact(it, sparse=1.1)
    (again,) = footers(it).values()
    notes = {(note.name16, note.old_first + n): note.new_first + n for note in again.moved for n in range(note.nblocks)}
    assert len(notes) == 20 + 28, "of both lives"
    for note in first.moved:
        for n in range(note.nblocks):
            oldest = notes[note.name16, note.old_first + n]
            assert oldest == notes[first.name16, note.new_first + n]
            assert again.digests[oldest * 20 :][:20] == first.digests[(note.new_first + n) * 20 :][:20]


def footers(it: Opened) -> dict[int, object]:
    rows = [row for row in it.repo.catalog.packs.scan() if row.kind == PackKind.PACK]
    return {row.blocks: read_footer(it.repo.store, row.name16) for row in rows}  # type: ignore[misc]


def test_clones_and_images_that_share_follow(it: Opened) -> None:
    kept, image = sparse(it)
    clone = it.images.clone(image.id, "clone")
    other = it.sealed("other", kept[: 9 * BLOCK] + noise(5 * BLOCK, 3))
    compact(it)
    require_sound(it, kept=kept, clone=kept, other=kept[: 9 * BLOCK] + noise(5 * BLOCK, 3))
    named = [set(it.repo.catalog.maps.packs_of(one.map_id)) for one in (clone, other)]
    assert named[0] & named[1], "they share the new pack"
    it.delete_all()
    assert not it.objects()


def test_what_was_moved_is_found_by_deduplication(it: Opened) -> None:
    kept, _ = sparse(it)
    compact(it)
    before = live(it)
    again = it.sealed("again", noise(BLOCK, 9) + kept)
    assert sum(live(it).values()) == sum(before.values()) + 1
    assert it.read(again.id) == noise(BLOCK, 9) + kept


def test_tiny_packs_are_merged_when_they_make_one_that_is_not(it: Opened) -> None:
    contents = {f"tiny{number}": noise(BLOCK * (number + 1), number) for number in range(3)}
    for name, content in contents.items():
        it.sealed(name, content)
    assert not Compactor(it.repo).plan().sparse, "6 blocks are still tiny"
    contents["tiny3"] = noise(4 * BLOCK, 3)
    it.sealed("tiny3", contents["tiny3"])
    compact(it)
    assert list(live(it).values()) == [10]
    require_sound(it, **contents)
    assert not Compactor(it.repo).plan().sparse


def test_packs_that_a_draft_under_way_takes_blocks_from_are_left(it: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, _ = sparse(it)
    it.plan.add(Fault("put", Kind.FAIL, 1, "maps/"))
    draft = it.draft("draft", kept + noise(70 * BLOCK, 4))
    monkeypatch.setattr("imagefs.images.checkpointing.CHECKPOINT", BLOCK)
    monkeypatch.setattr("imagefs.images.sealing.WINDOW", 16 * BLOCK)
    with pytest.raises(BackendFailed):
        it.images.seal(draft)
    assert not Compactor(it.repo).plan().sparse
    it.images.seal(draft)
    require_sound(it, kept=kept, draft=kept + noise(70 * BLOCK, 4))


# -- scattered images ------------------------------------------------------------------------------------


def scatter(it: Opened) -> tuple[bytes, bytes]:
    """An image of one block of each of 96 frames of another one, and a run of it."""
    whole = noise(96 * FRAME + 20 * FRAME, 5)
    some = b"".join(whole[at + BLOCK : at + 2 * BLOCK] for at in range(0, 96 * FRAME, FRAME)) + whole[100 * FRAME :]
    it.sealed("whole", whole)
    return whole, some


def test_a_scattered_image_is_laid_out_again(it: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without the cap of sealing, which bounds what one image does to itself.
    monkeypatch.setattr("imagefs.blocks.dedup._FrameCap.admit", lambda self, places: places)
    whole, some = scatter(it)
    image = it.sealed("some", some)
    assert amplification(it, image) > 2
    (one,) = Compactor(it.repo).plan().scattered
    assert (one.image_id, one.name) == (image.id, "some")
    done = compact(it)
    assert done.images == 1
    assert done.blocks == one.copied < 96, "no more than is needed"
    assert 1 < amplification(it, image) <= compaction.TARGET
    require_sound(it, whole=whole, some=some)
    assert not Compactor(it.repo).plan().scattered
    it.images.delete(it.repo.catalog.images.named("whole")[0])
    it.collect()
    compact(it)
    require_sound(it, some=some)


def amplification(it: Opened, image: Image) -> float:
    packs = it.repo.catalog.packs
    return reading(it.repo.catalog.maps.rows(image.map_id), lambda no: packs.get(no).blocks).amplification


# -- what goes wrong ---------------------------------------------------------------------------------------


@pytest.mark.expect_log("stay where they are|bytes .* to .*do not match")
def test_blocks_that_do_not_verify_stay_where_they_are(it: Opened) -> None:
    kept, image = sparse(it)
    path = it.path_of(it.objects_of(image)[0])
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(4096 + 12 * BLOCK)
        file.write(b"damaged!")
    compact(it)
    handle = it.files.open(image.data_ino, os.O_RDONLY, USER, it.files.new_fh())
    assert handle.pread(18 * BLOCK, 13 * BLOCK) == kept[18 * BLOCK :]
    with pytest.raises(Exception, match="do not match"):
        handle.pread(0, BLOCK)
    assert str(path).endswith(tuple(live(it))), "nothing is lost that could still be mended"


@pytest.mark.parametrize("kind", [Kind.FAIL, Kind.FAIL_AFTER, Kind.TORN])
def test_a_put_that_fails_leaves_everything_as_it_was(it: Opened, kind: Kind) -> None:
    kept, _ = sparse(it)
    before = live(it)
    it.plan.add(Fault("put", kind, 1, "packs/"))
    with pytest.raises(BackendFailed):
        Compactor(it.repo).execute(Compactor(it.repo).plan())
    it.collect()
    assert live(it) == before
    require_sound(it, kept=kept)
    compact(it)
    require_sound(it, kept=kept)


def test_it_ends_when_it_is_told_to(it: Opened) -> None:
    kept, _ = sparse(it)
    before = live(it)
    plan = Compactor(it.repo).plan()
    asked: list[int] = []

    def take(nbytes: int) -> bool:
        asked.append(nbytes)
        return nbytes == 0

    assert Compactor(it.repo, take).execute(plan).blocks == 0
    assert 20 * BLOCK in asked
    it.collect()
    assert live(it) == before
    require_sound(it, kept=kept)
    assert not Compactor(it.repo, lambda nbytes: False).plan().sparse


def test_one_process_at_a_time_moves_blocks(it: Opened) -> None:
    kept, _ = sparse(it)
    plan = Compactor(it.repo).plan()
    with (it.repo.path / "locks" / "move").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Busy):
            Compactor(it.repo).execute(plan)
    compact(it)
    require_sound(it, kept=kept)


def test_an_image_that_goes_meanwhile_is_passed_over(it: Opened) -> None:
    _, image = sparse(it)
    compactor = Compactor(it.repo)
    plan = compactor.plan()
    it.images.delete(image.id)
    it.collect()
    assert compactor.execute(plan).blocks == 0
    it.collect()
    assert not it.objects()
    assert not fsck.check(it.repo)


def test_what_a_dead_mover_had_reserved_goes(it: Opened) -> None:
    moves, session = it.repo.catalog.moves, it.repo.session.id
    ((number, _),) = moves.reserve(session, 1)
    assert it.repo.catalog.packs.get(number).state == PackState.PEND
    assert not fsck.check(it.repo), "while its session lives"
    it.repo.catalog.sessions.start(session, "mount", "host", "boot")  # the worker that follows
    assert it.repo.catalog.packs.get(number).state == PackState.TRASH
    it.collect()
    assert it.repo.catalog.packs.find(number) is None


# -- in the background -------------------------------------------------------------------------------------


def test_a_mount_does_it_by_itself(it: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(janitor, "COMPACT_EVERY_S", 0.2)
    kept, _ = sparse(it)
    worker = Janitor(it.images, 0.0)
    worker.start()
    try:

        def rewritten() -> bool:
            it.repo.catalog.sessions.ack(it.repo.session.id, it.repo.catalog.generation())
            return sorted(row.blocks for row in it.repo.catalog.packs.scan() if row.blocks) == [8, 20]

        wait_until(rewritten, 20, "the packs to be rewritten and the old ones deleted")
    finally:
        worker.stop()
    require_sound(it, kept=kept)


def test_the_rate_is_kept() -> None:
    now, waited = [0.0], list[float]()

    def wait(seconds: float) -> bool:
        waited.append(seconds)
        now[0] += seconds
        return False

    bucket = TokenBucket(100.0, 50.0, wait, lambda: now[0])
    assert all(bucket.take(30) for _ in range(10))
    assert now[0] == pytest.approx((300 - 50) / 100)
    assert max(waited) <= 0.3 + 1e-9
    now[0] += 100
    bucket.take(50)
    assert waited[-1] == 0, "what was not used is there, up to the burst"
    bucket.take(500)
    assert waited[-1] == pytest.approx(5.0)
    assert not TokenBucket(100.0, 50.0, lambda seconds: True).take(1)


# -- the catalog lost afterwards -----------------------------------------------------------------------------


def test_a_rebuild_follows_what_was_moved(repo_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice moved for all that name the blocks, once for one image: manifests know nothing of it."""
    monkeypatch.setattr(compaction, "TINY", 8)
    it = Opened(repo_dir, CONFIG)
    kept, image = sparse(it)
    shares = kept[: 9 * BLOCK] + noise(5 * BLOCK, 3)
    it.sealed("shares", shares)
    compact(it)
    compact(it, sparse=1.1)
    mover = Mover(it.repo, lambda nbytes: True)
    with mover.alone():
        packs = it.repo.catalog.maps.packs_of(image.map_id)
        places = [(no, block) for no in packs for block in range(it.repo.catalog.packs.get(no).blocks)]
        assert mover.move(places[::2], [image.map_id]) == len(places[::2])
    it.collect()
    require_sound(it, kept=kept, shares=shares)
    it.repo.logs.flush()
    it.close()
    shutil.rmtree(repo_dir / "catalog")
    assert not Rebuild(repo_dir).run().lost
    again = Opened(repo_dir, CONFIG)
    again.collect()
    require_sound(again, kept=kept, shares=shares)
    again.close()
