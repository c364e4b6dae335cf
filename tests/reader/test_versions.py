"""A repository of every version of the format that there was is opened, read, written and checked by this imagefs.

The archives in tests/repositories were made by the imagefs of their time, with make.py as it was then.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from imagefs.blocks.superblock import VERSION
from imagefs.config import Config
from imagefs.images import fsck
from imagefs.types import Kind, Status
from tests.reader import reader
from tests.repositories import USER, opened

HERE = Path(__file__).parents[1] / "repositories"
ARCHIVES = sorted(HERE.glob("v*.tar.xz"))


def made() -> Any:
    """make.py: what the archives hold."""
    spec = importlib.util.spec_from_file_location("make", HERE / "make.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def unpack(archive: Path, into: Path) -> dict[str, str]:
    """Unpacks the repository to `into`/repository; returns name -> id of its images."""
    with tarfile.open(archive) as packed:
        packed.extractall(into, filter="data")
    found: dict[str, str] = json.loads((into / "manifest.json").read_bytes())["images"]
    return found


def expected(name: str) -> list[tuple[int, bytes]]:
    """(offset, bytes) to be found in an image of the archive."""
    make = made()
    source = {"copy": "first", "renamed \u20ac": "shares"}.get(name, name)
    return list(make.FAR) if name == "far" else [(0, make.CONTENT[source])]


def test_there_is_one_of_every_version() -> None:
    assert [path.name for path in ARCHIVES] == [f"v{number}.tar.xz" for number in range(1, VERSION + 1)]
    assert all(path.stat().st_size < 100_000 for path in ARCHIVES)


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.name)
def test_it_is_listed_read_checked_and_written(archive: Path, tmp_path: Path) -> None:
    ids = unpack(archive, tmp_path)
    with opened(tmp_path / "repository", Config()) as it:
        images = {
            str(it.images.get(attrs.id).name): attrs.id for _, attrs in it.repo.catalog.images.walk(Kind.DIRECTORY)
        }
        assert {name: str(image_id) for name, image_id in images.items()} == ids
        for name, image_id in images.items():
            image = it.images.get(image_id)
            assert image.status == Status.ACTIVE
            handle = it.files.open(image.data_ino, os.O_RDONLY, USER, it.files.new_fh())
            for offset, content in expected(name):
                assert handle.pread(offset, len(content)) == content, name
            it.files.release(handle.fh)
        far = it.images.get(images["far"])
        assert (far.size, far.properties, far.tags) == (made().FAR_SIZE, {"os_distro": "debian"}, ("a,b",))
        assert fsck.check(it.repo, lambda rule: None) == []
        assert it.repo.catalog.usage.of_all().images == len(ids), "what an older catalog did not count is counted"
        new = it.sealed("new", made().CONTENT["first"])
        assert it.read(new.id) == made().CONTENT["first"]
        it.images.delete(images["far"])
        it.collect()
        assert fsck.check(it.repo, lambda rule: None) == []


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.name)
def test_the_second_reader_reads_it(archive: Path, tmp_path: Path) -> None:
    ids = unpack(archive, tmp_path)
    repo = reader.Repository(tmp_path / "repository")
    images = {record["name"]: record for record in repo.images().values()}
    assert {name: record["id"] for name, record in images.items()} == ids
    for name, record in images.items():
        repo.write(record, tmp_path / "out")
        with io.FileIO(tmp_path / "out") as file:
            assert file.seek(0, os.SEEK_END) == record["size"]
            for offset, content in expected(name):
                assert os.pread(file.fileno(), len(content), offset) == content
        if name != "far":
            assert repo.root(record) == record["root"]
