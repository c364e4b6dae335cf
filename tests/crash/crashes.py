"""Crashes on request, from a test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[2]


class Zygote:
    """The process of zygote.py. Each call is one crash below `path` and the look at what it left."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.zygote"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def __enter__(self) -> Zygote:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=70)

    def crash(self, last: int | None, *, power: bool = False, seed: int | None = None) -> dict[str, Any]:
        """Ends before step `last`, without it not at all."""
        return self._ask(last=last, power=power, seed=seed, after_s=None)

    def kill(self, after_s: float) -> dict[str, Any]:
        """SIGKILL after that time."""
        return self._ask(last=None, power=False, seed=None, after_s=after_s)

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"path": str(self._path / "crash"), **request}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the zygote has died"
        return json.loads(line)
