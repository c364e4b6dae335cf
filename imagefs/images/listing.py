"""Walks over many images in pages, so that no transaction and no list grows with the catalog."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from imagefs.catalog import Catalog, Query
from imagefs.errors import NotFound
from imagefs.types import Image, Status

PAGE = 1000


def pages(catalog: Catalog, query: Query) -> Iterator[Image]:
    """All images that fit the query, oldest first; `marker`, `sort` and `limit` are set here.

    An image that is deleted while it is the last of a page ends the walk early: callers come again.
    """
    query = replace(query, sort="created_at", descending=False, limit=PAGE)
    while True:
        try:
            found = catalog.images.query(query)
        except NotFound:
            return
        yield from found
        if len(found) < PAGE:
            return
        query = replace(query, marker=found[-1].id)


def with_status(catalog: Catalog, status: Status) -> Iterator[Image]:
    """All images in this state."""
    return pages(catalog, Query(status=status))


def with_root(catalog: Catalog, image: Image) -> Iterator[Image]:
    """Other images that have the same bytes: equal root and size."""
    if image.root is None:
        return
    for other in pages(catalog, Query(size_min=image.size, size_max=image.size)):
        if other.root == image.root and other.id != image.id:
            yield other
