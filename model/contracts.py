"""Claims about the model, small enough to be settled on every path: CrossHair confirms or refutes each.

Each function states one claim about its arguments, and its contract says that the claim always holds. The model
never looks at the bytes it moves, so a block of up to three bytes has every case of a larger one: a first byte, a
last, and one between. A device of two blocks has a part of a block, a whole one, and a last one that is short.

Source:  PEP 316 for the notation; the table in `block.py`; `python -m check.contracts` runs them.
Shapes:  a state is 0, 1 or 2; `own` is what the block holds if that state is ALLOCATED.
Units:   bytes.
Errors:  none: arguments are bounded in the preconditions, and what cannot be confirmed is the runner's to report.
Omits:   long blocks and many of them, which random programs try; whatever is said here of one byte is said of each
         by counting through them, because a symbolic position costs ten times as much as three concrete ones.
"""

from __future__ import annotations

from model import block as one
from model import device as whole
from model.block import NOT_ALLOCATED, TRIMMED, Block, CacheMode, State, allocated
from model.device import Device, Done, Failed
from model.extents import Extent


def block_in(state: int, own: bytes) -> Block:
    """The block in that state."""
    if state == State.ALLOCATED:
        return allocated(own)
    return NOT_ALLOCATED if state == State.NOT_ALLOCATED else TRIMMED


# One block.


def a_block_reads_as_its_state_says(state: int, own: bytes, base: bytes, start: int, end: int) -> bool:
    """
    pre: 0 <= state <= 2
    pre: 1 <= len(base) <= 3
    pre: len(own) == len(base)
    pre: 0 <= start < end <= len(base)
    post: __return__
    """
    data = one.read(block_in(state, own), base, start, end)
    source = (base, own, bytes(3))[state]
    return len(data) == end - start and all(data[i] == source[start + i] for i in range(end - start))


def a_copying_read_keeps_the_base_and_gives_the_same_bytes(
    state: int, own: bytes, base: bytes, start: int, end: int
) -> bool:
    """
    pre: 0 <= state <= 2
    pre: 1 <= len(base) <= 3
    pre: len(own) == len(base)
    pre: 0 <= start < end <= len(base)
    post: __return__
    """
    before = block_in(state, own)
    after, data = one.read_copying(before, base, start, end)
    kept = after == allocated(base) if state == State.NOT_ALLOCATED else after == before
    return kept and data == one.read(before, base, start, end)


def a_write_changes_its_bytes_and_no_others(state: int, own: bytes, base: bytes, start: int, data: bytes) -> bool:
    """
    pre: 0 <= state <= 2
    pre: 1 <= len(base) <= 3
    pre: len(own) == len(base)
    pre: 0 <= start
    pre: 1 <= len(data)
    pre: start + len(data) <= len(base)
    post: __return__
    """
    before = block_in(state, own)
    after = one.write(before, base, start, data)
    old = one.contents(before, base)
    return (
        after.state == State.ALLOCATED
        and len(after.data) == len(base)
        and all(
            after.data[i] == (data[i - start] if start <= i < start + len(data) else old[i]) for i in range(len(base))
        )
    )


def zeroes_read_as_zeroes_and_the_rest_as_before(
    state: int, own: bytes, base: bytes, start: int, end: int, *, no_hole: bool
) -> bool:
    """
    pre: 0 <= state <= 2
    pre: 1 <= len(base) <= 3
    pre: len(own) == len(base)
    pre: 0 <= start < end <= len(base)
    post: __return__
    """
    before = block_in(state, own)
    new = one.contents(one.zero(before, base, start, end, no_hole=no_hole), base)
    old = one.contents(before, base)
    return len(new) == len(base) and all(new[i] == (0 if start <= i < end else old[i]) for i in range(len(base)))


def zeroes_leave_the_state_of_the_table(
    state: int, own: bytes, base: bytes, start: int, end: int, *, no_hole: bool
) -> bool:
    """
    pre: 0 <= state <= 2
    pre: 1 <= len(base) <= 3
    pre: len(own) == len(base)
    pre: 0 <= start < end <= len(base)
    post: __return__
    """
    after = one.zero(block_in(state, own), base, start, end, no_hole=no_hole)
    trimmed = not no_hole and (end - start == len(base) or state == State.TRIMMED)
    return after.state == (State.TRIMMED if trimmed else State.ALLOCATED)


def a_fast_zero_is_one_that_stores_nothing(
    state: int, own: bytes, base: bytes, start: int, end: int, *, no_hole: bool
) -> bool:
    """
    pre: 0 <= state <= 2
    pre: 1 <= len(base) <= 3
    pre: len(own) == len(base)
    pre: 0 <= start < end <= len(base)
    post: __return__
    """
    before = block_in(state, own)
    fast = one.zero_is_fast(before, base, start, end, no_hole=no_hole)
    return fast == (one.zero(before, base, start, end, no_hole=no_hole) == TRIMMED)


def a_trim_reads_as_zeroes_and_the_rest_as_before(state: int, own: bytes, base: bytes, start: int, end: int) -> bool:
    """
    pre: 0 <= state <= 2
    pre: 1 <= len(base) <= 3
    pre: len(own) == len(base)
    pre: 0 <= start < end <= len(base)
    post: __return__
    """
    before = block_in(state, own)
    new = one.contents(one.trim(before, base, start, end), base)
    old = one.contents(before, base)
    return len(new) == len(base) and all(new[i] == (0 if start <= i < end else old[i]) for i in range(len(base)))


def a_trim_leaves_the_state_of_the_table(state: int, own: bytes, base: bytes, start: int, end: int) -> bool:
    """
    pre: 0 <= state <= 2
    pre: 1 <= len(base) <= 3
    pre: len(own) == len(base)
    pre: 0 <= start < end <= len(base)
    post: __return__
    """
    before = block_in(state, own)
    after = one.trim(before, base, start, end)
    if end - start == len(base):
        return after == TRIMMED
    return after == TRIMMED if state == State.TRIMMED else after.state == State.ALLOCATED


def caching_copies_the_base_up_in_mode_cow_only(state: int, own: bytes, base: bytes, mode: CacheMode) -> bool:
    """
    pre: 0 <= state <= 2
    pre: 1 <= len(base) <= 3
    pre: len(own) == len(base)
    post: __return__
    """
    before = block_in(state, own)
    after = one.cache(before, base, mode)
    if state == State.NOT_ALLOCATED and mode == CacheMode.COW:
        return after == allocated(base)
    return after == before


def extents_are_what_the_state_says(state: int, own: bytes, length: int, hole: bool, zero: bool) -> bool:
    """
    pre: 0 <= state <= 2
    pre: len(own) == 3
    pre: 1 <= length <= 3
    post: __return__
    """
    said = Extent(length, hole, zero)
    extents = one.extents(block_in(state, own), length, (said,))
    expected = (said, Extent(length, hole=False, zero=False), Extent(length, hole=True, zero=True))[state]
    return extents == (expected,)


def a_base_that_knows_no_extents_is_data(state: int, own: bytes, length: int) -> bool:
    """
    pre: 0 <= state <= 1
    pre: len(own) == 3
    pre: 1 <= length <= 3
    post: __return__
    """
    return one.extents(block_in(state, own), length, None) == (Extent(length, hole=False, zero=False),)


def a_change_that_needs_no_base_does_not_depend_on_it(
    state: int, own: bytes, base: bytes, other: bytes, *, start: int, data: bytes, no_hole: bool
) -> bool:
    """
    pre: 0 <= state <= 2
    pre: len(base) == 2
    pre: len(other) == 2
    pre: len(own) == 2
    pre: 0 <= start
    pre: 1 <= len(data)
    pre: start + len(data) <= 2
    post: __return__
    """
    block, end = block_in(state, own), start + len(data)
    return one.changing_needs_base(block, base, start, end) or (
        one.write(block, base, start, data) == one.write(block, other, start, data)
        and one.zero(block, base, start, end, no_hole=no_hole) == one.zero(block, other, start, end, no_hole=no_hole)
        and one.trim(block, base, start, end) == one.trim(block, other, start, end)
    )


def a_read_that_needs_no_base_does_not_depend_on_it(
    state: int, own: bytes, base: bytes, other: bytes, mode: CacheMode
) -> bool:
    """
    pre: 0 <= state <= 2
    pre: len(base) == 2
    pre: len(other) == 2
    pre: len(own) == 2
    post: __return__
    """
    block = block_in(state, own)
    read = one.read_copying(block, base, 0, 2) == one.read_copying(block, other, 0, 2)
    cached = one.cache(block, base, mode) == one.cache(block, other, mode)
    return (one.reading_needs_base(block) or read) and (one.caching_needs_base(block, mode) or cached)


# Where a request is cut.


def pieces_follow_each_other_and_stay_in_their_blocks(offset: int, length: int) -> bool:
    """
    pre: 0 <= offset
    pre: 1 <= length <= 9
    post: __return__
    """
    position = offset
    for piece in whole.pieces(offset, length, 4):
        if not (piece.index * 4 + piece.start == position and 0 <= piece.start < piece.end <= 4):
            return False
        position = piece.index * 4 + piece.end
    return position == offset + length


# A device of three bytes: one block of two, and a short one that is whole all the same.


def _device(first: int, second: int, copy_on_read: bool = False) -> Device:
    """The device with its two blocks in those states."""
    return Device(3, 2, b"BAS", (block_in(first, b"ow"), block_in(second, b"n")), copy_on_read=copy_on_read)


def a_write_to_the_device_changes_its_bytes_and_no_others(first: int, second: int, offset: int, data: bytes) -> bool:
    """
    pre: 0 <= first <= 2
    pre: 0 <= second <= 2
    pre: 0 <= offset
    pre: len(data) <= 3
    pre: offset + len(data) <= 3
    post: __return__
    """
    before = _device(first, second)
    after, reply = whole.apply(before, whole.Write(offset, data))
    old, new = whole.contents(before), whole.contents(after)
    return reply == Done() and all(
        new[i] == (data[i - offset] if offset <= i < offset + len(data) else old[i]) for i in range(3)
    )


def zeroes_on_the_device_change_their_bytes_and_no_others(
    first: int, second: int, offset: int, length: int, *, no_hole: bool
) -> bool:
    """
    pre: 0 <= first <= 2
    pre: 0 <= second <= 2
    pre: 0 <= offset
    pre: 0 <= length
    pre: offset + length <= 3
    post: __return__
    """
    before = _device(first, second)
    after, reply = whole.apply(before, whole.Zero(offset, length, no_hole=no_hole))
    old, new = whole.contents(before), whole.contents(after)
    return reply == Done() and all(new[i] == (0 if offset <= i < offset + length else old[i]) for i in range(3))


def a_fast_zero_is_done_without_storing_or_changes_nothing(first: int, second: int, offset: int, length: int) -> bool:
    """
    pre: 0 <= first <= 2
    pre: 0 <= second <= 2
    pre: 0 <= offset
    pre: 1 <= length
    pre: offset + length <= 3
    post: __return__
    """
    before = _device(first, second)
    after, reply = whole.apply(before, whole.Zero(offset, length, fast=True))
    slow, _ = whole.apply(before, whole.Zero(offset, length))
    stored = any(slow.blocks[i] != TRIMMED for i in range(2) if offset < 2 * i + 2 and offset + length > 2 * i)
    if stored:
        return reply == Failed(whole.Error.NOT_FAST) and after == before
    return reply == Done() and after == slow


def a_whole_trim_gives_the_space_of_short_blocks_back_too(first: int, second: int, offset: int, length: int) -> bool:
    """
    pre: 0 <= first <= 2
    pre: 0 <= second <= 2
    pre: 0 <= offset
    pre: 0 <= length
    pre: offset + length <= 3
    post: __return__
    """
    before = _device(first, second)
    after, reply = whole.apply(before, whole.Trim(offset, length))
    old, new = whole.contents(before), whole.contents(after)
    return (
        reply == Done()
        and all(new[i] == (0 if offset <= i < offset + length else old[i]) for i in range(3))
        and (after.blocks[0] == TRIMMED or not (offset == 0 and length >= 2))
        and (after.blocks[1] == TRIMMED or not (length >= 1 and offset + length == 3))
    )


def a_copying_read_of_the_device_gives_what_it_contains(first: int, second: int, offset: int, length: int) -> bool:
    """
    pre: 0 <= first <= 2
    pre: 0 <= second <= 2
    pre: 0 <= offset
    pre: 0 <= length
    pre: offset + length <= 3
    post: __return__
    """
    before = _device(first, second, copy_on_read=True)
    after, reply = whole.apply(before, whole.Read(offset, length))
    kept = whole.contents(before)
    return reply == whole.Data(kept[offset : offset + length]) and whole.contents(after) == kept


def what_lies_beyond_the_end_is_refused(kind: int, offset: int, length: int) -> bool:
    """
    pre: 0 <= kind <= 5
    pre: 0 <= offset
    pre: 0 <= length
    pre: offset + length > 3
    pre: kind > 0 or length == 3
    post: __return__
    """
    before = _device(0, 1)
    request = (
        whole.Write(offset, b"new"),
        whole.Zero(offset, length),
        whole.Read(offset, length),
        whole.Trim(offset, length),
        whole.Cache(offset, length),
        whole.Status(offset, length),
    )[kind]
    error = whole.Error.NO_SPACE_BEYOND_END if kind <= 1 else whole.Error.OUT_OF_RANGE
    return whole.apply(before, request) == (before, Failed(error))
