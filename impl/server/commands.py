"""From a request to its reply: which method of the overlay a command is, and how its result is said.

A handler either answers at once or, when it would wait (for a slow base, or for a range that another request holds) or
work for long, returns the rest for a worker to do. Nothing else here knows of threads.

Source:  NBD protocol, "Request types", "Structured reply types", "base:allocation metadata context".
Shapes:  a reply is a list of what is to be sent, whole: no other reply may come between its parts.
Errors:  OSError and MemoryError become the errno of the reply; anything else is a bug of ours, and propagates.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

from impl.nbd import replies
from impl.nbd.agreement import Agreement
from impl.nbd.constants import AllocationFlag, Command, CommandFlag, nbd_errno
from impl.nbd.requests import Request
from impl.overlay.overlay import FromBase, Segment, Zeroes
from impl.server.export import Export
from impl.server.outbox import FileSlice, Outgoing, zeroes

# Below this, copying bytes of the base into a batch of replies is cheaper than a sendfile of its own.
SENDFILE_MIN_BYTES = 32 << 10
# A reply with more extents than this says less than it costs; the client asks on from where it ends.
EXTENTS_MAX_COUNT = 64 << 10

# Plain integers: looking at an Enum costs more than many a command.
READ = int(Command.READ)
FLUSH = int(Command.FLUSH)
FLAG_DF = int(CommandFlag.DF)
FLAG_FAST_ZERO = int(CommandFlag.FAST_ZERO)
FLAG_NO_HOLE = int(CommandFlag.NO_HOLE)
FLAG_REQ_ONE = int(CommandFlag.REQ_ONE)
ALLOCATION = {
    (hole, zero): int(AllocationFlag.HOLE) * hole | int(AllocationFlag.ZERO) * zero
    for hole, zero in itertools.product((False, True), repeat=2)
}

# Whole blocks to be changed at once without any bytes from the client; more than this is no work for the loop.
ZERO_AT_ONCE_MAX_BYTES = 4 << 20

Reply = Sequence[Outgoing]


class Later(NamedTuple):
    """What a worker has to do for a reply, which may turn out to be another Later.

    for_base:  whether it may wait for the base. What waits for a range only must not queue behind what does (P4).
    """

    run: Callable[[], Reply | Later]
    for_base: bool


class Commands:
    """The transmission phase of one connection, without its socket."""

    def __init__(self, export: Export, agreement: Agreement) -> None:
        self._overlay = export.overlay
        self._base = export.base
        self._base_fd = export.base.fileno()
        self._structured = agreement.structured
        self._contexts = agreement.contexts

    def start(self, request: Request) -> Reply | Later:
        """The reply, or what a worker has to call to get it."""
        if request.error:
            return self.error(request, request.error, request.message)
        if request.length == 0 and request.command != FLUSH:
            return self._nothing(request)
        try:
            return self.HANDLERS[request.command](self, request)
        except (OSError, MemoryError) as error:
            return self._failed(request, error)

    def error(self, request: Request, code: int, message: str) -> Reply:
        """The reply that says no."""
        if self._structured:
            return [replies.error_chunk(request.cookie, code, message)]
        return [replies.simple_reply(request.cookie, code)]

    def _failed(self, request: Request, error: OSError | MemoryError) -> Reply:
        code = errno.ENOMEM if isinstance(error, MemoryError) else error.errno or errno.EIO
        return self.error(request, nbd_errno(code), getattr(error, "strerror", None) or "no memory")

    def _later(self, request: Request, work: Callable[[], Reply | Later], for_base: bool) -> Later:
        def run() -> Reply | Later:
            try:
                return work()
            except (OSError, MemoryError) as error:
                return self._failed(request, error)

        return Later(run, for_base)

    def _done(self, request: Request) -> Reply:
        return [replies.simple_reply(request.cookie)]

    def _nothing(self, request: Request) -> Reply:
        """A request of no bytes has nothing to do, and succeeds."""
        if self._structured and request.command == READ:
            return [replies.done_chunk(request.cookie)]
        return self._done(request)

    # Reading

    def _read(self, request: Request) -> Reply | Later:
        if self._overlay.would_wait_to_look(request.offset, request.length):
            return self._later(request, lambda: self._looked(request), for_base=False)
        return self._looked(request)

    def _looked(self, request: Request) -> Reply | Later:
        overlay = self._overlay
        segments = overlay.look(request.offset, request.length)
        wanted = [segment for segment in segments if isinstance(segment, FromBase)]
        if wanted and overlay.copy_on_read():

            def copy() -> Reply:
                copied = overlay.read(request.offset, request.length)
                return self._read_reply(request, copied, by_reference=False)

            return self._later(request, copy, for_base=True)
        if all([self._base.is_ready(part.offset, part.length) for part in wanted]):
            return self._read_reply(request, segments, by_reference=not request.flags & FLAG_DF)
        return self._later(request, lambda: self._read_reply(request, segments, by_reference=False), for_base=True)

    def _read_reply(self, request: Request, segments: Sequence[Segment], by_reference: bool) -> Reply:
        """What the base does not send by reference is read before any byte goes out: a failure can still be said.

        An error chunk may not come between the bytes of another chunk, so a DF reply has nothing by reference. A
        simple reply may, and then a base that fails after all costs the connection, as the standard has it.
        """
        parts = [self._fetched(segment, by_reference) for segment in segments]
        if not self._structured:
            return [replies.simple_reply(request.cookie), *self._as_bytes(parts)]
        if request.flags & FLAG_DF:
            header = replies.data_chunk_header(request.cookie, request.offset, request.length, done=True)
            return [header, *self._as_bytes(parts)]
        return self._chunks(request, parts)

    def _fetched(self, segment: Segment, by_reference: bool) -> Segment:
        """A segment that is in memory, or that the kernel can send."""
        if not isinstance(segment, FromBase):
            return segment
        if by_reference and self._base_fd is not None and segment.length >= SENDFILE_MIN_BYTES:
            return segment
        return self._base.pread(segment.offset, segment.length)

    def _as_bytes(self, parts: Sequence[Segment]) -> list[Outgoing]:
        """The parts one behind the other, zeroes and all."""
        outgoing: list[Outgoing] = []
        for part in parts:
            if isinstance(part, Zeroes):
                outgoing.extend(zeroes(part.length))
            elif isinstance(part, FromBase):
                outgoing.append(self._slice(part, None))
            else:
                outgoing.append(part)
        return outgoing

    def _slice(self, part: FromBase, cookie: int | None) -> FileSlice:
        """A part for the kernel to send; `cookie` names a request whose errors may come in a chunk of their own."""
        assert self._base_fd is not None
        if cookie is None:
            return FileSlice(self._base_fd, part.offset, part.length, None)

        def failed(code: int) -> bytes:
            text = "the base could not be read"
            return replies.error_offset_chunk(cookie, nbd_errno(code), text, part.offset, done=False)

        return FileSlice(self._base_fd, part.offset, part.length, failed)

    def _chunks(self, request: Request, parts: Sequence[Segment]) -> Reply:
        """A chunk for each part: holes without their zeroes. DONE waits for what can still fail."""
        cookie = request.cookie
        by_reference = any(isinstance(part, FromBase) for part in parts)
        offset = request.offset
        end = request.offset + request.length
        reply: list[Outgoing] = []
        for part in parts:
            length = part.length if isinstance(part, (Zeroes, FromBase)) else len(part)
            done = not by_reference and offset + length == end
            if isinstance(part, Zeroes):
                reply.append(replies.hole_chunk(cookie, offset, length, done=done))
            else:
                reply.append(replies.data_chunk_header(cookie, offset, length, done=done))
                reply.append(self._slice(part, cookie) if isinstance(part, FromBase) else part)
            offset += length
        if by_reference:
            reply.append(replies.done_chunk(cookie))
        return reply

    # Writing. FUA asks for nothing more: the temporary overlay does not outlive the process.

    def _write(self, request: Request) -> Reply | Later:
        overlay = self._overlay
        for_base = overlay.would_wait_for_base(request.offset, request.length)
        if for_base or overlay.would_wait_to_change(request.offset, request.length):
            return self._later(request, lambda: self._written(request), for_base)
        return self._written(request)

    def _written(self, request: Request) -> Reply:
        self._overlay.write(request.offset, request.payload)
        return [replies.simple_reply(request.cookie)]

    def _trim(self, request: Request) -> Reply | Later:
        def work() -> Reply:
            self._overlay.trim(request.offset, request.length)
            return self._done(request)

        return self._changing(request, work)

    def _write_zeroes(self, request: Request) -> Reply | Later:
        no_hole = bool(request.flags & FLAG_NO_HOLE)
        fast = bool(request.flags & FLAG_FAST_ZERO)

        def work() -> Reply:
            self._overlay.zero(request.offset, request.length, no_hole, fast)
            return self._done(request)

        return self._changing(request, work)

    def _changing(self, request: Request, work: Callable[[], Reply]) -> Reply | Later:
        """A change that brings no bytes, and so may be of any length."""
        overlay = self._overlay
        for_base = overlay.would_wait_for_base(request.offset, request.length)
        if (
            for_base
            or request.length > ZERO_AT_ONCE_MAX_BYTES
            or overlay.would_wait_to_change(request.offset, request.length)
        ):
            return self._later(request, work, for_base)
        return work()

    # The rest

    def _cache(self, request: Request) -> Reply | Later:
        def work() -> Reply:
            self._overlay.cache(request.offset, request.length)
            return self._done(request)

        if self._overlay.cache_mode != "ignore":
            return self._later(request, work, for_base=True)
        if self._overlay.would_wait_to_look(request.offset, request.length):
            return self._later(request, work, for_base=False)
        return work()

    def _flush(self, request: Request) -> Reply:
        self._overlay.flush()
        return self._done(request)

    def _block_status(self, request: Request) -> Reply | Later:
        if self._overlay.would_wait_to_look(request.offset, request.length):
            return self._later(request, lambda: self._status_reply(request), for_base=False)
        return self._status_reply(request)

    def _status_reply(self, request: Request) -> Reply:
        found = self._overlay.extents(request.offset, request.length)
        most = 1 if request.flags & FLAG_REQ_ONE else EXTENTS_MAX_COUNT
        extents = [(extent.length, ALLOCATION[extent.hole, extent.zero]) for extent in itertools.islice(found, most)]
        return [
            replies.block_status_chunk(request.cookie, context, extents, done=context == self._contexts[-1])
            for context in self._contexts
        ]

    HANDLERS: ClassVar[dict[int, Callable[[Commands, Request], Reply | Later]]] = {
        Command.READ: _read,
        Command.WRITE: _write,
        Command.FLUSH: _flush,
        Command.TRIM: _trim,
        Command.CACHE: _cache,
        Command.WRITE_ZEROES: _write_zeroes,
        Command.BLOCK_STATUS: _block_status,
    }
