"""What clients may observe: each asks, what it asked takes effect at one instant, and then it has its reply.

Twin:    specs/Device.tla: the same variables, actions and invariants.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from specs.disk import (
    BASE,
    EMPTY,
    NO_REQUEST,
    NONE,
    OLD,
    ZERO,
    Addresses,
    Clients,
    Constants,
    Request,
    Values,
    addresses,
    after,
    block_of,
    clients,
    explained,
    shown_at_first,
    starting_states,
    units,
    values,
)
from specs.twin import Twin, put


class State(NamedTuple):
    """The variables of Device.tla."""

    contents: Values
    status: tuple[str, ...]
    req: tuple[Request, ...]
    todo: tuple[frozenset[Addresses], ...]
    reply: tuple[Values, ...]
    before: tuple[Clients, ...]
    start: Values


def initial(k: Constants) -> Iterator[State]:
    """Init."""
    count = len(k.client)
    for state in starting_states(k):
        start = shown_at_first(k, state)
        yield State(
            contents=start,
            status=("idle",) * count,
            req=(NO_REQUEST,) * count,
            todo=(frozenset(),) * count,
            reply=((NONE,) * len(start),) * count,
            before=(EMPTY,) * count,
            start=start,
        )


def invoke(k: Constants, s: State, c: int, r: Request) -> State:
    """A client asks."""
    return s._replace(
        status=put(s.status, c, "pending"),
        req=put(s.req, c, r),
        todo=put(s.todo, c, units(k, r)),
        before=put(s.before, c, frozenset(d for d in clients(k) if s.status[d] == "done")),
    )


def take_effect(k: Constants, s: State, c: int, unit: Addresses) -> State:
    """One unit of what it asked is done, or found."""
    reply = s.reply[c]
    if s.req[c].kind == "read":
        reply = tuple(s.contents[a] if a in unit else told for a, told in enumerate(reply))
    return s._replace(
        todo=put(s.todo, c, s.todo[c] - {unit}),
        contents=after(k, s.contents, c, s.req[c], unit),
        reply=put(s.reply, c, reply),
    )


def respond(s: State, c: int) -> State:
    """It has its reply."""
    return s._replace(status=put(s.status, c, "done"))


def all_done(s: State) -> bool:
    """Whether all have their replies."""
    return all(status == "done" for status in s.status)


def steps(k: Constants, s: State) -> Iterator[tuple[str, State]]:
    """Next."""
    for c in clients(k):
        if s.status[c] == "idle":
            for r in k.requests:
                yield "Invoke", invoke(k, s, c, r)
        for unit in s.todo[c]:
            yield "TakeEffect", take_effect(k, s, c, unit)
        if s.status[c] == "pending" and not s.todo[c]:
            yield "Respond", respond(s, c)
    if all_done(s):
        yield "Finished", s


def type_ok(k: Constants, s: State) -> bool:
    """Always: variables have the shape they were declared with."""
    return (
        set(s.contents) <= values(k)
        and set(s.status) <= {"idle", "pending", "done"}
        and all(r in (*k.requests, NO_REQUEST) for r in s.req)
        and all(todo <= units(k, r) for todo, r in zip(s.todo, s.req, strict=True))
        and all(set(told) <= {*values(k), NONE} for told in s.reply)
        and all(before <= set(clients(k)) for before in s.before)
        and set(s.start) <= {BASE, OLD, ZERO}
        and len(s.contents) == len(s.start) == len(addresses(k))
    )


def some_order_explains(k: Constants, s: State) -> bool:
    """When all have their replies: some order of the requests explains them."""
    return not all_done(s) or explained(k, s.start, s.before, s.req, s.reply, s.contents)


def never_torn(k: Constants, s: State) -> bool:
    """Probe: no read is told a part of one write and a part of another."""
    return not any(
        s.status[c] == "done"
        and any(
            block_of(k, a) == block_of(k, b) and s.reply[c][a] != s.reply[c][b]
            for a in s.req[c].at
            for b in s.req[c].at
        )
        for c in clients(k)
    )


TWIN: Twin[Constants, State] = Twin(
    module="Device",
    constants=Constants,
    initial=initial,
    steps=steps,
    invariants={"TypeOK": type_ok, "SomeOrderExplains": some_order_explains, "NeverTorn": never_torn},
)
