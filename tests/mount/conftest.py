"""Mounts for the tests of this directory."""

from __future__ import annotations

import ctypes.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.disks import Disk, mini
from tests.disks.packages import Unavailable
from tests.mounted import TRANSPORTS, Mounted


def _require(transport: str) -> None:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no access to /dev/fuse")
    if transport == "fusepy" and ctypes.util.find_library("fuse") is None:
        pytest.skip("libfuse 2 is not installed (Debian: libfuse2)")


@pytest.fixture(scope="module", params=TRANSPORTS)
def _shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    _require(request.param)
    with Mounted(tmp_path_factory.mktemp("shared"), transport=request.param) as mounted:
        yield mounted


@pytest.fixture
def mount(_shared: Mounted) -> Mounted:
    """The module's mount, over each transport in turn. Tests use names of their own in it."""
    if not _shared.is_mounted():
        _shared.destroy()  # an earlier test of the module broke it
        _shared.mount()
    _shared.stir()
    return _shared


@pytest.fixture(params=TRANSPORTS)
def own_mount(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mounted]:
    """A mount for this test alone, over each transport in turn."""
    _require(request.param)
    with Mounted(tmp_path, transport=request.param) as mounted:
        yield mounted


@pytest.fixture
def kernel_mount(tmp_path: Path) -> Iterator[Mounted]:
    """A mount for this test alone over the kernel transport."""
    _require("kernel")
    with Mounted(tmp_path) as mounted:
        yield mounted


@pytest.fixture
def public_directory() -> Iterator[Path]:
    """A directory that every user of the machine can reach, which pytest's own are not."""
    path = Path(tempfile.mkdtemp(prefix="imagefs-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def mini_disk() -> Disk:
    """The small bootable disk (see tests.disks)."""
    try:
        return mini()
    except Unavailable as reason:
        pytest.skip(str(reason))
