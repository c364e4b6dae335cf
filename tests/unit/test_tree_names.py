"""Names in by-name/ and images/: what can be made, found, renamed and removed there (S6, S7)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from imagefs.errors import (
    CrossDirectory,
    Exists,
    InvalidValue,
    IsADirectory,
    NameTooLong,
    NotADirectory,
    NotEmpty,
    NotFound,
    NotText,
    Protected,
    Refused,
    Sealed,
)
from imagefs.tree import RENAME_NOREPLACE
from imagefs.types import Ino, Status
from tests.trees import ROOT, USER, Bench, bench


@pytest.fixture
def tree(repo_dir: Path) -> Iterator[Bench]:
    with bench(repo_dir) as made:
        yield made


# -- the fixed part --------------------------------------------------------------------------------


def test_the_root(tree: Bench) -> None:
    assert tree.names("") == ["images", "by-name", ".imagefs"]
    assert tree.names(".imagefs") == ["status", "health", "tasks"]
    assert tree.names("images") == tree.names("by-name") == []
    assert [tree.ino(path) for path in ("", "images", "by-name", ".imagefs")] == [1, 2, 3, 5]
    assert tree.names("", page=1) == tree.names("")


@pytest.mark.parametrize("path", ["x", ".imagefs/x", "images/5b0c11a1-7f0f-4c63-9f4e-8c8f8f5a9d21", "images/x"])
def test_files_are_made_in_two_places_only(tree: Bench, path: str) -> None:
    with pytest.raises(Refused):
        tree.create(path)
    with pytest.raises(Refused):
        tree.mknod(path)
    with pytest.raises(NotFound):
        tree.attr(path)


@pytest.mark.parametrize("directory", ["", ".imagefs", "by-name", "image"])
def test_directories_are_made_in_images_only(tree: Bench, directory: str) -> None:
    directory = tree.mkdir() if directory == "image" else directory
    with pytest.raises(Refused):
        tree.tree.mkdir(tree.ino(directory), str(uuid4()).encode(), 0o755, ROOT)


def test_what_every_mount_has_stays(tree: Bench) -> None:
    for name in ("images", "by-name", ".imagefs"):
        with pytest.raises(IsADirectory):
            tree.unlink(name)
        with pytest.raises(NotEmpty):
            tree.rmdir(name)
        with pytest.raises(Refused):
            tree.rename(name, "other")
    with pytest.raises(Refused):
        tree.unlink(".imagefs/status")
    with pytest.raises(NotADirectory):
        tree.rmdir(".imagefs/status")
    with pytest.raises(Refused):
        tree.rename(".imagefs/status", ".imagefs/other")


def test_a_file_is_no_directory(tree: Bench) -> None:
    tree.put("x")
    ino = tree.ino("by-name/x")
    with pytest.raises(NotADirectory):
        tree.tree.lookup(ino, b"y")
    with pytest.raises(NotADirectory):
        tree.tree.children(ino)


@pytest.mark.parametrize("directory", ["", "images", "by-name", ".imagefs", "image"])
def test_names_that_are_too_long(tree: Bench, directory: str) -> None:
    ino = tree.ino(tree.mkdir() if directory == "image" else directory)
    for length in (256, 1000):
        with pytest.raises(NameTooLong):
            tree.tree.lookup(ino, b"x" * length)
        with pytest.raises(NameTooLong):
            tree.tree.create(ino, b"x" * length, 0o644, ROOT)
        with pytest.raises(NameTooLong):
            tree.tree.unlink(ino, b"x" * length, ROOT)


# -- by-name/ --------------------------------------------------------------------------------------


def test_a_file_in_by_name_is_an_image_of_that_name(tree: Bench) -> None:
    tree.write("by-name/disk.raw", b"bytes")
    image = tree.images.get(tree.id("by-name/disk.raw"))
    assert (image.name, image.status, image.entry) == ("disk.raw", "saving", b"disk.raw")
    assert tree.names("by-name") == ["disk.raw"]
    directory = tree.directory("by-name/disk.raw")
    assert tree.names(directory) == ["data", "metadata.json"]
    assert tree.ino(f"{directory}/data") == tree.ino("by-name/disk.raw")
    assert tree.read(f"{directory}/data") == b"bytes"


def test_creating_what_exists(tree: Bench) -> None:
    tree.write("by-name/x", b"old")
    with pytest.raises(Exists):
        tree.create("by-name/x", os.O_RDWR | os.O_EXCL)
    with pytest.raises(Exists):
        tree.mknod("by-name/x")
    handle = tree.create("by-name/x", os.O_RDWR | os.O_CREAT)
    assert handle.pread(0, 10) == b"old"
    tree.close(handle)
    tree.seal("by-name/x")
    with pytest.raises(Sealed):
        tree.create("by-name/x", os.O_RDWR | os.O_CREAT)


def test_a_create_that_comes_twice_is_done_once(tree: Bench) -> None:
    """A worker that was killed before its answer leaves the request to the next one."""
    place, fh = tree.place("by-name/x"), tree.files.new_fh()
    first = tree.tree.create_open(*place, os.O_RDWR | os.O_EXCL, 0o644, ROOT, fh)
    again = tree.tree.create_open(*place, os.O_RDWR | os.O_EXCL, 0o644, ROOT, fh)
    assert first[0].ino == again[0].ino
    assert first[1] is again[1]
    tree.tree.release(fh)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        (b"\xff\xfe", NotText),
        (b"100%", InvalidValue),
        (b"a%41", InvalidValue),
        (b"a%0ab", InvalidValue),
        (b"new\nline", InvalidValue),
        (b"\x7f", InvalidValue),
    ],
)
def test_names_that_would_be_listed_differently(tree: Bench, name: bytes, error: type[Exception]) -> None:
    """S6: an entry is the spelling of a name; what is none is refused, not listed under another name."""
    with pytest.raises(NotFound):
        tree.tree.lookup(Ino.BY_NAME, name)
    with pytest.raises(error):
        tree.tree.create(Ino.BY_NAME, name, 0o644, ROOT)
    tree.write("by-name/x", b"x")
    with pytest.raises(error):
        tree.tree.rename(Ino.BY_NAME, b"x", Ino.BY_NAME, name, 0, ROOT)
    assert tree.names("by-name") == ["x"]


def test_spelt_names_are_decoded(tree: Bench) -> None:
    tree.write("by-name/100%25", b"x")
    assert tree.get("by-name/100%25", "user.image.name") == "100%"
    tree.rename("by-name/100%25", "by-name/a%2Fb")
    assert tree.get("by-name/a%2Fb", "user.image.name") == "a/b"


def test_a_taken_name_gets_the_id_behind_it(tree: Bench) -> None:
    """S6: the name if it is free, else <name>~<id8>; a path never starts to mean another image."""
    tree.put("x")
    path = tree.mkdir()
    tree.set(path, "user.image.name", "x")
    second = f"x~{path.removeprefix('images/')[:8]}"
    assert sorted(tree.names("by-name")) == ["x", second]
    tree.unlink("by-name/x")
    assert tree.names("by-name") == [second]
    tree.write("by-name/x", b"new")
    assert sorted(tree.names("by-name")) == ["x", second]


def test_a_named_image_without_data_is_an_empty_file(tree: Bench) -> None:
    path = tree.mkdir()
    tree.set(path, "user.image.name", "later")
    attr = tree.attr("by-name/later")
    assert (attr.size, attr.nlink, attr.blocks) == (0, 1, 0)
    assert tree.names(path) == ["metadata.json"]
    assert tree.read("by-name/later") == b""
    assert tree.status(path) == "queued"
    handle = tree.open("by-name/later", os.O_WRONLY)
    assert tree.status(path) == "saving"
    handle.pwrite(0, memoryview(b"data"), 1)
    tree.close(handle)
    assert tree.names(path) == ["data", "metadata.json"]
    assert tree.attr("by-name/later").nlink == 2
    assert tree.attr("by-name/later").ino == attr.ino


def test_renaming(tree: Bench) -> None:
    tree.put("a", b"of a")
    ino = tree.ino("by-name/a")
    tree.rename("by-name/a", "by-name/b")
    assert tree.names("by-name") == ["b"]
    assert tree.ino("by-name/b") == ino
    assert tree.get("by-name/b", "user.image.name") == "b"
    with pytest.raises(NotFound):
        tree.rename("by-name/a", "by-name/c")


def test_renaming_onto_another_replaces_it(tree: Bench) -> None:
    """S6: that image is deleted; who has it open reads on (S7)."""
    tree.put("a", b"of a")
    tree.put("b", b"of b")
    old = tree.directory("by-name/b")
    reader = tree.open("by-name/b")
    with pytest.raises(Exists):
        tree.rename("by-name/a", "by-name/b", RENAME_NOREPLACE)
    tree.rename("by-name/a", "by-name/b")
    assert tree.names("by-name") == ["b"]
    assert tree.read("by-name/b") == b"of a"
    assert old.removeprefix("images/") not in tree.names("images")
    assert reader.pread(0, 10) == b"of b"
    assert tree.tree.attrs(reader.ino).nlink == 0
    tree.close(reader)


def test_a_protected_image_is_not_replaced(tree: Bench) -> None:
    tree.put("a")
    tree.put("b")
    tree.set("by-name/b", "user.image.protected", "true")
    with pytest.raises(Protected):
        tree.rename("by-name/a", "by-name/b")
    with pytest.raises(Protected):
        tree.unlink("by-name/b")
    assert sorted(tree.names("by-name")) == ["a", "b"]
    tree.rename("by-name/b", "by-name/c")


def test_renaming_onto_itself_does_nothing(tree: Bench) -> None:
    path = tree.put("a")
    before = tree.images.get(tree.id(path))
    tree.rename(path, path)
    tree.rename(path, f"{tree.directory(path)}/data")
    tree.rename(f"{tree.directory(path)}/data", path)
    assert tree.images.get(before.id) == before


def test_renaming_between_directories(tree: Bench) -> None:
    """`mv` copies then; names cannot be exchanged, and directories keep theirs."""
    path = tree.mkdir()
    tree.write(f"{path}/data", b"x")
    tree.put("a")
    with pytest.raises(CrossDirectory):
        tree.rename(f"{path}/data", "by-name/b")
    with pytest.raises(CrossDirectory):
        tree.rename("by-name/a", f"{tree.mkdir()}/data")
    with pytest.raises(CrossDirectory):
        tree.rename(path, "by-name/b")
    with pytest.raises(Refused):
        tree.rename(path, f"images/{uuid4()}")
    with pytest.raises(InvalidValue):
        tree.rename("by-name/a", f"{path}/data", 2)
    with pytest.raises(IsADirectory):
        tree.rename("by-name/a", path)


def test_a_temporary_file_renamed_into_place(tree: Bench) -> None:
    """S6: rsync and editors write beside and rename: the same draft under its final name."""
    tree.write("by-name/.disk.Xq3k9L", b"new")
    image_id = tree.id("by-name/.disk.Xq3k9L")
    tree.rename("by-name/.disk.Xq3k9L", "by-name/disk")
    assert tree.id("by-name/disk") == image_id
    assert tree.status("by-name/disk") == "saving"
    tree.seal("by-name/disk")
    assert tree.read("by-name/disk") == b"new"


def test_unlinking_deletes_the_image(tree: Bench) -> None:
    """S7: unlink of by-name/x deletes the image, whatever its state."""
    path = tree.mkdir()
    tree.set(path, "user.image.name", "queued")
    tree.write("by-name/saving", b"x")
    tree.put("active")
    for name in ("queued", "saving", "active"):
        tree.unlink(f"by-name/{name}")
        with pytest.raises(NotFound):
            tree.unlink(f"by-name/{name}")
    assert tree.names("by-name") == tree.names("images") == []
    with pytest.raises(NotFound):
        tree.rmdir("by-name/x")


# -- images/ ---------------------------------------------------------------------------------------


def test_mkdir_makes_an_image_under_an_id(tree: Bench) -> None:
    image_id = uuid4()
    path = tree.mkdir(image_id, USER)
    image = tree.images.get(image_id)
    assert (image.name, image.status, image.uid, image.gid) == (None, "queued", 1000, 1000)
    assert tree.names("images") == [str(image_id)]
    assert tree.names("by-name") == []
    assert tree.names(path) == ["metadata.json"]
    with pytest.raises(Exists):
        tree.mkdir(image_id)


@pytest.mark.parametrize(
    "name",
    [
        "x",
        "0B7E3E0C-6D0A-4F0E-9F5E-2B1D4C5A6F70",
        "0b7e3e0c6d0a4f0e9f5e2b1d4c5a6f70",
        "{0b7e3e0c-6d0a-4f0e-9f5e-2b1d4c5a6f70}",
    ],
)
def test_only_a_canonical_id_names_a_directory(tree: Bench, name: str) -> None:
    tree.mkdir(UUID("0b7e3e0c-6d0a-4f0e-9f5e-2b1d4c5a6f70"))
    with pytest.raises(NotFound):
        tree.attr(f"images/{name}")
    with pytest.raises(InvalidValue):
        tree.tree.mkdir(Ino.IMAGES, name.encode(), 0o755, ROOT)
    with pytest.raises(NotFound):
        tree.rmdir(f"images/{name}")


def test_data_begins_a_draft(tree: Bench) -> None:
    path = tree.mkdir()
    with pytest.raises(NotFound):
        tree.attr(f"{path}/data")
    attr = tree.mknod(f"{path}/data", 0o600)
    assert (attr.nlink, attr.mode & 0o7777, tree.status(path)) == (1, 0o600, "saving")
    with pytest.raises(Exists):
        tree.mknod(f"{path}/data")
    tree.write(f"{path}/data", b"bytes")
    tree.seal(path)
    assert tree.read(f"{path}/data") == b"bytes"


def test_data_of_a_named_image(tree: Bench) -> None:
    path = tree.mkdir()
    tree.set(path, "user.image.name", "named")
    reader = tree.open("by-name/named")
    handle = tree.create(f"{path}/data", os.O_WRONLY | os.O_EXCL, 0o640)
    handle.pwrite(0, memoryview(b"bytes"), 1)
    tree.close(handle)
    tree.close(reader)
    assert tree.read("by-name/named") == b"bytes"
    assert tree.attr("by-name/named").mode & 0o7777 == 0o640
    with pytest.raises(Exists):
        tree.create(f"{path}/data", os.O_WRONLY | os.O_EXCL)


def test_rm_r_of_a_draft(tree: Bench) -> None:
    """S1, S7: without its draft the image is queued again; rmdir then deletes it."""
    path = tree.mkdir()
    tree.write(f"{path}/data", b"x")
    with pytest.raises(NotEmpty):
        tree.rmdir(path)
    tree.unlink(f"{path}/data")
    assert tree.status(path) == "queued"
    assert tree.names(path) == ["metadata.json"]
    with pytest.raises(NotFound):
        tree.unlink(f"{path}/data")
    tree.write(f"{path}/data", b"again")
    assert tree.read(f"{path}/data") == b"again"
    tree.unlink(f"{path}/data")
    tree.unlink(f"{path}/metadata.json")
    assert tree.read(f"{path}/metadata.json")
    tree.rmdir(path)
    assert tree.names("images") == []


def test_rm_r_of_sealed_data(tree: Bench) -> None:
    """S1, S7: pending_delete; its data cannot be made again."""
    path = tree.directory(tree.put("x"))
    with pytest.raises(NotEmpty):
        tree.rmdir(path)
    tree.unlink(f"{path}/data")
    assert tree.status(path) == "pending_delete"
    assert tree.names("by-name") == []
    assert tree.names(path) == ["metadata.json"]
    for name in ("data", ".data.tmp"):
        with pytest.raises(Refused):
            tree.create(f"{path}/{name}")
    tree.unlink(f"{path}/metadata.json")
    tree.rmdir(path)
    assert tree.names("images") == []


def test_protected_and_deactivated_data_stays(tree: Bench) -> None:
    path = tree.directory(tree.put("x"))
    tree.set(path, "user.image.protected", "1")
    with pytest.raises(Protected):
        tree.unlink(f"{path}/data")
    tree.set(path, "user.image.protected", "0")
    tree.images.set_fields(tree.id(path), {"status": Status.DEACTIVATED})
    with pytest.raises(Refused):
        tree.unlink(f"{path}/data")
    assert tree.names(path) == ["data", "metadata.json"]
    empty = tree.mkdir()
    tree.set(empty, "user.image.protected", "1")
    with pytest.raises(Protected):
        tree.rmdir(empty)


def test_files_beside_data(tree: Bench) -> None:
    """S6: a temporary file next to `data` becomes the draft by the rename."""
    path = tree.mkdir()
    tree.write(f"{path}/.data.aB3xYz", b"new data")
    assert tree.names(path) == ["metadata.json", ".data.aB3xYz"]
    assert tree.status(path) == "queued"
    with pytest.raises(NotEmpty):
        tree.rmdir(path)
    ino = tree.ino(f"{path}/.data.aB3xYz")
    tree.rename(f"{path}/.data.aB3xYz", f"{path}/other")
    tree.rename(f"{path}/other", f"{path}/data")
    assert tree.names(path) == ["data", "metadata.json"]
    assert tree.ino(f"{path}/data") == ino
    assert tree.status(path) == "saving"
    assert tree.read(f"{path}/data") == b"new data"
    tree.seal(path)
    assert tree.read(f"{path}/data") == b"new data"


def test_a_file_beside_data_replaces_a_draft(tree: Bench) -> None:
    path = tree.mkdir()
    tree.write(f"{path}/data", b"old")
    tree.write(f"{path}/tmp", b"new")
    with pytest.raises(Exists):
        tree.rename(f"{path}/tmp", f"{path}/data", RENAME_NOREPLACE)
    tree.rename(f"{path}/tmp", f"{path}/data")
    assert tree.read(f"{path}/data") == b"new"


def test_nothing_goes_over_sealed_data(tree: Bench) -> None:
    """S4, S6: EPERM."""
    path = tree.mkdir()
    tree.write(f"{path}/data", b"first")
    tree.write(f"{path}/tmp", b"second")
    tree.seal(path)
    with pytest.raises(Sealed):
        tree.rename(f"{path}/tmp", f"{path}/data")
    with pytest.raises(Refused):
        tree.create(f"{path}/tmp2")
    tree.unlink(f"{path}/tmp")
    assert tree.names(path) == ["data", "metadata.json"]
    assert tree.read(f"{path}/data") == b"first"


def test_data_and_metadata_keep_their_names(tree: Bench) -> None:
    path = tree.mkdir()
    tree.write(f"{path}/data", b"x")
    tree.write(f"{path}/tmp", b"x")
    for old, new in (("data", "x"), ("data", "tmp"), ("metadata.json", "x"), ("tmp", "metadata.json")):
        with pytest.raises(Refused):
            tree.rename(f"{path}/{old}", f"{path}/{new}")
    with pytest.raises(NotFound):
        tree.rename(f"{path}/absent", f"{path}/data")
    with pytest.raises(NotFound):
        tree.unlink(f"{path}/absent")
    with pytest.raises(NotADirectory):
        tree.rmdir(f"{path}/data")
    with pytest.raises(NotText):
        tree.tree.create(tree.ino(path), b"\xff", 0o644, ROOT)
    with pytest.raises(Exists):
        tree.mknod(f"{path}/metadata.json")


# -- listings --------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [1, 2, 3, 7, 1000])
def test_listings_in_pages(tree: Bench, page: int) -> None:
    for number in range(10):
        tree.mknod(f"by-name/{number}")
    assert tree.names("by-name", page) == [str(number) for number in range(10)]
    assert len(set(tree.names("images", page))) == 10
    directory = tree.directory("by-name/3")
    for name in "cba":
        tree.mknod(f"{directory}/{name}")
    assert tree.names(directory, page) == ["data", "metadata.json", "c", "b", "a"]


def test_an_entry_that_stays_is_listed_once(tree: Bench) -> None:
    """Whatever comes, goes and is renamed between two pages."""
    for number in range(20):
        tree.mknod(f"by-name/{number}")
    first = tree.tree.children(Ino.BY_NAME, 0, 12)
    tree.unlink("by-name/0")
    tree.unlink("by-name/9")
    tree.unlink("by-name/15")
    tree.rename("by-name/2", "by-name/moved")
    tree.rename("by-name/17", "by-name/renamed")
    tree.mknod("by-name/new")
    rest = tree.tree.children(Ino.BY_NAME, first[-1].cookie, 100)
    names = [entry.name.decode() for entry in first + rest]
    assert len(names) == len(set(names))
    assert set(map(str, range(20))) - {"15", "17"} <= set(names)
    assert "renamed" in names
    cookies = [entry.cookie for entry in first + rest]
    assert cookies == sorted(set(cookies))


def test_listed_attributes_are_those_of_lookup(tree: Bench) -> None:
    tree.put("sealed", b"x" * 5000)
    tree.write("by-name/draft", b"y" * 100)
    tree.mknod(f"{tree.directory('by-name/draft')}/.tmp")
    path = tree.mkdir()
    tree.set(path, "user.image.name", "queued")
    for directory in ("", "images", "by-name", path, tree.directory("by-name/draft")):
        for entry in tree.tree.children(tree.ino(directory))[2:]:
            found = tree.attr(f"{directory}/{entry.name.decode()}")
            assert entry.ino == entry.attr.ino
            assert entry.attr == found == tree.tree.attrs(entry.ino)
