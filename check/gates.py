"""Threads that stop where a check wants them to, so that an interleaving is chosen and not awaited.

Shapes:  a Gate stands in front of one operation of one thread; the check waits until the thread has arrived, does
         what it likes meanwhile, and lets it go.
Errors:  a thread that does not arrive or does not end within TIMEOUT_S fails the check; what a thread raises is
         raised again where it is joined.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from check.subjects import FailingStore, Operation, ScriptedBase
from impl.sync import Condition, Lock, ThreadingSync

TIMEOUT_S = 20.0
T = TypeVar("T")


class Stuck(AssertionError):
    """A thread neither arrived nor ended: it waits for something that will not come."""


class Gate:
    """Stops one thread: the first that passes once it is shut, or a later one."""

    def __init__(self) -> None:
        self._still_to_pass: int | None = None
        self.arrived = threading.Event()
        self._open = threading.Event()

    def shut(self, after: int = 0) -> None:
        """Stop the next one, once `after` others have passed."""
        self._still_to_pass = after

    def pass_through(self) -> None:
        """Called by the thread that may have to stop."""
        if self._still_to_pass is None:
            return
        if self._still_to_pass > 0:
            self._still_to_pass -= 1
            return
        self._still_to_pass = None
        self.arrived.set()
        if not self._open.wait(TIMEOUT_S):
            raise Stuck("nobody opened the gate")

    def wait_for_arrival(self) -> None:
        """Until a thread stands at the gate."""
        if not self.arrived.wait(TIMEOUT_S):
            raise Stuck("nobody came to the gate")

    def open(self) -> None:
        """Let it go on."""
        self._open.set()


class GatedBase(ScriptedBase):
    """A base with a gate in front of its reads, as a slow disk has."""

    gate: Gate | None = None

    def pread(self, offset: int, length: int) -> bytes:
        """The bytes, once the gate is open."""
        if self.gate is not None:
            self.gate.pass_through()
        return super().pread(offset, length)


class GatedStore(FailingStore):
    """A store whose transfers come in two halves, as the kernel's do, with a gate between them."""

    gate: Gate | None = None

    def _put(self, operation: Operation, offset: int, data: bytes) -> None:
        """Write a half, pass the gate, write the rest."""
        half = len(data) // 2
        super()._put(operation, offset, data[:half])
        if self.gate is not None:
            self.gate.pass_through()
        super()._put(operation, offset + half, data[half:])

    def pread(self, offset: int, length: int) -> bytes:
        """Read a half, pass the gate, read the rest."""
        half = length // 2
        first = super().pread(offset, half) if half else b""
        if self.gate is not None:
            self.gate.pass_through()
        return first + super().pread(offset + half, length - half)


class WatchedSync(ThreadingSync):
    """The primitives of the standard library, with an event that is set whenever a thread waits on a condition."""

    def __init__(self) -> None:
        self.somebody_waits = threading.Event()

    def condition(self, lock: Lock) -> Condition:
        """A condition that says when it is waited on."""
        return _WatchedCondition(super().condition(lock), self.somebody_waits)


class _WatchedCondition:
    def __init__(self, condition: Condition, waited_on: threading.Event) -> None:
        self._condition = condition
        self._waited_on = waited_on

    def wait(self, timeout: float | None = None) -> bool:
        self._waited_on.set()
        return self._condition.wait(timeout)

    def notify(self, n: int = 1) -> None:
        self._condition.notify(n)


class Running(Generic[T]):
    """A call on a thread of its own; `ended` is set when it returns or raises."""

    def __init__(self, call: Callable[[], T], also_set: threading.Event | None = None) -> None:
        self._results: list[T] = []
        self._error: BaseException | None = None
        self.ended = threading.Event()

        def run() -> None:
            try:
                self._results.append(call())
            except BaseException as error:
                self._error = error
            finally:
                self.ended.set()
                if also_set is not None:
                    also_set.set()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def join(self) -> T:
        """What the call returned."""
        if not self.ended.wait(TIMEOUT_S):
            raise Stuck("a request waits for ever")
        if self._error is not None:
            raise self._error
        return self._results[0]
