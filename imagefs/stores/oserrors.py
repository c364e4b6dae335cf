"""What the system's errors mean for stored bytes; also used for staging files, which share the disk."""

from __future__ import annotations

import errno

from imagefs.errors import BackendFailed, BackendTimeout, ImagefsError, NoSpace

_MEANING: dict[int | None, type[ImagefsError]] = {
    errno.ENOSPC: NoSpace,
    errno.EDQUOT: NoSpace,
    errno.ETIMEDOUT: BackendTimeout,
}


def storage_error(error: OSError, what: str) -> ImagefsError:
    """The error to raise for a failed system call: NoSpace, BackendTimeout or BackendFailed.

    `what` says what was being done, in words that go before a colon: "Writing packs/ab/abcd".
    """
    return _MEANING.get(error.errno, BackendFailed)(f"{what}: {error.strerror or error}.")
