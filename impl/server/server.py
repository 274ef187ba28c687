"""The server's life: it accepts clients, gives each a session, and ends in order.

Sessions share one loop, on a thread of its own, on which clients are accepted, too; one that turns out to be heavy
gets a loop and a thread for itself. The main thread waits for signals and for the end, and has the thread relieved
that a request keeps for long: so whatever a client's request waits for, others do not, and the server can be stopped.

Locks:   `_lock` protects the set of living sessions, and that nobody is added to it who would not be told to stop.
         Listeners belong to the shared loop's thread; everything else belongs to the main thread.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping, Sequence

from impl.errors import StartError
from impl.server.export import Export
from impl.server.loop import READABLE, Loop
from impl.server.session import NO_TLS, Session, TlsOffer

# How long requests in flight may take to finish after SIGTERM before they are given up.
GRACE_S = 30.0
ACCEPT_RETRY_S = 0.1
# So many come in before those who are there have their turn: somebody may connect faster than we accept.
ACCEPTS_MAX = 8
SOCKET_BUFFER_BYTES = 1 << 20
# A client that vanishes together with its machine, or its network, is noticed within some two minutes, and no longer
# takes a thread and three descriptors.
# See Loop. With one processor, whoever waits for us needs it.
SPIN_S = 50e-6 if len(os.sched_getaffinity(0)) > 1 else 0.0
# How long a server that is otherwise done waits for a thread that a disk may keep for ever.
SHARED_END_S = 1.0
# A request that keeps the thread which clients share is left alone with it after this to twice this time.
RELIEF_S = 0.05
# Once there was one, others are likely to be kept by the same disk, one after the other, and everybody else by each:
# so for a while it is looked more often.
ALERT_RELIEF_S = 0.005
ALERT_LOOKS = 20
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
        tls: TlsOffer = NO_TLS,
        max_clients: int | None = None,
    ) -> None:
        """With `max_clients`, others wait to be accepted until somebody leaves."""
        self._exports = exports
        self._default = default
        self._listeners: list[socket.socket] = []
        self._threads = threads
        self._tls = tls
        self._max_clients = max_clients
        self._resting: list[socket.socket] = []  # listeners that accept nobody until somebody leaves
        self._grace_s = grace_s
        self._loop = Loop()
        self._shared = Loop(SPIN_S, self._look_again)
        self._lock = threading.Lock()
        self._sessions: set[Session] = set()
        self._stopping = False
        self._one_client = False
        self._alert_looks = 0  # so many are still to come soon
        self._clean = True

    def run(self, listeners: Sequence[socket.socket] = (), only_client: socket.socket | None = None) -> bool:
        """Serve until stopped; with `only_client`, until that one has gone. True if it was served to the end.

        That is: no request was left undone, and the only client could be served at all.
        """
        self._listeners.extend(listeners)
        self._one_client = only_client is not None
        self._shared.call_soon(lambda: self._begin(only_client))
        thread = threading.Thread(target=self._shared.run, name="clients", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self._shared.close()
            raise StartError(f"cannot serve: {error}") from None
        self._loop.run()
        self._shared.call_soon(self._shared.stop)
        thread.join(SHARED_END_S)
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

    # On the shared loop's thread

    def _begin(self, only_client: socket.socket | None) -> None:
        for listener in self._listeners:
            listener.setblocking(False)
            self._watch(listener)
        if only_client is not None and not self._open(only_client):
            self._clean = False
            self._loop.call_soon(self._loop.stop)

    def _watch(self, listener: socket.socket) -> None:
        if not self._stopping:
            self._shared.watch(listener.fileno(), READABLE, lambda _: self._accept(listener))

    def _accept(self, listener: socket.socket) -> None:
        try:
            for _ in range(ACCEPTS_MAX):
                if self._is_full():
                    log.info("serving %d clients, as many as may be: others wait", self._max_clients)
                    self._shared.forget(listener.fileno())
                    self._resting.append(listener)
                    return
                sock, _ = listener.accept()
                self._open(sock)
        except BlockingIOError:
            return
        except ConnectionAbortedError:
            return
        except OSError as error:
            # Out of descriptors, most likely: those who are connected are served, and the next one tried again.
            log.warning("cannot accept a client: %s", error.strerror)
            self._shared.forget(listener.fileno())
            self._shared.call_later(ACCEPT_RETRY_S, lambda: self._watch(listener))

    def _is_full(self) -> bool:
        if self._max_clients is None:
            return False
        with self._lock:
            return len(self._sessions) >= self._max_clients

    def _wake_listeners(self) -> None:
        """Somebody has left."""
        resting, self._resting = self._resting, []
        for listener in resting:
            if listener.fileno() >= 0:
                self._watch(listener)

    def _open(self, sock: socket.socket) -> bool:
        """Serve one client; False, and the socket closed, if that cannot be."""
        try:
            client = describe_client(sock)
            _tune(sock)
            session = Session(
                sock,
                client,
                self._exports,
                self._default,
                self._threads,
                self._shared,
                lambda: self._ended(session),
                lambda: self._own_loop(session),
                self._tls,
            )
        except OSError as error:
            log.warning("cannot serve a client: %s", error)
            sock.close()
            return False
        with self._lock:
            is_late = self._stopping
            if not is_late:
                self._sessions.add(session)
        if is_late:
            sock.close()
            return False
        session.start()
        return True

    def _own_loop(self, session: Session) -> Loop | None:
        """A loop on a thread of its own, for one that is heavy."""
        try:
            loop = Loop()
        except OSError as error:
            log.warning("%s: shares its thread, heavy as it is: %s", session.client, error)
            return None
        try:
            threading.Thread(target=self._serve_alone, args=(loop,), name=session.client, daemon=True).start()
        except RuntimeError as error:  # the system has no more threads
            log.warning("%s: shares its thread, heavy as it is: %s", session.client, error)
            loop.close()
            return None
        return loop

    def _look_again(self) -> None:
        self._loop.call_soon(self._look_after_clients)

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            if listener.fileno() >= 0:
                self._close_listener(listener)

    # On the main loop's thread

    def _look_after_clients(self) -> None:
        """See to it that no client keeps the others waiting, whatever it is that its request waits for."""
        self._alert_looks = max(self._alert_looks - 1, 0)
        try:
            if self._shared.relieve():
                self._alert_looks = ALERT_LOOKS
                log.debug("a request takes long: all other clients go on without it")
        except RuntimeError as error:
            log.warning("a request takes long, and all clients wait for it: %s", error)
        if not self._shared.rests():
            self._loop.call_later(ALERT_RELIEF_S if self._alert_looks else RELIEF_S, self._look_after_clients)

    def _stop(self) -> None:
        with self._lock:
            again = self._stopping
            self._stopping = True
            sessions = list(self._sessions)
        self._shared.call_soon(self._close_listeners)
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
            self._shared.forget(listener.fileno())
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

    def _serve_alone(self, loop: Loop) -> None:
        loop.run()
        # A session that has gone back is told there what came too late here.
        for call in loop.left_over():
            call()

    def _ended(self, session: Session) -> None:
        """The connection is closed. What it began may go on, and nobody is to wait for that here."""
        if session.has_threads:
            try:
                threading.Thread(target=self._bury, args=(session,), name=session.client, daemon=True).start()
                return
            except RuntimeError as error:  # the system has no more threads
                log.warning("%s: has to be waited for: %s", session.client, error)
        self._bury(session)

    def _bury(self, session: Session) -> None:
        session.join()
        log.info("%s: gone", session.client)  # now: without this session, the process may end before the next line
        with self._lock:
            self._sessions.discard(session)
            may_be_last = self._stopping or self._one_client
        if may_be_last:
            self._loop.call_soon(self._end_if_idle)
        if self._max_clients is not None:
            self._shared.call_soon(self._wake_listeners)


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
