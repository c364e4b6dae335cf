"""A busybox initramfs whose init proves what the disk holds and powers off."""

from __future__ import annotations

import gzip
import io
import lzma
import re
from collections.abc import Iterator
from pathlib import Path

WANTED = ("virtio_pci", "virtio_blk", "ext4", "crc32c_generic")
"""Modules the guest needs; those that the kernel has built in are simply not found."""

INIT = """#!/bin/busybox sh
export PATH=/bin
busybox mkdir -p /dev /proc /sys /root
busybox mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
for module in /modules/*.ko; do busybox insmod $module; done
tries=0
while [ ! -b /dev/vda1 ] && [ $tries -lt 100 ]; do busybox sleep 0.1; tries=$((tries + 1)); done
ro=$(busybox cat /sys/block/vda/ro)
if [ "$ro" = 1 ]; then mode=ro; else mode=rw; fi
busybox mount -t ext4 -o $mode /dev/vda1 /root
payload=$(busybox sha256sum /root/payload | busybox cut -d' ' -f1)
boots=$(busybox cat /root/boots)
written=no
if [ $mode = rw ]; then
    echo $((boots + 1)) >/root/boots
    busybox dd if=/root/payload of=/root/copy bs=64k count=16 2>/dev/null
    busybox sync
    echo 3 >/proc/sys/vm/drop_caches
    want=$(busybox dd if=/root/payload bs=64k count=16 2>/dev/null | busybox sha256sum)
    if [ "$(busybox sha256sum </root/copy)" = "$want" ]; then written=ok; else written=BAD; fi
    busybox umount /root
fi
busybox sync
echo "GUEST mode=$mode payload=$payload boots=$boots written=$written"
echo "GUEST-DONE"
busybox poweroff -f
"""
"""Also counts its boots and copies 1 MiB of the payload when the disk is writable: writes are proved too."""


def _module_files(root: Path) -> dict[str, Path]:
    """Every module's file under the unpacked kernel package, by its name with underscores."""
    return {
        path.name.split(".ko")[0].replace("-", "_"): path for path in sorted(root.glob("**/*.ko*")) if path.is_file()
    }


def _content(path: Path) -> bytes:
    raw = path.read_bytes()
    return lzma.decompress(raw) if path.suffix == ".xz" else raw


def modules(root: Path) -> list[tuple[str, bytes]]:
    """The wanted modules and what they depend on, in an order in which they can be inserted."""
    files = _module_files(root)
    loaded: dict[str, bytes] = {}

    def load(name: str) -> None:
        if name in loaded or name not in files:
            return
        content = _content(files[name])
        found = re.search(rb"\0depends=([^\0]*)\0", content)
        for needed in (found.group(1).decode() if found else "").split(","):
            load(needed.replace("-", "_"))
        loaded[name] = content

    for name in WANTED:
        load(name)
    return list(loaded.items())


def _entries(busybox: bytes, kernel: Path) -> Iterator[tuple[str, int, bytes]]:
    """Name, mode and content of each file in the archive."""
    for directory in ("bin", "dev", "modules"):
        yield directory, 0o040755, b""
    yield "bin/busybox", 0o100755, busybox
    yield "init", 0o100755, INIT.encode()
    for position, (name, content) in enumerate(modules(kernel)):
        yield f"modules/{position:02}-{name}.ko", 0o100644, content


def build(busybox: Path, kernel: Path, target: Path) -> None:
    """Writes the archive: cpio in the "newc" format of the kernel's initramfs buffer documentation."""
    archive = io.BytesIO()

    def add(name: str, mode: int, content: bytes, ino: int) -> None:
        path = name.encode() + b"\0"
        fields = (ino, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
        archive.write(b"070701" + b"".join(b"%08X" % value for value in fields) + path)
        archive.write(bytes(-archive.tell() % 4) + content)
        archive.write(bytes(-archive.tell() % 4))

    for ino, (name, mode, content) in enumerate(_entries(busybox.read_bytes(), kernel), start=1):
        add(name, mode, content, ino)
    add("TRAILER!!!", 0, b"", 0)
    target.write_bytes(gzip.compress(archive.getvalue(), 6, mtime=0))
