"""Replies: what a server sends in the transmission phase.

Source:  NBD protocol, "Simple reply message", "Structured reply chunk message", "Extended reply chunk message",
         "Structured reply types", "Structured reply flags", and each command under "Request types".
Shapes:  each function returns the bytes of a whole message; those of data stop where the data begin. A server replies
         in one of three ways, `Replies`: as was agreed on.
Units:   offsets and lengths in bytes.
Errors:  none but assertions. Messages for humans are cut to the length the standard allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from impl.nbd.agreement import Agreement
from impl.nbd.constants import EXTENDED_REPLY_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, ChunkType, ReplyFlag
from impl.nbd.requests import Request
from impl.nbd.wire import (
    CHUNK,
    CHUNK_CONTEXT,
    CHUNK_CONTEXT_EXT,
    CHUNK_DATA,
    CHUNK_ERROR,
    CHUNK_ERROR_OFFSET,
    CHUNK_HOLE,
    DESCRIPTOR,
    EXTENDED_CHUNK,
    EXTENDED_CHUNK_DATA,
    SIMPLE_REPLY,
    pack_descriptors,
    pack_extended_descriptors,
    shorten,
)

# Looked up once, for these run once for each request. A data chunk's header and its offset are packed in one.
_DONE = int(ReplyFlag.DONE)
_DATA = int(ChunkType.OFFSET_DATA)
_pack_simple = SIMPLE_REPLY.pack
_pack_chunk = CHUNK.pack
_pack_data_chunk = CHUNK_DATA.pack
_pack_extended_data = EXTENDED_CHUNK_DATA.pack


def simple_reply(cookie: int, error: int = 0) -> bytes:
    """The whole reply; with no error to a READ, its data are to follow."""
    return _pack_simple(SIMPLE_REPLY_MAGIC, error, cookie)


def data_chunk_header(cookie: int, offset: int, length: int, done: bool) -> bytes:
    """What stands before `length` bytes of data that were read at `offset`."""
    assert length
    return _pack_data_chunk(STRUCTURED_REPLY_MAGIC, done, _DATA, cookie, 8 + length, offset)


def hole_chunk(cookie: int, offset: int, length: int, done: bool) -> bytes:
    """Says that `length` bytes at `offset` read as zeroes."""
    assert length
    header = _pack_chunk(STRUCTURED_REPLY_MAGIC, done, ChunkType.OFFSET_HOLE, cookie, CHUNK_HOLE.size)
    return header + CHUNK_HOLE.pack(offset, length)


def done_chunk(cookie: int) -> bytes:
    """Ends a reply, or is all of it."""
    return _pack_chunk(STRUCTURED_REPLY_MAGIC, _DONE, ChunkType.NONE, cookie, 0)


def error_chunk(cookie: int, error: int, message: str = "") -> bytes:
    """Ends a reply with an error; the message is cut to the length the standard allows."""
    assert error
    text = shorten(message)
    header = _pack_chunk(STRUCTURED_REPLY_MAGIC, _DONE, ChunkType.ERROR, cookie, CHUNK_ERROR.size + len(text))
    return header + CHUNK_ERROR.pack(error, len(text)) + text


def error_offset_chunk(cookie: int, error: int, message: str, offset: int, done: bool = True) -> bytes:
    """Says that an error occurred at `offset`, and not before it."""
    assert error
    text = shorten(message)
    length = CHUNK_ERROR.size + len(text) + CHUNK_ERROR_OFFSET.size
    header = _pack_chunk(STRUCTURED_REPLY_MAGIC, done, ChunkType.ERROR_OFFSET, cookie, length)
    return header + CHUNK_ERROR.pack(error, len(text)) + text + CHUNK_ERROR_OFFSET.pack(offset)


def block_status_chunk(cookie: int, context_id: int, descriptors: Sequence[tuple[int, int]], done: bool) -> bytes:
    """The extents of one context, (length, flags) each, from the request's offset on."""
    assert descriptors
    length = CHUNK_CONTEXT.size + DESCRIPTOR.size * len(descriptors)
    header = _pack_chunk(STRUCTURED_REPLY_MAGIC, done, ChunkType.BLOCK_STATUS, cookie, length)
    return header + CHUNK_CONTEXT.pack(context_id) + pack_descriptors(descriptors)


Extents = Sequence[tuple[int, int]]


class Replies(Protocol):
    """What a server says to a request, in the words that were agreed on."""

    def success(self, request: Request) -> bytes:
        """All is done, and there is nothing to tell of it."""

    def end(self, request: Request) -> bytes:
        """Ends a reply of chunks, or is all of one to a READ of nothing."""

    def error(self, request: Request, error: int, message: str) -> bytes:
        """No."""

    def error_offset(self, request: Request, error: int, message: str, offset: int) -> bytes:
        """An error at `offset`, which does not end the reply."""

    def data_header(self, request: Request, offset: int, length: int, done: bool) -> bytes:
        """What stands before data."""

    def hole(self, request: Request, offset: int, length: int, done: bool) -> bytes:
        """Zeroes, without them."""

    def block_status(self, request: Request, context_id: int, extents: Extents, done: bool) -> bytes:
        """The extents of one context."""


class SimpleReplies:
    """Where nothing else was agreed on. There are no chunks: data follow a success."""

    def success(self, request: Request) -> bytes:
        return simple_reply(request.cookie)

    def end(self, request: Request) -> bytes:
        return simple_reply(request.cookie)

    def error(self, request: Request, error: int, message: str) -> bytes:
        return simple_reply(request.cookie, error)

    def error_offset(self, request: Request, error: int, message: str, offset: int) -> bytes:
        raise AssertionError("a simple reply cannot say this once its data have begun")

    def data_header(self, request: Request, offset: int, length: int, done: bool) -> bytes:
        return simple_reply(request.cookie)

    def hole(self, request: Request, offset: int, length: int, done: bool) -> bytes:
        raise AssertionError("a simple reply has its zeroes")

    def block_status(self, request: Request, context_id: int, extents: Extents, done: bool) -> bytes:
        raise AssertionError("contexts need structured replies")


class StructuredReplies:
    """Chunks; a success that has nothing to tell is a simple reply, which is shorter."""

    def success(self, request: Request) -> bytes:
        return simple_reply(request.cookie)

    def end(self, request: Request) -> bytes:
        return done_chunk(request.cookie)

    def error(self, request: Request, error: int, message: str) -> bytes:
        return error_chunk(request.cookie, error, message)

    def error_offset(self, request: Request, error: int, message: str, offset: int) -> bytes:
        return error_offset_chunk(request.cookie, error, message, offset, done=False)

    def data_header(self, request: Request, offset: int, length: int, done: bool) -> bytes:
        return data_chunk_header(request.cookie, offset, length, done)

    def hole(self, request: Request, offset: int, length: int, done: bool) -> bytes:
        return hole_chunk(request.cookie, offset, length, done)

    def block_status(self, request: Request, context_id: int, extents: Extents, done: bool) -> bytes:
        return block_status_chunk(request.cookie, context_id, extents, done)


class ExtendedReplies:
    """Chunks, whose headers repeat the request's offset."""

    def success(self, request: Request) -> bytes:
        return self._chunk(request, ChunkType.NONE, b"", True)

    def end(self, request: Request) -> bytes:
        return self._chunk(request, ChunkType.NONE, b"", True)

    def error(self, request: Request, error: int, message: str) -> bytes:
        assert error
        text = shorten(message)
        return self._chunk(request, ChunkType.ERROR, CHUNK_ERROR.pack(error, len(text)) + text, True)

    def error_offset(self, request: Request, error: int, message: str, offset: int) -> bytes:
        assert error
        text = shorten(message)
        payload = CHUNK_ERROR.pack(error, len(text)) + text + CHUNK_ERROR_OFFSET.pack(offset)
        return self._chunk(request, ChunkType.ERROR_OFFSET, payload, False)

    def data_header(self, request: Request, offset: int, length: int, done: bool) -> bytes:
        assert length
        return _pack_extended_data(
            EXTENDED_REPLY_MAGIC, done, _DATA, request.cookie, request.offset, 8 + length, offset
        )

    def hole(self, request: Request, offset: int, length: int, done: bool) -> bytes:
        assert length
        return self._chunk(request, ChunkType.OFFSET_HOLE, CHUNK_HOLE.pack(offset, length), done)

    def block_status(self, request: Request, context_id: int, extents: Extents, done: bool) -> bytes:
        assert extents
        payload = CHUNK_CONTEXT_EXT.pack(context_id, len(extents)) + pack_extended_descriptors(extents)
        return self._chunk(request, ChunkType.BLOCK_STATUS_EXT, payload, done)

    def _chunk(self, request: Request, chunk_type: int, payload: bytes, done: bool) -> bytes:
        header = EXTENDED_CHUNK.pack(
            EXTENDED_REPLY_MAGIC, done, chunk_type, request.cookie, request.offset, len(payload)
        )
        return header + payload


def replies_of(agreement: Agreement) -> Replies:
    """As was agreed on."""
    if agreement.extended:
        return ExtendedReplies()
    return StructuredReplies() if agreement.structured else SimpleReplies()
