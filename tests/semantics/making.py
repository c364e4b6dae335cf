"""Images for the tests of this directory, made as quickly as it goes."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from tests.mounted import Mounted


def draft(mount: Mounted, name: str, content: bytes) -> Path:
    """A draft with its mark, so that it is not sealed by itself."""
    path = mount.by_name / name
    os.mknod(path)
    os.setxattr(path, "user.imagefs.draft", b"1")
    path.write_bytes(content)
    return path


def seal(path: Path) -> None:
    """Seals at once, as `setfattr` does. The kernel tells of the last close a moment after close(2)."""
    deadline = time.monotonic() + 2
    while True:
        try:
            return os.setxattr(path, "user.imagefs.seal", b"1")
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def sealed(mount: Mounted, name: str, content: bytes) -> Path:
    """An active image."""
    path = draft(mount, name, content)
    seal(path)
    assert mount.image_status(path) == "active"
    return path


def by_id(mount: Mounted, path: Path) -> Path:
    """The image's directory, images/<id>."""
    return mount.images / str(mount.id(path))


def data(mount: Mounted, content: bytes) -> Path:
    """A draft with its mark and without a name, as images/<id>/data."""
    path = mount.new_directory() / "data"
    os.mknod(path)
    os.setxattr(path, "user.imagefs.draft", b"1")
    path.write_bytes(content)
    return path


def stored(mount: Mounted) -> set[Path]:
    """The objects that hold data."""
    return {path for path in (mount.repo / "store" / "packs").rglob("*") if path.is_file()}
