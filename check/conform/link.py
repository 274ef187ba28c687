"""A connection as it is on the wire: what the rules say to a server, right or wrong, and what it answers.

Every wait has an end: a server that says nothing within `LIMIT_S`, or talks for more than `TALK_LIMIT_S` on one
connection, has failed the rule, and never hangs the kit; and of what it says, not more is kept than `REPLY_MAX_BYTES`.

Source:  NBD protocol, "Newstyle negotiation", "Transmission".
Errors:  Failure, with what was awaited and what came.
"""

from __future__ import annotations

import ssl
import struct
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from check.conform.rule import Closed, Failure
from impl.client.link import Deadline, Stream, open_socket, tls_context
from impl.client.tls import TlsStream
from impl.client.uri import Target, Tls
from impl.errors import PeerError, StartError
from impl.nbd import wire
from impl.nbd.constants import (
    BLOCK_PREFERRED_DEFAULT_BYTES,
    EXPORT_NAME_ZEROES_BYTES,
    EXTENDED_REPLY_MAGIC,
    INIT_MAGIC,
    MAX_PAYLOAD_BYTES,
    OPTION_MAGIC,
    OPTION_REPLY_MAGIC,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    ChunkType,
    ClientFlag,
    Command,
    CommandFlag,
    HandshakeFlag,
    Info,
    Option,
    OptionReply,
    TransmissionFlag,
    is_error_reply,
)

LIMIT_S = 5.0
TALK_LIMIT_S = 20.0
SECTOR_BYTES = 512
ERROR_CHUNK = 1 << 15
REPLIES_MAX = 10_000
RECEIVE_BYTES = 1 << 16
PIECE_MAX_BYTES = 1 << 20
REPLY_MAX_BYTES = 80 << 20


def context_of(tls: Tls | None) -> ssl.SSLContext:
    """For TLS with whoever the server is, as one may be known to it; StartError for files that are of no use."""
    if tls is not None and tls.certificates is not None and not Path(tls.certificates).is_dir():
        raise StartError(f"{tls.certificates}: there is no such folder of certificates")
    return tls_context(replace(tls or Tls(), verify_peer=False))


class Unreachable(Failure):
    """There is nobody."""


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
    offset: int | None = None  # of an extended reply


def contexts_in(answer: OptionAnswer) -> dict[str, int]:
    """The numbers of the contexts that are named."""
    told = [data for kind, data in answer.between if kind == OptionReply.META_CONTEXT]
    try:
        found = [wire.unpack_meta_context(data) for data in told]
    except PeerError as error:
        raise Failure(f"NBD_REP_META_CONTEXT: {error}") from None
    return {context.name: context.id for context in found}


def name_of(reply: int) -> str:
    """An option reply by its name."""
    try:
        return f"NBD_REP_{OptionReply(reply).name}"
    except ValueError:
        return f"reply {reply:#x}"


class Link:
    """One connection, from the greeting on."""

    def __init__(self, target: Target) -> None:
        self._target = target
        try:
            self._plain = open_socket(target, Deadline(LIMIT_S))
        except OSError as error:
            raise Unreachable(f"the server cannot be connected to: {error}") from None
        self._sock: Stream = self._plain
        self._sock.settimeout(LIMIT_S)
        self._limit_s = LIMIT_S
        self._ends_s = time.monotonic() + TALK_LIMIT_S
        self._no_zeroes = False
        self.greeting_flags = 0
        self.is_structured = False
        self.is_extended = False
        self.contexts: dict[str, int] = {}
        self.flags = 0
        self.size = 0
        self.block_sizes = wire.BlockSizes(1, BLOCK_PREFERRED_DEFAULT_BYTES, MAX_PAYLOAD_BYTES)

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
            if time.monotonic() > self._ends_s:
                raise Failure(f"no {what}: the server has been talking for {TALK_LIMIT_S:g} s, and comes to no end")
            try:
                piece = self._sock.recv(min(count - len(found), PIECE_MAX_BYTES))
            except TimeoutError:
                raise Failure(f"no {what} within {self._limit_s:g} s") from None
            except OSError as error:
                raise Closed(f"no {what}: {error}") from None
            if not piece:
                raise Closed(f"no {what}: the server closed the connection")
            found += piece
        return bytes(found)

    def ends(self, what: str, *, with_goodbye: bool = False) -> None:
        """The server closes the connection, without another word; but for that of TLS, if that is wanted."""
        try:
            rest = self._sock.recv(1)
        except TimeoutError:
            raise Failure(f"after {what}, the connection is still open {LIMIT_S:g} s later") from None
        except ssl.SSLEOFError:
            if not with_goodbye:
                return
            raise Failure(f"after {what}, the connection is closed, but TLS was not shut down") from None
        except OSError:
            return
        if rest:
            raise Failure(f"after {what}, the server still says something: {rest.hex()}…")

    def patience(self, limit_s: float) -> None:
        """How long to wait for anything, from here on."""
        self._limit_s = limit_s
        self._sock.settimeout(limit_s)

    def drain(self) -> None:
        """Whatever the server still says, until it closes the connection, or has said enough."""
        ends_s = time.monotonic() + LIMIT_S
        with suppress(OSError):
            while self._sock.recv(RECEIVE_BYTES) and time.monotonic() < ends_s:
                pass

    # The handshake.

    def greet(self, flags: int = ClientFlag.FIXED_NEWSTYLE | ClientFlag.NO_ZEROES) -> int:
        """Read the greeting and answer it; the server's flags."""
        init, magic, found = wire.GREETING.unpack(self.receive(wire.GREETING.size, "greeting"))
        if init != INIT_MAGIC or magic != OPTION_MAGIC:
            raise Failure(f"the greeting begins with {init:#x} {magic:#x}")
        self.greeting_flags = int(found)
        if not found & HandshakeFlag.FIXED_NEWSTYLE:
            raise Failure(f"the server does not speak fixed newstyle: flags {found:#x}")
        no_zeroes = int(ClientFlag.NO_ZEROES)
        self._no_zeroes = bool(int(flags) & found & no_zeroes)
        self.send(wire.CLIENT_FLAGS.pack(int(flags) & ~no_zeroes | (int(flags) & found & no_zeroes)))
        return int(found)

    def option(self, option: int, data: bytes = b"", length: int | None = None) -> OptionAnswer:
        """Ask for an option; `length` where the header is to say something else than how long the data are."""
        self.send(wire.OPTION.pack(OPTION_MAGIC, option, len(data) if length is None else length) + data)
        return self.answer_to(option)

    def answer_to(self, option: int) -> OptionAnswer:
        """What is answered to an option."""
        between: list[tuple[int, bytes]] = []
        total = 0
        for _ in range(REPLIES_MAX):
            header = self.receive(wire.OPTION_REPLY.size, f"reply to option {option}")
            magic, about, kind, length = wire.OPTION_REPLY.unpack(header)
            if magic != OPTION_REPLY_MAGIC:
                raise Failure(f"a reply to option {option} begins with {magic:#x}")
            if about != option:
                raise Failure(f"a reply to option {option} says that it is to option {about}")
            total += length
            if total > REPLY_MAX_BYTES:
                raise Failure(f"the replies to option {option} are more than {REPLY_MAX_BYTES} bytes long")
            data = self.receive(length, f"data of a reply to option {option}")
            if kind == OptionReply.ACK or is_error_reply(kind):
                if kind == OptionReply.ACK and data:
                    raise Failure(f"NBD_REP_ACK to option {option} carries {length} bytes")
                return OptionAnswer(between, kind, data)
            between.append((kind, data))
        raise Failure(f"more than {REPLIES_MAX} replies to option {option}")

    def start_tls(self) -> OptionAnswer:
        """Ask for TLS, and if it is granted, start it; whoever the server is."""
        answer = self.option(Option.STARTTLS)
        if answer.granted:
            self.shake_tls_hands()
        return answer

    def shake_tls_hands(self, newest: ssl.TLSVersion | None = None) -> None:
        """Everything from here on through TLS, of no newer version than that."""
        context = context_of(self._target.tls)
        if newest is not None:
            context.maximum_version = newest
        try:
            self._sock = TlsStream(self._plain, context, "localhost", LIMIT_S, minds_ends=True)
        except OSError as error:
            raise Failure(f"TLS with the server failed: {error}") from None
        self._sock.settimeout(LIMIT_S)

    def structured(self) -> bool:
        """Ask for structured replies; whether they are granted."""
        self.is_structured = self.option(Option.STRUCTURED_REPLY).granted
        return self.is_structured

    def extended(self) -> bool:
        """Ask for extended headers; whether they are granted."""
        self.is_extended = self.option(Option.EXTENDED_HEADERS).granted
        return self.is_extended

    def select(self, *queries: str, export: str | None = None) -> OptionAnswer:
        """Ask for metadata contexts; those that are selected are in `contexts`."""
        name = self._target.export if export is None else export
        answer = self.option(Option.SET_META_CONTEXT, wire.pack_meta_query(name, queries))
        self.contexts = contexts_in(answer) if answer.granted else {}
        return answer

    def enter(self, name: str) -> None:
        """Choose an export, in the old way where there is no other."""
        answer = self.option(Option.GO, wire.pack_info_request(name, (Info.BLOCK_SIZE,)))
        if answer.final != OptionReply.ERR_UNSUP:
            self._gone(name, answer)
            return
        self.send(wire.pack_option(Option.EXPORT_NAME, name.encode()))
        found = self.receive(wire.EXPORT_NAME_REPLY.size, "answer to NBD_OPT_EXPORT_NAME")
        self.size, self.flags = wire.EXPORT_NAME_REPLY.unpack(found)
        if not self._no_zeroes:
            self.receive(EXPORT_NAME_ZEROES_BYTES, "zeroes behind an answer to NBD_OPT_EXPORT_NAME")

    def go(self, name: str) -> None:
        """Choose an export."""
        self._gone(name, self.option(Option.GO, wire.pack_info_request(name, (Info.BLOCK_SIZE,))))

    def _gone(self, name: str, answer: OptionAnswer) -> None:
        if not answer.granted:
            raise Failure(f"NBD_OPT_GO of export {name!r}: {answer.told}")
        for kind, data in answer.between:
            if kind == OptionReply.INFO and len(data) == 12 and data[:2] == b"\0\0":
                self.size, self.flags = wire.INFO_EXPORT.unpack(data[2:])
            elif kind == OptionReply.INFO and len(data) == 14 and data[:2] == b"\0\3":
                sizes = wire.BlockSizes(*wire.INFO_BLOCK_SIZE.unpack(data[2:]))
                if not wire.wrong_block_sizes(sizes):  # else a rule says so, and the others go on without
                    self.block_sizes = sizes

    # The transmission.

    @property
    def unit(self) -> int:
        """The smallest piece that can be asked for."""
        return self.block_sizes.minimum

    @property
    def sector(self) -> int:
        """A small piece that can be asked for: of the usual size, if there is so much."""
        return max(min(SECTOR_BYTES, self.end), self.unit)

    @property
    def end(self) -> int:
        """Where what can be asked for ends: a part of a smallest piece cannot."""
        return self.size // self.unit * self.unit

    @property
    def can_write(self) -> bool:
        """Whether the export can be written to."""
        return not self.flags & TransmissionFlag.READ_ONLY

    def request(self, command: int, cookie: int, offset: int = 0, length: int = 0, flags: int = 0) -> None:
        """Ask, without a payload."""
        pack = wire.pack_extended_request if self.is_extended else wire.pack_request
        self.send(pack(command, flags, cookie, offset, length))

    def write(self, cookie: int, offset: int, data: bytes, flags: int = 0) -> None:
        """Ask for a write."""
        pack, more = wire.pack_request, 0
        if self.is_extended:
            pack, more = wire.pack_extended_request, int(CommandFlag.PAYLOAD_LEN)
        self.send(pack(Command.WRITE, flags | more, cookie, offset, len(data)) + data)

    def answer(self) -> Answer:
        """The next message. Data of a simple reply are not in it: who asked for them knows how many there are."""
        (magic,) = struct.unpack(">I", self.receive(4, "answer"))
        if magic not in self._expected_magics():
            raise Failure(f"an answer begins with {magic:#x}, which was not negotiated")
        if magic == SIMPLE_REPLY_MAGIC:
            error, cookie = struct.unpack(">IQ", self.receive(12, "rest of a simple reply"))
            return Answer(cookie, error, None, True, b"")
        offset = None
        if magic == EXTENDED_REPLY_MAGIC:
            rest = self.receive(28, "rest of a chunk's header")
            flags, chunk_type, cookie, offset, length = struct.unpack(">HHQQQ", rest)
        else:
            flags, chunk_type, cookie, length = struct.unpack(">HHQI", self.receive(16, "rest of a chunk's header"))
        if length > REPLY_MAX_BYTES:
            raise Failure(f"a chunk is {length} bytes long")
        payload = self.receive(length, "payload of a chunk")
        error = struct.unpack_from(">I", payload)[0] if chunk_type & ERROR_CHUNK and length >= 4 else 0
        return Answer(cookie, error, chunk_type, bool(flags & 1), payload, offset)

    def _expected_magics(self) -> tuple[int, ...]:
        """With which answers may begin."""
        if self.is_extended:
            return (EXTENDED_REPLY_MAGIC,)
        return (SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC) if self.is_structured else (SIMPLE_REPLY_MAGIC,)

    def whole_answer(self, cookie: int) -> list[Answer]:
        """All messages of one answer, in order, if nobody else is answered between them."""
        found: list[Answer] = []
        total = 0
        while not found or not found[-1].done:
            found.append(self.answer())
            total += len(found[-1].payload)
            if total > REPLY_MAX_BYTES:
                raise Failure(f"an answer is more than {REPLY_MAX_BYTES} bytes long")
            if found[-1].cookie != cookie:
                raise Failure(f"an answer has cookie {found[-1].cookie:#x}, expected {cookie:#x}")
            if len(found) > REPLIES_MAX:
                raise Failure(f"an answer has more than {REPLIES_MAX} chunks")
        return found

    def error_of(self, cookie: int) -> int:
        """The error of an answer that brings no data with a simple reply; 0 is success."""
        return next((part.error for part in self.whole_answer(cookie) if part.error), 0)


DATA = int(ChunkType.OFFSET_DATA)
