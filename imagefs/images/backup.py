"""Copies of the catalog, and going back to one.

A copy is one file, consistent while the repository is in use. It holds the catalog alone: packs and manifests
never change, so any copy of `store/` that is at least as new goes with it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from imagefs.blocks import superblock as superblocks
from imagefs.blocks.superblock import Superblock
from imagefs.catalog import Catalog
from imagefs.errors import Exists, InvalidValue, NotARepository
from imagefs.images.rebuild import Rebuild, Rebuilt
from imagefs.images.repository import Repository
from imagefs.images.staging import sync

OPENED = "catalog.backup"
"""Where a backup is unpacked while it is restored."""


def backup(repo: Repository, target: Path, *, replace: bool = False) -> Path:
    """Copies the catalog to the file `target`, or to a new file in that directory; returns its path.

    What the copy has is in log objects too when this returns. The file is whole whenever it is there. Exists,
    unless `replace`; OSError, NoSpace, BackendFailed.
    """
    if target.is_dir():
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        target /= f"imagefs-{str(repo.superblock.repo)[:8]}-{moment}.catalog"
    if target.exists() and not replace:
        raise Exists(f"{target} exists already.")
    repo.logs.flush()
    number, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        repo.catalog.copy_to(number)
        os.fsync(number)
        Path(name).rename(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    finally:
        os.close(number)
    sync(target.parent)
    return target


def restore(path: Path, source: Path, *, progress: Callable[[int], None] = lambda nbytes: None) -> Rebuilt:
    """Goes back to a backup, and forward again: the repository in `path` gets a catalog made from the copy
    `source`, everything that its log has after that, and the objects that its store has now.

    Busy while a session uses the repository; InvalidValue for a backup of another repository;
    CatalogDamaged, NewerVersion for one that cannot be opened: then all is as it was.
    """
    superblock = _superblock(path)
    place = path / OPENED
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(mode=0o700)
    try:
        shutil.copyfile(source, place / "data.mdb")
        older = Catalog.open(place)
        try:
            if older.repo != superblock.repo:
                raise InvalidValue(f"{source} is a backup of repository {older.repo}, not of {superblock.repo}.")
            return Rebuild(path, older=older, progress=progress).run()
        finally:
            older.close()
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _superblock(path: Path) -> Superblock:
    for directory in (path, path / "store"):
        try:
            return Superblock.load((directory / superblocks.OBJECT_NAME).read_bytes(), str(directory))
        except FileNotFoundError:
            continue
    raise NotARepository(f"{path} is not an imagefs repository: it has no {superblocks.OBJECT_NAME}.")
