"""The files of an image: its data under either name, temporary files beside it, metadata.json."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from uuid import UUID

from imagefs.catalog import Attrs, Sibling
from imagefs.errors import Stale
from imagefs.images.opens import Handle
from imagefs.tree import metadata
from imagefs.tree.attr import Attr, Now, SetAttr, of_metadata, of_record, with_staging
from imagefs.tree.nodes import Change, Context, Node
from imagefs.tree.rendered import refused, rendered
from imagefs.types import Caller, Image


class Data(Node):
    """An image's data: images/<id>/data and by-name/<entry>."""

    def __init__(self, context: Context, ino: int, image_id: UUID) -> None:
        super().__init__(context)
        self.ino = ino
        self.image_id = image_id

    def attr(self) -> Attr:
        """Size and times of the draft, or of what was sealed."""
        attrs = self.context.catalog.images.attrs(self.image_id)
        return self.context.data_attr(attrs)

    def open(self, flags: int, caller: Caller, fh: int) -> Handle:
        """Begins a draft when an image without data is opened for writing."""
        return self.context.open_files.open(self.ino, flags, caller, fh)

    def set_attr(self, change: SetAttr, caller: Caller) -> None:
        """Mode, owner and times are kept, sealed or not (S8)."""
        set_record(self, self.record(), change)

    def record(self) -> Image:
        """The image's."""
        return self.context.images.get(self.image_id)

    def update(self, change: Change) -> None:
        """Changes the image."""
        self.context.images.update(self.image_id, change)


class SiblingFile(Node):
    """A temporary file beside `data`: the draft, once a rename gives it that name (S6)."""

    def __init__(self, context: Context, ino: int, image_id: UUID) -> None:
        super().__init__(context)
        self.ino = ino
        self.image_id = image_id

    def _sibling(self) -> Sibling:
        return self.context.catalog.siblings.by_ino(self.ino)

    def attr(self) -> Attr:
        """What its staging file and its own record say."""
        return sibling_attr(self.context, self._sibling())

    def open(self, flags: int, caller: Caller, fh: int) -> Handle:
        """As a draft."""
        return self.context.open_files.open(self.ino, flags, caller, fh)

    def set_attr(self, change: SetAttr, caller: Caller) -> None:
        """Kept in its own record, and the image's from the rename on."""
        set_record(self, self.record(), change)

    def record(self) -> Image:
        """Its own, as if it were the image."""
        return self._sibling().record

    def update(self, change: Change) -> None:
        """Changes its own record."""
        sibling = self._sibling()
        self.context.catalog.siblings.update(self.image_id, sibling.name, change)


class Metadata(Node):
    """images/<id>/metadata.json."""

    def __init__(self, context: Context, image_id: UUID) -> None:
        super().__init__(context)
        self.image_id = image_id

    def attr(self) -> Attr:
        """With the size of what would be read now."""
        return metadata_attr(self.context, self.context.catalog.images.attrs(self.image_id))

    def open(self, flags: int, caller: Caller, fh: int) -> Handle:
        """The record as it is now."""
        if flags & (os.O_ACCMODE | os.O_TRUNC) != os.O_RDONLY:
            raise refused()
        image = self.context.images.get(self.image_id)
        return rendered(self.context.open_files, image.dir_ino + 1, fh, metadata.render(image))

    def set_attr(self, change: SetAttr, caller: Caller) -> None:
        """Accepted without an effect, for `chmod -R` and `chown -R`: all of it follows the data's."""


class Unlinked(Node):
    """Data that has no name any more and is open: alive until it is closed (S7)."""

    def __init__(self, context: Context, ino: int, image: Image) -> None:
        super().__init__(context)
        self.ino = ino
        self.image = image

    def attr(self) -> Attr:
        """As it was, without links."""
        attr = of_record(self.image, self.ino)
        if self.image.draft is not None:
            staging = self.context.repo.staging.stat(self.image.id, self.image.draft.gen)
            if staging is not None:
                with_staging(attr, staging)
            else:
                attr.size = max((handle.size for handle in self._handles()), default=0)
        return attr

    def open(self, flags: int, caller: Caller, fh: int) -> Handle:
        """Stale: a path that leads here is not true any more."""
        raise Stale(f"Inode {self.ino} has been deleted.")

    def set_attr(self, change: SetAttr, caller: Caller) -> None:
        """Nothing will look at it."""

    def record(self) -> Image:
        """As it was when it was opened."""
        return self.image

    def _handles(self) -> list[Handle]:
        files = self.context.open_files
        rows = self.context.repo.opens.handles(self.ino)
        handles = [files.get(row.fh) for row in rows if row.connection == files.connection]
        return [handle for handle in handles if handle is not None]


def sibling_attr(context: Context, sibling: Sibling) -> Attr:
    """Attributes of a temporary file beside `data`."""
    attr = of_record(sibling.record, sibling.ino)
    attr.nlink = 1
    staging = context.repo.staging.stat(sibling.record.id, sibling.gen)
    return attr if staging is None else with_staging(attr, staging)


def metadata_attr(context: Context, attrs: Attrs) -> Attr:
    """Attributes of an image's metadata.json."""
    return of_metadata(attrs, len(metadata.render(context.images.get(attrs.id))))


def set_record(node: Data | SiblingFile, image: Image, change: SetAttr) -> None:
    """Keeps mode, owner and times: a draft's times on its staging file, as writing sets them there too."""
    now = time.time_ns()
    fields: dict[str, int | None] = {"mode": change.mode, "uid": change.uid, "gid": change.gid}
    if change.atime is not None or change.mtime is not None:
        atime, mtime = (now if isinstance(t, Now) else t for t in (change.atime, change.mtime))
        if image.draft is None or not _set_staging_times(node.context, image, atime, mtime):
            fields |= {"atime": atime, "mtime": mtime}
    given = {key: value for key, value in fields.items() if value is not None}
    if given:
        node.update(lambda record: replace(record, **given))  # type: ignore[arg-type]


def _set_staging_times(context: Context, image: Image, atime: int | None, mtime: int | None) -> bool:
    """Whether there was a staging file to set them on: it goes when the image is sealed."""
    assert image.draft is not None
    path = context.repo.staging.path(image.id, image.draft.gen)
    try:
        status = os.stat(path)
        os.utime(
            path,
            ns=(
                status.st_atime_ns if atime is None else atime,
                status.st_mtime_ns if mtime is None else mtime,
            ),
        )
    except FileNotFoundError:
        return False
    return True
