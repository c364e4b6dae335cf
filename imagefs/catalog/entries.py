"""Names of images as file names in by-name/ (S6): pure functions.

`/`, `%` and control characters are written as `%` and two hex digits for each of their UTF-8 bytes, and so
are the dots of `.` and `..`. Every name has exactly one spelling, and every file name that is such a
spelling has exactly one name; other file names cannot be given to an image.
"""

from __future__ import annotations

import re
from uuid import UUID

from imagefs.errors import InvalidValue, NameTooLong, NotText

ENTRY_MAX = 255
"""Bytes of a file name on Linux."""

_SPECIAL = re.compile(r"[%/\x00-\x1f\x7f-\x9f]")
_ESCAPES = re.compile(r"(?:%[0-9A-F]{2})+")
_TORN = re.compile(rb"(?:%C2)?(?:%[0-9A-F]?)?$")
"""The beginning of an escape, or of the two of a control character above 127, at an end."""


def encode(name: str) -> bytes:
    """The file name that spells `name`; may be longer than 255 bytes (see `disambiguated`), empty for "".

    Raises NotText for a name that is no Unicode text (lone surrogates).
    """
    if name in (".", ".."):
        return b"%2E" * len(name)
    try:
        return _SPECIAL.sub(lambda found: _escape(found[0]), name).encode()
    except UnicodeEncodeError:
        raise NotText(f"The name {name!r} is not Unicode text.") from None


def decode(entry: bytes) -> str:
    """The name that a user means by a file name: the reverse of `encode`.

    Raises NotText unless it is UTF-8, NameTooLong above 255 bytes, and InvalidValue when it spells no name: a
    `%` that is not the beginning of an escape (write `%25`), an escape of what needs none, an empty name.
    """
    if len(entry) > ENTRY_MAX:
        raise NameTooLong(f"A file name of {len(entry)} bytes is longer than {ENTRY_MAX}.")
    try:
        text = entry.decode()
        name = _ESCAPES.sub(lambda found: bytes.fromhex(found[0].replace("%", "")).decode(), text)
    except UnicodeDecodeError:
        raise NotText(f"The file name {entry!r} is not UTF-8 text.") from None
    if not name or encode(name) != entry:
        raise InvalidValue(f"{text!r} spells no name: `%`, `/` and control characters are percent-encoded in by-name/.")
    return name


def disambiguated(entry: bytes, image_id: UUID, digits: int = 8) -> bytes:
    """`<entry>~<first hex digits of the id>`, at most 255 bytes: cut where no character or escape is
    split."""
    suffix = b"~" + image_id.hex[:digits].encode()
    kept = entry[: ENTRY_MAX - len(suffix)]
    if len(kept) < len(entry):
        kept = _TORN.sub(b"", kept.decode(errors="ignore").encode(), count=1)
    return kept + suffix


def _escape(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode())
