"""Times the checker of histories: how long, and in how much memory, by requests, clients and blocks.

The histories are made up, the same ones for the same seed: clients send one request after the other, half of them
reads, each takes effect at an instant anywhere between its two ends, and every write has a value of its own. One that
is not linearizable has one fault near its end: a read of one block is stale, or one of several blocks is torn. Each row
is a process of its own, so that its peak of memory is its own.

Units:   seconds of processor time (and wall time where that is said); memory in MiB, as the kernel reports the peak.
Errors:  exit status 1 if a verdict is not the one that the history was made for; unknown is such a one.
Omits:   reading histories from files.
"""

from __future__ import annotations

import heapq
import json
import multiprocessing
import platform
import random
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import click

from model.budget import Budget
from model.history import BASE, OK, History
from model.linearizability import Verdict, decide

BLOCK_BYTES = 65536
LATENCY = 1000  # Its median; log-normal, so that a few take ten times as long.
PAUSE_MAX = 200

HELP = """Time the checker of histories on histories that are made up.

\b
Examples:
  python -m bench.histories
  python -m bench.histories --requests 10000,100000 --clients 16 --json result.json
  python -m bench.histories --span 4 --level request
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One history, and how it was decided."""

    requests: int
    clients: int
    blocks: int
    span: int
    level: str
    faulty: bool
    verdict: str = ""
    cpu_s: float = 0.0
    wall_s: float = 0.0
    loaded_mib: int = 0
    peak_mib: int = 0


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
        if history.op[read] != "read" or len(value) < 2 or len(set(value)) > 1 or value[0][0] not in writes:
            continue
        write = writes[value[0][0]]
        if history.ret[write] < history.call[read]:
            continue
        for at in range(write - 1, -1, -1):
            covers = history.offset[at] <= history.offset[read] < history.offset[at] + history.length[at]
            if history.op[at] == "write" and covers and history.ret[at] < history.call[write]:
                history.value[read] = ((history.value[at], BLOCK_BYTES), *value[1:])
                return
    raise ValueError("no read of this history can be torn")


def measure(row: Row) -> Row:
    """Decide one row's history, in this process."""
    history = make_history(row.requests, row.clients, row.blocks, row.span, row.faulty)
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu, wall = time.process_time(), time.perf_counter()
    decision = decide(history, row.level, Budget(seconds=600))  # type: ignore[arg-type]
    return Row(
        row.requests,
        row.clients,
        row.blocks,
        row.span,
        row.level,
        row.faulty,
        decision.verdict.value,
        round(time.process_time() - cpu, 3),
        round(time.perf_counter() - wall, 3),
        loaded // 1024,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    )


def expected(row: Row) -> str:
    """The verdict that a row's history was made for."""
    return (Verdict.NOT_LINEARIZABLE if row.faulty else Verdict.LINEARIZABLE).value


TITLES = (
    *("requests", "clients", "blocks", "span", "level", "verdict"),
    *("cpu_s", "us/request", "wall_s", "loaded_MiB", "peak_MiB"),
)


def line(row: Row) -> str:
    """A row of the table, as Markdown."""
    cells = [
        f"{row.requests:,}",
        row.clients,
        row.blocks,
        row.span,
        row.level,
        row.verdict,
        f"{row.cpu_s:.3f}",
        f"{row.cpu_s / row.requests * 1e6:.1f}",
        f"{row.wall_s:.3f}",
        row.loaded_mib,
        row.peak_mib,
    ]
    return f"| {' | '.join(map(str, cells))} |"


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
@click.option("--json", "json_path", type=click.Path(dir_okay=False, writable=True), help="Write the rows here, too.")
def main(
    requests: list[int], clients: list[int], blocks: list[int], span: int, level: str, json_path: str | None
) -> None:
    """Measure all rows and print them."""
    click.echo(f"CPython {platform.python_version()}, {platform.machine()}, one process a row\n")
    click.echo(f"| {' | '.join(TITLES)} |\n|{'---|' * len(TITLES)}")
    rows = []
    wrong = 0
    for count in requests:
        for client_count in clients:
            for block_count in blocks:
                for faulty in (False, True):
                    row = Row(count, client_count, block_count, min(span, block_count), level, faulty)
                    with multiprocessing.get_context("spawn").Pool(1) as pool:
                        row = pool.apply(measure, (row,))
                    rows.append(row)
                    wrong += row.verdict != expected(row)
                    click.echo(line(row) + ("" if row.verdict == expected(row) else f" expected: {expected(row)}"))
    if json_path:
        with open(json_path, "w", encoding="utf-8") as file:
            json.dump({"python": platform.python_version(), "rows": [asdict(row) for row in rows]}, file, indent=1)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
