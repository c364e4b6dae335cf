"""scrub, fsck --repair, backup, restore and rebuild as commands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from imagefs.cli.app import cli
from tests.content import noise

Run = Callable[..., Result]
CONTENT = noise(300_000, 1)


@pytest.fixture
def run(repo_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `imagefs WORDS...` on a repository with one image, with `code` as the expected exit code."""
    monkeypatch.setenv("IMAGEFS_REPO", str(repo_dir))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    runner = CliRunner()

    def invoke(*words: object, code: int = 0) -> Result:
        result = runner.invoke(cli, [str(word) for word in words])
        assert result.exit_code == code, result.output
        return result

    (tmp_path / "disk").write_bytes(CONTENT)
    invoke("init")
    invoke("create", "--file", tmp_path / "disk", "image")
    return invoke


def saved(run: Run, tmp_path: Path) -> bytes:
    run("save", "image", tmp_path / "out")
    content = (tmp_path / "out").read_bytes()
    (tmp_path / "out").unlink()
    return content


def flip(path: Path, at: int, bits: int = 3) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= bits
    path.chmod(0o600)
    path.write_bytes(content)


def the_pack(repo_dir: Path) -> Path:
    (path,) = (path for path in (repo_dir / "store" / "packs").rglob("*") if path.is_file())
    return path


def test_a_clean_repository(run: Run) -> None:
    run("scrub", "--deep")
    assert json.loads(run("scrub", "--json").stdout)["damaged"] == []
    assert json.loads(run("fsck", "--here", "--json").stdout) == []
    assert json.loads(run("fsck", "--here", "--repair", "--json").stdout) == {"repaired": [], "left": []}
    status = json.loads(run("status", "--json").stdout)
    assert status["damaged"] == []
    assert status["scrubbed"] > 0


@pytest.mark.expect_log("do not match their digest")
def test_damage_is_named_everywhere(run: Run, repo_dir: Path, tmp_path: Path) -> None:
    flip(the_pack(repo_dir), 4096 + 100)
    found = json.loads(run("scrub", "--json", code=13).stdout)
    (object_,) = found["damaged"]
    assert "frame 0" in object_["what"]
    ((offset, length),) = found["lost"][0]["ranges"]
    assert (offset, length) == (0, 65536)
    assert json.loads(run("status", "--json").stdout)["damaged"] == found["damaged"]
    assert "DAMAGED" in run("status").stdout
    assert json.loads(run("show", "image", "--json").stdout)["damaged"] == [[0, 65536]]
    assert "bytes 0 to 65535" in run("show", "image").stdout
    assert "known_damage" in run("fsck", "--here", code=13).stdout
    run("save", "image", tmp_path / "out", code=13)
    # Put back from a copy: objects never change.
    flip(the_pack(repo_dir), 4096 + 100)
    run("scrub")
    run("fsck", "--here")
    assert saved(run, tmp_path) == CONTENT


def test_one_bit_is_healed(run: Run, repo_dir: Path, tmp_path: Path) -> None:
    flip(the_pack(repo_dir), 4096 + 100, bits=1)
    done = json.loads(run("scrub", "--heal", "--json").stdout)
    assert done["healed_blocks"] > 0
    assert saved(run, tmp_path) == CONTENT


def test_repair_says_what_it_did(run: Run, repo_dir: Path) -> None:
    (manifest,) = (repo_dir / "store" / "maps").iterdir()
    manifest.unlink()
    assert "objects_are_there" in run("fsck", "--here", code=13).stdout
    assert "healed maps/" in run("fsck", "--here", "--repair").stdout
    run("fsck", "--here")


def test_backup_and_restore(run: Run, repo_dir: Path, tmp_path: Path) -> None:
    file = Path(json.loads(run("backup", tmp_path, "--json").stdout)["file"])
    run("backup", file, code=5)
    run("set", "image", "--tag", "later")
    shutil.rmtree(repo_dir / "catalog")
    done = json.loads(run("restore", file, "--json").stdout)
    assert (done["images"], done["lost"]) == (1, [])
    assert json.loads(run("show", "image", "--json").stdout)["tags"] == ["later"]
    assert saved(run, tmp_path) == CONTENT


def test_rebuild(run: Run, repo_dir: Path, tmp_path: Path) -> None:
    run("set", "image", "--property", "os=debian", "--tag", "b")
    before = json.loads(run("show", "image", "--json").stdout)
    assert "--force" in run("rebuild", code=4).stderr
    shutil.rmtree(repo_dir / "catalog")
    assert "imagefs rebuild" in run("list", code=13).stderr
    done = json.loads(run("rebuild", "--json").stdout)
    assert (done["images"], done["drafts"], done["lost"]) == (1, 0, [])
    assert json.loads(run("show", "image", "--json").stdout) == before
    assert saved(run, tmp_path) == CONTENT
    run("fsck", "--here")
    run("rebuild", "--force")
    assert saved(run, tmp_path) == CONTENT
