"""A connection as it is on the wire: what the rules say to a server, right or wrong, and what it answers.

Every wait has an end: a server that says nothing within `LIMIT_S` has failed the rule, and never hangs the kit.

Source:  NBD protocol, "Newstyle negotiation", "Transmission".
Errors:  Failure, with what was awaited and what came.
"""

from __future__ import annotations

import struct
from types import TracebackType
from typing import NamedTuple, Self

from check.conform.rule import Failure
from impl.client.link import Deadline, open_socket
from impl.client.uri import Target
from impl.nbd import wire
from impl.nbd.constants import (
    INIT_MAGIC,
    OPTION_MAGIC,
    OPTION_REPLY_MAGIC,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    ChunkType,
    ClientFlag,
    HandshakeFlag,
    Info,
    Option,
    OptionReply,
    is_error_reply,
)

LIMIT_S = 5.0
REPLIES_MAX = 10_000
REPLY_MAX_BYTES = 64 << 20


class OptionAnswer(NamedTuple):
    """All replies to an option: those in between, and the kind and the words of the final one."""

    between: list[tuple[int, bytes]]
    final: int
    data: bytes

    @property
    def granted(self) -> bool:
        """Whether the option was."""
        return self.final == OptionReply.ACK

    @property
    def told(self) -> str:
        """The final reply, for people."""
        return name_of(self.final)


class Answer(NamedTuple):
    """One message in answer to a request: a simple reply, or one chunk."""

    cookie: int
    error: int
    chunk_type: int | None  # None of a simple reply
    done: bool
    payload: bytes


def name_of(reply: int) -> str:
    """An option reply by its name."""
    try:
        return f"NBD_REP_{OptionReply(reply).name}"
    except ValueError:
        return f"reply {reply:#x}"


class Link:
    """One connection, from the greeting on."""

    def __init__(self, target: Target) -> None:
        try:
            self._sock = open_socket(target, Deadline(LIMIT_S))
        except OSError as error:
            raise Failure(f"the server cannot be connected to: {error}") from None
        self._sock.settimeout(LIMIT_S)
        self.is_structured = False
        self.flags = 0
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sock.close()

    # Bytes.

    def send(self, data: bytes) -> None:
        """All of it; a server that has gone is found out by what it does not answer."""
        try:
            self._sock.sendall(data)
        except TimeoutError:
            raise Failure(f"the server reads nothing for {LIMIT_S:g} s") from None
        except OSError:
            return

    def receive(self, count: int, what: str) -> bytes:
        """So many bytes."""
        found = bytearray()
        while len(found) < count:
            try:
                piece = self._sock.recv(count - len(found))
            except TimeoutError:
                raise Failure(f"no {what} within {LIMIT_S:g} s") from None
            except OSError as error:
                raise Failure(f"no {what}: {error}") from None
            if not piece:
                raise Failure(f"no {what}: the server closed the connection")
            found += piece
        return bytes(found)

    def ends(self, what: str) -> None:
        """The server closes the connection, without another word."""
        try:
            rest = self._sock.recv(1)
        except TimeoutError:
            raise Failure(f"after {what}, the connection is still open {LIMIT_S:g} s later") from None
        except OSError:
            return
        if rest:
            raise Failure(f"after {what}, the server still says something: {rest.hex()}…")

    # The handshake.

    def greet(self, flags: int = ClientFlag.FIXED_NEWSTYLE | ClientFlag.NO_ZEROES) -> int:
        """Read the greeting and answer it; the server's flags."""
        init, magic, found = wire.GREETING.unpack(self.receive(wire.GREETING.size, "greeting"))
        if init != INIT_MAGIC or magic != OPTION_MAGIC:
            raise Failure(f"the greeting begins with {init:#x} {magic:#x}")
        if not found & HandshakeFlag.FIXED_NEWSTYLE:
            raise Failure(f"the server does not speak fixed newstyle: flags {found:#x}")
        no_zeroes = int(ClientFlag.NO_ZEROES)
        self.send(wire.CLIENT_FLAGS.pack(int(flags) & ~no_zeroes | (int(flags) & found & no_zeroes)))
        return int(found)

    def option(self, option: int, data: bytes = b"", length: int | None = None) -> OptionAnswer:
        """Ask for an option; `length` where the header is to say something else than how long the data are."""
        self.send(wire.OPTION.pack(OPTION_MAGIC, option, len(data) if length is None else length) + data)
        return self.answer_to(option)

    def answer_to(self, option: int) -> OptionAnswer:
        """What is answered to an option."""
        between: list[tuple[int, bytes]] = []
        for _ in range(REPLIES_MAX):
            header = self.receive(wire.OPTION_REPLY.size, f"reply to option {option}")
            magic, about, kind, length = wire.OPTION_REPLY.unpack(header)
            if magic != OPTION_REPLY_MAGIC:
                raise Failure(f"a reply to option {option} begins with {magic:#x}")
            if about != option:
                raise Failure(f"a reply to option {option} says that it is to option {about}")
            if length > REPLY_MAX_BYTES:
                raise Failure(f"a reply to option {option} is {length} bytes long")
            data = self.receive(length, f"data of a reply to option {option}")
            if kind == OptionReply.ACK or is_error_reply(kind):
                if kind == OptionReply.ACK and data:
                    raise Failure(f"NBD_REP_ACK to option {option} carries {length} bytes")
                return OptionAnswer(between, kind, data)
            between.append((kind, data))
        raise Failure(f"more than {REPLIES_MAX} replies to option {option}")

    def structured(self) -> bool:
        """Ask for structured replies; whether they are granted."""
        self.is_structured = self.option(Option.STRUCTURED_REPLY).granted
        return self.is_structured

    def go(self, name: str) -> None:
        """Choose an export."""
        answer = self.option(Option.GO, wire.pack_info_request(name, (Info.BLOCK_SIZE,)))
        if not answer.granted:
            raise Failure(f"NBD_OPT_GO of export {name!r}: {answer.told}")
        for kind, data in answer.between:
            if kind == OptionReply.INFO and len(data) == 12 and data[:2] == b"\0\0":
                self.size, self.flags = struct.unpack(">QH", data[2:])

    # The transmission.

    def request(self, command: int, cookie: int, offset: int = 0, length: int = 0, flags: int = 0) -> None:
        """Ask, without a payload."""
        self.send(wire.pack_request(command, flags, cookie, offset, length))

    def answer(self) -> Answer:
        """The next message. Data of a simple reply are not in it: who asked for them knows how many there are."""
        start = self.receive(4, "answer")
        (magic,) = struct.unpack(">I", start)
        if magic == SIMPLE_REPLY_MAGIC:
            error, cookie = struct.unpack(">IQ", self.receive(12, "rest of a simple reply"))
            return Answer(cookie, error, None, True, b"")
        if magic != STRUCTURED_REPLY_MAGIC or not self.is_structured:
            raise Failure(f"an answer begins with {magic:#x}, which was not negotiated")
        flags, chunk_type, cookie, length = struct.unpack(">HHQI", self.receive(16, "rest of a chunk's header"))
        if length > REPLY_MAX_BYTES:
            raise Failure(f"a chunk is {length} bytes long")
        payload = self.receive(length, "payload of a chunk")
        error = struct.unpack_from(">I", payload)[0] if chunk_type & 0x8000 and length >= 4 else 0
        return Answer(cookie, error, chunk_type, bool(flags & 1), payload)

    def whole_answer(self, cookie: int) -> list[Answer]:
        """All messages of one answer, in order, if nobody else is answered between them."""
        found: list[Answer] = []
        while not found or not found[-1].done:
            found.append(self.answer())
            if found[-1].cookie != cookie:
                raise Failure(f"an answer has cookie {found[-1].cookie:#x}, expected {cookie:#x}")
            if len(found) > REPLIES_MAX:
                raise Failure(f"an answer has more than {REPLIES_MAX} chunks")
        return found

    def error_of(self, cookie: int) -> int:
        """The error of an answer that brings no data with a simple reply; 0 is success."""
        return next((part.error for part in self.whole_answer(cookie) if part.error), 0)


DATA = int(ChunkType.OFFSET_DATA)
