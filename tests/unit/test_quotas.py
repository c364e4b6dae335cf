"""Quotas: what counts for a project, what is refused, and that a full one harms nothing that is stored."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import pytest

from imagefs.catalog import Limits, rules
from imagefs.errors import QuotaExceeded
from imagefs.types import Image, Status
from tests.repositories import USER, Opened, opened

MIB = 1 << 20


@pytest.fixture
def it(repo_dir: Path) -> Iterator[Opened]:
    with opened(repo_dir) as it:
        yield it
        findings = [finding for rule in rules.RULES for finding in rule(it.repo.catalog)]
        assert not findings, "\n".join(map(str, findings))


def draft(it: Opened, name: str, content: bytes, owner: str = "p") -> UUID:
    image_id = it.draft(name, content)
    it.images.set_fields(image_id, {"owner": owner})
    return image_id


def sealed(it: Opened, name: str, content: bytes, owner: str = "p") -> Image:
    return it.images.seal(draft(it, name, content, owner))


def limit(it: Opened, owner: str | None = "p", *, total: bool = False, **limits: int) -> None:
    it.repo.catalog.quotas.set(owner, Limits(**limits), total=total)


def used(it: Opened, owner: str | None = "p") -> tuple[int, int, int]:
    figures = it.repo.catalog.usage.of_owner(owner)
    return figures.images, figures.logical, figures.unique


def test_what_counts_for_a_project(it: Opened) -> None:
    content = os.urandom(2 * MIB)
    first = sealed(it, "first", content)
    count, logical, unique = used(it)
    assert (count, logical) == (1, 2 * MIB)
    assert unique == it.repo.catalog.usage.of_all().unique >= 2 * MIB
    it.images.clone(first.id, "copy")
    assert used(it) == (2, 4 * MIB, unique), "a clone adds nothing to the store"
    sealed(it, "theirs", content, owner="q")
    assert used(it, "q")[1] == 2 * MIB
    assert used(it, "q")[2] < 10_000, "the same data again adds a manifest"
    it.images.set_fields(first.id, {"owner": "r"})
    assert (used(it)[1], used(it, "r")[1]) == (2 * MIB, 2 * MIB)
    for image_id in (first.id, it.repo.catalog.images.named("copy")[0]):
        it.images.delete(image_id)
    assert (used(it), used(it, "r")) == ((0, 0, 0), (0, 0, 0))


def test_logical_bytes_at_sealing(it: Opened) -> None:
    limit(it, logical=3 * MIB)
    kept = sealed(it, "fits", os.urandom(2 * MIB))
    over = draft(it, "over", os.urandom(MIB + 1))
    with pytest.raises(QuotaExceeded, match=r"project p is 3145728 logical bytes: 2097152 are used, 1048577 more"):
        it.images.seal(over)
    image = it.images.get(over)
    assert image.status == Status.SAVING
    assert image.draft is not None and "quota" in (image.draft.blocked or ""), "it says why, and is not tried again"
    assert len(it.read(kept.id)) == 2 * MIB
    assert len(it.read(over)) == MIB + 1
    limit(it, logical=4 * MIB)
    assert it.images.seal(over).status == Status.ACTIVE


def test_unique_bytes_at_sealing(it: Opened) -> None:
    content = os.urandom(2 * MIB)
    sealed(it, "first", content)
    limit(it, unique=used(it)[2] + MIB)
    sealed(it, "same", content)
    over = draft(it, "over", os.urandom(2 * MIB))
    with pytest.raises(QuotaExceeded, match="unique"):
        it.images.seal(over)
    assert it.images.get(over).status == Status.SAVING
    sealed(it, "theirs", os.urandom(2 * MIB), owner="q")
    it.images.delete(over)
    it.collect()
    assert not [pack for pack in it.repo.catalog.packs.scan() if pack.owner == over], "nothing of it is left"


def test_all_projects_together(it: Opened) -> None:
    limit(it, None, total=True, logical=3 * MIB)
    sealed(it, "first", os.urandom(2 * MIB), owner="a")
    with pytest.raises(QuotaExceeded, match="all projects together"):
        sealed(it, "second", os.urandom(2 * MIB), owner="b")
    limit(it, None, total=True, unique=it.repo.catalog.usage.of_all().unique + MIB)
    with pytest.raises(QuotaExceeded, match="unique"):
        sealed(it, "third", os.urandom(2 * MIB), owner="b")


def test_a_writer_is_told(it: Opened) -> None:
    limit(it, None, logical=MIB)
    image = it.images.create("new", draft=True)
    handle = it.files.open(image.data_ino, os.O_RDWR, USER, it.files.new_fh(), fresh=True)
    assert handle.pwrite(0, memoryview(bytes(MIB))) == MIB
    for refused in (
        lambda: handle.pwrite(MIB, memoryview(b"x")),
        lambda: handle.truncate(MIB + 1),
        lambda: handle.fallocate(0, 0, MIB + 1),
    ):
        with pytest.raises(QuotaExceeded):
            refused()
    assert handle.pwrite(MIB - 10, memoryview(b"over")) == 4, "what is there may be written again"
    it.files.release(handle.fh)
    draft = it.images.get(image.id).draft
    assert draft is not None and "quota" in (draft.blocked or ""), "a copy that did not fit is not sealed by itself"


def test_other_drafts_count_while_one_is_written(it: Opened) -> None:
    limit(it, None, logical=3 * MIB)
    it.draft("other", bytes(2 * MIB))
    image = it.images.create("new", draft=True)
    handle = it.files.open(image.data_ino, os.O_RDWR, USER, it.files.new_fh(), fresh=True)
    handle.truncate(MIB)
    with pytest.raises(QuotaExceeded):
        handle.truncate(MIB + 1)


def test_of_two_that_fit_alone_one_is_sealed(it: Opened) -> None:
    limit(it, logical=3 * MIB)
    drafts = [draft(it, name, os.urandom(2 * MIB)) for name in ("first", "second")]

    def seal(image_id: UUID) -> bool:
        try:
            return it.images.seal(image_id).status == Status.ACTIVE
        except QuotaExceeded:
            return False

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(seal, drafts)) == [False, True]
    assert used(it)[1] == 2 * MIB


def test_a_full_quota_refuses_new_data_and_nothing_else(it: Opened) -> None:
    first = sealed(it, "first", os.urandom(MIB))
    limit(it, logical=1000)
    for refused in (
        lambda: it.images.create("draft", owner="p", draft=True),
        lambda: it.images.begin_draft(it.images.create("queued", owner="p").id),
        lambda: it.images.clone(first.id, "copy"),
    ):
        with pytest.raises(QuotaExceeded):
            refused()
    assert len(it.read(first.id)) == MIB
    it.images.set_fields(first.id, {"min_ram": 5, "name": "renamed"})
    other = sealed(it, "other", b"data", owner="q")
    with pytest.raises(QuotaExceeded):
        it.images.set_fields(other.id, {"owner": "p"})
    assert it.images.get(other.id).owner == "q"
    it.images.delete(first.id)
    it.collect()
    assert used(it) == (0, 0, 0)
    assert it.repo.catalog.quotas.delete("p") is True
    assert it.repo.catalog.quotas.delete("p") is False
    sealed(it, "again", os.urandom(MIB))


def test_limits_are_listed_with_what_is_used(it: Opened) -> None:
    limit(it, "p", logical=5 * MIB, unique=MIB)
    limit(it, None, logical=MIB)
    sealed(it, "first", os.urandom(1000))
    limit(it, None, total=True, unique=7)
    found = {(quota.owner, quota.total): (quota.limits, quota.used.logical) for quota in it.repo.catalog.quotas.list()}
    assert found == {
        (None, True): (Limits(unique=7), 1000),
        ("p", False): (Limits(5 * MIB, MIB), 1000),
        (None, False): (Limits(logical=MIB), 0),
    }
