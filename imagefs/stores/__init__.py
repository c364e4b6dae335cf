"""Bytes under names: one small interface, one file per backend, policies and faults (in `faults`) as wrappers."""

from __future__ import annotations

from imagefs.stores.base import Space, Store, check_name
from imagefs.stores.file import FileStore
from imagefs.stores.memory import MemoryStore
from imagefs.stores.oserrors import storage_error

__all__ = [
    "FileStore",
    "MemoryStore",
    "Space",
    "Store",
    "check_name",
    "storage_error",
]
