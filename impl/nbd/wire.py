"""Bytes to messages and back, for both sides of a connection; no state, no sockets.

Source:  NBD protocol, "Newstyle negotiation", "Option types", "Option reply types", "Request message",
         "Simple reply message", "Structured reply chunk message", "Structured reply types".
Shapes:  a fixed message is a `struct.Struct`; one that carries strings or lists has pack_ and unpack_ functions,
         and unpack_ takes the whole payload, no more and no less.
Errors:  unpack_ raises PeerError, with what was found and what was expected; pack_ asserts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from struct import Struct
from typing import NamedTuple

from impl.errors import PeerError
from impl.nbd.constants import (
    EXTENDED_REPLY_MAGIC,
    EXTENDED_REQUEST_MAGIC,
    INIT_MAGIC,
    MAX_STRING_BYTES,
    OPTION_MAGIC,
    OPTION_REPLY_MAGIC,
    REQUEST_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    UINT16_MAX,
    UINT32_MAX,
    Info,
)

Buffer = bytes | bytearray | memoryview

GREETING = Struct(">QQH")  # NBDMAGIC, IHAVEOPT, handshake flags
CLIENT_FLAGS = Struct(">I")
OPTION = Struct(">QII")  # magic, option, length
OPTION_REPLY = Struct(">QIII")  # magic, option, reply type, length
EXPORT_NAME_REPLY = Struct(">QH")  # size, transmission flags
REQUEST = Struct(">IHHQQI")  # magic, command flags, type, cookie, offset, length
EXTENDED_REQUEST = Struct(">IHHQQQ")  # the same, with a longer length
SIMPLE_REPLY = Struct(">IIQ")  # magic, error, cookie
CHUNK = Struct(">IHHQI")  # magic, flags, type, cookie, length
CHUNK_DATA = Struct(">IHHQIQ")  # OFFSET_DATA: the chunk's header, and the offset of the data that follow
EXTENDED_CHUNK = Struct(">IHHQQQ")  # magic, flags, type, cookie, offset of the request, length
EXTENDED_CHUNK_DATA = Struct(">IHHQQQQ")  # OFFSET_DATA: the chunk's header, and the offset of the data that follow
CHUNK_HOLE = Struct(">QI")  # OFFSET_HOLE: offset, size
CHUNK_ERROR = Struct(">IH")  # ERROR: error, length of the message that follows
CHUNK_ERROR_OFFSET = Struct(">Q")  # ERROR_OFFSET: this after the message
CHUNK_CONTEXT = Struct(">I")  # BLOCK_STATUS: context, then descriptors
DESCRIPTOR = Struct(">II")  # length, flags
CHUNK_CONTEXT_EXT = Struct(">II")  # BLOCK_STATUS_EXT: context, how many descriptors, then these
DESCRIPTOR_EXT = Struct(">QQ")  # length, flags
STATUS_REQUEST = Struct(">Q")  # payload of a BLOCK_STATUS: the range's length, then contexts

INFO_EXPORT = Struct(">QH")
INFO_BLOCK_SIZE = Struct(">III")

_UINT16 = Struct(">H")
_UINT32 = Struct(">I")


class InfoRequest(NamedTuple):
    """Payload of INFO and GO."""

    name: str
    infos: tuple[int, ...]


class MetaQuery(NamedTuple):
    """Payload of LIST_META_CONTEXT and SET_META_CONTEXT."""

    export: str
    queries: tuple[str, ...]


class MetaContext(NamedTuple):
    """Payload of a META_CONTEXT reply."""

    id: int
    name: str


class ServerEntry(NamedTuple):
    """Payload of a SERVER reply: one line of a LIST."""

    name: str
    description: str


class BlockSizes(NamedTuple):
    """Payload of INFO_BLOCK_SIZE, in bytes."""

    minimum: int
    preferred: int
    maximum: int


class InfoReply(NamedTuple):
    """Payload of an INFO reply: what kind, and its value still packed (unknown kinds are to be ignored)."""

    kind: int
    value: bytes


def text(encoded: Buffer) -> str:
    """A string off the wire, held to section "Conventions"."""
    if len(encoded) > MAX_STRING_BYTES:
        raise PeerError(f"string of {len(encoded)} bytes, at most {MAX_STRING_BYTES} allowed")
    try:
        decoded = str(encoded, "utf-8")
    except UnicodeDecodeError as error:
        raise PeerError(f"string is not UTF-8: {error.reason} at byte {error.start}") from None
    if "\0" in decoded:
        raise PeerError("string contains a NUL character")
    return decoded


def pack_text(string: str) -> bytes:
    """A string for the wire."""
    encoded = string.encode()
    assert len(encoded) <= MAX_STRING_BYTES, f"{len(encoded)} bytes"
    assert b"\0" not in encoded, string
    return encoded


def shorten(message: str) -> bytes:
    """A message for a human, cut to what a string may be, at a character."""
    encoded = message.replace("\0", "").encode("utf-8", "replace")
    return encoded[:MAX_STRING_BYTES].decode("utf-8", "ignore").encode()


class _Fields:
    """Reads a payload field by field and complains by name."""

    def __init__(self, data: Buffer) -> None:
        self._rest = memoryview(data)

    def take(self, count: int, what: str) -> memoryview:
        if count > len(self._rest):
            raise PeerError(f"{what} takes {count} bytes, but {len(self._rest)} are left")
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken

    def uint16(self, what: str) -> int:
        value: int = _UINT16.unpack(self.take(2, what))[0]
        return value

    def uint32(self, what: str) -> int:
        value: int = _UINT32.unpack(self.take(4, what))[0]
        return value

    def string(self, what: str) -> str:
        return text(self.take(self.uint32(f"length of {what}"), what))

    def rest(self) -> memoryview:
        return self.take(len(self._rest), "rest")

    def end(self) -> None:
        if len(self._rest):
            raise PeerError(f"{len(self._rest)} bytes behind the last field")


def _pack_string(string: str) -> bytes:
    encoded = pack_text(string)
    return _UINT32.pack(len(encoded)) + encoded


# Handshake.


def pack_greeting(flags: int) -> bytes:
    """The server's first words."""
    return GREETING.pack(INIT_MAGIC, OPTION_MAGIC, flags)


def pack_option(option: int, data: bytes = b"") -> bytes:
    """One option, as a client sends it."""
    assert len(data) <= UINT32_MAX
    return OPTION.pack(OPTION_MAGIC, option, len(data)) + data


def pack_option_reply(option: int, reply: int, data: bytes = b"") -> bytes:
    """One reply to an option, as a server sends it."""
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, reply, len(data)) + data


def pack_info_request(name: str, infos: Sequence[int] = ()) -> bytes:
    """Payload of INFO and GO."""
    assert len(infos) <= UINT16_MAX
    return _pack_string(name) + _UINT16.pack(len(infos)) + b"".join(map(_UINT16.pack, infos))


def unpack_info_request(data: Buffer) -> InfoRequest:
    """Payload of INFO and GO; a request made twice comes out twice."""
    fields = _Fields(data)
    name = fields.string("export name")
    count = fields.uint16("number of information requests")
    infos = tuple(fields.uint16("information request") for _ in range(count))
    fields.end()
    return InfoRequest(name, infos)


def pack_meta_query(export: str, queries: Sequence[str]) -> bytes:
    """Payload of LIST_META_CONTEXT and SET_META_CONTEXT."""
    return _pack_string(export) + _UINT32.pack(len(queries)) + b"".join(map(_pack_string, queries))


def unpack_meta_query(data: Buffer) -> MetaQuery:
    """Payload of LIST_META_CONTEXT and SET_META_CONTEXT."""
    fields = _Fields(data)
    export = fields.string("export name")
    count = fields.uint32("number of queries")
    # A false count ends at the first query that is not there, so it costs no memory.
    queries = tuple(fields.string("query") for _ in range(count))
    fields.end()
    return MetaQuery(export, queries)


def pack_server_entry(name: str, description: str) -> bytes:
    """Payload of a SERVER reply."""
    return _pack_string(name) + pack_text(description)


def unpack_server_entry(data: Buffer) -> ServerEntry:
    """Payload of a SERVER reply."""
    fields = _Fields(data)
    name = fields.string("export name")
    return ServerEntry(name, text(fields.rest()))


def pack_meta_context(context: int, name: str) -> bytes:
    """Payload of a META_CONTEXT reply."""
    return _UINT32.pack(context) + pack_text(name)


def unpack_meta_context(data: Buffer) -> MetaContext:
    """Payload of a META_CONTEXT reply."""
    fields = _Fields(data)
    return MetaContext(fields.uint32("context id"), text(fields.rest()))


def pack_info_export(size: int, flags: int) -> bytes:
    """Payload of an INFO reply that gives size and transmission flags."""
    return _UINT16.pack(Info.EXPORT) + INFO_EXPORT.pack(size, flags)


def pack_info_text(kind: int, string: str) -> bytes:
    """Payload of an INFO reply that gives a name or a description."""
    return _UINT16.pack(kind) + pack_text(string)


def pack_info_block_size(sizes: BlockSizes) -> bytes:
    """Payload of an INFO reply that gives the size constraints."""
    return _UINT16.pack(Info.BLOCK_SIZE) + INFO_BLOCK_SIZE.pack(*sizes)


def unpack_info(data: Buffer) -> InfoReply:
    """Payload of an INFO reply, its kind taken off."""
    fields = _Fields(data)
    return InfoReply(fields.uint16("information type"), bytes(fields.rest()))


def unpack_info_export(value: Buffer) -> tuple[int, int]:
    """Size and transmission flags."""
    _exactly(value, INFO_EXPORT, "NBD_INFO_EXPORT")
    size, flags = INFO_EXPORT.unpack(value)
    return size, flags


def unpack_info_block_size(value: Buffer) -> BlockSizes:
    """Size constraints, held to section "Size constraints"."""
    _exactly(value, INFO_BLOCK_SIZE, "NBD_INFO_BLOCK_SIZE")
    sizes = BlockSizes(*INFO_BLOCK_SIZE.unpack(value))
    wrong = wrong_block_sizes(sizes)
    if wrong:
        raise PeerError(wrong)
    return sizes


def wrong_block_sizes(sizes: BlockSizes) -> str:
    """What section "Size constraints" has against these; "" when nothing."""
    minimum, preferred, maximum = sizes
    if not _is_power_of_two(minimum) or minimum > 1 << 16:
        return f"minimum block size is {minimum}, expected a power of two up to 65536"
    if not _is_power_of_two(preferred) or preferred < max(minimum, 512):
        return f"preferred block size is {preferred}, expected a power of two from {max(minimum, 512)}"
    if maximum < preferred:
        return f"maximum payload size is {maximum}, expected at least the preferred block size {preferred}"
    return ""


def _is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


def _exactly(value: Buffer, layout: Struct, what: str) -> None:
    if len(value) != layout.size:
        raise PeerError(f"{what} carries {len(value)} bytes, expected {layout.size}")


# Transmission.


def pack_request(command: int, flags: int, cookie: int, offset: int, length: int) -> bytes:
    """The header of a request, as a client sends it; a WRITE is followed by its payload."""
    return REQUEST.pack(REQUEST_MAGIC, flags, command, cookie, offset, length)


def pack_extended_request(command: int, flags: int, cookie: int, offset: int, length: int) -> bytes:
    """The same with extended headers; with PAYLOAD_LEN, `length` is that of the payload behind it."""
    return EXTENDED_REQUEST.pack(EXTENDED_REQUEST_MAGIC, flags, command, cookie, offset, length)


def pack_status_request(length: int, contexts: Sequence[int]) -> bytes:
    """Payload of a BLOCK_STATUS: the range's length, and the contexts that are asked for."""
    return STATUS_REQUEST.pack(length) + Struct(f">{len(contexts)}I").pack(*contexts)


def unpack_status_request(data: Buffer) -> tuple[int, tuple[int, ...]]:
    """Payload of a BLOCK_STATUS."""
    fields = memoryview(data)
    if len(fields) < STATUS_REQUEST.size or (len(fields) - STATUS_REQUEST.size) % _UINT32.size:
        raise PeerError(f"BLOCK_STATUS with a payload of {len(fields)} bytes, expected 8 and 4 for each context")
    (length,) = STATUS_REQUEST.unpack_from(fields)
    return length, tuple(context for (context,) in _UINT32.iter_unpack(fields[STATUS_REQUEST.size :]))


class ChunkHeader(NamedTuple):
    """The header of a reply's chunk, whichever kind was negotiated."""

    chunk_type: int
    length: int
    size: int  # of the header itself


def unpack_chunk_header(data: Buffer) -> ChunkHeader | None:
    """Of the first bytes of a reply; None of a simple one."""
    (magic,) = _UINT32.unpack_from(data)
    if magic == EXTENDED_REPLY_MAGIC:
        _, _, chunk_type, _, _, length = EXTENDED_CHUNK.unpack_from(data)
        return ChunkHeader(chunk_type, length, EXTENDED_CHUNK.size)
    if magic == STRUCTURED_REPLY_MAGIC:
        _, _, chunk_type, _, length = CHUNK.unpack_from(data)
        return ChunkHeader(chunk_type, length, CHUNK.size)
    return None


def pack_extended_descriptors(descriptors: Iterable[tuple[int, int]]) -> bytes:
    """The same with extended headers."""
    numbers = [number for descriptor in descriptors for number in descriptor]
    return Struct(f">{len(numbers)}Q").pack(*numbers)


def unpack_extended_descriptors(data: Buffer) -> list[tuple[int, int]]:
    """The same with extended headers."""
    return [(length, flags) for length, flags in DESCRIPTOR_EXT.iter_unpack(data)]


def pack_descriptors(descriptors: Iterable[tuple[int, int]]) -> bytes:
    """Block status descriptors, (length, flags) each."""
    numbers = [number for descriptor in descriptors for number in descriptor]
    return Struct(f">{len(numbers)}I").pack(*numbers)


def unpack_descriptors(data: Buffer) -> list[tuple[int, int]]:
    """Block status descriptors, (length, flags) each; `data` is a whole number of them."""
    return [(length, flags) for length, flags in DESCRIPTOR.iter_unpack(data)]
