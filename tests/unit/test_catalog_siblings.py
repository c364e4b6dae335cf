"""Temporary files beside `data` (S6), and reply slots."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from imagefs.catalog import Catalog, Op, PackState
from imagefs.errors import Exists, NotFound, Sealed, Stale, TooMany
from imagefs.types import Draft, Image, Kind, Status
from tests.catalogs import draft, opened, own_packs, sealed, session


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with opened(tmp_path / "catalog") as opened_catalog:
        yield opened_catalog


def blank(image: Image) -> Image:
    return Image(id=image.id, uid=7, gid=8, mode=0o640)


def test_a_sibling_is_a_file_of_its_own(catalog: Catalog) -> None:
    image = catalog.images.add(Image(id=uuid4(), name="a"))
    one = catalog.siblings.add(image.id, b".data.Xy", blank(image))
    two = catalog.siblings.add(image.id, b"other", blank(image))
    assert (one.gen, two.gen, catalog.images.get(image.id).draft_gen) == (1, 2, 2)
    assert one.ino != two.ino and (one.record.mode, one.record.uid, one.record.mtime > 0) == (0o640, 7, True)
    assert catalog.siblings.get(image.id, b".data.Xy") == one == catalog.siblings.by_ino(one.ino)
    assert catalog.images.by_ino(one.ino) == (image.id, Kind.SIBLING)
    assert catalog.siblings.list(image.id) == [one, two] == catalog.siblings.scan()
    assert catalog.siblings.get(image.id, b"none") is None and catalog.siblings.get(image.id, b"x" * 500) is None
    assert catalog.siblings.list(uuid4()) == []
    assert [row.op for row in catalog.log.rows()] == [Op.CREATE, Op.SIBLING, Op.SIBLING]
    assert catalog.images.walk(Kind.DATA)[0][1].id == image.id


def test_there_are_few(catalog: Catalog) -> None:
    image = draft(catalog)
    for n in range(8):
        catalog.siblings.add(image.id, b"%d" % n, blank(image))
    with pytest.raises(Exists):
        catalog.siblings.add(image.id, b"0", blank(image))
    with pytest.raises(TooMany):
        catalog.siblings.add(image.id, b"8", blank(image))
    with pytest.raises(NotFound):
        catalog.siblings.add(uuid4(), b"x", blank(image))


def test_changing_removing_renaming(catalog: Catalog) -> None:
    image = draft(catalog)
    first = catalog.siblings.add(image.id, b"a", blank(image))
    second = catalog.siblings.add(image.id, b"b", blank(image))
    changed = catalog.siblings.update(image.id, b"a", lambda i: replace(i, mode=0o600, data_ino=1))
    assert (changed.record.mode, changed.ino) == (0o600, first.ino)
    renamed = catalog.siblings.rename(image.id, b"a", b"b")
    assert (renamed.name, renamed.ino) == (b"b", first.ino)
    assert catalog.siblings.by_ino(first.ino).name == b"b"
    with pytest.raises(Stale):
        catalog.siblings.by_ino(second.ino)
    assert catalog.siblings.rename(image.id, b"b", b"b") == renamed
    assert catalog.siblings.remove(image.id, b"b") == renamed and catalog.siblings.remove(image.id, b"b") is None
    with pytest.raises(NotFound):
        catalog.siblings.rename(image.id, b"b", b"c")
    with pytest.raises(NotFound):
        catalog.siblings.update(image.id, b"b", lambda i: i)
    with pytest.raises(Stale):
        catalog.siblings.by_ino(image.data_ino)


@pytest.mark.parametrize("status", [Status.QUEUED, Status.SAVING])
def test_promotion_makes_it_the_draft(catalog: Catalog, status: Status) -> None:
    image = catalog.images.add(Image(
        id=uuid4(), name="a", status=status, draft=Draft(gen=1) if status == Status.SAVING else None,
        draft_gen=1,
        tags=("old",), properties={"os": "x", "arch": "y"}, disk_format="raw", owner="team",
    ))  # fmt: skip
    if status == Status.SAVING:
        catalog.packs.reserve(image.id, count=2)
    sibling = catalog.siblings.add(image.id, b"tmp", blank(image))
    catalog.siblings.update(
        image.id,
        b"tmp",
        lambda i: replace(i, properties={"os": "z"}, xattrs={"user.k": b"v"}, disk_format="qcow2", mtime=5),
    )
    promoted = catalog.siblings.promote(image.id, b"tmp")
    assert promoted.draft == Draft(gen=sibling.gen) and promoted.status == Status.SAVING
    assert (promoted.data_ino, promoted.uid, promoted.mode, promoted.mtime) == (sibling.ino, 7, 0o640, 5)
    assert (promoted.tags, promoted.properties) == (("old",), {"os": "z", "arch": "y"})
    assert (promoted.xattrs, promoted.disk_format, promoted.owner) == ({"user.k": b"v"}, "qcow2", "team")
    assert catalog.images.by_ino(sibling.ino) == (image.id, Kind.DATA)
    assert catalog.siblings.list(image.id) == []
    with pytest.raises(Stale):
        catalog.images.by_ino(image.data_ino)
    assert all(row.state == PackState.TRASH for row in catalog.packs.scan())
    with pytest.raises(NotFound):
        catalog.siblings.promote(image.id, b"tmp")


def test_sealed_data_is_not_replaced(catalog: Catalog) -> None:
    image = sealed(catalog, session(catalog))
    catalog.siblings.add(image.id, b"tmp", blank(image))
    with pytest.raises(Sealed):
        catalog.siblings.promote(image.id, b"tmp")
    assert catalog.siblings.get(image.id, b"tmp") is not None


def test_a_base_goes_with_its_file(catalog: Catalog) -> None:
    source = sealed(catalog, session(catalog))
    image = draft(catalog)

    def based(record: Image) -> Image:
        assert record.draft is not None
        return replace(record, draft=replace(record.draft, base_map=source.map_id, base_size=4096))

    for name in (b"a", b"b"):
        catalog.siblings.add(image.id, name, blank(image))
        catalog.siblings.update(image.id, name, based)
    assert catalog.maps.info(source.map_id).refs == 3
    promoted = catalog.siblings.promote(image.id, b"a")
    assert promoted.draft is not None and promoted.draft.base_map == source.map_id
    assert catalog.maps.info(source.map_id).refs == 3
    catalog.siblings.remove(image.id, b"b")
    assert catalog.maps.info(source.map_id).refs == 2
    catalog.images.unlink(source.id)
    catalog.images.unlink(image.id)
    for row in catalog.sessions.list():
        catalog.sessions.end(row.id)
    pack = own_packs(catalog, source)[0]
    assert catalog.seals.finalise(source.id) and catalog.packs.get(pack).state == PackState.LIVE
    assert catalog.seals.finalise(image.id) and catalog.packs.get(pack).state == PackState.TRASH


def test_siblings_end_with_their_image(catalog: Catalog) -> None:
    image = draft(catalog)
    sibling = catalog.siblings.add(image.id, b"tmp", blank(image))
    catalog.images.unlink(image.id)
    with pytest.raises(Stale):
        catalog.siblings.by_ino(sibling.ino)
    assert catalog.siblings.remove(image.id, b"none") is None
    catalog.siblings.add(draft(catalog).id, b"tmp", blank(image))
    assert catalog.seals.finalise(image.id)
    assert len(catalog.siblings.scan()) == 1 and catalog.siblings.list(image.id) == []


def test_slots_keep_each_threads_last_reply(catalog: Catalog) -> None:
    mount, other = uuid4(), uuid4()
    catalog.slots.put(mount, 0, 100, b"first")
    catalog.slots.put(mount, 1, 102, b"")
    catalog.slots.put(other, 0, 100, b"other")
    assert catalog.slots.get(mount, 100) == b"first" and catalog.slots.get(mount, 102) == b""
    catalog.slots.put(mount, 0, 104, b"next")
    assert catalog.slots.get(mount, 100) is None and catalog.slots.get(mount, 104) == b"next"
    assert catalog.slots.connections() == {mount, other}
    catalog.slots.drop(mount)
    assert catalog.slots.get(mount, 104) is None and catalog.slots.get(other, 100) == b"other"


def test_a_slot_is_as_true_as_its_mutation(catalog: Catalog) -> None:
    mount = uuid4()
    with pytest.raises(Exists), catalog.transaction():
        image = catalog.images.add(Image(id=uuid4()))
        catalog.slots.put(mount, 0, 1, b"made")
        catalog.images.add(image)
    assert catalog.slots.get(mount, 1) is None and catalog.images.count() == 0
