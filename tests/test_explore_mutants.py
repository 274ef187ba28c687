"""Every lock, second look and ordering of the overlay is needed: without it, the explorer finds something wrong."""

from servers import ROOT

from check.explore.bounds import explore_all
from check.explore.mutants import BOUNDS, page
from check.explore.search import Verdict
from check.explore.subjects import OVERLAY


def test_every_mutant_is_found_and_the_page_says_how_soon():
    """If only the page is not true: python -m check.explore.mutants > docs/mutants.md."""
    assert (ROOT / "docs/mutants.md").read_text().splitlines() == list(page())


def test_where_the_mutants_are_found_the_overlay_holds():
    """What is found is the mutants' fault, and not the bounds'."""
    for name, bound in BOUNDS.items():
        assert explore_all(OVERLAY, bound).verdict is Verdict.HOLDS, name
