"""The command `races`: its options, what it prints, its exit statuses.

Errors:  exit status 0: nbdkit lost a write in every race and this project's server in none. 1: this project's server
         lost a write. 2: wrong usage. 3: not shown (nbdkit is missing, or lost nothing within the tries, or a server
         did not do what was asked of it). Unknown is never 0.
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
from check.live.show import SERVER_NAMES, Result, as_json, heading, summary_lines, trial_lines
from check.live.verdict import Verdict
from impl.errors import StartError
from impl.server.command import fail_in_one_line

TRIES = 20
TRIES_MAX = 1000

SHOWN, VIOLATED, NOT_SHOWN = 0, 1, 3

SUMMARIES = {
    SHOWN: "nbdkit lost a write it had acknowledged in every race shown here; cowproof lost none.",
    VIOLATED: "cowproof lost or tore a write. That must never happen: please report this, with what is printed above.",
    NOT_SHOWN: "This shows nothing: see the races that are not LOST on the left or do not hold on the right. "
    "More --tries may help.",
}

HELP = """See nbdkit's cow filter lose writes on this machine, and cowproof keep them.

A copy-on-write server puts a writable overlay over a disk that is never changed. To change part of a block, or to
keep what was read, it first reads the block from that disk, the base. The base is slow; meanwhile another client
writes to the same block and is told that it is done. If the server then stores the block as it was when it read it,
that write is gone, though it was acknowledged, and no error was ever reported.

Each race here is two requests on two connections. Connection A's has to read the base; connection B's is a write
that comes 15 ms later. When both have been answered the block is read. Two requests at the same time may take effect
in either order, so there are at most two contents that are right. They are computed with model/device.py, one request
after the other. If a byte read is right in neither, a write was lost. That is all the verdict rests on.

\b
Races:
{races}

Each is tried on the nbdkit installed here until it loses a write, then --tries times on cowproof, over a base of the
same bytes and the same latency. Servers listen on Unix sockets in a private folder, and are ended afterwards.

\b
Examples:
  cowproof races                               all of them, in about 10 seconds
  cowproof races --only part-beside-whole      the shortest one, with nbdkit's default settings
  cowproof races --json | jq '.races[].nbdkit' for programs

\b
Exit status:
  0  nbdkit lost a write in every race, and cowproof in none
  1  cowproof lost a write
  2  wrong usage
  3  not shown: nbdkit is missing, or lost nothing within the tries, or a server failed
"""


def races_in_help() -> str:
    """A line for each."""
    return "\n".join(f"  {race.name:<24} {race.title}" for race in RACES)


@click.command(
    "races",
    help=HELP.format(races=races_in_help()),
    short_help="See nbdkit lose writes, and cowproof keep them.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.option("--only", "names", metavar="NAME", multiple=True, type=click.Choice(NAMES), help="This race; repeatable.")
@click.option(
    "--tries",
    metavar="N",
    type=click.IntRange(1, TRIES_MAX),
    default=TRIES,
    help=f"How often to try: nbdkit at most, cowproof exactly; default {TRIES}.",
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
    version = servers.nbdkit_version()
    results: list[Result] = []
    for race in chosen:
        say(heading(race), is_json)
        trials: dict[str, Trial] = {}
        for name in SERVER_NAMES:
            trials[name] = run_one(race, name, tries)
            say(trial_lines(race, name, trials[name]), is_json)
        results.append(Result(race, trials))
    status = status_of(results)
    if is_json:
        click.echo(json.dumps(as_json(results, version, status), indent=2))
    say(summary_lines(results, version), is_json)
    say(["", SUMMARIES[status]], is_json)
    return status


def run_one(race: Race, name: str, tries: int) -> Trial:
    """One race against one server, which is gone afterwards."""
    with private_folder() as folder, progress_of(f"{race.name}: {name}", tries) as progress:
        return try_out(race, servers.SERVERS[name], tries, folder, progress)


def status_of(results: Iterable[Result]) -> int:
    """A violation before all else; then, whether everything has been shown that was to be."""
    verdicts = [(result.trials["nbdkit"].verdict, result.trials["cowproof"].verdict) for result in results]
    if any(cowproof in (Verdict.LOST, Verdict.TORN) for _, cowproof in verdicts):
        return VIOLATED
    shown = all(pair == (Verdict.LOST, Verdict.HOLDS) for pair in verdicts)
    return SHOWN if shown and verdicts else NOT_SHOWN


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
