"""Finding what has changed on the disk, and putting it right."""

from __future__ import annotations

import contextlib
import random
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from imagefs.blocks import frames, manifest
from imagefs.errors import Damaged
from imagefs.images import fsck, hits, packing
from imagefs.images import scrub as scrubbing
from imagefs.images.heal import Healed, Healer
from imagefs.images.reader import BlockReader
from imagefs.images.rebuild import Rebuild
from imagefs.images.scrub import Scrub
from imagefs.types import Image
from tests.content import KIB, noise
from tests.repositories import CONFIG, USER, Opened, opened

SMALL = replace(CONFIG, pack_blocks=64)
TEXT = b"".join(b"line %d of a text that compresses\n" % number for number in range(20_000))
A = noise(300 * KIB, 1) + TEXT + bytes(64 * KIB) + noise(70_001, 2)


@pytest.fixture
def it(repo_dir: Path) -> Iterator[Opened]:
    with opened(repo_dir, SMALL) as it:
        yield it


def flip(it: Opened, name: str, bit: int) -> None:
    path = it.path_of(name)
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.chmod(0o600)
    path.write_bytes(content)
    it.inner.close()


def packs_of(it: Opened, image_id: UUID) -> list[str]:
    return it.objects_of(it.images.get(image_id))


def frames_of(it: Opened, name: str) -> list[frames.FrameRow]:
    row = it.repo.catalog.packs.by_name(bytes.fromhex(name.rpartition("/")[2]))
    assert row is not None
    return frames.unpack_rows(it.repo.catalog.packs.frames(row.no))


def flip_frame(it: Opened, name: str, number: int, bits: int = 2) -> None:
    """Some bits, so that no single one can be turned back."""
    offset = frames_of(it, name)[number].offset
    for bit in range(bits):
        flip(it, name, (offset + 40 + bit) * 8 + bit)


def scrub(it: Opened, *, deep: bool = True) -> list[str]:
    done = Scrub(it.repo, deep=deep).run()
    assert done.complete
    return [it.repo.catalog.packs.get(damage.no).object_name for damage in done.damaged]


def healed(it: Opened, *, correct: bool = True) -> Healed:
    done = Healer(it.repo, correct=correct).run()
    it.collect()
    return done


def stored_twice(it: Opened, content: bytes) -> tuple[Image, Image]:
    """Two images of the same bytes that share nothing."""
    first = it.sealed("first", content)
    it.repo.index.clear()
    second = it.sealed("second", content)
    assert not set(packs_of(it, first.id)) & set(packs_of(it, second.id))
    return first, second


def forget_staging(it: Opened, *images: Image) -> None:
    for image in images:
        it.repo.staging.remove(image.id, image.draft_gen)


@pytest.mark.expect_log("do not match|do not verify|Damaged|stay where they are|missing")
def test_flipped_bits_are_found_never_served_and_healed(it: Opened) -> None:
    first, second = stored_twice(it, A)
    forget_staging(it, first, second)
    chance = random.Random(4)
    names = packs_of(it, first.id)
    for number in range(25):
        places = []
        for name in chance.sample(names, 4):
            places.append((name, chance.randrange(8 * it.path_of(name).stat().st_size)))
            flip(it, *places[-1])
        it.repo.reader = BlockReader(it.repo.catalog, it.store, 0)
        with contextlib.suppress(Damaged):
            assert it.read(first.id) == A, f"round {number}: wrong bytes after {places}"
        assert sorted(scrub(it)) == sorted(name for name, _ in places), f"round {number}: {places}"
        done = healed(it, correct=False)
        assert done.left == []
        assert done.hits == []
        assert it.read(first.id) == A
        assert not fsck.check(it.repo)
        names = packs_of(it, first.id)
        assert not {name for name, _ in places} & set(names)
    assert it.read(second.id) == A


@pytest.mark.expect_log("stay where they are|do not match")
def test_what_has_no_other_copy_is_named_and_stays(it: Opened) -> None:
    image, clone = it.sealed("image", A), it.sealed("other", noise(50_000, 9))
    clone = it.images.clone(image.id, "clone")
    forget_staging(it, image)
    name = packs_of(it, image.id)[1]
    flip_frame(it, name, 2)
    assert scrub(it, deep=False) == [name]
    done = healed(it)
    assert {hit.image.id for hit in done.hits} == {image.id, clone.id}
    ((offset, length),) = done.hits[0].ranges
    assert length == 16 * 4096
    with pytest.raises(Damaged):
        it.read(image.id)
    handle = it.files.open(image.data_ino, 0, USER, it.files.new_fh())
    assert handle.pread(0, offset) == A[:offset]
    assert handle.pread(offset + length, len(A)) == A[offset + length :]
    it.files.release(handle.fh)
    assert {one.rule for one in fsck.check(it.repo)} == {"known_damage"}
    assert {name, str(image.id), str(clone.id)} == {one.subject for one in fsck.check(it.repo)}
    assert any(str(image.id) in line for line in hits.describe(done.hits))
    # The rest was moved away from what is going bad, and nothing was lost by trying again.
    assert healed(it).blocks == 0
    assert it.repo.catalog.scrubs.damaged()[0].frames


def make_plain(it: Opened, image: Image, content: bytes) -> Path:
    """The image's plain file, which small images have none of."""
    path = it.repo.path / "cache" / str(image.map_uuid)
    path.write_bytes(content)
    return path


def test_a_plain_file_that_has_changed_is_removed(it: Opened) -> None:
    image, other = it.sealed("image", A), it.sealed("other", A[:70_000])
    path = make_plain(it, image, A)
    wrong = make_plain(it, other, A[:60_000] + b"x" + A[60_001:70_000])
    done = Scrub(it.repo).run()
    assert (done.damaged, done.other, len(done.plain)) == ([], [], 1)
    assert path.exists()
    assert not wrong.exists()
    with path.open("r+b") as file:
        file.truncate(len(A) - 1)
    assert len(Scrub(it.repo).run().plain) == 1


@pytest.mark.parametrize("where", ["staging", "draft", "plain"])
def test_a_local_file_heals(it: Opened, where: str) -> None:
    image = it.sealed("image", A)
    if where == "plain":
        make_plain(it, image, A)
        forget_staging(it, image)
    elif where == "draft":
        it.draft("draft", A)
        forget_staging(it, image)
    else:
        it.repo.staging.path(image.id, image.draft_gen).write_bytes(A)
    flip_frame(it, packs_of(it, image.id)[0], 1)
    flip_frame(it, packs_of(it, image.id)[-1], 0)
    assert len(scrub(it)) == 2
    assert healed(it, correct=False).left == []
    assert it.read(image.id) == A
    assert not fsck.check(it.repo)


def test_one_wrong_bit_is_turned_back(it: Opened) -> None:
    content = TEXT[: 60 * KIB]
    image = it.sealed("image", content)
    forget_staging(it, image)
    name = packs_of(it, image.id)[0]
    flip(it, name, (frames_of(it, name)[0].offset + 1000) * 8 + 3)
    assert scrub(it) == [name]
    assert healed(it).left == []
    assert it.read(image.id) == content
    assert not fsck.check(it.repo)


def test_two_damaged_copies_heal_each_other(it: Opened) -> None:
    first, second = stored_twice(it, A)
    forget_staging(it, first, second)
    one, other = packs_of(it, first.id)[0], packs_of(it, second.id)[0]
    flip_frame(it, one, 1)
    flip_frame(it, other, 2)
    assert sorted(scrub(it)) == sorted((one, other))
    assert healed(it, correct=False).left == []
    assert it.read(first.id) == it.read(second.id) == A
    assert not fsck.check(it.repo)


def test_padding_is_looked_at_too(it: Opened) -> None:
    """A compressed frame, then a raw one: zeros between them, that no digest covers."""
    content = TEXT[: 64 * KIB] + noise(64 * KIB, 5)
    image = it.sealed("image", content)
    (name,) = packs_of(it, image.id)
    first, second = frames_of(it, name)
    assert second.offset - first.offset - first.length > 100
    flip(it, name, (second.offset - 50) * 8)
    assert it.read(image.id) == content
    assert scrub(it, deep=False) == [name]
    assert healed(it).left == []
    assert it.read(image.id) == content
    assert not fsck.check(it.repo)


def test_nothing_new_is_shared_with_a_damaged_pack(it: Opened) -> None:
    image = it.sealed("image", A)
    forget_staging(it, image)
    name = packs_of(it, image.id)[0]
    flip_frame(it, name, 1)
    assert scrub(it) == [name]
    new = it.sealed("new", A)
    assert name not in packs_of(it, new.id)
    assert it.read(new.id) == A
    assert healed(it, correct=False).left == [], "what was stored anew heals the old image"
    assert it.read(image.id) == A


def test_a_frame_and_the_footer_of_one_pack(it: Opened) -> None:
    """The digests in a damaged footer still tell what to look for."""
    first, second = stored_twice(it, A)
    forget_staging(it, first, second)
    name = packs_of(it, first.id)[1]
    flip_frame(it, name, 1)
    flip(it, name, 8 * (it.path_of(name).stat().st_size - 10))
    assert scrub(it) == [name]
    assert healed(it).left == []
    assert it.read(first.id) == A
    assert not fsck.check(it.repo)


def test_a_manifest_is_made_anew_from_the_catalog(it: Opened, repo_dir: Path) -> None:
    image = it.sealed("image", A)
    name = manifest.object_name(image.map_uuid or UUID(int=0))
    before = manifest.decode(it.store.get(name), name)
    flip(it, name, 700)
    assert scrub(it) == [name]
    assert healed(it).left == []
    after = manifest.decode(it.store.get(name), name)
    assert (after.packs, after.rows, after.root, after.kind) == (before.packs, before.rows, before.root, before.kind)
    it.inner.delete(name)
    assert scrub(it) == [name]
    assert healed(it).left == []
    assert not fsck.check(it.repo)


@pytest.mark.parametrize("prefix", ["log/", "snap/"])
def test_the_log_is_made_anew(it: Opened, prefix: str) -> None:
    it.sealed("image", A)
    it.repo.logs.snapshot()
    it.images.create("more")
    it.repo.logs.flush()
    name = next(iter(it.store.list(prefix)))
    flip(it, name, 300)
    assert len(Scrub(it.repo).run().other) == 1
    healed(it)
    assert not fsck.check(it.repo)
    assert not Scrub(it.repo).run().other


@pytest.mark.parametrize("footer", [False, True])
def test_what_was_healed_is_rebuilt_from_the_new_place(repo_dir: Path, footer: bool) -> None:
    """Also while the damaged pack is still in the trash, and after its footer was lost."""
    with opened(repo_dir, SMALL) as it:
        first, second = stored_twice(it, A)
        forget_staging(it, first, second)
        names = packs_of(it, first.id)
        flip_frame(it, names[0], 1)
        flip_frame(it, names[1], 1)
        if footer:
            flip(it, names[1], 8 * (it.path_of(names[1]).stat().st_size - 10))
        scrub(it)
        assert Healer(it.repo).run().left == []
        assert set(names[:2]) <= set(it.objects())
    shutil.rmtree(repo_dir / "catalog")
    Rebuild(repo_dir).run()
    with opened(repo_dir, SMALL) as it:
        assert it.read(first.id) == A
        assert it.read(second.id) == A
        it.collect()
        assert not fsck.check(it.repo)


def test_a_scrub_goes_on_where_it_was_stopped(it: Opened) -> None:
    it.sealed("image", A)
    stop = threading.Event()
    seen: list[int] = []

    def progress(nbytes: int) -> None:
        seen.append(nbytes)
        if len(seen) == 2:
            stop.set()

    first = Scrub(it.repo, progress=progress, stop=stop).run()
    assert (first.objects, first.complete) == (2, False)
    state = it.repo.catalog.scrubs.state()
    assert state.next_no > 0
    assert state.ended_ns == 0
    second = Scrub(it.repo).run()
    assert second.complete
    assert first.objects + second.objects == len(it.objects())
    assert it.repo.catalog.scrubs.state().ended_ns >= state.began_ns
    assert Scrub(it.repo).run().objects == len(it.objects()), "the next one begins again"


def test_the_rate_is_kept(it: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrubbing, "BURST", 1 << 20)
    it.sealed("image", noise(4 << 20, 3))
    begun = time.monotonic()
    done = Scrub(it.repo, rate=8 << 20).run()
    assert time.monotonic() - begun >= (done.bytes - (1 << 20)) / (8 << 20)


def test_a_deep_scrub_finds_blocks_that_are_not_what_they_are_called(it: Opened) -> None:
    """A frame that verifies, with other blocks in it than the footer says: written wrong, not changed since."""
    real = packing.frames.encode_all

    def wrong(plain: memoryview) -> object:
        changed = bytearray(plain)
        changed[5000] ^= 1
        return real(memoryview(changed))

    packing.frames.encode_all = wrong  # type: ignore[assignment]
    try:
        image = it.sealed("image", A[: 100 * KIB])
    finally:
        packing.frames.encode_all = real
    assert scrub(it, deep=False) == []
    assert scrub(it) == packs_of(it, image.id)


def test_a_deep_scrub_compares_roots(it: Opened) -> None:
    image = it.sealed("image", A)
    it.images.set_fields(image.id, {"root": "0" * 64})
    assert Scrub(it.repo).run().other == []
    (line,) = Scrub(it.repo, deep=True).run().other
    assert str(image.id) in line
