"""Bytes to blocks: which blocks a range touches, and which it covers whole.

Units:   offsets, lengths, sizes in bytes; blocks by index. The last block of a device may be short, and a range
         that reaches the end of the device covers it whole.
Errors:  none: the caller has validated 0 <= offset, 0 < length, offset + length <= size.
"""

from __future__ import annotations

from typing import NamedTuple

BLOCK_SIZE_MIN_BYTES = 4 << 10
BLOCK_SIZE_MAX_BYTES = 2 << 30


class Split(NamedTuple):
    """Blocks `first` to `last` are touched; those from `body_first` up to, not including, `body_end` are whole.

    What is left over is a head (`first`, when it comes before `body_first`) and a tail (`last`, when it is not
    before `body_end`). A range inside one block has a head or a tail, never both.
    """

    first: int
    last: int
    body_first: int
    body_end: int

    def partial(self) -> tuple[int, ...]:
        """The blocks touched and not covered: none, one or two."""
        head = (self.first,) if self.first < self.body_first else ()
        tail = (self.last,) if self.last >= self.body_end else ()
        return head + tail


def split(offset: int, length: int, block_size: int, size: int) -> Split:
    """The blocks of [offset, offset + length) on a device of `size` bytes."""
    end = offset + length
    first = offset // block_size
    last = (end - 1) // block_size
    body_first = -(-offset // block_size)
    body_end = last + 1 if end == size else end // block_size
    return Split(first, last, body_first, max(body_first, body_end))


def block_count(size: int, block_size: int) -> int:
    """How many blocks a device has, the short one included."""
    return -(-size // block_size)
