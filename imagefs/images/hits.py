"""Who suffers from damaged packs: which blocks maps have in them, and which bytes of which images those are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from imagefs.blocks import maprows
from imagefs.catalog import Damage, Query
from imagefs.images.repository import Repository
from imagefs.types import BLOCK, FRAME_BLOCKS, Image


@dataclass(slots=True)
class Use:
    """What is in use of one pack."""

    blocks: set[int] = field(default_factory=set)
    maps: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Hit:
    """Bytes of an image that cannot be read."""

    image: Image
    ranges: tuple[tuple[int, int], ...]
    """(offset, length) in its data, in order, in whole blocks. All of it for an image that is not laid out as it
    is read."""


IsLost = Callable[[int, int], bool]
"""Of a pack number and a block in it."""


def uses(repo: Repository, nos: Iterable[int]) -> dict[int, Use]:
    """Which blocks of these packs are in use, and by which maps; one look at every map."""
    found = {no: Use() for no in nos}
    for map_id, _ in repo.catalog.maps.scan():
        for _, pack, first, count in maprows.runs(repo.catalog.maps.rows(map_id)):
            if (use := found.get(pack)) is not None:
                use.blocks.update(range(first, first + count))
                use.maps.add(map_id)
    return found


def lost_by(damages: Iterable[Damage]) -> IsLost:
    """Whether a block lies in what is damaged."""
    known: Mapping[int, Damage] = {damage.no: damage for damage in damages}

    def lost(pack: int, block: int) -> bool:
        damage = known.get(pack)
        return damage is not None and (damage.missing or block // FRAME_BLOCKS in damage.frames)

    return lost


def hits(repo: Repository, damages: Iterable[Damage]) -> list[Hit]:
    """Every image that has bytes in what is damaged, and which; one look at every map."""
    damages = list(damages)
    lost, packs = lost_by(damages), {damage.no for damage in damages}
    found: list[Hit] = []
    for map_id, info in repo.catalog.maps.scan() if packs else ():
        ranges: list[tuple[int, int]] = []
        for block, pack, first, count in maprows.runs(repo.catalog.maps.rows(map_id)):
            for at in range(count) if pack in packs else ():
                if lost(pack, first + at):
                    _add(ranges, (block + at) * BLOCK)
        if ranges:
            whole = ((0, info.size),) if info.kind else tuple(ranges)
            found += [Hit(image, whole) for image in repo.catalog.images.query(Query(map_id=map_id))]
    return found


def describe(found: Iterable[Hit], most: int = 8) -> list[str]:
    """Images and the bytes of them that are lost, as sentences."""
    lines = []
    for hit in found:
        ranges: Sequence[tuple[int, int]] = hit.ranges[:most]
        text = ", ".join(f"{offset}-{offset + length - 1}" for offset, length in ranges)
        more = f" and {len(hit.ranges) - most} more ranges" if len(hit.ranges) > most else ""
        lines.append(f"Image {hit.image.id} ({hit.image.name}): bytes {text}{more} cannot be read.")
    return lines


def _add(ranges: list[tuple[int, int]], offset: int) -> None:
    if ranges and sum(ranges[-1]) == offset:
        ranges[-1] = (ranges[-1][0], ranges[-1][1] + BLOCK)
    else:
        ranges.append((offset, BLOCK))
