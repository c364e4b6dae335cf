"""A catalog, and images sealed in it without a store: what tests of the catalog begin with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

from imagefs.blocks.maps import MapBuilder
from imagefs.catalog import Catalog, PackDone, SealCommit, rules
from imagefs.types import BLOCK, Cookie, Draft, Image, Status

BLOCKS = 16
"""In each pack that `stored` makes."""
Run = tuple[int, int, int]
"""(pack, first, count)."""


@contextmanager
def opened(path: Path, *, sound: bool = True) -> Iterator[Catalog]:
    """The catalog in `path`, made when it is not there; at the end no rule is broken, if `sound`."""
    catalog = Catalog.open(path) if path.exists() else Catalog.create(path, uuid4())
    try:
        yield catalog
        if sound:
            assert_sound(catalog)
    finally:
        catalog.close()


def assert_sound(catalog: Catalog) -> None:
    findings = [finding for rule in rules.RULES for finding in rule(catalog)]
    assert not findings, "\n".join(map(str, findings))


def session(catalog: Catalog) -> UUID:
    """A session that has acknowledged everything up to now."""
    new = uuid4()
    catalog.sessions.start(new, "cli", "host", "boot")
    return new


def draft(catalog: Catalog, name: str | None = None) -> Image:
    """A new image that is saving."""
    return catalog.images.add(Image(id=uuid4(), name=name, status=Status.SAVING, draft=Draft(gen=1), draft_gen=1))


def done(no: int) -> PackDone:
    return PackDone(no, bytes(24), BLOCKS, stored=1000, footer_off=900, footer_digest=bytes(32))


def rows_of(runs: Iterable[Run]) -> list[tuple[int, bytes]]:
    builder = MapBuilder()
    for pack, first, count in runs:
        if pack:
            builder.append(pack, first, count)
        else:
            builder.zeros(count)
    return builder.rows()


def cookie_of(image: Image, mtime_ns: int = 1) -> Cookie:
    assert image.draft is not None
    return Cookie(1, 2, BLOCK * BLOCKS, mtime_ns, 1, image.draft.gen)


def commit_of(catalog: Catalog, image: Image, sealer: UUID, hits: Iterable[Run] = (), packs: int = 1) -> SealCommit:
    """Claims the image and prepares T3 of a map with so many packs of its own, then `hits`."""
    catalog.seals.claim(image.id, sealer, 0)
    seal = catalog.seals.complete(image.id, cookie_of(image))
    own = [no for no, _ in catalog.packs.reserve(image.id, count=packs + 1)][:packs]
    runs = [*((no, 0, BLOCKS) for no in own), *hits]
    assert image.draft is not None
    return SealCommit(
        image_id=image.id,
        session=sealer,
        gen=image.draft.gen,
        writes=image.draft.writes,
        map_id=seal.map_id,
        map_uuid=seal.map_uuid,
        size=sum(count for _, _, count in runs) * BLOCK,
        allocated=sum(count for pack, _, count in runs if pack) * BLOCK,
        rows=rows_of(runs),
        packs=[*map(done, own), PackDone(seal.manifest_no, stored=500)],
        fields={"root": uuid4().hex},
    )


def sealed(catalog: Catalog, sealer: UUID, name: str | None = None, hits: Iterable[Run] = (), packs: int = 1) -> Image:
    """A new active image with so many packs of its own, then `hits`."""
    return catalog.seals.commit(commit_of(catalog, draft(catalog, name), sealer, hits, packs))


def own_packs(catalog: Catalog, image: Image) -> list[int]:
    return sorted(catalog.maps.packs_of(image.map_id))


def acknowledge(catalog: Catalog) -> None:
    """Every session has seen everything."""
    for row in catalog.sessions.list():
        catalog.sessions.ack(row.id, catalog.generation())


def writes(image: Image, more: int = 1) -> Image:
    """The record after its draft was opened for writing again."""
    assert image.draft is not None
    return replace(image, draft=replace(image.draft, writes=image.draft.writes + more))
