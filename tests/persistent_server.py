"""A server whose disk is a file that outlives it: all that was written is saved to it when it is ended in order, and
before that as its fault allows. `python persistent_server.py SOCKET FILE FAULT`.
"""

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

    def __init__(self, path):
        self.path = Path(path)
        self.content = bytearray(self.path.read_bytes() if self.path.exists() else bytes(SIZE))

    def save(self, overlay, ranges, syncs=True):
        for offset, length in ranges:
            self.content[offset : offset + length] = overlay.pread(offset, length)
        new = self.path.with_suffix(".new")
        with new.open("wb") as file:
            file.write(self.content)
            file.flush()
            if syncs:
                os.fsync(file.fileno())
        new.rename(self.path)


def main(socket, file, fault):
    disk = Disk(file)
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
                    disk.save(self._overlay, [piece], syncs=fault != "does not sync FUA")
            if request.command == Command.FLUSH and fault not in ("ignores flushes", "keeps nothing"):
                pieces = self._own if fault == "flushes its own" else unsaved
                disk.save(self._overlay, pieces, syncs=fault != "does not sync flushes")
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
