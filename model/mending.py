"""Mends an order of a group's operations until every read in it fits. Exact, within a budget.

The order is replayed up to the first read that does not fit. What can be done about that is a choice, a small one:

- a read of w does not fit because x was written between: x comes before w, or after all reads of w on their cells;
- a read of zero does not fit because w was written: the read comes before w, or some zero write comes after w and all
  reads of it, and before the read;
- a read of the base has to come before whatever was written there.

A choice is made, the order is changed as little as it takes (`model/timeline.py`), and the replay goes on. Where
choices contradict each other, what can be learned from that is kept, and the last of them is made otherwise
(`model/clauses.py`). The order is found when all reads fit; there is none when a contradiction depends on no choice.
Nothing else ends it, but the budget: every choice is between all that any order could have there.

A zero write whose answer never came, or that failed, is in the order as one that is passed over; it counts only when it
is chosen as what a read of zero has read. (Other writes of that kind are there if something was read of them, and not
else: `model/group.py`.)

Source:  Tan, Zhao, Mu and Walfish, "Cobra: making transactional key-value stores verifiably serializable", 2020, for
         serializability as choices between edges of a graph. That the order itself says which choices matter is ours.
Shapes:  operations of a Group, by number.
Errors:  NoOrder, with the operations of which there is no order. Spent, when the first order takes all the time.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate

from model.budget import Meter, Spent
from model.clauses import Choices
from model.group import ANYTHING, NOBODY, ZEROED, Group
from model.history import NEVER
from model.schedule import first_order
from model.timeline import Timeline

# Told how many operations have been replayed; it may become less.
Progress = Callable[[int], None]

# So many zero writes are named at first that a read may have read.
FEW = 2


@dataclass(slots=True)
class _Named:
    """Zero writes that a read may have read: those named in clauses, the nearest first, and the rest.

    others: the last literal of each clause but the last: it was one that the next clause names
    """

    rest: list[int]
    clauses: list[list[int]] = field(default_factory=list)
    others: list[int] = field(default_factory=list)


class Mending:
    """Replays an order, and changes it where a read does not fit. The order is made when this is."""

    def __init__(self, group: Group, meter: Meter) -> None:
        self.group, self.meter = group, meter
        self.timeline = Timeline(group.call, group.ret, group.writers, group.readers, first_order(group, meter))
        self.choices = Choices(self.timeline, meter)
        self.held = list(group.at_first)
        self.replayed = 0
        self.log: list[tuple[int, int, list[int]]] = []  # (place, first cell, what was there) of each write.
        self.zeroes: dict[int, tuple[list[int], list[int], list[int]]] = {}  # By cell; see _zeroes_between.
        self.named: dict[tuple[int, int, int], _Named] = {}  # By read, cell, and what it holds.
        # Variables, by what they are about.
        self.pairs: dict[tuple[int, int], int] = {}
        self.sources: dict[tuple[int, int, int], int] = {}
        self.happened: dict[int, int] = {}  # By optional zero write.
        self.counted: set[int] = set()  # Of these, those that count in what has been replayed.
        self.required: set[tuple[object, ...]] = set()

    def run(self, progress: Progress | None = None) -> list[int] | None:
        """An order in which all reads fit; None if the budget is spent. NoOrder if there is none."""
        try:
            while (read := self._replay()) is not None:
                if not self.meter.step():
                    return None
                if progress is not None:
                    progress(self.replayed)
                self._mend(read)
        except Spent:
            return None
        return [operation for operation in self.timeline.order if self._counts(operation)]

    def _counts(self, operation: int) -> bool:
        """Whether something has happened, as far as that is chosen."""
        if operation not in self.group.optional:
            return True
        return operation in self.happened and self.choices.value(self.happened[operation]) > 0

    # Replaying.

    def _replay(self) -> int | None:
        """The first read in the order that does not fit."""
        group, order, held, log = self.group, self.timeline.order, self.held, self.log
        self._go_back_to(min([self.timeline.changed_from, *self._changed_their_minds()]))
        self.timeline.changed_from = len(order)
        firsts, behinds, writes, optional = group.first, group.behind, group.writes, group.optional
        start = self.replayed
        for place in range(start, len(order)):
            operation = order[place]
            first, behind, expected = firsts[operation], behinds[operation], group.expected[operation]
            if expected is None:
                if optional and not self._counts(operation):
                    continue
                log.append((place, first, held[first:behind]))
                held[first:behind] = [writes[operation]] * (behind - first)
            elif held[first:behind] != expected and self._wrong_cell(operation) is not None:
                self.replayed = place
                self.meter.work(place - start)
                return operation
        self.replayed = len(order)
        return None

    def _changed_their_minds(self) -> list[int]:
        """Where there is what counts now and did not, or did and does no more."""
        if not self.happened:
            return []
        counted = {zero for zero, literal in self.happened.items() if self.choices.value(literal) > 0}
        changed = counted ^ self.counted
        self.counted = counted
        return [self.timeline.place[zero] for zero in changed]

    def _go_back_to(self, place: int) -> None:
        if place < self.replayed:
            self.replayed = place
            while self.log and self.log[-1][0] >= place:
                _, first, was = self.log.pop()
                self.held[first : first + len(was)] = was

    def _wrong_cell(self, read: int) -> int | None:
        expected = self.group.expected[read] or ()
        for at, value in enumerate(expected, self.group.first[read]):
            if value not in (ANYTHING, self.held[at]):
                return at
        return None

    # Mending.

    def _mend(self, read: int) -> None:
        """Choose something else about a read that does not fit, here."""
        group = self.group
        at = self._wrong_cell(read)
        expected = group.expected[read]
        assert at is not None and expected is not None, "a read that fits"
        wanted = expected[at - group.first[read]]
        held = self.held[at]
        if wanted == ZEROED:
            self._mend_zero(read, at, held)
            return
        between = self._last_write(read, at) if held == ZEROED else held
        if between in group.optional:
            self._mend_passed_over(read, wanted, between)
        elif wanted == NOBODY:
            self.choices.fact(read, between)
        else:
            pair = self._pair(wanted, between)
            self.choices.choose(pair if group.middle[wanted] <= group.middle[between] else -pair)

    def _last_write(self, read: int, at: int) -> int:
        """What wrote a cell last before a read."""
        group, order = self.group, self.timeline.order
        for place in range(self.timeline.place[read] - 1, -1, -1):
            operation = order[place]
            is_write = group.expected[operation] is None and group.first[operation] <= at < group.behind[operation]
            if is_write and self._counts(operation):
                self.meter.work(self.timeline.place[read] - place)
                return operation
        raise AssertionError("what was there at first is not what anybody wrote")

    def _mend_passed_over(self, read: int, wanted: int, zero: int) -> None:
        """A zero write that need not have happened has overwritten what a read wants."""
        literals = [-self._has_happened(zero)]
        if wanted == NOBODY:
            literals.append(self._source(read, zero, ANYTHING, [(read, zero)]))
        else:
            literals.append(self._source(wanted, zero, ANYTHING, self._all_before(wanted, zero)))
            literals.append(self._source(zero, wanted, ANYTHING, [(zero, wanted)]))
        self._require(("passed over", read, wanted, zero), literals, (read, zero, *([wanted] if wanted >= 0 else ())))

    def _mend_zero(self, read: int, at: int, held: int) -> None:
        """A read of zero finds something else.

        It may have read any of thousands of zero writes without an answer. So a clause names the nearest few, and has a
        literal for "one of the others"; when that is true, another clause says which, again with few of them.
        """
        about = (read, at, held)
        if about not in self.named:
            since = self.group.call[held] if held >= 0 else -NEVER
            zeroes = self._zeroes_between(at, since, self.group.ret[read])
            self.meter.work(len(zeroes))
            self.named[about] = _Named(sorted(zeroes, key=lambda zero: self._way(zero, read, held)))
            self._name_more(about)
            return
        for literals in self.named[about].clauses:
            if not (literals[-1] in self.named[about].others and self.choices.value(literals[-1]) > 0):
                self._choose_from(literals)
                return
        self._name_more(about)

    def _name_more(self, about: tuple[int, int, int]) -> None:
        """Name more of the zero writes that a read may have read, twice as many as before."""
        read, _, held = about
        named, place = self.named[about], self.timeline.place
        count = FEW << len(named.clauses)
        zeroes, named.rest = named.rest[:count], named.rest[count:]
        ways = []
        if not named.clauses and held >= 0:
            ways.append((place[read] - place[held], -self._pair(held, read)))
        for zero in zeroes:
            behind = self._all_before(held, zero) if held >= 0 else []
            ways.append((self._way(zero, read, held), self._source(held, zero, read, [*behind, (zero, read)])))
        literals = [literal for _, literal in sorted(ways)]
        before = [-named.others[-1]] if named.others else []
        if named.rest:
            named.others.append(self.choices.variable((), (), ()))
            literals.append(named.others[-1])
        named.clauses.append(literals)
        self.choices.require([*before, *literals], (read, *zeroes, *([held] if held >= 0 else ())))

    def _way(self, zero: int, read: int, held: int) -> int:
        """How far a zero write would have to be moved to come between."""
        place = self.timeline.place
        if held >= 0 and place[zero] < place[held]:
            return place[held] - place[zero]
        return max(place[zero] - place[read], 0)

    def _zeroes_between(self, at: int, since: int, until: int) -> list[int]:
        """The zero writes of a cell that may have taken effect between two times.

        Those that never returned are kept apart: with the latest response up to each of the others, they are few.
        """
        call, ret = self.group.call, self.group.ret
        if at not in self.zeroes:
            writes = self.group.zero_writes[at]
            returned = [zero for zero in writes if ret[zero] < NEVER]
            latest = list(accumulate((ret[zero] for zero in returned), max))
            self.zeroes[at] = returned, latest, [zero for zero in writes if ret[zero] >= NEVER]
        returned, latest, never = self.zeroes[at]
        first = bisect_left(latest, since)
        last = bisect_right(returned, until, key=call.__getitem__)
        found = [zero for zero in returned[first:last] if ret[zero] >= since]
        return found + never[: bisect_right(never, until, key=call.__getitem__)]

    def _require(self, about: tuple[object, ...], literals: list[int], origin: tuple[int, ...]) -> None:
        """See that one of these is so; if that does not follow, choose the first that is open."""
        if about not in self.required:
            self.required.add(about)
            self.choices.require(literals, origin)
        else:
            self._choose_from(literals)

    def _choose_from(self, literals: list[int]) -> None:
        """Choose the first that is open."""
        still_open = [literal for literal in literals if not self.choices.value(literal)]
        assert still_open, "a read does not fit, and all that can be done about it has been done"
        self.choices.choose(still_open[0])

    # What there is to choose.

    def _pair(self, write: int, other: int) -> int:
        """Whether a write, and all that read it, come before another operation of a cell, or it comes before them."""
        if other < write and self.group.writes[other] == other:
            return -self._pair(other, write)
        if (write, other) not in self.pairs:
            true_pairs = self._all_before(write, other)
            is_value = self.group.writes[other] == other
            false_pairs = self._all_before(other, write) if is_value else [(other, write)]
            self.pairs[write, other] = self.choices.variable(true_pairs, false_pairs, (write, other))
        return self.pairs[write, other]

    def _source(self, write: int, zero: int, read: int, pairs: list[tuple[int, int]]) -> int:
        """Whether these constraints hold; if they say what a zero read has read, that has happened."""
        about = (write, zero, read)
        if about not in self.sources:
            origin = {operation for pair in pairs for operation in pair}
            self.sources[about] = self.choices.variable(pairs, (), origin)
            if read != ANYTHING and zero in self.group.optional:
                self.choices.require([-self.sources[about], self._has_happened(zero)], (zero,))
        return self.sources[about]

    def _has_happened(self, zero: int) -> int:
        if zero not in self.happened:
            self.happened[zero] = self.choices.variable((), (), (zero,))
        return self.happened[zero]

    def _all_before(self, write: int, other: int) -> list[tuple[int, int]]:
        """A write and all that read it before another operation, where that has a cell of theirs."""
        group = self.group
        pairs = [(write, other)]
        first, behind, zero_read = group.first[other], group.behind[other], group.expected[other]
        for read in group.readers[write]:
            start, end = max(first, group.first[read]), min(behind, group.behind[read])
            seen = group.expected[read]
            if read == other or start >= end or seen is None:
                continue
            values = seen[start - group.first[read] : end - group.first[read]]
            if write not in values:
                continue
            if zero_read is None or (write, ZEROED) in zip(values, zero_read[start - first : end - first], strict=True):
                pairs.append((read, other))
        return pairs
