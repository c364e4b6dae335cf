"""What commands print."""

from __future__ import annotations

import json

import pytest

from imagefs.cli import output, progress, tables


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1 << 30, "1.0 GiB"),
        (3 << 50, "3.0 PiB"),
    ],
)
def test_sizes(size: int | None, text: str) -> None:
    assert output.size_text(size) == text


def test_times() -> None:
    assert output.time_text(0) == "-"
    assert output.time_text(1_000_000_000 * 86400) == "1970-01-02T00:00:00Z"


def test_a_table_in_a_pipe_is_aligned_and_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    long = "n" * 500
    tables.print_table(("name", "size"), [(long, "1 B"), ("b", "10 KiB")], right=("size",))
    header, first, second = capsys.readouterr().out.splitlines()
    assert header == f"{'name':500}  {'size':>6}"
    assert first == f"{long}     1 B"
    assert second == f"{'b':500}  10 KiB"


def test_an_empty_table_is_its_header(capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_table(("id", "name"), [])
    assert capsys.readouterr().out == "id  name\n"


def test_control_characters_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_table(("name",), [("a\x1b[31mb\nc",)])
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert printed.count("\n") == 2


def test_json_keeps_names_readable(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json({"name": "Bär"})
    printed = capsys.readouterr().out
    assert "Bär" in printed
    assert json.loads(printed) == {"name": "Bär"}


def test_progress_without_a_terminal_is_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "REPORT_EVERY_S", 0.0)
    with progress.progress("copying", 2048) as advance:
        advance(1024)
        advance(1024)
    assert capsys.readouterr().err == "copying: 1.0 KiB of 2.0 KiB\ncopying: 2.0 KiB of 2.0 KiB\n"
