"""What is still to be sent on one connection, in order.

Any thread may add a reply, whole; one thread at a time sends. What the socket does not take at once (or, of a slice
of a file, within twice the time that the socket itself is given to wait, SO_SNDTIMEO) stays here until it does. So a
client that does not read costs its own session, and no worker.

Shapes:  an Outgoing is bytes, or a FileSlice: bytes of the base that the kernel sends without our seeing them.
Locks:   `_changing` protects the queue, its size, and `_sending`: that some thread uses the socket. Who finds one
         sending may go, since that one looks at the queue again in the very step in which it lets go of the socket;
         both steps being under the lock, nothing is left lying, whatever the processor's order of memory.
Errors:  a client that has gone is not an error: what is added is dropped. Any other OSError from the socket is the
         session's to handle. A base that fails in the middle of a slice is told as
         an error chunk where the protocol has one, else BrokenReply: the connection cannot be kept.
Source:  NBD protocol, "Structured reply chunk message", on an error after the header of a chunk was sent.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

if TYPE_CHECKING:
    from impl.tls import TlsSocket

SEND_BUFFERS_MAX = 256
MSG_DONTWAIT = int(socket.MSG_DONTWAIT)  # an Enum costs more to pass on
GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)
ZEROES = memoryview(bytes(1 << 20))


class BrokenReply(Exception):
    """A reply was cut short in a way that the protocol has no message for."""


@dataclass(slots=True)
class FileSlice:
    """`length` bytes at `offset` of an open file whose bytes do not change.

    on_error:  given an errno, the bytes that follow the padding, or None when only dropping the connection is left.
    """

    fd: int
    offset: int
    length: int
    on_error: Callable[[int], bytes] | None
    tries: int = 0  # that were not enough


Buffer = bytes | bytearray | memoryview
Outgoing = Buffer | FileSlice


class _Batch(NamedTuple):
    """Buffers that go in one call to the kernel, how long they are, and a slice behind them."""

    buffers: list[Buffer]
    size_bytes: int
    piece: FileSlice | None


def zeroes(length: int) -> list[Outgoing]:
    """Zero bytes to send, without making them."""
    whole, rest = divmod(length, len(ZEROES))
    return [*[ZEROES] * whole, *([ZEROES[:rest]] if rest else [])]


class Outbox:
    """The outgoing side of one socket, which must wait for room for a short time only, or not at all.

    Attributes, for others only to look at:
    items:       what waits; each is an object of its own, however few its bytes
    size_bytes:  memory taken by it; slices of files take none
    sent_bytes:  how much has been sent so far: whether a client reads is seen by its growing
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock: socket.socket | TlsSocket = sock
        self.items: deque[Outgoing] = deque()
        self.size_bytes = 0
        self._slice_count = 0
        self.sent_bytes = 0
        self._changing = threading.Lock()
        self._sending = False
        self._sent = threading.Condition(self._changing)  # that nobody sends any more, for `close`
        self._closed = False

    def use(self, sock: TlsSocket) -> None:
        """Send through TLS from now on. All that was to be sent in the clear has been sent."""
        with self._changing:
            assert not self._sending and not self.items
            self._sock = sock

    @property
    def is_closed(self) -> bool:
        """Whether nothing is kept any more: the client does not hear us, or `close` was called."""
        return self._closed

    def add(self, replies: Sequence[Outgoing]) -> None:
        """Queue whole replies, one or several; dropped if the client is gone."""
        with self._changing:
            if self._closed:
                return
            self.items.extend(replies)
            for item in replies:
                if isinstance(item, FileSlice):
                    self._slice_count += 1
                else:
                    self.size_bytes += len(item)

    def send(self, replies: list[Outgoing]) -> bool:
        """Add and flush: in fewer steps where nothing waits, nobody sends, and all of it is bytes."""
        if len(replies) > SEND_BUFFERS_MAX or FileSlice in map(type, replies):
            self.add(replies)
            return self.flush()
        buffers: list[Buffer] = replies  # type: ignore[assignment]  # there is no slice among them
        with self._changing:
            is_alone = not (self._sending or self.items or self._closed)
            if is_alone:
                self._sending = True
        if not is_alone:
            self.add(replies)
            return self.flush()
        is_stuck = False
        try:
            sent = self._sock.sendmsg(buffers, (), MSG_DONTWAIT)
        except BlockingIOError:
            sent, is_stuck = 0, True
        except BaseException as error:
            sent = self._failed_alone(error)
        size_bytes = sum(map(len, buffers))
        with self._changing:
            if sent == size_bytes and not (self.items or self._closed):  # by far the most frequent
                self.sent_bytes += sent
                self._sending = False
                return True
            batch = self._left_over(buffers, size_bytes, sent, is_stuck)
        return not is_stuck and self._send_on(batch)

    def _failed_alone(self, error: BaseException) -> int:
        """Nothing was sent, because the client has gone, or else that is an error for whoever sends."""
        try:
            if not isinstance(error, OSError):
                raise error
            self._hang_up(error)
        except BaseException:
            with self._changing:
                self._end_sending()
            raise
        return 0

    def _left_over(self, buffers: list[Buffer], size_bytes: int, sent: int, is_stuck: bool) -> _Batch | None:
        """What has not been queued yet comes before what was added since; what is to be sent next.

        None if nothing is, and then this thread sends no more. The caller holds `_changing`.
        """
        if sent == size_bytes:
            self.sent_bytes += sent
        elif not self._closed:
            self.items.extendleft(reversed(buffers))
            self.size_bytes += size_bytes
            self._take_off(_Batch(buffers, size_bytes, None), sent)
        if is_stuck:
            self._end_sending()
            return None
        return self._next_batch()

    def flush(self) -> bool:
        """Send what the socket takes now. False if it would not take all: call again when it is writable."""
        if not self.items:  # whoever adds something flushes after that
            return True
        with self._changing:
            if self._sending or not self.items:
                return True
            self._sending = True
            batch = self._next_batch()
        return self._send_on(batch)

    def _send_on(self, batch: _Batch | None) -> bool:
        """This batch, and what comes behind it; by the thread that sends."""
        try:
            while batch is not None:
                sent, is_stuck = self._send_buffers(batch.buffers)
                piece = batch.piece if sent == batch.size_bytes and not is_stuck else None
                count, failure = 0, 0
                if piece is not None:
                    count, failure, is_stuck = self._send_piece(piece)
                with self._changing:
                    self._take_off(batch, sent)
                    if piece is not None and (count or failure):
                        is_stuck |= self._take_off_piece(piece, count, failure)
                    if is_stuck:
                        self._end_sending()
                        return False
                    batch = self._next_batch()
        except BaseException:
            with self._changing:
                self._end_sending()
            raise
        return True

    def _next_batch(self) -> _Batch | None:
        """What is to be sent next. None if there is nothing, and then this thread sends no more.

        The caller holds `_changing`.
        """
        if not self.items:
            self._end_sending()
            return None
        if not self._slice_count and len(self.items) <= SEND_BUFFERS_MAX:
            return _Batch(cast("list[Buffer]", list(self.items)), self.size_bytes, None)
        buffers: list[Buffer] = []
        size_bytes = 0
        for item in self.items:
            if isinstance(item, FileSlice):
                return _Batch(buffers, size_bytes, item)
            if len(buffers) == SEND_BUFFERS_MAX:
                break
            buffers.append(item)
            size_bytes += len(item)
        return _Batch(buffers, size_bytes, None)

    def _end_sending(self) -> None:
        """The caller holds `_changing`, and has been sending."""
        self._sending = False
        if self._closed:
            self._sent.notify_all()

    def close(self) -> None:
        """Drop what waits, and make sure no thread uses the socket any more."""
        with self._changing:
            self._drop()
            self._sent.wait_for(lambda: not self._sending)

    def _drop(self) -> None:
        """The client does not hear us any more. It may still have asked for something: that is not ours to drop.

        The caller holds `_changing`.
        """
        self._closed = True
        self.items.clear()
        self.size_bytes = self._slice_count = 0

    def _hang_up(self, error: OSError) -> None:
        """Drop everything, if the error says that the client has gone."""
        if error.errno not in GONE:
            raise error
        with self._changing:
            self._drop()

    def _send_buffers(self, buffers: list[Buffer]) -> tuple[int, bool]:
        """How much was sent in one call to the kernel, and whether the socket would take nothing."""
        if not buffers:
            return 0, False
        try:
            return self._sock.sendmsg(buffers, (), MSG_DONTWAIT), False
        except BlockingIOError:
            return 0, True
        except OSError as error:
            self._hang_up(error)
            return 0, False

    def _send_piece(self, piece: FileSlice) -> tuple[int, int, bool]:
        """How much was sent of it, if nothing then the errno of the file's trouble, and whether the socket is full."""
        try:
            count = os.sendfile(self._sock.fileno(), piece.fd, piece.offset, piece.length)
        except BlockingIOError:
            return 0, 0, True
        except OSError as error:
            if error.errno not in GONE:
                return 0, error.errno or errno.EIO, False
            self._hang_up(error)
            return 0, 0, False
        return count, 0 if count else errno.EIO, False

    def _take_off(self, batch: _Batch, sent: int) -> None:
        """So many bytes from the front of the queue. The caller holds the lock."""
        self.sent_bytes += sent
        if self._closed:
            return
        self.size_bytes -= sent
        if sent == batch.size_bytes:
            for _ in batch.buffers:
                self.items.popleft()
            return
        while sent:
            item = self.items.popleft()
            assert not isinstance(item, FileSlice)
            if len(item) > sent:
                self.items.appendleft(memoryview(item)[sent:])
                return
            sent -= len(item)

    def _take_off_piece(self, piece: FileSlice, count: int, failure: int) -> bool:
        """What was sent of the first item, or what has to take its place; whether that is enough for now.

        Where the socket waits a little for the client, a slow one could hold the thread, a little at a time: so it is
        asked twice, no more. Twice, because a slice that is cut short may also mean that the file ends. The caller
        holds the lock.
        """
        self.sent_bytes += count
        if self._closed:
            return False
        if failure:
            self._replace_broken(piece, failure)
            return False
        piece.offset += count
        piece.length -= count
        if piece.length == 0:
            self.items.popleft()
            self._slice_count -= 1
            return False
        piece.tries += 1
        return piece.tries % 2 == 0

    def _replace_broken(self, item: FileSlice, failure: int) -> None:
        """Pad what the header promised, and say behind it that it was not so. The caller holds `_changing`."""
        if item.on_error is None:
            raise BrokenReply(f"base failed at {item.offset}: {os.strerror(failure)}")
        self.items.popleft()
        self._slice_count -= 1
        substitute = [*zeroes(item.length), item.on_error(failure)]
        self.items.extendleft(reversed(substitute))
        self.size_bytes += sum(len(part) for part in substitute if not isinstance(part, FileSlice))
