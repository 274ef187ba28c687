"""The overlay that is shipped: the base read outside every lock, and one range lock per request.

Twin:    specs/RangeLock.tla: the same variables, actions and invariants, and the reasons.
Code:    impl/overlay/overlay.py, whose locks (impl/overlay/rangelock.py) are one step here.
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
    partly_covered,
    sectors_of,
    shown,
    shown_at_first,
    starting_states,
    units,
    values,
)
from specs.twin import Refinement, Twin, put, put_all


@dataclass(frozen=True, slots=True)
class Constants(disk.Constants):
    """The constants of RangeLock.tla."""

    torn: bool
    copy_on_read: bool
    copy_on_cache: bool
    free_blocks: int
    looks_again: bool


class State(NamedTuple):
    """The variables of RangeLock.tla."""

    state: Values
    store: Values
    queue: tuple[int, ...]
    pc: tuple[str, ...]
    req: tuple[Request, ...]
    seen: tuple[Values, ...]
    fetched: tuple[Blocks, ...]
    moved: tuple[Addresses, ...]
    reply: tuple[Values, ...]
    covered: tuple[Values, ...]
    before: tuple[Clients, ...]
    start: Values


WHERE = frozenset({"idle", "asked", "waiting", "inside", "looked", "fetched", "returning", "keeping"}) | {
    "leaving",
    "answering",
    "done",
}


def nothing_seen(k: Constants) -> Values:
    """Of no block."""
    return (NONE,) * k.block_count


def nothing_covered(k: Constants) -> Values:
    """At no address."""
    return (NONE,) * len(addresses(k))


# Range locks


def exclusive(s: State, c: int) -> bool:
    """Whether it needs its range alone."""
    return changes(s.req[c])


def came_back(s: State, c: int) -> bool:
    """Whether the lock it waits for or holds is its second."""
    return s.pc[c] in ("returning", "keeping") or (s.pc[c] == "leaving" and not exclusive(s, c))


def range_of(k: Constants, s: State, c: int) -> Blocks:
    """Range: the blocks it locks."""
    return s.fetched[c] if came_back(s, c) else blocks_of(k, s.req[c])


def conflict(k: Constants, s: State, c: int, d: int) -> bool:
    """Whether one has to wait for the other."""
    return bool(range_of(k, s, c) & range_of(k, s, d)) and (exclusive(s, c) or exclusive(s, d))


def may_enter(k: Constants, s: State, c: int) -> bool:
    """Nobody who came before stands in its way."""
    return not any(conflict(k, s, earlier, c) for earlier in s.queue[: s.queue.index(c)])


def without(s: State, c: int) -> tuple[int, ...]:
    """The queue when it has left."""
    return tuple(d for d in s.queue if d != c)


# What a client stores under its lock, given what it has seen there


def stored_in(k: Constants, s: State, c: int, b: int) -> Addresses:
    """The addresses in a block: all of it, if it is not ALLOCATED yet, so that nothing in it is undefined after."""
    r = s.req[c]
    seen = s.seen[c][b]
    if s.pc[c] == "keeping":
        return sectors_of(k, b) if seen == NOT_ALLOCATED else EMPTY
    if r.kind == "trim" and (covers_all(k, r, b) or seen == TRIMMED):
        return EMPTY
    if covers_all(k, r, b) or seen == ALLOCATED:
        return in_block(k, r, b)
    return sectors_of(k, b)


def to_store(k: Constants, s: State, c: int) -> Addresses:
    """What is left to store."""
    return EMPTY.union(*[stored_in(k, s, c, b) for b in range_of(k, s, c)]) - s.moved[c]


def stored_value(k: Constants, s: State, c: int, a: int) -> str:
    """What goes there: the request's own, and around it what was there before."""
    if s.pc[c] == "inside" and a in s.req[c].at:
        return new_value(k, c, s.req[c])
    return ZERO if s.seen[c][block_of(k, a)] == TRIMMED else BASE


def published(k: Constants, s: State, c: int, b: int) -> str:
    """What becomes of the state of a block in its range."""
    if stored_in(k, s, c, b):
        return ALLOCATED
    return TRIMMED if s.req[c].kind == "trim" else s.state[b]


# Init and the actions


def initial(k: Constants) -> Iterator[State]:
    """Init."""
    count = len(k.client)
    size = len(addresses(k))
    for state in starting_states(k):
        yield State(
            state=state,
            store=(OLD,) * size,
            queue=(),
            pc=("idle",) * count,
            req=(NO_REQUEST,) * count,
            seen=(nothing_seen(k),) * count,
            fetched=(EMPTY,) * count,
            moved=(EMPTY,) * count,
            reply=((NONE,) * size,) * count,
            covered=(nothing_covered(k),) * count,
            before=(EMPTY,) * count,
            start=shown_at_first(k, state),
        )


def invoke(k: Constants, s: State, c: int, r: Request) -> State:
    """A client asks."""
    return s._replace(
        pc=put(s.pc, c, "asked"),
        req=put(s.req, c, r),
        before=put(s.before, c, frozenset(d for d in clients(k) if s.pc[d] == "done")),
    )


def may_show_base(k: Constants, s: State, c: int) -> bool:
    """Whether it is a read that may be done without the lock, as far as it has looked."""
    return (
        s.req[c].kind == "read"
        and len(blocks_of(k, s.req[c])) <= k.free_blocks
        and set(s.seen[c]) <= {NONE, NOT_ALLOCATED}
    )


def to_glance(k: Constants, s: State, c: int) -> Blocks:
    """Where it still has to glance: a change, to know whether it needs the base; a read, whether anything else."""
    if changes(s.req[c]):
        among = partly_covered(k, s.req[c])
    else:
        among = blocks_of(k, s.req[c]) if may_show_base(k, s, c) else EMPTY
    return frozenset(b for b in among if s.seen[c][b] == NONE)


def glance(k: Constants, s: State, c: int) -> State:
    """With no lock: the state may be out of date before the base has been read.

    A read of one block that shows the base takes effect here; one of several did so at its first glance, if this one
    was the last and all found the same.
    """
    left = to_glance(k, s, c)
    b = min(left)
    is_base = s.state[b] == NOT_ALLOCATED
    is_done = may_show_base(k, s, c) and left == {b} and is_base
    return s._replace(
        seen=put(s.seen, c, put(s.seen[c], b, s.state[b])),
        fetched=put(s.fetched, c, s.fetched[c] | {b} if is_base and changes(s.req[c]) else s.fetched[c]),
        pc=put(s.pc, c, "looked" if is_done else s.pc[c]),
    )


def flush_store(s: State, c: int) -> State:
    """A flush finds nothing to do: the store's own durability is not a matter of this module."""
    return s._replace(pc=put(s.pc, c, "answering"))


def arrive(s: State, c: int) -> State:
    """It queues for its range."""
    return s._replace(
        queue=(*s.queue, c),
        pc=put(s.pc, c, "waiting" if s.pc[c] == "asked" else "returning"),
    )


def enter(k: Constants, s: State, c: int) -> State:
    """It has its range, and looks at the states of it."""
    seen = s.seen[c]
    looks_at = [b for b in range_of(k, s, c) if k.looks_again or seen[b] == NONE]
    reply = s.reply[c]
    if s.req[c].kind == "read":
        reply = put_all(reply, ((a, ZERO) for a in s.req[c].at if s.state[block_of(k, a)] == TRIMMED))
    covered = nothing_covered(k)
    if changes(s.req[c]):
        covered = put_all(covered, ((a, shown(s.state[block_of(k, a)], s.store[a])) for a in s.req[c].at))
    return s._replace(
        pc=put(s.pc, c, "inside"),
        seen=put(s.seen, c, put_all(seen, ((b, s.state[b]) for b in looks_at))),
        reply=put(s.reply, c, reply),
        covered=put(s.covered, c, covered),
    )


def to_copy(k: Constants, s: State, c: int) -> Addresses:
    """The overlay's bytes that a read has still to copy out."""
    if s.req[c].kind != "read":
        return EMPTY
    return frozenset(a for a in s.req[c].at if s.seen[c][block_of(k, a)] == ALLOCATED and s.reply[c][a] == NONE)


def copy(k: Constants, s: State, c: int) -> State:
    """Some of the overlay's bytes, under the lock."""
    part = next_part(k, k.torn, to_copy(k, s, c))
    return s._replace(reply=put(s.reply, c, put_all(s.reply[c], ((a, s.store[a]) for a in part))))


def leave(s: State, c: int) -> State:
    """Linearization point of what looks under the lock: the base's parts are missing, but cannot have changed."""
    return s._replace(queue=without(s, c), pc=put(s.pc, c, "looked"))


def copies(k: Constants, s: State, c: int) -> bool:
    """Whether it keeps what it fetches."""
    return (s.req[c].kind == "read" and k.copy_on_read) or (s.req[c].kind == "cache" and k.copy_on_cache)


def fetch(k: Constants, s: State, c: int) -> State:
    """The base is read, with no lock held; what is going to be kept is read by whole blocks."""
    missing = frozenset(b for b in blocks_of(k, s.req[c]) if s.seen[c][b] == NOT_ALLOCATED)
    kept = missing if copies(k, s, c) else EMPTY
    reply = s.reply[c]
    if s.req[c].kind == "read":
        reply = put_all(reply, ((a, BASE) for a in s.req[c].at if block_of(k, a) in missing))
    return s._replace(
        reply=put(s.reply, c, reply),
        fetched=put(s.fetched, c, kept),
        pc=put(s.pc, c, "fetched" if kept else "answering"),
        seen=put(s.seen, c, nothing_seen(k) if k.looks_again or not kept else s.seen[c]),
    )


def look_again(k: Constants, s: State, c: int) -> State:
    """The range is shared, and that is enough: writers are kept out, and another who copies copies the same."""
    looks_at = range_of(k, s, c) if k.looks_again else EMPTY
    return s._replace(
        pc=put(s.pc, c, "keeping"),
        seen=put(s.seen, c, put_all(s.seen[c], ((b, s.state[b]) for b in looks_at))),
    )


def stores(s: State, c: int) -> bool:
    """Whether it holds a lock under which it stores."""
    return s.pc[c] == "keeping" or (s.pc[c] == "inside" and exclusive(s, c))


def store(k: Constants, s: State, c: int) -> State:
    """Some of what it stores."""
    part = next_part(k, k.torn, to_store(k, s, c))
    return s._replace(
        store=put_all(s.store, ((a, stored_value(k, s, c, a)) for a in part)),
        moved=put(s.moved, c, s.moved[c] | part),
    )


def to_publish(k: Constants, s: State, c: int) -> Blocks:
    """The blocks whose states are still to be set."""
    return frozenset(b for b in range_of(k, s, c) if s.state[b] != published(k, s, c, b))


def publish(k: Constants, s: State, c: int) -> State:
    """States after data: a state never names what is not there. Block by block, for some look without the lock.

    The last one is the linearization point of whatever changes something.
    """
    left = to_publish(k, s, c)
    state = put(s.state, min(left), published(k, s, c, min(left))) if left else s.state
    if len(left) > 1:
        return s._replace(state=state)
    return s._replace(
        state=state,
        pc=put(s.pc, c, "leaving"),
        covered=put(s.covered, c, nothing_covered(k)),
    )


def leave_for_good(k: Constants, s: State, c: int) -> State:
    """It gives its range back."""
    return s._replace(
        queue=without(s, c),
        pc=put(s.pc, c, "answering"),
        seen=put(s.seen, c, nothing_seen(k)),
        fetched=put(s.fetched, c, EMPTY),
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
    elif pc == "asked":
        if to_glance(k, s, c):
            yield "Glance", glance(k, s, c)
        elif s.req[c].kind == "flush":
            yield "FlushStore", flush_store(s, c)
        else:
            yield "Arrive", arrive(s, c)
    elif pc == "waiting" and may_enter(k, s, c):
        yield "Enter", enter(k, s, c)
    elif pc == "inside" and not exclusive(s, c):
        yield ("Copy", copy(k, s, c)) if to_copy(k, s, c) else ("Leave", leave(s, c))
    elif pc == "looked":
        yield "Fetch", fetch(k, s, c)
    elif pc == "fetched":
        yield "Arrive", arrive(s, c)
    elif pc == "returning" and may_enter(k, s, c):
        yield "LookAgain", look_again(k, s, c)
    elif stores(s, c):
        yield ("Store", store(k, s, c)) if to_store(k, s, c) else ("Publish", publish(k, s, c))
    elif pc == "leaving":
        yield "LeaveForGood", leave_for_good(k, s, c)
    elif pc == "answering":
        yield "Respond", respond(s, c)


# The refinement mapping

LOOKED = frozenset({"looked", "fetched", "returning", "keeping", "leaving", "answering", "done"})


def looked(s: State, c: int) -> bool:
    """Whether what it looks at cannot change for it any more."""
    return s.pc[c] in LOOKED


def took_effect(s: State, c: int) -> bool:
    """Changes when their last state is set; looks when their client has left, or needs no lock."""
    if s.req[c].kind == "flush":
        return s.pc[c] in ("answering", "done")
    if changes(s.req[c]):
        return s.pc[c] in ("leaving", "answering", "done")
    return looked(s, c)


def contents(k: Constants, s: State) -> Values:
    """What the device holds."""
    held = [shown(s.state[block_of(k, a)], s.store[a]) for a in addresses(k)]
    for c in clients(k):
        if s.pc[c] == "inside" and exclusive(s, c):
            for a in s.req[c].at:
                held[a] = s.covered[c][a]
    return tuple(held)


def reply_to_be(k: Constants, s: State, c: int) -> Values:
    """What a read is going to be told."""
    if s.req[c].kind != "read" or not looked(s, c):
        return (NONE,) * len(s.store)
    told = s.reply[c]
    return tuple((BASE if told[a] == NONE else told[a]) if a in s.req[c].at else NONE for a in addresses(k))


def abstract(k: Constants, s: State) -> device.State:
    """The state of the device that this one stands for."""
    return device.State(
        contents=contents(k, s),
        status=tuple(pc if pc in ("idle", "done") else "pending" for pc in s.pc),
        req=s.req,
        todo=tuple(frozenset() if s.pc[c] == "idle" or took_effect(s, c) else units(k, s.req[c]) for c in clients(k)),
        reply=tuple(reply_to_be(k, s, c) for c in clients(k)),
        before=s.before,
        start=s.start,
    )


# Invariants


def type_ok(k: Constants, s: State) -> bool:
    """Always: variables have the shape they were declared with."""
    return (
        set(s.state) <= STATES
        and set(s.store) <= values(k)
        and set(s.pc) <= WHERE
        and all(r in (*k.requests, NO_REQUEST) for r in s.req)
        and all(set(seen) <= {*STATES, NONE} for seen in s.seen)
        and all(fetched <= set(blocks(k)) for fetched in s.fetched)
        and all(moved <= set(addresses(k)) for moved in s.moved)
        and all(set(told) <= {*values(k), NONE} for told in (*s.reply, *s.covered))
        and all(
            s.reply[c][a] != NONE
            for c in clients(k)
            if s.pc[c] == "done" and s.req[c].kind == "read"
            for a in s.req[c].at
        )
    )


def holds(s: State, c: int) -> bool:
    """Whether it holds a lock."""
    return s.pc[c] in ("inside", "keeping", "leaving")


def writers_are_alone(k: Constants, s: State) -> bool:
    """Always: those who hold overlapping ranges only look."""
    holders = [c for c in clients(k) if holds(s, c)]
    return not any(
        c != d and range_of(k, s, c) & range_of(k, s, d) and (exclusive(s, c) or exclusive(s, d))
        for c in holders
        for d in holders
    )


def seen_is_true(k: Constants, s: State) -> bool:
    """While a lock is held: what was seen under it is true, but for copies others make of what was NOT_ALLOCATED.

    And for what its holder has published itself.
    """
    return all(
        s.seen[c][b] == s.state[b]
        or (stores(s, c) and exclusive(s, c) and not to_store(k, s, c) and s.state[b] == published(k, s, c, b))
        or (s.seen[c][b] == NOT_ALLOCATED and s.state[b] == ALLOCATED and not exclusive(s, c))
        for c in clients(k)
        if s.pc[c] in ("inside", "keeping")
        for b in range_of(k, s, c)
    )


def nothing_is_missing(k: Constants, s: State) -> bool:
    """While a change holds its lock: what it merges with the base it has fetched."""
    return all(
        s.seen[c][b] != NOT_ALLOCATED or b in s.fetched[c]
        for c in clients(k)
        if s.pc[c] == "inside" and exclusive(s, c)
        for b in partly_covered(k, s.req[c])
    )


def some_order_explains(k: Constants, s: State) -> bool:
    """When all have their replies: some order of the requests explains them, and what is stored."""
    return not all_done(s) or explained(k, s.start, s.before, s.req, s.reply, contents(k, s))


def states_never_go_back(k: Constants, s: State, t: State) -> bool:
    """From one moment to the next: a block that no longer shows the base never does again."""
    return all(s.state[b] == NOT_ALLOCATED or t.state[b] != NOT_ALLOCATED for b in blocks(k))


# Probes


def never_published_before_a_waiter(k: Constants, s: State) -> bool:
    """A write is published while another client waits for the range."""
    return not any(
        s.pc[c] == "leaving"
        and s.req[c].kind == "write"
        and s.pc[d] == "waiting"
        and range_of(k, s, c) & range_of(k, s, d)
        for c in clients(k)
        for d in clients(k)
    )


def never_overtaken(k: Constants, s: State) -> bool:
    """A change finds, under its lock, another state than the one it had glanced at."""
    return not any(
        s.pc[c] == "inside" and exclusive(s, c) and s.seen[c][b] != NOT_ALLOCATED
        for c in clients(k)
        for b in s.fetched[c]
    )


def never_copies_in_vain(k: Constants, s: State) -> bool:
    """A copy finds that its block is not NOT_ALLOCATED any more."""
    return not any(s.pc[c] == "keeping" and s.seen[c][b] != NOT_ALLOCATED for c in clients(k) for b in s.fetched[c])


def never_two_copies(k: Constants, s: State) -> bool:
    """Two clients copy one block at the same time."""
    copying = [c for c in clients(k) if s.pc[c] == "keeping" and s.moved[c]]
    return len(copying) < 2


def never_sees_the_base_beside_a_change(k: Constants, s: State) -> bool:
    """A read has seen the base without the lock while a change of it is being stored."""
    return not any(
        s.pc[c] == "looked"
        and all(s.seen[c][b] == NOT_ALLOCATED for b in blocks_of(k, s.req[c]))
        and s.pc[d] == "inside"
        and exclusive(s, d)
        and s.moved[d]
        and blocks_of(k, s.req[c]) & range_of(k, s, d)
        for c in clients(k)
        for d in clients(k)
    )


def never_looks_in_vain(k: Constants, s: State) -> bool:
    """A read has looked at a block without the lock, and it does not show the base any more."""
    return not any(
        s.req[c].kind == "read" and s.pc[c] == "asked" and s.seen[c][b] == NOT_ALLOCATED and s.state[b] != NOT_ALLOCATED
        for c in clients(k)
        for b in blocks_of(k, s.req[c])
    )


def never_waits_for_a_waiter(k: Constants, s: State) -> bool:
    """Somebody waits for a client that itself waits."""
    waiting = [c for c in clients(k) if s.pc[c] == "waiting" and not may_enter(k, s, c)]
    return not any(c != d and conflict(k, s, c, d) for c in waiting for d in waiting)


TWIN: Twin[Constants, State] = Twin(
    module="RangeLock",
    constants=Constants,
    initial=initial,
    steps=steps,
    invariants={
        "TypeOK": type_ok,
        "WritersAreAlone": writers_are_alone,
        "SeenIsTrue": seen_is_true,
        "NothingIsMissing": nothing_is_missing,
        "SomeOrderExplains": some_order_explains,
        "NeverPublishedBeforeAWaiter": never_published_before_a_waiter,
        "NeverOvertaken": never_overtaken,
        "NeverCopiesInVain": never_copies_in_vain,
        "NeverTwoCopies": never_two_copies,
        "NeverSeesTheBaseBesideAChange": never_sees_the_base_beside_a_change,
        "NeverLooksInVain": never_looks_in_vain,
        "NeverWaitsForAWaiter": never_waits_for_a_waiter,
    },
    action_properties={"StatesNeverGoBack": states_never_go_back},
    refinements={"RefinesDevice": Refinement(device.TWIN, abstract)},
)
