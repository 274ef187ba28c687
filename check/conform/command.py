"""The command `conform`: its options, what it prints, its exit statuses.

Errors:  exit status 0: no rule is broken that the protocol says MUST. 1: one is, or no server could be started.
         2: wrong usage.
"""

from __future__ import annotations

import shlex
import signal
import sys
from pathlib import Path
from typing import NoReturn

import click

from check.conform.rule import CLAIMS, Verdict
from check.conform.run import Result, as_json, as_junit, chosen, line, run, subject_of, summary
from check.conform.subject import Settings
from impl.client.uri import Target, Tls
from impl.errors import StartError, UsageError
from impl.server.command import fail_in_one_line

HELP = """Hold an NBD server to the protocol.

Every rule is tried by itself, and says what it is, where the protocol has it, and what the server did instead. A
server that hangs fails the rule, and never the kit.

URI is a server that is there: what is on its disk may be overwritten. With --start, servers are started as they are
needed, by a shell, one for each rule; only so can rules be tried that need a disk to which nothing has been written.
The command is told where to listen, and what to serve, by variables of its shell:

\b
  $unixsocket  the socket where it has to listen
  $base        a disk, as a file
  $baseuri     the same disk over NBD, and slow where that matters: so races show that a file hides
  $overlay     a file that is not there yet, and is kept when the server is started again: for what is written
  $pidfile     for a server that wants to write its number; one that goes into the background is found without

\b
Examples:
  cowproof conform nbd://localhost
  cowproof conform --quick --start 'nbdkit -f -U $unixsocket --filter=cow nbd uri=$baseuri'
  cowproof conform --start 'cowproof serve -U $unixsocket $base' --only 'handshake/*' --only semantics/read
"""

EPILOG = """\b
Exit status:
  0  no rule is broken that the protocol says MUST, or that is claimed
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
@click.option("--tls", is_flag=True, help="With --start: speak TLS, also where rules are not about it.")
@click.option(
    "--tls-certificates", metavar="DIR", help="With --start: our certificate, as client-cert.pem and -key.pem."
)
@click.option("--tls-psk", metavar="FILE", help="With --start: our pre-shared key, a line NAME:KEY in hex.")
@click.option("--tls-username", metavar="NAME", help="With --tls-psk: whose key; default the name of who runs this.")
@click.option("--only", multiple=True, metavar="RULE", help="Only this rule, group, or pattern; may be repeated.")
@click.option(
    "--claim",
    "claims",
    multiple=True,
    type=click.Choice(CLAIMS),
    help="What the server is said to do beyond the protocol: what takes effect at an instant, or that what is written "
    "outlives it; may be repeated.",
)
@click.option(
    "--quick",
    is_flag=True,
    help="Try less of what takes long, and find less: a tenth of the vectors, a part of the races.",
)
@click.option("--keep", type=click.Path(), metavar="FOLDER", help="Keep histories that show a failure.")
@click.option("--list", "lists", is_flag=True, help="Show the rules, and do nothing.")
@click.option("--json", "json_file", type=click.Path(), metavar="FILE", help="Write the results as JSON, too.")
@click.option("--junit", "junit_file", type=click.Path(), metavar="FILE", help="Write the results as JUnit XML, too.")
def conform(
    uri: str | None,
    command: str | None,
    export: str,
    tls: bool,
    tls_certificates: str | None,
    tls_psk: str | None,
    tls_username: str | None,
    only: tuple[str, ...],
    claims: tuple[str, ...],
    quick: bool,
    keep: str | None,
    lists: bool,
    json_file: str | None,
    junit_file: str | None,
) -> None:
    """Try the rules, and tell what came of them."""
    rules = chosen(only)
    if lists:
        for rule in rules:
            click.echo(f"{rule.name:36}  {rule.need.value:6}  {rule.says}")
        return
    if tls_username is not None and tls_psk is None:
        raise UsageError("--tls-username says whose key of --tls-psk is used, and that is missing")
    if tls_psk is not None and tls_certificates is not None:
        raise UsageError("--tls-psk and --tls-certificates: a server knows us by one of them")
    if uri is not None and (export or tls or tls_certificates or tls_psk):
        raise UsageError("--export and --tls go with --start; a URI says it itself: nbds://HOST/EXPORT")
    with_tls = tls or tls_certificates or tls_psk
    secure = Tls(tls_certificates, None, tls_psk is not None, tls_psk, tls_username) if with_tls else None
    prepare(keep, json_file, junit_file)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    progress = Progress()
    settings = Settings(quick, frozenset(claims), None if keep is None else Path(keep), progress.say)
    with subject_of(uri, command, Target(export, tls=secure), settings) as subject:
        results = run(rules, lambda: subject, progress.tell)
    where = uri or command or ""
    click.echo(summary(results))
    named = [uri] if uri is not None else ["--start", str(command)]
    more = [
        ("--export", export),
        ("--tls-certificates", tls_certificates),
        ("--tls-psk", tls_psk),
        ("--tls-username", tls_username),
        *(("--claim", claim) for claim in claims),
    ]
    named += [part for option, value in more if value for part in (option, value)]
    named += [option for option, given in (("--tls", tls), ("--quick", quick)) if given]
    for result in results:
        if result.verdict is Verdict.FAIL:
            click.echo(f"alone: cowproof conform {shlex.join([*named, '--only', result.rule.name])}")
    for path, text in ((json_file, as_json), (junit_file, as_junit)):
        if path is not None:
            write(path, text(results, where))
    sys.exit(1 if any(result.is_violation for result in results) else 0)


def prepare(keep: str | None, *files: str | None) -> None:
    """Find out before a long run what would go wrong behind it; StartError says what."""
    if keep is not None:
        try:
            Path(keep).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StartError(f"--keep {keep}: {error.strerror}") from None
    for path in files:
        if path is not None:
            write(path, "")


def leave(*_: object) -> NoReturn:
    """So that servers are ended in order."""
    sys.exit(128 + signal.SIGTERM)


class Progress:
    """Each result as soon as it is known; and on a terminal, how far the rule has come that is being tried."""

    def __init__(self) -> None:
        self._is_shown = sys.stderr.isatty()
        self._width = 0

    def say(self, told: str) -> None:
        """Over what was said before."""
        if self._is_shown:
            click.echo(f"\r{told:{self._width}}", nl=False, err=True)
            self._width = len(told)

    def tell(self, result: Result) -> None:
        """One result."""
        self.say("")
        if self._is_shown:
            click.echo("\r", nl=False, err=True)
        click.echo(line(result))


def write(path: str, text: str) -> None:
    """A file of results."""
    try:
        Path(path).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise StartError(f"{path}: {error.strerror}") from None


def main(arguments: list[str] | None = None) -> None:
    """`python -m check.conform`: as `cowproof conform`."""
    fail_in_one_line(conform, arguments, "python -m check.conform")
