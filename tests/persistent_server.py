"""A server whose disk is a file that outlives it: all that was written is saved to it when it is ended in order, and
before that as its fault allows. `python persistent_server.py SOCKET FILE FAULT`.
"""

import mmap
import os
import signal
import sys
import threading
from pathlib import Path

from impl.base.memory import BytesBase
from impl.nbd.constants import Command
from impl.server import session
from impl.server.commands import Commands
from impl.server.export import ExportOptions, make_export
from impl.server.listeners import listen_unix
from impl.server.server import Server

SIZE = 1 << 20
CHANGING = (Command.WRITE, Command.WRITE_ZEROES, Command.TRIM)


class Disk:
    """What is in the file, and is to be."""

    def __init__(self, path, keeps_it_open):
        self.path = Path(path)
        self.content = bytearray(self.path.read_bytes() if self.path.exists() else bytes(SIZE))
        self.synced = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_DSYNC) if keeps_it_open else None

    def save(self, overlay, ranges, way="none"):
        for offset, length in ranges:
            self.content[offset : offset + length] = overlay.pread(offset, length)
        WAYS.get(way, replace)(self)


def replace(disk, *, flags=0, syncs=os.fsync):
    """A new file, in place of the old one when it is on the disk."""
    new = disk.path.with_suffix(".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | flags)
    os.write(descriptor, disk.content)
    syncs(descriptor)
    new.rename(disk.path)
    os.close(descriptor)


def overwrite(disk):
    os.pwrite(disk.synced, disk.content, 0)


def rename_and_sync(disk):
    replace(disk, syncs=lambda _: None)
    descriptor = os.open(disk.path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def write_to_memory(disk):
    with open(disk.path, "a+b") as file:
        file.truncate(SIZE)
        with mmap.mmap(file.fileno(), SIZE) as mapped:
            mapped[:] = bytes(disk.content)
            mapped.flush()
    print("saved", file=sys.stderr, flush=True)


def make_a_note(disk):
    replace(disk)
    with open(disk.path.with_suffix(".notes"), "a", encoding="utf-8") as notes:
        notes.write("saved\n")


WAYS = {
    "does not sync": lambda disk: replace(disk, syncs=lambda _: None),
    "keeps a file that syncs": overwrite,
    "opens a file that syncs": lambda disk: replace(disk, flags=os.O_DSYNC, syncs=lambda _: None),
    "syncs what has a new name": rename_and_sync,
    "maps its disk": write_to_memory,
    "makes a note behind it": make_a_note,
}


def main(socket, file, fault):
    disk = Disk(file, fault == "keeps a file that syncs")
    unsaved = []  # by all connections

    class Saving(Commands):
        """Flushes and FUA save what they should, or less."""

        def __init__(self, *arguments, **more):
            super().__init__(*arguments, **more)
            self._own = []

        def start(self, request):
            answer = super().start(request)
            if request.command in CHANGING and not request.error:
                piece = (request.offset, request.length)
                unsaved.append(piece)
                self._own.append(piece)
                if request.flags & 1 and fault != "ignores FUA":
                    disk.save(self._overlay, [piece], "does not sync" if fault == "does not sync FUA" else fault)
            if request.command == Command.FLUSH and fault not in ("ignores flushes", "keeps nothing"):
                pieces = self._own if fault == "flushes its own" else unsaved
                disk.save(self._overlay, pieces, "does not sync" if fault == "does not sync flushes" else fault)
            return answer

    session.Commands = Saving
    export = make_export(BytesBase(bytes(disk.content)), ExportOptions(store="memory"))
    server = Server({"": export}, "", 2)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.stop).start())
    server.run([listen_unix(socket)])
    if fault != "keeps nothing":
        disk.save(export.overlay, [(0, SIZE)])


if __name__ == "__main__":
    main(*sys.argv[1:])
