"""Whether requests that take effect at an instant on several cells have an order. Exact, within a budget.

No fast algorithm is known for this: it is like view-serializability, which is NP-complete. So there are three steps.

1. Each cell by itself must be linearizable (`model/zones.py`); what is not is refuted at once.
2. An order is made in one pass, in which nearly all reads fit (`model/schedule.py`).
3. It is mended where one does not, by choices that are taken back when they contradict each other
   (`model/mending.py`). When that depends on no choice, there is no order; then `model/few.py` looks for a handful of
   requests of which there is none.

Source:  Papadimitriou, "The serializability of concurrent database updates", 1979, for the hardness.
Shapes:  as `model/zones.py`: an order of parts, or a Refutation; None if the budget was spent before either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from model.budget import Meter, Spent
from model.cells import Cut
from model.clauses import NoOrder
from model.few import Few
from model.group import group_of
from model.mending import Mending
from model.zones import Refutation, decide_cell

# Told which part of the work is done, from 0 to 1; roughly, and it may become less.
Progress = Callable[[float], None]
# Of the work, how much is done when all cells have been looked at, and when mending begins.
CELLS_SHARE, MENDING_SHARE = 0.2, 0.6
CELLS_PER_LOOK = 16


def no_progress(_: float) -> None:
    """For those who need not be told."""


def decide_group(
    found: Cut, first: int, end: int, base_is_zero: bool, meter: Meter, progress: Progress = no_progress
) -> list[int] | Refutation | None:
    """An order of the parts on the cells from first to end, or why there is none; None if the budget is spent."""
    for number in range(first, end):
        if number % CELLS_PER_LOOK == 0:
            progress(CELLS_SHARE * (number - first) / (end - first))
        decided = decide_cell(found.cells[number], found, base_is_zero)
        if isinstance(decided, Refutation):
            return replace(decided, cells=(number, number + 1))
    cells = found.cells[first:end]
    group = group_of(found, cells, base_is_zero)
    count = max(len(group.parts), 1)
    progress(MENDING_SHARE)
    try:
        order = Mending(group, meter).run(lambda done: progress(MENDING_SHARE + (1 - MENDING_SHARE) * done / count))
    except Spent:
        return None
    except NoOrder as reason:
        few = Few(found, cells, base_is_zero, group, reason.origin)
        parts = few.smallest()
        return Refutation("whole", (parts,), parts, cells=(max(first, few.begin), min(end, few.end)))
    return None if order is None else [group.parts[operation] for operation in order]
