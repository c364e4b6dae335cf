"""Figures of space and quotas, seen through a mount."""

from __future__ import annotations

import errno

import pytest

from tests.content import MIB, noise
from tests.mounted import Mounted, fails


def test_the_figures_as_files_and_attributes(own_mount: Mounted) -> None:
    first = own_mount.put("first", noise(2 * MIB, 1))
    second = own_mount.put("second", noise(2 * MIB, 1) + noise(MIB, 2))
    own_mount.wait_status(first)
    own_mount.wait_status(second)
    figures = {
        name: int(own_mount.attribute(second, f"user.imagefs.{name}_bytes") or -1) for name in ("unique", "shared")
    }
    assert figures["unique"] == pytest.approx(MIB, rel=0.02)
    assert figures["shared"] == pytest.approx(2 * MIB, rel=0.02)
    lines = dict(line.split(": ", 1) for line in (own_mount.path / ".imagefs/status").read_text().splitlines())
    status = own_mount.status()
    for name in ("logical_bytes", "stored_bytes", "unique_bytes", "shared_bytes", "reclaimable_bytes"):
        assert int(lines[name]) == status[name]
    assert status["logical_bytes"] == 5 * MIB
    assert status["shared_bytes"] == pytest.approx(2 * MIB, rel=0.02)


def test_a_full_quota_stops_the_writer_and_nothing_else(own_mount: Mounted) -> None:
    first = own_mount.put("first", noise(2 * MIB, 1))
    own_mount.wait_status(first)
    own_mount.command("quota", "set", "-", "--logical", "4M")
    over = own_mount.by_name / "over"
    with pytest.raises(OSError) as caught, over.open("wb", buffering=0) as file:
        for _ in range(5):
            file.write(noise(MIB, 3))
    assert caught.value.errno == errno.EDQUOT
    assert "quota" in own_mount.stays_draft(over)
    fails("cp", first, own_mount.by_name / "copy", says="Disk quota exceeded")
    over.unlink()
    assert first.read_bytes() == noise(2 * MIB, 1)
    first.rename(own_mount.by_name / "renamed")
    (own_mount.by_name / "renamed").unlink()
    again = own_mount.put("again", noise(MIB, 4))
    own_mount.wait_status(again)
