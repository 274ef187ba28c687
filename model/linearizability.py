"""Whether a history is linearizable at a level, with a certificate that is replayed before anybody is told.

The history is cut into cells and groups (`model/cells.py`). Where everything touches one cell of its group, zones and
zero epochs decide in O(n log n) (`model/zones.py`); where requests cover several cells at an instant, `model/whole.py`
does what it can within a budget. The first thing that is wrong ends it. Every "linearizable" has an order that has been
replayed, and every "not linearizable" a few operations that have no order, of which all orders have been tried, by
`model/certificate.py`. What could not be decided, or not be verified within its limits, is UNKNOWN.

What is in the rules: that an operation takes effect between its invocation and its response, whatever connection it
came by. So what one connection was told is done is there for all (NBD's multi-conn): the order of real time is one
order for all clients. FLUSH and FUA say what survives a crash, and change nothing about reads from a live server. How
zeroes, trims, the base, torn reads, requests without an answer and failed ones are treated is said in `model/cells.py`.

Source:  Herlihy and Wing, "Linearizability", 1990; docs/linearizability.md.
Errors:  ValueError for a history that cannot have been recorded so; AssertionError for a certificate that does not
         prove its verdict, which is a defect here.
Omits:   crashes: a history ends with the server it began with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from model import whole, zones
from model.budget import Budget, Meter
from model.cells import Cell, Cut, cut, unit_of
from model.certificate import NO_CELL, Conflict, GroupOrder, Order, TooLarge, verify_conflict, verify_order
from model.history import BASE, OK, PENDING, TORN, ZERO, History, Level, Operation
from model.wgl import Verdict
from model.zones import Refutation

# (how much is done, of how much): every operation on a cell counts when it is cut, when it is decided, and when the
# order that it is in is replayed.
Progress = Callable[[int, int], None]
ROUNDS = 3

LINEARIZABLE, NOT_LINEARIZABLE, UNKNOWN = Verdict.LINEARIZABLE, Verdict.NOT_LINEARIZABLE, Verdict.UNKNOWN

# Of a long list, so many are named.
NAMED_MAX = 8


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict, its certificate (none for UNKNOWN), and why in words."""

    verdict: Verdict
    level: Level
    certificate: Order | Conflict | None
    why: str
    counts: dict[str, int] = field(default_factory=dict)


def decide(
    history: History, level: Level | None = None, budget: Budget | None = None, progress: Progress | None = None
) -> Decision:
    """Decide a history at a level: its own, if none is given."""
    level = level or history.level
    work = _Work(progress)
    found = cut(history, level)
    work.begin(found)
    meter = Meter(budget or Budget())
    orders: list[GroupOrder] = []
    undecided = ""
    for first, end in found.groups:
        decided: list[int] | Refutation | None
        if end - first == 1:
            decided = zones.decide_cell(found.cells[first], found, history.base_is_zero)
        else:
            within = work.within(first, end)
            decided = whole.decide_group(found, first, end, history.base_is_zero, meter, within)
        found.counts["steps"] = meter.steps
        if isinstance(decided, Refutation):
            return _refuted(history, level, found, (first, end), decided)
        if decided is None:
            undecided = (
                undecided or f"the search over [{found.edges[first]}, {found.edges[end]}) was ended after {meter.spent}"
            )
        else:
            orders.append(_group_order(found, first, end, decided))
        work.add(first, end)
    if undecided:
        return Decision(UNKNOWN, level, None, undecided, found.counts)
    order = Order(found.edges, orders, found.unchecked)
    verify_order(history, level, order, lambda sequence: work.add(sequence.first, sequence.end))
    return Decision(LINEARIZABLE, level, order, _why_it_is(found), found.counts)


class _Work:
    """How much of it is done, for those who want to be told."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._cells: list[Cell] = []
        self._done, self._total = 0, 1
        self._tell()

    def begin(self, found: Cut) -> None:
        """A history has been cut."""
        self._cells = found.cells
        self._total = max(ROUNDS * sum(map(_size, self._cells)), 1)
        self.add(0, len(self._cells))

    def add(self, first: int, end: int) -> None:
        """These cells have gone one round further."""
        self._done += sum(map(_size, self._cells[first:end]))
        self._tell()

    def within(self, first: int, end: int) -> Callable[[float], None]:
        """To be told how much of one round of these cells is done, from 0 to 1."""
        size = sum(map(_size, self._cells[first:end]))
        return lambda part: self._tell(round(part * size))

    def _tell(self, more: int = 0) -> None:
        if self._progress is not None:
            self._progress(self._done + more, self._total)


def _size(cell: Cell) -> int:
    return len(cell.writes) + len(cell.reads) + len(cell.zero_writes) + len(cell.zero_reads)


def _group_order(found: Cut, first: int, end: int, parts: list[int]) -> GroupOrder:
    """An order of parts as one of requests."""
    if not found.request:
        return GroupOrder(first, end, parts)
    whole_count = len(found.call) - len(found.request)
    only = [NO_CELL if part < whole_count else found.only[part - whole_count] for part in parts]
    return GroupOrder(first, end, [found.request_of(part) for part in parts], only)


def _refuted(history: History, level: Level, found: Cut, group: tuple[int, int], refutation: Refutation) -> Decision:
    first, behind = refutation.cells or group
    if behind - first == 1:
        refutation = _more_telling(refutation, found, found.cells[first], history.base_is_zero)
    start, end = found.edges[first], found.edges[behind]
    unit = unit_of(history, level)
    if unit is not None:
        end = min(end, start - start % unit + unit)
    requests = tuple(dict.fromkeys(found.request_of(part) for part in refutation.parts))
    conflict = Conflict(tuple(sorted(requests, key=history.call.__getitem__)), start, end)
    try:
        verify_conflict(history, level, conflict)
    except TooLarge as reason:
        return Decision(UNKNOWN, level, None, f"a conflict was found, but {reason}", found.counts)
    return Decision(NOT_LINEARIZABLE, level, conflict, _why_not(history, found, refutation, conflict), found.counts)


def _more_telling(refutation: Refutation, found: Cut, cell: Cell, base_is_zero: bool) -> Refutation:
    """The same without trims that promise nothing, if there are any: what was written after them says more.

    Of a read that is checked at all there is such a write (`model/cells.py`), so that it is as wrong without the trim.
    """
    writes = [part for part in cell.writes if isinstance(found.names[part], str)]
    if len(writes) == len(cell.writes):
        return refutation
    decided = zones.decide_cell(replace(cell, writes=writes), found, base_is_zero)
    return decided if isinstance(decided, Refutation) else refutation


# In words.


def name_of(operation: Operation) -> str:
    """How a request is called: a write by its value, another by its kind and id."""
    if operation.op == "write" and isinstance(operation.value, str) and operation.value != ZERO:
        return operation.value
    return {"read": "r", "write": "w", "zero": "z", "trim": "t"}.get(operation.op, operation.op) + str(operation.id)


def _why_it_is(found: Cut) -> str:
    return f"{found.counts['groups']} groups of cells have an order each"


def _why_not(history: History, found: Cut, refutation: Refutation, conflict: Conflict) -> str:
    where = f"in [{conflict.start}, {conflict.end})"
    return f"{_WHY[refutation.reason](_Words(history, found), refutation, conflict)} {where}"


class _Words:
    """Names and values of parts."""

    def __init__(self, history: History, found: Cut) -> None:
        self.history, self.found = history, found

    def operation(self, part: int) -> Operation:
        """The request of a part."""
        return self.history.operation(self.found.request_of(part))

    def name(self, part: int) -> str:
        """The name of a part's request."""
        return name_of(self.operation(part))

    def value(self, part: int, byte: int) -> str:
        """What a part read or wrote at a byte."""
        operation = self.operation(part)
        if operation.op in ("zero", "trim"):
            return ZERO
        if isinstance(operation.value, str):
            return operation.value
        at = operation.offset
        for value, length in operation.value or ():
            at += length
            if byte < at:
                return value
        return ""

    def returned(self, part: int, byte: int) -> str:
        """'r8 returned w3', or 'w3'."""
        name = self.name(part)
        return f"{name} returned {self.value(part, byte)}" if self.operation(part).op == "read" else name

    def joined(self, parts: tuple[int, ...]) -> str:
        """Names in a row."""
        names = list(dict.fromkeys(map(self.name, parts)))
        return ", ".join(names[:NAMED_MAX]) + (f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else "")


def _why_nobody(words: _Words, refutation: Refutation, conflict: Conflict) -> str:
    part = refutation.parts[0]
    name, value = words.name(part), words.value(part, conflict.start)
    if value == TORN:
        return f"{name} returned bytes that nobody wrote"
    if value == BASE:
        return f"{name} returned the base, which is zero"
    writer = next((at for at, of in enumerate(words.history.value) if of == value), None)
    if writer is None:
        return f"{name} returned {value}, which nobody wrote"
    if words.history.outcome[writer] not in (OK, PENDING):
        return f"{name} returned {value}, whose write failed with {words.history.outcome[writer]}"
    offset = words.history.offset[writer]
    return f"{name} returned {value}, which was written to [{offset}, {offset + words.history.length[writer]}) only,"


def _why_future(words: _Words, refutation: Refutation, _: Conflict) -> str:
    write, read = refutation.parts
    return f"{words.name(read)} returned {words.name(write)}, but ended before {words.name(write)} began"


def _why_pair(words: _Words, refutation: Refutation, conflict: Conflict) -> str:
    """Of each side, the one that returned first and the one invoked last."""
    call, ret = words.found.call, words.found.ret
    byte = conflict.start
    one, other = refutation.sides
    first, last = min(one, key=ret.__getitem__), max(one, key=call.__getitem__)
    other_first, other_last = min(other, key=ret.__getitem__), max(other, key=call.__getitem__)
    since = words.returned(last, byte)
    if all(words.operation(part).op == "read" and words.value(part, byte) == BASE for part in one):
        return f"{since}, but {_and(words.returned(other_first, byte))} ended before {words.name(last)} began"
    if other_first == other_last:
        middle = _and(words.returned(other_first, byte))
        return f"{since}, but {middle} began after {words.name(first)} ended and ended before {words.name(last)} began"
    return (
        f"{since}, but {_and(words.returned(other_last, byte))} began after {words.name(first)} ended, while"
        f" {_and(words.returned(other_first, byte))} ended before {words.name(last)} began"
    )


def _and(said: str) -> str:
    """To go on with a verb: 'w3', or 'r8 returned w3, and'."""
    return f"{said}, and" if " " in said else said


def _why_starved(words: _Words, refutation: Refutation, _: Conflict) -> str:
    read = refutation.sides[0][0]
    others = tuple(part for part in refutation.parts if part != read)
    zeroes = [part for part in others if words.operation(part).op != "read" and words.value(part, 0) == ZERO]
    rest = tuple(part for part in others if part not in zeroes)
    if not zeroes:
        since = f" since {words.joined(rest)}" if rest else ""
        return f"{words.name(read)} returned zero, but no zeroes had been written{since}"
    return (
        f"{words.name(read)} returned zero, but {words.joined(tuple(zeroes))} cannot have come between"
        f" {words.joined(rest)} and it"
    )


def _why_cycle(words: _Words, refutation: Refutation, _: Conflict) -> str:
    return f"{words.joined(refutation.parts)} have no order in which each takes effect as a whole"


_WHY: dict[str, Callable[[_Words, Refutation, Conflict], str]] = {
    "nobody": _why_nobody,
    "future": _why_future,
    "pair": _why_pair,
    "starved": _why_starved,
    "whole": _why_cycle,
}
