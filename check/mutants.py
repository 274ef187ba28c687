"""Overlays with one thing wrong each: what a check has to catch, or the thing was not needed, or the check is blind.

Every lock, second look and ordering of `impl/overlay/overlay.py` has a mutant here that leaves it out. Locks are left
out one at a time: a method of the shipped overlay runs with range locks that are wrong in one way, while all its other
methods hold theirs as shipped. A test counts the places where a lock is taken, so that a new one needs mutants too.

Shapes:  LOCKS says where a range is taken; FAULTS what may be wrong with it; a Mutant names the scenario of
         `check/races.py` or the claim of `check/device_suite.py` that must catch it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

from check.races import RangesClass
from check.subjects import OverlayClass
from impl.overlay.blocks import block_count, part_in, split, touched
from impl.overlay.overlay import Fetched, FromBase, Overlay, Segment, Zeroes
from impl.overlay.rangelock import Held, RangeLock, Ranges
from impl.overlay.statemap import ALLOCATED, NOT_ALLOCATED, TRIMMED, runs
from impl.overlay.store import Buffer

# Range locks with a fault, over range locks without.


class _Passing:
    """Hands every call on."""

    def __init__(self, ranges: Ranges) -> None:
        self._ranges = ranges

    def shared(self, first: int, last: int) -> Held:
        """As the original."""
        return self._ranges.shared(first, last)

    def exclusive(self, first: int, last: int) -> Held:
        """As the original."""
        return self._ranges.exclusive(first, last)


class NoLock(_Passing):
    """Holds nothing."""

    def shared(self, first: int, last: int) -> Held:
        """At once."""
        return nullcontext()

    def exclusive(self, first: int, last: int) -> Held:
        """At once."""
        return nullcontext()


class ReadersDoNotLock(_Passing):
    """Only those that change exclude each other."""

    def shared(self, first: int, last: int) -> Held:
        """At once."""
        return nullcontext()


class Shared(_Passing):
    """Holds to change as others hold to look."""

    def exclusive(self, first: int, last: int) -> Held:
        """With others."""
        return self._ranges.shared(first, last)


class Exclusive(_Passing):
    """Holds to look as others hold to change."""

    def shared(self, first: int, last: int) -> Held:
        """Alone."""
        return self._ranges.exclusive(first, last)


class FirstBlockOnly(_Passing):
    """Holds the first block of a request."""

    def shared(self, first: int, last: int) -> Held:
        """The first."""
        return self._ranges.shared(first, first)

    def exclusive(self, first: int, last: int) -> Held:
        """The first."""
        return self._ranges.exclusive(first, first)


class LastBlockOnly(_Passing):
    """Holds the last block of a request."""

    def shared(self, first: int, last: int) -> Held:
        """The last."""
        return self._ranges.shared(last, last)

    def exclusive(self, first: int, last: int) -> Held:
        """The last."""
        return self._ranges.exclusive(last, last)


class WholeDevice(_Passing):
    """Holds the whole device for every request, as nbdkit's first version did."""

    LAST = 1 << 62

    def shared(self, first: int, last: int) -> Held:
        """All there is."""
        return self._ranges.shared(0, self.LAST)

    def exclusive(self, first: int, last: int) -> Held:
        """All there is."""
        return self._ranges.exclusive(0, self.LAST)


Fault = Callable[[Ranges], Ranges]


def everywhere(fault: Fault) -> RangesClass:
    """Range locks that have the fault for all requests."""
    return lambda sync: fault(RangeLock(sync))


def _always(overlay: Overlay, *arguments: object, **named: object) -> bool:
    return True


def _covers_whole_blocks(overlay: Overlay, offset: int, data: Buffer, *_: object) -> bool:
    return not split(offset, len(data), overlay.block_size, overlay.size).partial()


def _covers_parts(overlay: Overlay, offset: int, data: Buffer, *_: object) -> bool:
    return not _covers_whole_blocks(overlay, offset, data)


@dataclass(frozen=True)
class LockedPlace:
    """A place in the overlay where a range is taken: a method, and which of its calls, if it has two such places."""

    method: str
    when: Callable[..., bool] = _always

    def with_fault(self, fault: Fault) -> type[Overlay]:
        """The overlay whose lock is faulty in this place, and in no other."""
        when, shipped = self.when, getattr(Overlay, self.method)

        class Faulty(Overlay):
            """The shipped method, run on the same device with other range locks."""

            __slots__ = ()

        def faulty(overlay: Overlay, *arguments: object, **named: object) -> object:
            if when(overlay, *arguments, **named):
                overlay = replace(overlay, ranges=fault(overlay.ranges))
            return shipped(overlay, *arguments, **named)

        setattr(Faulty, self.method, faulty)
        return Faulty


# Every place where the overlay takes a range.
LOCKS = {
    "look": LockedPlace("look_under_lock"),
    "keep": LockedPlace("_keep"),
    "write whole": LockedPlace("write", _covers_whole_blocks),
    "write parts": LockedPlace("write", _covers_parts),
    "zero": LockedPlace("zero"),
    "note": LockedPlace("note"),
}


# The second look, and what happens on which side of the lock.


class NoSecondLookAtWrites(Overlay):
    """Merges with the base whenever the block was NOT_ALLOCATED before the lock."""

    __slots__ = ()

    def _kept_part(self, block: int, fetched: dict[int, bytes], from_: int, to: int | None) -> Buffer:
        if block in fetched:
            return memoryview(fetched[block])[from_:to]
        return super()._kept_part(block, fetched, from_, to)


class SecondLookMissesTrims(Overlay):
    """Takes it that a block which was NOT_ALLOCATED before the lock can have been written since, and not trimmed."""

    __slots__ = ()

    def _kept_part(self, block: int, fetched: dict[int, bytes], from_: int, to: int | None) -> Buffer:
        if block in fetched and self.states.get(block, block + 1)[0] == TRIMMED:
            return memoryview(fetched[block])[from_:to]
        return super()._kept_part(block, fetched, from_, to)


class NoSecondLookAtZeroes(Overlay):
    """Merges zeroes with the base whenever the block was NOT_ALLOCATED before the lock."""

    __slots__ = ()

    def _zero_part(self, block: int, offset: int, end: int, no_hole: bool, fetched: dict[int, bytes]) -> None:
        if block in fetched:
            self.states.fill(block, block + 1, NOT_ALLOCATED)
        super()._zero_part(block, offset, end, no_hole, fetched)


class NoSecondLookAtCopies(Overlay):
    """Keeps what was read from the base whatever has become of the block."""

    __slots__ = ()

    def _keep(self, first: int, data: memoryview) -> None:
        end = first + -(-len(data) // self.block_size)
        with self.ranges.shared(first, end - 1):
            self.store.pwrite(first * self.block_size, [data])
            self.states.fill(first, end, ALLOCATED)


class CopiesOverTrims(Overlay):
    """Keeps what was read from the base unless the block has been written to."""

    __slots__ = ()

    def _keep(self, first: int, data: memoryview) -> None:
        end = first + block_count(len(data), self.block_size)
        with self.ranges.shared(first, end - 1):
            for run in runs(self.states.get(first, end), first):
                if run.state == TRIMMED:
                    self.states.fill(run.first, run.end, NOT_ALLOCATED)
            super()._keep(first, data)


class CopiesOutAfterTheLock(Overlay):
    """Notes the states under the lock, and copies the overlay's bytes when it is gone."""

    __slots__ = ()

    def look_under_lock(self, offset: int, length: int) -> list[Segment]:
        """As the original, but for where the `with` ends."""
        end = offset + length
        first = offset // self.block_size
        last = (end - 1) // self.block_size
        with self.ranges.shared(first, last):
            states = self.states.get(first, last + 1)
        segments: list[Segment] = []
        for run in runs(states, first):
            start = max(offset, run.first * self.block_size)
            run_length = min(end, run.end * self.block_size) - start
            if run.state == ALLOCATED:
                segments.append(self.store.pread(start, run_length))
            else:
                segments.append(Zeroes(run_length) if run.state == TRIMMED else FromBase(start, run_length))
        return segments


class NotesStatesBeforeTheLock(Overlay):
    """Trusts states that it has seen without the lock, though not all of them are NOT_ALLOCATED."""

    __slots__ = ()

    def look_under_lock(self, offset: int, length: int) -> list[Segment]:
        """As the original, but for where the `with` begins."""
        first, last = touched(offset, length, self.block_size)
        states = self.states.get(first, last + 1)
        with self.ranges.shared(first, last):
            return [
                self._segment(run.state, *part_in(offset, length, run.first, run.end, self.block_size))
                for run in runs(states, first)
            ]


class UntouchedByItsFirstBlock(Overlay):
    """Takes a range to show the base if its first block does."""

    __slots__ = ()

    def is_untouched(self, offset: int, length: int) -> bool:
        """Of one block."""
        return self.states.at(offset // self.block_size) == NOT_ALLOCATED


class DecidesFastBeforeTheLock(Overlay):
    """Refuses a fast zero or does not, and then takes the range."""

    __slots__ = ()

    def zero(
        self, offset: int, length: int, no_hole: bool = False, fast: bool = False, fetched: Fetched | None = None
    ) -> None:
        """As the original, but for when it decides."""
        if fast and not self._is_fast(split(offset, length, self.block_size, self.size).partial(), no_hole):
            raise OSError(errno.ENOTSUP, "zeroing this range means writing data")
        super().zero(offset, length, no_hole, fetched=fetched)


class _Holding(Overlay):
    """Holds its range from the beginning of a request to its end, while the base is read too."""

    __slots__ = ()

    def _unlocked(self) -> Overlay:
        """The same device, shipped, for one who holds the range already."""
        parts = (self.base, self.store, self.states, NoLock(self.ranges), self.block_size)
        return Overlay(*parts, self.cache_mode, self.copy_on_read)

    def _blocks(self, offset: int, length: int) -> tuple[int, int]:
        return offset // self.block_size, (offset + length - 1) // self.block_size


class ReadsTheBaseUnderTheLock(_Holding):
    """In a read."""

    __slots__ = ()

    def pread(self, offset: int, length: int) -> bytes:
        """Fetches before it lets go."""
        with self.ranges.shared(*self._blocks(offset, length)):
            return self._unlocked().pread(offset, length)


class MergesWithTheBaseUnderTheLock(_Holding):
    """In a write."""

    __slots__ = ()

    def write(self, offset: int, data: Buffer, fetched: Fetched | None = None) -> None:
        """Holds before it fetches."""
        with self.ranges.exclusive(*self._blocks(offset, len(data))):
            self._unlocked().write(offset, data, fetched)


class ZeroesFetchUnderTheLock(_Holding):
    """In a zero or a trim."""

    __slots__ = ()

    def zero(
        self, offset: int, length: int, no_hole: bool = False, fast: bool = False, fetched: Fetched | None = None
    ) -> None:
        """Holds before it fetches."""
        with self.ranges.exclusive(*self._blocks(offset, length)):
            self._unlocked().zero(offset, length, no_hole, fast, fetched)


class CachesUnderTheLock(_Holding):
    """In a request to cache."""

    __slots__ = ()

    def cache(self, offset: int, length: int) -> None:
        """Holds before it fetches."""
        with self.ranges.shared(*self._blocks(offset, length)):
            self._unlocked().cache(offset, length)


# What is wrong without any company.


class StatesBeforeData(Overlay):
    """Says that blocks are ALLOCATED, and then writes them."""

    __slots__ = ()

    def _write_blocks(self, first: int, last: int, start: int, parts: Sequence[Buffer]) -> None:
        self.states.fill(first, last + 1, ALLOCATED)
        self.store.pwrite(start, parts)


class ZeroesStateBeforeData(Overlay):
    """Says that blocks are ALLOCATED, and then zeroes them."""

    __slots__ = ()

    def _provide_zeroes(self, first: int, end: int) -> None:
        self.states.fill(first, end, ALLOCATED)
        super()._provide_zeroes(first, end)


class KeepsStateBeforeData(Overlay):
    """Says that blocks are ALLOCATED, and then copies the base into them."""

    __slots__ = ()

    def _keep(self, first: int, data: memoryview) -> None:
        end = first + -(-len(data) // self.block_size)
        with self.ranges.shared(first, end - 1):
            for run in runs(self.states.get(first, end), first):
                if run.state == NOT_ALLOCATED:
                    self.states.fill(run.first, run.end, ALLOCATED)
                    part = data[(run.first - first) * self.block_size : (run.end - first) * self.block_size]
                    self.store.pwrite(run.first * self.block_size, [part])


class WritesGiveNothingBack(Overlay):
    """Leaves what a failed write has stored."""

    __slots__ = ()

    def _write_blocks(self, first: int, last: int, start: int, parts: Sequence[Buffer]) -> None:
        self.store.pwrite(start, parts)
        self.states.fill(first, last + 1, ALLOCATED)


class ZeroesGiveNothingBack(Overlay):
    """Leaves what a failed demand for space has got."""

    __slots__ = ()

    def _provide_zeroes(self, first: int, end: int) -> None:
        start = first * self.block_size
        self.store.write_zeroes(start, self._end_of(end - 1) - start)
        self.states.fill(first, end, ALLOCATED)


class GivesAllBack(Overlay):
    """After a failure, frees all the blocks of the request: those too that hold something."""

    __slots__ = ()

    def _give_back(self, first: int, end: int) -> None:
        self._punch(first, end)


class TrimsGiveNothingBack(Overlay):
    """Notes that blocks are TRIMMED, and leaves them their space."""

    __slots__ = ()

    def _zero_whole(self, first: int, end: int, no_hole: bool) -> None:
        if no_hole:
            super()._zero_whole(first, end, no_hole)
        self.states.fill(first, end, ALLOCATED if no_hole else TRIMMED)


class TrimsGiveBackWhatWasHeld(Overlay):
    """Gives the space of those blocks back that were ALLOCATED."""

    __slots__ = ()

    def _zero_whole(self, first: int, end: int, no_hole: bool) -> None:
        states = self.states.get(first, end)
        if no_hole:
            super()._zero_whole(first, end, no_hole)
        self.states.fill(first, end, ALLOCATED if no_hole else TRIMMED)
        for run in runs(states, first):
            if run.state == ALLOCATED and not no_hole:
                self._punch(run.first, run.end)


class PunchesOrFails(Overlay):
    """Fails a request because space could not be given back."""

    __slots__ = ()

    def _punch(self, first: int, end: int) -> None:
        start = first * self.block_size
        self.store.punch_hole(start, self._end_of(end - 1) - start)


class CopiesOrFails(Overlay):
    """Fails a read because what it read could not be kept."""

    __slots__ = ()

    def _read_copying(self, offset: int, length: int) -> list[Segment]:
        seen = self.look(offset, length)
        for part in seen:
            if isinstance(part, FromBase):
                self._keep(*self._fetch_whole_blocks(part))
        return seen


class KeepsAsItFetches(Overlay):
    """Keeps a part of a copying read before it knows that the others can be read."""

    __slots__ = ()

    def _fetch_whole_blocks(self, part: FromBase) -> tuple[int, memoryview]:
        first, data = super()._fetch_whole_blocks(part)
        self._keep(first, data)
        return first, data


class FetchesForFastZeroes(Overlay):
    """Reads the base for a fast zero that it will refuse."""

    __slots__ = ()

    def zero(
        self, offset: int, length: int, no_hole: bool = False, fast: bool = False, fetched: Fetched | None = None
    ) -> None:
        """As the original, after a look at the base."""
        self.fetch_blocks(self.missing(self.partial_blocks(offset, length)))
        super().zero(offset, length, no_hole, fast, fetched)


class NoZeroFill(Overlay):
    """Takes it that a TRIMMED block is zeroes in the store."""

    __slots__ = ()

    def _kept_part(self, block: int, fetched: dict[int, bytes], from_: int, to: int | None) -> Buffer:
        if self.states.get(block, block + 1)[0] == TRIMMED:
            return b""
        return super()._kept_part(block, fetched, from_, to)

    def _punch(self, first: int, end: int) -> None:
        """On a file system that cannot."""


class LongLastBlock(Overlay):
    """Takes every block to be of full size."""

    __slots__ = ()

    @property
    def size(self) -> int:
        """As many bytes as there would be."""
        return block_count(self.base.size, self.block_size) * self.block_size


class LastBlockNeverWhole(Overlay):
    """Takes a block to be whole only when it is of full size, so that a short one is never trimmed."""

    __slots__ = ()

    def _zero_whole(self, first: int, end: int, no_hole: bool) -> None:
        whole_end = self.size // self.block_size
        if first < min(end, whole_end):
            super()._zero_whole(first, min(end, whole_end), no_hole)
        for block in range(max(first, whole_end), end):
            self._provide_zeroes(block, block + 1)


@dataclass(frozen=True)
class Mutant:
    """What is wrong, and the scenario or claim, by name, that has to see it."""

    name: str
    caught_by: str
    overlay: OverlayClass = Overlay
    ranges: RangesClass = RangeLock
    fault: Fault | None = None  # what is wrong with `ranges`, over any that are right


def _overlay(overlay: type[Overlay], caught_by: str) -> Mutant:
    return Mutant(overlay.__name__, caught_by, overlay=overlay)


def _one_lock(place: str, fault: type[_Passing], caught_by: str) -> Mutant:
    return Mutant(f"{place}: {fault.__name__}", caught_by, overlay=LOCKS[place].with_fault(fault))


def _all_locks(fault: type[_Passing], caught_by: str) -> Mutant:
    return Mutant(f"all: {fault.__name__}", caught_by, ranges=everywhere(fault), fault=fault)


MUTANTS = [
    _all_locks(NoLock, "two_writes_of_the_same_blocks"),
    _all_locks(ReadersDoNotLock, "a_write_beside_a_read_of_two_blocks"),
    _all_locks(Shared, "two_writes_of_the_same_blocks"),
    _all_locks(Exclusive, "two_looks_at_one_block_side_by_side"),
    _all_locks(FirstBlockOnly, "a_read_of_the_middle_of_a_write"),
    _all_locks(WholeDevice, "requests_that_do_not_overlap"),
    _one_lock("look", NoLock, "a_write_beside_a_read_of_two_blocks"),
    _one_lock("look", FirstBlockOnly, "a_read_of_more_than_a_write_changes"),
    _one_lock("look", LastBlockOnly, "a_read_of_more_than_a_write_changes"),
    _one_lock("look", Exclusive, "two_looks_at_one_block_side_by_side"),
    _one_lock("keep", NoLock, "a_write_beside_a_copy_half_kept"),
    _one_lock("keep", FirstBlockOnly, "a_write_to_the_middle_of_a_copy_half_kept"),
    _one_lock("keep", LastBlockOnly, "a_write_to_the_middle_of_a_copy_half_kept"),
    _one_lock("keep", Exclusive, "two_copies_of_one_block_side_by_side"),
    _one_lock("write whole", NoLock, "a_read_beside_a_write_of_two_blocks"),
    _one_lock("write whole", Shared, "a_read_beside_a_write_of_two_blocks"),
    _one_lock("write whole", FirstBlockOnly, "a_read_of_the_middle_of_a_write"),
    _one_lock("write whole", LastBlockOnly, "a_read_of_the_middle_of_a_write"),
    _one_lock("write parts", NoLock, "a_read_beside_a_write_of_two_blocks_and_parts"),
    _one_lock("write parts", Shared, "a_read_beside_a_write_of_two_blocks_and_parts"),
    _one_lock("write parts", FirstBlockOnly, "a_read_of_the_middle_of_a_write_with_parts"),
    _one_lock("write parts", LastBlockOnly, "a_read_of_the_middle_of_a_write_with_parts"),
    _one_lock("zero", NoLock, "a_trim_beside_a_write"),
    _one_lock("zero", Shared, "a_read_beside_a_zero_of_two_blocks"),
    _one_lock("zero", FirstBlockOnly, "a_read_of_the_middle_of_a_zero"),
    _one_lock("zero", LastBlockOnly, "a_read_of_the_middle_of_a_zero"),
    _one_lock("note", NoLock, "extents_beside_a_zero_of_two_parts"),
    _one_lock("note", FirstBlockOnly, "extents_beside_a_zero_of_two_parts"),
    _one_lock("note", LastBlockOnly, "a_cache_of_more_than_a_write_changes"),
    _one_lock("note", Exclusive, "two_looks_at_one_block_side_by_side"),
    _overlay(NoSecondLookAtWrites, "a_write_of_part_beside_a_write_of_the_whole"),
    _overlay(SecondLookMissesTrims, "a_write_of_part_beside_a_trim"),
    _overlay(NoSecondLookAtZeroes, "a_trim_of_part_beside_another_write_of_part"),
    _overlay(NoSecondLookAtCopies, "copy_on_read_beside_a_write"),
    _overlay(CopiesOverTrims, "copy_on_read_beside_a_trim"),
    _overlay(CopiesOutAfterTheLock, "a_write_beside_a_read_of_two_blocks"),
    _overlay(NotesStatesBeforeTheLock, "a_read_beside_a_write_of_a_block_that_holds_something_and_one_that_does_not"),
    _overlay(UntouchedByItsFirstBlock, "a_write_reads_back_and_leaves_the_rest"),
    _overlay(DecidesFastBeforeTheLock, "a_fast_zero_of_part_beside_a_write_of_that_part"),
    _overlay(ReadsTheBaseUnderTheLock, "a_write_beside_a_read_that_waits_for_the_base"),
    _overlay(MergesWithTheBaseUnderTheLock, "a_write_of_part_beside_a_write_of_the_whole"),
    _overlay(ZeroesFetchUnderTheLock, "a_zero_of_part_beside_a_write_of_the_whole"),
    _overlay(CachesUnderTheLock, "copy_on_cache_beside_a_write"),
    _overlay(LongLastBlock, "a_write_to_part_of_the_last_short_block_keeps_its_other_part"),
    _overlay(LastBlockNeverWhole, "the_last_short_block_is_a_block_like_any_other"),
    _overlay(StatesBeforeData, "a_full_store_fails_what_needs_space_and_nothing_else"),
    _overlay(ZeroesStateBeforeData, "a_full_store_fails_what_needs_space_and_nothing_else"),
    _overlay(KeepsStateBeforeData, "copy_on_read_succeeds_though_its_copy_cannot_be_kept"),
    _overlay(WritesGiveNothingBack, "a_full_store_gives_back_what_a_failed_request_left_in_it"),
    _overlay(ZeroesGiveNothingBack, "a_full_store_gives_back_what_a_failed_request_left_in_it"),
    _overlay(GivesAllBack, "a_full_store_keeps_the_space_of_what_was_acknowledged"),
    _overlay(TrimsGiveNothingBack, "a_trim_makes_room_in_a_full_store"),
    _overlay(TrimsGiveBackWhatWasHeld, "a_trim_gives_back_what_a_copy_left_that_could_not_be_kept"),
    _overlay(PunchesOrFails, "a_trim_is_done_though_its_space_cannot_be_given_back"),
    _overlay(CopiesOrFails, "copy_on_read_succeeds_though_its_copy_cannot_be_kept"),
    _overlay(KeepsAsItFetches, "copy_on_read_copies_nothing_when_a_part_cannot_be_read"),
    _overlay(FetchesForFastZeroes, "a_base_that_cannot_be_read_fails_only_what_needs_it"),
    _overlay(NoZeroFill, "a_block_that_was_trimmed_keeps_nothing_of_what_it_held"),
]
