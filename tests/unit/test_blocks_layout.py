"""A second reader, written from docs/format.md with nothing of imagefs.blocks but what it checks."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from uuid import UUID

import crc32c
import pytest
import zstandard
from blake3 import blake3

from imagefs.blocks import frames, logobject, manifest
from imagefs.blocks.digest import Digests
from imagefs.blocks.footer import Moved
from imagefs.blocks.maps import MapBuilder
from imagefs.blocks.packs import BuiltPack, PackBuilder
from imagefs.blocks.root import Root
from imagefs.types import BLOCK, FRAME

REPO = UUID("00112233-4455-6677-8899-aabbccddeeff")
SESSION = UUID("ffeeddcc-bbaa-9988-7766-554433221100")
PACKS = (bytes(range(16)), bytes(range(16, 32)))
CREATED = 1_700_000_000_000_000_000


def pattern(length: int, seed: int) -> bytes:
    """Bytes that do not compress, the same on every machine."""
    return hashlib.shake_128(b"%d" % seed).digest(length)


PLAIN = (
    pattern(FRAME, 1) + b"text " * (FRAME // 5) + b"." + pattern(5 * BLOCK, 2),
    b"another pack".ljust(FRAME, b"\0"),
)


@dataclass
class Object:
    """An object taken apart by its trailer."""

    data: bytes

    def footer(self, *, header: int = 0) -> bytes:
        off, length, crc, digest, version, pad, magic = struct.unpack("<QII32sH6s8s", self.data[-64:])
        assert (version, pad, magic) == (1, bytes(6), b"IFSEND01")
        assert off + length + 64 == len(self.data)
        assert crc == crc32c.crc32c(self.data[-64:-52] + bytes(4) + self.data[-48:])
        footer = self.data[off : off + length]
        assert digest == blake3(self.data[:header] + footer).digest()
        return footer


def read_pack(data: bytes, name: bytes) -> list[bytes]:
    """The pack's plain blocks, every digest checked."""
    magic, version, flags, zero, repo, named, session, created = struct.unpack("<8sHHI16s16s16sQ", data[:72])
    assert (magic, version, flags, zero, named) == (b"IFSPACK1", 1, 0, 0, name)
    assert (repo, session, created) == (REPO.bytes, SESSION.bytes, CREATED)
    assert not any(data[72:4096])
    footer = Object(data).footer(header=4096)
    magic, nframes, nblocks, algorithm, width, log2, codecs = struct.unpack_from("<8sIIBBHI", footer)
    assert (magic, algorithm, width, log2) == (b"IFSFOOT1", 1, 20, 12)
    blocks: list[bytes] = []
    for n in range(nframes):
        offset, length, first, last, codec, digest = struct.unpack_from("<IIHBB16s", footer, 24 + 28 * n)
        stored = data[offset : offset + length]
        assert digest == blake3(stored).digest()[:16]
        assert codecs & 1 << codec
        assert codec == 1 or offset % 4096 == 0
        plain = zstandard.ZstdDecompressor().decompress(stored) if codec else stored
        assert (first, len(plain)) == (16 * n, (last + 1) * 4096)
        blocks += [plain[at : at + 4096] for at in range(0, len(plain), 4096)]
    assert len(blocks) == nblocks
    digests = footer[24 + 28 * nframes :][: 20 * nblocks]
    assert digests == b"".join(blake3(block).digest()[:20] for block in blocks)
    return blocks


def read_manifest(data: bytes) -> dict[int, bytes]:
    """The bodies of a manifest's sections."""
    covered = Object(data).footer()
    magic, version, flags, count = struct.unpack_from("<8sHHI", covered)
    assert (magic, version, flags) == (b"IFSMANI1", 1, 0)
    sections = {}
    for n in range(count):
        kind, version, off, length, digest = struct.unpack_from("<IIQQ32s", covered, 16 + 56 * n)
        assert version == 1
        assert digest == blake3(covered[off : off + length]).digest()
        sections[kind] = covered[off : off + length]
    return sections


def read_map(body: bytes) -> dict[int, tuple[int, int]]:
    """Block of the file -> (row of the pack table, block in the pack), without zeros."""
    places: dict[int, tuple[int, int]] = {}
    while body:
        quarter, length = struct.unpack_from("<II", body)
        value, body = body[8 : 8 + length], body[8 + length :]
        version, flags, n = struct.unpack_from("<HHI", value)
        assert version == 1
        starts, packs = struct.unpack_from(f"<{n}I", value, 8), struct.unpack_from(f"<{n}I", value, 8 + 4 * n)
        firsts = struct.unpack_from(f"<{n}H", value, 8 + 8 * n)
        ends = (*starts[1:], 65536 if flags & 1 else 4 * 65536)
        for start, end, pack, first in zip(starts, ends, packs, firsts, strict=True):
            if pack != 0xFFFFFFFF:
                places.update({quarter * 65536 + start + k: (pack, first + k) for k in range(end - start)})
    return places


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> list[BuiltPack]:
    """Two packs, the same bytes at every run."""
    monkeypatch.setattr("imagefs.blocks.packs.time.time_ns", lambda: CREATED)
    built = []
    for name, plain in zip(PACKS, PLAIN, strict=True):
        builder = PackBuilder(name, REPO, SESSION)
        for at in range(0, len(plain), FRAME):
            piece = plain[at : at + FRAME]
            builder.add_frame(frames.encode(piece), Digests().blocks(piece))
        built.append(builder.finish([Moved(b"o" * 16, 1, 2, 3)] if name == PACKS[1] else []))
    return built


def test_an_image_can_be_read_with_the_documentation_alone(packs):
    builder, root, zero = MapBuilder(), Root(Digests().zero), Digests().zero
    builder.append(40, 0, 37)
    builder.zeros(70_000)
    builder.append(9, 2, 14)
    root.update(packs[0].digests, 37)
    root.hole(70_000)
    root.update(packs[1].digests[40:], 14)
    names = {40: PACKS[0], 9: PACKS[1]}
    sections = read_manifest(manifest.encode(b'{"size": 287010816}', names, builder.rows(), root.hexdigest()))
    assert sections[1] == b'{"size": 287010816}'
    table = [sections[2][at : at + 16] for at in range(0, len(sections[2]), 16)]
    assert sorted(table) == sorted(PACKS)
    stored = {name: read_pack(b"".join(pack.parts), name) for name, pack in zip(PACKS, packs, strict=True)}
    places = read_map(sections[3])
    image = [stored[table[places[n][0]]][places[n][1]] if n in places else bytes(BLOCK) for n in range(70_051)]
    assert b"".join(image[:37]) == PLAIN[0]
    assert not any(map(any, image[37:70_037:997]))
    assert b"".join(image[70_037:]) == PLAIN[1][2 * BLOCK :]
    digests = [zero if n not in places else blake3(image[n]).digest()[:20] for n in range(70_051)]
    leaves = [blake3(b"".join(digests[at : at + 65536])).digest() for at in (0, 65536)]
    assert sections[6] == blake3(b"".join(leaves)).digest()


def test_moved_blocks_stand_behind_the_digests(packs):
    footer = Object(b"".join(packs[1].parts)).footer(header=4096)
    assert footer[24 + 28 + 20 * 16 :] == struct.pack("<I16sHHH", 1, b"o" * 16, 1, 2, 3)


def test_frame_rows_say_what_the_footer_says(packs):
    footer = Object(b"".join(packs[0].parts)).footer(header=4096)
    for n in range(3):
        offset, length, _, _, codec, digest = struct.unpack_from("<IIHBB16s", footer, 24 + 28 * n)
        row = packs[0].frames_row[24 * n : 24 * n + 24]
        assert row == struct.pack("<I", offset) + length.to_bytes(3, "little") + bytes([codec]) + digest


def test_log_objects():
    record = logobject.Record(7, 2, UUID(int=5), b"{}")
    covered = Object(logobject.encode(REPO, 7, [record, record._replace(gen=8)], epoch=4)).footer()
    assert struct.unpack_from("<8s16sQQI", covered) == (b"IFSLOG01", REPO.bytes, 4, 7, 2)
    one = struct.pack("<QB16sI", 7, 2, UUID(int=5).bytes, 2) + b"{}"
    assert covered[44:] == one + struct.pack("<Q", 8) + one[8:]


def test_the_layouts_of_version_1_never_change(packs):
    # Bytes of an earlier imagefs; compressed frames are left out, libzstd may choose others.
    pack = packs[0]
    assert blake3(pack.parts[0]).hexdigest()[:16] == "dc900e4b82d56cf6"
    builder = MapBuilder()
    builder.append(3, 7, 5)
    assert builder.rows() == [(0, bytes.fromhex("0100000002000000000000000500000003000000ffffffff07000000"))]
    data = manifest.encode(b"{}", {3: PACKS[0]}, builder.rows(), "11" * 32)
    assert blake3(data).hexdigest()[:16] == "85ee1954c2af3d1c"
    log = logobject.encode(REPO, 7, [logobject.Record(7, 2, UUID(int=5), b"{}")])
    assert blake3(log).hexdigest()[:16] == "bfd19c92e9ce71d5"
