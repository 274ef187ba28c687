"""The seam to threads: what the overlay may use to wait and to exclude, and nothing else.

In production these are the classes of `threading` themselves; a checker gives its own, with one schedule point
before each operation, so that the code explored is the code shipped. Correctness never leans on the interpreter's
own lock: a Python built without one must be as right.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Protocol


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


class Sync(Protocol):
    """A family of primitives that know each other."""

    def lock(self) -> Lock: ...

    def condition(self, lock: Lock) -> Condition: ...


class ThreadingSync:
    """The primitives of the standard library."""

    def lock(self) -> Lock:
        """A new, free lock."""
        return threading.Lock()

    def condition(self, lock: Lock) -> Condition:
        """A condition over `lock`."""
        assert isinstance(lock, type(threading.Lock()))
        return threading.Condition(lock)


THREADING: Sync = ThreadingSync()
