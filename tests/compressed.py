"""Small compressed disk images made here, without qemu: what the tests of layout `recode` store."""

from __future__ import annotations

import random
import struct

from imagefs.formats.deflate import Codec

QEMU = Codec(6, -12, 9)
"""What qemu compresses the clusters of a qcow2 with."""
QEMU_VMDK = Codec(6, 15, 8)
"""And the grains of a VMDK."""
CLUSTER_BITS = 16
CLUSTER = 1 << CLUSTER_BITS
_WORDS = [bytes(random.Random(number).choices(range(97, 123), k=2 + number % 9)) for number in range(997)]


def text(length: int, seed: int) -> bytes:
    """What a disk holds that compresses to a third."""
    source = random.Random(seed)
    made = b" ".join(source.choices(_WORDS, k=length // 6 + 1))
    while len(made) < length:
        made += made
    return made[:length]


def disk(megabytes: int, seed: int, *, noise: bool = True) -> bytes:
    """A disk with text, a hole, a cluster of noise, and text that goes on into a last cluster cut short."""
    source = random.Random(seed)
    parts = [text(megabytes << 20, seed), bytes(4 * CLUSTER)]
    if noise:
        parts.append(source.randbytes(CLUSTER))
    return b"".join([*parts, text(3 * CLUSTER // 2, seed + 1)])


def qcow2(disk: bytes, codec: Codec = QEMU, *, version: int = 3) -> bytes:
    """The disk as `qemu-img convert -c` lays it out: streams one behind the other, what does not compress in a
    cluster of its own."""
    count = -(-len(disk) // CLUSTER)
    assert count <= CLUSTER // 8, "one L2 table"
    body = bytearray(4 * CLUSTER)
    table, l2 = [0] * (CLUSTER // 8), 3 * CLUSTER
    for number in range(count):
        plain = disk[number * CLUSTER : (number + 1) * CLUSTER].ljust(CLUSTER, b"\0")
        if not any(plain):
            continue
        stream = codec.encode(plain)
        if len(stream) >= CLUSTER:
            body += bytes(-len(body) % CLUSTER)
            table[number] = 1 << 63 | len(body)
            body += plain
            continue
        sectors = (len(body) % 512 + len(stream) - 1) // 512
        table[number] = 1 << 62 | sectors << (62 - CLUSTER_BITS + 8) | len(body)
        body += stream
    body += bytes(-len(body) % 512)
    head = struct.pack(
        ">4sIQIIQIIQQIIQ",
        *(b"QFI\xfb", version, 0, 0, CLUSTER_BITS, len(disk), 0, 1, CLUSTER, 2 * CLUSTER, 1, 0, 0),
    )
    head += struct.pack(">QQQII", 0, 0, 0, 4, 104) if version == 3 else b""
    body[: len(head)] = head
    body[CLUSTER : CLUSTER + 8] = struct.pack(">Q", 1 << 63 | l2)
    body[l2 : l2 + CLUSTER] = struct.pack(f">{len(table)}Q", *table)
    return bytes(body)


def vmdk(disk: bytes, codec: Codec = QEMU_VMDK) -> bytes:
    """The disk as a streamOptimized extent: a marker before each grain's stream, tables at the beginning."""
    grains = -(-len(disk) // CLUSTER)
    per_table = 512
    assert grains <= per_table, "one grain table"
    body = bytearray(8 * 512)
    table = [0] * per_table
    for number in range(grains):
        plain = disk[number * CLUSTER : (number + 1) * CLUSTER].ljust(CLUSTER, b"\0")
        if any(plain):
            stream = codec.encode(plain)
            table[number] = len(body) // 512
            body += struct.pack("<QI", number * CLUSTER // 512, len(stream)) + stream
            body += bytes(-len(body) % 512)
    head = struct.pack(
        "<4sIIQQQQIQQQB4sH",
        *(b"KDMV", 3, 1 << 16 | 1 << 17 | 1, grains * CLUSTER // 512, CLUSTER // 512, 0, 0, per_table),
        *(0, 1, 8, 0, b"\n \r\n", 1),
    )
    body[: len(head)] = head
    body[512:516] = struct.pack("<I", 2)
    body[1024 : 1024 + 4 * per_table] = struct.pack(f"<{per_table}I", *table)
    return bytes(body)
