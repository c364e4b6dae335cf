"""Which error number callers get."""

from __future__ import annotations

import errno
import inspect

import pytest

from imagefs import errors
from imagefs.fuse.errnos import errno_of

EVERY = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.ImagefsError) and kind is not errors.ImagefsError
]


def made(kind: type[errors.ImagefsError]) -> errors.ImagefsError:
    return errors.PacksGone(frozenset({1})) if kind is errors.PacksGone else kind("A sentence.")


@pytest.mark.parametrize("kind", EVERY)
def test_every_error_has_a_number(kind: type[errors.ImagefsError]) -> None:
    assert errno_of(made(kind)) in errno.errorcode


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (errors.NotFound(), errno.ENOENT),
        (errors.Stale(), errno.ESTALE),
        (errors.AttributeMissing(), errno.ENODATA),
        (errors.NoData(), errno.ENXIO),
        (errors.Sealed(), errno.EPERM),
        (errors.Protected(), errno.EPERM),
        (errors.Deactivated(), errno.EACCES),
        (errors.NameTooLong(), errno.ENAMETOOLONG),
        (errors.NotText(), errno.EILSEQ),
        (errors.BackendTimeout(), errno.EIO),
        (errors.CatalogDamaged(), errno.EIO),
        (errors.NoSpace(), errno.ENOSPC),
        (OSError(errno.EFBIG, "too large"), errno.EFBIG),
        (FileNotFoundError(errno.ENOENT, "gone"), errno.ENOENT),
        (OSError("without a number"), errno.EIO),
        (MemoryError(), errno.ENOMEM),
        (ZeroDivisionError(), None),
    ],
)
def test_numbers(error: BaseException, number: int | None) -> None:
    assert errno_of(error) == number
