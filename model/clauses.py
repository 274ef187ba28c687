"""Choices between constraints on an order, made, learned from and taken back until the order obeys enough of them.

A *variable* is a yes or no; a *literal* is a variable (n) or its contrary (-n). A literal that is true may bring
constraints: this operation before that one. A *clause* says that one of its literals is true. There is a conflict when
all literals of a clause are false, or the constraints of those that are true form a cycle: then those literals cannot
all be true, which is a clause too. From a conflict a new clause is learned, which says something of the last choice
alone given earlier ones, the choice is taken back, and what the new clause says then is taken for true. A conflict that
depends on no choice shows that there is no order at all. So this is a SAT solver with clause learning, modulo acyclic
orders. Two things are done otherwise than in most:

- Only the last choice that a conflict depends on is taken back, and those made after it, even if what was learned
  depends on earlier ones only: choices are local, and there are thousands of others that the conflict says nothing of.
- Every clause knows the operations that it comes from. So when there is no order, the operations are named of which
  there is none.

Source:  Marques-Silva and Sakallah, "GRASP", 1999, for learning; Nadel and Ryvchin, "Chronological backtracking", 2018;
         Bayless, Bayless, Hoos and Hu, "SAT Modulo Monotonic Theories", 2015, for cycles.
Shapes:  constraints are pairs (earlier, later) of operations; `origin` is a set of operations.
Errors:  NoOrder, with the operations of which there is no order. Spent, when the meter says so; then nothing is known.
Omits:   restarts, and forgetting what was learned: a budget ends a search before either is of use.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from model.budget import Meter, Spent
from model.timeline import FACT, Cycle, Timeline

Pairs = Sequence[tuple[int, int]]

_NO_CLAUSE: tuple[int, ...] = ()

# The meter is told when so many places of the order have been looked at.
FAR = 10_000


class NoOrder(Exception):
    """There is no order. `origin` are the operations that show it."""

    def __init__(self, origin: frozenset[int]) -> None:
        super().__init__(f"{len(origin)} operations have no order")
        self.origin = origin


@dataclass(slots=True)
class _Variable:
    """Its constraints when true and when false, and what is known of it at present.

    origin: the operations that it is about
    level:  how many choices what it is depends on
    reason: the other literals of the clause that made it so, all false; `because` are that clause's operations
    """

    true_pairs: Pairs
    false_pairs: Pairs
    origin: frozenset[int]
    value: int = 0  # 1, -1, or 0: open.
    level: int = 0
    reason: tuple[int, ...] = _NO_CLAUSE
    because: frozenset[int] = frozenset()
    added: int = 0  # So many of its constraints are in the order.
    clauses: tuple[list[int], list[int]] = field(default_factory=lambda: ([], []))  # With it; with its contrary.


class Choices:
    """Variables, clauses, and the order that their constraints are kept in."""

    def __init__(self, timeline: Timeline, meter: Meter) -> None:
        self.timeline = timeline
        self._meter = meter
        self._variables: list[_Variable] = [_Variable((), (), frozenset())]  # There is no number 0.
        self._clauses: list[tuple[tuple[int, ...], frozenset[int]]] = []
        self._trail: list[int] = []
        self._marks: list[int] = []  # By level: how long the trail was when its choice was made.
        self._todo: list[int] = []
        self._facts: list[tuple[int, int]] = []
        self._unsure: list[int] = []  # Clauses that a literal had settled which is open again.

    # What there is to choose.

    def variable(self, true_pairs: Pairs, false_pairs: Pairs, origin: Iterable[int]) -> int:
        """A new one; its literal."""
        self._variables.append(_Variable(true_pairs, false_pairs, frozenset(origin)))
        return len(self._variables) - 1

    def value(self, literal: int) -> int:
        """1 if it is true, -1 if it is false, 0 if it is open."""
        value = self._variables[abs(literal)].value
        return value if literal > 0 else -value

    def require(self, literals: Sequence[int], origin: Iterable[int]) -> None:
        """Add a clause, and see to what follows."""
        self._look_at(self._keep(tuple(literals), frozenset(origin)))
        self._follow()

    def fact(self, earlier: int, later: int) -> None:
        """Add a constraint that holds in any case."""
        self._facts.append((earlier, later))
        self._follow()

    def choose(self, literal: int) -> None:
        """Take an open literal for true, and see to what follows."""
        self._marks.append(len(self._trail))
        self._assign(literal, len(self._marks), _NO_CLAUSE, frozenset())
        self._follow()

    # What follows.

    def _keep(self, literals: tuple[int, ...], origin: frozenset[int]) -> int:
        number = len(self._clauses)
        self._clauses.append((literals, origin))
        for literal in literals:
            self._variables[abs(literal)].clauses[literal < 0].append(number)
        return number

    def _assign(self, literal: int, level: int, reason: tuple[int, ...], because: frozenset[int]) -> None:
        variable = self._variables[abs(literal)]
        variable.value = 1 if literal > 0 else -1
        variable.level = level
        if level == 0:
            # Nothing of it will be taken back: what shows it is gathered now, since no clause will name it any more.
            because = because.union(*(self._variables[abs(other)].because for other in reason))
        variable.reason, variable.because = reason, because
        variable.added = 0
        self._trail.append(literal)
        self._todo.append(literal)

    def _follow(self) -> None:
        """Take all consequences, and learn from conflicts, until there are none."""
        while self._facts or self._todo or self._unsure:
            if self._unsure:
                self._look_at(self._unsure.pop())
                continue
            if self._facts:
                earlier, later = self._facts[-1]
                cycle = self._add(earlier, later, FACT)
                if cycle is None:
                    self._facts.pop()
                else:
                    self._conflict(cycle.tags, cycle.operations)
                continue
            literal = self._todo[-1]
            variable = self._variables[abs(literal)]
            cycle = self._add_pairs(literal, variable)
            if cycle is not None:
                self._conflict([*cycle.tags, literal], cycle.operations)
                continue
            for number in variable.clauses[literal > 0]:
                if self._look_at(number):
                    break  # If this is still true, it is still to be looked at.
            else:
                self._todo.remove(literal)

    def _add_pairs(self, literal: int, variable: _Variable) -> Cycle | None:
        pairs = variable.true_pairs if literal > 0 else variable.false_pairs
        while variable.added < len(pairs):
            earlier, later = pairs[variable.added]
            cycle = self._add(earlier, later, literal)
            if cycle is not None:
                return cycle
            variable.added += 1
        return None

    def _add(self, earlier: int, later: int, tag: int) -> Cycle | None:
        cycle = self.timeline.add(earlier, later, tag)
        if self.timeline.looked_at > FAR:
            self._meter.work(self.timeline.looked_at)
            self.timeline.looked_at = 0
        return cycle

    def _look_at(self, number: int) -> bool:
        """Take what a clause says, if only one of its literals is not false; whether there was a conflict."""
        literals, origin = self._clauses[number]
        unsettled = 0
        for literal in literals:
            value = self.value(literal)
            if value > 0 or (value == 0 and unsettled):
                return False
            if value == 0:
                unsettled = literal
        if not unsettled:
            self._conflict([-literal for literal in literals], origin)
            return True
        others = tuple([literal for literal in literals if literal != unsettled])
        level = max([self._variables[abs(literal)].level for literal in others], default=0)
        self._assign(unsettled, level, others, origin)
        return False

    # What is learned.

    def _conflict(self, literals: Iterable[int], operations: Iterable[int]) -> None:
        """These literals are true, and cannot all be. Learn from it, and take back as little as there is to."""
        variables = self._variables
        origin = set(operations)
        wrong = dict.fromkeys(literals)
        level = max((variables[abs(literal)].level for literal in wrong), default=0)
        self._take_back(level)
        # Replace what followed from the last choice by what it followed from, until one literal of that level is left.
        settled: dict[int, None] = {}
        here = 0
        for literal in wrong:
            here += self._look_into(literal, level, settled, origin)
        at = len(self._trail)
        pending = {literal for literal in wrong if variables[abs(literal)].level == level > 0}
        last = 0
        while level and here:
            at -= 1
            literal = self._trail[at]
            if literal not in pending:
                continue
            pending.remove(literal)
            here -= 1
            last = literal
            if not here:
                break
            variable = variables[abs(literal)]
            origin |= variable.because
            for false in variable.reason:
                other = -false
                if other in pending:
                    continue
                if self._look_into(other, level, settled, origin):
                    pending.add(other)
                    here += 1
        if not last:
            raise NoOrder(frozenset(origin))
        if not (self._meter.step() and self._meter.remember()):
            raise Spent
        others = tuple([-literal for literal in settled])
        clause = (-last, *others)
        self._keep(clause, frozenset(origin))
        self._take_back(level - 1)
        back = max([variables[abs(literal)].level for literal in others], default=0)
        self._assign(-last, back, others, frozenset(origin))

    def _look_into(self, literal: int, level: int, settled: dict[int, None], origin: set[int]) -> int:
        """Sort one of the literals of a conflict: 1 if it is of the last level."""
        variable = self._variables[abs(literal)]
        origin |= variable.origin
        if variable.level == level > 0:
            return 1
        if variable.level == 0:
            origin |= variable.because
        else:
            settled[literal] = None
        return 0

    def _take_back(self, level: int) -> None:
        """Undo all that depends on more choices than so many."""
        if len(self._marks) > level:
            start = self._marks[level]
            kept = []
            for literal in reversed(self._trail[start:]):
                variable = self._variables[abs(literal)]
                if variable.level <= level:
                    kept.append(literal)
                    continue
                pairs = variable.true_pairs if literal > 0 else variable.false_pairs
                for earlier, later in reversed(pairs[: variable.added]):
                    self.timeline.remove(earlier, later, literal)
                variable.value = variable.added = 0
                self._unsure += variable.clauses[literal < 0]
            self._trail[start:] = reversed(kept)
            del self._marks[level:]
        self._todo = [literal for literal in self._todo if self.value(literal) > 0]
