"""What doctor finds, point by point."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

import pytest
from click.testing import CliRunner

from imagefs.cli import checks
from imagefs.cli.app import cli
from imagefs.cli.checks import State


@pytest.mark.parametrize(
    ("release", "state"),
    [
        ("6.1.0-28-amd64", State.NOTE),
        ("6.9.0", State.OK),
        ("6.18.44-x", State.OK),
        ("7.0", State.OK),
        ("odd", State.NOTE),
    ],
)
def test_kernels(release: str, state: State) -> None:
    assert checks.kernel(release).state is state


def test_a_zlib_that_makes_other_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.deflate().state is State.OK
    compressobj = zlib.compressobj
    monkeypatch.setattr(zlib, "compressobj", lambda level, *rest: compressobj(1, *rest))
    assert checks.deflate().state is State.NOTE


def test_no_fuse_device(tmp_path: Path) -> None:
    missing = checks.fuse_device(str(tmp_path / "fuse"))
    assert missing.state is State.MISSING
    assert "modprobe fuse" in missing.remedy
    (tmp_path / "fuse").touch()
    assert checks.fuse_device(str(tmp_path / "fuse")).state is State.MISSING


def test_a_request_timeout_is_noted(tmp_path: Path) -> None:
    sysctl = tmp_path / "max_request_timeout"
    assert checks.request_timeout(str(sysctl)).state is State.OK
    sysctl.write_text("0\n")
    assert checks.request_timeout(str(sysctl)).state is State.OK
    sysctl.write_text("30\n")
    noted = checks.request_timeout(str(sysctl))
    assert (noted.state, "30 s" in noted.found) == (State.NOTE, True)


def test_allow_other_of_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    configuration = tmp_path / "fuse.conf"
    assert checks.allow_other(str(configuration)).state is State.NOTE
    configuration.write_text("#user_allow_other\n")
    assert checks.allow_other(str(configuration)).state is State.NOTE
    configuration.write_text("user_allow_other\n")
    assert checks.allow_other(str(configuration)).state is State.OK


def test_remote_filesystems_are_refused(tmp_path: Path) -> None:
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(
        "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 22 0:40 / /net/with\\040space rw - nfs4 server:/x rw\n"
    )
    assert checks.filesystem_type(Path("/net/other"), str(mountinfo)).state is State.OK
    refused = checks.filesystem_type(Path("/net/with space/repo"), str(mountinfo))
    assert (refused.state, "nfs4" in refused.found) == (State.MISSING, True)


def test_features_of_the_filesystem_are_tried(tmp_path: Path) -> None:
    found = {check.point: check.state for check in checks.filesystem_features(tmp_path)}
    assert found.keys() == {"state directory", "leases", "holes", "user xattrs"}
    assert found["state directory"] is State.OK
    assert found["leases"] is State.OK
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_not_there_is_looked_at_through_its_parent(tmp_path: Path) -> None:
    assert checks.nearest_existing(tmp_path / "a" / "b") == tmp_path


def test_doctor_prints_every_point(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["doctor", "--json", "--repo", str(tmp_path / "repo")])
    points = {point["point"]: point for point in json.loads(result.stdout)}
    assert {"python", "fuse device", "kernel", "libfuse 2", "disk", "leases", "repository"} <= points.keys()
    missing = [point for point in points.values() if point["state"] == "missing"]
    assert result.exit_code == (17 if missing else 0)
    assert "not there yet" in points["repository"]["found"]


def test_doctor_says_what_is_wrong_with_a_repository(tmp_path: Path) -> None:
    (tmp_path / "imagefs.json").write_text("{}")
    result = CliRunner().invoke(cli, ["doctor", "--repo", str(tmp_path)])
    assert result.exit_code == 17
    assert "docs/operations.md" in result.output
