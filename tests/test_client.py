"""The client, against other people's servers, and against a misbehaving one of our own.

Source: NBD protocol, "Transmission", "Terminating the transmission phase", "Error values"; impl/client.
"""

import errno
import socket
import subprocess
import tempfile
import threading
import time
from concurrent.futures import wait
from contextlib import contextmanager
from pathlib import Path

import pytest
from servers import START_LIMIT_S, eventually, need

from impl.client import (
    Client,
    HandshakeError,
    NbdError,
    Target,
    connect,
    export_info,
    list_contexts,
    list_exports,
    parse,
)
from impl.client.link import Deadline, open_socket, shake_hands
from impl.errors import PeerError, UsageError
from impl.extents import Extent
from impl.nbd import replies, wire
from impl.nbd.client_handshake import ClientHandshake
from impl.nbd.constants import (
    BASE_ALLOCATION,
    ChunkType,
    Command,
    CommandFlag,
    ErrorValue,
    HandshakeFlag,
    Option,
    OptionReply,
    TransmissionFlag,
)
from impl.nbd.requests import RequestReader
from impl.nbd.server_handshake import ExportInfo, Phase, ServerHandshake

pytestmark = pytest.mark.timeout(120)

KIB, MIB = 1 << 10, 1 << 20
DATA, HOLE = Extent(64 * KIB, False, False), Extent(MIB - 64 * KIB, True, True)


# Where a server is.

URIS = [
    ("nbd://localhost", Target(host="localhost", port=10809)),
    ("nbd://localhost/", Target(host="localhost", port=10809)),
    ("nbd://127.0.0.1:1/disk", Target("disk", host="127.0.0.1", port=1)),
    ("nbd://[::1]:10810/a/b", Target("a/b", host="::1", port=10810)),
    ("nbd://host/a%20b%3F%C3%A4", Target("a b?ä", host="host")),
    ("nbd+unix:///?socket=/run/nbd", Target(path="/run/nbd")),
    ("nbd+unix:///disk?socket=/a%26b", Target("disk", path="/a&b")),
    ("nbd+unix:////abs?socket=rel", Target("/abs", path="rel")),
]
NOT_URIS = [
    "",
    "disk.img",
    "http://host/",
    "nbdx://host/",
    f"nbd://host/{'x' * 4097}",
    "nbds+vsock://1/",
    "nbd://host/?tls-hostname=a",
    "nbds://host/?tls-verify-peer=maybe",
    "nbds://host/?tls-hostname=a&tls-hostname=b",
    "nbd://",
    "nbd:///export",
    "nbd://host:port/",
    "nbd://host:70000/",
    "nbd://[::1/",
    "nbd://host/?socket=/x",
    "nbd://host/a#b",
    "nbd://host/%ff",
    "nbd+unix:///",
    "nbd+unix:///?socket=",
    "nbd+unix:///?socket=a&socket=b",
    "nbd+unix:///?sock=a",
    "nbd+unix://host/?socket=a",
]


@pytest.mark.parametrize(("uri", "target"), URIS)
def test_a_uri_names_a_target_and_a_target_its_uri(uri, target):
    assert parse(uri) == target
    assert parse(target.uri) == target


@pytest.mark.parametrize("uri", NOT_URIS)
def test_what_is_no_uri_is_refused_with_what_would_be_one(uri):
    with pytest.raises(UsageError, match=r"expected nbd://HOST\[:PORT\]"):
        parse(uri)


def test_where_nobody_listens_the_connection_is_refused():
    with pytest.raises(OSError):
        connect("nbd+unix:///?socket=/nonexistent/socket", timeout_s=5)


# Other people's servers.


def is_listening(path, process):
    assert process.poll() is None, f"the server ended with status {process.returncode}"
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@contextmanager
def serving(program, package, arguments):
    """A server on a socket of its own; arguments may say {socket}."""
    program = need(program, package)
    with tempfile.TemporaryDirectory(prefix="nbd") as folder:
        path = Path(folder, "s")
        command = [program, *(argument.format(socket=path) for argument in arguments)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            eventually(lambda: is_listening(path, process), f"{program} listens", START_LIMIT_S)
            yield f"nbd+unix:///?socket={path}", process
        finally:
            process.kill()
            process.wait()


def nbdkit(*arguments):
    return serving("nbdkit", "nbdkit", ["-f", "-U", "{socket}", *arguments])


def qemu_nbd(*arguments):
    return serving("qemu-nbd", "qemu-utils", ["-t", "-e", "8", "-k", "{socket}", *arguments])


@pytest.fixture(scope="module")
def memory_uri():
    with nbdkit("memory", "1M") as (uri, _):
        yield uri


@pytest.fixture(scope="module")
def simple_uri():
    with nbdkit("--no-sr", "memory", "1M") as (uri, _):
        yield uri


@pytest.fixture
def qemu_uri(tmp_path):
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.write(b"d" * 64 * KIB)
        file.truncate(MIB)
    with qemu_nbd("-f", "raw", "-x", "disk", "-D", "a disk", "--discard=unmap", str(image)) as (uri, _):
        yield uri.replace("///?", "///disk?")


@pytest.fixture(params=["memory_uri", "simple_uri", "qemu_uri"])
def uri(request):
    return request.getfixturevalue(request.param)


def test_what_was_written_is_read(uri):
    with connect(uri) as client:
        assert client.size == MIB
        client.pwrite(1000, b"hello")
        client.pwrite(1005, bytearray(b" world"), fua=client.can_fua)
        assert client.pread(998, 14) == client.pread(998, 2) + b"hello world" + client.pread(1011, 1)
        large = bytes(range(256)) * (MIB // 256)
        client.pwrite(0, memoryview(large))
        assert client.pread(0, MIB) == large
        client.flush()


def test_zeroes_and_trims_read_as_zeroes(memory_uri):
    with connect(memory_uri) as client:
        client.pwrite(0, b"x" * 256 * KIB)
        client.zero(0, 64 * KIB)
        client.zero(64 * KIB, 100, no_hole=True)
        client.trim(128 * KIB, 64 * KIB)
        client.cache(0, MIB)
        assert client.pread(0, 64 * KIB + 101) == bytes(64 * KIB + 100) + b"x"
        assert client.pread(128 * KIB, 64 * KIB) == bytes(64 * KIB)


def test_many_requests_are_in_flight_at_once(uri):
    with connect(uri) as client:
        blocks = [bytes([i % 251]) * 4 * KIB for i in range(256)]
        wait([client.pwrite_async(i * 4 * KIB, block) for i, block in enumerate(blocks)])
        reads = [client.pread_async(i * 4 * KIB, 4 * KIB) for i in reversed(range(256))]
        assert [client.wait(read) for read in reads] == blocks[::-1]


def test_many_threads_share_a_client(uri):
    def work(number):
        base = number * 128 * KIB
        for turn in range(50):
            block = bytes([number * 50 + turn]) * 4 * KIB
            client.pwrite(base + turn * 512, block)
            assert client.pread(base + turn * 512, 4 * KIB) == block
        finished.append(number)

    finished = []
    with connect(uri) as client:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(finished) == [0, 1, 2, 3, 4]


def test_structured_replies_are_used_unless_declined_or_missing(memory_uri, simple_uri):
    with connect(memory_uri) as client:
        assert (client.structured, client.can_df, client.can_block_status) == (True, True, True)
    with connect(memory_uri, structured=False) as client:
        assert (client.structured, client.can_df, client.can_block_status) == (False, False, False)
    with connect(simple_uri) as client:
        assert (client.structured, client.can_df, client.can_block_status) == (False, False, False)
    with connect(memory_uri, contexts=()) as client:
        assert (client.structured, client.can_block_status) == (True, False)


def test_the_oldest_way_to_choose_an_export_works(uri):
    with connect(uri, export_name_only=True) as client:
        assert (client.size, client.structured) == (MIB, False)
        assert len(client.pread(0, 512)) == 512


def test_flags_and_sizes_are_those_of_the_server(qemu_uri):
    with connect(qemu_uri) as client:
        assert client.can_flush and client.can_fua and client.can_trim and client.can_zero and client.can_cache
        assert client.can_fast_zero and client.can_multi_conn
        assert not client.read_only and not client.rotational
        assert (client.block_min, client.block_preferred, client.payload_max) == (1, 4096, 32 * MIB)
        assert client.export.name == "disk"


def test_block_status_covers_exactly_the_range(qemu_uri):
    with connect(qemu_uri) as client:
        assert client.block_status(0, MIB) == [DATA, HOLE]
        assert client.block_status(1024, 1024) == [Extent(1024, False, False)]
        assert client.block_status(64 * KIB - 512, 1024) == [Extent(512, False, False), Extent(512, True, True)]
        assert client.block_status(64 * KIB - 512, 1024, req_one=True) == [Extent(512, False, False)]
        client.zero(0, 64 * KIB)
        assert {extent.zero for extent in client.block_status(0, MIB)} == {True}


def test_holes_travel_as_holes_unless_fragments_are_forbidden(qemu_uri):
    with connect(qemu_uri) as client:
        content = b"d" * 64 * KIB + bytes(64 * KIB)
        plain = client.wait(client.submit(Command.READ, 0, 0, 128 * KIB))
        whole = client.wait(client.submit(Command.READ, CommandFlag.DF, 0, 128 * KIB))
        assert ChunkType.OFFSET_HOLE in plain.chunks
        assert [kind for kind in whole.chunks if kind != ChunkType.NONE] == [ChunkType.OFFSET_DATA]
        assert plain.data == whole.data == content
        assert client.pread(0, 128 * KIB, df=True) == content


def test_an_error_has_the_servers_words_and_the_connection_lives_on(qemu_uri):
    with connect(qemu_uri) as client:
        reply = client.wait(client.submit(Command.READ, 0, MIB, 512))
        assert (reply.error, reply.chunks) == (ErrorValue.EINVAL, (ChunkType.ERROR,))
        assert "EOF" in reply.message
        assert client.wait(client.submit(77)).error == ErrorValue.EINVAL
        assert client.wait(client.submit(Command.WRITE, CommandFlag.DF, 0, payload=b"x")).error == ErrorValue.EINVAL
        assert client.pread(0, 1) == b"d"


def test_an_error_of_the_servers_disk_is_raised_with_its_errno():
    with nbdkit("--filter=error", "memory", "1M", "error-rate=1", "error-pread=ENOMEM", "error-pwrite=ENOSPC") as (
        uri,
        _,
    ):
        for structured in (True, False):
            with connect(uri, structured=structured) as client:
                with pytest.raises(NbdError) as caught:
                    client.pread(0, 512)
                assert caught.value.errno == errno.ENOMEM
                with pytest.raises(NbdError) as caught:
                    client.pwrite(0, b"x")
                assert caught.value.errno == errno.ENOSPC
                client.flush()


REFUSED = [  # (claim, what is called, errno)
    ("reading over the end", lambda client: client.pread(MIB, 1), errno.EINVAL),
    ("reading too much", lambda client: client.pread(0, 33 * MIB), errno.EINVAL),
    ("writing over the end", lambda client: client.pwrite(MIB - 1, b"xx"), errno.ENOSPC),
    ("zeroing over the end", lambda client: client.zero(MIB, 1), errno.ENOSPC),
    ("asking for the status of nothing", lambda client: client.block_status(0, 0), errno.EINVAL),
]


@pytest.mark.parametrize(("claim", "call", "number"), REFUSED, ids=[case[0] for case in REFUSED])
def test_what_the_standard_forbids_is_refused_before_it_is_sent(claim, call, number, memory_uri):
    with connect(memory_uri) as client:
        with pytest.raises(NbdError, match="not sent") as caught:
            call(client)
        assert caught.value.errno == number


def test_what_was_not_advertised_is_refused_before_it_is_sent():
    with nbdkit("-r", "memory", "1M") as (uri, _), connect(uri, structured=False) as client:
        assert client.read_only
        for call, number in (
            (lambda: client.pwrite(0, b"x"), errno.EPERM),
            (lambda: client.pread(0, 1, df=True), errno.EINVAL),
            (lambda: client.block_status(0, 512), errno.EINVAL),
        ):
            with pytest.raises(NbdError, match="not sent") as caught:
                call()
            assert caught.value.errno == number


UNSENDABLE = [  # (claim, what is called, what the message begins with)
    ("a read before the start", lambda client: client.pread(-1, 1), "offset -1 "),
    ("a read behind the last number", lambda client: client.pread(1 << 64, 1), "offset 18446744073709551616 "),
    ("a read of less than nothing", lambda client: client.pread(0, -1), "length -1 "),
    ("a zero of 4 GiB", lambda client: client.zero(0, 1 << 32), "length 4294967296 "),
    ("any offset before the start", lambda client: client.submit(Command.READ, 0, -1, 1), "offset -1 "),
    ("any length above 32 bits", lambda client: client.submit(Command.TRIM, 0, 0, 1 << 33), "length 8589934592 "),
    ("any command above 16 bits", lambda client: client.submit(1 << 20), "command 1048576 "),
    ("any command below 0", lambda client: client.submit(-1), "command -1 "),
    ("any flags above 16 bits", lambda client: client.submit(Command.READ, 1 << 16, 0, 1), "flags 65536 "),
]


@pytest.mark.parametrize(("claim", "call", "says"), UNSENDABLE, ids=[case[0] for case in UNSENDABLE])
def test_numbers_that_cannot_be_sent_are_the_callers_error_and_the_connection_lives_on(claim, call, says, memory_uri):
    with connect(memory_uri) as client:
        with pytest.raises(UsageError, match=f"^{says}.* expected 0 to 0x"):
            call(client)
        assert client.pread(0, 1) == b"\0"


def test_exports_and_contexts_are_told_without_choosing_one(qemu_uri):
    assert list_exports(qemu_uri) == [("disk", "a disk")]
    export = export_info(qemu_uri)
    assert (export.name, export.size, export.description) == ("disk", MIB, "a disk")
    assert [context.name for context in list_contexts(qemu_uri)] == ["base:allocation"]
    assert [context.name for context in list_contexts(qemu_uri, ("qemu:",))] == []


@pytest.mark.parametrize("ask", [connect, export_info, list_contexts])
def test_an_unknown_export_is_refused_with_the_servers_reply(ask, qemu_uri):
    with pytest.raises(HandshakeError, match="disc") as caught:
        ask(qemu_uri.replace("disk", "disc"))
    assert caught.value.refusal == OptionReply.ERR_UNKNOWN


def test_an_unknown_export_by_name_only_is_a_closed_connection(qemu_uri):
    with pytest.raises(HandshakeError, match="closed"):
        connect(qemu_uri.replace("disk", "disc"), export_name_only=True)


def test_when_the_server_is_killed_everything_in_flight_fails_and_so_does_what_follows():
    with nbdkit("--filter=delay", "memory", "1M", "rdelay=100") as (uri, process):
        client = connect(uri)
        reads = [client.pread_async(i * 512, 512) for i in range(20)]
        process.kill()
        for read in reads:
            with pytest.raises(ConnectionError):
                read.result(timeout=30)
        with pytest.raises(ConnectionError):
            client.pread(0, 512)
        assert not client.alive
        client.disconnect()
        client.close()


# A server of our own, which does what a test tells it.

FLAGS = TransmissionFlag.HAS_FLAGS | TransmissionFlag.SEND_FLUSH


class Served:
    """The server's end of a connection in its transmission phase."""

    def __init__(self, sock, handshake):
        self.sock = sock
        self.reader = RequestReader(handshake.agreement, handshake.leftover)

    def request(self):
        """The next request, or None at the end."""
        while (request := self.reader.next()) is None:
            count = self.sock.recv_into(self.reader.buffer())
            if not count:
                return None
            self.reader.received(count)
        return request


def granted(context):
    """How a server grants a metadata context."""
    name = BASE_ALLOCATION if context == 1 else f"test:{context}"
    data = wire.pack_meta_context(context, name)
    return wire.pack_option_reply(Option.SET_META_CONTEXT, OptionReply.META_CONTEXT, data)


@contextmanager
def fake(script, *, timeout_s=20.0, structured=False, size=MIB, contexts=(1,)):
    """A client of a server that runs `script`; what that raises or returns is given to the test.

    contexts:  the server grants these; 1 is base:allocation.
    """
    ours, theirs = socket.socketpair()
    ours.settimeout(20)
    outcome = []

    def serve():
        handshake = ServerHandshake({"": ExportInfo("", size, "", FLAGS)}, "")
        try:
            while handshake.phase is not Phase.TRANSMISSION:
                ours.sendall(handshake.data_to_send().replace(granted(1), b"".join(map(granted, contexts))))
                handshake.receive(ours.recv(4096))
            ours.sendall(handshake.data_to_send())
            outcome.append(script(Served(ours, handshake)))
        except Exception as error:  # the test sees it
            outcome.append(error)
        finally:
            ours.close()

    thread = threading.Thread(target=serve)
    thread.start()
    handshake = ClientHandshake(structured=structured)
    shake_hands(theirs, handshake, Deadline(20))
    theirs.settimeout(None)
    client = Client(theirs, handshake, timeout_s)
    try:
        yield client, thread, outcome
    finally:
        client.close()
        thread.join()
    for found in outcome:
        if isinstance(found, Exception):
            raise found


def test_a_reply_to_nothing_kills_the_connection_and_says_why():
    def script(served):
        served.request()
        served.sock.sendall(replies.simple_reply(0xDEAD))
        return served.request()

    with fake(script) as (client, _, _), pytest.raises(ConnectionError, match="0xdead") as caught:
        client.flush()
    assert isinstance(caught.value.__cause__, PeerError)


def test_replies_sent_before_a_hang_up_still_count():
    def script(served):
        requests = [served.request() for _ in range(3)]
        served.sock.sendall(replies.simple_reply(requests[2].cookie) + replies.simple_reply(requests[0].cookie))

    with fake(script) as (client, thread, _):
        first, second, third = (client.flush_async() for _ in range(3))
        thread.join()
        assert first.result(20) is None
        assert third.result(20) is None
        with pytest.raises(ConnectionError):
            second.result(20)


def test_replies_still_count_when_a_later_request_finds_the_server_gone():
    def script(served):
        requests = [served.request() for _ in range(2)]
        served.sock.sendall(replies.simple_reply(requests[0].cookie))
        held.wait(20)
        served.sock.sendall(replies.simple_reply(requests[1].cookie))

    held, gone = threading.Event(), threading.Event()
    with fake(script) as (client, thread, _):
        first = client.flush_async()
        first.add_done_callback(lambda _: (held.set(), gone.wait(20)))  # holds the receiver
        second = client.flush_async()
        thread.join()
        third = client.flush_async()
        gone.set()
        assert second.result(20) is None
        with pytest.raises(ConnectionError):
            third.result(20)


def test_replies_still_count_when_they_come_after_a_request_could_not_be_sent():
    """The server hears no more, and says that only of what it has not heard."""

    def script(served):
        requests = [served.request() for _ in range(2)]
        served.sock.shutdown(socket.SHUT_RD)
        deaf.set()
        assert refused.wait(20)
        served.sock.sendall(b"".join(replies.simple_reply(request.cookie) for request in requests))

    deaf, refused = threading.Event(), threading.Event()
    with fake(script) as (client, _, _):
        first, second = client.flush_async(), client.flush_async()
        assert deaf.wait(20)
        third = client.flush_async()
        refused.set()
        assert first.result(20) is None
        assert second.result(20) is None
        with pytest.raises(ConnectionError):
            third.result(20)


def test_an_error_says_where_in_the_range_it_occurred_if_the_server_does():
    def script(served):
        first, second = served.request(), served.request()
        served.sock.sendall(replies.error_offset_chunk(first.cookie, ErrorValue.EIO, "a scratch", 1010))
        served.sock.sendall(replies.error_chunk(second.cookie, ErrorValue.EIO, "a scratch"))

    with fake(script, structured=True) as (client, _, _):
        for read, offset in [(client.pread_async(1000, 100), 1010), (client.pread_async(1000, 100), None)]:
            with pytest.raises(NbdError, match="a scratch") as caught:
                client.wait(read)
            assert (caught.value.errno, caught.value.offset) == (errno.EIO, offset)


def test_a_status_of_more_than_a_request_can_say_is_asked_for_in_parts():
    """Lengths have 32 bits; the first of them is such that the second request is aligned, too."""
    gib, longest = 1 << 30, (1 << 32) - 64 * KIB

    def script(served):
        asked = []
        for _ in range(2):
            request = served.request()
            asked.append((request.offset, request.length))
            descriptors = [(request.length, 3)]
            served.sock.sendall(replies.block_status_chunk(request.cookie, 1, descriptors, True))
        return asked

    with fake(script, structured=True, size=5 * gib) as (client, thread, outcome):
        assert sum(extent.length for extent in client.block_status(0, 5 * gib)) == 5 * gib
        thread.join()
    assert outcome == [[(0, longest), (longest, 5 * gib - longest)]]


@pytest.mark.parametrize("contexts", [(1, 7), (7, 1)])
def test_of_several_contexts_the_status_is_that_of_base_allocation(contexts):
    def script(served):
        request = served.request()
        for context in contexts:
            last = context == contexts[-1]
            descriptors = [(MIB, 3 if context == 1 else 0)]
            served.sock.sendall(replies.block_status_chunk(request.cookie, context, descriptors, last))

    with fake(script, structured=True, contexts=contexts) as (client, _, _):
        assert client.block_status(0, MIB) == [Extent(MIB, True, True)]


def test_a_status_in_parts_is_asked_for_until_the_range_is_covered():
    def script(served):
        asked = []
        for descriptors in ([(100, 0)], [(50, 1), (100, 3), (MIB, 2)]):
            request = served.request()
            asked.append((request.offset, request.length))
            served.sock.sendall(replies.block_status_chunk(request.cookie, 1, descriptors, True))
        return asked

    with fake(script, structured=True) as (client, thread, outcome):
        found = client.block_status(1000, 300)
        assert found == [(100, False, False), (50, True, False), (100, True, True), (50, False, True)]
        thread.join()
    assert outcome == [[(1000, 300), (1100, 200)]]


def test_bytes_behind_the_handshake_belong_to_the_transmission():
    ours, theirs = socket.socketpair()
    with ours:
        handshake, server = ClientHandshake(), ServerHandshake({"": ExportInfo("", MIB, "", FLAGS)}, "")
        while handshake.phase is not Phase.TRANSMISSION:
            handshake.receive(server.data_to_send())
            server.receive(handshake.data_to_send())
        handshake.receive(replies.simple_reply(0xDEAD))
        with Client(theirs, handshake, 20) as client, pytest.raises(ConnectionError, match="0xdead"):
            client.flush()


def test_a_silent_server_costs_a_timeout_and_closing_does_not_hang():
    silence = threading.Event()
    with fake(lambda served: silence.wait(60), timeout_s=0.2) as (client, _, _):
        pending = client.flush_async()
        with pytest.raises(TimeoutError):
            client.wait(pending)
        client.close()
        silence.set()
        with pytest.raises(ConnectionError, match="closed"):
            pending.result(20)


def test_a_server_that_does_not_read_is_given_up():
    silence = threading.Event()
    with fake(lambda served: silence.wait(60), timeout_s=0.5) as (client, _, _):
        writes = [client.pwrite_async(0, bytes(MIB)) for _ in range(8)]
        for write in writes:
            with pytest.raises(ConnectionError, match="does not read"):
                write.result(20)
        silence.set()


def test_leaving_waits_for_what_is_in_flight_and_then_says_so():
    def script(served):
        requests = [served.request() for _ in range(3)]
        served.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):  # no DISC yet
            served.request()
        served.sock.settimeout(20)
        for request in requests:
            served.sock.sendall(replies.simple_reply(request.cookie))
        return [request.command for request in (*requests, served.request())]

    with fake(script) as (client, thread, outcome):
        flushes = [client.flush_async() for _ in range(3)]
        assert not flushes[0].cancel()  # it has been sent
        started = time.monotonic()
        client.disconnect()
        assert time.monotonic() - started < 10  # woken by the last reply, not by the timeout
        assert [flush.result(0) for flush in flushes] == [None] * 3
        thread.join()
        assert outcome == [[Command.FLUSH] * 3 + [Command.DISC]]
        with pytest.raises(ConnectionError):
            client.flush()


def test_one_may_leave_with_requests_in_flight():
    def script(served):
        requests = [served.request() for _ in range(3)]
        served.sock.sendall(b"".join(replies.simple_reply(request.cookie) for request in requests[:2]))
        return [request.command for request in requests]

    with fake(script) as (client, _, outcome):
        flushes = [client.flush_async() for _ in range(2)]
        client.disconnect(wait=False)
        assert [flush.result(0) for flush in flushes] == [None, None]
    assert outcome == [[Command.FLUSH, Command.FLUSH, Command.DISC]]


def test_a_server_that_shuts_down_is_left_once_nothing_is_in_flight():
    def script(served):
        first, second = served.request(), served.request()
        served.sock.sendall(replies.simple_reply(first.cookie, ErrorValue.ESHUTDOWN))
        told.wait(20)
        served.sock.sendall(replies.simple_reply(second.cookie))
        return served.request().command

    told = threading.Event()
    with fake(script) as (client, thread, outcome):
        first, second = client.flush_async(), client.flush_async()
        with pytest.raises(NbdError) as caught:
            first.result(20)
        assert caught.value.errno == errno.ESHUTDOWN
        with pytest.raises(ConnectionError, match="leaving"):
            client.flush()
        told.set()
        assert second.result(20) is None
        thread.join()
    assert outcome == [Command.DISC]


def test_any_bytes_can_be_sent_for_a_test():
    def script(served):
        with pytest.raises(PeerError):
            served.request()

    with fake(script) as (client, thread, _):
        client.send_raw(b"nonsense" * 4)
        thread.join()


def test_requests_that_break_every_rule_can_be_sent_for_a_test():
    def script(served):
        request = served.request()
        served.sock.sendall(replies.error_chunk(request.cookie, request.error, request.message))
        served.request()
        return request[:2] + request[3:5]

    with fake(script, structured=True) as (client, _, outcome):
        reply = client.submit(999, 0xFFFF, (1 << 64) - 1, (1 << 32) - 1).result(20)
        assert (reply.error, reply.message) == (ErrorValue.EINVAL, "unknown command 999")
    assert outcome == [(999, 0xFFFF, (1 << 64) - 1, (1 << 32) - 1)]


def test_a_failed_block_closes_without_waiting():
    silence = threading.Event()
    with fake(lambda served: silence.wait(60)) as (client, _, _):
        with pytest.raises(ZeroDivisionError), client:
            pending = client.flush_async()
            raise ZeroDivisionError
        assert isinstance(pending.exception(0), ConnectionError)
        silence.set()


def test_a_handshake_has_a_deadline():
    with tempfile.TemporaryDirectory(prefix="nbd") as folder, socket.socket(socket.AF_UNIX) as listener:
        path = str(Path(folder, "s"))
        listener.bind(path)
        listener.listen()
        with pytest.raises(TimeoutError):
            connect(f"nbd+unix:///?socket={path}", timeout_s=0.2)


class Trickle:
    """A socket on which a byte of a greeting comes every so often, by a clock of its own."""

    def __init__(self, every_s):
        self._every_s = every_s
        self._greeting = iter(wire.pack_greeting(HandshakeFlag.FIXED_NEWSTYLE))
        self.now_s = 100.0
        self.limits_s = []

    def monotonic(self):
        return self.now_s

    def settimeout(self, limit_s):
        self.limits_s.append(limit_s)

    def sendall(self, data):
        pass

    def recv(self, _):
        self.now_s += self._every_s
        return bytes([next(self._greeting)])


def test_a_handshake_that_trickles_has_one_too(monkeypatch):
    """Each byte comes in time, but not all of them: what is left of the time is less for each."""
    trickle = Trickle(every_s=0.25)
    monkeypatch.setattr("impl.client.link.time", trickle)
    with pytest.raises(TimeoutError):
        shake_hands(trickle, ClientHandshake(), Deadline(1.0))
    assert trickle.limits_s == [1.0, 0.75, 0.5, 0.25]


def test_over_tcp_it_is_the_same():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def serve():
            sock, _ = listener.accept()
            with sock:
                handshake = ServerHandshake({"disk": ExportInfo("disk", MIB, "", FLAGS)}, "disk")
                while handshake.phase is not Phase.TRANSMISSION:
                    sock.sendall(handshake.data_to_send())
                    handshake.receive(sock.recv(4096))
                sock.sendall(handshake.data_to_send())
                served = Served(sock, handshake)
                while (request := served.request()) is not None and request.command != Command.DISC:
                    sock.sendall(replies.simple_reply(request.cookie))

        thread = threading.Thread(target=serve)
        thread.start()
        with connect(f"nbd://127.0.0.1:{port}/disk", extended=False) as client:
            client.flush()
            assert client.size == MIB
        thread.join()


def test_a_socket_is_not_leaked_when_there_is_nobody(tmp_path):
    with pytest.raises(OSError):
        open_socket(Target(path=str(tmp_path / "none")), Deadline(1))
