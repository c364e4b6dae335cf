"""Catalogs that are truncated or restored from older copies: said clearly, before anything is written."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from imagefs.errors import CatalogBehind, CatalogDamaged
from imagefs.images import fsck
from imagefs.images.repository import Repository
from tests.content import noise
from tests.repositories import CONFIG, opened

ROOT = Path(__file__).parents[2]
OPEN = """
import sys
from pathlib import Path
from imagefs.catalog import Catalog, Query
from imagefs.errors import CatalogDamaged
try:
    catalog = Catalog.open(Path(sys.argv[1]))
except CatalogDamaged as error:
    print(error)
else:
    print("opened", len(catalog.images.query(Query())), len(list(catalog.packs.scan())), catalog.info() and "")
    catalog.close()
"""


def open_in_a_child(path: Path) -> str:
    """What came of it. A page that is not there kills the process that touches it."""
    command = [sys.executable, "-c", OPEN, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr}"
    return done.stdout.strip()


@pytest.fixture
def catalog(repo_dir: Path) -> Path:
    """One with some hundred images and a sealed one."""
    with opened(repo_dir) as it:
        it.sealed("image", noise(100_000, 1))
        with it.repo.catalog.transaction():
            for number in range(300):
                it.images.create(f"image {number}", properties={"key": "value" * 50})
    return repo_dir / "catalog"


@pytest.mark.parametrize("part", [0.0, 0.0001, 0.02, 0.1, 0.5, 0.9])
def test_a_truncated_catalog_is_refused(catalog: Path, part: float) -> None:
    data = catalog / "data.mdb"
    size = data.stat().st_size
    with data.open("r+b") as file:
        file.truncate(int(size * part) // 8 * 8)
    said = open_in_a_child(catalog)
    assert "catalog" in said.lower(), said
    assert "opened" not in said
    with pytest.raises(CatalogDamaged):
        Repository.open(catalog.parent, CONFIG, "cli")


def test_a_catalog_that_lacks_its_end_is_whole_or_refused(catalog: Path) -> None:
    data = catalog / "data.mdb"
    whole = open_in_a_child(catalog)
    assert whole.startswith("opened 301")
    size = data.stat().st_size
    for pages in range(1, 12, 3):
        with data.open("r+b") as file:
            file.truncate(size - 4096 * pages)
        assert open_in_a_child(catalog) == whole or "truncated" in open_in_a_child(catalog)


def test_a_missing_catalog_is_refused(catalog: Path) -> None:
    shutil.rmtree(catalog)
    with pytest.raises(CatalogDamaged, match="no catalog"):
        Repository.open(catalog.parent, CONFIG, "cli")


def test_a_catalog_older_than_its_log_is_refused(repo_dir: Path, tmp_path: Path) -> None:
    with opened(repo_dir) as it:
        it.sealed("first", noise(50_000, 1))
    shutil.copytree(repo_dir / "catalog", tmp_path / "older")
    with opened(repo_dir) as it:
        second = it.sealed("second", noise(50_000, 2))
    shutil.move(repo_dir / "catalog", tmp_path / "newer")
    shutil.copytree(tmp_path / "older", repo_dir / "catalog")
    before = {path: path.stat().st_mtime_ns for path in (repo_dir / "store").rglob("*")}
    with pytest.raises(CatalogBehind, match="older copy"):
        Repository.open(repo_dir, CONFIG, "cli")
    assert {path: path.stat().st_mtime_ns for path in (repo_dir / "store").rglob("*")} == before
    shutil.rmtree(repo_dir / "catalog")
    shutil.move(tmp_path / "newer", repo_dir / "catalog")
    with opened(repo_dir) as it:
        assert it.read(second.id) == noise(50_000, 2)
        assert not fsck.check(it.repo)
