"""Starts other people's servers by a command, and ends them: in order, or as a power failure would.

Units:   seconds.
Errors:  UsageError for a command that cannot be meant; StartError when a server does not come up; NoRoom.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from check.conform.disk import Disk, Upstreams
from check.conform.link import Link
from check.conform.room import NoRoom, folder_with_room, kept_in, not_full
from check.conform.rule import Failure
from impl.client.uri import Target
from impl.errors import StartError, UsageError
from impl.sizes import quoted

START_LIMIT_S = 10.0
END_LIMIT_S = 5.0
POLL_S = 0.002
ENDING_S = 0.5  # how long a server that crashes takes to be gone
SOCKET, BASE, BASE_URI, OVERLAY, PIDFILE = "unixsocket", "base", "baseuri", "overlay", "pidfile"


def names(command: str, variable: str) -> bool:
    """Whether a shell's command has a variable in it."""
    return re.search(rf"\${variable}\b|\$\{{{variable}\b", command) is not None


class Place:
    """A folder of one server's own, where it can be started again and again over the same files."""

    def __init__(self, command: str, wanted: Target, disk: Disk, upstreams: Upstreams) -> None:
        """`wanted` says which export, and whether TLS is spoken."""
        if not names(command, SOCKET):
            raise UsageError(f"--start {quoted(command)}: expected ${SOCKET} where the server is told to listen")
        self._folder = folder_with_room()
        self._log = self._folder / "log"
        self.target = replace(wanted, path=str(self._folder / "s"))
        self._command = command
        self._session: int | None = None  # while it runs
        try:
            with kept_in(self._folder):
                self._variables = self._values(disk, upstreams)
        except BaseException:
            self.remove()
            raise

    def _values(self, disk: Disk, upstreams: Upstreams) -> dict[str, str]:
        """Of the shell's variables; a disk is made only if the command names it."""
        found = {SOCKET: self.target.path, OVERLAY: str(self._folder / "overlay"), "TMPDIR": str(self._folder)}
        found[PIDFILE] = str(self._folder / "pid")
        if names(self._command, BASE_URI):
            found[BASE_URI] = upstreams.uri(disk)
        if names(self._command, BASE):
            base = self._folder / "base"
            base.write_bytes(disk.content())
            found[BASE] = str(base)
        return found

    @contextmanager
    def running(self, *, is_killed: bool = False) -> Iterator[None]:
        """From when the server listens until it has gone with all its children; `is_killed` without a warning.

        A Failure that is raised meanwhile says, too, if the server has ended by itself.
        """
        Path(self.target.path).unlink(missing_ok=True)
        with kept_in(self._folder):
            log = self._log.open("wb")
        with log as said:
            try:
                process = subprocess.Popen(
                    self._command,
                    shell=True,
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    start_new_session=True,
                    env={**os.environ, **self._variables},
                )
            except OSError as error:
                raise NoRoom(f"the kit cannot start a process: {error.strerror}") from None
        self._session = process.pid
        try:
            with not_full(self._folder):
                self._wait_until_it_listens(process)
                yield
        except Failure as failure:
            if self._has_ended(process, ENDING_S):
                raise Failure(f"{failure}\nthe server has ended: {self.said() or 'it said nothing'}") from None
            raise
        finally:
            self._end(process, is_killed)
            self._session = None

    @property
    def folder(self) -> Path:
        """For files of one's own; the server has some there."""
        return self._folder

    def files_with(self, data: bytes) -> list[Path]:
        """Those that the command was told of as $base and $overlay, if data are in them."""
        named = [Path(self._variables[name]) for name in (BASE, OVERLAY) if name in self._variables]
        return [path for path in named if path.is_file() and data in path.read_bytes()]

    def said(self) -> str:
        """The last words of the server."""
        return " / ".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:])

    def remove(self) -> None:
        """With everything in it."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _wait_until_it_listens(self, process: subprocess.Popen[bytes]) -> None:
        deadline_s = time.monotonic() + START_LIMIT_S
        why = "does not listen"
        while True:
            try:
                with Link(self.target) as link:
                    why = "listens, but does not greet"
                    link.patience(max(POLL_S, deadline_s - time.monotonic()))
                    link.receive(1, "greeting")
                    return
            except Failure:
                pass
            if self._has_ended(process, 0) or time.monotonic() > deadline_s:
                told = self.said() or "it said nothing"
                raise StartError(f"the server that was to be started {why}: {told}")
            time.sleep(POLL_S)

    def _has_ended(self, process: subprocess.Popen[bytes], patience_s: float) -> bool:
        """Whether nothing of it is left, be it in the background or not."""
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)
        return process.poll() is not None and not self.processes()

    def processes(self) -> list[int]:
        """The processes that were started here: they are in the shell's session, or have the socket's name in their
        environment (proc(5)).
        """
        mark = f"{SOCKET}={self.target.path}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with suppress(OSError):
                    state, _, _, session, *_ = (entry / "stat").read_bytes().rpartition(b")")[2].split()
                    is_ours = int(session) == self._session or mark in (entry / "environ").read_bytes().split(b"\0")
                    if is_ours and state != b"Z":
                        found.append(int(entry.name))
        return found

    def _end(self, process: subprocess.Popen[bytes], is_killed: bool) -> None:
        """All of them, for a shell may stand between, or the server be in the background; at last without asking."""
        try:
            if not is_killed:
                self._signal(process, signal.SIGTERM)
                deadline_s = time.monotonic() + END_LIMIT_S
                while not self._has_ended(process, POLL_S) and time.monotonic() < deadline_s:
                    pass
        finally:
            self._signal(process, signal.SIGKILL)
            process.wait()

    def _signal(self, process: subprocess.Popen[bytes], number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, number)
