"""How the catalog looks as files: names, nodes, attributes, extended attributes."""

from __future__ import annotations

from imagefs.tree.attr import NOW, Attr, Entry, SetAttr, Statfs
from imagefs.tree.tree import RENAME_NOREPLACE, Tree

__all__ = ["NOW", "RENAME_NOREPLACE", "Attr", "Entry", "SetAttr", "Statfs", "Tree"]
