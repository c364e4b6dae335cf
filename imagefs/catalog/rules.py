"""What is always true of a catalog: one function for each rule, each yields what breaks it. Changes nothing.

Each looks in one read transaction, so a catalog that is in use is judged by one moment of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from itertools import groupby
from uuid import UUID

from imagefs.blocks import maprows
from imagefs.catalog import indexes, parts, records, schema
from imagefs.catalog.catalog import Catalog
from imagefs.catalog.checkpoints import Checkpoint
from imagefs.catalog.checkpoints import decode as decode_checkpoint
from imagefs.catalog.env import Txn
from imagefs.catalog.packrows import PackKind, PackRow, PackState, decode
from imagefs.catalog.schema import SubDb
from imagefs.catalog.usage import difference
from imagefs.types import Image, Ino, Kind, Status


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it must be."""

    rule: str
    """The function that found it."""
    subject: str
    """Id, number or name of what is wrong."""
    message: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.message} ({self.rule})"


class Snapshot:
    """The tables of a catalog at one moment, as the rules read them."""

    def __init__(self, catalog: Catalog, txn: Txn) -> None:
        self._env = catalog.env
        self._txn = txn

    def rows(self, table: SubDb) -> Iterator[tuple[bytes, bytes]]:
        """Every key and value, in order."""
        yield from self._txn.cursor(db=self._env.table(table.name))

    def keys(self, table: SubDb) -> set[bytes]:
        """Every key."""
        return {key for key, _ in self.rows(table)}

    def value(self, table: SubDb, key: bytes) -> bytes | None:
        """One value."""
        return self._txn.get(key, db=self._env.table(table.name))

    def count(self, table: SubDb) -> int:
        """How many rows there are."""
        return self._txn.stat(db=self._env.table(table.name))["entries"]

    def images(self) -> Iterator[Image]:
        """Every record, deleted ones too."""
        return (records.decode(raw) for _, raw in self.rows(schema.IMAGES))

    def siblings(self) -> Iterator[tuple[bytes, Image]]:
        """Every sibling's name and record."""
        return ((key[16:], records.decode(raw)) for key, raw in self.rows(schema.SIBLING))

    def packs(self) -> Iterator[PackRow]:
        """Every stored object."""
        return (decode(key, raw) for key, raw in self.rows(schema.PACKS))

    def checkpoints(self) -> dict[UUID, Checkpoint]:
        """Every sealing that is under way, by image."""
        return {UUID(bytes=key): decode_checkpoint(raw) for key, raw in self.rows(schema.SEALS)}

    def usage(self) -> Iterator[tuple[str, str]]:
        """(figure, what is wrong) of every figure of `usage` that a count does not find."""
        return difference(self._env, self._txn)

    def counter(self, name: bytes) -> int:
        """A figure of `meta`."""
        return int.from_bytes(self.value(schema.META, name) or b"")


Rule = Callable[[Catalog], list[Finding]]
RULES: list[Rule] = []


def rule(check: Callable[[Snapshot], Iterator[Finding]]) -> Rule:
    """Makes a rule that is asked with a catalog and looks at one moment of it."""

    @wraps(check)
    def run(catalog: Catalog) -> list[Finding]:
        with catalog.env.read() as txn:
            return list(check(Snapshot(catalog, txn)))

    RULES.append(run)
    return run


@rule
def index_rows_match_records(at: Snapshot) -> Iterator[Finding]:
    """Every index has exactly the rows that the records of images that are not deleted make."""
    tables = {index.name: index for index in schema.INDEXES}
    wanted: Counter[str] = Counter()
    for image in at.images():
        for name, key in set(indexes.rows(image)):
            wanted[name] += 1
            if at.value(tables[name], key) is None:
                yield Finding("index_rows_match_records", str(image.id), f"is missing in {name}")
    for name, index in tables.items():
        # Only where there are too many is it worth the time to find out which.
        for key in at.keys(index) if at.count(index) != wanted[name] else ():
            raw = at.value(schema.IMAGES, key[-16:])
            if raw is None or (name, key) not in indexes.rows(records.decode(raw)):
                yield Finding("index_rows_match_records", _id(key[-16:]), f"has a row too many in {name}")


@rule
def entries_match_records(at: Snapshot) -> Iterator[Finding]:
    """by-name/ shows every named image that is not deleted or pending_delete, each under its own entry."""
    wanted: dict[bytes, bytes] = {}
    for image in at.images():
        shown = bool(image.name) and image.status not in (Status.DELETED, Status.PENDING_DELETE)
        if shown != (image.entry is not None):
            yield Finding("entries_match_records", str(image.id), f"is {image.status}, its entry {image.entry!r}")
        if image.entry is not None:
            if image.entry in wanted:
                yield Finding("entries_match_records", str(image.id), f"shares the entry {image.entry!r}")
            wanted[image.entry] = image.id.bytes
    there = dict(at.rows(schema.ENTRY))
    for entry in wanted.keys() | there.keys():
        if wanted.get(entry) != there.get(entry):
            yield Finding("entries_match_records", repr(entry), "leads to another image than the one that has it")


@rule
def inodes_match_records(at: Snapshot) -> Iterator[Finding]:
    """Every directory, data file and sibling has an inode number of its own, and no number is left over."""
    wanted: dict[bytes, bytes] = {}
    places = [(image.dir_ino, image.id.bytes + bytes([Kind.DIRECTORY])) for image in at.images()]
    places += [(image.data_ino, image.id.bytes + bytes([Kind.DATA])) for image in at.images()]
    places += [(r.data_ino, r.id.bytes + bytes([Kind.SIBLING]) + name) for name, r in at.siblings()]
    following = at.counter(b"ino")
    for ino, owner in places:
        key = schema.U64.pack(ino)
        if key in wanted or ino < Ino.FIRST_FREE or ino >= following:
            yield Finding("inodes_match_records", _id(owner[:16]), f"has inode {ino}, which it cannot have")
        wanted[key] = owner
    there = dict(at.rows(schema.BY_INO))
    for key in wanted.keys() | there.keys():
        if wanted.get(key) != there.get(key):
            yield Finding("inodes_match_records", str(int.from_bytes(key)), "leads elsewhere than to its owner")


@rule
def records_are_possible(at: Snapshot) -> Iterator[Finding]:
    """A draft exists exactly while an image is saving; sealed data only from active on; siblings have
    images."""
    for image in at.images():
        if (image.draft is not None) != (image.status == Status.SAVING) and image.status != Status.DELETED:
            yield Finding("records_are_possible", str(image.id), f"is {image.status}, its draft {image.draft}")
        if image.map_id and image.status in (Status.QUEUED, Status.SAVING):
            yield Finding("records_are_possible", str(image.id), f"is {image.status} and has a map")
    for name, record in at.siblings():
        if at.value(schema.IMAGES, record.id.bytes) is None:
            yield Finding("records_are_possible", str(record.id), f"is gone and has a sibling {name!r}")


@rule
def map_references_match(at: Snapshot) -> Iterator[Finding]:
    """A map counts the images, deleted ones too, that have it as data, and the drafts that take blocks from
    it."""
    refs = Counter(schema.U64.unpack(key[-8:])[0] for key in at.keys(schema.BASE_MAP))
    for record in [*at.images(), *(record for _, record in at.siblings())]:
        refs[record.map_id] += 1
        refs[record.draft.base_map if record.draft else 0] += 1
    del refs[0]
    there: Counter[int] = Counter()
    for key, raw in at.rows(schema.MAPS):
        count, _, _, uuid = schema.MAP.unpack(raw)
        there[schema.U64.unpack(key)[0]] = count
        if at.value(schema.MAP_UUID, uuid) != key:
            yield Finding("map_references_match", _id(uuid), "does not lead to its map")
    for map_id in refs.keys() | there.keys():
        if refs[map_id] != there[map_id] or not there[map_id]:
            yield Finding("map_references_match", f"map {map_id}", f"counts {there[map_id]}, used {refs[map_id]}")
    if len(at.keys(schema.MAP_UUID)) != len(there):
        yield Finding("map_references_match", "map_uuid", "has names of maps that are not there")


@rule
def bases_have_references(at: Snapshot) -> Iterator[Finding]:
    """Every map that a draft takes blocks from is referred to by it, and its parts do not overlap."""
    refs = at.keys(schema.BASE_MAP)
    before, end = b"", 0
    for key, raw in at.rows(schema.BASE):
        part, draft = parts.decode(key, raw), key[:-8]
        if draft + schema.U64.pack(part.map_id) not in refs:
            yield Finding("bases_have_references", _id(key[:16]), f"takes blocks from map {part.map_id}, uncounted")
        if draft == before and part.block < end:
            yield Finding("bases_have_references", _id(key[:16]), f"has two sources of block {part.block}")
        before, end = draft, part.end


@rule
def map_rows_have_maps(at: Snapshot) -> Iterator[Finding]:
    """Every row of extents belongs to a map, or to the provisional one of a draft that is being sealed."""
    numbers = {schema.U64.unpack(key)[0] for key, _ in at.rows(schema.MAPS)}
    numbers |= {row.map_id for row in at.checkpoints().values()}
    for map_id in {schema.SEG.unpack(key)[0] for key, _ in at.rows(schema.MAPSEG)} - numbers:
        yield Finding("map_rows_have_maps", f"map {map_id}", "has rows and is not there")


@rule
def pack_references_match(at: Snapshot) -> Iterator[Finding]:
    """A pack counts the maps that name it, a manifest its map; what is named is live, what is live is
    named."""
    refs = _named(at)
    manifests = {schema.MAP.unpack(raw)[3] for _, raw in at.rows(schema.MAPS)}
    for pack in at.packs():
        named = int(pack.name16 in manifests) if pack.kind == PackKind.MANIFEST else refs.pop(pack.no, 0)
        if pack.refs != named or (pack.state == PackState.LIVE) != (named > 0):
            message = f"is {pack.state.name.lower()}, counts {pack.refs}, named by {named} maps"
            yield Finding("pack_references_match", f"pack {pack.no}", message)
        frames = at.value(schema.FRAMES, schema.U32.pack(pack.no))
        if pack.kind == PackKind.PACK and pack.state == PackState.LIVE and not frames:
            yield Finding("pack_references_match", f"pack {pack.no}", "is live and its frames are not known")
    for no in refs:
        yield Finding("pack_references_match", f"pack {no}", "is named by a map and not there")


@rule
def pack_lists_match(at: Snapshot) -> Iterator[Finding]:
    """Names, owners, trash and doomed list exactly the packs of their states."""
    wanted: dict[str, set[bytes]] = {}
    for pack in at.packs():
        no = schema.U32.pack(pack.no)
        wanted.setdefault("pack_name", set()).add(pack.name16)
        if pack.state == PackState.PEND:
            wanted.setdefault("pack_owner", set()).add(pack.owner.bytes + no)
        elif pack.state == PackState.TRASH:
            wanted.setdefault("trash", set()).add(schema.GEN_NO.pack(pack.gen, pack.no))
        elif pack.state == PackState.DOOMED:
            wanted.setdefault("doomed", set()).add(no)
    for table in (schema.PACK_NAME, schema.PACK_OWNER, schema.TRASH, schema.DOOMED):
        for key in wanted.get(table.name, set()) ^ at.keys(table):
            yield Finding("pack_lists_match", key.hex(), f"is wrong in {table.name}")
    numbers = {schema.U32.pack(pack.no) for pack in at.packs()}
    for table in (schema.FRAMES, schema.DAMAGE):
        for key in at.keys(table) - numbers:
            message = f"has a row in {table.name} and is not there"
            yield Finding("pack_lists_match", f"pack {int.from_bytes(key)}", message)


@rule
def pend_packs_have_drafts(at: Snapshot) -> Iterator[Finding]:
    """What is reserved belongs to an image with a draft, or to a session that moves blocks; a checkpoint to a
    draft."""
    drafts = {image.id for image in at.images() if image.draft is not None}
    owners = drafts | {UUID(bytes=key) for key in at.keys(schema.SESSIONS)}
    for pack in at.packs():
        if pack.state == PackState.PEND and pack.owner not in owners:
            yield Finding("pend_packs_have_drafts", f"pack {pack.no}", f"is reserved by {pack.owner}: no draft")
    for image_id in at.checkpoints():
        if image_id not in drafts:
            yield Finding("pend_packs_have_drafts", str(image_id), "has a checkpoint and no draft")


@rule
def unlinked_matches_states(at: Snapshot) -> Iterator[Finding]:
    """`unlinked` lists exactly the deleted images."""
    deleted = {image.id.bytes for image in at.images() if image.status == Status.DELETED}
    listed = [key[8:] for key, _ in at.rows(schema.UNLINKED)]
    for image_id in deleted ^ set(listed):
        yield Finding("unlinked_matches_states", _id(image_id), "is deleted or listed as deleted, not both")
    if len(listed) != len(set(listed)):
        yield Finding("unlinked_matches_states", "unlinked", "lists an image twice")


@rule
def sealers_have_sessions(at: Snapshot) -> Iterator[Finding]:
    """The sealer of a draft, and whoever holds something, is a session with a row."""
    sessions = at.keys(schema.SESSIONS)
    for image in at.images():
        sealer = image.draft.sealer if image.draft is not None else None
        if sealer is not None and sealer.bytes not in sessions:
            yield Finding("sealers_have_sessions", str(image.id), "is being sealed by a session that is gone")
    for key in at.keys(schema.HOLDS):
        if key[-16:] not in sessions:
            yield Finding("sealers_have_sessions", _id(key[-16:]), "holds something and is gone")


@rule
def generations_are_past(at: Snapshot) -> Iterator[Finding]:
    """Nothing has a generation that was not given yet."""
    gen = at.counter(b"gen")
    found = {f"pack {pack.no}": pack.gen for pack in at.packs()}
    found |= {f"log row {key.hex()}": int.from_bytes(key) for key, _ in at.rows(schema.LOG)}
    found |= {name.decode(): at.counter(name) for name in (b"logged", b"flushed", b"pruned")}
    for subject, given in found.items():
        if given > gen:
            yield Finding("generations_are_past", subject, f"has generation {given}, the newest one is {gen}")


@rule
def usage_matches(at: Snapshot) -> Iterator[Finding]:
    """What is counted as things change is what a count of everything finds."""
    for subject, message in at.usage():
        yield Finding("usage_matches", subject, message)


def _named(at: Snapshot) -> Counter[int]:
    """Pack number -> maps that name it; provisional maps name nothing yet."""
    refs: Counter[int] = Counter()
    for key, rows in groupby(at.rows(schema.MAPSEG), key=lambda row: row[0][:8]):
        if at.value(schema.MAPS, key) is not None:
            refs.update(maprows.packs_of((0, value) for _, value in rows).keys())
    return refs


def _id(raw: bytes) -> str:
    return str(UUID(bytes=raw))
