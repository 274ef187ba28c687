"""Replies off the wire, put together and held to the rules: the client's receiving half of the transmission phase.

Source:  NBD protocol, "Simple reply message", "Structured reply chunk message", "Extended reply chunk message",
         "Structured reply flags", "Structured reply types", and each command under "Request types".
Shapes:  as RequestReader: receive into `buffer()`, say how much with `received()`, take whole replies from `next()`
         until it gives None. Data are received straight into the reply they belong to.
Units:   offsets and lengths in bytes.
Errors:  PeerError where the standard asks a client for a hard disconnect, or allows one: a reply nobody waits for, an
         unknown chunk that is no error, content outside of the request or sent twice, success without all the data,
         a malformed status, chunks without end. Every further call says so again.
Bounds:  the data of the requests in flight, one receive buffer, and one chunk of at most MAX_PAYLOAD_BYTES. Of a reply
         that is not whole, its statuses, and some numbers for each of `chunks_max` chunks.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from impl.errors import PeerError
from impl.nbd.constants import (
    EXTENDED_REPLY_MAGIC,
    MAX_EXTENTS_COUNT,
    MAX_PAYLOAD_BYTES,
    MAX_STRING_BYTES,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    ChunkType,
    Command,
    CommandFlag,
    ReplyFlag,
    is_error_chunk,
)
from impl.nbd.wire import (
    CHUNK,
    CHUNK_CONTEXT,
    CHUNK_CONTEXT_EXT,
    CHUNK_DATA,
    CHUNK_ERROR,
    CHUNK_ERROR_OFFSET,
    CHUNK_HOLE,
    DESCRIPTOR,
    DESCRIPTOR_EXT,
    EXTENDED_CHUNK,
    SIMPLE_REPLY,
    Buffer,
    unpack_descriptors,
    unpack_extended_descriptors,
)

RECEIVE_BUFFER_BYTES = 64 << 10
# Chunks of one reply: so many, and one for each piece of the data that is as short as a sector.
CHUNKS_COUNT = 1024
CHUNK_BYTES = 512
_NOTHING = memoryview(bytearray())


class Expectation(NamedTuple):
    """What a client remembers of a request while it waits for the reply.

    length:    of the range
    contexts:  of a BLOCK_STATUS, if it asked for some only
    """

    command: int
    flags: int
    offset: int
    length: int
    contexts: frozenset[int] | None = None


def chunks_max(expected: Expectation) -> int:
    """How many chunks a reply may have: the standard has no limit, and a client no memory for chunks without end."""
    return CHUNKS_COUNT + min(expected.length, MAX_PAYLOAD_BYTES) // CHUNK_BYTES


class Reply(NamedTuple):
    """The whole reply to one request."""

    cookie: int
    error: int  # as received, the first if there are several; 0 is success
    message: str
    error_offset: int | None
    data: Buffer  # of a READ: all of it if error is 0, else not to be relied on
    statuses: dict[int, list[tuple[int, int]]]  # of a BLOCK_STATUS: context to (length, flags)
    chunks: tuple[int, ...]  # types of the chunks, in order; none for a simple reply


# The shortest and longest payload of each chunk type; other error chunks are held to those of ERROR.
PAYLOAD_BYTES: dict[int, tuple[int, int]] = {
    ChunkType.NONE: (0, 0),
    ChunkType.OFFSET_DATA: (9, 8 + MAX_PAYLOAD_BYTES),
    ChunkType.OFFSET_HOLE: (CHUNK_HOLE.size, CHUNK_HOLE.size),
    # Each extent becomes objects of ten times its size, so of them there may be as many as there should be at most.
    ChunkType.BLOCK_STATUS: (
        CHUNK_CONTEXT.size + DESCRIPTOR.size,
        CHUNK_CONTEXT.size + DESCRIPTOR.size * MAX_EXTENTS_COUNT,
    ),
    ChunkType.BLOCK_STATUS_EXT: (
        CHUNK_CONTEXT_EXT.size + DESCRIPTOR_EXT.size,
        CHUNK_CONTEXT_EXT.size + DESCRIPTOR_EXT.size * MAX_EXTENTS_COUNT,
    ),
    ChunkType.ERROR: (CHUNK_ERROR.size, CHUNK_ERROR.size + MAX_PAYLOAD_BYTES),
    ChunkType.ERROR_OFFSET: (CHUNK_ERROR.size + CHUNK_ERROR_OFFSET.size, CHUNK_ERROR.size + MAX_PAYLOAD_BYTES),
}


STATUS_TYPES = (ChunkType.BLOCK_STATUS, ChunkType.BLOCK_STATUS_EXT)


@dataclass(slots=True)
class _Assembly:
    """A reply that is not whole yet."""

    cookie: int
    expected: Expectation
    data: bytearray = field(default_factory=bytearray)
    covered: list[tuple[int, int]] = field(default_factory=list)  # content so far: [start, end), sorted, never adjacent
    content_count: int = 0
    error: int = 0
    message: str = ""
    error_offset: int | None = None
    error_offsets: list[int] = field(default_factory=list)  # sorted
    statuses: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    chunks: list[int] = field(default_factory=list)

    def begin_chunk(self, chunk_type: int) -> None:
        """Another chunk, of which only the header has come."""
        if len(self.chunks) == chunks_max(self.expected):
            raise PeerError(
                f"reply of more than {len(self.chunks)} chunks to a request of {self.expected.length} bytes"
            )
        self.chunks.append(chunk_type)

    def place(self, offset: int, length: int) -> memoryview:
        """Where content goes, once it is found to be in order."""
        command, flags, base, asked, _ = self.expected
        end = offset + length
        if command != Command.READ:
            raise PeerError(f"content chunk in the reply to command {command}")
        if not length:
            raise PeerError("content chunk of no bytes")
        if offset < base or end > base + asked:
            raise PeerError(f"content [{offset}, +{length}) is outside of the request [{base}, +{asked})")
        if flags & CommandFlag.DF and self.content_count:
            raise PeerError("second content chunk, though the request forbids fragments")
        if bisect_left(self.error_offsets, offset) < bisect_left(self.error_offsets, end):
            raise PeerError(f"content [{offset}, +{length}) covers an earlier error")
        self._cover(offset, end)
        self.content_count += 1
        if not self.data:
            self.data = bytearray(asked)
        return memoryview(self.data)[offset - base : end - base]

    def _cover(self, start: int, end: int) -> None:
        covered = self.covered
        at = bisect_right(covered, (start, end))
        joins_before = joins_after = False
        if at:
            before = covered[at - 1][1]
            if before > start:
                raise PeerError(f"content at {start} was sent before")
            joins_before = before == start
        if at < len(covered):
            after = covered[at][0]
            if after < end:
                raise PeerError(f"content at {after} was sent before")
            joins_after = after == end
        first = covered[at - 1][0] if joins_before else start
        last = covered[at][1] if joins_after else end
        covered[at - joins_before : at + joins_after] = [(first, last)]

    def take_hole(self, payload: memoryview) -> None:
        """Zeroes, which the data consist of from the beginning."""
        self.place(*CHUNK_HOLE.unpack(payload))

    def take_status(self, chunk_type: int, payload: memoryview, contexts: frozenset[int]) -> None:
        """The extents of one context."""
        command, flags, _, asked, some = self.expected
        if command != Command.BLOCK_STATUS:
            raise PeerError(f"block status in the reply to command {command}")
        context, descriptors = _status_of(chunk_type, payload)
        if context not in (contexts if some is None else some):
            raise PeerError(f"block status of context {context}, negotiated are {sorted(contexts)}")
        if context in self.statuses:
            raise PeerError(f"second block status of context {context}")
        lengths = [length for length, _ in descriptors]
        if not all(lengths):
            raise PeerError("extent of no bytes")
        if flags & CommandFlag.REQ_ONE and (len(lengths) > 1 or lengths[0] > asked):
            raise PeerError(f"extents of {lengths[:2]} bytes, expected one of at most {asked}")
        if len(lengths) > 1 and sum(lengths) - lengths[-1] >= asked:
            raise PeerError(f"the last extent begins beyond the {asked} bytes asked for")
        self.statuses[context] = descriptors

    def take_error(self, chunk_type: int, payload: memoryview) -> None:
        """An error of any kind, known or not; the first one counts."""
        error, length = CHUNK_ERROR.unpack_from(payload)
        rest = payload[CHUNK_ERROR.size :]
        fixed = CHUNK_ERROR_OFFSET.size if chunk_type == ChunkType.ERROR_OFFSET else 0
        if not error:
            raise PeerError("error chunk with error 0")
        if length > len(rest) - fixed or length > MAX_STRING_BYTES:
            raise PeerError(f"error message of {length} bytes in a chunk of {len(payload)}")
        offset = None
        if fixed:
            (offset,) = CHUNK_ERROR_OFFSET.unpack_from(rest, length)
            _, _, base, asked, _ = self.expected
            if not base <= offset < base + asked:
                raise PeerError(f"error at {offset}, outside of the request [{base}, +{asked})")
            insort(self.error_offsets, offset)
        if not self.error:
            self.error, self.error_offset = error, offset
            self.message = str(rest[:length], "utf-8", "replace")

    def whole(self, contexts: frozenset[int]) -> Reply:
        """The reply, after its last chunk, if it carries all that its success claims."""
        command, _, offset, length, some = self.expected
        if some is not None:
            contexts = some
        if not self.error and command == Command.READ and length and self.covered != [(offset, offset + length)]:
            raise PeerError(f"READ of [{offset}, +{length}) succeeded without all of its data")
        if not self.error and command == Command.BLOCK_STATUS and self.statuses.keys() != contexts:
            raise PeerError(f"BLOCK_STATUS succeeded with contexts {sorted(self.statuses)} of {sorted(contexts)}")
        return Reply(
            self.cookie, self.error, self.message, self.error_offset, self.data, self.statuses, tuple(self.chunks)
        )


class _Awaited(NamedTuple):
    """What is to be done when `_target` has been filled."""

    assembly: _Assembly
    done: bool
    chunk_type: int
    payload: bytearray | None  # still to be looked at; None when it was content, received into its place


class ReplyReader:
    """One connection's replies, as they become whole."""

    def __init__(
        self,
        structured: bool,
        contexts: Collection[int],
        pending: Callable[[int], Expectation | None],
        extended: bool = False,
    ) -> None:
        """`pending` gives the request that waits under a cookie; it is asked at most once for each reply."""
        self._structured = structured
        self._take_message = self._take_extended if extended else self._take_compact
        self._status_type = ChunkType.BLOCK_STATUS_EXT if extended else ChunkType.BLOCK_STATUS
        self._contexts = frozenset(contexts)
        self._pending = pending
        self._view = memoryview(bytearray(RECEIVE_BUFFER_BYTES))
        self._start = 0
        self._end = 0
        self._assemblies: dict[int, _Assembly] = {}
        self._target = _NOTHING  # still to be filled
        self._awaited: _Awaited | None = None
        self._broken = ""

    def buffer(self) -> memoryview:
        """Where to receive into; never empty. Ask only after `next()` gave None."""
        if self._target:
            return self._target
        unparsed = self._end - self._start
        if not unparsed:
            self._start = self._end = 0
        elif self._start:
            self._view[:unparsed] = self._view[self._start : self._end]
            self._start, self._end = 0, unparsed
        assert self._end < len(self._view), "replies are waiting to be taken"
        return self._view[self._end :]

    def received(self, count: int) -> None:
        """Say that `count` bytes, more than none, were received into the start of what `buffer()` gave."""
        if self._target:
            self._target = self._target[count:]
        else:
            self._end += count

    def next(self) -> Reply | None:
        """The next reply that is whole, or None until more is received."""
        if self._broken:
            raise PeerError(self._broken)
        try:
            while True:
                if self._awaited is None and not self._take_message():
                    return None
                if self._target:
                    return None
                reply = self._finish()
                if reply is not None:
                    return reply
        except PeerError as error:
            self._broken = str(error)
            raise

    def _take_extended(self) -> bool:
        """As `_take_compact`, with extended headers, of which there is one kind."""
        start, have = self._start, self._end - self._start
        if have < EXTENDED_CHUNK.size:
            return False
        magic, flags, chunk_type, cookie, offset, length = EXTENDED_CHUNK.unpack_from(self._view, start)
        if magic != EXTENDED_REPLY_MAGIC:
            raise PeerError(f"reply magic is {magic:#x}, which was not negotiated")
        self._check_payload(chunk_type, length)
        header_size = EXTENDED_CHUNK.size
        if chunk_type == ChunkType.OFFSET_DATA:
            header_size += CHUNK_ERROR_OFFSET.size
            if have < header_size:
                return False
        assembly = self._assembly(cookie, chunk_type)
        if offset != assembly.expected.offset:
            raise PeerError(f"reply with offset {offset} to a request with offset {assembly.expected.offset}")
        self._take_chunk(assembly, start, header_size, ReplyFlag.DONE & flags, chunk_type, length)
        return True

    def _take_chunk(
        self, assembly: _Assembly, start: int, header_size: int, done: int, chunk_type: int, length: int
    ) -> None:
        """What a chunk's header at `start` brings, that of data with their offset."""
        self._start = start + header_size
        if chunk_type != ChunkType.OFFSET_DATA:
            payload = bytearray(length)
            self._await(assembly, bool(done), chunk_type, memoryview(payload), payload)
            return
        (offset,) = CHUNK_ERROR_OFFSET.unpack_from(self._view, self._start - CHUNK_ERROR_OFFSET.size)
        self._await(assembly, bool(done), chunk_type, assembly.place(offset, length - CHUNK_ERROR_OFFSET.size), None)

    def _take_compact(self) -> bool:
        """Parse one header, and note what it brings; False when it has not come yet."""
        start, have = self._start, self._end - self._start
        if have < SIMPLE_REPLY.size:
            return False
        magic, error, cookie = SIMPLE_REPLY.unpack_from(self._view, start)
        if magic == SIMPLE_REPLY_MAGIC:
            self._start = start + SIMPLE_REPLY.size
            self._take_simple(error, cookie)
            return True
        if magic != STRUCTURED_REPLY_MAGIC or not self._structured:
            raise PeerError(f"reply magic is {magic:#x}, which was not negotiated")
        if have < CHUNK.size:
            return False
        _, flags, chunk_type, cookie, length = CHUNK.unpack_from(self._view, start)
        self._check_payload(chunk_type, length)
        header_size = CHUNK_DATA.size if chunk_type == ChunkType.OFFSET_DATA else CHUNK.size
        if have < header_size:
            return False
        assembly = self._assembly(cookie, chunk_type)
        self._take_chunk(assembly, start, header_size, ReplyFlag.DONE & flags, chunk_type, length)
        return True

    def _take_simple(self, error: int, cookie: int) -> None:
        if cookie in self._assemblies:
            raise PeerError(f"simple reply amid the structured reply to cookie {cookie:#x}")
        assembly = _Assembly(cookie, self._expectation(cookie), error=error)
        command, _, offset, length, _ = assembly.expected
        target = _NOTHING
        if self._structured and command == Command.READ:
            raise PeerError("simple reply to READ, though structured replies were negotiated")
        if command == Command.READ and not error and length:
            target = assembly.place(offset, length)
        self._await(assembly, True, ChunkType.NONE, target, None)

    def _expectation(self, cookie: int) -> Expectation:
        expected = self._pending(cookie)
        if expected is None:
            raise PeerError(f"reply to cookie {cookie:#x}, which no request has")
        return expected

    def _assembly(self, cookie: int, chunk_type: int) -> _Assembly:
        assembly = self._assemblies.get(cookie)
        if assembly is None:
            assembly = self._assemblies[cookie] = _Assembly(cookie, self._expectation(cookie))
        assembly.begin_chunk(chunk_type)
        return assembly

    def _await(
        self, assembly: _Assembly, done: bool, chunk_type: int, target: memoryview, payload: bytearray | None
    ) -> None:
        """Fill the target with what is here; the rest will be received into it."""
        here = min(len(target), self._end - self._start)
        target[:here] = self._view[self._start : self._start + here]
        self._start += here
        self._target = target[here:]
        self._awaited = _Awaited(assembly, done, chunk_type, payload)

    def _finish(self) -> Reply | None:
        """Look at what has come whole; the reply, if this was the last of it."""
        assert self._awaited is not None
        assembly, done, chunk_type, payload = self._awaited
        self._awaited, self._target = None, _NOTHING
        if payload is not None:
            self._take_payload(assembly, done, chunk_type, memoryview(payload))
        if not done:
            return None
        self._assemblies.pop(assembly.cookie, None)
        return assembly.whole(self._contexts)

    def _take_payload(self, assembly: _Assembly, done: bool, chunk_type: int, payload: memoryview) -> None:
        if is_error_chunk(chunk_type):
            assembly.take_error(chunk_type, payload)
        elif chunk_type == ChunkType.OFFSET_HOLE:
            assembly.take_hole(payload)
        elif chunk_type == self._status_type:
            assembly.take_status(chunk_type, payload, self._contexts)
        elif not done:
            raise PeerError("NONE chunk that is not the last")

    def _check_payload(self, chunk_type: int, length: int) -> None:
        known = ChunkType.ERROR if is_error_chunk(chunk_type) and chunk_type not in PAYLOAD_BYTES else chunk_type
        bounds = PAYLOAD_BYTES.get(known)
        if bounds is None:
            raise PeerError(f"unknown chunk type {chunk_type}")
        if chunk_type in STATUS_TYPES and chunk_type != self._status_type:
            raise PeerError(f"chunk type {chunk_type}, expected {self._status_type} with the headers negotiated")
        shortest, longest = bounds
        if not shortest <= length <= longest:
            raise PeerError(f"chunk type {chunk_type} of {length} bytes, expected {shortest} to {longest}")


def _status_of(chunk_type: int, payload: memoryview) -> tuple[int, list[tuple[int, int]]]:
    """A context, and its extents."""
    extended = chunk_type == ChunkType.BLOCK_STATUS_EXT
    header, descriptor = (CHUNK_CONTEXT_EXT, DESCRIPTOR_EXT) if extended else (CHUNK_CONTEXT, DESCRIPTOR)
    context, *counts = header.unpack_from(payload)
    listed = payload[header.size :]
    if len(listed) % descriptor.size:
        raise PeerError(f"block status of {len(listed)} bytes, expected a multiple of {descriptor.size}")
    if counts and counts[0] * descriptor.size != len(listed):
        raise PeerError(f"block status of {counts[0]} extents in {len(listed)} bytes")
    return context, (unpack_extended_descriptors if extended else unpack_descriptors)(listed)
