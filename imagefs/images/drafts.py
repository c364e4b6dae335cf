"""How a draft's record changes while it is written: pure functions from one value to the next (S3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

from imagefs.types import Draft

Change = Callable[[Draft], Draft]


def reopened(session: UUID) -> Change:
    """Open for writing again, through `session`: a seal that is under way will not commit."""
    return lambda draft: replace(
        draft,
        writer=session,
        writes=draft.writes + 1,
        released_ns=None,
        complete=None,
        failed=None,
        streamed=False,
    )


def released(now_ns: int, boot: str) -> Change:
    """Closed by its last writer: the settle time begins."""
    return lambda draft: replace(draft, released_ns=now_ns, boot=boot)


def blocked(reason: str | None) -> Change:
    """Not to be sealed by itself, for `reason`; the first reason stays until None lifts it."""
    return lambda draft: replace(draft, blocked=reason and (draft.blocked or reason))


def based(base: bool) -> Change:
    """It takes blocks from maps, or does so no more."""
    return lambda draft: replace(draft, based=base)


def marked(mark: bool) -> Change:
    """`user.imagefs.draft` set or removed."""
    return lambda draft: replace(draft, marked=mark)


def hurried(draft: Draft) -> Draft:
    """Settled as of now, if it is closed at all: who waits to commit it goes on at once."""
    return draft if draft.released_ns is None else replace(draft, released_ns=0)
