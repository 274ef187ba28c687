"""What a client does next, after what it has seen: learned by running its code, and remembered.

A client's local state is the sequence of results that its operations have had in the request at hand. The code is run
on those results, from the start of the request to its next operation, once for each sequence that is ever reached; so
millions of interleavings cost some hundreds of runs. The results of each run are those of the first: the code under
test must be a function of them, and no memory of it may outlive the request outside the operations. So each is run
twice: on a subject made for it, and on one that has run all others before.

Shapes:  a node is a number; `op[node]` is what the client does there, or `end[node]` how its request ended;
         on its way there, `has_set[node]` says whether it has changed the state of a block, and `failed[node]` with
         which errnos operations have failed.
Errors:  Uncontrolled when the same results lead to something else; what the code raised, if it is not an OSError, is an
         end like any other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from greenlet import greenlet

from check.explore.seam import Run, Stage
from check.explore.world import Fault, Op, Result
from model.device import Reply, Request

# What the code under test warns of is part of thousands of runs: it is not for people to read.
logging.getLogger("cowproof").addHandler(logging.NullHandler())


class Returned(NamedTuple):
    """The request was answered: with a reply, or with the errno of an OSError."""

    reply: Reply | int


class Raised(NamedTuple):
    """The code raised what no caller expects; `what` is its text, `where` the last line of ours in it."""

    what: str
    where: str


End = Returned | Raised
Execute = Callable[[Request], Reply]


class Uncontrolled(Exception):
    """The code did something else although all its operations had the same results."""


class Subject(NamedTuple):
    """Code under test: made anew for every run, on a stage of its own."""

    stage: Stage
    execute: Execute


class Learner:
    """All nodes of all programs on one subject. A root is a node: a client's request before its first operation."""

    def __init__(self, make: Callable[[], Subject]) -> None:
        self._make = make
        self.op: list[Op | None] = []
        self.end: list[End | None] = []
        self.place: list[tuple[int, int, Request]] = []  # client, which of its requests, and that
        self.is_root: list[bool] = []
        self.has_set: list[bool] = []
        self.failed: list[frozenset[int]] = []
        self._results: list[tuple[Result, ...]] = []
        self._children: dict[tuple[int, Result], int] = {}
        self._roots: dict[tuple[int, int, Request], int] = {}
        self.runs = 0
        # Has run everything that was learned so far, as if it were one long life: whatever it remembers shows.
        self._worn = make()

    def root(self, client: int, index: int, request: Request) -> int:
        """Where a client is before its request."""
        place = (client, index, request)
        found = self._roots.get(place)
        if found is None:
            found = self._roots[place] = self._node(place, ())
        return found

    def child(self, node: int, result: Result) -> int:
        """Where the client is after its operation had this result."""
        key = (node, result)
        found = self._children.get(key)
        if found is None:
            found = self._children[key] = self._node(self.place[node], (*self._results[node], result))
        return found

    def _node(self, place: tuple[int, int, Request], results: tuple[Result, ...]) -> int:
        first, second = (self._run(subject, place, results) for subject in (self._make(), self._worn))
        if first != second:
            raise Uncontrolled(
                f"uncontrolled nondeterminism: {place[2]} after {len(results)} operations "
                f"went on with {first[-1]}, and in another run, after others, with {second[-1]}"
            )
        *ops, last = first
        self._compare(place, results, ops)
        self.op.append(last if not isinstance(last, (Returned, Raised)) else None)
        self.end.append(last if isinstance(last, (Returned, Raised)) else None)
        self.place.append(place)
        self.is_root.append(not results)
        self.has_set.append(any(not isinstance(op, (Returned, Raised)) and op[0] == "set" for op in ops))
        self.failed.append(frozenset(result.errno for result in results if isinstance(result, Fault)))
        self._results.append(results)
        return len(self.op) - 1

    def _compare(self, place: tuple[int, int, Request], results: tuple[Result, ...], ops: list[Op | End]) -> None:
        """The way to a node must be the one that was learned before."""
        node = self._roots.get(place)
        for at, op in enumerate(ops):
            assert node is not None, "a node is learned after the one before it"
            if self.op[node] != op:
                raise Uncontrolled(
                    f"uncontrolled nondeterminism: {place[2]} did {op} as operation {at}, "
                    f"and {self.op[node]} in an earlier run"
                )
            node = self._children.get((node, results[at]))

    def _run(self, subject: Subject, place: tuple[int, int, Request], results: tuple[Result, ...]) -> list[Op | End]:
        """The operations of one run on these results, and what comes then."""
        self.runs += 1
        stage = subject.stage
        client, index, request = place
        stage.run = Run(f"{client}.{index}")
        code = greenlet(lambda: ended(subject.execute, request))
        seen: list[Op | End] = [code.switch()]
        for result in results:
            seen.append(code.switch(result))
        stage.run.aborting = True
        if not code.dead:
            with suppress(Exception):
                code.throw()
        return seen


def ended(execute: Execute, request: Request) -> End:
    """Run a request to its end, whatever that is."""
    try:
        return Returned(execute(request))
    except OSError as error:
        return (
            Raised(f"{type(error).__name__} without an errno: {error}", "")
            if error.errno is None
            else Returned(error.errno)
        )
    except Exception as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = "" if trace is None else f"{trace.tb_frame.f_code.co_qualname}, line {trace.tb_lineno}"
        return Raised(f"{type(error).__name__}: {error}", where)
