"""Exit codes of the `imagefs` command: the one table from an error's class to the number."""

from __future__ import annotations

from typing import NamedTuple

from imagefs import errors


class Exit(NamedTuple):
    """One row of the table in the README: the number, the errors that give it, what it says."""

    code: int
    raised: tuple[type[BaseException], ...]
    meaning: str


USAGE = 2
BUG = 70
PROBLEM = 17
INTERRUPTED = 130

TABLE = (
    Exit(0, (), "done"),
    Exit(1, (errors.ImagefsError, OSError), "failed for a reason that has no number of its own"),
    Exit(USAGE, (), "wrong command line"),
    Exit(3, (errors.NotFound, FileNotFoundError), "no such image, file or mount"),
    Exit(
        4,
        (errors.Refused, errors.Deactivated, PermissionError),
        "refused: sealed, protected or deactivated, or no permission",
    ),
    Exit(5, (errors.Exists, errors.NotEmpty, FileExistsError), "the name, id or file exists already"),
    Exit(6, (errors.Busy, errors.TooMany), "busy: open for writing, being sealed, mounted"),
    Exit(
        7,
        (errors.InvalidValue, errors.NotSupported, NotADirectoryError, IsADirectoryError),
        "a value, name or operation that is not allowed",
    ),
    Exit(8, (errors.Ambiguous,), "the id prefix or name fits several images"),
    Exit(
        9,
        (errors.SealBlocked, errors.SealCancelled, errors.NotConvertible),
        "not sealed: the draft is blocked or was changed; not converted",
    ),
    Exit(10, (errors.Mismatch,), "killed: the data is not what was declared"),
    Exit(11, (errors.NoSpace, errors.QuotaExceeded), "the disk is full, or a quota"),
    Exit(12, (errors.BackendFailed,), "the backend failed or did not answer"),
    Exit(13, (errors.Damaged, errors.CatalogBehind), "damaged data or catalog; `fsck` found something"),
    Exit(14, (errors.NotARepository,), "not a repository"),
    Exit(15, (errors.NewerVersion,), "the repository was written by a newer imagefs"),
    Exit(16, (errors.TimedOut,), "what was waited for did not come before the deadline"),
    Exit(PROBLEM, (), "`doctor`: something that a mount needs is missing"),
    Exit(32, (errors.MountFailed,), "the mount failed (the number that mount(8) uses)"),
    Exit(BUG, (Exception,), "a bug in imagefs: please report it with the output of `--debug`"),
    Exit(INTERRUPTED, (KeyboardInterrupt,), "interrupted"),
)

_CODES = {raised: row.code for row in TABLE for raised in row.raised}


def code_of(error: BaseException) -> int:
    """The exit code for an error: that of the nearest class in its `__mro__` the table names."""
    return next(_CODES[cls] for cls in type(error).__mro__ if cls in _CODES)
