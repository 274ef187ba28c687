"""From a request to its reply: which method of the overlay a command is, and how its result is said.

A handler either answers at once or, when it would wait (for a slow base, or for a range that another request holds) or
work for long, returns the rest for a worker to do. Nothing else here knows of threads. No thread ever waits for a
range: see Later.

Source:  NBD protocol, "Request types", "Structured reply types", "base:allocation metadata context".
Shapes:  a reply is a list of what is to be sent, whole: no other reply may come between its parts.
Bounds:  what a request may hold in memory is said before it is begun (`Later.held_bytes`), from above.
Errors:  OSError and MemoryError become the errno of the reply; anything else is a bug of ours, and propagates.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from enum import Enum
from functools import partial
from typing import NamedTuple, Protocol, cast

from impl.base.interface import Base
from impl.nbd.agreement import Agreement
from impl.nbd.constants import (
    ALLOCATION_DEPTH,
    BASE_ALLOCATION,
    BLOCK_STATE,
    CONTEXT_IDS,
    AllocationFlag,
    Command,
    CommandFlag,
    nbd_errno,
)
from impl.nbd.replies import Replies, replies_of
from impl.nbd.requests import Request
from impl.nbd.wire import unpack_status_request
from impl.overlay.overlay import CACHE_CHUNK_BYTES, Fetched, FromBase, Overlay, Segment, Zeroes, always, never
from impl.overlay.parking import AtOnce, Granted, Lock, WouldWait
from impl.server.outbox import FileSlice, Outgoing, zeroes

# Below this, copying bytes of the base into a batch of replies is cheaper than a sendfile of its own: that takes calls
# for what stands before and behind it, two to find out that it would not wait, and more of the client's time.
SENDFILE_MIN_BYTES = 132 << 10
# A reply with more extents than this says less than it costs; the client asks on from where it ends.
EXTENTS_MAX_COUNT = 8 << 10
EXTENT_BYTES, EXTENDED_EXTENT_BYTES = 8, 16
# So many states at most are copied at once to be looked through: of 4 KiB blocks, as many as a request can have that
# has no extended header.
NOTE_MAX_BLOCKS = 1 << 20
# States of so many blocks are looked through in no time.
LOOK_AT_ONCE_MAX_BLOCKS = 256

# Plain integers: looking at an Enum costs more than many a command.
READ = int(Command.READ)
FLUSH = int(Command.FLUSH)
CHANGING = (int(Command.WRITE), int(Command.TRIM), int(Command.WRITE_ZEROES))
FLAG_DF = int(CommandFlag.DF)
FLAG_FAST_ZERO = int(CommandFlag.FAST_ZERO)
FLAG_NO_HOLE = int(CommandFlag.NO_HOLE)
FLAG_REQ_ONE = int(CommandFlag.REQ_ONE)
ALLOCATION = {
    (hole, zero): int(AllocationFlag.HOLE) * hole | int(AllocationFlag.ZERO) * zero
    for hole, zero in itertools.product((False, True), repeat=2)
}

# What qemu:allocation-depth says of a block in each state; what says it is a run of equal states, so it is one, too.
BASE_DEPTH, OVERLAY_DEPTH = 0, 1
DEPTH_OF_STATE = bytes([BASE_DEPTH, OVERLAY_DEPTH, OVERLAY_DEPTH]) + bytes(253)

# Whole blocks to be changed without any bytes from the client, or blocks to be fetched for a change of parts of them;
# more than this is no work for the loop.
ZERO_AT_ONCE_MAX_BYTES = 4 << 20

# To copy so much takes no longer than to write it, which is done at once, too.
COPY_AT_ONCE_MAX_BYTES = 128 << 10

Reply = Sequence[Outgoing]
# For a change of whole blocks; not to be changed.
NOTHING_FETCHED: Fetched = {}


class Place(Enum):
    """Whose work something is: each kind has workers of its own, so that none has to wait behind another kind.

    BASE:   what may wait for the base. It holds no range meanwhile.
    LONG:   what waits for nobody but may take long by itself: large zeroes, many extents.
    SHORT:  what had to wait for its range, and has it.
    """

    BASE = "base"
    LONG = "long"
    SHORT = "short"


class Later(NamedTuple):
    """What a worker has to do for a reply, which may turn out to be another Later.

    held_bytes:  how much memory it takes at most until its reply is queued, the reply included
    granted:     the range that it has to be given before it is run, or else has to give back
    """

    run: Callable[[], Reply | Later]
    place: Place
    request: Request
    held_bytes: int
    granted: Granted | None = None

    @property
    def changes(self) -> bool:
        """Whether it does anything that somebody could see who does not hear the reply."""
        return self.request.command in CHANGING

    def drop(self) -> None:
        """Do nothing of it."""
        if self.granted is not None:
            self.granted.give_back()


Change = Callable[[Request, Fetched, Overlay], Reply]


class Device(Protocol):
    """What an export is for those who answer requests. Its ranges are a Lock, too."""

    @property
    def overlay(self) -> Overlay:
        """Shared by all connections."""

    @property
    def base(self) -> Base:
        """The overlay's, with what only a server asks of it."""


class Commands:
    """The transmission phase of one connection, without its socket.

    is_wanted:     asked by requests that take long and change nothing: whether their client waits for them still.
    by_reference:  whether the kernel may send bytes of the base by itself.
    """

    def __init__(
        self,
        export: Device,
        agreement: Agreement,
        is_wanted: Callable[[], bool] = always,
        by_reference: bool = True,
    ) -> None:
        self._ranges = ranges = cast(Lock, export.overlay.ranges)  # see Device
        # Whoever runs a request has others waiting for him, so none may wait for a range.
        self._overlay = replace(export.overlay, ranges=AtOnce(ranges))
        self._is_wanted = is_wanted
        self._base = export.base
        self._base_fd = export.base.fileno()
        self._by_reference = by_reference and self._base_fd is not None
        self._extents_may_wait = export.base.extents_may_wait
        self._copies = export.overlay.copy_on_read is not never
        self._note_max_bytes = NOTE_MAX_BLOCKS * export.overlay.block_size
        self._structured = agreement.structured
        self._replies = replies_of(agreement)
        self._contexts = agreement.contexts
        self._extent_bytes = EXTENDED_EXTENT_BYTES if agreement.extended else EXTENT_BYTES

    def start(self, request: Request) -> Reply | Later:
        """The reply, or what a worker has to call to get it."""
        command, _, _, _, length, _, refused, message = request
        if refused:
            return self.error(request, refused, message)
        if not length and command != FLUSH:
            return self._nothing(request)
        try:
            return HANDLERS[command](self, request)
        except (OSError, MemoryError) as error:
            return self._failed(request, error)

    def error(self, request: Request, code: int, message: str) -> Reply:
        """The reply that says no."""
        return [self._replies.error(request, code, message)]

    def _failed(self, request: Request, error: OSError | MemoryError) -> Reply:
        code = errno.ENOMEM if isinstance(error, MemoryError) else error.errno or errno.EIO
        return self.error(request, nbd_errno(code), getattr(error, "strerror", None) or "no memory")

    def _later(
        self,
        request: Request,
        work: Callable[[], Reply | Later],
        place: Place,
        held_bytes: int,
        granted: Granted | None = None,
    ) -> Later:
        return Later(partial(self._run, request, work), place, request, held_bytes, granted)

    def _run(self, request: Request, work: Callable[[], Reply | Later]) -> Reply | Later:
        try:
            return work()
        except (OSError, MemoryError) as error:
            return self._failed(request, error)

    def _on_overlay(
        self,
        request: Request,
        work: Callable[[Overlay], Reply | Later],
        held_bytes: int,
        place: Place = Place.SHORT,
    ) -> Reply | Later:
        """What `work` makes of the overlay: now if its range is free, else once it is granted.

        `work` takes its range first of all, and before it changes anything: it is begun anew when it has the range.
        """
        try:
            return work(self._overlay)
        except WouldWait as busy:
            return self._parked(request, busy, work, held_bytes, place)

    def _parked(
        self,
        request: Request,
        busy: WouldWait,
        work: Callable[[Overlay], Reply | Later],
        held_bytes: int,
        place: Place = Place.SHORT,
    ) -> Later:
        """A request that would have had to wait for its range, to be begun anew when it has it."""
        granted = Granted(self._ranges, busy)
        return self._later(request, partial(self._run_granted, granted, work), place, held_bytes, granted)

    def _run_granted(self, granted: Granted, work: Callable[[Overlay], Reply | Later]) -> Reply | Later:
        try:
            return work(replace(self._overlay, ranges=granted))
        finally:
            granted.give_back()

    def _done(self, request: Request) -> Reply:
        return [self._replies.success(request)]

    def _nothing(self, request: Request) -> Reply:
        """A request of no bytes has nothing to do, and succeeds."""
        return [self._replies.end(request)] if request.command == READ else self._done(request)

    # Reading

    def _read(self, request: Request) -> Reply | Later:
        _, _, _, offset, length, _, _, _ = request
        overlay = self._overlay
        if overlay.is_untouched(offset, length):
            if length < SENDFILE_MIN_BYTES and self._structured and not self._copies:  # by far the most frequent
                data = self._base.pread_at_once(offset, length)
                if data is not None:
                    return [self._replies.data_header(request, offset, length, True), data]
            return self._looked(request, [FromBase(offset, length)])
        try:
            segments = overlay.look_under_lock(offset, length)
        except WouldWait as busy:
            return self._parked(request, busy, partial(self._look, request), length)
        part = segments[0]
        if isinstance(part, bytes) and len(segments) == 1 and self._structured:
            return [self._replies.data_header(request, offset, length, True), part]
        return self._looked(request, segments)

    def _look(self, request: Request, overlay: Overlay) -> Reply | Later:
        return self._looked(request, overlay.look(request.offset, request.length))

    def _looked(self, request: Request, segments: Sequence[Segment]) -> Reply | Later:
        """A reply of the segments, each in memory, or such that the kernel can send it; later, if the base is slow.

        What is not sent by reference is read before any byte goes out: a failure can still be said.
        """
        parts: list[Segment] = []
        for segment in segments:
            if not isinstance(segment, FromBase):
                parts.append(segment)
                continue
            if self._overlay.copy_on_read():
                return self._copied(request, segments)
            found = self._base_part(segment, not request.flags & FLAG_DF)
            if found is None:
                return self._fetched_later(request, segments)
            parts.append(found)
        return self._read_reply(request, parts)

    def _copied(self, request: Request, segments: Sequence[Segment]) -> Reply | Later:
        """A reply of the segments whose parts of the base are kept: at once, if they are few and the base is ready."""
        overlay = self._overlay
        if max(request.length, overlay.block_size) <= COPY_AT_ONCE_MAX_BYTES and all(
            overlay.is_ready_to_copy(segment) for segment in segments if isinstance(segment, FromBase)
        ):
            return self._read_reply(request, overlay.copied(segments))
        # The blocks that are fetched, whole, and what is copied out of them.
        held_bytes = 2 * request.length + 2 * min(overlay.block_size, overlay.size)
        return self._later(request, lambda: self._read_reply(request, overlay.copied(segments)), Place.BASE, held_bytes)

    def _fetched_later(self, request: Request, segments: Sequence[Segment]) -> Later:
        return self._later(request, partial(self._fetch, request, segments), Place.BASE, request.length)

    def _fetch(self, request: Request, segments: Sequence[Segment]) -> Reply:
        return self._read_reply(request, [self._overlay.fetched(segment) for segment in segments])

    def _base_part(self, part: FromBase, by_reference: bool) -> Segment | None:
        """A part of the base, or None if it is to be waited for."""
        offset, length = part
        if length < SENDFILE_MIN_BYTES:
            return self._base.pread_at_once(offset, length)
        if not self._base.is_ready(offset, length):
            return None
        return part if by_reference and self._by_reference else self._base.pread(offset, length)

    def _read_reply(self, request: Request, parts: Sequence[Segment]) -> Reply:
        """The parts as a reply.

        An error chunk may not come between the bytes of another chunk, so a DF reply has nothing by reference. A
        simple reply may, and then a base that fails after all costs the connection, as the standard has it.
        """
        say, offset, length = self._replies, request.offset, request.length
        part = parts[0]
        if len(parts) == 1 and not isinstance(part, (FromBase, Zeroes)):  # by far the most frequent
            return [say.data_header(request, offset, length, True), part]
        if request.flags & FLAG_DF or not self._structured:
            return [say.data_header(request, offset, length, True), *self._as_bytes(parts)]
        if len(parts) == 1 and isinstance(part, FromBase):
            return [say.data_header(request, offset, length, False), self._slice(part, request), say.end(request)]
        return self._chunks(request, parts)

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

    def _slice(self, part: FromBase, request: Request | None) -> FileSlice:
        """A part for the kernel to send; of a `request` whose errors may come in a chunk of their own."""
        assert self._base_fd is not None
        if request is None:
            return FileSlice(self._base_fd, part.offset, part.length, None)
        failed = partial(slice_failed, self._replies, request, part.offset)
        return FileSlice(self._base_fd, part.offset, part.length, failed)

    def _chunks(self, request: Request, parts: Sequence[Segment]) -> Reply:
        """A chunk for each part: holes without their zeroes. DONE waits for what can still fail."""
        say = self._replies
        by_reference = any(isinstance(part, FromBase) for part in parts)
        offset = request.offset
        end = request.offset + request.length
        reply: list[Outgoing] = []
        for part in parts:
            length = part.length if isinstance(part, (Zeroes, FromBase)) else len(part)
            done = not by_reference and offset + length == end
            if isinstance(part, Zeroes):
                reply.append(say.hole(request, offset, length, done))
            else:
                reply.append(say.data_header(request, offset, length, done))
                reply.append(self._slice(part, request) if isinstance(part, FromBase) else part)
            offset += length
        if by_reference:
            reply.append(say.end(request))
        return reply

    # Writing. FUA asks for nothing more: the temporary overlay does not outlive the process.

    def _write(self, request: Request) -> Reply | Later:
        _, _, _, offset, length, payload, _, _ = request
        overlay = self._overlay
        if overlay.partial_blocks(offset, length):
            return self._fetched_first(request, self._written, length, False)
        try:
            overlay.write(offset, payload, NOTHING_FETCHED)
        except WouldWait as busy:
            return self._parked(request, busy, partial(self._written, request, NOTHING_FETCHED), length)
        return [self._replies.success(request)]

    def _written(self, request: Request, fetched: Fetched, overlay: Overlay) -> Reply:
        overlay.write(request.offset, request.payload, fetched)
        return self._done(request)

    def _trim(self, request: Request) -> Reply | Later:
        return self._fetched_first(request, self._trimmed, 0, request.length > ZERO_AT_ONCE_MAX_BYTES)

    def _trimmed(self, request: Request, fetched: Fetched, overlay: Overlay) -> Reply:
        overlay.trim(request.offset, request.length, fetched)
        return self._done(request)

    def _write_zeroes(self, request: Request) -> Reply | Later:
        return self._fetched_first(request, self._zeroed, 0, request.length > ZERO_AT_ONCE_MAX_BYTES)

    def _zeroed(self, request: Request, fetched: Fetched, overlay: Overlay) -> Reply:
        no_hole = bool(request.flags & FLAG_NO_HOLE)
        fast = bool(request.flags & FLAG_FAST_ZERO)
        overlay.zero(request.offset, request.length, no_hole, fast, fetched)
        return self._done(request)

    def _fetched_first(self, request: Request, change: Change, payload_bytes: int, is_long: bool) -> Reply | Later:
        """A change, once all is fetched that it needs of the base: whoever holds a range must not wait for that."""
        overlay = self._overlay
        partial = overlay.partial_blocks(request.offset, request.length)
        held_bytes = payload_bytes
        if not partial or request.flags & FLAG_FAST_ZERO:
            return self._changed(request, change, {}, held_bytes, is_long)
        # Blocks are fetched, or filled with zeroes; and zeroes for a part of a block are made as they are written.
        copied_bytes = len(partial) * min(overlay.block_size, overlay.size)
        held_bytes += copied_bytes if payload_bytes else copied_bytes + min(request.length, overlay.block_size)
        missing = overlay.missing(partial)
        if copied_bytes <= ZERO_AT_ONCE_MAX_BYTES and not (missing and overlay.would_wait_to_fetch(missing)):
            fetched = overlay.fetch_blocks(missing) if missing else {}
            return self._changed(request, change, fetched, held_bytes, is_long)
        return self._later(
            request,
            lambda: self._changed(request, change, overlay.fetch_blocks(missing), held_bytes, is_long),
            Place.BASE,
            held_bytes,
        )

    def _changed(
        self, request: Request, change: Change, fetched: Fetched, held_bytes: int, is_long: bool
    ) -> Reply | Later:
        work = partial(change, request, fetched)
        if not is_long:
            return self._on_overlay(request, work, held_bytes)
        return self._later(
            request, lambda: self._on_overlay(request, work, held_bytes, Place.LONG), Place.LONG, held_bytes
        )

    # The rest

    def _is_small(self, request: Request) -> bool:
        """Whether the states of its blocks are looked through in no time."""
        return request.length <= LOOK_AT_ONCE_MAX_BLOCKS * self._overlay.block_size

    def _cache(self, request: Request) -> Reply | Later:
        return self._cache_from(request, request.offset)

    def _cache_from(self, request: Request, offset: int) -> Reply | Later:
        """The rest of a request, piece by piece: one with extended headers may cover the whole device."""
        length = min(request.offset + request.length - offset, self._note_max_bytes)
        state_bytes = length // self._overlay.block_size + 2
        return self._on_overlay(request, partial(self._noted, request, offset, length, state_bytes), state_bytes)

    def _noted(self, request: Request, offset: int, length: int, state_bytes: int, held: Overlay) -> Reply | Later:
        overlay = self._overlay
        work = partial(self._cached, request, offset + length, *held.note(offset, length))
        if overlay.cache_mode in ("read", "cow"):
            # A chunk is let go of when the next one has been read.
            chunk_bytes = max(CACHE_CHUNK_BYTES, min(overlay.block_size, overlay.size))
            return self._later(request, work, Place.BASE, 2 * chunk_bytes + state_bytes)
        if overlay.cache_mode == "ignore" and self._is_small(request):
            return work()
        return self._later(request, work, Place.LONG, state_bytes)

    def _cached(self, request: Request, next_offset: int, first: int, states: bytes) -> Reply | Later:
        self._overlay.cache_noted(first, states, self._is_wanted)
        if next_offset < request.offset + request.length and self._is_wanted():
            return self._cache_from(request, next_offset)
        return self._done(request)

    def _flush(self, request: Request) -> Reply:
        self._overlay.flush()
        return self._done(request)

    def _block_status(self, request: Request) -> Reply | Later:
        """What there is to say of so much of the range as states are looked through in a moment."""
        if request.length > self._note_max_bytes:
            request = request._replace(length=self._note_max_bytes)
        state_bytes = request.length // self._overlay.block_size + 2
        held_bytes = state_bytes + EXTENTS_MAX_COUNT * self._extent_bytes * len(self._contexts)
        return self._on_overlay(request, partial(self._found, request, held_bytes), held_bytes)

    def _found(self, request: Request, held_bytes: int, held: Overlay) -> Reply | Later:
        work = partial(self._status_reply, request, *held.note(request.offset, request.length))
        if self._extents_may_wait:
            return self._later(request, work, Place.BASE, held_bytes)
        if not self._is_small(request):
            return self._later(request, work, Place.LONG, held_bytes)
        return work()

    def _status_reply(self, request: Request, first: int, states: bytes) -> Reply:
        """What each context says of the same states."""
        most = 1 if request.flags & FLAG_REQ_ONE else EXTENTS_MAX_COUNT
        contexts = unpack_status_request(request.payload)[1] if request.payload else self._contexts
        return [
            self._replies.block_status(
                request,
                context,
                list(itertools.islice(CONTEXTS[context](self, request, first, states), most)),
                context == contexts[-1],
            )
            for context in contexts
        ]

    def _allocation(self, request: Request, first: int, states: bytes) -> Iterator[tuple[int, int]]:
        for extent in self._overlay.extents_noted(request.offset, request.length, first, states):
            yield extent.length, ALLOCATION[extent.hole, extent.zero]

    def _depth(self, request: Request, first: int, states: bytes) -> Iterator[tuple[int, int]]:
        """Whether the overlay answers for a range, whatever it is there, or the base."""
        depths = states.translate(DEPTH_OF_STATE)
        return self._overlay.states_noted(request.offset, request.length, first, depths)

    def _state(self, request: Request, first: int, states: bytes) -> Iterator[tuple[int, int]]:
        return self._overlay.states_noted(request.offset, request.length, first, states)


def slice_failed(say: Replies, request: Request, offset: int, code: int) -> bytes:
    """What is said behind a slice that the kernel could not send whole."""
    return say.error_offset(request, nbd_errno(code), "the base could not be read", offset)


# Of each metadata context, what it says of a range whose states have been noted: lengths with their status.
CONTEXTS: dict[int, Callable[[Commands, Request, int, bytes], Iterator[tuple[int, int]]]] = {
    CONTEXT_IDS[BASE_ALLOCATION]: Commands._allocation,
    CONTEXT_IDS[ALLOCATION_DEPTH]: Commands._depth,
    CONTEXT_IDS[BLOCK_STATE]: Commands._state,
}

HANDLERS: dict[int, Callable[[Commands, Request], Reply | Later]] = {
    int(Command.READ): Commands._read,
    int(Command.WRITE): Commands._write,
    int(Command.FLUSH): Commands._flush,
    int(Command.TRIM): Commands._trim,
    int(Command.CACHE): Commands._cache,
    int(Command.WRITE_ZEROES): Commands._write_zeroes,
    int(Command.BLOCK_STATUS): Commands._block_status,
}
