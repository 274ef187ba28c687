"""`cowproof explore`: every interleaving of a few clients' requests, on a subject of choice.

Errors:  exit status 0 holds, 1 violated, 3 inconclusive, 2 wrong usage.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from typing import get_args

import click

from check.explore.judge import Level
from check.explore.learn import Uncontrolled
from check.explore.programs import format_program, make_program, parse_program
from check.explore.replay import format_replay, parse_replay, play
from check.explore.search import STATES_MAX, Found, Machine, Move, Question, Verdict, search
from check.explore.show import columns, ending
from check.explore.subjects import KINDS, Modes
from check.explore.threads import play_on_threads
from check.explore.walk import walk
from impl.errors import UsageError
from impl.sizes import parse_size

EXIT = {Verdict.HOLDS: 0, Verdict.VIOLATED: 1, Verdict.INCONCLUSIVE: 3}
PROGRESS_EVERY_S = 0.5

HELP = """Run code under every interleaving of a few clients' requests, and say whether one of them is wrong.

A program is what the clients do: `|` stands between clients, `;` between the requests of one. Requests are read, write,
zero [no-hole] [fast], trim, cache and status, each with OFFSET+LENGTH, and flush.

What is found is the shortest way to something that the model does not allow: an answer, or what the device holds in the
end; a deadlock; an exception; an access without its lock; a wait for a request that does not overlap. It is
shown as two columns, and with a line that replays it.

\b
Examples:
  cowproof explore --subject bitmap-lock --program "write 0+512 | write 0+64K"
  cowproof explore --program "write 0+512 | write 0+64K ; read 0+64K" --initial A
  cowproof explore --program "read 0+128K | write 100+64K | trim 0+64K" --cow-on-read --faults 1
  cowproof explore --replay 'bitmap-lock:request:N:0::65536,65536:write 0+512 | write 0+64K:A5B2A3B2'

\b
Subjects:
"""


def _size(text: str, what: str) -> int:
    try:
        return parse_size(text, what)
    except UsageError as error:
        raise click.BadParameter(str(error)) from None


@click.command(
    "explore",
    help=HELP + "\n".join(f"  {kind.name:21} {kind.meaning}" for kind in KINDS.values()),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option("--program", "text", metavar="TEXT", help="What the clients do.")
@click.option("--subject", type=click.Choice(list(KINDS)), default="overlay", help="What is explored; default overlay.")
@click.option(
    "--level",
    type=click.Choice(get_args(Level)),
    default="request",
    help="What takes effect at an instant: a whole request (default), its part in each block, or in each sector.",
)
@click.option("--initial", metavar="LETTERS", default="", help="State of each block at first: N, A or T; default N.")
@click.option("--cow-on-read", is_flag=True, help="Reads keep what they fetch.")
@click.option("--cow-on-cache", is_flag=True, help="Cache requests copy into the overlay.")
@click.option("--faults", type=click.IntRange(0, 3), default=0, help="How many operations may fail; default 0.")
@click.option("--cow-block-size", metavar="SIZE", default="64K", help="Size of a block in the program; default 64K.")
@click.option("--size", metavar="SIZE", help="Size of the device; default as many whole blocks as are used.")
@click.option("--states", type=click.IntRange(1), default=STATES_MAX, help="Give up beyond so many states.")
@click.option("--walks", type=click.IntRange(1), help="Do not search: take so many random ways, for what is too big.")
@click.option("--seed", type=int, default=0, help="Of the random ways.")
@click.option("--replay", metavar="STRING", help="Show again what was found; nothing else is looked at.")
@click.option("--on-threads", is_flag=True, help="Replay on real threads as well: set breakpoints as you like.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def explore(
    text: str | None,
    subject: str,
    level: Level,
    initial: str,
    cow_on_read: bool,
    cow_on_cache: bool,
    faults: int,
    cow_block_size: str,
    size: str | None,
    states: int,
    walks: int | None,
    seed: int,
    replay: str | None,
    on_threads: bool,
    as_json: bool,
) -> None:
    """Ask the question, and print the answer."""
    if on_threads and replay is None:
        raise UsageError("--on-threads goes with --replay STRING")
    if replay is not None:
        sys.exit(show_again(replay, on_threads, as_json))
    if text is None:
        raise UsageError('no program: expected --program "write 0+512 | write 0+64K", or --replay STRING')
    question = Question(
        KINDS[subject],
        make_program(
            parse_program(text),
            initial,
            _size(cow_block_size, "block size"),
            None if size is None else _size(size, "size"),
        ),
        level,
        Modes(cow_on_read, cow_on_cache),
        faults,
    )
    meter = Meter()
    try:
        found = walk(question, walks, seed) if walks else search(question, states, progress=meter)
    except Uncontrolled as error:
        meter.end()
        click.echo(f"{subject} at level {level}: inconclusive, {error}")
        sys.exit(EXIT[Verdict.INCONCLUSIVE])
    meter.end()
    print_json(question, found) if as_json else print_text(question, found)
    sys.exit(EXIT[found.verdict])


class Meter:
    """Says how far a long search has come, on a terminal."""

    def __init__(self) -> None:
        self._said_s = time.monotonic()
        self._has_said = False

    def __call__(self, states: int, depth: int) -> None:
        """Called after each level."""
        now_s = time.monotonic()
        if sys.stderr.isatty() and now_s - self._said_s > PROGRESS_EVERY_S:
            self._said_s = now_s
            self._has_said = True
            click.echo(f"\r{states:,} states, {depth} deep", nl=False, err=True)

    def end(self) -> None:
        """Leave the line to what comes."""
        if self._has_said:
            click.echo("\r\033[K", nl=False, err=True)


def show_again(text: str, on_threads: bool, as_json: bool) -> int:
    """Replay a schedule; 1 if it is as wrong as it was, 0 if nothing is wrong with it any more."""
    question, moves = parse_replay(text)
    machine = Machine(question)
    if on_threads:
        play_on_threads(machine, moves)
    story = play(machine, moves)
    if as_json:
        click.echo(json.dumps({"wrong": story.wrong, "replay": text}))
    else:
        click.echo(f"{columns(machine, story)}\n{ending(machine, story)}")
    return 1 if story.wrong else 0


def print_text(question: Question, found: Found) -> None:
    """The verdict; a violation as columns and as a line that replays it."""
    if found.violation is not None:
        machine = Machine(question)
        story = play(machine, found.violation.moves)
        click.echo(f"{columns(machine, story)}\n{ending(machine, story)}")
        click.echo(f"replay: cowproof explore --replay {shlex.quote(format_replay(question, found.violation.moves))}")
    click.echo(
        f"{question.kind.name} at level {question.level}: {found.verdict.value}{', ' * bool(found.why)}{found.why}"
    )
    click.echo(
        f"{found.states:,} states, {found.transitions:,} transitions, {found.schedules:,} schedules covered, "
        f"{found.depth} deep, {found.runs:,} runs of the code, {found.elapsed_s:.2f} s"
    )


def print_json(question: Question, found: Found) -> None:
    """The same for programs."""
    moves: tuple[Move, ...] = found.violation.moves if found.violation else ()
    click.echo(
        json.dumps(
            {
                "subject": question.kind.name,
                "level": question.level,
                "program": format_program(question.program.asks),
                "verdict": found.verdict.value,
                "why": found.violation.what if found.violation else found.why,
                "states": found.states,
                "transitions": found.transitions,
                "schedules": found.schedules,
                "depth": found.depth,
                "elapsed_s": round(found.elapsed_s, 3),
                "replay": format_replay(question, moves) if moves else None,
            }
        )
    )
