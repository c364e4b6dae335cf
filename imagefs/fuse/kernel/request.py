"""A request as the operations see it, and what they answer from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING, Any
from uuid import UUID

from imagefs.fuse.kernel.protocol import IN_HEADER, RESENT
from imagefs.types import Caller

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from imagefs.catalog import Catalog
    from imagefs.tree.tree import Tree

BODY = IN_HEADER.size
NO_STRUCT = Struct("")


class Request:
    """One message from the kernel, in its serving thread's buffer.

    A thread has one of these and fills it again for each message: nothing of it, `data` least of all, may be
    kept beyond the reply.
    """

    __slots__ = ("_gid", "_length", "_pid", "_uid", "buffer", "changing", "node", "slot", "unique")

    def __init__(self, buffer: memoryview, slot: int) -> None:
        self.buffer = buffer
        self.slot = slot
        """Number of the reply slot that the serving thread owns."""
        self.unique = self.node = self._length = self._uid = self._gid = self._pid = 0
        self.changing = False
        """It holds a directory's lock in the kernel while it is being served (see Journal)."""

    def arrived(self, length: int) -> int:
        """Takes in a message of `length` bytes that was read into the buffer; returns its opcode."""
        self._length = length
        header = IN_HEADER.unpack_from(self.buffer)
        _, opcode, self.unique, self.node, self._uid, self._gid, self._pid, _, _ = header
        self.changing = False
        return int(opcode)

    @property
    def resent(self) -> bool:
        """Whether an earlier worker may have executed it already."""
        return self.unique >= RESENT

    @property
    def identity(self) -> int:
        """The same number for the request and its resent copies; also the handle that an open returns."""
        return self.unique & ~RESENT

    @property
    def caller(self) -> Caller:
        """Who asks."""
        return Caller(self._uid, self._gid, self._pid)

    @property
    def pid(self) -> int:
        """Process that asks; 0 when it is in a pid namespace this one cannot see."""
        return self._pid

    def unpack(self, layout: Struct) -> tuple[Any, ...]:
        """The fields of the struct behind the header."""
        return layout.unpack_from(self.buffer, BODY)

    def rest(self, layout: Struct) -> bytes:
        """What follows the struct, up to the message's end."""
        return bytes(self.buffer[BODY + layout.size : self._length])

    def text(self, layout: Struct = NO_STRUCT) -> bytes:
        """The name that follows the struct; two of them with NUL between, for a rename."""
        return bytes(self.buffer[BODY + layout.size : self._length - 1])

    def data(self, layout: Struct, size: int) -> memoryview:
        """`size` bytes behind the struct, without a copy of them."""
        start = BODY + layout.size
        return self.buffer[start : start + size]


class Journal:
    """Makes a change happen once though its request may be sent twice.

    A worker that dies after a commit and before its reply leaves a request that the kernel sends to the next
    worker. Executed again, an unlink would fail with ENOENT and a create would make a second file. So the
    reply is saved in the transaction that makes the change, in the one slot of the serving thread, which its
    next change overwrites.

    The transaction is the outermost lock of such a request: whatever lock the tree takes inside must never
    be held by a thread that goes on to begin a transaction.
    """

    def __init__(self, catalog: Catalog, connection: UUID) -> None:
        self._catalog = catalog
        self._connection = connection

    def once(self, request: Request, change: Callable[[], bytes | None]) -> bytes:
        """The reply of `change` (empty for None), run in a transaction unless an earlier worker ran it.

        An error undoes the transaction and saves nothing: executed again it gives the same error.
        """
        request.changing = True
        slots = self._catalog.slots
        if request.resent:
            saved = slots.get(self._connection, request.identity)
            if saved is not None:
                return saved
        with self._catalog.transaction():
            reply = change() or b""
            slots.put(self._connection, request.slot, request.identity, reply)
        return reply


@dataclass(frozen=True, slots=True)
class Served:
    """What a mount serves."""

    tree: Tree
    journal: Journal


Operation = Callable[[Served, Request], "Buffer"]
"""Decodes, calls the tree, returns the reply's bytes behind the header. Raises imagefs errors and OSError."""
