"""QEMU's tools with images in the mount: converted in and out, compared, served, overlaid."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.content import MIB, write_sparse
from tests.disks import Disk, boot
from tests.mounted import Mounted, fails, ok, run, wait_until

FORMATS = {
    "raw": [],
    "qcow2": [],
    "qcow2-compressed": ["-c"],
    "vmdk": [],
    "vmdk-stream": ["-o", "subformat=streamOptimized"],
    "vdi": [],
    "vpc": ["-o", "force_size=on"],
    "vhdx": [],
}
"""Images of one file: what qemu-img calls them, and options. Without force_size a vpc has another size."""

GLANCE_NAMES = {"vpc": "vhd"}
CHECKED = {"qcow2", "vmdk", "vdi", "vhdx"}
"""qemu-img check supports no others."""


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sparse raw disk of 24 MiB."""
    path = tmp_path_factory.mktemp("disk") / "disk.raw"
    write_sparse(path, seed=50)
    return path


@pytest.mark.parametrize("kind", FORMATS)
def test_convert_into_the_mount_and_out_again(mount: Mounted, disk: Path, kind: str) -> None:
    format_name = kind.partition("-")[0]
    image, back = mount.by_name / f"converted.{kind}", mount.outside / "back.raw"
    ok("qemu-img", "convert", "-f", "raw", "-O", format_name, *FORMATS[kind], disk, image)
    mount.wait_status(image)
    if format_name in CHECKED:
        ok("qemu-img", "check", "-f", format_name, image)
    info = json.loads(ok("qemu-img", "info", "-f", format_name, "--output=json", image))
    assert info["virtual-size"] == 24 * MIB
    ok("qemu-img", "compare", "-f", "raw", "-F", format_name, disk, image)
    ok("qemu-img", "convert", "-f", format_name, "-O", "raw", image, back)
    ok("cmp", disk, back)
    back.unlink()
    assert mount.attribute(image, "user.image.disk_format") == GLANCE_NAMES.get(format_name, format_name)
    if format_name != "vpc":
        assert mount.attribute(image, "user.image.virtual_size") == str(24 * MIB)


@pytest.mark.parametrize("kind", ["raw", "qcow2", "vdi"])
def test_copied_in_and_unmounted_it_is_the_same_file(own_mount: Mounted, disk: Path, tmp_path: Path, kind: str) -> None:
    source = tmp_path / f"disk.{kind}"
    ok("qemu-img", "convert", "-f", "raw", "-O", kind, disk, source)
    ok("cp", source, own_mount.by_name)
    image = own_mount.by_name / source.name
    own_mount.wait_status(image)
    own_mount.remount()
    ok("cmp", source, image)
    ok("qemu-img", "compare", "-f", kind, "-F", kind, source, image)


def test_convert_with_direct_io(mount: Mounted, disk: Path) -> None:
    image, back = mount.by_name / "direct.qcow2", mount.outside / "direct-back.raw"
    ok("qemu-img", "convert", "-t", "none", "-T", "none", "-f", "raw", "-O", "qcow2", disk, image)
    mount.wait_status(image)
    ok("qemu-img", "convert", "-t", "none", "-T", "none", "-f", "qcow2", "-O", "raw", image, back)
    ok("cmp", disk, back)


def test_convert_into_an_existing_draft(mount: Mounted, disk: Path) -> None:
    """`convert -n` punches holes where it can and writes zeros where it cannot."""
    image = mount.by_name / "existing.raw"
    ok("qemu-img", "create", "-q", "-f", "raw", image, "24M")
    ok("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", disk, image)
    mount.wait_status(image)
    ok("cmp", disk, image)


def test_convert_inside_the_mount(mount: Mounted, disk: Path) -> None:
    ok("cp", disk, mount.by_name / "inside.raw")
    mount.wait_status(mount.by_name / "inside.raw")
    for flags in ([], ["-C"]):
        image = mount.by_name / f"inside{len(flags)}.copy"
        ok("qemu-img", "convert", *flags, "-f", "raw", "-O", "raw", mount.by_name / "inside.raw", image)
        mount.wait_status(image)
        ok("cmp", disk, image)


def test_map_and_measure_see_the_holes(mount: Mounted, disk: Path) -> None:
    mount.needs("lseek")
    image = mount.by_name / "mapped.raw"
    ok("cp", disk, image)
    mount.wait_status(image)
    for words in (["map", "--output=json"], ["measure", "-O", "qcow2", "--output=json"]):
        seen = [json.loads(ok("qemu-img", *words, "-f", "raw", path)) for path in (disk, image)]
        assert seen[0] == seen[1]


def test_overlay_on_a_sealed_image(mount: Mounted, disk: Path) -> None:
    """S4: sealed data never changes under its id; that is what lets overlays be built on it."""
    base = mount.by_name / "base.qcow2"
    ok("qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk, base)
    mount.wait_status(base)
    before = base.read_bytes()
    data = mount.images / str(mount.id(base)) / "data"
    overlay = mount.outside / "overlay.qcow2"
    ok("qemu-img", "create", "-q", "-f", "qcow2", "-b", data, "-F", "qcow2", overlay)
    ok("qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 2M", overlay)
    ok("qemu-io", "-f", "qcow2", "-c", "read -P 7 1M 2M", overlay)
    ok("qemu-img", "check", "-f", "qcow2", overlay)
    assert base.read_bytes() == before
    fails("qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 2M", base, says="not permitted")
    fails("qemu-img", "commit", "-q", "-f", "qcow2", overlay)
    assert base.read_bytes() == before
    overlay.unlink()


def test_an_overlay_can_be_an_image_itself(mount: Mounted, disk: Path) -> None:
    base, overlay = mount.by_name / "below.qcow2", mount.by_name / "above.qcow2"
    ok("qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk, base)
    mount.wait_status(base)
    data = mount.images / str(mount.id(base)) / "data"
    ok("qemu-img", "create", "-q", "-f", "qcow2", "-b", data, "-F", "qcow2", overlay)
    ok("qemu-io", "-f", "qcow2", "-c", "write -P 9 2M 64k", overlay)
    mount.wait_status(overlay)
    ok("qemu-io", "-r", "-f", "qcow2", "-c", "read -P 9 2M 64k", overlay)


def test_a_second_writer_of_a_draft_is_refused(mount: Mounted) -> None:
    """qemu takes byte-range locks on open file descriptions, which the kernel keeps itself."""
    image, socket = mount.by_name / "shared-draft.raw", mount.outside / "locked"
    ok("qemu-img", "create", "-q", "-f", "raw", image, "8M")
    with subprocess.Popen(["qemu-nbd", "-f", "raw", "-k", socket, image]) as first:
        try:
            wait_until(socket.exists, 20, "qemu-nbd")
            fails("qemu-img", "resize", "-f", "raw", image, "9M", says="lock")
        finally:
            first.terminate()
            first.wait(20)
    ok("qemu-img", "resize", "-f", "raw", image, "9M")


@pytest.fixture
def served(mount: Mounted, disk: Path) -> Iterator[str]:
    """The URL under which qemu-nbd serves an image of the mount."""
    image, socket = mount.by_name / "served.qcow2", mount.outside / "nbd"
    if not image.exists():
        ok("qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk, image)
        mount.wait_status(image)
    server = subprocess.Popen(
        ["qemu-nbd", "--read-only", "--format=qcow2", "--cache=none", "--aio=native", "-k", socket, image]
    )
    wait_until(socket.exists, 20, "qemu-nbd")
    yield f"nbd+unix:///?socket={socket}"
    if server.poll() is None:
        server.terminate()
    server.wait(20)


def test_qemu_nbd(mount: Mounted, disk: Path, served: str) -> None:
    back = mount.outside / "nbd.raw"
    ok("qemu-img", "convert", "-O", "raw", served, back)
    ok("cmp", disk, back)


def test_a_machine_boots_from_by_name(kernel_mount: Mounted, mini_disk: Disk, tmp_path: Path) -> None:
    """The guest's own checksum of its payload is the proof."""
    if run("qemu-system-x86_64", "--version").returncode:
        pytest.skip("qemu-system-x86_64 is not installed")
    ok("cp", mini_disk.qcow2, kernel_mount.by_name / "mini.qcow2")
    image = kernel_mount.by_name / "mini.qcow2"
    kernel_mount.wait_status(image)
    guest = boot(image, tmp_path / "console", fmt="qcow2", cache="none", aio="native", snapshot=True)
    assert guest == {"mode": "rw", "payload": mini_disk.payload, "boots": "0", "written": "ok"}
    ok("cmp", mini_disk.qcow2, image)
