"""`quota`: what a project, or all together, may store."""

from __future__ import annotations

import re
from typing import Any

import click

from imagefs.catalog import Limits, Quota
from imagefs.cli.opening import opened
from imagefs.cli.output import json_option, print_json, say, size_text
from imagefs.cli.settings import Settings, pass_settings, repo_option
from imagefs.cli.tables import print_record, print_table
from imagefs.errors import InvalidValue, NotFound

UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50}
TOTAL, NOBODY = "total", "-"


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | str | None:
    """A number of bytes: 1000, 500M, 1.5T, 20GiB; units are powers of 1024. `none` lifts a limit."""
    if value in (None, "none"):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGTP]?)(?:iB|B)?", value, re.IGNORECASE)
    if match is None:
        raise click.BadParameter(f"{value!r} is not a size such as 1000, 500M or 1.5TiB.")
    return int(float(match[1]) * (1 << UNITS[match[2].upper()]))


@click.group("quota")
def quota_command() -> None:
    """Limit what a project, or all together, may store.

    Logical bytes are the sizes of images as readers see them, unique bytes what sealing them added to the store.
    A full quota refuses new data (EDQUOT) and harms nothing that is stored. PROJECT is an id; `-` means images
    without a project, `total` all images together.
    """


@quota_command.command("set")
@click.argument("project")
@click.option("--logical", metavar="SIZE", callback=_size, help="Logical bytes; `none` lifts the limit.")
@click.option("--unique", metavar="SIZE", callback=_size, help="Unique bytes; `none` lifts the limit.")
@repo_option
@pass_settings
def set_command(settings: Settings, /, project: str, logical: int | str | None, unique: int | str | None) -> None:
    """Set limits; one that is not given stays as it is."""
    if logical is None and unique is None:
        raise InvalidValue("Neither --logical nor --unique is given: nothing to set.")
    owner, total = _whose(project)
    with opened(settings) as repo, repo.catalog.transaction():
        known = repo.catalog.quotas.get(owner, total=total)
        old = known.limits if known else Limits()
        new = Limits(_limit(logical, old.logical), _limit(unique, old.unique))
        repo.catalog.quotas.set(owner, new, total=total)


@quota_command.command("show")
@click.argument("project")
@json_option
@repo_option
@pass_settings
def show_command(settings: Settings, /, project: str, as_json: bool) -> None:
    """Show limits and what is used of them."""
    owner, total = _whose(project)
    with opened(settings) as repo:
        quota = repo.catalog.quotas.get(owner, total=total)
        usage = repo.catalog.usage
        quota = quota or Quota(owner, total, Limits(), usage.of_all() if total else usage.of_owner(owner))
    if as_json:
        print_json(_document(quota))
    else:
        print_record([(key.replace("_", " "), _text(value)) for key, value in _document(quota).items()])


@quota_command.command("list")
@json_option
@repo_option
@pass_settings
def list_command(settings: Settings, /, as_json: bool) -> None:
    """List all limits and what is used of them."""
    with opened(settings) as repo:
        found = [_document(quota) for quota in repo.catalog.quotas.list()]
    if as_json:
        print_json(found)
        return
    columns = ("project", "logical_used", "logical_limit", "unique_used", "unique_limit")
    header = tuple(column.replace("_", " ") for column in columns)
    print_table(header, [[_text(one[column]) for column in columns] for one in found], right=header[1:])


@quota_command.command("delete")
@click.argument("project")
@repo_option
@pass_settings
def delete_command(settings: Settings, /, project: str) -> None:
    """Lift all limits."""
    owner, total = _whose(project)
    with opened(settings) as repo:
        if not repo.catalog.quotas.delete(owner, total=total):
            raise NotFound(f"There is no quota for {project!r}.")
    say(f"The quota of {project} is lifted.")


def _whose(project: str) -> tuple[str | None, bool]:
    return None if project in (NOBODY, TOTAL) else project, project == TOTAL


def _limit(given: int | str | None, old: int | None) -> int | None:
    if given is None:
        return old
    return None if isinstance(given, str) else given


def _document(quota: Quota) -> dict[str, Any]:
    return {
        "project": TOTAL if quota.total else quota.owner or NOBODY,
        "logical_used": quota.used.logical,
        "logical_limit": quota.limits.logical,
        "unique_used": quota.used.unique,
        "unique_limit": quota.limits.unique,
    }


def _text(value: int | str | None) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else size_text(value)
