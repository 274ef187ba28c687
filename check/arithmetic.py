"""Two ways to cut ranges at block boundaries, held against each other on every path.

The overlay computes which blocks a range touches and covers, what it leaves of them, and which part of it lies in
which of them, by divisions; the model walks from boundary to boundary. CrossHair's `diffbehavior` compares them:
exhausted means there is no range of at most LENGTH_MAX_BYTES in blocks of BLOCK_SIZE_BYTES, anywhere on a device of
any size, of which they say different things.

    python -m check.arithmetic

Source:  all of `impl.overlay.blocks`, and `model.device.pieces`.
Shapes:  for each of COMPARISONS two functions, `..._by_impl` and `..._by_model`, and the same within the bounds.
Units:   bytes; blocks by index.
Errors:  `compare` gives a Verdict; only AGREE is agreement. The exit status of the tool says nothing: it is 0 too
         when time runs out, so its text is read.
Omits:   longer ranges and other blocks, which an ordinary test counts through.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from check.contracts import ATTEMPTS_MAX, LIMITS, ROOT, crosshair
from impl.overlay import blocks
from model import device

BLOCK_SIZE_BYTES = 4
LENGTH_MAX_BYTES = 12  # Three whole blocks, or two with a head and a tail: a fourth would say nothing new.


class Cut(NamedTuple):
    """Blocks `first` to `last` are touched: `whole` are covered, of `partial` the bytes before and after are left."""

    first: int
    last: int
    partial: tuple[int, ...]
    whole: tuple[int, ...]
    before: int
    after: int
    covers_whole_blocks: bool


def range_by_impl(offset: int, length: int, block_size: int, size: int) -> Cut:
    """What the overlay makes of a range."""
    split = blocks.split(offset, length, block_size, size)
    touched = blocks.touched(offset, length, block_size)
    first, last, before, after = blocks.edges(offset, length, block_size, size)
    assert touched == (first, last) == (split.first, split.last)
    whole = tuple(range(split.body_first, split.body_end))
    covers = blocks.covers_whole_blocks(offset, length, block_size, size)
    assert blocks.is_aligned(offset, length, block_size) == (covers and length == len(whole) * block_size)
    return Cut(first, last, split.partial(), whole, before, after, covers)


def range_by_model(offset: int, length: int, block_size: int, size: int) -> Cut:
    """What the model's walk says of it."""
    touched: list[int] = []
    partial: list[int] = []
    whole: list[int] = []
    before = after = 0
    for piece in device.pieces(offset, length, block_size):
        if not touched:
            before = piece.start
        touched.append(piece.index)
        block_length = min(block_size, size - piece.index * block_size)
        after = block_length - piece.end
        (whole if piece.end - piece.start == block_length else partial).append(piece.index)
    return Cut(touched[0], touched[-1], tuple(partial), tuple(whole), before, after, not partial)


# Where a part of a range begins, and its length; None if it has none there.
Part = tuple[int, int] | None


def part_by_impl(offset: int, length: int, first: int, end: int, block_size: int) -> Part:
    """The part of a range in blocks `first` to `end`, as the overlay computes it."""
    start, part_length = blocks.part_in(offset, length, first, end, block_size)
    return (start, part_length) if part_length > 0 else None


def part_by_model(offset: int, length: int, first: int, end: int, block_size: int) -> Part:
    """The same, of the pieces that the model's walk gives."""
    start, part_length = -1, 0
    for piece in device.pieces(offset, length, block_size):
        if first <= piece.index < end:
            if start < 0:
                start = piece.index * block_size + piece.start
            part_length += piece.end - piece.start
    return (start, part_length) if part_length > 0 else None


# Where each block ends.
Ends = tuple[int, ...]


def ends_by_impl(block_size: int, size: int) -> Ends:
    """As many blocks as the overlay says that there are, and where it says that each ends."""
    return tuple(blocks.end_of(block, block_size, size) for block in range(blocks.block_count(size, block_size)))


def ends_by_model(block_size: int, size: int) -> Ends:
    """The same, of a walk through the whole device."""
    return tuple(piece.index * block_size + piece.end for piece in device.pieces(0, size, block_size))


# The same within the bounds, and None outside: what the tool is given.


def bounded_range_by_impl(offset: int, length: int, size: int) -> Cut | None:
    """`range_by_impl`."""
    if not (offset >= 0 and 1 <= length <= LENGTH_MAX_BYTES and offset + length <= size):
        return None
    return range_by_impl(offset, length, BLOCK_SIZE_BYTES, size)


def bounded_range_by_model(offset: int, length: int, size: int) -> Cut | None:
    """`range_by_model`."""
    if not (offset >= 0 and 1 <= length <= LENGTH_MAX_BYTES and offset + length <= size):
        return None
    return range_by_model(offset, length, BLOCK_SIZE_BYTES, size)


def bounded_part_by_impl(offset: int, length: int, first: int, end: int) -> Part:
    """`part_by_impl`."""
    if not (offset >= 0 and 1 <= length <= LENGTH_MAX_BYTES and 0 <= first < end):
        return None
    return part_by_impl(offset, length, first, end, BLOCK_SIZE_BYTES)


def bounded_part_by_model(offset: int, length: int, first: int, end: int) -> Part:
    """`part_by_model`."""
    if not (offset >= 0 and 1 <= length <= LENGTH_MAX_BYTES and 0 <= first < end):
        return None
    return part_by_model(offset, length, first, end, BLOCK_SIZE_BYTES)


def bounded_ends_by_impl(size: int) -> Ends | None:
    """`ends_by_impl`."""
    if not 1 <= size <= LENGTH_MAX_BYTES:
        return None
    return ends_by_impl(BLOCK_SIZE_BYTES, size)


def bounded_ends_by_model(size: int) -> Ends | None:
    """`ends_by_model`."""
    if not 1 <= size <= LENGTH_MAX_BYTES:
        return None
    return ends_by_model(BLOCK_SIZE_BYTES, size)


COMPARISONS = ("range", "part", "ends")


class Verdict(Enum):
    """What the comparison found out."""

    AGREE = "agree on every path"
    DIFFER = "differ"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Comparison:
    """The verdict, and the tool's own words."""

    verdict: Verdict
    text: str


def meaning(text: str) -> Verdict:
    """The verdict in the tool's words."""
    if "All paths exhausted" in text and "No differences found" in text:
        return Verdict.AGREE
    return Verdict.DIFFER if "Given: " in text else Verdict.UNDECIDED


def compare(name: str, root: Path = ROOT) -> Comparison:
    """Hold the two bounded functions of one comparison, under `root`, against each other; try twice for an answer."""
    for _ in range(ATTEMPTS_MAX):
        text = crosshair(
            [
                "diffbehavior",
                "--exception_equivalence",
                "SAME_TYPE",
                *LIMITS,
                f"check.arithmetic.bounded_{name}_by_impl",
                f"check.arithmetic.bounded_{name}_by_model",
            ],
            root,
        )
        if meaning(text) is not Verdict.UNDECIDED:
            break
    return Comparison(meaning(text), text)


def main() -> int:
    """Print what was found; exit status 0 only for agreement."""
    agree = True
    for name in COMPARISONS:
        comparison = compare(name)
        print(f"{name}: the overlay and the model {comparison.verdict.value}")
        if comparison.verdict is not Verdict.AGREE:
            agree = False
            print(comparison.text)
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
