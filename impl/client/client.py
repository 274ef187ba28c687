"""A client for one connection to an NBD server: synchronous methods, and futures for many requests in flight.

Source:  NBD protocol, "Transmission", "Request types", "Error values", "Terminating the transmission phase".
Units:   offset and length in bytes; timeouts in seconds.
Errors:  NbdError, an OSError with the errno and the server's words, for what the server (or, before anything is sent,
         the agreement with it) refuses; ConnectionError once the connection is dead, for every request that waits and
         every later one; TimeoutError when a synchronous method waits too long (its request stays in flight);
         UsageError for numbers that cannot be sent.

Threads: any thread may call any method. Callers send, one at a time; one thread of our own receives, and completes the
         futures: a callback on a future runs there, and must not wait for another reply. A server that stops
         reading is given up after the timeout. Every named method is one request, and so as atomic as the server
         makes it, but `block_status`, which repeats until it has covered the range.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

from impl.client.link import TIMEOUT_S, Deadline, Stream, open_socket, shake_hands
from impl.client.tls import TlsStream
from impl.client.uri import parse
from impl.errors import PeerError, UsageError
from impl.extents import Extent
from impl.nbd.agreement import Agreement, ExportInfo
from impl.nbd.client_handshake import ClientHandshake
from impl.nbd.constants import (
    BASE_ALLOCATION,
    UINT32_MAX,
    AllocationFlag,
    Command,
    CommandFlag,
    ErrorValue,
    TransmissionFlag,
    os_errno,
)
from impl.nbd.reply_reader import Expectation, Reply, ReplyReader
from impl.nbd.requests import refusal
from impl.nbd.wire import (
    Buffer,
    pack_extended_request,
    pack_request,
    pack_status_request,
    unpack_status_request,
)

T = TypeVar("T")

STATUS_LENGTH_MAX_BYTES = UINT32_MAX & ~0xFFFF  # the longest range that is aligned for any server


class NbdError(OSError):
    """A request that was refused, or failed; `errno` is the operating system's, `offset` where it failed if known."""

    def __init__(self, number: int, message: str, offset: int | None = None) -> None:
        super().__init__(number, message)
        self.offset = offset


class _Pending(NamedTuple):
    """A request in flight."""

    expected: Expectation
    finish: Callable[[Reply], None]
    fail: Callable[[BaseException], None]


class Client:
    """One connection in its transmission phase. As a context manager it disconnects at the end."""

    def __init__(self, sock: Stream, handshake: ClientHandshake, timeout_s: float | None = TIMEOUT_S) -> None:
        """Take over a socket on which the handshake has just reached the transmission phase."""
        assert handshake.agreement is not None, handshake.phase
        self._agreement = handshake.agreement
        named = {context.name: context.id for context in handshake.contexts}
        self._allocation_context = named.get(BASE_ALLOCATION)
        self._timeout_s = timeout_s
        self._socket = sock
        self._cookies = itertools.count(1)
        self._sending = threading.Lock()  # the order of bytes on the socket
        self._lock = threading.Lock()  # the fields below
        self._idle = threading.Condition(self._lock)  # nothing is in flight
        self._pending: dict[int, _Pending] = {}
        self._leaving = False  # no further request is sent
        self._server_leaves = False  # it said so; we follow once nothing is in flight
        self._goodbye_sent = False
        self._dead = False  # the receiver has ended: nothing will complete any more
        self._reason: BaseException | None = None
        _limit_sending(sock, timeout_s)
        agreement = self._agreement
        self._pack = pack_extended_request if agreement.extended else pack_request
        self._reader = ReplyReader(agreement.structured, agreement.contexts, self._expectation, agreement.extended)
        self._receiver = threading.Thread(
            target=self._receive, args=(handshake.leftover,), name="nbd-client", daemon=True
        )
        self._receiver.start()

    # What was agreed on.

    @property
    def agreement(self) -> Agreement:
        """All that the handshake settled."""
        return self._agreement

    @property
    def export(self) -> ExportInfo:
        """The export, its name, description and sizes."""
        return self._agreement.export

    @property
    def size(self) -> int:
        """Of the export, in bytes."""
        return self._agreement.export.size

    @property
    def structured(self) -> bool:
        """Whether structured replies were negotiated."""
        return self._agreement.structured

    @property
    def is_secure(self) -> bool:
        """Whether all goes through TLS."""
        return isinstance(self._socket, TlsStream)

    @property
    def extended(self) -> bool:
        """Whether extended headers were negotiated."""
        return self._agreement.extended

    @property
    def flags(self) -> TransmissionFlag:
        """What the server advertises."""
        return self._agreement.flags

    @property
    def block_min(self) -> int:
        """Offsets and lengths are multiples of this."""
        return self._agreement.export.block_min

    @property
    def block_preferred(self) -> int:
        """Multiples of this are served best."""
        return self._agreement.export.block_preferred

    @property
    def payload_max(self) -> int:
        """The longest pread and pwrite, in bytes."""
        return self._agreement.payload_max

    @property
    def read_only(self) -> bool:
        """Whether writes will be refused."""
        return self._has(TransmissionFlag.READ_ONLY)

    @property
    def rotational(self) -> bool:
        """Whether the export behaves as a spinning disk."""
        return self._has(TransmissionFlag.ROTATIONAL)

    @property
    def can_flush(self) -> bool:
        """Whether flush() is served."""
        return self._has(TransmissionFlag.SEND_FLUSH)

    @property
    def can_fua(self) -> bool:
        """Whether fua=True is served."""
        return self._has(TransmissionFlag.SEND_FUA)

    @property
    def can_trim(self) -> bool:
        """Whether trim() is served."""
        return self._has(TransmissionFlag.SEND_TRIM)

    @property
    def can_zero(self) -> bool:
        """Whether zero() is served."""
        return self._has(TransmissionFlag.SEND_WRITE_ZEROES)

    @property
    def can_fast_zero(self) -> bool:
        """Whether zero(fast=True) is served."""
        return self._has(TransmissionFlag.SEND_FAST_ZERO)

    @property
    def can_cache(self) -> bool:
        """Whether cache() is served."""
        return self._has(TransmissionFlag.SEND_CACHE)

    @property
    def can_df(self) -> bool:
        """Whether pread(df=True) is served."""
        return self._has(TransmissionFlag.SEND_DF)

    @property
    def can_multi_conn(self) -> bool:
        """Whether a flush on one connection covers the others."""
        return self._has(TransmissionFlag.CAN_MULTI_CONN)

    @property
    def can_block_status(self) -> bool:
        """Whether block_status() is served."""
        return self._allocation_context is not None

    # One request, and its result.

    def pread(self, offset: int, length: int, *, df: bool = False) -> bytes:
        """Read; with `df` the server may not fragment its reply."""
        return self._wait(self.pread_async(offset, length, df=df))

    def pwrite(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Write; with `fua` the data are on stable storage before this returns."""
        self._wait(self.pwrite_async(offset, data, fua=fua))

    def zero(self, offset: int, length: int, *, no_hole: bool = False, fast: bool = False, fua: bool = False) -> None:
        """Write zeroes; with `no_hole` the space is provisioned; with `fast`, ENOTSUP unless faster than a write."""
        self._wait(self.zero_async(offset, length, no_hole=no_hole, fast=fast, fua=fua))

    def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        """Say that what is there is no longer needed."""
        self._wait(self.trim_async(offset, length, fua=fua))

    def cache(self, offset: int, length: int) -> None:
        """Say that this will be read soon."""
        self._wait(self.cache_async(offset, length))

    def flush(self) -> None:
        """Return when all writes replied to before are on stable storage."""
        self._wait(self.flush_async())

    def block_status(self, offset: int, length: int, *, req_one: bool = False) -> list[Extent]:
        """The extents of exactly this range, asked for until it is covered; with `req_one`, just the first."""
        extents: list[Extent] = []
        end = offset + length
        while True:
            asked = end - offset if self.extended else min(end - offset, STATUS_LENGTH_MAX_BYTES)
            found = self._wait(self.block_status_async(offset, asked, req_one=req_one))
            extents += found
            offset += sum(extent.length for extent in found)
            if offset >= end or req_one:
                return extents

    # The same as futures.

    def pread_async(self, offset: int, length: int, *, df: bool = False) -> Future[bytes]:
        """As pread."""
        return self._checked(Command.READ, CommandFlag.DF * df, offset, length, _data)

    def pwrite_async(self, offset: int, data: Buffer, *, fua: bool = False) -> Future[None]:
        """As pwrite; the data have been sent when this returns."""
        payload = memoryview(data).cast("B")
        return self._checked(Command.WRITE, CommandFlag.FUA * fua, offset, len(payload), _nothing, payload)

    def zero_async(
        self, offset: int, length: int, *, no_hole: bool = False, fast: bool = False, fua: bool = False
    ) -> Future[None]:
        """As zero."""
        flags = CommandFlag.NO_HOLE * no_hole | CommandFlag.FAST_ZERO * fast | CommandFlag.FUA * fua
        return self._checked(Command.WRITE_ZEROES, flags, offset, length, _nothing)

    def trim_async(self, offset: int, length: int, *, fua: bool = False) -> Future[None]:
        """As trim."""
        return self._checked(Command.TRIM, CommandFlag.FUA * fua, offset, length, _nothing)

    def cache_async(self, offset: int, length: int) -> Future[None]:
        """As cache."""
        return self._checked(Command.CACHE, 0, offset, length, _nothing)

    def flush_async(self) -> Future[None]:
        """As flush."""
        return self._checked(Command.FLUSH, 0, 0, 0, _nothing)

    def block_status_async(self, offset: int, length: int, *, req_one: bool = False) -> Future[list[Extent]]:
        """One request for extents: cut to the range, of which the server may cover but a first part."""
        context = self._allocation_context

        def extents(reply: Reply) -> list[Extent]:
            _succeed(reply)
            if context is None:
                raise NbdError(os_errno(ErrorValue.EINVAL), f"{BASE_ALLOCATION} was not negotiated")
            return _cut(reply.statuses[context], length)

        flags, payload = CommandFlag.REQ_ONE * req_one, b""
        if (
            context is not None
            and len(self._agreement.contexts) > 1
            and self._has(TransmissionFlag.BLOCK_STATUS_PAYLOAD)
        ):
            flags, payload = flags | CommandFlag.PAYLOAD_LEN, pack_status_request(length, [context])
        return self._checked(Command.BLOCK_STATUS, flags, offset, length, extents, payload)

    # Requests as they are, for tests of servers.

    def submit(
        self, command: int, flags: int = 0, offset: int = 0, length: int = 0, payload: Buffer = b""
    ) -> Future[Reply]:
        """Send any request, however wrong, and get the reply as it is; an error is not raised.

        A WRITE without a length has that of its payload. With extended headers, PAYLOAD_LEN says that there is one:
        a WRITE gets that flag, other commands only if `flags` has it, and then the length in the header is that of the
        payload. A DISC is `disconnect`, or `send_raw`: it has no reply.
        """
        if command == Command.WRITE and not length:
            length = len(payload)
        _check_numbers(command, flags, offset, length, self.extended)
        return self._send(command, flags, offset, length, payload, lambda reply: reply)

    def send_raw(self, data: Buffer) -> None:
        """Send any bytes at all between two requests."""
        self._transmit([memoryview(data).cast("B")])

    def wait(self, future: Future[T]) -> T:
        """The future's result, within the client's timeout."""
        return self._wait(future)

    # Its end.

    def disconnect(self, *, wait: bool = True) -> None:
        """Leave as the standard asks: finish what is in flight (or, without `wait`, leave that to the server), say so,
        and wait for the server to close. Called twice, or on a dead connection, it only closes.
        """
        deadline = Deadline(self._timeout_s)
        with self._lock:
            self._leaving = True
        with contextlib.suppress(OSError):  # dead, or too slow: then there is no leaving in peace
            if wait:
                with self._lock:
                    self._idle.wait_for(lambda: not self._pending or self._dead, deadline.left_s())
            self._say_goodbye()
            if threading.current_thread() is not self._receiver:
                self._receiver.join(deadline.left_s())
        self.close()

    def close(self) -> None:
        """Drop the connection at once; what is in flight fails."""
        self._give_up(ConnectionAbortedError("the client closed the connection"))
        if threading.current_thread() is not self._receiver:
            self._receiver.join()
        self._socket.close()

    @property
    def alive(self) -> bool:
        """Whether replies can still come."""
        with self._lock:
            return not self._dead

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.disconnect()
        else:
            self.close()

    # How it is done.

    def _has(self, flag: TransmissionFlag) -> bool:
        return bool(self._agreement.flags & flag)

    def _wait(self, future: Future[T]) -> T:
        return future.result(self._timeout_s)

    def _checked(
        self,
        command: Command,
        flags: int,
        offset: int,
        length: int,
        convert: Callable[[Reply], T],
        payload: Buffer = b"",
    ) -> Future[T]:
        """Send a request if the standard lets a client send it; else fail as the server would."""
        _check_numbers(command, flags, offset, length, self.extended)
        error, message = refusal(self._agreement, command, flags & ~CommandFlag.PAYLOAD_LEN, offset, length)
        if error:
            failed: Future[T] = Future()
            failed.set_exception(NbdError(os_errno(error), f"{message} (not sent)"))
            return failed
        return self._send(command, flags, offset, length, payload, convert)

    def _send(
        self, command: int, flags: int, offset: int, length: int, payload: Buffer, convert: Callable[[Reply], T]
    ) -> Future[T]:
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # a request cannot be taken back

        def finish(reply: Reply) -> None:
            try:
                result = convert(reply)
            except Exception as error:  # whatever it is, the future is where it is waited for
                future.set_exception(error)
            else:
                future.set_result(result)

        cookie = next(self._cookies)
        if self.extended and command == Command.WRITE and len(payload):
            flags |= CommandFlag.PAYLOAD_LEN
        has_payload = self.extended and flags & CommandFlag.PAYLOAD_LEN
        header = self._pack(command, flags, cookie, offset, len(payload) if has_payload else length)
        selected = _selected(payload) if has_payload and command == Command.BLOCK_STATUS else None
        with self._lock:
            refused = self._dead or self._leaving
            reason = self._reason or ConnectionError("the client is leaving")
            if not refused:
                expected = Expectation(command, flags, offset, length, selected)
                self._pending[cookie] = _Pending(expected, finish, future.set_exception)
        if refused:
            future.set_exception(_dead_because(reason))
            return future
        # When sending fails the receiver ends, and fails the future with all others.
        with contextlib.suppress(OSError):
            self._transmit([memoryview(header), memoryview(payload)] if len(payload) else [memoryview(header)])
        return future

    def _transmit(self, parts: list[memoryview]) -> None:
        with self._sending:
            try:
                while parts:
                    sent = self._socket.sendmsg(parts)
                    while parts and sent >= len(parts[0]):
                        sent -= len(parts.pop(0))
                    if parts:
                        parts[0] = parts[0][sent:]
            except BlockingIOError:
                error = TimeoutError("the server does not read what is sent to it")
                self._give_up(error)
                raise error from None
            except OSError as error:
                # The peer may have sent replies before it left: the receiver reads on to their end.
                self._note(error)
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_WR)
                raise

    def _expectation(self, cookie: int) -> Expectation | None:
        with self._lock:
            pending = self._pending.get(cookie)
        return None if pending is None else pending.expected

    def _receive(self, leftover: bytes) -> None:
        """The receiver's thread. However it ends, nothing is left waiting."""
        reader = self._reader
        try:
            if leftover:
                self._feed(leftover)
            while True:
                count = self._socket.recv_into(reader.buffer())
                if not count:
                    self._note(ConnectionResetError("the server closed the connection"))
                    return
                reader.received(count)
                self._complete_all()
        except (OSError, PeerError) as error:
            self._note(error)
        finally:
            self._die()

    def _feed(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            buffer = self._reader.buffer()
            count = min(len(buffer), len(rest))
            buffer[:count] = rest[:count]
            rest = rest[count:]
            self._reader.received(count)
            self._complete_all()

    def _complete_all(self) -> None:
        while (reply := self._reader.next()) is not None:
            with self._lock:
                pending = self._pending.pop(reply.cookie)
                if reply.error == ErrorValue.ESHUTDOWN:
                    self._leaving = self._server_leaves = True  # "it MUST initiate a soft disconnect"
                if not self._pending:
                    self._idle.notify_all()
                leave = self._server_leaves and not self._pending
            pending.finish(reply)
            if leave:
                with contextlib.suppress(OSError):
                    self._say_goodbye()

    def _say_goodbye(self) -> None:
        with self._lock:
            if self._goodbye_sent or self._dead:
                return
            self._goodbye_sent = True
        self._transmit([memoryview(self._pack(Command.DISC, 0, next(self._cookies), 0, 0))])

    def _note(self, reason: BaseException) -> None:
        """Remember why the connection is dying; the first reason counts."""
        with self._lock:
            if self._reason is None:
                self._reason = reason

    def _give_up(self, reason: BaseException) -> None:
        self._note(reason)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _die(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._dead = True
            reason = self._reason or AssertionError("the receiver failed; see its traceback")
            stranded = list(self._pending.values())
            self._pending.clear()
            self._idle.notify_all()
        for pending in stranded:
            pending.fail(_dead_because(reason))


def connect(
    uri: str,
    *,
    timeout_s: float | None = TIMEOUT_S,
    answer_timeout_s: float | None = None,
    extended: bool = True,
    structured: bool = True,
    contexts: tuple[str, ...] = (BASE_ALLOCATION,),
    export_name_only: bool = False,
) -> Client:
    """A client of the export that a URI names.

    `timeout_s` is for this, and for each synchronous request later, unless there is an `answer_timeout_s` for these.
    Extended headers, or else structured replies, and metadata contexts are used if the server has them and they are not
    declined here; who declines structured replies has no extended headers either. With `export_name_only`, the export
    is chosen as the oldest clients do it.
    """
    target, deadline = parse(uri), Deadline(timeout_s)
    handshake = ClientHandshake(
        target.export,
        tls=target.tls is not None,
        extended=extended and structured,
        structured=structured,
        contexts=contexts,
        export_name_only=export_name_only,
    )
    sock = open_socket(target, deadline)
    try:
        stream = shake_hands(sock, handshake, deadline, target)
        stream.settimeout(None)
        return Client(stream, handshake, timeout_s if answer_timeout_s is None else answer_timeout_s)
    except BaseException:
        sock.close()
        raise


def _limit_sending(sock: Stream, timeout_s: float | None) -> None:
    """Let a send that makes no progress fail; a socket's own timeout would make the receiver fail too."""
    if isinstance(sock, TlsStream):
        sock.send_timeout_s = timeout_s
    elif timeout_s is not None:
        whole_s = int(timeout_s)
        limit = struct.pack("@ll", whole_s, int((timeout_s - whole_s) * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


def _check_numbers(command: int, flags: int, offset: int, length: int, extended: bool) -> None:
    """UsageError for what has no room in a request; whether a server would grant it is another question."""
    for what, number, bits in (
        ("command", command, 16),
        ("flags", flags, 16),
        ("offset", offset, 64),
        ("length", length, 64 if extended else 32),
    ):
        if not 0 <= number < 1 << bits:
            raise UsageError(f"{what} {number} cannot be sent: expected 0 to {(1 << bits) - 1:#x}")


def _selected(payload: Buffer) -> frozenset[int] | None:
    """The contexts that a BLOCK_STATUS asks for; None if a server has to refuse it anyway."""
    try:
        return frozenset(unpack_status_request(payload)[1])
    except PeerError:
        return None


def _dead_because(reason: BaseException) -> ConnectionError:
    error = ConnectionError(f"the connection to the NBD server is dead: {reason}")
    error.__cause__ = reason
    return error


def _succeed(reply: Reply) -> None:
    if reply.error:
        number = os_errno(reply.error)
        raise NbdError(number, reply.message or os.strerror(number), reply.error_offset)


def _nothing(reply: Reply) -> None:
    _succeed(reply)


def _data(reply: Reply) -> bytes:
    _succeed(reply)
    return bytes(reply.data)


def _cut(descriptors: list[tuple[int, int]], length: int) -> list[Extent]:
    """Extents of the first `length` bytes at most."""
    extents = []
    for extent_length, flags in descriptors:
        hole, zero = bool(flags & AllocationFlag.HOLE), bool(flags & AllocationFlag.ZERO)
        extents.append(Extent(min(extent_length, length), hole, zero))
        length -= extents[-1].length
    return extents
