"""Whether an LMDB file is whole, found out without touching pages that are not there.

LMDB maps the file: reading a page behind a truncated end kills the process with SIGBUS. So the two meta pages
are read as plain bytes first, and a file that is shorter than they say is walked by a child process.
"""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

from imagefs.errors import CatalogDamaged

MAGIC = 0xBEEFC0DE
_META = struct.Struct("<II16xI")
"""Behind the page header of 16 B: magic, version, (address, map size), page size."""
_LAST = struct.Struct("<QQ")
"""Last page used, transaction number: at byte 136 of a meta page."""
_CHILD = """
import resource, sys, lmdb
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
env = lmdb.open(sys.argv[1], readonly=True, max_dbs=64, map_size=1 << 34, max_readers=1024)
with env.begin() as txn:
    for name, _ in txn.cursor():
        for key, value in txn.cursor(db=env.open_db(name, txn=txn, create=False)):
            pass
"""


def check(directory: Path) -> None:
    """Raises CatalogDamaged unless `data.mdb` in the directory has all the pages that it uses."""
    path = directory / "data.mdb"
    try:
        with path.open("rb") as file:
            last_page, page_size = _newest_meta(file.read(2 * 65536), path)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise CatalogDamaged(
            f"{directory} has no data.mdb: there is no catalog. `imagefs rebuild` makes it anew."
        ) from None
    needed = (last_page + 1) * page_size
    if size < needed and (reason := walk(directory)):
        raise CatalogDamaged(f"{path} is truncated: {size} of {needed} bytes are there ({reason}).")


def require_readable(directory: Path) -> None:
    """Raises CatalogDamaged unless every page of the catalog can be read, which a child process tries."""
    check(directory)
    if reason := walk(directory):
        raise CatalogDamaged(f"{directory} cannot be read: {reason}.")


def walk(directory: Path, timeout_s: float = 600.0) -> str | None:
    """Reads every page in a child process; returns what went wrong, None if nothing did.

    A short file may be whole: pages that a transaction freed again are never written (see `Reserve.keep`).
    """
    # Imported here: 2 ms that no command has for what only a short file needs.
    import subprocess  # noqa: PLC0415

    command = [sys.executable, "-c", _CHILD, str(directory)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return f"reading it took longer than {timeout_s:.0f} s"
    if done.returncode < 0:
        return f"reading it ends in signal {-done.returncode}"
    if done.returncode:
        return done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}"
    return None


def _newest_meta(head: bytes, path: Path) -> tuple[int, int]:
    """(last page used, page size) from the meta page with the higher transaction number."""
    metas: list[tuple[int, int, int]] = []
    page_size = _META.unpack_from(head, 16)[2] if len(head) >= 4096 else 0
    if page_size < 512 or page_size > 65536 or page_size & (page_size - 1):
        raise CatalogDamaged(f"{path} is not a catalog, or its first page is lost.")
    for start in (0, page_size):
        if len(head) >= start + 152 and _META.unpack_from(head, start + 16)[0] == MAGIC:
            last, txn = _LAST.unpack_from(head, start + 136)
            metas.append((txn, last, page_size))
    if not metas:
        raise CatalogDamaged(f"{path} is not a catalog, or its first pages are lost.")
    _, last, size = max(metas)
    return last, size
