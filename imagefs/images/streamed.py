"""Drafts whose bytes go straight into packs (images/upload.py): how they begin, and how they end unsealed."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from uuid import UUID

from imagefs.catalog import Op
from imagefs.errors import Busy, NotFound
from imagefs.images.repository import Repository
from imagefs.images.service import Images
from imagefs.types import Image, Status


def begin(images: Images, image_id: UUID) -> Image:
    """Makes an image `saving` with such a draft; one that was just created with an empty draft keeps it.

    One transaction: who dies behind it leaves a draft that `end` drops. Raises Refused when the image cannot
    take data, Busy when it is being written.
    """
    with images.repo.catalog.transaction():
        image = images.get(image_id)
        if image.draft is None:
            image = images.begin_draft(image_id)
        elif image.draft.writes or images.repo.opens.writers(image.data_ino):
            raise Busy(f"Image {image_id} is being written.")
        return images.update_draft(image.id, lambda draft: replace(draft, streamed=True))


def end(repo: Repository, image_id: UUID, gen: int) -> None:
    """Drops such a draft: the image is queued again. Nothing happens to another draft, or a deleted image."""

    def queued(image: Image) -> Image:
        if image.draft is None or not image.draft.streamed or image.draft.gen != gen:
            return image
        return replace(image, status=Status.QUEUED, draft=None, data_ino=repo.catalog.images.new_ino())

    with contextlib.suppress(NotFound):
        repo.catalog.images.update(image_id, queued, Op.DRAFT)
