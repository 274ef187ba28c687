"""Many sessions on one thread: who leaves it and comes back, who is relieved of it, and whom that must not concern.

The thread stops where a test wants it to: at a gate, or in a call that the test makes on the loop.

Source:  impl/server/session.py, impl/server/server.py, impl/server/loop.py; promises P2, P4, P8.
"""

import random
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest
from raw_nbd import DISC, READ, REPLY, WRITE, RawClient, request
from servers import MIB, eventually
from test_server_concurrency import BASE, BLOCK, NEW, Bench

from impl.base.memory import BytesBase
from impl.server.export import ExportOptions, make_export
from impl.server.loop import Loop
from impl.server.server import ACCEPTS_MAX, ALERT_LOOKS, ALERT_RELIEF_S, RELIEF_S, Server
from impl.server.session import RECEIVES_MAX, Session

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
    monkeypatch.setattr("impl.server.session.AHEAD_MIN_BYTES", BLOCK)
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


MOVES = 20
ROUNDS_MAX = 20_000


def test_what_a_session_that_moves_to_and_fro_was_told_stays_so(bench, small_is_large, monkeypatch):
    """Four clients, each in blocks of its own, with requests that make it move and others, several at once."""
    monkeypatch.setattr("impl.server.session.PATIENCE_S", 0.001)
    moved = {True: 0, False: 0}
    move_to = Session._move_to

    def counted_move(session, loop):
        moved[loop is session._shared_loop] += 1
        move_to(session, loop)

    monkeypatch.setattr(Session, "_move_to", counted_move)
    made = bench()

    def use(number):
        rng, client, start = random.Random(number), made.client(), number * LARGE
        content = bytearray(BASE[start : start + LARGE])
        for _ in range(ROUNDS_MAX):
            if min(moved.values()) >= MOVES:
                break
            length = rng.choice((1, BLOCK, LARGE))
            at, data = rng.randrange(LARGE - length + 1), rng.randbytes(length)
            before = client.pread_async(start, LARGE)
            assert client.wait(before) == content
            written = client.pwrite_async(start + at, data)
            elsewhere = client.pread_async(number, 1)
            client.wait(written)
            client.wait(elsewhere)
            content[at : at + length] = data
            small = rng.randrange(LARGE - BLOCK)
            assert client.pread(start + small, 1) == content[small : small + 1]
        return start, content, client

    with ThreadPoolExecutor(4) as pool:
        used = list(pool.map(use, range(4)))
    assert min(moved.values()) >= MOVES
    for start, content, _ in used:
        for _, _, other in used:
            assert other.pread(start, LARGE) == content


# A thread that is kept, by the store.

KEPT = 5


def block_of(number):
    return bytes([0xA0 + number]) * BLOCK


@contextmanager
def kept(made):
    """Clients whose writes stop in the middle, each on the thread that relieved the one before it; what opens each."""
    clients = [made.client() for _ in range(KEPT)]
    stopped = [
        made.stop_in_store(lambda: client.pwrite_async(number * BLOCK, block_of(number)))  # noqa: B023
        for number, client in enumerate(clients)
    ]
    try:
        yield clients, [future for future, _ in stopped], [gate for _, gate in stopped]
    finally:
        for _, gate in stopped:
            gate.open()


def serving_threads():
    return sum(thread.name == "clients" for thread in threading.enumerate())


def test_clients_kept_by_the_store_keep_nobody_else_and_lose_nothing_themselves(bench):
    made = bench()
    other = made.client()
    with kept(made) as (clients, writes, gates):
        behind = [client.pread_async(6 * BLOCK, BLOCK) for client in clients]
        other.pwrite(7 * BLOCK, NEW)
        assert other.pread(7 * BLOCK, BLOCK) == NEW
        newcomer = made.client()
        assert newcomer.pread(6 * BLOCK, BLOCK) == BASE[6 * BLOCK : 7 * BLOCK]
        assert not any(future.done() for future in writes), "acknowledged in the middle"
        for number in reversed(range(KEPT)):
            gates[number].open()
            clients[number].wait(writes[number])
            assert clients[number].wait(behind[number]) == BASE[6 * BLOCK : 7 * BLOCK]
        for number in range(KEPT):
            assert newcomer.pread(number * BLOCK, BLOCK) == block_of(number)
    eventually(lambda: serving_threads() == 1, "one thread serves")


class Looks:
    """In place of a server's loops: what the looks find, and when the next one is to come."""

    def __init__(self, found):
        self._found, self.delays_s = list(found), []

    def relieve(self):
        found = self._found.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    def rests(self):
        return False

    def call_later(self, delay_s, _):
        self.delays_s.append(delay_s)


NONE_FOUND = [False] * (ALERT_LOOKS - 1)
LOOKS = {
    "nobody is kept": ([False] * 3, [RELIEF_S] * 3),
    "one was kept": (
        [False, True, *NONE_FOUND, False],
        [RELIEF_S, ALERT_RELIEF_S, *[ALERT_RELIEF_S] * len(NONE_FOUND), RELIEF_S],
    ),
    "a second one was": (
        [True, *NONE_FOUND, True, *NONE_FOUND, False],
        [ALERT_RELIEF_S] * (2 * ALERT_LOOKS) + [RELIEF_S],
    ),
    "there is no thread to be had": ([RuntimeError("no more threads")] * 2, [RELIEF_S] * 2),
}


@pytest.mark.parametrize(("found", "delays_s"), LOOKS.values(), ids=LOOKS)
def test_who_is_kept_is_looked_for_more_often_for_a_while_after_one_was(found, delays_s):
    server = Server({}, "", threads=1)
    server._loop = server._shared = looks = Looks(found)
    for _ in found:
        server._look_after_clients()
    assert looks.delays_s == delays_s


def test_a_stop_waits_for_those_who_are_kept_and_they_are_answered(bench):
    made = bench(grace_s=ANSWER_S)
    other = made.raw_client()
    with kept(made) as (clients, writes, gates):
        made.server.stop()
        assert other.is_closed_by_the_server()
        assert made.thread.is_alive()
        for number in reversed(range(KEPT)):
            gates[number].open()
            clients[number].wait(writes[number])
        for client in clients:
            client.close()
        made.thread.join(ANSWER_S)
    assert not made.thread.is_alive()


def test_a_second_stop_does_not_wait_for_those_who_are_kept(bench):
    made = bench(grace_s=ANSWER_S)
    with kept(made) as (_, writes, _):
        made.server.stop()
        made.server.stop()
        made.thread.join(ANSWER_S)
        assert not made.thread.is_alive()
        assert not any(future.done() and future.exception() is None for future in writes)


def test_a_client_that_goes_while_it_is_kept_takes_no_write_with_it(bench):
    made = bench()
    other = made.client()
    with kept(made) as (clients, _, gates):
        for client in clients:
            client.close()
        assert other.pread(7 * BLOCK, BLOCK) == BASE[7 * BLOCK :]
        assert len(made.server._sessions) == KEPT + 1
        for gate in gates:
            gate.open()
        eventually(lambda: len(made.server._sessions) == 1, "the sessions have gone")
        for number in range(KEPT):
            assert other.pread(number * BLOCK, BLOCK) == block_of(number)


# A client that goes.


class Talkative(socket.socket):
    """A socket whose other side never stops talking."""

    ENOUGH = 1000
    received = 0

    def recv(self, size, *_):
        self.received += 1
        assert self.received < self.ENOUGH, "nobody else gets his turn"
        return bytes(size)


def test_a_client_that_goes_on_talking_when_it_is_not_listened_to_any_more_leaves_the_loop_its_turns():
    export = make_export(BytesBase(BASE), ExportOptions(store="memory"))
    loop = Loop()
    ours, theirs = socket.socketpair()
    with Talkative(fileno=ours.detach()) as talkative, theirs:
        session = Session(talkative, "talkative", {"": export}, "", 1, loop, on_end=loop.stop)
        session._linger()
        session._ready(1)
        assert talkative.received == RECEIVES_MAX
        assert not session._ended
    loop.close()
    export.close()


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


GOING = {
    "in order": lambda client: client.send(request(DISC, 1)),
    "in the greeting": None,
    "in the middle of a request": lambda client: client.send(request(READ, 1, 0, 512)[:11]),
    "in the middle of a large payload": lambda client: client.send(request(WRITE, 1, 0, payload=bytes(MIB))[:300_000]),
    "with answers unread": lambda client: client.send(request(READ, 1, 0, 4096) * 100),
    "with a large answer unread": lambda client: client.send(request(READ, 1, 0, MIB) * 10),
    "having talked nonsense": lambda client: client.send(b"?" * 100),
}
TIMES = 30


def test_of_clients_that_come_and_go_nothing_stays(serve, small_base):
    server = serve(small_base)
    with RawClient(server.socket) as staying:
        staying.send(request(READ, 1, 0, 512))
        first = staying.reply({1: 512})
        descriptors, threads = server.descriptor_count(), server.status_number("Threads")
        for _ in range(TIMES):
            for go in GOING.values():
                if go is None:
                    client = socket.socket(socket.AF_UNIX)
                    client.connect(str(server.socket))
                    client.close()
                    continue
                with RawClient(server.socket) as client:
                    go(client)
        eventually(lambda: server.descriptor_count() == descriptors, "the descriptors are given back")
        eventually(lambda: server.status_number("Threads") == threads, "the threads have ended")
        staying.send(request(READ, 1, 0, 512))
        assert staying.reply({1: 512}) == first
    assert server.stop() == 0
