"""Range locks for those who must not wait: a server's threads, which others wait for.

An overlay takes its ranges from whatever `Ranges` it is given. With AtOnce, a request that would have to wait raises
WouldWait instead, before it has changed anything. Its server leaves word (`RangeLock.ask`), and once the range is held
repeats the request with Granted: so a request that waits for a range is an entry in a queue, and no thread's.

Errors:  WouldWait, which is not an OSError: nothing has gone wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from impl.overlay.rangelock import Held


class WouldWait(Exception):
    """A range is not to be had at once."""

    def __init__(self, first: int, last: int, exclusive: bool) -> None:
        super().__init__(f"blocks {first} to {last} are in use")
        self.first = first
        self.last = last
        self.exclusive = exclusive


class Lock(Protocol):
    """The part of a RangeLock that is used here."""

    def at_once(self, first: int, last: int, exclusive: bool) -> Held | None: ...

    def ask(self, first: int, last: int, exclusive: bool, when_held: Callable[[Held], None]) -> None: ...


class AtOnce:
    """Ranges that are held at once, or not at all."""

    def __init__(self, lock: Lock) -> None:
        self._lock = lock

    def shared(self, first: int, last: int) -> Held:
        """Hold the range together with other readers."""
        held = self._lock.at_once(first, last, False)
        if held is None:
            raise WouldWait(first, last, False)
        return held

    def exclusive(self, first: int, last: int) -> Held:
        """Hold the range alone."""
        held = self._lock.at_once(first, last, True)
        if held is None:
            raise WouldWait(first, last, True)
        return held


class Granted(AtOnce):
    """Ranges for one request that has waited for its first one. Of one thread at a time.

    The range waited for is given out to the first who wants exactly it, as the request does that is repeated.
    """

    def __init__(self, lock: Lock, wanted: WouldWait) -> None:
        super().__init__(lock)
        self._wanted = (wanted.first, wanted.last, wanted.exclusive)
        self._held: Held | None = None

    def ask(self, when_held: Callable[[], None]) -> None:
        """Wait for the range, without a thread; `when_held` has to return soon."""
        self._lock.ask(*self._wanted, partial(self._granted, when_held))

    def _granted(self, when_held: Callable[[], None], held: Held) -> None:
        self._held = held
        when_held()

    def give_back(self) -> None:
        """Let go of the range if nobody wanted it after all."""
        held, self._held = self._held, None
        if held is not None:
            held.__exit__(None, None, None)

    def shared(self, first: int, last: int) -> Held:
        """What was waited for, or another range at once."""
        return self._waited_for(first, last, False) or super().shared(first, last)

    def exclusive(self, first: int, last: int) -> Held:
        """What was waited for, or another range at once."""
        return self._waited_for(first, last, True) or super().exclusive(first, last)

    def _waited_for(self, first: int, last: int, exclusive: bool) -> Held | None:
        if (first, last, exclusive) != self._wanted:
            return None
        held, self._held = self._held, None
        return held
