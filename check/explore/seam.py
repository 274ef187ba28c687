"""What the code under test is given instead of threads and storage: each call becomes one operation.

A client's code runs in a greenlet. `perform` hands the operation to whoever runs it, and returns when that one says
what came of it; so there is exactly one point at which others may come first, and it is before the operation.

Shapes:  values that go into a shared variable, or come out of it, may be objects that the code made itself. They
         travel as names: the world holds only what is equal in every run of the same code.
Errors:  a Fault becomes the OSError it stands for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from types import TracebackType
from typing import cast

from greenlet import getcurrent

from check.explore.world import Fault, Op, Result
from impl.base.interface import CacheMode
from impl.extents import Extent
from impl.overlay.rangelock import Held
from impl.overlay.store import Buffer
from impl.sync import Cell, Condition, Lock, T


def to_parent(op: Op) -> Result:
    """Hand an operation to the greenlet that runs this one; what came of it."""
    whoever_runs_us = getcurrent().parent
    assert whoever_runs_us is not None
    result: Result = whoever_runs_us.switch(op)
    return result


class Run:
    """One execution of one client's code: what it is called, what it has made, and who does its operations."""

    def __init__(self, name: str, hand_over: Callable[[Op], Result] = to_parent) -> None:
        self.name = name
        self.hand_over = hand_over
        self.aborting = False
        self.intent: Op | None = None
        self.came_in = False
        self.made: dict[int, tuple[str, object]] = {}
        self.by_name: dict[str, object] = {}

    def new_name(self, what: str) -> str:
        """A name that the same code gets again in every run."""
        return f"{what} {len(self.made)} of {self.name}"

    def know(self, name: str, thing: object) -> None:
        """Remember what a name stands for, as long as the run lasts."""
        self.made[id(thing)] = (name, thing)
        self.by_name[name] = thing


class Stage:
    """Where runs happen: whoever performs an operation finds its run here."""

    def __init__(self) -> None:
        self.run = Run("nobody")
        self.fixed: dict[str, object] = {"stage": self}

    def perform(self, *op: Hashable) -> Result:
        """Do one operation; OSError if it fails. Once the run is over, whatever still wants to happen does not."""
        if self.run.aborting:
            return None
        result = self.run.hand_over(op)
        if isinstance(result, Fault):
            raise OSError(result.errno, os.strerror(result.errno))
        return result

    def fix(self, what: str, thing: object) -> str:
        """Name something that is made before any client runs."""
        name = what
        while name in self.fixed:
            name += "'"
        self.fixed[name] = thing
        return name

    # Values on their way into the world, and out of it.

    def packed(self, value: object) -> Hashable:
        """The value with every object in it replaced by its name, and by what it is made of."""
        if value is None or isinstance(value, (bool, int, str, bytes)):
            return value
        if isinstance(value, tuple):
            return tuple(self.packed(part) for part in value)
        for name, thing in self.fixed.items():
            if thing is value:
                return ("fixed", name)
        if id(value) not in self.run.made:
            self.run.know(self.run.new_name(type(value).__name__), value)
        name, _ = self.run.made[id(value)]
        slots = tuple((slot, self.packed(getattr(value, slot))) for slot in _slots(type(value)))
        return ("made", name, type(value), slots)

    def unpacked(self, value: Hashable) -> object:
        """The value that `packed` was given, or one that is the same to all who look at it."""
        if not isinstance(value, tuple):
            return value
        if value[:1] == ("fixed",):
            return self.fixed[value[1]]
        if value[:1] != ("made",):
            return tuple(self.unpacked(part) for part in value)
        _, name, kind, slots = value
        if name not in self.run.by_name:
            thing = kind.__new__(kind)
            self.run.know(name, thing)
            for slot, packed in slots:
                setattr(thing, slot, self.unpacked(packed))
        return self.run.by_name[name]


def _slots(kind: type) -> tuple[str, ...]:
    """The attributes of an object that is one of a few, all listed."""
    slots = getattr(kind, "__slots__", None)
    assert slots is not None, f"{kind.__name__} is shared, but has no __slots__: what it holds cannot be seen"
    return tuple(slots)


class ExploredRanges:
    """Range locks as one primitive: to look and to change, first come first served."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def shared(self, first: int, last: int) -> ExploredHold:
        """Hold the range together with other readers."""
        return self._acquired(first, last, False)

    def exclusive(self, first: int, last: int) -> ExploredHold:
        """Hold the range alone."""
        return self._acquired(first, last, True)

    def at_once(self, first: int, last: int, exclusive: bool) -> ExploredHold | None:
        """Hold the range, or do not wait for it."""
        return ExploredHold(self._stage) if self._stage.perform("try", first, last, exclusive) else None

    def ask(self, first: int, last: int, exclusive: bool, when_held: Callable[[Held], None]) -> None:
        """Wait for the range. A server's thread does something else meanwhile; this client has nothing else to do."""
        when_held(self._acquired(first, last, exclusive))

    def _acquired(self, first: int, last: int, exclusive: bool) -> ExploredHold:
        if not self._stage.perform("enqueue", first, last, exclusive):
            self._stage.perform("granted")
        return ExploredHold(self._stage)


class ExploredHold:
    """A range that is held until the `with` block ends."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def __enter__(self) -> object:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stage.perform("release")


class ExploredMap:
    """A map of bytes: one for each block, or whatever the code under test keeps in them."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def get(self, at: int) -> int:
        """One byte."""
        return _int(self._stage.perform("get", at))

    def set(self, at: int, value: int) -> None:
        """One byte."""
        self._stage.perform("set", at, value)


class ExploredStates:
    """A state map of one byte for each block, looked at and changed by ranges."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def at(self, block: int) -> int:
        """The state of one block."""
        return _int(self._stage.perform("get", block))

    def get(self, first: int, end: int) -> bytes:
        """The states of the range, looked up one by one."""
        return bytes(_int(self._stage.perform("get", block)) for block in range(first, end))

    def fill(self, first: int, end: int, state: int) -> None:
        """Put the range in one state, block by block."""
        for block in range(first, end):
            self._stage.perform("set", block, state)


class ExploredStore:
    """A store whose transfers take a step for each byte."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def pread(self, offset: int, length: int) -> bytes:
        """Byte by byte."""
        return bytes(_int(self._stage.perform("read", at)) for at in range(offset, offset + length))

    def pwrite(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Byte by byte."""
        for at, value in enumerate(b"".join(buffers), offset):
            self._stage.perform("write", at, value)

    def write_zeroes(self, offset: int, length: int) -> None:
        """Byte by byte."""
        self.pwrite(offset, [bytes(length)])

    def punch_hole(self, offset: int, length: int) -> None:
        """Byte by byte."""
        for at in range(offset, offset + length):
            self._stage.perform("punch", at)

    def prefetch(self, offset: int, length: int) -> None:
        """Changes nothing that anybody can see."""

    def sync(self) -> None:
        """Nothing: without a crash, done is done."""


class ExploredBase:
    """A base that takes a step to read, and may fail."""

    def __init__(self, stage: Stage, size: int) -> None:
        self._stage = stage
        self._size = size

    @property
    def size(self) -> int:
        """In small bytes."""
        return self._size

    def pread(self, offset: int, length: int) -> bytes:
        """All at once: it cannot change meanwhile."""
        data = self._stage.perform("base", offset, length)
        return data if isinstance(data, bytes) else b""

    @property
    def description(self) -> str:
        """Nobody asks."""
        return "explored"

    @property
    def cache_mode(self) -> CacheMode:
        """Not asked: the subject says what its overlay does."""
        return "read"

    @property
    def extents_may_wait(self) -> bool:
        """Not asked: there is no server."""
        return False

    def is_ready(self, offset: int, length: int) -> bool:
        """A hint, so it may be right or wrong."""
        return bool(self._stage.perform("ready"))

    def pread_at_once(self, offset: int, length: int) -> bytes | None:
        """A hint, and then the bytes: it may be wrong, and then the server waits."""
        return self.pread(offset, length) if self.is_ready(offset, length) else None

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """It does not know better than that all is data."""
        self._stage.perform("extents", offset, length)
        yield Extent(length, hole=False, zero=False)

    def prefetch(self, offset: int, length: int) -> None:
        """Changes nothing that anybody can see."""

    def fileno(self) -> int | None:
        """No file."""
        return None

    def close(self) -> None:
        """Nothing to give up."""


class ExploredLock:
    """As `threading.Lock`, in a `with`."""

    def __init__(self, stage: Stage, name: str = "lock") -> None:
        self._stage = stage
        self.name = stage.fix(name, self)

    def __enter__(self) -> bool:
        self._stage.perform("lock", self.name)
        return True

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stage.perform("unlock", self.name)


class ArrivalLock(ExploredLock):
    """A mutex of a range lock that is explored by itself: whoever takes it next for a range arrives then, or goes.

    `intent` is what the specification of range locks is told at that moment, `came_in` what it says to it.
    """

    def __enter__(self) -> bool:
        super().__enter__()
        run = self._stage.run
        if run.intent is not None:
            intent, run.intent = run.intent, None
            run.came_in = self._stage.perform(*intent) is True
        return True


class Told:
    """Word left with a range lock: whoever gives the range back tells the client that waits for it."""

    __slots__ = ("_name", "_stage")

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._name = stage.run.new_name("word")
        stage.run.know(self._name, self)

    def __call__(self, held: Held) -> None:
        """The range is held."""
        self._stage.perform("tell", self._name, self._stage.packed(held))

    def wait(self) -> Held:
        """Until told."""
        return cast(Held, self._stage.unpacked(self._stage.perform("hear", self._name)))


class ExploredSync:
    """Locks, conditions and variables, as `impl.sync.Sync`."""

    def __init__(self, stage: Stage, lock_class: type[ExploredLock] = ExploredLock) -> None:
        self.stage = stage
        self._lock_class = lock_class
        self.first_values: dict[str, Hashable] = {}

    def lock(self) -> Lock:
        """Made before anybody runs."""
        return self._lock_class(self.stage)

    def condition(self, lock: Lock) -> Condition:
        """Made by a client's code, or before."""
        assert isinstance(lock, ExploredLock)
        return ExploredCondition(self.stage, lock)

    def cell(self, value: T) -> Cell[T]:
        """Made before anybody runs."""
        cell = ExploredCell(self.stage, value)
        self.first_values[cell.name] = self.stage.packed(value)
        return cell


class ExploredCondition:
    """As `threading.Condition`: waiting gives the lock back, and takes it again."""

    __slots__ = ("_lock", "_stage", "name")

    def __init__(self, stage: Stage, lock: ExploredLock) -> None:
        self._stage = stage
        self._lock = lock
        self.name = stage.run.new_name("condition")
        stage.run.know(self.name, self)

    def wait(self, timeout: float | None = None) -> bool:
        """Until notified."""
        assert timeout is None, "time does not pass here"
        self._stage.perform("wait", self.name, self._lock.name)
        self._stage.perform("wake", self.name)
        self._stage.perform("lock", self._lock.name)
        return True

    def notify(self, n: int = 1) -> None:
        """Wake as many."""
        for _ in range(n):
            self._stage.perform("notify", self.name, self._lock.name)


class ExploredCell(Cell[T]):
    """A shared variable: every look at it, and every change, is a step."""

    __slots__ = ("_stage", "name")

    def __init__(self, stage: Stage, value: T) -> None:
        self._stage = stage
        self.name = stage.fix("cell", self)

    @property
    def value(self) -> T:
        """A step."""
        return cast(T, self._stage.unpacked(self._stage.perform("load", self.name)))

    @value.setter
    def value(self, value: T) -> None:
        self._stage.perform("store", self.name, self._stage.packed(value))


def _int(result: Result) -> int:
    """What an operation gave; 0 in a run that is being given up."""
    return result if isinstance(result, int) else 0
