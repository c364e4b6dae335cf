"""Running pieces of the program step by step, in any order: one step is one transaction or one call of a store.

An `Actor` runs a function in a thread that stops before each of its steps and goes on when it is told to. So a
test decides which process does what next, down to the transaction, while the code that runs is the real one.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

from imagefs.catalog.env import Environment, Reading, Txn
from imagefs.stores import Space, Store

PATIENCE_S = 60.0
"""A step takes milliseconds; an actor that is not back by then waits for something that never comes."""
_SKIPPED = ("/contextlib.py", "/catalog/env.py", "/catalog/catalog.py", "/model/stepping.py")


class Killed(BaseException):
    """Raised at every step of an actor that was killed: like SIGKILL, no `finally` of it has any effect."""


class _Running(threading.local):
    actor: Actor | None = None
    depth = 0


_running = _Running()


class Actor:
    """One function on its way. Used by one scheduling thread; at most one actor runs at a time."""

    def __init__(self, name: str, body: Callable[[], Any], *, fine: bool = False) -> None:
        """It stands before its first step. `fine`: transactions that only read are steps as well."""
        self.name = name
        self.fine = fine
        self.next: str | None = None
        """What it is about to do, None when it is at its end."""
        self.trail: list[str] = []
        """What it has done."""
        self.error: BaseException | None = None
        self._body = body
        self._dead = False
        # Only one of its threads stands before a step at a time; others wait for that one to go on.
        self._turn = threading.Lock()
        self._go, self._there = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._there.acquire()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        self._arrive()

    @property
    def finished(self) -> bool:
        return self.next is None

    def step(self) -> bool:
        """Does the next step and goes up to the one after it; False at the end. Raises what the body raised."""
        if self.next is None:
            return False
        self.trail.append(self.next)
        self._go.release()
        self._arrive()
        return True

    def before(self, label: str, *, times: int = 1) -> None:
        """Goes on until it is about to do `label` (a part of it) for the nth time."""
        while True:
            assert self.next is not None, f"{self.name} ended before {label}: {self.trail}"
            if label in self.next:
                times -= 1
                if times == 0:
                    return
            self.step()

    def through(self, label: str, *, times: int = 1) -> None:
        """Goes on until it has done `label`."""
        self.before(label, times=times)
        self.step()

    def finish(self) -> None:
        """Goes on to the end."""
        while self.step():
            pass

    def kill(self) -> None:
        """Ends it where it stands: none of the steps before it happens."""
        self._dead = True
        while self.next is not None:
            self._go.release()
            self._arrive()

    def pause(self, label: str) -> None:
        """Called in the actor's own threads: stops before a step."""
        with self._turn:
            if self._dead:
                raise Killed
            self.next = label
            self._there.release()
            if not self._go.acquire(timeout=PATIENCE_S):
                raise Killed
            if self._dead:
                raise Killed

    def _arrive(self) -> None:
        if not self._there.acquire(timeout=PATIENCE_S):
            raise TimeoutError(f"{self.name} waits inside a step, after {self.trail[-6:]}")
        if self.next is None:
            self._thread.join(PATIENCE_S)
            if self.error is not None:
                raise self.error

    def _run(self) -> None:
        _running.actor = self
        try:
            self.pause("start")
            self._body()
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again in the scheduling thread
            self.error = error
        finally:
            self.next = None
            self._there.release()


@contextlib.contextmanager
def atomic(label: str) -> Iterator[None]:
    """What is done inside is one step of the actor whose thread this is."""
    _pause(label)
    _running.depth += 1
    try:
        yield
    finally:
        _running.depth -= 1


def _pause(label: str, *, fine: bool = False) -> None:
    actor = _running.actor
    if actor is not None and _running.depth == 0 and (actor.fine or not fine):
        actor.pause(label)


def _caller() -> str:
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.endswith(_SKIPPED):
        frame = frame.f_back
    return frame.f_code.co_qualname


class SteppedEnvironment(Environment):
    """An environment whose outermost transactions are steps."""

    def write(self) -> AbstractContextManager[Txn]:
        if not self._local.writing:
            _pause(_caller())
        return super().write()

    def read(self) -> Reading:
        if self._local.txn is None:
            _pause(_caller(), fine=True)
        return super().read()


class SteppedPool(ThreadPoolExecutor):
    """Threads that belong to the actor that made them."""

    def __init__(self, workers: int, thread_name_prefix: str = "") -> None:
        super().__init__(workers, thread_name_prefix, _belong_to, (_running.actor,))


def _belong_to(actor: Actor | None) -> None:
    _running.actor = actor


class SteppedStore:
    """A store whose calls are steps."""

    def __init__(self, inner: Store) -> None:
        self.name = inner.name
        self._inner = inner

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        _pause(f"store.get {name}")
        return self._inner.get(name, offset, length)

    def put(self, name: str, parts: Any) -> None:
        _pause(f"store.put {name}")
        self._inner.put(name, parts)

    def delete(self, name: str) -> None:
        _pause(f"store.delete {name}")
        self._inner.delete(name)

    def size(self, name: str) -> int:
        return self._inner.size(name)

    def list(self, prefix: str) -> Iterator[str]:
        return self._inner.list(prefix)

    def space(self) -> Space:
        return self._inner.space()

    def close(self) -> None:
        """The inner one is shared."""

    def purge(self) -> int:
        return 0
