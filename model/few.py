"""Makes a refutation of whole requests small: as few of them as there can be left, dropping one after another.

Leaving out requests can only make orders possible, as `model/certificate.py` argues, if the writers of what is read are
left in. Zero reads are taken at their word only where all zero writes are left in that may matter to them, as counted
there; else they may have read zeroes that come from anywhere.

Source:  Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input", 2002, for many at once, then few.
Shapes:  parts of a Cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from model.budget import Budget, Meter, Spent
from model.cells import Cell, Cut
from model.clauses import NoOrder
from model.group import NOBODY, Group, group_of
from model.history import BASE, NEVER
from model.mending import Mending

# How long to look for fewer. What is there then is shown.
ALL = Budget(seconds=5.0)
# What one attempt may cost; of one that costs more it is not known that there is no order, and nothing is left out.
ATTEMPT = Budget(steps=5_000, seconds=2.0, entries=5_000)


class Few:
    """Some parts that have no order, and what belongs to them.

    begin, end: the cells that they cover, as the Cut counts them
    """

    def __init__(
        self, found: Cut, cells: Sequence[Cell], base_is_zero: bool, group: Group, operations: Iterable[int]
    ) -> None:
        self._found, self._base_is_zero = found, base_is_zero
        self._meter = Meter(ALL)
        self._number = {part: operation for operation, part in enumerate(group.parts)}
        self._group = group
        self._parts = self._with_writers({group.parts[operation] for operation in operations})
        few = [_restricted(cell, self._parts, with_zeroes=True) for cell in cells]
        self._cells = [cell for cell in few if cell.writes or cell.reads or cell.zero_writes or cell.zero_reads]
        self.begin, self.end = 0, len(found.cells)

    def smallest(self) -> tuple[int, ...]:
        """As few of them as have no order still, by invocation."""
        parts = self._sorted(self._parts | self._zero_writes_for(self._parts))
        core = self._core(parts)
        while core is not None:
            core = self._with_writers(core)
            fewer = self._sorted(core | self._zero_writes_for(core))
            if len(fewer) >= len(parts):
                break
            core = self._core(fewer)
            if core is not None:
                parts = fewer
        # Trims that promise nothing, then zeroes: there may be many, and what is said without them is said more simply.
        trims = {part for part in parts if isinstance(self._found.names[part], tuple)}
        zeroes = {part for cell in self._cells for part in cell.zero_writes}
        for leave_out in (trims, zeroes):
            without = [part for part in parts if part not in leave_out]
            if without and len(without) < len(parts) and self._core(without) is not None:
                parts = without
        there = self._sorted(self._with_writers(self._drop(parts)))
        self.begin = min(self._found.begin[part] for part in there)
        self.end = max(self._found.end[part] for part in there)
        return tuple(there)

    def _drop(self, parts: list[int]) -> list[int]:
        """Leave out many at once, then fewer, then one by one, as long as what is left has no order."""
        size = max(len(parts) // 2, 1)
        while True:
            at = 0
            while at < len(parts):
                fewer = parts[:at] + parts[at + size :]
                if fewer and self._core(fewer) is not None:
                    parts = fewer
                else:
                    at += size
            if size == 1:
                return parts
            size = max(size // 2, 1)

    def _sorted(self, parts: Iterable[int]) -> list[int]:
        return sorted(parts, key=lambda part: (self._found.call[part], part))

    def _with_writers(self, parts: Iterable[int]) -> set[int]:
        """With who wrote what is read; and with a read of each write that would not be known to have happened."""
        group, number = self._group, self._number
        there = set(parts)
        for part in list(there):
            if part in self._found.optional:
                readers = [group.parts[read] for read in group.readers[number[part]]]
                if readers and there.isdisjoint(readers):
                    there.add(readers[0])
        for part in list(there):
            there.update([group.parts[write] for write in group.writers[number[part]]])
        return there

    def _core(self, parts: Iterable[int]) -> set[int] | None:
        """Which of these have no order, if they have none."""
        if not self._meter.in_time():
            return None
        there = self._with_writers(parts)
        call, ret = self._found.call, self._found.ret
        cells: list[Cell] = []
        zero_at_first, free = set(), set()
        for all_of_it in self._cells:
            cell = _restricted(all_of_it, there)
            if cell.zero_reads:
                first, last = self._span(cell)
                if any(
                    part not in there and call[part] <= last and ret[part] >= first for part in all_of_it.zero_writes
                ):
                    free.add(len(cells))
                elif any(part not in there and ret[part] < first for part in all_of_it.zero_writes):
                    zero_at_first.add(len(cells))
            cells.append(cell)
        group = group_of(self._found, cells, self._base_is_zero, zero_at_first, free)
        try:
            Mending(group, Meter(ATTEMPT)).run()
        except Spent:
            return None
        except NoOrder as reason:
            return {group.parts[operation] for operation in reason.origin} - {NOBODY}
        return None

    def _zero_writes_for(self, parts: set[int]) -> set[int]:
        """The zero writes that may matter to these."""
        call, ret = self._found.call, self._found.ret
        needed: set[int] = set()
        for all_of_it in self._cells:
            cell = _restricted(all_of_it, parts)
            if cell.zero_reads:
                first, last = self._span(cell)
                needed.update(part for part in all_of_it.zero_writes if call[part] <= last and ret[part] >= first)
        return needed

    def _span(self, cell: Cell) -> tuple[int, int]:
        """Between which times zero writes matter to a cell; as in `model/certificate.py`."""
        call, ret, names = self._found.call, self._found.ret, self._found.names
        f: dict[object, int] = {names[part]: ret[part] for part in cell.writes}
        s: dict[object, int] = {names[part]: call[part] for part in cell.writes}
        for part, value in zip(cell.reads, cell.read_values, strict=True):
            f[value] = min(f.get(value, NEVER), ret[part])
            s[value] = max(s.get(value, -NEVER), call[part])
        if BASE in f:  # It was written before all time.
            f[BASE] = -NEVER
        times = [call[part] for part in cell.zero_reads] + list(f.values()) + list(s.values())
        return min(times), max(ret[part] for part in cell.zero_reads)


def _restricted(cell: Cell, only: set[int], with_zeroes: bool = False) -> Cell:
    """A cell with some of its parts; with all its zero writes, if anybody reads them."""
    kept = [(part, value) for part, value in zip(cell.reads, cell.read_values, strict=True) if part in only]
    zero_reads = [part for part in cell.zero_reads if part in only]
    return Cell(
        [part for part in cell.writes if part in only],
        [part for part, _ in kept],
        [value for _, value in kept],
        [part for part in cell.zero_writes if part in only or (with_zeroes and zero_reads)],
        zero_reads,
    )
