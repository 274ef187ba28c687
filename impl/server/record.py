"""`--record`: each request and its answer as lines of a history, which says who wrote what was read, and no bytes.

Content is told by the stamps of `impl/history_tags.py`, as a recording client writes them. Of content without stamps
there is a checksum, and who wrote it is not known from then on, so that whoever checks the history takes nothing for
granted that was not seen. Whether all that is wanted is asked once for each connection, as for the log of requests.

Source:  specs/history.schema.json, of the lines.
Shapes:  a request's invocation is noted before it is begun, its answer before that is sent. A request that the server
         refuses as it stops has its answer not noted: it stays without one, which says less.
Units:   nanoseconds of CLOCK_MONOTONIC.
Bounds:  less than a hundred KiB of lines wait to be written; then whoever notes an answer writes them.
Locks:   none to note a line: what a list does by itself is whole, whatever other threads do. Who is interrupted between
         a look at the clock and that appends a line that should stand before others: so whoever writes lines puts them
         in order first. `_writing` is held by one who does that, `_lock` protects counts.
Errors:  StartError when there is no such file to be had. One that cannot be written to any more is said once, in the
         log; the server serves on.
Omits:   requests that are against the protocol, which change nothing; parts of granules at the ends of a request.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from time import monotonic_ns
from typing import BinaryIO
from zlib import crc32

from impl.base.interface import Base
from impl.errors import StartError
from impl.history_tags import (
    BASE,
    GRANULE,
    TORN,
    UNKNOWN,
    ZERO,
    Attribution,
    Run,
    is_plain,
    is_zero,
    may_be_stamped,
    written,
)
from impl.nbd.constants import (
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    ChunkType,
    Command,
    CommandFlag,
    ReplyFlag,
)
from impl.nbd.requests import Request
from impl.nbd.wire import CHUNK, CHUNK_HOLE, SIMPLE_REPLY, Buffer, unpack_chunk_header
from impl.server.commands import Commands, Later, Reply
from impl.server.outbox import FileSlice
from impl.server.request_log import LoggedCommands, outcome

BEGINNING = '{"t": '  # of each line but the header
LINES_MAX = 512
WRITE_EVERY_S = 0.5

OPS: dict[int, str] = {
    int(Command.READ): "read",
    int(Command.WRITE): "write",
    int(Command.TRIM): "trim",
    int(Command.CACHE): "cache",
    int(Command.WRITE_ZEROES): "zero",
    int(Command.FLUSH): "flush",
    int(Command.BLOCK_STATUS): "status",
}
FLAGS = ((int(CommandFlag.FUA), "fua"), (int(CommandFlag.NO_HOLE), "no_hole"), (int(CommandFlag.FAST_ZERO), "fast"))
# Plain integers: looking at an Enum costs more than all the rest.
READ = int(Command.READ)
WRITE = int(Command.WRITE)
FLUSH = int(Command.FLUSH)
OFFSET_DATA = int(ChunkType.OFFSET_DATA)
OFFSET_HOLE = int(ChunkType.OFFSET_HOLE)
PARTIAL = (WRITE, int(Command.TRIM), int(Command.WRITE_ZEROES))
_DONE = SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, 0, 0)[:8]  # up to the cookie
_ONE_CHUNK = CHUNK.pack(STRUCTURED_REPLY_MAGIC, ReplyFlag.DONE, ChunkType.OFFSET_DATA, 0, 0)[:8]
# Of an offset and a length: what is not whole granules.
REST = GRANULE - 1

log = logging.getLogger("cowproof.server")


class Recording:
    """The history of one export, in a file."""

    def __init__(self, path: str, base: Base, block_size: int) -> None:
        self._path = path
        self._base = base
        self._base_is_zero = _is_zero(base)
        self._attribution = Attribution()
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._lines: list[str] = []
        self._connections = 0
        self._strangers = 0
        # Somebody has written what has no stamp: only a flag that is set once, so that no lock is needed to look at it.
        self._has_strangers = False
        self._file: BinaryIO | None = _opened(path)
        self._until_ns = 0  # the time of the last line in the file
        header = {
            "format": "cowproof-history",
            "version": 1,
            "size": base.size,
            "block_size": block_size,
            "granule": GRANULE,
            "level": "request",
            "trim_reads_zero": True,
            "base_is_zero": self._base_is_zero,
        }
        self._append(json.dumps(header) + "\n")
        self._closing = threading.Event()
        self._writer = threading.Thread(target=self._write_now_and_then, name="record", daemon=True)
        self._writer.start()

    def told_client(self, client: str) -> str:
        """A name for one more connection, as the middle of a line, up to where an id follows."""
        with self._lock:
            self._connections += 1
            name = f"{client} #{self._connections}"
        return f', "client": {json.dumps(name)}, "id": '

    def invoked(self, client: str, id_: int, request: Request) -> None:
        """A request is about to be begun; `client` as `told_client` has it."""
        command, flags, _, offset, length, payload, _, _ = request
        rest = ""
        is_whole = True
        if (offset | length) & REST or command == FLUSH:
            offset, length, is_whole = _granules(request)
        if command == WRITE:
            rest = self._write_told(payload, offset, is_whole)
        elif not is_whole and command in PARTIAL:
            self._has_strangers = True
        if flags:
            rest += f', "flags": {json.dumps([name for flag, name in FLAGS if flags & flag])}'
        op = OPS[command]
        told = f'{client}{id_}, "event": "invoke", "op": "{op}", "offset": {offset}, "length": {length}{rest}}}\n'
        self._lines.append(f'{{"t": {monotonic_ns()}{told}')

    def _write_told(self, data: Buffer, offset: int, is_whole: bool) -> str:
        name = written(data, offset) if is_whole else None
        if name is not None:
            return f', "value": "{name}"'
        self._has_strangers = True
        with self._lock:
            self._strangers += 1
            number = self._strangers
        return f', "value": "stranger.{number}", "digest": "{crc32(data):08x}"'

    def answered(self, client: str, id_: int, request: Request, reply: Reply) -> None:
        """A reply is about to be sent."""
        command, _, _, offset, length, _, _, _ = request
        first = reply[0]
        if command != READ:
            is_done = isinstance(first, bytes) and first.startswith(_DONE)
            told = f'{client}{id_}, "event": "ok"}}\n' if is_done else f"{client}{id_}, {_outcome_told(reply)}}}\n"
        else:
            data = _only_data(reply, offset, length)
            name = None if data is None else written(data, offset)
            if name is not None:
                told = f'{client}{id_}, "event": "ok", "value": [["{name}", {length}]]}}\n'
            else:
                told = f"{client}{id_}, {self._read_told(request, reply, data)}}}\n"
        self._lines.append(f'{{"t": {monotonic_ns()}{told}')
        if len(self._lines) >= LINES_MAX:
            self.write()

    def _read_told(self, request: Request, reply: Reply, data: Buffer | None) -> str:
        """Of a READ; `data` is all it was answered by, if that is so."""
        if data is not None:
            return self._data_told(data, request.offset)
        return self._parts_told(request, reply) if outcome(reply) == "ok" else _outcome_told(reply)

    def _data_told(self, data: Buffer, offset: int) -> str:
        """What has not been written by one write."""
        if self._has_strangers:
            if not may_be_stamped(data):
                return f'"event": "ok", "value": [["{UNKNOWN}", {len(data)}]], "digest": "{crc32(data):08x}"'
        elif is_plain(data := bytes(data)):
            return f'"event": "ok", "value": [["{BASE}", {len(data)}]]'
        notes: list[str] = []
        runs = self._of_bytes(bytes(data), offset, notes)
        digest = crc32(data) if UNKNOWN in [who for who, _ in runs] else None
        return _ok_told(runs, notes, digest)

    def _parts_told(self, request: Request, reply: Reply) -> str:
        offset, length, _ = _granules(request)
        runs: list[Run] = []
        notes: list[str] = []
        digest: int | None = None
        at = request.offset
        end_of_all = offset + length
        for part in _parts(reply):
            part_length = part if isinstance(part, int) else part.length if isinstance(part, FileSlice) else len(part)
            # What of this part is whole granules within the request; two parts meet at the ends of granules.
            start = at if at > offset else offset
            end = at + part_length if at + part_length < end_of_all else end_of_all
            if end > start:
                if isinstance(part, int):
                    runs.append((ZERO, end - start))
                elif isinstance(part, FileSlice):
                    runs.append((ZERO if self._base_is_zero else BASE, end - start))
                else:
                    whole = end - start == part_length
                    data = bytes(part if whole else memoryview(part)[start - at : end - at])
                    found = self._of_bytes(data, start, notes)
                    if any([who == UNKNOWN for who, _ in found]):
                        digest = crc32(data, digest or 0)
                    runs += found
            at += part_length
        return _ok_told(runs, notes, digest)

    def _of_bytes(self, data: bytes, offset: int, notes: list[str]) -> list[Run]:
        """Who wrote these bytes, as far as that can be known."""
        runs, wrong = self._attribution.of(data, offset)
        if self._has_strangers:
            return [(UNKNOWN if who in (BASE, ZERO, TORN) else who, length) for who, length in runs]
        notes += wrong
        told: list[Run] = []
        for who, length in runs:
            # Zeroes may be the base's, or somebody's.
            is_certain = who != ZERO or self._base_is_zero or self._is_data(offset, length)
            told.append((who if is_certain else UNKNOWN, length))
            offset += length
        return told

    def _is_data(self, offset: int, length: int) -> bool:
        """Whether it is certain, and soon known, that the base has no granule of zeroes here."""
        if not self._base.is_ready(offset, length):
            return False
        try:
            data = self._base.pread(offset, length)
        except OSError:
            return False
        return not any(is_zero(data[at : at + GRANULE]) for at in range(0, length, GRANULE))

    def _write_now_and_then(self) -> None:
        while not self._closing.wait(WRITE_EVERY_S):
            self.write()

    def write(self) -> None:
        """Write what has been noted so far."""
        with self._writing:
            count = len(self._lines)
            lines = self._lines[:count]
            del self._lines[:count]
            if not lines:
                return
            if not self._is_in_order(lines):
                lines = self._in_order(lines)
            self._until_ns = _time_of(lines[-1])
            self._append("".join(lines))

    def _is_in_order(self, lines: list[str]) -> bool:
        """Texts are in the order of the times they begin with, where these have as many digits.

        Where some of one batch have more, these come first as texts: then the first and the last are not as long.
        """
        first, last = lines[0], lines[-1]
        return self._until_ns <= _time_of(first) and first.index(",") == last.index(",") and sorted(lines) == lines

    def _in_order(self, lines: list[str]) -> list[str]:
        """By their times; and one that was noted when later ones had been written has the time of the last of these.

        When it was noted, that time had come; and its request was not begun, or was over, as it was at its own time.
        """
        until = self._until_ns
        in_order = sorted(lines, key=_time_of)
        return [
            line if _time_of(line) >= until else f"{BEGINNING}{until}{line[line.index(',') :]}" for line in in_order
        ]

    def _append(self, text: str) -> None:
        """To the file, as long as that can be written to."""
        if self._file is None:
            return
        try:
            self._file.write(text.encode())
        except OSError as error:
            log.error("%s: recording ends here: %s", self._path, error.strerror)
            self._file.close()
            self._file = None

    def commands(self, commands: Commands | LoggedCommands, client: str) -> RecordedCommands:
        """The same commands, in a wrapper that notes them here."""
        return RecordedCommands(commands, self, client)

    def close(self) -> None:
        """Write what is left; what is noted later is not kept."""
        self._closing.set()
        self._writer.join()
        self.write()
        with self._writing:
            if self._file is not None:
                self._file.close()
                self._file = None


class RecordedCommands:
    """Does what the commands of a connection do, and notes it in a history."""

    def __init__(self, commands: Commands | LoggedCommands, recording: Recording, client: str) -> None:
        self._commands = commands
        self._recording = recording
        self._client = recording.told_client(client)
        self._id = 0

    def start(self, request: Request) -> Reply | Later:
        """As Commands.start."""
        if request.error:
            return self._commands.start(request)
        self._id += 1
        id_ = self._id
        self._recording.invoked(self._client, id_, request)
        answer = self._commands.start(request)
        if isinstance(answer, Later):
            return self._noted_later(id_, answer)
        self._recording.answered(self._client, id_, request, answer)
        return answer

    def error(self, request: Request, code: int, message: str) -> Reply:
        """As Commands.error."""
        return self._commands.error(request, code, message)

    def _noted_later(self, id_: int, later: Later) -> Later:
        def run() -> Reply | Later:
            answer = later.run()
            if isinstance(answer, Later):
                return self._noted_later(id_, answer)
            self._recording.answered(self._client, id_, later.request, answer)
            return answer

        return Later(run, later.place, later.request, later.held_bytes, later.granted)


def _opened(path: str) -> BinaryIO:
    """The file, new or empty: what clients of an earlier server saw is another history."""
    try:
        file = open(path, "ab", buffering=0)  # noqa: SIM115
    except OSError as error:
        raise StartError(f"--record {path}: {error.strerror}") from None
    if os.fstat(file.fileno()).st_size:
        file.close()
        raise StartError(f"--record {path}: there is something in this file already: expected a new one")
    return file


def _is_zero(base: Base) -> bool:
    """Whether the base says that all of it is zero."""
    first = next(base.extents(0, base.size))
    return first.zero and first.length >= base.size


def _granules(request: Request) -> tuple[int, int, bool]:
    """The offset and length of the whole granules in a request, and whether that is all of it."""
    offset, end = request.offset, request.offset + request.length
    if request.command == FLUSH:
        return 0, 0, True
    first, last = -(-offset // GRANULE) * GRANULE, end // GRANULE * GRANULE
    return (first, last - first, first == offset and last == end) if last > first else (0, 0, end == offset)


def _time_of(line: str) -> int:
    return int(line[len(BEGINNING) : line.index(",")])


def _only_data(reply: Reply, offset: int, length: int) -> Buffer | None:
    """All bytes that a READ of whole granules asked for, if the reply is these in one piece, as it mostly is."""
    if len(reply) != 2 or (offset | length) & REST:
        return None
    header, data = reply
    if not isinstance(header, bytes) or not header.startswith(_ONE_CHUNK) or isinstance(data, FileSlice):
        return None
    return data if len(data) == length else None


def _ok_told(runs: Sequence[Run], notes: Sequence[str], digest: int | None) -> str:
    """Of a read, what was read."""
    value = ", ".join([f'["{who}", {length}]' for who, length in runs])
    told = f'"event": "ok", "value": [{value}]'
    if notes:
        told += f', "notes": {json.dumps(notes)}'
    return told if digest is None else f'{told}, "digest": "{digest:08x}"'


def _outcome_told(reply: Reply) -> str:
    """Of any other request, and of a READ that failed."""
    said = outcome(reply)
    return '"event": "ok"' if said == "ok" else f'"event": "error", "errno": "{said}"'


def _parts(reply: Reply) -> Iterator[Buffer | FileSlice | int]:
    """What a reply to a READ says that was read, in order: bytes, slices of the base, or how many zeroes."""
    items = iter(reply)
    header = next(items)
    assert isinstance(header, bytes), f"a reply begins with {header!r}, expected bytes"
    if unpack_chunk_header(header) is None:
        yield from items
        return
    yield from _chunk_part(header, items)
    for header in items:
        assert isinstance(header, bytes), f"a chunk begins with {header!r}, expected bytes"
        yield from _chunk_part(header, items)


def _chunk_part(header: bytes, items: Iterator[Buffer | FileSlice]) -> Iterator[Buffer | FileSlice | int]:
    found = unpack_chunk_header(header)
    assert found is not None
    if found.chunk_type == OFFSET_HOLE:
        _, length = CHUNK_HOLE.unpack_from(header, found.size)
        yield length
    elif found.chunk_type == OFFSET_DATA:
        left = found.length - 8
        while left:  # a chunk with DF has as many items as there are parts
            item = next(items)
            left -= item.length if isinstance(item, FileSlice) else len(item)
            yield item
