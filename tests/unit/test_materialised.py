"""Plain files of sealed images: adopted, known again, removed when the room is wanted."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from imagefs.images import materialised, materialising
from imagefs.images.materialised import Materialised
from imagefs.types import Image, Status

SIZE = 1 << 20


@pytest.fixture(autouse=True)
def small_ones_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(materialised, "LEAST", SIZE)


@pytest.fixture
def files(tmp_path: Path) -> Materialised:
    return Materialised(tmp_path / "cache", 3 * SIZE)


@pytest.fixture
def adopted(files: Materialised, tmp_path: Path) -> Callable[..., Image]:
    """Makes an image whose plain file was adopted."""

    def make(content: bytes = b"x" * SIZE, used: int | None = None) -> Image:
        image = Image(id=uuid4(), status=Status.ACTIVE, size=len(content), map_uuid=uuid4())
        staging = tmp_path / str(image.id)
        staging.write_bytes(content)
        assert files.adopt(staging, image)
        assert not staging.exists()
        if used is not None:
            path = tmp_path / "cache" / str(image.map_uuid)
            os.utime(path, ns=(used, path.stat().st_mtime_ns))
        return image

    return make


def there(files: Materialised, image: Image) -> bool:
    fd = files.open(image)
    if fd is not None:
        os.close(fd)
    return fd is not None


def test_what_was_adopted_is_read(files: Materialised, adopted: Callable[..., Image]) -> None:
    image = adopted(b"a" + bytes(SIZE) + b"z")
    fd = files.open(image)
    assert fd is not None
    assert os.pread(fd, 2 * SIZE, 0) == b"a" + bytes(SIZE) + b"z"
    os.close(fd)


def test_an_image_without_one(files: Materialised) -> None:
    assert files.open(Image(id=uuid4(), size=SIZE, map_uuid=uuid4())) is None
    assert files.open(Image(id=uuid4())) is None


@pytest.mark.parametrize("limit, size", [(0, SIZE), (None, SIZE - 1)])
def test_not_wanted(tmp_path: Path, limit: int | None, size: int) -> None:
    files = Materialised(tmp_path / "cache", limit)
    staging = tmp_path / "staging"
    staging.write_bytes(bytes(size))
    assert not files.adopt(staging, Image(id=uuid4(), size=size, map_uuid=uuid4()))
    assert staging.exists()


def test_a_staging_file_that_was_removed_meanwhile(files: Materialised, tmp_path: Path) -> None:
    assert not files.adopt(tmp_path / "gone", Image(id=uuid4(), size=SIZE, map_uuid=uuid4()))


def _written(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"y")


def _replaced(path: Path) -> None:
    shutil.copyfile(path, path.with_name("other"))
    path.with_name("other").rename(path)


def _cut(path: Path) -> None:
    times = path.stat()
    os.truncate(path, SIZE - 1)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("change", [_written, _replaced, _cut])
def test_a_changed_file_is_not_trusted(
    files: Materialised, adopted: Callable[..., Image], tmp_path: Path, change: Callable[[Path], None]
) -> None:
    image = adopted()
    assert there(files, image)
    path = tmp_path / "cache" / str(image.map_uuid)
    path.chmod(0o600)
    change(path)
    assert not there(files, image)
    assert not path.exists()


def test_the_longest_unused_go_first(files: Materialised, adopted: Callable[..., Image]) -> None:
    images = [adopted(used=age) for age in (4, 1, 3, 2)]
    assert files.evict(SIZE) == SIZE
    assert [there(files, image) for image in images] == [True, False, True, True]


def test_opening_is_using(files: Materialised, adopted: Callable[..., Image]) -> None:
    old, new = adopted(used=1), adopted(used=2)
    assert there(files, old)
    files.evict(1)
    assert (there(files, old), there(files, new)) == (True, False)


def test_trimming_keeps_to_the_limit(files: Materialised, adopted: Callable[..., Image]) -> None:
    images = [adopted(used=age) for age in range(5)]
    files.trim()
    assert [there(files, image) for image in images] == [False, False, True, True, True]
    assert files.allocated() == 3 * SIZE
    files.trim()
    assert files.allocated() == 3 * SIZE


def test_an_open_file_outlives_its_name(files: Materialised, adopted: Callable[..., Image]) -> None:
    image = adopted()
    fd = files.open(image)
    assert fd is not None
    files.evict(SIZE)
    assert files.open(image) is None
    assert os.pread(fd, 3, 0) == b"xxx"
    os.close(fd)


def test_files_of_maps_that_are_gone(files: Materialised, adopted: Callable[..., Image], tmp_path: Path) -> None:
    kept, gone = adopted(), adopted()
    (tmp_path / "cache" / "no uuid").touch()
    asked: list[UUID] = []

    def wanted(map_uuid: UUID) -> bool:
        asked.append(map_uuid)
        return map_uuid == kept.map_uuid

    files.keep(wanted)
    assert sorted(asked) == sorted(image.map_uuid for image in (kept, gone) if image.map_uuid)
    assert os.listdir(tmp_path / "cache") == [str(kept.map_uuid)]


def test_what_dead_processes_were_making(tmp_path: Path) -> None:
    (tmp_path / f"{uuid4()}.plain").touch()
    (tmp_path / f"{uuid4()}.1").touch()
    going_on = tmp_path / f"{uuid4()}.plain"
    with going_on.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        materialising.remove_half_made(tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".1", ".plain"]
    assert going_on.exists()


def test_a_place_for_it(files: Materialised) -> None:
    assert files.has_place(3 * SIZE)
    assert not files.has_place(3 * SIZE + 1)
