"""Times cowproof beside nbdkit's cow filter, alternately, and prints medians, spread and ratios.

    python -m bench.compare                     # all rows, five rounds
    python -m bench.compare --rows out,in --rounds 9 --size 1G --json result.json

Each round starts every server anew, in turn, so that a machine whose speed drifts is as unfair to one as to the
other; the first round warms up and is not counted. The base is in the page cache, the overlays on one file system.

Source:  nbdcopy(1), nbdkit-cow-filter(1), nbdkit-delay-filter(1).
Units:   seconds of wall time, and of the server's processor time (/proc/PID/stat), for each row.
Errors:  a missing program is named, with the Debian package that has it; a client that fails ends the run.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click

from impl.client import connect
from impl.sizes import format_size, parse_size

START_LIMIT_S = 20.0
CHUNK_BYTES = 1 << 20
SLOW_SIZE = "1M"
SLOW_LATENCY = "10ms"
SLOW_READS = 64
THREADS = 16


@dataclass(frozen=True)
class Server:
    """A program under measurement: its command over a file base, and over a base of 10 ms a read."""

    name: str
    needs: str
    package: str
    fast: Callable[[str, str], list[str]]
    slow: Callable[[str, str], list[str]]


def _cowproof(*options: str) -> list[str]:
    return [sys.executable, "-m", "impl.server", "-t", str(THREADS), *options]


def _nbdkit(*options: str) -> list[str]:
    return ["nbdkit", "-f", "-t", str(THREADS), *options]


SERVERS = [
    Server(
        "cowproof",
        sys.executable,
        "python3",
        lambda socket, base: _cowproof("-U", socket, base),
        lambda socket, _: _cowproof("-U", socket, f"pattern:{SLOW_SIZE}?latency={SLOW_LATENCY}", "--cow-block-size=4K"),
    ),
    Server(
        "nbdkit cow",
        "nbdkit",
        "nbdkit",
        lambda socket, base: _nbdkit("-U", socket, "--filter=cow", "file", base),
        lambda socket, _: _nbdkit(
            "-U", socket, "--filter=cow", "--filter=delay", "pattern", SLOW_SIZE, "rdelay=10ms", "cow-block-size=4K"
        ),
    ),
]


@dataclass(frozen=True)
class Row:
    """What one server is asked to do, given the URI and the path of the base."""

    name: str
    meaning: str
    slow_base: bool
    prepare: Callable[[str, str], None]
    measured: Callable[[str, str], None]


@dataclass
class Samples:
    """What was measured of one server in one row."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)


def nothing(uri: str, base: str) -> None:
    """No preparation."""


def copy_out(uri: str, base: str) -> None:
    """Read all of the export."""
    subprocess.run(["nbdcopy", uri, "null:"], check=True)


def copy_in(uri: str, base: str) -> None:
    """Write all of the export."""
    subprocess.run(["nbdcopy", base, uri], check=True)


def reads_in_flight(uri: str, base: str) -> None:
    """64 reads of 4 KiB on one connection, all sent at once."""
    with connect(uri) as client:
        for future in [client.pread_async(index * 4096, 4096) for index in range(SLOW_READS)]:
            future.result()


def parts_in_flight(uri: str, base: str) -> None:
    """64 writes to parts of as many blocks that nobody has written, on one connection."""
    with connect(uri) as client:
        for future in [client.pwrite_async(index * 4096 + 100, b"x" * 100) for index in range(SLOW_READS)]:
            future.result()


ROWS = [
    Row("out", "nbdcopy out of the base", False, nothing, copy_out),
    Row("in", "nbdcopy into a fresh overlay", False, nothing, copy_in),
    Row("over", "nbdcopy over an allocated overlay", False, copy_in, copy_in),
    Row("out-allocated", "nbdcopy out of an allocated overlay", False, copy_in, copy_out),
    Row("slow-reads", f"{SLOW_READS} reads in flight, base {SLOW_LATENCY}", True, nothing, reads_in_flight),
    Row(
        "slow-parts",
        f"{SLOW_READS} writes of parts of fresh blocks, base {SLOW_LATENCY}",
        True,
        nothing,
        parts_in_flight,
    ),
]


@contextmanager
def running(command: list[str], socket: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server that can be connected to, ended afterwards."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        limit = time.monotonic() + START_LIMIT_S
        while not os.path.exists(socket):
            if process.poll() is not None or time.monotonic() > limit:
                raise click.ClickException(f"did not start: {' '.join(command)}")
            time.sleep(0.01)
        connect(f"nbd+unix:///?socket={socket}").disconnect()
        yield process
    finally:
        process.terminate()
        process.wait()
        if os.path.exists(socket):
            os.unlink(socket)


def cpu_s(pid: int) -> float:
    """Processor time of a process, all its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(server: Server, row: Row, directory: str, base: str, into: Samples | None) -> None:
    """One round of one row on one server."""
    socket = f"{directory}/socket"
    uri = f"nbd+unix:///?socket={socket}"
    command = (server.slow if row.slow_base else server.fast)(socket, base)
    with running(command, socket) as process:
        row.prepare(uri, base)
        cpu_before_s, started_s = cpu_s(process.pid), time.monotonic()
        row.measured(uri, base)
        wall_s = time.monotonic() - started_s
        used_s = cpu_s(process.pid) - cpu_before_s
    if into is not None:
        into.wall_s.append(wall_s)
        into.cpu_s.append(used_s)


def make_base(path: str, size: int) -> None:
    """A file of random bytes, read once so that it is in the page cache."""
    with open(path, "wb") as file:
        for start in range(0, size, CHUNK_BYTES):
            file.write(os.urandom(min(CHUNK_BYTES, size - start)))
    subprocess.run(["cat", path], stdout=subprocess.DEVNULL, check=True)


def spread(values: list[float]) -> str:
    """Median, and least and most."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rows", default=",".join(row.name for row in ROWS), help="Which rows, by name, with commas.")
@click.option("--rounds", type=click.IntRange(1), default=5, help="Rounds that count; default 5.")
@click.option("--size", default="1G", help="Size of the base; default 1G.")
@click.option("--directory", type=click.Path(exists=True, file_okay=False), default="/var/tmp", help="For the base.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False), help="Write the samples here, too.")
def main(rows: str, rounds: int, size: str, directory: str, json_path: str | None) -> None:
    """Measure."""
    chosen = [row for row in ROWS if row.name in rows.split(",")]
    if unknown := set(rows.split(",")) - {row.name for row in chosen}:
        raise click.BadParameter(f"no row {', '.join(sorted(unknown))}: expected {', '.join(row.name for row in ROWS)}")
    for program, package in [(server.needs, server.package) for server in SERVERS] + [("nbdcopy", "libnbd-bin")]:
        if shutil.which(program) is None:
            raise click.ClickException(f"{program} is not here; install Debian's {package}")
    found: dict[str, dict[str, Samples]] = {row.name: {s.name: Samples() for s in SERVERS} for row in chosen}
    with tempfile.TemporaryDirectory(dir=directory, prefix="cowproof-bench-") as private:
        base = f"{private}/base"
        make_base(base, parse_size(size))
        for row in chosen:
            for round_ in range(rounds + 1):
                for server in SERVERS:
                    click.echo(f"\r{row.name} {round_}/{rounds} {server.name:20}", nl=False, err=True)
                    measure(server, row, private, base, found[row.name][server.name] if round_ else None)
            report(row, found[row.name])
    click.echo(f"base of {format_size(parse_size(size))}, {rounds} rounds, {os.cpu_count()} processors")
    if json_path:
        samples = {row: {name: vars(sample) for name, sample in by.items()} for row, by in found.items()}
        Path(json_path).write_text(json.dumps(samples, indent=1), encoding="utf-8")


def report(row: Row, by_server: dict[str, Samples]) -> None:
    """A row's figures, and the ratio of each peer's median to ours: above 1, we are faster."""
    click.echo(f"\r{row.name}: {row.meaning}")
    ours = by_server[SERVERS[0].name]
    for name, samples in by_server.items():
        ratio = statistics.median(samples.wall_s) / statistics.median(ours.wall_s)
        click.echo(f"  {name:12} {spread(samples.wall_s)} s, server {spread(samples.cpu_s)} s, {ratio:.2f} times ours")


if __name__ == "__main__":
    main()
