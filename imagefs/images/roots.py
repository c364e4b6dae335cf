"""Whether maps still lead to the bytes that were sealed: roots made anew from the digests in packs' footers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from imagefs.blocks import maprows
from imagefs.blocks.digest import WIDTH
from imagefs.blocks.packs import read_footer
from imagefs.blocks.root import Root
from imagefs.catalog import Query
from imagefs.errors import Damaged, NotFound
from imagefs.images.repository import Repository
from imagefs.types import BLOCK

LISTS = 256
"""Digest lists kept at hand: 40 KB each."""
PLAIN = "plain"


class Lists:
    """Digest lists of packs, from their footers; the least used are forgotten."""

    def __init__(self, repo: Repository) -> None:
        self._repo = repo
        self._lists: OrderedDict[int, bytes] = OrderedDict()

    def get(self, no: int) -> bytes:
        """Digests of all blocks of a pack, 20 B each. NotFound, Damaged."""
        if no not in self._lists:
            self._lists[no] = read_footer(self._repo.store, self._repo.catalog.packs.get(no).name16).digests
            if len(self._lists) > LISTS:
                self._lists.popitem(last=False)
        self._lists.move_to_end(no)
        return self._lists[no]


def root_of(repo: Repository, map_id: int, size: int, lists: Lists) -> str:
    """The root of a file of `size` bytes with this map. NotFound, Damaged (a footer)."""
    root, at = Root(repo.digests.zero), 0
    for block, pack, first, count in maprows.runs(repo.catalog.maps.rows(map_id)):
        root.hole(block - at)
        digests = lists.get(pack)[first * WIDTH : (first + count) * WIDTH]
        if len(digests) != count * WIDTH:
            raise Damaged(f"Pack {pack} ends before block {first + count}.")
        root.update(digests, count)
        at = block + count
    root.hole(-(-size // BLOCK) - at)
    return root.hexdigest()


def wrong_roots(repo: Repository, stopped: Callable[[], bool]) -> list[str]:
    """Images whose map does not give the root that was recorded when they were sealed, as sentences.

    Reads footers only: that the blocks are what their digests say is for the scrub of the packs.
    """
    found: list[str] = []
    lists = Lists(repo)
    for map_id, info in repo.catalog.maps.scan():
        for image in repo.catalog.images.query(Query(map_id=map_id, limit=1)):
            if stopped():
                return found
            if image.layout != PLAIN or image.root is None:
                continue
            try:
                if root_of(repo, map_id, info.size, lists) != image.root:
                    found.append(f"Image {image.id} ({image.name}): its map leads to other bytes than were sealed.")
            except (NotFound, Damaged):
                continue  # its packs are damaged, or it has ended: that is said elsewhere
    return found
