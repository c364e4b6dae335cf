"""Limits on what a project, or all of them together, may store."""

from __future__ import annotations

import builtins
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NamedTuple

from imagefs.catalog import schema
from imagefs.catalog.usage import Figures, Usage, charge_of
from imagefs.errors import QuotaExceeded
from imagefs.types import Image

if TYPE_CHECKING:
    from imagefs.catalog.env import Environment

_ALL = b"all"
_OWNER = b"o"


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes; None: no limit."""

    logical: int | None = None
    """Of the sizes of sealed images, as readers see them."""
    unique: int | None = None
    """Of what sealing them added to the store."""


class Quota(NamedTuple):
    """One row: who, what is allowed, what is used."""

    owner: str | None
    """The project; None for images without one."""
    total: bool
    """All projects together; `owner` says nothing then."""
    limits: Limits
    used: Figures


class Quotas:
    """Each method is one transaction, or joins the thread's open one.

    A limit below what is stored already harms nothing: it only refuses more.
    """

    def __init__(self, env: Environment, usage: Usage) -> None:
        self._env = env
        self._usage = usage
        self._rows = env.table(schema.QUOTA.name)

    def set(self, owner: str | None, limits: Limits, *, total: bool = False) -> None:
        """Sets the limits of a project (None: of images without one), or the total ones."""
        with self._env.write() as txn:
            value = {"owner": owner, **asdict(limits)}
            txn.put(_key(owner, total=total), json.dumps(value).encode(), db=self._rows)

    def delete(self, owner: str | None, *, total: bool = False) -> bool:
        """Lifts them; False if there were none."""
        with self._env.write() as txn:
            return txn.delete(_key(owner, total=total), db=self._rows)

    def get(self, owner: str | None, *, total: bool = False) -> Quota | None:
        """The limits and what is used of them; None where nothing is limited."""
        with self._env.read() as txn:
            raw = txn.get(_key(owner, total=total), db=self._rows)
            return self._quota(raw, total=total) if raw is not None else None

    def list(self) -> list[Quota]:
        """All limits, the total ones first."""
        with self._env.read() as txn:
            return [self._quota(raw, total=key == _ALL) for key, raw in txn.cursor(db=self._rows)]

    def any(self) -> bool:
        """Whether anything is limited."""
        with self._env.read() as txn:
            return bool(txn.stat(db=self._rows)["entries"])

    def require_room(self, owner: str | None, own: int = 0, everybody: int = 0) -> None:
        """Returns if this project may come to have `own` logical bytes more than are counted for it, and all
        together `everybody`; QuotaExceeded, also where the unique bytes are used up, as those of data that is
        still being written cannot be known."""
        with self._env.read():
            for quota in self._of(owner):
                limits, used = quota.limits, quota.used
                more = everybody if quota.total else own
                # Not one byte fits into a full one, also when nobody knows yet how many will come.
                if limits.logical is not None and used.logical + max(more, 1) > limits.logical:
                    raise _exceeded(quota, "logical", used.logical, more)
                if limits.unique is not None and used.unique >= limits.unique:
                    raise _exceeded(quota, "unique", used.unique, 0)

    def admit(self, old: Image | None, new: Image | None) -> None:
        """Checks a record that comes or changes, inside its transaction. QuotaExceeded when it would count for
        more than before and for more than is allowed."""
        before, after = charge_of(old), charge_of(new)
        if after is None or after == before:
            return
        for quota in self._of(after.owner):
            own = before is not None and (quota.total or before.owner == after.owner)
            logical = after.size - (before.size if before is not None and own else 0)
            limits, used = quota.limits, quota.used
            if limits.logical is not None and logical > 0 and used.logical + logical > limits.logical:
                raise _exceeded(quota, "logical", used.logical, logical)
            if limits.unique is None or own:
                continue  # another map of an image that counts already: the same bytes laid out anew
            # Of all together: what the store has by now, this image's own packs among it.
            known = quota.total or self._usage.charged(after.owner, after.map_id)
            unique = 0 if known else self._usage.added(after.map_id)
            grown = quota.total and self._usage.added(after.map_id) > 0
            if (unique > 0 or grown) and used.unique + unique > limits.unique:
                raise _exceeded(quota, "unique", used.unique, unique)

    def _of(self, owner: str | None) -> builtins.list[Quota]:
        """The limits that hold for a project."""
        if not self.any():
            return []
        found = (self.get(None, total=True), self.get(owner))
        return [quota for quota in found if quota is not None]

    def _quota(self, raw: bytes, *, total: bool) -> Quota:
        value = json.loads(raw)
        owner = value.pop("owner")
        used = self._usage.of_all() if total else self._usage.of_owner(owner)
        return Quota(owner, total, Limits(**value), used)


def _key(owner: str | None, *, total: bool) -> bytes:
    return _ALL if total else _OWNER + schema.text(owner)


def _exceeded(quota: Quota, what: str, used: int, more: int) -> QuotaExceeded:
    whose = "all projects together" if quota.total else f"project {quota.owner}" if quota.owner else "no project"
    wanted = f", {more} more are needed" if more else ""
    limit = getattr(quota.limits, what)
    return QuotaExceeded(f"The quota of {whose} is {limit} {what} bytes: {used} are used{wanted}.")
