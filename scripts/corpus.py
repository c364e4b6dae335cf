"""Independently built Debian disk images: what the benchmark of storage stores.

Each is made by a mmdebstrap run of its own from Debian's packages and laid out by mke2fs: two releases, several
package sets, one of them built twice; 300 to 700 MB each that are not zeros. Built once and kept in a directory
that the caller names (as root: the files in them have many owners).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

GIB = 1 << 30
BUILD_S = 2400
BASE = "systemd-sysv,udev,dbus,linux-image-cloud-amd64,ifupdown,openssh-server,sudo,less,vim-tiny,curl,ca-certificates"


class Recipe(NamedTuple):
    """One image: a release and what it has beside the base."""

    name: str
    release: str
    packages: str = ""
    size: int = 3 * GIB


RECIPES = (
    Recipe("bookworm-server", "bookworm"),
    Recipe("bookworm-server-again", "bookworm"),
    Recipe("bookworm-web", "bookworm", "nginx,php-fpm,php-mysql,python3,certbot"),
    Recipe("bookworm-build", "bookworm", "gcc,make,git"),
    Recipe("bookworm-database", "bookworm", "mariadb-server,rsync"),
    Recipe("trixie-server", "trixie"),
    Recipe("trixie-web", "trixie", "nginx,php-fpm,php-mysql,python3,certbot"),
)


def images(directory: Path) -> list[Path]:
    """The raw disks in `directory`, built there if they are not."""
    directory.mkdir(parents=True, exist_ok=True)
    return [_built(directory, recipe) for recipe in RECIPES]


def compressed(raw: Path) -> Path:
    """The same disk as `qemu-img convert -c -O qcow2` makes it, beside the raw one."""
    path = raw.with_suffix(".qcow2")
    if not path.exists():
        half = path.with_suffix(".part")
        subprocess.run(["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, half], check=True)
        half.rename(path)
    return path


def mirror() -> str:
    """Where this machine's apt has Debian from: its own address, whatever that is."""
    words = ["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Created-By: Packages"]
    listed = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()
    sites = [site for site, _, release in (line.partition(" ") for line in listed) if "-" not in release]
    return next(site for site in sites if site.rstrip("/").endswith("/debian"))


def _built(directory: Path, recipe: Recipe) -> Path:
    path = directory / f"{recipe.name}.raw"
    if path.exists():
        return path
    if os.geteuid():
        sys.exit("The disks of this benchmark are built as root: their files have many owners.")
    print(f"building {path}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=f".{recipe.name}-") as name:
        work = Path(name)
        root = work / "root"
        packages = ",".join(filter(None, (BASE, recipe.packages)))
        words = ["mmdebstrap", "--quiet", "--variant=important", f"--include={packages}"]
        words += [f'--customize-hook=echo {recipe.name} >"$1/etc/hostname"']
        words += ['--customize-hook=rm -rf "$1"/var/cache/apt/*.bin "$1"/var/lib/apt/lists/*_*']
        words += [recipe.release, str(root), f"deb {mirror()} {recipe.release} main"]
        subprocess.run(words, check=True, timeout=BUILD_S, stdin=subprocess.DEVNULL)
        made = work / "disk"
        with made.open("wb") as file:
            file.truncate(recipe.size)
        subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-L", "root", "-d", root, made], check=True)
        made.rename(path)
        shutil.rmtree(root)
    return path
