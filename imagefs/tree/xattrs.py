"""Extended attributes of an image's directory and data (S8): the namespaces and what each one means.

    user.image.<field>      the Image service's fields and tags (record_xattrs)
    user.property.<key>     custom properties
    user.imagefs.<control>  controls and figures, not listed
    user.<any other>        kept verbatim

Everything here is a pure function of the image's record; the catalog applies `changed` and `removed`
inside its own transaction, so two processes that set two attributes at once lose neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate
from typing import Literal

from imagefs.errors import AttributeMissing, Exists, InvalidValue, NameTooLong, NotSupported, NotText, TooMany
from imagefs.images import fields
from imagefs.tree import record_xattrs
from imagefs.types import Image

LONGEST_NAME = 255
LONGEST_VALUE = 64 << 10
LONGEST_LIST = 64 << 10
"""Bytes; the kernel's own limits (XATTR_NAME_MAX, XATTR_SIZE_MAX, XATTR_LIST_MAX of linux/limits.h)."""
MOST_FOREIGN = 1 << 20
"""Bytes of all foreign values of one image: they are part of its record, which is read as a whole."""

Mode = Literal["any", "create", "replace"]
"""create: the attribute must not exist yet (XATTR_CREATE); replace: it must (XATTR_REPLACE)."""

IMAGE, PROPERTY, CONTROL, USER = "user.image.", "user.property.", "user.imagefs.", "user."
SEAL = b"user.imagefs.seal"
"""The control that takes time: the tree answers for it, and for what more than the record tells (figures)."""


def names(image: Image) -> list[bytes]:
    """What listxattr shows; cut at 64 KiB, more than which the kernel does not hand on (E2BIG)."""
    listed = [name for name in _names(image) if len(name) <= LONGEST_NAME and b"\0" not in name]
    total = accumulate(len(name) + 1 for name in listed)
    return [name for name, end in zip(listed, total, strict=True) if end <= LONGEST_LIST]


def _names(image: Image) -> Iterator[bytes]:
    yield from (f"{IMAGE}{key}".encode() for key in record_xattrs.names(image))
    yield from (f"{PROPERTY}{key}".encode("utf-8", "replace") for key in image.properties)
    yield from (key.encode() for key in image.xattrs if not key.startswith(CONTROL))


def read(image: Image, name: bytes) -> bytes | None:
    """An attribute's value, None when there is no such attribute. NotSupported outside `user.`."""
    namespace, key = split(name)
    if namespace == IMAGE:
        return record_xattrs.read(image, key)
    if namespace == PROPERTY:
        value = image.properties.get(key)
        return None if value is None else value.encode("utf-8", "replace")
    if namespace == CONTROL:
        return _figure(image, key)
    return image.xattrs.get(namespace + key)


def changed(image: Image, name: bytes, value: bytes, mode: Mode = "any") -> Image:
    """The image with an attribute set; the same image when that changes nothing.

    Raises InvalidValue (NameTooLong, NotText) for what the attribute does not take, Refused for
    another value of a read-only one, Exists or AttributeMissing as `mode` says, TooMany at a limit.
    """
    namespace, key = split(name)
    if len(value) > LONGEST_VALUE:
        raise NameTooLong(f"{len(value)} bytes are more than the {LONGEST_VALUE} of an attribute.")
    if mode != "any" and (read(image, name) is None) == (mode == "replace"):
        error = AttributeMissing if mode == "replace" else Exists
        raise error(f"{image.id} has {'no' if mode == 'replace' else 'an'} attribute {namespace}{key}.")
    if namespace == IMAGE:
        result = record_xattrs.changed(image, key, value)
    elif namespace == PROPERTY:
        result = replace(image, properties={**image.properties, key: _text(name, value)})
    elif namespace == CONTROL:
        result = _controlled(image, key, value)
    else:
        result = replace(image, xattrs={**image.xattrs, namespace + key: value})
    _check(result)
    return image if result == image else result


def removed(image: Image, name: bytes) -> Image:
    """The image without an attribute, a settable field back at its default. Raises AttributeMissing."""
    namespace, key = split(name)
    if namespace == IMAGE:
        return record_xattrs.removed(image, key)
    if namespace == CONTROL:
        if key in ("draft", "pinned") and _figure(image, key) is not None:
            return _controlled(image, key, b"0")
    elif namespace == PROPERTY and key in image.properties:
        return replace(image, properties={k: v for k, v in image.properties.items() if k != key})
    elif namespace == USER and namespace + key in image.xattrs:
        return replace(image, xattrs={k: v for k, v in image.xattrs.items() if k != namespace + key})
    raise AttributeMissing(f"{image.id} has no attribute {namespace}{key}.")


def split(name: bytes) -> tuple[str, str]:
    """(namespace, rest) of a name. NotSupported outside `user.`, InvalidValue when the rest is empty."""
    if not name.startswith(b"user."):
        # Not "no data": the kernel asks for these again and again otherwise, twice per file of `ls -l`.
        raise NotSupported(f"Only attributes of users (user.*) are kept, not {name!r}.")
    if len(name) > LONGEST_NAME:
        raise NameTooLong(f"{len(name)} bytes are more than the {LONGEST_NAME} of an attribute's name.")
    try:
        text = name.decode()
    except UnicodeDecodeError as error:
        raise NotText(f"{name!r} is not UTF-8 text.") from error
    namespace = next(prefix for prefix in (IMAGE, PROPERTY, CONTROL, USER) if text.startswith(prefix))
    key = text.removeprefix(namespace)
    if not key:
        raise InvalidValue(f"{text!r} names no attribute.")
    return namespace, key


def _text(name: bytes, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InvalidValue(f"The value of {name.decode()} is not UTF-8 text.") from error


def _check(image: Image) -> None:
    fields.check_collections(image)
    if len(image.xattrs) > fields.MOST or sum(map(len, image.xattrs.values())) > MOST_FOREIGN:
        raise TooMany(f"An image keeps {fields.MOST} attributes of others and {MOST_FOREIGN} bytes in them.")
    if sum(len(name) + 1 for name in _names(image)) > LONGEST_LIST:
        raise TooMany(f"The names of an image's attributes have {LONGEST_LIST} bytes together at most.")


def _figure(image: Image, key: str) -> bytes | None:
    """Controls and figures that the record tells."""
    draft = image.draft
    text = {
        "seal": "1" if image.sealed else "0",
        "draft": "1" if draft and draft.marked else None,
        "layout": image.layout if image.sealed else None,
        "allocated_bytes": str(image.allocated) if image.sealed else None,
        "root": image.root,
        "map": str(image.map_uuid) if image.map_uuid else None,
    }.get(key)
    return image.xattrs.get(CONTROL + key) if text is None else text.encode()


def _controlled(image: Image, key: str, value: bytes) -> Image:
    if key not in ("draft", "pinned"):
        raise InvalidValue(f"{CONTROL}{key} is not a control that can be set.")
    on = fields.parse("protected", _text(f"{CONTROL}{key}".encode(), value))
    if key == "pinned":
        others = {k: v for k, v in image.xattrs.items() if k != CONTROL + key}
        return replace(image, xattrs={**others, CONTROL + key: b"1"} if on else others)
    if image.draft is None:
        raise InvalidValue(f"{image.id} is {image.status} and has no draft to hold back.")
    return replace(image, draft=replace(image.draft, marked=bool(on)))
