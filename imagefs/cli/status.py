"""`status`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click

from imagefs import __version__
from imagefs.cli.listing import current_size
from imagefs.cli.opening import entry_of, opened
from imagefs.cli.output import json_option, print_json, size_text, time_text
from imagefs.cli.running import running
from imagefs.cli.settings import Settings, pass_settings, repo_option
from imagefs.cli.tables import print_record, print_table
from imagefs.fuse import mounts
from imagefs.images.arming import blocked_reason
from imagefs.images.listing import with_status
from imagefs.images.repository import Repository
from imagefs.images.session import is_dead
from imagefs.types import Image, Kind, Status


@click.command("status")
@json_option
@repo_option
@pass_settings
def status_command(settings: Settings, /, as_json: bool) -> None:
    """Show what is stored, mounted and being written, and why drafts are not sealed."""
    with opened(settings) as repo:
        figures = status(repo)
    if as_json:
        print_json(figures)
    else:
        _print(figures)


def status(repo: Repository) -> dict[str, Any]:
    """Everything that `status --json` says. Sizes in bytes, times in ns."""
    by_status, logical = _images(repo)
    totals = repo.catalog.packs.totals()
    daemons = running(repo.path)
    first = daemons[0] if daemons else None
    return {
        "version": __version__,
        "repository": str(repo.path),
        "repository_id": str(repo.superblock.repo),
        "images": sum(by_status.values()),
        "by_status": by_status,
        "logical_bytes": logical,
        "stored_bytes": totals.stored_bytes,
        "trash_bytes": totals.trash_bytes + totals.doomed_bytes,
        "draft_bytes": repo.staging.allocated(),
        "cache_bytes": repo.materialised.allocated(),
        "room_for_drafts": max(repo.space.room(), 0),
        "transport": first.transport if first else None,
        "mountpoints": sorted({daemon.mountpoint for daemon in daemons}),
        "worker_pid": first.worker_pid if first else None,
        "supervisor_pid": first.supervisor_pid if first else None,
        "mounts": [asdict(daemon) for daemon in daemons],
        "dead_mountpoints": _without_daemon(repo, {daemon.mountpoint for daemon in daemons}),
        "drafts": list(_drafts(repo)),
        "sessions": list(_sessions(repo)),
        "generation": repo.catalog.generation(),
    }


def _images(repo: Repository) -> tuple[dict[str, int], int]:
    """Images by state, and the bytes of all sealed data as its readers see it."""
    by_status: dict[str, int] = {}
    logical = after = 0
    while page := repo.catalog.images.walk(Kind.DIRECTORY, after):
        for _, attrs in page:
            by_status[str(attrs.status)] = by_status.get(str(attrs.status), 0) + 1
            if attrs.map_id:
                logical += attrs.size or 0
        after = page[-1][0]
    return by_status, logical


def _without_daemon(repo: Repository, served: set[str]) -> list[str]:
    """Mounts of this repository that nobody serves any more."""
    found = mounts.of_repository(repo.path)
    return sorted({mount.mountpoint for mount in found} - served)


def _drafts(repo: Repository) -> Iterator[dict[str, Any]]:
    for image in with_status(repo.catalog, Status.SAVING):
        draft = image.draft
        if draft is not None:
            yield {
                "id": str(image.id),
                "name": image.name,
                "entry": entry_of(image) or None,
                "size": current_size(repo, image),
                "state": _state(repo, image),
                "reason": blocked_reason(repo, image),
                "failed": draft.failed,
            }


def _state(repo: Repository, image: Image) -> str:
    """What happens to a draft: writing, sealing, blocked or settling."""
    if repo.opens.writers(image.data_ino):
        return "writing"
    if image.draft is not None and image.draft.sealer is not None:
        return "sealing"
    return "blocked" if blocked_reason(repo, image) else "settling"


def _sessions(repo: Repository) -> Iterator[dict[str, Any]]:
    for row in repo.catalog.sessions.list():
        if row.id != repo.session.id:
            yield {
                "id": str(row.id),
                "kind": row.kind,
                "host": row.host,
                "started": row.started_ns,
                "acknowledged": row.ack,
                "alive": not is_dead(repo.path / "sessions", row.id),
            }


def _print(figures: dict[str, Any]) -> None:
    states = ", ".join(f"{count} {state}" for state, count in sorted(figures["by_status"].items()))
    print_record(
        [
            ("repository", figures["repository"]),
            ("images", f"{figures['images']} ({states})" if states else "none"),
            ("images' bytes", size_text(figures["logical_bytes"])),
            (
                "stored",
                f"{size_text(figures['stored_bytes'])} ({size_text(figures['trash_bytes'])} of it trash)",
            ),
            ("drafts' bytes", size_text(figures["draft_bytes"])),
            ("room for drafts", size_text(figures["room_for_drafts"])),
            ("mounted", "; ".join(_mount_text(one) for one in figures["mounts"]) or "nowhere"),
            *(("dead mount", place) for place in figures["dead_mountpoints"]),
        ]
    )
    if figures["drafts"]:
        click.echo()
        print_table(
            ("draft", "name", "size", "state", "why"),
            [
                (
                    one["id"],
                    one["name"] or "-",
                    size_text(one["size"]),
                    one["state"],
                    one["reason"] or one["failed"] or "-",
                )
                for one in figures["drafts"]
            ],
            right=("size",),
        )


def _mount_text(one: dict[str, Any]) -> str:
    since = time_text(one["started_ns"])
    return f"{one['mountpoint']} ({one['transport']}, worker {one['worker_pid']}, since {since})"
