"""Programs around the server: one that it runs and ends with (--run), one client on standard input (--stdio), the
parent it does not outlive (--exit-with-parent), and the file that holds its process number (--pidfile).

Source:  nbdkit-captive(1) for the names of the variables that --run sets; prctl(2), PR_SET_PDEATHSIG.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Collection
from contextlib import suppress

from impl.errors import StartError
from impl.server.paths import why_not_made

PR_SET_PDEATHSIG = 1
COPY_BYTES = 1 << 20


def client_on_stdio(closed: Collection[int]) -> tuple[socket.socket, Callable[[], None]]:
    """The client on descriptors 0 and 1, and what to call at the end, so that it gets all that was sent to it.

    They are a socket, or else two pipes, which threads connect to a socket. StartError if one of them was `closed`.
    """
    for fd, name in ((0, "input"), (1, "output")):
        if fd in closed:
            raise StartError(f"--stdio: standard {name} is closed, and the client should be there")
    try:
        return socket.socket(fileno=os.dup(0)), lambda: None
    except OSError:
        ours, theirs = socket.socketpair()
        incoming, outgoing = (
            threading.Thread(target=_copy, args=(source, target, theirs), daemon=True)
            for source, target in ((0, theirs.fileno()), (theirs.fileno(), 1))
        )
        incoming.start()
        outgoing.start()
        return ours, outgoing.join


def _copy(source: int, target: int, bridge: socket.socket) -> None:
    """Move bytes until the source ends, then say so to the target."""
    with suppress(OSError):
        while data := os.read(source, COPY_BYTES):
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(target, rest) :]
    with suppress(OSError):
        if target == bridge.fileno():
            bridge.shutdown(socket.SHUT_WR)
        else:
            os.close(target)


class Captive:
    """A command that runs while the server serves it."""

    def __init__(self, command: str) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, variables: dict[str, str], on_end: Callable[[], None]) -> None:
        """Start the command in a shell; `on_end` is called from another thread once it has ended."""
        try:
            # A new group, so that a signal reaches what the shell has started, too.
            process = subprocess.Popen(
                ["/bin/sh", "-c", self._command], env={**os.environ, **variables}, start_new_session=True
            )
        except (OSError, ValueError) as error:
            raise StartError(f"cannot run {self._command!r}: {error}") from None
        self._process = process

        def wait() -> None:
            process.wait()
            on_end()

        threading.Thread(target=wait, daemon=True).start()

    def kill(self) -> None:
        """End the command, if it has been started, whatever it thinks of that; called from a signal's handler."""
        self._send(signal.SIGKILL)

    def end(self) -> int:
        """End the command if it still runs. Its exit status, or 128 and the signal that killed it, as shells say."""
        assert self._process is not None
        self._send(signal.SIGTERM)
        status = self._process.wait()
        return status if status >= 0 else 128 - status

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)


def exit_with_parent() -> None:
    """Have the kernel send SIGTERM when the parent goes."""
    parent = os.getppid()
    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except AttributeError:
        raise StartError("--exit-with-parent needs prctl(2), which this system does not have") from None
    if prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise StartError(f"--exit-with-parent: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:  # it went before the kernel knew of our wish
        raise StartError("--exit-with-parent: the parent has gone already")


def write_pidfile(path: str) -> None:
    """Write our process number. Whoever sees the file can read it whole, and can connect."""
    unfinished = f"{path}.{os.getpid()}"
    try:
        with open(unfinished, "w", encoding="ascii") as file:
            file.write(f"{os.getpid()}\n")
        os.replace(unfinished, path)
    except OSError as error:
        with suppress(OSError):
            os.unlink(unfinished)
        raise StartError(f"cannot write the pid file {path}: {why_not_made(error, path)}") from None


def remove_pidfile(path: str) -> None:
    """Remove the file, if it is still ours."""
    with suppress(OSError), open(path, encoding="ascii") as file:
        if file.read().strip() == str(os.getpid()):
            os.unlink(path)
