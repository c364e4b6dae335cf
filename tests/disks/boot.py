"""Guests in software emulation, judged by what they print on their serial console."""

from __future__ import annotations

import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tests.disks.recipes import Disk


@dataclass
class Guest:
    """A running qemu and the file that collects its serial console."""

    process: subprocess.Popen[bytes]
    console: Path
    started: float

    def text(self) -> str:
        """What it printed so far, qemu's own messages included."""
        return self.console.read_bytes().decode(errors="replace")

    def wait(self, until: str = "GUEST-DONE", deadline: float = 90) -> dict[str, str]:
        """The `key=value` words of its GUEST line once `until` was printed; then it is stopped.

        Raises AssertionError with the console's end if qemu ends or the deadline passes before that.
        """
        try:
            while until not in self.text():
                ended = self.process.poll() is not None
                late = time.monotonic() - self.started > deadline
                if (ended or late) and until not in self.text():
                    why = f"qemu ended ({self.process.returncode})" if ended else f"{deadline} s passed"
                    raise AssertionError(f"{why} before {until!r} was printed:\n{self.text()[-3000:]}")
                time.sleep(0.05)
        finally:
            self.stop()
        line = re.search(r"GUEST (mode=.*?)\s*$", self.text(), re.MULTILINE)
        return dict(word.split("=", 1) for word in line.group(1).split()) if line else {}

    def stop(self) -> None:
        """Ends qemu: in its own time if it is powering off, else by SIGKILL."""
        try:
            self.process.wait(3)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)


def start(
    path: Path,
    console: Path,
    *,
    fmt: str,
    cache: str = "writeback",
    aio: str = "threads",
    readonly: bool = False,
    snapshot: bool = False,
    kernel_of: Disk | None = None,
    memory: int = 256,
) -> Guest:
    """A guest with the image at `path` as its only disk.

    It boots through the disk's own GRUB, or the kernel beside the disk `kernel_of` directly.
    """
    drive = f"file={str(path).replace(',', ',,')},format={fmt},if=virtio,cache={cache},aio={aio}"
    drive += ",readonly=on" * readonly + ",snapshot=on" * snapshot
    command = [
        *("qemu-system-x86_64", "-accel", "tcg", "-m", str(memory), "-display", "none", "-nic", "none"),
        *("-monitor", "none", "-serial", "stdio", "-no-reboot", "-drive", drive),
    ]  # fmt: skip
    if kernel_of is not None:
        command += ["-kernel", str(kernel_of.kernel), "-initrd", str(kernel_of.initrd)]
        command += ["-append", "console=ttyS0 quiet panic=-1"]
    with console.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
    return Guest(process, console, time.monotonic())


def boot(path: Path, console: Path, *, deadline: float = 90, **options: object) -> dict[str, str]:
    """What the guest on the image at `path` reports of itself (see Guest.wait, start)."""
    return start(path, console, **options).wait(deadline=deadline)  # type: ignore[arg-type]
