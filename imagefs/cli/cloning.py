"""What `clone --draft` does: a copy of an image that is to be written to."""

from __future__ import annotations

import contextlib
import os

from imagefs.cli.opening import resolve
from imagefs.cli.settings import Settings
from imagefs.cli.working import opened_for_data
from imagefs.errors import ImagefsError, InvalidValue
from imagefs.images import drafts
from imagefs.images.opens import Handle, OpenFiles
from imagefs.types import Caller, Image


def writable_copy(settings: Settings, word: str, name: str) -> Image:
    """A new image whose draft has the blocks of the image that `word` means; it is never sealed by itself.

    Raises InvalidValue for an image without sealed data. Nothing is left of it when it fails.
    """
    with opened_for_data(settings) as (images, files):
        source = resolve(images.repo, word)
        if not source.sealed:
            raise InvalidValue(f"Image {source.id} is {source.status}: only sealed data can be shared.")
        new = images.create(
            name,
            draft=True,
            owner=source.owner,
            visibility=source.visibility,
            uid=source.uid,
            gid=source.gid,
            mode=source.mode,
            tags=source.tags,
            properties=dict(source.properties),
            disk_format=source.disk_format,
            container_format=source.container_format,
            min_disk=source.min_disk,
            min_ram=source.min_ram,
        )
        try:
            images.update_draft(new.id, drafts.marked(True))
            _copy(files, source, new)
        except BaseException:
            with contextlib.suppress(ImagefsError):
                images.delete(new.id)
            raise
        return images.get(new.id)


def _copy(files: OpenFiles, source: Image, new: Image) -> None:
    caller = Caller(os.getuid(), os.getgid(), os.getpid())

    def opened(image: Image, flags: int) -> Handle:
        return files.open(image.data_ino, flags, caller, files.new_fh(), fresh=flags != os.O_RDONLY)

    with contextlib.ExitStack() as stack:
        theirs, ours = opened(source, os.O_RDONLY), opened(new, os.O_RDWR)
        for handle in (theirs, ours):
            stack.callback(files.release, handle.fh)
        at = 0
        while at < theirs.size:
            at += ours.copy_range(theirs, at, at, theirs.size - at)
        ours.fsync()
