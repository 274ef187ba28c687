"""Replies, encoded and read back.

Source: NBD protocol, "Simple reply message", "Structured reply chunk message", "Structured reply types".

Fuzzing holds one invariant: whatever bytes come, however they are split, `next` gives replies or raises PeerError.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from impl.errors import PeerError
from impl.nbd import replies, wire
from impl.nbd.constants import MAX_EXTENTS_COUNT, ChunkType, Command, CommandFlag, ErrorValue
from impl.nbd.reply_reader import CHUNKS_COUNT, Expectation, Reply, ReplyReader, chunks_max

C, F = Command, CommandFlag
EIO, EINVAL = ErrorValue.EIO, ErrorValue.EINVAL
DATA, HOLE, NONE = ChunkType.OFFSET_DATA, ChunkType.OFFSET_HOLE, ChunkType.NONE
STATUS, ERROR, ERROR_OFFSET = ChunkType.BLOCK_STATUS, ChunkType.ERROR, ChunkType.ERROR_OFFSET

ENCODED = [  # (bytes on the wire, what encodes them)
    ("67446698 00000000 0000000000000007", replies.simple_reply(7)),
    ("67446698 00000005 0000000000000007", replies.simple_reply(7, EIO)),
    (
        "668e33ef 0001 0001 0000000000000007 00000208 0000000000001000",
        replies.data_chunk_header(7, 4096, 512, True),
    ),
    (
        "668e33ef 0000 0002 0000000000000007 0000000c 0000000000001000 00000200",
        replies.hole_chunk(7, 4096, 512, False),
    ),
    ("668e33ef 0001 0000 0000000000000007 00000000", replies.done_chunk(7)),
    ("668e33ef 0001 8001 0000000000000007 00000008 00000005 0002 6869", replies.error_chunk(7, EIO, "hi")),
    (
        "668e33ef 0001 8002 0000000000000007 00000010 00000005 0002 6869 0000000000001000",
        replies.error_offset_chunk(7, EIO, "hi", 4096),
    ),
    (
        "668e33ef 0001 0005 0000000000000007 00000014 00000001 00000200 00000003 00001000 00000000",
        replies.block_status_chunk(7, 1, [(512, 3), (4096, 0)], True),
    ),
]

READ = Expectation(C.READ, 0, 1000, 100)
READ_DF = Expectation(C.READ, F.DF, 1000, 100)
READ_NOTHING = Expectation(C.READ, 0, 1000, 0)
WRITE = Expectation(C.WRITE, 0, 1000, 100)
EXTENTS = Expectation(C.BLOCK_STATUS, 0, 1000, 100)
EXTENT = Expectation(C.BLOCK_STATUS, F.REQ_ONE, 1000, 100)
LARGE = Expectation(C.READ, 0, 0, 1 << 20)


def data(offset, length, done=False, byte=b"d"):
    return replies.data_chunk_header(7, offset, length, done) + byte * length


def hole(offset, length, done=False):
    return replies.hole_chunk(7, offset, length, done)


def status(*descriptors, context=1, done=True):
    return replies.block_status_chunk(7, context, descriptors, done)


def chunk(chunk_type, payload=b"", done=True):
    return wire.CHUNK.pack(0x668E33EF, done, chunk_type, 7, len(payload)) + payload


def read(content, *chunks):
    return Reply(7, 0, "", None, content, {}, chunks)


def failed(error, message="", at=None, *chunks):
    return Reply(7, error, message, at, b"", {}, chunks)


DONE = replies.done_chunk(7)
GOOD = [  # (claim, request, bytes, reply); the data of failed reads are not looked at
    ("one chunk of data", READ, data(1000, 100, True), read(b"d" * 100, DATA)),
    ("one hole", READ, hole(1000, 100, True), read(bytes(100), HOLE)),
    ("data, then the end", READ, data(1000, 100) + DONE, read(b"d" * 100, DATA, NONE)),
    (
        "chunks in any order",
        READ,
        data(1060, 40) + hole(1010, 50) + data(1000, 10, True, b"e"),
        read(b"e" * 10 + bytes(50) + b"d" * 40, DATA, HOLE, DATA),
    ),
    ("data unfragmented", READ_DF, data(1000, 100) + DONE, read(b"d" * 100, DATA, NONE)),
    ("a mebibyte", LARGE, data(0, 1 << 20, True), read(b"d" * (1 << 20), DATA)),
    ("an empty read", READ_NOTHING, DONE, read(b"", NONE)),
    ("an error to a read", READ, replies.error_chunk(7, EIO, "bad disk"), failed(EIO, "bad disk", None, ERROR)),
    (
        "an error amid the data",
        READ,
        data(1000, 50) + replies.error_offset_chunk(7, EIO, "", 1010, False) + hole(1050, 50) + DONE,
        failed(EIO, "", 1010, DATA, ERROR_OFFSET, HOLE, NONE),
    ),
    (
        "two errors, of which the first counts",
        READ,
        replies.error_offset_chunk(7, EIO, "one", 1050, False) + replies.error_offset_chunk(7, EINVAL, "two", 1060),
        failed(EIO, "one", 1050, ERROR_OFFSET, ERROR_OFFSET),
    ),
    ("an unknown error", READ, chunk(0x8077, b"\0\0\0\5\0\1xyz"), failed(EIO, "x", None, 0x8077)),
    ("an error number we do not know", WRITE, replies.error_chunk(7, 9999), failed(9999, "", None, ERROR)),
    ("a simple success", WRITE, replies.simple_reply(7), failed(0)),
    ("a simple error", WRITE, replies.simple_reply(7, EIO), failed(EIO)),
    ("a structured success", WRITE, DONE, failed(0, "", None, NONE)),
    ("extents", EXTENTS, status((60, 0), (4000, 3)), Reply(7, 0, "", None, b"", {1: [(60, 0), (4000, 3)]}, (STATUS,))),
    ("fewer extents", EXTENTS, status((10, 1)), Reply(7, 0, "", None, b"", {1: [(10, 1)]}, (STATUS,))),
    ("one extent", EXTENT, status((100, 2)), Reply(7, 0, "", None, b"", {1: [(100, 2)]}, (STATUS,))),
    ("no status but an error", EXTENTS, replies.error_chunk(7, EIO), failed(EIO, "", None, ERROR)),
    ("a flag we do not know", READ, b"\x66\x8e\x33\xef\xff\xff" + data(1000, 100)[6:], read(b"d" * 100, DATA)),
]
BAD = [  # (claim, request, bytes)
    ("an unknown magic", WRITE, b"\0" * 20),
    ("a request as reply", WRITE, wire.pack_request(0, 0, 7, 0, 0)),
    ("a cookie nobody waits for", WRITE, replies.simple_reply(8)),
    ("a chunk for a cookie nobody waits for", WRITE, replies.done_chunk(8)),
    ("a second reply", WRITE, replies.simple_reply(7) * 2),
    ("a chunk behind the last", READ, data(1000, 100, True) + DONE),
    ("a simple reply to a read", READ, replies.simple_reply(7) + b"d" * 100),
    ("a simple error to a read", READ, replies.simple_reply(7, EIO)),
    ("a simple success of a status", EXTENTS, replies.simple_reply(7)),
    ("a simple reply amid chunks", EXTENTS, status((10, 0), done=False) + replies.simple_reply(7, EIO)),
    ("data before the request", READ, data(999, 2)),
    ("data behind the request", READ, data(1099, 2)),
    ("data twice", READ, data(1000, 60) + data(1059, 41)),
    ("data twice, backwards", READ, data(1050, 50) + data(1000, 51)),
    ("data within data", READ, data(1000, 100) + data(1010, 1)),
    ("data around data", READ, data(1010, 1) + data(1000, 100)),
    ("a hole over data", READ, data(1000, 100) + hole(1000, 100)),
    ("an empty hole", READ, chunk(HOLE, wire.CHUNK_HOLE.pack(1000, 0))),
    ("an empty data chunk", READ, chunk(DATA, bytes(8))),
    ("a data chunk without its offset", READ, chunk(DATA, bytes(7))),
    ("a hole that is too long", READ, chunk(HOLE, bytes(13))),
    ("more data than fits any request", READ, wire.CHUNK.pack(0x668E33EF, 1, DATA, 7, 1 << 31) + bytes(100)),
    ("two fragments where none are allowed", READ_DF, data(1000, 50) + data(1050, 50, True)),
    ("data over an earlier error", READ, replies.error_offset_chunk(7, EIO, "", 1010, False) + data(1000, 11)),
    ("success without data", READ, DONE),
    ("success without all data", READ, data(1000, 99) + DONE),
    ("success with a gap", READ, data(1000, 10) + data(1011, 89, True)),
    ("data for a write", WRITE, data(1000, 100, True)),
    ("a hole for a status", EXTENTS, hole(1000, 100, True)),
    ("a status for a read", READ, status((100, 0))),
    ("a status of another context", EXTENTS, status((100, 0), context=2)),
    ("a status twice", EXTENTS, status((100, 0), done=False) + status((100, 0))),
    ("success without a status", EXTENTS, DONE),
    ("a status without extents", EXTENTS, chunk(STATUS, bytes(4))),
    ("a status with half an extent", EXTENTS, chunk(STATUS, b"\0\0\0\1" + bytes(12))),
    (
        "a status of more extents than there should be",
        EXTENTS,
        wire.CHUNK.pack(0x668E33EF, 1, STATUS, 7, 4 + 8 * MAX_EXTENTS_COUNT + 8),
    ),
    ("an empty extent", EXTENTS, status((0, 0))),
    ("an extent that begins behind the request", EXTENTS, status((100, 0), (1, 1))),
    ("two extents for one", EXTENT, status((10, 0), (10, 1))),
    ("an extent longer than asked for", EXTENT, status((101, 0))),
    ("an unknown chunk", READ, chunk(77, b"data")),
    ("an end that goes on", WRITE, chunk(NONE, done=False)),
    ("an end with a payload", WRITE, chunk(NONE, b"x")),
    ("an error without a number", WRITE, chunk(ERROR, bytes(6))),
    ("an error that is short", WRITE, chunk(ERROR, bytes(5))),
    ("an error whose message overruns it", WRITE, chunk(ERROR, b"\0\0\0\5\0\2x")),
    ("an error whose message is too long", WRITE, chunk(ERROR, b"\0\0\0\5\x10\1" + b"x" * 4097)),
    ("an error at an offset whose message overruns", READ, chunk(ERROR_OFFSET, b"\0\0\0\5\0\1" + bytes(8))),
    ("an error before the request", READ, replies.error_offset_chunk(7, EIO, "", 999)),
    ("an error behind the request", READ, replies.error_offset_chunk(7, EIO, "", 1100)),
    ("an unknown error that is short", WRITE, chunk(0x8077, bytes(5))),
]


class Table:
    """The requests in flight, as a client keeps them."""

    def __init__(self, **expected):
        self.waiting = {int(name.removeprefix("c")): request for name, request in expected.items()}

    def read(self, data, sizes, structured=True, contexts=(1,)):
        """Receive data in pieces of these sizes; the replies that come out."""
        reader, found, at, sizes = ReplyReader(structured, contexts, self.waiting.get), [], 0, iter(sizes)
        while True:
            while (reply := reader.next()) is not None:
                found.append(reply)
                del self.waiting[reply.cookie]
            if at == len(data):
                return found
            buffer = reader.buffer()
            assert len(buffer) > 0
            count = min(next(sizes, len(data)), len(buffer), len(data) - at)
            buffer[:count] = data[at : at + count]
            reader.received(count)
            at += count


@pytest.mark.parametrize(("encoded", "made"), ENCODED)
def test_replies_have_the_bytes_of_the_standard(encoded, made):
    assert made == bytes.fromhex(encoded)


@pytest.mark.parametrize(("claim", "request_", "encoded", "expected"), GOOD, ids=[case[0] for case in GOOD])
def test_a_reply_is_put_together_however_its_bytes_arrive(claim, request_, encoded, expected):
    for sizes in ((), (1,) * 5000, (13,) * 5000):
        (reply,) = Table(c7=request_).read(encoded, sizes)
        content = bytes(reply.data) if not reply.error else b""
        assert reply._replace(data=content) == expected


@pytest.mark.parametrize(("claim", "request_", "encoded"), BAD, ids=[case[0] for case in BAD])
def test_a_server_that_breaks_the_rules_is_left(claim, request_, encoded):
    for sizes in ((), (1,) * 5000):
        with pytest.raises(PeerError):
            Table(c7=request_).read(encoded, sizes)


def test_without_negotiation_a_read_has_a_simple_reply_with_its_data():
    for sizes in ((), (1,) * 200, (17,)):
        table = Table(c7=READ, c8=READ_NOTHING, c9=READ)
        encoded = replies.simple_reply(7) + b"d" * 100 + replies.simple_reply(9, EIO) + replies.simple_reply(8)
        first, second, third = table.read(encoded, sizes, structured=False, contexts=())
        assert (first.cookie, bytes(first.data)) == (7, b"d" * 100)
        assert (second.cookie, second.error) == (9, EIO)
        assert (third.cookie, third.error, bytes(third.data)) == (8, 0, b"")


def test_without_negotiation_a_chunk_is_an_offence():
    with pytest.raises(PeerError):
        Table(c7=WRITE).read(DONE, (), structured=False)


def test_replies_may_be_interleaved():
    other = replies.data_chunk_header(8, 1000, 100, True) + b"o" * 100
    encoded = data(1000, 50) + other + data(1050, 50, True)
    assert [reply.cookie for reply in Table(c7=READ, c8=READ).read(encoded, ())] == [8, 7]


def test_every_negotiated_context_has_its_status():
    both = status((10, 0), context=1, done=False) + status((20, 1), context=5)
    (reply,) = Table(c7=EXTENTS).read(both, (), contexts=(1, 5))
    assert reply.statuses == {1: [(10, 0)], 5: [(20, 1)]}
    with pytest.raises(PeerError):
        Table(c7=EXTENTS).read(status((10, 0)), (), contexts=(1, 5))


def test_a_large_status_is_read():
    descriptors = [(512, number % 4) for number in range(100_000)]
    request = Expectation(C.BLOCK_STATUS, 0, 0, 512 * 100_000)
    (reply,) = Table(c7=request).read(replies.block_status_chunk(7, 1, descriptors, True), (60_000,) * 20)
    assert reply.statuses[1] == descriptors


def test_data_are_received_straight_into_the_reply():
    reader = ReplyReader(True, (), {7: LARGE}.get)
    header = replies.data_chunk_header(7, 0, 1 << 20, True)
    reader.buffer()[: len(header) + 1] = header + b"x"
    reader.received(len(header) + 1)
    assert reader.next() is None
    rest = reader.buffer()
    assert len(rest) == (1 << 20) - 1
    reader.received(len(rest))
    reply = reader.next()
    assert reply is not None
    assert rest.obj is reply.data


def test_what_was_wrong_once_stays_wrong():
    reader = ReplyReader(True, (), {}.get)
    reader.buffer()[:16] = replies.simple_reply(1)
    reader.received(16)
    for _ in range(2):
        with pytest.raises(PeerError, match="no request"):
            reader.next()


def test_a_client_does_not_take_chunks_without_end():
    """Errors that are not the last may come as often as a server likes, and each of them is remembered."""
    one = replies.error_offset_chunk(7, EIO, "", 1000, False)
    assert chunks_max(READ) == CHUNKS_COUNT
    Table(c7=READ).read(one * CHUNKS_COUNT, ())
    with pytest.raises(PeerError, match="more than 1024 chunks"):
        Table(c7=READ).read(one * (CHUNKS_COUNT + 1), ())


def test_of_a_long_read_every_sector_may_be_a_chunk():
    pieces = [hole(at, 512) for at in range(0, LARGE.length, 512)]
    (reply,) = Table(c7=LARGE).read(b"".join(pieces) + DONE, ())
    assert len(reply.chunks) == LARGE.length // 512 + 1
    assert chunks_max(LARGE) == LARGE.length // 512 + CHUNKS_COUNT
    assert chunks_max(LARGE._replace(length=1 << 60)) == (32 << 20) // 512 + CHUNKS_COUNT


def test_data_may_come_between_errors_but_not_over_them():
    """However many there are, and in whichever order they came."""
    errors = b"".join(replies.error_offset_chunk(7, EIO, "", at, False) for at in (1090, 1010, 1050, 1010))
    (reply,) = Table(c7=READ).read(errors + data(1000, 10) + data(1011, 39) + data(1091, 9) + DONE, ())
    assert (reply.error_offset, reply.chunks.count(DATA)) == (1090, 3)
    for start, length in ((1000, 11), (1010, 1), (1011, 40), (1050, 41), (1090, 10), (1000, 100)):
        with pytest.raises(PeerError, match="earlier error"):
            Table(c7=READ).read(errors + data(start, length), ())


def test_messages_are_cut_to_what_a_string_may_be():
    (reply,) = Table(c7=WRITE).read(replies.error_chunk(7, EIO, "x" * 10_000), ())
    assert reply.message == "x" * 4096


@settings(deadline=None)
@given(st.permutations(range(10)), st.lists(st.booleans(), min_size=10, max_size=10))
def test_any_order_of_any_pieces_gives_the_same_data(order, holes):
    encoded = b"".join(
        hole(1000 + 10 * i, 10) if holes[i] else data(1000 + 10 * i, 10, byte=bytes([65 + i])) for i in order
    )
    (reply,) = Table(c7=READ).read(encoded + DONE, ())
    assert reply.data == b"".join(bytes(10) if holes[i] else bytes([65 + i]) * 10 for i in range(10))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(GOOD), st.data())
def test_no_bytes_upset_the_reader(case, draws):
    mutated = bytearray(case[2][:2000])
    for _ in range(draws.draw(st.integers(1, 4))):
        mutated[draws.draw(st.integers(0, len(mutated) - 1))] = draws.draw(st.integers(0, 255))
    outcomes = []
    for sizes in ((), draws.draw(st.lists(st.integers(1, 60), max_size=30))):
        try:
            outcomes.append(repr(Table(c7=case[1]).read(bytes(mutated), sizes)))
        except PeerError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]
