"""Every lock, second look and ordering of the overlay is needed: without it, the explorer finds something wrong.

Those few of whose faults the explorer sees nothing are named, each with the reason, and found by `test_races.py`.
"""

from servers import ROOT

from check.explore.mutants import BOUNDS, NOT_HERE, explore_mutant, page
from check.explore.search import Verdict
from check.mutants import MUTANTS


def test_every_mutant_that_is_not_excused_is_found_and_the_page_says_how_soon():
    """If only the page is not true: python -m check.explore.mutants > docs/mutants.md."""
    assert (ROOT / "docs/mutants.md").read_text().splitlines() == list(page())


def test_only_mutants_are_excused():
    assert set(NOT_HERE) <= {mutant.name for mutant in MUTANTS}
    assert len(NOT_HERE) * 3 < len(MUTANTS)


def test_a_mutant_that_does_no_harm_here_is_not_found(monkeypatch):
    """What is excused holds indeed: the verdict is the explorer's, not the list's."""
    excused = next(mutant for mutant in MUTANTS if mutant.name == "look: Exclusive")
    monkeypatch.setattr("check.explore.mutants.BOUNDS", {"any two requests": BOUNDS["any two requests"]})
    assert explore_mutant(excused).tally.verdict is Verdict.HOLDS
