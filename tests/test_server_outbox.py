"""The outbox: replies leave whole and in order, and nobody waits for a client.

Source: impl/server/outbox.py; NBD protocol, "Structured reply chunk message", "NBD_CMD_READ".
"""

import errno
import os
import random
import select
import socket
import struct
import threading
from contextlib import contextmanager

import pytest

from impl.nbd import replies
from impl.nbd.constants import ChunkType, Command, ErrorValue
from impl.nbd.reply_reader import Expectation, ReplyReader
from impl.server.outbox import SEND_BUFFERS_MAX, BrokenReply, FileSlice, Outbox, zeroes

KIB, MIB = 1 << 10, 1 << 20
SMALL_SOCKET_BYTES = 8 * KIB
WAIT_S = 20
# How long something that must not happen is given to happen: it decides nothing while the outbox is right.
REFUTE_S = 0.2


@contextmanager
def linked(buffer_bytes=None):
    """An outbox, and the other end of its socket."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        if buffer_bytes is not None:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
        yield Outbox(ours), theirs


def receive_available(sock):
    """What has arrived by now."""
    parts = []
    try:
        while part := sock.recv(MIB, socket.MSG_DONTWAIT):
            parts.append(part)
    except BlockingIOError:
        pass
    return b"".join(parts)


def drain(outbox, theirs):
    """All that leaves, received piece by piece; how often the socket was full."""
    received, full = b"", 0
    while not outbox.flush():
        full += 1
        received += receive_available(theirs)
    return received + receive_available(theirs), full


def as_bytes(item):
    return os.pread(item.fd, item.length, item.offset) if isinstance(item, FileSlice) else bytes(item)


@pytest.fixture
def file(tmp_path):
    """A descriptor of a file of 4 MiB without two equal pages."""
    path = tmp_path / "base"
    path.write_bytes(random.Random(1).randbytes(4 * MIB))
    with path.open("r+b") as opened:
        yield opened.fileno()


# Order and wholeness, from one thread.

OUTGOING = [  # (claim, items as functions of a file descriptor)
    ("nothing", lambda fd: []),
    ("one small reply", lambda fd: [b"reply"]),
    ("every kind of buffer", lambda fd: [b"bytes", bytearray(b"bytearray"), memoryview(b"a view")[2:]]),
    ("empty buffers", lambda fd: [b"", b"first", b"", bytearray(), b"second", b""]),
    ("nothing but empty buffers", lambda fd: [b""] * 3),
    ("more buffers than one call takes", lambda fd: [b"%05d" % number for number in range(3 * SEND_BUFFERS_MAX + 1)]),
    ("a buffer longer than the socket's", lambda fd: [random.Random(2).randbytes(3 * MIB)]),
    ("zeroes that are not made", lambda fd: zeroes(2 * MIB + 5)),
    ("a slice of a file", lambda fd: [FileSlice(fd, 4097, 100 * KIB, None)]),
    ("a slice up to the end", lambda fd: [FileSlice(fd, 4 * MIB - 1, 1, None)]),
    ("a slice longer than the socket's buffer", lambda fd: [FileSlice(fd, 1, 3 * MIB, None)]),
    (
        "slices between buffers",
        lambda fd: [b"a" * 30 * KIB, FileSlice(fd, 0, 40 * KIB, None), b"", FileSlice(fd, 7, 9, None), b"end"],
    ),
]


def add_and_flush(outbox, items):
    """The one way to have something sent."""
    outbox.add(items)
    return outbox.flush()


def send(outbox, items):
    """The other."""
    return outbox.send(list(items))


WAYS = pytest.mark.parametrize("way", [add_and_flush, send])


@WAYS
@pytest.mark.parametrize("buffer_bytes", [None, SMALL_SOCKET_BYTES], ids=["roomy", "tight"])
@pytest.mark.parametrize("items", [make for _, make in OUTGOING], ids=[claim for claim, _ in OUTGOING])
def test_what_is_added_leaves_in_order_however_full_the_socket_is(items, buffer_bytes, file, way):
    expected = b"".join(as_bytes(item) for item in items(file))
    with linked(buffer_bytes) as (outbox, theirs):
        is_sent = way(outbox, items(file))
        assert is_sent is not bool(outbox.items)
        received, full = drain(outbox, theirs)
        full += not is_sent
        assert received == expected
        assert full or len(expected) <= 200 * KIB
        assert not outbox.items
        assert outbox.size_bytes == 0


@WAYS
def test_a_full_socket_takes_no_more_and_the_rest_goes_once_it_is_read(way):
    data = random.Random(3).randbytes(2 * MIB)
    with linked(SMALL_SOCKET_BYTES) as (outbox, theirs):
        assert way(outbox, [data]) is False
        left = outbox.size_bytes
        assert 0 < left < len(data)
        assert outbox.flush() is False
        assert outbox.size_bytes == left
        assert way(outbox, [b"behind"]) is False
        assert outbox.size_bytes == left + len(b"behind")
        assert drain(outbox, theirs)[0] == data + b"behind"


def test_an_empty_outbox_has_sent_all():
    with linked() as (outbox, _):
        assert outbox.flush() is True
        outbox.add([])
        assert outbox.flush() is True


def test_a_slice_of_a_file_takes_no_memory(file):
    with linked(SMALL_SOCKET_BYTES) as (outbox, theirs):
        outbox.add([FileSlice(file, 0, 2 * MIB, None)])
        assert outbox.size_bytes == 0
        assert outbox.flush() is False
        assert outbox.size_bytes == 0
        assert drain(outbox, theirs)[0] == os.pread(file, 2 * MIB, 0)


@WAYS
def test_a_client_that_has_gone_costs_nothing_more(file, way):
    """It may have asked for something before it went, so this is not the session's end; but nobody hears a reply."""
    for item in (b"reply", FileSlice(file, 0, 100, lambda _: b"an error chunk, which nobody wants")):
        with linked() as (outbox, theirs):
            theirs.close()
            assert way(outbox, [item]) is True
            assert way(outbox, [b"another"]) is True
            assert not outbox.items
            assert outbox.size_bytes == 0


# A base that fails in the middle of a slice.

COOKIE = 7


def structured_read(fd, offset, length):
    """The reply to a read, as the server would queue it, all of it in one slice."""

    def failed(code):
        return replies.error_offset_chunk(COOKIE, ErrorValue.EIO, os.strerror(code), offset, done=False)

    header = replies.data_chunk_header(COOKIE, offset, length, done=False)
    return [header, FileSlice(fd, offset, length, failed), replies.done_chunk(COOKIE)]


def read_reply(received, offset, length):
    """The reply as a client understands it; everything received belongs to it."""
    reader = ReplyReader(True, (), lambda cookie: Expectation(Command.READ, 0, offset, length))
    found, rest = [], memoryview(received)
    while rest:
        buffer = reader.buffer()
        count = min(len(buffer), len(rest))
        buffer[:count] = rest[:count]
        rest = rest[count:]
        reader.received(count)
        while (reply := reader.next()) is not None:
            found.append(reply)
    (reply,) = found
    return reply


TRUNCATED = [  # (claim, length of the file, offset and length of the read)
    ("in the middle of the slice", MIB, 512 * KIB, MIB),
    ("at the start of the slice", MIB, MIB, 2 * MIB + 77),
    ("before the slice", MIB, 2 * MIB, MIB),
    ("to nothing", 0, 0, 64 * KIB),
]


@pytest.mark.parametrize(
    ("size", "offset", "length"), [row[1:] for row in TRUNCATED], ids=[row[0] for row in TRUNCATED]
)
def test_of_a_file_cut_short_the_rest_is_padded_and_an_error_chunk_follows(size, offset, length, file):
    was_there = os.pread(file, max(min(size - offset, length), 0), offset)
    os.ftruncate(file, size)
    with linked(SMALL_SOCKET_BYTES) as (outbox, theirs):
        outbox.add(structured_read(file, offset, length))
        outbox.add([replies.simple_reply(COOKIE + 1)])
        received, _ = drain(outbox, theirs)
        assert not outbox.items
        assert outbox.size_bytes == 0
    behind = replies.simple_reply(COOKIE + 1)
    assert received.endswith(behind)
    reply = read_reply(received[: -len(behind)], offset, length)
    assert reply.error == ErrorValue.EIO
    assert reply.error_offset == offset
    assert reply.chunks == (ChunkType.OFFSET_DATA, ChunkType.ERROR_OFFSET, ChunkType.NONE)
    assert bytes(reply.data) == was_there + bytes(length - len(was_there))


def test_a_file_cut_short_while_its_slice_is_on_the_way_is_padded_from_there_on(file):
    whole = os.pread(file, 2 * MIB, 0)
    with linked(SMALL_SOCKET_BYTES) as (outbox, theirs):
        outbox.add(structured_read(file, 0, 2 * MIB))
        assert outbox.flush() is False
        os.ftruncate(file, 0)
        reply = read_reply(drain(outbox, theirs)[0], 0, 2 * MIB)
    assert reply.error == ErrorValue.EIO
    data = bytes(reply.data)
    sent = len(data.rstrip(b"\0"))
    assert 0 < sent < 2 * MIB
    # Pages that wait in the socket are the file's own, and may have become zeroes with it.
    assert data[:sent] == whole[:sent]


def test_the_error_of_a_file_that_cannot_be_read_reaches_the_error_chunk(tmp_path):
    seen = []
    with (tmp_path / "base").open("wb") as write_only, linked() as (outbox, theirs):
        write_only.write(bytes(100))
        write_only.flush()
        outbox.add([FileSlice(write_only.fileno(), 0, 100, lambda code: seen.append(code) or b"error")])
        assert drain(outbox, theirs)[0] == bytes(100) + b"error"
    assert seen == [errno.EBADF]


def test_a_simple_reply_cut_short_breaks_the_connection_and_stays_broken(file):
    os.ftruncate(file, 100)
    header = replies.simple_reply(COOKIE)
    with linked() as (outbox, theirs):
        outbox.add([header, FileSlice(file, 0, 1000, None), b"never sent"])
        for _ in range(3):
            with pytest.raises(BrokenReply, match="base failed at 100"):
                outbox.flush()
        received = receive_available(theirs)
    assert received[: len(header)] == header
    assert len(received) == len(header) + 100


# Many threads.

FRAME = struct.Struct(">HHI")  # who sends, the number of the reply, bytes that follow
ADDERS, REPLIES = 8, 150


def make_replies(adder, fd):
    """Replies of several parts, some of them slices; every byte tells whose it is."""
    source = random.Random(adder)
    for number in range(REPLIES):
        parts = [bytes([adder + 1]) * source.choice((0, 1, 500, 20_000)) for _ in range(source.randrange(4))]
        slices = [FileSlice(fd, (adder + 1) * MIB // 4, source.randrange(1, 60_000), None)] * (number % 10 == 0)
        length = sum(map(len, parts)) + sum(item.length for item in slices)
        # A slice is used up by sending it, so each is an object of its own.
        yield [FRAME.pack(adder, number, length), *parts, *slices]


def parse_frames(received, fd):
    """Check that each reply came whole; (adder, number) in order of arrival."""
    order, at = [], 0
    while at < len(received):
        adder, number, length = FRAME.unpack_from(received, at)
        body = received[at + FRAME.size : at + FRAME.size + length]
        own = length - len(body.lstrip(bytes([adder + 1])))
        # What is not the adder's own byte is the file's, from where this adder's slices begin.
        base = (adder + 1) * MIB // 4
        assert any(body[cut:] == os.pread(fd, length - cut, base) for cut in range(max(own - 3, 0), own + 1)), (
            f"reply {number} of {adder} is not whole"
        )
        order.append((adder, number))
        at += FRAME.size + length
    return order


@WAYS
def test_many_adders_and_flushers_lose_nothing_and_interleave_nothing(file, way):
    """Whoever is told that not all was sent sees to the rest; who is not, need not."""
    with linked(64 * KIB) as (outbox, theirs):
        sock = outbox._sock
        failures = []

        def add_and_flush(adder):
            try:
                for reply in make_replies(adder, file):
                    is_sent = way(outbox, reply)
                    while not is_sent and not outbox.flush():
                        select.select([], [sock], [], WAIT_S)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=add_and_flush, args=(adder,)) for adder in range(ADDERS)]
        parts = []
        receiver = threading.Thread(target=lambda: parts.extend(iter(lambda: theirs.recv(MIB), b"")))
        for thread in (receiver, *threads):
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        assert not failures
        assert not outbox.items, "a reply was left lying though every flush has returned"
        assert outbox.size_bytes == 0
        sock.shutdown(socket.SHUT_WR)
        receiver.join(WAIT_S)
    order = parse_frames(b"".join(parts), file)
    assert len(order) == ADDERS * REPLIES
    for adder in range(ADDERS):
        assert [number for who, number in order if who == adder] == list(range(REPLIES))


class PausingReply(list):
    """A reply that, once its first part has been taken, gives another thread time to add its own."""

    def __init__(self, parts, go, other_added):
        super().__init__(parts)
        self._go, self._other_added = go, other_added

    def __iter__(self):
        for index, part in enumerate(super().__iter__()):
            yield part
            if index == 0 and not self._go.is_set():
                self._go.set()
                self._other_added.wait(REFUTE_S)


class AddsPartByPart(Outbox):
    """A mutant: a reply is not added whole."""

    def add(self, reply):
        for part in reply:
            super().add([part])


def add_two_at_once(outbox_class):
    """What leaves when one reply is added while another is being added."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        outbox = outbox_class(ours)
        go, other_added = threading.Event(), threading.Event()

        def other():
            go.wait(WAIT_S)
            outbox.add([b"C", b"D"])
            other_added.set()

        thread = threading.Thread(target=other)
        thread.start()
        outbox.add(PausingReply([b"A", b"B"], go, other_added))
        thread.join(WAIT_S)
        assert outbox.flush()
        return receive_available(theirs)


def test_a_reply_is_added_whole_while_another_thread_adds():
    assert add_two_at_once(Outbox) == b"ABCD"


def test_an_outbox_that_adds_part_by_part_is_found_out():
    assert add_two_at_once(AddsPartByPart) == b"ACDB"


class HeldSocket:
    """A socket whose sends wait until they are let go."""

    def __init__(self):
        self.sent = []
        self.busy = threading.Event()
        self.let_go = threading.Event()

    def sendmsg(self, buffers, *_):
        self.busy.set()
        assert self.let_go.wait(WAIT_S)
        self.sent += map(bytes, buffers)
        return sum(map(len, buffers))


@contextmanager
def one_thread_sending(way=add_and_flush):
    """An outbox one of whose threads is in the middle of a send; that thread's flush, and the socket."""
    sock = HeldSocket()
    outbox = Outbox(sock)
    results = []
    sender = threading.Thread(target=lambda: results.append(way(outbox, [b"first"])))
    sender.start()
    assert sock.busy.wait(WAIT_S)
    try:
        yield outbox, sock, sender, results
    finally:
        sock.let_go.set()
        sender.join(WAIT_S)


@WAYS
def test_nobody_waits_for_the_thread_that_sends_and_it_sends_what_they_added(way):
    with one_thread_sending(way) as (outbox, sock, sender, results):
        assert way(outbox, [b"second"]) is True
        assert sock.sent == []
        sock.let_go.set()
        sender.join(WAIT_S)
        assert results == [True]
        assert sock.sent == [b"first", b"second"]
        assert not outbox.items


class LatecomersLock:
    """A lock that lets something happen just before one of its acquisitions: where another thread could come in."""

    def __init__(self, lock, before, what):
        self._lock, self._left, self._what = lock, before, what

    def __enter__(self):
        self._left -= 1
        if self._left == 0:
            self._what()
        return self._lock.__enter__()

    def __exit__(self, *_):
        return self._lock.__exit__(*_)


class ShortSink:
    """A socket that takes three bytes at a time."""

    def __init__(self):
        self.sent = b""

    def sendmsg(self, buffers, *_):
        taken = b"".join(map(bytes, buffers))[:3]
        self.sent += taken
        return len(taken)


def test_what_did_not_fit_comes_before_what_another_thread_has_added_meanwhile():
    outbox = Outbox(sink := ShortSink())
    lock = outbox._changing

    def other():
        outbox._changing = lock
        assert outbox.send([b"second"]) is True, "the thread that sends sees to it"

    outbox._changing = LatecomersLock(lock, 2, other)
    assert outbox.send([b"the", b"first"]) is True
    assert sink.sent == b"thefirstsecond"
    assert outbox.sent_bytes == len(sink.sent)
    assert (list(outbox.items), outbox.size_bytes) == ([], 0)


class Sink:
    """A socket that takes everything."""

    def __init__(self):
        self.sent = []

    def sendmsg(self, buffers, *_):
        self.sent += map(bytes, buffers)
        return sum(map(len, buffers))


FLUSH_STEPS = 2  # at least so many steps has a flush that sends one reply


@WAYS
@pytest.mark.parametrize("before", range(1, 3 * FLUSH_STEPS))
def test_a_reply_that_is_added_at_any_step_of_another_threads_flush_is_sent_by_one_of_them(before, way):
    """Between its steps, that is: a step is what happens while it holds the lock, so what is sent is a matter of these
    orders alone, and not of when one processor sees what another has written.
    """
    outbox, added = Outbox(sink := Sink()), []
    lock = outbox._changing

    def other():
        outbox._changing = lock
        added.append(way(outbox, [b"second"]))
        outbox._changing = late

    late = LatecomersLock(lock, before, other)
    outbox._changing = late
    assert way(outbox, [b"first"]) is True
    assert added or before > FLUSH_STEPS
    assert sorted(sink.sent) == ([b"first", b"second"] if added else [b"first"])
    assert not outbox.items


@WAYS
def test_close_waits_until_no_thread_uses_the_socket(way):
    with one_thread_sending(way) as (outbox, sock, sender, results):
        outbox.add([b"never sent"])
        closed = threading.Event()
        closer = threading.Thread(target=lambda: (outbox.close(), closed.set()))
        closer.start()
        assert not closed.wait(REFUTE_S), "closed while a thread was sending"
        sock.let_go.set()
        assert closed.wait(WAIT_S)
        sender.join(WAIT_S)
        assert results == [True]
        assert sock.sent == [b"first"]


def test_after_close_nothing_is_kept_and_nothing_is_sent(file):
    with linked() as (outbox, theirs):
        outbox.add([b"reply", FileSlice(file, 0, 100, None)])
        outbox.close()
        assert add_and_flush(outbox, [b"too late"]) is True
        assert send(outbox, [b"too late"]) is True
        assert not outbox.items
        assert outbox.size_bytes == 0
        assert receive_available(theirs) == b""
