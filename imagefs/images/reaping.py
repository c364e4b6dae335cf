"""Ending the sessions of processes that died without doing it."""

from __future__ import annotations

from uuid import UUID

from imagefs.images.repository import Repository
from imagefs.images.session import is_dead, lock_path


def reap(repo: Repository) -> list[UUID]:
    """Ends sessions whose lock nobody holds, with their open files; returns them."""
    dead = [
        row.id
        for row in repo.catalog.sessions.list()
        if row.id != repo.session.id and is_dead(repo.path / "sessions", row.id)
    ]
    for session in dead:
        repo.catalog.sessions.reap(session)
        repo.opens.drop(session)
        repo.catalog.slots.drop(session)
        lock_path(repo.path / "sessions", session).unlink(missing_ok=True)
    return dead
