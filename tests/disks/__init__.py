"""Bootable disks built from Debian packages, once per machine.

`mini()` boots by itself from its path alone: GRUB, Debian's cloud kernel, a busybox initramfs and an
ext4 root with a payload of known checksum, which the guest reads and prints on its serial console.
`debian()` is a whole Debian with systemd on a sparse disk of 2 GiB that prints the same and asks for a login.
Both lie under the XDG cache directory, keyed by their recipe. Nothing here needs imagefs; `mini()` does not
need root either.
"""

from __future__ import annotations

from tests.disks.boot import Guest, boot
from tests.disks.recipes import Disk, debian, mini

__all__ = ["Disk", "Guest", "boot", "debian", "mini"]
