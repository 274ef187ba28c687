"""Turns: each row on each server, A B C A B C, in rounds of which the first warms up and is not counted.

A round in which other processes took much of the processors is repeated, up to a bound; then its least disturbed try
counts, and is marked.

Units:   seconds, bytes.
Errors:  a server that cannot do a row is shown with why, and is not asked again in it.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench import measure
from bench.clients import ClientError
from bench.own_client import CannotError
from bench.results import RowResult, Sample, ServerResult
from bench.rows import BASES, PREPARATIONS, Row, Stand, Task, Work
from bench.servers import TLS, Base, Running, Server, absent, idle_connections, started
from impl.errors import StartError

CHUNK_BYTES = 1 << 20
PAGE_BYTES = 4096
# Of all processors' time; the constant is for the clock's ticks, and for what the kernel does behind everybody's back.
OTHERS_MAX = 0.2
OTHERS_ALLOWED_S = 0.05


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is done. `repeats`: further tries of a disturbed round; `seconds`: see `bench.rows.Task`."""

    rounds: int = 5
    size_bytes: int = 1 << 30
    seconds: float = 2.0
    repeats: int = 2


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is.

    is_first:  of its row
    left_s:    an estimate, from what turns took so far; None at the start
    """

    row: Row
    server: str
    round: int
    rounds: int
    is_first: bool
    left_s: float | None


Say = Callable[[Progress], None]


def reason_against(server: Server, row: Row) -> str:
    """Why a server is not asked to do a row, if it is not."""
    for trait in sorted(row.all_traits):
        if trait in server.lacks:
            return server.lacks[trait]
    return absent(server, "slow" in row.all_traits, TLS in row.all_traits)


def remark_on(server: Server, row: Row) -> str:
    """What has to be said beside its figures, if anything."""
    return "; ".join(server.remarks[trait] for trait in sorted(row.all_traits) if trait in server.remarks)


def fits(server: Server, row: Row) -> bool:
    """Whether a setting is worth showing in a row."""
    if server.setting_of and not row.settings:
        return False
    return not server.only or bool(server.only & row.all_traits)


@dataclass
class Run:
    """A run: its folder with the bases, and the servers that stay for several rounds."""

    folder: Path
    settings: Settings
    say: Say
    clock: Callable[[], float] = time.monotonic
    _bases: dict[str, Base] = field(default_factory=dict)
    _kept: dict[str, Running] = field(default_factory=dict)
    _kept_stand: Stand | None = None
    _stack: ExitStack = field(default_factory=ExitStack)
    _turns_done: int = 0
    _turns: int = 0
    _began_s: float = 0.0

    def all(self, rows: Sequence[Row], servers: Sequence[Server], done: Callable[[RowResult], None]) -> None:
        """Every row; `done` is given each when it is measured."""
        self._began_s = self.clock()
        chosen = {row.name: [server for server in servers if fits(server, row)] for row in rows}
        self._turns = sum(len(chosen[row.name]) for row in rows) * (self.settings.rounds + 1)
        with self._stack:
            for row in rows:
                done(self.row(row, chosen[row.name]))
            self._let_go()

    def row(self, row: Row, servers: Sequence[Server]) -> RowResult:
        """All its rounds."""
        if self._kept_stand != row.stand or row.anew:
            self._let_go()
        found = {server.name: ServerResult(server.name, server.shown) for server in servers}
        for server in servers:
            found[server.name].cannot = reason_against(server, row)
            found[server.name].remark = remark_on(server, row)
        is_first = True
        for round_ in range(self.settings.rounds + 1):
            for server in servers:
                self._turns_done += 1
                if not found[server.name].cannot:
                    self.say(Progress(row, server.name, round_, self.settings.rounds, is_first, self._left_s()))
                    is_first = False
                    self._turn(row, server, found[server.name], is_counted=round_ > 0)
        return RowResult(row.name, row.meaning, row.figure, row.wanted, list(found.values()))

    def _left_s(self) -> float | None:
        done = self._turns_done - 1
        return (self.clock() - self._began_s) / done * (self._turns - done) if done else None

    def _turn(self, row: Row, server: Server, into: ServerResult, is_counted: bool) -> None:
        """One round of one server: what counts is appended, or why it cannot be had."""
        try:
            tries = [self._sample(row, server)]
            while is_counted and tries[-1].noisy and len(tries) <= self.settings.repeats:
                tries.append(self._sample(row, server))
        except (CannotError, ClientError, StartError) as error:
            into.cannot, into.samples = str(error), []
            self._kept.pop(server.name, None)
            return
        if is_counted:
            into.samples.append(min(tries, key=lambda sample: (sample.noisy, sample.other_s / (sample.wall_s or 1))))

    def _sample(self, row: Row, server: Server) -> Sample:
        with ExitStack() as turn:
            running = self._started(row, server, turn if row.anew else self._stack)
            task = Task(running, self._base(row.base), self.settings.seconds)
            beside = idle_connections(running.uri, row.idle_beside) if row.idle_beside else nullcontext()
            with beside:
                try:
                    return observed(row, task)
                except ClientError as error:
                    if running.has_ended():
                        raise ClientError(f"the server ended while it was measured; {error}") from None
                    raise

    def _started(self, row: Row, server: Server, stack: ExitStack) -> Running:
        """A server with its overlay as the row wants it."""
        if not row.anew and server.name in self._kept:
            return self._kept[server.name]
        base = self._base(row.base)
        running = stack.enter_context(started(server, base, row.mode, self.folder, row.block_bytes))
        PREPARATIONS[row.prepared](Task(running, base, self.settings.seconds))
        if row.prepared != "fresh":
            os.sync()  # else the kernel writes out what was prepared beside what is measured
        if not row.anew:
            self._kept[server.name] = running
            self._kept_stand = row.stand
        return running

    def _let_go(self) -> None:
        """End the servers that stayed."""
        self._stack.close()
        self._kept.clear()
        self._kept_stand = None

    def _base(self, name: str) -> Base:
        """Made when it is first asked for."""
        if name not in self._bases:
            kind = BASES[name]
            size_bytes = kind.size_bytes or self.settings.size_bytes
            path = self.folder / f"base-{name}"
            if kind.size_bytes:
                make_sparse(path, size_bytes, kind.places)
            else:
                make_random(path, size_bytes)
            self._bases[name] = Base(path, size_bytes, kind.latency_ms)
        return self._bases[name]


def observed(row: Row, task: Task) -> Sample:
    """A row's work, and what everybody took for it."""
    running = task.running
    aside_s = 0.0 if row.aside is None else server_time_s(row.aside, task)
    ours = (running.pid, *running.helpers)
    busy_s, own_s = measure.busy_s(), sum(os.times()[:2])
    server_s, ours_s, began_s = measure.cpu_s([running.pid]), measure.cpu_s(ours), time.monotonic()
    outcome = row.work(task)
    wall_s = time.monotonic() - began_s
    used_s, ours_s = measure.cpu_s([running.pid]) - server_s, measure.cpu_s(ours) - ours_s
    own_s = sum(os.times()[:2]) - own_s
    other_s = max(0.0, measure.busy_s() - busy_s - ours_s - outcome.client_s - own_s)
    return Sample(
        **asdict(outcome),
        server_s=max(0.0, used_s + (server_s if row.is_about_start else 0.0) - aside_s),
        other_s=other_s,
        memory_bytes=measure.memory_bytes(running.pid),
        noisy=is_noisy(other_s, wall_s),
    )


def server_time_s(work: Work, task: Task) -> float:
    """What the server took for some work."""
    began_s = measure.cpu_s([task.running.pid])
    work(task)
    return measure.cpu_s([task.running.pid]) - began_s


def is_noisy(other_s: float, wall_s: float, processors: int = os.cpu_count() or 1) -> bool:
    """Whether others took so much of the processors that the round says little."""
    return other_s > OTHERS_MAX * wall_s * processors + OTHERS_ALLOWED_S


# The bases.


def make_random(path: Path, size_bytes: int) -> None:
    """Random bytes, which are then read once, so that they are in the page cache."""
    with path.open("wb") as file:
        for start in range(0, size_bytes, CHUNK_BYTES):
            file.write(os.urandom(min(CHUNK_BYTES, size_bytes - start)))
        file.flush()
        os.fsync(file.fileno())  # now, rather than beside the first row
    with path.open("rb", buffering=0) as file:
        while file.read(CHUNK_BYTES):
            pass


def make_sparse(path: Path, size_bytes: int, places: int = 0) -> None:
    """A file of that size with nothing in it, but for a page of random bytes at each place."""
    with path.open("wb") as file:
        try:
            file.truncate(size_bytes)
            for place in range(places):
                file.seek(size_bytes // places * place)
                file.write(os.urandom(PAGE_BYTES))
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            raise StartError(f"{path.parent} takes no file of {size_bytes} bytes: {error.strerror}") from None


def private_folder(parent: Path) -> tempfile.TemporaryDirectory[str]:
    """Where all of a run is, and is gone with it."""
    try:
        return tempfile.TemporaryDirectory(prefix="cowproof-bench-", dir=parent)
    except OSError as error:
        raise StartError(f"{parent}: {error.strerror}") from None
