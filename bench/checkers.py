"""The checkers as rows: how many transitions the explorer makes, and how many requests of a history are decided.

Beside the explorer stands frontrun, where it can be used: `bench.explorers` has the same programs for both. It counts
executions and no transitions. Where it comes to the same verdict, it is credited with as many as our search made for
it, so that the ratio is that of the times. Beside the checker of histories stands the search of `model/wgl.py`, which
is ours, too, and, as a constant, what Porcupine took for histories made by the same recipe (`bench.histories`).

All is done by one thread of one process that waits for nothing, so that what counts is processor time; a checker's turn
comes in every round, as a server's does, and the first round warms up.

Units:   seconds of processor time, bytes.
Errors:  a checker that does not come to the right verdict is shown with what it said, and is not asked again.
Omits:   noise, which hardly touches processor time; what a machine with several processors could share.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from bench import explorers, histories
from bench.explorers import FRONTRUN, NotHere, Ours, Theirs, measure_ours, measure_theirs, require_frontrun
from bench.histories import PORCUPINE, apart, measure, peak_mib
from bench.own_client import CannotError
from bench.results import MIB, RowResult, Sample, ServerResult
from bench.wanted import OURS
from check.explore.search import Verdict as Explored
from model.budget import Budget
from model.history import BASE, History
from model.wgl import Call, search

REQUESTS, QUICK_REQUESTS = 100_000, 10_000
EXPLORED = ("range", "range-copy-read", "global-three", "range-three")
CLIENTS = 16
BLOCKS = (16, 1024)
SPANS = (1, 4)
BUDGET_S = 20.0
WGL_BUDGET_S = 5.0
FRONTRUN_LIMIT_S = 5.0
CITED = "cited from docs/benchmarks.md, and not measured in this run: only orders of magnitude are to be compared"


@dataclass(frozen=True, slots=True)
class Check:
    """One row. `asked`: a program of `bench.explorers`, or a history of `bench.histories`."""

    name: str
    meaning: str
    asked: explorers.Row | histories.Row
    quick: bool = False

    @property
    def kind(self) -> type:
        """Which checkers it is for."""
        return type(self.asked)


@dataclass(frozen=True, slots=True)
class Checker:
    """One that is compared. `measures`: by what it is asked; it is given that, and the round."""

    name: str
    shown: str
    measures: Mapping[type, Callable[..., Sample]]
    remark: str = ""
    setting_of: str = ""

    def fits(self, check: Check) -> bool:
        """Whether the row is of its kind."""
        return check.kind in self.measures


# The explorer.


def search_once(row: explorers.Row, round_: int) -> Sample:
    """Our search, with nothing learned."""
    found = _ours(row, round_)
    return _explored(found.transitions, statistics.median(found.cpu_s))


def search_again(row: explorers.Row, round_: int) -> Sample:
    """The same search after it."""
    found = _ours(row, round_)
    return _explored(found.transitions, statistics.median(found.again_s))


def _ours(row: explorers.Row, round_: int) -> Ours:
    found = Ours()
    measure_ours(row, round_, found)
    _expect(found.verdict, Explored.HOLDS.value)
    return found


def frontrun(row: explorers.Row, round_: int) -> Sample:
    """Its thorough setting, credited with the transitions of our search."""
    try:
        require_frontrun("bench --checkers")
    except NotHere as error:
        raise CannotError(error.message) from None
    found = Theirs()
    measure_theirs(row, explorers.SETTINGS[0], round_, FRONTRUN_LIMIT_S, found)
    _expect(found.verdicts[0], Explored.HOLDS.value)
    return _explored(_ours(row, round_).transitions, found.cpu_s[0])


def _explored(transitions: int, cpu_s: float) -> Sample:
    return Sample(cpu_s, requests=transitions, server_s=cpu_s)


def _expect(said: str, right: str) -> None:
    if said != right:
        raise CannotError(f"it says: {said}; right is: {right}")


# Histories.


def decide(row: histories.Row, _: int) -> Sample:
    """Our checker, in a process of its own."""
    return _decided(apart(measure, row))


def decide_by_search(row: histories.Row, _: int) -> Sample:
    """The search of Wing, Gong and Lowe, in a process of its own."""
    return _decided(apart(measure_search, replace(row, budget_s=min(row.budget_s, WGL_BUDGET_S))))


def porcupine(row: histories.Row, _: int) -> Sample:
    """What it took once."""
    known = PORCUPINE.get((row.requests, row.clients, row.blocks), ()) if row.span == 1 else ()
    if not known or known[0] is None:
        raise CannotError("it ran out of memory" if known else "there is no figure to cite")
    return Sample(known[0], requests=row.requests, server_s=known[0])


def _decided(row: histories.Row) -> Sample:
    _expect(row.verdict, row.expected)
    return Sample(row.wall_s, requests=row.requests, server_s=row.cpu_s, memory_bytes=row.peak_mib * MIB)


Transfer = tuple[str, int, tuple[str, ...]]  # read or write, its first block, and what each of its blocks held


class Blocks:
    """Blocks for the search, which knows no device: a request reads or writes some of them at one instant.

    Where no request has more than one, each is a part by itself, of which the state holds that one only.
    """

    def __init__(self, blocks: int, are_apart: bool) -> None:
        self.blocks = 1 if are_apart else blocks
        self.are_apart = are_apart

    def init(self) -> tuple[str, ...]:
        """Nobody has written."""
        return (BASE,) * self.blocks

    def step(self, state: tuple[str, ...], op: Transfer) -> tuple[bool, tuple[str, ...]]:
        """A read has to return what is there."""
        kind, first, values = op
        first = 0 if self.are_apart else first
        behind = first + len(values)
        if kind == "read":
            return state[first:behind] == values, state
        return True, (*state[:first], *values, *state[behind:])

    def is_read(self, op: Transfer) -> bool:
        """Half of them."""
        return op[0] == "read"

    def part_of(self, op: Transfer) -> int | None:
        """Its block, if it has no other."""
        return op[1] if self.are_apart else None


def calls_of(history: History) -> list[Call[Transfer]]:
    """A history of `bench.histories`, as the search wants it."""
    found = []
    for at, value in enumerate(history.value):
        first, count = (number // histories.BLOCK_BYTES for number in (history.offset[at], history.length[at]))
        assert value is not None
        values = (value,) * count if isinstance(value, str) else tuple(name for name, _ in value)
        found.append(Call((history.op[at], first, values), history.call[at], history.ret[at]))
    return found


def measure_search(row: histories.Row) -> histories.Row:
    """Decide one row's history by search, in this process."""
    calls = calls_of(row.history())
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    found = search(Blocks(row.blocks, row.span == 1), calls, Budget(seconds=row.budget_s))
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    verdict = f"{found.verdict.value}, after {found.spent}" if found.spent else str(found.verdict.value)
    return replace(row, verdict=verdict, cpu_s=cpu_s, wall_s=wall_s, peak_mib=peak_mib())


# The rows, and who is compared in them.


def _explored_checks() -> Iterator[Check]:
    rows = {row.name: row for row in explorers.ROWS}
    for name in EXPLORED:
        yield Check(f"explore-{name}", f"transitions of the whole search of {rows[name]}", rows[name], quick=True)


def _history_checks(requests: int, quick: bool) -> Iterator[Check]:
    for span in SPANS:
        for blocks in BLOCKS:
            length = "1 block" if span == 1 else f"1 to {span} blocks"
            yield Check(
                f"history-{requests // 1000}k-b{blocks}-span{span}",
                f"a history of {requests:,} requests of {length}, {CLIENTS} clients, {blocks:,} blocks, linearizable",
                histories.Row(requests, CLIENTS, blocks, span, "request", faulty=False, budget_s=BUDGET_S),
                quick,
            )


CHECKS = [*_explored_checks(), *_history_checks(QUICK_REQUESTS, True), *_history_checks(REQUESTS, False)]

CHECKERS = [
    Checker(
        OURS,
        "check.explore.search, and model.linearizability",
        {explorers.Row: search_once, histories.Row: decide},
    ),
    Checker(
        "cowproof-again",
        "the same search again, which has no code left to run",
        {explorers.Row: search_again},
        setting_of=OURS,
    ),
    Checker("frontrun", f"{FRONTRUN}, {explorers.SETTINGS[0].meaning}", {explorers.Row: frontrun}),
    Checker("wgl", "model/wgl.py, our own search, after Wing, Gong and Lowe", {histories.Row: decide_by_search}),
    Checker("porcupine", "Porcupine, in Go", {histories.Row: porcupine}, CITED),
]


# Turns.

Say = Callable[[str], None]  # which row begins


def all_measured(
    checks: Sequence[Check], checkers: Sequence[Checker], rounds: int, say: Say, done: Callable[[RowResult], None]
) -> None:
    """Every row; `done` is given each when it is measured."""
    for check in checks:
        say(check.name)
        done(measured(check, checkers, rounds))


def measured(check: Check, checkers: Sequence[Checker], rounds: int) -> RowResult:
    """A row: every checker in turn, in rounds, of which the first is not counted."""
    fitting = [checker for checker in checkers if checker.fits(check)]
    found = {checker.name: ServerResult(checker.name, checker.shown, remark=checker.remark) for checker in fitting}
    for round_ in range(rounds + 1):
        for checker in fitting:
            _turn(check, checker, found[checker.name], round_)
    row = RowResult(check.name, check.meaning, "work", "", list(found.values()))
    for server in row.servers:
        server.remark = "; ".join(filter(None, [server.remark, ahead(row, server)]))
    return row


def _turn(check: Check, checker: Checker, into: ServerResult, round_: int) -> None:
    if into.cannot:
        return
    try:
        sample = checker.measures[check.kind](check.asked, round_)
    except CannotError as error:
        into.cannot, into.samples = str(error), []
        return
    if round_:
        into.samples.append(sample)


def ahead(row: RowResult, theirs: ServerResult) -> str:
    """By how much somebody else did better than we: it has to be said."""
    ours = row.server(OURS)
    if ours is None or theirs.name.startswith(OURS):
        return ""
    ratio = row.ratio(ours, theirs)
    return f"ahead, {1 / ratio:.2f} times" if ratio is not None and 0 < ratio < 1 else ""
