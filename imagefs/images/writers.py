"""Whether a process that wrote a file is going down with an error (S3).

A copy that was killed must never become an image by itself. When a process dies with a file open the
kernel sends FLUSH from within its exit: /proc/<pid>/stat then shows PF_EXITING in the flags (field 9)
and the exit code (field 52), seen on Linux 6.18: SIGTERM 15, SIGKILL 9, exit(3) 768, a normal end 0.
"""

from __future__ import annotations

from pathlib import Path

PF_EXITING = 0x4


def process_of(tid: int) -> int:
    """The process (thread group) of a thread id; `tid` itself when it cannot be read."""
    try:
        for line in Path(f"/proc/{tid}/status").read_text().splitlines():
            if line.startswith("Tgid:"):
                return int(line.split()[1])
    except OSError:
        pass
    return tid


def death_of(tid: int) -> str | None:
    """How the process is dying, as a sentence; None when it lives, ends well, or cannot be read."""
    try:
        fields = Path(f"/proc/{tid}/stat").read_bytes().rpartition(b")")[2].split()
        flags, code = int(fields[9 - 3]), int(fields[52 - 3])
    except (OSError, IndexError, ValueError):
        return None
    if not flags & PF_EXITING or code == 0:
        return None
    if code & 0x7F:
        return f"the writing process was killed by signal {code & 0x7F}"
    return f"the writing process ended with exit status {code >> 8} and the file still open"
