"""Garbage collection: what the store keeps and nothing needs any more (T5-T7). Plan, then execute.

    deleted image --T5 finalise--> its packs `trash` --T6 doom--> delete from the store --T7 forget--> gone

Each step is a transaction that checks its guards again, so any number of processes may collect at once,
die between any two steps, and go on where another one stopped.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from imagefs.catalog import PackRow
from imagefs.errors import BackendFailed, NoSpace, NotFound
from imagefs.images.bases import drop_ended
from imagefs.images.listing import with_status
from imagefs.images.reaping import reap
from imagefs.images.repository import Repository
from imagefs.images.trash import Due, Freed, Trash
from imagefs.types import Status

PENDING_DELETE_S = 60.0
"""How long pending_delete images are left alone by themselves: `rm -r` still has to remove the directory."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What execute would do now; more may follow when an image is finalised."""

    pending: list[UUID]
    """Images that are pending_delete long enough."""
    finalise: list[Due]
    """Deleted images whose time is over and that nobody has open."""
    doom: list[PackRow]
    """Trash objects that nobody can still be reading."""
    doomed: list[PackRow]
    """Objects whose deletion from the store has begun or is due."""

    @property
    def bytes(self) -> int:
        """Bytes on the store that would be freed at once."""
        return sum(row.stored for row in (*self.doom, *self.doomed))


@dataclass(slots=True)
class Collected:
    """What was done."""

    images: int = 0
    objects: int = 0
    bytes: int = 0

    def add(self, other: Collected) -> None:
        """Counts that in."""
        self.images += other.images
        self.objects += other.objects
        self.bytes += other.bytes


class Collector:
    """Collects one repository. `retention_s` is how long a deleted image stays in the trash; None as configured."""

    def __init__(self, repo: Repository, *, retention_s: float | None = None) -> None:
        self._repo = repo
        self.trash = Trash(repo, repo.config.retention_seconds if retention_s is None else retention_s)

    def plan(self, *, now_ns: int | None = None, pending_s: float = 0.0) -> Plan:
        """What there is to do at `now_ns`; changes nothing."""
        now = now_ns or time.time_ns()
        catalog = self._repo.catalog
        due = self.trash.due(now)
        may_end = set(catalog.seals.finalisable()) if due else set()
        return Plan(
            pending=[
                image.id
                for image in with_status(catalog, Status.PENDING_DELETE)
                if image.updated_at <= now - int(pending_s * 1e9)
            ],
            finalise=[one for one in due if one.image_id in may_end],
            doom=catalog.packs.doomable(0, now),
            doomed=catalog.packs.doomed(),
        )

    def due(self) -> list[Due]:
        """Deleted images that are to be ended, also those that somebody still has open."""
        return self.trash.due(time.time_ns())

    def freed(self, plan: Plan) -> int:
        """Bytes on the store that go when the plan is carried out, and when what that makes trash is deleted."""
        freed = Freed(self._repo)
        return plan.bytes + sum(freed.by(one.map_id) for one in plan.finalise)

    def execute(self, plan: Plan, progress: Callable[[int], None] = lambda nbytes: None) -> Collected:
        """Carries a plan out, re-checking every guard; `progress` is told the bytes freed by each object."""
        done = Collected()
        catalog = self._repo.catalog
        for image_id in plan.pending:
            catalog.images.unlink(image_id)
        for one in plan.finalise:
            done.images += self._finalise(one)
        self._repo.materialised.keep(lambda map_uuid: catalog.maps.by_uuid(map_uuid) is not None)
        self._repo.unindex_packs(catalog.packs.doom(row.no for row in plan.doom))
        doomed = catalog.packs.doomed()
        if doomed:
            # A log that does not know of the deletion yet would, should the catalog be lost now, bring the image
            # back without its data. A full disk must not keep gc from deleting.
            with contextlib.suppress(NoSpace, BackendFailed):
                self._repo.logs.flush()
        for row in doomed:
            self._repo.store.delete(row.object_name)
            catalog.packs.forget([row.no])
            done.objects += 1
            done.bytes += row.stored
            progress(row.stored)
        return done

    def _finalise(self, due: Due) -> bool:
        try:
            draft = self._repo.catalog.images.get(due.image_id, deleted=True).draft
        except NotFound:
            return False  # another process was quicker
        if not self._repo.catalog.seals.finalise(due.image_id, due.gen):
            return False
        if draft is not None:
            self._repo.staging.remove(due.image_id, draft.gen)
        return True

    def run(
        self,
        *,
        pending_s: float = 0.0,
        wait_s: float = 0.0,
        progress: Callable[[int], None] = lambda nbytes: None,
    ) -> Collected:
        """Plans and executes until nothing is left that could be done; waits up to `wait_s` for other
        processes to acknowledge what was deleted just now."""
        total = Collected()
        reap(self._repo)
        deadline = time.monotonic() + wait_s
        while True:
            lagging = self._lagging()
            drop_ended(self._repo)
            plan = self.plan(pending_s=pending_s)
            done = self.execute(plan, progress)
            total.add(done)
            if plan.pending or done.images or done.objects:
                continue
            if time.monotonic() >= deadline or not lagging:
                return total
            time.sleep(0.1)

    def _lagging(self) -> bool:
        """Whether a live session has still to acknowledge what is done by now."""
        now = self._repo.catalog.generation()
        return any(row.ack < now for row in self._repo.catalog.sessions.list())
