"""The code that is explored, on a stage: the shipped overlay, and the three algorithms of `specs/subjects`.

Shapes:  a Kind makes a Subject, a new one for every run, and says what the world it works on looks like.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from check.explore.connection import Connection
from check.explore.learn import Subject
from check.explore.programs import Disk, Program
from check.explore.seam import (
    ArrivalLock,
    ExploredBase,
    ExploredLock,
    ExploredMap,
    ExploredRanges,
    ExploredStates,
    ExploredStore,
    ExploredSync,
    Stage,
    Told,
)
from check.explore.world import HOLE, LEFT_MOVERS, World, first_world
from impl.errors import UsageError
from impl.overlay.overlay import CacheMode, Overlay, never
from impl.overlay.rangelock import Held, RangeLock, Ranges
from model.block import State
from model.device import Cache, Data, Done, Extents, Flush, Read, Reply, Request, Status, Trim, Write, Zero
from model.extents import Extent
from specs.subjects.bitmap_lock import BitmapLock
from specs.subjects.global_lock import GlobalLock
from specs.subjects.range_lock import RangeLocked
from specs.subjects.seam import TwoBitMap, packed, unpacked


@dataclass(frozen=True)
class Modes:
    """How a device behaves that can behave in several ways."""

    copy_on_read: bool = False
    copy_on_cache: bool = False


PLAIN = Modes()
# Requests that have to be alone with their blocks; all others only look, or copy what cannot change.
CHANGES = (Write, Zero, Trim)
Made = tuple[Subject, dict[str, Hashable]]


@dataclass(frozen=True)
class Kind:
    """A kind of subject.

    make:         the subject for a program, and the first values of the variables it shares.
    meaning:      one line for people.
    disciplined:  whether it promises to touch the store under range locks only, and the base under none.
    two_bits:     whether its map has four states to a byte.
    waits_for_overlap_only:  whether it promises that a request waits for no request but those that overlap it.
    knows_all:    whether it knows block status, and zeroes with flags.
    gives_back:   whether it promises that only what is ALLOCATED has space, one byte of state for each block.
    tries:        whether it looks if a range is free without waiting for it: then it can tell whether one is given back
                  at once or a little later, and that is no longer done with what came before it.
    wakes:        whether waiting on its conditions may end without reason, for one of the faults that are allowed.
    is_device:    whether it is one, and its answers are to be explained; if not, it only must not do what is forbidden.
    """

    name: str
    make: Callable[[Disk, Modes], Made]
    meaning: str
    disciplined: bool = False
    two_bits: bool = False
    waits_for_overlap_only: bool = False
    knows_all: bool = True
    gives_back: bool = False
    tries: bool = False
    wakes: bool = False
    is_device: bool = True

    @property
    def left_movers(self) -> frozenset[str]:
        """The operations that are done at once with the one before them."""
        return LEFT_MOVERS - {"release"} if self.tries else LEFT_MOVERS

    def check(self, program: Program) -> None:
        """UsageError for a program with requests that the subject does not know."""
        if not self.is_device and any(isinstance(request, Flush) for client in program.requests for request in client):
            raise UsageError(f"{self.name} knows no flush: there is no range to be locked")
        for client in () if self.knows_all else program.requests:
            for request in client:
                if isinstance(request, Status) or (isinstance(request, Zero) and (request.fast or request.no_hole)):
                    raise UsageError(f"{self.name} knows neither block status nor zeroes with flags")

    def world(self, disk: Disk, modes: Modes, faults: int) -> World:
        """The world at first."""
        _, cells = self.make(disk, modes)
        world = first_world(disk.initial, disk.stored, disk.block_size, faults)
        states = packed(world.states) if self.two_bits else world.states
        return replace(world, states=states, cells=tuple(cells.items()))

    def seen(self, disk: Disk, world: World) -> tuple[bytes, tuple[bool, ...]]:
        """What a reader would find, and which blocks are trimmed."""
        count = len(disk.initial)
        states: Sequence[int] = unpacked(world.states, count) if self.two_bits else world.states
        found = bytes((disk.base[at], world.store[at], 0)[states[at // disk.block_size]] for at in range(disk.size))
        return found, tuple(state == State.TRIMMED for state in states)

    def wasted(self, disk: Disk, world: World) -> str:
        """What is wrong with the space that blocks have which are not ALLOCATED, when nobody is at work.

        Two things may leave them some: a hole that could not be punched, and a copy of the base that did not fit.
        """
        if not self.gives_back or world.punch_failed:
            return ""
        for at, value in enumerate(world.store):
            block = at // disk.block_size
            state = world.states[block]
            is_copy = state == State.NOT_ALLOCATED and value == disk.base[at]
            if state != State.ALLOCATED and value != HOLE and not is_copy:
                return f"block {block} is {State(state).name}, and has kept its space"
        return ""


def ask_overlay(overlay: Overlay, request: Request) -> Reply:
    """Call the method that the request stands for."""
    match request:
        case Read(offset, length):
            return Data(overlay.pread(offset, length))
        case Write(offset, data, _):
            overlay.write(offset, data)
        case Zero(offset, length, no_hole, fast):
            overlay.zero(offset, length, no_hole, fast)
        case Trim(offset, length):
            overlay.trim(offset, length)
        case Cache(offset, length):
            overlay.cache(offset, length)
        case Status(offset, length):
            return Extents(tuple(Extent(*extent) for extent in overlay.extents(offset, length)))
        case Flush():
            overlay.flush()
    return Done()


OverlayClass = Callable[..., Overlay]
RangesClass = Callable[[ExploredSync], Ranges]


def overlay_kind(
    name: str,
    meaning: str,
    overlay_class: OverlayClass = Overlay,
    ranges_class: RangesClass | None = None,
    disciplined: bool = True,
    fault: Callable[[Ranges], Ranges] = lambda ranges: ranges,
) -> Kind:
    """An overlay class, with range locks as one primitive, perhaps with a fault; or as they are, given a class."""

    def make(disk: Disk, modes: Modes) -> Made:
        stage = Stage()
        sync = ExploredSync(stage)
        ranges: Ranges = fault(ExploredRanges(stage)) if ranges_class is None else ranges_class(sync)
        stage.fix("ranges", ranges)
        cache_mode: CacheMode = "cow" if modes.copy_on_cache else "read"
        overlay = overlay_class(
            base=ExploredBase(stage, disk.size),
            store=ExploredStore(stage),
            states=ExploredStates(stage),
            ranges=ranges,
            block_size=disk.block_size,
            cache_mode=cache_mode,
            copy_on_read=(lambda: True) if modes.copy_on_read else never,
        )
        return Subject(stage, lambda request: ask_overlay(overlay, request)), sync.first_values

    is_disciplined = disciplined and ranges_class is None
    wakes = ranges_class is not None
    return Kind(name, make, meaning, is_disciplined, waits_for_overlap_only=True, gives_back=True, wakes=wakes)


def served_kind(name: str, meaning: str, overlay_class: OverlayClass = Overlay) -> Kind:
    """An overlay class behind the server's commands, whose threads wait for no range; as one connection runs them."""

    def make(disk: Disk, modes: Modes) -> Made:
        stage = Stage()
        base = ExploredBase(stage, disk.size)
        overlay = overlay_class(
            base=base,
            store=ExploredStore(stage),
            states=ExploredStates(stage),
            ranges=ExploredRanges(stage),
            block_size=disk.block_size,
            cache_mode="cow" if modes.copy_on_cache else "read",
            copy_on_read=(lambda: True) if modes.copy_on_read else never,
        )
        connection = Connection(overlay, base)
        return Subject(stage, connection.ask), {}

    return Kind(name, make, meaning, disciplined=True, waits_for_overlap_only=True, gives_back=True, tries=True)


RangeLockClass = Callable[[ExploredSync], RangeLock]


def lock_kind(name: str, meaning: str, lock_class: RangeLockClass) -> Kind:
    """A range lock by itself: what changes a device holds its blocks to change, everything else to look.

    Reads and writes wait for their range in their thread. All others do as a server's requests: they take it if it is
    to be had at once, and leave word if it is not.
    """

    def make(disk: Disk, modes: Modes) -> Made:
        stage = Stage()
        sync = ExploredSync(stage, ArrivalLock)
        ranges = lock_class(sync)
        stage.fix("ranges", ranges)

        def execute(request: Request) -> Reply:
            assert not isinstance(request, Flush)
            first, end = request.offset // disk.block_size, -(-(request.offset + request.length) // disk.block_size)
            wanted = (first, end - 1, isinstance(request, CHANGES))
            take = wait_for_range if isinstance(request, (Read, Write)) else ask_for_range
            with take(stage, ranges, *wanted):
                stage.perform("inside")
                stage.run.intent = ("outside",)
            return Done()

        return Subject(stage, execute), sync.first_values

    return Kind(name, make, meaning, waits_for_overlap_only=True, wakes=True, is_device=False)


def wait_for_range(stage: Stage, ranges: RangeLock, first: int, last: int, exclusive: bool) -> Held:
    """Hold a range as those do who have a thread to wait in."""
    stage.run.intent = ("arrive", first, last, exclusive)
    return (ranges.exclusive if exclusive else ranges.shared)(first, last)


def ask_for_range(stage: Stage, ranges: RangeLock, first: int, last: int, exclusive: bool) -> Held:
    """Hold a range as those do who have not."""
    stage.run.intent = ("try", first, last, exclusive)
    held = ranges.at_once(first, last, exclusive)
    if held is not None:
        return held
    if stage.run.came_in:
        stage.perform("refused")
    stage.run.intent = ("arrive", first, last, exclusive)
    told = Told(stage)
    ranges.ask(first, last, exclusive, told)
    return told.wait()


class Algorithm(Protocol):
    """What the algorithms of `specs/subjects` have in common."""

    def read(self, offset: int, length: int) -> bytes: ...

    def write(self, offset: int, data: bytes) -> None: ...

    def zero(self, offset: int, length: int) -> None: ...

    def trim(self, offset: int, length: int) -> None: ...

    def cache(self, offset: int, length: int) -> None: ...


def ask_algorithm(algorithm: Algorithm, request: Request) -> Reply:
    """Call the method that the request stands for."""
    match request:
        case Read(offset, length):
            return Data(algorithm.read(offset, length))
        case Write(offset, data, _):
            algorithm.write(offset, data)
        case Zero(offset, length):
            algorithm.zero(offset, length)
        case Trim(offset, length):
            algorithm.trim(offset, length)
        case Cache(offset, length):
            algorithm.cache(offset, length)
        case Status():
            raise AssertionError("Kind.check has let this through")
        case Flush():
            return Done()
    return Done()


@dataclass(frozen=True)
class Parts:
    """What an algorithm is made of, all of it on one stage."""

    stage: Stage
    disk: Disk
    modes: Modes
    sync: ExploredSync
    base: ExploredBase
    store: ExploredStore
    map: ExploredMap
    ranges: ExploredRanges


def algorithm_kind(
    name: str,
    meaning: str,
    make_algorithm: Callable[[Parts], Algorithm],
    disciplined: bool = False,
    two_bits: bool = False,
) -> Kind:
    """One of the algorithms of `specs/subjects`."""

    def make(disk: Disk, modes: Modes) -> Made:
        stage = Stage()
        parts = Parts(
            stage,
            disk,
            modes,
            ExploredSync(stage),
            ExploredBase(stage, disk.size),
            ExploredStore(stage),
            ExploredMap(stage),
            ExploredRanges(stage),
        )
        algorithm = make_algorithm(parts)
        return Subject(stage, lambda request: ask_algorithm(algorithm, request)), parts.sync.first_values

    return Kind(name, make, meaning, disciplined, two_bits, waits_for_overlap_only=disciplined, knows_all=False)


def _global_lock(parts: Parts, old_tail: bool = False) -> Algorithm:
    return GlobalLock(
        base=parts.base,
        store=parts.store,
        map=parts.map,
        lock=ExploredLock(parts.stage, "the lock"),
        block_size=parts.disk.block_size,
        copy_on_cache=parts.modes.copy_on_cache,
        old_tail=old_tail,
    )


def _bitmap_lock(parts: Parts, two_bits: bool = False) -> Algorithm:
    return BitmapLock(
        base=parts.base,
        store=parts.store,
        map=TwoBitMap(parts.map) if two_bits else parts.map,
        lock=ExploredLock(parts.stage, "the map's lock"),
        rmw=ExploredLock(parts.stage, "the RMW lock"),
        block_size=parts.disk.block_size,
        copy_on_read=parts.modes.copy_on_read,
        copy_on_cache=parts.modes.copy_on_cache,
    )


def _range_lock(parts: Parts, two_bits: bool = False) -> Algorithm:
    return RangeLocked(
        base=parts.base,
        store=parts.store,
        map=TwoBitMap(parts.map) if two_bits else parts.map,
        ranges=parts.ranges,
        block_size=parts.disk.block_size,
        copy_on_read=parts.modes.copy_on_read,
        copy_on_cache=parts.modes.copy_on_cache,
    )


OVERLAY = overlay_kind("overlay", "the shipped overlay, range locks as one primitive")
OVERLAY_WITH_LOCK = overlay_kind(
    "overlay-with-lock",
    "the shipped overlay, its range lock down to mutex and condition",
    ranges_class=RangeLock,
)
OVERLAY_SERVED = served_kind(
    "overlay-served", "the shipped overlay behind the server's commands: no thread waits for a range"
)
LOCK_ALONE = lock_kind(
    "lock-alone", "the shipped range lock by itself: exclusive, and first come first served", RangeLock
)
GLOBAL_LOCK = algorithm_kind("global-lock", "nbdkit's cow filter before the patch", _global_lock)
OLD_TAIL = algorithm_kind(
    "global-lock-old-tail", "the same with its old fault in unaligned zeroes", lambda parts: _global_lock(parts, True)
)
BITMAP_LOCK = algorithm_kind("bitmap-lock", "nbdkit's cow filter after the patch", _bitmap_lock)
BITMAP_LOCK_TWO_BITS = algorithm_kind(
    "bitmap-lock-two-bits",
    "the same with four blocks' states to a byte",
    lambda parts: _bitmap_lock(parts, True),
    two_bits=True,
)
RANGE_LOCK = algorithm_kind("range-lock", "one range lock for each request", _range_lock, disciplined=True)
RANGE_LOCK_TWO_BITS = algorithm_kind(
    "range-lock-two-bits",
    "the same with four blocks' states to a byte, which is wrong",
    lambda parts: _range_lock(parts, True),
    two_bits=True,
)

KINDS = {
    kind.name: kind
    for kind in (
        OVERLAY,
        OVERLAY_WITH_LOCK,
        OVERLAY_SERVED,
        LOCK_ALONE,
        GLOBAL_LOCK,
        OLD_TAIL,
        BITMAP_LOCK,
        BITMAP_LOCK_TWO_BITS,
        RANGE_LOCK,
        RANGE_LOCK_TWO_BITS,
    )
}
