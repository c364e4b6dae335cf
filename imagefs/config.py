"""Settings of a process that works with a repository, and where they are read from."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from pathlib import Path

from imagefs.errors import InvalidValue
from imagefs.types import FRAME_BLOCKS

Check = Callable[[object], object]
"""Gives back a setting's value as it is kept; ValueError with what it must be."""


class SealMode(StrEnum):
    """When a draft is sealed by itself (S3)."""

    SETTLE = "settle"
    """Some time after its last writer closed it."""
    CLOSE = "close"
    """In close(2), so that the writer sees every error."""


class Transport(StrEnum):
    """How a mount speaks to the kernel."""

    AUTO = "auto"
    KERNEL = "kernel"
    FUSEPY = "fusepy"


class LogLevel(StrEnum):
    """What is logged: this and everything graver."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def _number(kind: type[int | float], least: float, most: float) -> Check:
    def check(value: object) -> object:
        # Not isinstance: True is an int to Python, but not to who writes a configuration.
        if type(value) not in (int, kind) or not isinstance(value, int | float) or not least <= value <= most:
            raise ValueError(f"{'a whole number' if kind is int else 'a number'} from {least} to {most}")
        return kind(value)

    return check


def _power_of_two(most: int) -> Check:
    def check(value: object) -> object:
        if type(value) is not int or value.bit_count() != 1 or not 0 < value <= most:
            raise ValueError(f"a power of two up to {most}")
        return value

    return check


def _flag(value: object) -> object:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _text(value: object) -> object:
    if not isinstance(value, str) or not value or "\0" in value or len(value) > 255:
        raise ValueError("a text of 1 to 255 characters")
    return value


def _one_of(choices: type[StrEnum]) -> Check:
    def check(value: object) -> object:
        try:
            return choices(str(value))
        except ValueError:
            raise ValueError(f"one of {', '.join(choices)}") from None

    return check


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Every setting with its default. Making one with a bad value raises InvalidValue."""

    project: str | None = None
    """Owner of images that come through the filesystem."""
    uid: int | None = None
    """Owner of new files and of the directories of the mount; None: who mounts, or who writes."""
    gid: int | None = None
    allow_other: bool = False
    """Whether other users than the one who mounts may use the mount."""
    transport: Transport = Transport.AUTO
    seal: SealMode = SealMode.SETTLE
    settle_seconds: float = 2.0
    """How long a draft must have been closed before it is sealed."""
    retention_seconds: float = 86400.0
    """How long a deleted image can be brought back, unless the disk needs its room."""
    convert_ratio: float = 0.7
    """A compressed image is converted by itself when that costs at most so much of what it frees; 0: never."""
    convert_bytes_per_second: int = 8 << 20
    """Bytes of image files that conversions work on in a second, at most."""
    gc_bytes_per_second: int = 32 << 20
    """How much a mount moves in the background when packs are mostly unused or images scattered."""
    sparse_share: float = 0.75
    """A pack is written anew when less than this share of its blocks is used."""
    frame_cache_bytes: int = 64 << 20
    """Memory for decoded frames."""
    cache_bytes: int | None = None
    """Disk for plain files of sealed images, which are read at the disk's own speed; None: a tenth of it."""
    pack_blocks: int = 2048
    """Blocks of 4 KiB in a new pack."""
    sampling: int = 16
    """One block in so many is in the dedup index; taken when a repository is made, fixed afterwards."""
    log_level: LogLevel = LogLevel.INFO

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            value = getattr(self, name)
            if value is None and _DEFAULTS[name] is None:
                continue
            try:
                object.__setattr__(self, name, check(value))
            except ValueError as error:
                raise InvalidValue(f"{name} is {value!r}; it must be {error}.") from None

    def changed(self, values: Mapping[str, object], source: str) -> Config:
        """This with some settings changed. InvalidValue, naming `source` and the setting, for a bad one."""
        for name in values:
            if name not in _CHECKS:
                raise InvalidValue(f"{source}: there is no setting {name!r}; there are {', '.join(_CHECKS)}.")
        try:
            return replace(self, **values)  # type: ignore[arg-type] # checked as it is made
        except InvalidValue as error:
            raise InvalidValue(f"{source}: {error}") from None


_CHECKS: dict[str, Check] = {
    "project": _text,
    "uid": _number(int, 0, 2**32 - 2),
    "gid": _number(int, 0, 2**32 - 2),
    "allow_other": _flag,
    "transport": _one_of(Transport),
    "seal": _one_of(SealMode),
    "settle_seconds": _number(float, 0, 86400),
    "retention_seconds": _number(float, 0, 10 * 365 * 86400),
    "convert_ratio": _number(float, 0, 2),
    "convert_bytes_per_second": _number(int, 1 << 16, 1 << 40),
    "gc_bytes_per_second": _number(int, 1 << 16, 1 << 40),
    "sparse_share": _number(float, 0, 1),
    "frame_cache_bytes": _number(int, 0, 1 << 40),
    "cache_bytes": _number(int, 0, 1 << 60),
    "pack_blocks": _number(int, FRAME_BLOCKS, 8192),
    "sampling": _power_of_two(256),
    "log_level": _one_of(LogLevel),
}
_DEFAULTS: dict[str, object] = {setting.name: setting.default for setting in fields(Config)}


def load(repository: Path, file: Path | None = None) -> Config:
    """The settings of `file`; else of the repository's config.toml, else of this system's or user's file.

    Only one file counts; without any the defaults hold. InvalidValue for a file that cannot be read or
    says what no setting understands.
    """
    if file is not None:
        return read(file)
    for candidate in (repository / "config.toml", default_file()):
        if candidate.exists():
            return read(candidate)
    return Config()


def read(file: Path) -> Config:
    """The settings of one TOML file, defaults for what it does not name."""
    # Imported here: 2 ms that a command without a configuration file does not spend.
    import tomllib  # noqa: PLC0415

    try:
        values = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise InvalidValue(f"The configuration {file} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidValue(f"The configuration {file} is no TOML: {error}.") from error
    return Config().changed(values, str(file))


def default_file() -> Path:
    """Where settings are kept that hold for all repositories: the system's for root, else the user's."""
    if os.geteuid() == 0:
        return Path("/etc/imagefs.toml")
    return _xdg("XDG_CONFIG_HOME", ".config") / "imagefs.toml"


def default_repository() -> Path:
    """The repository that is meant when none is named: the system's for root, else the user's."""
    if os.geteuid() == 0:
        return Path("/var/lib/imagefs")
    return _xdg("XDG_DATA_HOME", ".local/share") / "imagefs"


def _xdg(variable: str, default: str) -> Path:
    # The specification has relative paths ignored.
    named = Path(os.environ.get(variable, ""))
    return named if named.is_absolute() else Path.home() / default
