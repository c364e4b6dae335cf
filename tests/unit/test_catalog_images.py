"""The table of images: records, inode numbers, entries, transitions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from imagefs.catalog import Catalog, Op
from imagefs.errors import Exists, InvalidValue, NotFound, NotText, Stale
from imagefs.types import TRANSITIONS, Draft, Image, Kind, Status
from tests.catalogs import assert_sound, draft, opened, sealed, session


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with opened(tmp_path / "catalog") as opened_catalog:
        yield opened_catalog


def named(catalog: Catalog, name: str | None, image_id: UUID | None = None) -> Image:
    return catalog.images.add(Image(id=image_id or uuid4(), name=name))


def test_add_gives_numbers_times_and_an_entry(catalog: Catalog) -> None:
    catalog.clock = lambda: 5_000
    image = named(catalog, "debian")
    assert image.entry == b"debian"
    assert image.dir_ino >= 64 and image.data_ino == image.dir_ino + 2
    assert {image.created_at, image.updated_at, image.atime, image.mtime, image.ctime} == {5_000}
    assert catalog.images.get(image.id) == image
    assert catalog.images.by_ino(image.dir_ino) == (image.id, Kind.DIRECTORY)
    assert catalog.images.by_ino(image.data_ino) == (image.id, Kind.DATA)
    assert catalog.images.by_entry(b"debian") == image.id
    assert catalog.images.named("debian") == [image.id]
    assert catalog.images.count() == 1
    following = named(catalog, None)
    assert following.entry is None and following.dir_ino > image.data_ino


def test_add_keeps_what_is_given(catalog: Catalog) -> None:
    given = Image(id=uuid4(), dir_ino=1000, data_ino=1002, created_at=1, updated_at=2, mtime=3)
    image = catalog.images.add(given)
    assert (image.dir_ino, image.data_ino, image.created_at, image.updated_at, image.mtime) == (
        1000,
        1002,
        1,
        2,
        3,
    )
    assert named(catalog, None).dir_ino > 1002


def test_an_id_is_taken_until_its_row_is_gone(catalog: Catalog) -> None:
    image = named(catalog, "a")
    with pytest.raises(Exists):
        named(catalog, "b", image.id)
    catalog.images.unlink(image.id)
    with pytest.raises(Exists):
        named(catalog, "b", image.id)
    assert catalog.seals.finalise(image.id)
    assert named(catalog, "b", image.id).entry == b"b"


def test_entries_are_given_once(catalog: Catalog) -> None:
    first = named(catalog, "debian")
    second = named(catalog, "debian")
    assert second.entry == f"debian~{second.id.hex[:8]}".encode()
    catalog.images.unlink(first.id)
    # A path that works never starts to mean another image (S6).
    assert catalog.images.get(second.id).entry == second.entry
    assert catalog.images.update(second.id, lambda i: replace(i, min_ram=1)).entry == second.entry
    assert named(catalog, "debian").entry == b"debian"
    assert catalog.images.named("debian")[0] == second.id


def test_ids_that_begin_alike_get_longer_entries(catalog: Catalog) -> None:
    ids = [UUID(f"0123abcd-0000-4000-8000-00000000000{n}") for n in range(4)]
    entries = [named(catalog, "x", image_id).entry for image_id in ids]
    assert entries == [
        b"x",
        b"x~0123abcd",
        b"x~0123abcd00004000",
        b"x~0123abcd000040008000000000000003",
    ]
    other = UUID("0123abcd-0000-4000-8000-00000000000f")
    named(catalog, f"x~{other.hex}")
    with pytest.raises(Exists):
        named(catalog, "x", other)


def test_long_names_are_cut(catalog: Catalog) -> None:
    image = named(catalog, "ü" * 200)
    assert image.entry is not None and len(image.entry) <= 255
    assert image.entry.endswith(f"~{image.id.hex[:8]}".encode())
    assert catalog.images.named("ü" * 200) == [image.id]
    assert catalog.images.named("ü" * 199) == []


def test_a_name_change_gives_another_entry(catalog: Catalog) -> None:
    image = named(catalog, "a")
    named(catalog, "b")
    renamed = catalog.images.update(image.id, lambda i: replace(i, name="b"), Op.RENAME)
    assert renamed.entry == f"b~{image.id.hex[:8]}".encode()
    assert catalog.images.by_entry(b"a") is None
    assert catalog.images.update(image.id, lambda i: replace(i, name=None)).entry is None
    assert catalog.images.update(image.id, lambda i: replace(i, name="")).entry is None
    assert catalog.images.update(image.id, lambda i: replace(i, name="a")).entry == b"a"


def test_rename_takes_exactly_the_entry(catalog: Catalog) -> None:
    image, victim = named(catalog, "a"), named(catalog, "c")
    assert catalog.images.rename(image.id, b"x%2Fy").name == "x/y"
    with pytest.raises(Exists):
        catalog.images.rename(image.id, b"c")
    moved = catalog.images.rename(image.id, b"c", victim.id)
    assert (moved.name, moved.entry) == ("c", b"c")
    assert catalog.images.by_entry(b"c") == image.id
    with pytest.raises(NotFound):
        catalog.images.get(victim.id)
    assert catalog.images.rename(image.id, b"c") == moved
    for entry, error in ((b"%zz", InvalidValue), (b"\xff", NotText), (b"x" * 256, InvalidValue)):
        with pytest.raises(error):
            catalog.images.rename(image.id, entry)


def test_rename_with_a_stale_victim(catalog: Catalog) -> None:
    image, victim, other = named(catalog, "a"), named(catalog, "c"), named(catalog, "d")
    catalog.images.unlink(victim.id)
    assert catalog.images.rename(image.id, b"c", victim.id).entry == b"c"
    with pytest.raises(Exists):
        catalog.images.rename(image.id, b"d", victim.id)
    assert catalog.images.get(other.id).entry == b"d"


def test_replace_swaps_in_one_transaction(catalog: Catalog) -> None:
    image, victim = named(catalog, "tmp"), named(catalog, "disk")
    assert catalog.images.replace(image.id, victim.id).entry == b"disk"
    assert catalog.images.by_entry(b"tmp") is None
    assert [row.op for row in catalog.log.rows()][-2:] == [Op.DELETE, Op.RENAME]
    with pytest.raises(InvalidValue):
        catalog.images.replace(image.id, named(catalog, None).id)


def test_an_update_that_changes_nothing_writes_nothing(catalog: Catalog) -> None:
    image = named(catalog, "a")
    gen = catalog.generation()
    assert catalog.images.update(image.id, lambda i: i) == image
    assert catalog.generation() == gen


def test_times_follow_what_changed(catalog: Catalog) -> None:
    catalog.clock = lambda: 1
    image = named(catalog, "a")
    catalog.clock = lambda: 2
    image = catalog.images.update(image.id, lambda i: replace(i, mode=0o600))
    assert (image.updated_at, image.ctime) == (1, 2)
    catalog.clock = lambda: 3
    image = catalog.images.update(image.id, lambda i: replace(i, tags=("t",)))
    assert (image.updated_at, image.ctime) == (3, 3)
    catalog.clock = lambda: 4
    image = catalog.images.update(image.id, lambda i: replace(i, atime=9))
    assert (image.updated_at, image.ctime, image.atime) == (3, 3, 9)
    image = catalog.images.update(image.id, lambda i: replace(i, min_ram=1, updated_at=7, ctime=8))
    assert (image.updated_at, image.ctime) == (7, 8)


@pytest.mark.parametrize("old", list(Status))
@pytest.mark.parametrize("new", list(Status))
def test_only_glances_transitions_are_taken(catalog: Catalog, old: Status, new: Status) -> None:
    if old == Status.DELETED:
        return
    image = Image(id=uuid4(), status=old, draft=Draft(gen=1) if old == Status.SAVING else None)
    catalog.images.add(image)
    change = {"status": new, "draft": Draft(gen=1) if new == Status.SAVING else None}
    allowed = new == old or (new in TRANSITIONS[old] and new != Status.DELETED)
    if allowed:
        assert catalog.images.update(image.id, lambda i: replace(i, **change)).status == new
    else:
        with pytest.raises(InvalidValue):
            catalog.images.update(image.id, lambda i: replace(i, **change))
        assert catalog.images.get(image.id).status == old


def test_impossible_records_are_refused(catalog: Catalog) -> None:
    image = named(catalog, "a")
    for change in (
        {"id": uuid4()},
        {"dir_ino": 99_999},
        {"draft": Draft(gen=1)},
        {"status": Status.SAVING},
    ):
        with pytest.raises(InvalidValue):
            catalog.images.update(image.id, lambda i, c=change: replace(i, **c))
    with pytest.raises(NotFound):
        catalog.images.update(image.id, lambda i: replace(i, status=Status.ACTIVE, map_id=77))
    with pytest.raises(NotText):
        catalog.images.update(image.id, lambda i: replace(i, owner="\ud800"))
    with pytest.raises(InvalidValue):
        catalog.images.add(Image(id=uuid4(), status=Status.DELETED))
    assert catalog.images.get(image.id) == image


def test_a_change_that_raises_changes_nothing(catalog: Catalog) -> None:
    image = named(catalog, "a")

    def change(image: Image) -> Image:
        catalog.images.new_ino()
        raise ValueError

    with pytest.raises(ValueError):
        catalog.images.update(image.id, change)
    assert catalog.images.get(image.id) == image


def test_data_gets_another_inode_with_another_draft(catalog: Catalog) -> None:
    image = draft(catalog, "a")
    ended = catalog.images.update(
        image.id,
        lambda i: replace(i, status=Status.QUEUED, draft=None, data_ino=catalog.images.new_ino()),
        Op.DRAFT,
    )
    assert ended.data_ino != image.data_ino
    with pytest.raises(Stale):
        catalog.images.by_ino(image.data_ino)
    assert catalog.images.by_ino(ended.data_ino) == (image.id, Kind.DATA)
    assert [row.old_data_ino for row in catalog.log.rows()] == [0, image.data_ino]


def test_unlink_takes_it_out_of_everything_at_once(catalog: Catalog) -> None:
    image = catalog.images.add(Image(id=uuid4(), name="a", tags=("t",), properties={"k": "v"}, owner="o"))
    tombstone = catalog.images.unlink(image.id)
    assert tombstone.status == Status.DELETED and tombstone.entry is None
    for gone in (
        lambda: catalog.images.get(image.id),
        lambda: catalog.images.attrs(image.id),
        lambda: catalog.images.unlink(image.id),
        lambda: catalog.images.update(image.id, lambda i: i),
        lambda: catalog.images.by_ino(image.dir_ino),
        lambda: catalog.images.by_ino(image.data_ino),
    ):
        with pytest.raises(NotFound):
            gone()
    assert catalog.images.get(image.id, deleted=True) == tombstone
    assert catalog.images.attrs(image.id, deleted=True).status == Status.DELETED
    assert catalog.images.by_ino(image.data_ino, deleted=True) == (image.id, Kind.DATA)
    assert catalog.images.by_entry(b"a") is None and catalog.images.named("a") == []
    assert catalog.images.walk(Kind.DIRECTORY) == [] and catalog.images.walk(Kind.DATA) == []
    assert catalog.images.find(str(image.id)[:8]) == [] and catalog.images.count() == 0
    assert [image_id for _, image_id in catalog.images.unlinked()] == [image.id]


def test_pending_delete_gives_up_its_entry(catalog: Catalog) -> None:
    image = sealed(catalog, session(catalog), "a")
    pending = catalog.images.update(image.id, lambda i: replace(i, status=Status.PENDING_DELETE))
    assert pending.entry is None and pending.name == "a"
    assert catalog.images.walk(Kind.DATA) == [] and len(catalog.images.walk(Kind.DIRECTORY)) == 1
    assert named(catalog, "a").entry == b"a"
    restored = catalog.images.update(image.id, lambda i: replace(i, status=Status.ACTIVE))
    assert restored.entry == f"a~{image.id.hex[:8]}".encode()


def test_walk_is_in_inode_order_and_resumes(catalog: Catalog) -> None:
    images = [named(catalog, f"n{i}" if i % 3 else None) for i in range(50)]
    for kind, shown in ((Kind.DIRECTORY, images), (Kind.DATA, [i for i in images if i.name])):
        found, after = [], 0
        while page := catalog.images.walk(kind, after, 7):
            assert len(page) <= 7
            found += page
            after = page[-1][0]
        inos = [i.dir_ino if kind == Kind.DIRECTORY else i.data_ino for i in shown]
        assert [ino for ino, _ in found] == inos == sorted(inos)
        assert [attrs.id for _, attrs in found] == [i.id for i in shown]
        assert [attrs.entry for _, attrs in found] == [i.entry for i in shown]


def test_find_by_prefix(catalog: Catalog) -> None:
    ids = [UUID(f"{n:08x}-0000-4000-8000-000000000000") for n in (0x12345678, 0x12345FFF, 0x1234_6000, 0xFFFFFFFF)]
    for image_id in ids:
        named(catalog, None, image_id)
    assert catalog.images.find("12345") == ids[:2]
    assert catalog.images.find("12345678-00") == ids[:1]
    assert catalog.images.find(str(ids[3]).upper()) == ids[3:]
    assert catalog.images.find("fff") == ids[3:]
    for odd in ("", "xyz", "2", "12345678" * 5):
        assert catalog.images.find(odd) == []


def test_odd_look_ups_find_nothing(catalog: Catalog) -> None:
    assert catalog.images.by_entry(b"") is None
    assert catalog.images.by_entry(b"x" * 600) is None
    for ino in (0, -1, 1, 1 << 64, 12345):
        with pytest.raises(Stale):
            catalog.images.by_ino(ino)
    with pytest.raises(NotFound):
        catalog.images.get(uuid4())


def test_an_outer_transaction_is_all_or_nothing(catalog: Catalog) -> None:
    image = named(catalog, "a")
    with pytest.raises(KeyError), catalog.transaction():
        named(catalog, "b")
        catalog.images.unlink(image.id)
        assert catalog.images.count() == 1
        raise KeyError
    assert catalog.images.count() == 1 and catalog.images.get(image.id) == image
    with catalog.transaction():
        second = named(catalog, "b")
        with pytest.raises(Exists):
            named(catalog, "c", second.id)
    assert catalog.images.get(second.id) == second and catalog.images.named("c") == []
    assert_sound(catalog)


def test_a_swallowed_mistake_commits_nothing(catalog: Catalog) -> None:
    def change(image: Image) -> Image:
        raise ZeroDivisionError

    image = named(catalog, "a")
    with pytest.raises(RuntimeError), catalog.transaction():
        named(catalog, "b")
        with pytest.raises(ZeroDivisionError):
            catalog.images.update(image.id, change)
    assert catalog.images.count() == 1


def test_on_commit_is_told_once_and_outside(catalog: Catalog) -> None:
    told: list[int] = []
    catalog.on_commit = lambda: told.append(catalog.images.count())
    image = named(catalog, "a")
    with catalog.transaction():
        named(catalog, "b")
        named(catalog, "c")
    assert told == [1, 3]
    catalog.images.update(image.id, lambda i: i)
    session(catalog)
    with pytest.raises(KeyError), catalog.transaction():
        named(catalog, "d")
        raise KeyError
    assert told == [1, 3]


def test_ten_thousand_images(catalog: Catalog, capsys: pytest.CaptureFixture[str]) -> None:
    """Times are printed, not asserted: the machine may be busy."""
    start = time.perf_counter()
    with catalog.transaction():
        images = [named(catalog, f"image-{n:05}") for n in range(10_000)]
    added = time.perf_counter()
    listed, after = 0, 0
    while page := catalog.images.walk(Kind.DATA, after):
        listed += len(page)
        after = page[-1][0]
    walked = time.perf_counter()
    for image in images[:1000]:
        catalog.images.attrs(image.id)
    looked = time.perf_counter()
    assert listed == 10_000
    with capsys.disabled():
        print(
            f"\nadd {(added - start) * 100:.0f} us, walk {(walked - added) * 100:.1f} us, "
            f"attrs {(looked - walked) * 1000:.1f} us"
        )
