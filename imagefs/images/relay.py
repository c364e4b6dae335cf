"""Read amplification: how much is decoded to read an image once, and which of its frames make it so.

Pure functions of a map's rows. Generations of an image scatter its blocks over frames that are mostly somebody
else's: a frame is decoded as a whole, also for one block of 16.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from imagefs.blocks import maprows
from imagefs.blocks.maprows import Row
from imagefs.types import FRAME_BLOCKS

Frame = tuple[int, int]
"""(pack number, frame in it)."""
Place = tuple[int, int]
"""(pack number, block in it)."""
BlocksOf = Callable[[int], int]
"""How many blocks a pack has."""

REMEMBERED = 256
"""Decoded frames that a reader has at hand: 16 MiB, a quarter of what a mount keeps by default."""


@dataclass(slots=True)
class Decoded:
    """One frame's part in reading an image once."""

    blocks: int = 0
    """Blocks of it that the image has."""
    times: int = 0
    """How often it is decoded."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Blocks, for one reading from the beginning to the end."""

    read: int
    decoded: int

    @property
    def amplification(self) -> float:
        """Blocks decoded for each block read; 1.0 for an image of zeros."""
        return self.decoded / self.read if self.read else 1.0


def reading(rows: Iterable[Row], blocks_of: BlocksOf) -> Reading:
    """What reading the map of these rows once comes to."""
    read = decoded = 0
    for frame, blocks, missed in _touched(rows):
        read += blocks
        decoded += missed and _size(frame, blocks_of)
    return Reading(read, decoded)


def most(rows: Iterable[Row]) -> float:
    """An amplification that reading the map cannot exceed, in a tenth of the time: as if nothing was remembered."""
    read = frames = 0
    for _, _, first, count in maprows.runs(rows):
        read += count
        frames += (first + count - 1) // FRAME_BLOCKS - first // FRAME_BLOCKS + 1
    return frames * FRAME_BLOCKS / read if read else 1.0


def scattered(rows: Iterable[Row], blocks_of: BlocksOf, target: float) -> set[Frame]:
    """The fewest frames that must be given up so that the amplification falls to `target`, when the image's
    blocks in them are stored anew side by side.

    Frames of which the image has the least go first: each block stored anew saves the most there.
    """
    frames: dict[Frame, Decoded] = {}
    for frame, blocks, missed in _touched(rows):
        one = frames.setdefault(frame, Decoded())
        one.blocks += blocks
        one.times += missed
    read = sum(one.blocks for one in frames.values())
    decoded = sum(one.times * _size(frame, blocks_of) for frame, one in frames.items())
    found: set[Frame] = set()
    for frame, one in sorted(frames.items(), key=lambda item: item[1].blocks / item[1].times):
        if decoded <= target * read:
            break
        saved = one.times * _size(frame, blocks_of) - one.blocks
        if saved > 0:
            decoded -= saved
            found.add(frame)
    return found


def places(rows: Iterable[Row], frames: set[Frame]) -> Iterator[Place]:
    """The image's blocks in these frames, in the order of the image, each once."""
    seen: set[Place] = set()
    for _, pack, first, count in maprows.runs(rows):
        for block in range(first, first + count):
            place = pack, block
            if (pack, block // FRAME_BLOCKS) in frames and place not in seen:
                seen.add(place)
                yield place


def _touched(rows: Iterable[Row]) -> Iterator[tuple[Frame, int, bool]]:
    """In the order of the image: (frame, blocks read of it, whether it must be decoded for that)."""
    recent: OrderedDict[Frame, None] = OrderedDict()
    for _, pack, first, count in maprows.runs(rows):
        at, end = first, first + count
        while at < end:
            number = at // FRAME_BLOCKS
            stop = min(end, (number + 1) * FRAME_BLOCKS)
            frame = pack, number
            missed = frame not in recent
            recent[frame] = None
            recent.move_to_end(frame)
            if len(recent) > REMEMBERED:
                recent.popitem(last=False)
            yield frame, stop - at, missed
            at = stop


def _size(frame: Frame, blocks_of: BlocksOf) -> int:
    """Blocks of a frame: 16, but for a pack's last one."""
    return min(FRAME_BLOCKS, blocks_of(frame[0]) - frame[1] * FRAME_BLOCKS)
