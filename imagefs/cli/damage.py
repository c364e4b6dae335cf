"""What scrubs found, as `status` and `show` say it."""

from __future__ import annotations

from typing import Any

from imagefs.cli.output import time_text
from imagefs.images.hits import hits
from imagefs.images.repository import Repository
from imagefs.types import Image


def damage_figures(repo: Repository) -> dict[str, Any]:
    """Damaged objects, and when everything was last verified (ns, 0 for never)."""
    state = repo.catalog.scrubs.state()
    names = repo.catalog.packs.get
    return {
        "damaged": [
            {"object": names(damage.no).object_name, "what": str(damage)} for damage in repo.catalog.scrubs.damaged()
        ],
        "scrubbed": state.ended_ns,
        "scrub_under_way": state.next_no > 0,
    }


def damage_rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """The same for people."""
    under_way = " (one was begun)" if figures["scrub_under_way"] else ""
    rows = [("last scrub", f"{time_text(figures['scrubbed']) if figures['scrubbed'] else 'never'}{under_way}")]
    return [*rows, *(("DAMAGED", f"{one['object']}: {one['what']}") for one in figures["damaged"])]


def image_damage(repo: Repository, image: Image) -> list[tuple[int, int]]:
    """(offset, length) of the bytes of an image that are known to be damaged."""
    if not image.map_id:
        return []
    named = repo.catalog.maps.packs_of(image.map_id)
    damages = [damage for damage in repo.catalog.scrubs.damaged() if damage.no in named]
    return [one for hit in (hits(repo, damages) if damages else []) if hit.image.id == image.id for one in hit.ranges]
