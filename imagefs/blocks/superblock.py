"""The superblock `imagefs.json`: what kind of repository this is, and who may read and write it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from imagefs.errors import NewerVersion, NotARepository, UnknownFeature
from imagefs.types import BLOCK

OBJECT_NAME = "imagefs.json"
"""Its name in the repository's directory and on the store."""
VERSION = 1
"""The repository format that this imagefs writes."""
RECODE = "recode"
"""The feature of a repository that has, or had, a map of this layout (blocks.recode)."""
FEATURES: frozenset[str] = frozenset({RECODE})
"""Features that this imagefs knows."""
READ_ONLY = "ro:"
"""Prefix of features that need not be known to read, only to write."""
DIGEST = "blake3-160"
SAMPLING = 16
"""One block in so many is in the dedup index: 1.2 % more stored, 1/16 of the index."""

_SAMPLINGS = frozenset(1 << power for power in range(9))
_KEY = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Superblock:
    """Written once when a repository is made; only features and versions ever change."""

    repo: UUID
    created_ns: int
    version: int = VERSION
    min_reader: int = 1
    min_writer: int = 1
    features: tuple[str, ...] = ()
    digest_key: bytes | None = field(default=None, repr=False)
    """32 bytes that key the block digests, so that nobody can make equal ones; None: not keyed."""
    sampling: int = SAMPLING
    """A digest is in the dedup index when its first byte is a multiple of this power of two."""

    @classmethod
    def new(cls, repo: UUID, *, sampling: int = SAMPLING, digest_key: bytes | None = None) -> Superblock:
        """The superblock of a repository made now. `sampling` is a power of two up to 256."""
        superblock = cls(repo=repo, created_ns=time.time_ns(), digest_key=digest_key, sampling=sampling)
        superblock._validate("A new repository")
        return superblock

    @classmethod
    def load(cls, data: bytes, where: str = "The superblock") -> Superblock:
        """The superblock whose JSON text was found at `where`. Who goes on to write calls `check` first.

        Raises NotARepository when it is none, NewerVersion or UnknownFeature when this imagefs must not
        even read the repository.
        """
        try:
            fields = json.loads(data)
            # Before anything else is looked at: a later format may have other fields.
            _require_version(_number(fields["format"]["min_reader"]), "read", where)
            superblock = cls._from_fields(fields)
            identity = (fields["digest"]["alg"], fields["block"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise NotARepository(f"{where} is no imagefs superblock: {error!r}.") from error
        if identity != (DIGEST, BLOCK):
            raise UnknownFeature(f"{where} has blocks of {identity[1]} bytes under {identity[0]}: unknown here.")
        superblock._validate(where)
        superblock.check(write=False, where=where)
        return superblock

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> Superblock:
        form, digest = fields["format"], fields["digest"]
        return cls(
            repo=UUID(fields["repo"]),
            created_ns=_number(fields["created"]),
            version=_number(form["version"]),
            min_reader=_number(form["min_reader"]),
            min_writer=_number(form["min_writer"]),
            features=tuple(str(name) for name in form["features"]),
            digest_key=bytes.fromhex(digest["key"]) if digest["key"] is not None else None,
            sampling=_number(fields["sampling"]),
        )

    def _validate(self, where: str) -> None:
        if self.sampling not in _SAMPLINGS:
            raise NotARepository(f"{where} has a sampling of {self.sampling}: no power of two up to 256.")
        if self.digest_key is not None and len(self.digest_key) != _KEY:
            raise NotARepository(f"{where} has a digest key of {len(self.digest_key)} bytes.")

    def check(self, *, write: bool = True, where: str = "The superblock") -> None:
        """Raises NewerVersion or UnknownFeature when this imagefs must not read it, or `write` it."""
        _require_version(self.min_reader, "read", where)
        unknown = [name for name in self.features if name not in FEATURES]
        if write:
            _require_version(self.min_writer, "write", where)
        else:
            unknown = [name for name in unknown if not name.startswith(READ_ONLY)]
        if unknown:
            raise UnknownFeature(f"{where} uses features that are unknown here: {', '.join(unknown)}.")

    def dump(self) -> bytes:
        """The superblock as JSON text."""
        fields = {
            "format": {
                "version": self.version,
                "min_reader": self.min_reader,
                "min_writer": self.min_writer,
                "features": list(self.features),
            },
            "repo": str(self.repo),
            "digest": {"alg": DIGEST, "key": None if self.digest_key is None else self.digest_key.hex()},
            "block": BLOCK,
            "sampling": self.sampling,
            "created": self.created_ns,
        }
        return json.dumps(fields, indent=2).encode() + b"\n"


def _require_version(needed: int, verb: str, where: str) -> None:
    if needed > VERSION:
        raise NewerVersion(f"{where} needs format {needed} to {verb}; this imagefs has format {VERSION}.")


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no number")
    return value
