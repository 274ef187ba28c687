"""What the algorithms are given, and how they cut requests at block borders.

Units:   offsets and lengths in bytes; blocks by index.
Omits:   nbdkit's own treatment of a last block that is short: it is merged there as a part, whatever is asked of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Final, NamedTuple, Protocol

NOT_ALLOCATED: Final = 0
ALLOCATED: Final = 1
TRIMMED: Final = 2
STATES_PER_BYTE: Final = 4


class Lock(Protocol):
    """Held in a `with`."""

    def __enter__(self) -> object: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Ranges(Protocol):
    """Locks over ranges of blocks, both ends included."""

    def shared(self, first: int, last: int) -> Lock: ...

    def exclusive(self, first: int, last: int) -> Lock: ...


class Map(Protocol):
    """The states of the blocks."""

    def get(self, block: int) -> int: ...

    def set(self, block: int, state: int) -> None: ...


class Store(Protocol):
    """The overlay's file."""

    def pread(self, offset: int, length: int) -> bytes: ...

    def pwrite(self, offset: int, buffers: Sequence[bytes]) -> None: ...


class Base(Protocol):
    """The disk below."""

    @property
    def size(self) -> int: ...

    def pread(self, offset: int, length: int) -> bytes: ...


class Piece(NamedTuple):
    """Bytes `start` to `end` of a block that has `length`; `at` is where they are in the request."""

    block: int
    start: int
    end: int
    length: int
    at: int

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the block."""
        return self.start == 0 and self.end == self.length


def pieces(offset: int, length: int, block_size: int, size: int) -> Iterator[Piece]:
    """A request, block by block."""
    end = offset + length
    for block in range(offset // block_size, -(-end // block_size)):
        origin = block * block_size
        start, stop = max(offset, origin), min(end, origin + block_size)
        yield Piece(block, start - origin, stop - origin, min(block_size, size - origin), start - offset)


class TwoBitMap:
    """Four states to a byte, as nbdkit keeps them: to change one is to load and to store all four."""

    def __init__(self, bytes_: Map) -> None:
        self._bytes = bytes_

    def get(self, block: int) -> int:
        """One load."""
        return self._bytes.get(block // STATES_PER_BYTE) >> block % STATES_PER_BYTE * 2 & 3

    def set(self, block: int, state: int) -> None:
        """A load and a store."""
        shift = block % STATES_PER_BYTE * 2
        old = self._bytes.get(block // STATES_PER_BYTE)
        self._bytes.set(block // STATES_PER_BYTE, old & ~(3 << shift) | state << shift)


def packed(states: Sequence[int]) -> bytes:
    """The bytes of a two-bit map."""
    found = bytearray(-(-len(states) // STATES_PER_BYTE))
    for block, state in enumerate(states):
        found[block // STATES_PER_BYTE] |= state << block % STATES_PER_BYTE * 2
    return bytes(found)


def unpacked(data: bytes, count: int) -> tuple[int, ...]:
    """The states in a two-bit map."""
    return tuple(data[block // STATES_PER_BYTE] >> block % STATES_PER_BYTE * 2 & 3 for block in range(count))
