"""Requests that take effect at an instant on several cells, in columns: when, where, what they wrote and have to read.

Source:  model/cells.py, of which this is a group; docs/linearizability.md.
Shapes:  operations are numbered from 0, by invocation; cells too, by place. Of a write that nobody knows to have
         happened, and whose value nobody read, there is nothing here: leaving it out never harms.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field

from model.cells import Cell, Cut
from model.history import BASE, NEVER

# What a cell can hold besides the value of a write, which is the write's number.
NOBODY = -1  # The base's.
ZEROED = -2
ANYTHING = -3  # What a read is not to be checked on.

_NONE: tuple[int, ...] = ()


@dataclass(slots=True)
class Group:
    """Operations of a group, by number.

    parts:     which part of the history each is; -1 for a zero write that was made up
    first, behind: its cells, from and to
    expected:  of a read, what it returned for each of its cells; None of a write
    writes:    of a write, what its cells hold then: its own number, or ZEROED
    writers:   of a read, the writes whose values it returned
    readers:   of a write, the reads that returned its value
    optional:  zero writes that may be left out
    middle:    of a write, twice the middle of the time that its value was there for certain, or could be
    at_first:  by cell, NOBODY or ZEROED
    zero_writes, zero_reads: by cell, and by invocation
    """

    parts: list[int]
    call: list[int]
    ret: list[int]
    first: list[int]
    behind: list[int]
    expected: list[list[int] | None]
    writes: list[int]
    writers: list[Sequence[int]]
    readers: list[Sequence[int]]
    optional: set[int]
    middle: list[int]
    at_first: list[int]
    zero_writes: list[list[int]] = field(default_factory=list)
    zero_reads: list[list[int]] = field(default_factory=list)


def group_of(
    found: Cut,
    cells: Sequence[Cell],
    base_is_zero: bool,
    zero_at_first: Set[int] = frozenset(),
    free: Set[int] = frozenset(),
) -> Group:
    """The group of these cells. Each read's value has a write among them, or is the base's.

    zero_at_first: places of cells that are taken to be zero at first, whatever the base is
    free:          places of cells whose zero reads may have read a zero write that is not here, at any time
    """
    parts = _parts_that_count(found, cells)
    number = {part: at for at, part in enumerate(parts)}
    count = len(parts)
    at_first = [ZEROED if base_is_zero or at in zero_at_first else NOBODY for at in range(len(cells))]
    group = Group(
        parts,
        [found.call[part] for part in parts],
        [found.ret[part] for part in parts],
        [-1] * count,
        [0] * count,
        [None] * count,
        [ZEROED] * count,
        [_NONE] * count,
        [_NONE] * count,
        set(),
        [],
        at_first,
    )
    for at, cell in enumerate(cells):
        _add(group, at, cell, found, number)
    _link(group)
    for at in sorted(free):
        for _ in cells[at].zero_reads:
            _make_up(group, at)
    return group


def _parts_that_count(found: Cut, cells: Sequence[Cell]) -> list[int]:
    """All that is in the cells, by invocation, without writes that may be left out and that nobody read."""
    parts: set[int] = set()
    for cell in cells:
        parts.update(cell.writes, cell.reads, cell.zero_writes, cell.zero_reads)
    if not found.optional.isdisjoint(parts):
        wanted: set[int] = set()
        for cell in cells:
            read = set(cell.read_values)
            wanted.update(part for part in cell.writes if found.names[part] in read)
        for cell in cells:
            parts.difference_update(part for part in cell.writes if part in found.optional and part not in wanted)
    return sorted(parts, key=lambda part: (found.call[part], part))


def _add(group: Group, at: int, cell: Cell, found: Cut, number: dict[int, int]) -> None:
    """What was done to one cell."""
    first, behind, expected, writes = group.first, group.behind, group.expected, group.writes
    names, optional = found.names, found.optional
    behind_at = at + 1
    holder: dict[object, int] = {BASE: NOBODY}
    for part in cell.writes:
        operation = number.get(part)
        if operation is None:
            continue
        holder[names[part]] = operation
        writes[operation] = operation
        if first[operation] < 0:
            first[operation] = at
        behind[operation] = behind_at
    zero_writes = []
    for part in cell.zero_writes:
        operation = number[part]
        zero_writes.append(operation)
        if first[operation] < 0:
            first[operation] = at
        behind[operation] = behind_at
        if part in optional:
            group.optional.add(operation)
    zero_reads = []
    values = [holder[value] for value in cell.read_values]
    for part, value in (*zip(cell.reads, values, strict=True), *[(part, ZEROED) for part in cell.zero_reads]):
        operation = number[part]
        if value == ZEROED:
            zero_reads.append(operation)
        seen = expected[operation]
        if seen is None:
            first[operation] = at
            expected[operation] = [value]
        else:
            seen.extend([ANYTHING] * (at - behind[operation]))
            seen.append(value)
        behind[operation] = behind_at
    group.zero_writes.append(zero_writes)
    group.zero_reads.append(zero_reads)


def _link(group: Group) -> None:
    """Who read what whom, and when the value of each write was there."""
    call, ret, writers = group.call, group.ret, group.writers
    f, s = list(ret), list(call)
    readers: dict[int, list[int]] = {}
    for operation, seen in enumerate(group.expected):
        if seen is None:
            continue
        of = tuple([value for value in dict.fromkeys(seen) if value >= 0])
        writers[operation] = of
        for write in of:
            readers.setdefault(write, []).append(operation)
            if ret[operation] < f[write]:  # noqa: PLR1730 - as in zones.py
                f[write] = ret[operation]
            if call[operation] > s[write]:  # noqa: PLR1730
                s[write] = call[operation]
    for write, of_write in readers.items():
        group.readers[write] = of_write
    group.middle = [early + late for early, late in zip(f, s, strict=True)]


def _make_up(group: Group, at: int) -> None:
    """A zero write of one cell that may have happened at any time."""
    operation = len(group.parts)
    group.parts.append(NOBODY)
    group.call.append(-NEVER)
    group.ret.append(NEVER)
    group.first.append(at)
    group.behind.append(at + 1)
    group.expected.append(None)
    group.writes.append(ZEROED)
    group.writers.append(_NONE)
    group.readers.append(_NONE)
    group.middle.append(0)
    group.optional.add(operation)
    group.zero_writes[at].insert(0, operation)
