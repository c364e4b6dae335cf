"""`init`."""

from __future__ import annotations

from pathlib import Path

import click

from imagefs.cli.opening import create_repository
from imagefs.cli.output import say
from imagefs.cli.settings import Settings, pass_settings, repo_option


@click.command("init")
@click.argument("directory", required=False, type=click.Path(file_okay=False, path_type=Path))
@repo_option
@pass_settings
def init_command(settings: Settings, /, directory: Path | None) -> None:
    """Create an empty repository, in DIRECTORY or where --repo says. `mount` does it by itself."""
    path = directory.absolute() if directory else settings.path
    create_repository(path, settings.config)
    say(f"Created the repository {path}.")
