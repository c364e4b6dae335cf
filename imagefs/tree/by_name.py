"""by-name/: every named image that is not deleted, as a file under its entry; flat and writable (S6)."""

from __future__ import annotations

from imagefs.catalog import entries
from imagefs.errors import NotFound
from imagefs.tree.attr import Attr, Entry
from imagefs.tree.nodes import Directory
from imagefs.types import Caller, Ino, Kind


class ByName(Directory):
    """The directory by-name/. A file name in it is an entry: the spelling of an image's name."""

    def attr(self) -> Attr:
        """Owned by the mount's owner."""
        return self.context.directory(Ino.BY_NAME)

    def entries(self, after: int, limit: int) -> list[Entry]:
        """In the order of inodes, which a renamed file keeps: a listing under way loses none."""
        data_attr = self.context.data_attr
        return [
            Entry(ino, attrs.entry, ino, data_attr(attrs))
            for ino, attrs in self.context.catalog.images.walk(Kind.DATA, after, limit)
            if attrs.entry is not None
        ]

    def find(self, name: bytes) -> Attr | None:
        """The data of the image with this entry."""
        images = self.context.catalog.images
        image_id = images.by_entry(name)
        if image_id is None:
            return None
        attrs = images.attrs(image_id)
        return self.context.data_attr(attrs)

    def make_file(self, name: bytes, mode: int, caller: Caller) -> None:
        """A new image of this name, `saving` with an empty draft.

        A file is listed under the name that it was made with, so names that would be listed in another
        spelling are refused: NotText, NameTooLong, and InvalidValue for control characters and a bare `%`.
        """
        context = self.context
        uid, gid = context.owner(caller)
        with context.catalog.transaction():
            self.require_absent(name)
            context.images.create(name=entries.decode(name), draft=True, uid=uid, gid=gid, mode=mode, **context.fields)

    def remove_file(self, name: bytes) -> None:
        """Deletes the image (S7)."""
        image_id = self.context.catalog.images.by_entry(name)
        if image_id is None:
            raise NotFound(f"by-name/ has no {name!r}.")
        self.context.images.delete(image_id)

    def rename(self, old: bytes, new: bytes, *, overwrite: bool) -> None:
        """Renames the image; one that has the new name is deleted (S6)."""
        context = self.context
        with context.catalog.transaction():
            image_id = context.catalog.images.by_entry(old)
            if image_id is None:
                raise NotFound(f"by-name/ has no {old!r}.")
            context.images.rename(image_id, new, replace_existing=overwrite)
