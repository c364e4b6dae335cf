"""`backup` and `restore`."""

from __future__ import annotations

from pathlib import Path

import click

from imagefs.cli.opening import opened
from imagefs.cli.output import json_option, print_json, say, size_text
from imagefs.cli.progress import progress
from imagefs.cli.rebuild import report
from imagefs.cli.settings import Settings, pass_settings, repo_option
from imagefs.images.backup import backup, restore


@click.command("backup")
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--replace", is_flag=True, help="Replace a file that exists.")
@json_option
@repo_option
@pass_settings
def backup_command(settings: Settings, /, target: Path, replace: bool, as_json: bool) -> None:
    """Copy the catalog to the file TARGET, or to a new file in the directory TARGET.

    Consistent, and may run while the repository is in use. The data is in `store/`, where files never change:
    copy that directory as well, with rsync for example, before or after.
    """
    with opened(settings) as repo:
        file = backup(repo, target, replace=replace)
    size = file.stat().st_size
    if as_json:
        print_json({"file": str(file), "bytes": size})
    else:
        say(f"{file}: {size_text(size)}.")


@click.command("restore")
@click.argument("source", type=click.Path(dir_okay=False, exists=True, path_type=Path))
@json_option
@repo_option
@pass_settings
def restore_command(settings: Settings, /, source: Path, as_json: bool) -> None:
    """Bring the catalog back from the backup SOURCE, and up to date with everything in the log since then.

    Needs the repository unmounted. The catalog that was there is kept beside it.
    """
    with progress("reading", None) as advance:
        done = restore(settings.path, source, progress=advance)
    report(done, as_json=as_json)
