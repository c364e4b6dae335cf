"""Mounts for the tests of this directory: one for each file of tests, and one for a test that breaks it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounted import Mounted


@pytest.fixture(scope="module")
def _shared() -> Iterator[Mounted]:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no access to /dev/fuse")
    # Another user must reach it, which pytest's own directories do not allow.
    base = Path(tempfile.mkdtemp(prefix="imagefs-test-"))
    base.chmod(0o755)
    mounted = Mounted(base)
    if os.geteuid() == 0:
        mounted.options = ("--allow-other", "--project", "a-project")
    try:
        with mounted:
            yield mounted
    finally:
        shutil.rmtree(base)


@pytest.fixture
def mount(_shared: Mounted) -> Mounted:
    """The module's mount, over the kernel transport. Tests use names of their own in it."""
    if not _shared.is_mounted():
        _shared.destroy()  # an earlier test of the module broke it
        _shared.mount()
    _shared.stir()
    return _shared


@pytest.fixture
def unmounted(tmp_path: Path) -> Iterator[Mounted]:
    """A repository and a mountpoint for this test alone; the test mounts it, the end unmounts it."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no access to /dev/fuse")
    mounted = Mounted(tmp_path)
    yield mounted
    mounted.destroy()


@pytest.fixture
def own_mount(unmounted: Mounted) -> Mounted:
    """A mount for this test alone."""
    unmounted.mount()
    return unmounted
