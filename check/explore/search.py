"""All reachable states, shortest way first.

A state is what the clients share (`world`), where each of them is in its code (`learn`), and what explains what was
seen (`judge`). Each has a number, so a state is a tuple of small numbers, and a step is a look into a table; the real
code runs only where the table has a gap.

Two things are done at once with the operation before them, and lose nothing. A request is answered as soon as its code
returns, and sent when its first operation is done: earlier answers and later questions only narrow what is allowed. A
lock is given back as soon as it can be: whatever another client did before could be done after as well (Lipton, 1975).
So every step of a client is one level deeper. Ways to a state may be of different lengths, for who waits takes a step
more: it is looked at when it is first reached, and again only to count the ways that go on from it.

Errors:  a limit that is reached is a verdict, INCONCLUSIVE, and never "holds".
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from errno import EIO, ENOSPC, errorcode

from check.explore.judge import Judge, Level, Said
from check.explore.learn import Learner, Raised, Returned
from check.explore.programs import Program
from check.explore.subjects import CHANGES, PLAIN, Kind, Modes
from check.explore.world import Misuse, Physics, World
from model.device import Cache, Flush, Request

DONE = -1
# What an operation may fail with; no request is told so unless one has.
INJECTED = (EIO, ENOSPC)
STATES_MAX = 5_000_000
# Where a client waits for its range: as one primitive, on the condition of the real lock, or for word from it.
WAITS_FOR_RANGE = ("granted", "wake", "hear")


class Verdict(Enum):
    """What was found out."""

    HOLDS = "holds"
    VIOLATED = "violated"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Question:
    """What is explored."""

    kind: Kind
    program: Program
    level: Level = "request"
    modes: Modes = PLAIN
    faults: int = 0


# A schedule: who moves, and which of the outcomes it is.
Move = tuple[int, int]


@dataclass(frozen=True)
class Violation:
    """What is wrong, and the shortest way there."""

    what: str
    moves: tuple[Move, ...]


@dataclass(frozen=True)
class Found:
    """The verdict, and how much was looked at. `schedules` counts the ways to the end, if all states were seen."""

    verdict: Verdict
    states: int
    transitions: int
    schedules: int
    depth: int
    runs: int
    elapsed_s: float
    violation: Violation | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """What one move of one client leads to."""

    world: int
    node: int
    events: int
    wrong: str


# Something a client did that others can see: it sent a request (None), or heard the answer.
Event = tuple[int, Request, Said | None]
Events = tuple[Event, ...]

Place = tuple[int, ...]  # a node for each client
State = tuple[int, Place, int]  # world, places, monitor


class Machine:
    """The transition system of all programs on one disk, for one subject and one level: what it learns, it keeps."""

    def __init__(self, question: Question) -> None:
        kind, disk = question.kind, question.program.disk
        self.question = question
        self.learner = Learner(lambda: kind.make(disk, question.modes)[0])
        self.judge = Judge(disk, question.level, question.faults > 0, kind.knows_all)
        self.physics = Physics(disk.base, disk.block_size, kind.disciplined, kind.wakes)
        self._left_movers = kind.left_movers
        self.worlds: list[World] = []
        self._world_ids: dict[World, int] = {}
        self._steps: dict[tuple[int, int], tuple[Step, ...]] = {}
        self._events: list[Events] = []
        self._event_ids: dict[Events, int] = {}
        self._judged: dict[tuple[int, int], tuple[int, str]] = {}
        self._first_world = self._world(kind.world(disk, question.modes, question.faults))
        self.roots: list[list[int]] = []
        self.turn_to(question.program)

    def turn_to(self, program: Program) -> None:
        """Another program on the same disk."""
        assert program.disk == self.question.program.disk, "a machine knows one disk"
        self.question.kind.check(program)
        self.question = replace(self.question, program=program)
        self.roots = [
            [self.learner.root(client, index, request) for index, request in enumerate(mine)]
            for client, mine in enumerate(program.requests)
        ]

    @property
    def first(self) -> State:
        """Where the program begins."""
        return self._first_world, tuple(mine[0] for mine in self.roots), self.judge.first

    def after(self, client: int, old: int, new: int) -> int:
        """Where a client is after a step: if its request is answered, before its next one."""
        if new != DONE:
            return new
        _, index, _ = self.learner.place[old]
        mine = self.roots[client]
        return mine[index + 1] if index + 1 < len(mine) else DONE

    def _world(self, world: World) -> int:
        found = self._world_ids.get(world)
        if found is None:
            found = self._world_ids[world] = len(self.worlds)
            self.worlds.append(world)
        return found

    def _event(self, events: Events) -> int:
        found = self._event_ids.get(events)
        if found is None:
            found = self._event_ids[events] = len(self._events)
            self._events.append(events)
        return found

    def steps(self, world: int, node: int) -> tuple[Step, ...]:
        """What the client at `node` may do next; nothing while it waits."""
        key = (world, node)
        found = self._steps.get(key)
        if found is None:
            found = self._steps[key] = self._make_steps(world, node)
        return found

    def _make_steps(self, world: int, node: int) -> tuple[Step, ...]:
        client, _, request = self.learner.place[node]
        is_sent = self.learner.is_root[node] and self.question.kind.is_device
        sent: list[Event] = [(client, request, None)] if is_sent else []
        op = self.learner.op[node]
        if op is None:
            return (self._settle(self.worlds[world], client, node, sent),)
        try:
            outcomes = self.physics.outcomes(self.worlds[world], client, op)
        except Misuse as misuse:
            return (Step(world, node, self._event(tuple(sent)), str(misuse)),)
        return tuple(
            self._settle(after, client, self.learner.child(node, result), list(sent)) for result, after in outcomes
        )

    def _settle(self, world: World, client: int, node: int, events: list[Event]) -> Step:
        """Give back what can be given back, and answer what is done."""
        wrong = ""
        while (op := self.learner.op[node]) is not None and op[0] in self._left_movers and not wrong:
            try:
                [(result, world)] = self.physics.outcomes(world, client, op)
            except Misuse as misuse:
                wrong = str(misuse)
            else:
                node = self.learner.child(node, result)
        end = self.learner.end[node]
        if isinstance(end, Raised):
            wrong = f"{end.what} ({end.where})"
        elif isinstance(end, Returned):
            request = self.learner.place[node][2]
            if self.physics.disciplined and isinstance(end.reply, int):
                wrong = self._failed_wrongly(node, end.reply)
            if self.question.kind.is_device:
                events.append((client, request, end.reply))
            node = DONE
        return Step(self._world(world), node, self._event(tuple(events)), wrong)

    def _failed_wrongly(self, node: int, told: int) -> str:
        """What is wrong with how a request failed, if anything is."""
        request = self.learner.place[node][2]
        if told in INJECTED and told not in self.learner.failed[node]:
            return f"a request is told {errorcode[told]}, though nothing has failed so"
        # A cache's copies are what it is for, block by block; any other that only looks has looked in vain.
        if self.learner.has_set[node] and not isinstance(request, (*CHANGES, Cache)):
            return "a read that failed has changed the state of a block"
        return ""

    def judged(self, monitor: int, events: int) -> tuple[int, str]:
        """The monitor after some events, or what is wrong with them."""
        key = (monitor, events)
        found = self._judged.get(key)
        if found is None:
            found = self._judged[key] = self._judge(monitor, self._events[events])
        return found

    def _judge(self, monitor: int, events: Events) -> tuple[int, str]:
        for client, request, said in events:
            if said is None:
                monitor = self.judge.invoked(monitor, client, request)
                continue
            after = self.judge.answered(monitor, client, request, said)
            if after is None:
                return monitor, f"no order of the requests explains what client {letter(client)} was told"
            monitor = after
        return monitor, ""

    def waits_for_nobody(self, client: int, places: Place) -> str:
        """What is wrong with a client that cannot move, though no request in flight is in its way (promise P4).

        In its way is one that overlaps it, if either of the two changes anything.
        """
        node = places[client]
        op = self.learner.op[node]
        if not self.question.kind.waits_for_overlap_only or op is None or op[0] not in WAITS_FOR_RANGE:
            return ""
        mine, i_change = self._blocks(node), self._changes(node)
        overlaps = False
        for other, place in enumerate(places):
            if other == client or place == DONE or self.learner.is_root[place]:
                continue
            theirs = self._blocks(place)
            if mine.start < theirs.stop and theirs.start < mine.stop:
                overlaps = True
                if i_change or self._changes(place):
                    return ""
        why = (
            "those in flight that overlap it only look, as it does"
            if overlaps
            else "no request in flight overlaps its own"
        )
        return f"client {letter(client)} waits, though {why}"

    def _blocks(self, node: int) -> range:
        """The blocks that the request at a node touches."""
        _, _, request = self.learner.place[node]
        if isinstance(request, Flush):
            return range(0)
        size = self.physics.block_size
        return range(request.offset // size, -(-(request.offset + request.length) // size))

    def _changes(self, node: int) -> bool:
        """Whether the request at a node changes anything."""
        return isinstance(self.learner.place[node][2], CHANGES)

    def waits(self, state: State) -> str:
        """What is wrong with anybody who cannot move."""
        world, places, _ = state
        for client, node in enumerate(places):
            if node != DONE and not self.steps(world, node) and (wrong := self.waits_for_nobody(client, places)):
                return wrong
        return ""

    def at_end(self, state: State) -> str:
        """What is wrong when nobody can move; nothing, if all are done and the device holds what it may."""
        world, places, monitor = state
        waiting = [client for client, node in enumerate(places) if node != DONE]
        if waiting:
            return f"client{'s' * (len(waiting) > 1)} {', '.join(map(letter, waiting))} wait for ever"
        if not self.question.kind.is_device:
            return ""
        found, trimmed = self.question.kind.seen(self.question.program.disk, self.worlds[world])
        if not self.judge.ended(monitor, found, trimmed):
            return "no order of the requests explains what the device holds in the end"
        return self.question.kind.wasted(self.question.program.disk, self.worlds[world])


def letter(client: int) -> str:
    """A client's name."""
    return chr(ord("A") + client)


Progress = Callable[[int, int], None]


def search(question: Question, states_max: int = STATES_MAX, progress: Progress | None = None) -> Found:
    """All states, level by level, until one is wrong."""
    return search_all(Machine(question), states_max, progress)


def search_all(machine: Machine, states_max: int = STATES_MAX, progress: Progress | None = None) -> Found:
    """The same, for the program that a machine is turned to."""
    started_s = time.monotonic()
    runs_before = machine.learner.runs
    level: dict[State, int] = {machine.first: 1}
    # Of the states of this level, those that were reached in fewer steps as well: ways go on from them, nothing else.
    again: set[State] = set()
    parents: dict[State, tuple[State, Move]] = {}
    states, transitions, schedules, depth = 1, 0, 0, 0
    clients = range(len(machine.roots))

    def found(verdict: Verdict, violation: Violation | None = None, why: str = "") -> Found:
        return Found(
            verdict,
            states,
            transitions,
            schedules,
            depth,
            machine.learner.runs - runs_before,
            time.monotonic() - started_s,
            violation,
            why,
        )

    while level:
        below: dict[State, int] = {}
        again_below: set[State] = set()
        for state, ways in level.items():
            world, places, monitor = state
            is_new = state not in again
            moved = False
            for client in clients:
                node = places[client]
                if node == DONE:
                    continue
                steps = machine.steps(world, node)
                if not steps and (wrong := machine.waits_for_nobody(client, places)):
                    return found(Verdict.VIOLATED, Violation(wrong, way(parents, state)))
                for choice, step in enumerate(steps):
                    moved = True
                    transitions += is_new
                    after, wrong = machine.judged(monitor, step.events)
                    wrong = wrong or step.wrong
                    if wrong:
                        moves = (*way(parents, state), (client, choice))
                        return found(Verdict.VIOLATED, Violation(wrong, moves))
                    node_after = machine.after(client, node, step.node)
                    new = (step.world, (*places[:client], node_after, *places[client + 1 :]), after)
                    if new in below:
                        below[new] += ways
                    else:
                        below[new] = ways
                        if new in parents:
                            again_below.add(new)
                        else:
                            parents[new] = (state, (client, choice))
            if not moved:
                if wrong := machine.at_end(state):
                    return found(Verdict.VIOLATED, Violation(wrong, way(parents, state)))
                schedules += ways
        states += len(below) - len(again_below)
        depth += bool(below)
        if states > states_max:
            return found(Verdict.INCONCLUSIVE, why=f"more than {states_max} states")
        if progress is not None:
            progress(states, depth)
        level, again = below, again_below
    return found(Verdict.HOLDS)


def way(parents: dict[State, tuple[State, Move]], state: State) -> tuple[Move, ...]:
    """The moves that led to a state."""
    moves: list[Move] = []
    while state in parents:
        state, move = parents[state]
        moves.append(move)
    return tuple(reversed(moves))
