"""Every error imagefs raises, named after what happened. No errno and no HTTP status here:
each adapter translates with one table of its own, looked up along the class's `__mro__`.

Messages are whole sentences for people and name the image, object or path they are about.
"""

from __future__ import annotations


class ImagefsError(Exception):
    """Base of all; never raised itself."""


# -- what was asked for ------------------------------------------------------------------------


class NotFound(ImagefsError):
    """No such image, entry, object or attribute holder."""


class Stale(NotFound):
    """An inode number that the catalog no longer has."""


class MapGone(NotFound):
    """A map that was replaced by another one of the same bytes, or whose image has ended."""


class NoData(ImagefsError):
    """No data (or no hole) at or behind the offset that was asked about."""


class AttributeMissing(NotFound):
    """The object exists, the extended attribute does not."""


class Exists(ImagefsError):
    """The name or id is taken."""


class NotEmpty(ImagefsError):
    """The directory still has `data` or other files."""


class NotADirectory(ImagefsError):
    """A path goes through something that is not a directory."""


class IsADirectory(ImagefsError):
    """A directory was given where a file was needed."""


class Ambiguous(ImagefsError):
    """An id prefix or name fits several images; the message lists them."""


# -- what is refused ---------------------------------------------------------------------------


class Refused(ImagefsError):
    """The rules of the store forbid it, whoever asks."""


class Sealed(Refused):
    """Sealed data never changes under its id (S4)."""


class Protected(Refused):
    """The image is protected against deletion."""


class Deactivated(ImagefsError):
    """The image is deactivated; only root opens it (S7)."""


class CrossDirectory(ImagefsError):
    """A rename between places that cannot exchange files."""


class InvalidValue(ImagefsError):
    """A value that the field, state or operation does not allow; nothing was changed."""


class NameTooLong(InvalidValue):
    """A name longer than 255 bytes, or a value longer than its field."""


class NotText(InvalidValue):
    """Bytes that are not UTF-8 where text is needed."""


class NotSupported(ImagefsError):
    """The operation does not exist here (xattr namespaces, fallocate modes, links)."""


class Busy(ImagefsError):
    """Open for writing, being sealed, or mounted by somebody else."""


class TooMany(ImagefsError):
    """A limit on a count was reached."""


class TimedOut(ImagefsError):
    """A wait ended at its deadline; what was waited for may still come."""


# -- sealing -----------------------------------------------------------------------------------


class SealCancelled(ImagefsError):
    """The draft changed, ended or went to another sealer while it was being sealed."""


class SealBlocked(ImagefsError):
    """The draft may not be sealed; the message is the reason that `seal_blocked` shows."""


class Mismatch(ImagefsError):
    """Declared size or hash and the data differ; the image is `killed`."""


class PacksGone(ImagefsError):
    """Packs that a new map hits are no longer there; their blocks must be stored again."""

    def __init__(self, packs: frozenset[int]) -> None:
        super().__init__(f"packs {sorted(packs)} are gone")
        self.packs = packs


# -- storage -----------------------------------------------------------------------------------


class NoSpace(ImagefsError):
    """The disk under the repository is full, or would be after sealing what is written (S15)."""


class QuotaExceeded(ImagefsError):
    """A project, or all together, would store more than its quota; what is stored is not touched."""


class BackendFailed(ImagefsError):
    """A store could not do what was asked, for a reason that may pass."""


class BackendTimeout(BackendFailed):
    """A store did not answer before the deadline (S14)."""


class Damaged(ImagefsError):
    """Stored bytes do not verify; never handed on (S11)."""


class NotConvertible(ImagefsError):
    """The image stays as it is: it has nothing to convert, or it is not worth it; the message says which."""


class CannotRemake(Damaged):
    """Stored bytes are whole, but this machine's encoder does not make the file from them."""


# -- repositories ------------------------------------------------------------------------------


class NotARepository(ImagefsError):
    """The directory is no imagefs repository."""


class NewerVersion(ImagefsError):
    """Written by a newer imagefs than this one can read or write."""


class UnknownFeature(NewerVersion):
    """A feature bit that this version does not know."""


class CatalogDamaged(Damaged):
    """The LMDB environment is truncated or unreadable."""


class CatalogBehind(ImagefsError):
    """The catalog is older than its log on the store: writing now would lose data."""


class LogGap(ImagefsError):
    """The change log no longer reaches back that far: whatever was cached must be dropped."""


class MountFailed(ImagefsError):
    """The kernel or fusermount3 refused the mount; the message says why and what to do."""
