"""One connection: what is received, what runs, what is sent, and how it ends.

The socket has one owner, the session's loop; only the outbox, which any worker may hand a reply, sends as well, and one
thread at a time. A request that can be answered at once is; all others are left to what is `in_flight`.

Loops:    a session begins on a loop that it shares with others. One that asks for much at a time, or keeps that
          loop for long, is heavy: it moves to a loop and a thread of its own, where it may also wait for its client
          in the kernel (see PATIENCE_S), and back when it has not been heavy for LIGHT_AFTER_S. Whoever wants
          something done on its loop goes through `_soon`: the session may have moved by then.
Phases:   handshake, serving, and then, after DISC, end of file, a broken peer, or the server's own stop, draining:
          what is in flight is finished and answered, then the connection is closed.
Stop:     what has begun is finished and answered; what has not, and what still comes, is answered ESHUTDOWN. Once
          nothing runs any more, the client has UNREAD_S to go on reading, and then LINGER_S to close its end.
Hang-up:  of a client that does not hear us any more, requests that change something and were received whole still
          happen; those that would only be answered do not.
Bounds:   while too much is in flight, nothing more is taken from the socket: the client's own buffers fill, and it
          waits. So it is at most those bounds and one request.
Locks:    none. Everything belongs to the loop's thread, but for flags that are set once and never cleared, which any
          thread may look at.
Source:   NBD protocol, "Ordering of messages and writes", "Terminating the transmission phase".
"""

from __future__ import annotations

import errno
import logging
import select
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from impl.errors import PeerError
from impl.nbd.agreement import Tls
from impl.nbd.constants import Command
from impl.nbd.requests import Request, RequestReader, request_reader
from impl.nbd.server_handshake import Phase, ServerHandshake
from impl.server.commands import Commands, Later, Reply
from impl.server.export import Export
from impl.server.in_flight import STOPPING, InFlight
from impl.server.loop import READABLE, WRITABLE, Loop, Timer
from impl.server.outbox import BrokenReply, Outbox, Outgoing
from impl.server.request_log import LoggedCommands, logged_if_wanted

if TYPE_CHECKING:
    import ssl

    from impl.server.record import RecordedCommands
    from impl.tls import TlsSocket

HANDSHAKE_RECEIVE_BYTES = 64 << 10
# One client may not keep a loop for longer than this many receives.
RECEIVES_MAX = 16
# A request to read or write more than this makes a session heavy.
LIGHT_MAX_BYTES = 128 << 10
LIGHT_AFTER_S = 1.0
# Of a write of such a length, what follows is received before it is written: one request more is held in memory then.
AHEAD_MIN_BYTES, AHEAD_MAX_BYTES = 32 << 10, 1 << 20
# So many parts of replies, or so much to be read, are sent before the next request is taken: so that the client has
# something to do meanwhile.
SEND_AFTER_ITEMS = 64
SEND_AFTER_BYTES = 64 << 10
# A client that is silent for so long in the middle of the handshake wants nothing of us, or is no client.
HANDSHAKE_SILENCE_S = 60.0
# After so long, what has been answered is sent, and whatever else the loop has to do is done, before the next request.
TURN_S = 0.005
# One turn may take so long because others had the processor: this many in a row make a session heavy.
LATE_TURNS_MAX = 3
# How long a client that has stopped reading is waited for by a server that has nothing else left to do.
UNREAD_S = 2.0
# How long to wait for a client to close its end, so that closing ours does not destroy replies on their way.
LINGER_S = 1.0
# Plain integers: looking at an Enum costs more than many a command.
DISC = int(Command.DISC)
MOVING = (int(Command.READ), int(Command.WRITE))
HANG_UP = select.EPOLLHUP | select.EPOLLERR
MSG_DONTWAIT = int(socket.MSG_DONTWAIT)
MSG_WAITALL = int(socket.MSG_WAITALL)
# How long the rest of a payload, room for a slice of a file, or the next request when all is answered, is waited for in
# the kernel rather than in the loop. In a bulk transfer, or when a client sends one request after the other, it comes
# at once, and each wait in the loop would cost a turn at the interpreter. Whoever else the thread serves, and a stop,
# waits as long: so a session that shares its thread must not be patient.
PATIENCE_S = 0.05
GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ETIMEDOUT)

log = logging.getLogger("cowproof.server")


def no_loop() -> None:
    """Of a session that stays where it is."""


class TlsOffer(NamedTuple):
    """Whether clients may, or must, encrypt; and with what, if they may."""

    mode: Tls
    context: ssl.SSLContext | None


NO_TLS = TlsOffer(Tls.OFF, None)


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
        own_loop: Callable[[], Loop | None] = no_loop,
        tls: TlsOffer = NO_TLS,
    ) -> None:
        """`own_loop` gives a loop that runs on a thread of its own, or None if that cannot be."""
        sock.setblocking(False)
        set_patience(sock)
        self.client = client
        self._sock: socket.socket | TlsSocket = sock
        self._tls: TlsSocket | None = None
        self._tls_context = tls.context
        self._is_starting_tls = False
        self._fd = sock.fileno()
        self._exports = exports
        self._handshake: ServerHandshake | None = ServerHandshake(
            {name: export.info for name, export in exports.items()}, default, tls.mode
        )
        self._heard_count = 0  # during the handshake
        self._silence: Timer | None = None
        self._reader: RequestReader | None = None
        self._commands: Commands | LoggedCommands | RecordedCommands | None = None
        self._outbox = Outbox(sock)
        self._answers: list[Outgoing] = []  # of this turn, to be sent together at its end
        self._in_flight = InFlight(client, threads, self._outbox)
        self._loop = loop
        self._shared_loop = loop
        self._own_loop = own_loop
        self._is_heavy = False  # since the last look
        self._late_turns = 0  # in a row
        self._held: Request | None = None  # received, and to be served once the session has moved
        self._on_end = on_end
        self._interest: int | None = None  # None: not even in a hang-up, which would be told again and again
        self._receiving = True
        self._has_more = False  # requests that have been received may wait to be taken
        self._was_all = False  # less came than there was room for: nothing more was there
        self._stopping = False
        self._draining = False
        self._has_heard_all = False
        self._is_gone = False  # the client has closed its end, and hears no reply
        self._is_starting = False  # a request runs on the loop
        self._waits_for_reader = False
        self._lingering = False
        self._ended = False

    # Called on the loop's thread

    def start(self) -> None:
        """Greet the client, and listen to it."""
        assert self._handshake is not None
        self._outbox.add([self._handshake.data_to_send()])
        self._guarded(self._update)
        if not self._ended:
            self._expect_handshake()

    def _expect_handshake(self) -> None:
        look = partial(self._look_at_handshake, self._heard_count)
        self._silence = self._loop.call_later(HANDSHAKE_SILENCE_S, look, self)

    def _look_at_handshake(self, heard_count: int) -> None:
        if self._ended or self._handshake is None:
            return
        if self._heard_count > heard_count:
            self._expect_handshake()
            return
        log.warning("%s: hanging up: it has said nothing for %g s", self.client, HANDSHAKE_SILENCE_S)
        self._end()

    def _forget_silence(self) -> None:
        """Or the loop would keep us in memory until that time is over."""
        if self._silence is not None:
            self._shared_loop.cancel(self._silence)
            self._silence = None

    def _drain(self) -> None:
        self._draining = True
        # What was sent before the stop is there by now, and is answered.
        self._receive_and_update()

    def _ready(self, events: int) -> None:
        if events & HANG_UP:
            self._is_gone = True
        if self._lingering:
            self._guarded(self._discard)
        else:
            has_come = events & ~WRITABLE or (self._tls is not None and self._tls.receive_wants_room)
            self._guarded(self._receive_and_update if has_come else self._update)

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
        loop = self._loop
        received = 0
        if self._receiving and not self._has_more and not self._in_flight.is_paused():
            received = self._receive()
        self._update()
        if loop is self._shared_loop:  # where nobody waits; or the session has moved, and is at work already
            return
        for _ in range(received, RECEIVES_MAX):
            if not self._has_only_to_wait() or not self._wait_here():
                return
            self._update()

    def _has_only_to_wait(self) -> bool:
        """Whether all is answered and sent, and the next request is all that can happen."""
        return (
            self._receiving
            and self._reader is not None
            and self._loop is not self._shared_loop
            and not (self._in_flight.count or self._has_more or self._stopping or self._draining or self._ended)
            and not (self._outbox.items or self._reader.awaits_payload)
        )

    def _wait_here(self) -> bool:
        """Wait for the next request in the kernel, not in the loop, for up to PATIENCE_S; whether it came."""
        reader = self._reader
        assert reader is not None
        try:
            count = self._sock.recv_into(reader.buffer())
        except BlockingIOError:
            return False
        if count == 0:
            self._heard_all()
        else:
            reader.received(count)
            self._take_requests(monotonic() + TURN_S)
        return True

    def _receive(self) -> int:
        """Receive what there is, and take it; how often."""
        turn_ends = monotonic() + TURN_S
        for received in range(RECEIVES_MAX):
            try:
                count = self._receive_handshake() if self._reader is None else self._receive_requests(self._reader)
            except BlockingIOError:
                return received
            if count == 0:
                self._heard_all()
                return received
            self._take_requests(turn_ends)
            is_enough = self._was_all or self._has_more or not self._receiving
            if is_enough or monotonic() > turn_ends:
                return received + 1
        return RECEIVES_MAX

    def _receive_requests(self, reader: RequestReader) -> int:
        """Receive once: what there is of requests, or of the rest of a payload. 0 at the end of file."""
        room = reader.buffer()
        if reader.awaits_payload:
            count = self._sock.recv_into(room, 0, MSG_WAITALL)
        else:
            count = self._sock.recv_into(room, 0, MSG_DONTWAIT)
        if count:
            self._was_all = count < len(room)
            reader.received(count)
        return count

    def _receive_handshake(self) -> int:
        """Receive a part of the handshake. 0 at the end of file."""
        if self._is_starting_tls:
            return self._go_on_with_tls()
        data = self._sock.recv(HANDSHAKE_RECEIVE_BYTES, MSG_DONTWAIT)
        if data:
            self._heard_count += 1
            self._haggle(data)
        return len(data)

    def _start_tls(self) -> None:
        """What was answered in the clear has gone; all else goes encrypted, and stays with the shared loop."""
        from impl.tls import TlsSocket  # noqa: PLC0415 - few want it, and it takes long to load

        assert self._tls_context is not None and isinstance(self._sock, socket.socket)
        if not self._outbox.flush():
            raise PeerError("it does not read the answer to NBD_OPT_STARTTLS")
        # Should it fail, the descriptor is closed: nobody may watch it by then. `_update` watches it again.
        if self._interest is not None:
            self._loop.forget(self._fd)
            self._interest = None
        self._sock = self._tls = TlsSocket(self._sock, self._tls_context, server_side=True)
        self._outbox.use(self._tls)
        self._own_loop = no_loop
        self._is_starting_tls = True

    def _go_on_with_tls(self) -> int:
        assert self._tls is not None and self._handshake is not None
        self._heard_count += 1
        self._tls.handshake()
        self._is_starting_tls = False
        self._handshake.tls_started()
        log.info("%s: started %s", self.client, self._tls.version)
        return 1

    def _haggle(self, data: bytes) -> None:
        handshake = self._handshake
        assert handshake is not None
        handshake.receive(data)
        self._outbox.add([handshake.data_to_send()])
        if handshake.wants_tls:
            self._start_tls()
        elif handshake.phase is Phase.CLOSED:
            if handshake.error:
                log.warning("%s: hanging up: %s", self.client, handshake.error)
            self._receiving = False
            self._draining = True
        elif handshake.phase is Phase.TRANSMISSION:
            agreement = handshake.agreement
            assert agreement is not None
            self._reader = request_reader(agreement, handshake.leftover)
            export = self._exports[agreement.export.name]
            by_reference = self._tls is None  # what the kernel sends by itself is not encrypted
            commands = logged_if_wanted(Commands(export, agreement, self._is_wanted, by_reference), self.client)
            self._commands = commands if export.recording is None else export.recording.commands(commands, self.client)
            self._handshake = None
            self._forget_silence()
            log.info("%s: opened export %r", self.client, agreement.export.name)

    def _take_requests(self, turn_ends: float) -> None:
        """Start the requests that have arrived whole, until that has taken long enough, or too much is in flight."""
        reader = self._reader
        self._has_more = False
        if reader is None:
            return
        answers, outbox, in_flight = self._answers, self._outbox, self._in_flight
        self._is_starting = True
        try:
            while self._receiving:
                request = self._next(reader)
                if request is None:
                    break
                length = request.length
                if length >= AHEAD_MIN_BYTES and self._is_left(request, reader):
                    break
                answer = self._answer(request)
                if answer:
                    answers += answer
                    if len(answers) >= SEND_AFTER_ITEMS or (length >= SEND_AFTER_BYTES and not request.payload):
                        self._send()
                        answers = self._answers
                is_late = monotonic() > turn_ends
                if is_late or ((in_flight.count or outbox.items) and in_flight.is_paused()):
                    self._has_more = True
                    self._late_turns = self._late_turns + 1 if is_late else 0
                    self._is_heavy |= self._late_turns >= LATE_TURNS_MAX
                    return
            self._late_turns = 0
        finally:
            self._is_starting = False

    def _is_left(self, request: Request, reader: RequestReader) -> bool:
        """Whether a large request is left until the session has moved; if not, receive what comes behind it."""
        if request.length > LIGHT_MAX_BYTES and self._moves_for(request):
            return True
        if request.payload and request.length <= AHEAD_MAX_BYTES:
            self._receive_ahead(reader)
        return False

    def _next(self, reader: RequestReader) -> Request | None:
        """The next request, if there is one that is to be answered."""
        if self._held is not None:
            held, self._held = self._held, None
            return held
        try:
            request = reader.next()
        except PeerError as error:  # what came before is answered; what follows cannot be told apart
            log.warning("%s: hanging up: %s", self.client, error)
            self._receiving = False
            self._draining = True
            return None
        if request is not None and request.command == DISC and not request.error:
            self._heard_all()
            return None
        return request

    def _receive_ahead(self, reader: RequestReader) -> None:
        """Take what has come behind a large write, which is written after that.

        The kernel keeps less for us than such a request has, so its client waits for us; now it has something to do
        while we write.
        """
        for _ in range(2):  # the header of the next request, and what there is of its payload
            self._held = self._next(reader)
            if self._held is not None or not self._receiving:
                return
            try:
                count = self._sock.recv_into(reader.buffer(), 0, MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in GONE:
                    raise
                count = 0  # what was received whole still happens
            if count == 0:
                self._heard_all()
                return
            reader.received(count)

    def _moves_for(self, request: Request) -> bool:
        """Whether a large request is left until the session has moved; wherever it is, it is heavy from now on."""
        if request.command not in MOVING:
            return False
        self._is_heavy = True
        if not self._may_move():
            return False
        self._held, self._has_more = request, True
        return True

    def _heard_all(self) -> None:
        """The client has said its last word: what is in flight is finished, and then nobody has to be waited for."""
        self._has_heard_all = True
        self._receiving = False
        self._draining = True

    def _answer(self, request: Request) -> Reply | None:
        """The reply, or None where that is left to a worker."""
        commands = self._commands
        assert commands is not None
        if self._stopping:
            return commands.error(request, errno.ESHUTDOWN, STOPPING)
        answer = commands.start(request)
        if isinstance(answer, Later):
            self._in_flight.begin(self, answer)
            return None
        if request.length >= AHEAD_MIN_BYTES and request.payload and self._reader is not None:
            self._reader.give_back(request.payload)
        return answer

    def _send(self) -> bool:
        """What was answered in this turn, and what has waited before it; False if the socket does not take all."""
        answers, outbox = self._answers, self._outbox
        if not answers:
            return not outbox.items or outbox.flush()
        self._answers = []
        return outbox.send(answers)

    def _update(self) -> None:
        """Send what can be sent, take what a pause left, and wait for whatever is needed next."""
        if self._lingering:
            return
        sent_all = self._send()
        if self._has_more and not self._in_flight.is_paused():
            if self._is_heavy and self._move_out():
                return
            self._take_requests(monotonic() + TURN_S)
            sent_all = self._send()
        if sent_all and self._interest == READABLE and self._is_at_rest():
            return
        paused, idle = self._in_flight.settle(self._draining)
        is_empty = sent_all and not self._outbox.items
        if self._has_more and not paused:
            self._soon(self._update)
        elif self._draining and idle and is_empty:
            self._linger()
            return
        if self._stopping and idle and not is_empty:
            self._wait_for_reader()
        receiving = self._receiving and not paused and not self._has_more
        self._wait_for((READABLE if receiving else 0) | (WRITABLE if self._wants_room(sent_all) else 0))

    def _wants_room(self, sent_all: bool) -> bool:
        """Whether there will be something to do when the socket takes more. TLS may wait for the other side's word."""
        tls = self._tls
        if tls is None:
            return not sent_all
        return tls.receive_wants_room or not (sent_all or tls.send_wants_input)

    def _is_at_rest(self) -> bool:
        """Whether there is nothing to be done but to wait for the client's next request."""
        in_flight = self._in_flight
        is_busy = self._has_more or self._draining or self._stopping or in_flight.wants_update or in_flight.is_paused()
        return not (is_busy or (self._tls is not None and (self._tls.pending or self._tls.receive_wants_room)))

    def _may_move(self) -> bool:
        """Whether the session is where it must not be heavy, and can move."""
        at_home = self._own_loop is not no_loop and self._loop is self._shared_loop
        return at_home and not (self._stopping or self._draining)

    def _move_out(self) -> bool:
        """Go on in a loop of our own; False if that cannot be, and then all is done here, as well as it can be."""
        if not self._may_move():
            return False
        own = self._own_loop()
        if own is None:
            self._own_loop = no_loop
            return False
        self._move_to(own)
        return True

    def _move_to(self, loop: Loop) -> None:
        """Go on on another loop's thread. Nothing here may be touched after that: it may be at work already."""
        if self._interest is not None:
            self._loop.forget(self._fd)
            self._interest = None
        self._sock.setblocking(loop is not self._shared_loop)
        self._loop = loop
        self._soon(self._arrive)

    def _arrive(self) -> None:
        if self._loop is not self._shared_loop:
            self._expect_lightness()
        self._update()

    def _expect_lightness(self) -> None:
        """Look again and again whether the session is heavy still; if not, move back."""
        self._is_heavy = False
        self._loop.call_later(LIGHT_AFTER_S, self._look_at_weight, self)

    def _look_at_weight(self) -> None:
        if self._ended or self._draining or self._stopping:
            return
        if self._is_heavy or self._has_more:
            self._expect_lightness()
            return
        own = self._loop
        self._move_to(self._shared_loop)
        own.stop()

    def _wait_for(self, interest: int) -> None:
        """Change what the loop tells us of; that the client hangs up, it tells once, whatever we wait for.

        What TLS has decrypted already, no loop tells of.
        """
        if interest & READABLE and self._tls is not None and self._tls.pending:
            self._soon(self._receive_and_update)
        wanted = None if self._is_gone and not interest else interest
        if wanted == self._interest:
            return
        if wanted is None:
            self._loop.forget(self._fd)
        elif self._interest is not None:
            self._loop.change(self._fd, wanted)
        else:
            self._loop.watch(self._fd, wanted, self._ready, self)
        self._interest = wanted

    def _wait_for_reader(self) -> None:
        """All is done, and the client has only to read of it: wait as long as it does so, and no longer."""
        if self._waits_for_reader:
            return
        self._waits_for_reader = True
        self._loop.call_later(UNREAD_S, partial(self._look_at_reader, self._outbox.sent_bytes), self)

    def _look_at_reader(self, sent_bytes: int) -> None:
        self._waits_for_reader = False
        if self._outbox.sent_bytes > sent_bytes:
            self._guarded(self._update)
        elif not self._ended:
            log.warning("%s: hanging up: it does not read its replies", self.client)
            self._end()

    def _linger(self) -> None:
        """All is sent: say so, and wait for the client to have read it."""
        if self._has_heard_all:
            self._end()
            return
        self._lingering = True
        self._sock.shutdown(socket.SHUT_WR)
        self._wait_for(READABLE)
        self._loop.call_later(LINGER_S, self._end, self)

    def _discard(self) -> None:
        try:
            for _ in range(RECEIVES_MAX):
                if not self._discards():
                    self._end()
                    return
        except BlockingIOError:
            return

    def _discards(self) -> bool:
        """Throw away some of what comes; False at the end of it."""
        if self._tls is not None:
            return self._tls.discard(HANDSHAKE_RECEIVE_BYTES)
        return bool(self._sock.recv(HANDSHAKE_RECEIVE_BYTES, MSG_DONTWAIT))

    def _end(self) -> None:
        """Close the connection. What is in flight goes on: see `join`."""
        if self._ended:
            return
        self._ended = True
        self._in_flight.close()
        self._is_gone = True
        self._wait_for(0)
        self._forget_silence()
        self._reader = None
        self._answers = []
        self._outbox.close()
        if self._tls is not None:  # "the server MUST close down the TLS session"
            with suppress(OSError):
                self._tls.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        if self._loop is not self._shared_loop:
            self._loop.stop()
        self._on_end()

    # Called on any thread

    def _soon(self, call: Callable[[], None]) -> None:
        """Have it called on the thread of the session's loop, whichever that is by then."""
        loop = self._loop
        while not loop.call_soon(partial(self._on_loop, loop, call), self):
            if loop is self._loop:  # it has ended for good, and so has the session
                return
            loop = self._loop

    def _on_loop(self, loop: Loop, call: Callable[[], None]) -> None:
        """On the thread of `loop`: only there can the session leave it."""
        if loop is self._loop:
            self._guarded(call)
        else:
            self._soon(call)

    def stop(self) -> None:
        """Finish what has begun, refuse all else, and end."""
        self._stopping = True
        self._soon(self._drain)

    def abort(self) -> None:
        """End now, whatever is in flight."""
        self._stopping = True
        self._soon(self._end)

    def join(self) -> None:
        """Wait until nothing of this session runs on the overlay any more; after its end."""
        self._in_flight.join()

    @property
    def has_threads(self) -> bool:
        """Whether there is anything that `join` would have to wait for; after the end."""
        return self._in_flight.has_threads

    @property
    def is_busy(self) -> bool:
        """Whether a request has begun and is not finished."""
        return self._in_flight.count > 0 or self._is_starting

    def _is_wanted(self) -> bool:
        """Whether to go on with what takes long and changes nothing."""
        return not (self._draining or self._stopping or self.is_deaf())

    # For what is in flight

    @property
    def is_stopping(self) -> bool:
        """Whether what has not begun is refused."""
        return self._stopping

    def is_deaf(self) -> bool:
        """Whether nobody hears a reply any more."""
        return self._is_gone or self._outbox.is_closed

    def refusal(self, work: Later, code: int, message: str) -> Reply:
        """The reply that refuses a request, with an errno."""
        assert self._commands is not None
        return self._commands.error(work.request, code, message)

    def update_soon(self) -> None:
        """Look what can be done now."""
        self._soon(self._update)

    def fail_soon(self) -> None:
        """Hang up, because of a bug in the server."""
        self._soon(self._end)


def set_patience(sock: socket.socket) -> None:
    """Where calls wait in the kernel at all, they are to wait for up to PATIENCE_S (socket(7), SO_RCVTIMEO)."""
    patience = struct.pack("ll", 0, int(PATIENCE_S * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, patience)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
