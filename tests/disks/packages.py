"""Debian packages unpacked without installing them, from the sources this machine's apt is set up with."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


class Unavailable(Exception):
    """This machine cannot build the disk; the message says what is missing."""


def run(*command: str | Path, timeout: float = 300, **options: object) -> str:
    """What the command printed; Unavailable with its output if it failed or is not installed."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(  # type: ignore[call-overload]
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            text=True,
            check=False,
            **options,
        )
    except FileNotFoundError as missing:
        raise Unavailable(f"{words[0]} is not installed") from missing
    if done.returncode:
        raise Unavailable(f"{' '.join(words)} failed:\n{done.stdout[-4000:]}")
    return str(done.stdout)


def unpack(names: list[str], into: Path) -> None:
    """The files of the packages' candidate versions under `into`; no maintainer script runs."""
    downloads = into.with_name(into.name + ".debs")
    downloads.mkdir(parents=True)
    try:
        run("apt-get", "download", *names, cwd=downloads)
    except Unavailable:
        if os.geteuid() != 0:
            raise
        # Fresh machines and containers come without package lists.
        run("apt-get", "update")
        run("apt-get", "download", *names, cwd=downloads)
    into.mkdir()
    for package in sorted(downloads.glob("*.deb")):
        run("dpkg-deb", "-x", package, into)


def kernel_package() -> str:
    """The package that the cloud kernel's metapackage stands for today."""
    for refresh in (False, True):
        if refresh and os.geteuid() == 0:
            run("apt-get", "update")
        for line in run("apt-cache", "depends", "linux-image-cloud-amd64").splitlines():
            word, _, name = line.strip().partition(" ")
            if word == "Depends:" and name.startswith("linux-image-"):
                return name.strip()
    raise Unavailable("apt knows no linux-image-cloud-amd64; run apt-get update")
