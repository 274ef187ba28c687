"""Room for what the kit keeps beside a server: without it nobody could tell whose fault it is that something fails.

Units:   bytes.
Errors:  NoRoom, which ends the kit: it says nothing of the server.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from impl.errors import StartError
from impl.sizes import format_size

# The largest disk of a rule has 32 MiB; it is written to a file, all of it is written anew, and there are histories.
ROOM_BYTES = 128 << 20


class NoRoom(StartError):
    """The kit cannot keep its own files."""


@contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """What is written here are files of the kit's own, in a folder of its own."""
    try:
        yield
    except OSError as error:
        raise NoRoom(f"the kit cannot write to {folder}: {error.strerror}") from None


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """One with room, as long as it is needed."""
    folder = folder_with_room()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def folder_with_room() -> Path:
    """A new one, in $TMPDIR, where there is room for what a server writes."""
    above = Path(tempfile.gettempdir())
    with kept_in(above):
        free = shutil.disk_usage(above).free
        if free < ROOM_BYTES:
            raise NoRoom(
                f"{above} has {format_size(free >> 10 << 10)} left, and servers have to write there: expected "
                f"{format_size(ROOM_BYTES)}; set $TMPDIR to where there is more"
            )
        return Path(tempfile.mkdtemp(prefix="conform-", dir=above))
