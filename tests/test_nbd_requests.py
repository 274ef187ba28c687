"""Requests, validated.  Source: NBD protocol, "Request message", "Command flags", "Request types", "Error values".

Fuzzing holds one invariant: whatever bytes come, however they are split, `next` gives requests or raises PeerError, the
same ones in the same order, and keeps no more than a receive buffer and one payload.
"""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from impl.errors import PeerError
from impl.nbd import wire
from impl.nbd.agreement import Agreement, ExportInfo
from impl.nbd.constants import Command, CommandFlag, ErrorValue, TransmissionFlag
from impl.nbd.requests import RECEIVE_BUFFER_BYTES, RULES, Request, RequestReader, limits, refusal

T, C, F = TransmissionFlag, Command, CommandFlag
SIZE = 1 << 30
KIB, MIB = 1 << 10, 1 << 20
LIMIT = 32 * MIB
ALL = (
    T.HAS_FLAGS
    | T.SEND_FLUSH
    | T.SEND_FUA
    | T.SEND_TRIM
    | T.SEND_WRITE_ZEROES
    | T.SEND_DF
    | T.SEND_CACHE
    | T.SEND_FAST_ZERO
)
EVERYTHING = Agreement(ExportInfo("", SIZE, "", ALL), ALL, True, (1,))
NOTHING = Agreement(ExportInfo("", SIZE, "", T.HAS_FLAGS), T.HAS_FLAGS, False)
READ_ONLY = replace(EVERYTHING, flags=ALL | T.READ_ONLY)
ALIGNED = replace(EVERYTHING, export=replace(EVERYTHING.export, block_min=512))
SMALL_PAYLOADS = replace(EVERYTHING, export=replace(EVERYTHING.export, block_max=4096))
TINY = replace(EVERYTHING, export=replace(EVERYTHING.export, size=100, block_min=512))
EPERM, EINVAL, ENOSPC = ErrorValue.EPERM, ErrorValue.EINVAL, ErrorValue.ENOSPC

REQUESTS = [  # (claim, agreement, command, flags, offset, length, error)
    ("a read is in order", EVERYTHING, C.READ, 0, 0, 512, 0),
    ("a read up to the end is in order", EVERYTHING, C.READ, 0, SIZE - 1, 1, 0),
    ("a read over the end is invalid", EVERYTHING, C.READ, 0, SIZE - 1, 2, EINVAL),
    ("a read far over the end is invalid", EVERYTHING, C.READ, 0, (1 << 64) - 1, LIMIT, EINVAL),
    ("an empty read is in order", EVERYTHING, C.READ, 0, 0, 0, 0),
    ("an empty read at the end is in order", EVERYTHING, C.READ, 0, SIZE, 0, 0),
    ("an empty read behind the end is invalid", EVERYTHING, C.READ, 0, SIZE + 1, 0, EINVAL),
    ("a read of 32 MiB is in order", EVERYTHING, C.READ, 0, 0, LIMIT, 0),
    ("a longer read is invalid", EVERYTHING, C.READ, 0, 0, LIMIT + 1, EINVAL),
    ("a read above the advertised maximum is invalid", SMALL_PAYLOADS, C.READ, 0, 0, 4097, EINVAL),
    ("a read may forbid fragments", EVERYTHING, C.READ, F.DF, 0, 512, 0),
    ("DF needs to be advertised", NOTHING, C.READ, F.DF, 0, 512, EINVAL),
    ("FUA is for every command", EVERYTHING, C.READ, F.FUA, 0, 512, 0),
    ("FUA needs to be advertised", NOTHING, C.READ, F.FUA, 0, 512, EINVAL),
    ("NO_HOLE is not for reads", EVERYTHING, C.READ, F.NO_HOLE, 0, 512, EINVAL),
    ("FAST_ZERO is not for reads", EVERYTHING, C.READ, F.FAST_ZERO, 0, 512, EINVAL),
    ("REQ_ONE is not for reads", EVERYTHING, C.READ, F.REQ_ONE, 0, 512, EINVAL),
    ("PAYLOAD_LEN is for nothing", EVERYTHING, C.READ, F.PAYLOAD_LEN, 0, 512, EINVAL),
    ("an unknown flag is invalid", EVERYTHING, C.READ, 1 << 15, 0, 512, EINVAL),
    ("an unaligned offset is invalid", ALIGNED, C.READ, 0, 1, 512, EINVAL),
    ("an unaligned length is invalid", ALIGNED, C.READ, 0, 0, 513, EINVAL),
    ("an aligned read is in order", ALIGNED, C.READ, 0, 512, 1024, 0),
    ("an export smaller than its blocks cannot be read", TINY, C.READ, 0, 0, 512, EINVAL),
    ("a write is in order", EVERYTHING, C.WRITE, 0, 0, 512, 0),
    ("a write with FUA is in order", EVERYTHING, C.WRITE, F.FUA, 0, 512, 0),
    ("an empty write is in order", EVERYTHING, C.WRITE, 0, 0, 0, 0),
    ("a write over the end finds no space", EVERYTHING, C.WRITE, 0, SIZE - 1, 2, ENOSPC),
    ("an empty write behind the end finds no space", EVERYTHING, C.WRITE, 0, SIZE + 1, 0, ENOSPC),
    ("a write of 32 MiB is in order", EVERYTHING, C.WRITE, 0, 0, LIMIT, 0),
    ("a longer write is invalid", EVERYTHING, C.WRITE, 0, 0, LIMIT + 1, EINVAL),
    ("a write above the advertised maximum is invalid", SMALL_PAYLOADS, C.WRITE, 0, 0, 4097, EINVAL),
    ("a write to a read-only export is not permitted", READ_ONLY, C.WRITE, 0, 0, 512, EPERM),
    ("wherever it goes", READ_ONLY, C.WRITE, 0, SIZE, 512, EPERM),
    ("a write with FUA unadvertised is invalid", NOTHING, C.WRITE, F.FUA, 0, 512, EINVAL),
    ("a write with DF is invalid", EVERYTHING, C.WRITE, F.DF, 0, 512, EINVAL),
    ("a write with NO_HOLE is invalid", EVERYTHING, C.WRITE, F.NO_HOLE, 0, 512, EINVAL),
    ("an unaligned write is invalid", ALIGNED, C.WRITE, 0, 512, 100, EINVAL),
    ("a flush is in order", EVERYTHING, C.FLUSH, 0, 0, 0, 0),
    ("a flush has no range", EVERYTHING, C.FLUSH, 0, (1 << 64) - 1, (1 << 32) - 1, 0),
    ("a flush with FUA is in order", EVERYTHING, C.FLUSH, F.FUA, 0, 0, 0),
    ("a flush with NO_HOLE is invalid", EVERYTHING, C.FLUSH, F.NO_HOLE, 0, 0, EINVAL),
    ("a flush needs to be advertised", NOTHING, C.FLUSH, 0, 0, 0, EINVAL),
    ("a flush of a read-only export is in order", READ_ONLY, C.FLUSH, 0, 0, 0, 0),
    ("a trim is in order", EVERYTHING, C.TRIM, 0, 0, 512, 0),
    ("a trim has no limit of length", EVERYTHING, C.TRIM, 0, 0, SIZE, 0),
    ("an empty trim is in order", EVERYTHING, C.TRIM, 0, 0, 0, 0),
    ("a trim over the end is invalid", EVERYTHING, C.TRIM, 0, SIZE, 512, EINVAL),
    ("a trim with NO_HOLE is invalid", EVERYTHING, C.TRIM, F.NO_HOLE, 0, 512, EINVAL),
    ("a trim needs to be advertised", NOTHING, C.TRIM, 0, 0, 512, EINVAL),
    ("a trim of a read-only export is not permitted", READ_ONLY, C.TRIM, 0, 0, 512, EPERM),
    ("advertised or not", replace(NOTHING, flags=T.HAS_FLAGS | T.READ_ONLY), C.TRIM, 0, 0, 512, EPERM),
    ("a cache is in order", EVERYTHING, C.CACHE, 0, 0, SIZE, 0),
    ("an empty cache is in order", EVERYTHING, C.CACHE, 0, 0, 0, 0),
    ("a cache over the end is invalid", EVERYTHING, C.CACHE, 0, 1, SIZE, EINVAL),
    ("a cache has no flags", EVERYTHING, C.CACHE, F.DF, 0, 512, EINVAL),
    ("a cache needs to be advertised", NOTHING, C.CACHE, 0, 0, 512, EINVAL),
    ("a cache of a read-only export is in order", READ_ONLY, C.CACHE, 0, 0, 512, 0),
    ("zeroes are in order", EVERYTHING, C.WRITE_ZEROES, 0, 0, 512, 0),
    ("zeroes have no limit of length", EVERYTHING, C.WRITE_ZEROES, 0, 0, SIZE, 0),
    ("no zeroes are in order", EVERYTHING, C.WRITE_ZEROES, 0, 0, 0, 0),
    ("zeroes have three flags", EVERYTHING, C.WRITE_ZEROES, F.NO_HOLE | F.FAST_ZERO | F.FUA, 0, 512, 0),
    ("FAST_ZERO needs to be advertised", replace(EVERYTHING, flags=ALL ^ T.SEND_FAST_ZERO), 6, 16, 0, 512, EINVAL),
    ("zeroes with DF are invalid", EVERYTHING, C.WRITE_ZEROES, F.DF, 0, 512, EINVAL),
    ("zeroes over the end find no space", EVERYTHING, C.WRITE_ZEROES, 0, SIZE - 1, 2, ENOSPC),
    ("zeroes far over the end find no space", EVERYTHING, C.WRITE_ZEROES, 0, (1 << 64) - 1, (1 << 32) - 1, ENOSPC),
    ("zeroes need to be advertised", NOTHING, C.WRITE_ZEROES, 0, 0, 512, EINVAL),
    ("zeroes to a read-only export are not permitted", READ_ONLY, C.WRITE_ZEROES, 0, 0, 512, EPERM),
    ("a status is in order", EVERYTHING, C.BLOCK_STATUS, 0, 0, SIZE, 0),
    ("a status of one extent is in order", EVERYTHING, C.BLOCK_STATUS, F.REQ_ONE, 0, 512, 0),
    ("an empty status is invalid", EVERYTHING, C.BLOCK_STATUS, 0, 0, 0, EINVAL),
    ("a status over the end is invalid", EVERYTHING, C.BLOCK_STATUS, 0, SIZE - 1, 2, EINVAL),
    ("a status with DF is invalid", EVERYTHING, C.BLOCK_STATUS, F.DF, 0, 512, EINVAL),
    ("a status needs a context", replace(EVERYTHING, contexts=()), C.BLOCK_STATUS, 0, 0, 512, EINVAL),
    ("an unknown command is invalid", EVERYTHING, 8, 0, 0, 512, EINVAL),
    ("a high command is invalid", EVERYTHING, 0xFFFF, 0, 0, 0, EINVAL),
]
CLAIMS = [case[0] for case in REQUESTS]
COOKIE = 0xFEEDFACECAFEBEEF


def feed(reader, data, sizes):
    """Receive data in pieces of these sizes, as a transport does; the requests that come out."""
    requests, at, sizes = [], 0, iter(sizes)
    while True:
        while (request := reader.next()) is not None:
            requests.append(request)
        if at == len(data):
            return requests
        buffer = reader.buffer()
        assert len(buffer) > 0
        count = min(next(sizes, len(data)), len(buffer), len(data) - at)
        buffer[:count] = data[at : at + count]
        reader.received(count)
        at += count


def comparable(requests):
    return [request._replace(payload=bytes(request.payload)) for request in requests]


def check_take(agreement, data, expected):
    """The requests come out: whole; byte by byte (if short); as left over from the handshake; with more behind."""
    follower = wire.pack_request(C.READ, 0, 99, 512, 512)
    behind = Request(C.READ, 0, 99, 512, 512, b"", 0, "")
    ways = [((), b""), ((1000,) * 100, b"")]
    if len(data) < 4096:
        ways += [((1,) * (len(data) + 28), b""), ((), data), ((3,), data[:20]), ((), data + follower)]
    for sizes, leftover in ways:
        reader = RequestReader(agreement, leftover)
        got = comparable(feed(reader, (data + follower)[len(leftover) :], sizes))
        assert got[-1]._replace(error=0, message="") == behind
        assert got[:-1] == expected


@pytest.mark.parametrize(("claim", "agreement", "command", "flags", "offset", "length", "error"), REQUESTS, ids=CLAIMS)
def test_a_request_is_judged_by_the_table(claim, agreement, command, flags, offset, length, error):
    payload = bytes(range(256)) * (length // 256 + 1) if command == C.WRITE else b""
    data = wire.pack_request(command, flags, COOKIE, offset, length) + payload[:length]
    found, message = refusal(agreement, command, flags, offset, length)
    assert found == error
    assert bool(message) == bool(error)  # whoever is refused is told why
    request = Request(command, flags, COOKIE, offset, length, b"" if error else payload[:length], error, message)
    check_take(agreement, data, [request])


def test_a_disconnect_has_no_rules_and_nothing_behind_it():
    for flags, offset, length in ((0, 0, 0), (0xFFFF, 1, 1)):
        data = wire.pack_request(C.DISC, flags, COOKIE, offset, length)
        reader = RequestReader(NOTHING)
        requests = feed(reader, data + wire.pack_request(C.READ, 0, 1, 0, 512), ())
        assert requests == [Request(C.DISC, flags, COOKIE, offset, length, b"", 0, "")]
        reader.received(len(reader.buffer()))
        assert reader.next() is None
        assert len(reader.buffer()) > 0


def test_a_wrong_magic_ends_it_for_good():
    data = wire.pack_request(C.FLUSH, 0, 1, 0, 0) + b"\0" + wire.pack_request(C.FLUSH, 0, 2, 0, 0)
    reader = RequestReader(EVERYTHING)
    view = reader.buffer()
    view[: len(data)] = data
    reader.received(len(data))
    assert reader.next() is not None
    for _ in range(2):
        with pytest.raises(PeerError, match="magic"):
            reader.next()


def test_many_small_requests_come_from_one_receive():
    one = wire.pack_request(C.WRITE, 0, 1, 0, 512) + bytes(512)
    reader = RequestReader(EVERYTHING)
    data = one * (RECEIVE_BUFFER_BYTES // len(one))
    assert len(reader.buffer()) >= len(data)
    reader.buffer()[: len(data)] = data
    reader.received(len(data))
    assert len([*iter(reader.next, None)]) == RECEIVE_BUFFER_BYTES // len(one)


def test_a_large_payload_is_received_into_its_own_buffer_and_not_beyond():
    reader = RequestReader(EVERYTHING)
    header = wire.pack_request(C.WRITE, 0, 1, 0, MIB)
    reader.buffer()[:128] = header + b"x" * 100
    reader.received(128)
    assert reader.next() is None
    rest = reader.buffer()
    assert len(rest) == MIB - 100
    rest[:] = b"y" * len(rest)
    reader.received(len(rest))
    request = reader.next()
    assert request is not None
    assert request.payload == b"x" * 100 + b"y" * (MIB - 100)
    assert rest.obj is memoryview(request.payload).obj  # not copied


def test_payloads_outlive_the_receives_that_follow():
    reader = RequestReader(EVERYTHING)
    data = b"".join(wire.pack_request(C.WRITE, 0, i, 0, 700) + bytes([i]) * 700 for i in range(250))
    for number, request in enumerate(feed(reader, data, (10_000,) * 100)):
        assert bytes(request.payload) == bytes([number]) * 700


def test_a_payload_given_back_is_filled_again_but_never_while_it_is_in_use():
    def write(byte, length):
        return feed(reader, wire.pack_request(C.WRITE, 0, 1, 0, length) + byte * length, (20_000,) * 100)[0].payload

    reader = RequestReader(EVERYTHING)
    first = write(b"1", MIB)
    second = write(b"2", MIB)
    assert (bytes(first), bytes(second)) == (b"1" * MIB, b"2" * MIB)
    reader.give_back(first)
    third = write(b"3", MIB - 5)
    assert bytes(third) == b"3" * (MIB - 5)
    assert bytes(second) == b"2" * MIB
    reader.give_back(bytearray(40 * KIB))
    reader.give_back(memoryview(bytearray(40 * KIB)))  # too short for what follows
    fourth = write(b"4", MIB)
    assert (bytes(third), bytes(fourth)) == (b"3" * (MIB - 5), b"4" * MIB)


def test_after_large_payloads_small_requests_come_many_at_a_time_again():
    reader = RequestReader(EVERYTHING)
    feed(reader, wire.pack_request(C.WRITE, 0, 1, 0, MIB) + bytes(MIB), ())
    small = wire.pack_request(C.READ, 0, 1, 0, 512)
    feed(reader, small * 1000, ())
    assert len(reader.buffer()) > RECEIVE_BUFFER_BYTES // 2


def test_the_buffer_is_not_asked_for_while_requests_wait_to_be_taken():
    reader = RequestReader(EVERYTHING)
    reader.received(len(reader.buffer()))
    with pytest.raises(AssertionError):
        reader.buffer()


def test_a_refused_write_is_skipped_whatever_its_length():
    reader = RequestReader(EVERYTHING)
    reader.buffer()[:28] = wire.pack_request(C.WRITE, 0, 7, 0, (1 << 32) - 1)
    reader.received(28)
    left = (1 << 32) - 1
    while left:
        assert reader.next() is None
        room = len(reader.buffer())
        assert room <= RECEIVE_BUFFER_BYTES
        reader.received(min(room, left))
        left -= min(room, left)
    request = reader.next()
    assert request is not None
    assert (request.cookie, request.error, request.payload) == (7, EINVAL, b"")
    assert reader.next() is None


flag_sets = st.integers(0, 63).map(int) | st.sampled_from([0, 1 << 15])
agreements = st.builds(
    Agreement,
    st.builds(
        ExportInfo,
        st.just(""),
        st.sampled_from([0, 100, 4096, SIZE, 1 << 63]),
        st.just(""),
        st.just(T.HAS_FLAGS),
        block_min=st.sampled_from([1, 512]),
        block_max=st.sampled_from([4096, MIB, LIMIT, (1 << 32) - 1]),
    ),
    st.integers(0, 4095).map(lambda flags: T(flags | T.HAS_FLAGS)),
    st.just(True),
    st.sampled_from([(), (1,)]),
)
edges = st.sampled_from([0, 1, 99, 100, 101, 512, 4095, 4096, 4097, MIB, LIMIT, LIMIT + 1, (1 << 32) - 1])


@settings(max_examples=500, deadline=None)
@given(agreements, st.sampled_from(Command), flag_sets, edges | st.sampled_from([SIZE, (1 << 64) - 1]), edges)
def test_the_short_form_of_a_rule_lets_pass_exactly_what_the_rule_does(agreement, command, flags, offset, length):
    found = limits(agreement, command)
    passes = found is not None and (
        not flags & found.wrong_flags
        and found.length_min <= length <= found.length_max
        and offset + length <= found.end_max
        and not (offset | length) & found.misaligned
    )
    assert passes == (refusal(agreement, command, flags, offset, length)[0] == 0)


requests = st.tuples(
    st.sampled_from([*RULES, 9]).filter(lambda command: command != C.DISC),
    st.sampled_from([0, 0, 0, 1, 2, 64]),
    st.integers(0, 2000),
    st.integers(0, 3000),
)
SMALL = replace(EVERYTHING, export=replace(EVERYTHING.export, size=4000, block_max=2500))


def encode(listed):
    return b"".join(
        wire.pack_request(command, flags, cookie, offset, length) + (b"p" * length if command == C.WRITE else b"")
        for cookie, (command, flags, offset, length) in enumerate(listed)
    )


@settings(max_examples=200, deadline=None)
@given(st.lists(requests, max_size=60), st.lists(st.integers(1, 5000), max_size=60), st.integers(0, 5000))
def test_the_same_requests_come_out_however_the_bytes_arrive(listed, sizes, left):
    data = encode(listed)
    whole = comparable(feed(RequestReader(SMALL), data, ()))
    split = comparable(feed(RequestReader(SMALL, data[:left]), data[left:], sizes))
    assert split == whole
    assert [request[:5] for request in whole] == [
        (command, flags, cookie, offset, length) for cookie, (command, flags, offset, length) in enumerate(listed)
    ]


def check_noise(make_reader, encoded, payload_max, data):
    """Bytes changed, requests come to the same whole and in pieces: requests or a PeerError, and no more memory."""
    mutated = bytearray(encoded)
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    outcomes = []
    for sizes in ((), data.draw(st.lists(st.integers(1, 200), max_size=30))):
        reader = make_reader()
        try:
            outcomes.append(comparable(feed(reader, bytes(mutated), sizes)))
        except PeerError as error:
            outcomes.append(str(error))
        assert len(reader._payload) <= payload_max
    assert outcomes[0] == outcomes[1]


@settings(max_examples=300, deadline=None)
@given(st.lists(requests, min_size=1, max_size=10), st.data())
def test_no_bytes_upset_the_reader(listed, data):
    check_noise(lambda: RequestReader(SMALL), encode(listed), SMALL.payload_max, data)
