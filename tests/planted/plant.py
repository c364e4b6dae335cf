"""Plants faults in a copy of the sources, one at a time, and says which test catches each.

    scripts/plant-faults [NAME ...]

A suite that stays green with a fault in the code does not test what it seems to. The faults are in faults.toml;
exit status 1 when one escaped, when an edit no longer applies, or when the tests fail without any fault.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
COPIED = ("imagefs", "tests", "setup.cfg", "pyproject.toml")
PATIENCE_S = 300
ESCAPED = "ESCAPED"
_FAILED = re.compile(r"^(?:FAILED|ERROR) (tests/.+?)(?: - .*)?$", re.MULTILINE)


@dataclass(frozen=True)
class Fault:
    """One fault: its edits of the source, and the tests that should catch it."""

    name: str
    what: str
    tests: list[str]
    edit: list[dict[str, str]]


@dataclass(frozen=True)
class Outcome:
    """What came of it."""

    fault: Fault
    caught: str
    """The first test that failed, ESCAPED, or what went wrong."""
    ok: bool
    seconds: float


def faults(names: list[str]) -> list[Fault]:
    """Those of these names, in the order of the file; all without names."""
    given: list[dict[str, Any]] = tomllib.loads((Path(__file__).parent / "faults.toml").read_text())["fault"]
    known = [Fault(**one) for one in given]
    unknown = set(names) - {fault.name for fault in known}
    if unknown:
        raise SystemExit(f"There is no fault {', '.join(sorted(unknown))}.")
    return [fault for fault in known if not names or fault.name in names]


def copy_to(tree: Path) -> None:
    """The sources and the tests, without what Python made of them."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)


def plant(fault: Fault, tree: Path) -> str | None:
    """Makes the edits; what is wrong with them, None if nothing is."""
    for edit in fault.edit:
        path = tree / edit["file"]
        text = path.read_text()
        if text.count(edit["search"]) != 1:
            return f"no longer applies: {edit['file']} has {text.count(edit['search'])} times {edit['search'][:50]!r}"
        path.write_text(text.replace(edit["search"], edit["replace"]))
        compile(path.read_text(), str(path), "exec")
    return None


def run(tests: list[str], tree: Path) -> tuple[int, str]:
    """Status and output of pytest, which stops at the first failure."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
    command += ["-p", "tests.planted.profile", "--timeout", str(PATIENCE_S // 2), *tests]
    environment = os.environ | {"IMAGEFS_HYPOTHESIS": "planted", "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTEST_CURRENT_TEST", None)
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return -1, f"FAILED {tests[0]} - no end within {PATIENCE_S} s"
    return done.returncode, done.stdout + done.stderr


def judged(fault: Fault) -> Outcome:
    """Plants one fault and runs its tests."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="planted-") as directory:
        tree = Path(directory)
        copy_to(tree)
        wrong = plant(fault, tree)
        if wrong is not None:
            return Outcome(fault, wrong, ok=False, seconds=0.0)
        status, output = run(fault.tests, tree)
    caught = _FAILED.search(output)
    seconds = time.monotonic() - begun
    if status == 0:
        return Outcome(fault, ESCAPED, ok=False, seconds=seconds)
    if caught is None:
        return Outcome(fault, f"pytest ended with {status}: {output[-300:]}", ok=False, seconds=seconds)
    return Outcome(fault, caught[1].removeprefix("tests/"), ok=True, seconds=seconds)


def sound(tests: list[str]) -> str | None:
    """What fails without any fault, None if nothing does."""
    with tempfile.TemporaryDirectory(prefix="planted-") as directory:
        copy_to(Path(directory))
        status, output = run(tests, Path(directory))
    return output if status else None


def main(names: list[str]) -> int:
    """Prints the table; the exit status."""
    chosen = faults(names)
    failing = sound(sorted({test for fault in chosen for test in fault.tests}))
    if failing is not None:
        print(failing)
        print("The tests fail without any fault: nothing can be said about those that are planted.")
        return 1
    outcomes = []
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for outcome in pool.map(judged, chosen):
            print(f"{outcome.fault.name:20} {outcome.caught:70} {outcome.seconds:4.0f} s", flush=True)
            outcomes.append(outcome)
    bad = [outcome for outcome in outcomes if not outcome.ok]
    print(f"{len(outcomes) - len(bad)} of {len(outcomes)} faults are caught.")
    for outcome in bad:
        print(f"{outcome.fault.name} ({outcome.fault.what}): {outcome.caught}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
