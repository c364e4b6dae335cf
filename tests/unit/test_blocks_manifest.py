from __future__ import annotations

import json
import struct
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.blocks import manifest, maprows, trailer
from imagefs.blocks.manifest import CRITICAL
from imagefs.blocks.maps import MapBuilder
from imagefs.errors import Damaged, NewerVersion, UnknownFeature
from imagefs.types import ZERO_PACK

NAME = "maps/01234567-89ab-4cde-8f01-23456789abcd"
RECORD = json.dumps({"name": "debian-12", "size": 123456}).encode()
ROOT = bytes(range(32)).hex()


def example() -> tuple[dict[int, bytes], list[tuple[int, bytes]]]:
    """Pack names and rows of a map over packs 7, 1000 and 3."""
    builder = MapBuilder()
    builder.append(1000, 5, 20)
    builder.zeros(300_000)
    builder.append(7, 0, 2048)
    builder.append(3, 1, 2)
    names = {number: struct.pack(">QQ", number, number) for number in (3, 7, 1000, 2000)}
    return names, builder.rows()


def test_the_name_is_the_maps_uuid():
    assert manifest.object_name(UUID(NAME.removeprefix("maps/"))) == NAME


def test_a_manifest_comes_back():
    names, rows = example()
    found = manifest.decode(manifest.encode(RECORD, names, rows, ROOT), NAME)
    assert (found.record, found.root) == (RECORD, ROOT)
    assert found.packs == (names[3], names[7], names[1000]), "only packs that the map names"
    assert [pack for _, pack, _, _ in maprows.runs(found.rows)] == [2, 1, 0]
    assert found.rows_for([3, 7, 1000]) == rows


def test_another_catalog_reads_it_under_its_own_numbers():
    names, rows = example()
    found = manifest.decode(manifest.encode(RECORD, names, rows, ROOT), NAME)
    theirs = {name: 50 + n for n, name in enumerate(names.values())}
    moved = found.rows_for([theirs[name] for name in found.packs])
    assert maprows.packs_of(moved) == {52: 20, 51: 2048, 50: 2}


def test_an_image_of_nothing_but_holes():
    found = manifest.decode(manifest.encode(RECORD, {}, [], ROOT), NAME)
    assert (found.packs, found.rows) == ((), ())


@given(st.binary(max_size=300), st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), max_size=30))
def test_any_manifest_comes_back(record, runs):
    builder = MapBuilder()
    for pack, count in runs:
        builder.append(pack, 0, count) if pack < 8 else builder.zeros(count * 100_000)
    names = {number: bytes([number]) * 16 for number in range(8)}
    found = manifest.decode(manifest.encode(record, names, builder.rows(), ROOT), NAME)
    assert found.record == record
    assert found.rows_for([name[0] for name in found.packs]) == builder.rows()


def sections_of(data: bytes) -> list[tuple[int, int, bytes]]:
    """(type, version, body) of each section."""
    (count,) = struct.unpack_from("<12xI", data)
    table = [struct.unpack_from("<IIQQ", data, 16 + 56 * n) for n in range(count)]
    return [(kind, version, data[at : at + length]) for kind, version, at, length in table]


def assembled(sections: list[tuple[int, int, bytes]], version: int = 1, flags: int = 0) -> bytes:
    """A manifest of any sections, its digests right."""
    head = struct.pack("<8sHHI", b"IFSMANI1", version, flags, len(sections))
    at = len(head) + 56 * len(sections)
    for kind, ver, body in sections:
        head += struct.pack("<IIQQ", kind, ver, at, len(body)) + trailer.digest_of(body)
        at += len(body)
    return trailer.seal(head + b"".join(body for _, _, body in sections))


def usual() -> list[tuple[int, int, bytes]]:
    names, rows = example()
    return sections_of(manifest.encode(RECORD, names, rows, ROOT))


def with_section(kind: int, body: bytes, version: int = 1) -> list[tuple[int, int, bytes]]:
    return [(k, version, body) if k == kind else (k, v, b) for k, v, b in usual()]


def test_a_section_of_later_versions_is_passed_over_unless_it_is_critical():
    extra = assembled([*usual(), (77, 1, b"whatever")])
    assert manifest.decode(extra, NAME) == manifest.decode(assembled(usual()), NAME)
    with pytest.raises(UnknownFeature, match=f"{NAME} has section 77"):
        manifest.decode(assembled([*usual(), (77 | CRITICAL, 1, b"")]), NAME)


def test_known_sections_may_be_flagged_critical():
    flagged = assembled([(kind | CRITICAL, version, body) for kind, version, body in usual()])
    assert manifest.decode(flagged, NAME) == manifest.decode(assembled(usual()), NAME)


def segment(quarter: int, value: bytes) -> bytes:
    return struct.pack("<II", quarter, len(value)) + value


ZERO_ROW = struct.pack("<HHIIIH", 1, 0, 1, 0, ZERO_PACK, 0)
REFUSED = {
    "later layout": (assembled(usual(), version=2), NewerVersion),
    "flags": (assembled(usual(), flags=1), UnknownFeature),
    "section of a later layout": (assembled(with_section(manifest.MAP, b"", version=2)), NewerVersion),
    "no map": (assembled([s for s in usual() if s[0] != manifest.MAP]), Damaged),
    "two roots": (assembled([*usual(), usual()[-1]]), Damaged),
    "half a name": (assembled(with_section(manifest.PACKS, bytes(47))), Damaged),
    "too few packs": (assembled(with_section(manifest.PACKS, bytes(32))), Damaged),
    "half a root": (assembled(with_section(manifest.ROOT, bytes(16))), Damaged),
    "half a segment": (assembled(with_section(manifest.MAP, segment(0, ZERO_ROW)[:-1])), Damaged),
    "half a segment head": (assembled(with_section(manifest.MAP, segment(0, ZERO_ROW) + b"1")), Damaged),
    "rows of a later layout": (
        assembled(with_section(manifest.MAP, segment(0, b"\2" + ZERO_ROW[1:]))),
        NewerVersion,
    ),
    "not a manifest": (trailer.seal(b"IFSMANI2" + bytes(100)), Damaged),
    "nothing": (trailer.seal(b""), Damaged),
    "a million sections": (trailer.seal(struct.pack("<8sHHI", b"IFSMANI1", 1, 0, 1 << 31)), Damaged),
    "no trailer": (b"IFSMANI1" + bytes(200), Damaged),
    "empty": (b"", Damaged),
}


def test_a_section_has_a_digest_of_its_own():
    # So that one section can be read by range; a writer that gets it wrong is found out at once.
    content = bytearray(assembled(usual())[:-64])
    content[16 + 24] ^= 1
    with pytest.raises(Damaged, match="section 1 does not match"):
        manifest.decode(trailer.seal(bytes(content)), NAME)


@pytest.mark.parametrize(("data", "error"), REFUSED.values(), ids=REFUSED)
def test_manifests_that_this_version_must_refuse(data, error):
    with pytest.raises(error, match=NAME):
        manifest.decode(data, NAME)
