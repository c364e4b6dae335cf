"""mount.imagefs: options as mount(8) passes them."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from imagefs.cli.app import cli
from imagefs.cli.fstab import mount_words, split_options
from imagefs.errors import MountFailed


def test_options_are_split_at_commas_that_are_not_escaped() -> None:
    assert split_options("rw,settle=5,project=a\\,b,allow_other") == {
        "rw": "", "settle": "5", "project": "a,b", "allow_other": "",
    }  # fmt: skip
    assert split_options("") == {}


def test_options_become_words_of_the_mount_command() -> None:
    given = split_options("rw,nosuid,nodev,noauto,x-systemd.automount,_netdev,user=jo,settle=5,uid=7,allow_other")
    assert mount_words(given, sloppy=False) == ["--settle=5", "--uid=7", "--allow-other"]


def test_an_unknown_option_is_refused_unless_sloppy(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MountFailed, match="frobnicate"):
        mount_words({"frobnicate": "1"}, sloppy=False)
    assert mount_words({"frobnicate": "1"}, sloppy=True) == []
    assert "frobnicate" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["-o", "ro"], ["-r"], ["-o", "rw,ro"]])
def test_read_only_is_refused(words: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["mount-helper", str(tmp_path / "repo"), str(tmp_path), *words])
    assert result.exit_code == 32
    assert "read-only" in result.stderr


def test_a_fake_mount_does_nothing(tmp_path: Path) -> None:
    words = ["mount-helper", str(tmp_path / "repo"), str(tmp_path), "-f", "-n", "-v", "-o", "rw,settle=1"]
    assert CliRunner().invoke(cli, words).exit_code == 0
    assert not (tmp_path / "repo").exists()
