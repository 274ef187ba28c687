"""The command `bench`: its options, what it prints, its exit statuses.

It measures one of three tables: the servers side by side, how cost grows, or the checkers.

Errors:  exit status 0: measured. 1: a program is missing, or cowproof could not do what it was asked; one line says
         what. 2: wrong usage. 130: Ctrl-C; what was measured until then is printed, and written.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import FrameType
from typing import Protocol, TypeVar

import click

from bench import growth, machine, table
from bench.clients import PACKAGES
from bench.page import page
from bench.report import body, conclusion, head, row_lines, series_lines
from bench.results import Results, RowResult, Series, load, save
from bench.rows import ROWS, Row
from bench.run import Progress, Run, Settings, fits, private_folder
from bench.servers import SERVERS, Server, absent
from bench.wanted import OURS
from check.live.servers import path_of
from impl.errors import StartError, UsageError
from impl.server.command import fail_in_one_line
from impl.sizes import format_size, parse_size, quoted

INTERRUPTED = 130
SIZE_MIN_BYTES = 16 << 20
ROUNDS_MAX, REPEATS_MAX, SECONDS_MAX = 1000, 100, 3600.0
QUICK = Settings(rounds=2, size_bytes=256 << 20, seconds=0.5, repeats=0)

HELP = """Measure cowproof beside nbdkit's cow filter, qemu-nbd over qcow2, and nbd-server -c.

All that are installed are measured, on the same base, which is in the page cache, with their overlays on one file
system, in turn: A B C, A B C. Where a row needs a fresh overlay, each round has a server of its own. The first round
warms up and is not counted; one that ran beside other work is repeated. Of each row you see medians with the least
and the most, the ratio to each server, the processor time that server and client took, latencies, memory, whether
what is asked of cowproof was met, and who is ahead.

With --growth, rows differ in one number (connections, requests in flight, the size of the device, how much of it is in
the overlay, the unit of copying), and you see by which power of it the cost of a request grows, and whether that is
more than is expected. With --checkers, the explorer and the checker of histories are measured, and no server.
"""

EXAMPLES = (
    ("--quick", "four servers and six rows, in about a minute"),
    ("", "everything, in two or three hours"),
    ("--list", "the rows and the servers, and what is missing"),
    ("--rows '4k-read-*,slow*' --rounds 9", "some rows, by patterns as of a shell"),
    ("--servers cowproof,nbdkit --rows '*-c1*'", "two servers, one connection"),
    ("--growth --json growth.json --html growth.html", "how cost grows, in about an hour; --quick, minutes"),
    ("--growth --rows 'depth-*,size-*'", "with what is in flight, and with the size of the device"),
    ("--checkers", "the explorer and the checker of histories, in about a minute"),
    ("--json run.json --html run.html", "and keep it, as data and as a page with plots"),
    ("--show run.json --html run.html", "what a run gave, without measuring"),
)

EPILOG = """Ratios of one run are to be trusted, seconds are of one machine on one day. Let nothing else run beside it.

\b
Exit status:
  0  measured
  1  could not be measured, or cowproof failed in a row; one line says why
  2  wrong usage
"""


class Bench(click.Command):
    """Its examples begin with its own name, whichever way it was called."""

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The text, and then the examples."""
        super().format_help_text(ctx, formatter)
        examples = [(f"{ctx.command_path} {arguments}".rstrip(), what) for arguments, what in EXAMPLES]
        width = max(len(example) for example, _ in examples)
        with formatter.section("Examples"):
            for example, what in examples:
                formatter.write(f"  {example:<{width}}   {what}\n")


@click.command(
    "bench",
    cls=Bench,
    help=HELP,
    epilog=EPILOG,
    short_help="Measure it beside nbdkit, qemu-nbd and nbd-server.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option("--growth", "is_growth", is_flag=True, help="Measure how cost grows, instead of the servers' rows.")
@click.option("--checkers", "is_checkers", is_flag=True, help="Measure the checkers, instead of servers.")
@click.option(
    "--rows", default="*", metavar="PATTERNS", help="Which rows: names or patterns, with commas; default all."
)
@click.option("--servers", default="*", metavar="PATTERNS", help="Which servers, the same way; default all.")
@click.option("--rounds", type=click.IntRange(1, ROUNDS_MAX), metavar="N", help="Rounds that count; default 5.")
@click.option("--size", metavar="SIZE", help="Of the base, at least 16M; default 1G.")
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, SECONDS_MAX),
    metavar="S",
    help="How long each round is of a row that has no end of its own; default 2.",
)
@click.option(
    "--repeats",
    type=click.IntRange(0, REPEATS_MAX),
    metavar="N",
    help="How often a round is repeated that ran beside other work; default 2.",
)
@click.option(
    "--quick", is_flag=True, help="A few rows, 2 rounds, 256M, 0.5 s: whatever of it you do not name yourself."
)
@click.option("--list", "is_list", is_flag=True, help="List rows and servers, and measure nothing.")
@click.option("--json", "json_path", metavar="FILE", help="Write all samples here.")
@click.option("--html", "html_path", metavar="FILE", help="Write a page with plots here.")
@click.option("--markdown", "markdown_path", metavar="FILE", help="Write a table here, a line for each row.")
@click.option("--show", metavar="FILE", help="Measure nothing: show what --json wrote.")
@click.option("--directory", metavar="DIR", help="For the base and the overlays; default $TMPDIR, or /var/tmp.")
def bench(
    is_growth: bool,
    is_checkers: bool,
    rows: str,
    servers: str,
    rounds: int | None,
    size: str | None,
    seconds: float | None,
    repeats: int | None,
    quick: bool,
    is_list: bool,
    json_path: str | None,
    html_path: str | None,
    markdown_path: str | None,
    show: str | None,
    directory: str | None,
) -> None:
    """Choose, measure, print, and exit."""
    if is_growth and is_checkers:
        raise UsageError("--growth and --checkers: expected one of them")
    if is_checkers:
        refuse({"--size": size, "--seconds": seconds, "--repeats": repeats, "--directory": directory}, "--checkers")
        job = checkers_job(rows, servers, quick)
    else:
        job = (growth_job if is_growth else servers_job)(rows, servers, quick)
    if is_list:
        click.echo("\n".join(job.listed()))
        return
    paths = [Path(path) for path in (json_path, html_path, markdown_path) if path is not None]
    for path in paths:
        check_writable(path)
    if show is not None:
        results = load(Path(show))
        show_all(results)
    else:
        settings = settings_of(quick, rounds, size, seconds, repeats)
        work = job.prepared(settings, folder_of(directory))
        results = measured(work, lambda so_far: write(so_far, json_path, html_path, markdown_path))
    write(results, json_path, html_path, markdown_path)
    if failed := failures(results):
        raise StartError(failed)


# The choice.


class Named(Protocol):
    """A row or a server."""

    @property
    def name(self) -> str:
        """What patterns are held against."""


class Quick(Named, Protocol):
    """A row."""

    @property
    def quick(self) -> bool:
        """Whether it belongs to the few."""


T = TypeVar("T", bound=Named)
Q = TypeVar("Q", bound=Quick)


def chosen(among: Sequence[T], patterns: str, what: str) -> list[T]:
    """Those that a pattern fits, in their own order. UsageError for a pattern that fits none."""
    asked = [pattern.strip() for pattern in patterns.split(",")]
    for pattern in asked:
        if not any(fnmatchcase(one.name, pattern) for one in among):
            raise UsageError(f"--{what}s: no {what} is named {quoted(pattern)}; --list shows them")
    return [one for one in among if any(fnmatchcase(one.name, pattern) for pattern in asked)]


def refuse(given: Mapping[str, object], because: str) -> None:
    """What has no meaning is not passed over."""
    for option, value in given.items():
        if value is not None:
            raise UsageError(f"{option} does not go with {because}")


def settings_of(
    quick: bool, rounds: int | None, size: str | None, seconds: float | None, repeats: int | None
) -> Settings:
    """What was asked for, else the default."""
    default = QUICK if quick else Settings()
    size_bytes = default.size_bytes if size is None else parse_size(size, "--size")
    if size_bytes < SIZE_MIN_BYTES or size_bytes % SIZE_MIN_BYTES:
        raise UsageError(f"--size {size}: expected a multiple of {format_size(SIZE_MIN_BYTES)}")
    return Settings(
        rounds=default.rounds if rounds is None else rounds,
        size_bytes=size_bytes,
        seconds=default.seconds if seconds is None else seconds,
        repeats=default.repeats if repeats is None else repeats,
    )


def folder_of(directory: str | None) -> Path:
    """Where servers keep their overlays, too. StartError if there is no such folder."""
    path = Path(directory or os.environ.get("TMPDIR") or "/var/tmp")
    if not path.is_dir():
        raise StartError(f"{path} is no folder: name one with --directory")
    return path


def check_clients(rows: Sequence[Row]) -> None:
    """StartError names what has to be installed for these rows."""
    lacking = sorted({row.needs for row in rows if row.needs in PACKAGES and path_of(row.needs) is None})
    if lacking:
        packages = " ".join(PACKAGES[program] for program in lacking)
        raise StartError(f"{' and '.join(lacking)} not installed; on Debian: sudo apt-get install {packages}")


def check_writable(path: Path) -> None:
    """Before hours of work, rather than after."""
    try:
        path.open("a", encoding="utf-8").close()
    except OSError as error:
        raise StartError(f"{path}: {error.strerror}") from None


# What can be measured.

Done = Callable[[RowResult], None]


@dataclass(frozen=True, slots=True)
class Work:
    """What is about to be measured: its results, still without rows, and how to get these."""

    results: Results
    measure: Callable[[Done], None]


@dataclass(frozen=True, slots=True)
class Job:
    """Rows that were chosen, and who does them: as a list, and ready to be measured, in a folder."""

    listed: Callable[[], list[str]]
    prepared: Callable[[Settings, Path], Work]


def servers_job(rows: str, servers: str, quick: bool) -> Job:
    """The servers, side by side."""
    among = [server for server in SERVERS if servers != "*" or not (quick and server.setting_of)]
    return _rows_job(chosen_rows(ROWS, rows, quick), chosen(among, servers, "server"), "servers", [])


def growth_job(rows: str, servers: str, quick: bool) -> Job:
    """How cost grows."""
    among = [server for server in SERVERS if servers != "*" or server.name in growth.SERVERS]
    found = chosen_rows(growth.ROWS, rows, quick)
    others = {row.name for row in growth.ROWS} - {row.name for row in found}
    series = [left for one in growth.SERIES if (left := one.without(others)).at]
    return _rows_job(found, chosen(among, servers, "server"), "growth", series)


def chosen_rows(among: Sequence[Q], patterns: str, quick: bool) -> list[Q]:
    """Of those that are quick, if nothing else is said."""
    return chosen([row for row in among if row.quick or not quick or patterns != "*"], patterns, "row")


def _rows_job(rows: list[Row], servers: list[Server], kind: str, series: list[Series]) -> Job:
    def prepared(settings: Settings, parent: Path) -> Work:
        check_clients(rows)
        told = {**asdict(settings), "size": format_size(settings.size_bytes)}
        results = Results(machine.described(parent), machine.versions(), told, series=series, kind=kind)

        def measure(done: Done) -> None:
            with private_folder(parent) as folder:
                Run(Path(folder), settings, show_progress).all(rows, servers, done)

        return Work(results, measure)

    return Job(lambda: list_lines(rows, servers), prepared)


def checkers_job(rows: str, servers: str, quick: bool) -> Job:
    """The checkers, which need packages that those who only measure servers do not."""
    try:
        from bench import checkers  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise StartError(f"--checkers needs {error.name}, which is not installed") from None
    checks = chosen_rows(checkers.CHECKS, rows, quick)
    among = [one for one in checkers.CHECKERS if servers != "*" or not (quick and one.setting_of)]
    found = chosen(among, servers, "server")

    def prepared(settings: Settings, parent: Path) -> Work:
        described = {what: told for what, told in machine.described(parent).items() if what != "overlays"}
        results = Results(described, machine.versions()[:2], {"rounds": settings.rounds}, kind="checkers")
        return Work(results, lambda done: checkers.all_measured(checks, found, settings.rounds, show_name, done))

    def listed() -> list[str]:
        rows_told = names("rows", checks, lambda check: check.meaning)
        return [*rows_told, "", *names("checkers", found, lambda checker: checker.shown)]

    return Job(listed, prepared)


def names(what: str, among: Sequence[T], told: Callable[[T], str]) -> list[str]:
    """Each with what there is to say of it."""
    width = max(len(one.name) for one in among)
    return [f"{len(among)} {what}:", *(f"  {one.name:<{width}}  {told(one)}" for one in among)]


def list_lines(rows: Sequence[Row], servers: Sequence[Server]) -> list[str]:
    """What there is to choose from."""
    turns = sum(fits(server, row) for row in rows for server in servers)
    return [
        *names("rows", rows, lambda row: row.meaning),
        "",
        *names("servers", servers, lambda server: absent(server) or server.shown),
        "",
        f"{turns} servers in rows, each in 5 rounds and one that warms up",
    ]


# Measuring.


def measured(work: Work, keep: Callable[[Results], None]) -> Results:
    """All rows, each printed when it, or its series, is done. Ctrl-C ends it early: what there is is kept."""
    results = work.results
    click.echo("\n".join([*head(results), ""]))

    def done(row: RowResult) -> None:
        clear()
        results.rows.append(row)
        if lines := news(results):
            click.echo("\n".join(lines))
        keep(results)

    try:
        with ended_by_sigterm():
            work.measure(done)
    except KeyboardInterrupt:
        clear()
        click.echo("\n".join([*unfinished(results), *conclusion(results)]))
        sys.exit(INTERRUPTED)
    clear()
    click.echo("\n".join(conclusion(results)))
    return results


def news(results: Results) -> list[str]:
    """What the last row has brought: itself, or its series, if it is the last of that."""
    row = results.rows[-1]
    series = results.series_of(row)
    if series is None:
        return row_lines(row)
    return series_lines(series, results) if len(results.rows_of(series)) == len(series.at) else []


def unfinished(results: Results) -> list[str]:
    """Series that have some of their rows, and have not been printed."""
    begun = [series for series in results.series if 0 < len(results.rows_of(series)) < len(series.at)]
    return [line for series in begun for line in series_lines(series, results)]


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """As by Ctrl-C: servers and overlays must not stay."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def show_progress(progress: Progress) -> None:
    """A line that is overwritten; where nobody watches, one for each row."""
    left = "" if progress.left_s is None else f", about {duration(progress.left_s)} left"
    if sys.stderr.isatty():
        where = f"{progress.row.name}: round {progress.round} of {progress.rounds}, {progress.server}{left}"
        click.echo(f"\r{where:<100}", nl=False, err=True)
    elif progress.is_first:
        click.echo(f"{progress.row.name}{left}", err=True)


def show_name(name: str) -> None:
    """The same, where nothing else is known."""
    if sys.stderr.isatty():
        click.echo(f"\r{name:<100}", nl=False, err=True)
    else:
        click.echo(name, err=True)


def clear() -> None:
    """The line of progress."""
    if sys.stderr.isatty():
        click.echo(f"\r{'':100}\r", nl=False, err=True)


def duration(seconds: float) -> str:
    """Roughly."""
    minutes = round(seconds / 60)
    if minutes >= 90:
        return f"{minutes / 60:.1f} hours"
    return f"{minutes} minutes" if seconds >= 90 else f"{round(seconds)} s"


# What comes of it.


def show_all(results: Results) -> None:
    """As it was printed when it was measured."""
    click.echo("\n".join([*head(results), "", *body(results), *conclusion(results)]))


def write(results: Results, json_path: str | None, html_path: str | None, markdown_path: str | None) -> None:
    """The files that were asked for."""
    if json_path is not None:
        save(results, Path(json_path))
    if html_path is not None:
        Path(html_path).write_text(page(results), encoding="utf-8")
    if markdown_path is not None:
        Path(markdown_path).write_text("\n".join([*table.page(results), ""]), encoding="utf-8")


def failures(results: Results) -> str:
    """The rows in which cowproof itself failed, in one line."""
    failed = [f"{row.name}: {s.cannot}" for row in results.rows for s in row.servers if s.name == OURS and s.cannot]
    return "; ".join(failed)


def main() -> None:
    """Entry point of `python -m bench`."""
    fail_in_one_line(bench, None, "python -m bench")
