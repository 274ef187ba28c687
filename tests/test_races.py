"""Chosen interleavings of two requests on the shipped overlay; and overlays with a fault, each caught by the check
that is meant to see it, and in the way it is meant to.
"""

import ast
import inspect
import re
from collections import Counter

import pytest

from check.contracts import ROOT
from check.device_suite import CLAIMS
from check.gates import Stuck
from check.mutants import LOCKS, MUTANTS
from check.races import BASE, BLOCK, NEW, SCENARIOS, Bench
from check.subjects import OverlaySubject
from impl.overlay import overlay
from impl.overlay.overlay import Overlay
from impl.overlay.rangelock import RangeLock

SCENARIO = {each.__name__: each for each in SCENARIOS}
CLAIM = {claim.name: claim for claim in CLAIMS}
PROMISES = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
# A row of the table of mutants: the name of a check, and those of the mutants it catches.
ROW = re.compile(r"^\| `(\w+)` \| (`.+`) \|$", re.MULTILINE)


def run(mutant):
    """The check that the mutant names, on the mutant."""
    if mutant.caught_by in SCENARIO:
        SCENARIO[mutant.caught_by](mutant.overlay, mutant.ranges)
    else:
        CLAIM[mutant.caught_by](lambda setup: OverlaySubject(setup, mutant.overlay))


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_the_shipped_overlay_loses_and_tears_nothing(scenario):
    scenario(Overlay, RangeLock)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_caught_by_the_check_that_is_there_for_it(mutant):
    """By what the check says, not because something else went wrong, nor because time ran out."""
    with pytest.raises(AssertionError) as caught:
        run(mutant)
    assert not isinstance(caught.value, Stuck), caught.value


def test_a_read_of_what_shows_the_base_waits_for_nobody_who_is_changing_it():
    """Whoever changes it has not given its range back, so the base is what is there."""
    with Bench(Overlay, RangeLock) as bench:
        write, gate = bench.stop_in_store(lambda: bench.overlay.write(0, NEW + NEW))
        assert bench.at_once(lambda: bench.overlay.pread(BLOCK, 2 * BLOCK)) == BASE[BLOCK : 3 * BLOCK]
        gate.open()
        write.join()
        bench.reads(NEW + NEW + BASE[2 * BLOCK :])


def test_a_mutant_has_a_name_of_its_own():
    assert not [name for name, count in Counter(mutant.name for mutant in MUTANTS).items() if count > 1]


def test_no_scenario_is_there_that_nothing_fails():
    assert set(SCENARIO) <= {mutant.caught_by for mutant in MUTANTS}


def places_where_a_range_is_taken():
    """The methods of the overlay that say `self.ranges.shared` or `.exclusive`, once for each time they do."""
    (made,) = (
        node for node in ast.parse(inspect.getsource(overlay)).body if getattr(node, "name", None) == Overlay.__name__
    )
    return Counter(
        method.name
        for method in made.body
        for node in ast.walk(method)
        if isinstance(node, ast.Attribute)
        and node.attr in ("shared", "exclusive")
        and ast.unparse(node.value) == "self.ranges"
    )


def test_every_place_where_a_range_is_taken_has_its_mutants():
    """Without any lock, and with too few blocks at either end."""
    assert Counter(place.method for place in LOCKS.values()) == places_where_a_range_is_taken()
    names = {mutant.name for mutant in MUTANTS}
    assert {f"{place}: {fault}" for place in LOCKS for fault in ("NoLock", "FirstBlockOnly", "LastBlockOnly")} <= names


def test_the_promises_name_the_mutants_and_what_catches_them():
    said = [(name, check) for check, names in ROW.findall(PROMISES) for name in re.findall("`([^`]+)`", names)]
    assert sorted(said) == sorted((mutant.name, mutant.caught_by) for mutant in MUTANTS)


def test_the_promises_say_how_many_interleavings_are_chosen():
    assert re.findall(r"(\d+) chosen interleavings", PROMISES) == [str(len(SCENARIOS))]
