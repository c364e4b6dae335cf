"""Objects in a dictionary: for tests, and the shortest reading of what a store is."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from imagefs.errors import Exists, NoSpace, NotFound
from imagefs.stores.base import Space, check_name, check_prefix, views

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imagefs.stores.base import Parts


class MemoryStore:
    """Keeps up to `capacity` bytes, until the process ends."""

    name = "memory"

    def __init__(self, capacity: int = 1 << 50) -> None:
        self._capacity = capacity
        self._used = 0
        self._objects: dict[str, bytes] = {}
        # Guards the two above where both or a test and a change go together; single looks need no lock.
        self._lock = threading.Lock()

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        content = self._content(name)
        return content[offset:] if length is None else content[offset : offset + length]

    def put(self, name: str, parts: Parts) -> None:
        check_name(name)
        content = b"".join(views(parts))
        with self._lock:
            if name in self._objects:
                raise Exists(f"The memory store has {name} already.")
            if self._used + len(content) > self._capacity:
                raise NoSpace(f"Writing {name}: the memory store is full.")
            self._objects[name] = content
            self._used += len(content)

    def delete(self, name: str) -> None:
        check_name(name)
        with self._lock:
            self._used -= len(self._objects.pop(name, b""))

    def size(self, name: str) -> int:
        return len(self._content(name))

    def list(self, prefix: str) -> Iterator[str]:
        check_prefix(prefix)
        with self._lock:
            names = sorted(self._objects)
        return (name for name in names if name.startswith(prefix))

    def space(self) -> Space:
        with self._lock:
            return Space(self._capacity, self._capacity - self._used)

    def close(self) -> None:
        self._objects.clear()

    def _content(self, name: str) -> bytes:
        try:
            return self._objects[check_name(name)]
        except KeyError:
            raise NotFound(f"The memory store has no {name}.") from None
