"""Model and overlay, model and server, side by side through random requests and faults.

That the model keeps its own invariants through random requests is for `test_model_device.py`: here it is the measure.
"""

import os

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from check import mutants
from check.stateful import DeviceMachine
from check.subjects import OverlaySubject, ServerSubject
from impl.overlay.overlay import Overlay
from model.failures import adopt

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


# What the comparison has to find, with the same requests in every run.


def compare(overlay_class):
    """The machine on an overlay; it stops at the first difference, and makes no smaller example of it."""

    class Machine(DeviceMachine):
        @staticmethod
        def make(setup):
            return OverlaySubject(setup, overlay_class)

    fixed = settings(profile(0), max_examples=400, database=None, derandomize=True, phases=[Phase.generate])
    run_state_machine_as_test(Machine, settings=fixed)


@pytest.mark.parametrize(
    "mutant",
    [
        mutants.StatesBeforeData,
        mutants.PunchesOrFails,
        mutants.CopiesOrFails,
        mutants.FetchesForFastZeroes,
        mutants.NoZeroFill,
    ],
)
def test_an_overlay_that_is_wrong_by_itself_is_found_out(mutant):
    with pytest.raises(AssertionError):
        compare(mutant)


def test_the_faults_are_hard_enough_to_tear_a_block(monkeypatch):
    """If a torn block were not permitted after an I/O error, the shipped overlay would not pass."""
    monkeypatch.setattr("check.stateful.adopt", lambda before, after, seen, torn: adopt(before, after, seen))
    with pytest.raises(AssertionError, match="neither as before nor as after"):
        compare(Overlay)
