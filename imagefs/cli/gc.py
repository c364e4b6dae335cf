"""`gc`: deleting what nothing needs, rewriting packs that are mostly unused, laying scattered images out again."""

from __future__ import annotations

import time
from typing import NamedTuple

import click

from imagefs.cli.opening import opened
from imagefs.cli.output import json_option, print_json, say, size_text
from imagefs.cli.progress import progress
from imagefs.cli.settings import Settings, pass_settings, repo_option
from imagefs.cli.tables import print_table
from imagefs.errors import Busy, NoSpace
from imagefs.images.compaction import Compacted, CompactionPlan, Compactor
from imagefs.images.gc import Collected, Collector, Plan
from imagefs.images.repository import Repository
from imagefs.images.tail import LogTail
from imagefs.types import BLOCK

ACKNOWLEDGED_WITHIN_S = 3.0
"""Mounts follow the log within a second: longer than this nobody new lets go of anything."""
POLL_S = 0.1


@click.command("gc")
@click.option("--dry-run", is_flag=True, help="Print what would be done; change nothing.")
@click.option("--now", is_flag=True, help="Empty the trash too: what is deleted cannot be brought back.")
@json_option
@repo_option
@pass_settings
def gc_command(settings: Settings, /, dry_run: bool, now: bool, as_json: bool) -> None:
    """Delete stored data that nothing needs any more.

    Mounts do it by themselves, every few seconds and at a bounded rate. Deleted images are kept in the trash
    for a while (see `undelete`) as long as the disk has room; data that somebody has open is left alone.
    Packs of which little is used are written anew, and images that are scattered over many are laid out again.
    """
    with opened(settings) as repo:
        collector, compactor = Collector(repo, retention_s=0 if now else None), Compactor(repo)
        if dry_run:
            show = _plan_as_json if as_json else _show_plan
            show(collector, collector.plan(), compactor.plan())
            return
        done = _collect(repo, collector)
        compacted = _compact(compactor)
        if compacted.blocks:
            done.add(_collect(repo, collector))
    if as_json:
        print_json(
            {
                "images": done.images,
                "objects": done.objects,
                "bytes": done.bytes,
                "moved_bytes": compacted.blocks * BLOCK,
                "packs_rewritten": compacted.packs,
                "images_laid_out": compacted.images,
            }
        )
        return
    say(f"Ended {done.images} deleted images; deleted {done.objects} objects, {size_text(done.bytes)}.")
    if compacted.blocks:
        moved = size_text(compacted.blocks * BLOCK)
        say(f"Moved {moved}: {compacted.packs} packs rewritten, {compacted.images} images laid out again.")


def _collect(repo: Repository, collector: Collector) -> Collected:
    """Collects until nothing is left, or what is left waits for others."""
    tail = LogTail(repo, None, ())
    total = Collected()
    deadline = time.monotonic() + ACKNOWLEDGED_WITHIN_S
    with progress("deleting", None) as advance:
        while True:
            # Each step is done only when every session has seen the one before, this one too.
            tail.catch_up()
            tail.acknowledge()
            done = collector.run(progress=advance)
            total.add(done)
            if done.images or done.objects:
                deadline = time.monotonic() + ACKNOWLEDGED_WITHIN_S
            elif not _waits_for_others(repo, collector) or time.monotonic() > deadline:
                return total
            time.sleep(POLL_S)


def _waits_for_others(repo: Repository, collector: Collector) -> bool:
    packs = repo.catalog.packs
    return bool(packs.trash() or packs.doomed() or collector.due())


def _compact(compactor: Compactor) -> Compacted:
    """Moves what there is to move; says why it cannot, since what was deleted is deleted all the same."""
    plan = compactor.plan()
    try:
        with progress("moving", plan.blocks * BLOCK) as advance:
            return compactor.execute(plan, lambda blocks: advance(blocks * BLOCK))
    except (Busy, NoSpace) as error:
        say(f"Nothing was moved: {error}")
        return Compacted()


# -- the plan --------------------------------------------------------------------------------------------


class _Row(NamedTuple):
    """A line of the plan: `size` is what is deleted, or written anew."""

    what: str
    name: str
    size: int | None
    why: str


def _rows(plan: Plan, moves: CompactionPlan) -> list[_Row]:
    rows = [_Row("end image", str(image_id), None, "pending_delete") for image_id in plan.pending]
    rows += [_Row("end image", str(one.image_id), None, "deleted, its time is over") for one in plan.finalise]
    rows += [_Row("delete", row.object_name, row.stored, "nothing needs it") for row in (*plan.doom, *plan.doomed)]
    rows += [
        _Row("lay out", one.name or str(one.image_id), one.copied * BLOCK, f"reads {one.reading.amplification:.1f}x")
        for one in moves.scattered
    ]
    rows += [
        _Row("rewrite", one.row.object_name, one.live * BLOCK, f"{one.live} of {one.row.blocks} blocks used")
        for one in moves.sparse
    ]
    return rows


def _show_plan(collector: Collector, plan: Plan, moves: CompactionPlan) -> None:
    rows = _rows(plan, moves)
    printed = [(row.what, row.name, size_text(row.size), row.why) for row in rows]
    print_table(("what", "name", "size", "why"), printed, right=("size",))
    images, objects = len(plan.pending) + len(plan.finalise), len(plan.doom) + len(plan.doomed)
    say(f"{images} images, {objects} objects, {size_text(plan.bytes)} would be deleted now.")
    say(
        f"{size_text(collector.freed(plan) + moves.freed)} would be free in the end, "
        f"after moving {size_text(moves.blocks * BLOCK)}."
    )


def _plan_as_json(collector: Collector, plan: Plan, moves: CompactionPlan) -> None:
    print_json(
        {
            "images": [str(image_id) for image_id in (*plan.pending, *(one.image_id for one in plan.finalise))],
            "objects": [row.object_name for row in (*plan.doom, *plan.doomed)],
            "bytes": plan.bytes,
            "freed_bytes": collector.freed(plan) + moves.freed,
            "moved_bytes": moves.blocks * BLOCK,
            "rewrite": [
                {"object": one.row.object_name, "blocks": one.row.blocks, "used": one.live, "freed_bytes": one.freed}
                for one in moves.sparse
            ],
            "lay_out": [
                {
                    "image": str(one.image_id),
                    "amplification": round(one.reading.amplification, 3),
                    "moved_bytes": one.copied * BLOCK,
                }
                for one in moves.scattered
            ],
        }
    )
