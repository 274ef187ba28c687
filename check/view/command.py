"""The command `view`: a history, or a counterexample of the explorer, as a page.

Errors:  exit status 0: the page is written, whatever it shows. 1: it cannot be written. 2: wrong usage, or a file that
         is no history, with the line. The verdict is told on standard error; `cowproof history check` exits by it.
"""

from __future__ import annotations

from pathlib import Path

import click

from check.history.command import SECONDS_MAX, decided, shown
from check.history.format import load
from check.view.finding import NOT_CHECKED, Finding
from check.view.judge import finding_of
from check.view.page import Picture, page
from check.view.story import picture_of
from impl.errors import StartError, UsageError
from impl.server.command import fail_in_one_line
from model.budget import Budget
from model.history import LEVELS, History, Level

STANDARD_OUTPUT = "-"
COUNTEREXAMPLE = "counterexample.html"
# Beyond it, browsers take long to open the page, and people see no more than before.
SHOWN_MAX = 200_000

HELP = """Show a history as one page: who asked what, when, and the order that explains it, or why there is none.

The page is one file that needs no network. It opens at the place where no order exists, if there is such a place.

FILE is what `cowproof history record` or a server's --record wrote. With --replay it is instead the line that
`cowproof explore` prints for what it found: the page shows the clients' steps.

\b
Examples:
  cowproof view history.jsonl -o page.html
  cowproof view history.jsonl --level sector -o - > page.html
  cowproof view --replay 'bitmap-lock:request:N:0::65536,65536:write 0+512 | write 0+64K:A5B2A3B2'
"""


@click.command(
    "view",
    help=HELP,
    short_help="Show a history, or a counterexample, as a page.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.argument("file", required=False)
@click.option("-o", "--output", metavar="PAGE", help="The page; default FILE with .html, here; - is standard output.")
@click.option("--level", type=click.Choice(LEVELS), help="What takes effect at an instant; default the history's own.")
@click.option("--no-check", is_flag=True, help="Show it without a verdict.")
@click.option(
    "--budget-s",
    type=click.FloatRange(0, SECONDS_MAX),
    metavar="S",
    help=f"How long to search where no fast method decides; default {Budget().seconds:g} s.",
)
@click.option("--allow-truncated", is_flag=True, help="A last line that was cut off is the end of the file.")
@click.option("--replay", metavar="STRING", help="Show what the explorer found, instead of a file.")
def view(
    file: str | None,
    output: str | None,
    level: Level | None,
    no_check: bool,
    budget_s: float | None,
    allow_truncated: bool,
    replay: str | None,
) -> None:
    """Make the page, and say what it shows."""
    if (file is None) == (replay is None):
        raise UsageError("expected a FILE or --replay STRING, and not both")
    if file is not None:
        history = _loaded(file, allow_truncated)
        picture = Picture(Path(file).name, history, _finding(file, history, level, no_check, budget_s))
    else:
        assert replay is not None
        if level is not None or no_check or budget_s is not None or allow_truncated:
            raise UsageError("--level, --no-check, --budget-s and --allow-truncated are for a FILE, not for a replay")
        picture = picture_of(replay)
    place = output or (f"{Path(file).stem}.html" if file is not None else COUNTEREXAMPLE)
    _write(place, page(picture))
    finding = picture.finding
    click.echo(f"{place}: {len(picture.history):,} requests, {finding.verdict} at level {finding.level}", err=True)


def _loaded(file: str, allow_truncated: bool) -> History:
    with shown("reading") as progress:
        history = load(file, allow_truncated, progress)
    if len(history) > SHOWN_MAX:
        raise UsageError(f"{file}: {len(history):,} requests; a page shows {SHOWN_MAX:,} at most")
    return history


def _finding(file: str, history: History, level: Level | None, no_check: bool, budget_s: float | None) -> Finding:
    if no_check:
        return Finding(NOT_CHECKED, level or history.level, "No checker has looked at this history.")
    budget = Budget() if budget_s is None else Budget(seconds=budget_s)
    return finding_of(history, decided(file, history, level, budget))


def _write(place: str, text: str) -> None:
    if place == STANDARD_OUTPUT:
        click.echo(text, nl=False)
        return
    try:
        Path(place).write_text(text, encoding="utf-8")
    except OSError as error:
        raise StartError(f"{place}: cannot be written: {error.strerror or error}") from None


def main(arguments: list[str] | None = None) -> None:
    """`python -m check.view`: as `cowproof view`."""
    fail_in_one_line(view, arguments, "python -m check.view")
