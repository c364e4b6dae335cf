"""What exists: image records, packs, maps, sessions and the change log in LMDB. The only importer of lmdb."""

from __future__ import annotations

from imagefs.catalog.bases import Bases, LiveBases
from imagefs.catalog.catalog import Catalog
from imagefs.catalog.conversions import Conversion, Conversions
from imagefs.catalog.images import Images
from imagefs.catalog.index import DedupIndex
from imagefs.catalog.log import Log, LogRow, Op
from imagefs.catalog.maps import MapInfo, Maps
from imagefs.catalog.moves import Move, Moves
from imagefs.catalog.packrows import PackDone, PackKind, PackRow, PackState, Totals
from imagefs.catalog.packs import Packs
from imagefs.catalog.parts import MOST, Part
from imagefs.catalog.queries import Query
from imagefs.catalog.quotas import Limits, Quota
from imagefs.catalog.records import Attrs
from imagefs.catalog.scrubs import Damage, Scrubs, ScrubState
from imagefs.catalog.seals import Seal, SealCommit, Seals
from imagefs.catalog.sessions import SessionRow, Sessions
from imagefs.catalog.siblings import Sibling, Siblings
from imagefs.catalog.slots import Slots
from imagefs.catalog.usage import Figures, Survey
from imagefs.catalog.volatile import Open, OpenTable

__all__ = [
    "MOST", "Attrs", "Bases", "Catalog", "Conversion", "Conversions", "Damage", "DedupIndex", "Figures",
    "Images", "Limits", "LiveBases", "Log", "LogRow", "MapInfo", "Maps", "Move", "Moves", "Op", "Open",
    "OpenTable", "PackDone", "PackKind", "PackRow", "PackState", "Packs", "Part", "Query", "Quota",
    "ScrubState", "Scrubs", "Seal", "SealCommit", "Seals", "SessionRow", "Sessions", "Sibling", "Siblings",
    "Slots", "Survey", "Totals",
]  # fmt: skip
