"""Which processes use a mount: those that keep it from being unmounted."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

NAMED = 5
"""Processes that a message names."""


def users_of(mountpoint: str) -> list[tuple[int, str]]:
    """(pid, command) of the processes that have a file, a directory or a map in the mount.

    Reads links in /proc alone: nothing here touches the mount, which may hang. Other users' processes are
    seen by root only.
    """
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):  # gone, or not ours to look at
                if any(_is_below(place, mountpoint) for place in _places(entry.path)):
                    found.append((int(entry.name), Path(entry.path, "comm").read_text().strip()))
    return sorted(found)


def sentence(users: list[tuple[int, str]]) -> str:
    """The processes as words: `bash (12), qemu-system-x86 (345) and 2 more`; empty for none."""
    words = ", ".join(f"{command} ({pid})" for pid, command in users[:NAMED])
    return f"{words} and {len(users) - NAMED} more" if len(users) > NAMED else words


def is_running(pid: int) -> bool:
    """Whether the process exists and has not ended; one that nobody has waited for yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _places(process: str) -> Iterator[str]:
    for link in ("cwd", "root", "exe"):
        with contextlib.suppress(OSError):
            yield os.readlink(f"{process}/{link}")
    for descriptor in os.scandir(f"{process}/fd"):
        with contextlib.suppress(OSError):
            yield os.readlink(descriptor.path)
    for line in Path(process, "maps").read_text(errors="surrogateescape").splitlines():
        _, _, place = line.partition("/")
        if place:
            yield f"/{place}"


def _is_below(place: str, mountpoint: str) -> bool:
    return place == mountpoint or place.startswith(f"{mountpoint.rstrip('/')}/")
