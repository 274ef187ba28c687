"""One block of the overlay, and what each request does to it.

A block covers a stretch of an immutable base. Until something is stored in it, it shows the base; then it holds
bytes of its own; trimmed, it reads as zeroes and holds nothing. It never shows the base again.

Every function is one row of the table below, and one step: a block in, a block or bytes out. `base` is the base's
bytes under this block, so its length is the block's. The last block of a device may be short: for it, whole means
all the bytes it has.

    request                NOT_ALLOCATED                ALLOCATED             TRIMMED
    read                   base                         own bytes             zeroes
    read_copying           base, becomes ALLOCATED      own bytes             zeroes
    write, whole           ALLOCATED                    ALLOCATED             ALLOCATED
    write, part            ALLOCATED, rest from base    part changed          ALLOCATED, rest zeroes
    zero, whole            TRIMMED, or with no_hole ALLOCATED zeroes, from every state
    zero, part             as a write of zeroes         the same              unchanged; no_hole: ALLOCATED zeroes
    trim, whole            TRIMMED                      TRIMMED               TRIMMED
    trim, part             as a write of zeroes         the same              unchanged
    cache                  mode COW: ALLOCATED, base    unchanged             unchanged
    extents                the base's own, or data      data                  hole, zero

Source:  design notes, section 3; NBD protocol, "Request types" and "base:allocation metadata context".
Shapes:  Block.data is as long as the block if ALLOCATED, empty otherwise: equal blocks compare equal.
Units:   `start` and `end` in bytes from the start of the block, 0 <= start < end <= len(base).
Errors:  none. Whether a request has to read the base, and so fails where the base cannot be read, is said by
         `reading_needs_base`, `changing_needs_base` and `caching_needs_base`, before anything is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum

from model.extents import Extent, data


class State(IntEnum):
    """Where a block's contents come from: the base, the overlay, nowhere."""

    NOT_ALLOCATED = 0
    ALLOCATED = 1
    TRIMMED = 2


class CacheMode(Enum):
    """What a request to cache does about a block that the overlay does not hold."""

    IGNORE = "ignore"
    PASSTHROUGH = "passthrough"  # The base is told, and may do as it likes: it cannot fail.
    READ = "read"  # The base is read, the bytes are dropped.
    COW = "cow"  # The base is read, the bytes are kept.


@dataclass(frozen=True, slots=True)
class Block:
    """A state and, if ALLOCATED, the bytes the overlay holds."""

    state: State = State.NOT_ALLOCATED
    data: bytes = b""


NOT_ALLOCATED = Block()
TRIMMED = Block(State.TRIMMED)


def allocated(data: bytes) -> Block:
    """A block with these bytes of its own."""
    return Block(State.ALLOCATED, data)


def is_whole(base: bytes, start: int, end: int) -> bool:
    """Whether [start, end) leaves nothing of the block out."""
    return start == 0 and end == len(base)


def contents(block: Block, base: bytes) -> bytes:
    """All the bytes a reader of the block gets."""
    if block.state == State.NOT_ALLOCATED:
        return base
    if block.state == State.ALLOCATED:
        return block.data
    return bytes(len(base))


def read(block: Block, base: bytes, start: int, end: int) -> bytes:
    """The bytes in [start, end); the block stays as it is."""
    return contents(block, base)[start:end]


def copied_up(block: Block, base: bytes) -> Block:
    """The block with the base's bytes made its own, if it still showed the base's."""
    return allocated(base) if block.state == State.NOT_ALLOCATED else block


def read_copying(block: Block, base: bytes, start: int, end: int) -> tuple[Block, bytes]:
    """Copy-on-read: the block copied up whole, and the bytes in [start, end)."""
    return copied_up(block, base), read(block, base, start, end)


def write(block: Block, base: bytes, start: int, data: bytes) -> Block:
    """`data` from `start` on, and around it whatever the block read as before."""
    old = contents(block, base)
    return allocated(old[:start] + data + old[start + len(data) :])


def zero(block: Block, base: bytes, start: int, end: int, *, no_hole: bool = False) -> Block:
    """Zeroes in [start, end), stored only where they must be; `no_hole` is a demand for storage behind them.

    A part of a TRIMMED block is zeroes already, but has no storage: with `no_hole` the protocol says that the range
    MUST be fully provisioned, so the block is stored.
    """
    if is_whole(base, start, end):
        return allocated(bytes(len(base))) if no_hole else TRIMMED
    if block.state == State.TRIMMED and not no_hole:
        return block
    return write(block, base, start, bytes(end - start))


def zero_is_fast(block: Block, base: bytes, start: int, end: int, *, no_hole: bool = False) -> bool:
    """Whether `zero` stores no data here. Decided by the state alone, never by looking at bytes."""
    return not no_hole and (is_whole(base, start, end) or block.state == State.TRIMMED)


def trim(block: Block, base: bytes, start: int, end: int) -> Block:
    """[start, end) is not needed any more, and reads as zeroes: more than the protocol asks of a trim."""
    return zero(block, base, start, end)


def cache(block: Block, base: bytes, mode: CacheMode) -> Block:
    """The block after a request to bring it closer: its contents never change, only where they are kept may."""
    return copied_up(block, base) if mode == CacheMode.COW else block


def extents(block: Block, length: int, base_extents: tuple[Extent, ...] | None) -> tuple[Extent, ...]:
    """The status of `length` bytes of the block, of which the base says `base_extents`, or nothing (None)."""
    if block.state == State.TRIMMED:
        return (Extent(length, hole=True, zero=True),)
    if block.state == State.ALLOCATED or base_extents is None:
        return (data(length),)
    return base_extents


def reading_needs_base(block: Block) -> bool:
    """Whether `read` and `read_copying` have to read the base."""
    return block.state == State.NOT_ALLOCATED


def changing_needs_base(block: Block, base: bytes, start: int, end: int) -> bool:
    """Whether `write`, `zero` and `trim` of [start, end) have to read the base: for the bytes they leave alone."""
    return block.state == State.NOT_ALLOCATED and not is_whole(base, start, end)


def caching_needs_base(block: Block, mode: CacheMode) -> bool:
    """Whether `cache` has to read the base."""
    return block.state == State.NOT_ALLOCATED and mode in (CacheMode.READ, CacheMode.COW)
