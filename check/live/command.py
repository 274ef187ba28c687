"""The command `races`: its options, what it prints, its exit statuses.

Errors:  exit status 0: the other server lost a write in every race and this project's in none. 1: this project's
         server lost a write. 2: wrong usage. 3: not shown (another server is missing, or lost nothing within the
         tries, or a server did not do what was asked of it). Unknown is never 0.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from check.live import servers
from check.live.play import Progress, Trial, try_out
from check.live.programs import NAMES, RACES, Race
from check.live.show import (
    Result,
    as_json,
    heading,
    missing_lines,
    server_names,
    summary_lines,
    trial_lines,
)
from check.live.verdict import Verdict
from impl.errors import StartError
from impl.server.command import fail_in_one_line

TRIES = 20
TRIES_MAX = 1000

SHOWN, VIOLATED, NOT_SHOWN = 0, 1, 3

SUMMARIES = {
    SHOWN: "In every race shown here the other server lost a write it had acknowledged; cowproof lost none.",
    VIOLATED: "cowproof lost or tore a write. That must never happen: please report this, with what is printed above.",
    NOT_SHOWN: "Not all has been shown: see the races that are not LOST on the left or do not hold on the right. "
    "Where a race was tried, more --tries may help.",
}

HELP = """See nbdkit's cow filter and qemu-nbd lose writes on this machine, and cowproof keep them.

A copy-on-write server puts a writable overlay over a disk that is never changed. To change part of a block, or to
keep what was read, it first reads the block from that disk, the base. The base is slow; meanwhile another client
writes to the same block and is told that it is done. If the server then stores the block as it was when it read it,
that write is gone, though it was acknowledged, and no error was ever reported.

Each race here is two requests on two connections. Connection A's has to read the base; connection B's comes 15 ms
later, and writes, trims or zeroes. When both have been answered the block is read. Two requests at the same time may
take effect in either order, so there are at most two contents that are right. They are computed with model/device.py,
one request after the other. If a byte read is right in neither, a write was lost. That is all the verdict rests on.

\b
Races:
{races}

Each is tried on the nbdkit or the qemu-nbd installed here until it loses a write, then --tries times on cowproof,
over a base of the same bytes and the same latency. If one of the two is missing, its races are left out, and that is
said. Servers listen on Unix sockets in a private folder, and are ended afterwards.

\b
Examples:
  cowproof races                               all of them, in about 12 seconds
  cowproof races --only part-beside-whole      the shortest one, with nbdkit's default settings
  cowproof races --json | jq '.races[] | .[.other]'

\b
Exit status:
  0  the other server lost a write in every race, and cowproof in none
  1  cowproof lost a write
  2  wrong usage
  3  not shown: nbdkit or qemu-nbd is missing, or lost nothing within the tries, or a server failed
"""


def races_in_help() -> str:
    """A line for each."""
    return "\n".join(f"  {race.name:<24} {race.other:<10}{race.title}" for race in RACES)


@click.command(
    "races",
    help=HELP.format(races=races_in_help()),
    short_help="See nbdkit and qemu-nbd lose writes, and cowproof keep them.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.option("--only", "names", metavar="NAME", multiple=True, type=click.Choice(NAMES), help="This race; repeatable.")
@click.option(
    "--tries",
    metavar="N",
    type=click.IntRange(1, TRIES_MAX),
    default=TRIES,
    help=f"How often to try: the others at most, cowproof exactly; default {TRIES}.",
)
@click.option("--json", "is_json", is_flag=True, help="Print one JSON object instead.")
def races(names: Sequence[str], tries: int, is_json: bool) -> None:
    """Run the races, print them, and exit."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that servers are ended in order
    chosen = [race for race in RACES if not names or race.name in names]
    try:
        sys.exit(demonstrate(chosen, tries, is_json))
    except StartError as error:
        click.echo(f"cowproof: {error}", err=True)
        sys.exit(NOT_SHOWN)


def demonstrate(chosen: Sequence[Race], tries: int, is_json: bool) -> int:
    """Run the races one by one, and print each when it is done; the exit status."""
    versions = versions_of_others(chosen)
    results: list[Result] = []
    for race in chosen:
        say(heading(race), is_json)
        results.append(try_race(race, tries, is_json) if race.other in versions else left_out(race, is_json))
    status = status_of(results)
    if is_json:
        click.echo(json.dumps(as_json(results, versions, status), indent=2))
    say(summary_lines(results, versions), is_json)
    say(["", SUMMARIES[status]], is_json)
    return status


def versions_of_others(chosen: Sequence[Race]) -> dict[str, str]:
    """The version of each other server that is installed. StartError if none of those that are needed is."""
    needed = list(dict.fromkeys(race.other for race in chosen))
    found = {name: servers.version_of(name) for name in needed if servers.path_of(name)}
    if not found:
        raise StartError(servers.missing(needed))
    return found


def try_race(race: Race, tries: int, is_json: bool) -> Result:
    """One race against both servers; each is told of when it is done."""
    trials: dict[str, Trial] = {}
    for name in server_names(race):
        trials[name] = run_one(race, name, tries)
        say(trial_lines(race, name, trials[name]), is_json)
    return Result(race, trials)


def left_out(race: Race, is_json: bool) -> Result:
    """One race that cannot be tried, since there is nothing to show it on."""
    missing = servers.missing([race.other])
    say(missing_lines(missing), is_json)
    return Result(race, {}, missing)


def run_one(race: Race, name: str, tries: int) -> Trial:
    """One race against one server, which is gone afterwards."""
    with private_folder() as folder, progress_of(f"{race.name}: {name}", tries) as progress:
        return try_out(race, servers.SERVERS[name], tries, folder, progress)


def status_of(results: Sequence[Result]) -> int:
    """A violation before all else; then, whether everything has been shown that was to be."""
    tried = [[result.trials[name].verdict for name in server_names(result.race)] for result in results if result.trials]
    if any(ours in (Verdict.LOST, Verdict.TORN) for _, ours in tried):
        return VIOLATED
    shown = all(pair == [Verdict.LOST, Verdict.HOLDS] for pair in tried)
    return SHOWN if tried and shown and len(tried) == len(results) else NOT_SHOWN


def say(lines: Iterable[str], is_json: bool) -> None:
    """To people."""
    if not is_json:
        for line in lines:
            click.echo(line)


@contextmanager
def private_folder() -> Iterator[Path]:
    """A new folder that nobody else can enter, removed at the end. Its path is short: a socket's has 107 bytes."""
    try:
        with tempfile.TemporaryDirectory(prefix="cowproof-") as folder:
            yield Path(folder)
    except OSError as error:
        raise StartError(f"cannot keep files in a private folder: {error.strerror or error}") from None


@contextmanager
def progress_of(what: str, tries: int) -> Iterator[Progress]:
    """Tell how far we are on standard error: on a terminal on one line that goes away, else in one line for all."""
    is_terminal = sys.stderr.isatty()
    if not is_terminal:
        click.echo(f"{what}: up to {tries} tries ...", err=True)

    def progress(number: int) -> None:
        if is_terminal:
            click.echo(f"\r{what}: try {number} of {tries} ", nl=False, err=True)

    try:
        yield progress
    finally:
        if is_terminal:
            click.echo("\r\033[K", nl=False, err=True)


def main(arguments: list[str] | None = None) -> None:
    """`python -m check.live`: as `cowproof races`."""
    fail_in_one_line(races, arguments, "python -m check.live")
