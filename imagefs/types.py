"""Values that every layer speaks: image records, states, sizes. No I/O, no imports from imagefs."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import NamedTuple
from uuid import UUID

BLOCK = 4096
"""Bytes in a block: the unit of identity and of dedup."""
FRAME_BLOCKS = 16
"""Blocks in a frame, consecutive in the pack; only a pack's last frame may have fewer."""
FRAME = BLOCK * FRAME_BLOCKS
ZERO_PACK = 0xFFFFFFFF
"""The pack number that stands for blocks of zeros in a map."""
LAYOUTS = ("plain", "recode")
"""What records call the layouts of sealed data, by the kind of its map (blocks.recode)."""


class Status(StrEnum):
    """Image states of the Image service API v2 (S1)."""

    QUEUED = "queued"
    SAVING = "saving"
    UPLOADING = "uploading"
    IMPORTING = "importing"
    ACTIVE = "active"
    DEACTIVATED = "deactivated"
    KILLED = "killed"
    PENDING_DELETE = "pending_delete"
    DELETED = "deleted"


TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.QUEUED: frozenset({Status.SAVING, Status.UPLOADING, Status.IMPORTING, Status.ACTIVE, Status.DELETED}),
    Status.SAVING: frozenset({Status.ACTIVE, Status.QUEUED, Status.KILLED, Status.DELETED}),
    Status.UPLOADING: frozenset({Status.IMPORTING, Status.QUEUED, Status.DELETED}),
    Status.IMPORTING: frozenset({Status.ACTIVE, Status.QUEUED, Status.DELETED}),
    Status.ACTIVE: frozenset({Status.DEACTIVATED, Status.PENDING_DELETE, Status.DELETED}),
    Status.DEACTIVATED: frozenset({Status.ACTIVE, Status.DELETED}),
    Status.PENDING_DELETE: frozenset({Status.ACTIVE, Status.DELETED}),
    Status.KILLED: frozenset({Status.DELETED}),
    Status.DELETED: frozenset(),
}
"""Which state may follow which, as glance.domain has it."""


class Visibility(StrEnum):
    """Who sees an image besides its owner."""

    PRIVATE = "private"
    SHARED = "shared"
    COMMUNITY = "community"
    PUBLIC = "public"


DISK_FORMATS = (
    "ami", "ari", "aki", "vhd", "vhdx", "vmdk", "raw", "qcow2", "vdi", "iso", "ploop",
)  # fmt: skip
CONTAINER_FORMATS = ("ami", "ari", "aki", "bare", "ovf", "ova", "docker", "compressed")


class Kind(IntEnum):
    """What an inode number stands for; stored in the catalog's `by_ino`."""

    DIRECTORY = 1
    """images/<id>; its metadata.json has the next number and no row of its own."""
    DATA = 2
    """images/<id>/data and by-name/<entry>, one inode with two names."""
    SIBLING = 3
    """A temporary file beside `data` that a rename may make the draft."""


class Ino(IntEnum):
    """Inode numbers that are the same in every repository."""

    ROOT = 1
    IMAGES = 2
    BY_NAME = 3
    INSTANCES = 4
    CONTROL = 5
    FIRST_CONTROL_FILE = 16
    FIRST_FREE = 64


@dataclass(frozen=True, slots=True)
class Cookie:
    """Identity of a staging file's content at one moment."""

    dev: int
    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int
    draft_gen: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """State of an image's writable data; present exactly while the image is `saving`."""

    gen: int
    """Names the staging file `staging/<id>.<gen>`; grows with each new draft of the image."""
    writer: UUID | None = None
    """Session through which it was last opened for writing: an interrupted copy when that one is dead."""
    writes: int = 0
    """Grows whenever the draft is opened for writing; a seal that saw another value is void."""
    sealer: UUID | None = None
    """Session that is sealing the draft now."""
    blocked: str | None = None
    """Why the draft is not sealed by itself (`user.imagefs.seal_blocked`)."""
    failed: str | None = None
    """Why the last try to seal it failed; it is tried again (S14)."""
    marked: bool = False
    """`user.imagefs.draft` is set: never sealed by itself."""
    released_ns: int | None = None
    """When the last writer closed it; None while it is open for writing or was never written."""
    boot: str | None = None
    """Boot id of that moment: after another boot only a `complete` draft seals itself."""
    complete: Cookie | None = None
    """Content that is known to be on the disk (recorded after fdatasync)."""
    streamed: bool = False
    """Its bytes come in order and go straight into packs: the staging file is empty."""
    based: bool = False
    """It takes blocks from maps (`catalog.bases`); otherwise the staging file has it all."""
    base_map: int = 0
    """Of drafts that an earlier version made: the map whose first bytes, as many as the staging file is long, are
    the draft's content. Becomes `based` when it is opened."""
    base_size: int = 0
    """Size of the base map's file."""
    base_uuid: UUID | None = None
    """The base map's own uuid: what the log says instead of the local number."""
    expected: dict[str, str] = field(default_factory=dict)
    """Declared size, checksum, os_hash_algo, os_hash_value, checked at sealing (S8)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One image's record as the catalog keeps it. Times are ns since the epoch, sizes bytes."""

    id: UUID
    name: str | None = None
    entry: bytes | None = None
    """Its name in by-name/, given by the catalog when the image gets its name (S6)."""
    status: Status = Status.QUEUED
    owner: str | None = None
    visibility: Visibility = Visibility.SHARED
    disk_format: str | None = None
    container_format: str | None = None
    size: int | None = None
    virtual_size: int | None = None
    checksum: str | None = None
    os_hash_algo: str | None = None
    os_hash_value: str | None = None
    root: str | None = None
    """BLAKE3 over the block digests in order, by leaves of 256 MiB, hex; with equal size it means equal bytes."""
    min_disk: int = 0
    min_ram: int = 0
    protected: bool = False
    os_hidden: bool = False
    tags: tuple[str, ...] = ()
    properties: dict[str, str] = field(default_factory=dict)
    xattrs: dict[str, bytes] = field(default_factory=dict)
    """Foreign `user.*` attributes, kept verbatim; keys with the `user.` prefix."""
    created_at: int = 0
    updated_at: int = 0
    dir_ino: int = 0
    data_ino: int = 0
    """Inode of the data, given also to a queued image; a new draft after unlink gets a new one."""
    uid: int = 0
    gid: int = 0
    mode: int = 0o644
    """Permission bits of the data file; write bits are left out of what sealed data shows."""
    dir_mode: int = 0o755
    atime: int = 0
    mtime: int = 0
    ctime: int = 0
    map_id: int = 0
    """The sealed data's map; 0 when there is none."""
    map_uuid: UUID | None = None
    layout: str = "plain"
    allocated: int = 0
    """Bytes in non-zero blocks of the sealed data."""
    draft: Draft | None = None
    draft_gen: int = 0
    """Generation of the newest draft ever made for this image."""

    @property
    def sealed(self) -> bool:
        """Whether its data is immutable and mapped to packs."""
        return self.map_id != 0


@dataclass(frozen=True, slots=True)
class Extent:
    """`count` consecutive blocks of a map: in `pack` from its block `first`, or zeros (ZERO_PACK)."""

    pack: int
    first: int
    count: int


class Caller(NamedTuple):
    """Who asked: as the kernel names it in a request. pid is 0 from another pid namespace."""

    uid: int
    gid: int
    pid: int = 0
