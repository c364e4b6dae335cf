"""The figures in `meta`: the generation and the next numbers, given inside write transactions only."""

from __future__ import annotations

from uuid import UUID

from imagefs.catalog import schema
from imagefs.catalog.env import Environment
from imagefs.types import Ino

FIRST = {"ino": int(Ino.FIRST_FREE), "pack": 1, "map": 1}
"""What an empty catalog gives first; 0 means "none" everywhere, and no pack reaches types.ZERO_PACK."""


class Counters:
    """Each method is one transaction, or joins the thread's open one."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._meta = env.table(schema.META.name)

    def get(self, name: str) -> int:
        """The figure; 0 if it was never set."""
        with self._env.read() as txn:
            raw = txn.get(name.encode(), db=self._meta)
        return schema.U64.unpack(raw)[0] if raw else 0

    def set(self, name: str, value: int) -> None:
        """Sets the figure."""
        with self._env.write() as txn:
            txn.put(name.encode(), schema.U64.pack(value), db=self._meta)

    def take(self, name: str, count: int = 1) -> int:
        """The first of `count` consecutive numbers that were never given before."""
        with self._env.write():
            first = self.get(name) or FIRST[name]
            self.set(name, first + count)
        return first

    def next_gen(self) -> int:
        """The generation of a change that is being made in this transaction."""
        with self._env.write():
            gen = self.get("gen") + 1
            self.set("gen", gen)
        return gen

    def repo(self) -> UUID:
        """The repository's uuid."""
        with self._env.read() as txn:
            return UUID(bytes=txn.get(b"repo", b"", db=self._meta))
