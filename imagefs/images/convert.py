"""Converting a sealed compressed image to layout `recode`: its clusters kept plain, its streams made when read.

Nothing changes for who reads it but the time it takes: the bytes are those that were uploaded. So the order
is: look whether it is worth it -> [reserve names -> put packs] -> record them -> make the whole file from what
was stored and compare root and hash with those of sealing -> feature bit -> manifest -> one transaction that
swaps the map. What a crash leaves belongs to a session that ends with it, and goes to trash.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

from imagefs.blocks import recode
from imagefs.blocks.superblock import RECODE
from imagefs.errors import BackendFailed, Busy, Damaged, NoSpace, NotConvertible, PacksGone, SealCancelled
from imagefs.images.estimate import Estimate, Estimator, staying
from imagefs.images.features import require_feature
from imagefs.images.inside import Inside, look_inside, lower
from imagefs.images.listing import with_root
from imagefs.images.recoding import Recoding, Stored
from imagefs.images.repository import Repository
from imagefs.images.session import Session
from imagefs.types import LAYOUTS, Image, Status

log = logging.getLogger(__name__)

RATIO = 0.7
"""What the stored form may cost of what it frees: below it the image is converted by itself. Its readers pay
for it, at 20 MB/s of file for each core."""
TRIES = 3
_PIECE = 1 << 20
_STATES = (Status.ACTIVE, Status.DEACTIVATED)
Take = Callable[[int], bool]
"""Called with bytes about to be worked on; may wait; False when the work is to end."""


@dataclass(frozen=True, slots=True)
class Converted:
    """What a conversion did."""

    images: list[Image]
    """All that had these bytes."""
    freed: int
    """Bytes on the store that go with the old form, once nobody reads it any more."""
    stored: int
    """Bytes that came with the new one."""


class Converter:
    """Converts images of one repository, one at a time over all processes. Used by one thread."""

    def __init__(self, repo: Repository, *, take: Take = lambda _: True, nice: bool = False) -> None:
        """`nice`: its threads give way to others; `take` paces it."""
        self._repo = repo
        self._take = take
        self._nice = nice
        self._estimator = Estimator(repo)

    def estimate(self, image: Image) -> Estimate:
        """What converting would cost and free now: decodes the whole image, 5 s for each GiB of guest disk.

        NotConvertible for an image that has nothing to convert, or whose streams cannot be made again.
        """
        return self._estimate(image, self._inside(image))

    def convert(self, image_id: UUID, *, ratio: float = RATIO, progress: Take = lambda _: True) -> Converted:
        """Converts the image, and others of the same bytes, if the cost is at most `ratio` of what it frees.

        `progress` is told bytes of the file, twice its size in all. NotConvertible with the reason; Busy when
        another conversion is under way; SealCancelled when it was to end, or the image has gone; Damaged
        when what was stored does not make the file again (nothing is changed); NoSpace, BackendFailed.
        """
        with self._alone():
            if self._nice:
                lower()
            image = self._repo.catalog.images.get(image_id)
            twin = self._twin(image)
            if twin is not None:
                return self._adopt(image, twin)
            inside = self._inside(image)
            estimate = self._estimate(image, inside)
            if estimate.costs > ratio * estimate.frees:
                for other in estimate.kin:
                    self._first(other)
                estimate = self._estimate(image, inside)
            if estimate.costs > ratio * estimate.frees:
                raise NotConvertible(f"Image {image_id} is not converted: {estimate}.")
            if estimate.costs > self._repo.space.room():
                raise NoSpace(f"Image {image_id} is not converted: the disk has no room for both its forms.")
            return self._convert(image, inside, estimate, progress)

    def _first(self, image_id: UUID) -> None:
        """Converts an image that alone was not worth it, because another one shares what is in it."""
        try:
            image = self._repo.catalog.images.get(image_id)
            inside = self._inside(image)
            estimate = self._estimate(image, inside)
            self._convert(image, inside, estimate, lambda _: True)
        except NotConvertible as error:
            log.info("%s", error)

    def _convert(self, image: Image, inside: Inside, estimate: Estimate, progress: Take) -> Converted:
        for _ in range(TRIES):
            session = Session(self._repo.path / "sessions", self._repo.catalog, "convert")
            try:
                work = Recoding(self._repo, session.id, image, inside, self._pace(session, progress), nice=self._nice)
                stored = work.store(staying(self._repo, self._same(image)))
                self._verify(work, stored, image, progress, session)
                require_feature(self._repo, RECODE)
                images = work.commit(stored, self._same(image))
            except PacksGone as error:
                log.info("image %s is converted once more: %s", image.id, error)
                continue
            finally:
                session.close()
            self._estimator.forget(image.id)
            self._follow(image, images)
            return Converted(images, estimate.frees, stored.bytes)
        raise BackendFailed(f"Image {image.id}: packs went away {TRIES} times while it was being converted.")

    def _verify(self, work: Recoding, stored: Stored, image: Image, progress: Take, session: Session) -> None:
        """Raises Damaged unless what was stored makes the whole file, by root and by hash."""
        algorithm = image.os_hash_algo or ""
        digest = hashlib.new(algorithm if algorithm in hashlib.algorithms_available else "sha512")
        pace = self._pace(session, progress)
        with work.file(stored) as (file, root):
            for offset in range(0, file.size, _PIECE):
                piece = file.pread(offset, _PIECE)
                pace(len(piece))
                digest.update(piece)
                root.add(piece)
        same = root.hexdigest() == image.root and file.size == image.size
        if not same or (algorithm == digest.name and digest.hexdigest() != image.os_hash_value):
            raise Damaged(f"Image {image.id} stays as it is: what was stored does not make its file again.")

    def _estimate(self, image: Image, inside: Inside) -> Estimate:
        return self._estimator.of(image.id, inside, self._same(image), self._paced, nice=self._nice)

    # -- images of the same bytes ------------------------------------------------------------------------

    def _same(self, image: Image) -> set[int]:
        """Maps of the image and of others of equal bytes."""
        return {image.map_id, *(twin.map_id for twin in with_root(self._repo.catalog, image) if twin.sealed)}

    def _twin(self, image: Image) -> Image | None:
        """An image of the same bytes that is converted already."""
        if image.layout != LAYOUTS[0]:
            return None
        twins = with_root(self._repo.catalog, image)
        return next((twin for twin in twins if twin.layout == LAYOUTS[recode.KIND]), None)

    def _adopt(self, image: Image, twin: Image) -> Converted:
        others = self._same(image) - {twin.map_id}
        images = self._repo.catalog.conversions.adopt(others, twin.map_id, twin.layout)
        self._follow(image, images)
        return Converted(images, 0, 0)

    def _follow(self, image: Image, images: list[Image]) -> None:
        """After the swap: its plain file stays, its log rows are durable."""
        for uuid in {one.map_uuid for one in images}:
            if image.map_uuid is not None and uuid is not None:
                self._repo.materialised.follow(image.map_uuid, uuid)
        self._repo.logs.flush()

    # ------------------------------------------------------------------------------------------------

    def _inside(self, image: Image) -> Inside:
        if image.layout != LAYOUTS[0]:
            raise NotConvertible(f"Image {image.id} is converted already.")
        if image.status not in _STATES or image.root is None:
            raise NotConvertible(f"Image {image.id} is {image.status}: it has no sealed data to convert.")
        if image.os_hash_value is None:
            raise NotConvertible(f"The hashes of image {image.id} are not known yet.")
        map_id, size = image.map_id, image.size or 0
        inside = look_inside(lambda offset, length: self._repo.reader.pread(map_id, size, offset, length), size)
        if inside is None:
            raise NotConvertible(f"Image {image.id} has nothing inside that could be made again.")
        return inside

    def _paced(self, nbytes: int) -> None:
        if not self._take(nbytes):
            raise SealCancelled("The conversion was to end; it begins anew at the next start.")

    def _pace(self, session: Session, progress: Take) -> Callable[[int], None]:
        """Paces the work, tells how far it is, and lets its session acknowledge what others delete."""
        since = 0

        def pace(nbytes: int) -> None:
            nonlocal since
            self._paced(nbytes)
            progress(nbytes)
            since += nbytes
            if since >= 16 * _PIECE:
                since = 0
                self._repo.catalog.sessions.ack(session.id, self._repo.catalog.generation())

        return pace

    @contextmanager
    def _alone(self) -> Iterator[None]:
        path = self._repo.path / "locks" / "convert"
        fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as error:
            raise Busy("Another conversion is under way.") from error
        finally:
            os.close(fd)
