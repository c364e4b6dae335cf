"""The recipes of the two disks, and the cache that builds each once."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.disks import initramfs, partition
from tests.disks.packages import Unavailable, kernel_package, run, unpack

MIB = 1 << 20
GRUB_PACKAGES = ["grub-pc-bin", "grub-common", "libdevmapper1.02.1"]


@dataclass(frozen=True)
class Disk:
    """A bootable disk in two formats with the same guest-visible bytes. Never written by a test: copy it."""

    raw: Path
    qcow2: Path
    kernel: Path
    initrd: Path
    payload: str
    """SHA-256 of the guest's payload file, hex: what a guest that booted from true bytes prints."""


def cache_directory() -> Path:
    """Where built disks are kept: `imagefs-tests` under the XDG cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "imagefs-tests"


def _recipe_key() -> str:
    """Changes when a recipe or the Debian release does; a new kernel package alone builds nothing anew."""
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("[ipr]*.py")))
    release = platform.freedesktop_os_release().get("VERSION_ID", "unknown")
    return hashlib.sha256(sources + release.encode()).hexdigest()[:12]


def _built(name: str, build: Callable[[Path], None]) -> Disk:
    """The disk of that name, built under a lock if this machine has none of today's recipe."""
    base = cache_directory()
    base.mkdir(parents=True, exist_ok=True)
    home = base / f"{name}-{_recipe_key()}"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not home.exists():
            _forget_unused(base, name)
            with tempfile.TemporaryDirectory(dir=base, prefix=f".{name}-") as work:
                made = Path(work) / "disk"
                made.mkdir()
                build(made)
                made.rename(home)
    (home / "disk.json").touch()
    record = json.loads((home / "disk.json").read_text())
    return Disk(home / "disk.raw", home / "disk.qcow2", home / "vmlinuz", home / "initrd", record["payload"])


def _forget_unused(base: Path, name: str) -> None:
    """Removes disks of other recipes, but none that a checkout of another version has used this week."""
    for record in base.glob(f"{name}-*/disk.json"):
        if time.time() - record.stat().st_mtime > 7 * 86400:
            shutil.rmtree(record.parent)


def _finish(home: Path, payload: str) -> None:
    """The qcow2 beside the raw disk, and the record."""
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", home / "disk.raw", home / "disk.qcow2")
    (home / "disk.json").write_text(json.dumps({"payload": payload}))


def _payload(target: Path, size: int) -> str:
    """Writes incompressible bytes, the same on every machine; their SHA-256."""
    content = random.Random(0x1A6E).randbytes(size)
    target.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def _build_mini(home: Path) -> None:
    tools, root = home.with_name("tools"), home.with_name("root")
    unpack([*GRUB_PACKAGES, "busybox-static", kernel_package()], tools)
    (root / "boot").mkdir(parents=True)
    shutil.copy(next(tools.glob("boot/vmlinuz-*")), home / "vmlinuz")
    busybox = next(path for path in (tools / "bin/busybox", tools / "usr/bin/busybox") if path.exists())
    initramfs.build(busybox, tools, home / "initrd")
    shutil.copy(home / "vmlinuz", root / "boot/vmlinuz")
    shutil.copy(home / "initrd", root / "boot/initrd")
    payload = _payload(root / "payload", 6 * MIB)
    (root / "boots").write_text("0\n")
    partition.format_root(home / "disk.raw", 128 * MIB, root)
    partition.install_grub(home / "disk.raw", tools, "console=ttyS0 quiet panic=-1", "/boot/vmlinuz", "/boot/initrd")
    _finish(home, payload)


DEBIAN_PACKAGES = "systemd-sysv,udev,dbus,linux-image-cloud-amd64"
PROOF_UNIT = """[Unit]
Description=Print the checksum of the payload
Before=serial-getty@ttyS0.service
[Service]
Type=oneshot
StandardOutput=tty
TTYPath=/dev/ttyS0
ExecStart=/bin/sh -c 'echo "GUEST mode=systemd payload=$(sha256sum /var/lib/payload | cut -c1-64)"'
[Install]
WantedBy=multi-user.target
"""


def _build_debian(home: Path) -> None:
    tools = home.with_name("tools")
    unpack(GRUB_PACKAGES, tools)
    payload = _payload(home.with_name("payload"), 16 * MIB)
    unit = home.with_name("proof.service")
    unit.write_text(PROOF_UNIT)
    codename = platform.freedesktop_os_release()["VERSION_CODENAME"]
    tree = home.with_name("root.tar")
    # With no mirror named, mmdebstrap takes the apt sources of this machine.
    run(
        *("mmdebstrap", "--quiet", "--variant=minbase", f"--include={DEBIAN_PACKAGES}"),
        f"--customize-hook=upload {home.with_name('payload')} /var/lib/payload",
        f"--customize-hook=upload {unit} /etc/systemd/system/proof.service",
        '--customize-hook=chroot "$1" systemctl enable proof.service',
        '--customize-hook=echo debian >"$1/etc/hostname"',
        '--customize-hook=rm -f "$1"/var/cache/apt/*.bin "$1"/var/lib/apt/lists/*_*',
        *(codename, tree),
        timeout=1200,
    )  # fmt: skip
    _disk_of_tree(home, tree, tools)
    _finish(home, payload)


def _disk_of_tree(home: Path, tree: Path, tools: Path) -> None:
    """The tree as a bootable 2 GiB disk."""
    if os.geteuid() != 0:
        raise Unavailable("the whole Debian disk is built as root: its files have many owners")
    root = home.with_name("root")
    root.mkdir()
    run("tar", "-x", "--numeric-owner", "--xattrs", "-C", root, "-f", tree)
    shutil.copy(next(root.glob("boot/vmlinuz-*")), home / "vmlinuz")
    shutil.copy(next(root.glob("boot/initrd.img-*")), home / "initrd")
    for name in ("vmlinuz", "initrd"):
        shutil.copy(home / name, root / "boot" / name)
    partition.format_root(home / "disk.raw", 2048 * MIB, root)
    partition.install_grub(home / "disk.raw", tools, "root=/dev/vda1 rw console=ttyS0", "/boot/vmlinuz", "/boot/initrd")


def mini() -> Disk:
    """A disk of 128 MiB that boots in seconds, prints its proof and powers off (see initramfs.INIT)."""
    return _built("mini", _build_mini)


def debian() -> Disk:
    """Debian with systemd on a sparse disk of 2 GiB; boots to a login line on the serial console."""
    return _built("debian", _build_debian)
