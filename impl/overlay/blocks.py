"""Bytes to blocks, and back: which blocks a range touches, which it covers whole, and what it leaves of the others.

All of the overlay's arithmetic is here, so that all of it can be compared with the model's; the overlay itself only
multiplies by the block size. What is on the way of every request returns plain tuples, which are made faster.

Units:   offsets, lengths, sizes in bytes; blocks by index. The last block of a device may be short, and a range
         that reaches the end of the device covers it whole.
Errors:  none: the caller has validated 0 <= offset, 0 < length, offset + length <= size.
"""

from __future__ import annotations

from typing import NamedTuple

BLOCK_SIZE_MIN_BYTES = 4 << 10
BLOCK_SIZE_MAX_BYTES = 2 << 30


def touched(offset: int, length: int, block_size: int) -> tuple[int, int]:
    """The first and the last block of which [offset, offset + length) has a byte."""
    return offset // block_size, (offset + length - 1) // block_size


def edges(offset: int, length: int, block_size: int, size: int) -> tuple[int, int, int, int]:
    """The first and the last block touched, and how many bytes before the range and after it are left of them."""
    end = offset + length
    first = offset // block_size
    last = (end - 1) // block_size
    block_end = (last + 1) * block_size
    return first, last, offset - first * block_size, (size if block_end > size else block_end) - end


def is_aligned(offset: int, length: int, block_size: int) -> bool:
    """Whether the range consists of whole blocks, none of them short: by far the most frequent."""
    return not offset % block_size and not length % block_size


def covers_whole_blocks(offset: int, length: int, block_size: int, size: int) -> bool:
    """Whether the range leaves nothing of the blocks that it touches."""
    end = offset + length
    return not offset % block_size and (not end % block_size or end == size)


def part_in(offset: int, length: int, first: int, end: int, block_size: int) -> tuple[int, int]:
    """Where the part of a range that lies in blocks `first` up to, not including, `end` begins, and its length."""
    start = max(offset, first * block_size)
    return start, min(offset + length, end * block_size) - start


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
    first, last = touched(offset, length, block_size)
    body_first = -(-offset // block_size)
    body_end = last + 1 if end == size else end // block_size
    return Split(first, last, body_first, max(body_first, body_end))


def block_count(size: int, block_size: int) -> int:
    """How many blocks a device has, the short one included."""
    return -(-size // block_size)


def end_of(block: int, block_size: int, size: int) -> int:
    """The offset just past a block; the device's last one may be short."""
    return min((block + 1) * block_size, size)
