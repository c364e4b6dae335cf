"""A disk with an MBR, GRUB and one ext4 partition, made without mounting anything."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from tests.disks.packages import run

SECTOR = 512
START = 2048
"""First sector of the partition; GRUB's core image lies in the sectors before it."""

GRUB_MODULES = ("biosdisk", "part_msdos", "ext2", "normal", "linux", "serial", "boot")


def format_root(disk: Path, size: int, root: str | Path) -> None:
    """A sparse file of `size` bytes whose ext4 partition holds the directory `root`."""
    with disk.open("wb") as file:
        file.truncate(size)
    # GRUB 2.06 does not know the two features, which newer mke2fs turn on by themselves.
    run(
        *("mke2fs", "-q", "-F", "-t", "ext4", "-O", "^metadata_csum_seed,^orphan_file", "-m", "0"),
        *("-E", f"offset={START * SECTOR},root_owner=0:0", "-L", "root", "-d", root),
        *(disk, f"{(size - START * SECTOR) // 1024}k"),
    )  # fmt: skip


def partition_table(size: int) -> bytes:
    """The MBR's last 66 bytes: one active Linux partition to the end of the disk, and the signature."""
    whole = struct.pack("<B3sB3sII", 0x80, b"\xfe\xff\xff", 0x83, b"\xfe\xff\xff", START, size // SECTOR - START)
    return whole + bytes(48) + b"\x55\xaa"


def install_grub(disk: Path, tools: Path, command_line: str, kernel: str, initrd: str) -> None:
    """Makes the disk boot `kernel` from its partition; `tools` holds the unpacked packages of GRUB."""
    modules = tools / "usr/lib/grub/i386-pc"
    config = disk.with_suffix(".grub.cfg")
    config.write_text(
        "serial --unit=0 --speed=115200\nterminal_output serial\nset root=(hd0,msdos1)\n"
        f"linux {kernel} {command_line}\ninitrd {initrd}\nboot\n"
    )
    core = disk.with_suffix(".core")
    libraries = tools / "usr/lib/x86_64-linux-gnu"
    run(
        *(tools / "usr/bin/grub-mkimage", "-O", "i386-pc", "-d", modules, "-c", config, "-o", core),
        *("-p", "(hd0,msdos1)/boot/grub", *GRUB_MODULES),
        env=os.environ | {"LD_LIBRARY_PATH": f"{libraries}:{tools / 'lib/x86_64-linux-gnu'}"},
    )  # fmt: skip
    image = core.read_bytes()
    assert len(image) <= (START - 1) * SECTOR, "GRUB's core image does not fit before the partition"
    with disk.open("r+b") as file:
        # Bytes 440 to 446 are the disk signature's; boot.img finds the core image in sector 1 as it is.
        file.write((modules / "boot.img").read_bytes()[:440] + b"imgf\0\0")
        file.write(partition_table(disk.stat().st_size))
        file.write(image)
    config.unlink()
    core.unlink()
