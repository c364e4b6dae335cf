"""`rebuild`."""

from __future__ import annotations

import click

from imagefs.cli.output import json_option, print_json, say
from imagefs.cli.progress import progress
from imagefs.cli.settings import Settings, pass_settings, repo_option
from imagefs.images.rebuild import Rebuilt, rebuild


@click.command("rebuild")
@click.option("--force", is_flag=True, help="Also when the catalog there is is whole and up to date.")
@json_option
@repo_option
@pass_settings
def rebuild_command(settings: Settings, /, force: bool, as_json: bool) -> None:
    """Make the catalog anew from what is stored, after it was lost, damaged or replaced by an older one.

    Brings back every image with its metadata of at most 5 seconds before. Drafts stay drafts, and wait for you
    to look at them. Needs the repository unmounted. Run it again if it was interrupted.
    """
    with progress("reading", None) as advance:
        done = rebuild(settings.path, force=force, progress=advance)
    report(done, as_json=as_json)


def report(done: Rebuilt, *, as_json: bool) -> None:
    """Prints what came back and what did not."""
    if as_json:
        print_json(
            {
                "images": done.images,
                "drafts": done.drafts,
                "objects": done.objects,
                "unused_objects": done.trash,
                "lost": done.lost,
                "old_catalog": str(done.old) if done.old else None,
            }
        )
        return
    say(f"{done.images} images are back, {done.drafts} of them drafts; {done.objects} objects, {done.trash} unused.")
    if done.old is not None:
        say(f"The catalog that was there before is {done.old}: delete it when you are content.")
    for line in done.lost:
        click.echo(line)
