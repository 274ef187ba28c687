"""Each request in the log, with what came of it: what -vv adds.

Whether that is wanted is asked once for each connection, whose Commands then are wrapped, or not: so it costs nothing
where it is not.

Units:   ms from when a request had arrived until its reply was ready to be sent; what the client, or the kernel with a
         part of the base, does then is not in it.
Source:  NBD protocol, "Simple reply message", "Structured reply chunk message", "Error chunk".
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from impl.nbd.constants import Command, CommandFlag, ErrorValue
from impl.nbd.requests import Request
from impl.nbd.wire import CHUNK_ERROR, SIMPLE_REPLY, unpack_chunk_header
from impl.server.commands import Commands, Later, Reply

PAYLOAD_LEN = int(CommandFlag.PAYLOAD_LEN)  # says how a request came, and not what is wanted
ERROR_TYPE = 1 << 15  # the bit that all types of error chunks have

log = logging.getLogger("cowproof.requests")


def logged_if_wanted(commands: Commands, client: str) -> Commands | LoggedCommands:
    """The same commands; where the log is to have requests, in a wrapper that puts them there."""
    return LoggedCommands(commands, client) if log.isEnabledFor(logging.DEBUG) else commands


class LoggedCommands:
    """Does what the commands of a connection do, and says so."""

    def __init__(self, commands: Commands, client: str) -> None:
        self._commands = commands
        self._client = client

    def start(self, request: Request) -> Reply | Later:
        """As Commands.start."""
        begun_s = time.monotonic()
        return self._noted(request, begun_s, self._commands.start(request))

    def error(self, request: Request, code: int, message: str) -> Reply:
        """As Commands.error."""
        reply = self._commands.error(request, code, message)
        self._note(request, time.monotonic(), reply)
        return reply

    def _noted(self, request: Request, begun_s: float, answer: Reply | Later) -> Reply | Later:
        if isinstance(answer, Later):
            return answer._replace(run=self._noting(request, begun_s, answer.run))
        self._note(request, begun_s, answer)
        return answer

    def _noting(
        self, request: Request, begun_s: float, run: Callable[[], Reply | Later]
    ) -> Callable[[], Reply | Later]:
        return lambda: self._noted(request, begun_s, run())

    def _note(self, request: Request, begun_s: float, reply: Reply) -> None:
        elapsed_ms = (time.monotonic() - begun_s) * 1000
        log.debug("%s: %s: %s, %.3f ms", self._client, describe(request), outcome(reply), elapsed_ms)


def describe(request: Request) -> str:
    """What was asked for, in the standard's words."""
    known = request.command in Command.__members__.values()
    words = [Command(request.command).name if known else f"command {request.command}"]
    if request.command != Command.FLUSH:
        words.append(f"offset {request.offset} length {request.length}")
    flags = request.flags & ~PAYLOAD_LEN
    names = [flag.name or "" for flag in CommandFlag if flags & flag]
    rest = flags & ~sum(CommandFlag)
    if names or rest:
        words.append("|".join([*names, *([hex(rest)] if rest else [])]))
    return " ".join(words)


def outcome(reply: Reply) -> str:
    """What the reply says, from its own bytes: an error is a reply by itself."""
    first = reply[0]
    assert isinstance(first, (bytes, bytearray, memoryview)), f"a reply begins with {first!r}, expected bytes"
    header = unpack_chunk_header(first)
    if header is None:
        _, code, _ = SIMPLE_REPLY.unpack_from(first)
    else:
        code = CHUNK_ERROR.unpack_from(first, header.size)[0] if header.chunk_type & ERROR_TYPE else 0
    return ErrorValue(code).name if code else "ok"
