"""Locks over ranges of blocks: shared to look, exclusive to change, first come first served.

A request takes one lock over all its blocks at once, so no request holds one lock while it waits for another, and
there is no deadlock. It waits exactly for the requests that came before it, overlap it, and are not both shared;
so disjoint ranges never wait for each other, and a stream of readers cannot starve a writer.

Shapes:  a range is (first, last), both inclusive, in blocks.
Locks:   `_mutex` protects `_queue`, all requests that hold or wait, in order of arrival. A range held is not a
         lock in the queue's order: nobody takes `_mutex` for longer than a scan of the queue.
Omits:   upgrades and downgrades (rule 2 of the design needs none), and timeouts: a range is held only for the
         overlay's own I/O, never for a base's or a client's.
"""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

from impl.sync import THREADING, Condition, Sync


class Held(Protocol):
    """A range that is held until the `with` block ends."""

    def __enter__(self) -> object: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Ranges(Protocol):
    """What the overlay needs of range locks; each call returns once the range is held."""

    def shared(self, first: int, last: int) -> Held: ...

    def exclusive(self, first: int, last: int) -> Held: ...

    def is_free(self, first: int, last: int, exclusive: bool) -> bool: ...


class _Ticket:
    """One request in the queue. Immutable; two tickets are the same only if they are one object."""

    __slots__ = ("exclusive", "first", "last", "lock", "wakeup")

    def __init__(self, lock: RangeLock, first: int, last: int, exclusive: bool, wakeup: Condition | None) -> None:
        self.lock = lock
        self.first = first
        self.last = last
        self.exclusive = exclusive
        self.wakeup = wakeup

    def __enter__(self) -> _Ticket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.lock.release(self)


_Queue = tuple[_Ticket, ...]


def _conflicts(ticket: _Ticket, first: int, last: int, exclusive: bool) -> bool:
    return ticket.first <= last and first <= ticket.last and (exclusive or ticket.exclusive)


def _must_wait(queue: _Queue, ticket: _Ticket) -> bool:
    """Whether anyone who came before `ticket` stands in its way."""
    for earlier in queue:
        if earlier is ticket:
            return False
        if _conflicts(earlier, ticket.first, ticket.last, ticket.exclusive):
            return True
    raise AssertionError("a ticket that waits is in the queue")


class RangeLock:
    """Range locks for one device."""

    def __init__(self, sync: Sync = THREADING) -> None:
        self._sync = sync
        self._mutex = sync.lock()
        no_tickets: _Queue = ()
        self._queue = sync.cell(no_tickets)

    def shared(self, first: int, last: int) -> _Ticket:
        """Hold the range together with other readers."""
        return self._acquire(first, last, False)

    def exclusive(self, first: int, last: int) -> _Ticket:
        """Hold the range alone."""
        return self._acquire(first, last, True)

    def is_free(self, first: int, last: int, exclusive: bool) -> bool:
        """Whether the range could be had now without waiting: a hint, out of date when it is returned.

        Read without the mutex: the queue is one immutable value, so any moment's is whole.
        """
        for ticket in self._queue.value:
            if _conflicts(ticket, first, last, exclusive):
                return False
        return True

    def _acquire(self, first: int, last: int, exclusive: bool) -> _Ticket:
        with self._mutex:
            queue = self._queue.value
            wakeup = None
            for earlier in queue:
                if _conflicts(earlier, first, last, exclusive):
                    wakeup = self._sync.condition(self._mutex)
                    break
            ticket = _Ticket(self, first, last, exclusive, wakeup)
            self._queue.value = (*queue, ticket)
            if wakeup is not None:
                # A condition may wake without being notified, and what is in the way may be several.
                while _must_wait(self._queue.value, ticket):
                    wakeup.wait()
        return ticket

    def release(self, ticket: _Ticket) -> None:
        """Give the range back, and wake those, and only those, whom nobody else keeps waiting."""
        with self._mutex:
            queue = self._queue.value
            if len(queue) == 1:  # nobody else is here
                assert queue[0] is ticket
                self._queue.value = ()
                return
            queue = tuple([other for other in queue if other is not ticket])
            self._queue.value = queue
            for other in queue:
                if (
                    other.wakeup is not None
                    and _conflicts(ticket, other.first, other.last, other.exclusive)
                    and not _must_wait(queue, other)
                ):
                    other.wakeup.notify()
