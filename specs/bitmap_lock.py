"""The algorithm that loses writes: a lock on the map of states, and one for those who read, modify and write.

Twin:    specs/BitmapLock.tla: the same variables, actions and invariants, and where it comes from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from specs import disk
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
from specs.twin import Twin, put, put_all

NOBODY = -1  # None, as the holder of a lock


@dataclass(frozen=True, slots=True)
class Constants(disk.Constants):
    """The constants of BitmapLock.tla."""

    torn: bool
    copy_on_read: bool
    copy_on_cache: bool


class State(NamedTuple):
    """The variables of BitmapLock.tla."""

    state: Values
    store: Values
    bitmap: int
    rmw: int
    pc: tuple[str, ...]
    req: tuple[Request, ...]
    left: tuple[Blocks, ...]
    buffer: tuple[Values, ...]
    moved: tuple[Addresses, ...]
    byte: tuple[Values, ...]
    reply: tuple[Values, ...]
    before: tuple[Clients, ...]
    start: Values


READING = frozenset({"looking", "fetching", "copying", "delivering"})
LOCKING = frozenset({"locking rmw", "locking bitmap", "unlocking"})
STORING = frozenset({"keeping", "loading byte", "storing byte", "storing", "marking"})
WHERE = READING | LOCKING | STORING | {"idle", "answering", "done"}


def nothing(k: Constants) -> Values:
    """Of no address."""
    return (NONE,) * len(addresses(k))


def no_byte(k: Constants) -> Values:
    """No byte of the map."""
    return (NONE,) * k.block_count


def entry(k: Constants, r: Request, left: Blocks) -> str:
    """Where a client goes, given its request and the blocks that it has not finished."""
    if not left or (r.kind == "cache" and not k.copy_on_cache):
        return "answering"
    if r.kind == "read":
        return "looking"
    if r.kind == "cache":
        return "locking bitmap"
    if not covers_all(k, r, min(left)):
        return "locking rmw"
    return "marking" if r.kind == "trim" else "storing"


def at(s: State, c: int) -> int:
    """The block a client is at."""
    return min(s.left[c])


def whole_block(k: Constants, s: State, c: int) -> Addresses:
    """All of that block."""
    return sectors_of(k, at(s, c))


def after_reading(s: State, c: int) -> str:
    """Where a client goes with what it has read."""
    return "delivering" if s.req[c].kind == "read" else "storing"


def go_on(k: Constants, s: State, c: int) -> State:
    """The block is finished, the locks given back."""
    left = s.left[c] - {at(s, c)}
    return s._replace(
        left=put(s.left, c, left),
        pc=put(s.pc, c, entry(k, s.req[c], left)),
        buffer=put(s.buffer, c, nothing(k)),
        moved=put(s.moved, c, EMPTY),
    )


# Init and the actions


def initial(k: Constants) -> Iterator[State]:
    """Init."""
    count = len(k.client)
    for state in starting_states(k):
        yield State(
            state=state,
            store=(OLD,) * len(addresses(k)),
            bitmap=NOBODY,
            rmw=NOBODY,
            pc=("idle",) * count,
            req=(NO_REQUEST,) * count,
            left=(EMPTY,) * count,
            buffer=(nothing(k),) * count,
            moved=(EMPTY,) * count,
            byte=(no_byte(k),) * count,
            reply=(nothing(k),) * count,
            before=(EMPTY,) * count,
            start=shown_at_first(k, state),
        )


def invoke(k: Constants, s: State, c: int, r: Request) -> State:
    """A client asks."""
    return s._replace(
        pc=put(s.pc, c, entry(k, r, blocks_of(k, r))),
        req=put(s.req, c, r),
        left=put(s.left, c, blocks_of(k, r)),
        before=put(s.before, c, frozenset(d for d in clients(k) if s.pc[d] == "done")),
    )


def lock_rmw(s: State, c: int) -> State:
    """It is alone among those who read, modify and write."""
    return s._replace(rmw=c, pc=put(s.pc, c, "looking"))


def look(k: Constants, s: State, c: int) -> State:
    """The bitmap's lock is held for this step only; what is seen may be out of date in the next."""
    seen = s.state[at(s, c)]
    buffer = nothing(k)
    if seen == TRIMMED:
        buffer = put_all(buffer, ((a, ZERO) for a in whole_block(k, s, c)))
    goes = {NOT_ALLOCATED: "fetching", ALLOCATED: "copying", TRIMMED: after_reading(s, c)}
    return s._replace(buffer=put(s.buffer, c, buffer), pc=put(s.pc, c, goes[seen]))


def lock_bitmap(s: State, c: int) -> State:
    """Copy-on-cache keeps the bitmap's lock until it has stored what it read."""
    goes = "fetching" if s.state[at(s, c)] == NOT_ALLOCATED else "unlocking"
    return s._replace(bitmap=c, pc=put(s.pc, c, goes))


def fetch(k: Constants, s: State, c: int) -> State:
    """The base is read."""
    keeps = s.req[c].kind == "cache" or k.copy_on_read
    return s._replace(
        buffer=put(s.buffer, c, put_all(nothing(k), ((a, BASE) for a in whole_block(k, s, c)))),
        pc=put(s.pc, c, "keeping" if keeps else after_reading(s, c)),
    )


def copy(k: Constants, s: State, c: int) -> State:
    """The overlay's bytes, with no lock."""
    missing = frozenset(a for a in whole_block(k, s, c) if s.buffer[c][a] == NONE)
    part = next_part(k, k.torn, missing)
    return s._replace(
        buffer=put(s.buffer, c, put_all(s.buffer[c], ((a, s.store[a]) for a in part))),
        pc=put(s.pc, c, after_reading(s, c) if part == missing else "copying"),
    )


def keep(k: Constants, s: State, c: int) -> State:
    """The base's content is put where others may have put theirs: nobody looks at the state again."""
    part = next_part(k, k.torn, whole_block(k, s, c) - s.moved[c])
    moved = s.moved[c] | part
    goes = "keeping"
    if moved == whole_block(k, s, c):
        moved = EMPTY
        goes = "marking" if s.req[c].kind == "cache" else "loading byte"
    return s._replace(
        store=put_all(s.store, ((a, BASE) for a in part)),
        moved=put(s.moved, c, moved),
        pc=put(s.pc, c, goes),
    )


def load_byte(s: State, c: int) -> State:
    """Copy-on-read sets the state without the lock. All blocks here have theirs in one byte."""
    return s._replace(byte=put(s.byte, c, s.state), pc=put(s.pc, c, "storing byte"))


def store_byte(k: Constants, s: State, c: int) -> State:
    """The byte as it was, but for one block."""
    return s._replace(
        state=put(s.byte[c], at(s, c), ALLOCATED),
        byte=put(s.byte, c, no_byte(k)),
        pc=put(s.pc, c, after_reading(s, c)),
    )


def deliver(k: Constants, s: State, c: int) -> State:
    """What a read was to read of its block."""
    told = ((a, s.buffer[c][a]) for a in in_block(k, s.req[c], at(s, c)))
    return go_on(k, s._replace(reply=put(s.reply, c, put_all(s.reply[c], told))), c)


def store(k: Constants, s: State, c: int) -> State:
    """The whole block, whatever part of it the request changes."""
    part = next_part(k, k.torn, whole_block(k, s, c) - s.moved[c])
    moved = s.moved[c] | part
    new = new_value(k, c, s.req[c])
    stored = ((a, new if a in s.req[c].at else s.buffer[c][a]) for a in part)
    return s._replace(
        store=put_all(s.store, stored),
        moved=put(s.moved, c, moved),
        pc=put(s.pc, c, "marking" if moved == whole_block(k, s, c) else "storing"),
    )


def mark(k: Constants, s: State, c: int) -> State:
    """The state follows the data."""
    trimmed = s.req[c].kind == "trim" and covers_all(k, s.req[c], at(s, c))
    s = s._replace(state=put(s.state, at(s, c), TRIMMED if trimmed else ALLOCATED))
    return s._replace(pc=put(s.pc, c, "unlocking")) if c in (s.bitmap, s.rmw) else go_on(k, s, c)


def unlock(k: Constants, s: State, c: int) -> State:
    """It gives back what it holds."""
    released = s._replace(
        bitmap=NOBODY if s.bitmap == c else s.bitmap,
        rmw=NOBODY if s.rmw == c else s.rmw,
    )
    return go_on(k, released, c)


def respond(s: State, c: int) -> State:
    """It has its reply."""
    return s._replace(pc=put(s.pc, c, "done"), left=put(s.left, c, EMPTY))


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
    elif pc == "locking rmw" and s.rmw == NOBODY:
        yield "LockRmw", lock_rmw(s, c)
    elif pc == "locking bitmap" and s.bitmap == NOBODY:
        yield "LockBitmap", lock_bitmap(s, c)
    elif pc == "looking" and s.bitmap == NOBODY:
        yield "Look", look(k, s, c)
    elif pc == "fetching":
        yield "Fetch", fetch(k, s, c)
    elif pc == "copying":
        yield "Copy", copy(k, s, c)
    elif pc == "keeping":
        yield "Keep", keep(k, s, c)
    elif pc == "loading byte":
        yield "LoadByte", load_byte(s, c)
    elif pc == "storing byte":
        yield "StoreByte", store_byte(k, s, c)
    elif pc == "delivering":
        yield "Deliver", deliver(k, s, c)
    elif pc == "storing":
        yield "Store", store(k, s, c)
    elif pc == "marking" and s.bitmap in (NOBODY, c):
        yield "Mark", mark(k, s, c)
    elif pc == "unlocking":
        yield "Unlock", unlock(k, s, c)
    elif pc == "answering":
        yield "Respond", respond(s, c)


# Invariants


def contents(k: Constants, s: State) -> Values:
    """What the device holds."""
    return tuple(shown(s.state[block_of(k, a)], s.store[a]) for a in addresses(k))


def type_ok(k: Constants, s: State) -> bool:
    """Always: variables have the shape they were declared with."""
    return (
        set(s.state) <= STATES
        and set(s.store) <= values(k)
        and {s.bitmap, s.rmw} <= {NOBODY, *clients(k)}
        and set(s.pc) <= WHERE
        and all(r in (*k.requests, NO_REQUEST) for r in s.req)
        and all(left <= set(blocks(k)) for left in s.left)
        and all(set(buffer) <= {*values(k), NONE} for buffer in s.buffer)
        and all(moved <= set(addresses(k)) for moved in s.moved)
        and all(set(byte) <= {*STATES, NONE} for byte in s.byte)
        and all(set(told) <= {*values(k), NONE} for told in s.reply)
    )


def merges_under_the_lock(k: Constants, s: State) -> bool:
    """While a block is read, changed in part and written back: its client holds the lock for that."""
    return all(s.rmw == c or s.pc[c] != "storing" or covers_all(k, s.req[c], at(s, c)) for c in clients(k))


def some_order_explains(k: Constants, s: State) -> bool:
    """When all have their replies: some order of the requests explains them, and what is stored."""
    return not all_done(s) or explained(k, s.start, s.before, s.req, s.reply, contents(k, s))


def writes_are_kept(k: Constants, s: State) -> bool:
    """When all have their replies: a write that nobody else's request touched is there."""
    if not all_done(s):
        return True
    held = contents(k, s)
    return all(
        held[a] == k.client[c] or any(d != c and changes(s.req[d]) and a in s.req[d].at for d in clients(k))
        for c in clients(k)
        if s.req[c].kind == "write"
        for a in s.req[c].at
    )


def reads_are_whole(k: Constants, s: State) -> bool:
    """Once a read has its reply, if all requests are for whole blocks: it is told one value for a block."""
    return all(
        len({s.reply[c][a] for a in in_block(k, s.req[c], b)}) == 1
        for c in clients(k)
        if s.pc[c] == "done" and s.req[c].kind == "read"
        for b in blocks_of(k, s.req[c])
    )


def states_never_go_back(k: Constants, s: State, t: State) -> bool:
    """From one moment to the next: a block that no longer shows the base never does again."""
    return all(s.state[b] == NOT_ALLOCATED or t.state[b] != NOT_ALLOCATED for b in blocks(k))


def never_stored_beside_a_merge(k: Constants, s: State) -> bool:
    """Probe: a block is read for a merge while another client stores in it."""
    return s.rmw == NOBODY or not any(
        s.pc[d] == "storing" and s.moved[d] and s.rmw != d and at(s, s.rmw) == at(s, d) for d in clients(k)
    )


TWIN: Twin[Constants, State] = Twin(
    module="BitmapLock",
    constants=Constants,
    initial=initial,
    steps=steps,
    invariants={
        "TypeOK": type_ok,
        "MergesUnderTheLock": merges_under_the_lock,
        "SomeOrderExplains": some_order_explains,
        "WritesAreKept": writes_are_kept,
        "ReadsAreWhole": reads_are_whole,
        "NeverStoredBesideAMerge": never_stored_beside_a_merge,
    },
    action_properties={"StatesNeverGoBack": states_never_go_back},
)
