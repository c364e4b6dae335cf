"""Looking for good copies of blocks whose frame is damaged: by digest, wherever the same bytes may lie."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator

from imagefs.blocks import frames
from imagefs.blocks.digest import WIDTH
from imagefs.blocks.packs import read_footer
from imagefs.catalog import PackKind, PackState
from imagefs.errors import BackendFailed, Damaged, NotFound
from imagefs.images.repository import Repository
from imagefs.images.staging import data_ranges
from imagefs.types import BLOCK, FRAME_BLOCKS, Extent

log = logging.getLogger(__name__)

WINDOW = 1 << 20


class Copies:
    """Blocks by their digests; what was found and is what its digest says."""

    def __init__(self, repo: Repository, wanted: Iterable[bytes]) -> None:
        self._repo = repo
        self._wanted = set(wanted)
        self.found: dict[bytes, bytes] = {}

    def search(self) -> None:
        """In packs first, those in the trash and what is good of damaged ones too; then in plain files of images,
        and in those of drafts and of images whose hashes are still to be made."""
        for row in self._repo.catalog.packs.scan():
            if not self._wanted:
                return
            kept = row.state in (PackState.LIVE, PackState.TRASH) and row.done
            if row.kind == PackKind.PACK and kept:
                self._in_pack(row.no, row.name16)
        for path in [*self._repo.materialised.paths(), *(path for _, _, path in self._repo.staging.files())]:
            if self._wanted:
                self._in_file(os.fspath(path))

    def put(self, plain: bytes) -> None:
        """Takes blocks that are wanted out of some plain bytes."""
        for number, digest in enumerate(self._repo.digests.blocks(plain)):
            if digest in self._wanted:
                self._wanted.discard(digest)
                self.found[digest] = bytes(plain[number * BLOCK : (number + 1) * BLOCK]).ljust(BLOCK, b"\0")

    def _in_pack(self, no: int, name16: bytes) -> None:
        try:
            digests = read_footer(self._repo.store, name16).digests
        except (NotFound, Damaged, BackendFailed) as error:
            log.info("pack %d cannot help: %s", no, error)
            return
        listed = {digests[at : at + WIDTH]: at // WIDTH for at in range(0, len(digests), WIDTH)}
        for block in sorted(listed[digest] for digest in self._wanted & listed.keys()):
            try:
                self.put(self._repo.reader.read(Extent(no, block, 1)))
            except (NotFound, Damaged, BackendFailed) as error:
                log.info("block %d of pack %d cannot help: %s", block, no, error)

    def _in_file(self, path: str) -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            for offset, length in _windows(fd, os.fstat(fd).st_size):
                self.put(os.pread(fd, length, offset))
        finally:
            os.close(fd)


def corrected(stored: bytes, digest: bytes) -> bytes | None:
    """Stored bytes with the one bit turned back that makes their digest right; None when more is wrong.

    The digest has 128 bits, so what fits it is what was stored. Tries every bit: 2 s for 26 KB, up to 15 s for a
    frame of 64 KiB.
    """
    content = bytearray(stored)
    for at in range(len(content)):
        for bit in range(8):
            content[at] ^= 1 << bit
            if frames.digest_of(content) == digest:
                return bytes(content)
            content[at] ^= 1 << bit
    return None


def frame_blocks(number: int) -> range:
    """The blocks of a frame; a pack's last one may have fewer."""
    return range(number * FRAME_BLOCKS, (number + 1) * FRAME_BLOCKS)


def _windows(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of what has data, from block to block."""
    for offset, length in data_ranges(fd, 0, size):
        at, end = offset // BLOCK * BLOCK, offset + length
        while at < end:
            yield at, min(WINDOW, size - at)
            at += WINDOW
