"""Where the fuzzer begins: conversations that are in order, and some that go to the limits, each split in several ways.

A client and a server shake hands with each other, and what each has said is a seed for the other's target; requests
and replies are packed by `impl/nbd` itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from check.fuzz.stream import encode
from check.fuzz.targets import DEFAULTS, EXPECTATIONS, EXPORTS, GOALS, MODES, NAMES, QUERIES, TLS, Mode, pick
from impl.nbd import wire
from impl.nbd.agreement import Agreement, ExportInfo
from impl.nbd.client_handshake import ClientHandshake, Goal
from impl.nbd.constants import (
    EXTENDED_REPLY_MAGIC,
    EXTENDED_REQUEST_MAGIC,
    INIT_MAGIC,
    OLDSTYLE_MAGIC,
    OPTION_MAGIC,
    OPTION_REPLY_MAGIC,
    REQUEST_MAGIC,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    Command,
    CommandFlag,
    Option,
    OptionReply,
    TransmissionFlag,
)
from impl.nbd.replies import Replies, replies_of
from impl.nbd.reply_reader import Expectation
from impl.nbd.requests import Request
from impl.nbd.server_handshake import ServerHandshake

WAYS = ((), (1, 1, 1), (3, 7, 40))  # sizes of pieces: whole, byte by byte, and anyhow
OFTEN, MUCH = 255, 255  # codes: 4,096 times, 512 KiB
EVERY_FLAG = (1 << 13) - 1 & ~TransmissionFlag.READ_ONLY


def seeds(target: str) -> list[bytes]:
    """Of this target."""
    return list(_SEEDS[target]())


def words() -> list[bytes]:
    """What no mutation would come upon soon: the fuzzer puts it in."""
    long = (INIT_MAGIC, OPTION_MAGIC, OLDSTYLE_MAGIC, OPTION_REPLY_MAGIC)
    short = (
        REQUEST_MAGIC,
        EXTENDED_REQUEST_MAGIC,
        SIMPLE_REPLY_MAGIC,
        STRUCTURED_REPLY_MAGIC,
        EXTENDED_REPLY_MAGIC,
        *OptionReply,
    )
    return [magic.to_bytes(8, "big") for magic in long] + [number.to_bytes(4, "big") for number in short]


# Handshakes.


def _conversations() -> Iterator[tuple[list[int], bytes, list[int], bytes]]:
    """For both sides: their settings, and what they are told."""
    everything = product(range(len(GOALS)), range(len(TLS)), range(16))
    for number, (goal, tls, bits) in enumerate(everything):
        name, queries = number % 2, number % len(QUERIES)
        server = ServerHandshake(EXPORTS[1], DEFAULTS[0], TLS[tls])
        client = ClientHandshake(
            NAMES[name],
            GOALS[goal],
            tls=bool(bits & 1),
            extended=bool(bits & 2),
            structured=not bits & 4,
            contexts=QUERIES[queries],
            export_name_only=bool(bits & 8),
        )
        asked, told = _talk(client, server)
        yield [tls, 1, 0, 0], asked, [goal, name, queries, bits], told


def _talk(client: ClientHandshake, server: ServerHandshake) -> tuple[bytes, bytes]:
    """What the client has said, and what the server has, until both are silent."""
    asked, told = b"", b""
    while True:
        said = server.data_to_send()
        client.receive(said)
        if client.wants_tls:
            client.tls_started()
            server.tls_started()
        answer = client.data_to_send()
        server.receive(answer)
        asked, told = asked + answer, told + said
        if not answer:
            return asked, told


def _server_handshakes() -> Iterator[bytes]:
    for number, (settings, asked, _, _) in enumerate(_conversations()):
        yield encode(settings, asked + b"behind", pick(WAYS, number))
    for flags, sizes in product(range(4), WAYS):
        oldest = wire.CLIENT_FLAGS.pack(flags) + wire.pack_option(Option.EXPORT_NAME, b"disk") + b"behind"
        yield encode((0, 1), oldest, sizes)
    hello = wire.CLIENT_FLAGS.pack(3)
    for data in (wire.pack_option(Option.LIST), wire.pack_option(99), wire.pack_option(Option.STARTTLS)):
        for late, sizes in product((0, 1), WAYS):
            yield encode((1, 1, 0, late), hello + data, sizes, repeats=OFTEN, prefix=len(hello))
    yield encode((0, 1), hello + wire.pack_option(Option.EXTENDED_HEADERS) + wire.pack_option(Option.STRUCTURED_REPLY))
    long = wire.OPTION.pack(OPTION_MAGIC, Option.GO, 1 << 19) + wire.pack_option(Option.ABORT)
    for sizes in WAYS:
        yield encode((0,), hello + long, sizes, prefix=len(hello), filler=MUCH, at=wire.OPTION.size)


def _client_handshakes() -> Iterator[bytes]:
    for number, (_, _, settings, told) in enumerate(_conversations()):
        yield encode(settings, told + b"behind", pick(WAYS, number))
    for flags, sizes in product(range(4), WAYS):
        chosen = wire.EXPORT_NAME_REPLY.pack(1 << 20, 1) + bytes(124)
        yield encode((0, 1, 0, 8), wire.pack_greeting(flags) + chosen + b"behind", sizes)
    greeting = wire.pack_greeting(3)
    entry = wire.pack_option_reply(Option.LIST, OptionReply.SERVER, wire.pack_server_entry("disk", "a" * 200))
    for sizes in WAYS:
        yield encode((GOALS.index(Goal.LIST),), greeting + entry, sizes, repeats=OFTEN, prefix=len(greeting))


# Transmission.


def _packed(extended: bool) -> bytes:
    """One request of each kind."""
    pack = wire.pack_extended_request if extended else wire.pack_request
    payload_len = int(CommandFlag.PAYLOAD_LEN) if extended else 0
    listed = [
        pack(command, flags, cookie, 512, 512)
        for cookie, (command, flags) in enumerate(product(Command, (0, CommandFlag.FUA, CommandFlag.REQ_ONE)))
        if command not in (Command.DISC, Command.WRITE)
    ]
    listed += [pack(Command.WRITE, payload_len, 99, offset, 8) + b"8 bytes." for offset in (0, 1 << 20)]
    if extended:
        some = wire.pack_status_request(512, (1, 7))
        listed.append(pack(Command.BLOCK_STATUS, payload_len, 98, 0, len(some)) + some)
        listed.append(pack(Command.TRIM, payload_len, 97, 0, len(some)) + some)
    listed.append(pack(Command.DISC, 0, 96, 0, 0))
    return b"".join(listed)


def _requests() -> Iterator[bytes]:
    high, low = EVERY_FLAG.to_bytes(2, "big")
    for extended, flags, sizes in product((0, 1), ((high, low), (0, 1), (0, 3)), WAYS):
        yield encode((*flags, 0, 0, 0, 2, 40, extended), _packed(bool(extended)), sizes)
    for extended, sizes in product((0, 1), WAYS):
        pack = wire.pack_extended_request if extended else wire.pack_request
        payload_len = int(CommandFlag.PAYLOAD_LEN) if extended else 0
        settings = (high, low, 0, 0, 2, 2, 0, extended | 2)
        yield encode(settings, pack(Command.READ, 0, 1, 0, 512), sizes, repeats=OFTEN)
        write = pack(Command.WRITE, payload_len, 1, 0, 1 << 16)
        yield encode(settings, write, sizes, repeats=160, filler=MUCH - 24, at=len(write))  # 64 KiB, eight times
        write = pack(Command.WRITE, payload_len, 1, 0, 1 << 14)
        small = (high, low, 0, 0, 0, 2, 0, extended | 2)  # 16 KiB, 64 times, received by 4 KiB
        yield encode(small, write, (200, 200, 200), repeats=183, filler=208, at=len(write))
        yield encode(settings, pack(Command.READ, 0, 1, 0, 512) + bytes(100), sizes)
        refused = pack(Command.WRITE, payload_len, 1, 1 << 20, 1 << 19)
        yield encode(settings, refused, sizes, filler=MUCH, at=len(refused))


def _reply(say: Replies, cookie: int, expected: Expectation, contexts: tuple[int, ...], is_simple: bool) -> bytes:
    """A reply that is in order, in as many chunks as its kind has."""
    command, flags, offset, length, some = expected
    request = Request(command, flags, cookie, offset, length, b"", 0, "")
    if command == Command.BLOCK_STATUS and not is_simple:
        listed = sorted(contexts if some is None else some)
        return b"".join(say.block_status(request, each, [(100, 3)], each == listed[-1]) for each in listed)
    if command != Command.READ or not length:
        return say.end(request)
    if is_simple or flags & CommandFlag.DF:
        return say.data_header(request, offset, length, True) + b"d" * length
    half = length // 2
    first, second = (offset, offset + half)[:: -1 if cookie % 2 else 1]
    data = say.data_header(request, first, half, False) + b"d" * half
    return data + say.hole(request, second, half, False) + say.end(request)


def _replies_of(mode: Mode) -> Replies:
    flags = TransmissionFlag.HAS_FLAGS
    return replies_of(Agreement(ExportInfo("", 1 << 20, "", flags), flags, mode.structured, (), mode.extended))


def _short() -> list[int]:
    """Codes of requests whose replies are short."""
    of_all = enumerate(EXPECTATIONS)
    return [code for code, expected in of_all if expected and not 1 << 16 <= expected.length <= 1 << 20]


def _replies() -> Iterator[bytes]:
    for at, mode in enumerate(MODES):
        say, is_simple = _replies_of(mode), not mode.structured
        for first, sizes in product((0, 3), WAYS):
            codes = [pick(_short(), first + cookie) for cookie in range(6)]
            asked = [(cookie, EXPECTATIONS[code]) for cookie, code in enumerate(codes)]
            told = [_reply(say, cookie, expected, (1, 2, 7), is_simple) for cookie, expected in asked if expected]
            yield encode((at, 2, *codes), b"".join(told), sizes)
        request = Request(Command.READ, 0, 0, 1000, 100, b"", 0, "")
        yield encode((at, 0, 1), say.error(request, 5, "no"))
        if not is_simple:
            error = say.error_offset(request, 5, "", 1050)
            yield encode((at, 0, 1), error + say.data_header(request, 1000, 51, True) + b"d" * 51)
            for sizes in WAYS:  # a reply of many chunks, none of which is the last
                yield encode((at, 0, 1), say.error_offset(request, 5, "", 1000), sizes, repeats=OFTEN)


_SEEDS = {
    "server-handshake": _server_handshakes,
    "client-handshake": _client_handshakes,
    "requests": _requests,
    "replies": _replies,
}
