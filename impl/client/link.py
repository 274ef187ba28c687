"""A socket to an NBD server, with the handshake done: what a client is built upon.

Units:   timeouts in seconds, for all of what a function does; None waits for ever.
Errors:  ConnectionError and TimeoutError, as sockets raise them; HandshakeError when the server answers, but not as
         we need; UsageError for a URI that is none.
"""

from __future__ import annotations

import socket
import ssl
import time
from contextlib import closing
from getpass import getuser

from impl import psk
from impl.client.tls import TlsStream
from impl.client.uri import Target, Tls, parse
from impl.errors import StartError
from impl.nbd.agreement import ExportInfo, Phase
from impl.nbd.client_handshake import ClientHandshake, Goal
from impl.nbd.wire import MetaContext, ServerEntry
from impl.tls import client_context

Stream = socket.socket | TlsStream

RECEIVE_BYTES = 64 << 10
TIMEOUT_S = 30.0


class HandshakeError(ConnectionError):
    """The server does not give what was asked for; `refusal` is its reply type, or 0."""

    def __init__(self, reason: str, refusal: int = 0) -> None:
        super().__init__(reason)
        self.refusal = refusal


class Deadline:
    """A point in time, or never."""

    def __init__(self, timeout_s: float | None) -> None:
        self._at = None if timeout_s is None else time.monotonic() + timeout_s

    def left_s(self) -> float | None:
        """Seconds until then; TimeoutError once it has passed."""
        if self._at is None:
            return None
        left_s = self._at - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the NBD server took too long")
        return left_s


def open_socket(target: Target, deadline: Deadline) -> socket.socket:
    """A connected stream socket."""
    if not target.path:
        sock = socket.create_connection((target.host, target.port), deadline.left_s())
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # "Protocol phases"
        return sock
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(deadline.left_s())
        sock.connect(target.path)
    except BaseException:
        sock.close()
        raise
    return sock


def shake_hands(
    sock: socket.socket, handshake: ClientHandshake, deadline: Deadline, target: Target | None = None
) -> Stream:
    """Run a handshake to its end; what is spoken through from then on. HandshakeError when that end is not a good one.

    target:  for whoever wants TLS
    """
    stream: Stream = sock
    while handshake.phase in (Phase.CLIENT_FLAGS, Phase.OPTIONS):
        stream.settimeout(deadline.left_s())
        stream.sendall(handshake.data_to_send())
        received = stream.recv(RECEIVE_BYTES)
        if not received:
            raise HandshakeError("the server closed the connection during the handshake")
        handshake.receive(received)
        if handshake.wants_tls:
            assert target is not None
            stream = start_tls(sock, target, deadline)
            handshake.tls_started()
    if handshake.phase is Phase.CLOSED:
        try:
            stream.sendall(handshake.data_to_send())
        except OSError as error:  # a farewell that comes too late; what the server said counts
            if handshake.error is None:
                raise HandshakeError(f"the server left first: {error}") from error
    if handshake.error is not None:
        raise HandshakeError(handshake.error, handshake.refusal)
    return stream


def start_tls(sock: socket.socket, target: Target, deadline: Deadline) -> TlsStream:
    """TLS over a socket, as the URI wants it. HandshakeError if the server is not who it should be."""
    assert target.tls is not None
    context = tls_context(target.tls)
    hostname = target.tls.hostname or target.host or "localhost"
    try:
        return TlsStream(sock, context, hostname, deadline.left_s())
    except ssl.SSLError as error:
        raise HandshakeError(f"TLS with the server failed: {error}") from error


def tls_context(tls: Tls) -> ssl.SSLContext:
    """As a URI says how to make sure of a server. StartError for files that are missing or of no use."""
    if tls.psk_file is None:
        return client_context(tls.certificates, tls.verify_peer)
    return psk.client_context(tls.psk_file, login_name() if tls.username is None else tls.username)


def login_name() -> str:
    """Of who runs this; StartError if there is none, as of a number that no user has."""
    try:
        return getuser()
    except (ImportError, KeyError, OSError):  # which of them depends on Python's version
        raise StartError("whose pre-shared key? Who runs this has no name: say it, as in nbds://NAME@HOST") from None


def ask(uri: str, goal: Goal, timeout_s: float | None, queries: tuple[str, ...] = ()) -> ClientHandshake:
    """A handshake that only asks, done."""
    target, deadline = parse(uri), Deadline(timeout_s)
    handshake = ClientHandshake(target.export, goal, tls=target.tls is not None, contexts=queries)
    with open_socket(target, deadline) as sock:
        with closing(shake_hands(sock, handshake, deadline, target)):
            pass
    return handshake


def list_exports(uri: str, timeout_s: float | None = TIMEOUT_S) -> list[ServerEntry]:
    """The exports a server tells of, names and descriptions; the export in the URI does not matter."""
    return ask(uri, Goal.LIST, timeout_s).exports


def export_info(uri: str, timeout_s: float | None = TIMEOUT_S) -> ExportInfo:
    """What a server tells of one export to a client that does not go on to use it."""
    export = ask(uri, Goal.INFO, timeout_s).export
    assert export is not None
    return export


def list_contexts(uri: str, queries: tuple[str, ...] = (), timeout_s: float | None = TIMEOUT_S) -> list[MetaContext]:
    """The metadata contexts of one export that match the queries, or all of them."""
    return ask(uri, Goal.LIST_META_CONTEXT, timeout_s, queries).contexts
