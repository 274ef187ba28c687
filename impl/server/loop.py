"""An event loop over epoll: one thread, any number of descriptors, calls from other threads, and timers.

Source:  epoll(7), level-triggered; eventfd(2) to wake the loop.
Locks:   `_closing` keeps `call_soon` from writing to a descriptor that the loop's end has closed, and that may by
         then be somebody else's. Everything else belongs to the loop's thread.
"""

from __future__ import annotations

import heapq
import itertools
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT

Handler = Callable[[int], None]


class Loop:
    """Calls handlers when their descriptors are ready, until `stop` is called."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wakeup, READABLE)
        self._running = True
        self._closed = False
        self._closing = threading.Lock()

    def watch(self, fd: int, events: int, handler: Handler) -> None:
        """Call `handler(events)` whenever `fd` is ready for any of `events`, or has an error."""
        self._handlers[fd] = handler
        self._epoll.register(fd, events)

    def change(self, fd: int, events: int) -> None:
        """Wait for other events on `fd`."""
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """No more calls for `fd`. Must come before the descriptor is closed."""
        del self._handlers[fd]
        self._epoll.unregister(fd)

    def call_soon(self, call: Callable[[], None]) -> None:
        """Run `call` on the loop's thread; from any thread. Forgotten once the loop has ended."""
        with self._closing:
            if not self._closed:
                self._calls.append(call)
                os.eventfd_write(self._wakeup, 1)

    def call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Run `call` after `delay_s`; on the loop's thread."""
        heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._serial), call))

    def stop(self) -> None:
        """Return from `run` once the present round is over; on the loop's thread."""
        self._running = False

    def run(self) -> None:
        """Serve until stopped."""
        try:
            while self._running:
                for fd, events in self._epoll.poll(self._timeout_s()):
                    if fd == self._wakeup:
                        os.eventfd_read(fd)
                    elif handler := self._handlers.get(fd):
                        handler(events)
                self._run_due()
        finally:
            self.close()

    def close(self) -> None:
        """Give the descriptors back; `run` does so at its end."""
        with self._closing:
            self._closed = True
            self._epoll.close()
            os.close(self._wakeup)

    def _timeout_s(self) -> float | None:
        return max(self._timers[0][0] - time.monotonic(), 0) if self._timers else None

    def _run_due(self) -> None:
        while self._calls and self._running:
            self._calls.popleft()()
        while self._timers and self._running and self._timers[0][0] <= time.monotonic():
            heapq.heappop(self._timers)[2]()
