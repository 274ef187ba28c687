"""Starts other people's servers by a command, and ends them: in order, or as a power failure would.

Units:   seconds.
Errors:  UsageError for a command that cannot be meant; StartError when a server does not come up.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from check.conform.disk import Disk, Upstreams
from check.conform.link import Link
from impl.client.uri import Target
from impl.errors import StartError, UsageError
from impl.sizes import quoted

START_LIMIT_S = 10.0
END_LIMIT_S = 5.0
POLL_S = 0.002
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
        self._folder = Path(tempfile.mkdtemp(prefix="conform-"))
        self._log, self._pidfile = self._folder / "log", self._folder / "pid"
        self._is_daemon = names(command, PIDFILE)
        self.target = replace(wanted, path=str(self._folder / "s"))
        self._command = command
        try:
            self._variables = self._values(disk, upstreams)
        except BaseException:
            self.remove()
            raise

    def _values(self, disk: Disk, upstreams: Upstreams) -> dict[str, str]:
        """Of the shell's variables; a disk is made only if the command names it."""
        found = {SOCKET: self.target.path, OVERLAY: str(self._folder / "overlay"), "TMPDIR": str(self._folder)}
        found[PIDFILE] = str(self._pidfile)
        if names(self._command, BASE_URI):
            found[BASE_URI] = upstreams.uri(disk)
        if names(self._command, BASE):
            base = self._folder / "base"
            base.write_bytes(disk.content())
            found[BASE] = str(base)
        return found

    @contextmanager
    def running(self, *, is_killed: bool = False) -> Iterator[None]:
        """From when the server listens until it has gone with all its children; `is_killed` without a warning."""
        Path(self.target.path).unlink(missing_ok=True)
        with self._log.open("wb") as said:
            process = subprocess.Popen(
                self._command,
                shell=True,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
                env={**os.environ, **self._variables},
            )
        try:
            self._wait_until_it_listens(process)
            yield
        finally:
            self._end(process, is_killed)

    def said(self) -> str:
        """The last words of the server."""
        return " / ".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:])

    def remove(self) -> None:
        """With everything in it."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _wait_until_it_listens(self, process: subprocess.Popen[bytes]) -> None:
        deadline_s = time.monotonic() + START_LIMIT_S
        while True:
            with suppress(Exception):
                with Link(self.target) as link:
                    link.receive(1, "greeting")
                    return
            has_ended = process.poll() is not None and not (self._is_daemon and process.returncode == 0)
            if has_ended or time.monotonic() > deadline_s:
                told = self.said() or "it said nothing"
                raise StartError(f"the server that was to be started does not listen: {told}")
            time.sleep(POLL_S)

    def _end(self, process: subprocess.Popen[bytes], is_killed: bool) -> None:
        """The whole group, for a shell may stand between; and who has left it, and says where it is."""
        for number in (signal.SIGKILL,) if is_killed else (signal.SIGTERM, signal.SIGKILL):
            daemon = self._daemon()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            if daemon is not None:
                with suppress(ProcessLookupError):
                    os.kill(daemon, number)
            if _have_ended(process, daemon):
                break
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        self._pidfile.unlink(missing_ok=True)

    def _daemon(self) -> int | None:
        """The number of a server that has gone into the background."""
        try:
            return int(self._pidfile.read_text())
        except (OSError, ValueError):
            return None


def _have_ended(process: subprocess.Popen[bytes], daemon: int | None) -> bool:
    """Within the time that they have for it."""
    deadline_s = time.monotonic() + END_LIMIT_S
    try:
        process.wait(END_LIMIT_S)
    except subprocess.TimeoutExpired:
        return False
    while daemon is not None and _is_alive(daemon):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(POLL_S)
    return True


def _is_alive(pid: int) -> bool:
    """Whether it is there, and not only waits for a parent who asks what became of it (proc(5), /proc/pid/stat)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
