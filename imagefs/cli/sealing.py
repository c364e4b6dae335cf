"""`seal` and `wait`."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

from imagefs.cli.listing import current_size
from imagefs.cli.opening import complete_image, resolve
from imagefs.cli.output import say
from imagefs.cli.progress import progress
from imagefs.cli.settings import Settings, pass_settings, repo_option
from imagefs.cli.working import opened_for_data
from imagefs.errors import Mismatch, SealBlocked, TimedOut
from imagefs.images.arming import blocked_reason
from imagefs.images.hashtask import fill_in_hashes
from imagefs.images.repository import Repository
from imagefs.images.service import Images
from imagefs.images.session import is_dead
from imagefs.types import Image, Status

POLL_S = 0.2
WATCH_S = 0.5
HOLES_HASHED = 4 << 30
"""Bytes of holes that are hashed while one waits: 5 s at the 0.8 GB/s that MD5 needs for zeros too."""


@click.command("seal")
@click.argument("images", shell_complete=complete_image, nargs=-1, required=True)
@repo_option
@pass_settings
def seal_command(settings: Settings, /, images: tuple[str, ...]) -> None:
    """Seal drafts now, whatever keeps them from being sealed by themselves.

    Refused while a draft is open for writing. The image is active when this returns.
    """
    with opened_for_data(settings) as (service, _):
        for image in [resolve(service.repo, word) for word in images]:
            sealed = seal(service, image)
            say(f"{sealed.id} ({sealed.name or 'without a name'}) is {sealed.status}.")


@click.command("wait")
@click.argument("images", shell_complete=complete_image, nargs=-1, required=True)
@click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Give up after so long.")
@repo_option
@pass_settings
def wait_command(settings: Settings, /, images: tuple[str, ...], timeout: float | None) -> None:
    """Wait until images are active.

    Ends with an error as soon as one never will be without your help: killed, deleted, or a draft that is
    blocked from being sealed by itself (the message says why).
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    with opened_for_data(settings) as (service, _):
        repo = service.repo
        waiting = [resolve(repo, word) for word in images]
        if not all(_settled(image) for image in waiting) and not _sealer_runs(repo):
            say("Nothing seals drafts by itself now: no mount of this repository runs. See `imagefs seal`.")
        for image in waiting:
            _wait(repo, image, deadline)


def _wait(repo: Repository, image: Image, deadline: float | None) -> None:
    while not _settled(image):
        _raise_if_stuck(repo, image)
        if deadline is not None and time.monotonic() >= deadline:
            raise TimedOut(f"Image {image.id} ({image.name}) is still {image.status}.")
        time.sleep(POLL_S)
        image = repo.catalog.images.get(image.id)


def _settled(image: Image) -> bool:
    return image.status in (Status.ACTIVE, Status.DEACTIVATED)


def _raise_if_stuck(repo: Repository, image: Image) -> None:
    if image.status == Status.KILLED:
        raise Mismatch(f"Image {image.id} ({image.name}) was killed: its data is not what was declared.")
    if image.status == Status.PENDING_DELETE:
        raise SealBlocked(f"Image {image.id} ({image.name}) is pending_delete: its data was removed.")
    reason = None if repo.opens.writers(image.data_ino) else blocked_reason(repo, image)
    if reason:
        raise SealBlocked(f"Image {image.id} ({image.name}) stays a draft: {reason}.")


def _sealer_runs(repo: Repository) -> bool:
    """Whether a live session of another process could hold the janitor's lock."""
    sessions = repo.path / "sessions"
    return any(
        row.kind != "cli" and not is_dead(sessions, row.id)
        for row in repo.catalog.sessions.list()
        if row.id != repo.session.id
    )


def seal(images: Images, image: Image) -> Image:
    """The image, active, with its hashes unless zeros would make them take long (they come later then).

    A draft that another process is sealing already is waited for.
    """
    with _sealing_shown(images.repo, image):
        sealed = images.seal(image.id)
    if (sealed.size or 0) - sealed.allocated <= HOLES_HASHED:
        fill_in_hashes(images.repo, sealed.id, lambda: False)
        sealed = images.get(image.id)
    return sealed


@contextmanager
def _sealing_shown(repo: Repository, image: Image) -> Iterator[None]:
    """Shows meanwhile how much of the draft is stored, as far as its checkpoints say."""
    size = current_size(repo, image) or 0
    ended = threading.Event()
    with progress("sealing", size) as advance:

        def watch() -> None:
            seen = 0
            while not ended.wait(WATCH_S):
                seal = repo.catalog.seals.get(image.id)
                stored = max(seen, seal.next_offset if seal else 0)
                advance(stored - seen)
                seen = stored
            advance(size - seen)

        watcher = threading.Thread(target=watch, name="progress", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
