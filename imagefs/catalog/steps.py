"""From one record of an image to the next: what may follow, and which times follow it. Pure functions."""

from __future__ import annotations

from dataclasses import replace

from imagefs.errors import InvalidValue
from imagefs.types import TRANSITIONS, Image, Status

_GLANCE = (
    "name", "status", "owner", "visibility", "disk_format", "container_format", "size", "virtual_size",
    "checksum", "os_hash_algo", "os_hash_value", "min_disk", "min_ram", "protected", "os_hidden", "tags",
    "properties",
)  # fmt: skip
"""Fields whose change changes updated_at."""
# The hashes follow by themselves some time after sealing: tar and rsync would see a file that changes.
# So may the layout, and with it the map, of the same bytes.
_UNTIMED = {
    "atime", "draft", "draft_gen", "updated_at", "ctime", "checksum", "os_hash_algo", "os_hash_value", "map_id",
    "map_uuid", "layout",
}  # fmt: skip
_FOLLOWED = tuple(name for name in Image.__dataclass_fields__ if name not in _UNTIMED)
"""Fields whose change changes ctime."""


def shown(image: Image) -> bool:
    """Whether by-name/ shows it (S6)."""
    return bool(image.name) and image.status not in (Status.DELETED, Status.PENDING_DELETE)


def maps_of(image: Image) -> list[int]:
    """The maps that a record refers to: its data's and its draft's base."""
    base = image.draft.base_map if image.draft else 0
    return [map_id for map_id in (image.map_id, base) if map_id]


def timed(image: Image, now_ns: int) -> Image:
    """The record with the present time where it has none."""
    return replace(
        image,
        created_at=image.created_at or now_ns,
        updated_at=image.updated_at or now_ns,
        atime=image.atime or now_ns,
        mtime=image.mtime or now_ns,
        ctime=image.ctime or now_ns,
    )


def touched(old: Image, new: Image, now_ns: int) -> Image:
    """The new record with updated_at and ctime, where it did not set them itself."""
    if new.updated_at == old.updated_at and any(getattr(old, f) != getattr(new, f) for f in _GLANCE):
        new = replace(new, updated_at=now_ns)
    if new.ctime == old.ctime and any(getattr(old, f) != getattr(new, f) for f in _FOLLOWED):
        new = replace(new, ctime=now_ns)
    return new


def check(image: Image) -> None:
    """Refuses a record that cannot be, with InvalidValue."""
    if image.status == Status.DELETED:
        raise InvalidValue(f"Image {image.id} is deleted by unlinking it.")
    if (image.draft is not None) != (image.status == Status.SAVING):
        raise InvalidValue(f"Image {image.id} is {image.status}: a draft exists exactly while it is saving.")
    if image.map_id and image.status in (Status.QUEUED, Status.SAVING):
        raise InvalidValue(f"Image {image.id} is {image.status} and cannot have sealed data.")


def check_step(old: Image, new: Image) -> None:
    """Refuses a change that is no step from one record to the next, with InvalidValue."""
    if new.id != old.id or new.dir_ino != old.dir_ino:
        raise InvalidValue(f"The id and the inode of image {old.id} are for ever.")
    if new.status != old.status and new.status not in TRANSITIONS[old.status]:
        raise InvalidValue(f"Image {old.id} is {old.status}: it cannot become {new.status}.")
    check(new)
