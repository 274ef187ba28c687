"""The device cut into cells, so that every request covers whole cells, and the requests cut as a level asks.

A cell is as long as it can be: there is an edge only where a request begins or ends, or where what a read returned
changes its writer. Bytes of one cell have seen the same requests and the same values, so that one of them speaks for
all, and a history of requests of one block each has one cell for a block, however many granules that is.

A level says what takes effect at an instant: a request, or what of it lies within one block, or within one granule. A
group is a run of cells that something at that level covers together; groups have nothing to do with each other, and
are decided apart (Herlihy and Wing's locality). Where an edge lies within a block, that level has edges at the ends of
the block too, so that a group is never larger than what the level promises.

What is done with each kind of request:

| request | |
|---|---|
| read | counts for each cell apart by what it returned there; pending or failed: says nothing, and is left out |
| write | its value is its name |
| zero | writes ZERO, the one value that many write |
| trim | with `trim_reads_zero` as zero; else it leaves anything, see below |
| cache, flush, status | changes nothing that a read can see; left out. FUA, too, is about crashes only |
| EINVAL, EPERM | has not happened; left out |
| another error | each cell of it may have happened, apart from the others, by the time of the answer |
| pending | may have happened as a whole, at any time since its invocation, or never |

After a trim that promises nothing, bytes may read as anything until they are overwritten. A read is not checked on a
cell where it may have come after such a trim: the trim was invoked before the read returned, and nothing was certainly
written in between (invoked after the trim returned, returned before the read was invoked). Such a trim is itself a
write of something that nobody reads.

Shapes:  Cut keeps columns by part; a part is a request, and its number the request's, or one cell of a failed request,
         numbered behind them. Cell lists are by invocation.
Units:   bytes; times as the history has them.
Errors:  ValueError for what no recorder can have seen: a name given twice or reserved, runs that do not come to the
         length, a response before its invocation.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, compress
from operator import add, gt, itemgetter, lt
from typing import TypeVar

from model.history import BASE, NEVER, NOT_DONE, OK, PENDING, TORN, ZERO, History, Level, Runs, Value

KEPT = frozenset({"read", "write", "zero", "trim"})
RESERVED = frozenset({BASE, TORN})

T = TypeVar("T")


@dataclass(slots=True)
class Cell:
    """What was done to one cell. `read_values` goes beside `reads`; zeroes are kept apart."""

    writes: list[int] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)
    read_values: list[str] = field(default_factory=list)
    zero_writes: list[int] = field(default_factory=list)
    zero_reads: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Cut:
    """A history as a level sees it.

    edges:    where cells begin, and where the last one ends
    groups:   (first cell, cell behind the last) of each, only those that anything was done to
    call, ret, names: by part; a name is a write's value
    request:  the request of each part from `len(history)` on, and `only` its cell
    optional: the parts that may be left out
    begin, end: the cells of each part
    unchecked: (cell, read) where a trim may explain what was read
    """

    edges: list[int]
    cells: list[Cell]
    call: list[int]
    ret: list[int]
    names: list[object]
    begin: list[int]
    end: list[int]
    groups: list[tuple[int, int]] = field(default_factory=list)
    request: list[int] = field(default_factory=list)
    only: list[int] = field(default_factory=list)
    optional: set[int] = field(default_factory=set)
    unchecked: list[tuple[int, int]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def request_of(self, part: int) -> int:
        """The request that a part is of."""
        whole = len(self.call) - len(self.request)
        return part if part < whole else self.request[part - whole]

    def cells_of(self, part: int) -> range:
        """The cells of a part."""
        return range(self.begin[part], self.end[part])


def pick(column: list[T], parts: list[int]) -> Sequence[T]:
    """What a column says of these parts. They may lie far apart in memory: itemgetter waits for many at once."""
    return itemgetter(*parts)(column) if len(parts) > 1 else [column[part] for part in parts]


def unit_of(history: History, level: Level) -> int | None:
    """The bytes within which a level promises an instant; None: any number."""
    return {"request": None, "block": history.block_size, "sector": history.granule}[level]


def check_history(history: History) -> None:
    """Raise ValueError for what cannot have been recorded so."""
    names = list(compress(history.value, map("write".__eq__, history.op)))
    different = set(names)
    if ZERO in different:
        names = [name for name in names if name != ZERO]
        different.remove(ZERO)
    if len(different) != len(names):
        seen: set[object] = set()
        twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"value {twice!r} is written by two requests; a write's value has to be its own")
    for name in RESERVED.intersection(different):
        raise ValueError(f"a write cannot have the value {name!r}")
    for index in compress(range(len(history)), map(lt, history.ret, history.call)):
        raise ValueError(f"request {history.id[index]} returned before it was invoked")


def cut(history: History, level: Level) -> Cut:
    """The cells, what was done to each, and the groups."""
    check_history(history)
    ends = list(map(add, history.offset, history.length))
    edges = _edges(history, ends, unit_of(history, level))
    place = {edge: number for number, edge in enumerate(edges)}
    found = Cut(
        edges,
        [Cell() for _ in range(max(len(edges) - 1, 0))],
        list(history.call),
        list(history.ret),
        list(history.value),
        [place[offset] for offset in history.offset],
        [place[end] for end in ends],
    )
    found.counts.update(requests=len(history), left_out=0, unchecked=0)
    trims = _fill(history, found, place)
    if trims:
        _leave_out_what_a_trim_explains(found, trims)
        found.counts["unchecked"] = len(found.unchecked)
    unit = unit_of(history, level)
    found.groups = _groups(history, found, unit)
    found.counts.update(cells=len(found.cells), groups=len(found.groups))
    return found


def _edges(history: History, ends: list[int], unit: int | None) -> list[int]:
    """All edges of cells, in order."""
    edges = set(history.offset)
    edges.update(ends)
    for index, runs in enumerate(history.value):
        if type(runs) is tuple and len(runs) > 1 and history.op[index] == "read" and history.outcome[index] == OK:
            edges.update(accumulate((length for _, length in runs), initial=history.offset[index]))
    if unit is not None:
        for edge in [edge for edge in edges if edge % unit]:
            edges.add(edge - edge % unit)
            edges.add(edge - edge % unit + unit)
    return sorted(edges)


def _fill(history: History, found: Cut, place: dict[int, int]) -> list[tuple[int, int, int]]:
    """Put every request into its cells; (invoked, part, cell) of the trims that promise nothing."""
    cells, ret = found.cells, found.ret
    trims: list[tuple[int, int, int]] = []
    left_out = 0
    # What fails is added behind the others meanwhile, so that the last two columns may be longer.
    requests: Iterable[tuple[int, tuple[str, str, Value, int, int, int]]] = enumerate(
        zip(history.op, history.outcome, history.value, history.length, found.begin, found.end, strict=False)
    )
    if any(map(gt, history.call, history.call[1:])):
        requests = sorted(requests, key=lambda request: history.call[request[0]])
    for index, (op, outcome, value, length, first, behind) in requests:
        if op not in KEPT or outcome in NOT_DONE or (outcome != OK and op == "read"):
            left_out += 1
            continue
        if op == "read":
            if not isinstance(value, tuple):
                raise ValueError(f"read {history.id[index]} was answered without a value")
            if behind - first != 1 or len(value) != 1:
                _fill_read(found, place, index, history.offset[index], value, history)
                continue
            writer, run_length = value[0]
            if run_length != length:
                raise ValueError(f"what read {history.id[index]} returned does not come to its length")
            cell = cells[first]
            if writer == ZERO:
                cell.zero_reads.append(index)
            else:
                cell.reads.append(index)
                cell.read_values.append(writer)
            continue
        if outcome == PENDING:
            ret[index] = NEVER
            found.optional.add(index)
        elif outcome != OK:
            _fill_failed(history, found, index, trims)
            continue
        is_zero = op == "zero" or value == ZERO or (op == "trim" and history.trim_reads_zero)
        for number in range(first, behind):
            if is_zero:
                cells[number].zero_writes.append(index)
            else:
                cells[number].writes.append(index)
        if op == "trim" and not history.trim_reads_zero:
            found.names[index] = ("trim", index)
            trims.extend((history.call[index], index, number) for number in range(first, behind))
    found.counts["left_out"] = left_out
    return trims


def _fill_read(found: Cut, place: dict[int, int], index: int, at: int, runs: Runs, history: History) -> None:
    """A read of several cells."""
    first = place[at]
    for value, length in runs:
        at += length
        behind = place[at]
        for number in range(first, behind):
            cell = found.cells[number]
            if value == ZERO:
                cell.zero_reads.append(index)
            else:
                cell.reads.append(index)
                cell.read_values.append(value)
        first = behind
    if first != found.end[index]:
        raise ValueError(f"what read {history.id[index]} returned does not come to its length")


def _fill_failed(history: History, found: Cut, index: int, trims: list[tuple[int, int, int]]) -> None:
    """A failed request: a part for each cell, which may be left out."""
    op, value = history.op[index], history.value[index]
    is_zero = op == "zero" or value == ZERO or (op == "trim" and history.trim_reads_zero)
    for number in range(found.begin[index], found.end[index]):
        part = len(found.call)
        found.call.append(history.call[index])
        found.ret.append(history.ret[index])
        found.names.append(value)
        found.begin.append(number)
        found.end.append(number + 1)
        found.request.append(index)
        found.only.append(number)
        found.optional.add(part)
        if is_zero:
            found.cells[number].zero_writes.append(part)
        else:
            found.cells[number].writes.append(part)
        if op == "trim" and not history.trim_reads_zero:
            found.names[part] = ("trim", part)
            trims.append((history.call[index], part, number))


def _leave_out_what_a_trim_explains(found: Cut, trims: list[tuple[int, int, int]]) -> None:
    """Take out of each cell the reads that may have come after a trim that promises nothing."""
    by_cell: dict[int, list[int]] = {}
    for _, part, number in trims:
        by_cell.setdefault(number, []).append(part)
    for number, of_cell in by_cell.items():
        cell = found.cells[number]
        trimmed = set(of_cell)
        written = [
            (found.call[part], found.ret[part])
            for part in (*cell.writes, *cell.zero_writes)
            if part not in found.optional and part not in trimmed
        ]
        written.sort()
        calls = [call for call, _ in written]
        # The earliest that anything written from here on returned.
        overwritten = [NEVER] * (len(written) + 1)
        for at in range(len(written) - 1, -1, -1):
            overwritten[at] = min(overwritten[at + 1], written[at][1])
        # A trim may explain what is read from its invocation until something was invoked after it, and returned.
        spans = sorted((found.call[part], overwritten[bisect_right(calls, found.ret[part])]) for part in of_cell)
        since = [call for call, _ in spans]
        # The latest that any trim invoked up to each may explain.
        until = list(accumulate((end for _, end in spans), max, initial=-NEVER))
        explained = {
            part
            for part in (*cell.reads, *cell.zero_reads)
            if until[bisect_right(since, found.ret[part])] >= found.call[part]
        }
        if not explained:
            continue
        found.unchecked.extend((number, part) for part in (*cell.reads, *cell.zero_reads) if part in explained)
        kept = [(part, of) for part, of in zip(cell.reads, cell.read_values, strict=True) if part not in explained]
        cell.reads, cell.read_values = [part for part, _ in kept], [value for _, value in kept]
        cell.zero_reads = [part for part in cell.zero_reads if part not in explained]


def _groups(history: History, found: Cut, unit: int | None) -> list[tuple[int, int]]:
    """Runs of cells that something covers together. What failed covers each cell apart."""
    count = len(found.cells)
    if not count:
        return []
    # How many parts begin to reach beyond the edge, less those that end: a running sum says how many cross it.
    crossing = [0] * (count + 1)
    for index, (first, behind) in enumerate(zip(found.begin[: len(history)], found.end, strict=False)):
        if behind - first > 1 and history.op[index] in KEPT and _covers_together(history, index):
            crossing[first + 1] += 1
            crossing[behind] -= 1
    groups = []
    first, crossed = 0, 0
    for number in range(1, count + 1):
        crossed += crossing[number]
        joined = number < count and crossed > 0 and (unit is None or found.edges[number] % unit != 0)
        if not joined:
            groups.append((first, number))
            first = number
    return [
        (first, behind) for first, behind in groups if any(_touched(found.cells[at]) for at in range(first, behind))
    ]


def _covers_together(history: History, index: int) -> bool:
    """Whether a request takes effect at once on all it covers: it went well, or is a write without an answer yet."""
    outcome = history.outcome[index]
    return outcome == OK or (outcome == PENDING and history.op[index] != "read")


def _touched(cell: Cell) -> bool:
    return bool(cell.writes or cell.reads or cell.zero_writes or cell.zero_reads)
