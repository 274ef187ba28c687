"""The client's side of the handshake: fixed newstyle, newstyle. Bytes in, bytes out.

Source:  NBD protocol, "Newstyle negotiation", "Fixed newstyle negotiation", "Option types", "Option reply types",
         "TLS support".
TLS:     as of ServerHandshake: when `wants_tls` is set, everything else goes encrypted, and `tls_started` goes on.
Shapes:  as ServerHandshake: `receive`, `data_to_send`, `phase`. What is asked, in which order, reads as one function
         for each goal, which yields an option and is resumed with the answer to it.
Errors:  none is raised, whatever a server sends: phase CLOSED, and the reason in `error`. A server's refusal leaves
         its reply type in `refusal`, and an ABORT to be sent ("initiating a soft disconnect").
Bounds:  one reply; and of those that are not the last to an option, `answers_max` bytes, all options together, for what
         is made of them may be kept as long as the handshake.
Omits:   oldstyle negotiation.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from enum import Enum, auto
from typing import ClassVar, NamedTuple

from impl.errors import PeerError
from impl.nbd import wire
from impl.nbd.agreement import DEPENDING_ON_THE_CLIENT, Agreement, ExportInfo, Phase
from impl.nbd.constants import (
    BASE_ALLOCATION,
    EXPORT_NAME_ZEROES_BYTES,
    INIT_MAGIC,
    MAX_OPTION_DATA_BYTES,
    OLDSTYLE_MAGIC,
    OPTION_MAGIC,
    OPTION_REPLY_MAGIC,
    ClientFlag,
    HandshakeFlag,
    Info,
    Option,
    OptionReply,
    TransmissionFlag,
    is_error_reply,
)

MAX_ANSWERS_BYTES = 16 << 20  # of a LIST, say: over a hundred thousand exports
INFOS = (Info.EXPORT, Info.NAME, Info.DESCRIPTION, Info.BLOCK_SIZE)
INTERMEDIATE = frozenset({OptionReply.SERVER, OptionReply.INFO, OptionReply.META_CONTEXT})


class Goal(Enum):
    """What the handshake is for. All but GO end in CLOSED, without an error."""

    GO = auto()
    INFO = auto()
    LIST = auto()
    LIST_META_CONTEXT = auto()


class _Refused(Exception):
    """The server does not grant what the goal needs."""


class _Ask(NamedTuple):
    """An option to send."""

    option: Option
    data: bytes = b""


class _Answer(NamedTuple):
    """All replies to an option: those in between, and the final one."""

    replies: list[tuple[int, bytes]]
    final: int
    message: str

    @property
    def granted(self) -> bool:
        return self.final == OptionReply.ACK

    def of(self, kind: OptionReply) -> list[bytes]:
        return [data for reply, data in self.replies if reply == kind]


Script = Generator[_Ask | None, _Answer, None]  # None: TLS has to be started before it goes on


class ClientHandshake:
    """One handshake for one goal. Send what `data_to_send` gives, feed `receive`, look at `phase`."""

    def __init__(
        self,
        name: str = "",
        goal: Goal = Goal.GO,
        *,
        tls: bool = False,
        extended: bool = False,
        structured: bool = True,
        contexts: Sequence[str] = (BASE_ALLOCATION,),
        export_name_only: bool = False,
        answers_max: int = MAX_ANSWERS_BYTES,
    ) -> None:
        """`contexts` are the queries; with `export_name_only`, GO is done as the oldest clients do it."""
        self.phase = Phase.CLIENT_FLAGS
        self.agreement: Agreement | None = None
        self.leftover = b""
        self.error: str | None = None
        self.refusal = 0  # reply type of the option that ended it
        self.export: ExportInfo | None = None  # GO, INFO
        self.exports: list[wire.ServerEntry] = []  # LIST
        self.contexts: list[wire.MetaContext] = []  # GO: as selected; LIST_META_CONTEXT: as available
        self._name = name
        self._goal = goal
        self._ask_tls = tls
        self.wants_tls = False
        self._ask_extended = extended
        self._ask_structured = structured
        self._queries = contexts
        self._export_name_only = export_name_only
        self._flags = TransmissionFlag(0)
        self._structured = False
        self._extended = False
        self._no_zeroes = False
        self._outgoing = bytearray()
        self._incoming = bytearray()
        self._script = self._SCRIPTS[goal](self)
        self._asked: Option | None = None
        self._replies: list[tuple[int, bytes]] = []
        self._answers_max = answers_max
        self._answers_bytes = 0

    def data_to_send(self) -> bytes:
        """What is to be sent now; it is handed out once."""
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    def receive(self, data: bytes) -> None:
        """Take bytes as they came. Those behind the handshake are in `leftover`; after CLOSED they are dropped."""
        self._incoming += data
        try:
            while not self.wants_tls and self._STEPS[self.phase](self):
                pass
            if self.wants_tls and self._incoming:
                self.wants_tls = False
                raise PeerError("the server has sent something in the clear, where it should start TLS")
        except PeerError as error:
            self._close(str(error))

    def tls_started(self) -> None:
        """From here on, bytes are received and sent encrypted."""
        assert self.wants_tls
        self.wants_tls = False
        self._resume(None)

    # Phases. A step says whether another may follow on what has already been received.

    def _take_greeting(self) -> bool:
        if len(self._incoming) < wire.GREETING.size:
            return False
        init, magic, flags = wire.GREETING.unpack(self._take(wire.GREETING.size))
        if init != INIT_MAGIC:
            raise PeerError(f"the server's first words are {init:#x}, expected {INIT_MAGIC:#x}: this is not NBD")
        if magic == OLDSTYLE_MAGIC:
            raise PeerError("the server speaks the oldstyle handshake, which is not supported")
        if magic != OPTION_MAGIC:
            raise PeerError(f"greeting magic is {magic:#x}, expected {OPTION_MAGIC:#x}")
        fixed = bool(flags & HandshakeFlag.FIXED_NEWSTYLE)
        self._no_zeroes = bool(flags & HandshakeFlag.NO_ZEROES)
        answer = ClientFlag.FIXED_NEWSTYLE if fixed else ClientFlag(0)
        if self._no_zeroes:
            answer |= ClientFlag.NO_ZEROES
        self._outgoing += wire.CLIENT_FLAGS.pack(answer)
        self.phase = Phase.OPTIONS
        if self._goal is Goal.GO and (self._export_name_only or not fixed):
            self._script = self._by_export_name()
        elif not fixed:
            raise PeerError("the server speaks only newstyle, which can do nothing but choose an export")
        if self._ask_tls and not fixed:
            raise PeerError("the server speaks only newstyle, which has no TLS")
        self._resume(None)
        return True

    def _take_reply(self) -> bool:
        if self._asked is Option.EXPORT_NAME:
            return self._take_export_name_reply()
        if len(self._incoming) < wire.OPTION_REPLY.size:
            return False
        magic, option, reply, length = wire.OPTION_REPLY.unpack_from(self._incoming)
        if magic != OPTION_REPLY_MAGIC:
            raise PeerError(f"option reply magic is {magic:#x}, expected {OPTION_REPLY_MAGIC:#x}")
        if option != self._asked:
            raise PeerError(f"reply to option {option}, expected one to {self._asked!r}")
        if length > MAX_OPTION_DATA_BYTES:
            raise PeerError(f"option reply of {length} bytes, at most {MAX_OPTION_DATA_BYTES} expected")
        if len(self._incoming) < wire.OPTION_REPLY.size + length:
            return False
        self._take(wire.OPTION_REPLY.size)
        data = self._take(length)
        if reply in INTERMEDIATE:
            self._answers_bytes += wire.OPTION_REPLY.size + length
            if self._answers_bytes > self._answers_max:
                raise PeerError(f"answers of more than {self._answers_max} bytes")
            self._replies.append((reply, data))
        elif reply == OptionReply.ACK or is_error_reply(reply):
            answer = _Answer(self._replies, reply, data.decode("utf-8", "replace"))
            self._replies = []
            self._resume(answer)
        else:
            raise PeerError(f"unknown reply type {reply}")
        return True

    def _take_export_name_reply(self) -> bool:
        zeroes = 0 if self._no_zeroes else EXPORT_NAME_ZEROES_BYTES
        if len(self._incoming) < wire.EXPORT_NAME_REPLY.size + zeroes:
            return False
        size, flags = wire.EXPORT_NAME_REPLY.unpack(self._take(wire.EXPORT_NAME_REPLY.size))
        self._take(zeroes)
        self._learn(flags, ExportInfo(self._name, size, "", TransmissionFlag(0)))
        self._agree()
        return True

    def _take_nothing_more(self) -> bool:
        self.leftover += self._take(len(self._incoming))
        return False

    def _drop(self) -> bool:
        self._incoming.clear()
        return False

    _STEPS: ClassVar[dict[Phase, Callable[[ClientHandshake], bool]]] = {
        Phase.CLIENT_FLAGS: _take_greeting,
        Phase.OPTIONS: _take_reply,
        Phase.TRANSMISSION: _take_nothing_more,
        Phase.CLOSED: _drop,
    }

    # Goals.

    def _go(self) -> Script:
        yield from self._negotiate()
        if self._structured and self._queries:
            answer = yield _Ask(Option.SET_META_CONTEXT, wire.pack_meta_query(self._name, self._queries))
            self._give_up_on(answer, OptionReply.ERR_SHUTDOWN, OptionReply.ERR_TLS_REQD)
            if answer.granted:
                self.contexts = [wire.unpack_meta_context(data) for data in answer.of(OptionReply.META_CONTEXT)]
        answer = yield _Ask(Option.GO, wire.pack_info_request(self._name, INFOS))
        if answer.final == OptionReply.ERR_UNSUP and not self._extended:
            yield from self._by_export_name()
            return
        self._need(answer)
        self._learn_export(answer)
        self._agree()

    def _by_export_name(self) -> Script:
        yield from self._secure()
        yield _Ask(Option.EXPORT_NAME, wire.pack_text(self._name))
        raise AssertionError("EXPORT_NAME has no option reply")

    def _info(self) -> Script:
        yield from self._negotiate()
        answer = yield _Ask(Option.INFO, wire.pack_info_request(self._name, INFOS))
        self._need(answer)
        self._learn_export(answer)

    def _list(self) -> Script:
        yield from self._secure()
        answer = yield _Ask(Option.LIST)
        self._need(answer)
        self.exports = [wire.unpack_server_entry(data) for data in answer.of(OptionReply.SERVER)]

    def _list_meta_context(self) -> Script:
        yield from self._negotiate()
        answer = yield _Ask(Option.LIST_META_CONTEXT, wire.pack_meta_query(self._name, self._queries))
        self._need(answer)
        self.contexts = [wire.unpack_meta_context(data) for data in answer.of(OptionReply.META_CONTEXT)]

    _SCRIPTS: ClassVar[dict[Goal, Callable[[ClientHandshake], Script]]] = {
        Goal.GO: _go,
        Goal.INFO: _info,
        Goal.LIST: _list,
        Goal.LIST_META_CONTEXT: _list_meta_context,
    }

    # What the steps and goals share.

    def _secure(self) -> Script:
        """Start TLS, if that is wanted and has not been done."""
        if self._ask_tls:
            self._ask_tls = False
            self._need((yield _Ask(Option.STARTTLS)))
            yield None

    def _negotiate(self) -> Script:
        """TLS, if that is wanted; and of the ways to reply, the best that both sides know."""
        yield from self._secure()
        if self._ask_extended:
            answer = yield _Ask(Option.EXTENDED_HEADERS)
            self._give_up_on(answer, OptionReply.ERR_SHUTDOWN, OptionReply.ERR_TLS_REQD)
            self._structured = self._extended = answer.granted
        if self._ask_structured and not self._extended:
            answer = yield _Ask(Option.STRUCTURED_REPLY)
            self._give_up_on(answer, OptionReply.ERR_SHUTDOWN, OptionReply.ERR_TLS_REQD)
            self._structured = answer.granted

    def _need(self, answer: _Answer) -> None:
        if not answer.granted:
            self._refuse(answer)

    def _give_up_on(self, answer: _Answer, *finals: OptionReply) -> None:
        if answer.final in finals:
            self._refuse(answer)

    def _refuse(self, answer: _Answer) -> None:
        self.refusal = answer.final
        try:
            reason = OptionReply(answer.final).name
        except ValueError:
            reason = f"error {answer.final:#x}"
        text = f": {answer.message}" if answer.message else ""
        assert self._asked is not None
        raise _Refused(f"the server refuses {self._asked.name} of export {self._name!r} with {reason}{text}")

    def _learn_export(self, answer: _Answer) -> None:
        # A kind sent twice counts once, as its last; kinds we do not know are ignored.
        infos = dict(wire.unpack_info(data) for data in answer.of(OptionReply.INFO))
        if Info.EXPORT not in infos:
            raise PeerError("the server grants an export without NBD_INFO_EXPORT")
        size, flags = wire.unpack_info_export(infos[Info.EXPORT])
        name = wire.text(infos[Info.NAME]) if Info.NAME in infos else self._name
        description = wire.text(infos.get(Info.DESCRIPTION, b""))
        sizes = wire.unpack_info_block_size(infos[Info.BLOCK_SIZE]) if Info.BLOCK_SIZE in infos else ()
        self._learn(flags, ExportInfo(name, size, description, TransmissionFlag(0), *sizes))

    def _learn(self, flags: int, export: ExportInfo) -> None:
        self._flags = TransmissionFlag(flags)
        self.export = replace(export, flags=TransmissionFlag(flags & ~int(DEPENDING_ON_THE_CLIENT)))

    def _agree(self) -> None:
        assert self.export is not None
        ids = tuple(context.id for context in self.contexts)
        self.agreement = Agreement(self.export, self._flags, self._structured, ids, self._extended)
        self.phase = Phase.TRANSMISSION

    def _resume(self, answer: _Answer | None) -> None:
        """Go on with the script: send what it asks next, or end."""
        try:
            ask = next(self._script) if answer is None else self._script.send(answer)
        except StopIteration:
            if self.phase is Phase.OPTIONS:
                self._leave(None)
            return
        except _Refused as refused:
            self._leave(str(refused))
            return
        if ask is None:
            self.wants_tls = True
            return
        self._asked = ask.option
        self._outgoing += wire.pack_option(*ask)

    def _leave(self, reason: str | None) -> None:
        """A soft disconnect. The ACK need not be waited for ("NBD_OPT_ABORT")."""
        self._outgoing += wire.pack_option(Option.ABORT)
        self._close(reason)

    def _close(self, reason: str | None) -> None:
        self.error = reason
        self.phase = Phase.CLOSED

    def _take(self, count: int) -> bytes:
        taken = bytes(self._incoming[:count])
        del self._incoming[:count]
        return taken
