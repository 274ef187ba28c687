"""A base that another NBD server has: read over several connections, many requests at a time.

A connection that breaks is made anew, by whoever needs it, after a pause that doubles up to BACKOFF_MAX_S; so a server
that comes back is found again. A read tries until RETRY_S is over, and is EIO then, or when a server that is there has
not answered for ANSWER_TIMEOUT_S. What another server serves has to
be the same disk each time: of another size, it is not believed.

Source:  NBD protocol, NBD_FLAG_CAN_MULTI_CONN, NBD_CMD_BLOCK_STATUS, NBD_CMD_CACHE.
Units:   offsets and lengths in bytes; times in seconds.
Errors:  StartError when there is no such export to begin with; then OSError: what the server says, or EIO.
Locks:   `_lock` of a connection protects its client and when it may be made anew; it is held while it is connected.
"""

from __future__ import annotations

import errno
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from impl.base.interface import CacheMode
from impl.client import Client, NbdError, connect
from impl.closing import close_all
from impl.errors import StartError
from impl.extents import Extent, coalesce
from impl.sizes import format_size, quoted

T = TypeVar("T")

CONNECTIONS = 4
CONNECT_TIMEOUT_S = 5.0
# A request that is not answered within this is given up, and its connection with it.
ANSWER_TIMEOUT_S = 30.0
RETRY_S = 10.0
# At a time, of extents, of which there may be one for each 512 bytes; and to be prefetched, by so many requests.
EXTENTS_MAX_BYTES = 64 << 20
ASKED_MAX_BYTES = 1 << 31
PREFETCHES_MAX = 16
NO_EXTENTS_S = 10.0
BACKOFF_MIN_S, BACKOFF_MAX_S = 0.05, 2.0

log = logging.getLogger("cowproof.base")


class _Connection:
    """One connection, which is made when it is needed, and again when it has broken."""

    def __init__(self, open_client: Callable[[], Client], first: Client | None = None) -> None:
        self._open = open_client
        self._lock = threading.Lock()
        self._client = first
        self._is_closed = False
        self._backoff_s = BACKOFF_MIN_S
        self._not_before_s = 0.0

    def client(self) -> Client:
        """One that lives; ConnectionError when it is too early to try again, OSError when trying has failed."""
        with self._lock:
            if self._is_closed:
                raise ConnectionError("the base is closed")
            if self._client is not None and self._client.alive:
                return self._client
            now_s = time.monotonic()
            if now_s < self._not_before_s:
                raise ConnectionError("the connection broke a moment ago")
            self._drop()
            try:
                self._client = self._open()
            except OSError:
                self._not_before_s = time.monotonic() + self._backoff_s
                self._backoff_s = min(2 * self._backoff_s, BACKOFF_MAX_S)
                raise
            self._backoff_s = BACKOFF_MIN_S
            return self._client

    def give_up(self, client: Client) -> None:
        """This client is of no use any more; unless it has been replaced, somebody has to make another."""
        with self._lock:
            if self._client is client:
                self._drop()

    def close(self) -> None:
        """For good: say goodbye, if there is anybody to say it to, and wait until it is heard."""
        self._is_closed = True
        with self._lock:  # which somebody may hold for long who makes a connection
            if self._client is not None:
                self._client.disconnect(wait=False)
                self._client = None

    def _drop(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


class NbdBase:
    """An export of another server."""

    extents_may_wait: Final = True

    def __init__(self, uri: str, retry_s: float = RETRY_S) -> None:
        self._uri = uri
        self._retry_s = retry_s
        self.size = 0  # known when the first connection is there, and never another
        try:
            first = self._connect()
        except (OSError, ValueError) as error:  # ValueError: a host's name that cannot be one
            raise StartError(f"cannot read {quoted(uri)}: {error}") from None
        if not first.size:
            first.disconnect(wait=False)
            raise StartError(f"cannot serve {quoted(uri)}: it is empty, expected at least 1 byte")
        self.size = first.size
        what = first.export.description or first.export.name or "another server's export"
        self.description: Final = f"{what}, {format_size(self.size)}"
        self.cache_mode: Final[CacheMode] = "passthrough" if first.can_cache else "read"
        self._expected = (first.size, first.block_min, first.payload_max)
        self._read_max_bytes = first.payload_max
        self._alignment = first.block_min
        self._has_extents = first.can_block_status
        count = CONNECTIONS if first.can_multi_conn else 1
        clients = [first, *[None] * (count - 1)]
        self._connections = [_Connection(self._connect, client) for client in clients]
        self._turns = itertools.cycle(range(count))
        self._prefetches = threading.BoundedSemaphore(PREFETCHES_MAX)
        self._no_extents_before_s = 0.0  # after a failure: not every run of blocks has to wait for the next one

    def _connect(self) -> Client:
        try:
            client = connect(self._uri, timeout_s=CONNECT_TIMEOUT_S, answer_timeout_s=ANSWER_TIMEOUT_S)
        except StartError as error:  # of certificates that are not there any more, or not yet again
            raise ConnectionError(str(error)) from None
        found = (client.size, client.block_min, client.payload_max)
        if self.size and found != self._expected:
            client.disconnect(wait=False)
            raise ConnectionError(
                f"the export is another one now: size and limits are {found}, expected {self._expected}"
            )
        return client

    def pread(self, offset: int, length: int) -> bytes:
        """The bytes; in as many requests as the server wants, side by side."""
        assert 0 <= offset < offset + length <= self.size, f"{offset}+{length} is not within {self.size} bytes"
        start = offset - offset % self._alignment
        end = self._aligned_end(offset + length)
        step = self._read_max_bytes - self._read_max_bytes % self._alignment
        if (start, end) == (offset, offset + length) and length <= step:
            return self._asked(lambda client: client.pread(offset, length))
        pieces = [(at, min(step, end - at)) for at in range(start, end, step)]
        data = self._asked(lambda client: b"".join(map(client.wait, [client.pread_async(*piece) for piece in pieces])))
        return data[offset - start : offset - start + length]

    def _aligned_end(self, end: int) -> int:
        return min(-(-end // self._alignment) * self._alignment, self.size)

    def _asked(self, ask: Callable[[Client], T]) -> T:
        """What one of the connections gives, as soon as one does. NbdError is the server's word, and stands."""
        ends_s = time.monotonic() + self._retry_s
        while True:
            connection = self._connections[next(self._turns)]
            client = None
            try:
                client = connection.client()
                return ask(client)
            except NbdError as error:
                if error.errno != errno.ESHUTDOWN:
                    raise
                problem: OSError = error
            except OSError as error:
                problem = error
            if client is not None:
                log.warning("%s: %s; trying again", self._uri, problem)
                connection.give_up(client)
            if time.monotonic() > ends_s:
                raise OSError(errno.EIO, f"the base's server cannot be reached: {problem}") from problem
            time.sleep(BACKOFF_MIN_S)

    def is_ready(self, offset: int, length: int) -> bool:
        """Never: it is on its way as long as another machine takes."""
        return False

    def pread_at_once(self, offset: int, length: int) -> bytes | None:
        """Nothing is."""
        return None

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """As the server knows them; as data where it does not, or does not answer: that is always a right answer."""
        return coalesce(self._extents(offset, length))

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        end = offset + length
        while offset < end and self._has_extents and time.monotonic() >= self._no_extents_before_s:
            found = self._some_extents(offset, end)
            if not found:
                break
            yield from found
            offset += sum(extent.length for extent in found)
        if offset < end:
            yield Extent(end - offset, hole=False, zero=False)

    def _some_extents(self, offset: int, end: int) -> list[Extent]:
        """The first ones of a range, cut to it; none if there is no answer."""
        skipped = offset % self._alignment
        start = offset - skipped
        asked = min(self._aligned_end(end) - start, EXTENTS_MAX_BYTES)
        try:
            found = self._asked(lambda client: client.wait(client.block_status_async(start, asked)))
        except OSError as error:
            log.warning("%s: no extents: %s", self._uri, error)
            self._no_extents_before_s = time.monotonic() + NO_EXTENTS_S
            return []
        cut: list[Extent] = []
        for extent in found:
            length = min(extent.length - skipped, end - offset)
            skipped = max(skipped - extent.length, 0)
            if length > 0:
                cut.append(extent._replace(length=length))
                offset += length
        return cut

    def prefetch(self, offset: int, length: int) -> None:
        """Ask the server for it, and do not wait for the answer; not of one that has much to do, or does not answer."""
        start = offset - offset % self._alignment
        end = self._aligned_end(offset + length)
        if not self._prefetches.acquire(blocking=False):
            return
        try:
            client = self._connections[next(self._turns)].client()
            asked = client.cache_async(start, min(end - start, ASKED_MAX_BYTES))
        except OSError:
            self._prefetches.release()
        else:
            asked.add_done_callback(lambda _: self._prefetches.release())

    def fileno(self) -> int | None:
        return None

    def close(self) -> None:
        # All at a time: one that is not answered, or is just being made, must not keep the others from saying goodbye.
        close_all(connection.close for connection in self._connections)
