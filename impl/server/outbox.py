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
from typing import cast

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


Buffer = bytes | bytearray | memoryview
Outgoing = Buffer | FileSlice


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
        self._sock = sock
        self.items: deque[Outgoing] = deque()
        self.size_bytes = 0
        self._slice_count = 0
        self.sent_bytes = 0
        self._changing = threading.Lock()
        self._sending = False
        self._sent = threading.Condition(self._changing)  # that nobody sends any more, for `close`
        self._closed = False

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

    def flush(self) -> bool:
        """Send what the socket takes now. False if it would not take all: call again when it is writable."""
        if not self.items:  # whoever adds something flushes after that
            return True
        with self._changing:
            if self._sending or not self.items:
                return True
            self._sending = True
            batch = self._next_batch()
        try:
            while batch is not None:
                is_sent = self._send_slice(batch) if isinstance(batch, FileSlice) else self._send_buffers(batch)
                with self._changing:
                    if not is_sent:
                        self._end_sending()
                        return False
                    batch = self._next_batch()
        except BaseException:
            with self._changing:
                self._end_sending()
            raise
        return True

    def _next_batch(self) -> FileSlice | list[Buffer] | None:
        """What one call to the kernel can send. None if there is nothing, and then this thread sends no more.

        The caller holds `_changing`.
        """
        if not self.items:
            self._end_sending()
            return None
        if not self._slice_count and len(self.items) <= SEND_BUFFERS_MAX:
            return cast("list[Buffer]", list(self.items))
        first = self.items[0]
        if isinstance(first, FileSlice):
            return first
        buffers: list[Buffer] = []
        for item in self.items:
            if isinstance(item, FileSlice) or len(buffers) == SEND_BUFFERS_MAX:
                break
            buffers.append(item)
        return buffers

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

    def _send_buffers(self, buffers: list[Buffer]) -> bool:
        """One call to the kernel. False if the socket is full. Only for the one thread that sends."""
        try:
            sent = self._sock.sendmsg(buffers, (), MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError as error:
            self._hang_up(error)
            return True
        with self._changing:
            self._take_off(sent)
        return True

    def _take_off(self, sent: int) -> None:
        """So many bytes from the front of the queue, where there is no slice among them. The caller holds the lock."""
        self.sent_bytes += sent
        if self._closed:
            return
        if sent == self.size_bytes and not self._slice_count:  # that was all there is
            self.items.clear()
            self.size_bytes = 0
            return
        self.size_bytes -= sent
        while sent or (self.items and self._is_empty(self.items[0])):
            item = self.items.popleft()
            assert not isinstance(item, FileSlice)
            if len(item) > sent:
                self.items.appendleft(memoryview(item)[sent:])
                sent = 0
            else:
                sent -= len(item)

    @staticmethod
    def _is_empty(item: Outgoing) -> bool:
        return not isinstance(item, FileSlice) and not item

    def _send_slice(self, item: FileSlice) -> bool:
        """Send a slice, or what the socket takes of it; False if that is not all.

        Where the socket waits a little for the client, a slow one could hold the thread here, a little at a time: so
        it is asked twice, no more. Twice, because a slice that is cut short may also mean that the file ends.
        """
        for _ in range(2):
            try:
                sent, failure = self._sendfile(item)
            except BlockingIOError:
                return False
            except OSError as error:
                self._hang_up(error)
                return True
            with self._changing:
                self.sent_bytes += sent
                if self._closed:
                    return True
                if sent == 0:
                    self._replace_broken(item, failure)
                    return True
                item.offset += sent
                item.length -= sent
                if item.length == 0:
                    self.items.popleft()
                    self._slice_count -= 1
                    return True
        return False

    def _sendfile(self, item: FileSlice) -> tuple[int, int]:
        """How much was sent, and if that is nothing, the errno of the file's trouble. The socket's own is raised."""
        try:
            return os.sendfile(self._sock.fileno(), item.fd, item.offset, item.length), errno.EIO
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno in GONE:
                raise
            return 0, error.errno or errno.EIO

    def _replace_broken(self, item: FileSlice, failure: int) -> None:
        """Pad what the header promised, and say behind it that it was not so. The caller holds `_changing`."""
        if item.on_error is None:
            raise BrokenReply(f"base failed at {item.offset}: {os.strerror(failure)}")
        self.items.popleft()
        self._slice_count -= 1
        substitute = [*zeroes(item.length), item.on_error(failure)]
        self.items.extendleft(reversed(substitute))
        self.size_bytes += sum(len(part) for part in substitute if not isinstance(part, FileSlice))
