"""Does file operations in one directory for a test, in a process of its own.

A test that waited in the mount itself could hang for ever with it; of this process it waits with a deadline.
`python file_agent.py DIRECTORY` answers pickled (operation, arguments) with (result, name of the errno).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import pickle
import random
import select
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
"""Modes of fallocate(2), from linux/falloc.h."""

Answer = tuple[Any, str | None]
_libc = ctypes.CDLL(None, use_errno=True)


def noise(seed: int, length: int) -> bytes:
    """What a write with this seed writes."""
    return random.Random(seed).randbytes(length)


class Operations:
    """What the agent can do; names are relative to its directory, handles are the caller's numbers."""

    def __init__(self, directory: str) -> None:
        self.directory = Path(directory)
        self.handles: dict[int, int] = {}

    def open(self, handle: int, name: str, flags: int) -> None:
        self.handles[handle] = os.open(self.directory / name, flags | os.O_CLOEXEC, 0o644)

    def close(self, handle: int) -> None:
        os.close(self.handles.pop(handle))

    def pwrite(self, handle: int, offset: int, seed: int, length: int) -> int:
        return os.pwrite(self.handles[handle], noise(seed, length), offset)

    def append(self, name: str, seed: int, length: int) -> int:
        descriptor = os.open(self.directory / name, os.O_WRONLY | os.O_APPEND)
        try:
            return os.write(descriptor, noise(seed, length))
        finally:
            os.close(descriptor)

    def pread(self, handle: int, offset: int, length: int) -> bytes:
        return os.pread(self.handles[handle], length, offset)

    def content(self, name: str) -> bytes:
        return (self.directory / name).read_bytes()

    def truncate(self, name: str, size: int) -> None:
        os.truncate(self.directory / name, size)

    def ftruncate(self, handle: int, size: int) -> None:
        os.ftruncate(self.handles[handle], size)

    def fallocate(self, handle: int, mode: int, offset: int, length: int) -> None:
        arguments = (ctypes.c_int(mode), ctypes.c_long(offset), ctypes.c_long(length))
        if _libc.fallocate(self.handles[handle], *arguments):
            raise OSError(ctypes.get_errno(), "fallocate")

    def fsync(self, handle: int, data_only: bool) -> None:
        (os.fdatasync if data_only else os.fsync)(self.handles[handle])

    def rename(self, old: str, new: str) -> None:
        (self.directory / old).rename(self.directory / new)

    def unlink(self, name: str) -> None:
        (self.directory / name).unlink()

    def size(self, name: str) -> int:
        return (self.directory / name).stat().st_size

    def fstat_size(self, handle: int) -> int:
        return os.fstat(self.handles[handle]).st_size

    def names(self, prefix: str) -> list[str]:
        return sorted(name for name in os.listdir(self.directory) if name.startswith(prefix))

    def data_ranges(self, handle: int) -> list[tuple[int, int]]:
        """(start, end) of what SEEK_DATA and SEEK_HOLE call data."""
        descriptor, found, end = self.handles[handle], [], 0
        while True:
            try:
                start = os.lseek(descriptor, end, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return found
                raise
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
            found.append((start, end))

    def map_write(self, handle: int, offset: int, seed: int, length: int) -> None:
        """Writes through a shared map of the whole file; the range is cut at its end."""
        with mmap.mmap(self.handles[handle], 0) as mapped:
            content = noise(seed, length)[: max(0, len(mapped) - offset)]
            mapped[offset : offset + len(content)] = content
            mapped.flush()

    def map_read(self, handle: int) -> bytes:
        with mmap.mmap(self.handles[handle], 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE) as mapped:
            return bytes(mapped)

    def seal(self, name: str) -> None:
        os.setxattr(self.directory / name, "user.imagefs.seal", b"1")

    def status(self, name: str) -> str:
        return os.getxattr(self.directory / name, "user.image.status").decode()


class FileAgent:
    """The caller's end: a method call is an operation of the agent's, answered within a deadline."""

    def __init__(self, directory: Path, deadline: float = 30) -> None:
        self._deadline = deadline
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )

    def __enter__(self) -> FileAgent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)

    def __getattr__(self, operation: str) -> Callable[..., Answer]:
        if not hasattr(Operations, operation):
            raise AttributeError(operation)

        def call(*arguments: object) -> Answer:
            return self._call(operation, arguments)

        return call

    def _call(self, operation: str, arguments: tuple[object, ...]) -> Answer:
        assert self._process.stdin is not None
        request = pickle.dumps((operation, arguments))
        self._process.stdin.write(struct.pack("<I", len(request)) + request)
        (length,) = struct.unpack("<I", self._receive(4, operation))
        answer = pickle.loads(self._receive(length, operation))
        assert isinstance(answer, tuple)
        return answer

    def _receive(self, length: int, operation: str) -> bytes:
        assert self._process.stdout is not None
        received = b""
        while len(received) < length:
            ready, _, _ = select.select([self._process.stdout], [], [], self._deadline)
            assert ready, f"no answer to {operation} in {self._deadline} s"
            piece = self._process.stdout.read(length - len(received))
            assert piece, f"the agent died in {operation}"
            received += piece
        return received


def _serve(operations: Operations) -> None:
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while header := requests.read(4):
        operation, arguments = pickle.loads(requests.read(*struct.unpack("<I", header)))
        try:
            answer = (getattr(operations, operation)(*arguments), None)
        except OSError as error:
            answer = (None, errno.errorcode[error.errno or 0])
        reply = pickle.dumps(answer)
        answers.write(struct.pack("<I", len(reply)) + reply)
        answers.flush()


if __name__ == "__main__":
    _serve(Operations(sys.argv[1]))
