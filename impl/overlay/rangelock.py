"""Locks over ranges of blocks: shared to look, exclusive to change, first come first served.

A request takes one lock over all its blocks at once, so no request holds one lock while it waits for another, and
there is no deadlock. It waits exactly for the requests that came before it, overlap it, and are not both shared;
so disjoint ranges never wait for each other, and a stream of readers cannot starve a writer.

Whoever has a thread to spare waits in it (`shared`, `exclusive`); whoever has not takes the range if it is free
(`at_once`), or leaves word and is called when it is his (`ask`). All of them stand in one queue.

Shapes:  a range is (first, last), both inclusive, in blocks.
Locks:   `_mutex` protects `_queue`, all requests that hold or wait, in order of arrival. A range held is not a
         lock in the queue's order: nobody takes `_mutex` for longer than a scan of the queue.
Omits:   upgrades and downgrades (rule 2 of the design needs none), and timeouts: a range is held only for the
         overlay's own I/O, never for a base's or a client's.
"""

from __future__ import annotations

from collections.abc import Callable
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


class _Ticket:
    """One request in the queue. Immutable; two tickets are the same only if they are one object.

    wakeup, when_held:  how the one who waits for it is told: at most one of them, neither if it never had to wait.
    """

    __slots__ = ("exclusive", "first", "last", "lock", "wakeup", "when_held")

    def __init__(
        self,
        lock: RangeLock,
        first: int,
        last: int,
        exclusive: bool,
        wakeup: Condition | None = None,
        when_held: Callable[[Held], None] | None = None,
    ) -> None:
        self.lock = lock
        self.first = first
        self.last = last
        self.exclusive = exclusive
        self.wakeup = wakeup
        self.when_held = when_held

    def __enter__(self) -> _Ticket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.lock.release(self)


_Queue = tuple[_Ticket, ...]


def _conflicts(ticket: _Ticket, first: int, last: int, exclusive: bool) -> bool:
    return ticket.first <= last and first <= ticket.last and (exclusive or ticket.exclusive)


def _is_free(queue: _Queue, first: int, last: int, exclusive: bool) -> bool:
    """Whether nobody in the queue stands in the way of one who comes now."""
    for earlier in queue:
        if _conflicts(earlier, first, last, exclusive):
            return False
    return True


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

    def at_once(self, first: int, last: int, exclusive: bool) -> Held | None:
        """Hold the range if it can be had without waiting, and without overtaking anybody."""
        with self._mutex:
            queue = self._queue.value
            if queue and not _is_free(queue, first, last, exclusive):
                return None
            ticket = _Ticket(self, first, last, exclusive)
            self._queue.value = (*queue, ticket)
            return ticket

    def ask(self, first: int, last: int, exclusive: bool, when_held: Callable[[Held], None]) -> None:
        """Wait for the range without a thread: `when_held` is called, once, with the range held.

        It is called by this thread or by whoever gives the range back, and has to return soon: nobody is kept
        waiting by what it does but that thread.
        """
        with self._mutex:
            queue = self._queue.value
            ticket = _Ticket(self, first, last, exclusive, when_held=when_held)
            self._queue.value = (*queue, ticket)
            is_held = _is_free(queue, first, last, exclusive)
        if is_held:
            when_held(ticket)

    def _acquire(self, first: int, last: int, exclusive: bool) -> _Ticket:
        with self._mutex:
            queue = self._queue.value
            wakeup = None if _is_free(queue, first, last, exclusive) else self._sync.condition(self._mutex)
            ticket = _Ticket(self, first, last, exclusive, wakeup)
            self._queue.value = (*queue, ticket)
            if wakeup is not None:
                # A condition may wake without being notified, and what is in the way may be several.
                while _must_wait(self._queue.value, ticket):
                    wakeup.wait()
        return ticket

    def release(self, ticket: _Ticket) -> None:
        """Give the range back, and tell those, and only those, whom nobody else keeps waiting."""
        with self._mutex:
            queue = self._queue.value
            if len(queue) == 1:  # nobody else is here
                assert queue[0] is ticket
                self._queue.value = ()
                return
            queue = tuple([other for other in queue if other is not ticket])
            self._queue.value = queue
            # Who overlaps this ticket and has to wait for nobody now came after it, and had to wait until now: so
            # nobody is told twice.
            freed = [
                other
                for other in queue
                if _conflicts(ticket, other.first, other.last, other.exclusive) and not _must_wait(queue, other)
            ]
            for other in freed:
                if other.wakeup is not None:
                    other.wakeup.notify()
        for other in freed:  # without the mutex: they may want a range themselves
            if other.when_held is not None:
                other.when_held(other)
