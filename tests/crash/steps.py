"""Counting every step by which a process changes what survives it, and ending the process at one of them.

A step is a system call that changes files or makes them durable, or the commit of a catalog transaction, or a line
in the test's own journal. Ending before step N, for every N, leaves every state that a kill can leave: what comes
after step N - 1 comes before step N.

With `Power` the end is a power cut: what was not synced is lost as well, all of it or a random part.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imagefs.catalog.env import Environment

END = 9
"""Exit status of a process that ended at its step."""
_WRAPPERS = ("/contextlib.py", "/catalog/env.py", "/catalog/catalog.py")
COUNTED = ("open", "link", "unlink", "rename", "mkdir", "pwrite", "writev", "ftruncate", "fsync", "fdatasync")


class Power:
    """What the disk would have after a power cut, for files below one directory.

    LMDB's own files are its business: a commit that returned is durable.
    """

    def __init__(self, root: Path, backup: Path, seed: int | None) -> None:
        """`seed` None: everything that was not synced is lost; else each thing with a probability of 1/2."""
        self._root = str(root)
        self._backup = backup
        self._random = random.Random(seed) if seed is not None else None
        self._created: dict[str, None] = {}
        self._removed: dict[str, str] = {}
        self._replaced: dict[str, str] = {}
        """What was there before a rename over it: that is there again when the rename is lost."""
        self._dirty: dict[int, str] = {}
        self._synced: dict[int, bytes] = {}
        self.over = False
        backup.mkdir(exist_ok=True)

    def before(self, name: str, args: tuple[Any, ...]) -> None:
        """What must be noted before the call is made."""
        if name == "unlink" and self._mine(path := _absolute(args[0])) and Path(path).is_file():
            if path in self._created:
                del self._created[path]
            else:
                self._removed[path] = str(self._backup / str(len(self._removed)))
                Path(self._removed[path]).unlink(missing_ok=True)
                _link(path, self._removed[path])
        elif name == "rename" and self._mine(path := _absolute(args[1])) and Path(path).is_file():
            self._replaced[path] = str(self._backup / f"replaced {len(self._replaced)}")
            Path(self._replaced[path]).unlink(missing_ok=True)
            _link(path, self._replaced[path])
        elif name == "open" and args[1] & os.O_CREAT and self._mine(path := _absolute(args[0])):
            if not Path(path).exists():
                self._created[path] = None

    def after(self, name: str, args: tuple[Any, ...]) -> None:
        """What the call changed."""
        if name in ("link", "mkdir", "rename"):
            path = _absolute(args[-1] if name != "mkdir" else args[0])
            if self._mine(path):
                self._created[path] = None
                inode = Path(path).stat().st_ino
                if name == "rename" and inode not in self._synced and not Path(path).is_dir():
                    self._dirty[inode] = path
        elif name in ("pwrite", "writev", "ftruncate") or (name == "open" and args[1] & os.O_TRUNC):
            path = _absolute(args[0]) if name == "open" else _path_of(args[0])
            if self._mine(path):
                self._dirty[Path(path).stat().st_ino] = path
        elif name in ("fsync", "fdatasync"):
            self._sync(args[0])

    def _sync(self, fd: int) -> None:
        path, status = _path_of(fd), os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            for names in (self._created, self._removed, self._replaced):
                for name in [name for name in names if os.path.dirname(name) == path]:
                    del names[name]  # type: ignore[attr-defined]
        elif self._mine(path):
            self._dirty.pop(status.st_ino, None)
            self._synced[status.st_ino] = Path(f"/proc/self/fd/{fd}").read_bytes()

    def cut(self) -> None:
        """Takes away what the disk does not have."""
        self.over = True
        paths = {Path(path).stat().st_ino: path for path in self._names() if Path(path).is_file()}
        for inode in self._dirty:
            if inode in paths and self._lost():
                Path(paths[inode]).chmod(0o600)
                Path(paths[inode]).write_bytes(self._synced.get(inode, b""))
        for path, kept in self._removed.items():
            if self._lost() and not Path(path).exists() and Path(path).parent.is_dir():
                _link(kept, path)
        for path in self._created:
            if self._lost():
                shutil.rmtree(path, ignore_errors=True)
                Path(path).unlink(missing_ok=True)
                if path in self._replaced:
                    _link(self._replaced[path], path)
        for name in ("volatile", "index"):
            self._garble(Path(self._root) / name)

    def _garble(self, directory: Path) -> None:
        """LMDB without sync: the file may be torn anywhere, unless it was closed as clean."""
        boot, data = directory / "boot", directory / "data.mdb"
        if data.exists() and not (boot.exists() and boot.read_bytes().startswith(b"clean")):
            with data.open("r+b") as file:
                file.write(b"\xff" * 65536)

    def _lost(self) -> bool:
        return self._random is None or self._random.random() < 0.5

    def _names(self) -> list[str]:
        return [os.path.join(above, name) for above, _, names in os.walk(self._root) for name in names]

    def _mine(self, path: str) -> bool:
        inside = path.startswith(self._root + "/")
        return inside and not path.endswith(".mdb") and "/catalog" not in path


class Steps:
    """Counts steps from `install()` on; before step `last` the process ends."""

    def __init__(self, last: int | None, power: Power | None = None) -> None:
        self.count = 0
        self.trace: list[str] = []
        self._last = last
        self._power = power
        self._lock = threading.RLock()

    def install(self) -> None:
        for name in COUNTED:
            setattr(os, name, self._counted(name, getattr(os, name)))
        commit = Environment._commit

        def counted(env: Environment, txn: Any) -> None:
            with self._lock:
                self.step(f"commit {env.path.name} {_method()}")
                commit(env, txn)

        Environment._commit = counted  # type: ignore[method-assign]

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if name == "open" and not args[1] & (os.O_CREAT | os.O_TRUNC):
                return call(*args, **kwargs)
            with self._lock:
                power = self._power
                if power is not None and power.over:
                    return call(*args, **kwargs)
                self.step(f"{name} {_subject(name, args)}")
                if power is not None:
                    power.before(name, args)
                result = call(*args, **kwargs)
                if power is not None:
                    power.after(name, args)
                return result

        return counted

    def step(self, what: str) -> None:
        """Before something is done; the process may end here."""
        with self._lock:
            self.count += 1
            self.trace.append(what)
            if self.count == self._last:
                if self._power is not None:
                    self._power.cut()
                os._exit(END)


_link = os.link


def _method() -> str:
    """The method whose transaction is committed."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.endswith(_WRAPPERS):
        frame = frame.f_back
    return frame.f_code.co_qualname


def _absolute(path: Any) -> str:
    return os.path.abspath(os.fspath(path))


def _path_of(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}").removesuffix(" (deleted)")


def _subject(name: str, args: tuple[Any, ...]) -> str:
    if name in ("link", "rename"):
        return f"{args[0]} {args[1]}"
    return _path_of(args[0]) if isinstance(args[0], int) else str(args[0])
