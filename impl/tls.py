"""TLS over a socket that does not wait, with the calls of `socket.socket` that the server and the client use.

The server never waits; the client waits by itself, between two calls. Reading and writing may be asked for by two
threads at once, which OpenSSL does not allow for one connection ("SSL_read(3)"): so one call is made at a time.

Source:  NBD protocol, "TLS support"; Python's `ssl`; nbdkit-tls(1) for the names of the files.
Errors:  WouldBlock where a socket would say BlockingIOError, which it is; other OSErrors, `ssl.SSLError` among them, as
         they come. StartError for files that are missing or of no use.
Locks:   `_lock` is held during one call to OpenSSL, none of which waits.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from impl.errors import StartError

T = TypeVar("T")
Buffer = bytes | bytearray | memoryview

CA_FILE, SERVER_CERTIFICATE_FILE, SERVER_KEY_FILE = "ca-cert.pem", "server-cert.pem", "server-key.pem"
CLIENT_CERTIFICATE_FILE, CLIENT_KEY_FILE = "client-cert.pem", "client-key.pem"
# So much is encrypted in one call at most: it has to be one piece of memory.
SEND_MAX_BYTES = 64 << 10


def server_context(directory: str, verify_peer: bool) -> ssl.SSLContext:
    """With the server's certificate; with `verify_peer`, for clients whose certificate its authority has signed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load_chain(context, directory, SERVER_CERTIFICATE_FILE, SERVER_KEY_FILE)
    if verify_peer:
        _load_authority(context, directory)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(directory: str | None, verify_peer: bool = True) -> ssl.SSLContext:
    """One that trusts the authority in a directory, or else the system's; with a certificate, if one is there.

    verify_peer:  whether the server's certificate has to be signed by such an authority, and to name the host.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not verify_peer:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif directory is None:
        context.load_default_certs()
    else:
        _load_authority(context, directory)
    if directory is not None and (Path(directory) / CLIENT_CERTIFICATE_FILE).exists():
        _load_chain(context, directory, CLIENT_CERTIFICATE_FILE, CLIENT_KEY_FILE)
    return context


def _load_chain(context: ssl.SSLContext, directory: str, certificate: str, key: str) -> None:
    _needs(directory, certificate, key)
    try:
        context.load_cert_chain(Path(directory) / certificate, Path(directory) / key)
    except (OSError, ssl.SSLError) as error:
        raise StartError(f"{directory}: {certificate} and {key} are of no use: {error}") from None


def _load_authority(context: ssl.SSLContext, directory: str) -> None:
    _needs(directory, CA_FILE)
    try:
        context.load_verify_locations(Path(directory) / CA_FILE)
    except (OSError, ssl.SSLError) as error:
        raise StartError(f"{directory}: {CA_FILE} is of no use: {error}") from None


def _needs(directory: str, *names: str) -> None:
    for name in names:
        if not os.access(Path(directory) / name, os.R_OK):
            raise StartError(f"there is no {name} in {directory} that can be read: certtool or openssl makes one")


class WouldBlock(BlockingIOError):
    """It would have waited: `for_room` to write, else for something to come."""

    def __init__(self, for_room: bool) -> None:
        super().__init__(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self.for_room = for_room


class TlsSocket:
    """Takes over a connected socket, which does not wait from then on.

    Attributes, for others only to look at:
    receive_wants_room:  the last call to receive, or to shake hands, would have waited for room to send
    send_wants_input:    the last call to send would have waited for something to come
    """

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        server_side: bool,
        hostname: str = "",
        minds_ends: bool = False,
    ) -> None:
        """`minds_ends`: an end without the goodbye of TLS is an error, SSLEOFError, and not just an end."""
        sock.setblocking(False)
        self._lock = threading.Lock()
        self._ssl = context.wrap_socket(
            sock,
            server_side=server_side,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=not minds_ends,
            server_hostname=None if server_side else hostname or None,
        )
        self._is_over = False  # from then on `ssl` would read and write in the clear
        self._unsent = b""  # what OpenSSL wants to be given again before anything else
        self._to_come: int | OSError | None = None  # the end, or an error, which came behind data
        self.receive_wants_room = False
        self.send_wants_input = False

    def handshake(self) -> None:
        """Go on with the handshake; WouldBlock until it is done."""
        self._receiving(self._ssl.do_handshake)

    @property
    def pending(self) -> bool:
        """Whether there is something to be received that no poll tells of: decrypted already, or the end."""
        with self._lock:
            return self._to_come is not None or (not self._is_over and self._ssl.pending() > 0)

    @property
    def version(self) -> str:
        """As `TLSv1.3`."""
        return self._ssl.version() or ""

    def _call(self, call: Callable[[], T]) -> T:
        with self._lock:
            if self._is_over:
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
            try:
                return call()
            except ssl.SSLWantReadError:
                raise WouldBlock(for_room=False) from None
            except ssl.SSLWantWriteError:
                raise WouldBlock(for_room=True) from None

    def _receiving(self, call: Callable[[], T]) -> T:
        self.receive_wants_room = False
        try:
            return self._call(call)
        except WouldBlock as would:
            self.receive_wants_room = would.for_room
            raise

    def recv(self, count: int, flags: int = 0) -> bytes:
        """As of a socket; flags only say not to wait."""
        buffer = bytearray(count)
        return bytes(buffer[: self.recv_into(memoryview(buffer))])

    def recv_into(self, buffer: memoryview, count: int = 0, flags: int = 0) -> int:
        """As of a socket: all that there is, if there is room for it; so less means that nothing more is there."""
        to_come, self._to_come = self._to_come, None
        if isinstance(to_come, OSError):
            raise to_come
        room = buffer[:count] if count else buffer
        done = 0
        while to_come is None and done < len(room):
            try:
                received = self._received_into(room[done:])
            except WouldBlock:
                if not done:
                    raise
                break
            except OSError as error:
                if not done:
                    raise
                self._to_come = error
                break
            done += received
            if not received:
                self._to_come = 0 if done else None
                break
        return done

    def _received_into(self, rest: memoryview) -> int:
        if self._is_over:
            return 0
        try:
            return self._receiving(lambda: self._ssl.recv_into(rest))
        except BrokenPipeError:
            if self._is_over:  # meanwhile
                return 0
            raise

    def discard(self, count: int) -> bool:
        """Throw away what comes after the end, encrypted as it is; False once the other side has closed."""
        with self._lock:
            return bool(socket.socket.recv(self._ssl, count))

    def sendmsg(self, buffers: Sequence[Buffer], ancillary: tuple[()] = (), flags: int = 0) -> int:
        """As of a socket. After a BlockingIOError, the same bytes have to come first again."""
        data = self._unsent or _first_of(buffers)
        self._unsent = data
        self.send_wants_input = False
        try:
            sent = self._call(lambda: self._ssl.send(data))
        except WouldBlock as would:
            self.send_wants_input = not would.for_room
            raise
        self._unsent = b""
        return sent

    def fileno(self) -> int:
        """Of the socket underneath, to be polled."""
        return self._ssl.fileno()

    def setblocking(self, blocking: bool) -> None:
        """It never waits."""
        assert not blocking, "TLS over a socket that waits would keep others waiting, too"

    def shutdown(self, how: int) -> None:
        """Say goodbye, and shut the socket down. Nothing is sent, and nothing that comes is believed, after that."""
        with self._lock:
            if not self._is_over:
                self._is_over = True
                with suppress(OSError, ValueError):  # the answer to it is not waited for
                    self._ssl.unwrap()
            socket.socket.shutdown(self._ssl, how)  # ssl's own would take what still comes for plain text

    def close(self) -> None:
        """Close the socket."""
        with self._lock:
            self._is_over = True
            self._ssl.close()


def _first_of(buffers: Sequence[Buffer]) -> bytes:
    """As many bytes as are encrypted at once."""
    if len(buffers) == 1:
        return bytes(buffers[0][:SEND_MAX_BYTES])
    taken, left = [], SEND_MAX_BYTES
    for buffer in buffers:
        taken.append(buffer[:left])
        left -= len(taken[-1])
        if not left:
            break
    return b"".join(taken)
