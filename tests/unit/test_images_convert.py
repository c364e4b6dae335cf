"""Converting compressed images: the bytes stay, the blocks inside are shared, and readers notice nothing."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from imagefs.blocks import recode, superblock
from imagefs.catalog import PackState
from imagefs.config import Config
from imagefs.errors import Busy, CannotRemake, Damaged, NotConvertible, SealCancelled, UnknownFeature
from imagefs.formats import deflate
from imagefs.formats.deflate import Codec
from imagefs.images import fsck
from imagefs.images import recode as recoding
from imagefs.images.compaction import Compactor
from imagefs.images.convert import Converted, Converter
from imagefs.images.converting import BackgroundConversions
from imagefs.images.hashtask import fill_in_hashes
from imagefs.images.rebuild import Rebuild
from imagefs.images.recoding import Recoding
from imagefs.images.repository import Repository
from imagefs.types import Image
from tests import compressed
from tests.content import noise
from tests.repositories import USER, Opened, opened

DISK = compressed.disk(1, 11)
QCOW2 = compressed.qcow2(DISK)
VMDK = compressed.vmdk(DISK)


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Opened]:
    with opened(tmp_path / "repository") as it:
        yield it


def stored(work: Opened, name: str, content: bytes) -> Image:
    """Sealed, its hashes known."""
    image = work.sealed(name, content)
    fill_in_hashes(work.repo, image.id, lambda: False)
    return work.images.get(image.id)


def live_bytes(work: Opened) -> int:
    return sum(row.stored for row in work.repo.catalog.packs.scan() if row.state == PackState.LIVE)


def convert(work: Opened, image: Image, **options: float) -> Converted:
    return Converter(work.repo).convert(image.id, **options)  # type: ignore[arg-type]


def assert_sound(work: Opened) -> None:
    work.collect()
    assert fsck.check(work.repo) == []
    assert {row.state for row in work.repo.catalog.packs.scan()} == {PackState.LIVE}


@pytest.mark.parametrize("content", [QCOW2, VMDK], ids=["qcow2", "vmdk"])
def test_what_is_inside_is_shared_with_the_raw_disk(work: Opened, content: bytes) -> None:
    work.sealed("raw", DISK)
    before = live_bytes(work)
    image = stored(work, "compressed", content)
    assert live_bytes(work) > before + len(content) * 0.6
    done = convert(work, image)
    now = work.images.get(image.id)
    assert [one.id for one in done.images] == [image.id]
    assert now.layout == "recode"
    assert work.read(image.id) == content
    assert_sound(work)
    assert live_bytes(work) < before * 1.06
    assert work.repo.catalog.maps.info(now.map_id).kind == recode.KIND
    same = ("root", "checksum", "os_hash_value", "size", "updated_at", "ctime", "mtime", "allocated")
    assert [getattr(now, name) for name in same] == [getattr(image, name) for name in same]


def test_any_range_of_a_converted_image(work: Opened) -> None:
    work.sealed("raw", DISK)
    image = stored(work, "compressed", QCOW2)
    convert(work, image)
    ino, fh = image.data_ino, work.files.new_fh()
    handle = work.files.open(ino, os.O_RDONLY, USER, fh)
    for offset in [*range(0, len(QCOW2), 77_777), len(QCOW2) - 5, len(QCOW2), len(QCOW2) + 9]:
        for length in (1, 4096, 65_537, 1 << 20):
            assert handle.pread(offset, length) == QCOW2[offset : offset + length]


def test_holes_and_data_of_a_converted_image(work: Opened) -> None:
    """SEEK_DATA may call more data than there is, and never less (S9)."""
    content = QCOW2[: -(len(QCOW2) % 4096) or None] + bytes(1 << 20) + noise(100, 3)
    work.sealed("raw", DISK)
    image = stored(work, "compressed", content)
    convert(work, image)
    now = work.images.get(image.id)
    ranges = list(work.repo.reader.data_ranges(now.map_id, len(content)))
    shown = bytearray(len(content))
    for offset, length in ranges:
        shown[offset : offset + length] = content[offset : offset + length]
    assert shown == content
    assert any(high[0] - sum(low) >= (1 << 20) - 4096 for low, high in pairwise(ranges))
    assert list(work.repo.reader.data_ranges(now.map_id, len(content), ranges[-1][0])) == ranges[-1:]


def test_not_worth_it(work: Opened) -> None:
    """Nothing inside is stored already: the new form would take as much as the old one."""
    image = stored(work, "alone", QCOW2)
    with pytest.raises(NotConvertible, match="0 of"):
        convert(work, image)
    assert work.images.get(image.id) == image
    convert(work, image, ratio=2.0)
    assert work.images.get(image.id).layout == "recode"
    assert work.read(image.id) == QCOW2
    assert_sound(work)


def test_two_that_are_worth_it_together(work: Opened) -> None:
    """Neither shares a block with anything stored, but they share theirs with each other."""
    other = compressed.qcow2(DISK[: 1 << 19] + compressed.text(1 << 17, 99) + DISK[1 << 19 :])
    converter = Converter(work.repo)
    first, second = stored(work, "first", QCOW2), stored(work, "second", other)
    with pytest.raises(NotConvertible):
        converter.convert(first.id)
    converter.convert(second.id)
    assert [work.images.get(one.id).layout for one in (first, second)] == ["recode", "recode"]
    assert (work.read(first.id), work.read(second.id)) == (QCOW2, other)
    assert_sound(work)


@pytest.mark.parametrize(
    "content",
    [DISK, b"QFI\xfb" + noise(5000, 1), compressed.qcow2(DISK, Codec(6, -12, 9, 2))[:9000], b""],
    ids=["raw", "not a qcow2", "cut short", "empty"],
)
def test_nothing_to_convert(work: Opened, content: bytes) -> None:
    image = stored(work, "image", content)
    with pytest.raises(NotConvertible, match="nothing inside"):
        convert(work, image)
    with pytest.raises(NotConvertible):
        Converter(work.repo).estimate(work.images.get(image.id))


def test_streams_that_cannot_be_made_again_stay_as_they_are(work: Opened) -> None:
    """A third of the clusters is from another encoder."""
    image = stored(work, "mixed", _mixed(DISK))
    work.sealed("raw", DISK)
    convert(work, image)
    assert work.read(image.id) == _mixed(DISK)
    assert_sound(work)


def _mixed(disk: bytes) -> bytes:
    class Mixed(Codec):
        def encode(self, plain: bytes | memoryview) -> bytes:
            level = 6 if plain[0] % 3 else 1
            return Codec(level, -12, 9).encode(plain)

    return compressed.qcow2(disk, Mixed(6, -12, 9))


def test_images_of_the_same_bytes_are_converted_together(work: Opened) -> None:
    work.sealed("raw", DISK)
    image, again = stored(work, "one", QCOW2), stored(work, "again", QCOW2)
    clone = work.images.clone(image.id, "clone")
    done = convert(work, image)
    assert {one.id for one in done.images} == {image.id, again.id, clone.id}
    assert len({work.images.get(one.id).map_id for one in (image, again, clone)}) == 1
    late = stored(work, "late", QCOW2)
    assert convert(work, late).stored == 0
    assert work.images.get(late.id).map_id == work.images.get(image.id).map_id
    assert_sound(work)


def test_who_has_it_open_goes_on_reading(work: Opened) -> None:
    work.sealed("raw", DISK)
    image = stored(work, "compressed", QCOW2)
    handle = work.files.open(image.data_ino, os.O_RDONLY, USER, work.files.new_fh())
    assert handle.pread(0, 100) == QCOW2[:100]
    convert(work, image)
    assert_sound(work)
    assert handle.pread(0, len(QCOW2)) == QCOW2
    assert handle.seek(0, os.SEEK_DATA) == 0


def test_a_map_that_was_replaced_is_not_zeros(work: Opened) -> None:
    work.sealed("raw", DISK)
    image = stored(work, "compressed", QCOW2)
    convert(work, image)
    work.collect()
    with pytest.raises(Exception, match="replaced"):
        work.repo.reader.pread(image.map_id, len(QCOW2), 0, 4096)
    with pytest.raises(Exception, match="replaced"):
        list(work.repo.reader.data_ranges(image.map_id, len(QCOW2)))


def test_clones_and_copies_of_a_converted_image(work: Opened) -> None:
    work.sealed("raw", DISK)
    image = stored(work, "compressed", QCOW2)
    convert(work, image)
    clone = work.images.clone(image.id, "clone")
    assert (clone.layout, work.read(clone.id)) == ("recode", QCOW2)
    for name, length in (("whole", len(QCOW2)), ("part", 1 << 19)):
        copy = _copied(work, image, name, length)
        assert work.read(copy.id) == QCOW2[:length]
        assert copy.layout == ("recode" if length == len(QCOW2) else "plain")
    assert_sound(work)


def _copied(work: Opened, source: Image, name: str, length: int) -> Image:
    image = work.images.create(name, draft=True)
    to = work.files.open(image.data_ino, os.O_RDWR, USER, work.files.new_fh(), fresh=True)
    of = work.files.open(source.data_ino, os.O_RDONLY, USER, work.files.new_fh())
    done = 0
    while done < length:
        done += to.copy_range(of, done, done, length - done)
    for handle in (to, of):
        work.files.release(handle.fh)
    return work.images.seal(image.id)


def test_compaction_of_a_converted_image(work: Opened) -> None:
    """Its blocks move from pack to pack like any others (T9)."""
    raw = work.sealed("raw", DISK + noise(1 << 20, 6))
    image = stored(work, "compressed", QCOW2)
    convert(work, image)
    work.images.delete(raw.id)
    work.collect()
    compactor = Compactor(work.repo, sparse=1.0)
    assert compactor.execute(compactor.plan()).blocks > 256
    assert_sound(work)
    assert live_bytes(work) < len(DISK)
    assert work.read(image.id) == QCOW2


def test_the_catalog_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "repository"
    with opened(path) as work:
        work.sealed("raw", DISK)
        image = stored(work, "compressed", QCOW2)
        convert(work, image)
        work.repo.logs.flush()
    shutil.rmtree(path / "catalog")
    Rebuild(path).run()
    with opened(path) as work:
        assert work.images.get(image.id).layout == "recode"
        assert work.read(image.id) == QCOW2
        assert fsck.check(work.repo) == []


def test_deleted_while_it_is_converted(work: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    work.sealed("raw", DISK)
    image = stored(work, "compressed", QCOW2)
    _before_commit(monkeypatch, lambda: work.images.delete(image.id))
    with pytest.raises(SealCancelled):
        convert(work, image)
    assert_sound(work)


def _before_commit(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    commit = Recoding.commit

    def acting(self: Recoding, *args: object) -> list[Image]:
        act()
        return commit(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Recoding, "commit", acting)


def test_packs_that_go_meanwhile_are_stored_again(work: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """The raw image whose blocks were found is deleted, and its packs are doomed, just before the commit."""
    disk = compressed.disk(1, 12, noise=False)  # noise is not compressed: both would have the same blocks of it
    content = compressed.qcow2(disk)
    raw = work.sealed("raw", disk)
    image = stored(work, "compressed", content)
    catalog = work.repo.catalog
    numbers = sorted(catalog.maps.packs_of(raw.map_id))
    doomed: list[int] = []

    def doom() -> None:
        if doomed:
            return
        work.images.delete(raw.id)
        _acknowledge_all(work)
        assert catalog.seals.finalise(raw.id)
        _acknowledge_all(work)
        doomed.extend(catalog.packs.doom(numbers))
        for row in catalog.packs.doomed():
            work.repo.store.delete(row.object_name)

    _before_commit(monkeypatch, doom)
    convert(work, image)
    assert doomed == numbers
    work.collect()
    assert work.read(image.id) == content
    assert_sound(work)


def _acknowledge_all(work: Opened) -> None:
    for session in work.repo.catalog.sessions.list():
        work.repo.catalog.sessions.ack(session.id, work.repo.catalog.generation())


def test_what_does_not_make_the_file_again_changes_nothing(work: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bit of what was stored is wrong and every check of it right: the whole file's hash tells."""
    work.sealed("raw", DISK)
    image = stored(work, "compressed", QCOW2)
    skeleton = Recoding.__dict__["_guest"]

    def without_one(self: Recoding, area: object) -> list[recode.Stream]:
        rows = skeleton(self, area)
        moved = rows[3]._replace(file_off=rows[3].file_off, guest_off=rows[4].guest_off)
        made = self.inside.codec.encode(DISK[moved.guest_off : moved.guest_off + compressed.CLUSTER])
        rows[3] = moved._replace(check=recode.check_of(made), length=len(made))
        return rows[:4] + rows[5:]

    monkeypatch.setattr(Recoding, "_guest", without_one)
    with pytest.raises(Damaged, match="stays as it is"):
        convert(work, image)
    assert work.images.get(image.id) == image
    assert work.read(image.id) == QCOW2
    assert_sound(work)


def test_streams_that_come_out_differently(work: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder fails in the middle of its life: never wrong bytes."""
    work.sealed("raw", DISK)
    image = stored(work, "compressed", QCOW2)
    convert(work, image)
    file = work.repo.reader._layout(work.images.get(image.id).map_id)
    assert file is not None
    monkeypatch.setattr(file, "_encoders", [lambda plain: b"nothing"])
    with pytest.raises(Damaged, match="not what it was"):
        work.read(image.id)


@pytest.mark.expect_log("this machine's zlib is not the one")
def test_another_zlib_after_an_upgrade(work: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder in Python makes what the machine's zlib makes no more; what neither can is named."""
    work.sealed("raw", DISK)
    image = stored(work, "compressed", QCOW2)
    convert(work, image)
    map_id = work.images.get(image.id).map_id
    encode = Codec.encode
    monkeypatch.setattr(Codec, "encode", lambda self, plain: encode(replace(self, level=1), plain))
    deflate.probe_digest.cache_clear()
    recoding._encoder.cache_clear()
    try:
        file = work.repo.reader.recoded(map_id)
        assert file.pread(4 * compressed.CLUSTER, 300_000) == QCOW2[4 * compressed.CLUSTER :][:300_000]
        monkeypatch.setattr("imagefs.formats.slowdeflate.encode", lambda plain, *parameters: b"nothing")
        recoding._encoder.cache_clear()
        with pytest.raises(CannotRemake, match="zlib"):
            work.repo.reader.recoded(map_id)
    finally:
        deflate.probe_digest.cache_clear()
        recoding._encoder.cache_clear()


def test_an_older_imagefs_refuses(work: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    def features() -> tuple[str, ...]:
        return superblock.Superblock.load((work.repo.path / "imagefs.json").read_bytes()).features

    work.sealed("raw", DISK)
    image = stored(work, "compressed", QCOW2)
    assert features() == ()
    convert(work, image)
    assert features() == (superblock.RECODE,)
    assert work.repo.store.get("imagefs.json") == (work.repo.path / "imagefs.json").read_bytes()
    monkeypatch.setattr(superblock, "FEATURES", frozenset())
    with pytest.raises(UnknownFeature, match="recode"):
        Repository.open(work.repo.path, Config(), "cli")


def test_one_at_a_time(work: Opened) -> None:
    work.sealed("raw", DISK)
    image = stored(work, "compressed", QCOW2)
    with Converter(work.repo)._alone(), pytest.raises(Busy):
        convert(work, image)


def test_a_conversion_that_is_to_end(work: Opened) -> None:
    work.sealed("raw", DISK)
    image = stored(work, "compressed", QCOW2)
    left = iter([True] * 20)
    with pytest.raises(SealCancelled):
        Converter(work.repo, take=lambda _: next(left, False)).convert(image.id)
    assert work.images.get(image.id) == image
    assert_sound(work)


def test_in_the_background(work: Opened) -> None:
    work.sealed("raw", DISK)
    image = stored(work, "compressed", QCOW2)
    stop = threading.Event()
    background = BackgroundConversions(work.repo, stop)
    background.consider_all()
    background._pool.submit(int).result(timeout=60)  # behind all that was queued
    stop.set()
    background.close()
    assert work.images.get(image.id).layout == "recode"
    assert json.loads((work.repo.path / "imagefs.json").read_text())["format"]["features"] == ["recode"]


def test_never_in_the_background_when_it_is_off(tmp_path: Path) -> None:
    with opened(tmp_path / "repository", Config(sampling=1, convert_ratio=0)) as work:
        work.sealed("raw", DISK)
        image = stored(work, "compressed", QCOW2)
        background = BackgroundConversions(work.repo, threading.Event())
        background.consider(image)
        background.close()
        assert work.images.get(image.id).layout == "plain"
