"""One process of clients: it sends many requests at once on several connections, and notes what was said when.

An invocation is noted before its first byte is sent, an answer after its last has arrived. So what is noted is never
narrower than what was; wider it may be, and that can only hide something, never invent it.

Shapes:  a process writes one file, its events in the order of their times, by the clock that all processes share.
         Between two quiet points requests run; at a quiet point nothing does, and all that was touched is read.
Units:   seconds where a name says so; times in files are nanoseconds of CLOCK_MONOTONIC.
Errors:  of requests: they are events. A connection that dies leaves what was in flight without an answer, and a new one
         takes its place under a new name; StartError when there is no new one to be had.
"""

from __future__ import annotations

import errno
import json
import mmap
import random
import threading
import time
from collections.abc import Callable, MutableSequence, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import BrokenBarrierError
from typing import Any, NamedTuple, Protocol, TextIO

from check.history.workload import Mix, Wish, Workload, offer_of
from impl.client import Client, NbdError, connect
from impl.errors import StartError
from impl.history_tags import Attribution, Content, stamped, write_name

READ_BACK_BYTES = 128 << 10
CONNECT_LIMIT_S = 10.0
ANSWER_LIMIT_S = 30.0
QUIET_LIMIT_S = 60.0
GENERATIONS_MAX = 1 << 16


@dataclass(frozen=True)
class Plan:
    """What is recorded, as all processes have to know it.

    size:        of the part of the device that is used, from its beginning
    phases:      from one quiet point to the next
    moment_s:    how long the clients' attention stays where it is
    cuts_per_s:  connections, in all, that are cut while requests are in flight
    run:         what distinguishes our stamps from older ones
    base_path:   a file with what the device held before, `size` bytes
    """

    uri: str
    clients: int
    connections: int
    depth: int
    size: int
    block_size: int
    seed: int
    mix: Mix
    phases: int
    phase_s: float
    moment_s: float
    cuts_per_s: float
    run: int
    base_path: Path
    start_ns: int


class Barrier(Protocol):
    """threading's, or multiprocessing's."""

    def wait(self, timeout: float | None = None) -> int:
        """Until all are here."""

    def abort(self) -> None:
        """Let nobody wait any longer."""


Tally = MutableSequence[int]  # requests sent, connections lost: what others see of a process while it runs


class Invocation(NamedTuple):
    """What there is to tell of one."""

    wish: Wish
    value: str | None


class Notebook:
    """The events of one process, in order."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._lock = threading.Lock()  # what is noted is noted in the order of its times
        self._events: list[list[Any]] = []
        self.count = 0

    def invoked(self, client: str, id_: int, wish: Wish, value: str | None) -> None:
        """A request is about to be sent."""
        entry = [0, client, id_, Invocation(wish, value)]
        with self._lock:
            entry[0] = time.monotonic_ns()
            self._events.append(entry)

    def answered(self, client: str, id_: int) -> list[Any]:
        """An answer has arrived: now. What it says is put into the last place of what is returned, soon."""
        entry = [0, client, id_, None]
        with self._lock:
            entry[0] = time.monotonic_ns()
            self._events.append(entry)
        return entry

    def write(self) -> None:
        """To the file. No request may be in flight."""
        events, self._events = self._events, []
        for t, client, id_, what in events:
            event: dict[str, Any] = {"t": t, "client": client, "id": id_}
            event.update(_told(what))
            self._file.write(json.dumps(event) + "\n")
        self.count += len(events)
        self._file.flush()


def _told(what: object) -> dict[str, Any]:
    """The rest of an event."""
    if isinstance(what, Content):
        told: dict[str, Any] = {"event": "ok", "value": what.runs}
        return {**told, "notes": what.notes} if what.notes else told
    if isinstance(what, str):
        return {"event": "error", "errno": what}
    if what is None:
        return {"event": "ok"}
    assert isinstance(what, Invocation), what
    wish, value = what
    told = {"event": "invoke", "op": wish.op, "offset": wish.offset, "length": wish.length}
    if value is not None:
        told["value"] = value
    if wish.flags:
        told["flags"] = wish.flags
    return told


# How each kind of request is sent: the flags of a wish are the client's arguments of the same names.
SEND: dict[str, Callable[[Client, Wish, bytes], Future[Any]]] = {
    "read": lambda client, wish, _: client.pread_async(wish.offset, wish.length),
    "write": lambda client, wish, data: client.pwrite_async(wish.offset, data, fua="fua" in wish.flags),
    "zero": lambda client, wish, _: client.zero_async(wish.offset, wish.length, **dict.fromkeys(wish.flags, True)),
    "trim": lambda client, wish, _: client.trim_async(wish.offset, wish.length, fua="fua" in wish.flags),
    "cache": lambda client, wish, _: client.cache_async(wish.offset, wish.length),
    "flush": lambda client, *_: client.flush_async(),
    "status": lambda client, wish, _: client.block_status_async(wish.offset, wish.length),
}


class Connection:
    """One of a process's connections, and those that take its place when it is cut."""

    def __init__(self, plan: Plan, number: int, notebook: Notebook, attribution: Attribution) -> None:
        self._plan = plan
        self._number = number
        self._notebook = notebook
        self._attribution = attribution
        self._random = random.Random(f"{plan.seed} {number}")
        self._generation = 0
        # Ids are this connection's for ever, and no other's: so a request is known by its id alone.
        self._id = number + 1
        self._id_step = plan.clients * plan.connections + 1
        self._room = threading.Semaphore(plan.depth)
        self._cut_ns = 0
        self.touched: set[int] = set()
        self.sent = 0
        self.lost = 0
        self._open()

    def _open(self) -> None:
        self._generation += 1
        assert self._generation < GENERATIONS_MAX, "too many connections were cut"
        name = f"c{self._number}"
        self._name = name if self._generation == 1 else f"{name}.{self._generation}"
        self._writer = self._number * GENERATIONS_MAX + self._generation
        self._room = threading.Semaphore(self._plan.depth)
        self._client = connected(self._plan.uri)
        plan = self._plan
        self._workload = Workload(self._random, offer_of(self._client), plan.mix, plan.size, plan.block_size)
        if plan.cuts_per_s:
            each_per_s = plan.cuts_per_s / (plan.clients * plan.connections)
            self._cut_ns = time.monotonic_ns() + int(self._random.expovariate(each_per_s) * 1e9)

    def _replace(self) -> None:
        """The server has left us, or does not answer: what has not been answered never will be."""
        self._client.close()
        self.lost += 1
        self._open()

    def run(self, until_ns: int) -> None:
        """Make requests until then, and wait until all are answered."""
        while (now_ns := time.monotonic_ns()) < until_ns:
            if self._cut_ns and now_ns > self._cut_ns:
                self._client.close()
                self._open()
            elif not self._client.alive:
                self._replace()
            moment = int((now_ns - self._plan.start_ns) / (self._plan.moment_s * 1e9))
            wish = self._workload.wish(moment)
            first, last = wish.offset // self._plan.block_size, (wish.offset + wish.length) // self._plan.block_size
            self.touched.update(range(first, last + 1))
            self.make(wish)
        self.settle()

    def read_back(self, share: Sequence[int]) -> None:
        """Read these blocks, and wait for it."""
        plan = self._plan
        for block in share:
            offset = block * plan.block_size
            length = min(plan.block_size, plan.size - offset)
            for start in range(offset, offset + length, READ_BACK_BYTES):
                self.make(Wish("read", start, min(READ_BACK_BYTES, offset + length - start)))
        self.settle()

    def make(self, wish: Wish) -> None:
        """Send a request as soon as there is room for it."""
        room = self._room
        if not room.acquire(timeout=ANSWER_LIMIT_S):
            self._replace()
            room = self._room
            room.acquire()
        self._id += self._id_step
        id_, value, data = self._id, None, b""
        if wish.op == "write":
            value = write_name(self._plan.run, id_)
            data = stamped(self._plan.run, self._writer, id_, wish.offset, wish.length)
        self._notebook.invoked(self._name, id_, wish, value)
        self.sent += 1
        future = SEND[wish.op](self._client, wish, data)
        future.add_done_callback(partial(self._done, self._name, id_, wish, room))

    def _done(self, name: str, id_: int, wish: Wish, room: threading.Semaphore, future: Future[Any]) -> None:
        """On the connection's receiving thread. A connection that has died answers nothing."""
        error = future.exception()
        if error is None or isinstance(error, NbdError):
            entry = self._notebook.answered(name, id_)
            if error is not None:
                entry[3] = errno.errorcode.get(error.errno or errno.EIO, f"E{error.errno}")
            elif wish.op == "read":
                entry[3] = self._attribution.of(future.result(), wish.offset)
        room.release()

    def settle(self) -> None:
        """Wait until nothing is in flight; what is not answered in time is given up, with its connection."""
        deadline = time.monotonic() + ANSWER_LIMIT_S
        for _ in range(self._plan.depth):
            if not self._room.acquire(timeout=max(0.0, deadline - time.monotonic())):
                self._replace()
                return
        self._room.release(self._plan.depth)

    def end(self) -> None:
        """Leave."""
        self._client.disconnect()


def connected(uri: str) -> Client:
    """A connection; StartError says why there is none."""
    try:
        return connect(uri, timeout_s=CONNECT_LIMIT_S)
    except OSError as error:
        raise StartError(f"{uri}: cannot connect: {error}") from None


def drive(plan: Plan, number: int, path: Path, barrier: Barrier, tally: Tally) -> None:
    """All that one process does: its connections, phase by phase. The barrier is of all processes."""
    with path.open("w", encoding="utf-8") as file, plan.base_path.open("rb") as base_file:
        base = mmap.mmap(base_file.fileno(), plan.size, access=mmap.ACCESS_READ)
        notebook = Notebook(file)
        attribution = Attribution(plan.run, base)
        first = number * plan.connections
        numbers = range(first, first + plan.connections)
        connections = [Connection(plan, one, notebook, attribution) for one in numbers]
        for _ in range(plan.phases):
            if not _meet(barrier):
                return
            until_ns = time.monotonic_ns() + int(plan.phase_s * 1e9)
            _all_at_once([partial(connection.run, until_ns) for connection in connections])
            if not _meet(barrier):
                return
            touched = sorted(set().union(*(connection.touched for connection in connections)))
            block_count = -(-plan.size // plan.block_size)
            blocks = [block for block in touched if block < block_count]
            shares = [blocks[at :: plan.connections] for at in range(plan.connections)]
            pairs = zip(connections, shares, strict=True)
            _all_at_once([partial(connection.read_back, share) for connection, share in pairs])
            for connection in connections:
                connection.touched.clear()
            notebook.write()
            tally[0] = sum(connection.sent for connection in connections)
            tally[1] = sum(connection.lost for connection in connections)
        for connection in connections:
            connection.end()
        notebook.write()


def _meet(barrier: Barrier) -> bool:
    """Wait for the other processes; False when one of them has gone."""
    try:
        barrier.wait(QUIET_LIMIT_S)
    except BrokenBarrierError:
        return False
    return True


def _all_at_once(calls: Sequence[Callable[[], None]]) -> None:
    """Each on a thread; the first thing that went wrong is raised here."""
    failures: list[BaseException] = []

    def guarded(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
