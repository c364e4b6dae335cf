"""How commands print: tables for people, JSON for programs, sentences on stderr, progress of bytes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

REPORT_EVERY_S = 5.0
"""Seconds between two progress lines where there is no terminal to draw a bar on."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


def print_json(value: object) -> None:
    """Prints a value as indented JSON; bytes, dates and ids are strings already."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """Prints rows under a header. On a terminal columns are fitted to it; elsewhere nothing is ever cut."""
    if not sys.stdout.isatty():
        _print_plain(header, [[_printable(cell) for cell in row] for row in rows], right)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in header:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_printable(cell)) for cell in row))
    Console().print(table)


def print_record(fields: Iterable[tuple[str, str]]) -> None:
    """Prints one thing's fields, one a line."""
    print_table(("field", "value"), list(fields))


def _print_plain(header: Sequence[str], rows: list[list[str]], right: Sequence[str]) -> None:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = (
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(header, row, widths, strict=True)
        )
        click.echo("  ".join(cells).rstrip())


def _printable(text: str) -> str:
    """Names come from strangers: control characters must not reach a terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


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


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Gives a function that takes the bytes done since its last call and shows how far it is.

    A bar on a terminal, else a line now and then; `total` None is a stream of unknown length.
    """
    if sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(what, total=total)
            yield lambda done: bar.advance(task, done)
    else:
        yield _ProgressLines(what, total).advance


class _ProgressLines:
    def __init__(self, what: str, total: int | None) -> None:
        self._what = what
        self._of = "" if total is None else f" of {size_text(total)}"
        self._done = 0
        self._next = time.monotonic() + REPORT_EVERY_S

    def advance(self, done: int) -> None:
        self._done += done
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + REPORT_EVERY_S
            say(f"{self._what}: {size_text(self._done)}{self._of}")
