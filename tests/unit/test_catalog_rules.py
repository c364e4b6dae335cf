"""Each rule of a sound catalog finds what breaks it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from imagefs.catalog import Catalog, packrows, parts, records, rules, schema
from imagefs.catalog.env import Txn
from imagefs.types import Image, Status
from tests.catalogs import commit_of, draft, opened, own_packs, sealed, session


class Bench:
    """A catalog with one of everything, and its tables to break."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.sealer = session(catalog)
        self.image = sealed(catalog, self.sealer, "sealed")
        self.draft = draft(catalog, "draft")
        commit_of(catalog, self.draft, self.sealer)
        self.sibling = catalog.siblings.add(self.draft.id, b"tmp", Image(id=self.draft.id))
        self.tagged = catalog.images.add(Image(id=uuid4(), tags=("t",), os_hidden=True))
        self.gone = sealed(catalog, self.sealer, "gone")
        catalog.images.unlink(self.gone.id)
        self.pack = own_packs(catalog, self.image)[0]

    def put(self, table: schema.SubDb, key: bytes, value: bytes) -> None:
        with self.catalog.env.write() as txn:
            txn.put(key, value, db=self.catalog.env.table(table.name))

    def delete(self, table: schema.SubDb, key: bytes) -> None:
        with self.catalog.env.write() as txn:
            assert txn.delete(key, db=self.catalog.env.table(table.name))

    def first(self, table: schema.SubDb) -> bytes:
        with self.catalog.env.read() as txn:
            cursor = txn.cursor(db=self.catalog.env.table(table.name))
            assert cursor.first()
            return cursor.key()

    def empty(self, table: schema.SubDb) -> None:
        def drop(txn: Txn) -> None:
            txn.drop(self.catalog.env.table(table.name), delete=False)

        with self.catalog.env.write() as txn:
            drop(txn)

    def record(self, image: Image, **changes: object) -> None:
        """Changes a record and nothing that follows from it."""
        now = self.catalog.images.get(image.id, deleted=True)
        self.put(schema.IMAGES, image.id.bytes, records.encode(replace(now, **changes)))  # type: ignore[arg-type]

    def pack_row(self, **changes: object) -> None:
        row = replace(self.catalog.packs.get(self.pack), **changes)  # type: ignore[arg-type]
        self.put(schema.PACKS, schema.U32.pack(self.pack), packrows.encode(row))


def _uncounted_base(bench: Bench) -> None:
    draft = bench.draft
    key = parts.owner(draft.id, draft.draft_gen) + schema.U64.pack(0)
    bench.put(schema.BASE, key, b"".join(map(schema.U64.pack, (1, bench.image.map_id, 0))))


BREAKS: list[tuple[str, Callable[[Bench], None]]] = [
    ("bases_have_references", _uncounted_base),
    ("index_rows_match_records", lambda b: b.record(b.tagged, owner="other")),
    ("index_rows_match_records", lambda b: b.delete(schema.I_TAG, b.first(schema.I_TAG))),
    ("index_rows_match_records", lambda b: b.put(schema.I_FLAG, schema.text("hidden") + bytes(24), b"")),
    ("index_rows_match_records", lambda b: b.record(b.gone, status=Status.ACTIVE)),
    ("entries_match_records", lambda b: b.record(b.image, entry=None)),
    ("entries_match_records", lambda b: b.record(b.image, entry=b"draft")),
    ("entries_match_records", lambda b: b.delete(schema.ENTRY, b"sealed")),
    ("entries_match_records", lambda b: b.put(schema.ENTRY, b"more", b.image.id.bytes)),
    ("entries_match_records", lambda b: b.put(schema.ENTRY, b"sealed", b.draft.id.bytes)),
    ("inodes_match_records", lambda b: b.record(b.image, data_ino=b.draft.data_ino)),
    ("inodes_match_records", lambda b: b.record(b.image, dir_ino=5)),
    ("inodes_match_records", lambda b: b.delete(schema.BY_INO, schema.U64.pack(b.sibling.ino))),
    (
        "inodes_match_records",
        lambda b: b.put(schema.BY_INO, schema.U64.pack(1 << 40), b.image.id.bytes + b"\1"),
    ),
    ("inodes_match_records", lambda b: b.put(schema.META, b"ino", schema.U64.pack(64))),
    ("records_are_possible", lambda b: b.record(b.draft, draft=None)),
    ("records_are_possible", lambda b: b.record(b.image, status=Status.QUEUED)),
    ("records_are_possible", lambda b: b.delete(schema.IMAGES, b.draft.id.bytes)),
    ("map_references_match", lambda b: b.record(b.image, map_id=0)),
    ("map_references_match", lambda b: b.delete(schema.MAPS, schema.U64.pack(b.image.map_id))),
    ("map_references_match", lambda b: b.delete(schema.MAP_UUID, b.first(schema.MAP_UUID))),
    ("map_references_match", lambda b: b.put(schema.MAP_UUID, bytes(16), schema.U64.pack(1))),
    ("map_rows_have_maps", lambda b: b.put(schema.MAPSEG, schema.SEG.pack(999, 0), b"")),
    ("map_rows_have_maps", lambda b: b.delete(schema.MAPS, schema.U64.pack(b.image.map_id))),
    ("pack_references_match", lambda b: b.pack_row(refs=2)),
    ("pack_references_match", lambda b: b.pack_row(state=packrows.PackState.TRASH)),
    ("pack_references_match", lambda b: b.delete(schema.PACKS, schema.U32.pack(b.pack))),
    ("pack_references_match", lambda b: b.delete(schema.FRAMES, schema.U32.pack(b.pack))),
    ("pack_references_match", lambda b: b.empty(schema.MAPSEG)),
    ("pack_lists_match", lambda b: b.pack_row(state=packrows.PackState.DOOMED)),
    ("pack_lists_match", lambda b: b.delete(schema.PACK_NAME, b.first(schema.PACK_NAME))),
    ("pack_lists_match", lambda b: b.empty(schema.PACK_OWNER)),
    ("pack_lists_match", lambda b: b.put(schema.TRASH, schema.GEN_NO.pack(1, 1), b"")),
    ("pack_lists_match", lambda b: b.put(schema.FRAMES, schema.U32.pack(12345), b"")),
    ("pend_packs_have_drafts", lambda b: b.record(b.draft, status=Status.QUEUED, draft=None)),
    ("unlinked_matches_states", lambda b: b.empty(schema.UNLINKED)),
    ("unlinked_matches_states", lambda b: b.put(schema.UNLINKED, bytes(8) + b.image.id.bytes, b"")),
    ("unlinked_matches_states", lambda b: b.put(schema.UNLINKED, bytes(8) + b.gone.id.bytes, b"")),
    ("sealers_have_sessions", lambda b: b.delete(schema.SESSIONS, b.sealer.bytes)),
    ("sealers_have_sessions", lambda b: b.put(schema.HOLDS, b"i" + bytes(32), b"")),
    ("generations_are_past", lambda b: b.put(schema.META, b"gen", schema.U64.pack(1))),
    ("generations_are_past", lambda b: b.put(schema.META, b"flushed", schema.U64.pack(1 << 40))),
    ("usage_matches", lambda b: b.put(schema.USAGE, b"p\2", bytes(15) + b"\1")),
    ("usage_matches", lambda b: b.empty(schema.USAGE)),
]


@pytest.mark.parametrize(("rule", "damage"), BREAKS)
def test_what_is_wrong_is_found(tmp_path: Path, rule: str, damage: Callable[[Bench], None]) -> None:
    with opened(tmp_path / "catalog", sound=False) as catalog:
        bench = Bench(catalog)
        assert not [finding for check in rules.RULES for finding in check(catalog)]
        damage(bench)
        findings = [finding for check in rules.RULES for finding in check(catalog)]
        assert rule in {finding.rule for finding in findings}
        assert all(finding.subject and finding.message and finding.rule in str(finding) for finding in findings)


def test_every_rule_is_broken_here() -> None:
    assert {rule.__name__ for rule in rules.RULES} == {rule for rule, _ in BREAKS}
    assert all(rule.__doc__ for rule in rules.RULES)


def test_the_schema_says_all_of_each_table() -> None:
    assert len({table.name for table in schema.ALL}) == len(schema.ALL) < 64
    for table in schema.ALL:
        assert table.key and table.value and table.writer and table.repair
