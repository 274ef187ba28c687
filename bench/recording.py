"""Times what `serve --record` costs: the server's processor time per request, without it and with it, in turn.

    python -m bench.recording                     # all rows, five rounds
    python -m bench.recording --rows write-stamped --sizes 64K --rounds 9 --json result.json

Each round starts both servers anew, one after the other, so that a machine whose speed drifts is as unfair to one as to
the other; the first round warms up and is not counted. One client has 32 requests in flight, and what it
writes was made before, so that the server is what is waited for. Of a server all is counted: the requests, its threads,
the writing of the file, and what it does as it ends.

Source:  clock_getcpuclockid(3), for the clock of another process; getrusage(2).
Units:   microseconds of processor time per request, user and system.
Errors:  exit status 1 if a recording has not two lines for each request.
Omits:   the client's time. What it writes comes again and again, so that the recordings are no histories.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click

from impl.client import Client, connect
from impl.errors import UsageError
from impl.history_tags import stamped
from impl.sizes import format_size, parse_size

BASE = "pattern:64M?seed=3"
USED_BYTES = 16 << 20
DEPTH = 32
STRIDE = 7919  # A prime: requests come to all places, and never to neighbours.
START_LIMIT_S = 20.0
RUN = 0xC0
POLL_S = 0.01

HELP = """Time what recording costs the server.

\b
Examples:
  python -m bench.recording
  python -m bench.recording --rows read-stamped,write-stamped --rounds 9
  python -m bench.recording --sizes 64K --json result.json
"""

Content = Callable[[int, int, int], bytes]  # sequence, offset, length
Send = Callable[[Client, int, bytes], Future[Any]]


def stamps(sequence: int, offset: int, length: int) -> bytes:
    """What a recording client writes."""
    return stamped(RUN, 1, sequence, offset, length)


def strange(sequence: int, offset: int, length: int) -> bytes:
    """What anybody else writes."""
    return STRANGE[:length]


def read(client: Client, offset: int, data: bytes) -> Future[Any]:
    """Send a read."""
    return client.pread_async(offset, len(data))


def write(client: Client, offset: int, data: bytes) -> Future[Any]:
    """Send a write."""
    return client.pwrite_async(offset, data)


STRANGE = os.urandom(1 << 20)


@dataclass(frozen=True)
class Row:
    """What is asked of the server."""

    name: str
    meaning: str
    content: Content
    is_filled: bool
    send: Send


ROWS = [
    Row("read-stamped", "read what a recording client wrote", stamps, True, read),
    Row("write-stamped", "write as a recording client does", stamps, True, write),
    Row("read-strange", "read what an ordinary client wrote", strange, True, read),
    Row("write-strange", "write as an ordinary client does", strange, True, write),
    Row("read-base", "read where nobody has written", strange, False, read),
]


@dataclass
class Found:
    """Microseconds per request, one of each round."""

    row: str
    size: int
    requests: int
    without: list[float] = field(default_factory=list)
    with_: list[float] = field(default_factory=list)


def cpu_s(pid: int) -> float:
    """Processor time of a process that runs, all its threads included, also those that have ended."""
    return time.clock_gettime((~pid << 3) | 2)


@contextmanager
def running(socket: str, recording: str | None) -> Iterator[tuple[int, Client, list[float]]]:
    """The id of a server, a client of it, and a list that the server's whole processor time is put into at its end."""
    record = [] if recording is None else ["--record", recording]
    command = [sys.executable, "-m", "impl.server", "-U", socket, "--overlay", "memory", *record, BASE]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    used_s: list[float] = []
    try:
        with connected(socket, process) as client:
            yield process.pid, client, used_s
    finally:
        process.terminate()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        used_s.append(used.ru_utime + used.ru_stime)


def connected(socket: str, process: subprocess.Popen[bytes]) -> Client:
    """A connection, as soon as the server takes one."""
    limit = time.monotonic() + START_LIMIT_S
    while True:
        try:
            return connect(f"nbd+unix:///?socket={socket}")
        except (FileNotFoundError, ConnectionRefusedError):
            if process.poll() is not None or time.monotonic() > limit:
                raise click.ClickException(f"did not start: {process.args!r}") from None
            time.sleep(POLL_S)


def drive(client: Client, row: Row, data: list[bytes], count: int) -> None:
    """Send requests, a number of them at a time, and wait for all."""
    room = threading.Semaphore(DEPTH)
    failures: list[BaseException] = []
    size = len(data[0])

    def done(future: Future[Any]) -> None:
        if (error := future.exception()) is not None:
            failures.append(error)
        room.release()

    for number in range(count):
        room.acquire()
        block = number * STRIDE % len(data)
        row.send(client, block * size, data[block]).add_done_callback(done)
    for _ in range(DEPTH):
        room.acquire()
    if failures:
        raise click.ClickException(f"{row.name}: {failures[0]}")


def measure(row: Row, data: list[bytes], count: int, directory: str, is_recorded: bool) -> float:
    """One server's time per request."""
    socket, recording = f"{directory}/socket", f"{directory}/served.jsonl"
    with running(socket, recording if is_recorded else None) as (pid, client, used_s):
        if row.is_filled:
            for block, content in enumerate(data):
                client.pwrite(block * len(content), content)
        before_s = cpu_s(pid)
        drive(client, row, data, count)
    if is_recorded:
        check(recording, row, len(data) * row.is_filled + count)
        os.unlink(recording)
    return (used_s[0] - before_s) / count * 1e6


def check(recording: str, row: Row, requests: int) -> None:
    """All that was sent has been recorded."""
    expected = 1 + 2 * requests
    with open(recording, "rb") as file:
        found = sum(1 for _ in file)
    if found != expected:
        raise click.ClickException(f"{row.name}: {found} lines were recorded, expected {expected}")


TITLES = ("what", "size", "without, us", "with, us", "more, us", "ratio")


def spread(values: list[float]) -> str:
    """Median, and least and most."""
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def line(row: Row, found: Found) -> str:
    """A row of the table, as Markdown. What recording adds is compared within each round."""
    more = [with_ - without for without, with_ in zip(found.without, found.with_, strict=True)]
    cells = [row.meaning, format_size(found.size), spread(found.without), spread(found.with_), spread(more)]
    return f"| {' | '.join(cells)} | {statistics.median(found.with_) / statistics.median(found.without):.2f} |"


def sizes_of(_context: click.Context, _parameter: click.Parameter, value: str) -> list[int]:
    """Sizes with commas between them."""
    try:
        sizes = [parse_size(size) for size in value.split(",")]
    except UsageError as error:
        raise click.BadParameter(str(error)) from None
    if wrong := [size for size in sizes if not 512 <= size <= len(STRANGE) or size & (size - 1)]:
        raise click.BadParameter(f"{wrong[0]}: expected a power of two from 512 to {format_size(len(STRANGE))}")
    return sizes


def rows_of(_context: click.Context, _parameter: click.Parameter, value: str) -> list[Row]:
    """Rows by their names, with commas between them."""
    if unknown := set(value.split(",")) - {row.name for row in ROWS}:
        raise click.BadParameter(f"no row {', '.join(sorted(unknown))}: expected {', '.join(row.name for row in ROWS)}")
    return [row for row in ROWS if row.name in value.split(",")]


@click.command(help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rows", default=",".join(row.name for row in ROWS), callback=rows_of, help="Which rows, with commas.")
@click.option("--sizes", default="4K,64K", callback=sizes_of, show_default=True, help="Of requests, with commas.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Rounds that count.")
@click.option("--seconds", type=click.FloatRange(0.01), default=0.3, show_default=True, help="About, for a server.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False), help="Write the samples here, too.")
def main(rows: list[Row], sizes: list[int], rounds: int, seconds: float, json_path: str | None) -> None:
    """Measure."""
    click.echo(f"CPython {platform.python_version()}, {platform.machine()}, {os.cpu_count()} processors\n")
    click.echo(f"| {' | '.join(TITLES)} |\n|{'---|' * len(TITLES)}")
    results = []
    with tempfile.TemporaryDirectory(prefix="cowproof-bench-") as directory:
        for row in rows:
            for size in sizes:
                # A large request takes a server some three times as long as a small one.
                count = max(DEPTH, int(seconds / (10e-6 + size * 0.3e-9)))
                found = Found(row.name, size, count)
                data = [row.content(block, block * size, size) for block in range(USED_BYTES // size)]
                once = partial(measure, row, data, count, directory)
                for round_ in range(rounds + 1):
                    pair = once(False), once(True)
                    if round_:
                        found.without.append(pair[0])
                        found.with_.append(pair[1])
                click.echo(line(row, found))
                results.append(found)
    if json_path:
        samples = [{**vars(found), "with": found.with_} for found in results]
        for sample in samples:
            del sample["with_"]
        told = {"python": platform.python_version(), "rounds": rounds, "rows": samples}
        Path(json_path).write_text(json.dumps(told, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
