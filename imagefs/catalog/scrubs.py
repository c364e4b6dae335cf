"""What scrubs found, and how far the one under way has come."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from imagefs.catalog import schema
from imagefs.catalog.packrows import PackState, decode

if TYPE_CHECKING:
    from imagefs.catalog.counters import Counters
    from imagefs.catalog.env import Environment


class Damage(NamedTuple):
    """What does not verify of one stored object."""

    no: int
    """Its pack number."""
    found_ns: int
    missing: bool = False
    """Nothing of it can be read: the store has no such object, or its frames are not known."""
    frames: tuple[int, ...] = ()
    """Frames whose blocks cannot be read."""
    other: str | None = None
    """What else is wrong, in words: header, footer, padding, a manifest's content. Blocks outside of `frames`
    can be read."""

    def __str__(self) -> str:
        if self.missing:
            return "is not on the store, or its frames are not known"
        what = [f"frame{'s' * (len(self.frames) > 1)} {_ranges(self.frames)} damaged"] if self.frames else []
        return "; ".join([*what, *([self.other] if self.other else [])])


class ScrubState(NamedTuple):
    """Times are ns since the epoch, 0 for never."""

    next_no: int
    """First pack number that the scrub under way has not looked at; 0 when none is under way."""
    deep: bool
    began_ns: int
    ended_ns: int
    """When the last scrub that looked at everything ended."""


class Scrubs:
    """Each method is one transaction, or joins the thread's open one. A row goes with its pack's row."""

    def __init__(self, env: Environment, counters: Counters) -> None:
        self._env = env
        self._counters = counters
        self._rows = env.table(schema.DAMAGE.name)
        self._packs = env.table(schema.PACKS.name)

    def found(self, damage: Damage) -> None:
        """Records damage in place of what was known of that object; nothing for one that is gone meanwhile."""
        key = schema.U32.pack(damage.no)
        value = {
            "found": damage.found_ns,
            "missing": damage.missing,
            "frames": damage.frames,
            "other": damage.other,
        }
        with self._env.write() as txn:
            if txn.get(key, db=self._packs) is not None:
                txn.put(key, json.dumps(value).encode(), db=self._rows)

    def sound(self, nos: Iterable[int]) -> None:
        """These objects verify, or hold nothing any more: what was known is dropped."""
        known = [no for no in nos if self.get(no) is not None]
        if known:
            with self._env.write() as txn:
                for no in known:
                    txn.delete(schema.U32.pack(no), db=self._rows)

    def get(self, no: int) -> Damage | None:
        """What is known to be wrong with an object."""
        key = schema.U32.pack(no)
        with self._env.read() as txn:
            raw = txn.get(key, db=self._rows)
        return _decode(key, raw) if raw is not None else None

    def damaged(self) -> list[Damage]:
        """Every live object that is known to be damaged, by number. Those in the trash are nobody's any more."""
        found = []
        with self._env.read() as txn:
            for key, raw in txn.cursor(db=self._rows):
                row = txn.get(key, db=self._packs)
                if row is not None and decode(key, row).state == PackState.LIVE:
                    found.append(_decode(key, raw))
        return found

    def state(self) -> ScrubState:
        """How far the scrub under way has come, and when the last ones were."""
        get = self._counters.get
        with self._env.read():
            return ScrubState(get("scrub"), bool(get("scrub_deep")), get("scrub_began"), get("scrub_ended"))

    def begin(self, now_ns: int, *, deep: bool) -> None:
        """A scrub from the beginning is under way."""
        with self._env.write():
            self._counters.set("scrub", 1)
            self._counters.set("scrub_deep", int(deep))
            self._counters.set("scrub_began", now_ns)

    def reached(self, next_no: int) -> None:
        """Everything below this number has been looked at."""
        self._counters.set("scrub", next_no)

    def end(self, now_ns: int) -> None:
        """The scrub under way has looked at everything."""
        with self._env.write():
            self._counters.set("scrub", 0)
            self._counters.set("scrub_ended", now_ns)


def _decode(key: bytes, raw: bytes) -> Damage:
    row = json.loads(raw)
    return Damage(schema.U32.unpack(key)[0], row["found"], row["missing"], tuple(row["frames"]), row["other"])


def _ranges(numbers: tuple[int, ...]) -> str:
    """Ascending numbers as text: 3-5, 9."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)
