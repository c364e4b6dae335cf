"""Where the bytes are: the figures of `status` and `show`, and what `show --space` prints."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from imagefs.cli.output import print_json, size_text, time_text
from imagefs.cli.tables import print_record
from imagefs.errors import InvalidValue, TimedOut
from imagefs.images.repository import Repository
from imagefs.images.usage import Space, last_survey, reclaimable, space_of, stored_bytes
from imagefs.types import Image

PATIENCE_S = 1.0
"""`show` leaves out what takes longer to find; `show --space` does not."""


def space_figures(repo: Repository) -> dict[str, Any]:
    """The bytes of a repository; None for what no survey has found yet. Costs the same for any number of images,
    up to half a second."""
    totals, sealed, last = repo.catalog.packs.totals(), repo.catalog.usage.of_all(), last_survey(repo.catalog)
    return {
        "logical_bytes": sealed.logical,
        "allocated_bytes": sealed.allocated,
        "stored_bytes": totals.stored_bytes,
        "unique_bytes": last.unique if last else None,
        "shared_bytes": last.shared if last else None,
        "reclaimable_bytes": reclaimable(totals, last),
        "surveyed_at": last.time_ns if last else None,
        "survey_is_current": last is not None and last.generation == repo.catalog.generation(),
        "trash_bytes": totals.trash_bytes + totals.doomed_bytes,
    }


def space_rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """The same for people, beside what `status` prints anyway."""
    since = "" if figures["survey_is_current"] else f" (as of {time_text(figures['surveyed_at'] or 0)})"
    return [
        ("in one image alone", size_text(figures["unique_bytes"]) + since),
        ("shared by images", size_text(figures["shared_bytes"]) + since),
        ("reclaimable", size_text(figures["reclaimable_bytes"])),
    ]


def image_figures(repo: Repository, image: Image) -> dict[str, Any]:
    """The bytes of one image; None where it has no sealed data, or the figure takes too long."""
    names = ("stored_bytes", "unique_bytes", "shared_bytes", "reclaimable_bytes")
    if not image.sealed:
        return dict.fromkeys(names)
    try:
        space = space_of(repo.catalog, image, within_s=PATIENCE_S)
    except TimedOut:
        return dict.fromkeys(names) | {"stored_bytes": stored_bytes(repo.catalog, image.map_id)}
    return dict(zip(names, (space.stored, space.unique, space.shared, space.reclaimable), strict=True))


def image_rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """The same for people."""
    return [(name.replace("_bytes", "").replace("_", " "), size_text(size)) for name, size in figures.items()]


def show_space(repo: Repository, image: Image, *, as_json: bool) -> None:
    """Prints where the bytes of an image are. InvalidValue when it has no sealed data."""
    if not image.sealed:
        raise InvalidValue(f"Image {image.id} is {image.status}: it has no sealed data.")
    space = space_of(repo.catalog, image)
    if as_json:
        others = [{"id": str(other.id), "name": other.name, "bytes": other.bytes} for other in space.shared_with]
        print_json(asdict(space) | {"shared_with": others})
    else:
        print_record(_causes(space))


def _causes(space: Space) -> list[tuple[str, str]]:
    """Why an image is as big as it is, from its size down to what it takes on the store."""
    rows = [("size", space.logical)]
    rows += [("+ decoded from compressed clusters", space.recoded)] if space.recoded >= 4096 else []
    rows += [
        ("- zeros and holes", space.zeros),
        ("- blocks that it repeats", space.repeated),
        ("- saved by compression", space.saved),
        ("+ headers, digests, manifest", space.overhead),
        ("= stored", space.stored),
        ("  in it alone", space.unique),
        ("  shared with others", space.shared),
        ("deleting it frees", space.reclaimable),
        ("  with the objects that only it uses", space.at_once),
    ]
    text = [(label, f"{size} ({size_text(size)})") for label, size in rows]
    text += [(f"shared with {other.name or other.id}", size_text(other.bytes)) for other in space.shared_with]
    return [*text, ("clones", str(space.clones))]
