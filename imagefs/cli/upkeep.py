"""`gc` and `fsck`."""

from __future__ import annotations

import subprocess
import sys
import time

import click

from imagefs.cli import exits
from imagefs.cli.opening import opened
from imagefs.cli.output import json_option, print_json, say, size_text
from imagefs.cli.progress import progress
from imagefs.cli.settings import Settings, pass_settings, repo_option
from imagefs.cli.tables import print_table
from imagefs.errors import Damaged
from imagefs.images import fsck
from imagefs.images.gc import Collected, Collector, Plan
from imagefs.images.repository import Repository
from imagefs.images.tail import LogTail

ACKNOWLEDGED_WITHIN_S = 3.0
"""Mounts follow the log within a second: longer than this nobody new lets go of anything."""
POLL_S = 0.1


@click.command("gc")
@click.option("--dry-run", is_flag=True, help="Say what would be deleted; change nothing.")
@json_option
@repo_option
@pass_settings
def gc_command(settings: Settings, /, dry_run: bool, as_json: bool) -> None:
    """Delete stored data that nothing needs any more.

    Mounts do it by themselves every few seconds. Data that somebody has open is left alone.
    """
    with opened(settings) as repo:
        if dry_run:
            _show_plan(Collector(repo).plan(), as_json=as_json)
            return
        done = _collect(repo)
    if as_json:
        print_json({"images": done.images, "objects": done.objects, "bytes": done.bytes})
    else:
        say(f"Ended {done.images} deleted images; deleted {done.objects} objects, {size_text(done.bytes)}.")


def _collect(repo: Repository) -> Collected:
    """Collects until nothing is left, or what is left waits for others."""
    collector, tail = Collector(repo), LogTail(repo, None, ())
    total = Collected()
    deadline = time.monotonic() + ACKNOWLEDGED_WITHIN_S
    with progress("deleting", None) as advance:
        while True:
            # Each step is done only when every session has seen the one before, this one too.
            tail.catch_up()
            tail.acknowledge()
            done = collector.run(progress=advance)
            total.images += done.images
            total.objects += done.objects
            total.bytes += done.bytes
            if done.images or done.objects:
                deadline = time.monotonic() + ACKNOWLEDGED_WITHIN_S
            elif not _waits_for_others(repo) or time.monotonic() > deadline:
                return total
            time.sleep(POLL_S)


def _waits_for_others(repo: Repository) -> bool:
    totals = repo.catalog.packs.totals()
    return bool(totals.trash or totals.doomed or repo.catalog.images.unlinked())


def _show_plan(plan: Plan, *, as_json: bool) -> None:
    objects = [*plan.doom, *plan.doomed]
    images = [*plan.pending, *plan.finalise]
    if as_json:
        print_json(
            {
                "images": [str(image) for image in images],
                "objects": [row.object_name for row in objects],
                "bytes": plan.bytes,
            }
        )
        return
    rows = [("image", str(image), "-") for image in images]
    rows += [("object", row.object_name, size_text(row.stored)) for row in objects]
    print_table(("what", "name", "size"), rows, right=("size",))
    say(f"{len(images)} images, {len(objects)} objects, {size_text(plan.bytes)} would be deleted now.")


@click.command("fsck")
@click.option("--here", is_flag=True, hidden=True)
@json_option
@repo_option
@pass_settings
@click.pass_context
def fsck_command(ctx: click.Context, settings: Settings, /, here: bool, as_json: bool) -> None:
    """Check the repository: every rule that holds between catalog, stored objects and drafts.

    Changes nothing, and may run while the repository is in use.
    """
    if not here:
        ctx.exit(_in_another_process(settings, as_json=as_json))
    with opened(settings) as repo:
        findings = fsck.check(repo, lambda rule: say(f"{rule.replace('_', ' ')} ..."))
    if as_json:
        print_json([{"rule": one.rule, "subject": one.subject, "message": one.message} for one in findings])
    elif findings:
        print_table(("rule", "subject", "what"), [(one.rule, one.subject, one.message) for one in findings])
    if findings:
        raise Damaged(f"{len(findings)} things are wrong with {settings.path}; see docs/operations.md.")
    say(f"{settings.path} is clean.")


def _in_another_process(settings: Settings, *, as_json: bool) -> int:
    """Runs the check in a child: a damaged catalog can kill whoever reads it. The exit code."""
    command = [sys.executable, "-m", "imagefs", "--repo", str(settings.path)]
    command += ["--config", str(settings.config_file)] if settings.config_file else []
    command += ["--debug"] if settings.debug else []
    status = subprocess.run([*command, "fsck", "--here", *(["--json"] if as_json else [])], check=False).returncode
    if status < 0:
        say(f"imagefs: the catalog of {settings.path} is damaged: it killed its reader (signal {-status}).")
        return exits.code_of(Damaged())
    return status
