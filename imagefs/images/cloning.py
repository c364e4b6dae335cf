"""Writable copies: drafts that have the blocks of an image, for `clone --draft`."""

from __future__ import annotations

import contextlib
import os

from imagefs.errors import ImagefsError, InvalidValue
from imagefs.images import drafts
from imagefs.images.opens import Handle, OpenFiles
from imagefs.images.service import Images, inherited
from imagefs.types import Caller, Image


def writable_copy(images: Images, files: OpenFiles, source: Image, name: str) -> Image:
    """A new image whose draft has the blocks of `source`; it is never sealed by itself.

    Raises InvalidValue for an image without sealed data. Nothing is left of it when it fails.
    """
    if not source.sealed:
        raise InvalidValue(f"Image {source.id} is {source.status}: only sealed data can be shared.")
    new = images.create(
        name,
        draft=True,
        disk_format=source.disk_format,
        container_format=source.container_format,
        **inherited(source),
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
