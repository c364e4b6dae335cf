"""Filters and orders over the images, answered from indexes.

A condition is a set of index prefixes; an image meets it if one of them followed by (created, id) is a key.
So testing an image against a condition is a look-up of 0.4 us, whatever its record holds, and no JSON is
parsed for images that are not returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from uuid import UUID

from imagefs.catalog import records, schema
from imagefs.catalog.env import Environment, Txn
from imagefs.catalog.indexes import property_key, size_key, terms
from imagefs.errors import InvalidValue, NotFound
from imagefs.types import Image, Status, Visibility

FEW = 500
"""A condition that so few images meet is read whole and sorted in memory; otherwise the order's index is
walked."""

Term = tuple[str, bytes]
"""(index, prefix)."""
Found = tuple[bytes, bytes]
"""(sort key, id)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """All conditions must hold; None means any. A tuple means one of these values."""

    status: Status | tuple[Status, ...] | None = None
    name: str | tuple[str, ...] | None = None
    owner: str | tuple[str, ...] | None = None
    visibility: Visibility | tuple[Visibility, ...] | None = None
    disk_format: str | tuple[str, ...] | None = None
    container_format: str | tuple[str, ...] | None = None
    root: str | None = None
    """Images whose blocks have this BLAKE3 root."""
    map_id: int | None = None
    """Images whose data is this map."""
    protected: bool | None = None
    hidden: bool | None = None
    tags: tuple[str, ...] = ()
    """All of them."""
    properties: Mapping[str, str] = field(default_factory=dict)
    size_min: int | None = None
    size_max: int | None = None
    visible_to: str | None = None
    """Owned by this project, or public, or community."""
    sort: str = "created_at"
    """name status container_format disk_format size id created_at updated_at. None sorts first; ties by
    age, then id."""
    descending: bool = True
    marker: UUID | None = None
    """Last id of the page before."""
    limit: int = 1000


_BY_TEXT = {
    "status": schema.I_STATUS.name,
    "name": schema.I_NAME.name,
    "owner": schema.I_OWNER.name,
    "visibility": schema.I_VISIBILITY.name,
    "disk_format": schema.I_DISK.name,
    "container_format": schema.I_CONTAINER.name,
    "root": schema.I_ROOT.name,
}
_ORDERS = {
    "name": schema.I_NAME.name,
    "status": schema.I_STATUS.name,
    "container_format": schema.I_CONTAINER.name,
    "disk_format": schema.I_DISK.name,
    "size": schema.I_SIZE.name,
    "created_at": schema.I_CREATED.name,
    "updated_at": schema.I_UPDATED.name,
}


class Finder:
    """Runs queries inside one read transaction each."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._images = env.table(schema.IMAGES.name)
        self._tables = {index.name: env.table(index.name) for index in schema.INDEXES}

    def page(self, query: Query) -> list[Image]:
        """The records of one page. NotFound for a marker that is no image, InvalidValue for an unknown
        order."""
        if query.sort != "id" and query.sort not in _ORDERS:
            raise InvalidValue(f"Images cannot be sorted by {query.sort!r}.")
        with self._env.read() as txn:
            after = self._position(txn, query)
            conditions, forbidden = _conditions(query)
            few = self._fewest(txn, conditions)
            if few is None:
                found = self._walk(txn, query, after)
            else:
                found = self._sorted(txn, query, few, after)
            accepted = self._accept(txn, found, query, conditions, forbidden)
            return [records.decode(raw) for raw in islice(accepted, query.limit)]

    def with_term(self, index: str, prefix: bytes) -> list[UUID]:
        """Ids under one index prefix, oldest first."""
        with self._env.read() as txn:
            return [UUID(bytes=end[8:]) for end in self._ends(txn, index, prefix)]

    def _ends(self, txn: Txn, index: str, prefix: bytes) -> Iterator[bytes]:
        """(created, id) of the keys that are `prefix` and these 24 bytes."""
        cursor = txn.cursor(db=self._tables[index])
        if cursor.set_range(prefix):
            for key in cursor.iternext(keys=True, values=False):
                if not key.startswith(prefix):
                    return
                yield key[len(prefix) :]

    def _fewest(self, txn: Txn, conditions: list[list[Term]]) -> list[bytes] | None:
        """The (created, id) that meet the most selective condition, None if even that one has many."""
        best: list[bytes] | None = None
        for condition in conditions:
            most = FEW if best is None else len(best)
            ends = list(islice((end for term in condition for end in self._ends(txn, *term)), most + 1))
            if len(ends) <= most:
                best = ends
        return best

    def _sorted(self, txn: Txn, query: Query, ends: list[bytes], after: Found | None) -> Iterator[Found]:
        """The few candidates in order, from the marker on."""
        key = _sort_key(query.sort)
        raws = ((end, txn.get(end[8:], db=self._images)) for end in set(ends))
        found = sorted(((key(records.decode(raw)), end[8:]) for end, raw in raws if raw), reverse=query.descending)
        for item in found:
            if after is None or (item < after if query.descending else item > after):
                yield item

    def _walk(self, txn: Txn, query: Query, after: Found | None) -> Iterator[Found]:
        """Everything in order, from the marker on."""
        by_id = query.sort == "id"
        cursor = txn.cursor(db=self._images if by_id else self._tables[_ORDERS[query.sort]])
        if after is not None:
            # A marker's key is there, since it was looked up in this transaction.
            cursor.set_key(after[0])
            there = cursor.prev() if query.descending else cursor.next()
        else:
            there = cursor.last() if query.descending else cursor.first()
        if there:
            for key in (cursor.iterprev if query.descending else cursor.iternext)(keys=True, values=False):
                yield key, key[-16:]

    def _accept(
        self,
        txn: Txn,
        found: Iterable[Found],
        query: Query,
        conditions: list[list[Term]],
        forbidden: list[Term],
    ) -> Iterator[bytes]:
        """The rows of those that meet every condition."""
        sized = query.size_min is not None or query.size_max is not None
        low = 0 if query.size_min is None else query.size_min
        high = 1 << 63 if query.size_max is None else query.size_max
        for _, image_id in found:
            raw = txn.get(image_id, db=self._images)
            if raw is None:
                continue
            head = records.attrs(raw)
            end = schema.U64.pack(head.created_at) + image_id
            if (
                head.status_code != _DELETED
                and (not sized or low <= head.size_or_none <= high)
                and all(any(self._has(txn, term, end) for term in condition) for condition in conditions)
                and not any(self._has(txn, term, end) for term in forbidden)
            ):
                yield raw

    def _has(self, txn: Txn, term: Term, end: bytes) -> bool:
        return txn.get(term[1] + end, db=self._tables[term[0]]) is not None

    def _position(self, txn: Txn, query: Query) -> Found | None:
        """Where the marker stands in the order."""
        if query.marker is None:
            return None
        raw = txn.get(query.marker.bytes, db=self._images)
        if raw is None or records.attrs(raw).status_code == _DELETED:
            raise NotFound(f"There is no image {query.marker} to go on from.")
        return _sort_key(query.sort)(records.decode(raw)), query.marker.bytes


_DELETED = records.STATUSES.index(Status.DELETED)


def _sort_key(sort: str) -> Callable[[Image], bytes]:
    """Makes of a record the key that it has in the order's index."""
    if sort == "id":
        return lambda image: image.id.bytes
    index = _ORDERS[sort]

    def key(image: Image) -> bytes:
        return next(prefix for name, prefix in terms(image) if name == index) + schema.tail(image.created_at, image.id)

    return key


def _conditions(query: Query) -> tuple[list[list[Term]], list[Term]]:
    """(conditions of which one term each must hold, terms that must not hold)."""
    conditions: list[list[Term]] = []
    for name, index in _BY_TEXT.items():
        value = getattr(query, name)
        if value is not None:
            values = value if isinstance(value, tuple) else (value,)
            conditions.append([(index, schema.text(one)) for one in values])
    conditions += [[(schema.I_TAG.name, schema.text(tag))] for tag in query.tags]
    conditions += [[(schema.I_PROP.name, property_key(*item))] for item in query.properties.items()]
    if query.map_id is not None:
        conditions.append([(schema.I_MAP.name, schema.U64.pack(query.map_id))])
    if query.visible_to is not None:
        public = [(schema.I_VISIBILITY.name, schema.text(v)) for v in (Visibility.PUBLIC, Visibility.COMMUNITY)]
        conditions.append([(schema.I_OWNER.name, schema.text(query.visible_to)), *public])
    if query.size_min is not None and query.size_min == query.size_max:
        conditions.append([(schema.I_SIZE.name, size_key(query.size_min))])
    forbidden: list[Term] = []
    for flag in ("protected", "hidden"):
        wanted = getattr(query, flag)
        if wanted is not None:
            term = (schema.I_FLAG.name, schema.text(flag))
            (conditions.append([term]) if wanted else forbidden.append(term))
    return conditions, forbidden
