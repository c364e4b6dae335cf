"""gc of another process beside a mount: files that are open are read on while their blocks are moved and the old
packs deleted, and what was deleted comes back where the kernel has forgotten it."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from tests.content import MIB, noise
from tests.mounted import Mounted, wait_until


def reread(fd: int, size: int) -> bytes:
    """The file's bytes, asked of the mount again."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    return b"".join(os.pread(fd, MIB, at) for at in range(0, size, MIB))


def packs(mounted: Mounted) -> set[Path]:
    return {path for path in (mounted.repo / "store" / "packs").rglob("*") if path.is_file()}


def half_used(mounted: Mounted, name: str, seed: int) -> bytes:
    """An image that keeps 3 of 8 MiB of one that is gone."""
    old = noise(8 * MIB, seed)
    (mounted.by_name / f"{name}.old").write_bytes(old)
    mounted.wait_status(mounted.by_name / f"{name}.old")
    (mounted.by_name / name).write_bytes(old[2 * MIB : 5 * MIB])
    mounted.wait_status(mounted.by_name / name)
    (mounted.by_name / f"{name}.old").unlink()
    return old[2 * MIB : 5 * MIB]


def test_an_open_file_is_read_on_while_its_blocks_are_moved(kernel_mount: Mounted) -> None:
    content = half_used(kernel_mount, "kept", 1)
    before = packs(kernel_mount)
    wrong: list[str] = []
    stop = threading.Event()
    with (kernel_mount.by_name / "kept").open("rb") as file:

        def keep_reading() -> None:
            while not stop.is_set():
                try:
                    if reread(file.fileno(), len(content)) != content:
                        wrong.append("other bytes")
                except OSError as error:
                    wrong.append(str(error))

        reader = threading.Thread(target=keep_reading)
        reader.start()
        try:
            done = json.loads(kernel_mount.command("gc", "--json"))
            assert done["packs_rewritten"] == 1
            assert done["moved_bytes"] == len(content)
            wait_until(lambda: not packs(kernel_mount) & before, 20, "the old pack to be deleted")
        finally:
            stop.set()
            reader.join(30)
        assert reread(file.fileno(), len(content)) == content
    assert not wrong
    kernel_mount.command("fsck")


def test_copies_go_in_while_blocks_are_moved(kernel_mount: Mounted) -> None:
    contents = {f"kept {number}": half_used(kernel_mount, f"kept {number}", number) for number in range(2)}
    writers = [
        threading.Thread(target=(kernel_mount.by_name / f"new {number}").write_bytes, args=(content + content[:MIB],))
        for number, content in enumerate(contents.values())
    ]
    for writer in writers:
        writer.start()
    kernel_mount.command("gc")
    for number, (writer, content) in enumerate(zip(writers, list(contents.values()), strict=True)):
        writer.join(60)
        contents[f"new {number}"] = content + content[:MIB]
        kernel_mount.wait_status(kernel_mount.by_name / f"new {number}")
    kernel_mount.command("clone", "new 0", "clone")
    contents["clone"] = contents["new 0"]
    kernel_mount.command("gc")
    for name, content in contents.items():
        with (kernel_mount.by_name / name).open("rb") as file:
            assert reread(file.fileno(), len(content)) == content, name
    kernel_mount.command("fsck")


def test_undelete_is_seen_in_the_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config.toml"
    config.write_text("retention_seconds = 3600\n")
    monkeypatch.setenv("IMAGEFS_CONFIG", str(config))
    with Mounted(tmp_path) as mounted:
        path = mounted.by_name / "debian"
        path.write_bytes(noise(MIB, 1))
        mounted.wait_status(path)
        image = mounted.images / mounted.attribute(path, "user.image.id")
        path.unlink()
        assert not path.exists()
        assert not image.exists()
        mounted.command("undelete", "debian")
        wait_until(path.exists, 5, "the entry to be back")
        wait_until(image.exists, 5, "the directory to be back")
        assert path.read_bytes() == noise(MIB, 1)
        assert os.listdir(mounted.by_name) == ["debian"]
        assert (image / "data").stat().st_nlink == 2
        path.unlink()
        mounted.umount()
