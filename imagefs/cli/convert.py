"""`convert`."""

from __future__ import annotations

import time

import click

from imagefs.cli.opening import complete_image, opened, resolve
from imagefs.cli.output import json_option, print_json, say, size_text
from imagefs.cli.progress import progress
from imagefs.cli.settings import Settings, pass_settings, repo_option
from imagefs.errors import Busy
from imagefs.images.convert import RATIO, Converted, Converter
from imagefs.images.repository import Repository
from imagefs.types import Image

POLL_S = 0.5


@click.command("convert")
@click.argument("image", shell_complete=complete_image)
@click.option("--dry-run", is_flag=True, help="Say what it would cost and free; change nothing.")
@click.option(
    "--ratio", type=click.FloatRange(min=0), default=RATIO, show_default=True,
    help="Convert if the new form costs at most so much of what the old one frees.",
)  # fmt: skip
@json_option
@repo_option
@pass_settings
def convert_command(settings: Settings, /, image: str, dry_run: bool, ratio: float, as_json: bool) -> None:
    """Look inside a compressed image now: store its clusters plain, shared with other images.

    Its bytes stay those that were uploaded: the compressed form is made again when it is read, which takes
    longer. For qcow2 images compressed with zlib and streamOptimized vmdk images; mounts do it by
    themselves for those that are worth it.
    """
    with opened(settings) as repo:
        found = resolve(repo, image)
        if dry_run:
            estimate = Converter(repo).estimate(found)
            if as_json:
                print_json({"costs": estimate.costs, "frees": estimate.frees, "blocks": estimate.blocks,
                            "known": estimate.known})  # fmt: skip
            else:
                say(f"{found.name or found.id}: {estimate}.")
            return
        done = _convert(repo, found, ratio)
    if as_json:
        ids = [str(one.id) for one in done.images]
        print_json({"images": ids, "stored_bytes": done.stored, "freed_bytes": done.freed})
    else:
        say(
            f"Converted {', '.join(one.name or str(one.id) for one in done.images)}: {size_text(done.stored)} in the "
            f"place of {size_text(done.freed)}, which go when nobody reads them any more."
        )


def _convert(repo: Repository, image: Image, ratio: float) -> Converted:
    """Waits for a conversion of another process, which may take minutes."""
    waited = False
    with progress("converting", 2 * (image.size or 0)) as advance:

        def tell(nbytes: int) -> bool:
            advance(nbytes)
            return True

        while True:
            try:
                return Converter(repo).convert(image.id, ratio=ratio, progress=tell)
            except Busy:
                if not waited:
                    say("Another conversion is under way; waiting for its end.")
                waited = True
                time.sleep(POLL_S)
