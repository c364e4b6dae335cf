"""A worker that serves a small tree of its own, kept in plain files, so that the transport is tested alone.

    python -m tests.unit.fuse_fake STATE MOUNTPOINT [options of imagefs.fuse.supervisor for workers]

STATE has `tree` (pickled nodes and reply slots), `data/<ino>` (bytes), `pid`, and, made by a test: `watch`
(requests are counted), `die` (the name of an opcode: with `watch`, the worker kills itself once, after
executing such a request and before answering it), `broken` (it cannot start). The Unix socket `control` takes
one Python expression a connection; see main for the names it may use.
"""

from __future__ import annotations

import argparse
import collections
import errno
import os
import pickle
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

from imagefs.catalog.log import Op
from imagefs.errors import (
    AttributeMissing,
    Exists,
    InvalidValue,
    IsADirectory,
    NameTooLong,
    NoData,
    NotADirectory,
    NotEmpty,
    NotFound,
    Refused,
    Sealed,
    Stale,
)
from imagefs.fuse.kernel.device import Ended
from imagefs.fuse.kernel.init import Negotiated
from imagefs.fuse.kernel.operations import OPERATIONS
from imagefs.fuse.kernel.protocol import Init, Opcode
from imagefs.fuse.kernel.transport import KernelTransport
from imagefs.fuse.supervisor import EXIT_DRAINED
from imagefs.tree.attr import NOW, Attr, Entry, SetAttr, Statfs
from imagefs.types import Caller


@dataclass
class Inode:
    ino: int
    mode: int
    uid: int
    gid: int
    born: int = field(default_factory=time.time_ns)
    names: dict[bytes, int] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    sealed: bool = False


@dataclass
class State:
    inodes: dict[int, Inode]
    next_ino: int = 64
    slots: dict[tuple[UUID, int], tuple[int, bytes]] = field(default_factory=dict)
    opens: dict[int, tuple[int, int]] = field(default_factory=dict)


class Disk:
    """The state and its file: what the catalog is to the real tree."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path / "data"
        self.data.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._depth = 0
        self.slots = self
        if (path / "tree").exists():
            self.load()
        else:
            uid, gid = os.getuid(), os.getgid()
            root, images, names = (Inode(n, stat.S_IFDIR | 0o755, uid, gid) for n in (1, 2, 3))
            root.names = {b"images": 2, b"by-name": 3}
            self.state = State({1: root, 2: images, 3: names})

    def load(self) -> None:
        self.state = pickle.loads((self.path / "tree").read_bytes())

    def save(self) -> None:
        new = self.path / "tree.new"
        new.write_bytes(pickle.dumps(self.state))
        new.rename(self.path / "tree")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with self._lock:
            self._depth += 1
            try:
                yield
                if self._depth == 1:
                    self.save()
            except BaseException:
                if self._depth == 1 and (self.path / "tree").exists():
                    self.load()
                raise
            finally:
                self._depth -= 1

    def put(self, connection: UUID, thread: int, unique: int, reply: bytes) -> None:
        self.state.slots[connection, thread] = unique, reply

    def get(self, connection: UUID, unique: int) -> bytes | None:
        found = [reply for (of, _), (number, reply) in self.state.slots.items() if (of, number) == (connection, unique)]
        return found[0] if found else None


class Handle:
    backing_id = 0

    def __init__(self, fs: Tree, ino: int, flags: int, fh: int) -> None:
        self.ino = ino
        self.fh = fh
        self._file = os.open(fs.disk.data / str(ino), (flags & os.O_ACCMODE) | os.O_CLOEXEC)

    def pread(self, offset: int, length: int) -> bytes:
        return os.pread(self._file, length, offset)

    def pwrite(self, offset: int, data: memoryview, pid: int) -> int:
        return os.pwrite(self._file, data, offset)

    def seek(self, offset: int, whence: int) -> int:
        try:
            return os.lseek(self._file, offset, whence)
        except OSError as error:
            raise NoData(str(error)) from error

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        if mode:
            raise OSError(errno.EOPNOTSUPP, "modes")
        os.posix_fallocate(self._file, offset, length)

    def fsync(self, datasync: bool) -> None:
        os.fdatasync(self._file) if datasync else os.fsync(self._file)

    def flush(self, pid: int) -> None:
        assert pid

    def copy_range(self, source: Handle, source_offset: int, offset: int, length: int) -> int:
        return os.copy_file_range(source._file, self._file, length, source_offset, offset)

    def close(self) -> None:
        os.close(self._file)


class Tree:
    """The verbs of imagefs.tree.Tree that the transport calls, on inodes in memory."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.handles: dict[int, Handle] = {}
        self.hang = threading.Event()
        self.hang.set()
        for fh, (ino, flags) in disk.state.opens.items():
            self.handles[fh] = Handle(self, ino, flags, fh)

    # -- looking --

    def inode(self, ino: int) -> Inode:
        try:
            return self.disk.state.inodes[ino]
        except KeyError:
            raise Stale(f"inode {ino}") from None

    def directory(self, ino: int) -> Inode:
        found = self.inode(ino)
        if not stat.S_ISDIR(found.mode):
            raise NotADirectory("")
        return found

    def named(self, parent: int, name: bytes) -> Inode:
        try:
            return self.inode(self.directory(parent).names[name])
        except KeyError:
            raise NotFound(repr(name)) from None

    def attrs(self, ino: int, fh: int | None = None) -> Attr:
        inode = self.inode(ino)
        if stat.S_ISDIR(inode.mode):
            size, blocks, times = 4096, 0, (inode.born,) * 3
        else:
            status = os.stat(self.disk.data / str(ino))
            size, blocks = status.st_size, status.st_blocks
            times = (status.st_atime_ns, status.st_mtime_ns, inode.born)
        return Attr(
            ino=ino, mode=inode.mode, nlink=1, uid=inode.uid, gid=inode.gid, size=size, blocks=blocks,
            atime=times[0], mtime=times[1], ctime=times[2], btime=inode.born, valid=3600.0, keep=inode.sealed,
        )  # fmt: skip

    def lookup(self, parent: int, name: bytes) -> Attr:
        return self.attrs(self.named(parent, name).ino)

    def children(self, ino: int, after: int, limit: int) -> list[Entry]:
        dots = [Entry(1, b".", ino, self.attrs(ino)), Entry(2, b"..", 1, self.attrs(1))]
        inodes = sorted((child, name) for name, child in self.directory(ino).names.items() if child + 2 > after)[:limit]
        rest = [Entry(child + 2, name, child, self.attrs(child)) for child, name in inodes]
        return [entry for entry in dots + rest if entry.cookie > after][:limit]

    def statfs(self) -> Statfs:
        return Statfs(blocks=1000, bfree=500, bavail=400, files=10, ffree=5)

    # -- names --

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Attr:
        return self._make(parent, name, stat.S_IFDIR | mode, caller)

    def create(self, parent: int, name: bytes, mode: int, caller: Caller) -> Attr:
        return self._make(parent, name, stat.S_IFREG | mode, caller)

    def _make(self, parent: int, name: bytes, mode: int, caller: Caller) -> Attr:
        directory = self.directory(parent)
        if name == b"refused":
            raise Refused("no")
        if len(name) > 255:
            raise NameTooLong("no")
        if name == b"bug":
            raise ZeroDivisionError
        with self.disk.transaction():
            if name in directory.names:
                raise Exists(repr(name))
            state = self.disk.state
            ino, state.next_ino = state.next_ino, state.next_ino + 2
            self.directory(parent).names[name] = ino
            state.inodes[ino] = Inode(ino, mode, caller.uid, caller.gid)
            if stat.S_ISREG(mode):
                (self.disk.data / str(ino)).touch()
        return self.attrs(ino)

    def populate(self, parent: int, count: int) -> None:
        with self.disk.transaction():
            for number in range(count):
                self.create(parent, b"image-%05d.qcow2" % number, 0o644, Caller(0, 0))

    def unlink(self, parent: int, name: bytes, caller: Caller) -> None:
        inode = self.named(parent, name)
        if stat.S_ISDIR(inode.mode):
            raise IsADirectory("")
        self._remove(parent, name)

    def rmdir(self, parent: int, name: bytes, caller: Caller) -> None:
        if self.named(parent, name).names:
            raise NotEmpty("")
        self._remove(parent, name)

    def _remove(self, parent: int, name: bytes) -> None:
        with self.disk.transaction():
            del self.disk.state.inodes[self.directory(parent).names.pop(name)]

    def rename(self, old_parent: int, old: bytes, new_parent: int, new: bytes, flags: int, caller: Caller) -> None:
        if flags and new in self.directory(new_parent).names:
            raise Exists("")
        self.named(old_parent, old)
        with self.disk.transaction():
            self.directory(new_parent).names[new] = self.directory(old_parent).names.pop(old)

    # -- files --

    def open(self, ino: int, flags: int, caller: Caller, fh: int, *, fresh: bool = False) -> Handle:
        if self.inode(ino).sealed and flags & os.O_ACCMODE:
            raise Sealed("")
        if fh not in self.handles:
            self.handles[fh] = Handle(self, ino, flags, fh)
            with self.disk.transaction():
                self.disk.state.opens[fh] = ino, flags & os.O_ACCMODE
        if flags & os.O_TRUNC:
            os.truncate(self.disk.data / str(ino), 0)
        return self.handles[fh]

    def handle(self, ino: int, fh: int) -> Handle:
        try:
            return self.handles[fh]
        except KeyError:
            raise Stale(f"handle {fh}") from None

    def release(self, fh: int) -> None:
        handle = self.handles.pop(fh, None)
        if handle:
            handle.close()
            with self.disk.transaction():
                self.disk.state.opens.pop(fh, None)

    def setattr(self, ino: int, change: SetAttr, caller: Caller, fh: int | None = None) -> Attr:
        inode, path = self.inode(ino), self.disk.data / str(ino)
        if change.size is not None:
            os.truncate(path, change.size)
        with self.disk.transaction():
            inode = self.inode(ino)
            if change.mode is not None:
                inode.mode = stat.S_IFMT(inode.mode) | change.mode
            inode.uid = inode.uid if change.uid is None else change.uid
            inode.gid = inode.gid if change.gid is None else change.gid
        if stat.S_ISREG(inode.mode) and (change.atime is not None or change.mtime is not None):
            now, was = time.time_ns(), os.stat(path)
            atime = now if change.atime is NOW else change.atime
            mtime = now if change.mtime is NOW else change.mtime
            os.utime(path, ns=(atime or was.st_atime_ns, mtime or was.st_mtime_ns))  # type: ignore[arg-type]
        return self.attrs(ino)

    # -- extended attributes --

    def getxattr(self, ino: int, name: bytes) -> bytes:
        if name == b"user.hang":
            self.hang.wait(60)
        try:
            return self.inode(ino).xattrs[name]
        except KeyError:
            raise AttributeMissing("") from None

    def listxattr(self, ino: int) -> list[bytes]:
        return list(self.inode(ino).xattrs)

    def setxattr(self, ino: int, name: bytes, value: bytes, mode: str, caller: Caller) -> None:
        if not name.startswith(b"user."):
            raise InvalidValue("")
        with self.disk.transaction():
            inode = self.inode(ino)
            if mode == "create" and name in inode.xattrs:
                raise Exists("")
            if mode == "replace" and name not in inode.xattrs:
                raise AttributeMissing("")
            inode.xattrs[name] = value
            if name == b"user.imagefs.seal":
                inode.sealed = True

    def waits(self, name: bytes) -> bool:
        return name == b"user.imagefs.seal"

    def removexattr(self, ino: int, name: bytes, caller: Caller) -> None:
        with self.disk.transaction():
            if self.inode(ino).xattrs.pop(name, None) is None:
                raise AttributeMissing("")


def watch(state: Path) -> collections.Counter[str]:
    """Counts requests, and dies after one that the file `die` names."""
    count: collections.Counter[str] = collections.Counter()
    die = state / "die"

    def watched(opcode: int, operation: Callable[..., Any]) -> Callable[..., Any]:
        name = Opcode(opcode).name

        def call(*arguments: Any) -> Any:
            count[name] += 1
            try:
                return operation(*arguments)
            finally:
                if die.exists() and die.read_text() == name:
                    die.unlink()
                    os.kill(os.getpid(), signal.SIGKILL)

        return call

    for opcode, operation in list(OPERATIONS.items()):
        OPERATIONS[opcode] = watched(opcode, operation)
    return count


def listen(path: Path, names: dict[str, Any]) -> None:
    """Evaluates what tests ask, in this process."""
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()

    def serve() -> None:
        while True:
            connection, _ = server.accept()
            with connection:
                question = connection.recv(1 << 16).decode()
                try:
                    connection.sendall(repr(eval(question, names)).encode())
                except Exception as error:  # noqa: BLE001
                    connection.sendall(f"failed: {error!r}".encode())

    threading.Thread(target=serve, daemon=True).start()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("state", type=Path)
    for option in (
        "--device-fd",
        "--lock-fd",
        "--ready-fd",
        "--incarnation",
        "--minor",
        "--max-write",
        "--init-flags",
    ):
        parser.add_argument(option, type=int)
    parser.add_argument("--connection", type=UUID)
    words = parser.parse_args()
    if (words.state / "broken").exists():
        if words.ready_fd is not None:
            os.write(words.ready_fd, b"the state is broken")
        return 7
    os.fstat(words.lock_fd)
    disk = Disk(words.state)
    tree = Tree(disk)
    agreed = Negotiated(words.minor, words.max_write, Init(words.init_flags))
    count = watch(words.state) if (words.state / "watch").exists() else collections.Counter()
    transport = KernelTransport(
        words.device_fd, agreed, cast(Any, tree), cast(Any, disk),
        connection=words.connection, session=uuid4(), incarnation=words.incarnation,
    )  # fmt: skip

    def push(**fields: Any) -> None:
        transport.notifier.push([cast(Any, SimpleNamespace(**fields))])

    names = {
        "fs": tree,
        "push": push,
        "Op": Op,
        "lost": lambda: transport.notifier.push(None),
        "count": count,
        "os": os,
    }
    listen(words.state / "control", names | {"device": transport._device, "NS": SimpleNamespace})
    (words.state / "pid.new").write_text(str(os.getpid()))
    (words.state / "pid.new").rename(words.state / "pid")
    if words.ready_fd is not None:
        os.write(words.ready_fd, b"ready")
        os.close(words.ready_fd)
    return 0 if transport.serve() is Ended.UNMOUNTED else EXIT_DRAINED


if __name__ == "__main__":
    sys.exit(main())
