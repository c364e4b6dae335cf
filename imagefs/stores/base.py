"""The interface that every backend has, and the names that all of them take.

Objects are written once, under a name that is never used for other bytes, and are read in ranges. What
comes back is not to be trusted: callers verify it (S11). Every method may be called by many threads at
once, and by several processes that have a store of the same place open.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from imagefs.errors import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from typing_extensions import Buffer

    Parts = Buffer | Sequence[Buffer]
    """An object's bytes: one buffer, or a list or tuple of buffers that follow one another."""

LONGEST_NAME = 255
TEMPORARY = ".tmp"
"""Ending of files that are not objects yet; no object's name ends so."""

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
_PREFIX = re.compile(r"[A-Za-z0-9._/-]*")


class Space(NamedTuple):
    """Bytes that a store can hold in all, and that it can still take."""

    total: int
    free: int


class Store(Protocol):
    """A place for objects. Errors besides those named: BackendFailed, BackendTimeout, InvalidValue."""

    name: str
    """What messages call it."""

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Up to `length` bytes from `offset` (all to the end without a length).

        Fewer when the object ends before, b"" when it ends before `offset`. NotFound without the object.
        """
        ...

    def put(self, name: str, parts: Parts) -> None:
        """Store an object whole and for good: when this returns it survives power loss, when it does not
        return nothing partial is ever seen under the name.

        Exists when the name is taken (that object is durable then), NoSpace when the store is full.
        After any other error the object may be there or not, never in part.
        """
        ...

    def delete(self, name: str) -> None:
        """Remove the object for good; one that is not there is as good as removed."""
        ...

    def size(self, name: str) -> int:
        """The object's length in bytes. NotFound without the object."""
        ...

    def list(self, prefix: str) -> Iterator[str]:
        """Names that begin with `prefix`, in the order of their bytes.

        What is put or deleted while the listing runs may be in it or not; everything else is in it once.
        """
        ...

    def space(self) -> Space:
        """How much it holds and can still take."""
        ...

    def close(self) -> None:
        """Let go of descriptors and connections; the store is not used afterwards."""
        ...


def is_name(name: str) -> bool:
    """Whether an object can have that name: relative, of letters, digits, `.`, `_`, `-` between `/`,
    no part beginning with a dot, not ending like a temporary file.

    >>> is_name("packs/ab/abcd"), is_name("../etc"), is_name("log/1.tmp")
    (True, False, False)
    """
    return len(name) <= LONGEST_NAME and bool(_NAME.fullmatch(name)) and not name.endswith(TEMPORARY)


def check_name(name: str) -> str:
    """The name itself, or InvalidValue: names come out of stored bytes, and one that leads out of the
    store must never reach a backend."""
    if not is_name(name):
        raise InvalidValue(f"{name!r} cannot be the name of an object.")
    return name


def check_prefix(prefix: str) -> str:
    """The prefix itself, or InvalidValue when no name can begin with it."""
    if not _PREFIX.fullmatch(prefix):
        raise InvalidValue(f"No object's name begins with {prefix!r}.")
    return prefix


def views(parts: Parts) -> list[memoryview]:
    """The bytes of an object as flat views, without empty ones; nothing is copied."""
    buffers: Sequence[Buffer] = parts if isinstance(parts, list | tuple) else [cast("Buffer", parts)]
    return [memoryview(buffer).cast("B") for buffer in buffers if memoryview(buffer).nbytes]
