"""Files whose content is text made at open: metadata.json and .imagefs/*."""

from __future__ import annotations

import os

from imagefs.errors import NoData, Refused
from imagefs.images.opens import Handle, Node, OpenFiles


class RenderedFile:
    """The data behind one open: what the text was then. Read-only for everybody."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    @property
    def size(self) -> int:
        """Bytes of the text."""
        return len(self._content)

    def pread(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes; b"" at the end."""
        return self._content[offset : offset + length]

    def seek(self, offset: int, whence: int) -> int:
        """All of it is data; the only hole is the end."""
        if not 0 <= offset < self.size:
            raise NoData(f"Offset {offset} is behind the end of the text.")
        return offset if whence == os.SEEK_DATA else self.size

    def pwrite(self, offset: int, data: memoryview) -> int:
        """Refused."""
        raise refused()

    def truncate(self, size: int) -> None:
        """Refused."""
        raise refused()

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        """Refused."""
        raise refused()

    def fsync(self, datasync: bool) -> None:
        """Nothing to do: what is rendered is durable already."""

    def close(self) -> None:
        """Nothing to do."""


def refused() -> Refused:
    """Why nobody writes to such a file."""
    return Refused("This file is rendered from the catalog: edit the image's attributes instead.")


def rendered(files: OpenFiles, ino: int, fh: int, content: bytes) -> Handle:
    """A handle of a rendered file. It is in no open table: a worker that follows renders it again."""
    node = Node(ino)
    node.file = RenderedFile(content)
    return Handle(files, node, fh, os.O_RDONLY)
