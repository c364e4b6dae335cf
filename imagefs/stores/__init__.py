"""Bytes under names: one small interface, one file per backend, policies and faults as wrappers."""

from __future__ import annotations

from imagefs.stores.base import Space, Store, check_name
from imagefs.stores.faults import Fault, FaultyStore, Kind, Plan, Step
from imagefs.stores.file import FileStore
from imagefs.stores.memory import MemoryStore
from imagefs.stores.oserrors import storage_error

__all__ = [
    "Fault",
    "FaultyStore",
    "FileStore",
    "Kind",
    "MemoryStore",
    "Plan",
    "Space",
    "Step",
    "Store",
    "check_name",
    "storage_error",
]
