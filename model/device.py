"""The device a client talks to: state and request in, state and reply out.

`apply` is the sequential specification that all else is judged against. A request takes effect as a whole or, if
the reply is Failed, not at all; how many threads, locks and system calls it takes elsewhere is nobody's business
here. What one block does is in `block.py`; this module cuts a request at the block boundaries, refuses what cannot
be done, and puts the pieces together.

Source:  NBD protocol, "Request types", "Error values"; design notes, sections 1 and 3.
Shapes:  Device.blocks has one Block for each block_size bytes of the base, the last one perhaps for fewer.
Units:   offset, length, size and block_size in bytes; blocks by index from 0.
Errors:  a request that cannot be done is answered Failed(kind), and changes nothing; ERRNO says what the wire says.
         Kinds come in this order: the device is read-only, the range is not on it, a fast zero would be slow, the
         base cannot be read.
Omits:   failures of the overlay's own storage, which no state of the device foretells: see `failures.py`. A flush
         and FUA do nothing here: to a client without a crash, done is done.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto

from model import block as one
from model.block import Block, CacheMode
from model.extents import Extent, clip, coalesce

# Requests.


@dataclass(frozen=True, slots=True)
class Read:
    """Give me the bytes of a range."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Write:
    """Put these bytes there; with `fua`, on storage before the reply."""

    offset: int
    data: bytes
    fua: bool = False

    @property
    def length(self) -> int:
        """Bytes written."""
        return len(self.data)


@dataclass(frozen=True, slots=True)
class Zero:
    """Make the range read as zeroes; with `no_hole`, have storage behind it; with `fast`, only if that is quick."""

    offset: int
    length: int
    no_hole: bool = False
    fast: bool = False


@dataclass(frozen=True, slots=True)
class Trim:
    """The range is not needed any more."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Cache:
    """The range will be needed soon."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Status:
    """Tell me which parts of the range are holes and which are zeroes."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Flush:
    """What has been replied to must be on storage."""


Request = Read | Write | Zero | Trim | Cache | Status | Flush

# Replies.


class Error(Enum):
    """Why a request was not done."""

    READ_ONLY = auto()
    OUT_OF_RANGE = auto()
    NO_SPACE_BEYOND_END = auto()
    EMPTY_STATUS = auto()
    NOT_FAST = auto()
    BASE_UNREADABLE = auto()


ERRNO = {
    Error.READ_ONLY: errno.EPERM,
    Error.OUT_OF_RANGE: errno.EINVAL,
    Error.NO_SPACE_BEYOND_END: errno.ENOSPC,  # "write" and "write zeroes" beyond the end SHOULD say so.
    Error.EMPTY_STATUS: errno.EINVAL,
    Error.NOT_FAST: errno.ENOTSUP,
    Error.BASE_UNREADABLE: errno.EIO,
}


@dataclass(frozen=True, slots=True)
class Data:
    """The bytes asked for."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Done:
    """It has happened."""


@dataclass(frozen=True, slots=True)
class Extents:
    """The status of the range, exactly: neighbours differ."""

    extents: tuple[Extent, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """Nothing has happened."""

    error: Error


Reply = Data | Done | Extents | Failed

# The device.


@dataclass(frozen=True, slots=True)
class Device:
    """An overlay of `blocks` on `base`; all but `blocks` is fixed when it is made."""

    size: int
    block_size: int
    base: bytes
    blocks: tuple[Block, ...]
    bad: frozenset[int] = frozenset()  # Blocks whose base cannot be read. The base's bytes there are never seen.
    copy_on_read: bool = False
    cache_mode: CacheMode = CacheMode.IGNORE
    read_only: bool = False
    base_extents: tuple[Extent, ...] | None = None  # What the base says of its own bytes, if it knows.


def new_device(
    size: int,
    block_size: int,
    base: bytes | None = None,
    *,
    bad: frozenset[int] = frozenset(),
    copy_on_read: bool = False,
    cache_mode: CacheMode = CacheMode.IGNORE,
    read_only: bool = False,
    base_extents: tuple[Extent, ...] | None = None,
) -> Device:
    """A device nobody has written to, over `base` or, left out, over bytes none of which is zero."""
    if base is None:
        base = bytes(1 + index % 251 for index in range(size))
    assert size >= 1, size
    assert block_size >= 1, block_size
    assert len(base) == size, (len(base), size)
    assert base_extents is None or sum(extent.length for extent in base_extents) == size, base_extents
    blocks = (one.NOT_ALLOCATED,) * -(-size // block_size)
    return Device(size, block_size, base, blocks, bad, copy_on_read, cache_mode, read_only, base_extents)


def base_of(device: Device, index: int) -> bytes:
    """The base's bytes under one block: as many as the block has."""
    return device.base[index * device.block_size : (index + 1) * device.block_size]


def contents(device: Device) -> bytes:
    """What a client would read, all of it, if every block of the base could be read."""
    return b"".join(one.contents(block, base_of(device, index)) for index, block in enumerate(device.blocks))


@dataclass(frozen=True, slots=True)
class Piece:
    """The bytes from `start` to `end` of the block `index`."""

    index: int
    start: int
    end: int


def pieces(offset: int, length: int, block_size: int) -> Iterator[Piece]:
    """[offset, offset + length) cut at the block boundaries, in order: a head, whole blocks, a tail."""
    position = offset
    while position < offset + length:
        index = position // block_size
        origin = index * block_size
        stop = min(offset + length, origin + block_size)
        yield Piece(index, position - origin, stop - origin)
        position = stop


def refusal(device: Device, request: Request) -> Error | None:
    """Why the device, as it is, cannot do the request; None if it can."""
    if isinstance(request, Flush):
        return None
    assert request.offset >= 0, request
    assert request.length >= 0, request
    if device.read_only and isinstance(request, Write | Zero | Trim):
        return Error.READ_ONLY
    if request.offset + request.length > device.size:
        return Error.NO_SPACE_BEYOND_END if isinstance(request, Write | Zero) else Error.OUT_OF_RANGE
    if isinstance(request, Status):
        return Error.EMPTY_STATUS if request.length == 0 else None
    cut = list(pieces(request.offset, request.length, device.block_size))
    if isinstance(request, Zero) and request.fast and not all(_is_fast(device, request, piece) for piece in cut):
        return Error.NOT_FAST
    if any(piece.index in device.bad and _needs_base(device, request, piece) for piece in cut):
        return Error.BASE_UNREADABLE
    return None


def _is_fast(device: Device, request: Zero, piece: Piece) -> bool:
    """Whether one piece of the zeroes needs no data written."""
    block, base = device.blocks[piece.index], base_of(device, piece.index)
    return one.zero_is_fast(block, base, piece.start, piece.end, no_hole=request.no_hole)


def _needs_base(device: Device, request: Read | Write | Zero | Trim | Cache, piece: Piece) -> bool:
    """Whether the request has to read the base under one piece of it."""
    block = device.blocks[piece.index]
    if isinstance(request, Read):
        return one.reading_needs_base(block)
    if isinstance(request, Cache):
        return one.caching_needs_base(block, device.cache_mode)
    return one.changing_needs_base(block, base_of(device, piece.index), piece.start, piece.end)


def apply(device: Device, request: Request) -> tuple[Device, Reply]:
    """One request, done at one instant, or refused."""
    error = refusal(device, request)
    if error is not None:
        return device, Failed(error)
    if isinstance(request, Read):
        return _read(device, request)
    if isinstance(request, Status):
        return device, Extents(_status(device, request.offset, request.length))
    if isinstance(request, Flush):
        return device, Done()
    cut = list(pieces(request.offset, request.length, device.block_size))
    return _with_blocks(device, cut, [_change(device, request, piece) for piece in cut]), Done()


def _read(device: Device, request: Read) -> tuple[Device, Reply]:
    """The bytes of the range, and the device with what was read copied up, if it is a device that does that."""
    cut = list(pieces(request.offset, request.length, device.block_size))
    seen = [_seen(device, piece) for piece in cut]
    return _with_blocks(device, cut, [block for block, _ in seen]), Data(b"".join(data for _, data in seen))


def _seen(device: Device, piece: Piece) -> tuple[Block, bytes]:
    """What becomes of a block that is read, and what is read of it."""
    block, base = device.blocks[piece.index], base_of(device, piece.index)
    if device.copy_on_read:
        return one.read_copying(block, base, piece.start, piece.end)
    return block, one.read(block, base, piece.start, piece.end)


def _status(device: Device, offset: int, length: int) -> tuple[Extent, ...]:
    """The status of the range, equal neighbours joined across blocks."""
    found: list[Extent] = []
    for piece in pieces(offset, length, device.block_size):
        block, origin = device.blocks[piece.index], piece.index * device.block_size
        known = device.base_extents if block.state == one.State.NOT_ALLOCATED else None
        said = None if known is None else clip(known, origin + piece.start, origin + piece.end)
        found.extend(one.extents(block, piece.end - piece.start, said))
    return coalesce(found)


def _change(device: Device, request: Write | Zero | Trim | Cache, piece: Piece) -> Block:
    """What becomes of the block that the piece is of: the row of the table that the request stands for."""
    start, end = piece.start, piece.end
    block, base = device.blocks[piece.index], base_of(device, piece.index)
    if isinstance(request, Write):
        at = piece.index * device.block_size + start - request.offset
        return one.write(block, base, start, request.data[at : at + end - start])
    if isinstance(request, Zero):
        return one.zero(block, base, start, end, no_hole=request.no_hole)
    if isinstance(request, Trim):
        return one.trim(block, base, start, end)
    return one.cache(block, base, device.cache_mode)


def _with_blocks(device: Device, cut: list[Piece], changed: list[Block]) -> Device:
    """The device with the blocks of the pieces, which follow each other, replaced, and no other."""
    if not cut:
        return device
    first, last = cut[0].index, cut[-1].index
    return replace(device, blocks=device.blocks[:first] + tuple(changed) + device.blocks[last + 1 :])
