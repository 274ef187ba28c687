"""What one connection has in flight: requests that workers do, how much memory they may hold, and what is unsent.

A request that would wait, or work for long, is given to the connection's own workers, so that it delays neither the
requests behind it nor any other client's. One that has to wait for its range is given to nobody until it has it.

Bounds:  when requests in flight and replies unsent come to more than PAUSE_BYTES, PAUSE_REQUESTS or PAUSE_ITEMS, the
         connection is to take nothing more. Of a request, all is counted that it may hold until it is answered.
Locks:   `_lock` protects the counts, and the two flags that say what happens when they go down; the loop may look at
         the counts without it, and is told again if that was too early.
"""

from __future__ import annotations

import errno
import logging
import threading
from typing import Protocol

from impl.server.commands import Later, Place, Reply
from impl.server.outbox import BrokenReply, Outbox
from impl.server.workers import Workers

PAUSE_BYTES = 64 << 20
PAUSE_REQUESTS = 1024
PAUSE_ITEMS = 4096  # parts of replies: each is an object, however few its bytes

log = logging.getLogger("cowproof.server")

STOPPING = "the server is shutting down"


class Connection(Protocol):
    """Whose requests they are; asked from any thread. It is told at each call, so that no cycle keeps it in memory."""

    @property
    def is_stopping(self) -> bool:
        """Whether what has not begun is refused."""

    def is_deaf(self) -> bool:
        """Whether nobody hears a reply any more."""

    def refusal(self, work: Later, code: int, message: str) -> Reply:
        """The reply that refuses a request, with an errno."""

    def update_soon(self) -> None:
        """Have it look what it can do now."""

    def fail_soon(self) -> None:
        """Have it hung up, because of a bug in the server."""


class InFlight:
    """All of one connection.

    count, held_bytes:  of the requests that have begun and are not finished
    wants_update:       whether whoever finishes one has the connection look what it can do now
    """

    def __init__(self, client: str, threads: int, outbox: Outbox) -> None:
        self.count = 0
        self.held_bytes = 0
        self.wants_update = False
        self._client = client
        self._workers = {place: Workers(threads, f"{place.value} worker") for place in Place}
        self._outbox = outbox
        self._is_over = False
        self._lock = threading.Lock()
        self._all_done = threading.Condition(self._lock)

    # Called on the loop's thread

    def begin(self, whose: Connection, work: Later) -> None:
        """Have it done by a worker, and answered through the outbox."""
        with self._lock:
            self.count += 1
            self.held_bytes += work.held_bytes
        self._pass_on(whose, work)

    def is_paused(self) -> bool:
        """Whether there is so much in flight that nothing more is to be taken."""
        outbox = self._outbox
        if not self.count and not outbox.items:  # by far the most frequent
            return False
        return (
            self.count >= PAUSE_REQUESTS
            or len(outbox.items) >= PAUSE_ITEMS
            or self.held_bytes + outbox.size_bytes > PAUSE_BYTES
        )

    def settle(self, is_draining: bool) -> tuple[bool, bool]:
        """Whether the connection pauses, and whether nothing is in flight. If it pauses or drains, whoever finishes a
        request from here on asks for another update.
        """
        with self._lock:
            paused = self.is_paused()
            self.wants_update = paused or is_draining
            return paused, self.count == 0

    def close(self) -> None:
        """Nothing more is begun; somebody may `join`."""
        with self._lock:
            self._is_over = True

    # Called on any thread

    @property
    def has_threads(self) -> bool:
        """Whether there is anything that `join` would have to wait for; after the end."""
        return self.count > 0 or any(workers.has_threads for workers in self._workers.values())

    def join(self) -> None:
        """Wait until nothing of it runs on the overlay any more, and the threads have ended; after `close`."""
        with self._lock:
            self._all_done.wait_for(lambda: self.count == 0)
        for workers in self._workers.values():
            workers.join()

    def _pass_on(self, whose: Connection, work: Later) -> None:
        """Have it done once it has its range, if it needs one."""
        if work.granted is None:
            self._submit(whose, work)
        else:
            work.granted.ask(lambda: self._submit(whose, work))

    def _submit(self, whose: Connection, work: Later) -> None:
        try:
            self._workers[work.place].submit(lambda: self._work(whose, work))
        except OSError:
            work.drop()
            self._finish(whose, work, whose.refusal(work, errno.ENOMEM, "no more threads"))

    # Called on a worker's thread

    def _work(self, whose: Connection, work: Later) -> None:
        reply: Reply = ()
        try:
            if whose.is_stopping:
                work.drop()
                reply = whose.refusal(work, errno.ESHUTDOWN, STOPPING)
            elif not work.changes and whose.is_deaf():
                work.drop()
            else:
                answer = work.run()
                if isinstance(answer, Later):
                    with self._lock:
                        self.held_bytes += answer.held_bytes - work.held_bytes
                    self._pass_on(whose, answer)
                    return
                reply = answer
        except Exception:
            log.exception("%s: hanging up because of a bug in the server", self._client)
            whose.fail_soon()
        self._finish(whose, work, reply)

    def _finish(self, whose: Connection, work: Later, reply: Reply) -> None:
        self._outbox.add(reply)
        try:
            sent_all = self._outbox.flush()
        except (OSError, BrokenReply):
            sent_all = False  # the loop's thread meets the same error, and ends the session
        with self._lock:
            self.count -= 1
            self.held_bytes -= work.held_bytes
            if self.count == 0 and self._is_over:
                self._all_done.notify_all()
            wants_update = self.wants_update
        if wants_update or not sent_all:
            whose.update_soon()
