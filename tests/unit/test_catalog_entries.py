"""Names as file names in by-name/ (S6)."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.catalog import entries
from imagefs.errors import InvalidValue, NameTooLong, NotText

ID = UUID("0123abcd-0000-4000-8000-000000000000")


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("debian-12.qcow2", b"debian-12.qcow2"),
        ("50% off", b"50%25 off"),
        ("a/b", b"a%2Fb"),
        ("a%2Fb", b"a%252Fb"),
        (".", b"%2E"),
        ("..", b"%2E%2E"),
        ("...", b"..."),
        (".hidden", b".hidden"),
        ("tab\there\n", b"tab%09here%0A"),
        ("\x7f\x85", b"%7F%C2%85"),
        ("Grüße 日本 🐧", "Grüße 日本 🐧".encode()),
        ("nul\0", b"nul%00"),
    ],
)
def test_a_name_has_one_spelling(name: str, entry: bytes) -> None:
    assert entries.encode(name) == entry
    assert entries.decode(entry) == name


@pytest.mark.parametrize("entry", [b"50%", b"%41", b"a%2fb", b"%2E%2E%2E", b"%2Ehidden", b"%", b"x%2", b""])
def test_what_no_name_spells_is_refused(entry: bytes) -> None:
    with pytest.raises(InvalidValue):
        entries.decode(entry)


@pytest.mark.parametrize("entry", [b"\xff", b"a%FF", b"a%C2", "\ud800".encode("utf-8", "surrogatepass")])
def test_what_is_not_text_is_refused(entry: bytes) -> None:
    with pytest.raises(NotText):
        entries.decode(entry)


def test_a_name_that_is_not_text_is_refused() -> None:
    with pytest.raises(NotText):
        entries.encode("a\ud800")


def test_a_file_name_is_at_most_255_bytes() -> None:
    assert entries.decode(b"x" * 255) == "x" * 255
    with pytest.raises(NameTooLong):
        entries.decode(b"x" * 256)


@given(st.text(min_size=1, max_size=60))
def test_names_come_back(name: str) -> None:
    entry = entries.encode(name)
    assert b"/" not in entry and b"\0" not in entry and entry not in (b"", b".", b"..")
    if len(entry) <= 255:
        assert entries.decode(entry) == name


@given(st.binary(min_size=1, max_size=12))
def test_file_names_come_back_or_are_refused(entry: bytes) -> None:
    try:
        name = entries.decode(entry)
    except InvalidValue:
        return
    assert entries.encode(name) == entry


def test_a_taken_entry_gets_the_id() -> None:
    assert entries.disambiguated(b"debian", ID) == b"debian~0123abcd"
    assert entries.disambiguated(b"debian", ID, 16) == b"debian~0123abcd00004000"


@given(st.text(min_size=1, max_size=300))
def test_a_cut_entry_is_whole_text(name: str) -> None:
    entry = entries.disambiguated(entries.encode(name), ID)
    assert len(entry) <= 255 and entry.endswith(b"~0123abcd")
    kept = entry.removesuffix(b"~0123abcd")
    assert entries.encode(name).startswith(kept)
    if kept and len(kept) < 240:
        assert name.startswith(entries.decode(kept)) or name in (".", "..")


@pytest.mark.parametrize("pad", range(230, 260))
def test_no_escape_is_split(pad: int) -> None:
    kept = entries.disambiguated(b"x" * pad + b"%C2%85" * 5, ID).removesuffix(b"~0123abcd")
    entries.decode(kept)
    assert len(kept) > 240 - 1 or pad > 246


def test_what_fits_is_not_cut() -> None:
    assert entries.disambiguated(b"x%", ID) == b"x%~0123abcd"
