"""docs/format.md is enough to read a repository: reader.py was written from it, and imports nothing of imagefs."""

from __future__ import annotations

import ast
import hashlib
import os
import shutil
from pathlib import Path
from uuid import UUID

import pytest

from imagefs.images.compaction import Compactor
from imagefs.images.convert import Converter
from imagefs.images.hashtask import fill_in_hashes
from tests import compressed
from tests.reader import reader
from tests.repositories import Opened, opened

MIB = 1 << 20


def fill(it: Opened) -> dict[UUID, bytes]:
    """Images that share blocks, repeat and compress them; one cloned, one renamed, one deleted."""
    text = b"".join(b"%09d\n" % n for n in range(300_000))
    noise = os.urandom(2 * MIB + 5)
    contents = {
        "text": text,
        "noise": noise,
        "both": text[:MIB] + bytes(MIB) + noise[:MIB] + text[: MIB // 2] + b"end",
        "empty": b"",
        "hole": bytes(3 * MIB),
        "deleted": os.urandom(MIB),
    }
    made = {name: it.sealed(name, content) for name, content in contents.items()}
    copy = it.images.clone(made["both"].id, "copy")
    it.images.set_fields(made["noise"].id, {"name": "renamed"})
    it.images.delete(made["deleted"].id)
    it.repo.logs.flush()
    found = {made[name].id: content for name, content in contents.items() if name != "deleted"}
    return found | {copy.id: contents["both"]}


def test_it_imports_nothing_of_imagefs() -> None:
    tree = ast.parse(Path(reader.__file__).read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not [name for name in names if name.partition(".")[0] in ("imagefs", "tests", "lmdb")]


def test_everything_is_read_without_the_catalog(repo_dir: Path, tmp_path: Path) -> None:
    with opened(repo_dir) as it:
        contents = fill(it)
        wanted = {image_id: it.images.get(image_id) for image_id in contents}
    for name in ("catalog", "index", "volatile", "imagefs.json"):
        path = repo_dir / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    repo = reader.Repository(repo_dir)
    images = repo.images()
    assert images.keys() == contents.keys()
    for image_id, content in contents.items():
        record, image = images[image_id], wanted[image_id]
        assert (record["name"], record["size"], record["root"]) == (image.name, image.size, image.root)
        assert record["entry"].encode() == image.entry
        assert repo.root(record) == image.root
        repo.write(record, tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == content


def test_its_own_commands(repo_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(repo_dir) as it:
        image = it.sealed("first", b"content" * 1000)
    reader.main([str(repo_dir), "--verify"])
    assert capsys.readouterr().out == f"{image.id} active 7000 first\n"
    for word in ("first", str(image.id)):
        reader.main([str(repo_dir), word, str(tmp_path / "out")])
        assert hashlib.sha256((tmp_path / "out").read_bytes()).digest() == hashlib.sha256(b"content" * 1000).digest()


def test_a_snapshot_stands_for_the_log_before_it(repo_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagefs.images.logs.SNAPSHOT_EVERY", 2)
    with opened(repo_dir) as it:
        kept, gone = it.sealed("kept", b"a" * 5000), it.sealed("gone", b"b" * 5000)
        it.images.delete(gone.id)
        it.repo.logs.flush()
        it.repo.logs.snapshot_when_due()
        assert list(it.inner.list("snap/"))
        later = it.sealed("later", b"c" * 5000)
    assert reader.Repository(repo_dir).images().keys() == {kept.id, later.id}


@pytest.mark.parametrize("where", ["packs", "maps", "log"])
def test_a_flipped_bit_is_found(repo_dir: Path, where: str) -> None:
    with opened(repo_dir) as it:
        it.sealed("first", os.urandom(100_000))
    path = max((repo_dir / "store" / where).rglob("*"), key=lambda path: path.is_file())
    data = bytearray(path.read_bytes())
    for at in (5000 % len(data), len(data) - 100, len(data) - 10, len(data) - 60):
        damaged = bytearray(data)
        damaged[at] ^= 4
        path.chmod(0o600)
        path.write_bytes(damaged)
        with pytest.raises(reader.Wrong):
            repo = reader.Repository(repo_dir)
            for record in repo.images().values():
                repo.root(record)


@pytest.mark.parametrize("kind", ["qcow2", "vmdk"])
def test_a_converted_image(repo_dir: Path, tmp_path: Path, kind: str) -> None:
    disk = compressed.disk(1, 11)
    content = compressed.qcow2(disk) if kind == "qcow2" else compressed.vmdk(disk)
    with opened(repo_dir) as it:
        it.sealed("raw", disk)
        image = it.sealed("compressed", content)
        fill_in_hashes(it.repo, image.id, lambda: False)
        Converter(it.repo).convert(image.id)
        it.collect()
    repo = reader.Repository(repo_dir)
    record = repo.images()[image.id]
    assert record["layout"] == "recode"
    assert repo.root(record) == image.root
    repo.write(record, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == content


def test_blocks_that_a_rewrite_moved(repo_dir: Path, tmp_path: Path) -> None:
    common, rest = os.urandom(MIB), os.urandom(7 * MIB)
    with opened(repo_dir) as it:
        gone, kept = it.sealed("gone", common + rest), it.sealed("kept", common)
        (before,) = it.objects_of(kept)
        it.images.delete(gone.id)
        it.collect()
        Compactor(it.repo).execute(Compactor(it.repo).plan())
        it.collect()
        assert it.objects_of(kept) != [before], "the pack that it was in is rewritten"
        assert before not in it.objects()
    repo = reader.Repository(repo_dir)
    repo.write(repo.images()[kept.id], tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == common
