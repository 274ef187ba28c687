"""Replies: what a server sends in the transmission phase.

Source:  NBD protocol, "Simple reply message", "Structured reply chunk message", "Structured reply types",
         "Structured reply flags", and each command under "Request types".
Shapes:  each function returns the bytes of a whole message; those of data stop where the data begin.
Units:   offsets and lengths in bytes.
Errors:  none but assertions. Messages for humans are cut to the length the standard allows.
"""

from __future__ import annotations

from collections.abc import Sequence

from impl.nbd.constants import SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, ChunkType, ReplyFlag
from impl.nbd.wire import (
    CHUNK,
    CHUNK_CONTEXT,
    CHUNK_DATA,
    CHUNK_ERROR,
    CHUNK_ERROR_OFFSET,
    CHUNK_HOLE,
    DESCRIPTOR,
    SIMPLE_REPLY,
    pack_descriptors,
    shorten,
)

# Looked up once, for these run once for each request. A data chunk's header and its offset are packed in one.
_DONE = int(ReplyFlag.DONE)
_DATA = int(ChunkType.OFFSET_DATA)
_pack_simple = SIMPLE_REPLY.pack
_pack_chunk = CHUNK.pack
_pack_data_chunk = CHUNK_DATA.pack


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
