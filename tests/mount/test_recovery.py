"""The catalog lost under a mount that was killed: everything older than 5 s comes back, as people see it."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from tests.content import noise
from tests.mounted import Mounted, run


def seen(mount: Mounted) -> dict[str, object]:
    """Names, attributes, modes, times and bytes of everything in by-name/, and the directories of images/."""
    found: dict[str, object] = {"images": sorted(os.listdir(mount.images))}
    for path in sorted(mount.by_name.iterdir()):
        status = path.stat()
        attributes = {name: os.getxattr(path, name) for name in os.listxattr(path)}
        found[path.name] = (
            attributes, oct(status.st_mode), status.st_uid, status.st_mtime_ns, status.st_ctime_ns, status.st_ino,
            status.st_size, path.read_bytes(),
        )  # fmt: skip
        record = mount.images / str(mount.id(path)) / "metadata.json"
        found[f"{path.name} record"] = json.loads(record.read_text())
    return found


@pytest.mark.timeout(200)
def test_images_come_back_as_they_were_5_s_before(kernel_mount: Mounted) -> None:
    mount = kernel_mount
    first = mount.put("first", noise(500_000, 1) + bytes(1 << 20) + noise(10_000, 2))
    second = mount.put("Ä second", noise(500_000, 1) + b"more")
    gone = mount.put("gone", noise(70_000, 3))
    mount.command("clone", "first", "clone")
    draft = mount.by_name / "draft"
    draft.write_bytes(noise(90_000, 4))
    os.setxattr(draft, "user.imagefs.draft", b"1")
    os.setxattr(first, "user.property.os_distro", b"debian")
    os.setxattr(first, "user.image.tags", b"a,b%2Cc")
    os.setxattr(second, "user.note", b"\x00\xff")
    second.chmod(0o640)
    second.rename(mount.by_name / "second")
    gone.unlink()
    for path in (first, mount.by_name / "second", mount.by_name / "clone"):
        # md5 and sha512 follow by themselves.
        deadline = time.monotonic() + 30
        while not mount.attribute(path, "user.image.os_hash_value") and time.monotonic() < deadline:
            time.sleep(0.1)
    before = seen(mount)
    time.sleep(5)
    mount.kill()
    run("umount", "-l", mount.path)
    shutil.rmtree(mount.repo / "catalog")
    done = json.loads(mount.command("rebuild", "--json"))
    assert (done["images"], done["drafts"], done["lost"]) == (4, 1, [])
    mount.mount()
    assert seen(mount) == before
    assert not (mount.by_name / "gone").exists()
    os.removexattr(draft, "user.imagefs.draft")
    assert "rebuilt" in (mount.blocked(draft) or "")
    mount.command("seal", "draft")
    assert draft.read_bytes() == noise(90_000, 4)
    mount.command("fsck")
    mount.command("scrub", "--deep")


def test_a_repository_that_is_mounted_is_not_rebuilt(kernel_mount: Mounted, tmp_path: Path) -> None:
    kernel_mount.put("image", b"x")
    assert "in use" in kernel_mount.imagefs("rebuild", "--force").stderr
    kernel_mount.command("backup", tmp_path / "copy")
    assert "in use" in kernel_mount.imagefs("restore", tmp_path / "copy").stderr
    assert kernel_mount.imagefs("restore", tmp_path / "copy").returncode == 6
    kernel_mount.command("scrub", "--heal", "--deep")
    kernel_mount.command("fsck", "--repair")
    assert (kernel_mount.by_name / "image").read_bytes() == b"x"
