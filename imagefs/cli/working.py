"""A repository whose data a command reads or writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from imagefs.cli.opening import opened
from imagefs.cli.settings import Settings
from imagefs.images.opens import OpenFiles
from imagefs.images.service import Images
from imagefs.images.tail import LogTail


@contextmanager
def opened_for_data(settings: Settings) -> Iterator[tuple[Images, OpenFiles]]:
    """The repository's images and the files that this command opens, for commands that may take long.

    The command follows the log meanwhile: a session that acknowledges nothing keeps gc from deleting.
    """
    with opened(settings) as repo:
        images = Images(repo)
        files = OpenFiles(images, repo.session.id)
        tail = LogTail(repo, files, ())
        tail.start()
        try:
            yield images, files
        finally:
            tail.stop()
