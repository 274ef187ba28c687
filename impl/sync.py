"""The seam to threads: what the overlay may use to wait and to exclude, and nothing else.

In production these are the classes of `threading` themselves; a checker gives its own, with one schedule point
before each operation, so that the code explored is the code shipped. Correctness never leans on the interpreter's
own lock: a Python built without one must be as right.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")


class Lock(Protocol):
    """Mutual exclusion, as `threading.Lock`."""

    def __enter__(self) -> bool: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Condition(Protocol):
    """A condition over a Lock that the caller holds, as `threading.Condition`."""

    def wait(self, timeout: float | None = None) -> bool: ...

    def notify(self, n: int = 1) -> None: ...


class Cell(Generic[T]):
    """One shared variable holding an immutable value: what threads share, they share through one of these."""

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value


class Sync(Protocol):
    """A family of primitives that know each other."""

    def lock(self) -> Lock: ...

    def condition(self, lock: Lock) -> Condition: ...

    def cell(self, value: T) -> Cell[T]: ...


class ThreadingSync:
    """The primitives of the standard library."""

    def lock(self) -> Lock:
        """A new, free lock."""
        return threading.Lock()

    def condition(self, lock: Lock) -> Condition:
        """A condition over `lock`."""
        assert isinstance(lock, type(threading.Lock()))
        return threading.Condition(lock)

    def cell(self, value: T) -> Cell[T]:
        """A variable that starts as `value`."""
        return Cell(value)


THREADING: Sync = ThreadingSync()
