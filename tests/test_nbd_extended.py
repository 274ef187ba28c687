"""Extended headers.

Source: NBD protocol, branch `extension-ext-header`: "Request message", "Extended reply chunk message",
NBD_OPT_EXTENDED_HEADERS, NBD_FLAG_BLOCK_STATUS_PAYLOAD, NBD_CMD_FLAG_PAYLOAD_LEN, NBD_REPLY_TYPE_BLOCK_STATUS_EXT.

Fuzzing holds the invariant of `test_nbd_requests.py`, with these headers.
"""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_nbd_requests import (
    ALL,
    COOKIE,
    EVERYTHING,
    LIMIT,
    MIB,
    READ_ONLY,
    SIZE,
    C,
    F,
    T,
    check_noise,
    comparable,
    feed,
)

from impl.errors import PeerError
from impl.nbd import wire
from impl.nbd.constants import ChunkType, ErrorValue, Option, OptionReply, ReplyFlag
from impl.nbd.replies import ExtendedReplies, StructuredReplies, replies_of
from impl.nbd.reply_reader import Expectation, ReplyReader
from impl.nbd.requests import RECEIVE_BUFFER_BYTES, ExtendedRequestReader, Request, RequestReader, request_reader
from impl.nbd.server_handshake import ExportInfo, Phase, ServerHandshake

EPERM, EINVAL, ENOSPC = ErrorValue.EPERM, ErrorValue.EINVAL, ErrorValue.ENOSPC
PAYLOAD = F.PAYLOAD_LEN
HUGE_SIZE = 1 << 62


def extended(agreement):
    return replace(agreement, extended=True, flags=agreement.flags | T.BLOCK_STATUS_PAYLOAD)


HERE = extended(replace(EVERYTHING, contexts=(1, 2, 7)))
HUGE = replace(HERE, export=replace(HERE.export, size=HUGE_SIZE))
NO_PAYLOADS = replace(HERE, flags=ALL)
SMALL = replace(HERE, export=replace(HERE.export, size=4000, block_max=2500))


def status(length, *contexts):
    return wire.pack_status_request(length, contexts)


# What is asked of a reader: command, flags, offset, length in the header, and the payload behind it, if any; what is
# made of it: the length of the range, the payload that is kept, and the error.
REQUESTS = [
    ("a read is in order", HERE, C.READ, 0, 0, 512, b"", 512, b"", 0),
    ("a read of more than 32 MiB is invalid", HERE, C.READ, 0, 0, LIMIT + 1, b"", LIMIT + 1, b"", EINVAL),
    ("a read far over the end is invalid", HERE, C.READ, 0, 1, (1 << 64) - 1, b"", (1 << 64) - 1, b"", EINVAL),
    ("a read has no payload", HERE, C.READ, PAYLOAD, 0, 5, b"hello", 5, b"", EINVAL),
    ("a write has one", HERE, C.WRITE, PAYLOAD, 0, 5, b"hello", 5, b"hello", 0),
    ("with FUA as well", HERE, C.WRITE, PAYLOAD | F.FUA, 0, 5, b"hello", 5, b"hello", 0),
    ("a write without is invalid", HERE, C.WRITE, 0, 0, 512, b"", 512, b"", EINVAL),
    ("a write of nothing needs none", HERE, C.WRITE, 0, 0, 0, b"", 0, b"", 0),
    ("a write over the end finds no space", HERE, C.WRITE, PAYLOAD, SIZE, 5, b"hello", 5, b"", ENOSPC),
    ("a write to a read-only export", extended(READ_ONLY), C.WRITE, PAYLOAD, 0, 5, b"hello", 5, b"", EPERM),
    ("a trim may be as long as a disk", HUGE, C.TRIM, 0, 0, HUGE_SIZE, b"", HUGE_SIZE, b"", 0),
    ("zeroes may be as long as a disk", HUGE, C.WRITE_ZEROES, F.NO_HOLE, 0, HUGE_SIZE, b"", HUGE_SIZE, b"", 0),
    ("zeroes over the end find no space", HUGE, C.WRITE_ZEROES, 0, 1, HUGE_SIZE, b"", HUGE_SIZE, b"", ENOSPC),
    ("zeroes have no payload", HUGE, C.WRITE_ZEROES, PAYLOAD, 0, 5, b"hello", 5, b"", EINVAL),
    ("a cache may be as long as a disk", HUGE, C.CACHE, 0, 0, HUGE_SIZE, b"", HUGE_SIZE, b"", 0),
    ("a flush has no range", HERE, C.FLUSH, 0, (1 << 64) - 1, (1 << 64) - 1, b"", (1 << 64) - 1, b"", 0),
    ("a flush has no payload", HERE, C.FLUSH, PAYLOAD, 0, 5, b"hello", 5, b"", EINVAL),
    ("a status may be as long as a disk", HUGE, C.BLOCK_STATUS, 0, 0, HUGE_SIZE, b"", HUGE_SIZE, b"", 0),
    ("a status of some contexts", HERE, C.BLOCK_STATUS, PAYLOAD, 0, 16, status(512, 7, 1), 512, status(512, 7, 1), 0),
    ("of one extent", HERE, C.BLOCK_STATUS, PAYLOAD | F.REQ_ONE, 0, 12, status(512, 2), 512, status(512, 2), 0),
    (
        "whose range is longer than 4 GiB",
        HUGE,
        C.BLOCK_STATUS,
        PAYLOAD,
        0,
        12,
        status(1 << 40, 1),
        1 << 40,
        status(1 << 40, 1),
        0,
    ),
    ("a status of an unknown context", HERE, C.BLOCK_STATUS, PAYLOAD, 0, 12, status(512, 3), 512, b"", EINVAL),
    ("a status of a context twice", HERE, C.BLOCK_STATUS, PAYLOAD, 0, 16, status(512, 1, 1), 512, b"", EINVAL),
    ("a status of no context", HERE, C.BLOCK_STATUS, PAYLOAD, 0, 8, status(512), 512, b"", EINVAL),
    ("a status with a payload of nothing", HERE, C.BLOCK_STATUS, PAYLOAD, 0, 0, b"", 0, b"", EINVAL),
    ("a status of half a context", HERE, C.BLOCK_STATUS, PAYLOAD, 0, 10, status(512, 1)[:10], 10, b"", EINVAL),
    ("a status of half a length", HERE, C.BLOCK_STATUS, PAYLOAD, 0, 4, bytes(4), 4, b"", EINVAL),
    ("a status of more contexts than there are", HERE, C.BLOCK_STATUS, PAYLOAD, 0, 24, bytes(24), 24, b"", EINVAL),
    ("a status of some, over the end", HERE, C.BLOCK_STATUS, PAYLOAD, SIZE, 12, status(1, 1), 1, status(1, 1), EINVAL),
    ("a status of some, of nothing", HERE, C.BLOCK_STATUS, PAYLOAD, 0, 12, status(0, 1), 0, status(0, 1), EINVAL),
    ("a status of some, unadvertised", NO_PAYLOADS, C.BLOCK_STATUS, PAYLOAD, 0, 12, status(512, 1), 12, b"", EINVAL),
    ("an unknown command with a payload", HERE, 77, PAYLOAD, 0, 5, b"hello", 5, b"", EINVAL),
    ("an unknown command without", HERE, 77, 0, 0, 1 << 40, b"", 1 << 40, b"", EINVAL),
]
CLAIMS = [case[0] for case in REQUESTS]


def packed(command, flags, cookie, offset, length, payload=b""):
    return wire.pack_extended_request(command, flags, cookie, offset, length) + payload


FOLLOWER = packed(C.READ, 0, 99, 512, 512)


@pytest.mark.parametrize(
    ("claim", "agreement", "command", "flags", "offset", "length", "payload", "range_length", "kept", "error"),
    REQUESTS,
    ids=CLAIMS,
)
def test_a_request_is_judged_and_what_follows_is_in_sync(
    claim, agreement, command, flags, offset, length, payload, range_length, kept, error
):
    data = packed(command, flags, COOKIE, offset, length, payload)
    for sizes, left in (((), 0), ((1,) * len(data), 0), ((), len(data)), ((7,) * 20, 40)):
        reader = request_reader(agreement, data[:left])
        got = comparable(feed(reader, data[left:] + FOLLOWER, sizes))
        assert [request.cookie for request in got] == [COOKIE, 99]
        found = got[0]
        assert bool(found.message) == bool(error)
        wanted = Request(command, flags, COOKIE, offset, range_length, b"" if error else kept, error, found.message)
        assert found._replace(payload=b"" if error else found.payload) == wanted


def test_each_side_reads_the_headers_that_were_agreed_on():
    assert type(request_reader(EVERYTHING)) is RequestReader
    assert type(request_reader(HERE)) is ExtendedRequestReader
    assert isinstance(replies_of(HERE), ExtendedReplies)
    assert isinstance(replies_of(EVERYTHING), StructuredReplies)
    for reader, data in (
        (request_reader(HERE), wire.pack_request(0, 0, 1, 0, 512) + bytes(4)),
        (request_reader(EVERYTHING), FOLLOWER),
    ):
        with pytest.raises(PeerError, match="request magic"):
            feed(reader, data, ())


def test_a_payload_that_is_too_long_for_anybody_ends_the_connection():
    for command in (C.WRITE, C.BLOCK_STATUS, C.READ):
        feed(request_reader(HERE), packed(command, PAYLOAD, 1, 0, LIMIT), ())
        with pytest.raises(PeerError, match="at most"):
            feed(request_reader(HERE), packed(command, PAYLOAD, 1, 0, LIMIT + 1), ())


def test_nothing_of_a_payload_is_kept_that_a_request_may_not_have():
    reader = request_reader(HERE)
    feed(reader, packed(C.TRIM, PAYLOAD, 1, 0, LIMIT), ())
    left = LIMIT
    while left:
        room = len(reader.buffer())
        assert room <= RECEIVE_BUFFER_BYTES
        reader.received(min(room, left))
        left -= min(room, left)
        found = reader.next()
    assert (found.error, found.payload) == (EINVAL, b"")


def test_a_disconnect_has_no_rules_and_nothing_behind_it():
    got = feed(request_reader(HERE), packed(C.DISC, 0xFF, 1, 2, 3) + FOLLOWER, ())
    assert got == [Request(C.DISC, 0xFF, 1, 2, 3, b"", 0, "")]


requests = st.tuples(
    st.sampled_from([0, 1, 3, 4, 5, 6, 7, 9]),
    st.sampled_from([0, 0, 0, 1, 2, 32, 33, 64]),
    st.integers(0, 2000),
    st.integers(0, 2500),
)


def encode(listed):
    return b"".join(
        packed(command, flags, cookie, offset, length, b"p" * length if flags & PAYLOAD else b"")
        for cookie, (command, flags, offset, length) in enumerate(listed)
    )


@settings(max_examples=200, deadline=None)
@given(st.lists(requests, max_size=60), st.lists(st.integers(1, 5000), max_size=60), st.integers(0, 5000))
def test_the_same_requests_come_out_however_the_bytes_arrive(listed, sizes, left):
    data = encode(listed)
    whole = comparable(feed(request_reader(SMALL), data, ()))
    split = comparable(feed(request_reader(SMALL, data[:left]), data[left:], sizes))
    assert split == whole
    assert [(request.command, request.flags, request.cookie, request.offset) for request in whole] == [
        (command, flags, cookie, offset) for cookie, (command, flags, offset, _) in enumerate(listed)
    ]


@settings(max_examples=300, deadline=None)
@given(st.lists(requests, min_size=1, max_size=10), st.data())
def test_no_bytes_upset_the_reader(listed, data):
    check_noise(lambda: request_reader(SMALL), encode(listed), SMALL.payload_max, data)


# Replies.

SAY = ExtendedReplies()
READ = Request(C.READ, 0, COOKIE, 4096, 1024, b"", 0, "")
STATUS = Request(C.BLOCK_STATUS, 0, COOKIE, 4096, 1 << 40, b"", 0, "")
HEADER = bytes.fromhex("6e8a278c")
DONE = ReplyFlag.DONE


def chunk(kind, payload, *, done=True, cookie=COOKIE, offset=4096, length=None):
    count = len(payload) if length is None else length
    return wire.EXTENDED_CHUNK.pack(0x6E8A278C, DONE if done else 0, kind, cookie, offset, count) + payload


SAID = [
    ("success", SAY.success(READ), chunk(ChunkType.NONE, b"")),
    ("the end", SAY.end(READ), chunk(ChunkType.NONE, b"")),
    ("an error", SAY.error(READ, 5, "no"), chunk(ChunkType.ERROR, bytes.fromhex("00000005 0002") + b"no")),
    (
        "an error somewhere",
        SAY.error_offset(READ, 5, "", 5000),
        chunk(ChunkType.ERROR_OFFSET, bytes.fromhex("00000005 0000 0000000000001388"), done=False),
    ),
    (
        "data",
        SAY.data_header(READ, 4100, 3, True) + b"abc",
        chunk(ChunkType.OFFSET_DATA, bytes.fromhex("0000000000001004") + b"abc"),
    ),
    (
        "a hole",
        SAY.hole(READ, 4096, 1024, False),
        chunk(ChunkType.OFFSET_HOLE, bytes.fromhex("0000000000001000 00000400"), done=False),
    ),
    (
        "extents",
        SAY.block_status(STATUS, 7, [(1 << 40, 3), (512, 0)], True),
        chunk(
            ChunkType.BLOCK_STATUS_EXT,
            bytes.fromhex("00000007 00000002 0000010000000000 0000000000000003 0000000000000200 0000000000000000"),
        ),
    ),
]


@pytest.mark.parametrize(("claim", "said", "expected"), SAID, ids=[case[0] for case in SAID])
def test_a_reply_is_these_bytes(claim, said, expected):
    assert said == expected
    assert said.startswith(HEADER)


def take(expectation, data, contexts=(7,)):
    """The one reply that a client makes of these bytes, whole and byte by byte."""
    found = []
    for size in (len(data), 1):
        reader = ReplyReader(True, contexts, {COOKIE: expectation}.get, extended=True)
        got = []
        for at in range(0, len(data), size):
            piece = data[at : at + size]
            buffer = reader.buffer()
            buffer[: len(piece)] = piece
            reader.received(len(piece))
            got += [*iter(reader.next, None)]
        assert len(got) == 1
        found.append(got[0])
    assert found[0] == found[1]
    return found[0]


READING = Expectation(C.READ, 0, 4096, 8)
ASKING = Expectation(C.BLOCK_STATUS, 0, 4096, 1 << 41)
WRITING = Expectation(C.WRITE, PAYLOAD, 4096, 8)


def data_chunk(offset, data, **options):
    return chunk(ChunkType.OFFSET_DATA, offset.to_bytes(8, "big") + data, **options)


def status_chunk(context, *extents, count=None, **options):
    listed = wire.pack_extended_descriptors(extents)
    head = wire.CHUNK_CONTEXT_EXT.pack(context, len(extents) if count is None else count)
    return chunk(ChunkType.BLOCK_STATUS_EXT, head + listed, **options)


def test_a_client_puts_a_reply_together():
    pieces = data_chunk(4100, b"efgh", done=False) + data_chunk(4096, b"abcd")
    assert bytes(take(READING, pieces).data) == b"abcdefgh"
    assert take(WRITING, chunk(ChunkType.NONE, b"")).error == 0
    assert take(WRITING, chunk(ChunkType.ERROR, bytes.fromhex("0000001c 0000"))).error == ENOSPC
    found = take(ASKING, status_chunk(7, (1 << 40, 3), (1, 1 << 63)))
    assert found.statuses == {7: [(1 << 40, 3), (1, 1 << 63)]}


def test_of_some_contexts_a_client_expects_these_and_no_other():
    some = ASKING._replace(contexts=frozenset({7}))
    assert take(some, status_chunk(7, (5, 0)), contexts=(1, 7)).statuses == {7: [(5, 0)]}
    with pytest.raises(PeerError):
        take(some, status_chunk(1, (5, 0)), contexts=(1, 7))


WRONG = [
    ("a compact header", READING, wire.CHUNK.pack(0x668E33EF, 1, 0, COOKIE, 0) + bytes(12)),
    ("a simple reply", READING, wire.SIMPLE_REPLY.pack(0x67446698, 0, COOKIE) + bytes(16)),
    ("another offset", WRITING, chunk(ChunkType.NONE, b"", offset=4097)),
    ("an unknown cookie", WRITING, chunk(ChunkType.NONE, b"", cookie=1)),
    ("extents of 32 bits", ASKING, chunk(ChunkType.BLOCK_STATUS, bytes.fromhex("00000007 00000001 00000000"))),
    ("a wrong count of extents", ASKING, status_chunk(7, (5, 0), count=2)),
    ("half an extent", ASKING, chunk(ChunkType.BLOCK_STATUS_EXT, bytes.fromhex("00000007 00000001") + bytes(24))),
    ("an extent of nothing", ASKING, status_chunk(7, (0, 0))),
    ("an unknown context", ASKING, status_chunk(8, (5, 0))),
    ("a success without data", READING, chunk(ChunkType.NONE, b"")),
    ("data of somewhere else", READING, data_chunk(4104, b"x")),
    ("an unknown chunk", READING, chunk(99, b"")),
    ("a chunk without end", READING, chunk(ChunkType.OFFSET_DATA, b"", length=1 << 40)),
]


@pytest.mark.parametrize(("claim", "expectation", "data"), WRONG, ids=[case[0] for case in WRONG])
def test_a_client_does_not_believe(claim, expectation, data):
    with pytest.raises(PeerError):
        take(expectation, data)


# The handshake.

DISK = ExportInfo("disk", 1 << 20, "", T.HAS_FLAGS)
FIXED = bytes.fromhex("00000003")
EXTENDED = wire.pack_option(Option.EXTENDED_HEADERS)
STRUCTURED = wire.pack_option(Option.STRUCTURED_REPLY)
GO = wire.pack_option(Option.GO, wire.pack_info_request("disk"))
SET = wire.pack_option(Option.SET_META_CONTEXT, wire.pack_meta_query("disk", ("base:allocation",)))


def shaken(data):
    handshake = ServerHandshake({"disk": DISK}, "disk")
    handshake.receive(FIXED + data)
    return handshake


def kinds(handshake):
    data, found = handshake.data_to_send()[wire.GREETING.size :], []
    while data:
        _, _, kind, length = wire.OPTION_REPLY.unpack_from(data)
        found.append(kind)
        data = data[wire.OPTION_REPLY.size + length :]
    return found


def test_extended_headers_include_structured_replies_and_are_not_taken_back():
    handshake = shaken(EXTENDED + STRUCTURED + SET + GO)
    assert kinds(handshake)[:2] == [OptionReply.ACK, OptionReply.ERR_EXT_HEADER_REQD]
    agreement = handshake.agreement
    assert (agreement.extended, agreement.structured, agreement.contexts) == (True, True, (1,))
    handshake = shaken(STRUCTURED + EXTENDED + GO)
    assert kinds(handshake)[:2] == [OptionReply.ACK, OptionReply.ACK]
    assert handshake.agreement.extended


def test_payloads_of_a_status_are_advertised_to_those_who_have_contexts_to_choose_from():
    for options, advertised in ((EXTENDED + SET, True), (EXTENDED, False), (STRUCTURED + SET, False)):
        assert bool(shaken(options + GO).agreement.flags & T.BLOCK_STATUS_PAYLOAD) == advertised


def test_who_has_asked_for_extended_headers_must_not_choose_an_export_as_the_oldest_do():
    handshake = shaken(EXTENDED + wire.pack_option(Option.EXPORT_NAME, b"disk"))
    assert handshake.phase is Phase.CLOSED
    assert "extended" in handshake.error


def test_lengths_of_payloads_are_bounded_however_long_ranges_are():
    assert HERE.payload_max == LIMIT
    assert (HERE.length_max, EVERYTHING.length_max) == ((1 << 64) - 1, (1 << 32) - 1)
    assert len(feed(request_reader(HERE), packed(C.WRITE, PAYLOAD, 1, 0, MIB, bytes(MIB)), ())[0].payload) == MIB
