"""What exists: image records, packs, maps, sessions and the change log in LMDB. The only importer of lmdb."""

from __future__ import annotations

from imagefs.catalog.catalog import Catalog
from imagefs.catalog.images import Images
from imagefs.catalog.index import DedupIndex
from imagefs.catalog.log import Log, LogRow, Op
from imagefs.catalog.maps import MapInfo, Maps
from imagefs.catalog.packrows import PackDone, PackKind, PackRow, PackState, Totals
from imagefs.catalog.packs import Packs
from imagefs.catalog.queries import Query
from imagefs.catalog.records import Attrs
from imagefs.catalog.seals import Seal, SealCommit, Seals
from imagefs.catalog.sessions import SessionRow, Sessions
from imagefs.catalog.siblings import Sibling, Siblings
from imagefs.catalog.slots import Slots
from imagefs.catalog.volatile import Open, OpenTable

__all__ = [
    "Attrs", "Catalog", "DedupIndex", "Images", "Log", "LogRow", "MapInfo", "Maps", "Op", "Open", "OpenTable",
    "PackDone", "PackKind", "PackRow", "PackState", "Packs", "Query", "Seal", "SealCommit", "Seals",
    "SessionRow", "Sessions", "Sibling", "Siblings", "Slots", "Totals",
]  # fmt: skip
