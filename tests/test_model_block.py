"""One block: every request in every state.

Source:  design notes, section 3, "One block, seven requests"; the rows below are the rows of its table.
"""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from model.block import (
    NOT_ALLOCATED,
    TRIMMED,
    Block,
    CacheMode,
    State,
    allocated,
    cache,
    caching_needs_base,
    changing_needs_base,
    contents,
    extents,
    read,
    read_copying,
    reading_needs_base,
    trim,
    write,
    zero,
    zero_is_fast,
)
from model.extents import Extent

BASE = b"base"
OWN = b"own!"
ZEROES = bytes(4)
HELD = allocated(OWN)
COPIED = allocated(BASE)
STORED_ZEROES = allocated(ZEROES)

STATES = (NOT_ALLOCATED, HELD, TRIMMED)

READS = [  # block, all its bytes, what copy-on-read makes of it
    (NOT_ALLOCATED, BASE, COPIED),
    (HELD, OWN, HELD),
    (TRIMMED, ZEROES, TRIMMED),
]

# request, what becomes of a block that is NOT_ALLOCATED, ALLOCATED, TRIMMED
CHANGES = {
    "write, whole block": (
        lambda block: write(block, BASE, 0, b"NEW!"),
        (allocated(b"NEW!"), allocated(b"NEW!"), allocated(b"NEW!")),
    ),
    "write, first part": (
        lambda block: write(block, BASE, 0, b"NE"),
        (allocated(b"NEse"), allocated(b"NEn!"), allocated(b"NE\0\0")),
    ),
    "write, middle part": (
        lambda block: write(block, BASE, 1, b"NE"),
        (allocated(b"bNEe"), allocated(b"oNE!"), allocated(b"\0NE\0")),
    ),
    "write, last part": (
        lambda block: write(block, BASE, 3, b"N"),
        (allocated(b"basN"), allocated(b"ownN"), allocated(b"\0\0\0N")),
    ),
    "zero, whole block": (
        lambda block: zero(block, BASE, 0, 4),
        (TRIMMED, TRIMMED, TRIMMED),
    ),
    "zero, whole block, NO_HOLE": (
        lambda block: zero(block, BASE, 0, 4, no_hole=True),
        (STORED_ZEROES, STORED_ZEROES, STORED_ZEROES),
    ),
    "zero, part": (
        lambda block: zero(block, BASE, 1, 3),
        (allocated(b"b\0\0e"), allocated(b"o\0\0!"), TRIMMED),
    ),
    "zero, part, NO_HOLE": (
        lambda block: zero(block, BASE, 1, 3, no_hole=True),
        (allocated(b"b\0\0e"), allocated(b"o\0\0!"), STORED_ZEROES),
    ),
    "trim, whole block": (
        lambda block: trim(block, BASE, 0, 4),
        (TRIMMED, TRIMMED, TRIMMED),
    ),
    "trim, part": (
        lambda block: trim(block, BASE, 2, 4),
        (allocated(b"ba\0\0"), allocated(b"ow\0\0"), TRIMMED),
    ),
    "cache, ignore": (lambda block: cache(block, BASE, CacheMode.IGNORE), STATES),
    "cache, passthrough": (lambda block: cache(block, BASE, CacheMode.PASSTHROUGH), STATES),
    "cache, read": (lambda block: cache(block, BASE, CacheMode.READ), STATES),
    "cache, cow": (lambda block: cache(block, BASE, CacheMode.COW), (COPIED, HELD, TRIMMED)),
}

FAST_ZEROES = [  # start, end, NO_HOLE, whether it is fast in each state
    (0, 4, False, (True, True, True)),
    (0, 4, True, (False, False, False)),
    (0, 3, False, (False, False, True)),
    (1, 4, False, (False, False, True)),
    (1, 3, True, (False, False, False)),
]

HOLE = Extent(4, hole=True, zero=True)
DATA = Extent(4, hole=False, zero=False)
BASE_SAYS = (Extent(1, hole=True, zero=False), Extent(3, hole=False, zero=True))

EXTENTS = [  # block, what the base says, what the block says
    (NOT_ALLOCATED, BASE_SAYS, BASE_SAYS),
    (NOT_ALLOCATED, None, (DATA,)),
    (HELD, BASE_SAYS, (DATA,)),
    (HELD, None, (DATA,)),
    (TRIMMED, BASE_SAYS, (HOLE,)),
    (TRIMMED, None, (HOLE,)),
]

PARTS = [(start, end) for start in range(4) for end in range(start + 1, 5)]


@pytest.mark.parametrize(("block", "data", "_"), READS)
def test_a_block_reads_as_base_own_bytes_or_zeroes(block, data, _):
    assert contents(block, BASE) == data
    for start, end in PARTS:
        assert read(block, BASE, start, end) == data[start:end]


@pytest.mark.parametrize(("block", "data", "copied"), READS)
def test_a_copying_read_gives_the_same_bytes_and_keeps_the_base(block, data, copied):
    for start, end in PARTS:
        assert read_copying(block, BASE, start, end) == (copied, data[start:end])


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("state", State)
def test_a_change_is_a_row_of_the_table(name, state):
    change, expected = CHANGES[name]
    assert change(STATES[state]) == expected[state]


@pytest.mark.parametrize(("start", "end", "no_hole", "fast"), FAST_ZEROES)
@pytest.mark.parametrize("state", State)
def test_a_zero_is_fast_where_the_table_stores_nothing(start, end, no_hole, fast, state):
    assert zero_is_fast(STATES[state], BASE, start, end, no_hole=no_hole) == fast[state]


def test_a_zero_is_fast_by_state_and_never_by_data():
    """A part of a block that holds nothing but zeroes is written all the same, so it is refused."""
    assert not zero_is_fast(STORED_ZEROES, ZEROES, 0, 2)
    assert not zero_is_fast(NOT_ALLOCATED, ZEROES, 0, 2)


@pytest.mark.parametrize(("block", "base_says", "expected"), EXTENTS)
def test_extents_are_the_bases_own_only_where_the_block_shows_the_base(block, base_says, expected):
    assert extents(block, 4, base_says) == expected


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_short_block_is_a_whole_block(length):
    base = BASE[:length]
    for block in (NOT_ALLOCATED, allocated(OWN[:length]), TRIMMED):
        assert trim(block, base, 0, length) == TRIMMED
        assert zero(block, base, 0, length) == TRIMMED
        assert zero(block, base, 0, length, no_hole=True) == allocated(bytes(length))
        assert write(block, base, 0, b"NEW"[:length]) == allocated(b"NEW"[:length])
        assert zero_is_fast(block, base, 0, length)
        assert not changing_needs_base(block, base, 0, length)


@pytest.mark.parametrize("block", STATES, ids=[state.name for state in State])
@pytest.mark.parametrize(("start", "end"), PARTS)
def test_the_base_is_needed_exactly_where_the_result_depends_on_it(block, start, end):
    """The two bases have no byte in common, so any use of one shows."""

    def dependent(act):
        return act(b"base") != act(b"BASE")

    needed = changing_needs_base(block, BASE, start, end)
    assert needed == dependent(lambda base: write(block, base, start, b"new!"[: end - start]))
    assert needed == dependent(lambda base: trim(block, base, start, end))
    for no_hole in (False, True):
        assert needed == dependent(lambda base, no_hole=no_hole: zero(block, base, start, end, no_hole=no_hole))
    assert reading_needs_base(block) == dependent(lambda base: read(block, base, start, end))
    assert reading_needs_base(block) == dependent(lambda base: read_copying(block, base, start, end))


def test_caching_needs_the_base_to_read_it_even_if_the_bytes_are_dropped():
    needing = [(state, mode) for state in State for mode in CacheMode if caching_needs_base(STATES[state], mode)]
    assert needing == [(State.NOT_ALLOCATED, CacheMode.READ), (State.NOT_ALLOCATED, CacheMode.COW)]


def all_changes(block):
    """Every block that one request can make of this one."""
    for (start, end), no_hole in itertools.product(PARTS, (False, True)):
        yield write(block, BASE, start, b"new!"[: end - start])
        yield zero(block, BASE, start, end, no_hole=no_hole)
        yield trim(block, BASE, start, end)
        yield read_copying(block, BASE, start, end)[0]
    for mode in CacheMode:
        yield cache(block, BASE, mode)


def test_no_block_shows_the_base_again():
    for block in (HELD, TRIMMED):
        assert all(after.state != State.NOT_ALLOCATED for after in all_changes(block))


def test_every_state_is_reached_from_the_first():
    """Without this, the claim above could be true of a block that never changes."""
    assert {after.state for after in all_changes(NOT_ALLOCATED)} == set(State)


def test_equal_blocks_compare_equal_because_only_allocated_ones_hold_data():
    for block in STATES:
        for after in all_changes(block):
            assert len(after.data) == (len(BASE) if after.state == State.ALLOCATED else 0)
    assert Block() == NOT_ALLOCATED
    assert len({NOT_ALLOCATED, TRIMMED, Block(State.TRIMMED), allocated(b"x"), allocated(b"x")}) == 3


def test_a_block_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TRIMMED.state = State.ALLOCATED
