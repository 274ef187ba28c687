"""How the server ends: what is finished, what is refused, what is dropped, and what the exit status says of it.

In this process, where a test can reach into it, choose what is running at the moment of the stop, and set its clocks.

Source:  impl/server/session.py, "Phases"; NBD protocol, "Terminating the transmission phase".
"""

import itertools
import select
import socket
import struct
import threading
from collections import deque
from contextlib import ExitStack

import pytest
from raw_nbd import FLUSH, READ, TRIM, WRITE, RawClient, request
from servers import MIB, eventually
from test_server_concurrency import BASE, BLOCK, HELD, NEW, PART, Bench

from check.gates import Gate
from check.serving import serve_export
from impl.base.memory import BytesBase
from impl.server.export import ExportOptions, make_export
from impl.server.loop import Loop
from impl.server.server import Server

pytestmark = pytest.mark.timeout(60)

WAIT_S = 20
# How long something that must not happen is given to happen: it decides nothing while the server is right.
REFUTE_S = 0.2
CACHE, ESHUTDOWN = 5, 108


@pytest.fixture
def bench(short_path):
    """bench(**parts): a Bench; closed after the test."""
    with ExitStack() as stack:

        def make(**options):
            made = Bench(short_path, **options)
            stack.callback(made.close)
            return made

        yield make


def run_to_the_end(server, **arguments):
    """What `run` returns; a server that does not end fails the test instead of hanging it."""
    results = []
    thread = threading.Thread(target=lambda: results.append(server.run(**arguments)), daemon=True)
    thread.start()
    thread.join(WAIT_S)
    assert results, "the server did not end"
    return results[0]


# One client only.


def reset_connection():
    """A TCP socket whose peer has vanished before anybody looked at it."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as peer:
        accepted, _ = listener.accept()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    accepted.setblocking(True)
    with pytest.raises(ConnectionError):
        accepted.recv(1)
    return accepted


def test_a_server_of_one_client_that_has_gone_before_it_was_served_ends_and_says_so():
    export = make_export(BytesBase(BASE), ExportOptions(store="memory"))
    try:
        sock = reset_connection()
        assert run_to_the_end(Server({"": export}, "", 1), only_client=sock) is False
        assert sock.fileno() == -1
    finally:
        export.close()


# Being told to stop: what has begun is finished, all else is refused.

SLOW = [BLOCK * odd for odd in (3, 5, 7)]
LATE = range(10, 30)


def wait_for_the_end(server):
    """Of one that has been told to stop. To tell it once more would be to tell it not to wait."""
    server.thread.join(WAIT_S)
    assert not server.thread.is_alive(), "the server did not stop"


def is_stopping(session):
    eventually(lambda: session._stopping, "the session has heard of it")


def late_requests():
    """Of every kind, each to be left to a worker; none changes what the base holds if none is done."""
    kinds = [
        lambda cookie, at: request(READ, cookie, at, BLOCK),
        lambda cookie, at: request(WRITE, cookie, at + 1, payload=b"late"),
        lambda cookie, at: request(TRIM, cookie, at + 1, 100),
        lambda cookie, at: request(CACHE, cookie, at, BLOCK),
    ]
    return b"".join(kinds[cookie % len(kinds)](cookie, SLOW[cookie % len(SLOW)]) for cookie in LATE)


def test_what_waits_for_a_worker_when_the_server_is_told_to_stop_is_refused_and_what_runs_is_finished(bench):
    """So a stop takes as long as what runs, and not as long as all that was ever asked for."""
    made = bench(threads=1, cache_mode="read", grace_s=WAIT_S)
    client = made.raw_client()
    gate = made.base.gate = Gate()
    gate.shut()
    client.send(request(WRITE, 1, HELD + 1, payload=b"begun"))
    gate.wait_for_arrival()
    client.send(late_requests() + request(FLUSH, 2))
    assert client.reply() == (2, 0, b"")
    session = made.session()
    made.server.stop()
    is_stopping(session)
    gate.open()
    replies = {cookie: error for cookie, error, _ in (client.reply() for _ in range(1 + len(LATE)))}
    assert replies == {1: 0, **dict.fromkeys(LATE, ESHUTDOWN)}
    assert client.is_closed_by_the_server()
    wait_for_the_end(made)
    assert made.server._clean
    assert made.overlay.states.get(0, 8) == bytes([0, 1, 0, 0, 0, 0, 0, 0])


def test_what_waits_for_its_range_when_the_server_is_told_to_stop_is_refused_once_it_would_have_it(bench):
    made = bench(threads=1, grace_s=WAIT_S)
    writer, client = made.raw_client(), made.raw_client()
    sessions = list(made.server._sessions)
    gate = made.store.gate = Gate()
    gate.shut()
    writer.send(request(WRITE, 1, HELD, payload=NEW))
    gate.wait_for_arrival()
    waiting = range(2, 12)
    client.send(b"".join(request(WRITE, cookie, HELD, payload=b"x" * BLOCK) for cookie in waiting) + request(FLUSH, 99))
    assert client.reply() == (99, 0, b"")
    made.server.stop()
    for session in sessions:
        is_stopping(session)
    gate.open()
    assert writer.reply() == (1, 0, b"")
    assert sorted(client.reply()[:2] for _ in waiting) == [(cookie, ESHUTDOWN) for cookie in waiting]
    wait_for_the_end(made)
    assert made.server._clean
    assert made.overlay.pread(HELD, BLOCK) == NEW


def test_a_stop_is_noticed_and_replies_are_sent_while_there_are_requests_to_take(bench, monkeypatch):
    """Thousands of them are received at once. The clock here goes on by a millisecond whenever it is looked at."""
    clock = itertools.count()
    monkeypatch.setattr("impl.server.session.monotonic", lambda: next(clock) / 1000)
    made = bench(grace_s=WAIT_S)
    client = made.raw_client()
    session = made.session()
    flushes, gate = itertools.count(1), Gate()
    monkeypatch.setattr(
        made.overlay.store, "sync", lambda: gate.pass_through() if next(flushes) == 500 else None, raising=False
    )
    gate.shut()
    client.send(b"".join(request(FLUSH, cookie) for cookie in range(1, 1001)))
    gate.wait_for_arrival()
    for cookie in range(1, 480):
        assert client.reply() == (cookie, 0, b"")
    made.server.stop()
    is_stopping(session)
    gate.open()
    for cookie in range(480, 501):
        assert client.reply() == (cookie, 0, b"")
    for cookie in range(501, 1001):
        assert client.reply() == (cookie, ESHUTDOWN, b"")
    assert client.is_closed_by_the_server()


def test_a_base_that_never_answers_is_given_up_and_the_server_says_that_it_did_not_end_cleanly(bench):
    made = bench(grace_s=0.1)
    _, gate = made.stop_in_base(lambda: made.client().pread_async(HELD, BLOCK))
    made.stop()
    assert not made.server._clean
    gate.open()


# A client that does not read its replies.


def ask_for_more_than_fits(client):
    """Twice as much as all buffers hold; wait until some of it is there."""
    client.send(b"".join(request(READ, cookie, 0, 32 * MIB) for cookie in range(4)))
    client.receive(16)


@pytest.fixture
def large(short_path):
    """A server of 32 MiB that would wait for longer than this test."""
    export = make_export(BytesBase(bytes(32 * MIB)), ExportOptions(store="memory"))
    running = serve_export(export, str(short_path / "large"), grace_s=1000)
    with RawClient(short_path / "large") as client:
        yield running, client
    running.stop()
    export.close()


def test_a_client_that_does_not_read_is_not_waited_for_once_all_is_done(large, monkeypatch):
    """And nothing was left undone: it ends cleanly."""
    monkeypatch.setattr("impl.server.session.UNREAD_S", 0.05)
    running, client = large
    ask_for_more_than_fits(client)
    running.stop()
    assert running.server._clean


def test_a_client_that_reads_is_waited_for_as_long_as_it_does(large, monkeypatch):
    """The time that it is given is up when the test says so."""
    timers = []
    monkeypatch.setattr("impl.server.session.UNREAD_S", 77)
    call_later = Loop.call_later

    def record(loop, delay_s, call, owner=None):
        if delay_s == 77:
            timers.append(call)
        else:
            call_later(loop, delay_s, call, owner)

    monkeypatch.setattr(Loop, "call_later", record)
    running, client = large
    (session,) = running.server._sessions
    ask_for_more_than_fits(client)
    running.server.stop()
    for _ in range(3):
        eventually(lambda: timers, "the client's time has begun")
        sent_bytes = session._outbox.sent_bytes
        client.receive(8 * MIB)  # more than a socket holds
        eventually(lambda sent_bytes=sent_bytes: session._outbox.sent_bytes > sent_bytes, "it reads")
        session._loop.call_soon(timers.pop())
    eventually(lambda: timers, "its time has begun again")
    assert not session._ended
    sent_bytes = session._outbox.sent_bytes
    session._loop.call_soon(timers.pop())
    wait_for_the_end(running)
    assert running.server._clean


# A client that has gone.


def leave(client, how):
    """Closing a socket in which replies lie unread resets a connection; so it does after reading none of them."""
    if how == "resets":
        client.send(request(FLUSH, 99))
        eventually(lambda: select.select([client.socket], [], [], 0)[0], "there is a reply")
    client.socket.close()


@pytest.mark.parametrize("how", ["closes", "resets"])
def test_of_a_client_that_has_gone_what_changes_something_happens_and_what_would_be_answered_does_not(how, bench):
    made = bench(threads=1, cache_mode="read")
    client = made.raw_client()
    session = made.session()
    gate = made.base.gate = Gate()
    gate.shut()
    client.send(request(READ, 1, HELD, BLOCK))
    gate.wait_for_arrival()
    client.send(
        b"".join(
            request(READ, 1, 3 * BLOCK, 10)
            + request(CACHE, 2, 0, len(BASE))
            + request(WRITE, 3, 5 * BLOCK + 10 * number, payload=PART[:10])
            for number in range(20)
        )
    )
    leave(client, how)
    eventually(lambda: session._is_gone, "the server knows that it has gone")
    del made.base.reads[:]
    gate.open()
    eventually(lambda: not made.server._sessions, "the server has done with it")
    assert {offset // BLOCK for offset, _ in made.base.reads} <= {1, 5}
    assert made.overlay.pread(5 * BLOCK, 200) == PART[:10] * 20


def test_that_a_client_has_gone_is_noticed_while_nothing_is_taken_from_it(bench, monkeypatch):
    """It is told once, whatever is waited for, and not again and again."""
    monkeypatch.setattr("impl.server.in_flight.PAUSE_REQUESTS", 2)
    made = bench(threads=1)
    client = made.raw_client()
    session = made.session()
    gate = made.base.gate = Gate()
    gate.shut()
    client.send(b"".join(request(READ, cookie, HELD, BLOCK) for cookie in range(5)))
    gate.wait_for_arrival()
    eventually(session._in_flight.is_paused, "nothing is taken any more")
    client.socket.close()
    eventually(lambda: session._is_gone, "the server knows that it has gone")
    eventually(lambda: session._interest is None, "it does not want to hear it again")
    del made.base.reads[:]
    gate.open()
    eventually(lambda: not made.server._sessions, "the server has done with it")
    assert made.base.reads == [(HELD, BLOCK)]


def test_what_a_client_sent_before_it_hung_up_is_taken_before_there_is_room_for_more(bench, monkeypatch, caplog):
    """The receive buffer is full of requests when the end comes. The clock goes on whenever it is looked at."""
    clock = itertools.count()
    monkeypatch.setattr("impl.server.session.monotonic", lambda: next(clock) / 1000)
    made = bench()
    client = made.raw_client()
    session = made.session()
    flushes, gate = [], Gate()

    def sync():
        flushes.append(1)
        if len(flushes) == 500:
            gate.pass_through()

    monkeypatch.setattr(made.overlay.store, "sync", sync, raising=False)
    gate.shut()
    client.send(b"".join(request(FLUSH, cookie) for cookie in range(4000)))
    gate.wait_for_arrival()
    client.socket.close()
    gate.open()
    eventually(lambda: session._ended and not made.server._sessions, "the server has done with it")
    assert len(flushes) == 4000
    assert not [record for record in caplog.records if record.exc_info]


def test_a_cache_ends_when_its_client_has_gone(bench, monkeypatch):
    monkeypatch.setattr("impl.overlay.overlay.CACHE_CHUNK_BYTES", BLOCK)
    made = bench(cache_mode="read")
    client = made.raw_client()
    session = made.session()
    gate = made.base.gate = Gate()
    gate.shut()
    client.send(request(CACHE, 1, 0, len(BASE)))
    gate.wait_for_arrival()
    client.socket.close()
    eventually(lambda: session._is_gone, "the server knows that it has gone")
    gate.open()
    eventually(lambda: not made.server._sessions, "the server has done with it")
    assert made.base.reads == [(0, BLOCK)]


def test_a_cache_ends_when_the_server_is_told_to_stop(bench, monkeypatch):
    monkeypatch.setattr("impl.overlay.overlay.CACHE_CHUNK_BYTES", BLOCK)
    made = bench(cache_mode="read", grace_s=WAIT_S)
    client = made.raw_client()
    session = made.session()
    gate = made.base.gate = Gate()
    gate.shut()
    client.send(request(CACHE, 1, 0, len(BASE)))
    gate.wait_for_arrival()
    made.server.stop()
    is_stopping(session)
    gate.open()
    assert client.reply() == (1, 0, b""), "a hint is done whenever it ends"
    assert made.base.reads == [(0, BLOCK)]


def test_a_server_that_is_told_to_stop_waits_for_what_runs_for_a_client_that_has_gone_but_for_nothing_else(bench):
    made = bench(threads=1, grace_s=WAIT_S)
    client = made.raw_client()
    session = made.session()
    gate = made.base.gate = Gate()
    gate.shut()
    client.send(request(WRITE, 1, HELD, payload=PART))
    gate.wait_for_arrival()
    client.send(request(WRITE, 2, 3 * BLOCK, payload=PART) * 20)
    client.socket.close()
    eventually(lambda: session._is_gone, "the server knows that it has gone")
    made.server.stop()
    is_stopping(session)
    gate.open()
    wait_for_the_end(made)
    assert made.server._clean
    assert made.overlay.pread(HELD, BLOCK) == PART + BASE[HELD + len(PART) : HELD + BLOCK]
    assert made.overlay.pread(3 * BLOCK, BLOCK) == BASE[3 * BLOCK : 4 * BLOCK]


# The end of one session.


def test_the_server_does_not_end_before_what_a_closed_session_has_begun(bench):
    """The overlay's file is closed after that."""
    made = bench(grace_s=WAIT_S)
    client = made.raw_client()
    (session,) = made.server._sessions
    holder = made.client()
    _, gate = made.stop_in_store(lambda: holder.pwrite_async(HELD, NEW))
    client.send(request(WRITE, 1, HELD, payload=b"y" * BLOCK) + request(FLUSH, 2))
    assert client.reply() == (2, 0, b""), "the write waits"
    session._loop.call_soon(session.abort)
    eventually(lambda: session._ended, "the session has ended")
    made.server.stop()
    made.thread.join(REFUTE_S)
    assert session in made.server._sessions
    assert made.thread.is_alive(), "ended though a request waits for its range"
    gate.open()
    wait_for_the_end(made)


class HeldSocket:
    """In front of a socket: its sends wait until they are let go."""

    def __init__(self, sock):
        self._sock = sock
        self.busy, self.let_go = threading.Event(), threading.Event()

    def sendmsg(self, *args):
        self.busy.set()
        assert self.let_go.wait(WAIT_S)
        return self._sock.sendmsg(*args)


def test_a_socket_is_closed_only_when_no_thread_sends_on_it(bench):
    """A number that was closed may be another client's by the time it is sent on."""
    made = bench()
    client = made.raw_client()
    (session,) = made.server._sessions
    sock = HeldSocket(session._sock)
    ready = threading.Event()

    def hold():
        """On the loop's own thread, so that it is not itself in the middle of sending."""
        session._outbox._sock = sock
        session._outbox.add([b"reply"])
        ready.set()

    session._loop.call_soon(hold)
    assert ready.wait(WAIT_S)
    sender = threading.Thread(target=session._outbox.flush)
    sender.start()
    assert sock.busy.wait(WAIT_S)
    session._loop.call_soon(session._end)
    eventually(lambda: session._ended, "the session is about to end")
    client.socket.settimeout(REFUTE_S)
    with pytest.raises(TimeoutError):
        client.socket.recv(1)
    assert session._sock.fileno() != -1
    sock.let_go.set()
    sender.join(WAIT_S)
    eventually(lambda: session._sock.fileno() == -1, "the socket is closed")


class ClosedInBetween(deque):
    """The calls of a loop that another thread tries to close while one is added."""

    def __init__(self, loop):
        super().__init__()
        self._loop, self.closer, self.was_closed = loop, None, None

    def append(self, call):
        closed = threading.Event()
        self.closer = threading.Thread(target=lambda: (self._loop.close(), closed.set()))
        self.closer.start()
        self.was_closed = closed.wait(REFUTE_S)
        super().append(call)


def test_a_loop_is_not_closed_between_a_look_at_whether_it_is_and_the_write_to_its_descriptor():
    loop = Loop()
    calls = loop._calls = ClosedInBetween(loop)
    loop.call_soon(lambda: None)
    calls.closer.join(WAIT_S)
    assert calls.was_closed is False
