"""Setting a feature of a repository, before the first thing is stored that an older imagefs would misread."""

from __future__ import annotations

import contextlib
import fcntl
import os
from dataclasses import replace

from imagefs.blocks import superblock as superblocks
from imagefs.blocks.superblock import Superblock
from imagefs.errors import Exists, NotFound
from imagefs.images.repository import Repository
from imagefs.images.staging import sync


def require_feature(repo: Repository, name: str) -> None:
    """Returns when the superblock names the feature, durably, in the repository's directory and on the store.

    The directory's copy is the one that every start reads, and is replaced by rename. The store's is deleted
    and put: a death between the two leaves it missing until the next call.
    """
    path = repo.path / superblocks.OBJECT_NAME
    fd = os.open(repo.path / "locks" / "superblock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        text = path.read_bytes()
        superblock = Superblock.load(text, str(path))
        if name not in superblock.features:
            text = replace(superblock, features=(*superblock.features, name)).dump()
            temporary = path.with_name(path.name + ".tmp")
            temporary.write_bytes(text)
            sync(temporary)
            temporary.rename(path)
            sync(repo.path)
        if _on_store(repo) != text:
            repo.store.delete(superblocks.OBJECT_NAME)
            with contextlib.suppress(Exists):
                repo.store.put(superblocks.OBJECT_NAME, text)
    finally:
        os.close(fd)


def _on_store(repo: Repository) -> bytes | None:
    try:
        return repo.store.get(superblocks.OBJECT_NAME)
    except NotFound:
        return None
