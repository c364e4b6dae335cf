"""The fields of an image that people may set: how text becomes a value, and what is allowed.

One table for xattrs (S8), the command line and every other front; the names are the Image service's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from imagefs.errors import InvalidValue, NameTooLong
from imagefs.types import CONTAINER_FORMATS, DISK_FORMATS, Image, Visibility

LONGEST = 255
"""Characters in a name, tag or property key, as the Image service has it."""
MOST = 128
"""Tags or properties of one image (the Image service's default quota)."""


@dataclass(frozen=True)
class Field:
    """One settable field. `parse` raises InvalidValue; `default` is what removing it restores."""

    parse: Callable[[str], object]
    default: object


def _text(text: str) -> str:
    if len(text) > LONGEST:
        raise NameTooLong(f"{len(text)} characters are more than the {LONGEST} allowed.")
    return text


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) >= 1 << 31:
        raise InvalidValue(f"{text!r} is not a whole number from 0 to 2147483647.")
    return int(text)


def _flag(text: str) -> bool:
    value = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(text.lower())
    if value is None:
        raise InvalidValue(f"{text!r} is neither true nor false.")
    return value


def _one_of(allowed: tuple[str, ...]) -> Callable[[str], str | None]:
    def parse(text: str) -> str | None:
        if text and text not in allowed:
            raise InvalidValue(f"{text!r} is not one of {', '.join(allowed)}.")
        return text or None

    return parse


def _visibility(text: str) -> Visibility:
    try:
        return Visibility(text)
    except ValueError as error:
        raise InvalidValue(f"{text!r} is not one of {', '.join(Visibility)}.") from error


SETTABLE: Mapping[str, Field] = {
    "name": Field(_text, None),
    "owner": Field(_text, None),
    "visibility": Field(_visibility, Visibility.SHARED),
    "disk_format": Field(_one_of(DISK_FORMATS), None),
    "container_format": Field(_one_of(CONTAINER_FORMATS), None),
    "min_disk": Field(_count, 0),
    "min_ram": Field(_count, 0),
    "protected": Field(_flag, False),
    "os_hidden": Field(_flag, False),
}
"""Settable by anyone who may write the image. Tags and properties are collections of their own."""

READ_ONLY = (
    "id", "status", "size", "virtual_size", "checksum", "os_hash_algo", "os_hash_value", "created_at", "updated_at",
)  # fmt: skip
EXPECTED = ("size", "checksum", "os_hash_algo", "os_hash_value")
"""Read-only fields that, set on a draft, are checked when it is sealed (S8)."""
RESERVED = frozenset((*SETTABLE, *READ_ONLY, "tags", "file", "self", "schema", "locations", "direct_url"))
"""Names that no property may have."""


def parse(name: str, text: str) -> object:
    """The value that `text` means for the settable field `name`; InvalidValue when it means none."""
    field = SETTABLE.get(name)
    if field is None:
        raise InvalidValue(f"{name!r} is not a field that can be set; these are: {', '.join(SETTABLE)}.")
    return field.parse(text)


def render(image: Image, name: str) -> str | None:
    """A field's value as text, None when it is not set. Times come as nanoseconds."""
    value: Any = getattr(image, name)
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def check_collections(image: Image) -> None:
    """Raises InvalidValue or NameTooLong when tags or properties break a limit or shadow a field."""
    if len(image.tags) > MOST or len(image.properties) > MOST:
        raise InvalidValue(f"An image has at most {MOST} tags and {MOST} properties.")
    for text in (*image.tags, *image.properties):
        if not text or len(text) > LONGEST:
            raise NameTooLong(f"A tag or property key has 1 to {LONGEST} characters, not {len(text)}.")
    shadowed = RESERVED.intersection(image.properties)
    if shadowed:
        raise InvalidValue(f"{', '.join(sorted(shadowed))}: a property cannot have the name of a field.")
