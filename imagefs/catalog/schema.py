"""The schema of the LMDB environment `catalog/`: every sub-database, and the keys and values in them.

This module is the documentation of the format. All integers in keys are big-endian, so that LMDB's order is
numeric order; "text(s)" is the order-preserving form of `text` below. An id is the 16 bytes of a UUID. Times
are ns since the epoch (u64). "T1" to "T10" are the steps of docs/protocol.md.

Every change of more than one row happens in one write transaction, so the rows of one table always agree with
those of another; `rules.py` states how, one function for each rule.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple
from uuid import UUID

from blake3 import blake3

VERSION = 2
"""Of this schema, in `meta`. A catalog with a higher one is refused; a lower one gets the tables that it lacks
when it is opened for writing. 2: damage, usage, quota,
base, base_map."""


class SubDb(NamedTuple):
    """One sub-database, by its name in the environment."""

    name: str
    key: str
    value: str
    writer: str
    """Which operations write it."""
    repair: str
    """What it is made from when it is lost or wrong."""


META = SubDb(
    "meta",
    "name of the figure, ASCII",
    "u64; for `repo` the 16 bytes of the repository's uuid",
    "all",
    "superblock (repo); highest number in use + 1 (counters)",
)
"""schema    VERSION
repo      uuid of the repository
gen       generation: grows by at least 1 with every change; 0 in an empty catalog
ino       next inode number
pack      next pack number
map       next map number
logged    generation of the newest log row
flushed   log objects on the store have all log rows up to this generation
pruned    log rows up to this generation have been removed
scrub     first pack number that the scrub under way has not looked at; 0 when none is under way
scrub_began, scrub_ended  times (ns) of the scrub under way or the last one, and of the last one that came to its end
scrub_deep                1 if the scrub under way checks block digests too"""

IMAGES = SubDb(
    "images",
    "id",
    "header (records.HEADER: what getattr needs, and the local map numbers), entry, JSON of the full record",
    "images.add, update, unlink; T3, T5, T10",
    "newest snapshot + log objects + manifests on the store",
)
BY_INO = SubDb(
    "by_ino",
    "inode u64",
    "id, kind u8 (types.Kind); for a sibling its file name follows",
    "with images, siblings",
    "from images and sibling",
)
"""metadata.json is its directory's number + 1 and has no row. Numbers below 64 are fixed (types.Ino). A
number is never given twice. The upper 16 bits are the host's number, 0 as long as one host owns a
repository."""
ENTRY = SubDb("entry", "file name in by-name/ (1 to 255 bytes)", "id", "with images", "from images")
SIBLING = SubDb(
    "sibling",
    "id, file name",
    "a record as in images: what was set on the file; its data_ino and draft are the sibling's own",
    "siblings.*; T5",
    "drop, with its staging file: nobody was told that it is kept",
)

I_NAME = SubDb("i_name", "text(name), created, id", "-", "with images", "from images")
I_STATUS = SubDb("i_status", "text(status), created, id", "-", "with images", "from images")
I_OWNER = SubDb("i_owner", "text(owner), created, id", "-", "with images", "from images")
I_VISIBILITY = SubDb("i_visibility", "text(visibility), created, id", "-", "with images", "from images")
I_DISK = SubDb("i_disk", "text(disk_format), created, id", "-", "with images", "from images")
I_CONTAINER = SubDb("i_container", "text(container_format), created, id", "-", "with images", "from images")
I_SIZE = SubDb("i_size", "0 or size + 1 as u64, created, id", "-", "with images", "from images")
I_CREATED = SubDb("i_created", "created, id", "-", "with images", "from images")
I_UPDATED = SubDb("i_updated", "updated, created, id", "-", "with images", "from images")
I_TAG = SubDb("i_tag", "text(tag), created, id; a row for each tag", "-", "with images", "from images")
I_PROP = SubDb("i_prop", "text(key, NUL, value), created, id; a row for each", "-", "with images", "from images")
I_FLAG = SubDb(
    "i_flag", "text('hidden' or 'protected'), created, id; only where true", "-", "with images", "from images"
)
I_MAP = SubDb("i_map", "map number u64, created, id; sealed images only", "-", "with images", "from images")
I_ROOT = SubDb("i_root", "text(root), created, id; only where there is one", "-", "with images", "from images")
INDEXES = (
    I_NAME, I_STATUS, I_OWNER, I_VISIBILITY, I_DISK, I_CONTAINER, I_SIZE, I_CREATED, I_UPDATED, I_TAG, I_PROP,
    I_FLAG, I_MAP, I_ROOT,
)  # fmt: skip
"""Have rows for every image that is not deleted."""

UNLINKED = SubDb(
    "unlinked",
    "generation of the deletion u64, id",
    "the status that the image had, ASCII; empty counts as active",
    "T4, T5, undelete",
    "images with status deleted",
)

MAPS = SubDb(
    "maps", "map number u64", "MAP: refs u32, size u64, kind u8 (0 plain, 1 recode), uuid", "T3, T5, T10", "manifests"
)
"""refs counts the images whose data it is, deleted ones included until finalised, and the rows of
base_map. A provisional map (named by `seals`) has rows in mapseg but none here."""
MAP_UUID = SubDb("map_uuid", "uuid", "map number u64", "with maps", "from maps")
MAPSEG = SubDb(
    "mapseg",
    "map number u64, first 256 MiB quarter u32",
    "columns of extents (blocks.maps); a row spans 1 GiB or, by a flag, a quarter; all-zero spans have none",
    "checkpoint, T3, T9",
    "manifests",
)
BASE = SubDb(
    "base",
    "id, draft generation u32, first block of the draft u64",
    "count u64, map number u64, first block in the map u64: blocks that the draft takes from a map",
    "after a sync of the staging file; T3, T5",
    "lost: the draft cannot be read or sealed any more",
)
"""Intervals that do not overlap, as they were at the last sync; as they are in this boot they are in volatile/.
Blocks without a row are in the staging file; rows behind the end of that file mean nothing."""
BASE_MAP = SubDb(
    "base_map",
    "id, draft generation u32, map number u64",
    "inode u64",
    "first share; when no block is left; when the draft has ended and nobody has the inode open",
    "from base",
)
"""Each is a reference of the map. A draft may have ended whose rows are still there."""
PACKS = SubDb(
    "packs",
    "pack number u32",
    "PACK: name16, kind u8, state u8, owner id, generation and time of the last change of state, refs u32, "
    "blocks u32, stored bytes u64, footer offset u64; then the footer's digest",
    "T1, T3, T5, T6, T7, T9, checkpoint",
    "footers on the store; refs by scan of mapseg; a manifest's refs is 1 while its map exists",
)
"""A manifest is a row as well: the same life. blocks 0 and stored 0 in a pend row: the put may not have
happened."""
PACK_NAME = SubDb("pack_name", "name16", "pack number u32", "T1, T7", "from packs")
PACK_OWNER = SubDb("pack_owner", "owner id, pack number u32; pend rows only", "-", "T1, T3, T5", "from packs")
FRAMES = SubDb(
    "frames",
    "pack number u32",
    "24 B a frame: offset u32, stored length u24 + codec u8, digest16; each but the last has 16 blocks",
    "checkpoint, T3",
    "the pack's footer",
)
DAMAGE = SubDb(
    "damage",
    "pack number u32",
    "JSON: when it was found, whether the object is missing, damaged frames, what else does not verify",
    "scrub, heal; T7",
    "drop: the next scrub finds it again",
)
TRASH = SubDb("trash", "generation u64, pack number u32", "-", "T3, T5, T6, T9", "packs with state trash")
DOOMED = SubDb("doomed", "pack number u32", "-", "T6, T7", "packs with state doomed")
SEALS = SubDb(
    "seals",
    "id",
    "JSON: session, map number, map uuid, manifest's pack number, first pack number of the last claim, "
    "cookie, next offset",
    "claim, complete, checkpoint; T3",
    "drop, and the rows of its provisional map: sealing starts again",
)
SESSIONS = SubDb(
    "sessions",
    "session id",
    "JSON: kind, host, boot id, acknowledged generation, started",
    "start, T8, end",
    "drop when the lock file sessions/<id>.lock can be taken",
)
HOLDS = SubDb("holds", "'i' id session, or 'p' pack number u32 session", "-", "T8", "drop with the session")
LOG = SubDb(
    "log",
    "generation u64",
    "LOG_ROW: op u8, image id, session id, time, old data inode u64, old entry's length u8; old entry; "
    "the record as in images",
    "every write of a record",
    "rows lost are lost: readers drop what they have cached",
)
"""Pruned once flushed, older than 1 h and acknowledged by every session."""
USAGE = SubDb(
    "usage",
    "'p' state; 's' status; 'o' text(owner), or 't' for all; 'u' text(owner), map number u64; 'a' map number u64; "
    "'survey'; 'filled'",
    "objects, bytes; images; images, logical, allocated, unique bytes; images of the owner that have the map; "
    "bytes that came to the store with the map (all i64); JSON of the last survey; there once all is counted",
    "with packs, maps and images",
    "counted anew by scan (usage.counted)",
)
QUOTA = SubDb("quota", "'all', or 'o' text(owner)", "JSON: owner, limits in bytes", "quotas.*", "lost: set them again")
SLOTS = SubDb(
    "slots",
    "connection id, thread u32",
    "unique u64, reply",
    "with the mutation that it answers",
    "drop with the connection",
)

ALL = (
    META, IMAGES, BY_INO, ENTRY, SIBLING, *INDEXES, UNLINKED, MAPS, MAP_UUID, MAPSEG, PACKS, PACK_NAME,
    PACK_OWNER, FRAMES, DAMAGE, TRASH, DOOMED, SEALS, SESSIONS, HOLDS, LOG, SLOTS, USAGE,
    QUOTA, BASE, BASE_MAP,
)  # fmt: skip

U32 = Struct(">I")
U64 = Struct(">Q")
SEG = Struct(">QI")
"""Key of mapseg."""
GEN_NO = Struct(">QI")
"""Key of trash."""
MAP = Struct(">IQB16s")
PACK = Struct(">16sBB16sQQIIQQ")
LOG_ROW = Struct(">B16s16sQQB")

TEXT_MAX = 400
"""Bytes of a text that a key keeps: with a digest, a time and an id it stays below LMDB's 511."""


def text(value: str | None) -> bytes:
    """A key prefix that sorts as the text does and ends where it ends; None comes before all.

    NUL is written 00 ff and the end 00 00, so no text's key is the beginning of another's. Beyond 400 bytes a
    digest of the whole stands for the rest, after 00 01: equality is exact, order that of the first 400
    bytes.
    """
    if value is None:
        return b"\x00"
    raw = value.encode("utf-8", "surrogatepass")
    escaped = raw.replace(b"\x00", b"\x00\xff")
    if len(escaped) <= TEXT_MAX:
        return b"\x01" + escaped + b"\x00\x00"
    # A cut between 00 and ff would leave what looks like half an end.
    return b"\x01" + escaped[:TEXT_MAX].removesuffix(b"\x00") + b"\x00\x01" + blake3(raw).digest(16)


def tail(created: int, image_id: UUID) -> bytes:
    """The end of every index key: ties are broken by age, then by id."""
    return U64.pack(created) + image_id.bytes
