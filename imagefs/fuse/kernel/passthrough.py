"""Passthrough: plain files that the kernel reads by itself, without a request (Linux 6.9, root only).

A backing id stands for such a file. It belongs to the connection: it outlives the worker that registered it,
and the next one can use and close it. One inode has one id as long as anybody has it open; another id, or an
answer without one, would be EIO for whoever opens it.
"""

from __future__ import annotations

import fcntl
import logging
from struct import Struct

log = logging.getLogger(__name__)

BACKING_OPEN = 0x4010E501
BACKING_CLOSE = 0x4004E502
"""FUSE_DEV_IOC_BACKING_OPEN and _CLOSE of linux/fuse.h."""
BACKING_MAP = Struct("=iIQ")  # fd flags padding
BACKING_ID = Struct("=I")


class Passthrough:
    """Backing files of one connection. Any thread."""

    def __init__(self, device_fd: int) -> None:
        self._device_fd = device_fd
        self._possible = True

    def open(self, fd: int) -> int:
        """The id of an open file, which must be read-only; 0 where the kernel will not read it by itself."""
        if not self._possible:
            return 0
        try:
            # A mutable buffer: only then it is the number that the kernel answered with which comes back.
            number: int = fcntl.ioctl(self._device_fd, BACKING_OPEN, bytearray(BACKING_MAP.pack(fd, 0, 0)))
            return number
        except OSError as error:
            # EPERM: not root. ELOOP: the repository lies on a stacked filesystem. Neither will change.
            log.info("files are not passed through to the kernel: %s", error)
            self._possible = False
            return 0

    def close(self, backing_id: int) -> None:
        """Nobody has the inode open any more. An id that is gone already is fine."""
        try:
            fcntl.ioctl(self._device_fd, BACKING_CLOSE, BACKING_ID.pack(backing_id))
        except OSError as error:
            log.debug("backing file %d: %s", backing_id, error)
