"""Interleavings of two requests that are chosen, one by one, because each has lost data in some implementation.

Every scenario drives an overlay (the shipped one, or a mutant) with gates in its base or its store, and raises
AssertionError when what is read afterwards is no order of the requests. The first three are how nbdkit's cow filter
loses writes. What is systematic about interleavings is not here: this is the part that can be read.

Units:   bytes; a device of four blocks of BLOCK bytes.
"""

from __future__ import annotations

from collections.abc import Callable

from check.gates import Gate, GatedBase, GatedStore, Running, WatchedSync
from check.subjects import OverlayClass, Setup
from impl.overlay.blocks import block_count
from impl.overlay.overlay import CacheMode, Overlay, never
from impl.overlay.rangelock import RangeLock, Ranges
from impl.overlay.statemap import ALLOCATED, StateMap
from impl.overlay.store import memory_store
from impl.sync import Sync

BLOCK = 4096
BASE = bytes(1 + index % 251 for index in range(4 * BLOCK))
NEW = b"\xf1" * BLOCK
PART = b"\xf2" * 100
PART_AT = 1000

RangesClass = Callable[[Sync], Ranges]


class Bench:
    """An overlay under test, and the gates in it."""

    def __init__(
        self,
        overlay_class: OverlayClass,
        ranges_class: RangesClass,
        *,
        copy_on_read: bool = False,
        cache_mode: CacheMode = "ignore",
    ) -> None:
        self.base = GatedBase(Setup(BASE, BLOCK))
        self.store = GatedStore(memory_store(len(BASE)))
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

    def stop_in_base(self, call: Callable[[], object]) -> tuple[Running[object], Gate]:
        """Start a request, and leave it where it waits for the base."""
        gate = self.base.gate = Gate()
        return self._stop_at(gate, call)

    def stop_in_store(self, call: Callable[[], object]) -> tuple[Running[object], Gate]:
        """Start a request, and leave it half way through the first transfer of its data."""
        gate = self.store.gate = Gate()
        return self._stop_at(gate, call)

    def _stop_at(self, gate: Gate, call: Callable[[], object]) -> tuple[Running[object], Gate]:
        gate.shut()
        running = Running(call)
        gate.wait_for_arrival()
        return running, gate

    def let_go_once_other_is_through_or_waits(self, gate: Gate, call: Callable[[], object]) -> object:
        """Start another request; once it has ended, or waits for its range, open the gate. What the request gave."""
        self.sync.somebody_waits.clear()
        other = Running(call, also_set=self.sync.somebody_waits)
        if not self.sync.somebody_waits.wait(20):
            raise AssertionError("the other request neither ended nor waited for its range")
        gate.open()
        return other.join()

    def reads(self, expected: bytes, offset: int = 0) -> None:
        """Assert what the device holds."""
        found = self.overlay.pread(offset, len(expected))
        assert found == expected, f"[{offset}, +{len(expected)}) is no order of the two requests"


Scenario = Callable[[OverlayClass, RangesClass], None]
SCENARIOS: list[Scenario] = []


def scenario(function: Scenario) -> Scenario:
    """Register a scenario."""
    SCENARIOS.append(function)
    return function


def with_part(block: bytes, part: bytes = PART) -> bytes:
    """A block with PART_AT overwritten."""
    return block[:PART_AT] + part + block[PART_AT + len(part) :]


@scenario
def a_write_of_part_beside_a_write_of_the_whole(overlay: OverlayClass, ranges: RangesClass) -> None:
    """The part is merged into the whole that was written meanwhile, not into the base."""
    bench = Bench(overlay, ranges)
    part, gate = bench.stop_in_base(lambda: bench.overlay.write(PART_AT, PART))
    bench.overlay.write(0, NEW)
    gate.open()
    part.join()
    bench.reads(with_part(NEW))


@scenario
def copy_on_read_beside_a_write(overlay: OverlayClass, ranges: RangesClass) -> None:
    """What was read for one client is not put over what another has written; not even over other bytes."""
    bench = Bench(overlay, ranges, copy_on_read=True)
    read, gate = bench.stop_in_base(lambda: bench.overlay.pread(0, 100))
    bench.overlay.write(0, NEW)
    gate.open()
    assert read.join() == BASE[:100], "a read that began before the write may return the base's bytes, whole"
    bench.reads(NEW)


@scenario
def copy_on_cache_beside_a_write(overlay: OverlayClass, ranges: RangesClass) -> None:
    """A request that promises to change nothing does not."""
    bench = Bench(overlay, ranges, cache_mode="cow")
    cache, gate = bench.stop_in_base(lambda: bench.overlay.cache(0, 4 * BLOCK))
    bench.overlay.write(BLOCK, NEW)
    gate.open()
    cache.join()
    bench.reads(BASE[:BLOCK] + NEW + BASE[2 * BLOCK :])


@scenario
def a_write_of_part_beside_a_trim(overlay: OverlayClass, ranges: RangesClass) -> None:
    """Bytes that were trimmed do not come back with their neighbours."""
    bench = Bench(overlay, ranges)
    part, gate = bench.stop_in_base(lambda: bench.overlay.write(PART_AT, PART))
    bench.overlay.trim(0, BLOCK)
    gate.open()
    part.join()
    bench.reads(with_part(bytes(BLOCK)))


@scenario
def a_zero_of_part_beside_a_write_of_the_whole(overlay: OverlayClass, ranges: RangesClass) -> None:
    """Zeroes are merged as writes are."""
    bench = Bench(overlay, ranges)
    zero, gate = bench.stop_in_base(lambda: bench.overlay.zero(PART_AT, len(PART)))
    bench.overlay.write(0, NEW)
    gate.open()
    zero.join()
    bench.reads(with_part(NEW, bytes(len(PART))))


@scenario
def a_trim_of_part_beside_another_write_of_part(overlay: OverlayClass, ranges: RangesClass) -> None:
    """Two merges of one block: the second goes on from the first."""
    bench = Bench(overlay, ranges)
    trim, gate = bench.stop_in_base(lambda: bench.overlay.trim(0, 50))
    bench.overlay.write(PART_AT, PART)
    gate.open()
    trim.join()
    bench.reads(bytes(50) + with_part(BASE[:BLOCK])[50:])


@scenario
def a_read_beside_a_write_of_two_blocks(overlay: OverlayClass, ranges: RangesClass) -> None:
    """A read sees all of a write or nothing of it, over all of its blocks."""
    bench = Bench(overlay, ranges)
    bench.overlay.write(0, bytes(2 * BLOCK))
    write, gate = bench.stop_in_store(lambda: bench.overlay.write(0, NEW + NEW))
    seen = bench.let_go_once_other_is_through_or_waits(gate, lambda: bench.overlay.pread(0, 2 * BLOCK))
    write.join()
    assert seen in (bytes(2 * BLOCK), NEW + NEW), "a torn read"
    bench.reads(NEW + NEW)


@scenario
def a_read_of_the_middle_of_a_write(overlay: OverlayClass, ranges: RangesClass) -> None:
    """A request holds all of its blocks, not only the first."""
    bench = Bench(overlay, ranges)
    bench.overlay.write(0, bytes(3 * BLOCK))
    write, gate = bench.stop_in_store(lambda: bench.overlay.write(0, NEW + NEW + NEW))
    seen = bench.let_go_once_other_is_through_or_waits(gate, lambda: bench.overlay.pread(BLOCK, BLOCK))
    write.join()
    assert seen in (bytes(BLOCK), NEW), "a torn block"


@scenario
def a_write_beside_a_read_of_two_blocks(overlay: OverlayClass, ranges: RangesClass) -> None:
    """And so when the read came first."""
    bench = Bench(overlay, ranges)
    bench.overlay.write(0, bytes(2 * BLOCK))
    read, gate = bench.stop_in_store(lambda: bench.overlay.pread(0, 2 * BLOCK))
    bench.let_go_once_other_is_through_or_waits(gate, lambda: bench.overlay.write(0, NEW + NEW))
    assert read.join() in (bytes(2 * BLOCK), NEW + NEW), "a torn read"


@scenario
def two_writes_of_the_same_blocks(overlay: OverlayClass, ranges: RangesClass) -> None:
    """One is over the other, not each over a part of the other."""
    bench = Bench(overlay, ranges)
    first, gate = bench.stop_in_store(lambda: bench.overlay.write(0, NEW + NEW))
    other = b"\xf3" * (2 * BLOCK)
    bench.let_go_once_other_is_through_or_waits(gate, lambda: bench.overlay.write(0, other))
    first.join()
    assert bench.overlay.pread(0, 2 * BLOCK) in (NEW + NEW, other), "two writes, shredded"


@scenario
def a_trim_beside_a_write(overlay: OverlayClass, ranges: RangesClass) -> None:
    """The hole is punched under the lock, or it would be punched into what was written after it."""
    bench = Bench(overlay, ranges)
    write, gate = bench.stop_in_store(lambda: bench.overlay.write(0, NEW + NEW))
    bench.let_go_once_other_is_through_or_waits(gate, lambda: bench.overlay.trim(0, 2 * BLOCK))
    write.join()
    assert bench.overlay.pread(0, 2 * BLOCK) in (NEW + NEW, bytes(2 * BLOCK)), "a write, half trimmed"


@scenario
def two_copies_of_one_block_side_by_side(overlay: OverlayClass, ranges: RangesClass) -> None:
    """Copies share the range: they write the same bytes, and neither waits for the other."""
    bench = Bench(overlay, ranges, copy_on_read=True)
    first, gate = bench.stop_in_store(lambda: bench.overlay.pread(0, BLOCK))
    assert Running(lambda: bench.overlay.pread(0, BLOCK)).join() == BASE[:BLOCK]
    gate.open()
    assert first.join() == BASE[:BLOCK]
    bench.reads(BASE)
    assert bench.overlay.states.get(0, 1)[0] == ALLOCATED


@scenario
def requests_that_do_not_overlap(overlay: OverlayClass, ranges: RangesClass) -> None:
    """None waits for another: not for its base, and not for its store (promise P4)."""
    bench = Bench(overlay, ranges)
    slow, base_gate = bench.stop_in_base(lambda: bench.overlay.write(PART_AT, PART))
    busy, store_gate = bench.stop_in_store(lambda: bench.overlay.write(BLOCK, NEW))
    for request in (
        lambda: bench.overlay.write(2 * BLOCK + PART_AT, PART),
        lambda: bench.overlay.pread(2 * BLOCK, 2 * BLOCK),
        lambda: bench.overlay.trim(3 * BLOCK, BLOCK),
        lambda: bench.overlay.write(0, NEW),  # the same block as the one that waits for the base: it holds nothing
    ):
        Running(request).join()
    base_gate.open()
    store_gate.open()
    slow.join()
    busy.join()
    bench.reads(with_part(NEW) + NEW + with_part(BASE[2 * BLOCK : 3 * BLOCK]) + bytes(BLOCK))


def first_failure(overlay: OverlayClass = Overlay, ranges: RangesClass = RangeLock) -> str | None:
    """The first scenario that an overlay fails, or None."""
    for each in SCENARIOS:
        try:
            each(overlay, ranges)
        except AssertionError as error:
            return f"{each.__name__}: {error}"
    return None
