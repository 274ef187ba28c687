"""Model and overlay, model and server, side by side through random requests and faults.

That the model keeps its own invariants through random requests is for `test_model_device.py`: here it is the measure.
"""

import contextlib
import errno
import os

import pytest
from hypothesis import HealthCheck, settings

from check import mutants
from check.stateful import DeviceMachine
from check.subjects import Operation, OverlaySubject, ServerSubject, Setup
from impl.overlay.overlay import Overlay
from model.block import allocated
from model.device import Read, Trim, Write, Zero

BLOCK = 4096
EXAMPLES = int(os.environ.get("COWPROOF_EXAMPLES", "200"))


def profile(share):
    """Bounded by examples, not by time; hypothesis' own database replays what failed before."""
    return settings(
        max_examples=max(EXAMPLES * share // 100, 1),
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


class OverlayMachine(DeviceMachine):
    make = OverlaySubject


class ServerMachine(DeviceMachine):
    make = ServerSubject


TestTheOverlayDoesWhatTheModelDoes = OverlayMachine.TestCase
TestTheOverlayDoesWhatTheModelDoes.settings = profile(100)
TestTheServerDoesWhatTheModelDoesThroughTwoConnections = ServerMachine.TestCase
TestTheServerDoesWhatTheModelDoesThroughTwoConnections.settings = profile(50)


# What the comparison has to find, and what it must permit: the machine's own steps, taken by hand.

OLD, NEW = b"\xaa" * 3 * BLOCK, b"\xbb" * 3 * BLOCK


class HidesFailures(Overlay):
    """Says that a write is done, though the store failed it."""

    __slots__ = ()

    def write(self, offset, data):
        with contextlib.suppress(OSError):
            super().write(offset, data)


class ChangesErrors(Overlay):
    """Says EIO whatever it was that the store said."""

    __slots__ = ()

    def write(self, offset, data):
        try:
            super().write(offset, data)
        except OSError:
            raise OSError(errno.EIO, "failed") from None


def machine(overlay_class=Overlay, **parts):
    """A machine on a device of three blocks."""

    class Machine(DeviceMachine):
        @staticmethod
        def make(setup):
            return OverlaySubject(setup, overlay_class)

    made = Machine()
    made.start(Setup(bytes(range(1, 256)) * 16 * 3 + bytes(48), BLOCK, **parts))
    return made


def full_disk(made):
    made.fill_store(BLOCK)
    made.both(Write(0, NEW))


def full_disk_over_something(made):
    made.both(Write(0, OLD[:BLOCK]))
    made.fill_store(BLOCK)
    made.both(Write(0, NEW))


def part_of_a_trimmed_block(made):
    made.both(Write(0, OLD))
    made.both(Trim(0, BLOCK))
    made.both(Write(5, b"new"))
    made.both(Read(0, BLOCK))


def trim_that_frees_nothing(made):
    made.both(Write(0, OLD))
    made.damage_store(frozenset((Operation.PUNCH,)), 0)
    made.both(Trim(0, BLOCK))


def copy_that_finds_no_room(made):
    made.fill_store(0)
    made.both(Read(0, BLOCK))


def fast_zero_over_a_bad_block(made):
    made.both(Zero(1, 1, fast=True))


def torn_block(made):
    made.both(Write(0, OLD))
    made.damage_store(frozenset((Operation.WRITE,)), 100)
    made.both(Write(0, NEW))
    assert made.now.blocks[0] == allocated(NEW[:100] + OLD[100:BLOCK])


RUNS = [  # steps, what the device is like, an overlay that is wrong, what is said of it
    (full_disk, {}, mutants.StatesBeforeData, "neither as before nor as after"),
    (full_disk, {}, HidesFailures, "though the store failed"),
    (full_disk, {}, ChangesErrors, "the store's error became 5"),
    (full_disk_over_something, {}, mutants.GivesAllBack, "neither as before nor as after"),
    (part_of_a_trimmed_block, {}, mutants.NoZeroFill, "expected Data"),
    (trim_that_frees_nothing, {}, mutants.PunchesOrFails, "5, expected Done"),
    (copy_that_finds_no_room, {"copy_on_read": True}, mutants.CopiesOrFails, "28, expected Data"),
    (fast_zero_over_a_bad_block, {"bad": frozenset({0})}, mutants.FetchesForFastZeroes, "NOT_FAST"),
    (torn_block, {}, HidesFailures, "though the store failed"),
]


@pytest.mark.parametrize(("steps", "parts", "wrong", "said"), RUNS)
def test_the_comparison_permits_the_overlay_and_finds_the_one_that_is_wrong(steps, parts, wrong, said):
    made = machine(**parts)
    steps(made)
    made.teardown()
    made = machine(wrong, **parts)
    with pytest.raises(AssertionError, match=said):
        steps(made)
    made.teardown()
