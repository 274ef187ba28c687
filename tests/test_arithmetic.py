"""Where requests are cut: the overlay's arithmetic and the model's walk agree.

Source:  `check/arithmetic.py`.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import shutil

import pytest

from check import arithmetic
from check.arithmetic import (
    COMPARISONS,
    Verdict,
    compare,
    ends_by_impl,
    ends_by_model,
    meaning,
    part_by_impl,
    part_by_model,
    range_by_impl,
    range_by_model,
)
from check.contracts import ROOT
from impl.overlay import blocks, overlay
from impl.overlay.blocks import block_count
from model.device import new_device

# What is broken, the comparison that must notice, text of impl/overlay/blocks.py, and what it becomes.
MUTANTS = [
    (
        "the short block at the end is never whole",
        "range",
        "last + 1 if end == size else end // block_size",
        "end // block_size",
    ),
    (
        "a range that ends on a boundary touches the next block",
        "range",
        "return offset // block_size, (offset + length - 1) // block_size",
        "return offset // block_size, (offset + length) // block_size",
    ),
    (
        "a range touches no block before the first boundary in it",
        "range",
        "return offset // block_size, (offset",
        "return -(-offset // block_size), (offset",
    ),
    (
        "a block begun in the middle counts as whole",
        "range",
        "-(-offset // block_size)\n    body_end",
        "first\n    body_end",
    ),
    (
        "a range that begins in the middle is aligned",
        "range",
        "return not offset % block_size and not length % block_size",
        "return not length % block_size",
    ),
    (
        "a range that ends in the middle is aligned",
        "range",
        "return not offset % block_size and not length % block_size",
        "return not offset % block_size",
    ),
    ("the block after the last is whole", "range", "last + 1 if end == size", "last + 2 if end == size"),
    ("the body ends before it begins", "range", "max(body_first, body_end))", "body_end)"),
    ("the tail is forgotten", "range", "if self.last >= self.body_end else ()", "if self.last > self.body_end else ()"),
    (
        "a head is a head even of a whole block",
        "range",
        "if self.first < self.body_first else ()",
        "if self.first <= self.body_first else ()",
    ),
    ("one size alone is cut wrongly", "range", "if end == size else", "if end == size and size != 1001 else"),
    (
        "a write that ends on a boundary has a block more",
        "range",
        "    last = (end - 1) // block_size\n    block_end",
        "    last = end // block_size\n    block_end",
    ),
    (
        "what is left before a write is counted from its end",
        "range",
        "offset - first * block_size, (size",
        "end - first * block_size, (size",
    ),
    (
        "more is left after a write than the device has",
        "range",
        "(size if block_end > size else block_end) - end",
        "block_end - end",
    ),
    (
        "a byte is left after a write up to the end",
        "range",
        "(size if block_end > size else block_end) - end",
        "(size if block_end >= size + 1 else block_end) - min(end, size - 1)",
    ),
    ("a range that begins on a boundary covers whole blocks", "range", "and (not end % block_size or", "and (True or"),
    ("the short block is never covered", "range", "(not end % block_size or end == size)", "(not end % block_size)"),
    ("a part begins where its block does", "part", "max(offset, first * block_size)", "first * block_size"),
    ("a part ends where its range does", "part", "min(offset + length, end * block_size)", "offset + length"),
    ("a part ends a block late", "part", "end * block_size) - start", "(end + 1) * block_size) - start"),
    (
        "a device has a block more than whole ones",
        "ends",
        "return -(-size // block_size)",
        "return size // block_size + 1",
    ),
    (
        "the last block is as long as the others",
        "ends",
        "min((block + 1) * block_size, size)",
        "(block + 1) * block_size",
    ),
]

SPLITS = [  # (offset, length, block size, size), (first, last, partial, whole, before, after, covers whole blocks)
    ((0, 1, 4, 1), (0, 0, (), (0,), 0, 0, True)),
    ((0, 1, 4, 4), (0, 0, (0,), (), 0, 3, False)),
    ((0, 4, 4, 4), (0, 0, (), (0,), 0, 0, True)),
    ((3, 2, 4, 8), (0, 1, (0, 1), (), 3, 3, False)),
    ((3, 6, 4, 12), (0, 2, (0, 2), (1,), 3, 3, False)),
    ((3, 6, 4, 9), (0, 2, (0,), (1, 2), 3, 0, False)),
    ((8, 1, 4, 9), (2, 2, (), (2,), 0, 0, True)),
    ((8, 1, 4, 10), (2, 2, (2,), (), 0, 1, False)),
]


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_overlay_and_model_agree_on_every_path(comparison):
    found = compare(comparison)
    assert found.verdict is Verdict.AGREE, found


@pytest.mark.parametrize(("comparison", "old", "new"), [m[1:] for m in MUTANTS], ids=[m[0] for m in MUTANTS])
def test_wrong_arithmetic_is_found(tmp_path, comparison, old, new):
    for package in ("model", "impl", "check"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / "impl" / "overlay" / "blocks.py"
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {path.name}"
    path.write_text(text.replace(old, new), encoding="utf-8")
    found = compare(comparison, tmp_path)
    assert found.verdict is Verdict.DIFFER, found


def test_all_of_the_overlay_s_arithmetic_is_compared():
    """The comparisons call every function of the module; and the overlay divides nowhere itself."""
    asked = set(re.findall(r"blocks\.(\w+)\(", inspect.getsource(arithmetic)))
    functions = inspect.getmembers(blocks, inspect.isfunction)
    assert asked == {name for name, function in functions if function.__module__ == blocks.__name__}
    divisions = [ast.unparse(node) for node in ast.walk(ast.parse(inspect.getsource(overlay))) if divides(node)]
    assert divisions == ["CACHE_CHUNK_BYTES // self.block_size"]


def divides(node):
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.FloorDiv | ast.Mod)


@pytest.mark.parametrize(("given", "expected"), SPLITS)
@pytest.mark.parametrize("cut", [range_by_impl, range_by_model])
def test_a_range_is_cut_into_head_whole_blocks_and_tail(cut, given, expected):
    assert cut(*given) == expected


@pytest.mark.parametrize("block_size", [1, 2, 3, 4, 5, 8, 16])
def test_overlay_and_model_agree_on_every_range_of_every_small_device(block_size):
    for size in range(1, 25):
        assert ends_by_impl(block_size, size) == ends_by_model(block_size, size)
        for offset in range(size):
            for length in range(1, size - offset + 1):
                given = (offset, length, block_size, size)
                assert range_by_impl(*given) == range_by_model(*given), given


@pytest.mark.parametrize("block_size", [1, 3, 4, 7])
def test_overlay_and_model_agree_on_every_part_of_every_short_range(block_size):
    for offset, length in itertools.product(range(10), range(1, 10)):
        last = (offset + length) // block_size + 1
        for first, end in itertools.combinations(range(last + 1), 2):
            given = (offset, length, first, end, block_size)
            assert part_by_impl(*given) == part_by_model(*given), given


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
