"""An order of a group's operations that real time allows, and in which nearly all reads fit: made in one pass.

Operations are taken one by one. One may be taken when it was invoked before all that are left had returned. A read is
taken as soon as its cells hold what it returned. A write waits as long as somebody has still to read what it would
overwrite; then, if nobody reads what it wrote, it is taken, and of the others the one whose value was there the
earliest. If nothing can be taken so, the one that returned first is taken as it is, or the write that it waits for:
then some read does not fit, and `model/whole.py` mends that. It would have to look at every order otherwise.

Source:  none.
Shapes:  operations of a Group, by number. Optional ones are put where they could be.
"""

from __future__ import annotations

from heapq import heappop, heappush

from model.budget import Meter
from model.group import ANYTHING, NOBODY, ZEROED, Group


def first_order(group: Group, meter: Meter) -> list[int]:
    """All operations, in an order. Spent, if that takes more time than there is."""
    return _Schedule(group, meter).run()


class _Schedule:
    """held: by cell, what it holds; left: how many reads of that are to come; zero_left: how many zero reads are."""

    def __init__(self, group: Group, meter: Meter) -> None:
        self.group, self.meter = group, meter
        self.order: list[int] = []
        self.taken = bytearray(len(group.parts))
        self.held = list(group.at_first)
        self.left, self.counts = _count(group)
        self.zero_left = [len(reads) for reads in group.zero_reads]
        # Who waits for a cell to change, or for its last read.
        self.reads_at: dict[int, list[int]] = {}
        self.writes_at: dict[int, list[int]] = {}
        self.todo: list[int] = []
        self.ready: list[tuple[int, int]] = []

    def run(self) -> list[int]:
        """Take all."""
        group, taken = self.group, self.taken
        call, ret, optional = group.call, group.ret, group.optional
        by_call = sorted(range(len(call)), key=call.__getitem__)
        by_ret = sorted(range(len(ret)), key=ret.__getitem__)
        if optional:
            by_ret = [operation for operation in by_ret if operation not in optional]
        entered, count = 0, len(by_call)
        for urgent in by_ret:
            if taken[urgent]:
                continue
            limit = ret[urgent]
            while entered < count and call[by_call[entered]] <= limit:
                self._enter(by_call[entered])
                entered += 1
            while not taken[urgent]:
                self._take(self._next(urgent))
                while self.todo:
                    operation = self.todo.pop()
                    if not taken[operation]:
                        self._look_at(operation)
        self.order.extend(by_call[entered:])
        return self.order

    def _enter(self, operation: int) -> None:
        if operation in self.group.optional:
            self.order.append(operation)
            return
        self.todo.append(operation)
        while self.todo:
            operation = self.todo.pop()
            if not self.taken[operation]:
                self._look_at(operation)

    def _next(self, urgent: int) -> int:
        """What to take, when nothing goes without saying."""
        while self.ready:
            _, operation = heappop(self.ready)
            if not self.taken[operation] and not self._waits(operation):
                return operation
        missing = [write for write in self.group.writers[urgent] if not self.taken[write]]
        return min(missing, key=self.group.middle.__getitem__, default=urgent)

    def _look_at(self, operation: int) -> None:
        """Take it, or say what it waits for."""
        group = self.group
        first, behind, expected = group.first[operation], group.behind[operation], group.expected[operation]
        if expected is not None:
            if self.held[first:behind] == expected:
                self._take(operation)
                return
            for at, value in enumerate(expected, first):
                if value not in (self.held[at], ANYTHING):
                    self.reads_at.setdefault(at, []).append(operation)
                    return
            self._take(operation)
        elif not self._waits(operation):
            if group.readers[operation] or self._is_of_use(operation, first, behind):
                heappush(self.ready, (group.middle[operation], operation))
            else:
                self._take(operation)

    def _waits(self, operation: int) -> bool:
        """Whether what a write would overwrite is still to be read."""
        first, behind = self.group.first[operation], self.group.behind[operation]
        if any(self.left[first:behind]):
            at = next(at for at in range(first, behind) if self.left[at])
            self.writes_at.setdefault(at, []).append(operation)
            return True
        return False

    def _is_of_use(self, operation: int, first: int, behind: int) -> bool:
        """Whether it may matter when a write comes that nobody reads: there are zeroes to be read."""
        if not any(self.zero_left[first:behind]):
            return False
        if self.group.writes[operation] == ZEROED:
            return True
        return any(self.held[at] == ZEROED and self.zero_left[at] for at in range(first, behind))

    def _take(self, operation: int) -> None:
        self.order.append(operation)
        self.taken[operation] = 1
        first, expected = self.group.first[operation], self.group.expected[operation]
        if expected is None:
            self._write(operation, first, self.group.behind[operation])
            return
        held, left = self.held, self.left
        for at, value in enumerate(expected, first):
            if value == ZEROED:
                self.zero_left[at] -= 1
            elif value == held[at]:
                left[at] -= 1
                if not left[at] and at in self.writes_at:
                    self._look_again_at(self.writes_at.pop(at))
            elif value >= 0 and not self.taken[value]:
                self.counts[value][at - self.group.first[value]] -= 1

    def _write(self, operation: int, first: int, behind: int) -> None:
        length = behind - first
        self.held[first:behind] = [self.group.writes[operation]] * length
        self.left[first:behind] = self.counts.get(operation) or [0] * length
        if self.reads_at or self.writes_at:
            for at in range(first, behind):
                if at in self.reads_at:
                    self._look_again_at(self.reads_at.pop(at))
                if at in self.writes_at:
                    self._look_again_at(self.writes_at.pop(at))

    def _look_again_at(self, operations: list[int]) -> None:
        """There may be as many as are in flight, again and again: all there are, if all are."""
        self.meter.work(len(operations))
        self.todo += operations


def _count(group: Group) -> tuple[list[int], dict[int, list[int]]]:
    """How many reads there are of the base, by cell, and of each write, by its cells."""
    of_base = [0] * len(group.at_first)
    counts = {
        write: [0] * (group.behind[write] - group.first[write])
        for write, readers in enumerate(group.readers)
        if readers
    }
    for read, expected in enumerate(group.expected):
        if expected is None:
            continue
        for at, value in enumerate(expected, group.first[read]):
            if value >= 0:
                counts[value][at - group.first[value]] += 1
            elif value == NOBODY:
                of_base[at] += 1
    return of_base, counts
