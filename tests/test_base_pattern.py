"""The computed base.  What every base must do is in test_base_suite.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from impl.base.pattern import SEED_MAX, PatternBase, pattern
from impl.sizes import SIZE_MAX

KNOWN = [  # (seed, offset, bytes): a change here makes recorded histories and vectors worthless.
    (0, 0, "739a3012ff930845420e90a6"),
    (0, 4090, "3297ea1a1bb3ebac1b9148ef"),
    (1, 0, "b8bef0e422c7d1010029a26d"),
    (SEED_MAX, SIZE_MAX - 12, "7ead9ac00e10de80a049504f"),
]


@pytest.mark.parametrize(("seed", "offset", "content"), KNOWN)
def test_the_pattern_never_changes(seed, offset, content):
    assert pattern(seed, offset, 12).hex() == content


@given(
    seed=st.integers(0, SEED_MAX),
    offset=st.integers(0, 200_000) | st.integers(0, SIZE_MAX - 200_000),
    length=st.integers(0, 100_000),
    cut=st.integers(0, 100_000),
)
def test_the_pattern_is_the_same_however_it_is_cut_up(seed, offset, length, cut):
    cut = min(cut, length)
    whole = pattern(seed, offset, length)
    assert len(whole) == length
    assert pattern(seed, offset, cut) + pattern(seed, offset + cut, length - cut) == whole


def test_no_chunk_of_a_disk_is_found_elsewhere_or_on_a_disk_with_another_seed():
    """So that a block at a wrong place, or of a wrong disk, is seen."""
    chunks = [pattern(seed, offset, 4096) for seed in range(2) for offset in range(0, 8 * 2**20, 4096)]
    assert len(set(chunks)) == len(chunks)


def test_data_that_is_moved_by_a_sector_or_more_hardly_ever_looks_right():
    content = pattern(0, 0, 4 * 2**20)
    for distance in (512, 1024, 4096, 65536, 2**20):
        pairs = range(0, len(content) - distance, 512)
        alike = sum(content[at : at + 16] == content[at + distance : at + distance + 16] for at in pairs)
        assert alike <= 1, f"{alike} of {len(pairs)} sectors look right after a move of {distance}"


def test_without_latency_a_read_does_not_sleep_and_is_always_ready():
    base = PatternBase(4096, sleep=lambda seconds: pytest.fail("slept"))
    base.pread(0, 4096)
    assert base.is_ready(0, 4096)
    assert base.cache_mode == "read"
    assert base.fileno() is None


def test_each_read_sleeps_once_for_the_latency_however_long_it_is():
    slept = []
    base = PatternBase(2**20, latency_s=0.25, sleep=slept.append)
    base.pread(0, 1)
    base.pread(0, 2**20)
    assert slept == [0.25, 0.25]
    assert not base.is_ready(0, 1)


def test_jitter_is_added_to_the_latency_and_spreads_evenly():
    slept = []
    base = PatternBase(4096, latency_s=1.0, jitter_s=0.5, sleep=slept.append)
    for _ in range(1000):
        base.pread(0, 1)
    assert min(slept) >= 1.0
    assert max(slept) < 1.5
    quarters = [sum(1.0 + quarter / 8 <= s < 1.0 + (quarter + 1) / 8 for s in slept) for quarter in range(4)]
    assert min(quarters) > 200


def test_jitter_alone_is_enough_not_to_be_ready():
    assert not PatternBase(4096, jitter_s=0.001).is_ready(0, 1)


def test_the_same_seed_sleeps_the_same():
    first, second = [], []
    for slept in (first, second):
        base = PatternBase(4096, seed=5, jitter_s=1.0, sleep=slept.append)
        for _ in range(10):
            base.pread(0, 1)
    assert first == second


def test_hints_do_not_sleep():
    base = PatternBase(4096, latency_s=1.0, sleep=lambda seconds: pytest.fail("slept"))
    base.prefetch(0, 4096)
    list(base.extents(0, 4096))
    base.is_ready(0, 4096)
