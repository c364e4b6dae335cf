"""`doctor`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import click

from imagefs.cli import exits
from imagefs.cli.checks import Check, State, machine
from imagefs.cli.output import json_option, print_json
from imagefs.cli.settings import Settings, pass_settings, repo_option
from imagefs.cli.tables import print_table
from imagefs.fuse import mounts

PATIENCE_S = 30


@click.command("doctor")
@json_option
@repo_option
@pass_settings
@click.pass_context
def doctor_command(ctx: click.Context, settings: Settings, /, as_json: bool) -> None:
    """Say what is missing on this machine, and how to get it. Changes nothing."""
    checks = [*machine(settings.path), repository(settings), *mounted(settings)]
    if as_json:
        print_json([check.as_json() for check in checks])
    else:
        print_table(("point", "state", "found"), [(check.point, str(check.state), check.found) for check in checks])
        for check in checks:
            if check.state is not State.OK and check.remedy:
                click.echo(f"\n{check.point}: {check.found}\n    {check.remedy}")
    if any(check.state is State.MISSING for check in checks):
        ctx.exit(exits.PROBLEM)


def repository(settings: Settings) -> Check:
    """Whether the repository opens. Looked at in another process: a damaged catalog can kill its reader."""
    path = settings.path
    if not path.exists():
        return Check("repository", State.OK, f"{path} is not there yet: `imagefs mount` makes it")
    command = [sys.executable, "-m", "imagefs", "--repo", str(path), "status", "--json"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
    except subprocess.TimeoutExpired:
        found = f"{path} did not answer within {PATIENCE_S} s: a stopped process may hold its lock"
        return Check("repository", State.MISSING, found, "find stopped processes: ps -eo pid,stat,args | grep imagefs")
    if done.returncode == 0:
        return Check("repository", State.OK, f"{path} opens")
    if done.returncode < 0:
        found = f"{path}: reading its catalog killed the reader (signal {-done.returncode})"
        return Check("repository", State.MISSING, found, "imagefs rebuild; see docs/operations.md")
    said = done.stderr.strip().splitlines()
    return Check("repository", State.MISSING, said[-1] if said else "did not open", "see docs/operations.md")


def mounted(settings: Settings) -> Iterator[Check]:
    """Whether the repository's mounts answer. Other processes ask them: one that hangs holds whoever asks."""
    for mount in mounts.of_repository(settings.path):
        place = mount.mountpoint
        match mounts.state(mount):
            case mounts.State.ALIVE:
                yield Check("mount", State.OK, f"{place} answers")
            case mounts.State.DEAD:
                found = f"{place} is dead: nobody serves it"
                yield Check("mount", State.NOTE, found, f"imagefs mount {place} (or umount)")
            case mounts.State.HUNG:
                yield Check("mount", State.NOTE, f"{place} does not answer", f"imagefs umount --force {place}")
