"""Records a history of any NBD server: processes of clients that overlap on purpose, their events put in order.

What the device held before has to be known, so that a read can say of each granule that it is the base's. Where nobody
says what it was (`base`), it is read at the beginning; a server that copies what it reads has then copied it, and its
copying is not put to the test. Granules of the base that are zero, where not all are, are written over at the
beginning, for a zero that is read could not be told from one that was written.

Units:   sizes in bytes; seconds where a name says so.
Errors:  StartError when the server is not there, cannot be written to, or leaves; UsageError for what makes no sense.
"""

from __future__ import annotations

import errno
import heapq
import multiprocessing
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from pathlib import Path

from check.history.driver import Barrier, Connection, Notebook, Plan, Tally, connected, drive
from check.history.format import header_line
from check.history.workload import MIX, Mix, Wish, offer_of
from impl.base.open import open_base
from impl.client import Client, NbdError
from impl.errors import StartError, UsageError
from impl.history_tags import GRANULE, Attribution, is_zero
from model.history import History, Level

POLL_S = 0.1
END_LIMIT_S = 5.0
LOOK_BYTES = 1 << 20

Progress = Callable[[float, int], None]  # seconds so far, requests so far


@dataclass(frozen=True)
class Recipe:
    """What is to be recorded; see the options of `cowproof history record`."""

    uri: str
    seconds: float = 5.0
    clients: int = 3
    connections: int = 2
    depth: int = 2
    size: int = 16 << 20
    block_size: int = 64 << 10
    seed: int = 0
    mix: Mix = field(default_factory=lambda: MIX)
    base: str | None = None
    cuts_per_s: float = 0.0
    quiet_s: float = 0.5
    moment_s: float = 0.05
    level: Level = "request"
    trim_reads_zero: bool = True


@dataclass(frozen=True)
class Recorded:
    """What came of it."""

    requests: int
    events: int
    lost_connections: int


# Whether it was for want of room for the history, and what.
Failures = SimpleQueue[tuple[bool, str]]


class NoSpace(StartError):
    """There is no room for the history, here where it is recorded: it says nothing of the server."""


def is_no_space(error: Exception) -> bool:
    """Whether a file of ours could not be written for want of room, and no server said so of its own."""
    if not isinstance(error, OSError) or isinstance(error, NbdError):
        return False
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def no_progress(seconds: float, requests: int) -> None:
    """For those who need not be told."""


def record(recipe: Recipe, path: str | Path, progress: Progress = no_progress) -> Recorded:
    """Record a history into a file."""
    try:
        with _private_folder() as folder, open(path, "w", encoding="utf-8") as out:
            return _Recording(recipe, folder, progress).run(out.write)
    except BrokenPipeError:
        raise
    except OSError as error:
        kind = NoSpace if is_no_space(error) else StartError
        raise kind(f"{path}: cannot record: {error.strerror or error}") from None


@contextmanager
def _private_folder() -> Iterator[Path]:
    folder = tempfile.mkdtemp(prefix="cowproof-history-")
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Recording:
    """One recording."""

    def __init__(self, recipe: Recipe, folder: Path, progress: Progress) -> None:
        self._recipe = recipe
        self._folder = folder
        self._progress = progress
        self._requests = 0
        self._lost = 0

    def run(self, write: Callable[[str], object]) -> Recorded:
        """Look, prepare, drive, and put the events in order."""
        recipe = self._recipe
        with connected(recipe.uri) as client:
            device_size = client.size
            plan = self._plan(client)
        base_is_zero, prepared = self._prepare(plan)
        parts = [prepared, *self._drive(plan)]
        events = sum(_count(part) for part in parts)
        header = History(
            device_size,
            recipe.block_size,
            GRANULE,
            recipe.level,
            recipe.trim_reads_zero,
            base_is_zero,
        )
        write(header_line(header, events))
        for line in _in_order(parts):
            write(line)
        return Recorded(self._requests, events, self._lost)

    def _plan(self, client: Client) -> Plan:
        recipe = self._recipe
        offer = offer_of(client)
        if "write" not in offer.ops:
            raise StartError(f"{recipe.uri}: cannot be written to, so there is nothing to be seen")
        size = min(recipe.size, client.size) // offer.unit * offer.unit
        if not size:
            raise StartError(f"{recipe.uri}: expected a device of at least {offer.unit} bytes, found {client.size}")
        if recipe.block_size % GRANULE:
            raise UsageError(f"block size {recipe.block_size}: expected a multiple of {GRANULE}")
        base_path = self._folder / "base"
        with base_path.open("wb") as file:
            for piece in self._base(client, size):
                file.write(piece)
        phases = max(1, round(recipe.seconds / recipe.quiet_s))
        return Plan(
            uri=recipe.uri,
            clients=recipe.clients,
            connections=recipe.connections,
            depth=recipe.depth,
            size=size,
            block_size=recipe.block_size,
            seed=recipe.seed,
            mix=recipe.mix,
            phases=phases,
            phase_s=recipe.seconds / phases,
            moment_s=recipe.moment_s,
            cuts_per_s=recipe.cuts_per_s,
            run=secrets.randbits(16),
            base_path=base_path,
            start_ns=time.monotonic_ns(),
        )

    def _base(self, client: Client, size: int) -> Iterator[bytes]:
        """What the device holds before, piece by piece."""
        if self._recipe.base is None:
            step = min(LOOK_BYTES, client.payload_max)
            for offset in range(0, size, step):
                yield client.pread(offset, min(step, size - offset))
            return
        base = open_base(self._recipe.base)
        try:
            if base.size < size:
                raise UsageError(f"base {self._recipe.base} has {base.size} bytes: expected at least {size}")
            yield base.pread(0, size)
        finally:
            base.close()

    def _prepare(self, plan: Plan) -> tuple[bool, Path]:
        """Write over what is zero in a base that is not zero; whether the base is zero, and the events of that."""
        base = plan.base_path.read_bytes()
        base_is_zero = is_zero(base)
        path = self._folder / "prepared"
        with path.open("w", encoding="utf-8") as file:
            notebook = Notebook(file)
            if not base_is_zero:
                connection = Connection(plan, plan.clients * plan.connections, notebook, Attribution(plan.run, base))
                for offset, length in _zero_runs(base):
                    connection.make(Wish("write", offset, length))
                connection.settle()
                connection.end()
                self._requests += connection.sent
            notebook.write()
        return base_is_zero, path

    def _drive(self, plan: Plan) -> Sequence[Path]:
        """Have the processes run; the files of their events."""
        context = multiprocessing.get_context("spawn")
        barrier = context.Barrier(plan.clients)
        tallies = [context.Array("q", [0, 0], lock=False) for _ in range(plan.clients)]
        failures: Failures = context.SimpleQueue()
        parts = [self._folder / f"client-{number}" for number in range(plan.clients)]
        processes = [
            context.Process(
                target=_client_process,
                args=(plan, number, parts[number], barrier, tallies[number], failures),
                daemon=True,
            )
            for number in range(plan.clients)
        ]
        begun_s = time.monotonic()
        try:
            for process in processes:
                process.start()
            while any(process.is_alive() for process in processes):
                processes[0].join(POLL_S)
                self._progress(time.monotonic() - begun_s, self._requests + sum(tally[0] for tally in tallies))
                self._check(processes, failures, barrier)
            self._check(processes, failures, barrier)
        finally:
            for process in processes:
                _end(process)
        self._requests += sum(tally[0] for tally in tallies)
        self._lost += sum(tally[1] for tally in tallies)
        return parts

    def _check(self, processes: Sequence[BaseProcess], failures: Failures, barrier: Barrier) -> None:
        """Whether a process has failed; StartError, with what it said."""
        if not failures.empty():
            barrier.abort()
            is_ours, said = failures.get()
            raise (NoSpace if is_ours else StartError)(said)
        for process in processes:
            if process.exitcode:
                barrier.abort()
                raise StartError(f"a process of clients ended with status {process.exitcode}")


def _client_process(plan: Plan, number: int, path: Path, barrier: Barrier, tally: Tally, failures: Failures) -> None:
    """The main function of a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that started us, who ends us
    try:
        drive(plan, number, path, barrier, tally)
    except (StartError, OSError) as error:
        is_ours = is_no_space(error)
        failures.put((is_ours, f"{path.parent}: no room for the history; set $TMPDIR" if is_ours else str(error)))
    # Not by way of threads that may wait for a server: what had to be said is written.
    os._exit(0)


def _end(process: BaseProcess) -> None:
    if process.pid is None:
        return
    if process.is_alive():
        process.terminate()
    process.join(END_LIMIT_S)
    if process.is_alive():
        process.kill()
        process.join(END_LIMIT_S)


def _zero_runs(base: bytes) -> Iterator[tuple[int, int]]:
    """Where the base is zero, granule by granule, as (offset, length)."""
    nothing = bytes(GRANULE)
    start = None
    for offset in range(0, len(base) + GRANULE, GRANULE):
        if base[offset : offset + GRANULE] == nothing:
            start = offset if start is None else start
            if offset + GRANULE - start < LOOK_BYTES:
                continue
            yield start, offset + GRANULE - start
            start = None
        elif start is not None:
            yield start, offset - start
            start = None


def _count(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _in_order(parts: Sequence[Path]) -> Iterator[str]:
    """The lines of files that are in order, in order."""
    files = [part.open(encoding="utf-8") for part in parts]
    try:
        yield from heapq.merge(*files, key=_time_of)
    finally:
        for file in files:
            file.close()


def _time_of(line: str) -> int:
    return int(line[len('{"t": ') : line.index(",")])
