"""The codec against any bytes.

Invariant:  whatever bytes come, however they are split, the codec gives a message, waits for more, or raises PeerError
            (a handshake: is closed, and says why). Never another exception; never more memory than its limit; and
            how the bytes are split changes nothing: neither the messages, nor what is sent, nor the error. A message
            stays as it was given out.
Shapes:     a target takes an input of `stream.py`, has it received whole and in pieces (`play`), and compares what came
            of it (`check_same`). A `Side` is a codec together with what a session does around it: it fetches replies,
            starts TLS, forgets the requests that were answered.
Errors:     Broken, or whatever the codec has raised.
Bounds:     those that each module of impl/nbd states, as `limit` of its side, beyond what a codec has from the
            beginning; `kept.py` counts.

Nothing here needs a fuzzer: any bytes will do.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from check.fuzz.kept import Kept, kept_by
from check.fuzz.stream import STREAM_MAX_BYTES, WHOLE, decode, pieces
from impl.errors import PeerError
from impl.nbd import wire
from impl.nbd.agreement import Agreement, ExportInfo, Phase, Tls
from impl.nbd.client_handshake import ClientHandshake, Goal
from impl.nbd.constants import (
    CONTEXT_IDS,
    MAX_EXTENTS_COUNT,
    MAX_OPTION_DATA_BYTES,
    MAX_PAYLOAD_BYTES,
    MAX_STRING_BYTES,
    Command,
    CommandFlag,
    TransmissionFlag,
)
from impl.nbd.reply_reader import Expectation, Reply, ReplyReader, chunks_max
from impl.nbd.requests import SPARES_MAX, Request, RequestReader, request_reader
from impl.nbd.server_handshake import MAX_UNSENT_BYTES, ServerHandshake

# What a codec keeps beside what is counted: a few names and numbers, and the words of an error.
SOME = Kept(16 << 10, 100)
UNSENT = "client sends options without waiting for the replies"
IN_THE_CLEAR = "sent something in the clear"
# Memory is looked at after so many pieces, after each of the first, after large ones, and in the end.
PIECES_COUNT = 16
LARGE_BYTES = 4 << 10

T = TypeVar("T")
Shaking = TypeVar("Shaking", ServerHandshake, ClientHandshake)
Reading = TypeVar("Reading", RequestReader, ReplyReader)


class Broken(AssertionError):
    """The invariant does not hold."""


class Outcome(NamedTuple):
    """All that is seen of a codec."""

    messages: list[object]
    error: str | None
    sent: bytes
    state: object


class Side(Protocol):
    """A codec in use."""

    def take(self, piece: bytes) -> int:
        """Receive the piece, or the first part of it; how much."""

    def limit(self, last: int) -> Kept:
        """The most that may be kept after a piece of so many bytes."""

    def is_over(self) -> bool:
        """Whether nothing more is received."""

    def outcome(self, rest: bytes) -> Outcome:
        """After the last piece; the rest was not received, for it was over."""

    @property
    def codec(self) -> object:
        """Whose memory is looked at."""


def play(side: Side, stream: bytes, sizes: Sequence[int], cut: int = STREAM_MAX_BYTES) -> Outcome:
    """Have it receive the stream in pieces; none of them reaches across the cut."""
    first = kept_by(side.codec)
    at = count = 0
    for piece in (*pieces(stream[:cut], sizes), *pieces(stream[cut:], sizes)):
        left = piece
        while left and not side.is_over():
            taken = side.take(left)
            if taken <= 0:
                raise Broken(f"nothing is received at byte {at}")
            left, at, count = left[taken:], at + taken, count + 1
            if count < PIECES_COUNT or not count % PIECES_COUNT or taken >= LARGE_BYTES or at == len(stream):
                check_memory(side, first, taken)
    return side.outcome(stream[at:])


def check_memory(side: Side, first: Kept, last: int) -> None:
    """Hold it to its limit."""
    now, limit = kept_by(side.codec), side.limit(last)
    content, items = now.content - first.content, now.items - first.items
    if content > limit.content or items > limit.items:
        raise Broken(f"{content} bytes and {items} items are kept, at most {limit.content} and {limit.items} allowed")


def check_same(whole: Outcome, split: Outcome) -> None:
    """How it was split must change nothing."""
    for name, one, other in zip(Outcome._fields, whole, split, strict=True):
        if one != other:
            raise Broken(f"{name} of the whole: {shown(one)}; of the same in pieces: {shown(other)}")


def shown(found: object) -> str:
    """Not more of it than anybody reads."""
    text = repr(found)
    return text if len(text) < 2000 else f"{text[:1000]} ... {text[-1000:]}"


def pick(choices: Sequence[T], code: int) -> T:
    """What a byte of the settings stands for."""
    return choices[code % len(choices)]


def larger(one: Kept, content: int, items: int = 0) -> Kept:
    """A limit, and more."""
    return Kept(one.content + content, one.items + items)


# Handshakes.

_T = TransmissionFlag
DISK = ExportInfo("disk", 1 << 20, "a disk", _T.HAS_FLAGS | _T.SEND_FLUSH | _T.SEND_FUA)
WORDY = ExportInfo("wordy", 512, "w" * MAX_STRING_BYTES, _T.HAS_FLAGS | _T.READ_ONLY, block_min=512)
HUGE = ExportInfo("", (1 << 64) - 1, "", _T.HAS_FLAGS)
EXPORTS = [{export.name: export for export in exports} for exports in ((DISK,), (DISK, WORDY), (HUGE, WORDY))]
DEFAULTS = ("disk", "", "wordy")
TLS = tuple(Tls)
# Of all options, LIST is answered at the greatest length; an INFO tells of one export only.
LONGEST_ANSWER_BYTES = 32 << 10
ANSWERS_MAX_BYTES = 64 << 10  # less than a client takes by default, so that it is within reach


def clear_bytes(make: Callable[[], ServerHandshake | ClientHandshake], stream: bytes) -> int:
    """How much of the stream comes before TLS is started; all of it, if it never is.

    What comes behind in one piece with that is an offence, so the stream is cut there.
    """
    whole = make()
    whole.receive(stream)
    if IN_THE_CLEAR not in (whole.error or ""):
        return len(stream)
    if whole.phase is not Phase.CLOSED or whole.wants_tls:
        raise Broken(f"phase {whole.phase}, though it has {whole.error}")
    return bisect_left(range(len(stream)), True, key=lambda count: _has_started(make(), stream[:count]))


def _has_started(handshake: ServerHandshake | ClientHandshake, stream: bytes) -> bool:
    handshake.receive(stream)
    return handshake.wants_tls or IN_THE_CLEAR in (handshake.error or "")


class Handshake(Generic[Shaking]):
    """Either side's. With `patient`, what is to be sent is fetched only when it has to be."""

    def __init__(self, codec: Shaking, patient: bool) -> None:
        self.codec: Shaking = codec
        self._patient = patient
        self._sent: list[bytes] = []

    def take(self, piece: bytes) -> int:
        self.codec.receive(piece)
        if self.codec.wants_tls:
            self._fetch()
            self.codec.tls_started()
        if not self._patient:
            self._fetch()
        return len(piece)

    def _fetch(self) -> None:
        self._sent.append(self.codec.data_to_send())

    def is_over(self) -> bool:
        return self.codec.phase is Phase.TRANSMISSION

    def limit(self, last: int) -> Kept:
        """One option or answer that is not whole, behind its header, and what came last."""
        return larger(SOME, wire.OPTION_REPLY.size + MAX_OPTION_DATA_BYTES + last)

    def outcome(self, rest: bytes) -> Outcome:
        self._fetch()
        codec = self.codec
        behind = codec.leftover + rest if codec.phase is Phase.TRANSMISSION else b""
        return Outcome([], codec.error, b"".join(self._sent), (codec.phase, codec.agreement, behind, *self.told()))

    def told(self) -> tuple[object, ...]:
        """What only one of the sides has."""
        return ()


class ServerSide(Handshake[ServerHandshake]):
    """A server shakes hands."""

    def limit(self, last: int) -> Kept:
        unsent = MAX_UNSENT_BYTES + LONGEST_ANSWER_BYTES if self._patient else 0
        return larger(super().limit(last), unsent)


class ClientSide(Handshake[ClientHandshake]):
    """A client shakes hands."""

    def limit(self, last: int) -> Kept:
        """All answers, and what was made of them; and the words of an error, as they came and as they are told.

        A reply is an item of a list, with two of its own.
        """
        replies = ANSWERS_MAX_BYTES // wire.OPTION_REPLY.size
        answers = 2 * ANSWERS_MAX_BYTES + 2 * MAX_OPTION_DATA_BYTES
        return larger(super().limit(last), answers, 2 * 3 * replies)

    def told(self) -> tuple[object, ...]:
        codec = self.codec
        return codec.refusal, codec.export, list(codec.exports), list(codec.contexts)


def server_handshake(data: bytes) -> None:
    """What a client sends before it has chosen an export.

    Settings: TLS; exports; the default; whether replies are fetched late.
    """
    given = decode(data)
    tls, exports, default, bits, *_ = given.settings
    late = bool(bits & 1)
    arguments = pick(EXPORTS, exports), pick(DEFAULTS, default), pick(TLS, tls)
    cut = clear_bytes(lambda: ServerHandshake(*arguments), given.stream)
    whole = play(ServerSide(ServerHandshake(*arguments), True), given.stream, WHOLE, cut)
    split = play(ServerSide(ServerHandshake(*arguments), late), given.stream, given.sizes, cut)
    if whole.error == UNSENT and not late:  # whoever fetches replies is hung up on later for that, or not at all
        whole, split = (outcome._replace(error=None, state=None) for outcome in (whole, split))
        split = split._replace(sent=split.sent[: len(whole.sent)])
    check_same(whole, split)


GOALS = tuple(Goal)
NAMES = ("", "disk", "ä" * (MAX_STRING_BYTES // 2))
QUERIES = (("base:allocation",), (), tuple(CONTEXT_IDS), ("base:",) * 3)


def client_handshake(data: bytes) -> None:
    """What a server sends to a client that wants something.

    Settings: the goal; the export's name; the contexts asked for; then a bit each: TLS, extended headers, structured
    replies, EXPORT_NAME only.
    """
    given = decode(data)
    goal, name, queries, bits, *_ = given.settings

    def make() -> ClientHandshake:
        return ClientHandshake(
            pick(NAMES, name),
            pick(GOALS, goal),
            tls=bool(bits & 1),
            extended=bool(bits & 2),
            structured=not bits & 4,
            contexts=pick(QUERIES, queries),
            export_name_only=bool(bits & 8),
            answers_max=ANSWERS_MAX_BYTES,
        )

    cut = clear_bytes(make, given.stream)
    whole = play(ClientSide(make(), True), given.stream, WHOLE, cut)
    check_same(whole, play(ClientSide(make(), False), given.stream, given.sizes, cut))


# Transmission.


class Reader(Generic[Reading]):
    """Either reader, and the messages that have come of it."""

    def __init__(self, codec: Reading) -> None:
        self.codec: Reading = codec
        self._given: list[Request | Reply] = []
        self._messages: list[object] = []
        self._error: str | None = None
        self._drain()

    def take(self, piece: bytes) -> int:
        buffer = self.codec.buffer()
        count = min(len(buffer), len(piece))
        buffer[:count] = piece[:count]
        self.codec.received(count)
        self._drain()
        return count

    def _drain(self) -> None:
        try:
            while (message := self.codec.next()) is not None:
                self._messages.append(frozen(message))
                self.given(message)
        except PeerError as error:
            self._error = str(error)
            self._check_that_it_stays_so()

    def _check_that_it_stays_so(self) -> None:
        try:
            message = self.codec.next()
        except PeerError as again:
            if str(again) == self._error:
                return
            raise Broken(f"{self._error}; and then {again}") from None
        raise Broken(f"{self._error}; and then {message}")

    def given(self, message: Request | Reply) -> None:
        """It has been given out, and is looked at again in the end."""
        self._given.append(message)

    def is_over(self) -> bool:
        return self._error is not None

    def limit(self, last: int) -> Kept:
        """Of what comes in one piece, nothing stays but what is in the buffer, which it has from the beginning."""
        return SOME

    def outcome(self, rest: bytes) -> Outcome:
        if self._given and [frozen(message) for message in self._given] != self._messages:
            raise Broken(f"messages have changed after they were given out: {shown(self._messages)}")
        return Outcome(self._messages, self._error, b"", None)


def frozen(message: Request | Reply) -> Request | Reply:
    """As it is now."""
    if isinstance(message, Request):
        return message if type(message.payload) is bytes else message._replace(payload=bytes(message.payload))
    statuses = {context: list(extents) for context, extents in message.statuses.items()}
    return message._replace(data=bytes(message.data), statuses=statuses)


class RequestSide(Reader[RequestReader]):
    """A server takes requests. With `gives_back`, it gives payloads back as soon as it has them."""

    def __init__(self, agreement: Agreement, leftover: bytes, gives_back: bool) -> None:
        self._payload_max = agreement.payload_max
        self._gives_back = gives_back
        super().__init__(request_reader(agreement, leftover))

    def given(self, message: Request | Reply) -> None:
        assert isinstance(message, Request)
        if self._gives_back:
            self.codec.give_back(message.payload)
        else:
            super().given(message)

    def limit(self, last: int) -> Kept:
        """One payload, and what was given back."""
        return larger(super().limit(last), self._payload_max * (1 + SPARES_MAX * self._gives_back))


SIZES = (1 << 20, 0, 4096, 1 << 63, (1 << 64) - 1)
BLOCKS_MIN = (1, 512, 1 << 16)
BLOCKS_MAX = (1 << 16, 1 << 20, MAX_PAYLOAD_BYTES, (1 << 32) - 1)
CONTEXTS = ((1,), (), (1, 2, 7))
FLAGS_MAX = (1 << 13) - 1


def requests(data: bytes) -> None:
    """What a client sends afterwards.

    Settings: flags (two bytes); size; smallest and longest block; contexts; how much of the stream is left over from
    the handshake; a bit each: extended headers, payloads are given back.
    """
    given = decode(data)
    high, low, size, block_min, block_max, contexts, left, bits = given.settings
    agreement = Agreement(
        ExportInfo(
            "",
            pick(SIZES, size),
            "",
            TransmissionFlag.HAS_FLAGS,
            block_min=pick(BLOCKS_MIN, block_min),
            block_preferred=1 << 16,
            block_max=pick(BLOCKS_MAX, block_max),
        ),
        TransmissionFlag((high << 8 | low) & FLAGS_MAX | TransmissionFlag.HAS_FLAGS),
        True,
        pick(CONTEXTS, contexts),
        bool(bits & 1),
    )
    leftover, stream = given.stream[:left], given.stream[left:]
    whole = play(RequestSide(agreement, b"", False), given.stream, WHOLE)
    check_same(whole, play(RequestSide(agreement, leftover, bool(bits & 2)), stream, given.sizes))


class Mode(NamedTuple):
    """How a server replies."""

    structured: bool
    extended: bool


MODES = (Mode(True, False), Mode(True, True), Mode(False, False))
_READ, _STATUS = Command.READ, Command.BLOCK_STATUS
EXPECTATIONS = (
    None,
    Expectation(_READ, 0, 1000, 100),
    Expectation(_READ, CommandFlag.DF, 1000, 100),
    Expectation(_READ, 0, 1000, 0),
    Expectation(_READ, 0, 0, 1 << 16),
    Expectation(_READ, 0, 1 << 40, 1 << 20),
    Expectation(Command.WRITE, 0, 1000, 100),
    Expectation(Command.FLUSH, 0, 0, 0),
    Expectation(_STATUS, 0, 1000, 100),
    Expectation(_STATUS, 0, 0, 1 << 40),
    Expectation(_STATUS, CommandFlag.REQ_ONE, 1000, 100),
    Expectation(_STATUS, 0, 1000, 100, frozenset({7})),
    Expectation(Command.WRITE_ZEROES, 0, (1 << 64) - 1, 1),
)
ITEMS_OF_A_CHUNK = 4  # its type; what of the data it covers; or where its error is
ITEMS_OF_A_REPLY = 32


class ReplySide(Reader[ReplyReader]):
    """A client takes replies to these requests, and forgets each when it has been answered."""

    def __init__(self, mode: Mode, contexts: tuple[int, ...], waiting: dict[int, Expectation]) -> None:
        self._waiting = waiting
        self._contexts = contexts
        codec = ReplyReader(mode.structured, contexts, lambda cookie: waiting.get(cookie), mode.extended)  # noqa: PLW0108
        self._idle = codec.buffer().obj
        super().__init__(codec)

    def given(self, message: Request | Reply) -> None:
        assert isinstance(message, Reply)
        del self._waiting[message.cookie]
        super().given(message)

    def limit(self, last: int) -> Kept:
        """Data of the requests in flight, the words of their errors, their chunks; and the one chunk that is coming."""
        limit = larger(super().limit(last), self._coming())
        for expected in self._waiting.values():
            data = expected.length if expected.command == Command.READ else 0
            items = ITEMS_OF_A_REPLY + ITEMS_OF_A_CHUNK * chunks_max(expected)
            if expected.command == Command.BLOCK_STATUS:  # an extent is an item of a list, with two of its own
                items += 3 * len(self._contexts) * MAX_EXTENTS_COUNT
            limit = larger(limit, data + MAX_STRING_BYTES, items)
        return limit

    def _coming(self) -> int:
        """What it receives into, if that is no longer the buffer it has from the beginning."""
        if self._error is not None:
            return MAX_PAYLOAD_BYTES
        buffer = self.codec.buffer().obj
        assert isinstance(buffer, bytearray)
        if buffer is self._idle:
            return 0
        if len(buffer) > MAX_PAYLOAD_BYTES + 16:
            raise Broken(f"a chunk of {len(buffer)} bytes is waited for, at most {MAX_PAYLOAD_BYTES} allowed")
        return len(buffer)


def replies(data: bytes) -> None:
    """What a server sends afterwards.

    Settings: how replies were agreed on; contexts; what is in flight under the cookies 0 to 5.
    """
    given = decode(data)
    mode, contexts, *codes = given.settings

    def make() -> ReplySide:
        asked = {cookie: pick(EXPECTATIONS, code) for cookie, code in enumerate(codes)}
        waiting = {cookie: expected for cookie, expected in asked.items() if expected is not None}
        return ReplySide(pick(MODES, mode), pick(CONTEXTS, contexts), waiting)

    check_same(play(make(), given.stream, WHOLE), play(make(), given.stream, given.sizes))


Target = Callable[[bytes], None]
TARGETS: dict[str, Target] = {
    "server-handshake": server_handshake,
    "client-handshake": client_handshake,
    "requests": requests,
    "replies": replies,
}
