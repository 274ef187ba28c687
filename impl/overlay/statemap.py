"""The state of every block: one byte each, so that blocks are independent.

With several states to a byte, requests on different blocks would race on the byte they share even though each
holds its own range lock; with a byte each, the range lock of a block is all its state needs.

The map is anonymous memory that the kernel provides page by page when it is first written: an untouched map of
any size costs no memory, and a new page is zeroes, which is NOT_ALLOCATED.

Shapes:  ranges of blocks are half open, [first, end).
Errors:  StartError when the address space is too small for the map.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from impl.errors import StartError

NOT_ALLOCATED: Final = 0
ALLOCATED: Final = 1
TRIMMED: Final = 2

FILL_CHUNK_BLOCKS = 1 << 20
RUN = re.compile(rb"\x00+|\x01+|\x02+", re.DOTALL)
_ONE = tuple(bytes([state]) for state in (NOT_ALLOCATED, ALLOCATED, TRIMMED))


class Run(NamedTuple):
    """Blocks `first` up to, not including, `end`, all in `state`."""

    first: int
    end: int
    state: int


class States(Protocol):
    """What the overlay needs of a state map."""

    def at(self, block: int) -> int: ...

    def get(self, first: int, end: int) -> bytes: ...

    def fill(self, first: int, end: int, state: int) -> None: ...


class StateMap:
    """A byte of lazily backed memory for each of `count` blocks, all NOT_ALLOCATED at first."""

    def __init__(self, count: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        try:
            self._map = mmap.mmap(-1, count, flags=flags)
        except (OSError, OverflowError) as error:
            raise StartError(
                f"no address space for the states of {count} blocks ({error}): use a larger --cow-block-size"
            ) from None
        # A huge page would back 2 MiB of map for the first block touched in it.
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            try:
                self._map.madvise(mmap.MADV_NOHUGEPAGE)
            except OSError:  # a kernel built without huge pages does not know the advice, nor need it
                return

    def at(self, block: int) -> int:
        """The state of one block."""
        return self._map[block]

    def get(self, first: int, end: int) -> bytes:
        """The states of the range, a byte each."""
        return self._map[first:end]

    def fill(self, first: int, end: int, state: int) -> None:
        """Put the whole range in `state`."""
        count = end - first
        if count == 1:
            self._map[first] = state
            return
        if count <= FILL_CHUNK_BLOCKS:
            self._map[first:end] = _ONE[state] * count
            return
        for start in range(first, end, FILL_CHUNK_BLOCKS):
            stop = min(start + FILL_CHUNK_BLOCKS, end)
            self._map[start:stop] = _ONE[state] * (stop - start)


def runs(states: bytes, first: int) -> Iterator[Run]:
    """The runs of equal states in `states`, whose first byte is that of block `first`."""
    kind = states[0]
    if states.count(kind) == len(states):
        yield Run(first, first + len(states), kind)
        return
    for match in RUN.finditer(states):
        yield Run(first + match.start(), first + match.end(), states[match.start()])
