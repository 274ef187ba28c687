"""Two ways to cut a range at block boundaries, held against each other on every path.

The overlay computes the first and last block and the whole ones between with four divisions; the model walks from
boundary to boundary. CrossHair's `diffbehavior` compares them: exhausted means there is no range of at most
LENGTH_MAX_BYTES in blocks of BLOCK_SIZE_BYTES, anywhere on a device of any size, of which they say different things.

    python -m check.arithmetic

Source:  `impl.overlay.blocks.split` and `model.device.pieces`.
Shapes:  both sides say Cut: blocks first to last are touched, `whole` are covered, `partial` are touched only.
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

from check.contracts import ATTEMPTS_MAX, LIMITS, ROOT, crosshair
from impl.overlay import blocks
from model import device

BLOCK_SIZE_BYTES = 4
LENGTH_MAX_BYTES = 12  # Three whole blocks, or two with a head and a tail: a fourth would say nothing new.

# first, last, partial, whole.
Cut = tuple[int, int, tuple[int, ...], tuple[int, ...]]


def cut_by_impl(offset: int, length: int, block_size: int, size: int) -> Cut:
    """The overlay's arithmetic."""
    split = blocks.split(offset, length, block_size, size)
    return split.first, split.last, split.partial(), tuple(range(split.body_first, split.body_end))


def cut_by_model(offset: int, length: int, block_size: int, size: int) -> Cut:
    """The model's walk."""
    touched: list[int] = []
    partial: list[int] = []
    whole: list[int] = []
    for piece in device.pieces(offset, length, block_size):
        touched.append(piece.index)
        block_length = min(block_size, size - piece.index * block_size)
        (whole if piece.end - piece.start == block_length else partial).append(piece.index)
    return touched[0], touched[-1], tuple(partial), tuple(whole)


def bounded_by_impl(offset: int, length: int, size: int) -> Cut | None:
    """`cut_by_impl` within the bounds, None outside."""
    if not (offset >= 0 and 1 <= length <= LENGTH_MAX_BYTES and offset + length <= size):
        return None
    return cut_by_impl(offset, length, BLOCK_SIZE_BYTES, size)


def bounded_by_model(offset: int, length: int, size: int) -> Cut | None:
    """`cut_by_model` within the bounds, None outside."""
    if not (offset >= 0 and 1 <= length <= LENGTH_MAX_BYTES and offset + length <= size):
        return None
    return cut_by_model(offset, length, BLOCK_SIZE_BYTES, size)


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


def compare(root: Path = ROOT) -> Comparison:
    """Hold the two bounded functions of this module, under `root`, against each other; try twice for an answer."""
    for _ in range(ATTEMPTS_MAX):
        text = crosshair(
            [
                "diffbehavior",
                "--exception_equivalence",
                "SAME_TYPE",
                *LIMITS,
                "check.arithmetic.bounded_by_impl",
                "check.arithmetic.bounded_by_model",
            ],
            root,
        )
        if meaning(text) is not Verdict.UNDECIDED:
            break
    return Comparison(meaning(text), text)


def main() -> int:
    """Print what was found; exit status 0 only for agreement."""
    comparison = compare()
    print(f"impl.overlay.blocks.split and model.device.pieces: {comparison.verdict.value}")
    if comparison.verdict is not Verdict.AGREE:
        print(comparison.text)
    return 0 if comparison.verdict is Verdict.AGREE else 1


if __name__ == "__main__":
    sys.exit(main())
