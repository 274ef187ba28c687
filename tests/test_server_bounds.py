"""What one client may cost: memory, threads, and time on the loop, which is everybody's who waits on it.

Source:  impl/server/in_flight.py, "Bounds"; impl/server/commands.py, `Later`; promise P8.
"""

import gc
import socket
import threading
import tracemalloc
import weakref
from contextlib import contextmanager

import pytest
from raw_nbd import READ, WRITE, RawClient, hello, request
from servers import KIB, MIB, eventually
from test_server_commands import answer, commands_of
from test_server_concurrency import ANSWER_S, turnstile

from check.serving import serve_export
from impl.base.file import FileBase
from impl.base.memory import BytesBase
from impl.client import connect
from impl.extents import Extent
from impl.nbd.constants import Command, CommandFlag
from impl.nbd.requests import Request
from impl.server.commands import EXTENTS_MAX_COUNT, LOOK_AT_ONCE_MAX_BLOCKS, Later, Place
from impl.server.export import ExportOptions, make_export
from impl.server.listeners import listen_tcp
from impl.server.loop import Loop
from impl.server.server import KEEPALIVE, Server
from impl.server.session import HANDSHAKE_SILENCE_S, Session

pytestmark = pytest.mark.timeout(60)

C, F = Command, CommandFlag
BLOCK = MIB
SIZE = 8 * BLOCK
# What a request takes beside what it is about: messages, and objects of Python.
OVERHEAD_BYTES = 32 * KIB


class Slow(BytesBase):
    """Never ready; its data are made when they are read, as they come from a disk."""

    cache_mode = "read"

    def __init__(self, size=SIZE):
        super().__init__(b"x")
        self.size = size

    def is_ready(self, offset, length):
        return False

    def pread(self, offset, length):
        return b"x" * length


class Striped(Slow):
    """As many extents as there can be."""

    def extents(self, offset, length):
        for start in range(0, length, 512):
            hole = (offset + start) // 512 % 2 == 1
            yield Extent(min(512, length - start), hole, hole)


@contextmanager
def exported(base, **options):
    export = make_export(base, ExportOptions(**{"block_size": BLOCK, "store": "memory", **options}))
    try:
        yield export
    finally:
        export.close()


def ask(command, offset, length, flags=0, payload=b""):
    return Request(command, flags, 1, offset, length, payload, 0, "")


# What a request holds is said before it is begun.

HELD = [  # (claim, request, options of the export)
    ("a read", ask(C.READ, 100, 2 * MIB), {}),
    ("a read that may not be fragmented", ask(C.READ, 100, 2 * MIB, F.DF), {}),
    ("a read of one byte", ask(C.READ, 100, 1), {}),
    ("a read of one byte that copies", ask(C.READ, 100, 1), {"copy_on_read": lambda: True}),
    ("a read of two halves of blocks that copies", ask(C.READ, BLOCK // 2, BLOCK), {"copy_on_read": lambda: True}),
    ("a read of many blocks that copies", ask(C.READ, 100, 4 * BLOCK), {"copy_on_read": lambda: True}),
    ("a write of one byte", ask(C.WRITE, 100, 1, payload=b"x"), {}),
    ("a write over the end of a block", ask(C.WRITE, BLOCK - 1, 2, payload=b"xy"), {}),
    ("a trim of a part", ask(C.TRIM, 100, BLOCK - 200), {}),
    ("a trim of two parts", ask(C.TRIM, 100, 2 * BLOCK - 200), {}),
    ("a zero of a part", ask(C.WRITE_ZEROES, 100, 10), {}),
    ("a zero of much", ask(C.WRITE_ZEROES, 100, 6 * BLOCK, F.NO_HOLE), {}),
    ("a cache", ask(C.CACHE, 0, SIZE), {}),
    ("a cache that copies", ask(C.CACHE, 0, SIZE), {"copy_on_cache": True}),
]


@pytest.mark.parametrize(("asked", "options"), [row[1:] for row in HELD], ids=[row[0] for row in HELD])
def test_no_request_holds_more_than_it_said_until_it_is_answered(asked, options):
    with exported(Slow(), **options) as export:
        later = commands_of(export).start(asked)
        assert isinstance(later, Later)
        gc.collect()
        tracemalloc.start()
        try:
            reply = later.run()
            while isinstance(reply, Later):
                assert reply.held_bytes <= later.held_bytes
                reply = reply.run()
            held, most = tracemalloc.get_traced_memory()
            assert most <= later.held_bytes + OVERHEAD_BYTES
            # The payload was there before. All else is for the request, and was worth counting.
            assert later.held_bytes <= 4 * (most + OVERHEAD_BYTES)
            assert held <= 2 * sum(len(part) for part in reply) + OVERHEAD_BYTES, "of a reply, what is sent is held"
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(("asked", "options"), [row[1:] for row in HELD], ids=[row[0] for row in HELD])
def test_what_a_request_held_is_free_when_it_is_answered_not_when_garbage_is_collected(asked, options):
    with exported(Slow(), **options) as export:
        commands = commands_of(export)
        gc.collect()
        gc.disable()
        try:
            reply = commands.start(asked)
            while isinstance(reply, Later):
                reply = reply.run()
            del reply
            assert gc.collect() == 0
        finally:
            gc.enable()


def test_a_status_says_how_long_its_reply_may_be_and_it_is_never_longer():
    base = Striped(4 * EXTENTS_MAX_COUNT * 512)
    with exported(base, block_size=4096) as export:
        later = commands_of(export).start(ask(C.BLOCK_STATUS, 0, base.size))
        reply, _ = answer(commands_of(export), ask(C.BLOCK_STATUS, 0, base.size))
        length = sum(map(len, reply))
        assert EXTENTS_MAX_COUNT * 8 < length <= later.held_bytes + 100
        assert later.held_bytes < 128 * KIB


def test_requests_that_need_large_blocks_run_one_at_a_time(short_path, monkeypatch):
    """Writes of a byte, each of which holds a block; as many as there are threads would run, were they small."""
    monkeypatch.setattr("impl.server.in_flight.PAUSE_BYTES", 2000)  # half a block of the base that is used here
    with turnstile(short_path, 4) as (base, uri), connect(uri, timeout_s=ANSWER_S) as client:
        futures = [client.pwrite_async(block * 4096 + 1, b"x") for block in range(6)]
        for _ in futures:
            base.let_through(1)
        for future in futures:
            client.wait(future)
        assert base.most_at_once == 1


# What is counted is counted down.


@contextmanager
def served(base, path, threads=2, **options):
    with exported(base, **options) as export:
        running = serve_export(export, str(path / "s"), threads)
        try:
            yield running
        finally:
            running.stop()


LIMITS = [  # (claim, name, value): less than what a few requests take
    ("bytes", "PAUSE_BYTES", 1),
    ("requests", "PAUSE_REQUESTS", 1),
    ("items", "PAUSE_ITEMS", 1),
]


@pytest.mark.parametrize("ready", [True, False], ids=["at once", "by workers"])
@pytest.mark.parametrize(("name", "value"), [row[1:] for row in LIMITS], ids=[row[0] for row in LIMITS])
def test_a_session_that_was_paused_by_any_bound_goes_on(name, value, ready, short_path, monkeypatch):
    monkeypatch.setattr(f"impl.server.in_flight.{name}", value)
    base = Slow()
    base.is_ready = lambda offset, length: ready
    with served(base, short_path) as running, RawClient(short_path / "s") as client:
        (session,) = running.server._sessions
        client.send(b"".join(request(READ, cookie, 0, 5000) for cookie in range(40)))
        assert sorted(client.reply(dict.fromkeys(range(40), 5000))[0] for _ in range(40)) == list(range(40))
        eventually(lambda: session._in_flight.count == 0, "what was in flight is so no more")
        assert session._in_flight.held_bytes == 0


@pytest.mark.parametrize("copies", [False, True])
def test_requests_that_are_handed_from_worker_to_worker_are_counted_once(copies, short_path):
    with served(Slow(), short_path, block_size=4096, copy_on_read=lambda: copies) as running:
        with RawClient(short_path / "s") as client:
            (session,) = running.server._sessions
            client.send(b"".join(request(WRITE, cookie, 10 * cookie, payload=b"x" * 9) for cookie in range(40)))
            client.send(b"".join(request(READ, cookie, 10 * cookie, 9000) for cookie in range(40, 80)))
            lengths = dict.fromkeys(range(40, 80), 9000)
            assert sorted(client.reply(lengths)[:2] for _ in range(80)) == [(cookie, 0) for cookie in range(80)]
            eventually(lambda: session._in_flight.count == 0, "what was in flight is so no more")
            assert session._in_flight.held_bytes == 0


def test_a_session_that_has_ended_is_freed_at_once_and_not_when_garbage_is_collected():
    class NoLoop:
        def __getattr__(self, _name):
            return lambda *_arguments, **_more: True

    gc.disable()
    try:
        ours, theirs = socket.socketpair()
        session = Session(ours, "somebody", {}, "", 2, NoLoop(), lambda: None)
        session.start()
        session._end()
        held = weakref.ref(session)
        del session
        assert held() is None
    finally:
        gc.enable()
        theirs.close()


# What the loop does itself.


def place_of(commands, asked):
    """Whose work it is; None if it is done at once."""
    later = commands.start(asked)
    return later.place if isinstance(later, Later) else None


MANY = LOOK_AT_ONCE_MAX_BLOCKS * 4096


@pytest.mark.parametrize(("length", "place"), [(MANY, None), (MANY + 1, Place.LONG)])
@pytest.mark.parametrize("command", [C.BLOCK_STATUS, C.CACHE], ids=["status", "cache"])
def test_the_states_of_many_blocks_are_not_looked_through_by_the_loop(command, length, place):
    base = Slow(2 * MANY)
    base.cache_mode = "ignore"
    with exported(base, block_size=4096) as export:
        assert place_of(commands_of(export), ask(command, 0, length)) is place


def test_a_file_system_is_not_asked_for_extents_by_the_loop(tmp_path):
    (tmp_path / "base").write_bytes(bytes(MIB))
    with exported(FileBase(tmp_path / "base")) as export:
        assert place_of(commands_of(export), ask(C.BLOCK_STATUS, 0, 4096)) is Place.BASE


def test_a_large_block_is_not_fetched_by_the_loop():
    base = Slow(64 * MIB)
    base.is_ready = lambda offset, length: True
    with exported(base, block_size=8 * MIB) as export:
        assert place_of(commands_of(export), ask(C.WRITE, 1, 1, payload=b"x")) is Place.BASE
    with exported(base, block_size=2 * MIB) as export:
        assert place_of(commands_of(export), ask(C.WRITE, 1, 1, payload=b"x")) is None


def test_a_request_that_fails_before_it_wants_the_range_that_it_waited_for_gives_it_back():
    with exported(Slow()) as export:
        commands, lock = commands_of(export), export.overlay.ranges
        attempts = []

        def work(overlay):
            attempts.append(overlay)
            if len(attempts) == 2:
                raise MemoryError
            with overlay.ranges.exclusive(0, 0):
                return []

        holder = lock.at_once(0, 0, True)
        later = commands._on_overlay(ask(C.TRIM, 0, 1), work, 0)
        later.granted.ask(lambda: None)
        holder.__exit__(None, None, None)
        assert later.run(), "the client is told"
        assert len(attempts) == 2
        assert lock.at_once(0, 0, True) is not None


# Clients that say nothing.


class Clockwork(Loop):
    """A loop whose timers go off when the test says so."""

    def __init__(self):
        super().__init__()
        self.timers = []

    def call_later(self, delay_s, call, owner=None):
        self.timers.append((delay_s, call))

    def go_off(self):
        (timer,) = self.timers
        self.timers.clear()
        delay_s, call = timer
        assert delay_s == HANDSHAKE_SILENCE_S
        call()


@contextmanager
def shaking_hands():
    """A session, the loop that it is given, and its client's end."""
    ours, theirs = socket.socketpair()
    loop = Clockwork()
    ended = []
    with exported(Slow()) as export, theirs:
        session = Session(ours, "test", {"": export}, "", 1, loop, lambda: ended.append(True))
        session.start()
        try:
            yield session, loop, theirs, ended
        finally:
            session._end()
            loop.close()


def test_a_client_that_is_silent_in_the_handshake_is_hung_up_on():
    with shaking_hands() as (_, loop, _, ended):
        loop.go_off()
        assert ended


def test_one_that_goes_on_shaking_hands_is_not_until_it_is_silent():
    with shaking_hands() as (session, loop, client, ended):
        for byte in hello()[:5]:
            client.send(bytes([byte]))
            session._ready(1)
            loop.go_off()
            assert not ended
        loop.go_off()
        assert ended


def test_one_that_has_shaken_hands_may_be_silent_for_ever():
    with shaking_hands() as (session, loop, client, ended):
        client.send(hello())
        session._ready(1)
        loop.go_off()
        assert not ended
        assert not loop.timers


def test_the_kernel_looks_after_clients_whose_machine_may_have_gone():
    (listener,) = listen_tcp("127.0.0.1", 0)
    with exported(Slow()) as export, listener:
        server = Server({"": export}, "", 1)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        with RawClient(port=listener.getsockname()[1]):
            (session,) = server._sessions
            options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
            options += [(socket.IPPROTO_TCP, option, value) for option, value in KEEPALIVE]
            assert [session._sock.getsockopt(*option[:2]) for option in options] == [option[2] for option in options]
        server.stop()
        thread.join(ANSWER_S)
        assert not thread.is_alive()
