"""Commands on images, on a real repository that nobody has mounted."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from imagefs.cli.app import cli
from tests.mounted import wait_until

MIB = 1 << 20
Run = Callable[..., Result]


@pytest.fixture
def run(repo_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `imagefs WORDS...` on a new repository, with `code` as the expected exit code."""
    monkeypatch.setenv("IMAGEFS_REPO", str(repo_dir))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    runner = CliRunner()

    def invoke(*words: object, code: int = 0, stdin: bytes | None = None) -> Result:
        result = runner.invoke(cli, [str(word) for word in words], input=stdin)
        assert result.exit_code == code, result.output
        return result

    invoke("init")
    return invoke


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A sparse file of 20 MiB: data, a long hole, data that ends within a block."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.write(os.urandom(3 * MIB))
        file.seek(19 * MIB)
        file.write(os.urandom(MIB - 100))
    return path


def shown(run: Run, image: str) -> dict[str, Any]:
    record = json.loads(run("show", image, "--json").stdout)
    assert isinstance(record, dict)
    return record


def holes(path: Path) -> bool:
    return path.stat().st_blocks * 512 < path.stat().st_size


def test_init_refuses_what_is_there(run: Run, tmp_path: Path, repo_dir: Path) -> None:
    run("init", code=5)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "not empty" in run("init", tmp_path / "full", code=5).stderr


def test_create_and_save_a_sparse_file(run: Run, disk: Path, tmp_path: Path) -> None:
    image = run("create", "--file", disk, "debian").stdout.strip()
    record = shown(run, "debian")
    assert (record["id"], record["status"], record["size"]) == (image, "active", disk.stat().st_size)
    assert record["checksum"] == hashlib.md5(disk.read_bytes()).hexdigest()
    assert record["os_hash_value"] == hashlib.sha512(disk.read_bytes()).hexdigest()
    assert record["disk_format"] == "raw"
    run("save", "debian", tmp_path / "out.raw")
    assert (tmp_path / "out.raw").read_bytes() == disk.read_bytes()
    assert holes(tmp_path / "out.raw")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".out")] == []
    run("fsck")


def test_an_empty_file_and_one_that_is_all_hole(run: Run, tmp_path: Path) -> None:
    for name, size in (("empty", 0), ("hole", 5 * MIB)):
        source = tmp_path / name
        source.touch()
        os.truncate(source, size)
        run("create", "--file", source, name)
        run("save", name, tmp_path / f"{name}.out")
        assert (tmp_path / f"{name}.out").read_bytes() == bytes(size)
        assert (tmp_path / f"{name}.out").stat().st_blocks <= 8, "nothing but its attributes"


def test_a_pipe_in_and_out(run: Run, repo_dir: Path, disk: Path) -> None:
    command = [sys.executable, "-m", "imagefs", "--repo", str(repo_dir)]
    data = disk.read_bytes()
    subprocess.run([*command, "create", "--file", "-", "piped"], input=data, timeout=60, check=True)
    out = subprocess.run([*command, "save", "piped", "-"], capture_output=True, timeout=60, check=True).stdout
    assert out == data
    assert shown(run, "piped")["allocated"] <= 5 * MIB


def test_a_reader_that_stops_early_is_no_bug(run: Run, repo_dir: Path, disk: Path) -> None:
    run("create", "--file", disk, "debian")
    command = f"{sys.executable} -m imagefs --repo {repo_dir} save debian - | head -c 1000 | wc -c"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout.strip(), done.stderr) == ("1000", "")


def test_attributes_go_in_and_out(run: Run, disk: Path, tmp_path: Path) -> None:
    os.setxattr(disk, "user.mine", b"kept \xff verbatim")
    os.setxattr(disk, "user.property.os_distro", b"debian")
    os.setxattr(disk, "user.image.min_ram", b"512")
    os.setxattr(disk, "user.image.tags", b"a,b")
    os.setxattr(disk, "user.image.name", b"another")
    os.setxattr(disk, "user.imagefs.seal", b"1")
    run("create", "--file", disk, "--property", "os_version=12", "--tag", "c", "debian")
    record = shown(run, "debian")
    assert (record["name"], record["min_ram"], record["os_distro"], record["os_version"]) == (
        "debian", 512, "debian", "12",
    )  # fmt: skip
    assert (sorted(record["tags"]), record["attributes"]) == (["a", "b", "c"], ["user.mine"])
    run("save", "debian", tmp_path / "out.raw")
    out = {name: os.getxattr(tmp_path / "out.raw", name) for name in os.listxattr(tmp_path / "out.raw")}
    assert out["user.mine"] == b"kept \xff verbatim"
    assert (out["user.property.os_version"], out["user.image.min_ram"]) == (b"12", b"512")
    assert out["user.image.checksum"].decode() == record["checksum"]
    assert not [name for name in out if name.startswith("user.imagefs.")]
    run("create", "--file", tmp_path / "out.raw", "again")
    assert shown(run, "again")["root"] == record["root"]
    run("save", "--no-attributes", "debian", tmp_path / "bare.raw")
    assert os.listxattr(tmp_path / "bare.raw") == []


@pytest.mark.expect_log("is killed")
def test_a_file_that_is_not_what_its_attributes_declare_is_killed(run: Run, disk: Path) -> None:
    os.setxattr(disk, "user.image.checksum", hashlib.md5(b"other").hexdigest().encode())
    run("create", "--file", disk, "debian", code=10)
    assert shown(run, "debian")["status"] == "killed"
    run("wait", "debian", code=10)
    run("create", "--file", disk, "--no-attributes", "fine")


@pytest.mark.expect_log("is killed")
def test_what_the_command_line_declares_counts(run: Run, disk: Path) -> None:
    good = hashlib.md5(disk.read_bytes()).hexdigest()
    long = hashlib.sha512(disk.read_bytes()).hexdigest()
    size = disk.stat().st_size
    run("create", "--file", disk, "--checksum", good, "--sha512", long, "--size", size, "good")
    run("create", "--file", disk, "--size", size + 1, "bad-size", code=10)
    run("create", "--file", disk, "--sha512", "0" * 128, "bad-hash", code=10)
    run("create", "--file", disk, "--checksum", "no hash", "bad-word", code=7)
    assert "bad-word" not in run("list").stdout
    run("create", "--size", "5", "nothing", code=2)


def test_save_does_not_replace_unless_told(run: Run, disk: Path, tmp_path: Path) -> None:
    run("create", "--file", disk, "debian")
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    assert "--force" in run("save", "debian", target, code=5).stderr
    assert target.read_bytes() == b"precious"
    run("save", "--force", "debian", target)
    assert target.read_bytes() == disk.read_bytes()
    (tmp_path / "directory").mkdir()
    run("save", "debian", tmp_path / "directory")
    assert (tmp_path / "directory" / "debian").read_bytes() == disk.read_bytes()
    run("save", "debian", tmp_path / "absent" / "x", code=3)
    run("save", "--force", "debian", "/dev/null", code=7)


def test_an_image_without_data(run: Run, tmp_path: Path) -> None:
    image = run("create", "later", "--property", "a=b").stdout.strip()
    assert shown(run, image)["status"] == "queued"
    run("save", image, tmp_path / "x", code=7)
    run("seal", image, code=9)
    run("wait", image, "--timeout", "0.3", code=16)


def test_images_by_id_beginning_entry_and_name(run: Run) -> None:
    first = run("create", "--id", "11111111-2222-4333-8444-000000000001", "same").stdout.strip()
    second = run("create", "--id", "11111111-9999-4333-8444-000000000002", "same").stdout.strip()
    assert shown(run, first)["id"] == first
    assert shown(run, "11111111-2")["id"] == first
    assert shown(run, "111111119999")["id"] == second
    assert shown(run, "same")["id"] == first
    assert shown(run, "same~11111111")["id"] == second
    ambiguous = run("show", "1111", code=8).stderr
    assert first in ambiguous
    assert second in ambiguous
    run("show", "nothing", code=3)
    run("delete", first)
    assert shown(run, "same")["id"] == second
    run("create", "--id", second, "x", code=5)


def test_set(run: Run) -> None:
    run("create", "debian", "--tag", "old")
    run(
        "set", "debian", "--name", "renamed", "--property", "k=v=w", "--tag", "new", "--remove-tag", "old",
        "--protected", "--visibility", "public", "--disk-format", "qcow2", "--min-disk", "3", "--owner", "p",
    )  # fmt: skip
    record = shown(run, "renamed")
    assert record["k"] == "v=w"
    assert (record["tags"], record["protected"], record["visibility"]) == (["new"], True, "public")
    assert (record["disk_format"], record["min_disk"], record["owner"]) == ("qcow2", 3, "p")
    run("show", "debian", code=3)
    run("set", "renamed", "--unset", "k", "--unset", "tags", "--unset", "min_disk", "--unprotected")
    record = shown(run, "renamed")
    assert ("k" in record, record["tags"], record["min_disk"], record["protected"]) == (False, [], 0, False)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--property", "no-equals-sign"], 7),
        (["--property", "status=active"], 7),
        (["--unset", "nothing"], 7),
        (["--min-disk", "many"], 7),
        (["--disk-format", "floppy"], 2),
        (["--name", "n" * 256], 7),
        (["--activate"], 4),
    ],
)
def test_a_bad_value_changes_nothing(run: Run, words: list[str], code: int) -> None:
    run("create", "debian")
    before = shown(run, "debian")
    run("set", "debian", "--tag", "t", *words, code=code)
    assert shown(run, "debian") == before


def test_delete_takes_several_and_refuses_the_protected(run: Run) -> None:
    for name in ("a", "b", "c"):
        run("create", name)
    run("set", "b", "--protected")
    assert "protected" in run("delete", "b", code=4).stderr
    run("delete", "a", "nothing", code=3)
    assert len(json.loads(run("list", "--json").stdout)) == 3, "nothing is deleted when a word means nothing"
    run("delete", "a", "c")
    assert [image["name"] for image in json.loads(run("list", "--json").stdout)] == ["b"]


def test_clone_shares(run: Run, disk: Path) -> None:
    run("create", "--file", disk, "debian", "--property", "os=debian")
    stored = json.loads(run("status", "--json").stdout)["stored_bytes"]
    run("clone", "debian", "copy")
    assert json.loads(run("status", "--json").stdout)["stored_bytes"] == stored
    original, copy = shown(run, "debian"), shown(run, "copy")
    assert (copy["checksum"], copy["os"], copy["status"]) == (original["checksum"], "debian", "active")
    run("create", "empty")
    run("clone", "empty", "x", code=7)


def test_lists_filter_and_sort(run: Run, disk: Path) -> None:
    run("create", "b", "--property", "os=debian", "--tag", "x")
    run("create", "--file", disk, "a")
    run("create", "hidden", "--hidden")

    def names(*words: str) -> list[str]:
        return [image["name"] for image in json.loads(run("list", "--json", *words).stdout)]

    assert names() == ["a", "b"]
    assert names("--reverse") == ["b", "a"]
    assert names("--all") == ["a", "b", "hidden"]
    assert names("--status", "active") == ["a"]
    assert names("--property", "os=debian") == ["b"]
    assert names("--tag", "x") == ["b"]
    assert names("--name", "a") == ["a"]
    assert names("--disk-format", "raw") == ["a"]
    assert len(run("list", "--quiet").stdout.split()) == 2
    table = run("list").stdout.splitlines()
    assert table[0].split() == ["id", "name", "status", "format", "size", "virtual"]
    assert len(table) == 3


def test_gc_frees_what_is_deleted(run: Run, disk: Path) -> None:
    run("create", "--file", disk, "debian")
    stored = json.loads(run("status", "--json").stdout)["stored_bytes"]
    assert stored > 4 * MIB
    run("delete", "debian")
    plan = json.loads(run("gc", "--dry-run", "--json").stdout)
    assert len(plan["images"]) == 1
    assert json.loads(run("status", "--json").stdout)["stored_bytes"] == stored
    done = json.loads(run("gc", "--json").stdout)
    assert done["bytes"] == stored
    assert json.loads(run("status", "--json").stdout)["stored_bytes"] == 0
    run("fsck")


def test_status(run: Run, disk: Path, repo_dir: Path) -> None:
    run("create", "--file", disk, "debian")
    run("create", "--file", disk, "--no-seal", "draft")
    status = json.loads(run("status", "--json").stdout)
    assert (status["images"], status["logical_bytes"]) == (2, disk.stat().st_size)
    assert status["by_status"] == {"active": 1, "saving": 1}
    assert (status["transport"], status["mountpoints"], status["worker_pid"]) == (None, [], None)
    assert status["sessions"] == []
    (draft,) = status["drafts"]
    assert (draft["name"], draft["state"], draft["size"]) == ("draft", "blocked", disk.stat().st_size)
    assert "user.imagefs.draft" in draft["reason"]
    assert "user.imagefs.draft" in run("status").stdout
    assert str(repo_dir) in run("status").stdout
    run("wait", "draft", code=9)
    run("seal", "draft")
    run("wait", "debian", "draft")


def test_fsck_finds_a_missing_object(run: Run, disk: Path, repo_dir: Path) -> None:
    run("create", "--file", disk, "debian")
    command = [sys.executable, "-m", "imagefs", "--repo", str(repo_dir), "fsck", "--json"]
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
    next(path for path in (repo_dir / "store" / "packs").rglob("*") if path.is_file()).unlink()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 13
    assert "objects_are_there" in {finding["rule"] for finding in json.loads(done.stdout)}


def test_a_damaged_catalog_has_a_code_and_no_traceback(run: Run, repo_dir: Path) -> None:
    data = repo_dir / "catalog" / "data.mdb"
    os.truncate(data, 4096 * 3)
    for command in ("list", "status", "fsck"):
        words = [sys.executable, "-m", "imagefs", "--repo", str(repo_dir), command]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 13, done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_create_leaves_nothing(run: Run, repo_dir: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "imagefs", "--repo", str(repo_dir), "create", "--file", "-", "partial"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=False) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(os.urandom(3 * MIB))
        process.stdin.flush()
        staging = repo_dir / "staging"
        wait_until(lambda: any(p.stat().st_size >= 2 * MIB for p in staging.iterdir()), 30, "the first bytes")
        process.send_signal(number)
        said = process.stderr.read()
        assert process.wait(30) == 130
    assert said.strip() == b"imagefs: interrupted"
    assert json.loads(run("list", "--json").stdout) == []


def test_a_killed_create_never_becomes_an_image(run: Run, repo_dir: Path) -> None:
    command = [sys.executable, "-m", "imagefs", "--repo", str(repo_dir), "create", "--file", "-", "partial"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(os.urandom(3 * MIB))
        process.stdin.flush()
        staging = repo_dir / "staging"
        wait_until(lambda: any(p.stat().st_size >= 2 * MIB for p in staging.iterdir()), 30, "the first bytes")
        process.kill()
        process.wait(30)
    assert shown(run, "partial")["status"] == "saving"
    assert "not finished" in shown(run, "partial")["seal_blocked"]
    run("wait", "partial", code=9)


def test_a_file_that_changes_while_it_is_read_is_refused(run: Run, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from imagefs.cli import transfer

    real = transfer._copy_data

    def copy_and_change(*words: Any) -> None:
        real(*words)
        time.sleep(0.01)
        with disk.open("ab") as file:
            file.write(b"more")

    monkeypatch.setattr(transfer, "_copy_data", copy_and_change)
    assert "changed while it was being read" in run("create", "--file", disk, "debian", code=6).stderr
    assert json.loads(run("list", "--json").stdout) == []


def test_completion_of_images(run: Run) -> None:
    run("create", "debian-12")
    run("create", "fedora")
    environment = {"_IMAGEFS_COMPLETE": "bash_complete", "COMP_WORDS": "imagefs show deb", "COMP_CWORD": "2"}
    result = CliRunner().invoke(cli, [], prog_name="imagefs", env=environment)
    assert "plain,debian-12" in result.output
    assert "fedora" not in result.output
