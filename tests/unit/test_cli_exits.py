"""Exit codes: every error has one, the most specific, and the README has the same table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from imagefs import errors
from imagefs.cli import exits

README = Path(__file__).parents[2] / "README.md"


def subclasses(cls: type) -> list[type]:
    return [cls, *(deeper for direct in cls.__subclasses__() for deeper in subclasses(direct))]


def test_the_readme_has_the_table() -> None:
    section = README.read_text().partition("### Exit codes")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", section, re.MULTILINE)
    assert rows == [(str(row.code), row.meaning) for row in exits.TABLE]


def test_codes_are_distinct_and_fit_a_status() -> None:
    codes = [row.code for row in exits.TABLE]
    assert len(set(codes)) == len(codes)
    assert all(0 <= code < 256 for code in codes)


@pytest.mark.parametrize("error", subclasses(errors.ImagefsError), ids=lambda cls: cls.__name__)
def test_every_error_has_a_code_other_than_success_and_bug(error: type[errors.ImagefsError]) -> None:
    made = error.__new__(error)
    assert exits.code_of(made) not in (0, exits.USAGE, exits.BUG)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.NotFound("x"), 3),
        (errors.Stale("x"), 3),
        (errors.Sealed("x"), 4),
        (errors.Protected("x"), 4),
        (errors.NameTooLong("x"), 7),
        (errors.Mismatch("x"), 10),
        (errors.BackendTimeout("x"), 12),
        (errors.CatalogDamaged("x"), 13),
        (errors.UnknownFeature("x"), 15),
        (errors.MountFailed("x"), 32),
        (FileNotFoundError(), 3),
        (IsADirectoryError(), 7),
        (OSError(), 1),
        (ValueError(), exits.BUG),
        (KeyboardInterrupt(), 130),
    ],
    ids=repr,
)
def test_the_nearest_class_counts(error: BaseException, code: int) -> None:
    assert exits.code_of(error) == code
