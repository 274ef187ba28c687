"""`--record`: each request and its answer as lines of a history, which says who wrote what was read, and no bytes.

Content is told by the stamps of `impl/history_tags.py`, as a recording client writes them. Of content without stamps
there is a checksum, and who wrote it is not known from then on, so that whoever checks the history takes nothing for
granted that was not seen. Whether all that is wanted is asked once for each connection, as for the log of requests.

Source:  specs/history.schema.json, of the lines.
Shapes:  a request's invocation is noted before it is begun, its answer before that is sent. A request that the server
         refuses as it stops has its answer not noted: it stays without one, which says less.
Units:   nanoseconds of CLOCK_MONOTONIC.
Bounds:  some hundred KiB of lines wait to be written; then whoever notes one writes them.
Locks:   `_lock` protects the lines and the file: what is noted is noted in the order of its times.
Errors:  StartError when there is no such file to be had. One that cannot be written to any more is said once, in the
         log; the server serves on.
Omits:   requests that are against the protocol, which change nothing; parts of granules at the ends of a request.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO
from zlib import crc32

from impl.base.interface import Base
from impl.errors import StartError
from impl.history_tags import BASE, GRANULE, TORN, UNKNOWN, ZERO, Attribution, Run, is_zero, written
from impl.nbd.constants import SIMPLE_REPLY_MAGIC, ChunkType, Command, CommandFlag
from impl.nbd.requests import Request
from impl.nbd.wire import CHUNK, CHUNK_HOLE, SIMPLE_REPLY, Buffer
from impl.server.commands import Commands, Later, Reply
from impl.server.outbox import FileSlice
from impl.server.request_log import LoggedCommands, outcome

LINES_MAX = 2048
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

_RUN = '["%s", %d]'

log = logging.getLogger("cowproof.server")


class Recording:
    """The history of one export, in a file."""

    def __init__(self, path: str, base: Base, block_size: int) -> None:
        self._path = path
        self._base = base
        self._base_is_zero = _is_zero(base)
        self._attribution = Attribution()
        self._lock = threading.Lock()
        self._lines: list[str] = []
        self._connections = 0
        self._strangers = 0
        # Somebody has written what has no stamp: only a flag that is set once, so that no lock is needed to look at it.
        self._has_strangers = False
        self._file: BinaryIO | None = _opened(path)
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
        self._lines.append(json.dumps(header) + "\n")
        self._closing = threading.Event()
        self._writer = threading.Thread(target=self._write_now_and_then, name="record", daemon=True)
        self._writer.start()

    def connection(self, client: str) -> str:
        """A name for one more connection."""
        with self._lock:
            self._connections += 1
            return f"{client} #{self._connections}"

    def invoked(self, client: str, id_: int, request: Request) -> None:
        """A request is about to be begun."""
        offset, length, whole = _granules(request)
        rest = f', "op": "{OPS[request.command]}", "offset": {offset}, "length": {length}'
        if request.command == WRITE:
            rest += self._write_told(request, offset, whole)
        elif not whole and request.command in PARTIAL:
            self._has_strangers = True
        if request.flags:
            rest += f', "flags": {json.dumps([name for flag, name in FLAGS if request.flags & flag])}'
        self._note(client, id_, f'"invoke"{rest}')

    def _write_told(self, request: Request, offset: int, whole: bool) -> str:
        data = bytes(request.payload)
        name = written(data, offset) if whole else None
        if name is not None:
            return f', "value": "{name}"'
        self._has_strangers = True
        with self._lock:
            self._strangers += 1
            number = self._strangers
        return f', "value": "stranger.{number}", "digest": "{crc32(data):08x}"'

    def answered(self, client: str, id_: int, request: Request, reply: Reply) -> None:
        """A reply is about to be sent."""
        said = outcome(reply)
        if said != "ok":
            self._note(client, id_, f'"error", "errno": "{said}"')
        elif request.command == READ:
            self._note(client, id_, f'"ok"{self._read_told(request, reply)}')
        else:
            self._note(client, id_, '"ok"')

    def _read_told(self, request: Request, reply: Reply) -> str:
        offset, length, _ = _granules(request)
        runs: list[Run] = []
        notes: list[str] = []
        digest = 0
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
                        digest = crc32(data, digest)
                    runs += found
            at += part_length
        told = f', "value": {json.dumps(runs)}' if len(runs) > 1 else f', "value": [{_RUN % runs[0] if runs else ""}]'
        if notes:
            told += f', "notes": {json.dumps(notes)}'
        return f'{told}, "digest": "{digest:08x}"' if digest else told

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

    def _note(self, client: str, id_: int, rest: str) -> None:
        told = f', "client": {client}, "id": {id_}, "event": {rest}}}\n'
        with self._lock:
            self._lines.append(f'{{"t": {time.monotonic_ns()}{told}')
            if len(self._lines) >= LINES_MAX:
                self._write()

    def _write_now_and_then(self) -> None:
        while not self._closing.wait(WRITE_EVERY_S):
            with self._lock:
                self._write()

    def _write(self) -> None:
        """The lock is held."""
        lines, self._lines = self._lines, []
        if self._file is None or not lines:
            return
        try:
            self._file.write("".join(lines).encode())
        except OSError as error:
            log.error("%s: recording ends here: %s", self._path, error.strerror)
            self._file.close()
            self._file = None

    def close(self) -> None:
        """Write what is left; what is noted later is not kept."""
        self._closing.set()
        self._writer.join()
        with self._lock:
            self._write()
            if self._file is not None:
                self._file.close()
                self._file = None


def recorded_if_wanted(
    commands: Commands | LoggedCommands, recording: Recording | None, client: str
) -> Commands | LoggedCommands | RecordedCommands:
    """The same commands; where there is a recording, in a wrapper that notes them there."""
    return commands if recording is None else RecordedCommands(commands, recording, client)


class RecordedCommands:
    """Does what the commands of a connection do, and notes it in a history."""

    def __init__(self, commands: Commands | LoggedCommands, recording: Recording, client: str) -> None:
        self._commands = commands
        self._recording = recording
        self._client = json.dumps(recording.connection(client))
        self._id = 0

    def start(self, request: Request) -> Reply | Later:
        """As Commands.start."""
        if request.error:
            return self._commands.start(request)
        self._id += 1
        self._recording.invoked(self._client, self._id, request)
        return self._noted(self._id, request, self._commands.start(request))

    def error(self, request: Request, code: int, message: str) -> Reply:
        """As Commands.error."""
        return self._commands.error(request, code, message)

    def _noted(self, id_: int, request: Request, answer: Reply | Later) -> Reply | Later:
        if isinstance(answer, Later):
            return answer._replace(run=self._noting(id_, request, answer.run))
        self._recording.answered(self._client, id_, request, answer)
        return answer

    def _noting(self, id_: int, request: Request, run: Callable[[], Reply | Later]) -> Callable[[], Reply | Later]:
        return lambda: self._noted(id_, request, run())


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


def _parts(reply: Reply) -> Iterator[Buffer | FileSlice | int]:
    """What a reply to a READ says that was read, in order: bytes, slices of the base, or how many zeroes."""
    items = iter(reply)
    header = next(items)
    assert isinstance(header, bytes), f"a reply begins with {header!r}, expected bytes"
    magic, _, _ = SIMPLE_REPLY.unpack_from(header)
    if magic == SIMPLE_REPLY_MAGIC:
        yield from items
        return
    yield from _chunk_part(header, items)
    for header in items:
        assert isinstance(header, bytes), f"a chunk begins with {header!r}, expected bytes"
        yield from _chunk_part(header, items)


def _chunk_part(header: bytes, items: Iterator[Buffer | FileSlice]) -> Iterator[Buffer | FileSlice | int]:
    _, _, kind, _, chunk_length = CHUNK.unpack_from(header)
    if kind == OFFSET_HOLE:
        _, length = CHUNK_HOLE.unpack_from(header, CHUNK.size)
        yield length
    elif kind == OFFSET_DATA:
        left = chunk_length - 8
        while left:  # a chunk with DF has as many items as there are parts
            item = next(items)
            left -= item.length if isinstance(item, FileSlice) else len(item)
            yield item
