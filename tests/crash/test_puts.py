"""Stores whose put goes wrong: the draft stays, can be sealed later, and nothing is left over."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from imagefs.errors import BackendFailed, NoSpace
from imagefs.images import checkpointing, fsck, recovery, sealing
from imagefs.stores.faults import Fault, Kind
from imagefs.types import Status
from tests.content import KIB, noise
from tests.crash.crashes import ROOT
from tests.crash.steps import END
from tests.repositories import CONFIG, Opened, opened

OLD = noise(200 * KIB, 1)
NEW = OLD[: 64 * KIB] + bytes(64 * KIB) + noise(300 * KIB + 5, 2)

FAULTS = [
    Fault("put", Kind.FAIL, 1, "packs/"),
    Fault("put", Kind.FAIL, 2, "packs/", error=NoSpace),
    Fault("put", Kind.FAIL, 1, "maps/"),
    Fault("put", Kind.FAIL_AFTER, 1, "packs/"),
    Fault("put", Kind.FAIL_AFTER, 3, "packs/"),
    Fault("put", Kind.FAIL_AFTER, 1, "maps/"),
    *(Fault("put", Kind.TORN, nth, "packs/", amount) for nth in (1, 2) for amount in (0, 1, 4096, 70_000)),
    *(Fault("put", Kind.TORN, 1, "maps/", amount) for amount in (0, 1, 500)),
]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs of 128 KiB, checkpoints after as much."""
    monkeypatch.setattr(sealing, "WINDOW", 128 * KIB)
    monkeypatch.setattr(checkpointing, "CHECKPOINT", 128 * KIB)


@pytest.fixture
def it(repo_dir: Path) -> Iterator[Opened]:
    with opened(repo_dir, replace(CONFIG, pack_blocks=32)) as it:
        yield it


def require_sealed_and_clean(it: Opened, image_id: UUID) -> None:
    """It can be sealed now, everything is intact, and when all is deleted nothing is left."""
    it.images.seal(image_id)
    assert it.read(image_id) == NEW
    it.collect()
    assert not fsck.check(it.repo)
    it.delete_all()
    assert not it.objects()


@pytest.mark.parametrize(
    "fault", FAULTS, ids=lambda fault: f"{fault.kind.name}-{fault.nth}-{fault.prefix}{fault.amount}"
)
def test_a_put_that_fails_leaves_a_draft(it: Opened, fault: Fault) -> None:
    old = it.sealed("old", OLD)
    new = it.draft("new", NEW)
    it.plan.add(fault)
    with pytest.raises((BackendFailed, NoSpace), match="as planned"):
        it.images.seal(new)
    image = it.images.get(new)
    assert image.status == Status.SAVING
    assert image.draft is not None
    assert image.draft.sealer is None
    assert "as planned" in (image.draft.failed or image.draft.blocked or "")
    assert it.read(new) == NEW
    assert it.read(old.id) == OLD
    it.plan.clear()
    require_sealed_and_clean(it, new)


def test_a_seal_that_fails_again_and_again_leaves_nothing(it: Opened) -> None:
    new = it.draft("new", NEW)
    it.plan.add(Fault("put", Kind.FAIL_AFTER, None, "maps/"))
    for _ in range(4):
        with pytest.raises(BackendFailed):
            it.images.seal(new)
    it.plan.clear()
    it.plan.add(Fault("put", Kind.FAIL_AFTER, 1, "packs/"))
    with pytest.raises(BackendFailed):
        it.images.seal(new)
    require_sealed_and_clean(it, new)


def test_the_draft_of_a_failed_seal_can_be_deleted(it: Opened) -> None:
    new = it.draft("new", NEW)
    it.plan.add(Fault("put", Kind.FAIL_AFTER, 2, "packs/"))
    with pytest.raises(BackendFailed):
        it.images.seal(new)
    it.delete_all()
    assert not it.objects()


@pytest.mark.parametrize(("prefix", "nth"), [("packs/", 1), ("packs/", 3), ("maps/", 1)])
@pytest.mark.parametrize("amount", [0, 5000])
def test_death_in_a_put_that_is_not_atomic(repo_dir: Path, prefix: str, nth: int, amount: int) -> None:
    with opened(repo_dir, replace(CONFIG, pack_blocks=32)) as it:
        old = it.sealed("old", OLD)
        new = it.draft("new", NEW)
    command = [
        sys.executable,
        "-m",
        "tests.crash.torn",
        str(repo_dir),
        str(new),
        prefix,
        str(nth),
        str(amount),
    ]
    died = subprocess.run(command, cwd=ROOT, timeout=60, check=False)
    assert died.returncode == END
    with opened(repo_dir, replace(CONFIG, pack_blocks=32)) as it:
        recovery.recover(it.repo)
        assert it.read(new) == NEW
        assert it.read(old.id) == OLD
        require_sealed_and_clean(it, new)
