"""The command `bench`: its options, what it prints, its exit statuses.

Errors:  exit status 0: measured. 1: a program is missing, or cowproof could not do what it was asked; one line says
         what. 2: wrong usage. 130: Ctrl-C; what was measured until then is printed, and written.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from types import FrameType
from typing import Protocol, TypeVar

import click

from bench import machine
from bench.clients import PACKAGES
from bench.page import page
from bench.report import head, row_lines, summary
from bench.results import Results, RowResult, load, save
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
"""

EXAMPLES = (
    ("--quick", "four servers and six rows, in about a minute"),
    ("", "everything, in two or three hours"),
    ("--list", "the rows and the servers, and what is missing"),
    ("--rows '4k-read-*,slow*' --rounds 9", "some rows, by patterns as of a shell"),
    ("--servers cowproof,nbdkit --rows '*-c1*'", "two servers, one connection"),
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
@click.option("--show", metavar="FILE", help="Measure nothing: show what --json wrote.")
@click.option("--directory", metavar="DIR", help="For the base and the overlays; default $TMPDIR, or /var/tmp.")
def bench(
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
    show: str | None,
    directory: str | None,
) -> None:
    """Choose, measure, print, and exit."""
    chosen_rows = chosen([row for row in ROWS if row.quick or not quick or rows != "*"], rows, "row")
    chosen_servers = chosen(
        [server for server in SERVERS if servers != "*" or not (quick and server.setting_of)], servers, "server"
    )
    if is_list:
        click.echo("\n".join(list_lines(chosen_rows, chosen_servers)))
        return
    paths = [Path(path) for path in (json_path, html_path) if path is not None]
    for path in paths:
        check_writable(path)
    if show is not None:
        results = load(Path(show))
        show_all(results)
    else:
        settings = settings_of(quick, rounds, size, seconds, repeats)
        check_clients(chosen_rows)
        results = measured(
            chosen_rows,
            chosen_servers,
            settings,
            folder_of(directory),
            lambda so_far: write(so_far, json_path, html_path),
        )
    write(results, json_path, html_path)
    if failed := failures(results):
        raise StartError(failed)


# The choice.


class Named(Protocol):
    """A row or a server."""

    @property
    def name(self) -> str:
        """What patterns are held against."""


T = TypeVar("T", bound=Named)


def chosen(among: Sequence[T], patterns: str, what: str) -> list[T]:
    """Those that a pattern fits, in their own order. UsageError for a pattern that fits none."""
    asked = [pattern.strip() for pattern in patterns.split(",")]
    for pattern in asked:
        if not any(fnmatchcase(one.name, pattern) for one in among):
            raise UsageError(f"--{what}s: no {what} is named {quoted(pattern)}; --list shows them")
    return [one for one in among if any(fnmatchcase(one.name, pattern) for pattern in asked)]


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


def list_lines(rows: Sequence[Row], servers: Sequence[Server]) -> list[str]:
    """What there is to choose from."""
    row_width, server_width = max(len(row.name) for row in rows), max(len(server.name) for server in servers)
    lines = [f"{len(rows)} rows:", *(f"  {row.name:<{row_width}}  {row.meaning}" for row in rows)]
    lines += ["", f"{len(servers)} servers:"]
    for server in servers:
        lines.append(f"  {server.name:<{server_width}}  {absent(server) or server.shown}")
    turns = sum(fits(server, row) for row in rows for server in servers)
    return [*lines, "", f"{turns} servers in rows, each in 5 rounds and one that warms up"]


# Measuring.


def measured(
    rows: Sequence[Row], servers: Sequence[Server], settings: Settings, parent: Path, keep: Callable[[Results], None]
) -> Results:
    """All rows, each printed when it is done. Ctrl-C ends it early: what there is is kept."""
    told = {**asdict(settings), "size": format_size(settings.size_bytes)}
    results = Results(machine.described(parent), machine.versions(), told)
    click.echo("\n".join([*head(results), ""]))

    def done(row: RowResult) -> None:
        clear()
        results.rows.append(row)
        click.echo("\n".join(row_lines(row)))
        keep(results)

    try:
        with ended_by_sigterm(), private_folder(parent) as folder:
            Run(Path(folder), settings, show_progress).all(rows, servers, done)
    except KeyboardInterrupt:
        clear()
        click.echo("\n".join(summary(results.rows)))
        sys.exit(INTERRUPTED)
    clear()
    click.echo("\n".join(summary(results.rows)))
    return results


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
    lines = [*head(results), "", *(line for row in results.rows for line in row_lines(row)), *summary(results.rows)]
    click.echo("\n".join(lines))


def write(results: Results, json_path: str | None, html_path: str | None) -> None:
    """The files that were asked for."""
    if json_path is not None:
        save(results, Path(json_path))
    if html_path is not None:
        Path(html_path).write_text(page(results), encoding="utf-8")


def failures(results: Results) -> str:
    """The rows in which cowproof itself failed, in one line."""
    failed = [f"{row.name}: {s.cannot}" for row in results.rows for s in row.servers if s.name == OURS and s.cannot]
    return "; ".join(failed)


def main() -> None:
    """Entry point of `python -m bench`."""
    fail_in_one_line(bench, None, "python -m bench")
