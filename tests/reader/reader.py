"""A second reader of imagefs repositories, written from docs/format.md alone: it imports nothing of imagefs.

    python reader.py REPOSITORY                  list the images
    python reader.py REPOSITORY IMAGE FILE       write an image's data to a file
    python reader.py REPOSITORY --verify         check every object and every image

It needs the stored objects (`store/`) and no catalog. Whatever does not verify raises Wrong. The layout `recode`
is in recoded.py.
"""

from __future__ import annotations

import json
import struct
import sys
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import zstandard
from blake3 import blake3

if __package__:
    from .recoded import Recoded, Wrong, require
else:
    from recoded import Recoded, Wrong, require

BLOCK, FRAME_BLOCKS, QUARTER, ZEROS = 4096, 16, 65536, 0xFFFFFFFF
VERSION = 1
FEATURES = ("recode",)
CRITICAL = 1 << 31


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def footer_of(data: bytes, what: str, header: int = 0) -> tuple[int, bytes]:
    """(footer_off, footer) of an object, checked against its trailer."""
    require(len(data) >= 64, f"{what} is truncated")
    off, length, crc, digest, version, _, magic = struct.unpack("<QII32sH6s8s", data[-64:])
    require(magic == b"IFSEND01" and off + length + 64 == len(data), f"{what} has no trailer")
    require(crc == crc32c(data[-64:-52] + bytes(4) + data[-48:]), f"{what}: the trailer's CRC is wrong")
    require(version == VERSION, f"{what} has version {version}")
    footer = data[off : off + length]
    require(digest == blake3(data[:header] + footer).digest(), f"{what} does not match its digest")
    return off, footer


class Frame(NamedTuple):
    offset: int
    length: int
    nblocks: int
    codec: int
    digest: bytes


class Pack(NamedTuple):
    data: bytes
    frames: list[Frame]
    digests: list[bytes]
    moved: list[tuple[bytes, int, int, int]]
    """(older pack, first block there, first block here, count)."""


class Repository:
    def __init__(self, path: Path) -> None:
        self.store = path / "store"
        superblock = json.loads((self.store / "imagefs.json").read_bytes())
        form = superblock["format"]
        require(form["min_reader"] <= VERSION, f"this reader knows format {VERSION}")
        unknown = [name for name in form["features"] if not name.startswith("ro:") and name not in FEATURES]
        require(not unknown, f"unknown features: {unknown}")
        require((superblock["digest"]["alg"], superblock["block"]) == ("blake3-160", BLOCK), "unknown blocks")
        self.repo = UUID(superblock["repo"])
        key = superblock["digest"]["key"]
        self._key = bytes.fromhex(key) if key else None
        self.pack = lru_cache(64)(self._pack)
        self.there = lru_cache(None)(lambda name: (self.store / f"packs/{name.hex()[:2]}/{name.hex()}").exists())

    def digest(self, block: bytes) -> bytes:
        return (blake3(block, key=self._key) if self._key else blake3(block)).digest()[:20]

    # -- the log -----------------------------------------------------------------------------------

    def images(self) -> dict[UUID, dict[str, Any]]:
        """Every image's last record; not the deleted ones."""
        found: dict[UUID, dict[str, Any]] = {}
        snapshots = sorted(path.name for path in (self.store / "snap").glob("*"))
        since = snapshots[-1] if snapshots else ""
        for name in [f"snap/{since}"] if since else []:
            found.update(self._records(name))
        for path in sorted((self.store / "log").glob("*")):
            if path.name > since:
                found.update(self._records(f"log/{path.name}"))
        for path in (self.store / "maps").glob("*"):
            if UUID(path.name) not in found:
                record = json.loads(self.manifest(path.name)[1])
                found.setdefault(UUID(record["id"]), record)
        return {image: record for image, record in found.items() if record.get("status") != "deleted"}

    def _records(self, name: str) -> Iterator[tuple[UUID, dict[str, Any]]]:
        _, body = footer_of((self.store / name).read_bytes(), name)
        magic, repo, _, _, count = struct.unpack_from("<8s16sQQI", body)
        require(magic == b"IFSLOG01" and repo == self.repo.bytes, f"{name} is of another repository")
        at = 44
        for _ in range(count):
            _, _, image, length = struct.unpack_from("<QB16sI", body, at)
            yield UUID(bytes=image), json.loads(body[at + 29 : at + 29 + length])
            at += 29 + length
        require(at == len(body), f"{name} goes on behind its records")

    # -- maps --------------------------------------------------------------------------------------

    def manifest(self, uuid: str) -> dict[int, bytes]:
        """The sections of a map's manifest."""
        _, body = footer_of((self.store / "maps" / uuid).read_bytes(), f"maps/{uuid}")
        magic, version, flags, count = struct.unpack_from("<8sHHI", body)
        require((magic, version, flags) == (b"IFSMANI1", 1, 0), f"maps/{uuid} is no manifest of this version")
        sections: dict[int, bytes] = {}
        for n in range(count):
            kind, version, off, length, digest = struct.unpack_from("<IIQQ32s", body, 16 + 56 * n)
            section = body[off : off + length]
            require(blake3(section).digest() == digest, f"maps/{uuid}, section {kind}")
            if kind & ~CRITICAL in (1, 2, 3, 4, 6):
                require(version == 1, f"maps/{uuid}, section {kind} has version {version}")
                sections[kind & ~CRITICAL] = section
            else:
                require(kind < CRITICAL, f"maps/{uuid} has the unknown critical section {kind & ~CRITICAL}")
        require(sections.keys() >= {1, 2, 3, 6}, f"maps/{uuid} lacks sections")
        return sections

    @staticmethod
    def runs(body: bytes) -> Iterator[tuple[int, int, int, int]]:
        """(block of the file, row of the pack table, first block there, count), zeros left out."""
        at = 0
        while at < len(body):
            quarter, length = struct.unpack_from("<II", body, at)
            value = body[at + 8 : at + 8 + length]
            at += 8 + length
            version, flags, n = struct.unpack_from("<HHI", value)
            require(version == 1 and not flags & ~1 and length == 8 + 10 * n, "a map row")
            starts = struct.unpack_from(f"<{n}I", value, 8)
            packs = struct.unpack_from(f"<{n}I", value, 8 + 4 * n)
            firsts = struct.unpack_from(f"<{n}H", value, 8 + 8 * n)
            ends = (*starts[1:], QUARTER if flags & 1 else 4 * QUARTER)
            for start, end, pack, first in zip(starts, ends, packs, firsts, strict=True):
                if pack != ZEROS:
                    yield quarter * QUARTER + start, pack, first, end - start

    # -- packs -------------------------------------------------------------------------------------

    def _pack(self, name: bytes) -> Pack:
        path = f"packs/{name.hex()[:2]}/{name.hex()}"
        data = (self.store / path).read_bytes()
        off, footer = footer_of(data, path, header=4096)
        magic, version, flags, _, repo, named = struct.unpack_from("<8sHHI16s16s", data)
        require((magic, version, flags) == (b"IFSPACK1", 1, 0), f"{path} is no pack of this version")
        require((repo, named) == (self.repo.bytes, name), f"{path} is another pack")
        magic, nframes, nblocks, alg, width, log2, codecs = struct.unpack_from("<8sIIBBHI", footer)
        require((magic, alg, width, log2) == (b"IFSFOOT1", 1, 20, 12), f"{path}: the footer")
        frames = []
        for n in range(nframes):
            offset, length, first, last, codec, digest = struct.unpack_from("<IIHBB16s", footer, 24 + 28 * n)
            require(first == n * FRAME_BLOCKS and offset + length <= off and codecs >> codec & 1, f"{path}: frame {n}")
            frames.append(Frame(offset, length, last + 1, codec, digest))
        at = 24 + 28 * nframes
        digests = [footer[at + 20 * n : at + 20 * n + 20] for n in range(nblocks)]
        at += 20 * nblocks
        moved = []
        if at < len(footer):
            (count,) = struct.unpack_from("<I", footer, at)
            moved = [struct.unpack_from("<16sHHH", footer, at + 4 + 22 * n) for n in range(count)]
        return Pack(data, frames, digests, moved)

    def frame(self, pack: Pack, number: int) -> bytes:
        """A frame's plain bytes."""
        offset, length, nblocks, codec, digest = pack.frames[number]
        stored = pack.data[offset : offset + length]
        require(blake3(stored).digest()[:16] == digest, f"frame {number} does not match its digest")
        require(codec in (0, 1), f"unknown codec {codec}")
        plain = zstandard.ZstdDecompressor().decompress(stored, nblocks * BLOCK) if codec else stored
        require(len(plain) == nblocks * BLOCK, f"frame {number} has {len(plain)} bytes")
        return plain

    def place(self, name: bytes, first: int) -> tuple[bytes, int]:
        """Where a block of a pack is now, (pack, block): there, or where a rewrite moved it."""
        if self.there(name):
            return name, first
        if name not in self.moves:
            raise Wrong(f"pack {name.hex()} is gone")
        for newer, old, new, count in self.moves[name]:
            if old <= first < old + count:
                return self.place(newer, new + first - old)
        raise Wrong(f"block {first} of pack {name.hex()} is gone")

    @property
    @lru_cache(1)  # noqa: B019 (there is one repository in a run)
    def moves(self) -> dict[bytes, list[tuple[bytes, int, int, int]]]:
        """Older pack -> (newer pack, first block there, first block here, count)."""
        found: dict[bytes, list[tuple[bytes, int, int, int]]] = {}
        for path in (self.store / "packs").glob("*/*"):
            newer = bytes.fromhex(path.name)
            for name, old, new, count in self.pack(newer).moved:
                found.setdefault(name, []).append((newer, old, new, count))
        return found

    # -- data --------------------------------------------------------------------------------------

    def blocks(self, record: dict[str, Any]) -> Iterator[tuple[int, bytes]]:
        """(number, bytes) of every block of an image that is not zeros, all of it verified."""
        found = Map(self, record["map_uuid"])
        if found.kind == 0:
            return found.blocks()
        require(found.kind == 1, f"maps/{record['map_uuid']} has a map of layout {found.kind}")
        return Recoded(found.read).blocks()

    def root(self, record: dict[str, Any]) -> str:
        """The BLAKE3 root that an image's blocks really have."""
        digests = {block: self.digest(plain) for block, plain in self.blocks(record)}
        zero, count = self.digest(bytes(BLOCK)), -(-record["size"] // BLOCK)
        leaves = []
        for start in range(0, count, QUARTER):
            part = [digests.get(block, zero) for block in range(start, min(start + QUARTER, count))]
            leaves.append(blake3(b"".join(part)).digest())
        return blake3(b"".join(leaves)).hexdigest()

    def write(self, record: dict[str, Any], target: Path) -> None:
        """An image's data as a file; zeros become holes."""
        with target.open("wb") as file:
            for block, plain in self.blocks(record):
                file.seek(block * BLOCK)
                file.write(plain)
            file.truncate(record["size"])


class Map:
    """The blocks of one map."""

    def __init__(self, repo: Repository, uuid: str) -> None:
        sections = repo.manifest(uuid)
        self.kind = sections.get(4, b"\0")[0]
        self._repo = repo
        self._table = [sections[2][at : at + 16] for at in range(0, len(sections[2]), 16)]
        self._runs = list(repo.runs(sections[3]))
        self._frame = lru_cache(64)(lambda name, number: repo.frame(repo.pack(name), number))

    def blocks(self) -> Iterator[tuple[int, bytes]]:
        """(number, bytes) of all that are not zeros, each checked against its digest."""
        for block, pack, first, count in self._runs:
            for n in range(count):
                yield block + n, self._stored(pack, first + n)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the map, from and to anywhere."""
        first, end = offset // BLOCK, -(-(offset + length) // BLOCK)
        content = bytearray((end - first) * BLOCK)
        at = max(bisect_right(self._runs, first, key=lambda run: run[0]) - 1, 0)
        for block, pack, start, count in self._runs[at:]:
            if block >= end:
                break
            for number in range(max(block, first), min(block + count, end)):
                at = (number - first) * BLOCK
                content[at : at + BLOCK] = self._stored(pack, start + number - block)
        return bytes(content[offset - first * BLOCK :][:length])

    def _stored(self, pack: int, block: int) -> bytes:
        name, at = self._repo.place(self._table[pack], block)
        plain: bytes = self._frame(name, at // FRAME_BLOCKS)[at % FRAME_BLOCKS * BLOCK :][:BLOCK]
        require(self._repo.digest(plain) == self._repo.pack(name).digests[at], f"block {at} does not match its digest")
        return plain


def main(words: list[str]) -> None:
    repo = Repository(Path(words[0]))
    images = repo.images()
    if len(words) == 3:
        (record,) = [one for one in images.values() if words[2 - 1] in (one["id"], one.get("entry"))]
        repo.write(record, Path(words[2]))
        return
    for record in images.values():
        print(record["id"], record.get("status", "queued"), record.get("size", "-"), record.get("name", ""))
        if "--verify" in words and "map_uuid" in record:
            require(repo.root(record) == record["root"], f"{record['id']}: the root is another one")


if __name__ == "__main__":
    main(sys.argv[1:])
