"""What holds for every command: which repository, which configuration, how much to say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import click

from imagefs import config

Command = TypeVar("Command", bound=Callable[..., object])


@dataclass(frozen=True)
class Settings:
    """The group's options; the `obj` of every click context."""

    repo: Path | None = None
    config_file: Path | None = None
    debug: bool = False

    @property
    def path(self) -> Path:
        """The repository's directory, absolute."""
        return (self.repo or config.default_repository()).expanduser().absolute()

    @property
    def config(self) -> config.Config:
        """The settings of the configuration file that counts; defaults without one."""
        return config.load(self.path, self.config_file)


def _use_repo(ctx: click.Context, parameter: click.Parameter, value: Path | None) -> None:
    if value is not None:
        ctx.obj = replace(ctx.find_object(Settings) or Settings(), repo=value)


def repo_option(command: Command) -> Command:
    """`--repo` after the command's name, where fingers put it as well."""
    return click.option(
        "--repo",
        type=click.Path(file_okay=False, path_type=Path),
        expose_value=False,
        callback=_use_repo,
        help="The repository's directory.",
    )(command)


pass_settings = click.make_pass_decorator(Settings)
