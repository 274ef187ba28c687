"""What each operation does to what threads share: the physics that everything explored rests on."""

import errno
from dataclasses import replace

import pytest

from check.explore.world import HOLE, Fault, Hold, Misuse, Physics, World
from model.block import State

A, B = 0, 1
PHYSICS = Physics(bytes(range(1, 5)), 2, disciplined=True)
FREE = World(bytes([State.NOT_ALLOCATED, State.ALLOCATED]), bytes([HOLE, HOLE, 7, 8]))
HELD = replace(FREE, queue=(Hold(A, 0, 1, True),))
WAITED_FOR = replace(FREE, queue=(Hold(B, 0, 1, True), Hold(A, 0, 1, True)))
LOCKED = replace(FREE, held=frozenset({("mutex", A)}))
ASLEEP = replace(LOCKED, waiting=(("bell", A), ("bell", B)))

MISUSES = {
    "a write without the range": (FREE, ("write", 0, 9)),
    "a write while waiting for the range": (WAITED_FOR, ("write", 0, 9)),
    "a write beyond the end": (HELD, ("write", 4, 9)),
    "a read without the range": (FREE, ("read", 2)),
    "a hole without the range": (FREE, ("punch", 2)),
    "a state without the range": (FREE, ("set", 0, 1)),
    "a state of no block": (HELD, ("set", 2, 1)),
    "a look at the state of no block": (FREE, ("get", 2)),
    "a look before the first block": (FREE, ("get", -1)),
    "the base under a lock": (HELD, ("base", 0, 2)),
    "the base while waiting for a lock": (WAITED_FOR, ("base", 0, 2)),
    "the base beyond its end": (FREE, ("base", 3, 2)),
    "the base's extents under a lock": (HELD, ("extents", 0, 2)),
    "a range given back that is not held": (FREE, ("release",)),
    "a mutex given back by another": (replace(FREE, held=frozenset({("mutex", B)})), ("unlock", "mutex")),
    "a bell rung without its mutex": (FREE, ("notify", "bell", "mutex")),
    "a wait without the mutex": (FREE, ("wait", "bell", "mutex")),
    "word sent twice": (replace(FREE, told=(("word", 1),)), ("tell", "word", 1)),
    "a range refused though it is free": (FREE, ("refused",)),
    "a range that overtook another": (WAITED_FOR, ("inside",)),
}


@pytest.mark.parametrize(("world", "op"), MISUSES.values(), ids=MISUSES)
def test_what_no_order_of_events_makes_right_is_misuse(world, op):
    with pytest.raises(Misuse):
        PHYSICS.outcomes(world, A, op)


WAITS = {
    "for a range": (WAITED_FOR, ("granted",)),
    "for a mutex": (replace(FREE, held=frozenset({("mutex", B)})), ("lock", "mutex")),
    "for a bell": (ASLEEP, ("wake", "bell")),
    "for word": (FREE, ("hear", "word")),
}


@pytest.mark.parametrize(("world", "op"), WAITS.values(), ids=WAITS)
def test_who_has_to_wait_has_no_outcome(world, op):
    assert PHYSICS.outcomes(world, A, op) == []


RESULTS = {  # what may come of it, where one thing may fail
    "a read of the base": (FREE, ("base", 0, 2), [b"\x01\x02", Fault(errno.EIO)]),
    "a read": (HELD, ("read", 2), [7, Fault(errno.EIO)]),
    "a write where there is space": (HELD, ("write", 2, 9), [None, Fault(errno.EIO)]),
    "a write where there is none": (HELD, ("write", 0, 9), [None, Fault(errno.ENOSPC), Fault(errno.EIO)]),
    "a hole": (HELD, ("punch", 2), [None, Fault(errno.EIO)]),
    "a hint": (FREE, ("ready",), [True, False]),
    "a state": (HELD, ("set", 0, 1), [None]),
    "a look": (FREE, ("get", 1), [int(State.ALLOCATED)]),
    "a bell for two": (ASLEEP, ("notify", "bell", "mutex"), [None, None]),
    "a bell for nobody": (LOCKED, ("notify", "bell", "mutex"), [None]),
}


@pytest.mark.parametrize(("world", "op", "results"), RESULTS.values(), ids=RESULTS)
def test_what_may_come_of_an_operation(world, op, results):
    found = PHYSICS.outcomes(replace(world, faults_left=2), A, op)
    assert [result for result, _ in found] == results
    assert [after.faults_left for _, after in found] == [1 if isinstance(each, Fault) else 2 for each in results]
    assert not any(isinstance(result, Fault) for result, _ in PHYSICS.outcomes(world, A, op))


def test_a_bell_wakes_any_of_those_who_wait_for_it():
    woken = {after.woken for _, after in PHYSICS.outcomes(ASLEEP, A, ("notify", "bell", "mutex"))}
    assert woken == {frozenset({("bell", A)}), frozenset({("bell", B)})}


def test_who_waits_for_a_bell_may_wake_without_reason_if_that_is_allowed():
    asleep = replace(ASLEEP, faults_left=1)
    [(_, after)] = replace(PHYSICS, spurious=True).outcomes(asleep, A, ("wake", "bell"))
    assert (after.waiting, after.faults_left) == ((("bell", B),), 0)
    assert PHYSICS.outcomes(asleep, A, ("wake", "bell")) == []


def test_a_failed_write_has_written_nothing_and_a_failed_hole_is_remembered():
    one = replace(HELD, faults_left=1)
    assert all(after.store == one.store for result, after in PHYSICS.outcomes(one, A, ("write", 2, 9)) if result)
    assert [after.punch_failed for _, after in PHYSICS.outcomes(one, A, ("punch", 2))] == [False, True]
