"""A store that fails as planned, around any other store: for tests of everything above."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from imagefs.errors import BackendFailed, BackendTimeout, NotFound
from imagefs.stores.base import Space, check_name, check_prefix, views

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from imagefs.stores.base import Parts, Store


class Kind(Enum):
    """What goes wrong with an operation; `Fault.amount` says how much."""

    FAIL = auto()
    """The error instead of the operation."""
    FAIL_AFTER = auto()
    """The operation is done, then the error: its answer got lost."""
    HANG = auto()
    """The operation waits for `Plan.release()`, then goes on; BackendTimeout after `amount` seconds."""
    SHORT = auto()
    """get: without its last `amount` bytes."""
    FLIP = auto()
    """get, put: bit number `amount` (modulo the length) is the other way round."""
    TORN = auto()
    """put: the first `amount` bytes get the name, then the error; what `put` promises never to do."""
    LOST = auto()
    """put, delete: nothing happens, and no error."""
    STALE = auto()
    """list: without the last `amount` changes made through this store."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong, with the `nth` operation `op` ("*": any) that it fits, or with every one."""

    op: str
    kind: Kind
    nth: int | None = None
    """Counted from 1, and from when the plan got the fault."""
    prefix: str = ""
    """Only objects whose names begin so."""
    amount: int = 1
    error: Callable[[str], Exception] = BackendFailed
    """Called with a message."""


@dataclass(frozen=True, slots=True)
class Step:
    """A moment of an operation: "before" it, "after" it, or when it is "torn"."""

    number: int
    """Counted from 1 over all moments of the plan."""
    op: str
    name: str
    moment: str


class Plan:
    """Which faults come when; says nothing goes wrong until it is told.

    `on_step` is called at every step, in the thread that makes it: it may end the process there.
    """

    def __init__(self, *faults: Fault, on_step: Callable[[Step], None] | None = None) -> None:
        self.on_step = on_step
        self.calls: Counter[str] = Counter()
        """How often each operation was called."""
        # Guards the counts and the list of faults; held for no I/O, no callback and no wait.
        self._lock = threading.Lock()
        self._faults: list[tuple[Fault, Counter[str]]] = []
        self._steps = 0
        self._released = threading.Event()
        for fault in faults:
            self.add(fault)

    def add(self, fault: Fault) -> None:
        """From now on also this."""
        with self._lock:
            self._faults.append((fault, Counter()))

    def clear(self) -> None:
        """Nothing goes wrong any more; what hangs goes on hanging until `release`."""
        with self._lock:
            self._faults.clear()

    def release(self) -> None:
        """Let go on what hangs, now and later."""
        self._released.set()

    def step(self, op: str, name: str, moment: str) -> None:
        """Count a step and say so."""
        with self._lock:
            self._steps += 1
            step = Step(self._steps, op, name, moment)
        if self.on_step:
            self.on_step(step)

    def due(self, op: str, name: str) -> Fault | None:
        """Count a call; the fault that it meets, the one that was added first if there are several."""
        due = None
        with self._lock:
            self.calls[op] += 1
            for fault, seen in self._faults:
                if fault.op not in (op, "*") or not name.startswith(fault.prefix):
                    continue
                seen["calls"] += 1
                if due is None and fault.nth in (None, seen["calls"]):
                    due = fault
        return due

    def wait(self, fault: Fault, what: str) -> None:
        """Hang as the fault says."""
        if not self._released.wait(fault.amount):
            raise BackendTimeout(f"{what}: hung for {fault.amount} s.")


class FaultyStore:
    """`inner`, with what goes wrong by `plan`. With an empty plan it is as good as `inner`."""

    def __init__(self, inner: Store, plan: Plan | None = None) -> None:
        self.name = f"faulty {inner.name}"
        self.inner = inner
        self.plan = plan or Plan()
        # Puts (True) and deletes (False) that changed something, oldest first, for stale lists.
        self._changes: list[tuple[bool, str]] = []

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        fault = self._begin("get", check_name(name))
        content = self.inner.get(name, offset, length)
        if fault and fault.kind is Kind.SHORT:
            content = content[: max(0, len(content) - fault.amount)]
        if fault and fault.kind is Kind.FLIP:
            content = _flipped(content, fault.amount)
        self._end(fault, "get", name)
        return content

    def put(self, name: str, parts: Parts) -> None:
        fault = self._begin("put", check_name(name))
        if fault and fault.kind is Kind.TORN:
            self._put(name, b"".join(views(parts))[: fault.amount])
            self.plan.step("put", name, "torn")
            raise fault.error(f"Writing {name}: torn as planned.")
        if fault and fault.kind is Kind.FLIP:
            parts = _flipped(b"".join(views(parts)), fault.amount)
        if not fault or fault.kind is not Kind.LOST:
            self._put(name, parts)
        self._end(fault, "put", name)

    def delete(self, name: str) -> None:
        fault = self._begin("delete", check_name(name))
        if not fault or fault.kind is not Kind.LOST:
            self._delete(name)
        self._end(fault, "delete", name)

    def size(self, name: str) -> int:
        fault = self._begin("size", check_name(name))
        size = self.inner.size(name)
        self._end(fault, "size", name)
        return size

    def list(self, prefix: str) -> Iterator[str]:
        fault = self._begin("list", check_prefix(prefix))
        names = self.inner.list(prefix)
        if fault and fault.kind is Kind.STALE:
            names = self._stale(set(names), prefix, fault.amount)
        self._end(fault, "list", prefix)
        return names

    def space(self) -> Space:
        fault = self._begin("space", "")
        space = self.inner.space()
        self._end(fault, "space", "")
        return space

    def close(self) -> None:
        self.inner.close()

    def _begin(self, op: str, name: str) -> Fault | None:
        fault = self.plan.due(op, name)
        self.plan.step(op, name, "before")
        if fault and fault.kind is Kind.HANG:
            self.plan.wait(fault, f"{op} {name}")
        if fault and fault.kind is Kind.FAIL:
            raise fault.error(f"{op} {name}: failed as planned.")
        return fault

    def _end(self, fault: Fault | None, op: str, name: str) -> None:
        self.plan.step(op, name, "after")
        if fault and fault.kind is Kind.FAIL_AFTER:
            raise fault.error(f"{op} {name}: answer lost as planned.")

    def _put(self, name: str, parts: Parts) -> None:
        self.inner.put(name, parts)
        self._changes.append((True, name))

    def _delete(self, name: str) -> None:
        with contextlib.suppress(NotFound):
            self.inner.size(name)
            self._changes.append((False, name))
        self.inner.delete(name)

    def _stale(self, names: set[str], prefix: str, lag: int) -> Iterator[str]:
        for was_put, name in reversed(self._changes[-lag:]):
            if was_put:
                names.discard(name)
            elif name.startswith(prefix):
                names.add(name)
        return iter(sorted(names))


def _flipped(content: bytes, bit: int) -> bytes:
    if not content:
        return content
    flipped = bytearray(content)
    flipped[bit // 8 % len(content)] ^= 1 << bit % 8
    return bytes(flipped)
