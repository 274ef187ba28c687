"""Every lock, second look and ordering of the overlay is needed: without it, the explorer finds something wrong."""

import pytest
from servers import ROOT

from check.explore.bounds import explore_all
from check.explore.mutants import BOUNDS, TAKES_MORE, page
from check.explore.search import Verdict
from check.explore.subjects import OVERLAY
from check.mutants import MUTANTS


def test_every_mutant_is_found_and_the_page_says_how_soon():
    """If only the page is not true: python -m check.explore.mutants > docs/mutants.md."""
    assert (ROOT / "docs/mutants.md").read_text().splitlines() == list(page())


@pytest.mark.parametrize("name", BOUNDS)
def test_where_the_mutants_are_found_the_overlay_holds(name):
    """What is found is the mutants' fault, and not the bound's."""
    assert explore_all(OVERLAY, BOUNDS[name]).verdict is Verdict.HOLDS


def test_only_mutants_take_more_than_the_smallest_bound():
    assert set(TAKES_MORE) <= {mutant.name for mutant in MUTANTS}
