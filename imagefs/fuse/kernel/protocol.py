"""Numbers and byte layouts of the FUSE protocol 7.45, as linux/fuse.h (uapi) publishes them.

Everything is little- or big-endian as the machine is (`=`): the kernel and the server share it. A layout
is named after its C struct without `fuse_`; the comment behind it lists the fields in their order.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct

MAJOR = 7
MINOR = 45
"""Newest minor version spoken here."""
OLDEST_MINOR = 31
"""Oldest one: what Linux 5.4 offers. All layouts below hold from there on."""

MAX_WRITE = 1 << 20
"""Bytes of data in one WRITE or READ; more is clamped by /proc/sys/fs/fuse/max_pages_limit (256)."""
RESENT = 1 << 63
"""Bit of `unique` that says: sent before, to a server that died before it answered."""


class Opcode(IntEnum):
    """enum fuse_opcode."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


class Notify(IntEnum):
    """enum fuse_notify_code: what the server says unasked, in the `error` field of a reply header."""

    INVAL_INODE = 2
    INVAL_ENTRY = 3
    RESEND = 7
    INC_EPOCH = 8


class Init(IntFlag):
    """Flags of INIT; bits 32 to 63 travel in `flags2`."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    EXPLICIT_INVAL_DATA = 1 << 25
    HANDLE_KILLPRIV_V2 = 1 << 28
    INIT_EXT = 1 << 30
    HAS_EXPIRE_ONLY = 1 << 35
    PASSTHROUGH = 1 << 37
    HAS_RESEND = 1 << 39


class Open(IntFlag):
    """FOPEN_*: flags of the answer to OPEN, CREATE and OPENDIR."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    CACHE_DIR = 1 << 3
    PASSTHROUGH = 1 << 7


class SetAttrValid(IntFlag):
    """FATTR_*: which fields of a SETATTR request mean something."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8


GETATTR_FH = 1 << 0
FSYNC_FDATASYNC = 1 << 0
EXPIRE_ONLY = 1 << 0
"""Flag of INVAL_ENTRY: the name is looked up again before its next use, nothing is unhashed."""
RENAME_NOREPLACE = 1 << 0
XATTR_CREATE = 1 << 0
XATTR_REPLACE = 1 << 1
STATX_BASIC_STATS = 0x7FF
STATX_BTIME = 0x800

# What every message begins with.
IN_HEADER = Struct("=IIQQIIIHH")  # len opcode unique nodeid uid gid pid total_extlen padding
OUT_HEADER = Struct("=IiQ")  # len error unique

# Requests, after the header. Names follow the struct and end in NUL.
INIT_IN = Struct("=IIII")  # major minor max_readahead flags; flags2 follows when INIT_EXT is offered
INIT_IN_FLAGS2 = Struct("=I")
GETATTR_IN = Struct("=IIQ")  # getattr_flags dummy fh
SETATTR_IN = Struct("=IIQQQqqqIIIIIIII")
# valid padding fh size lock_owner atime mtime ctime atimensec mtimensec ctimensec mode unused uid gid unused
MKNOD_IN = Struct("=IIII")  # mode rdev umask padding
MKDIR_IN = Struct("=II")  # mode umask
RENAME_IN = Struct("=Q")  # newdir
RENAME2_IN = Struct("=QII")  # newdir flags padding
OPEN_IN = Struct("=II")  # flags open_flags
CREATE_IN = Struct("=IIII")  # flags mode umask open_flags
READ_IN = Struct("=QQIIQII")  # fh offset size read_flags lock_owner flags padding
WRITE_IN = Struct("=QQIIQII")  # fh offset size write_flags lock_owner flags padding
RELEASE_IN = Struct("=QIIQ")  # fh flags release_flags lock_owner
FLUSH_IN = Struct("=QIIQ")  # fh unused padding lock_owner
FSYNC_IN = Struct("=QII")  # fh fsync_flags padding
SETXATTR_IN = Struct("=II")  # size flags (without SETXATTR_EXT)
GETXATTR_IN = Struct("=II")  # size padding; LISTXATTR too
FALLOCATE_IN = Struct("=QQQII")  # fh offset length mode padding
LSEEK_IN = Struct("=QQII")  # fh offset whence padding
COPY_FILE_RANGE_IN = Struct("=QQQQQQQ")  # fh_in off_in nodeid_out fh_out off_out len flags
STATX_IN = Struct("=IIQII")  # getattr_flags reserved fh sx_flags sx_mask

# Replies, after the header.
INIT_OUT = Struct("=IIIIHHIIHHIIH22x")
# major minor max_readahead flags max_background congestion_threshold max_write time_gran max_pages
# map_alignment flags2 max_stack_depth request_timeout unused
ATTR = "QQQqqqIIIIIIIIII"  # ino size blocks atime mtime ctime atimensec mtimensec ctimensec mode nlink uid gid
# rdev blksize flags
ENTRY = f"QQQQII{ATTR}"  # nodeid generation entry_valid attr_valid entry_valid_nsec attr_valid_nsec attr
ENTRY_OUT = Struct(f"={ENTRY}")
ATTR_OUT = Struct(f"=QII{ATTR}")  # attr_valid attr_valid_nsec dummy attr
OPEN_OUT = Struct("=QIi")  # fh open_flags backing_id
WRITE_OUT = Struct("=II")  # size padding; COPY_FILE_RANGE too
STATFS_OUT = Struct("=QQQQQIII28x")  # blocks bfree bavail files ffree bsize namelen frsize, unused
GETXATTR_OUT = Struct("=II")  # size padding
LSEEK_OUT = Struct("=Q")  # offset
COPY_FILE_RANGE_OUT = Struct("=Q")  # bytes copied, of COPY_FILE_RANGE_64
DIRENT = Struct("=QQII")  # ino off namelen type; the name follows, padded to 8
DIRENTPLUS = Struct(f"={ENTRY}QQII")  # fuse_entry_out, then a dirent
STATX_OUT = Struct("=QII16xIIQIIIHHQQQQqIiqIiqIiqIi16x112x")
# attr_valid attr_valid_nsec flags, then fuse_statx: mask blksize attributes nlink uid gid mode spare
# ino size blocks attributes_mask, atime btime ctime mtime (each sec nsec reserved), device numbers, spare

# Notifications, after a header whose `unique` is 0 and whose `error` is the Notify code.
INVAL_INODE_OUT = Struct("=Qqq")  # ino off len
INVAL_ENTRY_OUT = Struct("=QII")  # parent namelen flags; the name and a NUL follow

DATA_OFFSET = IN_HEADER.size + WRITE_IN.size
"""Where a WRITE request's data begins in its message."""
