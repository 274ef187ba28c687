"""Operations in an order that real time allows, and that takes in constraints one by one: this one before that one.

An order is kept that obeys all constraints there are. A new one that it obeys already costs nothing. For another, the
operations between the two are looked at, in the order they have: those that have to stay behind the later one are moved
behind the earlier one, or those that have to stay before the earlier one are moved before the later one, whichever are
fewer. If the earlier one is itself among those that have to stay behind, the constraints contradict each other, and a
cycle of them says how. Constraints can be taken back; the order stays as it is, for it obeys the rest too.

What real time says (an operation that returned before another was invoked comes before it) is not kept as constraints:
it is seen from the times, in one pass over the operations between the two.

Source:  Pearce and Kelly, "A dynamic topological sort algorithm for directed acyclic graphs", 2007, for the idea.
Shapes:  operations are numbers from 0. A constraint has a tag, not zero, of whoever made it; FACT is the tag of what is
         true in any case. A cycle is its operations and its tags, without FACT.
Units:   times as the history has them; places in the order count from 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FACT = 0

# What has to come next to what, and whose constraint that is.
_Next = dict[int, list[tuple[int, int]]]


@dataclass(frozen=True, slots=True)
class Cycle:
    """Operations that each have to come before the next, and the tags of constraints that say so."""

    operations: list[int]
    tags: list[int]


class Timeline:
    """An order of operations.

    follows, leads: by operation, those that come before it, and behind it, in any case, whatever the times say
    order, place:  which is where, and where is which
    changed_from:  the first place at which the order has changed since whoever reads it last reset this
    looked_at:     how many places had to be looked at; it is reset likewise
    """

    def __init__(
        self,
        call: Sequence[int],
        ret: Sequence[int],
        follows: Sequence[Sequence[int]],
        leads: Sequence[Sequence[int]],
        order: list[int],
    ) -> None:
        self._call, self._ret = call, ret
        self._follows, self._leads = follows, leads
        self.order = order
        self.place = [0] * len(order)
        for where, operation in enumerate(order):
            self.place[operation] = where
        self.changed_from = len(order)
        self.looked_at = 0
        self._before: _Next = {}
        self._after: _Next = {}

    def add(self, earlier: int, later: int, tag: int) -> Cycle | None:
        """Take in a constraint; or the cycle that it would close, and nothing has changed."""
        first, last = self.place[later], self.place[earlier]
        if first <= last:
            self.looked_at += last - first + 1
            behind = self._behind(later, first, last)
            if earlier in behind:
                return self._cycle(behind, earlier, later)
            between = self.order[first : last + 1]
            before = self._in_front(earlier, first, last) if len(behind) > 1 else behind
            if len(before) < len(behind):
                between = [at for at in between if at in before] + [at for at in between if at not in before]
            else:
                between = [at for at in between if at not in behind] + [at for at in between if at in behind]
            self.order[first : last + 1] = between
            for where, operation in enumerate(between, first):
                self.place[operation] = where
            self.changed_from = min(self.changed_from, first)
        self._before.setdefault(later, []).append((earlier, tag))
        self._after.setdefault(earlier, []).append((later, tag))
        return None

    def remove(self, earlier: int, later: int, tag: int) -> None:
        """Take back a constraint that was taken in."""
        _remove_last(self._before[later], (earlier, tag))
        _remove_last(self._after[earlier], (later, tag))

    def _behind(self, start: int, first: int, last: int) -> dict[int, tuple[int, int]]:
        """What has to stay behind the operation at the first place, up to the last: each, with what it has to follow.

        What it has to follow comes with the tag of the constraint that says so; FACT where it is real time.
        """
        call, ret, follows, before = self._call, self._ret, self._follows, self._before
        found = {start: (start, FACT)}
        earliest, whose = ret[start], start
        for operation in self.order[first + 1 : last + 1]:
            if call[operation] > earliest:
                found[operation] = (whose, FACT)
            else:
                for other in follows[operation]:
                    if other in found:
                        found[operation] = (other, FACT)
                        break
                else:
                    for other, tag in before.get(operation, ()):
                        if other in found:
                            found[operation] = (other, tag)
                            break
                    else:
                        continue
            if ret[operation] < earliest:
                earliest, whose = ret[operation], operation
        return found

    def _in_front(self, start: int, first: int, last: int) -> set[int]:
        """What has to stay before the operation at the last place, from the first place on."""
        call, ret, leads, after = self._call, self._ret, self._leads, self._after
        found = {start}
        latest = call[start]
        for where in range(last - 1, first - 1, -1):
            operation = self.order[where]
            if (
                ret[operation] < latest
                or not found.isdisjoint(leads[operation])
                or (operation in after and not found.isdisjoint([other for other, _ in after[operation]]))
            ):
                found.add(operation)
                latest = max(latest, call[operation])
        return found

    def _cycle(self, behind: dict[int, tuple[int, int]], earlier: int, later: int) -> Cycle:
        operations, tags = [earlier], []
        at = earlier
        while at != later:
            at, tag = behind[at]
            operations.append(at)
            if tag != FACT:
                tags.append(tag)
        return Cycle(operations[::-1], tags)


def _remove_last(of: list[tuple[int, int]], what: tuple[int, int]) -> None:
    if of[-1] == what:
        of.pop()
        return
    at = len(of) - 1 - of[::-1].index(what)
    del of[at]
