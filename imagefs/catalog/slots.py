"""Reply slots: the last answer of each serving thread, so that a resent request is not executed twice."""

from __future__ import annotations

from uuid import UUID

from imagefs.catalog import schema
from imagefs.catalog.env import Environment


class Slots:
    """A slot is overwritten by its thread's next mutation, so the table is bounded and never purged."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._slots = env.table(schema.SLOTS.name)

    def put(self, connection: UUID, thread: int, unique: int, reply: bytes) -> None:
        """Overwrites the thread's slot; call it inside the transaction of the mutation that it answers."""
        with self._env.write() as txn:
            key = connection.bytes + schema.U32.pack(thread)
            txn.put(key, schema.U64.pack(unique) + reply, db=self._slots)

    def get(self, connection: UUID, unique: int) -> bytes | None:
        """The reply that was saved for this request, if it is still some thread's last one."""
        wanted = schema.U64.pack(unique)
        for key, value in self._rows():
            if key.startswith(connection.bytes) and value.startswith(wanted):
                return value[8:]
        return None

    def drop(self, connection: UUID) -> None:
        """The connection has ended."""
        with self._env.write() as txn:
            for key, _ in self._rows():
                if key.startswith(connection.bytes):
                    txn.delete(key, db=self._slots)

    def connections(self) -> set[UUID]:
        """Connections that have slots."""
        return {UUID(bytes=key[:16]) for key, _ in self._rows()}

    def _rows(self) -> list[tuple[bytes, bytes]]:
        """All of them: a handful for each mount."""
        with self._env.read() as txn:
            return list(txn.cursor(db=self._slots))
