"""Which index rows an image has: the one place where that is decided. Rows are kept by difference."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from imagefs.catalog import schema
from imagefs.catalog.env import Environment, Txn
from imagefs.types import Image, Status

if TYPE_CHECKING:
    from imagefs.catalog.env import Table

Row = tuple[str, bytes]
"""(name of the index, key)."""


def rows(image: Image) -> Iterator[Row]:
    """Every index row of an image; none for a deleted one."""
    if image.status == Status.DELETED:
        return
    end = schema.tail(image.created_at, image.id)
    for index, prefix in terms(image):
        yield index, prefix + end


def terms(image: Image) -> Iterator[Row]:
    """(index, key prefix) of everything that an image can be found by."""
    text = schema.text
    yield schema.I_NAME.name, text(image.name)
    yield schema.I_STATUS.name, text(image.status)
    yield schema.I_OWNER.name, text(image.owner)
    yield schema.I_VISIBILITY.name, text(image.visibility)
    yield schema.I_DISK.name, text(image.disk_format)
    yield schema.I_CONTAINER.name, text(image.container_format)
    yield schema.I_SIZE.name, size_key(image.size)
    yield schema.I_CREATED.name, b""
    yield schema.I_UPDATED.name, schema.U64.pack(image.updated_at)
    for tag in image.tags:
        yield schema.I_TAG.name, text(tag)
    for key, value in image.properties.items():
        yield schema.I_PROP.name, property_key(key, value)
    if image.os_hidden:
        yield schema.I_FLAG.name, text("hidden")
    if image.protected:
        yield schema.I_FLAG.name, text("protected")
    if image.map_id:
        yield schema.I_MAP.name, schema.U64.pack(image.map_id)
    if image.root:
        yield schema.I_ROOT.name, text(image.root)


def size_key(size: int | None) -> bytes:
    """Sorts as sizes do, None first."""
    return schema.U64.pack(0 if size is None else size + 1)


def property_key(key: str, value: str) -> bytes:
    """One property with its value."""
    return schema.text(f"{key}\0{value}")


class Indexes:
    """The index tables, kept up inside the write transaction that changes the record."""

    def __init__(self, env: Environment) -> None:
        self._tables: dict[str, Table] = {index.name: env.table(index.name) for index in schema.INDEXES}

    def change(self, txn: Txn, old: Image | None, new: Image | None) -> None:
        """Brings the rows from those of `old` to those of `new`, touching only what differs."""
        before = set(rows(old)) if old is not None else set()
        after = set(rows(new)) if new is not None else set()
        for index, key in before - after:
            txn.delete(key, db=self._tables[index])
        for index, key in after - before:
            txn.put(key, b"", db=self._tables[index])
