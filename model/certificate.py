"""Certificates of verdicts, and the verifier that replays each of them. It shares no code with those who decide.

An **Order** proves "linearizable": for each group of cells, the operations in an order. The verifier keeps what each
cell holds in a list and replays: every read has to have returned what the cells then hold, no operation may come after
one that was invoked after it returned, and each operation has to be there exactly once on every byte it covers (an
optional one at most once). It also checks that the groups are what the level asks: no request, or part of one within a
block or granule, may be torn between two groups.

A **Conflict** proves "not linearizable": a few operations, and the bytes on which to look at them. The verifier
searches all orders of these few. Why no order of a few means none of all:

- leaving out a read never makes a legal order illegal;
- nor does leaving out a write whose value none of the reads left in returned: a read's value stands between its own
  write and itself, with nothing in between. So the writers of what the named reads returned have to be named, or not
  to exist; the verifier looks through the history for them;
- zeroes have many writers. Of those bytes on which a named read returned zero, every zero write must be named that was
  invoked before the last of these reads returned, and that had not returned before anything named had to take effect
  (the least of: invocations of these reads, and for each value named, its earliest response and its latest invocation;
  to take effect later than that never does harm, see `model/zones.py`). If any was left out as too early, the bytes are
  taken to be zero at first, which is what they could be at best. If one that matters is not named, every zero read is
  given a zero write of its own that may happen at any time: that is more than any history has;
- a read of the base needs no writer: the bytes hold it at first. They cannot be taken to be zero at first then, so that
  of bytes on which a named read returned the base, no zero write was too early to matter.

Source:  none; the argument is the one above.
Shapes:  operations are indices of requests. An Order's `only` says, where a failed request happened in part, on which
         cell that operation happened; NO_CELL elsewhere.
Errors:  AssertionError for a certificate that does not prove its verdict: whoever made it is wrong. TooLarge for a
         conflict that has more orders than the verifier tries.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from operator import add, itemgetter, lt
from typing import Any, Final

from model.history import BASE, NEVER, NOT_DONE, OK, PENDING, ZERO, History, Level, Runs

NO_CELL = -1
NOBODY = -1
KINDS = frozenset({"read", "write", "zero", "trim"})
STEPS_MAX = 200_000
LOOKS_MAX = 50_000_000  # At operations, to see whether they may come next.
CHUNK: Final = 1024  # What is fetched at once stays in the processor's cache until it is looked at.


class TooLarge(Exception):
    """There are more orders than the verifier tries."""


@dataclass(frozen=True, slots=True)
class GroupOrder:
    """The operations on one group, [first, end) of the cells, in order."""

    first: int
    end: int
    operations: list[int]
    only: list[int] | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """An order for each group; cell i is the bytes from edges[i] to edges[i + 1].

    unchecked: (cell, request) of reads that may have seen what a trim left that promises nothing
    """

    edges: list[int]
    sequences: list[GroupOrder]
    unchecked: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Conflict:
    """Operations that have no order, looked at on [start, end) of the device only."""

    operations: tuple[int, ...]
    start: int
    end: int


def verify_order(
    history: History, level: Level, order: Order, replayed: Callable[[GroupOrder], None] = lambda _: None
) -> None:
    """Replay an order; AssertionError if it does not prove that the history is linearizable.

    `replayed` is told of each group.
    """
    place = {edge: number for number, edge in enumerate(order.edges)}
    told = _gather(history, place)
    _check_groups(history, level, order, told)
    trims = _Trims(history, order.edges)
    for cell, index in order.unchecked:
        assert 0 <= index < len(history) and history.op[index] == "read", f"{index} is unchecked, and is not a read"
        assert told.begin[index] <= cell < told.end[index], f"read {history.id[index]} does not cover cell {cell}"
        assert trims.explain(cell, index), f"read {history.id[index]} is to be checked"
    unchecked = set(order.unchecked)
    assert len(unchecked) == len(order.unchecked), "something is unchecked twice"
    held = [ZERO if history.base_is_zero else BASE] * len(order.edges)
    covered = len(unchecked)
    for sequence in order.sequences:
        covered += _replay(history, told, sequence, place, held, unchecked)
        replayed(sequence)
    assert covered == told.needed, f"{told.needed - covered} of {told.needed} operations on cells are not in the order"


def _relevant(history: History) -> Iterable[int]:
    """The requests that say something, or may have done something."""
    for index, (op, outcome) in enumerate(zip(history.op, history.outcome, strict=True)):
        if op in KINDS and outcome not in NOT_DONE and (op != "read" or outcome == OK):
            yield index


@dataclass(frozen=True, slots=True)
class _Told:
    """What the history tells of each request.

    begin, end: the cells that it covers; none if it says nothing
    value:      what was read or is left wherever the request takes effect; runs, if that is not the same everywhere
    unsure:     those that need not have happened
    needed:     on how many cells each of the others did something, all together
    """

    begin: list[int]
    end: list[int]
    value: list[str | Runs]
    unsure: set[int]
    needed: int


def _gather(history: History, place: dict[int, int]) -> _Told:
    begin = [place.get(at, NO_CELL) for at in history.offset]
    end = [place.get(at, NO_CELL) for at in map(add, history.offset, history.length)]
    told: list[str | Runs] = []
    unsure = set()
    needed = 0
    columns = zip(history.op, history.outcome, history.value, history.length, begin, end, strict=True)
    for index, (op, outcome, value, length, first, behind) in enumerate(columns):
        if op not in KINDS or outcome in NOT_DONE or (outcome != OK and op == "read"):
            begin[index] = end[index] = NO_CELL
            told.append(())
            continue
        assert NO_CELL < first <= behind, f"request {history.id[index]} does not cover whole cells"
        if outcome == OK:
            needed += behind - first
        else:
            unsure.add(index)
        if op == "read":
            assert isinstance(value, tuple), f"read {history.id[index]} has no value"
            is_one = len(value) == 1 and value[0][1] == length
            told.append(value[0][0] if is_one else value)
        elif op == "write":
            assert isinstance(value, str), f"write {history.id[index]} has no value"
            told.append(value)
        else:
            told.append(_written(history, index))
    return _Told(begin, end, told, unsure, needed)


def _check_groups(history: History, level: Level, order: Order, told: _Told) -> None:
    """Groups do not overlap, and nothing that takes effect at an instant is torn between two of them."""
    unit = {"request": None, "block": history.block_size, "sector": history.granule}[level]
    assert all(map(lt, order.edges, order.edges[1:])), "edges are not in order, or not different"
    group = [NO_CELL] * len(order.edges)
    for number, sequence in enumerate(order.sequences):
        for cell in range(sequence.first, sequence.end):
            assert group[cell] == NO_CELL, f"cell {cell} is in two groups"
            group[cell] = number
    # How far the cells reach that lie in one group, or in one unit, with each.
    joined = list(range(1, len(order.edges) + 1))
    for cell in range(len(order.edges) - 3, -1, -1):
        same_unit = unit is None or order.edges[cell + 1] % unit != 0
        if not same_unit or group[cell] == group[cell + 1]:
            joined[cell] = joined[cell + 1]
    if unit is not None:
        for cell, (start, end) in enumerate(zip(order.edges, order.edges[1:], strict=False)):
            inner = start % unit or end % unit
            assert not inner or start // unit == (end - 1) // unit, f"cell {cell} reaches over the end of a {level}"
    for index, (first, behind) in enumerate(zip(told.begin, told.end, strict=True)):
        if behind - first > 1:
            torn = history.outcome[index] in (OK, PENDING) and joined[first] < behind
            assert not torn, f"request {history.id[index]} is torn between groups"


def _replay(
    history: History,
    told: _Told,
    sequence: GroupOrder,
    place: dict[int, int],
    held: list[str],
    unchecked: set[tuple[int, int]],
) -> int:
    """Replay one group; on how many cells it did something, of those where that had to be."""
    group_first, group_end = sequence.first, sequence.end
    operations = sequence.operations
    only_of = sequence.only or [NO_CELL] * len(operations)
    parts: Collection[object] = operations
    if told.unsure:
        parts = [(at, only if at in told.unsure else NO_CELL) for at, only in zip(operations, only_of, strict=True)]
    assert len(set(parts)) == len(operations), "a request is there twice"
    assert min(operations, default=0) >= 0, "a request is counted from behind"
    latest = -NEVER
    covered = 0
    for index, only, op, call, ret, begin, end, value in _asked(history, told, operations, only_of):
        until, span = ret, (begin, end)
        if index in told.unsure:
            until, span = _as_far_as_it_happened(history, sequence, index, only, span)
        first, behind = span
        assert until >= latest, f"request {history.id[index]} returned before one that goes before it was invoked"
        if call > latest:  # noqa: PLR1730 - half a second in a million operations
            latest = call
        if first < group_first:  # noqa: PLR1730
            first = group_first
        if behind > group_end:  # noqa: PLR1730
            behind = group_end
        assert first < behind, f"request {history.id[index]} does nothing here"
        if index not in told.unsure:
            covered += behind - first
        if op != "read":
            for cell in range(first, behind):
                held[cell] = value
        elif isinstance(value, str) and not unchecked:
            for cell in range(first, behind):
                assert held[cell] == value, f"read {history.id[index]} does not fit"
        else:
            runs = history.value[index]
            assert isinstance(runs, tuple), f"read {history.id[index]} has no value"
            was = _values_by_cell(place, history.offset[index], runs)
            for cell in range(first, behind):
                if (cell, index) in unchecked:
                    covered -= 1
                else:
                    assert held[cell] == was[cell], f"read {history.id[index]} does not fit"
    return covered


def _asked(
    history: History, told: _Told, operations: list[int], only_of: list[int]
) -> Iterator[tuple[int, int, str, int, int, int, int, Any]]:
    """The operations, in order, each with what is known of it."""
    columns: tuple[list[Any], ...] = (history.op, history.call, history.ret, told.begin, told.end, told.value)
    for start in range(0, len(operations), CHUNK):
        some = operations[start : start + CHUNK]
        yield from zip(some, only_of[start : start + CHUNK], *_rows(some, columns), strict=True)


def _rows(indices: list[int], columns: tuple[list[Any], ...]) -> Iterator[Sequence[Any]]:
    """Of each column what is at these indices. They lie far apart, and itemgetter waits for many of them at once."""
    if len(indices) == 1:
        return ((column[indices[0]],) for column in columns)
    return map(itemgetter(*indices), columns)


def _as_far_as_it_happened(
    history: History, sequence: GroupOrder, index: int, only: int, span: tuple[int, int]
) -> tuple[int, tuple[int, int]]:
    """When a request without success had ended, and the cells of it that this is about."""
    name = history.id[index]
    if history.outcome[index] == PENDING:
        assert only == NO_CELL, f"request {name} happens as a whole"
        return NEVER, span
    assert only != NO_CELL, f"request {name} failed, and is not said to have happened on one cell"
    assert span[0] <= only < span[1], f"request {name} does not cover cell {only}"
    assert sequence.first <= only < sequence.end, f"cell {only} is not in this group"
    return history.ret[index], (only, only + 1)


def _written(history: History, index: int) -> str:
    """What a change leaves; a trim that promises nothing leaves what nobody can have read, and be checked."""
    op, value = history.op[index], history.value[index]
    if op == "write":
        assert isinstance(value, str), f"write {history.id[index]} has no value"
        return value
    if op == "zero" or history.trim_reads_zero:
        return ZERO
    return f"whatever trim {index} left"


def _values_by_cell(place: dict[int, int], at: int, runs: Runs) -> dict[int, str]:
    found = {}
    for value, length in runs:
        for cell in range(place[at], place[at + length]):
            found[cell] = value
        at += length
    return found


# Trims that promise nothing.


class _Trims:
    """What is not checked after a trim that promises nothing, by the definition. Changes cover whole cells of `edges`.

    kept: by cell, the trims' invocations, and how long any trim up to each may be what is read
    """

    def __init__(self, history: History, edges: list[int]) -> None:
        self._history = history
        self._kept: dict[int, tuple[list[int], list[int]]] = {}
        if history.trim_reads_zero or "trim" not in history.op:
            return
        trims: dict[int, list[tuple[int, int]]] = {}
        writes: dict[int, list[tuple[int, int]]] = {}
        changes = [index for index in _relevant(history) if history.op[index] != "read"]
        for index in changes:
            if history.op[index] == "trim":
                ended = NEVER if history.outcome[index] == PENDING else history.ret[index]
                for cell in self._cells(index, edges):
                    trims.setdefault(cell, []).append((history.call[index], ended))
        for index in changes:
            if history.op[index] != "trim" and history.outcome[index] == OK:
                for cell in self._cells(index, edges):
                    if cell in trims:
                        writes.setdefault(cell, []).append((history.call[index], history.ret[index]))
        for cell, of_cell in trims.items():
            self._kept[cell] = self._look_at(sorted(of_cell), sorted(writes.get(cell, [])))

    def explain(self, cell: int, read: int) -> bool:
        """Whether what a read returned for a cell may be what some trim left there."""
        if cell not in self._kept:
            return False
        since, until = self._kept[cell]
        before = bisect_right(since, self._history.ret[read])
        return before > 0 and until[before - 1] >= self._history.call[read]

    def _cells(self, index: int, edges: list[int]) -> range:
        start = self._history.offset[index]
        return range(bisect_left(edges, start), bisect_left(edges, start + self._history.length[index]))

    def _look_at(self, trims: list[tuple[int, int]], writes: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
        """A trim is over when something has returned that was invoked after it had ended."""
        calls = [call for call, _ in writes]
        least = [NEVER]
        for _, ret in reversed(writes):
            least.append(min(least[-1], ret))
        over = [least[len(writes) - bisect_right(calls, ended)] for _, ended in trims]
        return [call for call, _ in trims], list(accumulate(over, max))


# Conflicts.


@dataclass(frozen=True, slots=True)
class Part:
    """A named operation, or one cell of a failed one: what it read or wrote on each cell it covers.

    request: its index; NOBODY for zeroes that may have been written at any time
    """

    request: int
    call: int
    ret: int
    is_read: bool
    optional: bool
    values: dict[int, str]


def verify_conflict(history: History, level: Level, conflict: Conflict) -> None:
    """Search all orders of the named operations; AssertionError if there is one."""
    unit = {"request": None, "block": history.block_size, "sector": history.granule}[level]
    start, end = conflict.start, conflict.end
    assert unit is None or start // unit == (end - 1) // unit, f"the conflict reaches over the end of a {level}"
    assert conflict.operations, "a conflict of nothing"
    parts, at_first, _ = looked_at(history, conflict)
    assert not _has_order(parts, at_first), "the conflict has an order"


def looked_at(history: History, conflict: Conflict) -> tuple[list[Part], list[str], list[int]]:
    """The named operations on cells, one for all those on which the same was done; what cells hold at first; and where.

    AssertionError if they are not all that is needed.
    """
    start, end = conflict.start, conflict.end
    relevant = set(_relevant(history))
    for index in conflict.operations:
        assert index in relevant, f"request {history.id[index]} says nothing"
    near = [at for at in relevant if history.offset[at] < end and start < history.offset[at] + history.length[at]]
    edges = _edges_of(history, conflict, near)
    parts = _parts_of(history, conflict, edges)
    near_cell = _near_each_cell(history, conflict, parts, edges, near)
    at_first = [_first_value(history, parts, cell, of_cell) for cell, of_cell in enumerate(near_cell)]
    parts.extend(
        Part(NOBODY, -NEVER, NEVER, False, True, {cell: ZERO})
        for cell, value in enumerate(at_first)
        if value is None
        for part in parts
        if part.is_read and part.values.get(cell) == ZERO
    )
    return _each_once(_of_use(parts), [value or BASE for value in at_first], edges)


def _edges_of(history: History, conflict: Conflict, near: list[int]) -> list[int]:
    """Where anything named begins or ends, or changes its value, or anything not named that may have to do with it.

    That is zeroes; and, where trims promise nothing, all that changes anything.
    """
    edges = {conflict.start, conflict.end}
    for index in near:
        op, is_zero = history.op[index], history.value[index] == ZERO
        if op in ("zero", "trim") or (op == "write" and (is_zero or not history.trim_reads_zero)):
            edges.update((history.offset[index], history.offset[index] + history.length[index]))
    for index in conflict.operations:
        at = history.offset[index]
        edges.update((at, at + history.length[index]))
        value = history.value[index]
        if history.op[index] == "read" and isinstance(value, tuple):
            for _, length in value:
                at += length
                edges.add(at)
    return sorted(edge for edge in edges if conflict.start <= edge <= conflict.end)


def _parts_of(history: History, conflict: Conflict, edges: list[int]) -> list[Part]:
    """What is named, on the conflict's bytes, with what the definition does not check left out."""
    parts = []
    trims = _Trims(history, edges)
    for index in conflict.operations:
        start, end = history.offset[index], history.offset[index] + history.length[index]
        cells = [cell for cell in range(len(edges) - 1) if start <= edges[cell] and edges[cell + 1] <= end]
        call, ret = history.call[index], history.ret[index]
        outcome = history.outcome[index]
        if history.op[index] == "read":
            values = {cell: _read_at(history, index, edges[cell]) for cell in cells}
            for cell in cells:
                if trims.explain(cell, index):
                    del values[cell]
            parts.append(Part(index, call, ret, True, False, values))
            continue
        written = _written(history, index)
        if outcome in (OK, PENDING):
            ret = NEVER if outcome == PENDING else ret
            parts.append(Part(index, call, ret, False, outcome == PENDING, dict.fromkeys(cells, written)))
        else:
            parts.extend(Part(index, call, ret, False, True, {cell: written}) for cell in cells)
    return parts


def _read_at(history: History, index: int, byte: int) -> str:
    at = history.offset[index]
    runs = history.value[index]
    assert isinstance(runs, tuple), f"read {history.id[index]} has no value"
    for value, length in runs:
        at += length
        if byte < at:
            return value
    raise AssertionError(f"what read {history.id[index]} returned does not come to its length")


def _near_each_cell(
    history: History, conflict: Conflict, parts: list[Part], edges: list[int], near: list[int]
) -> list[list[int]]:
    """By cell, the changes that are not named and may have to do with what was read there: who wrote it, and zeroes."""
    wanted = {value for part in parts if part.is_read for value in part.values.values()}
    named = set(conflict.operations)
    found: list[list[int]] = [[] for _ in range(len(edges) - 1)]
    for index in near:
        if index in named or history.op[index] == "read":
            continue
        if history.op[index] == "write" and history.value[index] not in wanted:
            continue
        start, end = history.offset[index], history.offset[index] + history.length[index]
        for cell in range(max(bisect_right(edges, start) - 1, 0), min(bisect_left(edges, end), len(found))):
            found[cell].append(index)
    return found


def _of_use(parts: list[Part]) -> list[Part]:
    """Without what may be left out, and leaves nothing that is read: in any order it is as well left out.

    A failed request is as many parts as it has cells, and of each subset of them it may be that it has happened.
    """
    wanted = {(cell, value) for part in parts if part.is_read for cell, value in part.values.items()}
    return [part for part in parts if not part.optional or not wanted.isdisjoint(part.values.items())]


def _each_once(parts: list[Part], at_first: list[str], edges: list[int]) -> tuple[list[Part], list[str], list[int]]:
    """The same, with one cell for all those on which the same was done: one speaks for all."""
    cells: dict[tuple[object, ...], int] = {}
    for cell, first in enumerate(at_first):
        cells.setdefault((first, *[part.values.get(cell) for part in parts]), cell)
    place = {cell: at for at, cell in enumerate(cells.values())}
    fewer = [
        replace(part, values={place[cell]: value for cell, value in part.values.items() if cell in place})
        for part in parts
    ]
    return fewer, [at_first[cell] for cell in place], [edges[cell] for cell in place]


def _first_value(history: History, parts: list[Part], cell: int, near: list[int]) -> str | None:
    """What a cell is taken to hold at first; None if its zeroes may come from anywhere.

    That every value read has its writer named is checked here too.
    """
    here = [part for part in parts if cell in part.values]
    wanted = {part.values[cell] for part in here if part.is_read}
    for index in near:
        missing = history.op[index] == "write" and history.value[index] in wanted - {ZERO}
        assert not missing, f"{history.value[index]} was read, and its write is not named"
    base = ZERO if history.base_is_zero else BASE
    if ZERO not in wanted:
        return base
    zero_reads = [part for part in here if part.is_read and part.values[cell] == ZERO]
    clusters: dict[str, list[Part]] = {}
    for part in here:
        if part.values[cell] != ZERO:
            clusters.setdefault(part.values[cell], []).append(part)
    times = [part.call for part in zero_reads]
    times.extend(min([part.ret for part in of] + [max(part.call for part in of)]) for of in clusters.values())
    first, last = -NEVER if BASE in wanted else min(times), max(part.ret for part in zero_reads)
    for index in near:
        if _written(history, index) != ZERO:
            continue
        ret = NEVER if history.outcome[index] == PENDING else history.ret[index]
        if ret < first:
            base = ZERO
        elif history.call[index] <= last:
            return None
    return base


def _has_order(parts: list[Part], at_first: list[str]) -> bool:
    """Whether some order of all that is not optional is legal: depth first, remembering what led nowhere.

    Nothing goes on from where something that is still to be read has been overwritten, and nobody is left to write it.
    A read that fits is taken at once, since it changes nothing, unless something optional would then come too late. Of
    zero writes of the same cells that may both come next only the one that returns first is tried, since the other can
    take its place in any order; unless, again, it was invoked so late that something optional would come too late.
    """
    needed = sum(1 << number for number, part in enumerate(parts) if not part.optional)
    everything = (1 << len(parts)) - 1
    wants = [
        (1 << number, cell, value, sum(1 << of for of, it in enumerate(parts) if _writes(it, cell, value)))
        for number, part in enumerate(parts)
        if part.is_read
        for cell, value in part.values.items()
    ]
    start = (everything, tuple(at_first), -NEVER)
    known = {start}
    todo = [start]
    looks = 0
    while todo:
        left, held, latest = todo.pop()
        if not left & needed:
            return True
        if any(left & read and held[cell] != value and not left & writers for read, cell, value, writers in wants):
            continue
        looks += len(parts)
        if len(known) > STEPS_MAX or looks > LOOKS_MAX:
            raise TooLarge(f"a conflict of {len(parts)} operations has too many orders to try")
        for number in _next_ones(parts, left, needed, latest, held):
            part = parts[number]
            then = held
            if not part.is_read:
                then = tuple(part.values.get(cell, value) for cell, value in enumerate(held))
            after = (left & ~(1 << number), then, max(latest, part.call))
            if after not in known:
                known.add(after)
                todo.append(after)
    return False


def _writes(part: Part, cell: int, value: str) -> bool:
    return not part.is_read and part.values.get(cell) == value


def _next_ones(parts: list[Part], left: int, needed: int, latest: int, held: tuple[str, ...]) -> list[int]:
    """The operations that may come next, and are worth trying."""
    there = [number for number in range(len(parts)) if left >> number & 1]
    limit = min(parts[number].ret for number in there if needed >> number & 1)
    there = [number for number in there if parts[number].call <= limit and parts[number].ret >= latest]
    first_left_out = min((parts[number].ret for number in there if parts[number].optional), default=NEVER)
    zeroes: dict[tuple[tuple[int, ...], bool], int] = {}  # When those were invoked that are tried, by kind.
    found = []
    for number in sorted(there, key=lambda number: parts[number].ret):
        part = parts[number]
        if part.is_read:
            if all(held[cell] == value for cell, value in part.values.items()):
                if part.call <= first_left_out:
                    return [number]
                found.append(number)
            continue
        if set(part.values.values()) == {ZERO}:
            kind = (tuple(part.values), part.optional)
            if kind in zeroes and zeroes[kind] <= max(part.call, first_left_out):
                continue
            zeroes[kind] = min(zeroes.get(kind, NEVER), part.call)
        found.append(number)
    return found
