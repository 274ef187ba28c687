"""Many sessions on one thread: who leaves it and comes back, who is relieved of it, and whom that must not concern.

The thread stops where a test wants it to: at a gate, or in a call that the test makes on the loop.

Source:  impl/server/session.py, impl/server/server.py, impl/server/loop.py; promises P2, P4, P8.
"""

import threading
from contextlib import ExitStack, contextmanager

import pytest
from raw_nbd import READ, REPLY, WRITE, request
from servers import eventually
from test_server_concurrency import BASE, BLOCK, NEW, Bench

from impl.server.server import ACCEPTS_MAX, Server
from impl.server.session import Session

pytestmark = pytest.mark.timeout(120)

ANSWER_S = 20
LARGE = 2 * BLOCK


@pytest.fixture
def bench(short_path):
    """bench(**parts): a Bench; closed after the test."""
    with ExitStack() as stack:

        def make(**options):
            made = Bench(short_path, **options)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def small_is_large(monkeypatch):
    """More than a block makes a session move, and it comes back as soon as it can."""
    monkeypatch.setattr("impl.server.session.LIGHT_MAX_BYTES", BLOCK)
    monkeypatch.setattr("impl.server.session.LIGHT_AFTER_S", 0.0)


@contextmanager
def held(loop):
    """A loop whose thread is kept by a call of nobody, of which it is not relieved, meanwhile."""
    entered, let_go = threading.Event(), threading.Event()

    def keep():
        entered.set()
        assert let_go.wait(ANSWER_S)

    loop.call_soon(keep)
    assert entered.wait(ANSWER_S)
    try:
        yield
    finally:
        let_go.set()


# A session that moves.


def test_the_thread_that_a_session_has_left_touches_it_no_more(bench, monkeypatch, small_is_large):
    """Though it comes out of the move only when the session has been served elsewhere, and waits for its client."""
    answered, back, waited = threading.Event(), threading.Event(), []
    move_to, wait_here, ready = Session._move_to, Session._wait_here, Session._ready

    def slow_move(session, loop):
        is_out = loop is not session._shared_loop
        move_to(session, loop)
        if is_out:
            assert answered.wait(ANSWER_S)

    def noted_wait(session):
        waited.append(threading.current_thread().name)
        return wait_here(session)

    def noted_ready(session, events):
        ready(session, events)
        if answered.is_set() and threading.current_thread().name == "clients":
            back.set()

    monkeypatch.setattr("impl.server.session.LIGHT_AFTER_S", 1000.0)
    monkeypatch.setattr(Session, "_move_to", slow_move)
    monkeypatch.setattr(Session, "_wait_here", noted_wait)
    monkeypatch.setattr(Session, "_ready", noted_ready)
    client = bench().client()
    assert client.pread(0, LARGE) == BASE[:LARGE]
    answered.set()
    assert back.wait(ANSWER_S)
    assert "clients" not in waited


# A client that goes.


@pytest.mark.parametrize("length", [BLOCK, len(BASE)], ids=["small", "large enough to receive ahead"])
def test_a_write_that_was_received_whole_happens_though_its_client_has_gone_without_reading(length, bench):
    """To close a socket that has something to be read is an error to the other side, behind what was sent."""
    made = bench()
    leaver, other = made.raw_client(), made.client()
    leaver.send(request(READ, 1, 0, BLOCK))
    eventually(lambda: len(leaver.socket.recv(1 << 20, 2)) == REPLY.size + BLOCK, "the reply waits to be read")
    with held(made.server._shared):
        leaver.send(request(WRITE, 2, 0, payload=NEW * (length // BLOCK)))
        leaver.socket.close()
    eventually(lambda: len(made.server._sessions) == 1, "the session has gone")
    assert other.pread(0, length) == NEW * (length // BLOCK)


# Clients that come.


class Crowd:
    """A listener at which clients wait without end."""

    ENOUGH = 1000

    def __init__(self):
        self.accepted = 0

    def accept(self):
        self.accepted += 1
        assert self.accepted < self.ENOUGH, "those who have come in never get their turn"
        return None, None


def test_those_who_come_in_do_not_keep_those_who_are_there_from_their_turn(monkeypatch):
    monkeypatch.setattr(Server, "_open", lambda *_: True)
    crowd = Crowd()
    Server({}, "", threads=1)._accept(crowd)
    assert crowd.accepted == ACCEPTS_MAX


def test_a_client_that_comes_in_as_the_server_is_told_to_stop_is_let_go_in_order(bench, caplog):
    """The stop comes in between the look whether there is one, and all that follows it."""
    made = bench()
    server = made.server

    class StopsBehind:
        """A lock; as it is let go of, the server is told to stop."""

        def __init__(self, lock):
            self._lock = lock

        def __enter__(self):
            return self._lock.__enter__()

        def __exit__(self, *args):
            self._lock.__exit__(*args)
            if threading.current_thread().name == "clients" and not server._stopping:
                server._lock = self._lock
                server.stop()
                assert eventually(lambda: server._stopping, "the server stops")

    with caplog.at_level("WARNING"):
        server._lock = StopsBehind(server._lock)
        client = made.raw_client()
        assert client.is_closed_by_the_server()
        made.thread.join(ANSWER_S)
    assert not made.thread.is_alive()
    assert not caplog.messages
