"""Files on their way to become objects: written under another name, and locked while their writer lives."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

from imagefs.stores.base import TEMPORARY

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_IOV_MAX = 1024


@contextlib.contextmanager
def new_file(path: str) -> Iterator[tuple[int, str]]:
    """A descriptor and the name of a new file next to `path`; the name goes when the block ends.

    The lock keeps `unlink_stale` away until then.
    """
    while True:
        temporary = f"{path}.{os.urandom(8).hex()}{TEMPORARY}"
        number = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
        try:
            fcntl.flock(number, fcntl.LOCK_SH)
            if os.fstat(number).st_nlink == 0:
                continue  # unlink_stale() came between the two calls
            try:
                yield number, temporary
            finally:
                os.unlink(temporary)
            return
        finally:
            os.close(number)


def write(number: int, content: Sequence[memoryview]) -> None:
    """Write all of it, however little the system takes at a time."""
    rest = list(content)
    while rest:
        written = os.writev(number, rest[:_IOV_MAX])
        whole = 0
        while whole < len(rest) and written >= rest[whole].nbytes:
            written -= rest[whole].nbytes
            whole += 1
        del rest[:whole]
        if written:
            rest[0] = rest[0][written:]


def unlink_stale(temporary: str) -> bool:
    """Remove a temporary file unless its writer lives; whether it was removed."""
    try:
        number = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(temporary)
    except (BlockingIOError, FileNotFoundError):
        return False
    finally:
        os.close(number)
    return True
