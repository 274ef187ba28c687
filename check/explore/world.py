"""What threads share, as one immutable value, and what each operation does to it.

An operation is a tuple: its kind, then its arguments. `outcomes` says what may come of it: a list of results, each with
the world after it; none if the client has to wait; several where the world has a choice: so faults are explored.

Storage is as weak as the kernel's: a transfer is one operation for each byte of the small device, so that another
client's may come between; and a hole holds nothing that anybody may rely on.

Shapes:  states, store and map are bytes, one for each block, byte and map byte; `queue` holds range locks in order of
         arrival; `held` pairs of a lock's name and its owner; `cells` pairs of a name and a value.
Units:   blocks by index, bytes of the small device by offset.
Omits:   memory weaker than sequentially consistent, which neither Python nor system calls show.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import NamedTuple

from model.block import State

Op = tuple[Hashable, ...]
Result = Hashable

# A byte of the store that has no space. Reading one gives a value that no request ever wrote.
HOLE = 255


class Fault(NamedTuple):
    """The result of an operation that failed."""

    errno: int


class Hold(NamedTuple):
    """A range lock, held or waited for."""

    client: int
    first: int
    last: int
    exclusive: bool


@dataclass(frozen=True, slots=True)
class World:
    """All that threads share, but the base, which does not change."""

    states: bytes
    store: bytes
    queue: tuple[Hold, ...] = ()
    held: frozenset[tuple[str, int]] = frozenset()
    cells: tuple[tuple[str, Hashable], ...] = ()
    waiting: tuple[tuple[str, int], ...] = ()  # conditions and those who wait there, in order
    woken: frozenset[tuple[str, int]] = frozenset()
    told: tuple[tuple[str, Hashable], ...] = ()  # who has been told that its range is held, and what it holds
    faults_left: int = 0
    punch_failed: bool = False


class Misuse(AssertionError):
    """An operation that no order of events makes right: an access without its lock, a lock given back by another."""


Outcome = tuple[Result, World]
Outcomes = list[Outcome]


@dataclass(frozen=True)
class Physics:
    """How operations work: the base, and whether accesses without the range lock are refused.

    disciplined:  the subject promises to touch the store and to change states under a range lock only.
    """

    base: bytes
    block_size: int
    disciplined: bool = False
    spurious: bool = False

    def outcomes(self, world: World, client: int, op: Op) -> Outcomes:
        """What may come of an operation; nothing while it has to wait."""
        return _EFFECTS[op[0]](self, world, client, *op[1:])

    def _in_range(self, world: World, client: int, first: int, last: int) -> bool:
        return any(
            hold.client == client and hold.first <= first and last <= hold.last
            for hold in world.queue
            if not _waits(world.queue, hold)
        )

    def _need_range(self, world: World, client: int, at: int, what: str) -> None:
        block = at // self.block_size
        if not 0 <= at < len(world.store):
            raise Misuse(f"{what} of block {block} beyond the end of the device")
        if self.disciplined and not self._in_range(world, client, block, block):
            raise Misuse(f"{what} of block {block} without its range lock")


def _waits(queue: tuple[Hold, ...], hold: Hold) -> bool:
    """Whether somebody who came before stands in the way."""
    for earlier in queue:
        if earlier is hold:
            return False
        if earlier.first <= hold.last and hold.first <= earlier.last and (earlier.exclusive or hold.exclusive):
            return True
    raise AssertionError("a hold is in the queue")


def _with(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + bytes((value,)) + data[at + 1 :]


def _faulty(world: World, number: int) -> Outcomes:
    """The outcome that is a failure, if there may be one more."""
    return [(Fault(number), replace(world, faults_left=world.faults_left - 1))] if world.faults_left else []


# Range locks as one primitive. An acquisition is a second operation if it has to wait.


def _enqueue(_: Physics, world: World, client: int, first: int, last: int, exclusive: bool) -> Outcomes:
    """Take a place in the queue; the result says whether the range is held at once."""
    mine = Hold(client, first, last, exclusive)
    queue = (*world.queue, mine)
    return [(not _waits(queue, mine), replace(world, queue=queue))]


def _try(_: Physics, world: World, client: int, first: int, last: int, exclusive: bool) -> Outcomes:
    """Hold the range if nobody is in the way, and else do not wait; the result says which."""
    mine = Hold(client, first, last, exclusive)
    queue = (*world.queue, mine)
    return [(False, world)] if _waits(queue, mine) else [(True, replace(world, queue=queue))]


def _granted(_: Physics, world: World, client: int) -> Outcomes:
    mine = next(hold for hold in reversed(world.queue) if hold.client == client)
    return [] if _waits(world.queue, mine) else [(None, world)]


def _release(_: Physics, world: World, client: int) -> Outcomes:
    mine = next((hold for hold in reversed(world.queue) if hold.client == client), None)
    if mine is None:
        raise Misuse("a range is given back by somebody who does not hold one")
    return [(None, replace(world, queue=tuple(hold for hold in world.queue if hold is not mine)))]


# The same as a specification, for range locks that are explored themselves: who has arrived, and who may come in.


def _arrive(_: Physics, world: World, client: int, first: int, last: int, exclusive: bool) -> Outcomes:
    return [(None, replace(world, queue=(*world.queue, Hold(client, first, last, exclusive))))]


def _refused(_: Physics, world: World, client: int) -> Outcomes:
    raise Misuse("it may not have its range, though nobody is in its way")


def _inside(_: Physics, world: World, client: int) -> Outcomes:
    mine = next((hold for hold in reversed(world.queue) if hold.client == client), None)
    if mine is None:
        raise Misuse("it holds its range, and is not in the queue for it")
    if _waits(world.queue, mine):
        raise Misuse("it holds its range, though one that overlaps and came before it holds it or waits for it")
    return [(None, world)]


# The state map, a byte for each block or two bits; the store; the base.


def _need_block(world: World, at: int) -> None:
    if not 0 <= at < len(world.states):
        raise Misuse(f"a look for the state of block {at}, which there is not")


def _get(_: Physics, world: World, client: int, block: int) -> Outcomes:
    _need_block(world, block)
    return [(world.states[block], world)]


def _set(physics: Physics, world: World, client: int, block: int, state: int) -> Outcomes:
    _need_block(world, block)
    physics._need_range(world, client, block * physics.block_size, "a change of the state")
    return [(None, replace(world, states=_with(world.states, block, state)))]


def _read(physics: Physics, world: World, client: int, at: int) -> Outcomes:
    physics._need_range(world, client, at, "a read")
    return [(world.store[at], world), *_faulty(world, errno.EIO)]


def _write(physics: Physics, world: World, client: int, at: int, value: int) -> Outcomes:
    """Only where there is no space yet can that run out: what has its space can be written over, or break."""
    physics._need_range(world, client, at, "a write")
    done: Outcome = (None, replace(world, store=_with(world.store, at, value)))
    return [done, *(_faulty(world, errno.ENOSPC) if world.store[at] == HOLE else []), *_faulty(world, errno.EIO)]


def _punch(physics: Physics, world: World, client: int, at: int) -> Outcomes:
    physics._need_range(world, client, at, "a hole")
    failed = [(fault, replace(after, punch_failed=True)) for fault, after in _faulty(world, errno.EIO)]
    return [(None, replace(world, store=_with(world.store, at, HOLE))), *failed]


def _base(physics: Physics, world: World, client: int, offset: int, length: int) -> Outcomes:
    if offset + length > len(physics.base):
        raise Misuse("a read of the base beyond its end")
    held = any(hold.client == client for hold in world.queue)
    if physics.disciplined and held:
        raise Misuse("a read of the base under a lock")
    return [(physics.base[offset : offset + length], world), *_faulty(world, errno.EIO)]


def _extents(physics: Physics, world: World, client: int, offset: int, length: int) -> Outcomes:
    """The base is asked what it consists of: all of it data."""
    if physics.disciplined and any(hold.client == client for hold in world.queue):
        raise Misuse("a look at the base's extents under a lock")
    return [(None, world)]


def _ready(_: Physics, world: World, client: int) -> Outcomes:
    """A hint of the base's, which nothing may depend on."""
    return [(True, world), (False, world)]


# Locks, conditions and variables, as `impl.sync` has them.


def _lock(_: Physics, world: World, client: int, name: str) -> Outcomes:
    if any(held == name for held, _ in world.held):
        return []
    return [(None, replace(world, held=world.held | {(name, client)}))]


def _unlock(_: Physics, world: World, client: int, name: str) -> Outcomes:
    if (name, client) not in world.held:
        raise Misuse(f"{name} is given back by somebody who does not hold it")
    return [(None, replace(world, held=world.held - {(name, client)}))]


def _wait(physics: Physics, world: World, client: int, condition: str, lock: str) -> Outcomes:
    [(_, after)] = _unlock(physics, world, client, lock)
    return [(None, replace(after, waiting=(*after.waiting, (condition, client))))]


def _wake(physics: Physics, world: World, client: int, condition: str) -> Outcomes:
    if (condition, client) in world.woken:
        return [(None, replace(world, woken=world.woken - {(condition, client)}))]
    if physics.spurious and world.faults_left:
        waiting = tuple(pair for pair in world.waiting if pair != (condition, client))
        return [(None, replace(world, waiting=waiting, faults_left=world.faults_left - 1))]
    return []


def _notify(_: Physics, world: World, client: int, condition: str, lock: str) -> Outcomes:
    if (lock, client) not in world.held:
        raise Misuse(f"{condition} is notified by somebody who does not hold {lock}")
    there = [pair for pair in world.waiting if pair[0] == condition]
    if not there:
        return [(None, world)]
    return [
        (
            None,
            replace(
                world,
                waiting=tuple(pair for pair in world.waiting if pair != chosen),
                woken=world.woken | {chosen},
            ),
        )
        for chosen in there
    ]


def _tell(_: Physics, world: World, client: int, name: str, held: Hashable) -> Outcomes:
    if name in dict(world.told):
        raise Misuse(f"{name} is told twice that its range is held")
    return [(None, replace(world, told=(*world.told, (name, held))))]


def _hear(_: Physics, world: World, client: int, name: str) -> Outcomes:
    told = dict(world.told)
    return [(told[name], world)] if name in told else []


def _load(_: Physics, world: World, client: int, name: str) -> Outcomes:
    return [(dict(world.cells)[name], world)]


def _store(_: Physics, world: World, client: int, name: str, value: Hashable) -> Outcomes:
    cells = tuple((each, value if each == name else old) for each, old in world.cells)
    return [(None, replace(world, cells=cells))]


_EFFECTS: dict[Hashable, Callable[..., Outcomes]] = {
    "enqueue": _enqueue,
    "try": _try,
    "granted": _granted,
    "release": _release,
    "arrive": _arrive,
    "refused": _refused,
    "inside": _inside,
    "outside": _release,
    "get": _get,
    "set": _set,
    "read": _read,
    "write": _write,
    "punch": _punch,
    "base": _base,
    "ready": _ready,
    "extents": _extents,
    "lock": _lock,
    "unlock": _unlock,
    "wait": _wait,
    "wake": _wake,
    "notify": _notify,
    "tell": _tell,
    "hear": _hear,
    "load": _load,
    "store": _store,
}

# Operations that may be done at once after the one before them: whatever others do meanwhile, they could as well have
# done after it (Lipton's left movers). `search` says why that loses nothing.
LEFT_MOVERS = frozenset({"release", "unlock"})


def first_world(states: tuple[State, ...], stored: bytes, block_size: int, faults: int) -> World:
    """The world before anybody did anything: holes where no block is ALLOCATED."""
    store = bytes(value if states[at // block_size] == State.ALLOCATED else HOLE for at, value in enumerate(stored))
    return World(bytes(states), store, faults_left=faults)
