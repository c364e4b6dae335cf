"""What a process does first that becomes the janitor: puts right what dead processes left."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from uuid import UUID

from imagefs.errors import NotFound, Sealed
from imagefs.images import streamed
from imagefs.images.bases import drop_ended
from imagefs.images.listing import with_status
from imagefs.images.materialising import remove_half_made
from imagefs.images.reaping import reap
from imagefs.images.repository import Repository
from imagefs.types import Image, Status

log = logging.getLogger(__name__)

INTERRUPTED = "the mount ended while it was being written"


def recover(repo: Repository) -> None:
    """Reaps dead sessions, blocks drafts that lost their writers, removes stray files. Safe to repeat."""
    for session in reap(repo):
        log.info("session %s had died", session)
    live = {row.id for row in repo.catalog.sessions.list()}
    for connection in repo.opens.connections() - live:
        repo.opens.drop(connection)
    for image in with_status(repo.catalog, Status.SAVING):
        draft = image.draft
        if draft is not None and draft.released_ns is None and draft.writer not in live:
            streamed.end(repo, image.id, draft.gen) if draft.streamed else _block(repo, image)
    remove_stray_staging(repo)
    remove_half_made(repo.staging.directory)
    repo.store.purge()
    if repo.index.fresh:
        repo.rebuild_index()


def _block(repo: Repository, image: Image) -> None:
    def interrupted(now: Image) -> Image:
        draft = now.draft
        if draft is None or draft.released_ns is not None or draft.blocked:
            return now
        return replace(now, draft=replace(draft, blocked=INTERRUPTED))

    with contextlib.suppress(NotFound, Sealed):
        repo.catalog.images.update(image.id, interrupted)


def remove_stray_staging(repo: Repository) -> None:
    """Deletes staging files that no record names: of ended drafts, and of creations that never committed.

    Whether a file is stray is decided inside a write transaction, where no creation can be half done.
    """
    drop_ended(repo)
    for image_id, gen, path in list(repo.staging.files()):
        if _is_named(repo, image_id, gen):
            continue
        with repo.catalog.transaction():
            if not _is_named(repo, image_id, gen):
                path.unlink(missing_ok=True)


def _is_named(repo: Repository, image_id: UUID, gen: int) -> bool:
    try:
        image = repo.catalog.images.get(image_id, deleted=True)
    except NotFound:
        return False
    if image.draft is not None and image.draft.gen == gen:
        return True
    return any(sibling.gen == gen for sibling in repo.catalog.siblings.list(image.id))
