"""Chosen interleavings of two requests, on the shipped overlay and on mutants of it."""

import pytest

from check.device_suite import check_device
from check.mutants import MUTANTS
from check.races import SCENARIOS, first_failure
from check.subjects import OverlaySubject
from impl.overlay.overlay import Overlay
from impl.overlay.rangelock import RangeLock


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_the_shipped_overlay_loses_and_tears_nothing(scenario):
    scenario(Overlay, RangeLock)


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m.caught_by == "races"], ids=lambda mutant: mutant.name)
def test_a_mutant_without_a_lock_or_a_second_look_is_caught(mutant, monkeypatch):
    monkeypatch.setattr("check.gates.TIMEOUT_S", 2.0)  # a mutant that waits for ever is caught too
    assert first_failure(mutant.overlay, mutant.ranges) is not None


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m.caught_by == "suite"], ids=lambda mutant: mutant.name)
def test_a_mutant_that_is_wrong_by_itself_is_caught(mutant):
    with pytest.raises((AssertionError, OSError)):
        check_device(lambda setup: OverlaySubject(setup, mutant.overlay))
