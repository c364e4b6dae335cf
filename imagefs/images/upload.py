"""Uploads: data that comes in order and once becomes a sealed image, without a staging file on the way.

The draft of an upload is marked `streamed`: its bytes are in packs that nobody can find before the commit, its
staging file is empty. So it is never sealed by anybody else, and an upload that is aborted, or whose process
dies, loses only the draft: the image is queued again.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from imagefs.blocks.digest import Buffer
from imagefs.blocks.maps import MapBuilder
from imagefs.errors import BackendFailed, Mismatch, PacksGone, SealCancelled
from imagefs.images import streamed
from imagefs.images.checkpointing import Checkpointing
from imagefs.images.committing import Sealing, commit, kill
from imagefs.images.hashing import ALGORITHM, Running
from imagefs.images.ingest import WINDOW, Ingest
from imagefs.images.opens import OpenFiles
from imagefs.images.quota import DraftQuota
from imagefs.images.service import Images
from imagefs.types import BLOCK, Caller, Cookie, Image

HEAD = 4 << 20
"""Bytes of the beginning that are kept to tell the format."""
WINDOWS = 8
"""Windows in memory: so far the hashes may be behind."""


class Upload:
    """The data of one image as it comes. Used by one thread at a time; close() aborts what was not sealed.

    While it runs the image is `saving` and open for writing, so that nobody else writes or seals it.
    """

    def __init__(self, images: Images, files: OpenFiles, image: Image, *, hashed: bool = True) -> None:
        """Begins the data of a queued image, or of one that was just created with a draft.

        With `hashed`, md5 and os_hash are computed beside (S16): they take more CPU time than all the rest.
        Raises Refused when the image cannot take data, Busy when it is being written.
        """
        self._repo = repo = images.repo
        self._files = files
        self.image_id = image.id
        self.size = 0
        """Bytes so far."""
        self._head = bytearray()
        self._window = memoryview(bytearray(WINDOW))
        self._filled = 0
        self._windows: deque[tuple[memoryview, list[Future[None]]]] = deque()
        """Those that may still be hashed, the oldest first."""
        self._held: set[int] = set()
        self._sealed = False
        self._quota = DraftQuota(repo, image.id)
        image = streamed.begin(images, image.id)
        assert image.draft is not None  # begin() made it
        self._draft = image.draft
        with contextlib.ExitStack() as undo:
            undo.callback(streamed.end, repo, image.id, self._draft.gen)
            caller = Caller(os.getuid(), os.getgid(), os.getpid())
            self._fh = files.open(image.data_ino, os.O_WRONLY, caller, files.new_fh(), fresh=True).fh
            undo.callback(files.release, self._fh)
            repo.catalog.seals.claim(image.id, repo.session.id, time.time_ns())
            undo.callback(repo.catalog.seals.abandon, image.id, repo.session.id, None)
            # No staging file ever has this cookie: another sealer of the draft begins at 0.
            content = Cookie(0, 0, 0, 0, 0, self._draft.gen)
            self._seal = repo.catalog.seals.complete(image.id, content)
            undo.pop_all()
        self._ingest: Ingest | None = Ingest(repo, image.id, MapBuilder(), digest_list=self._digest_list)
        self._checkpoints = Checkpointing(repo, image.id, content, self._ingest, 0)
        algorithm = self._draft.expected.get("os_hash_algo", ALGORITHM)
        self._hashes = Running(algorithm) if hashed else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- bytes -------------------------------------------------------------------------------------

    def write(self, data: Buffer) -> None:
        """Adds the next bytes; they may be changed when this returns. Waits while storing is behind.

        Raises what storing raised (NoSpace, BackendFailed), SealCancelled when the image is gone,
        QuotaExceeded: only close() is possible then.
        """
        view = memoryview(data).cast("B")
        self._quota.require(self.size + len(view))
        while view:
            take = min(len(view), self._room())
            self._window[self._filled : self._filled + take] = view[:take]
            self._advance(take)
            view = view[take:]

    def read_from(self, fd: int, offset: int, length: int) -> int:
        """Adds bytes of a file straight from it; how many, 0 at its end: at most a window. As write()."""
        self._quota.require(self.size + length)
        take = min(length, self._room())
        count = os.preadv(fd, [self._window[self._filled : self._filled + take]], offset)
        self._advance(count)
        return count

    def hole(self, length: int) -> None:
        """Adds zeros that need not be read; whole blocks of them cost next to nothing unless hashed."""
        self._quota.require(self.size + length)
        length -= self._fill_with_zeros(min(length, -self.size % BLOCK))
        blocks = length // BLOCK
        if blocks:
            self._pass_on()
            self._running().hole(blocks)
            self._keep_head(memoryview(bytes(min(blocks * BLOCK, HEAD - len(self._head)))))
            if self._hashes is not None:
                self._hashes.zeros(blocks * BLOCK)
            self.size += blocks * BLOCK
            self._checkpoints.reached(self.size)
        self._fill_with_zeros(length - blocks * BLOCK)

    def _fill_with_zeros(self, length: int) -> int:
        """Adds less than a block of zeros; `length`."""
        self._window[self._filled : self._filled + length] = bytes(length)
        self._advance(length)
        return length

    def _room(self) -> int:
        """Bytes up to the next multiple of a window: what is known is found again by windows at these places."""
        return WINDOW - self.size % WINDOW

    def _advance(self, count: int) -> None:
        self._filled += count
        self.size += count
        if count and self.size % WINDOW == 0:
            self._pass_on()
            self._checkpoints.reached(self.size)

    def _pass_on(self) -> None:
        """Gives what the window has to the ingest, and takes another one."""
        window, length = self._window, self._filled
        if not length:
            return
        ingest = self._running()
        whole = -(-length // BLOCK) * BLOCK
        window[length:whole] = bytes(whole - length)
        self._keep_head(window[:length])
        jobs = self._hashes.update(window[:length]) if self._hashes is not None else []
        before = ingest.stored
        ingest.write(window[:whole])
        if ingest.stored > before:  # known data may come in on a full disk
            self._repo.space.require(ingest.stored - before)
        self._windows.append((window, jobs))
        self._window, self._filled = self._free_window(), 0

    def _keep_head(self, piece: memoryview) -> None:
        if len(self._head) < HEAD:
            self._head += piece[: HEAD - len(self._head)]

    def _free_window(self) -> memoryview:
        window, jobs = self._windows[0]
        if len(self._windows) < WINDOWS and not all(job.done() for job in jobs):
            return memoryview(bytearray(WINDOW))
        self._windows.popleft()
        for job in jobs:
            job.result()
        return window

    def _running(self) -> Ingest:
        if self._ingest is None:
            raise SealCancelled(f"The upload of image {self.image_id} is over.")
        return self._ingest

    def _digest_list(self, pack: int) -> bytes | None:
        """Only packs that are held may be hit: there is no second look at this data (T3)."""
        if pack not in self._held:
            self._held.update(self._repo.holds.take(pack, self._repo.session.id))
        return self._repo.digest_list(pack) if pack in self._held else None

    # -- ends --------------------------------------------------------------------------------------

    def seal(self) -> Image:
        """The image, active, everything durable; with its hashes if they were computed.

        Raises Mismatch (the image is `killed`) when the data is not what was declared, SealCancelled when
        the image was deleted or opened for writing elsewhere, NoSpace, BackendFailed.
        """
        self._pass_on()
        ingest = self._running()
        stored = self._checkpoints.end()
        work = Sealing(
            image_id=self.image_id,
            draft=self._draft,
            seal=self._seal,
            size=self.size,
            mtime_ns=time.time_ns(),
            read=lambda offset, length: bytes(self._head[offset : offset + length]),
            hashes=self._computed,
            hashed=self._hashes is not None,
        )
        # Before anybody can take it for the data of the sealed image.
        self._repo.staging.remove(self.image_id, self._draft.gen)
        try:
            sealed = commit(self._repo, work, ingest, stored)
        except Mismatch as error:
            kill(self._repo, self.image_id, str(error))
            raise
        except PacksGone as error:
            raise BackendFailed(f"Image {self.image_id}: packs that it shares went away: {error}.") from error
        self._sealed = True
        self.close()
        self._repo.logs.flush()
        return sealed

    def _computed(self, algorithm: str) -> tuple[str, str]:
        if self._hashes is None or self._hashes.algorithm != algorithm:
            raise Mismatch(f"Image {self.image_id}: its {algorithm} was not computed while it came in.")
        return self._hashes.result()

    def close(self) -> None:
        """Ends the upload; what was not sealed is dropped, and the image queued again. May be called twice."""
        ingest, self._ingest = self._ingest, None
        if ingest is None:
            return
        session = self._repo.session.id
        with contextlib.ExitStack() as stack:  # each of these whatever happens to the others
            stack.callback(self._files.release, self._fh)
            stack.callback(self._repo.holds.release, self._held, session)
            if not self._sealed:
                stack.callback(self._repo.catalog.seals.abandon, self.image_id, session, None)
                stack.callback(streamed.end, self._repo, self.image_id, self._draft.gen)
            if self._hashes is not None:
                stack.callback(self._hashes.close)
            stack.callback(ingest.__exit__)  # first: no put is under way from here on
