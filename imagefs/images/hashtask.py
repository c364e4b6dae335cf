"""Filling in md5 and sha512 of images that became active without them (S16)."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

from imagefs.catalog import Op
from imagefs.errors import NotFound
from imagefs.images.hashing import ALGORITHM, hashes
from imagefs.images.listing import with_root
from imagefs.images.repository import Repository
from imagefs.images.staging import data_ranges
from imagefs.types import Image


def needs_hashes(image: Image) -> bool:
    """Whether sealed data still lacks its whole-file hashes."""
    return image.sealed and image.os_hash_value is None


def fill_in_hashes(repo: Repository, image_id: UUID, cancelled: Callable[[], bool]) -> None:
    """Computes the hashes, or takes them over from an image of equal root and size, and records them.

    Reads the plain file that sealing has left, where there is one, and lets it go then if it is too large.
    """
    try:
        image = repo.catalog.images.get(image_id)
    except NotFound:
        return
    if needs_hashes(image):
        found = _known(repo, image) or _computed(repo, image, cancelled)
        if found is None:
            return
        checksum, value = found
        repo.catalog.images.update(
            image_id,
            lambda now: replace(
                now, checksum=checksum, os_hash_algo=now.os_hash_algo or ALGORITHM, os_hash_value=value
            ),
            Op.UPDATE,
        )
    repo.materialised.trim()


def _known(repo: Repository, image: Image) -> tuple[str, str] | None:
    for twin in with_root(repo.catalog, image):
        if twin.checksum and twin.os_hash_value and twin.os_hash_algo == (image.os_hash_algo or ALGORITHM):
            return twin.checksum, twin.os_hash_value
    return None


def _computed(repo: Repository, image: Image, cancelled: Callable[[], bool]) -> tuple[str, str] | None:
    size = image.size or 0
    algorithm = image.os_hash_algo or ALGORITHM
    fd = repo.materialised.open(image)
    if fd is not None:
        try:
            read = lambda offset, length: os.pread(fd, length, offset)  # noqa: E731
            return hashes(read, data_ranges(fd, 0, size), size, cancelled, algorithm)
        finally:
            os.close(fd)
    return hashes(
        lambda offset, length: repo.reader.pread(image.map_id, size, offset, length),
        repo.reader.data_ranges(image.map_id, size),
        size,
        cancelled,
        algorithm,
    )
