"""Where the bytes are: of one image, looked up when somebody asks, and of all, from a survey of every map.

Blocks of an image take their share of the packs that they lie in: the pack's bytes in the proportion of its blocks.
A block is *shared* when another image has it too, else *unique*. Which blocks others have stands nowhere: per-block
counts would make every sealing and deletion slower. It is found by reading other images' maps, about 1 us for each
run of blocks, and only where a pack that the image uses is named by several maps.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from uuid import UUID

from imagefs.blocks import maprows
from imagefs.blocks.maprows import Row
from imagefs.catalog import Catalog, PackKind, PackRow, PackState, Survey, Totals
from imagefs.errors import NoSpace, NotFound, TimedOut
from imagefs.types import BLOCK, Image

FRAME_ROW = 24
"""Bytes of a frame's row in the catalog; the stored length is in bytes 4 to 6."""
QUICK_S = 0.5
"""Longest time for which `status` looks at maps instead of showing what the last survey found."""
NAMED = 5
"""Images that are named as sharing with one, the most first."""

Masks = dict[int, int]
"""Pack number -> its blocks, as the bits of a number: block 0 is bit 0."""


@dataclass(frozen=True, slots=True)
class SharedWith:
    """Another image that has blocks of this one."""

    id: UUID
    name: str | None
    bytes: int
    """On the store, of the blocks that both have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Why an image is as big as it is; bytes. logical + recoded = zeros + repeated + saved + stored - overhead."""

    logical: int
    recoded: int
    """Of a layout other than plain: what its blocks are longer than the file, as what it had compressed is stored
    as plain blocks. Otherwise the padding of the last block."""
    zeros: int
    """Blocks of zeros: not stored."""
    repeated: int
    """Blocks that the image has more than once: stored once."""
    saved: int
    """What compression takes off the rest."""
    stored: int
    """What its blocks take on the store, and its manifest."""
    unique: int
    """Of `stored`: the blocks that no other image has, and the manifest unless a clone has it too."""
    shared: int
    """Of `stored`: the rest."""
    overhead: int
    """Of `stored`: the manifest, and the share of its blocks in headers and digest lists of packs."""
    reclaimable: int
    """What deleting the image makes free, once deleted images are kept no longer: `unique`."""
    at_once: int
    """Of `reclaimable`: objects that nothing else is in. The rest is freed when gc rewrites packs."""
    clones: int
    """Other images with the same map."""
    shared_with: list[SharedWith] = field(default_factory=list)


def masks_of(rows: Iterator[Row]) -> Masks:
    """The blocks that a map names, each once."""
    found: Masks = {}
    for _, pack, first, count in maprows.runs(rows):
        found[pack] = found.get(pack, 0) | ((1 << count) - 1) << first
    return found


def share(pack: PackRow, mask: int) -> int:
    """Bytes on the store of these blocks of a pack."""
    return pack.stored * mask.bit_count() // pack.blocks if pack.blocks else 0


def stored_bytes(catalog: Catalog, map_id: int) -> int:
    """Bytes on the store that the blocks of a map take, shared ones included, and its manifest. Reads this map
    alone."""
    masks = masks_of(catalog.maps.rows(map_id))
    packs = _packs(catalog, masks)
    return sum(share(pack, masks[no]) for no, pack in packs.items()) + _manifest(catalog, map_id)


def _packs(catalog: Catalog, masks: Masks) -> dict[int, PackRow]:
    """The rows of these packs, without those whose blocks a rewrite has moved since the map was read."""
    found = ((no, catalog.packs.find(no)) for no in masks)
    return {no: pack for no, pack in found if pack is not None}


def _manifest(catalog: Catalog, map_id: int) -> int:
    """Bytes of a map's manifest."""
    pack = catalog.packs.by_name(catalog.maps.info(map_id).uuid.bytes)
    return pack.stored if pack is not None else 0


def space_of(catalog: Catalog, image: Image, *, within_s: float | None = None) -> Space:
    """A sealed image's bytes by cause. TimedOut if that takes longer than `within_s`: every map may have to be
    read, about 0.2 ms each."""
    deadline = None if within_s is None else time.monotonic() + within_s
    mine = masks_of(catalog.maps.rows(image.map_id))
    packs = _packs(catalog, mine)
    mine = {no: mine[no] for no in packs}
    own = _manifest(catalog, image.map_id)
    twins = [twin for twin in catalog.images.with_map(image.map_id) if twin != image.id]
    others, found = _others(catalog, image.map_id, mine, packs, deadline)
    clones = len(twins)
    unique = sum(share(packs[no], 0 if clones else mask & ~others.get(no, 0)) for no, mask in mine.items())
    blocks = sum(share(packs[no], mask) for no, mask in mine.items())
    overhead = sum(_overhead(catalog, packs[no], mask) for no, mask in mine.items())
    unique += 0 if clones else own
    mapped = sum(count for _, _, _, count in maprows.runs(catalog.maps.rows(image.map_id))) * BLOCK
    distinct = sum(mask.bit_count() for mask in mine.values()) * BLOCK
    logical = image.size or 0
    return Space(
        logical=logical,
        recoded=max(mapped - logical, 0),
        zeros=max(logical - mapped, 0),
        repeated=mapped - distinct,
        saved=distinct - blocks + overhead,
        stored=blocks + own,
        unique=unique,
        shared=blocks + own - unique,
        overhead=overhead + own,
        reclaimable=unique,
        at_once=0 if clones else own + sum(pack.stored for pack in packs.values() if pack.refs == 1),
        clones=clones,
        shared_with=_named(catalog, [*((blocks, twin) for twin in twins), *found]),
    )


def _others(
    catalog: Catalog, map_id: int, mine: Masks, packs: dict[int, PackRow], deadline: float | None
) -> tuple[Masks, list[tuple[int, UUID]]]:
    """(blocks of `mine` that other images' maps have; bytes on the store by other map, with an image of it)."""
    wanted = {no: packs[no].refs - 1 for no in mine if packs[no].refs > 1}
    common: Masks = {}
    found: list[tuple[int, UUID]] = []
    for other, _ in catalog.maps.scan() if wanted else ():
        if deadline is not None and time.monotonic() > deadline:
            raise TimedOut("Too many images share blocks to find out in time with which.")
        if other == map_id:
            continue
        rows = [row for row in catalog.maps.rows(other) if not wanted.keys().isdisjoint(maprows.packs_column(row[1]))]
        both = {no: mask & mine[no] for no, mask in masks_of(iter(rows)).items() if no in wanted}
        images = catalog.images.with_map(other) if both else []
        if images:
            found.append((sum(share(packs[no], mask) for no, mask in both.items()), images[0]))
        for no, mask in both.items():
            common[no] = common.get(no, 0) | (mask if images else 0)
            wanted[no] -= 1
            if not wanted[no]:
                del wanted[no]
        if not wanted:
            break
    return common, found


def _named(catalog: Catalog, found: list[tuple[int, UUID]]) -> list[SharedWith]:
    """Those with the most bytes."""
    most = sorted((one for one in found if one[0]), key=lambda one: one[0], reverse=True)[:NAMED]
    named = []
    for size, image_id in most:
        with contextlib.suppress(NotFound):  # deleted meanwhile
            named.append(SharedWith(image_id, catalog.images.get(image_id).name, size))
    return named


def _overhead(catalog: Catalog, pack: PackRow, mask: int) -> int:
    """The share of these blocks in what a pack has beside its frames."""
    try:
        rows = catalog.packs.frames(pack.no)
    except NotFound:  # its blocks were moved meanwhile
        return 0
    frames = sum(int.from_bytes(rows[at + 4 : at + 7], "little") for at in range(0, len(rows), FRAME_ROW))
    return (pack.stored - frames) * mask.bit_count() // pack.blocks if pack.blocks else 0


# -- all of them ---------------------------------------------------------------------------------------


def survey(catalog: Catalog, *, within_s: float | None = None) -> Survey:
    """Reads every map and keeps what it found in the catalog, unless the disk is full: about 1 us for each run of
    blocks, and up to 600 bytes of memory for each pack. TimedOut."""
    begun = time.monotonic()
    generation = catalog.generation()
    once: Masks = {}
    more: Masks = {}
    for map_id, _ in catalog.maps.scan():
        if within_s is not None and time.monotonic() - begun > within_s:
            raise TimedOut("There are too many maps to read them in time.")
        if images := len(catalog.images.with_map(map_id)):
            _merge(masks_of(catalog.maps.rows(map_id)), images, once, more)
    unique = shared = unused = 0
    for pack in catalog.packs.scan():
        if pack.kind == PackKind.PACK and pack.state == PackState.LIVE:
            one, several = once.get(pack.no, 0), more.get(pack.no, 0)
            unique += share(pack, one & ~several)
            shared += share(pack, several)
            unused += pack.stored - share(pack, one)
    took_ms = int((time.monotonic() - begun) * 1000)
    found = Survey(generation, time.time_ns(), unique, shared, unused, took_ms)
    with contextlib.suppress(NoSpace):
        catalog.usage.put_survey(found)
    return found


def _merge(masks: Masks, images: int, once: Masks, more: Masks) -> None:
    for no, mask in masks.items():
        known = once.get(no, 0)
        again = mask if images > 1 else mask & known
        if again:
            more[no] = more.get(no, 0) | again
        once[no] = known | mask


def survey_when_due(catalog: Catalog) -> None:
    """In the background: a new survey when something has changed, for at most 1 % of the time."""
    last = catalog.usage.survey()
    if last is None or (
        last.generation != catalog.generation() and time.time_ns() - last.time_ns > last.took_ms * 100 * 1_000_000
    ):
        survey(catalog)


def last_survey(catalog: Catalog) -> Survey | None:
    """A survey of this moment if that takes no longer than QUICK_S, else the last one."""
    last = catalog.usage.survey()
    if last is not None and (last.generation == catalog.generation() or last.took_ms > QUICK_S * 1000):
        return last
    try:
        return survey(catalog, within_s=QUICK_S)
    except TimedOut:
        return last


def reclaimable(totals: Totals, last: Survey | None) -> int:
    """Bytes on the store that no image needs: of objects in the trash or being deleted, and, as of the last
    survey, of blocks in other packs that no image has."""
    return totals.trash_bytes + totals.doomed_bytes + (last.unused if last else 0)
