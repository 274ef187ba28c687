"""The shipped commands of one connection, explored: from the model's requests to the server's, and back from its bytes.

A session runs what `Commands` leaves for later on threads of its own, each part as soon as its range has been granted.
A client here has one request in flight, so its connection does the same things in the same order, one after the other.

Errors:  OSError with the errno that the client was told; PeerError if the reply breaks the protocol.
Omits:   sessions: what is received and sent, and what becomes of requests when a client hangs up.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from impl.base.interface import Base
from impl.nbd.agreement import Agreement, ExportInfo
from impl.nbd.constants import AllocationFlag, Command, CommandFlag, TransmissionFlag
from impl.nbd.reply_reader import Expectation, ReplyReader
from impl.nbd.reply_reader import Reply as WireReply
from impl.nbd.requests import Request as WireRequest
from impl.overlay.overlay import Overlay
from impl.server.commands import Commands, Later, Reply
from impl.server.outbox import FileSlice
from model import device as model
from model.extents import Extent

COOKIE = 1
CONTEXT = 1
FLAGS = TransmissionFlag.HAS_FLAGS | TransmissionFlag.SEND_DF


@dataclass(frozen=True)
class _Device:
    """What the commands see of an export."""

    overlay: Overlay
    base: Base


class Connection:
    """One connection that has agreed on structured replies and block status."""

    def __init__(self, overlay: Overlay, base: Base) -> None:
        info = ExportInfo(name="", size=base.size, description="", flags=FLAGS)
        self._commands = Commands(_Device(overlay, base), Agreement(info, FLAGS, True, (CONTEXT,)))

    def ask(self, request: model.Request) -> model.Reply:
        """Send a request, and wait for the reply."""
        asked = to_wire(request)
        answer = self._commands.start(asked)
        while isinstance(answer, Later):
            if answer.granted is not None:
                answer.granted.ask(lambda: None)
            answer = answer.run()
        return from_wire(request, read(asked, answer))


def to_wire(request: model.Request) -> WireRequest:
    """The request as the server parses it."""
    command, flags, payload = Command.FLUSH, CommandFlag(0), b""
    match request:
        case model.Read():
            command = Command.READ
        case model.Write():
            command, payload = Command.WRITE, request.data
        case model.Zero():
            command = Command.WRITE_ZEROES
            flags |= CommandFlag.NO_HOLE if request.no_hole else 0
            flags |= CommandFlag.FAST_ZERO if request.fast else 0
        case model.Trim():
            command = Command.TRIM
        case model.Cache():
            command = Command.CACHE
        case model.Status():
            command = Command.BLOCK_STATUS
        case model.Flush():
            return WireRequest(command, flags, COOKIE, 0, 0, payload, 0, "")
    return WireRequest(command, flags, COOKIE, request.offset, request.length, payload, 0, "")


def read(asked: WireRequest, reply: Reply) -> WireReply:
    """The server's bytes as a client reads them."""
    expected = Expectation(asked.command, asked.flags, asked.offset, asked.length)
    reader = ReplyReader(True, (CONTEXT,), {COOKIE: expected}.get)
    found: list[WireReply] = []
    for part in reply:
        assert not isinstance(part, FileSlice), "the base is no file"
        found += _received(reader, bytes(part))
    [whole] = found
    return whole


def _received(reader: ReplyReader, data: bytes) -> Iterable[WireReply]:
    """The replies that these bytes complete."""
    while data:
        buffer = reader.buffer()
        here = min(len(buffer), len(data))
        buffer[:here] = data[:here]
        reader.received(here)
        data = data[here:]
        while (reply := reader.next()) is not None:
            yield reply


def from_wire(request: model.Request, reply: WireReply) -> model.Reply:
    """The reply as the model says it."""
    if reply.error:
        raise OSError(reply.error, os.strerror(reply.error))
    if isinstance(request, model.Read):
        return model.Data(bytes(reply.data))
    if isinstance(request, model.Status):
        return model.Extents(
            tuple(
                Extent(length, bool(flags & AllocationFlag.HOLE), bool(flags & AllocationFlag.ZERO))
                for length, flags in reply.statuses[CONTEXT]
            )
        )
    return model.Done()
