"""The command `history`: its options, what it prints, its exit statuses.

Errors:  `check`: exit status 0: linearizable. 1: not. 2: wrong usage, or a file that is no history. 3: unknown,
         since the budget was spent. `record` and `levels`: 0: done. 1: could not be. 2: wrong usage.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import click

from check.history import format as history_format
from check.history.peers import PEERS, Kept, kept_by, page, versions
from check.history.record import Recipe, record
from check.history.show import as_json, verdict_lines
from check.history.workload import MIX, parse_mix
from impl.errors import StartError, UsageError
from impl.server.command import fail_in_one_line
from impl.sizes import format_size, parse_size
from model.budget import Budget
from model.history import LEVELS, History, Level
from model.linearizability import Decision, decide
from model.wgl import Verdict

STATUS = {Verdict.LINEARIZABLE: 0, Verdict.NOT_LINEARIZABLE: 1, Verdict.UNKNOWN: 3}

LEVELS_BASE = "pattern:64M?seed=3"
LEVELS_SLOW_BASE = f"{LEVELS_BASE}&latency=2ms&jitter=20ms"
LEVELS_DEPTH = 4

SHOW_EVERY_S = 0.1
SECONDS_MAX = 86_400.0
SIZE_MIN, SIZE_MAX = 4096, 1 << 30

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 120}

HELP = """Record what concurrent clients saw, and decide whether it is linearizable.

A history says of each request when it was sent, when it was answered, and, of a read, who wrote what was read. It is
linearizable if the requests can be put into one order, each at an instant between its invocation and its answer, in
which every read returns what was written last.

\b
Examples:
  cowproof history record nbd://localhost -o seen.jsonl      write to a disk for five seconds
  cowproof history check seen.jsonl                          and see whether what was read makes sense
  cowproof serve --record served.jsonl disk.img              what all clients of this server see
"""

CHECK_HELP = """Decide whether a history is linearizable.

Levels say what takes effect at an instant: a whole `request`; what of it lies in one `block`; or in one `sector`.

\b
Exit status:
  0  linearizable; an order has been found, and replayed
  1  not linearizable; the few requests that have no order are shown
  2  the file is not a history (the line is named), or wrong usage
  3  unknown: the budget was spent
"""

RECORD_HELP = """Record a history of any NBD server, at URI, by writing to what it serves.

Several processes of clients read and write the same few blocks at the same time, with every kind of request that the
server offers. Now and then all of them stop, and what they touched is read back. All the device may be overwritten,
up to --size.

\b
Exit status:
  0  recorded
  1  could not be recorded; one line says why
  2  wrong usage
"""


LEVELS_HELP = """Record this project's server and others, as far as they are installed, and say which level each kept.

What is printed is docs/levels.md: a table, and for each level that was not kept the few requests that show it.
"""


@click.group("history", help=HELP, short_help="Record what clients saw; is it linearizable?", context_settings=SETTINGS)
def history() -> None:
    """Gather the commands."""


@history.command("check", help=CHECK_HELP, short_help="Is it linearizable?", context_settings=SETTINGS)
@click.argument("file")
@click.option(
    "--level", type=click.Choice(LEVELS), help="What takes effect at an instant; default: as the file has it."
)
@click.option(
    "--budget-s",
    type=click.FloatRange(0, SECONDS_MAX),
    default=Budget().seconds,
    metavar="S",
    help=f"How long to search where no fast method decides; default {Budget().seconds:g} s.",
)
@click.option("--allow-truncated", is_flag=True, help="Take a last line that was cut off as the end of the file.")
@click.option("--json", "is_json", is_flag=True, help="Print one JSON object instead.")
def check(file: str, level: Level | None, budget_s: float, allow_truncated: bool, is_json: bool) -> None:
    """Load, decide, print, and exit."""
    with shown("reading") as progress:
        found = history_format.load(file, allow_truncated, progress)
    decision = decided(file, found, level, Budget(seconds=budget_s))
    if is_json:
        click.echo(json.dumps(as_json(found, decision), indent=2))
    else:
        click.echo(f"{file}: {len(found)} requests")
        click.echo("\n".join(verdict_lines(found, decision)))
    sys.exit(STATUS[decision.verdict])


def decided(file: str, found: History, level: Level | None, budget: Budget) -> Decision:
    """The verdict; UsageError for a history that cannot be."""
    with shown("deciding") as progress:
        try:
            return decide(found, level, budget, progress)
        except ValueError as error:
            raise UsageError(f"{file}: {error}") from None


def _size(_: click.Context, __: click.Parameter, value: str) -> int:
    try:
        size = parse_size(value)
    except UsageError as error:
        raise click.BadParameter(str(error)) from None
    if not SIZE_MIN <= size <= SIZE_MAX:
        limits = f"{format_size(SIZE_MIN)} to {format_size(SIZE_MAX)}"
        raise click.BadParameter(f"{value}: expected a size from {limits}")
    return size


@history.command("record", help=RECORD_HELP, short_help="Make one, of any NBD server.", context_settings=SETTINGS)
@click.argument("uri")
@click.option("-o", "--output", required=True, metavar="FILE", help="Where to.")
@click.option("--seconds", type=click.FloatRange(0.1, SECONDS_MAX), default=5.0, metavar="S", help="Default 5.")
@click.option("--clients", type=click.IntRange(1, 64), default=3, metavar="N", help="Processes; default 3.")
@click.option("--connections", type=click.IntRange(1, 64), default=2, metavar="N", help="Of each; default 2.")
@click.option(
    "--depth", type=click.IntRange(1, 1024), default=2, metavar="N", help="Requests in flight on each; default 2."
)
@click.option("--size", callback=_size, default="16M", metavar="SIZE", help="How much of the device is used; 16M.")
@click.option("--block-size", callback=_size, default="64K", metavar="SIZE", help="The server's unit; default 64K.")
@click.option("--seed", type=int, default=0, metavar="N", help="Of what is asked for.")
@click.option("--mix", metavar="MIX", help=f"How often; default {','.join(f'{op}={n}' for op, n in MIX.items())}.")
@click.option(
    "--base",
    metavar="BASE",
    help="What the device held before, as `cowproof serve` has it. Without it, the device is read first: then a server "
    "that copies what it reads has copied it.",
)
@click.option("--cuts", type=click.FloatRange(0, 1000), default=0.0, metavar="N", help="Connections cut a second.")
@click.option(
    "--quiet",
    type=click.FloatRange(0.05, 3600),
    default=0.5,
    metavar="S",
    help="Time from one pause to the next; 0.5 s.",
)
@click.option(
    "--moment", type=click.FloatRange(0.001, 3600), default=0.05, metavar="S", help="Time on one place; 0.05 s."
)
@click.option("--level", type=click.Choice(LEVELS), default="request", help="What the server claims; default request.")
@click.option("--trim-reads-zero/--trim-reads-anything", default=True, help="What the server claims; default zero.")
def record_(
    uri: str,
    output: str,
    seconds: float,
    clients: int,
    connections: int,
    depth: int,
    size: int,
    block_size: int,
    seed: int,
    mix: str | None,
    base: str | None,
    cuts: float,
    quiet: float,
    moment: float,
    level: Level,
    trim_reads_zero: bool,
) -> None:
    """Record, and say how much that was."""
    recipe = Recipe(
        uri=uri,
        seconds=seconds,
        clients=clients,
        connections=connections,
        depth=depth,
        size=size,
        block_size=block_size,
        seed=seed,
        mix=MIX if mix is None else parse_mix(mix),
        base=base,
        cuts_per_s=cuts,
        quiet_s=quiet,
        moment_s=moment,
        level=level,
        trim_reads_zero=trim_reads_zero,
    )
    signal.signal(signal.SIGTERM, _leave)
    with shown("recording", "requests") as progress:
        recorded = record(recipe, output, lambda _, requests: progress(requests, 0))
    click.echo(f"{output}: {recorded.requests} requests, {recorded.events} events", err=True)
    if recorded.lost_connections:
        click.echo(f"{recorded.lost_connections} connections were lost that had not been cut", err=True)


@history.command("levels", help=LEVELS_HELP, short_help="Which level do servers keep?", context_settings=SETTINGS)
@click.option("-o", "--output", metavar="FILE", help="Where to; else on standard output.")
@click.option("--only", "names", multiple=True, type=click.Choice(list(PEERS)), help="This server; repeatable.")
@click.option("--runs", type=click.IntRange(1, 1000), default=3, metavar="N", help="Of each; default 3.")
@click.option("--seconds", type=click.FloatRange(0.1, 3600), default=3.0, metavar="S", help="Of each run; default 3.")
@click.option(
    "--budget-s", type=click.FloatRange(0, SECONDS_MAX), default=60.0, metavar="S", help="Of each verdict; 60."
)
def levels(output: str | None, names: Sequence[str], runs: int, seconds: float, budget_s: float) -> None:
    """Record servers one by one, and print the page."""
    signal.signal(signal.SIGTERM, _leave)
    recipe = Recipe(uri="", seconds=seconds, base=LEVELS_BASE, depth=LEVELS_DEPTH)
    results: dict[str, Kept | str] = {}
    for name in names or PEERS:
        try:
            results[name] = kept_by(
                PEERS[name], LEVELS_SLOW_BASE, recipe, runs, Budget(seconds=budget_s), _say_of(name)
            )
        except StartError as error:
            click.echo(f"{name}: {error}", err=True)
            results[name] = str(error)
    how = (
        f"Each was recorded {runs} times, for {seconds:g} s, by 6 connections with {LEVELS_DEPTH} requests in flight "
        "on each; `nbd-server -c` by one with 32."
    )
    text = "\n".join(page(results, versions(), how)) + "\n"
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        Path(output).write_text(text, encoding="utf-8")
    except OSError as error:
        raise StartError(f"{output}: cannot be written: {error.strerror}") from None


def _say_of(name: str) -> Callable[[str], None]:
    return lambda text: click.echo(f"{name}: {text}", err=True)


def _leave(*_: object) -> NoReturn:
    """So that processes are ended in order."""
    sys.exit(128 + signal.SIGTERM)


@contextmanager
def shown(what: str, unit: str = "") -> Iterator[Callable[[int, int], None]]:
    """Tell how far we are on standard error: on a terminal on one line that goes away, else on one line for all."""
    is_terminal = sys.stderr.isatty()
    if not is_terminal:
        click.echo(f"{what} ...", err=True)
    next_s = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal next_s
        now_s = time.monotonic()
        if not is_terminal or now_s < next_s:
            return
        next_s = now_s + SHOW_EVERY_S
        how_far = f"{100 * done // total} %" if total else f"{done} {unit}"
        click.echo(f"\r{what}: {how_far} ", nl=False, err=True)

    try:
        yield progress
    finally:
        if is_terminal:
            click.echo("\r\033[K", nl=False, err=True)


def main(arguments: list[str] | None = None) -> None:
    """`python -m check.history`: as `cowproof history`."""
    fail_in_one_line(history, arguments, "python -m check.history")
