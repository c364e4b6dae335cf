"""images/ and images/<id>/: images under their ids, each a directory of its data and its record (S7)."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from imagefs.catalog import Attrs, Sibling, Siblings
from imagefs.errors import InvalidValue, NotADirectory, NotEmpty, NotFound, NotText, Refused
from imagefs.tree.attr import Attr, Entry, SetAttr, exists, of_image_directory
from imagefs.tree.files import metadata_attr, sibling_attr
from imagefs.tree.nodes import Change, Context, Directory
from imagefs.types import Caller, Draft, Image, Ino, Kind, Status

DATA, METADATA = b"data", b"metadata.json"
DATA_COOKIE, METADATA_COOKIE = 3, 4


class ImagesDirectory(Directory):
    """The directory images/: one directory for each image that is not deleted."""

    def attr(self) -> Attr:
        """Owned by the mount's owner."""
        return self.context.directory(Ino.IMAGES)

    def entries(self, after: int, limit: int) -> list[Entry]:
        """In the order of inodes, which is the order in which the images were made."""
        return [
            Entry(ino, spelt(attrs.id16), ino, of_image_directory(attrs))
            for ino, attrs in self.context.catalog.images.walk(Kind.DIRECTORY, after, limit)
        ]

    def find(self, name: bytes) -> Attr | None:
        """The directory of the image with this id."""
        image_id = canonical(name)
        if image_id is None:
            return None
        try:
            return of_image_directory(self.context.catalog.images.attrs(image_id))
        except NotFound:
            return None

    def make_directory(self, name: bytes, mode: int, caller: Caller) -> None:
        """A new image with this id, `queued` and without a name. InvalidValue unless it is an id."""
        image_id = canonical(name)
        if image_id is None:
            raise InvalidValue(f"{name!r} is no id as uuidgen prints one: 8-4-4-4-12 hexadecimal digits.")
        uid, gid = self.context.owner(caller)
        self.context.images.create(id=image_id, dir_mode=mode, uid=uid, gid=gid, **self.context.fields)

    def make_file(self, name: bytes, mode: int, caller: Caller) -> None:
        """Refused: an image's data is images/<id>/data."""
        self.require_absent(name)
        raise Refused("In images/ there are directories only: mkdir images/<id>, then images/<id>/data.")

    def remove_directory(self, name: bytes) -> None:
        """Deletes an image that has no data. NotEmpty, Protected."""
        image_id = canonical(name)
        if image_id is None:
            raise NotFound(f"images/ has no {name!r}.")
        with self.context.catalog.transaction():
            attrs = self.context.catalog.images.attrs(image_id)
            if exists(attrs) or self.context.catalog.siblings.list(image_id):
                raise NotEmpty(f"images/{image_id} has data.")
            self.context.images.delete(image_id)


class ImageDirectory(Directory):
    """The directory images/<id>/."""

    def __init__(self, context: Context, image_id: UUID) -> None:
        super().__init__(context)
        self.image_id = image_id

    def attr(self) -> Attr:
        """Owned by the image's owner."""
        return of_image_directory(self._attrs())

    def parent_attr(self) -> Attr:
        """images/."""
        return self.context.directory(Ino.IMAGES)

    def set_attr(self, change: SetAttr, caller: Caller) -> None:
        """Mode and owner are kept; times follow what is in the directory."""
        fields = {"dir_mode": change.mode, "uid": change.uid, "gid": change.gid}
        given = {key: value for key, value in fields.items() if value is not None}
        if given:
            self.update(lambda image: replace(image, **given))  # type: ignore[arg-type]

    def record(self) -> Image:
        """The image's."""
        return self.context.images.get(self.image_id)

    def update(self, change: Change) -> None:
        """Changes the image."""
        self.context.images.update(self.image_id, change)

    def entries(self, after: int, limit: int) -> list[Entry]:
        """`data` if there is any, metadata.json, temporary files in the order of inodes."""
        found = []
        attrs = self._attrs()
        if after < DATA_COOKIE and exists(attrs):
            found.append(Entry(DATA_COOKIE, DATA, attrs.data_ino, self._data_attr(attrs)))
        if after < METADATA_COOKIE:
            attr = metadata_attr(self.context, attrs)
            found.append(Entry(METADATA_COOKIE, METADATA, attr.ino, attr))
        for sibling in sorted(self._siblings.list(self.image_id), key=lambda sibling: sibling.ino):
            if sibling.ino > after:
                attr = sibling_attr(self.context, sibling)
                found.append(Entry(sibling.ino, sibling.name, sibling.ino, attr))
        return found[:limit]

    def find(self, name: bytes) -> Attr | None:
        """`data`, metadata.json or a temporary file."""
        if name == DATA:
            attrs = self._attrs()
            return self._data_attr(attrs) if exists(attrs) else None
        if name == METADATA:
            return metadata_attr(self.context, self._attrs())
        sibling = self._sibling(name)
        return sibling_attr(self.context, sibling) if sibling else None

    def make_file(self, name: bytes, mode: int, caller: Caller) -> None:
        """`data` begins the draft of a queued image; any other name is a temporary file beside it.

        Exists; Refused when the image's state takes no data (again); TooMany temporary files.
        """
        with self.context.catalog.transaction():
            self.require_absent(name)
            if name == DATA:
                self.context.images.begin_draft(self.image_id)
                self.context.images.update(self.image_id, lambda image: replace(image, mode=mode))
            else:
                self._make_sibling(name, mode, caller)

    def remove_file(self, name: bytes) -> None:
        """`data`: see S1 and S7. metadata.json: nothing happens, so that `rm -r` works."""
        if name == METADATA:
            return
        if name == DATA:
            if not exists(self._attrs()):
                raise NotFound(f"images/{self.image_id} has no data.")
            self.context.images.unlink_data(self.image_id)
        elif self._siblings.remove(self.image_id, name) is None:
            raise NotFound(f"images/{self.image_id} has no {name!r}.")

    def remove_directory(self, name: bytes) -> None:
        """There are none."""
        self.lookup(name)
        raise NotADirectory(f"{name!r} is a file.")

    def rename(self, old: bytes, new: bytes, *, overwrite: bool) -> None:
        """Temporary files change their names, and become the draft when they get the name `data` (S6)."""
        with self.context.catalog.transaction():
            self.lookup(old)
            if not overwrite:
                self.require_absent(new)
            if old in {DATA, METADATA} or new == METADATA:
                raise Refused(f"In images/<id>/, {old!r} cannot become {new!r}.")
            if new == DATA:
                self._siblings.promote(self.image_id, old)
            else:
                self._siblings.rename(self.image_id, old, text(new))

    # -- what is in it -----------------------------------------------------------------------------

    @property
    def _siblings(self) -> Siblings:
        return self.context.catalog.siblings

    def _attrs(self) -> Attrs:
        return self.context.catalog.images.attrs(self.image_id)

    def _data_attr(self, attrs: Attrs) -> Attr:
        return self.context.data_attr(attrs)

    def _sibling(self, name: bytes) -> Sibling | None:
        return self._siblings.get(self.image_id, name)

    def _make_sibling(self, name: bytes, mode: int, caller: Caller) -> None:
        attrs = self._attrs()
        if attrs.status not in {Status.QUEUED, Status.SAVING}:
            raise Refused(f"Image {self.image_id} is {attrs.status}: it takes no more data.")
        uid, gid = self.context.owner(caller)
        record = Image(id=self.image_id, status=Status.SAVING, uid=uid, gid=gid, mode=mode, draft=Draft(gen=0))
        sibling = self._siblings.add(self.image_id, text(name), record)
        self.context.repo.staging.create(self.image_id, sibling.gen)


def canonical(name: bytes) -> UUID | None:
    """The id that a directory of images/ is named after; None for any other spelling."""
    try:
        image_id = UUID(name.decode("ascii"))
    except ValueError:
        return None
    return image_id if str(image_id).encode() == name else None


def spelt(id16: bytes) -> bytes:
    """The canonical spelling of an id; by way of UUID a listing of 10,000 would take twice as long."""
    digits = id16.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}".encode()


def text(name: bytes) -> bytes:
    """The same file name; NotText unless it is UTF-8."""
    try:
        name.decode()
    except UnicodeDecodeError as error:
        raise NotText(f"{name!r} is not UTF-8.") from error
    return name
