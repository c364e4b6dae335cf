"""Making tables right from others: one function for each rule of `rules.py` that can be put right here.

Records, maps' rows and the rows of stored objects are believed; everything else follows from them. Each repair
is one transaction, changes what is wrong and nothing else, and says what it did. It may run while the catalog is
in use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import wraps
from uuid import UUID

from imagefs.blocks import maprows
from imagefs.catalog import indexes, packrows, parts, records, schema
from imagefs.catalog.catalog import Catalog
from imagefs.catalog.env import Txn
from imagefs.catalog.packrows import PackKind, PackRow, PackState
from imagefs.catalog.schema import SubDb
from imagefs.catalog.steps import maps_of, shown
from imagefs.types import Image, Kind, Status


class Tables:
    """The tables of a catalog inside a write transaction, as the repairs see them."""

    def __init__(self, catalog: Catalog, txn: Txn) -> None:
        self.catalog = catalog
        self.txn = txn

    def rows(self, table: SubDb) -> dict[bytes, bytes]:
        """Every key and value."""
        return dict(self.txn.cursor(db=self.catalog.env.table(table.name)))

    def put(self, table: SubDb, key: bytes, value: bytes = b"") -> None:
        """Sets a row."""
        self.txn.put(key, value, db=self.catalog.env.table(table.name))

    def delete(self, table: SubDb, key: bytes) -> None:
        """Removes a row."""
        self.txn.delete(key, db=self.catalog.env.table(table.name))

    def make(self, table: SubDb, wanted: dict[bytes, bytes]) -> Iterator[str]:
        """Makes these the rows of the table."""
        there = self.rows(table)
        for key in there.keys() - wanted.keys():
            self.delete(table, key)
        changed = [key for key, value in wanted.items() if there.get(key) != value]
        for key in changed:
            self.put(table, key, wanted[key])
        if gone := len(there.keys() - wanted.keys()):
            yield f"removed {gone} rows of {table.name}"
        if changed:
            yield f"made {len(changed)} rows of {table.name} anew"

    def images(self) -> list[Image]:
        """Every record, deleted ones too."""
        return [records.decode(raw) for raw in self.rows(schema.IMAGES).values()]

    def siblings(self) -> list[tuple[bytes, Image]]:
        """Every sibling's name and record."""
        return [(key[16:], records.decode(raw)) for key, raw in self.rows(schema.SIBLING).items()]

    def packs(self) -> list[PackRow]:
        """Every stored object."""
        return [packrows.decode(key, raw) for key, raw in self.rows(schema.PACKS).items()]

    def set_record(self, image: Image) -> None:
        """Replaces a record alone: what hangs on it is for the other repairs."""
        self.put(schema.IMAGES, image.id.bytes, records.encode(image))


Repair = Callable[[Catalog], list[str]]
"""Puts right what one rule found; returns what it did, as phrases."""
REPAIRS: dict[str, Repair] = {}


def repairs(rule: str) -> Callable[[Callable[[Tables], Iterator[str]]], Repair]:
    """Makes a function the repair of a rule: one write transaction."""

    def made(repair: Callable[[Tables], Iterator[str]]) -> Repair:
        @wraps(repair)
        def run(catalog: Catalog) -> list[str]:
            with catalog.env.write() as txn:
                return list(repair(Tables(catalog, txn)))

        REPAIRS[rule] = run
        return run

    return made


@repairs("index_rows_match_records")
def make_indexes(at: Tables) -> Iterator[str]:
    """All index rows from the records."""
    wanted: dict[str, dict[bytes, bytes]] = {table.name: {} for table in schema.INDEXES}
    for image in at.images():
        for name, key in indexes.rows(image):
            wanted[name][key] = b""
    for table in schema.INDEXES:
        yield from at.make(table, wanted[table.name])


@repairs("entries_match_records")
def make_entries(at: Tables) -> Iterator[str]:
    """by-name/ from the records; an image without an entry, or with another one's, gets one that is free."""
    taken: dict[bytes, bytes] = {}
    homeless: list[Image] = []
    for image in sorted(at.images(), key=lambda image: (image.created_at, image.id)):
        if not shown(image):
            if image.entry is not None:
                at.set_record(replace(image, entry=None))
                yield f"took its entry from image {image.id}, which is {image.status}"
        elif image.entry is None or image.entry in taken:
            homeless.append(image)
        else:
            taken[image.entry] = image.id.bytes
    yield from at.make(schema.ENTRY, taken)
    for image in homeless:
        entry = at.catalog.images.free_entry(image)
        at.set_record(replace(image, entry=entry))
        at.put(schema.ENTRY, entry, image.id.bytes)
        yield f"gave image {image.id} the entry {entry.decode()}"


@repairs("inodes_match_records")
def make_inodes(at: Tables) -> Iterator[str]:
    """Inode numbers from the records; of two owners of one number the later one gets another."""
    images, siblings = at.images(), at.siblings()
    numbers = [ino for image in images for ino in (image.dir_ino + 1, image.data_ino)]
    numbers += [record.data_ino for _, record in siblings]
    following = max([at.catalog.counters.get("ino"), *(number + 1 for number in numbers)])
    if following != at.catalog.counters.get("ino"):
        at.catalog.counters.set("ino", following)
        yield f"set the next inode number to {following}"
    wanted: dict[bytes, bytes] = {}
    for image in sorted(images, key=lambda image: (image.created_at, image.id)):
        directory, data = schema.U64.pack(image.dir_ino), schema.U64.pack(image.data_ino)
        if directory in wanted:
            image = replace(image, dir_ino=at.catalog.counters.take("ino", 2))  # noqa: PLW2901
        if data in wanted:
            image = replace(image, data_ino=at.catalog.images.new_ino())  # noqa: PLW2901
        if {directory, data} & wanted.keys():
            at.set_record(image)
            yield f"gave image {image.id} inode numbers of its own"
        wanted[schema.U64.pack(image.dir_ino)] = image.id.bytes + bytes([Kind.DIRECTORY])
        wanted[schema.U64.pack(image.data_ino)] = image.id.bytes + bytes([Kind.DATA])
    for name, record in siblings:
        wanted.setdefault(schema.U64.pack(record.data_ino), record.id.bytes + bytes([Kind.SIBLING]) + name)
    yield from at.make(schema.BY_INO, wanted)


@repairs("records_are_possible")
def drop_siblings(at: Tables) -> Iterator[str]:
    """Temporary files whose image is gone."""
    images = at.rows(schema.IMAGES)
    for key in at.rows(schema.SIBLING):
        if key[:16] not in images:
            at.delete(schema.SIBLING, key)
            yield f"dropped the temporary file {key[16:]!r} of image {UUID(bytes=key[:16])}"


@repairs("map_references_match")
def count_map_references(at: Tables) -> Iterator[str]:
    """References of maps by a count; a map without any goes, and its packs lose theirs."""
    refs = Counter(schema.U64.unpack(key[-8:])[0] for key in at.rows(schema.BASE_MAP))
    for record in [*at.images(), *(record for _, record in at.siblings())]:
        refs.update(maps_of(record))
    names: dict[bytes, bytes] = {}
    for key, raw in at.rows(schema.MAPS).items():
        count, size, kind, uuid = schema.MAP.unpack(raw)
        wanted = refs[schema.U64.unpack(key)[0]]
        if wanted:
            names[uuid] = key
            if wanted != count:
                at.put(schema.MAPS, key, schema.MAP.pack(wanted, size, kind, uuid))
                yield f"map {schema.U64.unpack(key)[0]} is used {wanted} times, not {count}"
        else:
            at.delete(schema.MAPS, key)
            at.catalog.maps.drop_rows(schema.U64.unpack(key)[0])
            yield f"dropped map {schema.U64.unpack(key)[0]}, which nothing uses"
    yield from at.make(schema.MAP_UUID, names)


@repairs("bases_have_references")
def refer_to_bases(at: Tables) -> Iterator[str]:
    """References of the maps that drafts take blocks from; the maps' counts follow."""
    maps, refs = at.rows(schema.MAPS), at.rows(schema.BASE_MAP)
    inodes = {image.id: image.data_ino for image in at.images()}
    for key, raw in at.rows(schema.BASE).items():
        number = schema.U64.pack(parts.decode(key, raw).map_id)
        draft, image_id = key[:-8], UUID(bytes=key[:16])
        if draft + number not in refs and number in maps and image_id in inodes:
            refs[draft + number] = schema.U64.pack(inodes[image_id])
            at.put(schema.BASE_MAP, draft + number, refs[draft + number])
            yield f"image {image_id} refers to map {schema.U64.unpack(number)[0]}, which it takes blocks from"


@repairs("map_rows_have_maps")
def drop_map_rows(at: Tables) -> Iterator[str]:
    """Rows of extents of no map."""
    numbers = {schema.U64.unpack(key)[0] for key in at.rows(schema.MAPS)}
    for image_id in at.catalog.checkpoints.images():
        if (row := at.catalog.checkpoints.get(image_id)) is not None:
            numbers.add(row.map_id)
    for map_id in {schema.SEG.unpack(key)[0] for key in at.rows(schema.MAPSEG)} - numbers:
        at.catalog.maps.drop_rows(map_id)
        yield f"dropped the rows of map {map_id}, which is not there"


@repairs("pack_references_match")
def count_pack_references(at: Tables) -> Iterator[str]:
    """References of packs and manifests by a count: what is named is live, what is not is trash."""
    refs: Counter[int] = Counter()
    named: dict[int, set[int]] = {}
    maps = at.rows(schema.MAPS)
    for key, value in at.rows(schema.MAPSEG).items():
        if key[:8] in maps:
            found = named.setdefault(schema.U64.unpack(key[:8])[0], set())
            found.update(maprows.packs_of([(0, value)]))
    for nos in named.values():
        refs.update(nos)
    manifests = {schema.MAP.unpack(raw)[3] for raw in maps.values()}
    for row in at.packs():
        wanted = int(row.name16 in manifests) if row.kind == PackKind.MANIFEST else refs[row.no]
        state = PackState.LIVE if wanted else PackState.TRASH if row.state == PackState.LIVE else row.state
        if (row.refs, row.state) != (wanted, state):
            at.catalog.packs.correct(row, refs=wanted, state=state)
            yield f"{row.object_name} is {state.name.lower()} and used {wanted} times, not {row.refs}"


@repairs("pack_lists_match")
def make_pack_lists(at: Tables) -> Iterator[str]:
    """Names, owners, trash and doomed from the rows of stored objects."""
    names: dict[bytes, bytes] = {}
    owners: dict[bytes, bytes] = {}
    trash: dict[bytes, bytes] = {}
    doomed: dict[bytes, bytes] = {}
    for row in at.packs():
        no = schema.U32.pack(row.no)
        names[row.name16] = no
        if row.state == PackState.PEND:
            owners[row.owner.bytes + no] = b""
        elif row.state == PackState.TRASH:
            trash[schema.GEN_NO.pack(row.gen, row.no)] = b""
        elif row.state == PackState.DOOMED:
            doomed[no] = b""
    yield from at.make(schema.PACK_NAME, names)
    yield from at.make(schema.PACK_OWNER, owners)
    yield from at.make(schema.TRASH, trash)
    yield from at.make(schema.DOOMED, doomed)
    numbers = at.rows(schema.PACKS).keys()
    for table in (schema.FRAMES, schema.DAMAGE):
        yield from at.make(table, {key: value for key, value in at.rows(table).items() if key in numbers})


@repairs("pend_packs_have_drafts")
def discard_reserved(at: Tables) -> Iterator[str]:
    """What is reserved for no draft goes to trash; its checkpoint goes."""
    drafts = {image.id for image in at.images() if image.draft is not None}
    owners = drafts | {UUID(bytes=key) for key in at.rows(schema.SESSIONS)}
    left = [row.no for row in at.packs() if row.state == PackState.PEND and row.owner not in owners]
    at.catalog.packs.discard(left)
    if left:
        yield f"put {len(left)} objects that were reserved for no draft into the trash"
    for image_id in at.catalog.checkpoints.images():
        if image_id not in drafts:
            at.catalog.checkpoints.remove(image_id)
            yield f"dropped the checkpoint of image {image_id}, which has no draft"


@repairs("unlinked_matches_states")
def list_unlinked(at: Tables) -> Iterator[str]:
    """The list of deleted images from the records."""
    deleted = {image.id.bytes for image in at.images() if image.status == Status.DELETED}
    listed: set[bytes] = set()
    for key in sorted(at.rows(schema.UNLINKED)):
        if key[8:] not in deleted or key[8:] in listed:
            at.delete(schema.UNLINKED, key)
            yield f"took image {UUID(bytes=key[8:])} out of the list of deleted ones"
        listed.add(key[8:])
    for image_id in deleted - listed:
        at.put(schema.UNLINKED, schema.U64.pack(at.catalog.counters.next_gen()) + image_id)
        yield f"listed image {UUID(bytes=image_id)} as deleted"


@repairs("sealers_have_sessions")
def clear_sealers(at: Tables) -> Iterator[str]:
    """Sealers and holders that are no sessions."""
    sessions = at.rows(schema.SESSIONS)
    for image in at.images():
        if image.draft is not None and image.draft.sealer is not None and image.draft.sealer.bytes not in sessions:
            at.set_record(replace(image, draft=replace(image.draft, sealer=None)))
            yield f"image {image.id} is being sealed by nobody now"
    for key in at.rows(schema.HOLDS):
        if key[-16:] not in sessions:
            at.delete(schema.HOLDS, key)
            yield f"dropped what session {UUID(bytes=key[-16:])} held"


@repairs("generations_are_past")
def raise_generation(at: Tables) -> Iterator[str]:
    """The newest generation is above all that were given."""
    get = at.catalog.counters.get
    given = [row.gen for row in at.packs()] + [int.from_bytes(key) for key in at.rows(schema.LOG)]
    newest = max([get("gen"), get("logged"), get("flushed"), get("pruned"), *given])
    if newest != get("gen"):
        at.catalog.counters.set("gen", newest)
        yield f"set the generation to {newest}"


def count_usage(catalog: Catalog) -> list[str]:
    """The figures of usage by a count."""
    catalog.usage.count_again()
    return ["counted everything anew"]


REPAIRS["usage_matches"] = count_usage
