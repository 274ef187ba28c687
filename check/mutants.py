"""Overlays with one thing wrong each: what a check has to catch, or the thing was not needed, or the check is blind.

Every lock, second look and ordering of `impl/overlay/overlay.py` has a mutant here that leaves it out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from check.races import RangesClass
from check.subjects import OverlayClass
from impl.overlay.overlay import FromBase, Overlay, Segment, Zeroes
from impl.overlay.rangelock import RangeLock
from impl.overlay.statemap import ALLOCATED, NOT_ALLOCATED, TRIMMED, runs
from impl.overlay.store import Buffer
from impl.sync import Sync


class NoSecondLookAtWrites(Overlay):
    """Merges with the base whenever the block was NOT_ALLOCATED before the lock."""

    __slots__ = ()

    def _kept_part(self, block: int, fetched: dict[int, bytes], from_: int, to: int | None) -> Buffer:
        if block in fetched:
            return memoryview(fetched[block])[from_:to]
        return super()._kept_part(block, fetched, from_, to)


class NoSecondLookAtZeroes(Overlay):
    """The same for zeroes and trims."""

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


class CopiesOutAfterTheLock(Overlay):
    """Notes the states under the lock, and copies the overlay's bytes when it is gone."""

    __slots__ = ()

    def look(self, offset: int, length: int) -> list[Segment]:
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


class StatesBeforeData(Overlay):
    """Says that blocks are ALLOCATED, and then writes them."""

    __slots__ = ()

    def _write_blocks(self, first: int, last: int, start: int, parts: Sequence[Buffer]) -> None:
        self.states.fill(first, last + 1, ALLOCATED)
        self.store.pwrite(start, parts)


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

    def _end_of(self, block: int) -> int:
        return (block + 1) * self.block_size


class LastBlockNeverWhole(Overlay):
    """Takes a block to be whole only when it is of full size, so that a short one is never trimmed."""

    __slots__ = ()

    def _zero_whole(self, first: int, end: int, no_hole: bool) -> None:
        whole_end = self.size // self.block_size
        if first < min(end, whole_end):
            super()._zero_whole(first, min(end, whole_end), no_hole)
        for block in range(max(first, whole_end), end):
            self._provide_zeroes(block, block + 1)


class _Nothing:
    """Holds no range."""

    def __init__(self, sync: Sync) -> None:
        """Nothing to set up."""

    def __enter__(self) -> object:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to give back."""

    def shared(self, first: int, last: int) -> _Nothing:
        """At once."""
        return self

    def exclusive(self, first: int, last: int) -> _Nothing:
        """At once."""
        return self


class ReadersDoNotLock(RangeLock):
    """Only writers exclude each other."""

    def shared(self, first: int, last: int) -> _Nothing:  # type: ignore[override]
        """At once."""
        return _Nothing(self._sync)


class WritersShare(RangeLock):
    """Writers hold the range as readers do."""

    def exclusive(self, first: int, last: int):  # type: ignore[no-untyped-def]  # noqa: ANN201
        """As a reader."""
        return self.shared(first, last)


class OneBlockOfTheRange(RangeLock):
    """Locks the first block of a request only."""

    def _acquire(self, first: int, last: int, exclusive: bool):  # type: ignore[no-untyped-def]  # noqa: ANN202
        return super()._acquire(first, first, exclusive)


class OneLockForAll(RangeLock):
    """Locks the whole device for every request, as nbdkit's first version did."""

    def _acquire(self, first: int, last: int, exclusive: bool):  # type: ignore[no-untyped-def]  # noqa: ANN202
        return super()._acquire(0, 1 << 62, exclusive)


@dataclass(frozen=True)
class Mutant:
    """What is wrong, and which kind of check has to see it: `races` or `suite`."""

    name: str
    caught_by: str
    overlay: OverlayClass = Overlay
    ranges: RangesClass = RangeLock


def _mutant(
    caught_by: str, overlay: type[Overlay] | None = None, ranges: Callable[..., object] | None = None
) -> Mutant:
    subject = overlay or ranges
    assert subject is not None
    return Mutant(subject.__name__.strip("_"), caught_by, overlay or Overlay, ranges or RangeLock)  # type: ignore[arg-type]


MUTANTS = [
    _mutant("races", NoSecondLookAtWrites),
    _mutant("races", NoSecondLookAtZeroes),
    _mutant("races", NoSecondLookAtCopies),
    _mutant("races", CopiesOutAfterTheLock),
    _mutant("races", ranges=_Nothing),
    _mutant("races", ranges=ReadersDoNotLock),
    _mutant("races", ranges=WritersShare),
    _mutant("races", ranges=OneBlockOfTheRange),
    _mutant("races", ranges=OneLockForAll),
    _mutant("suite", LongLastBlock),
    _mutant("suite", LastBlockNeverWhole),
    _mutant("suite", StatesBeforeData),
    _mutant("suite", NoZeroFill),
]
