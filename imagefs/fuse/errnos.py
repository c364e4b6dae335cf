"""Which error number a caller of the filesystem gets for which error. The only such table."""

from __future__ import annotations

import errno

from imagefs import errors

ERRNOS: dict[type[BaseException], int] = {
    errors.NotFound: errno.ENOENT,
    # Not ENOENT: after ESTALE the kernel walks the path again, and the user gets what is true now.
    errors.Stale: errno.ESTALE,
    errors.AttributeMissing: errno.ENODATA,
    errors.NoData: errno.ENXIO,
    errors.Exists: errno.EEXIST,
    errors.NotEmpty: errno.ENOTEMPTY,
    errors.NotADirectory: errno.ENOTDIR,
    errors.IsADirectory: errno.EISDIR,
    errors.Ambiguous: errno.EINVAL,
    # EPERM, not EACCES: no permission bit and no other user would make it possible (S4). Sealed and
    # Protected follow it.
    errors.Refused: errno.EPERM,
    # EACCES: it depends on who asks (S7).
    errors.Deactivated: errno.EACCES,
    errors.CrossDirectory: errno.EXDEV,
    errors.InvalidValue: errno.EINVAL,
    errors.NameTooLong: errno.ENAMETOOLONG,
    errors.NotText: errno.EILSEQ,
    errors.NotSupported: errno.EOPNOTSUPP,
    errors.Busy: errno.EBUSY,
    # What open(2) and setxattr(2) name for a limit on a count. ENOSPC would send people to look at the
    # disk, EMFILE at their own descriptors.
    errors.TooMany: errno.EDQUOT,
    # EINTR and ETIMEDOUT are not what callers of a filesystem expect.
    errors.TimedOut: errno.EIO,
    # Both mean: not now, something else has to happen to the draft first.
    errors.SealCancelled: errno.EBUSY,
    errors.SealBlocked: errno.EBUSY,
    # As the kernel's own filesystems say of a checksum that differs; EIO would accuse the disk.
    errors.Mismatch: errno.EBADMSG,
    # Sealing stores such blocks again by itself; it gets here only when it has given up.
    errors.PacksGone: errno.EIO,
    errors.NoSpace: errno.ENOSPC,
    errors.QuotaExceeded: errno.EDQUOT,
    # A timeout as well (S14): ETIMEDOUT is nothing that readers of a file expect.
    errors.BackendFailed: errno.EIO,
    # Nobody converts through a mount.
    errors.NotConvertible: errno.EINVAL,
    errors.Damaged: errno.EIO,
    errors.NotARepository: errno.EIO,
    errors.NewerVersion: errno.EIO,
    # Reading is safe, writing would lose data.
    errors.CatalogBehind: errno.EROFS,
    errors.LogGap: errno.EIO,
    errors.MountFailed: errno.EIO,
    MemoryError: errno.ENOMEM,
}


def errno_of(error: BaseException) -> int | None:
    """The (positive) error number for an error; an OSError's own. None for what nobody should raise."""
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    for kind in type(error).__mro__:
        if kind in ERRNOS:
            return ERRNOS[kind]
    return None
