"""The order of a seal (S3, S5): nothing is recorded before it is durable, nothing is durable that is not recorded."""

from __future__ import annotations

import pytest

from tests.crash.crashes import Zygote
from tests.crash.workload import CHECKPOINT, OPERATIONS, PACK, A


@pytest.fixture(scope="module")
def seal(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The durable steps of the seal of a draft of several packs and checkpoints, relative to the repository."""
    path = tmp_path_factory.mktemp("order")
    with Zygote(path) as zygote:
        answer = zygote.crash(None)
    assert answer["error"] is None, answer["error"]
    steps = [step.replace(f"{path}/crash/repository/", "") for step in answer["steps"]]
    number = next(number for number, operation in enumerate(OPERATIONS) if operation.name == f"seal {A}")
    return steps[steps.index(f"journal begin {number}") + 1 : steps.index(f"journal done {number}")]


def first(steps: list[str], what: str, after: int = 0) -> int:
    for number in range(after, len(steps)):
        if steps[number].startswith(what):
            return number
    raise AssertionError(f"no {what!r} after step {after} of {steps}")


def all_of(steps: list[str], what: str) -> list[int]:
    return [number for number, step in enumerate(steps) if step.startswith(what)]


def test_the_content_is_durable_before_it_is_called_complete(seal: list[str]) -> None:
    """Else recovery after a power cut seals a file that is short or full of zeros."""
    complete = first(seal, "commit catalog Seals.complete")
    assert first(seal, f"fdatasync staging/{A}.1") < complete
    assert first(seal, "fsync staging") < complete
    assert complete < first(seal, "link ")


def test_names_are_reserved_before_anything_is_put(seal: list[str]) -> None:
    """Else what is put before a crash is in no table, for ever."""
    claim = first(seal, "commit catalog Seals.claim")
    pack = first(seal, "open store/packs/")
    commits = [step for step in seal[claim + 1 : pack] if step.startswith("commit catalog")]
    assert len(commits) >= 2, f"complete and reserve, not {commits}"
    assert pack < first(seal, "open store/maps/")


def test_packs_are_durable_before_the_transaction_that_records_them(seal: list[str]) -> None:
    links = all_of(seal, "link store/packs/")
    assert len(links) >= 5
    durable = []
    for link in links:
        temporary, _, path = seal[link].removeprefix("link ").rpartition(" ")
        assert first(seal, f"writev {temporary}") < first(seal, f"fdatasync {temporary}") < link
        durable.append(first(seal, f"fsync {path.rpartition('/')[0]}", link))
    assert max(durable) < first(seal, "commit catalog Seals.commit")
    checkpoints = all_of(seal, "commit catalog Seals.checkpoint")
    assert checkpoints
    packs = CHECKPOINT // PACK  # in each checkpoint; the next ones may be on their way when it is recorded
    for number, checkpoint in enumerate(checkpoints, 1):
        assert sum(moment < checkpoint for moment in durable) >= packs * number


def test_the_manifest_is_durable_before_the_commit_and_the_log_after_it(seal: list[str]) -> None:
    link, commit = first(seal, "link store/maps/"), first(seal, "commit catalog Seals.commit")
    assert first(seal, "fsync store/maps", link) < commit
    log = first(seal, "link store/log/")
    assert commit < log
    assert first(seal, "fsync store/log", log) < len(seal)
