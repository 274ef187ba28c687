"""What every base must do: one suite, many subjects.  Source: impl/base/interface.py.

`check_base(make)` runs the same claims on every base; a new kind of base is a new line in SUBJECTS. The second half
of the file holds bases with one defect each, which the suite must refuse.
"""

import os
import random
from itertools import chain, islice, pairwise

import pytest

from impl.base.demo import DemoBase
from impl.base.file import FileBase
from impl.base.memory import BytesBase, MemoryBase
from impl.base.pattern import PatternBase, pattern
from impl.extents import Extent
from impl.sizes import SIZE_MAX

WINDOW_BYTES = 32 * 1024


def check_base(make):
    """All claims, on a base from `make()`; a second one from `make()` must hold the same bytes."""
    base, again = make(), make()
    try:
        check_what_it_says_of_itself(base)
        assert again.size == base.size
        for offset, length in windows(base.size):
            content = base.pread(offset, length)
            assert len(content) == length
            assert again.pread(offset, length) == content
            check_any_split_reads_the_same_bytes(base, offset, content)
            check_extents(base, offset, content)
            check_hints(base, offset, length)
            assert base.pread(offset, length) == content
            if (fd := base.fileno()) is not None:
                assert os.pread(fd, length, offset) == content
    finally:
        again.close()
        base.close()


def windows(size):
    """The ranges looked at: all of a small disk; both ends and some of the middle of a large one."""
    if size <= 2 * WINDOW_BYTES:
        return [(0, size)]
    choose = random.Random(size)
    inside = [choose.randrange(size - WINDOW_BYTES) for _ in range(4)]
    return [(offset, WINDOW_BYTES - 1) for offset in (0, size - WINDOW_BYTES + 1, *inside)]


def check_what_it_says_of_itself(base):
    assert base.size >= 1
    assert base.cache_mode in ("ignore", "passthrough", "read")
    assert base.description.isprintable()
    assert 0 < len(base.description.encode()) <= 4096  # NBD: a string is at most 4096 bytes.


def check_any_split_reads_the_same_bytes(base, offset, content):
    choose = random.Random(offset)
    cuts_at = {0, 1, len(content) - 1, len(content), *range(0, len(content), 4096)}
    cuts_at |= {choose.randrange(len(content)) for _ in range(16)}
    cuts = sorted(cuts_at)
    pieces = [(begin, end) for begin, end in pairwise(cuts)]
    choose.shuffle(pieces)
    for begin, end in pieces:
        assert base.pread(offset + begin, end - begin) == content[begin:end]


def check_extents(base, offset, content):
    choose = random.Random(offset)
    ranges = [(0, len(content)), (0, 1), (len(content) - 1, len(content))]
    ranges += [sorted(choose.sample(range(len(content) + 1), 2)) for _ in range(8)]
    for begin, end in ranges:
        position = begin
        for extent in base.extents(offset + begin, end - begin):
            assert extent.length > 0
            if extent.zero:
                assert not any(content[position : position + extent.length])
            position += extent.length
            assert position <= end
        assert position == end


def check_hints(base, offset, length):
    assert base.is_ready(offset, length) in (True, False)
    assert base.is_ready(offset, 1) in (True, False)
    assert base.pread_at_once(offset, length) in (None, base.pread(offset, length))
    assert base.prefetch(offset, length) is None


SIZES = [1, 511, 512, 4095, 4097, 65536, 1_000_001]


def file_subject(size):
    def make(directory):
        path = directory / "disk.img"
        if not path.exists():
            path.write_bytes(pattern(7, 0, size))
        return FileBase(path)

    return make


def sparse_file(directory):
    """Hole, data, hole, data that ends inside a page, and a hole at the end."""
    path = directory / "sparse.img"
    if not path.exists():
        with open(path, "wb") as file:
            for offset in (64 * 1024, 256 * 1024):
                file.seek(offset)
                file.write(b"data" * 10_000)
            file.truncate(1_000_001)
    return FileBase(path)


SUBJECTS = {
    "demo": lambda _: DemoBase(),
    "file: sparse": sparse_file,
    "memory: the largest": lambda _: MemoryBase(SIZE_MAX),
    "pattern: the largest": lambda _: PatternBase(SIZE_MAX, seed=3),
    "pattern: slow": lambda _: PatternBase(65536, latency_s=1, jitter_s=1, sleep=lambda seconds: None),
    **{f"file: {size}": file_subject(size) for size in SIZES},
    **{f"memory: {size}": lambda _, size=size: MemoryBase(size) for size in SIZES},
    **{f"bytes: {size}": lambda _, size=size: BytesBase(pattern(1, 0, size)) for size in SIZES},
    **{f"pattern: {size}": lambda _, size=size: PatternBase(size) for size in SIZES},
}


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_base_is_an_immutable_disk(subject, tmp_path):
    check_base(lambda: SUBJECTS[subject](tmp_path))


@pytest.mark.parametrize("base", [MemoryBase(SIZE_MAX), PatternBase(SIZE_MAX)], ids=["memory", "pattern"])
def test_the_extents_of_the_largest_disk_are_a_handful(base):
    assert sum(extent.length for extent in islice(base.extents(0, SIZE_MAX), 10)) == SIZE_MAX


# One defect each.


class ReadsShort(BytesBase):
    def pread(self, offset, length):
        return super().pread(offset, length)[:1000]


class ReadsFromTheStartOfTheBlock(BytesBase):
    def pread(self, offset, length):
        return super().pread(offset // 4096 * 4096, self.size - offset // 4096 * 4096)[:length]


class CountsReads(BytesBase):
    reads = 0

    def pread(self, offset, length):
        self.reads += 1
        return bytes([self.reads % 256]) + super().pread(offset, length)[1:]


class StopsItsExtentsEarly(BytesBase):
    def extents(self, offset, length):
        if length > 1:
            yield Extent(length - 1, hole=False, zero=False)


class RoundsItsExtentsUp(BytesBase):
    def extents(self, offset, length):
        yield Extent(-(-length // 4096) * 4096, hole=False, zero=False)


class YieldsAnEmptyExtent(BytesBase):
    def extents(self, offset, length):
        return chain([Extent(0, hole=True, zero=True)], super().extents(offset, length))


class CallsDataZero(BytesBase):
    def extents(self, offset, length):
        yield Extent(length, hole=False, zero=True)


class SpeaksInTwoLines(BytesBase):
    def __init__(self, data):
        super().__init__(data, "one\ntwo")


DEFECTIVE = [
    ReadsShort,
    ReadsFromTheStartOfTheBlock,
    CountsReads,
    StopsItsExtentsEarly,
    RoundsItsExtentsUp,
    YieldsAnEmptyExtent,
    CallsDataZero,
    SpeaksInTwoLines,
]


@pytest.mark.parametrize("defective", DEFECTIVE)
def test_the_suite_refuses_a_base_with_one_defect(defective):
    with pytest.raises(AssertionError):
        check_base(lambda: defective(pattern(0, 0, 50_001)))


def test_the_suite_refuses_a_base_that_differs_from_one_start_to_the_next():
    seeds = iter(range(2))
    with pytest.raises(AssertionError):
        check_base(lambda: BytesBase(pattern(next(seeds), 0, 50_001)))


def test_the_suite_accepts_the_base_that_the_defects_were_put_into():
    check_base(lambda: BytesBase(pattern(0, 0, 50_001)))
