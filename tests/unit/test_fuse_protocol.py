"""Layouts, INIT and replies of the kernel protocol, byte for byte."""

from __future__ import annotations

import os
import stat
import struct

import pytest

from imagefs.errors import MountFailed
from imagefs.fuse.kernel import encoding, init, protocol
from imagefs.fuse.kernel.protocol import Init, Opcode
from imagefs.tree.attr import Attr, Entry, Statfs

SIZES = {
    "IN_HEADER": 40, "OUT_HEADER": 16, "INIT_OUT": 64, "GETATTR_IN": 16, "SETATTR_IN": 88, "MKNOD_IN": 16,
    "MKDIR_IN": 8, "RENAME_IN": 8, "RENAME2_IN": 16, "OPEN_IN": 8, "CREATE_IN": 16, "READ_IN": 40,
    "WRITE_IN": 40, "RELEASE_IN": 24, "FLUSH_IN": 24, "FSYNC_IN": 16, "SETXATTR_IN": 8, "GETXATTR_IN": 8,
    "FALLOCATE_IN": 32, "LSEEK_IN": 24, "COPY_FILE_RANGE_IN": 56, "STATX_IN": 24, "ENTRY_OUT": 128,
    "ATTR_OUT": 104, "OPEN_OUT": 16, "WRITE_OUT": 8, "STATFS_OUT": 80, "GETXATTR_OUT": 8, "LSEEK_OUT": 8,
    "COPY_FILE_RANGE_OUT": 8, "DIRENT": 24, "DIRENTPLUS": 152, "STATX_OUT": 288, "INVAL_INODE_OUT": 24,
    "INVAL_ENTRY_OUT": 16,
}  # fmt: skip
"""sizeof() of the structs of linux/fuse.h 7.45."""
OFFERED = 0x73FFFFFB
OFFERED_2 = 0x5FD
"""What Linux 6.18 offers."""
NEVER = {
    "POSIX_LOCKS": 1, "FLOCK_LOCKS": 10, "AUTO_INVAL_DATA": 12, "WRITEBACK_CACHE": 16, "NO_OPEN": 17,
    "HANDLE_KILLPRIV": 19, "POSIX_ACL": 20, "NO_OPENDIR": 24, "SUBMOUNTS": 27, "SETXATTR_EXT": 29,
    "OVER_IO_URING": 41, "REQUEST_TIMEOUT": 42,
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_layouts_have_the_size_of_the_headers_structs(name: str) -> None:
    assert getattr(protocol, name).size == SIZES[name]


def offer(minor: int = 45, flags: int = OFFERED, flags2: int = OFFERED_2, major: int = 7) -> bytes:
    body = struct.pack("=IIIII44x", major, minor, 131072, flags, flags2)
    return protocol.IN_HEADER.pack(40 + len(body), Opcode.INIT, 2, 0, 0, 0, 0, 0, 0) + body


def test_init_takes_what_is_wanted_of_what_is_offered() -> None:
    reply, agreed = init.answer(offer())
    assert agreed is not None
    assert (agreed.minor, agreed.max_write) == (45, 1 << 20)
    length, error, unique = protocol.OUT_HEADER.unpack_from(reply)
    assert (length, error, unique) == (80, 0, 2) == (len(reply), 0, 2)
    fields = protocol.INIT_OUT.unpack_from(reply, 16)
    (
        major,
        minor,
        readahead,
        low,
        background,
        congestion,
        max_write,
        granularity,
        pages,
        alignment,
        high,
        stacked,
        *_,
    ) = fields
    assert (major, minor, readahead, max_write, pages) == (7, 45, 131072, 1 << 20, 256)
    assert (background, congestion, granularity, alignment) == (64, 48, 1, 0)
    assert low == 0x5244E029
    assert high == 1 << 3 | 1 << 5 | 1 << 7
    assert stacked == 1
    assert agreed.flags == low | high << 32
    assert agreed.resend


@pytest.mark.parametrize("name", NEVER)
def test_init_leaves_out(name: str) -> None:
    _, agreed = init.answer(offer(flags=0xFFFFFFFF, flags2=0xFFFFFFFF))
    assert agreed is not None
    assert not agreed.flags >> NEVER[name] & 1


def test_init_with_an_older_kernel() -> None:
    _, agreed = init.answer(offer(minor=36, flags=OFFERED & ~Init.INIT_EXT, flags2=0xFFFFFFFF))
    assert agreed is not None
    assert agreed.minor == 36
    assert agreed.flags < 1 << 32
    assert not agreed.resend


def test_init_without_a_second_word_of_flags() -> None:
    short = struct.pack("=IIII", 7, 31, 131072, OFFERED & ~Init.INIT_EXT)
    request = protocol.IN_HEADER.pack(40 + len(short), Opcode.INIT, 2, 0, 0, 0, 0, 0, 0) + short
    assert init.answer(request)[1] is not None


def test_init_with_a_newer_major_asks_for_ours() -> None:
    reply, agreed = init.answer(offer(major=8))
    assert agreed is None
    assert protocol.INIT_OUT.unpack_from(reply, 16)[:2] == (7, 45)


def test_init_refuses_an_ancient_kernel_and_other_requests() -> None:
    with pytest.raises(MountFailed, match=r"7\.30"):
        init.answer(offer(minor=30))
    with pytest.raises(MountFailed, match="INIT"):
        init.answer(protocol.IN_HEADER.pack(40, Opcode.LOOKUP, 2, 0, 0, 0, 0, 0, 0) + bytes(64))


def attr(ino: int = 7, **fields: object) -> Attr:
    values: dict[str, object] = {
        "ino": ino, "mode": stat.S_IFREG | 0o644, "nlink": 2, "uid": 1, "gid": 2, "size": 1 << 40,
        "blocks": 8, "atime": 1_500_000_000, "mtime": 2_000_000_001, "ctime": -1, "btime": 4_000_000_004,
        "valid": 1.5,
    }  # fmt: skip
    return Attr(**(values | fields))  # type: ignore[arg-type]


def test_entries() -> None:
    fields = protocol.ENTRY_OUT.unpack(encoding.entry(attr()))
    assert fields[:6] == (7, 0, 1, 1, 500_000_000, 500_000_000)
    assert fields[6:9] == (7, 1 << 40, 8)
    assert fields[9:15] == (1, 2, -1, 500_000_000, 1, 999_999_999)
    assert fields[15:] == (stat.S_IFREG | 0o644, 2, 1, 2, 0, 4096, 0)
    assert encoding.entry(attr())[40:] == encoding.attributes(attr())[16:]


def test_statx_has_the_time_of_birth() -> None:
    raw = encoding.statx(attr())
    assert struct.unpack_from("=I", raw, 32) == (0xFFF,)
    atime, _, btime, btime_part = struct.unpack_from("=qIxxxxqI", raw, 32 + 64)
    assert (atime, btime, btime_part) == (1, 4, 4)


def test_statfs() -> None:
    raw = encoding.statfs(Statfs(blocks=1, bfree=2, bavail=3, files=4, ffree=5, bsize=4096, namelen=255))
    assert struct.unpack_from("=QQQQQIII", raw) == (1, 2, 3, 4, 5, 4096, 255, 4096)


def parsed(raw: bytes, skip: int) -> list[tuple[int, int, int, bytes]]:
    """(ino, cookie, type, name) of the entries, read as the kernel reads them."""
    found, at = [], 0
    while at + skip + 24 <= len(raw):
        ino, cookie, length, kind = protocol.DIRENT.unpack_from(raw, at + skip)
        name = raw[at + skip + 24 : at + skip + 24 + length]
        found.append((ino, cookie, kind, name))
        at += (skip + 24 + length + 7) & ~7
    assert at == len(raw)
    return found


@pytest.mark.parametrize("size", [0, 31, 32, 100, 4095, 4096, 100_000])
@pytest.mark.parametrize("plus", [False, True])
def test_listings_hold_whole_entries_only(size: int, plus: bool) -> None:
    entries = [Entry(n, b"n" * (n % 40 + 1), n, attr(n)) for n in range(1, 300)]
    raw = (encoding.listing_plus if plus else encoding.listing)(entries, size)
    assert len(raw) <= size
    found = parsed(raw, 128 if plus else 0)
    assert found == [(e.ino, e.cookie, stat.S_IFREG >> 12, e.name) for e in entries[: len(found)]]
    if len(found) < len(entries):
        following = entries[len(found)]
        assert len(raw) + (128 if plus else 0) + 24 + (len(following.name) + 7 & ~7) > size


def test_listings_do_not_look_dots_up() -> None:
    raw = encoding.listing_plus([Entry(1, b".", 7, attr()), Entry(2, b"a", 7, attr())], 4096)
    assert struct.unpack_from("=Q", raw) == (0,)
    assert struct.unpack_from("=Q", raw, 160) == (7,)


def test_listings_take_a_few_microseconds_an_entry() -> None:
    entries = [Entry(n, b"debian-%05d.qcow2" % n, n, attr(n)) for n in range(700)]
    before = os.times().user
    for _ in range(10):
        encoding.listing_plus(entries, 1 << 17)
    assert os.times().user - before < 7000 * 50e-6
