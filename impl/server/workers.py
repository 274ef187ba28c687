"""Threads that do what would keep a loop from its clients.

Locks:   `_lock` protects the threads and the count of those who have nothing to do.
Errors:  OSError (EAGAIN) where the system has no more threads, and none of ours is there to do it later.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from queue import SimpleQueue

Task = Callable[[], None]


class Workers:
    """At most `count` threads, started when there is something for them to do. Tasks are begun in order."""

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._idle = 0

    def submit(self, task: Task) -> None:
        """Have a thread do it, soon; it must not raise. From any thread."""
        with self._lock:
            if self._idle:
                self._idle -= 1
            elif len(self._threads) < self._count:
                self._start_one()
            self._tasks.put(task)

    def _start_one(self) -> None:
        thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            if not self._threads:
                raise OSError(errno.EAGAIN, "the system has no more threads") from error
            return  # those who are there will come to it
        self._threads.append(thread)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()
            del task  # what it holds is not to be held until the next one comes
            with self._lock:
                self._idle += 1

    @property
    def has_threads(self) -> bool:
        """Whether any was ever needed."""
        return bool(self._threads)

    def join(self) -> None:
        """Wait until all that was submitted is done, and the threads have ended. Nothing may be submitted any more."""
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
