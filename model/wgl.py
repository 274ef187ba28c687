"""Whether a history of any object is linearizable: a search for an order, after Wing, Gong and Lowe.

The search takes operations one by one, in an order that real time allows, as long as the model permits each; where it
can go no further, it goes back. It remembers every configuration that led nowhere. A configuration is kept as (the
first operation not yet taken, which of those behind it are, which optional ones are, the model's state): its size is
that of the window in which operations are concurrent, and not that of the history.

A model with parts that are independent of each other gives each operation's part by `part_of`; the parts are decided
apart, which is as good (Herlihy and Wing's locality) and much cheaper. Their budgets are slices that grow, in turns, so
that one hard part does not keep an easy refutation waiting.

Source:  Wing and Gong, "Testing and Verifying Concurrent Objects", 1993; Lowe, "Testing for linearizability", 2017;
         Horn and Kroening, "Faster linearizability checking via P-compositionality", 2015.
Shapes:  operations are rows `Call`; an order is a tuple of their indices. An operation precedes another if its `ret` is
         less than the other's `call`; with equal times they are concurrent. An optional one may be left out: its
         caller never learned that it happened.
Errors:  a budget that is spent is UNKNOWN. AssertionError for an order found that is none, which is a defect here: each
         is replayed before anybody is told.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, Protocol, TypeVar

from model.budget import Budget, Meter

Op = TypeVar("Op")
OpIn_contra = TypeVar("OpIn_contra", contravariant=True)
State = TypeVar("State", bound=Hashable)

# A path is kept as its last operation and the path before it: copying it at each step would cost its length.
_Path = tuple[int, "_Path"] | None

# What may come next: its index, its place among those that are needed, or are optional, and whether it is optional.
_Candidate = tuple[int, int, int]

FIRST_SLICE_STEPS = 1000
SLICE_GROWTH = 10


class Verdict(Enum):
    """What is known of a history."""

    LINEARIZABLE = "linearizable"
    NOT_LINEARIZABLE = "not linearizable"
    UNKNOWN = "unknown"


class Model(Protocol[OpIn_contra, State]):
    """A sequential object, whose steps are functions."""

    def init(self) -> State:
        """The state before the first operation."""

    def step(self, state: State, op: OpIn_contra) -> tuple[bool, State]:
        """Whether the operation could have gone like this in that state, and the state that follows."""

    def is_read(self, op: OpIn_contra) -> bool:
        """Whether the operation changes nothing in any state; such a one is taken as soon as it may be."""

    def part_of(self, op: OpIn_contra) -> Hashable:
        """The part of the object that the operation is about; parts must be independent. One constant if there are
        none.
        """


@dataclass(frozen=True, slots=True)
class Call(Generic[Op]):
    """One operation with its result, from its invocation to its response."""

    op: Op
    call: int
    ret: int
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """A verdict, the order found, or the longest one that could be begun, and which limit was reached."""

    verdict: Verdict
    order: tuple[int, ...] = ()
    spent: str = ""


def search(model: Model[Op, State], calls: Sequence[Call[Op]], budget: Budget | None = None) -> Found:
    """Whether some order of the calls is one of the model's. An order of several parts is that of each, in turn."""
    budget = budget or Budget()
    parts: dict[Hashable, list[int]] = {}
    for index, call in enumerate(calls):
        parts.setdefault(model.part_of(call.op), []).append(index)
    return _in_turns(model, calls, list(parts.values()), budget)


def _in_turns(model: Model[Op, State], calls: Sequence[Call[Op]], parts: list[list[int]], budget: Budget) -> Found:
    meter = Meter(budget)
    slice_steps = FIRST_SLICE_STEPS
    orders: dict[int, tuple[int, ...]] = {}
    undecided = list(range(len(parts)))
    while undecided:
        for number in list(undecided):
            part = parts[number]
            found = _search_one(model, [calls[index] for index in part], meter, slice_steps)
            named = tuple(part[at] for at in found.order)
            if found.verdict == Verdict.NOT_LINEARIZABLE:
                return Found(found.verdict, named)
            if meter.spent:
                return Found(Verdict.UNKNOWN, named, meter.spent)
            if found.verdict == Verdict.LINEARIZABLE:
                orders[number] = named
                undecided.remove(number)
        slice_steps *= SLICE_GROWTH
    order = tuple(index for number in range(len(parts)) for index in orders[number])
    verify_order(model, calls, order)
    return Found(Verdict.LINEARIZABLE, order)


def verify_order(model: Model[Op, State], calls: Sequence[Call[Op]], order: Sequence[int]) -> None:
    """Replay an order, each part by itself; AssertionError if it does not prove that the calls are linearizable."""
    missing = {index for index, call in enumerate(calls) if not call.optional} - set(order)
    assert not missing, f"calls that are not in the order: {sorted(missing)}"
    assert len(set(order)) == len(order), "a call is there twice"
    states: dict[Hashable, tuple[State, int]] = {}
    for index in order:
        call = calls[index]
        part = model.part_of(call.op)
        state, latest = states[part] if part in states else (model.init(), call.call)
        assert call.ret >= latest, f"call {index} returned before one that goes before it was invoked"
        legal, state = model.step(state, call.op)
        assert legal, f"call {index} cannot have gone so"
        states[part] = state, max(latest, call.call)


class _Window:
    """The operations of one part by their calls, and which of them may come next."""

    def __init__(self, calls: Sequence[Call[Op]]) -> None:
        by_call = sorted(range(len(calls)), key=lambda index: calls[index].call)
        self.needed = [index for index in by_call if not calls[index].optional]
        self.optional = [index for index in by_call if calls[index].optional]
        self.call = [call.call for call in calls]
        self.ret = [call.ret for call in calls]

    def next_ones(self, low: int, taken: int, left_out: int, latest: int) -> list[_Candidate]:
        """What may be taken: called before everything left has returned."""
        found: list[_Candidate] = []
        earliest_ret = None
        for place in range(low, len(self.needed)):
            index = self.needed[place]
            if earliest_ret is not None and self.call[index] > earliest_ret:
                break
            if not taken >> (place - low) & 1:
                found.append((index, place, 0))
                ret = self.ret[index]
                earliest_ret = ret if earliest_ret is None else min(earliest_ret, ret)
        for place, index in enumerate(self.optional):
            if earliest_ret is not None and self.call[index] > earliest_ret:
                break
            if left_out >> place & 1 and self.ret[index] >= latest:
                found.append((index, place, 1))
        return found


def _search_one(model: Model[Op, State], calls: Sequence[Call[Op]], meter: Meter, steps_max: int) -> Found:
    """Depth first. `trail` has, for each step of the path, what to come back to."""
    window = _Window(calls)
    total = len(window.needed)
    low, taken, left_out = 0, 0, (1 << len(window.optional)) - 1
    state, latest = model.init(), _earliest(calls)
    path: _Path = None
    longest, longest_steps = path, 0
    known: set[tuple[int, int, int, State]] = set()
    trail: list[tuple[int, int, int, State, int, _Path, Iterator[_Candidate]]] = []
    last_step = meter.steps + steps_max
    choices = _choices(model, calls, window.next_ones(low, taken, left_out, latest), state)
    while low < total:
        if not meter.step() or meter.steps > last_step:
            return Found(Verdict.UNKNOWN, _unrolled(longest), meter.spent)
        for index, place, is_optional in choices:
            legal, after = model.step(state, calls[index].op)
            if not legal:
                continue
            then = _taken(low, taken, left_out, place, is_optional)
            if (*then, after) in known:
                continue
            known.add((*then, after))
            if not meter.remember():
                return Found(Verdict.UNKNOWN, _unrolled(longest), meter.spent)
            trail.append((low, taken, left_out, state, latest, path, choices))
            path = (index, path)
            if len(trail) > longest_steps:
                longest, longest_steps = path, len(trail)
            (low, taken, left_out), state = then, after
            latest = max(latest, calls[index].call)
            choices = _choices(model, calls, window.next_ones(low, taken, left_out, latest), state)
            break
        else:
            if not trail:
                return Found(Verdict.NOT_LINEARIZABLE, _unrolled(longest))
            low, taken, left_out, state, latest, path, choices = trail.pop()
    return Found(Verdict.LINEARIZABLE, _unrolled(path))


def _unrolled(path: _Path) -> tuple[int, ...]:
    order = []
    while path is not None:
        index, path = path
        order.append(index)
    return tuple(reversed(order))


def _earliest(calls: Sequence[Call[Op]]) -> int:
    return min((call.call for call in calls), default=0)


def _choices(
    model: Model[Op, State], calls: Sequence[Call[Op]], candidates: list[_Candidate], state: State
) -> Iterator[_Candidate]:
    """What to try. Only one operation if that changes nothing: in any order that goes on from here it can come first.

    Unless something optional returned before it was invoked, and would then come too late.
    """
    first_left_out = min((calls[index].ret for index, _, is_optional in candidates if is_optional), default=None)
    for candidate in candidates:
        call = calls[candidate[0]]
        harmless = first_left_out is None or first_left_out >= call.call
        if harmless and not candidate[2] and model.is_read(call.op) and model.step(state, call.op)[0]:
            return iter([candidate])
    return iter(candidates)


def _taken(low: int, taken: int, left_out: int, place: int, is_optional: int) -> tuple[int, int, int]:
    """The window after one more operation: its first bit is always that of one not taken."""
    if is_optional:
        return low, taken, left_out & ~(1 << place)
    taken |= 1 << (place - low)
    passed = (~taken & (taken + 1)).bit_length() - 1
    return low + passed, taken >> passed, left_out
