"""Uploads: bytes that come once, in any pieces, become a sealed image or leave nothing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagefs.blocks.digest import Digests
from imagefs.errors import BackendFailed, Busy, Mismatch, NoSpace, NotFound, SealBlocked, SealCancelled
from imagefs.images import checkpointing, fsck, packing
from imagefs.images.upload import Upload
from imagefs.stores.faults import Fault, Kind
from imagefs.types import BLOCK, Status
from tests.content import KIB, MIB, noise
from tests.repositories import CONFIG, USER, Opened, opened

CONTENT = noise(3 * MIB, 1) + bytes(2 * MIB) + noise(MIB + 12345, 2)
SMALL = replace(CONFIG, pack_blocks=64)


@pytest.fixture
def it(repo_dir: Path) -> Iterator[Opened]:
    with opened(repo_dir, SMALL) as it:
        yield it


def begun(it: Opened, name: str = "new", **options: Any) -> Upload:
    return Upload(it.images, it.files, it.images.create(name), **options)


def uploaded(it: Opened, content: bytes, name: str = "new", piece: int = 300_000) -> UUID:
    with begun(it, name) as upload:
        for offset in range(0, len(content), piece):
            upload.write(content[offset : offset + piece])
        return upload.seal().id


def require_clean(it: Opened) -> None:
    """All is intact, and when all is deleted nothing is left."""
    assert not list(fsck.check(it.repo))
    assert not it.repo.catalog.sessions.packs_held(it.repo.session.id)
    it.delete_all()
    assert not it.objects()
    assert not list(it.repo.catalog.packs.scan())
    assert not list(it.repo.staging.files())


def test_the_image_has_the_bytes_and_their_hashes(it: Opened) -> None:
    image = it.images.get(uploaded(it, CONTENT))
    assert it.read(image.id) == CONTENT
    assert (image.status, image.size, image.disk_format) == (Status.ACTIVE, len(CONTENT), "raw")
    assert image.checksum == hashlib.md5(CONTENT).hexdigest()
    assert image.os_hash_value == hashlib.sha512(CONTENT).hexdigest()
    assert image.allocated < len(CONTENT) - 2 * MIB + BLOCK, "zeros are holes"
    require_clean(it)


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, MIB, MIB + 1])
def test_sizes(it: Opened, size: int) -> None:
    content = noise(size, 3)
    assert it.read(uploaded(it, content, piece=max(1, size // 3))) == content
    require_clean(it)


def test_it_is_the_image_that_a_draft_with_these_bytes_becomes(it: Opened) -> None:
    image = it.images.get(uploaded(it, CONTENT))
    sealed = it.sealed("draft", CONTENT)
    assert (sealed.root, sealed.size) == (image.root, image.size)
    maps = it.repo.catalog.maps
    assert list(maps.rows(sealed.map_id)) == list(maps.rows(image.map_id)), "and takes nothing more"


def test_holes_need_no_bytes(it: Opened) -> None:
    with begun(it, hashed=False) as upload:
        upload.hole(100)
        upload.write(CONTENT[:5000])
        upload.hole(3 * MIB + 777)
        upload.write(CONTENT[:MIB])
        upload.hole(BLOCK)
        image = upload.seal()
    expected = bytes(100) + CONTENT[:5000] + bytes(3 * MIB + 777) + CONTENT[:MIB] + bytes(BLOCK)
    assert it.read(image.id) == expected
    assert it.sealed("draft", expected).root == image.root
    assert image.checksum is None


pieces = st.lists(
    st.tuples(st.sampled_from(["old", "new", "zeros", "again", "odd"]), st.integers(0, 700), st.integers(1, 600)),
    min_size=1,
    max_size=8,
)


def made_of(parts: list[tuple[str, int, int]], old: bytes) -> bytes:
    content = b""
    for kind, at, count in parts:
        if kind == "old":
            content += old[at * BLOCK : (at + count) * BLOCK]
        elif kind == "new":
            content += noise(count * BLOCK, at)
        elif kind == "zeros":
            content += bytes(count * BLOCK)
        elif kind == "again":
            content += noise(BLOCK, at) * min(count, 50)
        else:
            content += noise(count, at)
    return content


def test_what_is_shared_is_equal_bytes(repo_dir: Path) -> None:
    """Known blocks, known MiBs, repeated blocks and zeros in any order, at any place."""
    old = noise(4 * MIB, 7)
    with opened(repo_dir, replace(SMALL, sampling=16)) as it:
        uploaded(it, old, "old")

        @settings(max_examples=25, suppress_health_check=list(HealthCheck))
        @given(pieces, st.integers(1000, 2 * MIB))
        def check(parts: list[tuple[str, int, int]], piece: int) -> None:
            content = made_of(parts, old)
            first = uploaded(it, content, "one", piece)
            second = it.sealed("two", content)
            assert it.read(first) == content
            assert it.read(second.id) == content
            assert it.images.get(first).root == second.root
            if sum(count for _, _, count in parts) % 3 == 0:
                it.images.delete(first)
                it.collect()
            it.images.delete(second.id)

        check()
        assert not list(fsck.check(it.repo))


class TestWholeMib:
    def test_known_content_is_not_hashed_block_by_block(self, it: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
        content = noise(8 * MIB, 4)
        uploaded(it, content, "first")
        blocks = self.counted(monkeypatch)
        known = uploaded(it, content, "second")
        assert blocks == []
        assert it.read(known) == content
        stored = it.repo.catalog.packs.totals().live
        uploaded(it, content, "third")
        assert it.repo.catalog.packs.totals().live == stored + 1, "a manifest and no pack"

    @pytest.mark.parametrize("at", [0, 16, 18, 20, 22])
    def test_a_damaged_row_finds_nothing(self, it: Opened, at: int) -> None:
        content = noise(2 * MIB, 4)
        uploaded(it, content, "first")
        index = it.repo.index
        with index._env.write() as txn:
            for key, value in list(txn.cursor(db=index._wholes)):
                damaged = bytearray(value)
                damaged[at] ^= 1
                txn.put(key, bytes(damaged), db=index._wholes)
        assert it.read(uploaded(it, content, "second")) == content

    def test_a_row_of_another_catalog_finds_nothing(self, it: Opened) -> None:
        """Numbers of packs mean other packs in a catalog that was rebuilt."""
        first, second = noise(MIB, 4), noise(MIB, 5)
        uploaded(it, first, "first")
        uploaded(it, second, "second")
        index = it.repo.index
        with index._env.write() as txn:
            (one, its), (other, others) = list(txn.cursor(db=index._wholes))
            txn.put(one, others, db=index._wholes)
            txn.put(other, its, db=index._wholes)
        assert it.read(uploaded(it, first + second, "third")) == first + second

    def test_rows_go_with_the_packs(self, it: Opened) -> None:
        uploaded(it, noise(2 * MIB, 4))
        assert self.rows(it) == (2, 2)
        it.delete_all()
        assert self.rows(it) == (0, 0)

    @staticmethod
    def rows(it: Opened) -> tuple[int, int]:
        index = it.repo.index
        with index._env.read() as txn:
            return txn.stat(db=index._wholes)["entries"], txn.stat(db=index._parts)["entries"]

    @staticmethod
    def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
        calls: list[int] = []
        real = Digests.blocks

        def blocks(self: Digests, view: memoryview) -> list[bytes]:
            calls.append(len(view))
            return real(self, view)

        monkeypatch.setattr(Digests, "blocks", blocks)
        return calls


class TestEnds:
    @pytest.mark.expect_log("is killed")
    @pytest.mark.parametrize("field", ["size", "checksum", "os_hash_value"])
    def test_other_data_than_declared_is_killed(self, it: Opened, field: str) -> None:
        image = it.images.create("new", draft=True)
        declared = {"size": "1", "checksum": "0" * 32, "os_hash_value": "0" * 128}[field]
        it.images.update_draft(image.id, lambda draft: replace(draft, expected={field: declared}))
        with Upload(it.images, it.files, it.images.get(image.id)) as upload:
            upload.write(CONTENT)
            with pytest.raises(Mismatch):
                upload.seal()
        assert it.images.get(image.id).status == Status.KILLED
        require_clean(it)

    @pytest.mark.parametrize("written", [0, 1000, len(CONTENT)])
    def test_a_producer_that_fails_loses_only_the_draft(self, it: Opened, written: int) -> None:
        with pytest.raises(ConnectionResetError), begun(it) as upload:
            upload.write(CONTENT[:written])
            raise ConnectionResetError
        image = it.images.get(upload.image_id)
        assert (image.status, image.draft, image.name) == (Status.QUEUED, None, "new")
        with Upload(it.images, it.files, image) as again:
            again.write(CONTENT)
            again.seal()
        assert it.read(image.id) == CONTENT
        require_clean(it)

    @pytest.mark.parametrize("nth", [1, 2, 9])
    @pytest.mark.parametrize("fault", [Kind.FAIL, Kind.FAIL_AFTER, Kind.TORN])
    def test_a_store_that_fails(self, it: Opened, fault: Kind, nth: int) -> None:
        error = NoSpace if nth == 2 else BackendFailed
        it.plan.add(Fault("put", fault, nth, "packs/", error=error))
        with pytest.raises((BackendFailed, NoSpace)), begun(it) as upload:
            upload.write(CONTENT)
            upload.seal()
        assert it.images.get(upload.image_id).status == Status.QUEUED
        require_clean(it)

    def test_a_full_disk_takes_known_data_only(self, it: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
        """S15: what is kept free is for the catalog."""
        uploaded(it, CONTENT, "old")
        monkeypatch.setattr(it.repo.space, "room", lambda: 0)
        it.repo.space._credit = 0
        assert it.read(uploaded(it, CONTENT, "known")) == CONTENT
        with pytest.raises(NoSpace), begun(it) as upload:
            upload.write(noise(3 * MIB, 9))
        assert it.images.get(upload.image_id).status == Status.QUEUED
        require_clean(it)

    def test_a_manifest_that_cannot_be_stored(self, it: Opened) -> None:
        it.plan.add(Fault("put", Kind.FAIL, 1, "maps/"))
        with pytest.raises(BackendFailed), begun(it) as upload:
            upload.write(CONTENT)
            upload.seal()
        assert it.images.get(upload.image_id).status == Status.QUEUED
        require_clean(it)

    def test_the_image_is_deleted_meanwhile(self, it: Opened) -> None:
        with pytest.raises((SealCancelled, NotFound)), begun(it) as upload:
            upload.write(CONTENT[: 2 * MIB])
            it.images.delete(upload.image_id)
            it.collect()
            upload.write(CONTENT[2 * MIB :])
            upload.seal()
        require_clean(it)

    def test_its_data_is_unlinked_meanwhile(self, it: Opened) -> None:
        with pytest.raises(SealCancelled), begun(it) as upload:
            upload.write(CONTENT[:MIB])
            it.images.unlink_data(upload.image_id)
            upload.write(CONTENT[MIB:])
            upload.seal()
        assert it.images.get(upload.image_id).status == Status.QUEUED
        require_clean(it)

    def test_nothing_is_possible_after_the_end(self, it: Opened) -> None:
        upload = begun(it)
        upload.close()
        upload.close()
        with pytest.raises(SealCancelled):
            upload.write(CONTENT)


class TestBesideOthers:
    def test_what_it_shares_cannot_go_away(self, it: Opened) -> None:
        """Else its map would name packs that are gone, and there is no draft to store their blocks from (T3)."""
        old = it.sealed("old", CONTENT[: 3 * MIB])
        with begun(it) as upload:
            upload.write(CONTENT[: 2 * MIB])
            it.images.delete(old.id)
            it.collect()
            upload.write(CONTENT[2 * MIB :])
            it.collect()
            image = upload.seal()
        it.collect()
        assert it.read(image.id) == CONTENT
        require_clean(it)

    def test_two_uploads_that_share_the_same(self, it: Opened) -> None:
        old = it.sealed("old", CONTENT)
        with begun(it, "one") as one, begun(it, "two") as two:
            for offset in range(0, len(CONTENT), MIB):
                one.write(CONTENT[offset : offset + MIB])
                two.write(CONTENT[offset : offset + MIB])
            it.images.delete(old.id)
            two.close()
            it.collect()
            image = one.seal()
        it.collect()
        assert it.read(image.id) == CONTENT
        require_clean(it)

    def test_nobody_else_writes_or_seals_it(self, it: Opened) -> None:
        with begun(it) as upload:
            upload.write(CONTENT)
            ino = it.images.get(upload.image_id).data_ino
            with pytest.raises(Busy):
                it.files.open(ino, os.O_WRONLY, USER, it.files.new_fh())
            with pytest.raises((Busy, SealBlocked)):
                it.images.sealer.seal(upload.image_id)
            upload.seal()
        assert it.read(upload.image_id) == CONTENT


def test_memory_is_bounded_by_the_packs_in_flight(it: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real: Callable[[packing.Packer], memoryview] = packing.Packer._buffer

    def buffer(self: packing.Packer) -> memoryview:
        found = real(self)
        made.append(self._made)
        return found

    monkeypatch.setattr(packing.Packer, "_buffer", buffer)
    monkeypatch.setattr(checkpointing, "CHECKPOINT", 2 * MIB)
    content = noise(12 * MIB, 6)
    assert it.read(uploaded(it, content)) == content
    assert len(made) == 12 * MIB // (64 * 4 * KIB)
    assert max(made) <= packing.PACKS_IN_FLIGHT + 1
    require_clean(it)


@pytest.mark.parametrize("sealed_first", [False, True])
def test_drafts_and_uploads_find_each_others_mibs(
    it: Opened, monkeypatch: pytest.MonkeyPatch, sealed_first: bool
) -> None:
    """Sparse files too, wherever their data begins."""
    content = bytes(3 * BLOCK) + noise(4 * MIB, 8)
    it.sealed("draft", content) if sealed_first else uploaded(it, content)
    blocks = TestWholeMib.counted(monkeypatch)
    known = uploaded(it, content, "known") if sealed_first else it.sealed("known", content).id
    assert sum(blocks) < MIB + 4 * BLOCK, "only what does not fill a MiB"
    assert it.read(known) == content


@pytest.mark.parametrize("checkpoint", [2 * MIB, 256 * MIB])
def test_an_image_shares_blocks_with_itself(it: Opened, monkeypatch: pytest.MonkeyPatch, checkpoint: int) -> None:
    """However far apart they are: the lists at hand are those of 2 MiB here."""
    monkeypatch.setattr(checkpointing, "CHECKPOINT", checkpoint)
    part, block = noise(2 * MIB, 1), noise(BLOCK, 2)
    content = part + noise(9 * MIB, 3) + part[: MIB + 5 * BLOCK] + block * 100 + noise(5 * MIB, 4) + part + block
    image = it.images.get(uploaded(it, content))
    assert it.read(image.id) == content
    packs = it.repo.catalog.packs
    blocks = sum(packs.get(no).blocks for no in it.repo.catalog.maps.packs_of(image.map_id))
    assert 16 * MIB // BLOCK + 1 <= blocks <= 16 * MIB // BLOCK + 8
    require_clean(it)
