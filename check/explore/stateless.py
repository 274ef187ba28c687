"""The same question asked another way: run whole schedules, one after the other, and look at each by itself.

Nothing of `search` is used: here one subject is shared by all clients, as threads share it; nothing is remembered
from one schedule to the next; and what was seen is judged by trying all orders of the requests. Two engines that
agree on hundreds of programs are either both right or wrong in the same way, and they have little in common to be wrong
in. It is slow, and only for small programs.

With sleep sets (Godefroid, 1996), a step is not started where it would only repeat, in another order, what has been
seen: after a step that does not touch what it touches. Steps that send or answer requests are never reordered, for
their order is what linearizability is about.

Errors:  Disagreement when the code does, sharing its objects, something else than `learn` says it does.
Omits:   faults: what a failed request may leave is judged by `judge` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import NamedTuple, Protocol

from greenlet import greenlet

from check.explore.judge import Said, at_an_instant, device_of, parts_of, settled
from check.explore.learn import End, Learner, Raised, Returned, Subject, ended
from check.explore.seam import Run
from check.explore.search import DONE, Machine, Move, Question
from check.explore.world import Op, Physics, Result, World
from model.block import State
from model.device import Device, Request, contents


class Disagreement(AssertionError):
    """The code does something else when it shares its objects with other clients."""


class TooMany(Exception):
    """More schedules than are allowed."""


class Call(NamedTuple):
    """A request, when it was sent and when it was answered, in steps of the whole."""

    request: Request
    sent: int
    answered: int
    said: Said


# What a step touches: a place, and whether it changes what is there.
Footprint = frozenset[tuple[Hashable, bool]]
SEEN: tuple[Hashable, bool] = ("the order of requests", True)


@dataclass(frozen=True)
class Summary:
    """All schedules of a program: how many were run, what the device held in the end, whether one of them is wrong."""

    schedules: int
    ends: frozenset[bytes]
    is_wrong: bool


class Code(Protocol):
    """A request's code on its way, in a greenlet or in a thread: it runs to its next operation, or to its end."""

    def switch(self, *result: Result) -> Op | End: ...


def in_greenlet(name: str, call: Callable[[], End]) -> tuple[Code, Run]:
    """A microsecond for each switch."""
    return greenlet(call), Run(name)


Start = Callable[[str, Callable[[], End]], tuple[Code, Run]]


class Client:
    """A client that is on its way: the code of its present request, stopped before an operation."""

    def __init__(self, index: int, requests: tuple[Request, ...]) -> None:
        self.index = index
        self.requests = requests
        self.at = -1
        self.code: Code | None = None
        self.run = Run("")
        self.next: Op | None = None
        self.end: End | None = None
        self.results: tuple[Result, ...] = ()
        self.sent = -1


class Live:
    """One schedule as it happens."""

    def __init__(self, question: Question, learner: Learner, start: Start = in_greenlet) -> None:
        kind, disk = question.kind, question.program.disk
        self._start = start
        self._learner = learner
        self._subject: Subject = kind.make(disk, question.modes)[0]
        self._physics = Physics(disk.base, disk.block_size, kind.disciplined, kind.wakes)
        self._left_movers = kind.left_movers
        self.world: World = kind.world(disk, question.modes, question.faults)
        self.calls: list[Call] = []
        self.wrong = ""
        self._step = 0
        self.clients = [Client(index, mine) for index, mine in enumerate(question.program.requests)]
        for client in self.clients:
            self._next_request(client)

    def close(self) -> None:
        """Let go of the code that has not come to its end."""
        for client in self.clients:
            client.run.aborting = True

    def enabled(self) -> list[int]:
        """Who can move."""
        return [
            client.index
            for client in self.clients
            if client.at < len(client.requests)
            and (client.next is None or self._physics.outcomes(self.world, client.index, client.next))
        ]

    def choices(self, index: int) -> int:
        """How many outcomes the next step of a client has that can move."""
        client = self.clients[index]
        return 1 if client.next is None else len(self._physics.outcomes(self.world, client.index, client.next))

    def stuck(self) -> bool:
        """Whether somebody has something left to do."""
        return any(client.at < len(client.requests) for client in self.clients)

    def step(self, index: int, choice: int | None = None) -> Footprint:
        """Let one client move; what it touched. Where its operation has several outcomes, one has to be chosen."""
        client = self.clients[index]
        self._step += 1
        touched: set[tuple[Hashable, bool]] = set()
        if not client.results and client.sent < 0:
            client.sent = self._step
            touched.add(SEEN)
        if client.next is not None:
            touched |= self._do(client, client.next, choice)
        while client.next is not None and client.next[0] in self._left_movers:
            touched |= self._do(client, client.next, None)
        if client.end is not None:
            touched.add(SEEN)
            self._answer(client, client.end)
        return frozenset(touched)

    def _do(self, client: Client, op: Op, choice: int | None) -> set[tuple[Hashable, bool]]:
        outcomes = self._physics.outcomes(self.world, client.index, op)
        assert choice is not None or len(outcomes) == 1, f"{op} has {len(outcomes)} outcomes, and none is chosen"
        result, self.world = outcomes[choice or 0]
        client.results += (result,)
        self._go_on(client, result)
        return touches(op)

    def _answer(self, client: Client, end: End) -> None:
        if isinstance(end, Raised):
            self.wrong = self.wrong or end.what
        else:
            self.calls.append(Call(client.requests[client.at], client.sent, self._step, end.reply))
        self._next_request(client)

    def _next_request(self, client: Client) -> None:
        client.at += 1
        client.results, client.sent, client.end, client.next = (), -1, None, None
        if client.at == len(client.requests):
            return
        request = client.requests[client.at]
        client.code, client.run = self._start(
            f"{client.index}.{client.at}", lambda: ended(self._subject.execute, request)
        )
        self._go_on(client)

    def _go_on(self, client: Client, *result: Result) -> None:
        """Run the code to its next operation, which must be the one that was learned."""
        code = client.code
        assert code is not None
        self._subject.stage.run = client.run
        reached = code.switch(*result)
        client.next = None if isinstance(reached, (Returned, Raised)) else reached
        client.end = reached if isinstance(reached, (Returned, Raised)) else None
        node = self._learner.root(client.index, client.at, client.requests[client.at])
        for each in client.results:
            node = self._learner.child(node, each)
        if (self._learner.op[node], self._learner.end[node]) != (client.next, client.end):
            raise Disagreement(
                f"{client.requests[client.at]} goes on with {reached} when it shares its objects, and with "
                f"{self._learner.op[node] or self._learner.end[node]} by itself: there is state that no operation shows"
            )


def touches(op: Op) -> set[tuple[Hashable, bool]]:
    """The places that an operation looks at or changes."""
    kind = op[0]
    if kind in _PLACES:
        place, changes = _PLACES[kind]
        return {((place, *op[1:2]) if place in ("map", "store", "cell", "lock") else place, changes)}
    assert kind in _NOWHERE, f"nobody has said what {op} touches"
    return set()


_PLACES: dict[Hashable, tuple[str, bool]] = {
    "enqueue": ("queue", True),
    "try": ("queue", True),
    "granted": ("queue", False),
    "release": ("queue", True),
    "arrive": ("queue", True),
    "inside": ("queue", False),
    "outside": ("queue", True),
    "get": ("map", False),
    "set": ("map", True),
    "read": ("store", False),
    "write": ("store", True),
    "punch": ("store", True),
    "lock": ("lock", True),
    "unlock": ("lock", True),
    "load": ("cell", False),
    "store": ("cell", True),
    "wait": ("waiting", True),
    "wake": ("waiting", True),
    "notify": ("waiting", True),
    "tell": ("told", True),
    "hear": ("told", True),
}
# Operations that touch nothing that changes.
_NOWHERE = ("base", "extents", "ready", "refused")


def independent(one: Footprint, other: Footprint) -> bool:
    """Whether the order of two steps makes no difference: neither changes what the other touches."""
    places = {place for place, _ in one} & {place for place, _ in other}
    changed = {place for place, changes in one | other if changes}
    return not places & changed


def run_all(question: Question, sleep: bool = True, schedules_max: int = 100_000) -> Summary:
    """All schedules, or with sleep sets at least one of each class of equal ones."""
    assert not question.faults, "what a request may be told that failed is not looked at here"
    learner = Machine(question).learner
    ends: set[bytes] = set()
    is_wrong = False
    count = 0
    # A schedule so far, what it has come to, and the clients whose next step has been seen to lead to nothing new.
    left: list[tuple[tuple[Move, ...], Live, dict[int, Footprint]]] = [((), Live(question, learner), {})]
    while left:
        prefix, live, sleeping = left.pop()
        enabled = live.enabled()
        if not enabled:
            count += 1
            if count > schedules_max:
                raise TooMany
            found, trimmed = question.kind.seen(question.program.disk, live.world)
            ends.add(found)
            is_wrong = is_wrong or live.stuck() or bool(live.wrong)
            is_wrong = is_wrong or not (not question.kind.is_device or is_explained(question, live, found, trimmed))
        live.close()
        explored = dict(sleeping)
        for client in enabled:
            if client in sleeping:
                continue
            touched: Footprint = frozenset()
            for choice in range(live.choices(client)):
                below = replayed(question, learner, prefix)
                footprint = below.step(client, choice)
                still = {other: theirs for other, theirs in explored.items() if independent(theirs, footprint)}
                left.append(((*prefix, (client, choice)), below, still if sleep else {}))
                touched |= footprint
            explored[client] = touched
    return Summary(count, frozenset(ends), is_wrong)


def replayed(question: Question, learner: Learner, prefix: Sequence[Move]) -> Live:
    """A schedule as far as it has come."""
    live = Live(question, learner)
    for client, choice in prefix:
        live.step(client, choice)
    return live


def is_explained(question: Question, live: Live, found: bytes, trimmed: tuple[bool, ...]) -> bool:
    """Whether some order of the requests, none before one that was answered before it was sent, gives what was seen."""
    disk = question.program.disk
    [part] = parts_of(disk, "request")
    first = device_of(disk, part)
    return any(
        contents(device) == found
        and (not question.kind.knows_all or trimmed == tuple(block.state == State.TRIMMED for block in device.blocks))
        for order in orders(live.calls)
        for device in after(first, order)
    )


def orders(calls: list[Call]) -> Iterator[tuple[Call, ...]]:
    """All orders that real time allows."""
    for order in permutations(calls):
        if all(not later.answered < earlier.sent for at, earlier in enumerate(order) for later in order[at + 1 :]):
            yield order


def after(device: Device, order: tuple[Call, ...]) -> Iterator[Device]:
    """The device after the requests in this order, if each gives the reply that was seen."""
    for call in order:
        device, said = at_an_instant(device, call.request)
        if said != call.said:
            return
    yield settled(device)


def ends_of(machine: Machine) -> frozenset[bytes]:
    """What the device holds in all states of `search` in which nobody can move."""
    seen, left, ends = {machine.first}, [machine.first], set()
    while left:
        state = left.pop()
        world, places, monitor = state
        steps = [
            (client, step) for client, node in enumerate(places) if node != DONE for step in machine.steps(world, node)
        ]
        if not steps:
            ends.add(machine.question.kind.seen(machine.question.program.disk, machine.worlds[world])[0])
        for client, step in steps:
            node = machine.after(client, places[client], step.node)
            new = (step.world, (*places[:client], node, *places[client + 1 :]), monitor)
            if new not in seen:
                seen.add(new)
                left.append(new)
    return frozenset(ends)
