"""What all commands print with: JSON for programs, sentences on stderr, figures for people."""

from __future__ import annotations

import json
import time

import click

from imagefs.types import Image

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


def print_json(value: object) -> None:
    """Prints a value as indented JSON; bytes, dates and ids are strings already."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_record(image: Image) -> None:
    """Prints an image's record as the Image service API shows it."""
    # Imported here: it brings all that serves a mount, 30 ms that a command which prints an id does not have.
    from imagefs.tree.metadata import document  # noqa: PLC0415

    print_json(document(image))


def say(message: str) -> None:
    """A sentence for whoever is watching; on stderr, so that stdout stays data."""
    click.echo(message, err=True)


def size_text(size: int | None) -> str:
    """A number of bytes for people: `1.5 GiB`, `-` when it is not known."""
    if size is None:
        return "-"
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} PiB"


def time_text(ns: int) -> str:
    """A time in ns since the epoch as the Image service writes it; `-` when it is not set."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ns // 10**9)) if ns else "-"
