"""Where requests are cut: the overlay's arithmetic and the model's walk agree.

Source:  `check/arithmetic.py`.
"""

from __future__ import annotations

import shutil

import pytest

from check.arithmetic import Verdict, compare, cut_by_impl, cut_by_model, meaning
from check.contracts import ROOT
from impl.overlay.blocks import block_count
from model.device import new_device

# What is broken, text of impl/overlay/blocks.py, and what it becomes.
MUTANTS = [
    (
        "the short block at the end is never whole",
        "last + 1 if end == size else end // block_size",
        "end // block_size",
    ),
    ("a range that ends on a boundary touches the next block", "last = (end - 1) //", "last = end //"),
    ("a block begun in the middle counts as whole", "-(-offset // block_size)\n    body_end", "first\n    body_end"),
    ("the block after the last is whole", "last + 1 if end == size", "last + 2 if end == size"),
    ("the body ends before it begins", "max(body_first, body_end))", "body_end)"),
    ("the tail is forgotten", "if self.last >= self.body_end else ()", "if self.last > self.body_end else ()"),
    (
        "a head is a head even of a whole block",
        "if self.first < self.body_first else ()",
        "if self.first <= self.body_first else ()",
    ),
    ("one size alone is cut wrongly", "if end == size else", "if end == size and size != 1001 else"),
]

SPLITS = [  # (offset, length, block size, size), (first, last, partial, whole)
    ((0, 1, 4, 1), (0, 0, (), (0,))),
    ((0, 1, 4, 4), (0, 0, (0,), ())),
    ((0, 4, 4, 4), (0, 0, (), (0,))),
    ((3, 2, 4, 8), (0, 1, (0, 1), ())),
    ((3, 6, 4, 12), (0, 2, (0, 2), (1,))),
    ((3, 6, 4, 9), (0, 2, (0,), (1, 2))),
    ((8, 1, 4, 9), (2, 2, (), (2,))),
    ((8, 1, 4, 10), (2, 2, (2,), ())),
]


def test_the_two_cuts_agree_on_every_path():
    comparison = compare()
    assert comparison.verdict is Verdict.AGREE, comparison


@pytest.mark.parametrize(("old", "new"), [m[1:] for m in MUTANTS], ids=[m[0] for m in MUTANTS])
def test_wrong_arithmetic_is_found(tmp_path, old, new):
    for package in ("model", "impl", "check"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / "impl" / "overlay" / "blocks.py"
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {path.name}"
    path.write_text(text.replace(old, new), encoding="utf-8")
    comparison = compare(tmp_path)
    assert comparison.verdict is Verdict.DIFFER, comparison


@pytest.mark.parametrize(("given", "expected"), SPLITS)
@pytest.mark.parametrize("cut", [cut_by_impl, cut_by_model])
def test_a_range_is_cut_into_head_whole_blocks_and_tail(cut, given, expected):
    assert cut(*given) == expected


@pytest.mark.parametrize("block_size", [1, 2, 3, 4, 5, 8, 16])
def test_the_two_cuts_agree_on_every_range_of_every_small_device(block_size):
    for size in range(1, 25):
        for offset in range(size):
            for length in range(1, size - offset + 1):
                given = (offset, length, block_size, size)
                assert cut_by_impl(*given) == cut_by_model(*given), given


def test_a_device_has_as_many_blocks_as_the_overlay_says():
    for block_size in range(1, 10):
        for size in range(1, 40):
            assert len(new_device(size, block_size).blocks) == block_count(size, block_size)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("No differences found. (attempted 92 iterations)\nAll paths exhausted, functions are", Verdict.AGREE),
        ("No differences found. (attempted 33 iterations)\nConsider increasing the", Verdict.UNDECIDED),
        ("Given: (offset=0, length=1, size=1),\n f : returns 1\n g : returns 2", Verdict.DIFFER),
        ("", Verdict.UNDECIDED),
    ],
)
def test_running_out_of_time_is_not_agreement(text, verdict):
    assert meaning(text) is verdict
