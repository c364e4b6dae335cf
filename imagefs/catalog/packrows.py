"""Rows of the table of stored objects, and their bytes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from uuid import UUID

from imagefs.catalog import schema


class PackKind(IntEnum):
    """What the object is."""

    PACK = 0
    MANIFEST = 1
    """`maps/<uuid>`: its name16 is the map's uuid; refs is 1 while the map exists."""


class PackState(IntEnum):
    """Where the object is in its life; each step is taken inside one write transaction."""

    PEND = 1
    """Reserved by a draft (`owner`); the object may or may not be on the store."""
    LIVE = 2
    TRASH = 3
    """No map names it; kept for the retention time and until every session acknowledged `gen`."""
    DOOMED = 4
    """Being deleted from the store; nothing brings it back."""


@dataclass(frozen=True, slots=True)
class PackRow:
    """One stored object."""

    no: int
    name16: bytes
    kind: PackKind
    state: PackState
    owner: UUID
    """Image whose draft reserved it."""
    gen: int
    """Generation of the last change of state."""
    time_ns: int
    """Time of the last change of state."""
    refs: int = 0
    """Maps that name it."""
    blocks: int = 0
    """Plain blocks in it."""
    stored: int = 0
    """Bytes of the object; 0 until a checkpoint or commit told that the put was done."""
    footer_off: int = 0
    footer_digest: bytes = b""

    @property
    def done(self) -> bool:
        """Whether the object is known to be on the store; if not, its put may have begun all the same."""
        return self.stored > 0

    @property
    def object_name(self) -> str:
        """Its name on the store: packs/ab/<32 hex> or maps/<uuid>."""
        if self.kind == PackKind.MANIFEST:
            return f"maps/{UUID(bytes=self.name16)}"
        return f"packs/{self.name16[:1].hex()}/{self.name16.hex()}"


@dataclass(frozen=True, slots=True)
class PackDone:
    """A pack that is durable on the store."""

    no: int
    frames_row: bytes = b""
    """24 B a frame: offset u32, stored length u24 + codec u8, digest16."""
    nblocks: int = 0
    stored: int = 0
    """Bytes of the object, above 0."""
    footer_off: int = 0
    footer_digest: bytes = b""


@dataclass(frozen=True, slots=True)
class Totals:
    """Objects and their bytes on the store by state; an object counts from when its put is known to be
    done."""

    live: int = 0
    live_bytes: int = 0
    trash: int = 0
    trash_bytes: int = 0
    pend: int = 0
    pend_bytes: int = 0
    doomed: int = 0
    doomed_bytes: int = 0

    @property
    def stored_bytes(self) -> int:
        """Everything that the store keeps for this repository, log and snapshots aside."""
        return self.live_bytes + self.trash_bytes + self.pend_bytes + self.doomed_bytes


def encode(row: PackRow) -> bytes:
    """The value of a row of `packs`."""
    head = schema.PACK.pack(
        row.name16,
        row.kind,
        row.state,
        row.owner.bytes,
        row.gen,
        row.time_ns,
        row.refs,
        row.blocks,
        row.stored,
        row.footer_off,
    )
    return head + row.footer_digest


def decode(key: bytes, value: bytes) -> PackRow:
    """The row of a key and value of `packs`."""
    name16, kind, state, owner, gen, time_ns, refs, blocks, stored, footer_off = schema.PACK.unpack_from(value)
    return PackRow(
        no=schema.U32.unpack(key)[0],
        name16=name16,
        kind=PackKind(kind),
        state=PackState(state),
        owner=UUID(bytes=owner),
        gen=gen,
        time_ns=time_ns,
        refs=refs,
        blocks=blocks,
        stored=stored,
        footer_off=footer_off,
        footer_digest=value[schema.PACK.size :],
    )
