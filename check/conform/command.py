"""The command `conform`: its options, what it prints, its exit statuses.

Errors:  exit status 0: no rule is broken that the protocol says MUST. 1: one is, or no server could be started.
         2: wrong usage.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from check.conform.rule import Verdict
from check.conform.run import Result, as_json, as_junit, chosen, line, run, subject_of, summary
from impl.errors import StartError
from impl.server.command import fail_in_one_line

HELP = """Hold an NBD server to the protocol.

Every rule is tried by itself, and says what it is, where the protocol has it, and what the server did instead. A
server that hangs fails the rule, and never the kit.

URI is a server that is there: what is on its disk may be overwritten. With --start, servers are started as they are
needed, over a file $base of some kilobytes, and have to listen at $unixsocket; only so can rules be tried that need a
disk to which nothing has been written.

\b
Examples:
  cowproof conform nbd://localhost
  cowproof conform --start 'nbdkit -f -U $unixsocket --filter=cow file $base'
  cowproof conform --start 'cowproof serve -U $unixsocket $base' --only 'handshake/*'
"""

EPILOG = """\b
Exit status:
  0  no rule is broken that the protocol says MUST
  1  one is, or the server could not be started
  2  wrong usage
"""


@click.command(
    "conform",
    help=HELP,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.argument("uri", required=False)
@click.option("--start", "command", metavar="COMMAND", help="Start servers with this, in a shell.")
@click.option("--export", default="", metavar="NAME", help="With --start: which export, if not the default one.")
@click.option("--only", multiple=True, metavar="RULE", help="Only this rule, group, or pattern; may be repeated.")
@click.option("--list", "lists", is_flag=True, help="Show the rules, and do nothing.")
@click.option("--json", "json_file", type=click.Path(), metavar="FILE", help="Write the results as JSON, too.")
@click.option("--junit", "junit_file", type=click.Path(), metavar="FILE", help="Write the results as JUnit XML, too.")
def conform(
    uri: str | None,
    command: str | None,
    export: str,
    only: tuple[str, ...],
    lists: bool,
    json_file: str | None,
    junit_file: str | None,
) -> None:
    """Try the rules, and tell what came of them."""
    rules = chosen(only)
    if lists:
        for rule in rules:
            click.echo(f"{rule.name:34}  {rule.need.value:6}  {rule.says}")
        return
    with subject_of(uri, command, export) as subject:
        results = run(rules, lambda: subject, tell)
    where = uri or command or ""
    click.echo(summary(results))
    for result in results:
        if result.verdict is Verdict.FAIL:
            click.echo(f"alone: cowproof conform {told(uri, command, export)} --only {result.rule.name}")
    for path, text in ((json_file, as_json), (junit_file, as_junit)):
        if path is not None:
            write(path, text(results, where))
    sys.exit(1 if any(result.is_violation for result in results) else 0)


def tell(result: Result) -> None:
    """As soon as it is known."""
    click.echo(line(result))


def told(uri: str | None, command: str | None, export: str) -> str:
    """The server, as it was named on the command line."""
    if uri is not None:
        return f"'{uri}'"
    return f"--start '{command}'{f' --export {export}' if export else ''}"


def write(path: str, text: str) -> None:
    """A file of results."""
    try:
        Path(path).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise StartError(f"{path}: {error.strerror}") from None


def main(arguments: list[str] | None = None) -> None:
    """`python -m check.conform`: as `cowproof conform`."""
    fail_in_one_line(conform, arguments, "python -m check.conform")
