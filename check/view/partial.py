"""How far an order of a few requests gets: the longest ones that real time and what was read allow.

A conflict is a handful of requests that no order explains. People want to see how close an order comes, and which
request stands in its way. So all orders of those few are tried, on the bytes that the conflict is about.

Source:  Wing and Gong, "Testing and verifying concurrent objects", 1993; with Lowe's memory of places seen.
Shapes:  the device is a tuple of names, one for each stretch of bytes that no request's or run's border divides.
Omits:   requests that changed nothing for sure (EINVAL, EPERM), or whose answer says nothing (failed reads). More than
         REQUESTS_MAX requests, or STRETCHES_MAX stretches, or what would take more than LOOKS_MAX or PLACES_MAX: then
         there are no orders to show, and nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from check.view.finding import Finding, Partial, Range, Refusal
from model.history import BASE, NOT_DONE, OK, TORN, ZERO, History, Operation

REQUESTS_MAX = 24
STRETCHES_MAX = 256
PARTIALS_MAX = 3
# How many requests are tried on how many stretches, all together: a few seconds.
LOOKS_MAX = 40_000_000
PLACES_MAX = 50_000

# What trimmed bytes hold where nothing is promised of them.
ANYTHING = ""

Contents = tuple[str, ...]


def longest(history: History, finding: Finding) -> tuple[Partial, ...]:
    """The orders of the conflict's requests that get furthest; none if one of them explains all."""
    requests = [each for each in finding.conflict if _says_something(history.operation(each))]
    where = finding.where or Range(0, history.size)
    if not 0 < len(requests) <= REQUESTS_MAX:
        return ()
    requests.sort(key=lambda each: (history.call[each], each))
    search = _Search(history, requests, where)
    return search.result() if len(search.stretches) <= STRETCHES_MAX else ()


def _says_something(operation: Operation) -> bool:
    if operation.op == "read":
        return operation.outcome == OK
    return operation.op in ("write", "zero", "trim") and operation.outcome not in NOT_DONE


@dataclass(frozen=True, slots=True)
class _Place:
    """How far an order has come: which requests are in it, and what the device holds now."""

    placed: int
    contents: Contents


class _Search:
    """All orders of some requests, on some bytes."""

    def __init__(self, history: History, requests: Sequence[int], where: Range) -> None:
        self._history = history
        self._requests = requests
        self._operations = [history.operation(each) for each in requests]
        self._reads = [_read_runs(each) for each in self._operations]
        self.stretches = _stretches(self._operations, self._reads, where)
        self._must = sum(1 << at for at, each in enumerate(self._operations) if each.outcome == OK)
        self._before = [
            sum(1 << at for at, other in enumerate(self._operations) if other.outcome == OK and other.ret < each.call)
            for each in self._operations
        ]

    def result(self) -> tuple[Partial, ...]:
        """The longest; of several ways to one place, the first."""
        first = _Place(0, (ZERO if self._history.base_is_zero else BASE,) * len(self.stretches))
        orders: dict[_Place, tuple[int, ...]] = {first: ()}
        todo = [first]
        places_max = min(PLACES_MAX, LOOKS_MAX // (len(self._requests) * len(self.stretches)))
        for place in todo:
            if place.placed & self._must == self._must or len(orders) > places_max:
                return ()
            for at, after in self._next(place):
                if after not in orders:
                    orders[after] = (*orders[place], at)
                    todo.append(after)
        return tuple(self._partial(place, orders[place]) for place in self._furthest(orders))

    def _furthest(self, orders: dict[_Place, tuple[int, ...]]) -> list[_Place]:
        """The places from which most has been explained that has to be, each set of requests once."""
        most = max((place.placed & self._must).bit_count() for place in orders)
        found: dict[int, _Place] = {}
        for place in orders:
            if (place.placed & self._must).bit_count() == most:
                found.setdefault(place.placed & self._must, place)
        return list(found.values())[:PARTIALS_MAX]

    def _next(self, place: _Place) -> Iterator[tuple[int, _Place]]:
        for at in self._candidates(place):
            after = self._apply(at, place.contents)
            if after is not None:
                yield at, _Place(place.placed | 1 << at, after)

    def _candidates(self, place: _Place) -> list[int]:
        """The requests that real time allows to be next."""
        return [
            at for at, before in enumerate(self._before) if not place.placed >> at & 1 and before & ~place.placed == 0
        ]

    def _apply(self, at: int, contents: Contents) -> Contents | None:
        """What the device holds after a request; None if it cannot have been answered as it was."""
        operation = self._operations[at]
        if operation.op == "read":
            return contents if not list(self._mismatches(at, contents)) else None
        name = self._written(operation)
        return tuple(
            name if _covers(operation, stretch) else held
            for stretch, held in zip(self.stretches, contents, strict=True)
        )

    def _written(self, operation: Operation) -> str:
        if operation.op == "write":
            return str(operation.value)
        return ANYTHING if operation.op == "trim" and not self._history.trim_reads_zero else ZERO

    def _mismatches(self, at: int, contents: Contents) -> Iterator[tuple[str, str]]:
        """What a read found, and what is there, where they differ."""
        operation = self._operations[at]
        for stretch, held in zip(self.stretches, contents, strict=True):
            if _covers(operation, stretch):
                found = _found_at(self._reads[at], stretch.offset)
                if found == TORN or (held not in (ANYTHING, found)):
                    yield found, held

    def _partial(self, place: _Place, order: tuple[int, ...]) -> Partial:
        refused = [
            Refusal(self._requests[at], self._why(at, place.contents))
            for at in self._candidates(place)
            if self._operations[at].op == "read"
        ]
        return Partial(tuple(self._requests[at] for at in order), tuple(refused))

    def _why(self, at: int, contents: Contents) -> str:
        found, held = next(self._mismatches(at, contents))
        if found == TORN:
            return "it returned bytes that nobody wrote so"
        return f"it returned {found}, where {held} would be"


def _read_runs(operation: Operation) -> list[tuple[int, int, str]]:
    """What a read found: from, to, name."""
    runs: list[tuple[int, int, str]] = []
    at = operation.offset
    if operation.op == "read" and isinstance(operation.value, tuple):
        for name, length in operation.value:
            runs.append((at, at + length, name))
            at += length
    return runs


def _found_at(runs: list[tuple[int, int, str]], offset: int) -> str:
    return next(name for start, end, name in runs if start <= offset < end)


def _stretches(
    operations: Sequence[Operation], reads: Sequence[list[tuple[int, int, str]]], where: Range
) -> list[Range]:
    """The bytes between neighbouring borders."""
    borders = {where.offset, where.end}
    for operation, runs in zip(operations, reads, strict=True):
        borders |= {operation.offset, operation.offset + operation.length, *(start for start, _, _ in runs)}
    inside = sorted(each for each in borders if where.offset <= each <= where.end)
    return [Range(start, end - start) for start, end in pairwise(inside)]


def _covers(operation: Operation, stretch: Range) -> bool:
    return operation.offset <= stretch.offset < operation.offset + operation.length
