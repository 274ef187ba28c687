"""Times the checker of histories: how long, and in how much memory, by requests, clients and blocks.

The histories are made up, the same ones for the same seed: clients send one request after the other, half of them
reads, each takes effect at an instant anywhere between its two ends, and every write has a value of its own. One that
is not linearizable has one fault near its end: a read of one block is stale, or one of several blocks is torn. Each
history is decided in a process of its own, so that its peak of memory is its own; or, with `--files`, it is written to
a file, which one process loads, and another checks as the command does.

Source:  PORCUPINE is what Porcupine took, in Go, for histories made by the same recipe; see docs/benchmarks.md.
Units:   seconds of processor time (and wall time where that is said); memory in MiB, as the kernel reports the peak.
Errors:  exit status 1 if a verdict is not the one that the history was made for; unknown is such a one.
"""

from __future__ import annotations

import heapq
import json
import multiprocessing
import os
import platform
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import TypeVar

import click

from check.history.command import STATUS
from check.history.format import load, save
from model.budget import Budget
from model.history import BASE, OK, History
from model.linearizability import decide
from model.wgl import Verdict

T = TypeVar("T")

BLOCK_BYTES = 65536
LATENCY = 1000  # Its median; log-normal, so that a few take ten times as long.
PAUSE_MAX = 200
KIB, MIB = 1 << 10, 1 << 20

HELP = """Time the checker of histories on histories that are made up.

\b
Examples:
  python -m bench.histories
  python -m bench.histories --requests 10000,100000 --clients 16 --json result.json
  python -m bench.histories --span 4 --level request --budget-s 60
  python -m bench.histories --files --requests 1000000
"""

# (requests, clients, blocks): seconds for a history that is linearizable, and for one with a stale read. None: it ran
# out of 6 GB; no entry: not measured.
PORCUPINE: dict[tuple[int, int, int], tuple[float | None, ...]] = {
    (10_000, 4, 1): (0.037, 0.100),
    (10_000, 4, 16): (0.011, 0.008),
    (10_000, 4, 1024): (0.015, 0.014),
    (10_000, 16, 1): (None, None),
    (10_000, 16, 16): (0.012, 0.009),
    (10_000, 16, 1024): (0.013, 0.014),
    (10_000, 64, 1): (None, None),
    (10_000, 64, 16): (0.041, 0.035),
    (10_000, 64, 1024): (0.015, 0.014),
    (100_000, 4, 1): (1.36, None),
    (100_000, 4, 16): (0.185, 0.113),
    (100_000, 4, 1024): (0.123, 0.096),
    (100_000, 16, 1): (None, None),
    (100_000, 16, 16): (0.212, 0.167),
    (100_000, 16, 1024): (0.126, 0.083),
    (100_000, 64, 1): (None, None),
    (100_000, 64, 16): (0.875, 1.10),
    (100_000, 64, 1024): (0.129, 0.087),
    (1_000_000, 4, 1): (None,),
    (1_000_000, 4, 16): (None,),
    (1_000_000, 4, 1024): (1.72,),
    (1_000_000, 16, 1): (None,),
    (1_000_000, 16, 16): (None,),
    (1_000_000, 16, 1024): (1.66,),
    (1_000_000, 64, 1): (None,),
    (1_000_000, 64, 16): (None,),
    (1_000_000, 64, 1024): (1.58,),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One history, and how it was decided.

    before_mib: the peak with nothing but the history in memory
    """

    requests: int
    clients: int
    blocks: int
    span: int
    level: str
    faulty: bool
    budget_s: float
    verdict: str = ""
    cpu_s: float = 0.0
    wall_s: float = 0.0
    before_mib: int = 0
    peak_mib: int = 0

    @property
    def expected(self) -> str:
        """The verdict that the history was made for."""
        verdict = Verdict.NOT_LINEARIZABLE if self.faulty else Verdict.LINEARIZABLE
        return str(verdict.value)

    def history(self) -> History:
        """The history."""
        return make_history(self.requests, self.clients, self.blocks, self.span, self.faulty)


@dataclass(frozen=True, slots=True)
class FileRow:
    """One file, and what it takes to load it, and to run the command on it."""

    row: Row
    file_mib: int
    load_cpu_s: float
    load_mib: int
    status: int
    wall_s: float
    cpu_s: float
    peak_mib: int


def make_history(requests: int, clients: int, blocks: int, span: int, faulty: bool, seed: int = 1) -> History:
    """A history of requests of 1 to `span` blocks."""
    rng = random.Random(seed)
    free = [(rng.randrange(LATENCY), client) for client in range(clients)]
    heapq.heapify(free)
    history = History(blocks * BLOCK_BYTES, BLOCK_BYTES)
    instants = []
    at = [block * BLOCK_BYTES for block in range(blocks + 1)]  # One number for each place, as in one that was loaded.
    for index in range(requests):
        call, client = heapq.heappop(free)
        ret = call + int(rng.lognormvariate(0, 1) * LATENCY) + 1
        heapq.heappush(free, (ret + rng.randrange(PAUSE_MAX) + 1, client))
        length = rng.randint(1, min(span, blocks))
        history.client.append(f"c{client}")
        history.id.append(index)
        history.op.append("read" if rng.random() < 0.5 else "write")
        history.offset.append(at[rng.randrange(blocks - length + 1)])
        history.length.append(at[length])
        history.call.append(call)
        history.ret.append(ret)
        history.outcome.append(OK)
        history.value.append(None)
        history.flags.append(())
        instants.append(rng.randint(call, ret))
    run(history, sorted(range(requests), key=instants.__getitem__))
    if faulty:
        (make_torn if span > 1 else make_stale)(history)
    return history


def run(history: History, order: Sequence[int]) -> None:
    """Say what each request wrote or returned, if they took effect in this order."""
    held = [BASE] * (history.size // BLOCK_BYTES)
    for index in order:
        first = history.offset[index] // BLOCK_BYTES
        behind = first + history.length[index] // BLOCK_BYTES
        if history.op[index] == "write":
            history.value[index] = f"w{index}"
            held[first:behind] = [f"w{index}"] * (behind - first)
        else:
            history.value[index] = tuple((value, BLOCK_BYTES) for value in held[first:behind])


def make_stale(history: History) -> None:
    """Near the end, give a read of one block the value before the one that it had to return.

    That is a fault for certain if a write of the block began after an earlier one had ended, and had ended itself
    before the read began.
    """
    for read in range(len(history) - 1, -1, -1):
        if history.op[read] != "read" or history.length[read] != BLOCK_BYTES:
            continue
        before = [
            at
            for at in range(read)
            if history.op[at] == "write"
            and history.ret[at] < history.call[read]
            and history.offset[at] <= history.offset[read] < history.offset[at] + history.length[at]
        ]
        if len(before) < 2:
            continue
        last = max(before, key=history.call.__getitem__)
        earlier = [at for at in before if history.ret[at] < history.call[last]]
        if earlier:
            history.value[read] = ((f"w{earlier[-1]}", BLOCK_BYTES),)
            return
    raise ValueError("no read of this history can be made stale")


def make_torn(history: History) -> None:
    """Near the end, give the first block of a read that returned one write the value of an earlier write.

    The write overlaps the read in time, so that no block need be wrong by itself. But the read saw it on another block,
    so it came before the read; and the earlier one, over when it began, cannot have come in between.
    """
    writes = {value: at for at, value in enumerate(history.value) if history.op[at] == "write"}
    for read in range(len(history) - 1, -1, -1):
        value = history.value[read]
        if history.op[read] != "read" or not isinstance(value, tuple):
            continue
        if len(value) < 2 or len(set(value)) > 1 or value[0][0] not in writes:
            continue
        write = writes[value[0][0]]
        if history.ret[write] < history.call[read]:
            continue
        for at in range(write - 1, -1, -1):
            covers = history.offset[at] <= history.offset[read] < history.offset[at] + history.length[at]
            earlier = history.value[at]
            if isinstance(earlier, str) and covers and history.ret[at] < history.call[write]:
                history.value[read] = ((earlier, BLOCK_BYTES), *value[1:])
                return
    raise ValueError("no read of this history can be torn")


# In processes of their own.


def measure(row: Row) -> Row:
    """Decide one row's history, in this process."""
    history = row.history()
    before_mib = peak_mib()
    cpu, wall = time.process_time(), time.perf_counter()
    decision = decide(history, row.level, Budget(seconds=row.budget_s))  # type: ignore[arg-type]
    return replace(
        row,
        verdict=decision.verdict.value,
        cpu_s=round(time.process_time() - cpu, 3),
        wall_s=round(time.perf_counter() - wall, 3),
        before_mib=before_mib,
        peak_mib=peak_mib(),
    )


def write(row: Row, path: str) -> None:
    """Make one row's history, and write it to a file."""
    save(replace(row.history(), level=row.level), path)  # type: ignore[arg-type]


def measure_loading(path: str) -> tuple[float, int]:
    """How long loading takes, and the peak."""
    cpu = time.process_time()
    load(path)
    return round(time.process_time() - cpu, 3), peak_mib()


def peak_mib() -> int:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // KIB


def apart(function: Callable[..., T], *arguments: object) -> T:
    """What a function returns in a process of its own."""
    # Ctrl-C reaches it, too: whoever waits for it ends it.
    ignoring = (signal.SIGINT, signal.SIG_IGN)
    with multiprocessing.get_context("spawn").Pool(1, signal.signal, ignoring) as pool:
        return pool.apply(function, arguments)


def measure_command(row: Row, path: str) -> FileRow:
    """What the command takes, from its start to its end, and loading by itself."""
    load_cpu_s, load_mib = apart(measure_loading, path)
    wall = time.perf_counter()
    command_line = [sys.executable, "-m", "check.history", "check", path, "--budget-s", str(row.budget_s)]
    process = subprocess.Popen(command_line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    return FileRow(
        row,
        Path(path).stat().st_size // MIB,
        load_cpu_s,
        load_mib,
        os.waitstatus_to_exitcode(status),
        round(time.perf_counter() - wall, 3),
        round(usage.ru_utime + usage.ru_stime, 3),
        usage.ru_maxrss // KIB,
    )


# As Markdown.

DECIDED = (
    *("requests", "clients", "blocks", "linearizable", "one fault", "a request", "before", "peak"),
    *("Porcupine", "one stale read"),
)
CHECKED = ("requests", "clients", "blocks", "", "file", "loading", "peak", "the command", "wall time", "peak")


def titles(columns: Sequence[str]) -> str:
    """The head of a table."""
    return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"


def line(cells: Sequence[object]) -> str:
    """A row of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def took(row: Row) -> str:
    """How long a verdict took, or an attempt at one; a wrong one is called so."""
    if row.verdict == row.expected:
        return f"{row.cpu_s:.3f} s"
    return f"**{row.verdict}**, {row.cpu_s:.3f} s"


def porcupine(row: Row) -> list[str]:
    """Porcupine's figures for a history and for one with a fault, as far as there are any."""
    known = PORCUPINE.get((row.requests, row.clients, row.blocks), ()) if row.span == 1 else ()
    said = ["out of memory" if seconds is None else f"{seconds:g} s" for seconds in known]
    return [*said, "", ""][:2]


def decided_line(right: Row, faulty: Row) -> str:
    """Two histories that differ in a fault."""
    return line(
        [
            f"{right.requests:,}",
            right.clients,
            right.blocks,
            took(right),
            took(faulty),
            f"{right.cpu_s / right.requests * 1e6:.1f} µs",
            f"{right.before_mib} MiB",
            f"{max(right.peak_mib, faulty.peak_mib)} MiB",
            *porcupine(right),
        ]
    )


def checked_line(found: FileRow) -> str:
    """One file."""
    row = found.row
    return line(
        [
            f"{row.requests:,}",
            row.clients,
            row.blocks,
            "one fault" if row.faulty else "linearizable",
            f"{found.file_mib} MiB",
            f"{found.load_cpu_s:.2f} s",
            f"{found.load_mib} MiB",
            f"{found.cpu_s:.2f} s" + ("" if is_right(found) else f", **status {found.status}**"),
            f"{found.wall_s:.2f} s",
            f"{found.peak_mib} MiB",
        ]
    )


def is_right(found: FileRow) -> bool:
    """Whether the command came to the verdict that the history was made for."""
    return found.status == STATUS[Verdict(found.row.expected)]


def numbers(_context: click.Context, _parameter: click.Parameter, value: str) -> list[int]:
    """Numbers with commas between them."""
    try:
        return [int(number) for number in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is not numbers with commas between them") from None


@click.command(help=HELP)
@click.option("--requests", default="10000,100000,1000000", callback=numbers, show_default=True)
@click.option("--clients", default="4,16,64", callback=numbers, show_default=True)
@click.option("--blocks", default="1,16,1024", callback=numbers, show_default=True)
@click.option("--span", default=1, type=click.IntRange(1), show_default=True, help="Blocks of a request, at most.")
@click.option("--level", default="request", type=click.Choice(["request", "block", "sector"]), show_default=True)
@click.option("--budget-s", default=60.0, type=click.FloatRange(0), show_default=True, help="Of each verdict.")
@click.option("--files", is_flag=True, help="Time loading from files, and the whole command.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, writable=True), help="Write the rows here, too.")
def main(
    requests: list[int],
    clients: list[int],
    blocks: list[int],
    span: int,
    level: str,
    budget_s: float,
    files: bool,
    json_path: str | None,
) -> None:
    """Measure all rows and print them."""
    click.echo(f"CPython {platform.python_version()}, {platform.machine()}, one process a history; processor time\n")
    pairs = [
        [Row(*size, min(span, size[2]), level, faulty, budget_s) for faulty in (False, True)]
        for size in product(requests, clients, blocks)
    ]
    rows: list[tuple[Row | FileRow, bool]] = [*(check_files if files else decide_all)(pairs)]
    if json_path:
        with open(json_path, "w", encoding="utf-8") as file:
            json.dump({"python": platform.python_version(), "rows": [asdict(row) for row, _ in rows]}, file, indent=1)
    sys.exit(0 if all(is_as_made for _, is_as_made in rows) else 1)


def decide_all(pairs: list[list[Row]]) -> Iterator[tuple[Row, bool]]:
    """Decide, and print a line for each pair."""
    click.echo(titles(DECIDED))
    for pair in pairs:
        done = [apart(measure, row) for row in pair]
        click.echo(decided_line(*done))
        yield from ((row, row.verdict == row.expected) for row in done)


def check_files(pairs: list[list[Row]]) -> Iterator[tuple[FileRow, bool]]:
    """Write files, check them, and print a line for each."""
    click.echo(titles(CHECKED))
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "history.jsonl")
        for row in (row for pair in pairs for row in pair):
            apart(write, row, path)
            found = measure_command(row, path)
            click.echo(checked_line(found))
            yield found, is_right(found)


if __name__ == "__main__":
    main()
