"""The two servers that are put to the test, over bases with the same bytes and the same latency.

Each listens on a Unix socket in a folder that only we can enter, and is ended by its process number. Should we be
killed, it goes too: both know --exit-with-parent.

nbdkit's base is a file behind its own delay filter where all reads take as long. Where they take different times, it
is the pattern that cowproof serves, reached through nbdkit's nbd plugin.

Units:   seconds where a name says so, else as in `programs`.
Errors:  StartError, one line, when a server is not there or does not come up.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import impl
from check.live.programs import BLOCK_BYTES, LATENCY_MS, SEED, Race
from impl.base.pattern import pattern
from impl.errors import StartError
from impl.sizes import format_size

START_LIMIT_S = 20.0
END_LIMIT_S = 5.0
POLL_S = 0.01
ROOT = Path(impl.__file__).parent.parent
COWPROOF = (sys.executable, "-m", "impl.server")

NO_NBDKIT = "nbdkit is not installed, and it is what this shows; on Debian: sudo apt-get install nbdkit"


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers at `uri`; `shown` are the commands with which somebody else would start one like it."""

    uri: str
    shown: tuple[str, ...]


def find_nbdkit() -> str:
    """Its path; StartError says what to install."""
    found = shutil.which("nbdkit")
    if found is None:
        raise StartError(NO_NBDKIT)
    return found


def nbdkit_version() -> str:
    """Such as `nbdkit 1.32.5`."""
    try:
        told = subprocess.run([find_nbdkit(), "--version"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise StartError(f"nbdkit --version failed: {error}") from None
    return told.stdout.strip().splitlines()[0]


@contextmanager
def nbdkit(race: Race, block_count: int, folder: Path) -> Iterator[Server]:
    """nbdkit's cow filter, over a base of `block_count` blocks."""
    slow = _base_of_varying_latency if race.jitter_ms else _base_of_one_latency
    path = folder / "nbdkit"
    with slow(race, block_count, folder) as (base, shown):
        arguments = ["--filter=cow", *base, *race.nbdkit_options]
        with listening([find_nbdkit(), *arguments], path):
            yield Server(uri_of(path), (*shown, _shown(["nbdkit", *arguments], folder)))


@contextmanager
def _base_of_one_latency(race: Race, block_count: int, folder: Path) -> Iterator[tuple[list[str], list[str]]]:
    """nbdkit's arguments for it, and what has to be started before."""
    image = folder / "base.img"
    image.write_bytes(pattern(SEED, 0, block_count * BLOCK_BYTES))
    yield ["--filter=delay", "file", str(image), f"rdelay={LATENCY_MS}ms"], []


@contextmanager
def _base_of_varying_latency(race: Race, block_count: int, folder: Path) -> Iterator[tuple[list[str], list[str]]]:
    """The same, where nbdkit's delay filter, which knows only one delay for all, does not do."""
    path = folder / "base"
    arguments = ["-r", slow_base(race, block_count)]
    with listening([*COWPROOF, *arguments], path):
        yield ["nbd", f"socket={path}"], [_shown(["cowproof", "serve", "-U", "base", *arguments], folder) + " &"]


@contextmanager
def cowproof(race: Race, block_count: int, folder: Path) -> Iterator[Server]:
    """The server of this project, over the same."""
    arguments = [*race.cowproof_options, slow_base(race, block_count)]
    path = folder / "cowproof"
    with listening([*COWPROOF, *arguments], path):
        yield Server(uri_of(path), (_shown(["cowproof", "serve", *arguments], folder),))


Open = Callable[[Race, int, Path], AbstractContextManager[Server]]
SERVERS: dict[str, Open] = {"nbdkit": nbdkit, "cowproof": cowproof}


def slow_base(race: Race, block_count: int) -> str:
    """The base as cowproof's command line has it."""
    size = format_size(block_count * BLOCK_BYTES)
    jitter = f"&jitter={race.jitter_ms}ms" if race.jitter_ms else ""
    return f"pattern:{size}?seed={SEED}&latency={LATENCY_MS}ms{jitter}"


def uri_of(path: Path) -> str:
    """Where a server at this socket is found."""
    return f"nbd+unix:///?socket={path}"


def _shown(command: Sequence[str], folder: Path) -> str:
    """A command for people to read: the files of our private folder by their names only."""
    return shlex.join(part.replace(f"{folder}/", "") for part in command)


@contextmanager
def listening(command: Sequence[str], path: Path) -> Iterator[None]:
    """A server, from when clients can connect at the socket `path` until it has gone."""
    pidfile, errors = path.with_suffix(".pid"), path.with_suffix(".log")
    whole = [*command, "-U", str(path), "-P", str(pidfile), "--exit-with-parent"]
    environment = {**os.environ, "TMPDIR": str(path.parent)}  # where both keep what is written
    try:
        with errors.open("wb") as log:
            process = subprocess.Popen(
                whole, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
    except OSError as error:
        raise StartError(f"{command[0]} cannot be started: {error.strerror}") from None
    try:
        _wait_for(path.name, pidfile, process, errors)
        yield
    finally:
        end_process(process)
        pidfile.unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def _wait_for(name: str, pidfile: Path, process: subprocess.Popen[bytes], errors: Path) -> None:
    """Both servers write their pid file once clients can connect."""
    deadline = time.monotonic() + START_LIMIT_S
    while not (pidfile.exists() and pidfile.stat().st_size):
        if process.poll() is not None or time.monotonic() > deadline:
            how = "does not come up" if process.returncode is None else f"ended with status {process.returncode}"
            said = " / ".join(errors.read_text(encoding="utf-8", errors="replace").splitlines())
            raise StartError(f"{name} {how}: {said or 'it said nothing'}")
        time.sleep(POLL_S)


def end_process(process: subprocess.Popen[bytes]) -> None:
    """In order if it will, else at once."""
    process.terminate()
    try:
        process.wait(END_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(END_LIMIT_S)
