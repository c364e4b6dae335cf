"""`undelete`, and what `list --deleted` shows."""

from __future__ import annotations

import time

import click

from imagefs.cli.opening import entry_of, opened
from imagefs.cli.output import json_option, print_json, say, size_text, time_text
from imagefs.cli.settings import Settings, pass_settings, repo_option
from imagefs.cli.tables import print_table
from imagefs.errors import ImagefsError
from imagefs.images.repository import Repository
from imagefs.images.trash import Deleted, Trash
from imagefs.tree.metadata import document


def trash_of(repo: Repository) -> Trash:
    """The trash with the time that is configured."""
    return Trash(repo, repo.config.retention_seconds)


def complete_deleted(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """For shell completion: names, and ids of images without one, that begin like the word."""
    root = ctx.find_root()
    try:
        with opened(Settings(root.params.get("repo"), root.params.get("config"))) as repo:
            names = {one.image.name or str(one.image.id) for one in trash_of(repo).deleted()}
    except (ImagefsError, OSError):  # a shell that is completing has nowhere to show an error
        return []
    return [name for name in sorted(names) if name.startswith(incomplete)]


@click.command("undelete")
@click.argument("images", metavar="NAME|ID...", nargs=-1, required=True, shell_complete=complete_deleted)
@json_option
@repo_option
@pass_settings
def undelete_command(settings: Settings, /, images: tuple[str, ...], as_json: bool) -> None:
    """Bring deleted images back, as they were.

    `imagefs list --deleted` shows which ones there are and until when. An image whose name is taken meanwhile
    gets an entry with the beginning of its id. All words are looked up before anything is brought back.
    """
    with opened(settings) as repo:
        trash = trash_of(repo)
        back = [trash.undelete(image) for image in [trash.find(word) for word in images]]
    if as_json:
        print_json([document(image) | {"entry": entry_of(image) or None} for image in back])
        return
    for image in back:
        say(f"Brought back {image.id} ({entry_of(image) or 'without a name'}).")


def show_deleted(repo: Repository, *, as_json: bool, quiet: bool) -> None:
    """Prints what can be brought back, the oldest deletion first."""
    found = trash_of(repo).deleted()
    if as_json:
        print_json(
            [
                {
                    "id": str(one.image.id),
                    "name": one.image.name,
                    "size": one.image.size,
                    "deleted_at": time_text(one.deleted_ns),
                    "until": time_text(one.until_ns),
                }
                for one in found
            ]
        )
    elif quiet:
        for one in found:
            click.echo(str(one.image.id))
    else:
        rows = [
            (
                str(one.image.id),
                one.image.name or "-",
                size_text(one.image.size),
                time_text(one.deleted_ns),
                _until(one),
            )
            for one in found
        ]
        print_table(("id", "name", "size", "deleted at", "until"), rows, right=("size",))


def _until(one: Deleted) -> str:
    """When its time is over; whoever has it open can make it later, a full disk earlier."""
    return time_text(one.until_ns) if one.until_ns > time.time_ns() else "the next gc"
