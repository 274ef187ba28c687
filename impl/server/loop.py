"""An event loop over epoll: one thread at a time, any number of descriptors, calls from other threads, and timers.

Putting a thread to sleep and waking it takes longer than many a request: so a loop may look for a while whether
something comes before it sleeps. It does so only as long as that is worth it: while its clients come back so soon.

What is called may belong to somebody, its owner. Should the thread be kept by an owner for long (a disk may do that),
another thread can relieve it: it serves all the others, and the owner's descriptors, calls and timers wait until
the call that is kept has returned.

Source:  epoll(7), level-triggered; eventfd(2) to wake the loop.
Locks:   `_lock` protects everything: what is watched, calls, timers, who is at work, and who serves. It is held for a
         few steps at a time, and never while anything is called.
"""

from __future__ import annotations

import heapq
import itertools
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import NamedTuple

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT

Call = Callable[[], None]
Handler = Callable[[int], None]

# A sleep that was no longer than this, the waking included, would have been none if the loop had looked for a while.
SHORT_SLEEP_S = 100e-6


class _Watched(NamedTuple):
    handler: Handler
    events: int
    owner: Hashable


class Timer:
    """A call that is to be made later, until it is cancelled."""

    __slots__ = ("call", "due_s", "owner", "serial")

    def __init__(self, due_s: float, serial: int, call: Call, owner: Hashable) -> None:
        self.due_s = due_s
        self.serial = serial
        self.call: Call | None = call
        self.owner = owner

    def __lt__(self, other: Timer) -> bool:
        return (self.due_s, self.serial) < (other.due_s, other.serial)


class Loop:
    """Calls handlers when their descriptors are ready, until `stop` is called.

    spin_s:   how long it looks whether something comes before it sleeps, while that is worth it.
    on_work:  told when it has something to do again after `rests`; has to return at once, and may not use this loop.
    """

    def __init__(self, spin_s: float = 0.0, on_work: Call | None = None) -> None:
        self._spin_s = spin_s
        self._on_work = on_work
        self._rests = on_work is not None
        self._rest_count = -1
        self._is_spinning = False
        self._lock = threading.Lock()
        self._epoll = select.epoll()
        self._watched: dict[int, _Watched] = {}
        self._calls: deque[tuple[Call, Hashable]] = deque()
        self._timers: list[Timer] = []
        self._cancelled_count = 0
        self._serial = itertools.count()
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wakeup, READABLE)
        self._running = True
        self._closed = False
        self._serving = object()  # stands for the thread that serves
        self._at_work: Hashable = None  # the owner of what it calls just now
        self._call_count = 0
        self._seen_count = -1
        self._kept: dict[Hashable, list[Call]] = {}  # owners who have kept a thread, and the calls that wait for that

    def watch(self, fd: int, events: int, handler: Handler, owner: Hashable = None) -> None:
        """Call `handler(events)` whenever `fd` is ready for any of `events`, or has an error."""
        with self._lock:
            self._watched[fd] = _Watched(handler, events, owner)
            if owner not in self._kept:
                self._epoll.register(fd, events)

    def change(self, fd: int, events: int) -> None:
        """Wait for other events on `fd`."""
        with self._lock:
            watched = self._watched[fd]
            self._watched[fd] = watched._replace(events=events)
            if watched.owner not in self._kept:
                self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """No more calls for `fd`. Must come before the descriptor is closed."""
        with self._lock:
            watched = self._watched.pop(fd)
            if watched.owner not in self._kept:
                self._epoll.unregister(fd)

    def call_soon(self, call: Call, owner: Hashable = None) -> bool:
        """Run `call` on the loop's thread; from any thread. Forgotten, and False, once the loop has ended."""
        with self._lock:
            if self._closed:
                return False
            self._calls.append((call, owner))
            os.eventfd_write(self._wakeup, 1)
            return True

    def call_later(self, delay_s: float, call: Call, owner: Hashable = None) -> Timer:
        """Run `call` after `delay_s`; on the loop's thread."""
        timer = Timer(time.monotonic() + delay_s, next(self._serial), call, owner)
        with self._lock:
            heapq.heappush(self._timers, timer)
        return timer

    def cancel(self, timer: Timer) -> None:
        """Do not make its call, if that is still to come, and keep nothing that it would have needed."""
        with self._lock:
            if timer.call is None:
                return
            timer.call = timer.owner = None
            self._cancelled_count += 1
            if 2 * self._cancelled_count > len(self._timers):  # what is cancelled takes no more room than what is not
                self._timers = [timer for timer in self._timers if timer.call is not None]
                heapq.heapify(self._timers)
                self._cancelled_count = 0

    def stop(self) -> None:
        """Return from `run` once the present round is over; on the loop's thread."""
        self._running = False

    def run(self) -> None:
        """Serve until stopped."""
        self._serve(self._serving)

    def left_over(self) -> list[Call]:
        """The calls that it did not come to any more; after its end."""
        with self._lock:
            return [call for call, _ in self._calls]

    def close(self) -> None:
        """Give the descriptors back; `run` does so at its end."""
        with self._lock:
            self._closed = True
            self._epoll.close()
            os.close(self._wakeup)

    def relieve(self) -> bool:
        """Have another thread serve if the one that does has been at one call since the last time this was asked.

        RuntimeError where the system has no more threads.
        """
        with self._lock:
            owner, count = self._at_work, self._call_count
            is_kept = owner is not None and count == self._seen_count and not self._closed
            self._seen_count = count
            if not is_kept:
                return False
            thread = object()
            threading.Thread(target=self._serve, args=(thread,), name="clients", daemon=True).start()
            self._serving = thread
            self._at_work = None
            self._kept[owner] = []
            os.eventfd_write(self._wakeup, 1)  # of the calls behind that one, the thread had been told
            for fd, watched in self._watched.items():
                if watched.owner == owner:
                    self._epoll.unregister(fd)
            return True

    def rests(self) -> bool:
        """Whether it has called nothing since the last time this was asked. When it does again, it tells `on_work`."""
        with self._lock:
            self._rests = self._at_work is None and self._call_count == self._rest_count
            self._rest_count = self._call_count
            return self._rests

    def _begin(self, owner: Hashable) -> None:
        """Something of this owner is about to be called. The caller holds the lock."""
        self._at_work = owner
        self._call_count += 1
        if self._rests and self._on_work is not None:
            self._rests = False
            self._on_work()

    # On the thread that serves

    def _serve(self, thread: object) -> None:
        try:
            while self._running and self._handle(self._wait(), thread) and self._run_due(thread):
                pass
        finally:
            if self._serving is thread:
                self.close()

    def _handle(self, ready: list[tuple[int, int]], thread: object) -> bool:
        """Call the handlers; False if the thread was relieved, and then the one that serves is told of the rest."""
        lock = self._lock
        for fd, events in ready:
            if fd == self._wakeup:
                os.eventfd_read(fd)
                continue
            with lock:
                watched = self._watched.get(fd)
                if watched is not None and self._kept and watched.owner in self._kept:
                    watched = None
                if watched is not None:
                    self._begin(watched.owner)
            if watched is None:
                continue
            handler, _, owner = watched
            handler(events)
            with lock:
                is_relieved = self._serving is not thread
                if not is_relieved:
                    self._at_work = None
            if is_relieved:
                self._come_back(owner)
                return False
        return True

    def _run_due(self, thread: object) -> bool:
        """Make the calls that are due; False if the thread was relieved.

        What is asked for meanwhile waits until the others have had their turn: somebody may ask again and again.
        """
        calls_left = len(self._calls)
        until_s = time.monotonic() if self._timers else 0.0
        while self._running and (calls_left > 0 or self._timers):
            with self._lock:
                call, owner = self._next_due(calls_left > 0, until_s)
                calls_left -= 1
                if call is None:
                    return True
                self._begin(owner)
            call()
            with self._lock:
                is_relieved = self._serving is not thread
                if not is_relieved:
                    self._at_work = None
            if is_relieved:
                self._come_back(owner)
                return False
        return True

    def _next_due(self, may_call: bool, until_s: float) -> tuple[Call | None, Hashable]:
        """What has to be called now, if anything: calls, if they may be made, and then timers due by `until_s`.

        The caller holds the lock.
        """
        while True:
            call: Call | None
            if may_call and self._calls:
                call, owner = self._calls.popleft()
            elif self._timers and self._timers[0].due_s <= until_s:
                timer = heapq.heappop(self._timers)
                call, owner, timer.call = timer.call, timer.owner, None
                if call is None:
                    self._cancelled_count -= 1
                    continue
            else:
                return None, None
            if owner not in self._kept:
                return call, owner
            self._kept[owner].append(call)

    def _come_back(self, owner: Hashable) -> None:
        """The call that had kept this thread has returned, and another serves: let that one serve its owner, too."""
        with self._lock:
            calls = self._kept.pop(owner)
            if self._closed:
                return
            for fd, watched in self._watched.items():
                if watched.owner == owner:
                    self._epoll.register(fd, watched.events)
            self._calls.extend((call, owner) for call in calls)
            os.eventfd_write(self._wakeup, 1)

    def _wait(self) -> list[tuple[int, int]]:
        """What is ready, and its events; nothing if it is time for a timer."""
        poll, clock = self._epoll.poll, time.monotonic
        if not self._spin_s:
            return poll(self._timeout_s())
        began_s = clock()
        if self._is_spinning:
            ends_s = began_s + self._spin_s
            while began_s < ends_s:
                ready = poll(0)
                if ready:
                    return ready
                began_s = clock()
        ready = poll(self._timeout_s())
        self._is_spinning = clock() - began_s < SHORT_SLEEP_S
        return ready

    def _timeout_s(self) -> float | None:
        if not self._timers:
            return None
        with self._lock:
            return max(self._timers[0].due_s - time.monotonic(), 0) if self._timers else None
