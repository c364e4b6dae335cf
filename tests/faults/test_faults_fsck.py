"""One thing is wrong at a time: fsck finds that, and only that."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from imagefs.images import fsck, recovery
from imagefs.images.session import Session
from tests.content import noise
from tests.repositories import Opened, opened


@pytest.fixture
def it(repo_dir: Path) -> Iterator[Opened]:
    with opened(repo_dir) as it:
        it.sealed("image", noise(100_000, 1))
        it.draft("draft", noise(100_000, 2))
        assert not fsck.check(it.repo)
        yield it


def found(it: Opened) -> list[tuple[str, str]]:
    return [(finding.rule, finding.subject) for finding in fsck.check(it.repo)]


def draft_of(it: Opened) -> UUID:
    (image_id,) = it.repo.catalog.images.named("draft")
    return image_id


def change(path: Path, at: int = -70) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)


def test_a_draft_whose_sealer_is_dead(it: Opened) -> None:
    dead = Session(it.repo.path / "sessions", it.repo.catalog, "mount")
    it.repo.catalog.seals.claim(draft_of(it), dead.id, time.time_ns())
    assert not found(it), "it is being sealed"
    os.close(dead._lock_fd)
    assert found(it) == [("sealers_live", str(draft_of(it)))]
    recovery.recover(it.repo)
    it.collect()
    assert not found(it)
    it.images.seal(draft_of(it))


def test_a_draft_without_its_file(it: Opened) -> None:
    it.repo.staging.remove(draft_of(it), 1)
    assert found(it) == [("drafts_have_files", str(draft_of(it)))]


def test_an_object_in_no_table(it: Opened) -> None:
    names = ["packs/ab/ab" + "0" * 30, "maps/00000000-0000-0000-0000-000000000000"]
    for name in names:
        it.inner.put(name, b"whatever")
    assert sorted(found(it)) == sorted(("objects_are_known", name) for name in names)


@pytest.mark.parametrize("prefix", ["packs/", "maps/"])
def test_an_object_that_is_gone(it: Opened, prefix: str) -> None:
    (name,) = it.inner.list(prefix)
    it.inner.delete(name)
    assert found(it) == [("objects_are_there", name)]


@pytest.mark.parametrize(
    ("prefix", "rule"),
    [("packs/", "footers_agree"), ("maps/", "manifests_agree"), ("log/", "log_objects_verify")],
)
def test_an_object_that_has_changed(it: Opened, prefix: str, rule: str) -> None:
    name = next(iter(it.inner.list(prefix)))
    change(it.path_of(name))
    it.inner.close()
    assert found(it) == [(rule, name)]


def test_what_a_seal_left_behind_is_no_finding(it: Opened) -> None:
    """Names that were reserved and perhaps never put go through the trash: there need not be an object."""
    dead = Session(it.repo.path / "sessions", it.repo.catalog, "mount")
    it.repo.catalog.seals.claim(draft_of(it), dead.id, time.time_ns())
    names = it.repo.catalog.packs.reserve(draft_of(it))
    it.inner.put(f"packs/{names[0][1].hex()[:2]}/{names[0][1].hex()}", b"half done")
    os.close(dead._lock_fd)
    recovery.recover(it.repo)
    it.images.seal(draft_of(it))
    assert not found(it)
    it.collect()
    assert not found(it)
