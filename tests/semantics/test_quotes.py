"""README and tests say the same: every test here quotes what it proves, and no statement is without one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
README = (HERE.parents[1] / "README.md").read_text()
STATEMENTS = range(1, 17)


def plain(text: str) -> str:
    """In one line, without bold."""
    return " ".join(text.replace("**", "").split())


def section(number: int) -> str:
    """The README's text of S<number>."""
    begin = README.index(f"\n**S{number}. ")
    ends = [README.find(mark, begin + 1) for mark in ("\n**S", "\n### ")]
    return plain(README[begin : min(end for end in ends if end > 0)])


def quotes() -> Iterator[tuple[str, int, str]]:
    """Each (test, statement, text) of this directory; a paragraph of a docstring quotes one statement."""
    for file in sorted(HERE.glob("test_*.py")):
        for node in ast.parse(file.read_text()).body:
            if file == Path(__file__) or not isinstance(node, ast.FunctionDef):
                continue
            if node.name.startswith("test_"):
                for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
                    quoted = re.match(r"S(\d+): (.+)", paragraph, re.DOTALL)
                    assert quoted, f"{file.name}::{node.name} does not say what it proves: {paragraph!r}"
                    yield f"{file.name}::{node.name}", int(quoted[1]), plain(quoted[2])


@pytest.mark.parametrize(("test", "number", "quote"), list(quotes()))
def test_a_quote_is_in_the_readme(test: str, number: int, quote: str) -> None:
    assert quote in section(number), f"{test} quotes what S{number} does not say"


@pytest.mark.parametrize("number", STATEMENTS)
def test_every_sentence_has_a_test(number: int) -> None:
    left = re.sub(rf"^S{number}\. ", "", section(number))
    if number == 8:
        left = re.sub(r"\| attribute .*\|", "", left)  # the table is its first sentence in detail
    for _, _, quote in sorted((q for q in quotes() if q[1] == number), key=lambda q: -len(q[2])):
        left = left.replace(quote, "\n")
    untested = [piece.strip() for piece in left.split("\n") if re.search(r"\w.*\.", piece)]
    title = section(number).split(". ")[1]
    assert not [piece for piece in untested if piece != f"{title}."], untested


def test_there_is_no_statement_beyond() -> None:
    assert [int(number) for number in re.findall(r"\n\*\*S(\d+)\. ", README)] == [*STATEMENTS]
