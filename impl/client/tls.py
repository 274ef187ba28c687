"""A stream over TLS, which waits: what a client uses in place of a socket.

Units:   timeouts in seconds; None waits for ever.
Errors:  TimeoutError where a socket with a timeout says so; BlockingIOError from a send that makes no progress for
         `send_timeout_s`, as from a socket with SO_SNDTIMEO.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from impl.tls import Buffer, TlsSocket, WouldBlock

T = TypeVar("T")


class TlsStream:
    """Takes over a connected socket, and starts TLS on it."""

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        hostname: str,
        timeout_s: float | None,
        minds_ends: bool = False,
    ) -> None:
        """`minds_ends` as of a TlsSocket."""
        self._tls = TlsSocket(sock, context, server_side=False, hostname=hostname, minds_ends=minds_ends)
        self._timeout_s = timeout_s
        self.send_timeout_s: float | None = None
        self._waiting(self._tls.handshake, timeout_s)

    def settimeout(self, timeout_s: float | None) -> None:
        """Of everything but sending to a server that has been connected to."""
        self._timeout_s = timeout_s

    def recv(self, count: int) -> bytes:
        """As of a socket."""
        return self._waiting(lambda: self._tls.recv(count), self._timeout_s)

    def recv_into(self, buffer: memoryview) -> int:
        """As of a socket."""
        return self._waiting(lambda: self._tls.recv_into(buffer), self._timeout_s)

    def sendmsg(self, buffers: Sequence[Buffer]) -> int:
        """As of a socket."""
        timeout_s = self._timeout_s if self.send_timeout_s is None else self.send_timeout_s
        try:
            return self._waiting(lambda: self._tls.sendmsg(buffers), timeout_s)
        except TimeoutError as error:
            raise BlockingIOError(*error.args) from None

    def sendall(self, data: bytes) -> None:
        """As of a socket."""
        rest = memoryview(data)
        while rest:
            rest = rest[self.sendmsg([rest]) :]

    def shutdown(self, how: int) -> None:
        """As of a socket."""
        self._tls.shutdown(how)

    def close(self) -> None:
        """As of a socket."""
        self._tls.close()

    def _waiting(self, call: Callable[[], T], timeout_s: float | None) -> T:
        """What a call gives that is repeated whenever it can go on."""
        ends_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            try:
                return call()
            except WouldBlock as would:
                events = select.POLLOUT if would.for_room else select.POLLIN
            left_s = None if ends_s is None else ends_s - time.monotonic()
            if left_s is not None and left_s <= 0:
                raise TimeoutError("timed out")
            descriptor = self._tls.fileno()
            if descriptor < 0:
                raise ConnectionAbortedError("the connection was closed meanwhile")
            poll = select.poll()
            poll.register(descriptor, events)
            poll.poll(None if left_s is None else left_s * 1000)
