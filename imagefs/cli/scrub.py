"""`scrub`."""

from __future__ import annotations

import click

from imagefs.cli.opening import opened
from imagefs.cli.output import json_option, print_json, say, size_text
from imagefs.cli.progress import progress
from imagefs.cli.settings import Settings, pass_settings, repo_option
from imagefs.cli.tables import print_table
from imagefs.errors import Damaged
from imagefs.images.heal import Healed, Healer
from imagefs.images.hits import Hit, describe, hits
from imagefs.images.repository import Repository
from imagefs.images.scrub import Scrub, Scrubbed


@click.command("scrub")
@click.option("--deep", is_flag=True, help="Decode every block; compare block digests and the images' roots.")
@click.option("--heal", is_flag=True, help="Put right what has another copy somewhere.")
@click.option("--restart", is_flag=True, help="Begin anew instead of going on where the last scrub was interrupted.")
@click.option(
    "--rate", type=click.IntRange(min=0), default=200, show_default=True, metavar="MIB",
    help="Read at most this much a second; 0 for as fast as it goes.",
)  # fmt: skip
@json_option
@repo_option
@pass_settings
def scrub_command(settings: Settings, /, deep: bool, heal: bool, restart: bool, rate: int, as_json: bool) -> None:
    """Read everything that is stored and verify it.

    May run while the repository is in use. Interrupt it at any time: the next scrub goes on from there. What
    is damaged is remembered and named by `status`, `show` and `fsck`.
    """
    with opened(settings) as repo:
        done = _scrub(repo, deep=deep, restart=restart, rate=rate << 20)
        healed = _heal(repo) if heal and (repo.catalog.scrubs.damaged() or done.other) else Healed()
        left = repo.catalog.scrubs.damaged()
        found = hits(repo, left)
        names = {damage.no: repo.catalog.packs.get(damage.no).object_name for damage in left}
    # Healing makes log objects and the superblock anew; a wrong root stays.
    other = [] if heal else done.other
    if as_json:
        print_json(
            {
                "objects": done.objects,
                "bytes": done.bytes,
                "healed": healed.objects,
                "healed_blocks": healed.blocks,
                "damaged": [{"object": names[damage.no], "what": str(damage)} for damage in left],
                "other": other,
                "plain_files_removed": done.plain,
                "lost": [_as_json(hit) for hit in found],
            }
        )
    else:
        say(f"Verified {done.objects} objects, {size_text(done.bytes)}.")
        if healed.objects:
            say(f"Healed {len(healed.objects)} objects; {healed.blocks} blocks were stored anew.")
        if left:
            print_table(("object", "what"), [(names[damage.no], str(damage) or "is damaged") for damage in left])
        for line in (*done.plain, *other, *describe(found)):
            click.echo(line)
    if left or other:
        raise Damaged(f"{len(left) + len(other)} stored objects are damaged; see docs/operations.md.")


def _scrub(repo: Repository, *, deep: bool, restart: bool, rate: float) -> Scrubbed:
    first = 0 if restart else repo.catalog.scrubs.state().next_no
    total = sum(row.stored for row in repo.catalog.packs.scan() if row.no >= first)
    if first > 1:
        say("Going on with the scrub that was interrupted; --restart begins anew.")
    with progress("verifying", total) as advance:
        return Scrub(repo, deep=deep, rate=rate, progress=advance).run(restart=restart)


def _heal(repo: Repository) -> Healed:
    with progress("storing anew", None) as advance:

        def take(nbytes: int) -> bool:
            advance(nbytes)
            return True

        return Healer(repo, take).run()


def _as_json(hit: Hit) -> dict[str, object]:
    return {"id": str(hit.image.id), "name": hit.image.name, "ranges": [list(one) for one in hit.ranges]}
