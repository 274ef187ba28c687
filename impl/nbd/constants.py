"""The numbers of the NBD protocol, by the names the standard gives them.

Source:  NBD protocol, section "Values" and its subsections; magics from "Protocol phases". Of extended headers, the
         text of the branch `extension-ext-header`, to which the standard refers.
Units:   limits end in _BYTES or _COUNT.
Omits:   the messages of the extension for resizing, which are unknown numbers here; SEND_RESIZE has its name.
"""

from __future__ import annotations

import errno
from enum import IntEnum, IntFlag

# Magics ("Newstyle negotiation", "Fixed newstyle negotiation", "Transmission").
INIT_MAGIC = 0x4E42444D41474943  # "NBDMAGIC"
OPTION_MAGIC = 0x49484156454F5054  # "IHAVEOPT"
OLDSTYLE_MAGIC = 0x00420281861253
OPTION_REPLY_MAGIC = 0x0003E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF
EXTENDED_REQUEST_MAGIC = 0x21E41C71
EXTENDED_REPLY_MAGIC = 0x6E8A278C

# Limits of the standard.
MAX_STRING_BYTES = 4096  # "Conventions"
MAX_PAYLOAD_BYTES = 32 << 20  # "Size constraints": what every implementation should accept
MAX_EXTENTS_COUNT = 1 << 20  # "Structured reply types", NBD_REPLY_TYPE_BLOCK_STATUS
BLOCK_PREFERRED_DEFAULT_BYTES = 4096  # "Size constraints"
EXPORT_NAME_ZEROES_BYTES = 124  # "Newstyle negotiation"

# Limits of ours, where the standard leaves the number to the implementation.
MAX_OPTION_DATA_BYTES = 64 << 10  # far above a GO, or a metadata query of fifteen longest strings
MAX_OPTION_COUNT = 1024  # a client that haggles longer than this is no client

UINT16_MAX = (1 << 16) - 1
UINT32_MAX = (1 << 32) - 1
UINT64_MAX = (1 << 64) - 1

# Metadata contexts that are served, by the numbers that they have here ("Metadata querying": an id "is transient").
BASE_ALLOCATION = "base:allocation"
ALLOCATION_DEPTH = "qemu:allocation-depth"  # QEMU, docs/interop/nbd.rst
BLOCK_STATE = "cowproof:state"
CONTEXT_IDS = {BASE_ALLOCATION: 1, ALLOCATION_DEPTH: 2, BLOCK_STATE: 3}


class HandshakeFlag(IntFlag):
    """Server's flags in its greeting ("Handshake flags")."""

    FIXED_NEWSTYLE = 1 << 0
    NO_ZEROES = 1 << 1


class ClientFlag(IntFlag):
    """Client's answer to the greeting ("Client flags")."""

    FIXED_NEWSTYLE = 1 << 0
    NO_ZEROES = 1 << 1


class TransmissionFlag(IntFlag):
    """What an export can do ("Transmission flags")."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    ROTATIONAL = 1 << 4
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_RESIZE = 1 << 9
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11
    BLOCK_STATUS_PAYLOAD = 1 << 12


class Option(IntEnum):
    """What a client may ask while haggling ("Option types")."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    PEEK_EXPORT = 4
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10
    EXTENDED_HEADERS = 11


_ERR = 1 << 31


class OptionReply(IntEnum):
    """What a server may answer ("Option reply types"); errors have bit 31 set."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = _ERR + 1
    ERR_POLICY = _ERR + 2
    ERR_INVALID = _ERR + 3
    ERR_PLATFORM = _ERR + 4
    ERR_TLS_REQD = _ERR + 5
    ERR_UNKNOWN = _ERR + 6
    ERR_SHUTDOWN = _ERR + 7
    ERR_BLOCK_SIZE_REQD = _ERR + 8
    ERR_TOO_BIG = _ERR + 9
    ERR_EXT_HEADER_REQD = _ERR + 10


def is_error_reply(reply: int) -> bool:
    """Whether an option reply type, known or not, is an error ("all of which are denoted by having bit 31 set")."""
    return bool(reply & _ERR)


class Info(IntEnum):
    """Kinds of information about an export ("Option reply types", NBD_REP_INFO)."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class Command(IntEnum):
    """Request types ("Request types")."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CommandFlag(IntFlag):
    """Flags of a request ("Command flags")."""

    FUA = 1 << 0
    NO_HOLE = 1 << 1
    DF = 1 << 2
    REQ_ONE = 1 << 3
    FAST_ZERO = 1 << 4
    PAYLOAD_LEN = 1 << 5


class ReplyFlag(IntFlag):
    """Flags of a structured reply chunk ("Structured reply flags")."""

    DONE = 1 << 0


_ERROR_CHUNK = 1 << 15


class ChunkType(IntEnum):
    """Structured reply types ("Structured reply types"); error chunks have bit 15 set."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    BLOCK_STATUS_EXT = 6
    ERROR = _ERROR_CHUNK + 1
    ERROR_OFFSET = _ERROR_CHUNK + 2


def is_error_chunk(chunk_type: int) -> bool:
    """Whether a chunk type, known or not, is an error chunk."""
    return bool(chunk_type & _ERROR_CHUNK)


class AllocationFlag(IntFlag):
    """Flags of an extent in the base:allocation context."""

    HOLE = 1 << 0
    ZERO = 1 << 1


class ErrorValue(IntEnum):
    """The only error numbers that may travel ("Error values")."""

    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108


_FROM_OS: dict[int, int] = {
    0: 0,
    errno.EPERM: ErrorValue.EPERM,
    errno.EACCES: ErrorValue.EPERM,
    errno.EROFS: ErrorValue.EPERM,
    errno.EIO: ErrorValue.EIO,
    errno.ENOMEM: ErrorValue.ENOMEM,
    errno.EINVAL: ErrorValue.EINVAL,
    errno.ENOSPC: ErrorValue.ENOSPC,
    errno.EDQUOT: ErrorValue.ENOSPC,
    errno.EFBIG: ErrorValue.ENOSPC,
    errno.EOVERFLOW: ErrorValue.EOVERFLOW,
    errno.ENOTSUP: ErrorValue.ENOTSUP,
    errno.EOPNOTSUPP: ErrorValue.ENOTSUP,
    errno.ESHUTDOWN: ErrorValue.ESHUTDOWN,
}


def nbd_errno(os_errno: int) -> int:
    """The error value that stands for an operating system's errno; EIO for what the standard has no word for."""
    return _FROM_OS.get(os_errno, ErrorValue.EIO)


_TO_OS: dict[int, int] = {
    ErrorValue.EPERM: errno.EPERM,
    ErrorValue.EIO: errno.EIO,
    ErrorValue.ENOMEM: errno.ENOMEM,
    ErrorValue.EINVAL: errno.EINVAL,
    ErrorValue.ENOSPC: errno.ENOSPC,
    ErrorValue.EOVERFLOW: errno.EOVERFLOW,
    ErrorValue.ENOTSUP: errno.ENOTSUP,
    ErrorValue.ESHUTDOWN: errno.ESHUTDOWN,
}


def os_errno(error: int) -> int:
    """The operating system's errno for a received error value; EINVAL for an unexpected one ("Error values")."""
    return _TO_OS.get(error, errno.EINVAL)
