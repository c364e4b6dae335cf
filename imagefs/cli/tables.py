"""Tables for people: fitted to a terminal, plain and complete in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

import click


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """Prints rows under a header. On a terminal columns are fitted to it; elsewhere nothing is ever cut."""
    if not sys.stdout.isatty():
        _print_plain(header, [[_printable(cell) for cell in row] for row in rows], right)
        return
    # Imported here: 20 ms that a command whose output is read by a program does not spend.
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

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
