"""The three standard descriptors: who starts us may have closed them, and what is behind them may be full, or gone.

Errors:  OutputError where standard output cannot be written; that nobody reads standard error changes nothing.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress

import click

from impl.errors import StartError

OUTPUT, ERROR = 1, 2


class OutputError(StartError):
    """Standard output could not be written."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot write to standard output: {error.strerror}")
        self.nobody_reads = error.errno == errno.EPIPE


class Output(io.TextIOWrapper):
    """Standard output, whose errors can be told from those of all other files."""

    def write(self, text: str, /) -> int:
        """As always, but for the error."""
        try:
            return super().write(text)
        except OSError as error:
            raise OutputError(error) from None

    def flush(self) -> None:
        """As always, but for the error."""
        try:
            super().flush()
        except OSError as error:
            raise OutputError(error) from None


def set_up() -> frozenset[int]:
    """Make all three usable; the descriptors that were closed."""
    closed = _fill()
    # The interpreter has no streams for what it found closed.
    if sys.stderr is None:
        sys.stderr = io.TextIOWrapper(io.FileIO(ERROR, "w", closefd=False), encoding="utf-8")
    if sys.stdout is None:
        sys.stdout = Output(io.BufferedWriter(io.FileIO(OUTPUT, "w", closefd=False)), encoding="utf-8")
    elif sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        old = sys.stdout
        encoding, errors, by_line = old.encoding, old.errors, old.line_buffering
        sys.stdout = Output(old.detach(), encoding=encoding, errors=errors, line_buffering=by_line)
    return closed


def _fill() -> frozenset[int]:
    """Open /dev/null where a standard descriptor is closed.

    Else the next file that is opened takes its number: the disk would be the standard input of a command we run, and
    what we log would be written into the overlay.
    """
    closed = frozenset(fd for fd in (0, OUTPUT, ERROR) if not _is_open(fd))
    for fd in sorted(closed):
        try:
            opened = os.open(os.devnull, os.O_RDWR)
        except OSError as error:
            raise StartError(f"cannot open {os.devnull}: {error.strerror}") from None
        assert opened == fd, f"descriptor {opened} was free, expected {fd}"
        os.set_inheritable(fd, True)
    return closed


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def say(text: str) -> None:
    """Write to standard error. Nobody may be there to read it."""
    with suppress(OSError):
        click.echo(text, err=True)


def finish() -> None:
    """Write what is left, or drop what cannot be written.

    The interpreter would try again at its end, complain where nobody asked, and change our exit status.
    """
    for fd, stream in ((OUTPUT, sys.stdout), (ERROR, sys.stderr)):
        try:
            stream.flush()
        except (OSError, OutputError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, fd)
            os.close(null)
