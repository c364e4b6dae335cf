"""What the files of .imagefs/ say: small texts for people and scripts, `key: value` or one line a thing."""

from __future__ import annotations

from collections.abc import Callable

from imagefs.catalog import Query, entries
from imagefs.images.repository import Repository
from imagefs.images.usage import last_survey, reclaimable
from imagefs.types import Draft, Image, Status

LINES = 1000
"""Drafts that are listed at most."""


def status(repo: Repository) -> str:
    """The repository and its sizes in bytes."""
    totals = repo.catalog.packs.totals()
    sealed, last = repo.catalog.usage.of_all(), last_survey(repo.catalog)
    figures = {
        "repository": _line(str(repo.path)),
        "id": repo.superblock.repo,
        "generation": repo.catalog.generation(),
        "images": repo.catalog.images.count(),
        "logical_bytes": sealed.logical,
        "stored_bytes": totals.stored_bytes,
        "unique_bytes": last.unique if last else "not known yet",
        "shared_bytes": last.shared if last else "not known yet",
        "reclaimable_bytes": reclaimable(totals, last),
        "trash_bytes": totals.trash_bytes + totals.doomed_bytes,
        "draft_bytes": repo.staging.allocated(),
        "room_for_drafts_bytes": max(repo.space.room(), 0),
    }
    return "".join(f"{key}: {value}\n" for key, value in figures.items())


def health(repo: Repository) -> str:
    """`ok`, or one line for each thing that somebody should look at."""
    wrong = []
    if repo.space.room() <= 0:
        wrong.append("full: the disk has no room for drafts and their packs")
    for damage in repo.catalog.scrubs.damaged():
        wrong.append(f"{repo.catalog.packs.get(damage.no).object_name}: {damage}")
    for image in _drafts(repo):
        draft = image.draft
        if draft is not None and (draft.blocked or draft.failed):
            wrong.append(f"{_name(image)}: {_line(draft.blocked or draft.failed or '')}")
    return "".join(f"{line}\n" for line in wrong) or "ok\n"


def tasks(repo: Repository) -> str:
    """One line for each draft: its image, what happens to it, and how many of its bytes are stored."""
    return "".join(_task(repo, image, image.draft) for image in _drafts(repo) if image.draft is not None)


def _task(repo: Repository, image: Image, draft: Draft) -> str:
    staging = repo.staging.stat(image.id, draft.gen)
    size = staging.st_size if staging else 0
    if draft.sealer is not None:
        return f"{_name(image)}: sealing, {_stored(repo, image)} of {size} bytes\n"
    if draft.marked:
        return f"{_name(image)}: held back by its mark, {size} bytes\n"
    if draft.blocked:
        return f"{_name(image)}: blocked, {size} bytes\n"
    if draft.released_ns is None:
        return f"{_name(image)}: being written, {size} bytes\n"
    return f"{_name(image)}: closed, {size} bytes\n"


def _stored(repo: Repository, image: Image) -> int:
    seal = repo.catalog.seals.get(image.id)
    return seal.next_offset if seal else 0


def _drafts(repo: Repository) -> list[Image]:
    return repo.catalog.images.query(Query(status=Status.SAVING, limit=LINES))


def _name(image: Image) -> str:
    return f"{image.id} {_line(image.name)}" if image.name else str(image.id)


def _line(text: str) -> str:
    """On one line, whatever is in it."""
    return entries.encode(text).decode() if not text.isprintable() else text


RENDERERS: dict[bytes, Callable[[Repository], str]] = {b"status": status, b"health": health, b"tasks": tasks}
"""The files of .imagefs/ in the order of their inodes."""
