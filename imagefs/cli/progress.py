"""How far a copy is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from imagefs.cli.output import say, size_text

REPORT_EVERY_S = 5.0
"""Seconds between two lines where there is no terminal to draw a bar on."""


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
