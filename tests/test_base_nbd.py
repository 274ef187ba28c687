"""A base that another NBD server has: ours, nbdkit's, and one that goes and comes back.

The general promises of a base are in `test_base_suite.py`.
"""

import itertools
import signal
import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress

import pytest
from servers import KIB, MIB, eventually, nbdkit_serving, need, run

from impl.base import nbd
from impl.base.file import FileBase
from impl.base.memory import BytesBase
from impl.base.nbd import CONNECTIONS, NbdBase
from impl.base.open import open_base
from impl.base.pattern import pattern
from impl.client import connect
from impl.errors import StartError
from impl.extents import Extent
from impl.nbd.agreement import Agreement
from impl.nbd.constants import Command
from impl.nbd.requests import Request
from impl.server.command import part_with
from impl.server.commands import Commands, Later, Place
from impl.server.export import ExportOptions, make_export
from impl.server.listeners import listen_unix
from impl.server.server import Server

SOON_S = 20


@contextmanager
def served(base, place, **how):
    """A server of ours in this process, at a place; its URI."""
    export = make_export(base, ExportOptions(store="memory"))
    server = Server({"": export}, "", 4, **how)
    listener = listen_unix(str(place))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"nbd+unix:///?socket={place}"
    finally:
        server.stop()
        thread.join(SOON_S)
        listener.close()
        export.store.close()


@contextmanager
def opened(uri, **how):
    base = NbdBase(uri, **how)
    try:
        yield base
    finally:
        base.close()


CONTENT = pattern(7, 0, 3 * MIB + 777)


def test_what_is_read_is_what_the_other_server_has(short_path):
    with served(BytesBase(CONTENT), short_path / "s") as uri, opened(uri) as base:
        assert base.size == len(CONTENT)
        for offset, length in ((0, 1), (0, len(CONTENT)), (4095, 2), (MIB + 1, MIB), (len(CONTENT) - 1, 1)):
            assert base.pread(offset, length) == CONTENT[offset : offset + length]
        assert not base.is_ready(0, 1)
        assert base.pread_at_once(0, 1) is None
        assert base.fileno() is None


def test_a_read_that_no_request_can_have_is_several(short_path, monkeypatch):
    with served(BytesBase(CONTENT), short_path / "s") as uri, opened(uri) as base:
        monkeypatch.setattr(base, "_read_max_bytes", 100_000)
        assert base.pread(5, 2 * MIB) == CONTENT[5 : 5 + 2 * MIB]


def test_of_a_server_with_larger_blocks_whole_blocks_are_read(short_path):
    nbdkit = need("nbdkit", "nbdkit")
    (short_path / "disk").write_bytes(CONTENT[: 2 * MIB])
    place = short_path / "s"
    command = [nbdkit, "-U", place, "-P", short_path / "pid", "--filter=blocksize-policy", "file", short_path / "disk"]
    policy = [
        "blocksize-minimum=4096",
        "blocksize-preferred=4096",
        "blocksize-maximum=1M",
        "blocksize-error-policy=error",
    ]
    run(*command, *policy)
    pid = eventually(lambda: (short_path / "pid").read_text() if (short_path / "pid").exists() else "", "it serves")
    try:
        with opened(f"nbd+unix:///?socket={place}") as base:
            assert base.pread(10, 5) == CONTENT[10:15]
            assert base.pread(4000, 1_500_000) == CONTENT[4000:1_504_000]
            assert base.pread(2 * MIB - 1, 1) == CONTENT[2 * MIB - 1 : 2 * MIB]
            assert sum(extent.length for extent in base.extents(10, MIB)) == MIB
    finally:
        run("kill", pid.strip())


def test_extents_of_the_other_server_are_passed_on(base_with_holes, short_path):
    with served(FileBase(base_with_holes), short_path / "s") as uri, opened(uri) as base:
        assert list(base.extents(0, base.size)) == list(FileBase(base_with_holes).extents(0, base.size))
        assert list(base.extents(MIB - 10, 20)) == [Extent(10, False, False), Extent(10, True, True)]


class Counting(BytesBase):
    """Counts who is in it at a time, and holds everybody up until so many are."""

    def __init__(self, data, wanted):
        super().__init__(data)
        self._together = threading.Barrier(wanted)

    def is_ready(self, offset, length):
        return False

    def pread_at_once(self, offset, length):
        return None

    def pread(self, offset, length):
        self._together.wait(SOON_S)
        return super().pread(offset, length)


def test_many_requests_are_in_flight_at_a_time(short_path):
    with served(Counting(CONTENT, 12), short_path / "s") as uri, opened(uri) as base, ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda number: base.pread(number * 1000, 1000), range(12)))
    assert found == [CONTENT[number * 1000 : number * 1000 + 1000] for number in range(12)]


def test_a_server_that_allows_it_has_several_connections(serve, short_path):
    server = serve("memory:1M", "-v")
    with opened(server.uri) as base, ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(lambda _: base.pread(0, 1), range(4 * CONNECTIONS)))
        assert server.stderr.count("opened export") == CONNECTIONS


def test_a_server_that_comes_back_is_found_again(short_path):
    place = short_path / "s"
    with served(BytesBase(CONTENT), place) as uri:
        base = NbdBase(uri)
        assert base.pread(0, 10) == CONTENT[:10]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(base.pread, 100, 10)
        with served(BytesBase(CONTENT), place):
            assert waiting.result(SOON_S) == CONTENT[100:110]
            assert base.pread(200, 10) == CONTENT[200:210]
            base.close()


def test_a_server_that_does_not_come_back_is_an_error_in_bounded_time(short_path):
    with served(BytesBase(CONTENT), short_path / "s") as uri:
        base = NbdBase(uri, retry_s=0.3)
    begun_s = time.monotonic()
    with pytest.raises(OSError, match="cannot be reached") as failed:
        base.pread(0, 1)
    assert failed.value.errno == 5
    assert time.monotonic() - begun_s < SOON_S
    assert list(base.extents(0, MIB)) == [Extent(MIB, hole=False, zero=False)]
    base.prefetch(0, MIB)
    base.close()


def test_a_disk_of_another_size_is_not_believed(short_path):
    place = short_path / "s"
    with served(BytesBase(CONTENT), place) as uri:
        base = NbdBase(uri, retry_s=0.3)
    with served(BytesBase(CONTENT[:-1]), place), pytest.raises(OSError, match="another one now"):
        base.pread(0, 1)
    base.close()


class Bad(BytesBase):
    def pread(self, offset, length):
        raise OSError(5, "a bad sector")


def test_what_the_other_server_says_is_passed_on_and_not_tried_again(short_path):
    with served(Bad(CONTENT), short_path / "s") as uri, opened(uri, retry_s=1000) as base:
        with pytest.raises(OSError, match="bad sector") as failed:
            base.pread(0, 1)
        assert failed.value.errno == 5


def test_certificates_that_have_gone_are_an_error_like_a_server_that_has(short_path, monkeypatch):
    with served(BytesBase(CONTENT), short_path / "s") as uri:
        base = NbdBase(uri, retry_s=0.3)

    def refuse(*_, **__):
        raise StartError("there is no ca-cert.pem")

    monkeypatch.setattr(nbd, "connect", refuse)
    with pytest.raises(OSError, match=r"ca-cert\.pem") as failed:
        base.pread(0, 1)
    assert failed.value.errno == 5
    base.close()


def test_without_an_answer_extents_are_not_asked_for_again_and_again(short_path):
    with served(BytesBase(CONTENT), short_path / "s") as uri:
        base = NbdBase(uri, retry_s=0.5)
    begun_s = time.monotonic()
    for offset in range(100):
        assert list(base.extents(offset, 10)) == [Extent(10, hole=False, zero=False)]
    assert time.monotonic() - begun_s < SOON_S
    base.close()


def test_prefetches_in_flight_are_bounded(short_path, monkeypatch):
    with served(BytesBase(CONTENT), short_path / "s") as uri, opened(uri) as base:
        asked = []

        class Silent:
            def cache_async(self, offset, length):
                asked.append(Future())
                return asked[-1]

        for connection in base._connections:
            monkeypatch.setattr(connection, "client", Silent)
        for _ in range(10 * nbd.PREFETCHES_MAX):
            base.prefetch(0, 1)
        assert len(asked) == nbd.PREFETCHES_MAX
        asked[0].set_result(None)
        base.prefetch(0, 1)
        assert len(asked) == nbd.PREFETCHES_MAX + 1


def test_a_status_of_such_a_base_is_left_to_a_worker(short_path):
    with served(BytesBase(CONTENT), short_path / "s") as uri, opened(uri) as base:
        export = make_export(base, ExportOptions(store="memory"))
        agreement = Agreement(export.info, export.info.flags, True, (1,))
        found = Commands(export, agreement).start(Request(7, 0, 1, 0, 4096, b"", 0, ""))
        assert isinstance(found, Later)
        assert found.place is Place.BASE
        export.store.close()


@pytest.mark.parametrize("uri", ["nbd+unix:///?socket=/no/such/socket", "nbd://localhost:1", f"nbd://{'x' * 70}"])
def test_a_server_that_is_not_there_is_told_at_the_start(uri):
    with pytest.raises(StartError, match="cannot read"):
        open_base(uri)


def test_a_chain_of_three_servers_serves_the_disk_with_all_its_layers(serve, small_base):
    content = bytearray(small_base.read_bytes())
    first = serve(small_base)
    with connect(first.uri) as client:
        client.pwrite(100, b"first")
        content[100:105] = b"first"
    second = serve(first.uri)
    with connect(second.uri) as client:
        assert client.pread(0, len(content)) == content
        client.pwrite(103, b"second")
        content[103:109] = b"second"
    third = serve(second.uri)
    with connect(third.uri) as client:
        client.pwrite(70_000, b"third")
        content[70_000:70_005] = b"third"
        assert client.pread(0, len(content)) == content
        client.cache(0, len(content))
        assert client.block_status(0, 64 * KIB)
    with connect(first.uri) as client:
        assert client.pread(100, 9) == b"first" + small_base.read_bytes()[105:109]


class Nobody:
    """Who does not listen."""

    def extend(self, _data):
        pass

    def __bool__(self):
        return False


@contextmanager
def overheard(place, upstream, *, tells_ends=True):
    """What one after another who connects to a place says to the server at another: a list of what each has said.

    tells_ends:  whether they are told that the server has closed
    """
    said, threads = [], []

    def pass_on(source, target, heard):
        with suppress(OSError):
            while data := source.recv(1 << 16):
                heard.extend(data)
                target.sendall(data)
            if tells_ends or heard:
                target.shutdown(socket.SHUT_WR)

    def accept():
        with suppress(OSError):
            while True:
                ours, _ = listener.accept()
                theirs = stack.enter_context(socket.socket(socket.AF_UNIX))
                stack.enter_context(ours)
                theirs.connect(str(upstream))
                said.append(bytearray())
                for source, target, heard in ((ours, theirs, said[-1]), (theirs, ours, Nobody())):
                    threads.append(threading.Thread(target=pass_on, args=(source, target, heard)))
                    threads[-1].start()

    with ExitStack() as stack, listen_unix(str(place)) as listener:
        accepting = threading.Thread(target=accept)
        accepting.start()
        yield said
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join(SOON_S)
        for thread in threads:
            thread.join(SOON_S)
            assert not thread.is_alive()


def last_command(said):
    """Of the last request, with extended headers or without."""
    magic, size = (b"\x21\xe4\x1c\x71", 32) if b"\x21\xe4\x1c\x71" in said else (b"\x25\x60\x95\x13", 28)
    assert said[-size:].startswith(magic)
    return said[-size + 7]


@pytest.mark.parametrize("tells_ends", [True, False], ids=["and closes", "and does not close"])
def test_the_other_server_is_told_goodbye_on_every_connection_when_ours_stops(
    tells_ends, serve, small_base, short_path
):
    """ "A party MUST NOT initiate a hard disconnect save where set out in this section"."""
    upstream = serve(small_base)
    with overheard(short_path / "between", upstream.socket, tells_ends=tells_ends) as said:
        ours = serve(f"nbd+unix:///?socket={short_path / 'between'}")
        with connect(ours.uri) as client:
            reads = [client.pread_async(step * 64 * KIB, 64 * KIB) for step in range(2 * CONNECTIONS)]
            for read in reads:
                client.wait(read)
        assert ours.stop() == 0
        assert len(said) == CONNECTIONS
    assert [last_command(heard) for heard in said] == [Command.DISC] * CONNECTIONS


def test_a_server_whose_disk_cannot_be_served_is_told_goodbye_too(short_path):
    upstream = short_path / "s"
    with nbdkit_serving(upstream, size="0"), overheard(short_path / "between", upstream) as said:
        with pytest.raises(StartError, match="it is empty"):
            NbdBase(f"nbd+unix:///?socket={short_path / 'between'}")
    assert [last_command(heard) for heard in said] == [Command.DISC]


def test_a_base_that_is_closed_is_not_opened_again_by_who_reads_it(short_path):
    with served(BytesBase(CONTENT), short_path / "s") as uri:
        base = NbdBase(uri, retry_s=0.0)
        base.close()
        with pytest.raises(OSError, match="the base is closed"):
            base.pread(0, 10)


def fails(call):
    with pytest.raises(OSError, match="nobody there"):
        call()


def test_a_connection_that_is_just_being_made_keeps_no_other_from_saying_goodbye(serve, small_base, short_path):
    upstream = serve(small_base)
    with overheard(short_path / "between", upstream.socket) as said:
        base = NbdBase(f"nbd+unix:///?socket={short_path / 'between'}")
        base.pread(0, 10)
        begun, may_end = threading.Event(), threading.Event()

        def open_slowly():
            begun.set()
            may_end.wait(SOON_S)
            raise ConnectionRefusedError(111, "nobody there")

        slow = nbd._Connection(open_slowly)
        base._connections.insert(0, slow)
        opening = threading.Thread(target=fails, args=(slow.client,))
        opening.start()
        assert begun.wait(SOON_S)
        part_with({"": base})
        may_end.set()
        opening.join(SOON_S)
    assert [last_command(heard) for heard in said] == [Command.DISC]


def test_a_server_that_does_not_hear_our_goodbye_keeps_nobody(serve, small_base):
    upstream = serve(small_base)
    ours = serve(upstream.uri)
    upstream.send(signal.SIGSTOP)
    try:
        assert ours.stop() == 0
    finally:
        upstream.send(signal.SIGCONT)


def test_the_pause_before_a_new_try_grows_to_its_bound(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(nbd.time, "monotonic", lambda: now[0])
    tried = []

    def refuse():
        tried.append(now[0])
        raise ConnectionRefusedError(111, "nobody there")

    connection = nbd._Connection(refuse)
    while now[0] < 20:
        with pytest.raises(OSError, match=r"nobody|a moment ago"):
            connection.client()
        now[0] += 0.01
    pauses = [after - before for before, after in itertools.pairwise(tried)]
    assert all(after >= before - 0.02 for before, after in itertools.pairwise(pauses))
    assert pauses[0] == pytest.approx(nbd.BACKOFF_MIN_S, abs=0.02)
    assert pauses[-1] == pytest.approx(nbd.BACKOFF_MAX_S, abs=0.02)
