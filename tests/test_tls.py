"""TLS: over real sockets, with our client and with libnbd's, and what is said to those who get it wrong.

Source: NBD protocol, "TLS support", NBD_OPT_STARTTLS; nbd_connect_uri(3).
"""

import socket
import ssl
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from urllib.parse import quote

import pytest
import trustme
from certificates import write_certificates
from hypothesis import given
from hypothesis import strategies as st
from servers import MIB, nbdkit_serving, need, run

from impl.client import connect
from impl.client.link import HandshakeError, export_info, list_exports
from impl.errors import StartError
from impl.nbd import wire
from impl.nbd.agreement import ExportInfo, Phase, Tls
from impl.nbd.client_handshake import ClientHandshake, Goal
from impl.nbd.constants import Option, OptionReply, TransmissionFlag
from impl.nbd.server_handshake import ServerHandshake
from impl.tls import TlsSocket, WouldBlock, client_context, server_context

ANSWER_S = 20


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Folders of files named as nbdkit and libnbd want them, by whose they are."""
    authority, stranger = trustme.CA(), trustme.CA()
    folders = {}
    for name, signed_by in (("ours", authority), ("strange", stranger)):
        folder = folders[name] = tmp_path_factory.mktemp(name)
        write_certificates(folder, signed_by)
    folder = folders["no client"] = tmp_path_factory.mktemp("no-client")
    authority.cert_pem.write_to_path(folder / "ca-cert.pem")
    return folders


@pytest.fixture
def serve_tls(serve, certificates, small_base):
    """serve_tls(mode, *options): a server of a small disk that offers TLS, or requires it."""

    def start(mode="require", *options, **how):
        return serve(small_base, "--tls", mode, "--tls-certificates", certificates["ours"], *options, **how)

    return start


def secure(server, folder, **more):
    """The URI of a server for those who want TLS, and trust what is in a folder."""
    parameters = {"tls-certificates": str(folder), "tls-hostname": "localhost", **more}
    query = "&".join(f"{name}={quote(value, safe='/')}" for name, value in parameters.items())
    uri = clear(server).replace("nbd", "nbds", 1)
    return f"{uri}{'&' if '?' in uri else '?'}{query}"


def clear(server):
    """The same for those who do not."""
    return server.uri.replace("nbds", "nbd", 1)


def test_all_requests_are_served_through_tls(serve_tls, certificates, small_base):
    server = serve_tls("on")
    content = small_base.read_bytes()
    with connect(secure(server, certificates["ours"])) as client:
        assert client.is_secure
        assert client.extended
        assert client.pread(0, len(content)) == content
        client.pwrite(5, b"hello")
        client.pwrite(MIB, bytes(MIB))
        client.trim(0, 4096)
        client.flush()
        assert client.pread(0, 4096) == bytes(4096)
        assert client.pread(MIB - 1, MIB) == content[MIB - 1 : MIB] + bytes(MIB - 1)
        assert sum(extent.length for extent in client.block_status(0, client.size)) == client.size
    with connect(clear(server)) as client:
        assert not client.is_secure
        assert client.pread(0, 4096) == bytes(4096), "others see the same disk"
    assert small_base.read_bytes() == content


def test_many_requests_in_flight_of_many_clients_get_their_own_answers(serve_tls, certificates, small_base):
    server = serve_tls()
    content = small_base.read_bytes()

    def work(number):
        with connect(secure(server, certificates["ours"])) as client:
            places = [(number * 7919 + step * 65537) % (MIB - 70000) for step in range(200)]
            reads = [client.pread_async(place, 70000 if step % 3 else 100) for step, place in enumerate(places)]
            own = MIB + number * 100_000
            writes = [client.pwrite_async(own + step * 500, bytes([number]) * 500) for step in range(200)]
            for place, read in zip(places, reads, strict=True):
                data = client.wait(read)
                assert data == content[place : place + len(data)]
            for write in writes:
                client.wait(write)
            return client.pread(own, 100_000) == bytes([number]) * 100_000

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(1, 5)))


def test_libnbd_speaks_tls_with_the_server(serve_tls, certificates, small_base, tmp_path):
    nbdinfo, nbdcopy = need("nbdinfo", "libnbd-bin"), need("nbdcopy", "libnbd-bin")
    server = serve_tls("require", "--tls-verify-peer")
    uri = secure(server, certificates["ours"])
    assert f"export-size: {2 * MIB}" in run(nbdinfo, uri)
    run(nbdcopy, uri, tmp_path / "copy.img")
    assert (tmp_path / "copy.img").read_bytes() == small_base.read_bytes()
    run(nbdinfo, clear(server), status=1)


def test_the_client_speaks_tls_with_nbdkit(certificates, short_path):
    place, folder = short_path / "s", certificates["ours"]
    with nbdkit_serving(place, "--tls=require", f"--tls-certificates={folder}", "--tls-verify-peer"):
        uri = f"nbds+unix:///?socket={place}&tls-certificates={folder}&tls-hostname=localhost"
        assert export_info(uri).size == MIB
        with connect(uri) as client:
            client.pwrite(100, b"nbdkit")
            assert client.pread(99, 8) == b"\0nbdkit\0"


def test_over_tcp_the_host_has_to_be_the_one_in_the_certificate(serve_tls, certificates):
    server = serve_tls(tcp=True)
    assert server.uri.startswith("nbds://"), "what is printed is what can be used"
    uri = f"{server.uri}/?tls-certificates={certificates['ours']}"
    with connect(uri) as client:
        assert client.pread(0, 1)
    with pytest.raises(HandshakeError, match=r"(?i)hostname mismatch|certificate"):
        connect(f"{uri}&tls-hostname=example.org")


WRONG_CLIENTS = [  # (claim, folder that the client trusts, more of its URI, mode of the server, options of it)
    ("that trusts somebody else", "strange", {}, "on", ()),
    ("without a certificate where one is needed", "no client", {}, "require", ("--tls-verify-peer",)),
    ("with a certificate of somebody else", "strange", {"tls-verify-peer": "false"}, "on", ("--tls-verify-peer",)),
]


@pytest.mark.parametrize(
    ("claim", "folder", "more", "mode", "options"), WRONG_CLIENTS, ids=[case[0] for case in WRONG_CLIENTS]
)
def test_there_is_no_service_for_a_client(claim, folder, more, mode, options, serve_tls, certificates):
    server = serve_tls(mode, *options)
    with pytest.raises(OSError, match=r".+"), connect(secure(server, certificates[folder], **more)) as client:
        client.pread(0, 1)  # with TLS 1.3, a client learns here that the server does not want it
    with connect(secure(server, certificates["ours"])) as client:
        assert client.pread(0, 1), "and others are served"


def test_who_does_not_verify_is_served_by_anybody(serve_tls, certificates):
    server = serve_tls()
    with connect(secure(server, certificates["strange"], **{"tls-verify-peer": "false"})) as client:
        assert client.pread(0, 1)


def test_where_tls_is_required_nothing_else_is_told_in_the_clear(serve_tls, certificates):
    server = serve_tls()
    for ask in (connect, export_info, list_exports):
        with pytest.raises(HandshakeError, match="TLS_REQD") as refused:
            ask(clear(server))
        assert refused.value.refusal == OptionReply.ERR_TLS_REQD
    with pytest.raises(HandshakeError, match="closed"):
        connect(clear(server), export_name_only=True)
    assert [entry.name for entry in list_exports(secure(server, certificates["ours"]))] == [""]


def test_a_client_that_wants_tls_takes_nothing_less(serve, small_base, certificates):
    server = serve(small_base)
    with pytest.raises(HandshakeError, match=r"STARTTLS.*POLICY"):
        connect(secure(server, certificates["ours"]))


def test_noise_in_place_of_tls_ends_that_connection_and_no_other(serve_tls, certificates):
    server = serve_tls("on")
    with connect(secure(server, certificates["ours"])) as client:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(ANSWER_S)
            sock.connect(str(server.socket))
            sock.recv(18)
            sock.sendall(struct.pack(">I", 3) + wire.pack_option(Option.STARTTLS))
            assert sock.recv(20, socket.MSG_WAITALL)[-8:-4] == struct.pack(">I", OptionReply.ACK)
            sock.sendall(b"this is no ClientHello" * 10)
            with suppress(ConnectionResetError):  # what it has not read of this is thrown away
                while sock.recv(1000):
                    pass
        assert client.pread(0, 1)


def test_a_client_that_goes_as_tls_is_started_takes_nobody_with_it(serve_tls, certificates):
    server = serve_tls("on", tcp=True)
    host, port = server.uri.removeprefix("nbd://").split(":")
    with connect(secure(server, certificates["ours"])) as client:
        for step in range(60):
            with socket.create_connection((host, int(port))) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.recv(18)
                sock.sendall(struct.pack(">I", 3) + wire.pack_option(Option.STARTTLS))
                if step % 2:
                    sock.recv(20, socket.MSG_WAITALL)
                sock.sendall(b"x" * (step % 3))
            assert client.pread(0, 1)
        assert client.pread(0, 10)


@pytest.mark.parametrize("command", [2, None], ids=["after a disconnect", "when the server stops"])
def test_the_end_of_a_connection_is_told_through_tls(command, serve_tls, certificates):
    server = serve_tls("require")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(ANSWER_S)
        sock.connect(str(server.socket))
        sock.recv(18)
        sock.sendall(struct.pack(">I", 3) + wire.pack_option(Option.STARTTLS))
        sock.recv(20, socket.MSG_WAITALL)
        context = client_context(str(certificates["ours"]))
        with context.wrap_socket(sock, server_hostname="localhost", suppress_ragged_eofs=False) as ours:
            ours.sendall(wire.pack_option(Option.GO, wire.pack_info_request("")))
            ours.sendall(wire.pack_request(0, 0, 1, 0, 512))
            received = b""
            while len(received) < 32 + 20 + 16 + 512:
                received += ours.recv(1000)
            if command is None:
                server.send(15)
            else:
                ours.sendall(wire.pack_request(command, 0, 2, 0, 0))
            while ours.recv(1000):  # an end that comes without a word is an error here
                pass


@pytest.fixture
def pair(certificates):
    """Both ends of a connection with TLS on it."""
    ours, theirs = socket.socketpair()
    server = TlsSocket(ours, server_context(str(certificates["ours"]), False), server_side=True)
    client = TlsSocket(theirs, client_context(str(certificates["ours"])), server_side=False, hostname="localhost")
    done = set()
    while len(done) < 2:
        for end in (client, server):
            with suppress(WouldBlock):
                end.handshake()
                done.add(end)
    yield server, client
    server.close()
    client.close()


def test_after_its_end_nothing_is_sent_or_believed_in_the_clear(pair):
    server, client = pair
    server.shutdown(socket.SHUT_WR)
    assert client.recv(10) == b""
    client.shutdown(socket.SHUT_WR)
    for end in pair:
        with pytest.raises(BrokenPipeError):
            end.sendmsg([b"secret"])
        assert end.recv(100) == b""
        assert not end.pending


def test_an_end_that_comes_behind_data_is_told_after_them(pair):
    server, client = pair
    client.sendmsg([b"last", b" words"])
    client.shutdown(socket.SHUT_WR)
    buffer = memoryview(bytearray(100))
    assert server.recv_into(buffer) == 10
    assert server.pending
    assert (server.recv_into(buffer), bytes(buffer[:10])) == (0, b"last words")
    assert not server.pending


def test_what_does_not_wait_says_for_what_it_would_have_waited(pair):
    server, client = pair
    with pytest.raises(WouldBlock) as would:
        server.recv(1)
    assert not would.value.for_room
    with pytest.raises(WouldBlock) as would:
        while True:
            client.sendmsg([bytes(1 << 20)])
    assert would.value.for_room
    assert not client.send_wants_input


# What the certificates are.


@pytest.mark.parametrize("name", ["server-cert.pem", "server-key.pem", "ca-cert.pem"])
def test_a_file_that_is_missing_or_of_no_use_is_named(name, certificates, tmp_path):
    for file in certificates["ours"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    server_context(str(tmp_path), verify_peer=True)
    client_context(str(tmp_path))
    (tmp_path / name).write_text("no certificate", encoding="utf-8")
    with pytest.raises(StartError, match=name):
        server_context(str(tmp_path), verify_peer=True)
    (tmp_path / name).unlink()
    with pytest.raises(StartError, match=f"no {name}"):
        server_context(str(tmp_path), verify_peer=True)


def test_old_versions_are_not_spoken(certificates):
    for context in (server_context(str(certificates["ours"]), False), client_context(str(certificates["ours"]))):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2


# The handshake, without encryption: who says what, and when.

DISK = ExportInfo("disk", 1 << 20, "", TransmissionFlag.HAS_FLAGS)
FIXED = bytes.fromhex("00000003")
START = wire.pack_option(Option.STARTTLS)
GO = wire.pack_option(Option.GO, wire.pack_info_request("disk"))
EXTENDED = wire.pack_option(Option.EXTENDED_HEADERS)
SET = wire.pack_option(Option.SET_META_CONTEXT, wire.pack_meta_query("disk", ("base:allocation",)))


def shaken(mode, data=b""):
    handshake = ServerHandshake({"disk": DISK}, "disk", mode)
    handshake.receive(FIXED + data)
    return handshake


def kinds(handshake):
    """The replies to options, by kind."""
    data, found = handshake.data_to_send(), []
    data = data.removeprefix(wire.pack_greeting(3))
    while data:
        _, _, kind, length = wire.OPTION_REPLY.unpack_from(data)
        found.append(kind)
        data = data[wire.OPTION_REPLY.size + length :]
    return found


ANSWERS = [  # (claim, mode, option, its data, the answer in the clear)
    ("not offered", Tls.OFF, Option.STARTTLS, b"", OptionReply.ERR_POLICY),
    ("offered", Tls.ON, Option.STARTTLS, b"", OptionReply.ACK),
    ("required", Tls.REQUIRE, Option.STARTTLS, b"", OptionReply.ACK),
    ("with data", Tls.ON, Option.STARTTLS, b"x", OptionReply.ERR_INVALID),
    ("a list where TLS is required", Tls.REQUIRE, Option.LIST, b"", OptionReply.ERR_TLS_REQD),
    ("an unknown option where it is", Tls.REQUIRE, 4711, b"data", OptionReply.ERR_TLS_REQD),
    ("structured replies where it is", Tls.REQUIRE, Option.STRUCTURED_REPLY, b"", OptionReply.ERR_TLS_REQD),
    ("too much data where it is", Tls.REQUIRE, Option.GO, bytes(1 << 20), OptionReply.ERR_TLS_REQD),
    ("a goodbye where it is", Tls.REQUIRE, Option.ABORT, b"", OptionReply.ACK),
    ("structured replies where it is offered", Tls.ON, Option.STRUCTURED_REPLY, b"", OptionReply.ACK),
]


@pytest.mark.parametrize(("claim", "mode", "number", "data", "answer"), ANSWERS, ids=[case[0] for case in ANSWERS])
def test_what_is_answered_in_the_clear(claim, mode, number, data, answer):
    handshake = shaken(mode, wire.pack_option(number, data))
    assert kinds(handshake) == [answer]
    assert handshake.wants_tls == (number == Option.STARTTLS and answer == OptionReply.ACK)


def test_what_was_negotiated_before_tls_counts_no_more():
    handshake = shaken(Tls.ON, EXTENDED + SET + START)
    handshake.tls_started()
    handshake.receive(GO)
    agreement = handshake.agreement
    assert (agreement.extended, agreement.structured, agreement.contexts) == (False, False, ())


def test_tls_is_started_once():
    handshake = shaken(Tls.REQUIRE, START)
    handshake.tls_started()
    handshake.receive(START + GO)
    assert kinds(handshake)[:2] == [OptionReply.ACK, OptionReply.ERR_INVALID]
    assert handshake.phase is Phase.TRANSMISSION


def test_what_comes_in_the_clear_behind_starttls_is_believed_by_neither_side():
    handshake = shaken(Tls.ON, START + GO[:1])
    assert (handshake.phase, handshake.wants_tls, handshake.data_to_send()) == (Phase.CLOSED, False, b"")
    client = ClientHandshake("disk", tls=True)
    client.receive(wire.pack_greeting(3))
    client.receive(wire.pack_option_reply(Option.STARTTLS, OptionReply.ACK) + b"x")
    assert (client.phase, client.wants_tls) == (Phase.CLOSED, False)
    assert "in the clear" in client.error


def test_export_name_is_hung_up_on_where_tls_is_required():
    assert shaken(Tls.REQUIRE, wire.pack_option(Option.EXPORT_NAME, b"disk")).phase is Phase.CLOSED


@given(st.sampled_from(Goal), st.booleans(), st.integers(1, 50))
def test_both_sides_come_to_an_end_with_tls_as_without(goal, export_name_only, step):
    server = ServerHandshake({"disk": DISK}, "disk", Tls.REQUIRE)
    client = ClientHandshake("disk", goal, tls=True, extended=True, export_name_only=export_name_only)
    moved = True
    while moved:
        moved = False
        for source, sink in ((server, client), (client, server)):
            data = source.data_to_send()
            for at in range(0, len(data), step):
                sink.receive(data[at : at + step])
                moved = True
        if server.wants_tls and client.wants_tls:
            server.tls_started()
            client.tls_started()
            moved = True
    assert client.error is None
    assert client.phase is (Phase.TRANSMISSION if goal is Goal.GO else Phase.CLOSED)
    assert client.agreement == server.agreement
