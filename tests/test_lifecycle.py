"""How a server lives and ends, and what its clients may do to it meanwhile.

Source:  NBD protocol, "Terminating the transmission phase", "Ordering of messages and writes"; promises P1, P4, P8.
"""

import errno
import os
import signal
import socket
import struct
import subprocess
import threading
import time

import pytest
from raw_nbd import DISC, READ, TRIM, WRITE, RawClient, hello, request
from servers import BLOCK, END_LIMIT_S, KIB, MIB, ROOT, SERVER, digest, eventually

from check.serving import serve_export
from impl.base.memory import BytesBase
from impl.base.pattern import pattern
from impl.client import NbdError, connect
from impl.nbd.constants import ErrorValue
from impl.server.export import ExportOptions, make_export

pytestmark = pytest.mark.timeout(120)

NO_ERROR = 0
STOPPED, NOT_CLEANLY = 0, 1
# Those who wait for a base that takes this long wait for more than any test.
NEVER = "latency=1000s"


@pytest.fixture(autouse=True)
def the_base_stays_as_it_is(request):
    """Whatever happens."""
    if "small_base" not in request.fixturenames:
        yield
        return
    path = request.getfixturevalue("small_base")
    before = digest(path)
    yield
    assert digest(path) == before


# Being told to stop


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_server_that_nobody_uses_ends_at_once_and_leaves_nothing(serve, small_base, number, tcp):
    server = serve(small_base, tcp=tcp)
    assert server.stop(number) == STOPPED
    assert sorted(os.listdir(server.folder)) == ["stderr"]
    assert server.stderr.count("\n") == 1, server.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_comes_as_soon_as_there_is_a_socket_ends_it_in_order(short_path, number):
    """Somebody may already have connected: the kernel lets clients in before the server looks."""
    path = short_path / "s"
    server = subprocess.Popen([*SERVER, "-U", path, "memory:1M"], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        eventually(path.exists, "there is a socket")
        server.send_signal(number)
        assert server.wait(END_LIMIT_S) == 0
        assert not path.exists()
    finally:
        server.kill()


def test_clients_that_are_idle_or_still_shaking_hands_do_not_keep_it(serve, small_base):
    server = serve(small_base)
    with RawClient(server.socket) as idle, socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(server.socket))
        silent.sendall(hello()[:10])
        assert server.stop() == STOPPED
        assert idle.is_closed_by_the_server()


class Load(threading.Thread):
    """A client that writes whole blocks of its own, and reads, with many requests in flight, until it is refused."""

    IN_FLIGHT = 24

    def __init__(self, uri, blocks):
        super().__init__(daemon=True)
        self._client = connect(uri)
        self._blocks = blocks
        self.written = {}  # block: what the last write that was acknowledged, or that may have happened, put there
        self.acknowledged = 0
        self.errors = []

    def run(self):
        tag = 0
        while self._client.alive and not self.errors:
            pending = []
            for block in self._blocks:
                tag += 1
                data = struct.pack(">Q", tag) * (BLOCK // 8)
                pending.append((block, data, self._client.pwrite_async(block * BLOCK, data)))
                pending.append((block, None, self._client.pread_async(block * BLOCK + 9, 100)))
                self.written.setdefault(block, []).append(data)
            for block, data, future in pending:
                self._note(block, data, future)
        self._client.close()

    def _note(self, block, data, future):
        try:
            future.result(END_LIMIT_S)
        except (NbdError, ConnectionError) as error:
            self.errors.append(error)
            return
        if data is not None:
            self.acknowledged += 1
            possible = self.written[block]
            del possible[: possible.index(data)]  # what an acknowledged write replaced cannot be there any more


def test_told_to_stop_under_load_it_answers_or_hangs_up_and_keeps_every_acknowledged_write(serve):
    """The overlay is looked at through its descriptor: it outlives its server for as long as we hold it."""
    server = serve("pattern:64M?latency=2ms&jitter=5ms")
    loads = [Load(server.uri, range(first, first + Load.IN_FLIGHT)) for first in range(0, 120, 30)]
    with open(server.overlay(), "rb") as overlay:
        for load in loads:
            load.start()
        eventually(lambda: all(load.acknowledged > 50 for load in loads), "all clients are at work")
        assert server.stop() == STOPPED, server.stderr
        for load in loads:
            load.join(END_LIMIT_S)
            assert not load.is_alive()
            for error in load.errors:
                assert isinstance(error, ConnectionError) or error.errno == errno.ESHUTDOWN, error
            for block, possible in load.written.items():
                overlay.seek(block * BLOCK)
                assert overlay.read(BLOCK) in possible, f"block {block} lost a write that was acknowledged"
    assert not server.socket.exists()
    assert server.stderr.count("\n") == 1, server.stderr


def test_what_is_in_flight_when_it_is_told_to_stop_is_answered_with_its_bytes_or_refused(serve):
    """Which of them have begun, nobody outside can tell; `test_server_stop.py` can, and has those finished."""
    server = serve("pattern:1M?latency=300ms")
    with RawClient(server.socket) as client:
        client.send(b"".join(request(READ, cookie, cookie * BLOCK, 512) for cookie in range(8)))
        client.send(request(TRIM, 99, 15 * BLOCK, BLOCK))
        lengths = dict.fromkeys(range(8), 512)
        assert client.reply(lengths) == (99, NO_ERROR, b"")  # so all before it has been received
        server.send(signal.SIGTERM)
        replies = sorted(client.reply(lengths) for _ in range(8))
        assert [cookie for cookie, _, _ in replies] == list(range(8))
        for cookie, error, data in replies:
            done, refused = (NO_ERROR, pattern(0, cookie * BLOCK, 512)), (int(ErrorValue.ESHUTDOWN), b"")
            assert (error, data) in (done, refused), cookie
        assert client.is_closed_by_the_server()
    assert server.wait() == STOPPED


def told_twice(server, number):
    """Its exit status. The second time when the first has been heard: nobody new can connect any more."""
    server.send(number)
    eventually(lambda: not server.socket.exists(), "the first signal has been heard")
    return server.stop(number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_told_twice_it_does_not_wait_for_a_base_that_does_not_answer(serve, number):
    server = serve(f"pattern:1M?{NEVER}")
    with RawClient(server.socket) as client:
        client.send(request(READ, 1, 0, 512) + request(WRITE, 2, 0, payload=b"part of a block"))
        client.send(request(TRIM, 3, 15 * BLOCK, BLOCK))
        assert client.reply() == (3, NO_ERROR, b"")
        assert told_twice(server, number) == NOT_CLEANLY
    assert sorted(os.listdir(server.folder)) == ["stderr"]


def test_told_twice_it_does_not_wait_for_a_client_that_does_not_read(serve):
    server = serve("pattern:64M")
    with RawClient(server.socket) as client:
        fill(client)
        assert told_twice(server, signal.SIGTERM) == NOT_CLEANLY
    assert sorted(os.listdir(server.folder)) == ["stderr"]


def fill(client):
    """Ask for more than all buffers hold, and read nothing but the first bytes of it."""
    client.send(b"".join(request(READ, cookie, 0, 32 * MIB) for cookie in range(8)))
    client.receive(16)


def test_told_once_it_gives_up_waiting_for_a_client_that_does_not_read(short_path):
    """In this process, where it can be told how long to wait."""
    export = make_export(BytesBase(bytes(32 * MIB)), ExportOptions())
    serving = serve_export(export, str(short_path / "s"), grace_s=0.2)
    with RawClient(short_path / "s") as client:
        fill(client)
        serving.stop()


# How clients leave


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
@pytest.mark.parametrize("base", ["pattern:4M", "pattern:4M?latency=1ms&jitter=3ms"], ids=["fast", "slow"])
def test_a_client_that_only_listens_any_more_gets_all_its_replies(serve, base, tcp):
    """16 reads, then its end of the connection is shut."""
    client = client_of(serve(base, tcp=tcp))
    with client:
        lengths = {cookie: 3 * BLOCK + cookie for cookie in range(16)}
        client.send(b"".join(request(READ, cookie, cookie * BLOCK, length) for cookie, length in lengths.items()))
        client.finish_sending()
        replies = {cookie: (error, data) for cookie, error, data in (client.reply(lengths) for _ in lengths)}
        assert client.is_closed_by_the_server()
    assert replies == {cookie: (NO_ERROR, pattern(0, cookie * BLOCK, length)) for cookie, length in lengths.items()}


def client_of(server):
    if server.socket is not None:
        return RawClient(server.socket)
    return RawClient(port=int(server.uri.rsplit(":", 1)[1]))


@pytest.mark.parametrize("length", [BLOCK, 5000], ids=["whole-blocks", "parts"])
@pytest.mark.parametrize(
    ("leave", "tcp"),
    [("reads its replies", False), ("reads its replies", True), ("closes", False)],
    ids=["unix-reads", "tcp-reads", "unix-closes"],
)
def test_writes_before_a_disc_all_land(serve, tcp, leave, length):
    """32 of them, none yet answered; those of parts of blocks wait for the base. The server MUST handle all of them.

    Not so where the client of a TCP connection closes without reading: its own kernel drops what it has not yet sent.
    """
    server = serve(SLOW, tcp=tcp)
    with connect(server.uri) as other:
        alone = in_use(server)
        with client_of(server) as client:
            client.send(b"".join(writes(length)) + request(DISC, 99))
            if leave == "reads its replies":
                assert sorted(client.reply() for _ in range(32)) == [(cookie, NO_ERROR, b"") for cookie in range(32)]
                assert client.is_closed_by_the_server()
        eventually(lambda: in_use(server) == alone, "the server has done with that client")
        assert [cookie for cookie in range(32) if not has_landed(other, cookie, length)] == []
    assert server.stop() == STOPPED


@pytest.mark.parametrize("length", [BLOCK, 5000], ids=["whole-blocks", "parts"])
@pytest.mark.parametrize("leave", ["closes", "resets"])
@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def test_writes_of_a_client_that_vanished_have_happened_whole_or_not_at_all(serve, tcp, leave, length):
    server = serve(SLOW, tcp=tcp)
    with connect(server.uri) as other:
        alone = in_use(server)
        with client_of(server) as client:
            client.send(b"".join(writes(length)))
            answered = client.reply()[0]
            if leave == "resets":
                vanish(client)
        eventually(lambda: in_use(server) == alone, "the server has done with that client")
        landed = [has_landed(other, cookie, length) for cookie in range(32)]
    assert landed[answered]
    assert server.stop() == STOPPED
    assert server.stderr.count("\n") <= 2, server.stderr


SLOW = "pattern:4M?latency=2ms&jitter=5ms"


def writes(length):
    return [request(WRITE, cookie, cookie * BLOCK, payload=bytes([cookie]) * length) for cookie in range(32)]


def has_landed(client, cookie, length):
    """Whether that one of the writes has happened; it has either done so whole, or not at all."""
    found = client.pread(cookie * BLOCK, length)
    assert found in (bytes([cookie]) * length, pattern(0, cookie * BLOCK, length)), f"write {cookie} is torn"
    return found == bytes([cookie]) * length


def in_use(server):
    """What a client costs, so that one can see when it has been done with: descriptors and threads."""
    return server.descriptor_count(), server.status_number("Threads")


def vanish(client):
    """Without a word: a reset, where there is such a thing."""
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("sent_bytes", [5, 28, MIB])
@pytest.mark.parametrize("reset", [False, True], ids=["closes", "resets"])
def test_a_request_that_did_not_arrive_whole_is_not_done(serve, small_base, sent_bytes, reset):
    """Of 32 MiB; and whoever sent it harms nobody else."""
    large = small_base.with_name("large.img")
    with large.open("wb") as file:
        file.write(small_base.read_bytes())
        file.truncate(32 * MIB)
    server = serve(large, tcp=True)
    with connect(server.uri) as other:
        alone = in_use(server)
        with client_of(server) as client:
            client.send(request(WRITE, 1, 0, payload=b"x" * 32 * MIB)[:sent_bytes])
            if reset:
                vanish(client)
        eventually(lambda: in_use(server) == alone, "the server has done with that client")
        assert other.pread(0, 2 * MIB) == small_base.read_bytes()
        assert other.pread(30 * MIB, MIB) == bytes(MIB)
        assert server.overlay_bytes() == 0
    assert server.stop() == STOPPED


def test_a_client_that_does_not_read_keeps_no_other_waiting(serve, small_base):
    server = serve("pattern:64M")
    with RawClient(server.socket) as deaf, connect(server.uri, timeout_s=END_LIMIT_S) as other:
        fill(deaf)
        for block in range(32):
            other.pwrite(block * BLOCK + 5, b"mine")
            assert other.pread(block * BLOCK, 9) == pattern(0, block * BLOCK, 5) + b"mine"
        assert server.status_number("VmRSS") < 250 * KIB


def test_a_client_that_waits_for_the_base_keeps_no_other_waiting(serve):
    """Not even those who write where it reads; only those who need the base themselves."""
    server = serve(f"pattern:4M?{NEVER}", "-t", "2")
    with RawClient(server.socket) as stuck, connect(server.uri, timeout_s=END_LIMIT_S) as other:
        stuck.send(b"".join(request(READ, cookie, 0, MIB) for cookie in range(8)))
        stuck.send(request(WRITE, 8, 20 * BLOCK + 5, payload=b"part of a block"))
        stuck.send(request(TRIM, 9, 30 * BLOCK, BLOCK))
        assert stuck.reply() == (9, NO_ERROR, b"")  # so all before it has been received
        other.pwrite(20 * BLOCK, bytes(BLOCK))
        for block in range(16):
            other.pwrite(block * BLOCK, bytes([block]) * BLOCK)
        for block in range(16):
            assert other.pread(block * BLOCK, BLOCK) == bytes([block]) * BLOCK
        other.trim(0, MIB)
        assert other.pread(0, MIB) == bytes(MIB)


# Floods

GARBAGE = {
    "nothing at all": b"",
    "the flags of no client": b"\xff" * 4,
    "half an option": hello()[:9],
    "an option that is none": hello()[:4] + b"IHAVENOT" + bytes(8),
    "an option of 4 GiB": hello()[:4] + b"IHAVEOPT" + b"\0\0\0\7" + b"\xff" * 4,
    "a request that is none": hello() + b"\xff" * 28,
    "a write of 4 GiB": hello() + request(WRITE, 1, 0, 0xFFFFFFFF),
}


@pytest.mark.parametrize("what", GARBAGE)
def test_a_flood_of_clients_that_send_something_and_leave_does_no_harm(serve, small_base, what):
    """500 of them: what they leave behind is nothing, and what is said of them is not much."""
    server = serve(small_base)
    with connect(server.uri) as witness:
        alone = in_use(server)
        for _ in range(500):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(server.socket))
                client.sendall(GARBAGE[what])
        with RawClient(server.socket) as last:  # they are accepted one after the other
            assert last.size == small_base.stat().st_size
        eventually(lambda: in_use(server) == alone, "the server has done with all of them")
        assert witness.pread(0, 5) == small_base.read_bytes()[:5]
    assert server.stop() == STOPPED
    assert server.stderr.count("\n") < 60, server.stderr


def test_many_clients_at_once_are_all_served(serve, small_base):
    server = serve(small_base)
    clients = [RawClient(server.socket) for _ in range(100)]
    expected = bytearray(small_base.read_bytes())
    for number, client in enumerate(clients):
        expected[number * 10000 : (number + 1) * 10000] = bytes([number]) * 10000
        client.send(request(WRITE, number, number * 10000, payload=bytes([number]) * 10000))
    for number, client in enumerate(clients):
        assert client.reply() == (number, NO_ERROR, b"")
    for number, client in enumerate(clients):
        client.send(request(READ, number, number, MIB))
    for number, client in enumerate(clients):
        assert client.reply({number: MIB}) == (number, NO_ERROR, bytes(expected[number : number + MIB]))
        client.socket.close()
    assert server.stop() == STOPPED


def test_more_clients_than_it_has_descriptors_for_wait_or_are_sent_away_and_later_ones_are_served(serve, small_base):
    few = ["sh", "-c", 'ulimit -n 40; exec "$@"', "sh"]
    server = serve(small_base, under=few)
    with connect(server.uri) as witness:
        alone = in_use(server)
        clients = []
        for _ in range(100):
            clients.append(socket.socket(socket.AF_UNIX))
            clients[-1].connect(str(server.socket))
        assert witness.pread(0, 5) == small_base.read_bytes()[:5]
        eventually(lambda: server.descriptor_count() > 35, "it has taken as many as it can")
        assert witness.pread(0, 5) == small_base.read_bytes()[:5]
        for client in clients:
            client.close()
        with connect(server.uri, timeout_s=END_LIMIT_S) as late:
            assert late.pread(0, 5) == small_base.read_bytes()[:5]
        eventually(lambda: in_use(server) == alone, "the server has done with all of them")
    assert server.stop() == STOPPED
    assert server.stderr.count("\n") < 60, server.stderr


@pytest.mark.parametrize("structured", [True, False])
def test_a_base_that_becomes_shorter_fails_what_is_missing_and_nothing_else(serve, tmp_path, structured):
    """EIO where the protocol lets us say it; else that connection, and no other."""
    image = tmp_path / "base.img"
    image.write_bytes(pattern(5, 0, 4 * MIB))
    server = serve(image)
    with connect(server.uri) as witness:
        os.truncate(image, 2 * MIB)
        client = connect(server.uri, structured=structured)
        for offset, length in ((3 * MIB, 100), (3 * MIB, MIB), (2 * MIB - 1000, MIB)):
            with pytest.raises((NbdError, ConnectionError)) as failed:
                client.pread(offset, length)
            if structured:
                assert (type(failed.value), failed.value.errno) == (NbdError, errno.EIO)
            elif not client.alive:
                client.close()
                client = connect(server.uri, structured=False)
            assert client.pread(2 * MIB - BLOCK, BLOCK) == pattern(5, 2 * MIB - BLOCK, BLOCK)
        with pytest.raises(NbdError):
            witness.pwrite(3 * MIB + 5, b"part")
        witness.pwrite(3 * MIB, b"x" * BLOCK)
        assert client.pread(3 * MIB, BLOCK) == b"x" * BLOCK
        client.close()
    assert server.stop() == STOPPED


# Sizes

TIB = 1 << 40


@pytest.mark.parametrize("kind", ["pattern", "sparse-file"])
def test_eight_tebibytes_take_neither_time_nor_memory(serve, tmp_path, kind):
    """State is a byte a block, so 128 MiB of it here: backed where it is used."""
    base = "pattern:8T"
    if kind == "sparse-file":
        base = tmp_path / "huge.img"
        with base.open("wb") as file:
            file.truncate(8 * TIB)
    begun = time.monotonic()
    server = serve(base)
    assert time.monotonic() - begun < 5
    assert server.status_number("VmRSS") < 60 * KIB
    with connect(server.uri) as client:
        assert client.size == 8 * TIB
        last = 8 * TIB - 5000
        content = pattern(0, last, 5000) if kind == "pattern" else bytes(5000)
        assert client.pread(last, 5000) == content
        client.pwrite(last + 10, b"mine")
        assert client.pread(last, 5000) == content[:10] + b"mine" + content[14:]
        assert server.overlay_bytes() <= 2 * BLOCK
        for offset in range(0, 8 * TIB, TIB):
            client.pwrite(offset, b"x" * BLOCK)
            client.trim(offset, (4 << 30) - BLOCK)
            assert client.pread(offset, BLOCK) == bytes(BLOCK)
            assert client.block_status(offset, (4 << 30) - BLOCK)[0].length == (4 << 30) - BLOCK
        assert server.overlay_bytes() <= 2 * BLOCK
        assert server.status_number("VmRSS") < 80 * KIB
    assert server.stop() == STOPPED
