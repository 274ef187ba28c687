"""Interleavings of two requests that are chosen, one by one, because each has lost data in some implementation.

Every scenario drives an overlay (the shipped one, or a mutant) with gates in its base or its store, and raises
AssertionError when what is read afterwards is no order of the requests, or when a request waits that must not. The
first three are how nbdkit's cow filter loses writes. What is systematic about interleavings is not here: this is the
part that can be read.

Shapes:  a request is stopped at a gate; another is then asked `at_once`, if it must not wait for the first, or
         `beside`, if it may: the gate opens when the other has ended or waits, whichever is the case.
Units:   bytes; a device of four blocks of BLOCK bytes.
Errors:  AssertionError for a fault of the overlay, decided by events; Stuck, which no scenario means to raise, when
         neither of two things that have to happen does.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from threading import Event
from typing import TypeVar

from check.gates import TIMEOUT_S, Gate, GatedBase, GatedStore, Running, Stuck, WatchedSync
from check.subjects import OverlayClass, Setup
from impl.extents import Extent
from impl.overlay.blocks import block_count
from impl.overlay.overlay import CacheMode, Overlay, never
from impl.overlay.rangelock import Ranges
from impl.overlay.statemap import ALLOCATED, StateMap
from impl.overlay.store import memory_store
from impl.sync import Sync
from model.extents import Extent as ModelExtent

BLOCK = 4096
BASE = bytes(1 + index % 251 for index in range(4 * BLOCK))
NEW = b"\xf1" * BLOCK
OTHER = b"\xf3" * BLOCK
PART = b"\xf2" * 100
PART_AT = 1000

T = TypeVar("T")
RangesClass = Callable[[Sync], Ranges]


class Bench:
    """An overlay under test, and the gates in it; at the end of its `with` block nobody is left waiting."""

    def __init__(
        self,
        overlay_class: OverlayClass,
        ranges_class: RangesClass,
        *,
        copy_on_read: bool = False,
        cache_mode: CacheMode = "ignore",
        base_extents: tuple[ModelExtent, ...] | None = None,
    ) -> None:
        self.base = GatedBase(Setup(BASE, BLOCK, base_extents=base_extents))
        self._file = memory_store(len(BASE))
        self.store = GatedStore(self._file)
        self.sync = WatchedSync()
        self.overlay: Overlay = overlay_class(
            base=self.base,
            store=self.store,
            states=StateMap(block_count(len(BASE), BLOCK)),
            ranges=ranges_class(self.sync),
            block_size=BLOCK,
            cache_mode=cache_mode,
            copy_on_read=(lambda: True) if copy_on_read else never,
        )
        self._gates: list[Gate] = []
        self._ended: list[Callable[[], bool]] = []

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        """Let all requests end, and give the store back."""
        for gate in self._gates:
            gate.open()
        ended = [wait() for wait in self._ended]
        self._file.close()
        if not all(ended):
            raise Stuck("a request waits for ever, and nobody holds what it waits for")

    def stop_in_base(self, call: Callable[[], T]) -> tuple[Running[T], Gate]:
        """Start a request, and leave it where it waits for the base."""
        gate = self.base.gate = Gate()
        return self._stop_at(gate, 0, call)

    def stop_in_store(self, call: Callable[[], T], after: int = 0) -> tuple[Running[T], Gate]:
        """Start a request, and leave it half way through a transfer of its data: the first, or `after` others."""
        gate = self.store.gate = Gate()
        return self._stop_at(gate, after, call)

    def _stop_at(self, gate: Gate, after: int, call: Callable[[], T]) -> tuple[Running[T], Gate]:
        gate.shut(after)
        self._gates.append(gate)
        running = self._start(call, gate.arrived)
        gate.wait_for_arrival()
        if running.ended.is_set():
            raise Stuck(f"a request gave {running.join()!r} and never came to the gate")
        return running, gate

    def _start(self, call: Callable[[], T], also_set: Event) -> Running[T]:
        running = Running(call, also_set)
        self._ended.append(lambda: running.ended.wait(TIMEOUT_S))
        return running

    def _start_other(self, call: Callable[[], T]) -> Running[T]:
        """Start a request; `sync.somebody_waits` is set when it has ended or waits for its range."""
        self.sync.somebody_waits.clear()
        return self._start(call, self.sync.somebody_waits)

    def _is_through(self, running: Running[T]) -> bool:
        """Whether a request has ended, once it has or else waits for its range."""
        if not self.sync.somebody_waits.wait(TIMEOUT_S):
            raise Stuck("a request neither ended nor waited for its range")
        return running.ended.is_set()

    def at_once(self, call: Callable[[], T]) -> T:
        """What another request gives, which must not wait for those that stand at a gate."""
        other = self._start_other(call)
        assert self._is_through(other), "a request waits for one that must not be in its way"
        return other.join()

    def beside(self, gate: Gate, call: Callable[[], T]) -> T:
        """What another request gives; the gate is opened once it has ended, or waits for its range."""
        other = self._start_other(call)
        self._is_through(other)
        gate.open()
        return other.join()

    def reads(self, expected: bytes, offset: int = 0) -> None:
        """Assert what the device holds."""
        found = self.overlay.pread(offset, len(expected))
        assert found == expected, f"[{offset}, +{len(expected)}) is no order of the two requests"

    def holds_one_of(self, *expected: bytes) -> None:
        """Assert that the device begins with one or the other."""
        found = self.overlay.pread(0, len(expected[0]))
        assert found in expected, f"[0, +{len(found)}) is no order of the two requests"


Scenario = Callable[[OverlayClass, RangesClass], None]
SCENARIOS: list[Scenario] = []


def scenario(function: Scenario) -> Scenario:
    """Register a scenario."""
    SCENARIOS.append(function)
    return function


def with_part(block: bytes, part: bytes = PART) -> bytes:
    """A block with PART_AT overwritten."""
    return block[:PART_AT] + part + block[PART_AT + len(part) :]


# What was seen before the lock, and has changed since.


@scenario
def a_write_of_part_beside_a_write_of_the_whole(overlay: OverlayClass, ranges: RangesClass) -> None:
    """The part is merged into the whole that was written meanwhile, not into the base."""
    with Bench(overlay, ranges) as bench:
        part, gate = bench.stop_in_base(lambda: bench.overlay.write(PART_AT, PART))
        bench.at_once(lambda: bench.overlay.write(0, NEW))
        gate.open()
        part.join()
        bench.reads(with_part(NEW))


@scenario
def copy_on_read_beside_a_write(overlay: OverlayClass, ranges: RangesClass) -> None:
    """What was read for one client is not put over what another has written; not even over other bytes."""
    with Bench(overlay, ranges, copy_on_read=True) as bench:
        read, gate = bench.stop_in_base(lambda: bench.overlay.pread(0, 100))
        bench.at_once(lambda: bench.overlay.write(0, NEW))
        gate.open()
        assert read.join() == BASE[:100], "a read that began before the write may return the base's bytes, whole"
        bench.reads(NEW)


@scenario
def copy_on_read_beside_a_trim(overlay: OverlayClass, ranges: RangesClass) -> None:
    """Nor does what was read bring back what has been trimmed."""
    with Bench(overlay, ranges, copy_on_read=True) as bench:
        read, gate = bench.stop_in_base(lambda: bench.overlay.pread(0, 100))
        bench.at_once(lambda: bench.overlay.trim(0, BLOCK))
        gate.open()
        assert read.join() == BASE[:100], "a read that began before the trim may return the base's bytes, whole"
        bench.reads(bytes(BLOCK))


@scenario
def copy_on_cache_beside_a_write(overlay: OverlayClass, ranges: RangesClass) -> None:
    """A request that promises to change nothing does not."""
    with Bench(overlay, ranges, cache_mode="cow") as bench:
        cache, gate = bench.stop_in_base(lambda: bench.overlay.cache(0, 4 * BLOCK))
        bench.at_once(lambda: bench.overlay.write(BLOCK, NEW))
        gate.open()
        cache.join()
        bench.reads(BASE[:BLOCK] + NEW + BASE[2 * BLOCK :])


@scenario
def a_write_of_part_beside_a_trim(overlay: OverlayClass, ranges: RangesClass) -> None:
    """Bytes that were trimmed do not come back with their neighbours."""
    with Bench(overlay, ranges) as bench:
        part, gate = bench.stop_in_base(lambda: bench.overlay.write(PART_AT, PART))
        bench.at_once(lambda: bench.overlay.trim(0, BLOCK))
        gate.open()
        part.join()
        bench.reads(with_part(bytes(BLOCK)))


@scenario
def a_zero_of_part_beside_a_write_of_the_whole(overlay: OverlayClass, ranges: RangesClass) -> None:
    """Zeroes are merged as writes are."""
    with Bench(overlay, ranges) as bench:
        zero, gate = bench.stop_in_base(lambda: bench.overlay.zero(PART_AT, len(PART)))
        bench.at_once(lambda: bench.overlay.write(0, NEW))
        gate.open()
        zero.join()
        bench.reads(with_part(NEW, bytes(len(PART))))


@scenario
def a_trim_of_part_beside_another_write_of_part(overlay: OverlayClass, ranges: RangesClass) -> None:
    """Two merges of one block: the second goes on from the first."""
    with Bench(overlay, ranges) as bench:
        trim, gate = bench.stop_in_base(lambda: bench.overlay.trim(0, 50))
        bench.at_once(lambda: bench.overlay.write(PART_AT, PART))
        gate.open()
        trim.join()
        bench.reads(bytes(50) + with_part(BASE[:BLOCK])[50:])


@scenario
def a_fast_zero_of_part_beside_a_write_of_that_part(overlay: OverlayClass, ranges: RangesClass) -> None:
    """Whether it is fast is decided where the range is held: before the write it is, and after it no more."""
    with Bench(overlay, ranges) as bench:
        bench.overlay.trim(0, BLOCK)
        write, gate = bench.stop_in_store(lambda: bench.overlay.write(PART_AT, PART))
        refused = bench.beside(gate, lambda: refusal_of_a_fast_zero(bench.overlay))
        write.join()
        assert refused in (None, errno.ENOTSUP), refused
        # Done or refused, it has left the write as it is: done, it came before it.
        bench.reads(with_part(bytes(BLOCK)))


def refusal_of_a_fast_zero(overlay: Overlay) -> int | None:
    """The errno, or None if it was done."""
    try:
        overlay.zero(PART_AT, len(PART), fast=True)
    except OSError as error:
        return error.errno
    return None


# Reads beside changes.


@scenario
def a_read_beside_a_write_of_two_blocks(overlay: OverlayClass, ranges: RangesClass) -> None:
    """A read sees all of a write or nothing of it, over all of its blocks."""
    with Bench(overlay, ranges) as bench:
        bench.overlay.write(0, bytes(2 * BLOCK))
        write, gate = bench.stop_in_store(lambda: bench.overlay.write(0, NEW + NEW))
        seen = bench.beside(gate, lambda: bench.overlay.pread(0, 2 * BLOCK))
        write.join()
        assert seen in (bytes(2 * BLOCK), NEW + NEW), "a torn read"
        bench.reads(NEW + NEW)


@scenario
def a_read_beside_a_write_of_a_block_that_holds_something_and_one_that_does_not(
    overlay: OverlayClass, ranges: RangesClass
) -> None:
    """What shows the base may be seen without the lock only if all of it does."""
    with Bench(overlay, ranges) as bench:
        bench.overlay.write(0, OTHER)
        write, gate = bench.stop_in_store(lambda: bench.overlay.write(0, NEW + NEW))
        seen = bench.beside(gate, lambda: bench.overlay.pread(0, 2 * BLOCK))
        write.join()
        assert seen in (OTHER + BASE[BLOCK : 2 * BLOCK], NEW + NEW), "a torn read"


@scenario
def a_read_beside_a_write_of_two_blocks_and_parts(overlay: OverlayClass, ranges: RangesClass) -> None:
    """And so where the write has to keep parts of its first and last block."""
    with Bench(overlay, ranges) as bench:
        bench.overlay.write(0, bytes(3 * BLOCK))
        write, gate = bench.stop_in_store(lambda: bench.overlay.write(1, NEW + NEW))
        seen = bench.beside(gate, lambda: bench.overlay.pread(1, 2 * BLOCK))
        write.join()
        assert seen in (bytes(2 * BLOCK), NEW + NEW), "a torn read"


@scenario
def a_read_beside_a_zero_of_two_blocks(overlay: OverlayClass, ranges: RangesClass) -> None:
    """And so where the change is to zeroes."""
    with Bench(overlay, ranges) as bench:
        bench.overlay.write(0, NEW + NEW)
        zero, gate = bench.stop_in_store(lambda: bench.overlay.zero(0, 2 * BLOCK, no_hole=True))
        seen = bench.beside(gate, lambda: bench.overlay.pread(0, 2 * BLOCK))
        zero.join()
        assert seen in (NEW + NEW, bytes(2 * BLOCK)), "a torn read"


@scenario
def a_read_of_the_middle_of_a_write(overlay: OverlayClass, ranges: RangesClass) -> None:
    """A request holds all of its blocks, not only the first and the last."""
    with Bench(overlay, ranges) as bench:
        bench.overlay.write(0, bytes(3 * BLOCK))
        write, gate = bench.stop_in_store(lambda: bench.overlay.write(0, NEW + NEW + NEW))
        seen = bench.beside(gate, lambda: bench.overlay.pread(BLOCK, BLOCK))
        write.join()
        assert seen in (bytes(BLOCK), NEW), "a torn block"


@scenario
def a_read_of_the_middle_of_a_write_with_parts(overlay: OverlayClass, ranges: RangesClass) -> None:
    """And so when it begins and ends inside of blocks."""
    with Bench(overlay, ranges) as bench:
        bench.overlay.write(0, bytes(4 * BLOCK))
        write, gate = bench.stop_in_store(lambda: bench.overlay.write(1, NEW + NEW + NEW))
        seen = bench.beside(gate, lambda: bench.overlay.pread(BLOCK, BLOCK))
        write.join()
        assert seen in (bytes(BLOCK), NEW), "a torn block"


@scenario
def a_read_of_the_middle_of_a_zero(overlay: OverlayClass, ranges: RangesClass) -> None:
    """And so when it zeroes."""
    with Bench(overlay, ranges) as bench:
        bench.overlay.write(0, NEW + NEW + NEW)
        zero, gate = bench.stop_in_store(lambda: bench.overlay.zero(0, 3 * BLOCK, no_hole=True))
        seen = bench.beside(gate, lambda: bench.overlay.pread(BLOCK, BLOCK))
        zero.join()
        assert seen in (NEW, bytes(BLOCK)), "a torn block"


@scenario
def a_read_of_more_than_a_write_changes(overlay: OverlayClass, ranges: RangesClass) -> None:
    """A read holds all of its blocks too: the write is in the middle of it."""
    with Bench(overlay, ranges) as bench:
        bench.overlay.write(0, bytes(4 * BLOCK))
        write, gate = bench.stop_in_store(lambda: bench.overlay.write(BLOCK, NEW + NEW))
        seen = bench.beside(gate, lambda: bench.overlay.pread(0, 4 * BLOCK))
        write.join()
        assert seen[BLOCK : 3 * BLOCK] in (bytes(2 * BLOCK), NEW + NEW), "a torn read"


@scenario
def a_write_beside_a_read_of_two_blocks(overlay: OverlayClass, ranges: RangesClass) -> None:
    """And so when the read came first."""
    with Bench(overlay, ranges) as bench:
        bench.overlay.write(0, bytes(2 * BLOCK))
        read, gate = bench.stop_in_store(lambda: bench.overlay.pread(0, 2 * BLOCK))
        bench.beside(gate, lambda: bench.overlay.write(0, NEW + NEW))
        assert read.join() in (bytes(2 * BLOCK), NEW + NEW), "a torn read"


@scenario
def extents_beside_a_zero_of_two_parts(overlay: OverlayClass, ranges: RangesClass) -> None:
    """Extents are as of one instant: both blocks are the base's hole, or both are data that was zeroed in part."""
    hole, data = Extent(4 * BLOCK, hole=True, zero=True), Extent(2 * BLOCK, hole=False, zero=False)
    edge = Extent(BLOCK, hole=True, zero=True)
    with Bench(overlay, ranges, base_extents=(ModelExtent(*hole),)) as bench:
        # The first part has been stored, and is ALLOCATED; the second is half way.
        zero, gate = bench.stop_in_store(lambda: bench.overlay.zero(BLOCK + PART_AT, BLOCK), after=1)
        seen = bench.beside(gate, lambda: list(bench.overlay.extents(0, 4 * BLOCK)))
        zero.join()
        assert seen in ([hole], [edge, data, edge]), "torn extents"


@scenario
def a_cache_of_more_than_a_write_changes(overlay: OverlayClass, ranges: RangesClass) -> None:
    """What is being written need not be fetched from the base, and is not."""
    with Bench(overlay, ranges, cache_mode="read") as bench:
        write, gate = bench.stop_in_store(lambda: bench.overlay.write(BLOCK, NEW))
        bench.beside(gate, lambda: bench.overlay.cache(0, 3 * BLOCK))
        write.join()
        assert bench.base.reads == [(0, BLOCK), (2 * BLOCK, BLOCK)], "the base is read for a block that was written"


# Changes beside changes.


@scenario
def two_writes_of_the_same_blocks(overlay: OverlayClass, ranges: RangesClass) -> None:
    """One is over the other, not each over a part of the other."""
    with Bench(overlay, ranges) as bench:
        first, gate = bench.stop_in_store(lambda: bench.overlay.write(0, NEW + NEW))
        bench.beside(gate, lambda: bench.overlay.write(0, OTHER + OTHER))
        first.join()
        bench.holds_one_of(NEW + NEW, OTHER + OTHER)


@scenario
def a_trim_beside_a_write(overlay: OverlayClass, ranges: RangesClass) -> None:
    """The hole is punched under the lock, or it would be punched into what was written after it."""
    with Bench(overlay, ranges) as bench:
        bench.overlay.write(0, OTHER + OTHER)
        write, gate = bench.stop_in_store(lambda: bench.overlay.write(0, NEW + NEW))
        bench.beside(gate, lambda: bench.overlay.trim(0, 2 * BLOCK))
        write.join()
        bench.holds_one_of(NEW + NEW, bytes(2 * BLOCK))


@scenario
def a_write_beside_a_copy_half_kept(overlay: OverlayClass, ranges: RangesClass) -> None:
    """The other half of the copy is not put over what was written meanwhile."""
    with Bench(overlay, ranges, copy_on_read=True) as bench:
        read, gate = bench.stop_in_store(lambda: bench.overlay.pread(0, 100))
        bench.beside(gate, lambda: bench.overlay.write(0, NEW))
        assert read.join() == BASE[:100]
        bench.reads(NEW)


@scenario
def a_write_to_the_middle_of_a_copy_half_kept(overlay: OverlayClass, ranges: RangesClass) -> None:
    """A copy holds all of its blocks, not only the first and the last."""
    with Bench(overlay, ranges, copy_on_read=True) as bench:
        read, gate = bench.stop_in_store(lambda: bench.overlay.pread(0, 3 * BLOCK))
        bench.beside(gate, lambda: bench.overlay.write(BLOCK, NEW))
        assert read.join() == BASE[: 3 * BLOCK]
        bench.reads(BASE[:BLOCK] + NEW + BASE[2 * BLOCK :])


# Who must not wait.


@scenario
def two_copies_of_one_block_side_by_side(overlay: OverlayClass, ranges: RangesClass) -> None:
    """Copies share the range: they write the same bytes, and neither waits for the other."""
    with Bench(overlay, ranges, copy_on_read=True) as bench:
        first, gate = bench.stop_in_store(lambda: bench.overlay.pread(0, BLOCK))
        assert bench.at_once(lambda: bench.overlay.pread(0, BLOCK)) == BASE[:BLOCK]
        gate.open()
        assert first.join() == BASE[:BLOCK]
        bench.reads(BASE)
        assert bench.overlay.states.get(0, 1)[0] == ALLOCATED


@scenario
def two_looks_at_one_block_side_by_side(overlay: OverlayClass, ranges: RangesClass) -> None:
    """Readers share the range: a slow one keeps no other waiting, and none who asks for extents or to cache."""
    with Bench(overlay, ranges) as bench:
        bench.overlay.write(0, NEW)
        first, gate = bench.stop_in_store(lambda: bench.overlay.pread(0, BLOCK))
        assert bench.at_once(lambda: bench.overlay.pread(0, BLOCK)) == NEW
        assert list(bench.at_once(lambda: bench.overlay.extents(0, BLOCK))) == [Extent(BLOCK, hole=False, zero=False)]
        bench.at_once(lambda: bench.overlay.cache(0, BLOCK))
        gate.open()
        assert first.join() == NEW


@scenario
def a_write_beside_a_read_that_waits_for_the_base(overlay: OverlayClass, ranges: RangesClass) -> None:
    """The base is read with nothing held; the read gives what was there when it looked."""
    with Bench(overlay, ranges) as bench:
        read, gate = bench.stop_in_base(lambda: bench.overlay.pread(0, BLOCK))
        bench.at_once(lambda: bench.overlay.write(0, NEW))
        gate.open()
        assert read.join() == BASE[:BLOCK]
        bench.reads(NEW)


@scenario
def requests_that_do_not_overlap(overlay: OverlayClass, ranges: RangesClass) -> None:
    """None waits for another: not for its base, and not for its store (promise P4)."""
    with Bench(overlay, ranges) as bench:
        slow, base_gate = bench.stop_in_base(lambda: bench.overlay.write(PART_AT, PART))
        busy, store_gate = bench.stop_in_store(lambda: bench.overlay.write(BLOCK, NEW))
        bench.at_once(lambda: bench.overlay.write(2 * BLOCK + PART_AT, PART))
        bench.at_once(lambda: bench.overlay.pread(2 * BLOCK, 2 * BLOCK))
        bench.at_once(lambda: bench.overlay.trim(3 * BLOCK, BLOCK))
        # The same block as the one that waits for the base: it holds nothing.
        bench.at_once(lambda: bench.overlay.write(0, NEW))
        base_gate.open()
        store_gate.open()
        slow.join()
        busy.join()
        bench.reads(with_part(NEW) + NEW + with_part(BASE[2 * BLOCK : 3 * BLOCK]) + bytes(BLOCK))
