"""The server that is tried: one that is there, or one that is started anew for whoever needs it fresh.

Errors:  StartError when a server that is to be started does not come up. NotApplicable where a rule needs a fresh one
         and there is only a URI.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from check.conform.link import Link
from check.conform.rule import NotApplicable
from check.conform.vectors import SIZE
from impl.client import Client, connect
from impl.client.uri import Target, parse
from impl.errors import StartError, UsageError

START_LIMIT_S = 10.0
END_LIMIT_S = 5.0
POLL_S = 0.002
ANSWER_S = 10.0
SOCKET, BASE = "$unixsocket", "$base"


@lru_cache
def base_bytes(size: int = SIZE) -> bytes:
    """The base of the vectors."""
    return bytes(1 + index % 251 for index in range(size))


@dataclass(frozen=True)
class Subject:
    """A server to be tried.

    target:   where it is; with a command, where it is once that has been started
    command:  how one is started, for a shell, with $unixsocket and $base; None if it is there already
    """

    target: Target
    command: str | None = None

    def link(self) -> Link:
        """A connection, before a word was said."""
        return Link(self.target)

    def client(self) -> Client:
        """A connection in the transmission phase, with the best of what the server has."""
        return connect(self.target.uri, timeout_s=ANSWER_S)

    @contextmanager
    def fresh(self, size: int = SIZE) -> Iterator[Subject]:
        """The same kind of server, over a base of so many bytes, with nothing written to it yet."""
        if self.command is None:
            raise NotApplicable("it needs a server that nobody has written to: --start 'COMMAND with $unixsocket'")
        with started(self.command, self.target.export, size) as subject:
            yield subject


def there(uri: str) -> Subject:
    """A server that runs already."""
    return Subject(parse(uri))


@contextmanager
def started(command: str, export: str = "", size: int = SIZE) -> Iterator[Subject]:
    """A server of one's own, over the base of the vectors; it has gone with all its children when this ends."""
    if SOCKET not in command:
        raise UsageError(f"--start {command!r}: expected {SOCKET} where the server is told to listen")
    folder = Path(tempfile.mkdtemp(prefix="conform-"))
    try:
        base, place, log = folder / "base", folder / "s", folder / "log"
        base.write_bytes(base_bytes(size))
        told = command.replace(SOCKET, shlex.quote(str(place))).replace(BASE, shlex.quote(str(base)))
        target = Target(export, path=str(place))
        with log.open("wb") as said:
            process = subprocess.Popen(
                told,
                shell=True,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
                env={**os.environ, "TMPDIR": str(folder)},
            )
        try:
            _wait_until_it_listens(process, target, log)
            yield Subject(target, command)
        finally:
            _end(process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_it_listens(process: subprocess.Popen[bytes], target: Target, log: Path) -> None:
    deadline_s = time.monotonic() + START_LIMIT_S
    while True:
        with suppress(Exception):
            with Link(replace(target)) as link:
                link.receive(1, "greeting")
                return
        if process.poll() is not None or time.monotonic() > deadline_s:
            said = " / ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:])
            raise StartError(f"the server that was to be started does not listen: {said or 'it said nothing'}")
        time.sleep(POLL_S)


def _end(process: subprocess.Popen[bytes]) -> None:
    """The whole group: a shell may stand between."""
    for number, limit_s in ((signal.SIGTERM, END_LIMIT_S), (signal.SIGKILL, END_LIMIT_S)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(limit_s)
            break
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
