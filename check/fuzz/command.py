"""`python -m check.fuzz`: its options, what it prints, its exit statuses.

Errors:  exit status 0: nothing was found. 1: something was, or it could not be looked for. 2: wrong usage.
Bounds:  each target has a process of its own, which ends after --seconds. An input that takes more than TIMEOUT_S, or
         has the process take more than RSS_LIMIT_MB, is something that was found.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import click

from check.fuzz.seeds import seeds, words
from check.fuzz.targets import TARGETS
from impl.errors import StartError, UsageError
from impl.server.command import fail_in_one_line

ALL = "all"
SECONDS = 60
INPUT_MAX_BYTES = 4096
TIMEOUT_S = 20
RSS_LIMIT_MB = 2048
PATIENCE_S = 120  # beside --seconds: to begin, and to end
FOUND = 1
TAIL_LINES = 30

NAME = "python -m check.fuzz"
HELP = f"""Try the NBD codec with bytes that coverage leads to.

Whatever bytes come, and however they are split, the codec has to give a message, wait for more, or say what is wrong:
never another exception, never more memory than its limit, and the same whatever the split. Inputs are changed at
random, and those that reach code which none has reached before are changed further.

\b
Targets:
  server-handshake  what a client sends before it has chosen an export
  client-handshake  what a server sends to a client that wants something
  requests          what a client sends afterwards
  replies           what a server sends afterwards
  all               one after the other

An input that breaks the rule is written into the current folder, as a file whose name begins with fuzz and the
target. With FILE, such inputs are tried again, and nothing is looked for; that needs no fuzzer. Looking for some
needs atheris: pip install 'cowproof[fuzz]'.

\b
Examples:
  {NAME} requests                            for a minute
  {NAME} all --seconds 600 --corpus corpus   go on where the last time ended
  {NAME} requests fuzz-requests-crash-1234   once more, with the traceback
"""

EPILOG = """\b
Exit status:
  0  nothing was found
  1  an input breaks the rule, or it could not be looked for
  2  wrong usage
"""


class Figures(NamedTuple):
    """How far it came."""

    executions: int
    edges: int


@click.command(
    "fuzz",
    help=HELP,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.argument("target", metavar="TARGET", type=click.Choice([*TARGETS, ALL]))
@click.argument("files", metavar="[FILE]...", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--seconds", type=click.IntRange(1), default=SECONDS, help=f"For each target; default {SECONDS}.")
@click.option(
    "--corpus",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Begin with what is in DIR/TARGET, too, and keep there what reaches new code.",
)
def fuzz(target: str, files: Sequence[Path], seconds: int, corpus: Path | None) -> None:
    """Look for inputs that break the rule, or try some again."""
    if files:
        if target == ALL:
            raise UsageError("a file is an input of one target, not of all")
        sys.exit(max(try_again(target, path) for path in files))
    if find_spec("atheris") is None:
        raise StartError("fuzzing needs atheris, which is not installed: pip install 'cowproof[fuzz]'")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the fuzzer is ended, too
    chosen = [*TARGETS] if target == ALL else [target]
    sys.exit(max(look(name, seconds, corpus) for name in chosen))


def try_again(target: str, path: Path) -> int:
    """One input, in this process; the exit status."""
    try:
        TARGETS[target](path.read_bytes())
    except Exception:
        click.echo(traceback.format_exc(), err=True)
        click.echo(f"{path}: breaks the rule")
        return FOUND
    click.echo(f"{path}: nothing found")
    return 0


def look(target: str, seconds: int, corpus: Path | None) -> int:
    """Fuzz one target, and say what came of it; the exit status."""
    with tempfile.TemporaryDirectory(prefix="cowproof-fuzz-") as folder:
        here = Path(folder)
        kept = here / "corpus" if corpus is None else corpus / target
        status, said = run([*engine(target), *flags(target, seconds, here), *folders(target, kept, here)], seconds)
    if status == 0:
        found = figures(said)
        rate = found.executions // seconds
        click.echo(
            f"{target}: nothing found in {seconds} s; {found.executions} inputs, {rate} a second; {found.edges} edges"
        )
        return 0
    written = re.findall(r"Test unit written to (\S+)", said)
    click.echo("\n".join(said.splitlines()[-TAIL_LINES:]), err=True)
    if not written:
        raise StartError(f"atheris has ended with status {status}; its last words are above")
    for path in written:
        click.echo(f"{target}: {path} breaks the rule; once more: {NAME} {target} {path}")
    return FOUND


def engine(target: str) -> list[str]:
    """The program that fuzzes."""
    return [sys.executable, "-m", "check.fuzz.engine", target]


def flags(target: str, seconds: int, here: Path) -> list[str]:
    """What libFuzzer is told."""
    dictionary = here / "words"
    dictionary.write_text("".join(f'"{quoted(word)}"\n' for word in words()))
    return [
        f"-max_total_time={seconds}",
        f"-max_len={INPUT_MAX_BYTES}",
        f"-timeout={TIMEOUT_S}",
        f"-rss_limit_mb={RSS_LIMIT_MB}",
        f"-dict={dictionary}",
        f"-artifact_prefix=fuzz-{target}-",
        "-print_final_stats=1",
    ]


def quoted(word: bytes) -> str:
    """As libFuzzer's dictionaries have it."""
    return "".join(f"\\x{byte:02x}" for byte in word)


def folders(target: str, kept: Path, here: Path) -> list[str]:
    """What it begins with; what it finds to be of use goes into the first."""
    begin = here / "seeds"
    begin.mkdir()
    for number, seed in enumerate(seeds(target)):
        (begin / str(number)).write_bytes(seed)
    kept.mkdir(parents=True, exist_ok=True)
    return [str(kept), str(begin)]


def run(command: list[str], seconds: int) -> tuple[int, str]:
    """Its exit status, and what it has said; it ends when we do."""
    with started(command) as process:
        try:
            said, _ = process.communicate(timeout=seconds + PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise StartError(f"atheris has not ended {PATIENCE_S} s after it should have") from None
    return process.returncode, said


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that is not left behind."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def figures(said: str) -> Figures:
    """From what libFuzzer prints."""
    executions = re.findall(r"stat::number_of_executed_units:\s*(\d+)", said)
    edges = re.findall(r"\bcov: (\d+)", said)
    return Figures(int(executions[-1]) if executions else 0, int(edges[-1]) if edges else 0)


def main(arguments: list[str] | None = None) -> None:
    """The command, whose errors are one line each."""
    fail_in_one_line(fuzz, arguments, NAME)
