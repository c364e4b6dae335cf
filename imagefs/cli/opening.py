"""The repository a command works on, and the image that a word on the command line means."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import click

from imagefs.catalog import Query
from imagefs.cli.settings import Settings
from imagefs.config import Config
from imagefs.errors import Ambiguous, BackendFailed, ImagefsError, InvalidValue, NoSpace, NotFound
from imagefs.images.reaping import reap
from imagefs.images.repository import Repository
from imagefs.types import Image

EVERY = 1 << 31
LISTED = 5
"""Candidates that the message about an ambiguous word names."""


def create_repository(path: Path, config: Config) -> None:
    """Makes an empty repository, the directories above it included. Exists if `path` has anything in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Repository.create(path, config)


@contextmanager
def opened(settings: Settings) -> Iterator[Repository]:
    """The repository of the command line, in a session of its own that ends with the block."""
    repo = Repository.open(settings.path, settings.config, "cli")
    try:
        # What killed processes had open counts as open until somebody looks.
        reap(repo)
        yield repo
    finally:
        # What this command changed survives the loss of the catalog as soon as it has ended. On a full disk it
        # has to wait for the janitor.
        with contextlib.suppress(NoSpace, BackendFailed):
            repo.logs.flush()
        repo.close()


def resolve(repo: Repository, word: str) -> Image:
    """The image that a word means: its id, its entry in by-name/, its name, or a beginning of its id.

    In that order, because an entry is given once and a path that works must not start to mean another
    image when somebody takes the same name. Raises NotFound, or Ambiguous with the candidates.
    """
    with contextlib.suppress(ValueError):
        return repo.catalog.images.get(UUID(word))
    found = repo.catalog.images.by_entry(word.encode("utf-8", "surrogateescape"))
    if found is not None:
        return repo.catalog.images.get(found)
    ids = repo.catalog.images.named(word) or _beginning(repo, word)
    if not ids:
        raise NotFound(f"There is no image {word!r}.")
    if len(ids) > 1:
        more = f" and {len(ids) - LISTED} more" if len(ids) > LISTED else ""
        raise Ambiguous(f"{word!r} means several images: {', '.join(map(str, ids[:LISTED]))}{more}.")
    return repo.catalog.images.get(ids[0])


def _beginning(repo: Repository, word: str) -> list[UUID]:
    digits = word.replace("-", "").lower()
    if not digits or set(digits) - set("0123456789abcdef"):
        return []
    return repo.catalog.images.find(digits)


def entry_of(image: Image) -> str:
    """What people see in by-name/; empty for an image without a name."""
    return (image.entry or b"").decode("utf-8", "surrogateescape")


def every_image(repo: Repository, conditions: Query) -> list[Image]:
    """All images that fit the query, as they were at one moment: paging could miss some that change."""
    return repo.catalog.images.query(replace(conditions, limit=EVERY))


def complete_image(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """For shell completion: entries of by-name/, and ids of images without one, that begin like the word."""
    root = ctx.find_root()
    settings = Settings(root.params.get("repo"), root.params.get("config"))
    try:
        with opened(settings) as repo:
            names = {entry_of(image) or str(image.id) for image in every_image(repo, Query())}
    except (ImagefsError, OSError):  # a shell that is completing has nowhere to show an error
        return []
    return [name for name in sorted(names) if name.startswith(incomplete)]


def image_properties(pairs: tuple[str, ...]) -> dict[str, str]:
    """`key=value` words as a mapping. Raises InvalidValue for a word without `=`."""
    properties = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise InvalidValue(f"{pair!r} is not KEY=VALUE.")
        properties[key] = value
    return properties
