"""Range locks with one thing wrong each: what whoever explores them has to find.

Shapes:  a mutant is a RangeLock for the seam it is given; `while` where it should be, `_conflicts`, `_must_wait` and
         the queue are the shipped ones wherever nothing else is said.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import cast

from impl.overlay.rangelock import Held, RangeLock, _conflicts, _is_free, _must_wait, _Queue, _Ticket
from impl.sync import Lock, Sync

WhenHeld = Callable[[Held], None]


class ForgetsToWake(RangeLock):
    """Gives the range back, and tells nobody."""

    def release(self, ticket: _Ticket) -> None:
        """Take the ticket away."""
        with self._mutex:
            self._queue.value = _without(self._queue.value, ticket)


class LooksOnce(RangeLock):
    """Waits once, however many stand in the way, and whoever wakes it."""

    def _acquire(self, first: int, last: int, exclusive: bool) -> _Ticket:
        with self._mutex:
            queue = self._queue.value
            wakeup = None if _is_free(queue, first, last, exclusive) else self._sync.condition(self._mutex)
            ticket = _Ticket(self, first, last, exclusive, wakeup)
            self._queue.value = (*queue, ticket)
            if wakeup is not None:
                wakeup.wait()
        return ticket

    def release(self, ticket: _Ticket) -> None:
        """Wake whoever it stood in the way of, whether or not another still does."""
        with self._mutex:
            queue = self._queue.value = _without(self._queue.value, ticket)
            for other in queue:
                if other.wakeup is not None and _in_each_others_way(ticket, other):
                    other.wakeup.notify()


class NoMutex(RangeLock):
    """Looks at the queue and changes it with nothing held."""

    def __init__(self, sync: Sync) -> None:
        super().__init__(sync)
        self._mutex = cast(Lock, nullcontext(True))


class ReadersOvertake(RangeLock):
    """Lets whoever goes well with those that hold the range pass those that wait for it."""

    def _acquire(self, first: int, last: int, exclusive: bool) -> _Ticket:
        with self._mutex:
            queue = self._queue.value
            if _is_free(_holding(queue), first, last, exclusive):
                ticket = _Ticket(self, first, last, exclusive)
                self._queue.value = (ticket, *queue)
                return ticket
            wakeup = self._sync.condition(self._mutex)
            ticket = _Ticket(self, first, last, exclusive, wakeup)
            self._queue.value = (*queue, ticket)
            while _must_wait(self._queue.value, ticket):
                wakeup.wait()
        return ticket


class ForgetsToTell(RangeLock):
    """Does not remember whom to tell."""

    def ask(self, first: int, last: int, exclusive: bool, when_held: WhenHeld) -> None:
        """Tell at once, or never."""
        with self._mutex:
            queue = self._queue.value
            ticket = _Ticket(self, first, last, exclusive)
            self._queue.value = (*queue, ticket)
            is_held = _is_free(queue, first, last, exclusive)
        if is_held:
            when_held(ticket)


class TellsTwice(RangeLock):
    """Tells whoever is free, whether or not he was free before."""

    def release(self, ticket: _Ticket) -> None:
        """Tell all who need not wait."""
        with self._mutex:
            queue = self._queue.value = _without(self._queue.value, ticket)
            freed = _holding(queue)
            for other in freed:
                if other.wakeup is not None:
                    other.wakeup.notify()
        for other in freed:
            if other.when_held is not None:
                other.when_held(other)


class TellsTooEarly(RangeLock):
    """Tells whoever the ticket stood in the way of, though another still does."""

    def release(self, ticket: _Ticket) -> None:
        """Wake only those who are free."""
        with self._mutex:
            queue = self._queue.value = _without(self._queue.value, ticket)
            freed = [other for other in queue if _in_each_others_way(ticket, other)]
            for other in freed:
                if other.wakeup is not None and not _must_wait(queue, other):
                    other.wakeup.notify()
        for other in freed:
            if other.when_held is not None:
                other.when_held(other)


class AsksWithoutMutex(RangeLock):
    """Looks whether the range is free, and then comes in."""

    def ask(self, first: int, last: int, exclusive: bool, when_held: WhenHeld) -> None:
        """Look before the mutex is held."""
        is_held = _is_free(self._queue.value, first, last, exclusive)
        with self._mutex:
            ticket = _Ticket(self, first, last, exclusive, when_held=when_held)
            self._queue.value = (*self._queue.value, ticket)
        if is_held:
            when_held(ticket)


class OvertakesAtOnce(RangeLock):
    """Comes in at once where nobody holds the range, though somebody waits for it."""

    def at_once(self, first: int, last: int, exclusive: bool) -> Held | None:
        """Ask those who hold, and nobody else."""
        with self._mutex:
            queue = self._queue.value
            if not _is_free(_holding(queue), first, last, exclusive):
                return None
            ticket = _Ticket(self, first, last, exclusive)
            self._queue.value = (ticket, *queue)
            return ticket


class NeverAtOnce(RangeLock):
    """Has everybody ask."""

    def at_once(self, first: int, last: int, exclusive: bool) -> Held | None:
        """Not now."""
        with self._mutex:
            return None


def _without(queue: _Queue, ticket: _Ticket) -> _Queue:
    return tuple([other for other in queue if other is not ticket])


def _holding(queue: _Queue) -> _Queue:
    """Those who need not wait."""
    return tuple([ticket for ticket in queue if not _must_wait(queue, ticket)])


def _in_each_others_way(one: _Ticket, other: _Ticket) -> bool:
    return _conflicts(one, other.first, other.last, other.exclusive)


# How each is found out; the text is what the explorer says.
LOCK_MUTANTS: dict[type[RangeLock], str] = {
    ForgetsToWake: "waits, though",
    LooksOnce: "though one that overlaps and came before it",
    NoMutex: "is not in the queue for it",
    ReadersOvertake: "though one that overlaps and came before it",
    ForgetsToTell: "waits, though",
    TellsTwice: "is told twice",
    TellsTooEarly: "though one that overlaps and came before it",
    AsksWithoutMutex: "waits, though",
    OvertakesAtOnce: "is not in the queue for it",
    NeverAtOnce: "it may not have its range, though nobody is in its way",
}
