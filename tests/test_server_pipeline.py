"""Many requests on one connection at once: none is lost, none is answered wrongly, none stands behind another.

Source:  impl/server/session.py, impl/server/commands.py; promises P2, P4; NBD protocol, "Ordering of messages and
         writes". check/gates.py for the gates: no interleaving is awaited, each is chosen, but for the last test here,
         whose sequence of requests is the same for each seed, and whose interleavings are whatever happens.
"""

import random
import socket
import sys
import threading
from contextlib import ExitStack, contextmanager

import pytest
from raw_nbd import DISC, FLUSH, READ, REPLY, WRITE, RawClient, request
from servers import eventually
from test_server_concurrency import BASE, BLOCK, HELD, NEW, PART, Bench

from check.gates import Gate, GatedBase
from check.serving import serve_export
from check.subjects import Setup
from impl.base.memory import BytesBase
from impl.nbd.agreement import Agreement, ExportInfo
from impl.nbd.requests import BULK_PAYLOAD_MIN_BYTES, RequestReader
from impl.server.export import ExportOptions, make_export, transmission_flags

pytestmark = pytest.mark.timeout(120)

KIB, MIB = 1 << 10, 1 << 20
ANSWER_S = 20
ESHUTDOWN = 108


@pytest.fixture
def bench(short_path):
    """bench(**parts): a Bench; closed after the test."""
    with ExitStack() as stack:

        def make(**options):
            made = Bench(short_path, **options)
            stack.callback(made.close)
            return made

        yield make


# What waits for a range keeps nothing from running that does not overlap it, however much of it there is.

MANY = 50
WAITERS = {
    "reads": lambda client: client.pread_async(HELD, BLOCK),
    "writes": lambda client: client.pwrite_async(HELD, NEW),
    "writes of a part": lambda client: client.pwrite_async(HELD + 100, PART),
    "trims": lambda client: client.trim_async(HELD, BLOCK),
    "zeroes of a part": lambda client: client.zero_async(HELD + 7, 10),
    "caches": lambda client: client.cache_async(HELD, BLOCK),
    "statuses": lambda client: client.block_status_async(HELD, BLOCK),
}
DISJOINT = {
    "a read of a slow block": lambda client: client.pread(5 * BLOCK, BLOCK) == BASE[5 * BLOCK : 6 * BLOCK],
    "a write of a part of a slow block": lambda client: client.pwrite(5 * BLOCK + 1, b"x"),
    "a write": lambda client: client.pwrite(4 * BLOCK, NEW),
    "a trim": lambda client: client.trim(4 * BLOCK, BLOCK),
    "a zero of a part of a slow block": lambda client: client.zero(3 * BLOCK + 5, 5),
    "a cache": lambda client: client.cache(2 * BLOCK, 6 * BLOCK),
    "a status": lambda client: client.block_status(2 * BLOCK, 6 * BLOCK),
}


@pytest.mark.parametrize("zeroes_are_long", [False, True], ids=["short zeroes", "long zeroes"])
@pytest.mark.parametrize("waiter", WAITERS.values(), ids=WAITERS)
def test_however_many_wait_for_one_range_each_that_does_not_overlap_it_is_done(
    waiter, zeroes_are_long, bench, monkeypatch
):
    """With one thread of each kind; so a single waiter would do, if it waited in one."""
    if zeroes_are_long:
        monkeypatch.setattr("impl.server.commands.ZERO_AT_ONCE_MAX_BYTES", 0)
    made = bench(threads=1, cache_mode="read")
    writer, client = made.client(), made.client()
    writer.pwrite(HELD, NEW)
    held, gate = made.stop_in_store(lambda: writer.pwrite_async(HELD, NEW))
    waiting = [waiter(client) for _ in range(MANY)]
    for disjoint in DISJOINT.values():
        assert disjoint(client) is not False
    assert not any(future.done() for future in waiting)
    gate.open()
    writer.wait(held)
    for future in waiting:
        client.wait(future)
    assert made.overlay.ranges.at_once(0, 7, True) is not None, "somebody has not given his range back"


@pytest.mark.parametrize("waiter", WAITERS.values(), ids=WAITERS)
def test_one_that_has_waited_for_its_range_is_done_while_others_wait_for_another(waiter, bench):
    made = bench(threads=1)
    first, second, client = made.client(), made.client(), made.client()
    for block in (HELD, 4 * BLOCK):
        first.pwrite(block, bytes(BLOCK))
    one, one_gate = made.stop_in_store(lambda: first.pwrite_async(HELD, NEW))
    waiting = [waiter(client) for _ in range(MANY)]
    two, two_gate = made.stop_in_store(lambda: second.pwrite_async(4 * BLOCK, NEW))
    after = client.pread_async(4 * BLOCK, BLOCK)
    client.flush()
    assert not after.done()
    two_gate.open()
    second.wait(two)
    assert client.wait(after) == NEW
    assert not any(future.done() for future in waiting)
    one_gate.open()
    first.wait(one)
    for future in waiting:
        client.wait(future)


def test_a_hint_to_the_base_does_not_stand_behind_reads_that_wait_for_it(bench):
    made = bench(threads=1, cache_mode="passthrough")
    client = made.client()
    slow, gate = made.stop_in_base(lambda: client.pread_async(HELD, BLOCK))
    client.cache(0, len(BASE))
    assert not slow.done()
    gate.open()
    client.wait(slow)


def test_what_takes_long_by_itself_does_not_keep_the_rest_waiting(bench, monkeypatch):
    """Nor those who have waited for their range: they have threads of their own."""
    monkeypatch.setattr("impl.server.commands.ZERO_AT_ONCE_MAX_BYTES", BLOCK)
    made = bench(threads=1)
    writer, client = made.client(), made.client()
    long, long_gate = made.stop_in_store(lambda: client.zero_async(0, 2 * BLOCK, no_hole=True))
    held, gate = made.stop_in_store(lambda: writer.pwrite_async(4 * BLOCK, NEW))
    waits = client.pwrite_async(4 * BLOCK, NEW)
    assert client.pread(3 * BLOCK, BLOCK) == BASE[3 * BLOCK : 4 * BLOCK]
    gate.open()
    writer.wait(held)
    client.wait(waits)
    assert not long.done()
    long_gate.open()
    client.wait(long)


# Payloads that are not overwritten by those behind them.

LARGE = 64 * KIB
PAYLOAD_BYTES = 40_000


def send_in_two(client, session, cookie, offset, payload):
    """A write whose payload gets a buffer of its own: it is not whole when its header is taken."""
    data = request(WRITE, cookie, offset, payload=payload)
    client.send(data[:1000])
    eventually(lambda: session._reader.awaits_payload, "the header has been taken")
    client.send(data[1000:])


def test_a_payload_that_a_worker_has_is_not_the_buffer_of_the_next_one(short_path):
    content = bytes(1 + index % 251 for index in range(4 * LARGE))
    base = GatedBase(Setup(content, LARGE))
    export = make_export(base, ExportOptions(block_size=LARGE, store="memory"))
    running = serve_export(export, str(short_path / "s"), 2)
    gate = base.gate = Gate()
    try:
        with RawClient(short_path / "s") as client:
            (session,) = running.server._sessions
            gate.shut()
            send_in_two(client, session, 1, LARGE + 100, b"a" * PAYLOAD_BYTES)
            gate.wait_for_arrival()
            for cookie in (2, 3):
                send_in_two(client, session, cookie, 100, bytes([cookie]) * PAYLOAD_BYTES)
                assert client.reply() == (cookie, 0, b"")
            gate.open()
            assert client.reply() == (1, 0, b"")
            client.send(request(READ, 4, LARGE + 100, PAYLOAD_BYTES) + request(READ, 5, 100, PAYLOAD_BYTES))
            found = dict(client.reply({4: PAYLOAD_BYTES, 5: PAYLOAD_BYTES})[::2] for _ in range(2))
            assert found[4] == b"a" * PAYLOAD_BYTES
            assert found[5] == b"\3" * PAYLOAD_BYTES
    finally:
        gate.open()
        running.stop()
        export.close()


def test_a_buffer_that_was_given_back_is_given_to_one_payload_and_not_to_the_one_behind_it():
    info = ExportInfo("", MIB, "", transmission_flags(False))
    reader = RequestReader(Agreement(info, info.flags, False, ()))

    def receive(data):
        while data:
            assert reader.next() is None
            room = reader.buffer()
            count = min(len(room), len(data))
            room[:count] = data[:count]
            reader.received(count)
            data = data[count:]
        return reader.next()

    def take(cookie):
        data = request(WRITE, cookie, 0, payload=bytes([cookie]) * BULK_PAYLOAD_MIN_BYTES)
        assert receive(data[:100]) is None
        return receive(data[100:]).payload

    first = take(1)
    reader.give_back(first)
    second, third = take(2), take(3)
    assert bytes(second) == b"\2" * BULK_PAYLOAD_MIN_BYTES
    assert bytes(third) == b"\3" * BULK_PAYLOAD_MIN_BYTES


# Anything, in any pieces.

SIZE = 8 * MIB
SLOTS = 60
DATA = random.Random(1).randbytes(SIZE)
SEEDS = range(24)


class Jittery(BytesBase):
    """A base that is ready or not, and fast or not so fast, as it comes."""

    def __init__(self, source):
        super().__init__(DATA)
        self._source = source
        self._never = threading.Event()

    def is_ready(self, offset, length):
        return self._source.random() < 0.5

    def pread(self, offset, length):
        if self._source.random() < 0.2:
            self._never.wait(self._source.choice((0.0001, 0.0005, 0.002)))
        return super().pread(offset, length)


class Script:
    """The requests of one seed: reads anywhere in the upper half, and writes to places of their own below it."""

    def __init__(self, source):
        self.count = source.choice((50, 300, 800))
        self.read_lengths, self.reads, self.writes, parts = {}, {}, {}, []
        for cookie in range(self.count):
            kind = source.random()
            if kind < 0.5:
                length = source.choice((1, 100, 5000, 40_000))
                offset = source.randrange(SIZE // 2, SIZE - length)
                self.read_lengths[cookie], self.reads[cookie] = length, offset
                parts.append(request(READ, cookie, offset, length))
            elif kind < 0.9 and len(self.writes) < SLOTS:
                offset = len(self.writes) * 66 * KIB + source.choice((0, 100))
                payload = bytes([1 + cookie % 255]) * source.choice((10, 4096, 33_000, 40_000, 66_000))
                self.writes[cookie] = offset, payload
                parts.append(request(WRITE, cookie, offset, payload=payload))
            else:
                parts.append(request(FLUSH, cookie))
        self.data = b"".join(parts)


@contextmanager
def quick_switches():
    """Threads that are interrupted as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def send_in_odd_pieces(client, script, source, end):
    """All of it, and then the end of the conversation; less if the server has ended it before."""
    try:
        at = 0
        while at < len(script.data):
            count = source.choice((1, 27, 5000, 70_000, 400_000))
            client.send(script.data[at : at + count])
            at += count
        if end == "DISC":
            client.send(request(DISC, 0))
        elif end == "half-close":
            client.finish_sending()
    except OSError:
        assert end == "stop"


def receive_replies(client, script, whenever):
    """The error of each cookie, until the server hangs up; what was read is looked at."""
    errors = {}
    while header := client.socket.recv(REPLY.size, socket.MSG_WAITALL):
        magic, error, cookie = REPLY.unpack(header)
        assert magic == 0x67446698
        assert cookie not in errors, "answered twice"
        errors[cookie] = error
        if not error and (length := script.read_lengths.get(cookie)):
            offset = script.reads[cookie]
            assert client.receive(length) == DATA[offset : offset + length]
        whenever(len(errors))
    return errors


class StopAfter:
    """Stops the server once so many replies have come; never, if `count` is None."""

    def __init__(self, server, count):
        self._server, self._count = server, count

    def __call__(self, replies):
        if replies == self._count:
            self._server.stop()


@pytest.mark.parametrize("end", ["DISC", "half-close", "stop"])
@pytest.mark.parametrize("group", range(4))
def test_every_request_is_answered_once_and_every_write_that_was_acknowledged_is_there(
    end, group, short_path, monkeypatch
):
    """After a stop, some are refused; then too, none is answered wrongly, and none that was acknowledged is lost."""
    for seed in SEEDS[group::4]:
        source = random.Random(seed)
        monkeypatch.setattr("impl.server.in_flight.PAUSE_BYTES", source.choice((200 * KIB, MIB, 64 * MIB)))
        monkeypatch.setattr("impl.server.in_flight.PAUSE_REQUESTS", source.choice((3, 50, 1024)))
        monkeypatch.setattr("impl.server.in_flight.PAUSE_ITEMS", source.choice((5, 100, 4096)))
        copies = source.random() < 0.5
        options = ExportOptions(block_size=4 * KIB, store="memory", copy_on_read=lambda copies=copies: copies)
        export = make_export(Jittery(random.Random(seed)), options)
        running = serve_export(export, str(short_path / f"s{seed}"), source.choice((1, 3, 8)), grace_s=ANSWER_S)
        script = Script(source)
        stop = StopAfter(running.server, source.randrange(1, script.count) if end == "stop" else None)
        try:
            with quick_switches(), RawClient(short_path / f"s{seed}") as client:
                sender = threading.Thread(target=send_in_odd_pieces, args=(client, script, source, end))
                sender.start()
                errors = receive_replies(client, script, stop)
                client.socket.close()
                sender.join(ANSWER_S)
                assert not sender.is_alive()
            assert set(errors.values()) <= ({0, ESHUTDOWN} if end == "stop" else {0}), f"seed {seed}"
            assert len(errors) == script.count or end == "stop", f"seed {seed}: {len(errors)} of {script.count}"
            for cookie, (offset, payload) in script.writes.items():
                found = export.overlay.pread(offset, len(payload))
                if errors.get(cookie) == 0:
                    assert found == payload, f"seed {seed}: write {cookie} was acknowledged, and is lost"
                elif errors.get(cookie) == ESHUTDOWN:
                    assert found == DATA[offset : offset + len(payload)], f"seed {seed}: write {cookie} was refused"
        finally:
            if end == "stop":  # once is enough
                running.thread.join(ANSWER_S)
            running.stop()
            export.close()
        assert running.server._clean
