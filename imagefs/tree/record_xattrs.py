"""user.image.*: the Image service's fields as extended attributes (S8).

Pure functions of an image: what an attribute shows, and the image that setting or removing it makes.
Which fields there are and what a settable one accepts is the table in imagefs.images.fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from imagefs.errors import AttributeMissing, InvalidValue, Refused
from imagefs.images import fields
from imagefs.tree.metadata import timestamp
from imagefs.types import Image

ALGORITHMS = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512")
"""Hashes that os_hash_algo may name."""


def names(image: Image) -> Iterator[str]:
    """The fields that have a value, settable ones first."""
    return (key for key in (*fields.SETTABLE, *fields.READ_ONLY, "tags") if read(image, key) is not None)


def read(image: Image, key: str) -> bytes | None:
    """A field's value as text; None when it has none. A draft shows what was declared for it."""
    text: str | None = None
    if key == "tags":
        text = ",".join(tag.replace("%", "%25").replace(",", "%2C") for tag in image.tags) or None
    elif key in ("created_at", "updated_at"):
        text = timestamp(getattr(image, key))
    elif key in fields.EXPECTED and image.draft:
        text = image.draft.expected.get(key)
    elif key in fields.SETTABLE or key in fields.READ_ONLY:
        text = fields.render(image, key)
    return None if text is None else text.encode("utf-8", "replace")


def changed(image: Image, key: str, value: bytes) -> Image:
    """The image with a field set. Raises InvalidValue, or Refused for a read-only field of sealed data."""
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        raise InvalidValue(f"The value of user.image.{key} is not UTF-8 text.") from error
    if key == "name":
        return _renamed(image, text)
    if key == "tags":
        return replace(image, tags=_tags(text))
    if key in fields.READ_ONLY:
        return _declared(image, key, text)
    return replace(image, **{key: fields.parse(key, text) or _default(key)})  # type: ignore[arg-type]


def removed(image: Image, key: str) -> Image:
    """The image with a field back at its default; the same image for a read-only field.

    The default of `name` is the name that the image has: without one it would vanish from by-name/,
    and `rsync -X` of a file without attributes removes every attribute from the copy it made before.
    """
    if key == "tags":
        return replace(image, tags=())
    if key in fields.READ_ONLY or key == "name":
        return image
    if key not in fields.SETTABLE:
        raise AttributeMissing(f"There is no attribute user.image.{key}.")
    return replace(image, **{key: _default(key)})  # type: ignore[arg-type]


def _default(key: str) -> object:
    return fields.SETTABLE[key].default


def _renamed(image: Image, text: str) -> Image:
    if image.draft and image.entry is not None:
        return image  # `cp -a a b` carries a's name to a file that was just given the name b
    if not text:
        raise InvalidValue("The name of an image cannot be empty.")
    return replace(image, name=fields.parse("name", text))  # type: ignore[arg-type]


def _tags(text: str) -> tuple[str, ...]:
    tags = [tag.replace("%2C", ",").replace("%2c", ",").replace("%25", "%") for tag in text.split(",")]
    if tags == [""]:
        return ()
    if "" in tags:
        raise InvalidValue(f"{text!r} has an empty tag.")
    return tuple(dict.fromkeys(tags))


def _declared(image: Image, key: str, text: str) -> Image:
    if image.draft:
        if key not in fields.EXPECTED:
            return image
        expected = {**image.draft.expected, key: _CHECKS[key](text)}
        return replace(image, draft=replace(image.draft, expected=expected))
    if not image.sealed:
        return image  # nothing to compare with yet, and `rsync -X` sets a directory's attributes first
    if read(image, key) != text.encode():
        raise Refused(f"{key} of {image.id} is a fact of its sealed data and cannot be set to {text!r}.")
    return image


def _size(text: str) -> str:
    if not (text.isascii() and text.isdigit()) or int(text) >= 1 << 63:
        raise InvalidValue(f"{text!r} is not a size in bytes.")
    return str(int(text))


def _digest(text: str) -> str:
    digest = text.lower()
    if not digest or len(digest) > 128 or set(digest) - set("0123456789abcdef"):
        raise InvalidValue(f"{text!r} is not a hash in hexadecimal digits.")
    return digest


def _algorithm(text: str) -> str:
    if text not in ALGORITHMS:
        raise InvalidValue(f"{text!r} is not one of {', '.join(ALGORITHMS)}.")
    return text


_CHECKS: dict[str, Callable[[str], str]] = {
    "size": _size, "checksum": _digest, "os_hash_algo": _algorithm, "os_hash_value": _digest,
}  # fmt: skip
