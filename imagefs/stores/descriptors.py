"""Open descriptors of objects that are read again and again."""

from __future__ import annotations

import os
import stat
import threading


class Descriptor:
    """An object open for reading. The last thread that holds it closes it, so a number is never used
    again while somebody still reads through it."""

    __slots__ = ("number", "recent", "size")

    def __init__(self, path: str) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        status = os.fstat(self.number)
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(f"{path} is no file")
        self.size = status.st_size
        self.recent = False
        """Read through since the cache last looked for one to let go."""

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)

    def read(self, offset: int, length: int | None) -> bytes:
        """Up to `length` bytes from `offset`; fewer only at the end of the object."""
        wanted = self.size - offset
        if length is not None and length < wanted:
            wanted = length
        if wanted <= 0:
            return b""
        content = os.pread(self.number, wanted, offset)
        return content if len(content) == wanted else self._with_rest(content, offset, wanted)

    def _with_rest(self, content: bytes, offset: int, wanted: int) -> bytes:
        # One pread returns at most 2 GiB, and less than asked for on some network filesystems.
        pieces = [content]
        done = len(content)
        while done < wanted and pieces[-1]:
            pieces.append(os.pread(self.number, wanted - done, offset + done))
            done += len(pieces[-1])
        return b"".join(pieces)

    def deleted(self) -> bool:
        """Whether the object is gone and only this descriptor keeps its bytes on the disk."""
        return os.fstat(self.number).st_nlink == 0


class DescriptorCache:
    """At most `limit` descriptors by path, the least recently used ones let go first (second chance).

    A hit takes no lock: it is one look into a dictionary, and all readers share this cache.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: dict[str, Descriptor] = {}
        # Guards what is put into and taken out of `_open`; nothing else is locked or awaited under it.
        self._lock = threading.Lock()

    def get(self, path: str) -> Descriptor:
        """The object's descriptor, opened if need be; what `open` raises if that fails."""
        found = self._open.get(path)
        if found is not None:
            found.recent = True
            return found
        opened = Descriptor(path)
        with self._lock:
            while len(self._open) >= self._limit:
                self._let_one_go()
            self._open[path] = opened
        # A drop() between open and here found nothing to drop.
        if opened.deleted():
            self.drop(path)
        return opened

    def drop(self, path: str) -> None:
        """Forget the object at `path`."""
        with self._lock:
            self._open.pop(path, None)

    def drop_deleted(self) -> None:
        """Forget objects that other processes have deleted: their space comes back only then."""
        with self._lock:
            for path in [path for path, descriptor in self._open.items() if descriptor.deleted()]:
                del self._open[path]

    def clear(self) -> None:
        """Forget them all."""
        with self._lock:
            self._open.clear()

    def _let_one_go(self) -> None:
        for path in list(self._open):
            descriptor = self._open.pop(path)
            if not descriptor.recent:
                return
            descriptor.recent = False
            self._open[path] = descriptor
        del self._open[next(iter(self._open))]
