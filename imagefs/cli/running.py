"""What is mounted: one small file in the repository for each mount, `run/<session>.json`.

A file counts as long as its session's lock is held, so what a killed daemon leaves misleads nobody.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from imagefs.images.session import is_dead


@dataclass(frozen=True, kw_only=True)
class Running:
    """One mount's daemon."""

    session: str
    mountpoint: str
    transport: str
    """kernel or fusepy."""
    worker_pid: int
    supervisor_pid: int
    """0 when nobody supervises the worker."""
    started_ns: int = field(default_factory=time.time_ns)
    incarnation: int = 0
    """How many workers this mount has had before."""
    options: dict[str, Any] = field(default_factory=dict)
    log: str | None = None

    def write(self, repository: Path) -> None:
        """Records it, in one step."""
        target = _path(repository, self.session)
        temporary = target.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(asdict(self), indent=2) + "\n")
        temporary.rename(target)

    def remove(self, repository: Path) -> None:
        """The mount has ended."""
        _path(repository, self.session).unlink(missing_ok=True)


def running(repository: Path) -> list[Running]:
    """The repository's mounts whose daemons live, oldest first. Removes the records of those that do not."""
    found = []
    for path in (repository / "run").glob("*.json"):
        try:
            record = Running(**json.loads(path.read_text()))
            dead = is_dead(repository / "sessions", UUID(record.session))
        except (OSError, ValueError, TypeError):  # removed meanwhile, or by another version
            continue
        if dead:
            path.unlink(missing_ok=True)
        else:
            found.append(record)
    return sorted(found, key=lambda record: record.started_ns)


def _path(repository: Path, session: str) -> Path:
    return repository / "run" / f"{session}.json"
