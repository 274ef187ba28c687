"""Sees every reachable state of a twin, breadth first, and counts as TLC counts.

A violation is reported when it is first met, so no behaviour with fewer states shows it. The search keeps all states in
memory, whole: there are no fingerprints that could collide, so it also checks that TLC's have not.

Source:  `specs/twin.py`; TLC's messages of counts. Generated: initial states and successors, each time one is found.
         Depth: the number of states of the longest of the shortest behaviours that lead to each state.
Shapes:  a trace is a sequence of (name of the action, state), from an initial state on.
Errors:  KeyError for an invariant or property that the twin does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from check.questions import DEADLOCK, Answer, Counts, Holds, Violates
from specs.twin import Refinement, Twin

K = TypeVar("K")
S = TypeVar("S")

INITIALLY = "Init"
StepCheck = Callable[[Any, Any], bool]
StateCheck = Callable[[Any], bool]


@dataclass(frozen=True)
class Found(Generic[S]):
    """An answer, and the behaviour that shows it if it is a violation."""

    answer: Answer
    trace: tuple[tuple[str, S], ...] = ()


class _Refines:
    """Whether states and steps stand for states and steps of a more abstract twin."""

    def __init__(self, refinement: Refinement[Any, Any], k: object) -> None:
        self._refinement = refinement
        self._k = k
        self._initial = frozenset(refinement.abstract.initial(k))
        self._successors: dict[object, frozenset[object]] = {}

    def begins(self, state: object) -> bool:
        return self._refinement.mapping(self._k, state) in self._initial

    def goes_on(self, before: object, after: object) -> bool:
        old = self._refinement.mapping(self._k, before)
        new = self._refinement.mapping(self._k, after)
        if old == new:
            return True
        if old not in self._successors:
            self._successors[old] = frozenset(
                successor for _, successor in self._refinement.abstract.steps(self._k, old)
            )
        return new in self._successors[old]


class _Search(Generic[K, S]):
    """One run."""

    def __init__(self, twin: Twin[K, S], k: K, invariants: Sequence[str], properties: Sequence[str]) -> None:
        self._twin = twin
        self._k = k
        self._invariants = [(name, twin.invariants[name]) for name in invariants]
        self._at_first: list[tuple[str, StateCheck]] = []
        self._each_step: list[tuple[str, StepCheck]] = []
        for name in properties:
            self._add_property(name)
        self._came_from: dict[S, tuple[str, S | None]] = {}
        self._level: list[S] = []
        self._generated = 0
        self._depth = 0

    def _add_property(self, name: str) -> None:
        if name in self._twin.refinements:
            refines = _Refines(self._twin.refinements[name], self._k)
            self._at_first.append((name, refines.begins))
            self._each_step.append((name, refines.goes_on))
        else:
            holds = self._twin.action_properties[name]
            self._each_step.append((name, lambda before, after: holds(self._k, before, after)))

    def run(self) -> Found[S]:
        found = self._begin()
        while found is None and self._level:
            self._depth += 1
            found = self._deepen()
        return found or Found(Holds(Counts(self._generated, len(self._came_from), self._depth)))

    def _begin(self) -> Found[S] | None:
        """Take the initial states up; the violation, if one is."""
        for state in self._twin.initial(self._k):
            self._generated += 1
            if state in self._came_from:
                continue
            violated = self._take_up(state, INITIALLY, None)
            for name, begins in self._at_first:
                if violated is None and not begins(state):
                    violated = name
            if violated is not None:
                return self._violation(violated, state)
        return None

    def _deepen(self) -> Found[S] | None:
        """Take the successors of the last level up; the first violation, if there is one."""
        level, self._level = self._level, []
        for state in level:
            stuck = True
            for action, successor in self._twin.steps(self._k, state):
                stuck = False
                self._generated += 1
                if successor not in self._came_from:
                    violated = self._take_up(successor, action, state)
                    if violated is not None:
                        return self._violation(violated, successor)
                for name, goes_on in self._each_step:
                    if not goes_on(state, successor):
                        return self._violation(name, state, (action, successor))
            if stuck:
                return self._violation(DEADLOCK, state)
        return None

    def _take_up(self, state: S, action: str, earlier: S | None) -> str | None:
        """Remember a new state; the invariant that it violates, if it does."""
        self._came_from[state] = (action, earlier)
        self._level.append(state)
        return self._violated(state)

    def _violated(self, state: S) -> str | None:
        for name, holds in self._invariants:
            if not holds(self._k, state):
                return name
        return None

    def _violation(self, name: str, state: S, *more: tuple[str, S]) -> Found[S]:
        trace = list(reversed(more))
        at: S | None = state
        while at is not None:
            action, earlier = self._came_from[at]
            trace.append((action, at))
            at = earlier
        trace.reverse()
        return Found(Violates(name, len(trace)), tuple(trace))


def search(twin: Twin[K, S], k: K, invariants: Sequence[str] = (), properties: Sequence[str] = ()) -> Found[S]:
    """See every state, or the first violation."""
    return _Search(twin, k, invariants, properties).run()
