"""`status`, `show --space` and `quota`, on a real repository that nobody has mounted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from imagefs.cli.app import cli

MIB = 1 << 20
Run = Callable[..., Result]


@pytest.fixture
def run(repo_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `imagefs WORDS...` on a new repository, with `code` as the expected exit code."""
    monkeypatch.setenv("IMAGEFS_REPO", str(repo_dir))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))

    def invoke(*words: object, code: int = 0) -> Result:
        result = CliRunner().invoke(cli, [str(word) for word in words])
        assert result.exit_code == code, result.output
        return result

    invoke("init")
    return invoke


def stored(run: Run, tmp_path: Path, name: str, *parts: bytes, project: str = "p") -> str:
    path = tmp_path / f"{name}.raw"
    path.write_bytes(b"".join(parts))
    return run("create", "--project", project, "--file", path, name).stdout.strip()


def said(run: Run, *words: object) -> dict[str, Any]:
    found = json.loads(run(*words, "--json").stdout)
    assert isinstance(found, dict)
    return found


def test_the_figures_of_the_repository(run: Run, tmp_path: Path, repo_dir: Path) -> None:
    common = os.urandom(2 * MIB)
    stored(run, tmp_path, "first", common, os.urandom(MIB), bytes(MIB))
    stored(run, tmp_path, "second", common, os.urandom(3 * MIB))
    status = said(run, "status")
    assert (status["images"], status["by_status"]) == (2, {"active": 2})
    assert (status["logical_bytes"], status["allocated_bytes"]) == (9 * MIB, 8 * MIB)
    objects = [path for name in ("packs", "maps") for path in (repo_dir / "store" / name).rglob("*") if path.is_file()]
    assert status["stored_bytes"] == sum(path.stat().st_size for path in objects)
    assert status["unique_bytes"] == pytest.approx(4 * MIB, rel=0.02)
    assert status["shared_bytes"] == pytest.approx(2 * MIB, rel=0.02)
    assert status["survey_is_current"]
    assert status["reclaimable_bytes"] == 0
    run("delete", "second")
    status = said(run, "status")
    assert status["unique_bytes"] == pytest.approx(3 * MIB, rel=0.02)
    assert status["shared_bytes"] == 0
    assert status["reclaimable_bytes"] == pytest.approx(3 * MIB, rel=0.02)
    assert "reclaimable" in run("status").stdout


def test_why_an_image_is_big(run: Run, tmp_path: Path) -> None:
    common, text = os.urandom(2 * MIB), b"".join(b"%09d text " % n for n in range(MIB))[:MIB]
    block = os.urandom(4096)
    stored(run, tmp_path, "big", common, text, block * 256, bytes(MIB))
    other = stored(run, tmp_path, "other", common, b"x")
    space = said(run, "show", "--space", "big")
    assert (space["logical"], space["zeros"], space["repeated"]) == (5 * MIB, MIB, 255 * 4096)
    assert space["saved"] == pytest.approx(0.9 * MIB, rel=0.1)
    left = space["zeros"] + space["repeated"] + space["saved"] + space["stored"] - space["overhead"]
    assert left == space["logical"] + space["recoded"]
    assert space["unique"] + space["shared"] == space["stored"]
    assert 1.2 * MIB < space["shared"] < 2 * MIB, "512 of 769 blocks of one pack, that compress differently"
    (shares,) = space["shared_with"]
    assert (shares["id"], shares["name"]) == (other, "other")
    assert shares["bytes"] == pytest.approx(space["shared"], abs=1)
    assert (space["reclaimable"], space["clones"]) == (space["unique"], 0)
    assert space["at_once"] < space["reclaimable"], "its pack has blocks that the other one needs"
    shown = said(run, "show", "big")
    assert (shown["stored_bytes"], shown["unique_bytes"], shown["shared_bytes"], shown["reclaimable_bytes"]) == (
        space["stored"], space["unique"], space["shared"], space["reclaimable"],
    )  # fmt: skip
    assert "shared with other" in run("show", "--space", "big").stdout


def test_deleting_frees_what_was_said(run: Run, tmp_path: Path) -> None:
    common = os.urandom(MIB)
    stored(run, tmp_path, "kept", common)
    stored(run, tmp_path, "gone", common, os.urandom(4 * MIB))
    before, freed = said(run, "status")["stored_bytes"], said(run, "show", "--space", "gone")
    assert freed["reclaimable"] == freed["at_once"], "its new blocks are in packs of their own"
    run("delete", "gone")
    run("gc", "--now")
    assert before - said(run, "status")["stored_bytes"] == freed["reclaimable"]


def test_a_clone_shares_everything(run: Run, tmp_path: Path) -> None:
    stored(run, tmp_path, "first", os.urandom(MIB))
    run("clone", "first", "copy")
    space = said(run, "show", "--space", "copy")
    assert (space["unique"], space["reclaimable"], space["at_once"], space["clones"]) == (0, 0, 0, 1)
    assert [other["name"] for other in space["shared_with"]] == ["first"]
    status = said(run, "status")
    assert (status["logical_bytes"], status["unique_bytes"]) == (2 * MIB, 0)


def test_an_image_without_data(run: Run) -> None:
    run("create", "queued")
    assert said(run, "show", "queued")["unique_bytes"] is None
    run("show", "--space", "queued", code=7)


def test_quotas(run: Run, tmp_path: Path) -> None:
    run("quota", "set", "p", code=7)
    run("quota", "set", "p", "--logical", "many", code=2)
    run("quota", "set", "p", "--logical", "1.5M")
    run("quota", "set", "p", "--unique", "1GiB")
    run("quota", "set", "-", "--logical", "1000")
    run("quota", "set", "total", "--unique", "2T")
    stored(run, tmp_path, "first", os.urandom(MIB))
    (tmp_path / "more").write_bytes(os.urandom(MIB))
    refused = run("create", "--project", "p", "--file", tmp_path / "more", "more", code=11)
    assert "The quota of project p is 1572864 logical bytes" in refused.stderr
    assert json.loads(run("list", "--json").stdout)[0]["name"] == "first", "nothing is left of the other"
    quota = said(run, "quota", "show", "p")
    assert {key: quota[key] for key in ("project", "logical_used", "logical_limit", "unique_limit")} == {
        "project": "p", "logical_used": MIB, "logical_limit": 3 * MIB // 2, "unique_limit": 1 << 30,
    }  # fmt: skip
    assert [one["project"] for one in json.loads(run("quota", "list", "--json").stdout)] == ["total", "-", "p"]
    run("quota", "set", "p", "--logical", "none")
    run("create", "--project", "p", "--file", tmp_path / "more", "more")
    run("quota", "delete", "p")
    run("quota", "delete", "p", code=3)
    assert said(run, "quota", "show", "p")["logical_limit"] is None
    assert run("quota", "list").stdout.count("\n") == 3
