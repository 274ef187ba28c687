"""What there was before the patch: one lock, held for all that a request does to one block, base read included.

Twin:    specs/GlobalLock.tla: the same variables, actions and invariants, and where it comes from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from specs import device, disk
from specs.disk import (
    ALLOCATED,
    BASE,
    EMPTY,
    NO_REQUEST,
    NONE,
    NOT_ALLOCATED,
    OLD,
    STATES,
    TRIMMED,
    ZERO,
    Addresses,
    Blocks,
    Clients,
    Request,
    Values,
    addresses,
    block_of,
    blocks,
    blocks_of,
    changes,
    clients,
    covers_all,
    explained,
    in_block,
    new_value,
    next_part,
    sectors_of,
    shown,
    shown_at_first,
    starting_states,
    values,
)
from specs.twin import Refinement, Twin, put, put_all

NOBODY = -1  # None, as the holder of the lock


@dataclass(frozen=True, slots=True)
class Constants(disk.Constants):
    """The constants of GlobalLock.tla."""

    torn: bool
    copy_on_cache: bool


class State(NamedTuple):
    """The variables of GlobalLock.tla."""

    state: Values
    store: Values
    holder: int
    pc: tuple[str, ...]
    req: tuple[Request, ...]
    left: tuple[Blocks, ...]
    buffer: tuple[Values, ...]
    moved: tuple[Addresses, ...]
    reply: tuple[Values, ...]
    before: tuple[Clients, ...]
    start: Values


AT_WORK = frozenset({"fetching", "copying", "storing", "marking", "unlocking"})
WHERE = AT_WORK | {"idle", "flushing", "locking", "answering", "done"}


def nothing(k: Constants) -> Values:
    """Of no address."""
    return (NONE,) * len(addresses(k))


def entry(left: Blocks) -> str:
    """Where a client goes, given the blocks that it has not finished."""
    return "locking" if left else "answering"


def at(s: State, c: int) -> int:
    """The block a client is at."""
    return min(s.left[c])


def whole_block(k: Constants, s: State, c: int) -> Addresses:
    """All of that block."""
    return sectors_of(k, at(s, c))


def after_reading(s: State, c: int) -> str:
    """Where a client goes with what it has read."""
    return "unlocking" if s.req[c].kind == "read" else "storing"


def task(k: Constants, s: State, r: Request, b: int) -> str:
    """Where it goes once it holds the lock, and sees its block's state."""
    if r.kind == "cache":
        return "fetching" if k.copy_on_cache and s.state[b] == NOT_ALLOCATED else "unlocking"
    if changes(r) and covers_all(k, r, b):
        return "marking" if r.kind == "trim" else "storing"
    if s.state[b] == TRIMMED:
        return "unlocking" if r.kind == "read" else "storing"
    return "fetching" if s.state[b] == NOT_ALLOCATED else "copying"


# Init and the actions


def initial(k: Constants) -> Iterator[State]:
    """Init."""
    count = len(k.client)
    for state in starting_states(k):
        yield State(
            state=state,
            store=(OLD,) * len(addresses(k)),
            holder=NOBODY,
            pc=("idle",) * count,
            req=(NO_REQUEST,) * count,
            left=(EMPTY,) * count,
            buffer=(nothing(k),) * count,
            moved=(EMPTY,) * count,
            reply=(nothing(k),) * count,
            before=(EMPTY,) * count,
            start=shown_at_first(k, state),
        )


def invoke(k: Constants, s: State, c: int, r: Request) -> State:
    """A client asks."""
    return s._replace(
        pc=put(s.pc, c, "flushing" if r.kind == "flush" else entry(blocks_of(k, r))),
        req=put(s.req, c, r),
        left=put(s.left, c, blocks_of(k, r)),
        before=put(s.before, c, frozenset(d for d in clients(k) if s.pc[d] == "done")),
    )


def flush_nothing(s: State, c: int) -> State:
    """A flush finds nothing to do: the overlay is gone when the server is."""
    return s._replace(pc=put(s.pc, c, "answering"))


def lock(k: Constants, s: State, c: int) -> State:
    """Linearization point of a change, as far as this block is concerned."""
    buffer = nothing(k)
    if s.state[at(s, c)] == TRIMMED:
        buffer = put_all(buffer, ((a, ZERO) for a in whole_block(k, s, c)))
    return s._replace(
        holder=c,
        pc=put(s.pc, c, task(k, s, s.req[c], at(s, c))),
        buffer=put(s.buffer, c, buffer),
    )


def fetch(k: Constants, s: State, c: int) -> State:
    """The base is read, and everybody waits."""
    return s._replace(
        buffer=put(s.buffer, c, put_all(nothing(k), ((a, BASE) for a in whole_block(k, s, c)))),
        pc=put(s.pc, c, after_reading(s, c)),
    )


def copy(k: Constants, s: State, c: int) -> State:
    """The overlay's bytes."""
    missing = frozenset(a for a in whole_block(k, s, c) if s.buffer[c][a] == NONE)
    part = next_part(k, k.torn, missing)
    return s._replace(
        buffer=put(s.buffer, c, put_all(s.buffer[c], ((a, s.store[a]) for a in part))),
        pc=put(s.pc, c, after_reading(s, c) if part == missing else "copying"),
    )


def store(k: Constants, s: State, c: int) -> State:
    """The whole block, whatever part of it the request changes; all of it as it was, if that is none."""
    part = next_part(k, k.torn, whole_block(k, s, c) - s.moved[c])
    moved = s.moved[c] | part
    changed = s.req[c].at if changes(s.req[c]) else EMPTY
    new = new_value(k, c, s.req[c])
    return s._replace(
        store=put_all(s.store, ((a, new if a in changed else s.buffer[c][a]) for a in part)),
        moved=put(s.moved, c, moved),
        pc=put(s.pc, c, "marking" if moved == whole_block(k, s, c) else "storing"),
    )


def mark(k: Constants, s: State, c: int) -> State:
    """The state follows the data."""
    trimmed = s.req[c].kind == "trim" and covers_all(k, s.req[c], at(s, c))
    return s._replace(
        state=put(s.state, at(s, c), TRIMMED if trimmed else ALLOCATED),
        pc=put(s.pc, c, "unlocking"),
    )


def unlock(k: Constants, s: State, c: int) -> State:
    """Linearization point of a read, as far as this block is concerned."""
    reply = s.reply[c]
    if s.req[c].kind == "read":
        reply = put_all(reply, ((a, s.buffer[c][a]) for a in in_block(k, s.req[c], at(s, c))))
    left = s.left[c] - {at(s, c)}
    return s._replace(
        holder=NOBODY,
        reply=put(s.reply, c, reply),
        left=put(s.left, c, left),
        pc=put(s.pc, c, entry(left)),
        buffer=put(s.buffer, c, nothing(k)),
        moved=put(s.moved, c, EMPTY),
    )


def respond(s: State, c: int) -> State:
    """It has its reply."""
    return s._replace(pc=put(s.pc, c, "done"))


def all_done(s: State) -> bool:
    """Whether all have their replies."""
    return all(pc == "done" for pc in s.pc)


def steps(k: Constants, s: State) -> Iterator[tuple[str, State]]:
    """Next."""
    for c in clients(k):
        yield from steps_of(k, s, c)
    if all_done(s):
        yield "Finished", s


def steps_of(k: Constants, s: State, c: int) -> Iterator[tuple[str, State]]:
    """What one client may do next: the guards of the actions."""
    pc = s.pc[c]
    if pc == "idle":
        for r in k.requests:
            yield "Invoke", invoke(k, s, c, r)
    elif pc == "flushing":
        yield "FlushNothing", flush_nothing(s, c)
    elif pc == "locking" and s.holder == NOBODY:
        yield "Lock", lock(k, s, c)
    elif pc == "fetching":
        yield "Fetch", fetch(k, s, c)
    elif pc == "copying":
        yield "Copy", copy(k, s, c)
    elif pc == "storing":
        yield "Store", store(k, s, c)
    elif pc == "marking":
        yield "Mark", mark(k, s, c)
    elif pc == "unlocking":
        yield "Unlock", unlock(k, s, c)
    elif pc == "answering":
        yield "Respond", respond(s, c)


# The refinement mapping


def contents(k: Constants, s: State) -> Values:
    """What the device holds."""
    held = [shown(s.state[block_of(k, a)], s.store[a]) for a in addresses(k)]
    if s.holder != NOBODY and changes(s.req[s.holder]):
        for a in in_block(k, s.req[s.holder], at(s, s.holder)):
            held[a] = new_value(k, s.holder, s.req[s.holder])
    return tuple(held)


def remaining(s: State, c: int) -> Blocks:
    """The blocks for which a request is still to take effect."""
    return s.left[c] - {at(s, c)} if s.holder == c and changes(s.req[c]) else s.left[c]


def abstract(k: Constants, s: State) -> device.State:
    """The state of the device that this one stands for."""
    return device.State(
        contents=contents(k, s),
        status=tuple(pc if pc in ("idle", "done") else "pending" for pc in s.pc),
        req=s.req,
        todo=tuple(
            frozenset({EMPTY})
            if s.pc[c] == "flushing"
            else frozenset(in_block(k, s.req[c], b) for b in remaining(s, c))
            for c in clients(k)
        ),
        reply=s.reply,
        before=s.before,
        start=s.start,
    )


# Invariants


def type_ok(k: Constants, s: State) -> bool:
    """Always: variables have the shape they were declared with."""
    return (
        set(s.state) <= STATES
        and set(s.store) <= values(k)
        and s.holder in (NOBODY, *clients(k))
        and set(s.pc) <= WHERE
        and all(r in (*k.requests, NO_REQUEST) for r in s.req)
        and all(left <= set(blocks(k)) for left in s.left)
        and all(set(buffer) <= {*values(k), NONE} for buffer in s.buffer)
        and all(moved <= set(addresses(k)) for moved in s.moved)
        and all(set(told) <= {*values(k), NONE} for told in s.reply)
    )


def works_under_the_lock(k: Constants, s: State) -> bool:
    """Always: whoever is at work on a block holds the lock."""
    return all(s.holder == c for c in clients(k) if s.pc[c] in AT_WORK)


def some_order_explains(k: Constants, s: State) -> bool:
    """When all have their replies: some order of the requests explains them, and what is stored."""
    return not all_done(s) or explained(k, s.start, s.before, s.req, s.reply, contents(k, s))


def states_never_go_back(k: Constants, s: State, t: State) -> bool:
    """From one moment to the next: a block that no longer shows the base never does again."""
    return all(s.state[b] == NOT_ALLOCATED or t.state[b] != NOT_ALLOCATED for b in blocks(k))


# Probes


def never_waits_for_the_base_of_another(k: Constants, s: State) -> bool:
    """Somebody waits for the lock while its holder waits for the base."""
    return not ("fetching" in s.pc and "locking" in s.pc)


def never_waits_for_the_base_of_a_stranger(k: Constants, s: State) -> bool:
    """The same though the two have no block in common."""
    return not any(
        s.pc[c] == "fetching" and s.pc[d] == "locking" and not blocks_of(k, s.req[c]) & blocks_of(k, s.req[d])
        for c in clients(k)
        for d in clients(k)
    )


TWIN: Twin[Constants, State] = Twin(
    module="GlobalLock",
    constants=Constants,
    initial=initial,
    steps=steps,
    invariants={
        "TypeOK": type_ok,
        "WorksUnderTheLock": works_under_the_lock,
        "SomeOrderExplains": some_order_explains,
        "NeverWaitsForTheBaseOfAnother": never_waits_for_the_base_of_another,
        "NeverWaitsForTheBaseOfAStranger": never_waits_for_the_base_of_a_stranger,
    },
    action_properties={"StatesNeverGoBack": states_never_go_back},
    refinements={"RefinesDevice": Refinement(device.TWIN, abstract)},
)
