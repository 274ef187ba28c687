"""The server's life: it accepts clients, gives each a session on a thread of its own, and ends in order.

A thread with an event loop for each connection is what bulk transfers want; a session needs only a loop, though,
so that many small connections can share one.

Locks:   `_lock` protects the set of living sessions; everything else belongs to the main thread.
"""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Callable, Mapping, Sequence

from impl.server.export import Export
from impl.server.loop import READABLE, Loop
from impl.server.session import Session

# How long requests in flight may take to finish after SIGTERM before they are given up.
GRACE_S = 30.0
ACCEPT_RETRY_S = 0.1
SOCKET_BUFFER_BYTES = 1 << 20
# A client that vanishes together with its machine, or its network, is noticed within some two minutes, and no longer
# takes a thread and three descriptors.
KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

log = logging.getLogger("cowproof.server")


def describe_client(sock: socket.socket) -> str:
    """A client's name for the log: its address, or its process where the socket is local."""
    if sock.family == socket.AF_UNIX:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return f"pid {int.from_bytes(credentials[:4], 'little')}"
    host, port = sock.getpeername()[:2]
    return f"{host} port {port}"


class Server:
    """Serves `exports` from `run` until `stop`."""

    def __init__(
        self,
        exports: Mapping[str, Export],
        default: str,
        threads: int,
        grace_s: float = GRACE_S,
    ) -> None:
        self._exports = exports
        self._default = default
        self._listeners: list[socket.socket] = []
        self._threads = threads
        self._grace_s = grace_s
        self._loop = Loop()
        self._lock = threading.Lock()
        self._sessions: dict[Session, Loop] = {}
        self._stopping = False
        self._one_client = False
        self._clean = True

    def run(self, listeners: Sequence[socket.socket] = (), only_client: socket.socket | None = None) -> bool:
        """Serve until stopped; with `only_client`, until that one has gone. True if it was served to the end.

        That is: no request was left undone, and the only client could be served at all.
        """
        self._listeners.extend(listeners)
        for listener in listeners:
            listener.setblocking(False)
            self._watch(listener)
        if only_client is not None:
            self._one_client = True
            if not self._open(only_client):
                self._clean = False
                self._loop.stop()
        self._loop.run()
        return self._clean

    def stop(self) -> None:
        """Take no more clients, finish what is in flight, and return from `run`; a second time: do not wait."""
        self._loop.call_soon(self._stop)

    def call_soon(self, call: Callable[[], None]) -> None:
        """Run `call` on the server's main loop; from any thread."""
        self._loop.call_soon(call)

    def stop_on_signals(self, on_second: Callable[[], None]) -> None:
        """Make SIGTERM and SIGINT stop the server; only from the main thread, before anybody can connect or `run`.

        on_second:  called, between any two instructions of the main thread, when there is a second one.
        """
        # The signal arrives as a byte on a socket: its handler must not lock, for the main thread may hold the lock.
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
        count = 0

        def handle(*_: object) -> None:
            nonlocal count
            count += 1
            if count > 1:
                on_second()

        for number in STOP_SIGNALS:
            signal.signal(number, handle)

        def signalled(_: int) -> None:
            for number in reader.recv(64):
                log.info("stopping: %s", signal.Signals(number).name)
                self._stop()

        self._loop.watch(reader.fileno(), READABLE, signalled)

    # On the main loop's thread

    def _watch(self, listener: socket.socket) -> None:
        if not self._stopping:
            self._loop.watch(listener.fileno(), READABLE, lambda _: self._accept(listener))

    def _accept(self, listener: socket.socket) -> None:
        try:
            while True:
                sock, _ = listener.accept()
                self._open(sock)
        except BlockingIOError:
            return
        except ConnectionAbortedError:
            return
        except OSError as error:
            # Out of descriptors, most likely: those who are connected are served, and the next one tried again.
            log.warning("cannot accept a client: %s", error.strerror)
            self._loop.forget(listener.fileno())
            self._loop.call_later(ACCEPT_RETRY_S, lambda: self._watch(listener))

    def _open(self, sock: socket.socket) -> bool:
        """Serve one client on a thread of its own; False, and the socket closed, if that cannot be."""
        loop = None
        try:
            client = describe_client(sock)
            _tune(sock)
            loop = Loop()
            session = Session(sock, client, self._exports, self._default, self._threads, loop, loop.stop)
        except OSError as error:
            log.warning("cannot serve a client: %s", error)
            if loop is not None:
                loop.close()
            sock.close()
            return False
        with self._lock:
            self._sessions[session] = loop
        try:
            threading.Thread(target=self._serve, args=(session, loop), name=client, daemon=True).start()
        except RuntimeError as error:  # the system has no more threads
            log.warning("%s: cannot serve: %s", client, error)
            with self._lock:
                del self._sessions[session]
            loop.close()
            sock.close()
            return False
        return True

    def _stop(self) -> None:
        again = self._stopping
        self._stopping = True
        for listener in self._listeners:
            if listener.fileno() >= 0:
                self._close_listener(listener)
        with self._lock:
            sessions = list(self._sessions)
        for session in sessions:
            if again:
                session.abort()
            else:
                session.stop()
        if again:
            self._leave(len(sessions), "who were not waited for")
        else:
            self._loop.call_later(self._grace_s, self._give_up)
            self._end_if_idle()

    def _close_listener(self, listener: socket.socket) -> None:
        try:
            self._loop.forget(listener.fileno())
        except KeyError:  # it was out of the loop, waiting for descriptors
            log.debug("stopped while clients could not be accepted")
        listener.close()

    def _give_up(self) -> None:
        """Leave although requests are in flight; they die with the process. Who only has to read is not waited for."""
        with self._lock:
            busy = [session for session in self._sessions if session.is_busy]
        self._leave(len(busy), "whose requests did not finish")

    def _leave(self, client_count: int, why: str) -> None:
        if client_count:
            log.warning("leaving %d clients %s", client_count, why)
            self._clean = False
        self._loop.stop()

    def _end_if_idle(self) -> None:
        with self._lock:
            idle = not self._sessions
        if idle and (self._stopping or self._one_client):
            self._loop.stop()

    # On a session's thread

    def _serve(self, session: Session, loop: Loop) -> None:
        loop.call_soon(session.start)
        try:
            loop.run()
            session.join()
        finally:
            log.info("%s: gone", session.client)  # now: without this session, the process may end before the next line
            with self._lock:
                del self._sessions[session]
            self._loop.call_soon(self._end_if_idle)


def _tune(sock: socket.socket) -> None:
    """Small replies at once, large ones in few calls; and be told when the client's machine has gone."""
    if sock.family == socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
    else:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
