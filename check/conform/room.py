"""Room for what the kit keeps beside a server: without it nobody could tell whose fault it is that something fails.

A server writes to the kit's folder, too. So a rule that fails while there is no room there has found out nothing.

Units:   bytes.
Errors:  NoRoom, which ends the kit: it says nothing of the server.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from impl.errors import StartError
from impl.sizes import format_size

# The largest disk of a rule has 32 MiB; it is written to a file, all of it is written anew, and there are histories.
ROOM_BYTES = 128 << 20
# So little is left where somebody has just failed to write.
FULL_BYTES, FULL_FILES = 1 << 20, 8


class NoRoom(StartError):
    """The kit cannot keep its own files."""


@contextmanager
def kept_in(folder: Path | str) -> Iterator[None]:
    """What is written here are files of the kit's own, in a folder of its own."""
    try:
        yield
    except OSError as error:
        raise NoRoom(f"the kit cannot write to {folder}: {error.strerror or error}") from None


def free_bytes(folder: Path) -> int:
    """So much more can be written there."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def is_full(folder: Path) -> bool:
    """Whether nothing more can be, or no more files can be made, where their number is limited."""
    found = os.statvfs(folder)
    return free_bytes(folder) < FULL_BYTES or bool(found.f_files and found.f_favail < FULL_FILES)


@contextmanager
def not_full(folder: Path) -> Iterator[None]:
    """Whatever fails here has failed for want of room, if there is none."""
    try:
        yield
    except NoRoom:
        raise
    except Exception as error:
        if is_full(folder):
            raise NoRoom(f"{folder} is full, so nobody knows whose fault it is: {error}") from None
        raise


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """One with room, as long as it is needed."""
    folder = folder_with_room()
    try:
        with not_full(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def folder_with_room() -> Path:
    """A new one, in $TMPDIR, where there is room for what a server writes."""
    with kept_in("any temporary folder"):
        above = Path(tempfile.gettempdir())
    with kept_in(above):
        free = free_bytes(above)
        if free < ROOM_BYTES:
            raise NoRoom(
                f"{above} has {format_size(free >> 10 << 10)} left, and servers have to write there: expected "
                f"{format_size(ROOM_BYTES)}; set $TMPDIR to where there is more"
            )
        return Path(tempfile.mkdtemp(prefix="conform-", dir=above))
