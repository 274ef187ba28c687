"""What clients may send, and must not, to the real server on a socket.

One invariant: whatever one client does, the server lives, its memory is bounded, and every other client is served.
After a request that is refused the connection lives on wherever the protocol lets it.

Source: NBD protocol, "Error values", "Size constraints", "Request message", "Terminating the transmission phase".
"""

import logging
import random
import socket
import struct
import sys
import threading
from contextlib import contextmanager, suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_nbd import GREETING_BYTES, RawClient, hello, request

from check.gates import Gate, GatedBase
from check.serving import serve_export
from check.subjects import Setup
from impl.base.file import FileBase
from impl.base.memory import BytesBase, MemoryBase
from impl.client import connect
from impl.client.uri import parse
from impl.nbd.constants import UINT32_MAX, UINT64_MAX, Command, CommandFlag, ErrorValue, TransmissionFlag
from impl.server.export import ExportOptions, make_export
from impl.server.in_flight import PAUSE_BYTES
from impl.server.loop import Loop
from impl.server.session import RECEIVES_MAX, Session

pytestmark = pytest.mark.timeout(120)

C, F, E = Command, CommandFlag, ErrorValue
KIB, MIB, TIB = 1 << 10, 1 << 20, 1 << 40
BLOCK = 64 * KIB
SIZE = TIB
LIMIT = 32 * MIB
LONGEST = UINT32_MAX
ANSWER_S = 20
THREADS = 4
# What the process may grow by beside what a test accounts for: allocators keep some.
SLACK_BYTES = 24 * MIB


@pytest.fixture(autouse=True)
def no_bug_is_logged(caplog):
    """The server says so when it hangs up because of a bug of its own."""
    caplog.set_level(logging.WARNING, "cowproof")
    yield
    bugs = [record for record in caplog.get_records("call") if record.levelno >= logging.ERROR or record.exc_info]
    assert not bugs, [record.getMessage() for record in bugs]


@contextmanager
def serving(base, folder, **options):
    """A server of `base`, its URI and its socket's path."""
    export = make_export(base, ExportOptions(store="memory", **options))
    running = serve_export(export, str(folder / "s"), THREADS, grace_s=2)
    try:
        yield running
    finally:
        running.stop()
        export.close()


@pytest.fixture(scope="module")
def huge(tmp_path_factory):
    """A disk of zeroes of 1 TiB."""
    with serving(MemoryBase(SIZE), tmp_path_factory.mktemp("huge")) as running:
        yield running


@pytest.fixture(scope="module")
def read_only(tmp_path_factory):
    with serving(MemoryBase(MIB), tmp_path_factory.mktemp("ro"), read_only=True) as running:
        yield running


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A disk of 1 MiB, on which nothing that is asked at random can take long."""
    with serving(MemoryBase(MIB), tmp_path_factory.mktemp("small")) as running:
        yield running


def path_of(running):
    return parse(running.uri).path


def open_client(running, extended=False, **options):
    return connect(running.uri, timeout_s=ANSWER_S, extended=extended, **options)


def raw_client(running):
    return RawClient(path_of(running))


def assert_served(client):
    assert client.pread(SIZE // 2 if client.size == SIZE else 0, 512) == bytes(512)


def rss_bytes():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


# What clients are told that they may ask.

FLAGS_OF_ALL = TransmissionFlag.HAS_FLAGS | TransmissionFlag.SEND_FLUSH | TransmissionFlag.SEND_FUA
FLAGS_OF_ALL |= TransmissionFlag.SEND_CACHE | TransmissionFlag.CAN_MULTI_CONN
FLAGS_OF_WRITABLE = (
    FLAGS_OF_ALL | TransmissionFlag.SEND_TRIM | TransmissionFlag.SEND_WRITE_ZEROES | TransmissionFlag.SEND_FAST_ZERO
)


HOW = [  # options of a client, and the flags that are told to it beside those of all
    ({}, TransmissionFlag.SEND_DF),
    ({"extended": True}, TransmissionFlag.SEND_DF | TransmissionFlag.BLOCK_STATUS_PAYLOAD),
    ({"extended": True, "contexts": ()}, TransmissionFlag.SEND_DF),
    ({"export_name_only": True}, TransmissionFlag(0)),
    ({"structured": False}, TransmissionFlag(0)),
]


@pytest.mark.parametrize(("how", "more"), HOW, ids=str)
def test_these_flags_are_advertised_and_no_other(how, more, huge, read_only):
    """ROTATIONAL and SEND_RESIZE are not among them; DF there has to be something to fragment for."""
    with open_client(huge, **how) as client:
        assert client.flags == FLAGS_OF_WRITABLE | more
    with open_client(read_only, **how) as client:
        assert client.flags == FLAGS_OF_ALL | more | TransmissionFlag.READ_ONLY


# Requests that are refused, or in order though strange.

OK = 0
REQUESTS = [  # (claim, command, flags, offset, length, error)
    ("a read of 33 MiB", C.READ, 0, 0, LIMIT + MIB, E.EINVAL),
    ("a read of 4 GiB - 1", C.READ, 0, 0, LONGEST, E.EINVAL),
    ("a read over the end", C.READ, 0, SIZE - 1, 2, E.EINVAL),
    ("a read behind the end", C.READ, 0, SIZE, 1, E.EINVAL),
    ("a read at the end of all numbers", C.READ, 0, UINT64_MAX, 1, E.EINVAL),
    ("a read whose end wraps around", C.READ, 0, UINT64_MAX - 100, 512, E.EINVAL),
    ("a write over the end", C.WRITE, 0, SIZE - 1, 2, E.ENOSPC),
    ("a write whose end wraps around", C.WRITE, 0, UINT64_MAX - 100, 512, E.ENOSPC),
    ("a write of 32 MiB over the end", C.WRITE, 0, SIZE - 1, LIMIT, E.ENOSPC),
    ("a write of 33 MiB", C.WRITE, 0, 0, LIMIT + MIB, E.EINVAL),
    ("a write of 33 MiB over the end", C.WRITE, 0, SIZE, LIMIT + MIB, E.EINVAL),
    ("a write of 32 MiB and a byte", C.WRITE, 0, 0, LIMIT + 1, E.EINVAL),
    ("a zero over the end", C.WRITE_ZEROES, 0, SIZE - 1, 2, E.ENOSPC),
    ("a zero of 4 GiB - 1 over the end", C.WRITE_ZEROES, 0, SIZE - LONGEST + 1, LONGEST, E.ENOSPC),
    ("a zero whose end wraps around", C.WRITE_ZEROES, 0, UINT64_MAX, LONGEST, E.ENOSPC),
    ("a trim over the end", C.TRIM, 0, SIZE - 1, 2, E.EINVAL),
    ("a trim whose end wraps around", C.TRIM, 0, UINT64_MAX, LONGEST, E.EINVAL),
    ("a cache over the end", C.CACHE, 0, SIZE - 1, 2, E.EINVAL),
    ("a cache whose end wraps around", C.CACHE, 0, UINT64_MAX, LONGEST, E.EINVAL),
    ("a status over the end", C.BLOCK_STATUS, 0, SIZE - 1, 2, E.EINVAL),
    ("a status whose end wraps around", C.BLOCK_STATUS, 0, UINT64_MAX, LONGEST, E.EINVAL),
    ("a status of nothing", C.BLOCK_STATUS, 0, 0, 0, E.EINVAL),
    ("an unknown command", 8, 0, 0, 512, E.EINVAL),
    ("the last of all commands", 0xFFFF, 0, 0, LONGEST, E.EINVAL),
    ("an unknown command with every flag", 1000, 0xFFFF, UINT64_MAX, LONGEST, E.EINVAL),
    ("a flush with every other number", C.FLUSH, 0, UINT64_MAX, LONGEST, OK),
    ("a read of nothing", C.READ, 0, 5, 0, OK),
    ("a read of nothing at the end", C.READ, 0, SIZE, 0, OK),
    ("a write of nothing", C.WRITE, 0, 5, 0, OK),
    ("a zero of nothing", C.WRITE_ZEROES, 0, 5, 0, OK),
    ("a fast zero of nothing", C.WRITE_ZEROES, F.FAST_ZERO, 5, 0, OK),
    ("a trim of nothing", C.TRIM, 0, 5, 0, OK),
    ("a cache of nothing", C.CACHE, 0, 5, 0, OK),
    ("a flush of nothing", C.FLUSH, 0, 0, 0, OK),
    ("a write of 32 MiB", C.WRITE, 0, MIB, LIMIT, OK),
    ("a trim of 4 GiB - 1", C.TRIM, 0, 1, LONGEST, OK),
    ("a zero of 4 GiB - 1", C.WRITE_ZEROES, 0, 4097, LONGEST, OK),
    ("a cache of 4 GiB - 1", C.CACHE, 0, 1, LONGEST, OK),
    ("a status of 4 GiB - 1", C.BLOCK_STATUS, 0, 1, LONGEST, OK),
    ("a status of one extent of 4 GiB - 1", C.BLOCK_STATUS, F.REQ_ONE, 1, LONGEST, OK),
    ("a read of the last byte", C.READ, 0, SIZE - 1, 1, OK),
]


@pytest.mark.parametrize("structured", [True, False], ids=["structured", "simple"])
@pytest.mark.parametrize(
    ("command", "flags", "offset", "length", "error"), [row[1:] for row in REQUESTS], ids=[row[0] for row in REQUESTS]
)
def test_a_request_gets_its_reply_and_the_connection_lives_on(command, flags, offset, length, error, structured, huge):
    if command == C.BLOCK_STATUS and not structured:
        error = E.EINVAL  # there is no other way to say the extents
    payload = bytes(length) if command == C.WRITE else b""
    with open_client(huge, structured=structured) as client:
        reply = client.wait(client.submit(command, flags, offset, length, payload))
        assert reply.error == error
        assert bool(reply.message) == bool(error and structured), "whoever can be told why is told"
        assert_served(client)


def test_a_status_of_4_gib_is_told_whole(huge):
    start = 1 << 39
    with open_client(huge) as client:
        for part in range(4):
            client.trim(start + part * (2 << 30), 2 << 30)
        client.zero(start, 8 * MIB, no_hole=True)
        ((_, extents),) = client.wait(client.submit(C.BLOCK_STATUS, 0, start, LONGEST)).statuses.items()
        assert extents == [(8 * MIB, 0), (LONGEST - 8 * MIB, 3)]


ALLOWED = {
    C.READ: F.DF | F.FUA,
    C.WRITE: F.FUA,
    C.FLUSH: F.FUA,
    C.TRIM: F.FUA,
    C.CACHE: F.FUA,
    C.WRITE_ZEROES: F.FUA | F.NO_HOLE | F.FAST_ZERO,
    C.BLOCK_STATUS: F.FUA | F.REQ_ONE,
}


@pytest.mark.parametrize("structured", [True, False], ids=["structured", "simple"])
@pytest.mark.parametrize("command", ALLOWED, ids=lambda command: command.name)
def test_a_flag_that_a_command_does_not_know_is_invalid_and_one_it_knows_is_not(command, structured, huge):
    """`FUA` is for every command; of a WRITE that is refused, the payload is skipped."""
    allowed = ALLOWED[command] if structured else ALLOWED[command] & ~F.DF
    payload = b"payload " * 64 if command == C.WRITE else b""
    with open_client(huge, structured=structured) as client:
        for bit in range(16):
            reply = client.wait(client.submit(command, 1 << bit, 0, 512, payload))
            if command == C.BLOCK_STATUS and not structured:
                assert reply.error == E.EINVAL
            elif allowed & 1 << bit:
                assert reply.error in (OK, E.ENOTSUP), f"flag {bit}"
            else:
                assert reply.error == E.EINVAL, f"flag {bit}"
            assert_served(client)


@pytest.mark.parametrize("command", [C.WRITE, C.TRIM, C.WRITE_ZEROES], ids=lambda command: command.name)
@pytest.mark.parametrize(("flags", "offset"), [(0, 0), (0xFFFF, 0), (0, UINT64_MAX)])
def test_on_a_read_only_export_whatever_would_write_is_not_permitted(command, flags, offset, read_only):
    with open_client(read_only) as client:
        assert client.flags & TransmissionFlag.READ_ONLY
        payload = bytes(512) if command == C.WRITE else b""
        assert client.wait(client.submit(command, flags, offset, 512, payload)).error == E.EPERM
        assert_served(client)


def test_of_a_write_of_4_gib_nothing_is_kept(huge):
    """128 MiB of its payload are sent; the rest of it no client of this test has."""
    with raw_client(huge) as client, open_client(huge) as other:
        part = bytes(MIB)
        client.send(request(C.WRITE, 1, 0, LONGEST))
        client.send(part)
        before = rss_bytes()
        for _ in range(128):
            client.send(part)
        assert rss_bytes() - before < SLACK_BYTES
        assert_served(other)


def test_of_an_option_of_4_gib_nothing_is_kept(huge):
    with socket.socket(socket.AF_UNIX) as client, open_client(huge) as other:
        client.settimeout(ANSWER_S)
        client.connect(path_of(huge))
        part = bytes(MIB)
        client.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 7, LONGEST) + part)
        before = rss_bytes()
        for _ in range(128):
            client.sendall(part)
        assert rss_bytes() - before < SLACK_BYTES
        assert_served(other)


# Who is hung up on.

WRONG_MAGICS = [0, 0x25609514, 0x12560953, 0x67446698, 0x21E41C71, 0xFFFFFFFF]


@pytest.mark.parametrize("magic", WRONG_MAGICS, ids=hex)
def test_a_wrong_magic_costs_its_client_the_connection_and_nobody_else(magic, huge):
    with raw_client(huge) as client, open_client(huge) as other:
        client.send(struct.pack(">IHHQQI", magic, 0, C.READ, 1, 0, 512) + request(C.FLUSH, 2))
        assert client.is_closed_by_the_server()
        assert_served(other)


def test_what_was_asked_before_a_wrong_magic_is_answered_before_the_server_hangs_up(huge):
    """A session drains for a broken peer as for one that leaves; its own documentation says so."""
    with raw_client(huge) as client:
        client.send(request(C.READ, 1, 0, 512) + request(C.FLUSH, 2) + bytes(28))
        assert client.reply({1: 512}) == (1, 0, bytes(512))
        assert client.reply() == (2, 0, b"")
        assert client.is_closed_by_the_server()


DEPARTURES = {"DISC": request(C.DISC, 9), "DISC with wrong flags": request(C.DISC, 9, flags=0xFFFF), "end of file": b""}


@pytest.mark.parametrize("departure", DEPARTURES.values(), ids=DEPARTURES)
def test_what_was_asked_before_leaving_is_answered(departure, huge):
    with raw_client(huge) as client:
        asked = [request(C.READ, cookie, cookie * MIB, 100 * KIB) for cookie in range(50)]
        client.send(b"".join(asked) + departure)
        if not departure:
            client.finish_sending()
        lengths = dict.fromkeys(range(50), 100 * KIB)
        assert sorted(client.reply(lengths)[0] for _ in asked) == list(range(50))
        assert client.is_closed_by_the_server()


def test_nothing_behind_a_disc_is_done(small):
    with raw_client(small) as client:
        client.send(request(C.DISC, 1) + request(C.WRITE, 2, 0, payload=b"x" * 512))
        assert client.is_closed_by_the_server()
    with open_client(small) as other:
        assert_served(other)


HANDSHAKES = {  # what the server closes the connection for, whatever it has sent before
    "unknown client flags": struct.pack(">I", 4),
    "a wrong option magic": struct.pack(">I8sII", 3, b"IHAVEOPS", 1, 0),
    "the name of no export": hello(b"nobody"),
    "a name that is too long": hello(b"x" * 5000),
    "a name that is no text": hello(b"\xff\xfe"),
    "an option of a client that is not fixed newstyle": struct.pack(">I8sII", 0, b"IHAVEOPT", 3, 0),
    "an abort": struct.pack(">I8sII", 3, b"IHAVEOPT", 2, 0),
}


@pytest.mark.parametrize("said", HANDSHAKES.values(), ids=HANDSHAKES)
def test_a_handshake_that_cannot_go_on_costs_its_client_the_connection_and_nobody_else(said, huge):
    with socket.socket(socket.AF_UNIX) as client, open_client(huge) as other:
        client.settimeout(ANSWER_S)
        client.connect(path_of(huge))
        client.sendall(said)
        while client.recv(MIB):
            pass
        assert_served(other)


# Anything at all.

FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
RANDOM_BYTES = 100_000


def send_until_hung_up(client, data):
    """Send all of it, or as much as the server reads; then leave, without a look at what came back."""
    with suppress(OSError):
        client.setblocking(False)
        for start in range(0, len(data), 10_000):
            with suppress(BlockingIOError):
                client.recv(MIB)
            client.sendall(data[start : start + 10_000])


def random_requests(source):
    """Requests that are mostly understood: what follows the magic is likely, and likely to be wrong."""
    numbers = (0, 1, 511, 512, BLOCK - 1, BLOCK, MIB - 1, MIB, MIB + 1, LIMIT, LONGEST)
    parts = []
    while sum(map(len, parts)) < RANDOM_BYTES:
        command = source.choice((*C, *C, *C, 8, 0xFFFF))
        if command == C.DISC and source.random() < 0.95:
            continue
        length = source.choice(numbers)
        if command == C.WRITE:
            length = min(length, 5000)
        flags = source.choice((0, 0, 0, 1 << source.randrange(16), source.randrange(1 << 16)))
        parts.append(request(command, source.getrandbits(64), source.choice(numbers), length, b"", flags))
        if command == C.WRITE:
            parts.append(source.randbytes(length))
    return b"".join(parts)


FUZZERS = {
    "at the handshake": lambda source: source.randbytes(RANDOM_BYTES),
    "as options": lambda source: (
        b"\0\0\0\3"
        + b"".join(
            struct.pack(">8sII", b"IHAVEOPT", source.randrange(2, 12), length) + source.randbytes(length)
            for length in [source.choice((0, 4, 6, 50, 5000)) for _ in range(60)]
        )
    ),
    "at the transmission": lambda source: hello() + source.randbytes(RANDOM_BYTES),
    "as requests": lambda source: hello() + random_requests(source),
}


@pytest.mark.parametrize("make", FUZZERS.values(), ids=FUZZERS)
def test_random_bytes_harm_nobody_but_their_sender(make, small):
    with open_client(small) as witness:

        @FUZZ
        @given(seed=st.integers(0, 1 << 32))
        def check(seed):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(ANSWER_S)
                client.connect(path_of(small))
                assert client.recv(GREETING_BYTES, socket.MSG_WAITALL).startswith(b"NBDMAGIC")
                send_until_hung_up(client, make(random.Random(seed)))
            assert len(witness.pread(0, 512)) == 512
            with open_client(small) as newcomer:
                assert len(newcomer.pread(0, 512)) == 512

        check()


# The order of replies.


def test_replies_come_out_of_order_when_the_base_is_slow_and_none_is_lost(short_path):
    """Of the scripted base, even blocks are ready and odd ones are not."""
    block = 4096
    content = bytes(1 + index % 251 for index in range(20 * block))
    base = GatedBase(Setup(content, block))
    gate = base.gate = Gate()
    with serving(base, short_path, block_size=block) as running, raw_client(running) as client:
        gate.shut()
        client.send(request(C.READ, 1, block, block))
        gate.wait_for_arrival()
        client.send(b"".join(request(C.READ, cookie, cookie * block, block) for cookie in range(2, 20)))
        lengths = dict.fromkeys(range(20), block)
        first = [client.reply(lengths) for _ in range(18)]
        gate.open()
        replies = [*first, client.reply(lengths)]
    cookies = [cookie for cookie, _, _ in replies]
    assert cookies[-1] == 1
    assert sorted(cookies) == list(range(1, 20))
    for cookie, error, data in replies:
        assert error == 0
        assert data == content[cookie * block : (cookie + 1) * block]


# A client that does not read.


def session_of(running, threads_before):
    """The session that was opened since; reached into, for no client can see how much the server keeps."""
    (session,) = set(running.server._sessions) - threads_before
    return session


def until_it_takes_no_more(session, other):
    """Until the session is paused; another client's requests, served meanwhile, are the clock."""
    for served in range(20_000):
        if session._in_flight.is_paused():
            return
        assert len(other.pread(served % KIB, 512)) == 512
    raise AssertionError("the server has not paused the client")


def receive_into(sock, buffer):
    rest = memoryview(buffer)
    while rest:
        count = sock.recv_into(rest)
        assert count, "the server hung up"
        rest = rest[count:]


def test_a_client_that_reads_no_replies_is_paused_and_gets_them_all_once_it_reads(short_path):
    content = random.Random(4).randbytes(4 * MIB)
    reads = {cookie: cookie * 1009 % (3 * MIB) for cookie in range(3000)}
    with serving(BytesBase(content), short_path) as running, open_client(running) as other:
        others = set(running.server._sessions)
        with raw_client(running) as client:
            session = session_of(running, others)
            before = rss_bytes()
            client.send(b"".join(request(C.READ, cookie, offset, MIB) for cookie, offset in reads.items()))
            until_it_takes_no_more(session, other)
            for _ in range(100):
                assert other.pread(1, 512) == content[1:513]
            assert session._outbox.size_bytes <= PAUSE_BYTES + MIB + KIB
            assert rss_bytes() - before < PAUSE_BYTES + MIB + SLACK_BYTES
            received, view = bytearray(16 + MIB), memoryview(content)
            for _ in range(len(reads)):
                receive_into(client.socket, received)
                magic, error, cookie = struct.unpack_from(">IIQ", received)
                assert (magic, error) == (0x67446698, 0)
                offset = reads.pop(cookie)
                assert memoryview(received)[16:] == view[offset : offset + MIB]
            assert not reads
            assert rss_bytes() - before < PAUSE_BYTES + MIB + SLACK_BYTES
        assert other.pread(0, 512) == content[:512]


def send_until_paused(client, session, other, data):
    """Send as much as it takes until the server takes no more; what is left to be sent."""
    client.socket.setblocking(False)
    rest = memoryview(data)
    while rest and not session._in_flight.is_paused():
        with suppress(BlockingIOError):
            rest = rest[client.socket.send(rest[: 64 * KIB]) :]
        assert len(other.pread(0, 512)) == 512
    until_it_takes_no_more(session, other)
    return rest


def memory_of(item):
    """What one item of an outbox takes, and its place there: what Python tells, so rather too little."""
    on_error = getattr(item, "on_error", None)
    return 8 + sys.getsizeof(item) + (sys.getsizeof(on_error) if on_error else 0)


FLOODS = {
    "small replies": request(C.FLUSH, 1),
    "errors": request(77, 1),
    "replies by reference": request(C.READ, 1, 0, BLOCK),
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_a_client_is_paused_by_the_memory_that_its_replies_take_not_by_their_bytes(
    flood, short_path, tmp_path, monkeypatch
):
    """A reply of 16 bytes is an object of 49, and a slice of a file, which counts for nothing, several of them."""
    pause_bytes = MIB
    monkeypatch.setattr("impl.server.in_flight.PAUSE_BYTES", pause_bytes)
    (tmp_path / "base").write_bytes(bytes(MIB))
    base = FileBase(tmp_path / "base")
    base.is_ready = lambda offset, length: True
    with serving(base, short_path) as running, open_client(running) as other:
        others = set(running.server._sessions)
        with raw_client(running) as client:
            session = session_of(running, others)
            send_until_paused(client, session, other, flood * 300_000)
            assert sum(map(memory_of, session._outbox.items)) < 2 * pause_bytes


# A client whose requests wait for the base. Of one connection, docs/promises.md says (P8), 64 MiB and 1,024 requests.

HELD_MAX_BYTES, HELD_MAX_COUNT = 64 * MIB, 1024
# What the kernel keeps of what was sent and not received, at most: its buffers of both ends, and what is on the way.
KERNEL_BYTES = 8 * MIB


class HeldBase(MemoryBase):
    """A base that gives nothing until it is let: however much is asked meanwhile, all of it waits."""

    def __init__(self, size):
        super().__init__(size)
        self._let = threading.Event()

    def is_ready(self, offset, length):
        return False

    def pread(self, offset, length):
        assert self._let.wait(4 * ANSWER_S), "the test has left its requests waiting"
        return super().pread(offset, length)

    def let(self):
        self._let.set()


@contextmanager
def waiting_for_the_base(folder, size):
    """A base that is held, a raw client, its session, and another client whose reads wait for nothing."""
    base = HeldBase(size)
    with serving(base, folder) as running, open_client(running) as other:
        other.pwrite(0, bytes(BLOCK))  # a whole block, which the base is not asked for
        others = set(running.server._sessions)
        try:
            with raw_client(running) as client:
                yield base, client, session_of(running, others), other
        finally:
            base.let()


def test_a_client_whose_large_writes_wait_for_the_base_is_paused_before_one_too_many_is_held(short_path):
    """They begin within a block, the rest of which has to be fetched first."""
    count, payload = 5, random.Random(5).randbytes(LIMIT)
    data = b"".join(request(C.WRITE, cookie, BLOCK + 1, payload=payload) for cookie in range(count))
    with waiting_for_the_base(short_path, 2 * LIMIT) as (base, client, session, other):
        before = rss_bytes()
        rest = send_until_paused(client, session, other, data)
        for _ in range(100):
            with suppress(BlockingIOError):
                rest = rest[client.socket.send(rest) :]
            assert other.pread(0, 512) == bytes(512)
        assert len(data) - len(rest) <= HELD_MAX_BYTES + LIMIT + KERNEL_BYTES
        assert rss_bytes() - before < HELD_MAX_BYTES + LIMIT + SLACK_BYTES
        base.let()
        client.socket.settimeout(ANSWER_S)
        client.send(rest)
        assert sorted(client.reply() for _ in range(count)) == [(cookie, 0, b"") for cookie in range(count)]
        assert other.pread(BLOCK + 1, LIMIT) == payload


def test_a_client_of_whose_small_requests_too_many_wait_for_the_base_is_paused_and_then_answered(short_path):
    """More than one buffer of the server holds, so that some are received, and some are not, when it pauses."""
    cookies = range(5000)
    with waiting_for_the_base(short_path, MIB) as (base, client, session, other):
        client.send(b"".join(request(C.READ, cookie, 2 * BLOCK + cookie, 1) for cookie in cookies))
        until_it_takes_no_more(session, other)
        for _ in range(100):
            assert other.pread(0, 512) == bytes(512)
        assert session._in_flight.count == HELD_MAX_COUNT
        base.let()
        replies = sorted(client.reply(dict.fromkeys(cookies, 1)) for _ in cookies)
        assert replies == [(cookie, 0, b"\0") for cookie in cookies]


def test_after_the_server_was_told_to_stop_requests_are_refused_and_those_in_flight_are_answered(short_path):
    """Of the scripted base, even blocks are ready and odd ones are not."""
    block = 4096
    base = GatedBase(Setup(bytes(2 * block), block))
    gate = base.gate = Gate()
    with serving(base, short_path, block_size=block) as running:
        with raw_client(running) as client:
            gate.shut()
            client.send(request(C.READ, 1, block, 512))
            gate.wait_for_arrival()  # a session with nothing in flight would leave at once
            running.server.stop()
            # Its sessions hear of it soon, and until then they serve.
            for cookie in range(2, 20_000):
                client.send(request(C.FLUSH, cookie))
                _, error, _ = reply = client.reply()
                assert reply == (cookie, error, b"")
                if error:
                    break
            assert error == E.ESHUTDOWN
            gate.open()
            assert client.reply({1: 512}) == (1, OK, bytes(512))
            assert client.is_closed_by_the_server()
        running.thread.join(ANSWER_S)
        assert not running.thread.is_alive()


# A client that sends faster than the server receives.


class Endless(socket.socket):
    """A socket that, once the handshake is over, has another request whenever it is asked, `ENOUGH` of them."""

    ENOUGH = 1000

    def __init__(self, fd, loop):
        super().__init__(fileno=fd)
        self._loop = loop
        self._since_turn = 0
        self.received = 0
        self.most_between_turns = 0

    def recv(self, _, flags):
        """The handshake, and nothing behind it: what stays in the kernel keeps the socket readable."""
        return super().recv(len(hello()), flags)

    def recv_into(self, buffer, *_):
        if self.received == self.ENOUGH:
            return 0
        if not self._since_turn:
            self._loop.call_soon(self._turn)
        self.received += 1
        self._since_turn += 1
        self.most_between_turns = max(self.most_between_turns, self._since_turn)
        asked = request(C.FLUSH, self.received)
        buffer[: len(asked)] = asked
        return len(asked)

    def _turn(self):
        """What else the loop has to do: to send what a worker could not, or to stop."""
        self._since_turn = 0


def read_all(sock):
    """What the server sends is not let pile up. It closes with something of ours unread: that is a reset."""
    with sock, suppress(ConnectionResetError):
        while sock.recv(1 << 16):
            pass


@pytest.mark.parametrize(("is_alone", "receives"), [(False, 1), (True, RECEIVES_MAX)], ids=["shared", "own"])
def test_a_client_that_always_has_more_to_say_leaves_the_loop_its_turns(is_alone, receives):
    export = make_export(MemoryBase(MIB), ExportOptions(store="memory"))
    loop = Loop()
    ours, theirs = socket.socketpair()
    with Endless(ours.detach(), loop) as endless, theirs:
        session = Session(endless, "endless", {"": export}, "", THREADS, loop, on_end=loop.stop)
        if is_alone:
            session._shared_loop = another = Loop()
            another.close()
        theirs.sendall(hello() + b"?")
        reading = threading.Thread(target=read_all, args=(theirs.dup(),))
        reading.start()
        loop.call_soon(session.start)
        loop.run()
        reading.join(ANSWER_S)
        assert not reading.is_alive()
        assert endless.received == Endless.ENOUGH
        assert endless.most_between_turns == receives < Endless.ENOUGH
    export.close()
