"""One connection: what is received, what runs, what is sent, and how it ends.

The socket has one owner, the session's loop; only the outbox, which any worker may hand a reply, sends as well, and one
thread at a time. Waiting for the client is the loop's, with one exception: see PATIENCE_S. A request that can be
answered at once is; one that would wait is given to the session's own workers, so that it delays neither the requests
behind it nor any other client's.

Phases:   handshake, serving, and then, after DISC, end of file, a broken peer, or the server's own stop, draining:
          what is in flight is finished and answered, then the connection is closed. After a stop, requests that
          still come are answered ESHUTDOWN meanwhile.
Bounds:   while requests in flight and replies unsent come to more than PAUSE_BYTES, PAUSE_REQUESTS or PAUSE_ITEMS,
          nothing more is taken from the socket: the client's own buffers fill, and it waits.
Locks:    `_lock` protects the counts of what is in flight; everything else belongs to the loop's thread.
Source:   NBD protocol, "Ordering of messages and writes", "Terminating the transmission phase".
"""

from __future__ import annotations

import errno
import logging
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from impl.errors import PeerError
from impl.nbd.constants import Command
from impl.nbd.requests import Request, RequestReader
from impl.nbd.server_handshake import Phase, ServerHandshake
from impl.server.commands import Commands, Later, Reply
from impl.server.export import Export
from impl.server.loop import READABLE, WRITABLE, Loop
from impl.server.outbox import BrokenReply, Outbox
from impl.server.request_log import LoggedCommands, logged_if_wanted

PAUSE_BYTES = 64 << 20
PAUSE_REQUESTS = 1024
PAUSE_ITEMS = 4096  # parts of replies: each is an object, however few its bytes
HANDSHAKE_RECEIVE_BYTES = 64 << 10
# One client may not keep a loop for longer than this many receives.
RECEIVES_MAX = 16
# How long to wait for a client to close its end, so that closing ours does not destroy replies on their way.
LINGER_S = 1.0
# Plain integers: looking at an Enum costs more than many a command.
DISC = int(Command.DISC)
PAYLOAD_COMMANDS = (int(Command.READ), int(Command.WRITE))
MSG_DONTWAIT = int(socket.MSG_DONTWAIT)
MSG_WAITALL = int(socket.MSG_WAITALL)
# How long the rest of a payload, or room for a slice of a file, is waited for in the kernel rather than in the loop. In
# a bulk transfer it comes at once, and each wait in the loop would cost a turn at the interpreter. Whoever else the
# thread serves, and a stop, waits as long: so a session that shares its thread must not be patient.
PATIENCE_S = 0.05
GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ETIMEDOUT)

log = logging.getLogger("cowproof.server")


class Session:
    """Serves one client on a loop until it is done, then calls `on_end`."""

    def __init__(
        self,
        sock: socket.socket,
        client: str,
        exports: Mapping[str, Export],
        default: str,
        threads: int,
        loop: Loop,
        on_end: Callable[[], None],
    ) -> None:
        be_patient(sock)
        self.client = client
        self._sock = sock
        self._fd = sock.fileno()
        self._exports = exports
        self._handshake: ServerHandshake | None = ServerHandshake(
            {name: export.info for name, export in exports.items()}, default
        )
        self._reader: RequestReader | None = None
        self._commands: Commands | LoggedCommands | None = None
        self._outbox = Outbox(sock)
        # Those who wait for the base, and those who wait for a range only, which is never for long.
        self._workers = {
            for_base: ThreadPoolExecutor(max_workers=threads, thread_name_prefix="worker") for for_base in (True, False)
        }
        self._loop = loop
        self._on_end = on_end
        self._interest = 0
        self._receiving = True
        self._is_late = False  # the rest of a payload did not come within PATIENCE_S: waiting on is for the loop
        self._stopping = False
        self._draining = False
        self._has_heard_all = False
        self._lingering = False
        self._ended = False
        self._lock = threading.Lock()
        self._running = 0
        self._running_bytes = 0
        self._wants_update = False

    # Called on the loop's thread

    def start(self) -> None:
        """Greet the client, and listen to it."""
        assert self._handshake is not None
        self._outbox.add([self._handshake.data_to_send()])
        self._guarded(self._update)

    def stop(self) -> None:
        """Finish what is in flight, refuse what still comes, and end."""
        self._stopping = True
        self._draining = True
        self._guarded(self._update)

    def abort(self) -> None:
        """End now, whatever is in flight."""
        self._end()

    def _ready(self, events: int) -> None:
        if self._lingering:
            self._guarded(self._discard)
        else:
            self._guarded(self._receive_and_update if events & ~WRITABLE else self._update)

    def _guarded(self, call: Callable[[], None]) -> None:
        """Run `call`; whatever goes wrong with this client ends this session, and no other."""
        if self._ended:
            return
        try:
            call()
        except (PeerError, BrokenReply) as error:
            log.warning("%s: hanging up: %s", self.client, error)
            self._end()
        except OSError as error:
            if error.errno not in GONE:
                log.warning("%s: %s", self.client, error.strerror or error)
            self._end()
        except Exception:
            log.exception("%s: hanging up because of a bug in the server", self.client)
            self._end()

    def _receive_and_update(self) -> None:
        if self._receiving and not self._is_paused():
            self._receive()
        self._update()

    def _receive(self) -> None:
        for _ in range(RECEIVES_MAX):
            try:
                count = self._receive_handshake() if self._reader is None else self._receive_requests(self._reader)
            except BlockingIOError:
                return
            if count == 0:
                self._heard_all()
                return
            if self._is_late or self._take_requests() or not self._receiving:
                return

    def _receive_requests(self, reader: RequestReader) -> int:
        """Receive once: what there is of requests, or the rest of a payload. 0 at the end of file."""
        room = reader.buffer()
        if reader.awaits_payload:
            count = self._sock.recv_into(room, 0, MSG_WAITALL)
            self._is_late = count < len(room)
        else:
            count = self._sock.recv_into(room, 0, MSG_DONTWAIT)
        if count:
            reader.received(count)
        return count

    def _receive_handshake(self) -> int:
        """Receive a part of the handshake. 0 at the end of file."""
        data = self._sock.recv(HANDSHAKE_RECEIVE_BYTES, MSG_DONTWAIT)
        if data:
            self._haggle(data)
        return len(data)

    def _haggle(self, data: bytes) -> None:
        handshake = self._handshake
        assert handshake is not None
        handshake.receive(data)
        self._outbox.add([handshake.data_to_send()])
        if handshake.phase is Phase.CLOSED:
            if handshake.error:
                log.warning("%s: hanging up: %s", self.client, handshake.error)
            self._receiving = False
            self._draining = True
        elif handshake.phase is Phase.TRANSMISSION:
            agreement = handshake.agreement
            assert agreement is not None
            self._reader = RequestReader(agreement, handshake.leftover)
            self._commands = logged_if_wanted(Commands(self._exports[agreement.export.name], agreement), self.client)
            self._handshake = None
            log.info("%s: opened export %r", self.client, agreement.export.name)

    def _take_requests(self) -> bool:
        """Start every request that has arrived whole; True if a pause left some of them."""
        reader = self._reader
        while reader is not None and self._receiving:
            try:
                request = reader.next()
            except PeerError as error:  # what came before is answered; what follows cannot be told apart
                log.warning("%s: hanging up: %s", self.client, error)
                self._receiving = False
                self._draining = True
                break
            if request is None:
                break
            if request.command == DISC and not request.error:
                self._heard_all()
                break
            self._serve(request)
            if self._is_paused():
                return True
        return False

    def _heard_all(self) -> None:
        """The client has said its last word: what is in flight is finished, and then nobody has to be waited for."""
        self._has_heard_all = True
        self._receiving = False
        self._draining = True

    def _serve(self, request: Request) -> None:
        commands = self._commands
        assert commands is not None
        if self._stopping:
            self._outbox.add(commands.error(request, errno.ESHUTDOWN, "the server is shutting down"))
            return
        answer = commands.start(request)
        if isinstance(answer, Later):
            self._give_to_worker(request, answer)
            return
        self._outbox.add(answer)
        if request.payload and self._reader is not None:
            self._reader.give_back(request.payload)

    def _give_to_worker(self, request: Request, work: Later) -> None:
        size_bytes = request.length if request.command in PAYLOAD_COMMANDS else 0
        with self._lock:
            self._running += 1
            self._running_bytes += size_bytes
        self._workers[work.for_base].submit(self._work, work, size_bytes)

    def _is_paused(self) -> bool:
        return (
            self._running >= PAUSE_REQUESTS
            or len(self._outbox) >= PAUSE_ITEMS
            or self._running_bytes + self._outbox.size_bytes > PAUSE_BYTES
        )

    def _update(self) -> None:
        """Send what can be sent, take what a pause left, and wait for whatever is needed next."""
        if self._lingering:
            return
        self._outbox.flush()
        left_some = self._is_paused() or self._take_requests()
        sent_all = self._outbox.flush()
        with self._lock:
            paused = self._is_paused()
            # From here on a worker that finishes asks for another update.
            self._wants_update = paused or self._draining
            idle = self._running == 0
        if left_some and not paused:
            self._loop.call_soon(lambda: self._guarded(self._update))
        if self._draining and idle and sent_all and not self._outbox:
            self._linger()
            return
        receiving = self._receiving and not paused and not left_some
        self._wait_for((READABLE if receiving else 0) | (0 if sent_all else WRITABLE))

    def _wait_for(self, interest: int) -> None:
        """Change what the loop tells us of. With nothing to wait for, not even a hang-up is wanted: it would repeat."""
        if interest == self._interest:
            return
        if not interest:
            self._loop.forget(self._fd)
        elif self._interest:
            self._loop.change(self._fd, interest)
        else:
            self._loop.watch(self._fd, interest, self._ready)
        self._interest = interest

    def _linger(self) -> None:
        """All is sent: say so, and wait for the client to have read it."""
        if self._has_heard_all:
            self._end()
            return
        self._lingering = True
        self._sock.shutdown(socket.SHUT_WR)
        self._wait_for(READABLE)
        self._loop.call_later(LINGER_S, self._end)

    def _discard(self) -> None:
        try:
            while self._sock.recv(HANDSHAKE_RECEIVE_BYTES, MSG_DONTWAIT):
                pass
        except BlockingIOError:
            return
        self._end()

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._wait_for(0)
        self._outbox.close()
        self._sock.close()
        for workers in self._workers.values():  # nobody is left to hear of what has not begun
            workers.shutdown(wait=False, cancel_futures=True)
        self._on_end()

    # Called on any thread

    def join(self) -> None:
        """Wait until nothing of this session runs on the overlay any more; after its end."""
        for workers in self._workers.values():
            workers.shutdown(wait=True)

    # Called on a worker's thread

    def _work(self, work: Later, size_bytes: int) -> None:
        reply: Reply = ()
        try:
            answer = work.run()
            if isinstance(answer, Later):
                if self._passed_on(answer, size_bytes):
                    return
            else:
                reply = answer
        except Exception:
            log.exception("%s: hanging up because of a bug in the server", self.client)
            self._loop.call_soon(self.abort)
        self._outbox.add(reply)
        try:
            sent_all = self._outbox.flush()
        except (OSError, BrokenReply):
            sent_all = False  # the loop's thread meets the same error, and ends the session
        with self._lock:
            self._running -= 1
            self._running_bytes -= size_bytes
            wants_update = self._wants_update
        if wants_update or not sent_all:
            self._loop.call_soon(lambda: self._guarded(self._update))

    def _passed_on(self, work: Later, size_bytes: int) -> bool:
        """Give on what is left to do; False if the session has ended, and nobody wants it."""
        try:
            self._workers[work.for_base].submit(self._work, work, size_bytes)
        except RuntimeError:
            if not self._ended:
                raise
            return False
        return True


def be_patient(sock: socket.socket) -> None:
    """Make calls wait in the kernel for up to PATIENCE_S, unless they say MSG_DONTWAIT (socket(7), SO_RCVTIMEO)."""
    sock.setblocking(True)
    patience = struct.pack("ll", 0, int(PATIENCE_S * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, patience)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
