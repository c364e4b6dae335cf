"""Settings: their defaults, files, and what is said about mistakes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imagefs import config
from imagefs.config import Config, SealMode, Transport
from imagefs.errors import InvalidValue


def test_nothing_configured_means_the_documented_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "default_file", lambda: tmp_path / "absent.toml")
    loaded = config.load(tmp_path)
    assert loaded == Config()
    assert (loaded.settle_seconds, loaded.seal, loaded.sampling, loaded.pack_blocks) == (
        2.0,
        "settle",
        16,
        2048,
    )
    assert (loaded.project, loaded.uid, loaded.retention_seconds) == (None, None, 0)


def test_the_named_file_goes_before_the_repositorys_and_that_before_the_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, named, system = tmp_path / "repository", tmp_path / "named.toml", tmp_path / "system.toml"
    repository.mkdir()
    monkeypatch.setattr(config, "default_file", lambda: system)
    system.write_text("project = 'of the system'\nuid = 7\n")
    assert config.load(repository) == Config(project="of the system", uid=7)
    (repository / "config.toml").write_text("project = 'of the repository'\n")
    assert config.load(repository) == Config(project="of the repository")
    named.write_text("project = 'named'\n")
    assert config.load(repository, named) == Config(project="named")


def test_every_setting_can_be_given(tmp_path: Path) -> None:
    file = tmp_path / "all.toml"
    file.write_text(
        """
        project = "demo"
        uid = 1000
        gid = 0
        allow_other = true
        transport = "fusepy"
        seal = "close"
        settle_seconds = 1
        retention_seconds = 3600.5
        frame_cache_bytes = 0
        cache_bytes = 0
        pack_blocks = 8192
        sampling = 1
        log_level = "debug"
        """
    )
    loaded = config.read(file)
    assert loaded.transport is Transport.FUSEPY
    assert loaded.seal is SealMode.CLOSE
    assert isinstance(loaded.settle_seconds, float)
    assert all(getattr(loaded, name) != getattr(Config(), name) for name in config._CHECKS)
    assert list(config._CHECKS) == list(Config.__slots__)


@pytest.mark.parametrize(
    "line",
    [
        "settle_seconds = -1",
        "settle_seconds = '2'",
        "settle_seconds = nan",
        "settle_seconds = true",
        "uid = 1.0",
        "uid = true",
        "uid = -1",
        "allow_other = 1",
        "seal = 'never'",
        "seal = 1",
        "sampling = 0",
        "sampling = 12",
        "pack_blocks = 1",
        "project = ''",
        "project = ['a']",
        "log_level = 'loud'",
        "frame_cache_bytes = 1e9",
    ],
)
def test_a_bad_value_is_named_with_its_file(tmp_path: Path, line: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(line)
    with pytest.raises(InvalidValue) as caught:
        config.read(file)
    assert str(file) in str(caught.value)
    assert line.split(" ", maxsplit=1)[0] in str(caught.value)
    assert "must be" in str(caught.value)


def test_an_unknown_setting_is_named_with_the_known_ones(tmp_path: Path) -> None:
    file = tmp_path / "unknown.toml"
    file.write_text("setle_seconds = 3\n")
    with pytest.raises(InvalidValue) as caught:
        config.read(file)
    for word in (str(file), "'setle_seconds'", "settle_seconds", "log_level"):
        assert word in str(caught.value)


@pytest.mark.parametrize("content", [b"settle_seconds = ", b"\xff"], ids=["no TOML", "no UTF-8"])
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "broken.toml"
    file.write_bytes(content)
    with pytest.raises(InvalidValue, match=str(file)):
        config.read(file)


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="No such file"):
        config.load(tmp_path, tmp_path / "absent.toml")


def test_values_given_in_the_program_are_checked_too() -> None:
    with pytest.raises(InvalidValue, match="sampling is 3"):
        Config(sampling=3)
    with pytest.raises(InvalidValue, match="--settle: settle_seconds is -1"):
        Config().changed({"settle_seconds": -1}, "--settle")


def test_root_has_the_systems_places_and_others_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert config.default_repository() == Path("/var/lib/imagefs")
    assert config.default_file() == Path("/etc/imagefs.toml")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert config.default_repository() == Path("/home/someone/.local/share/imagefs")
    assert config.default_file() == Path("/home/someone/.config/imagefs.toml")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/etc/xdg")
    assert config.default_repository() == Path("/data/imagefs")
    assert config.default_file() == Path("/etc/xdg/imagefs.toml")
