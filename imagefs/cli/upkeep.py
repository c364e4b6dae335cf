"""`fsck`."""

from __future__ import annotations

import subprocess
import sys

import click

from imagefs.cli import exits
from imagefs.cli.opening import opened
from imagefs.cli.output import json_option, print_json, say
from imagefs.cli.settings import Settings, pass_settings, repo_option
from imagefs.cli.tables import print_table
from imagefs.errors import Damaged
from imagefs.images import fsck
from imagefs.images import repair as repairs
from imagefs.images.repair import Repaired


@click.command("fsck")
@click.option("--repair", is_flag=True, help="Put right what can be put right, and say what was done.")
@click.option("--here", is_flag=True, hidden=True)
@json_option
@repo_option
@pass_settings
@click.pass_context
def fsck_command(ctx: click.Context, settings: Settings, /, repair: bool, here: bool, as_json: bool) -> None:
    """Check the repository: every rule that holds between catalog, stored objects and drafts.

    Changes nothing without --repair. May run while the repository is in use.
    """
    if not here:
        words = [*(["--repair"] if repair else []), *(["--json"] if as_json else [])]
        ctx.exit(_in_another_process(settings, words))
    with opened(settings) as repo:
        done = repairs.repair(repo, _announce) if repair else Repaired(left=fsck.check(repo, _announce))
    findings = done.left
    if as_json:
        found = [{"rule": one.rule, "subject": one.subject, "message": one.message} for one in findings]
        repaired = [{"rule": rule, "done": what} for rule, what in done.done]
        print_json({"repaired": repaired, "left": found} if repair else found)
    else:
        if done.done:
            print_table(("rule", "done"), done.done)
        if findings:
            print_table(("rule", "subject", "what"), [(one.rule, one.subject, one.message) for one in findings])
    if findings:
        what = "could not be put right in" if repair else "are wrong with"
        raise Damaged(f"{len(findings)} things {what} {settings.path}; see docs/operations.md.")
    say(f"{settings.path} is clean.")


def _announce(rule: str) -> None:
    say(f"{rule.replace('_', ' ')} ...")


def _in_another_process(settings: Settings, words: list[str]) -> int:
    """Runs the check in a child: a damaged catalog can kill whoever reads it. The exit code."""
    command = [sys.executable, "-m", "imagefs", "--repo", str(settings.path)]
    command += ["--config", str(settings.config_file)] if settings.config_file else []
    command += ["--debug"] if settings.debug else []
    status = subprocess.run([*command, "fsck", "--here", *words], check=False).returncode
    if status < 0:
        say(f"imagefs: the catalog of {settings.path} is damaged: it killed its reader (signal {-status}).")
        say("imagefs: `imagefs rebuild` makes it anew from what is stored.")
        return exits.code_of(Damaged())
    return status
