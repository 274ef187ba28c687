"""What the explorer finds in overlays with one thing wrong, and how much of it it has to see first.

    python -m check.explore.mutants > docs/mutants.md

Errors:  AssertionError for a mutant that is not found: then something is not needed, or the explorer is blind.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from check.explore.bounds import MENU_OF_THREE, Bound, Tally, explore_all
from check.explore.search import Verdict
from check.explore.subjects import overlay_kind
from check.mutants import MUTANTS, Mutant

# Tried one after the other: the first in which the mutant is found.
BOUNDS = {
    "any two requests": Bound((1, 1)),
    "any two requests, the last block short": Bound((1, 1), size=(64 << 10) + 1024),
    "any two requests, three blocks": Bound((1, 1), MENU_OF_THREE, size=192 << 10),
    "any two requests, one operation fails": Bound((1, 1), faults=1),
}


@dataclass(frozen=True)
class Finding:
    """The bound in which a mutant is found, and all that was looked at up to then."""

    mutant: Mutant
    bound: str
    tally: Tally


def explore_mutant(mutant: Mutant) -> Finding:
    """The first bound in which it is found; the last one, if it is not."""
    kind = overlay_kind(mutant.name, "a mutant", mutant.overlay, fault=mutant.fault or (lambda same: same))
    total = Tally()
    name = ""
    for name, bound in BOUNDS.items():  # noqa: B007
        total += explore_all(kind, bound)
        if total.verdict is not Verdict.HOLDS:
            break
    return Finding(mutant, name, total)


def page() -> Iterator[str]:
    """The page, line by line."""
    yield "# What the explorer finds in mutants of the overlay"
    yield ""
    yield "Written by `python -m check.explore.mutants`: for each mutant of `check/mutants.py`, the bound in which the"
    yield "explorer finds it, how many programs it has to go through up to then, how many schedules they have, and what"
    yield "it says."
    yield ""
    yield "| mutant | found among | programs | schedules | as |"
    yield "|---|---|---:|---:|---|"
    for mutant in MUTANTS:
        finding = explore_mutant(mutant)
        assert finding.tally.verdict is Verdict.VIOLATED, mutant.name
        tally = finding.tally
        yield f"| {mutant.name} | {finding.bound} | {tally.programs:,} | {tally.schedules:,} | {tally.why} |"


if __name__ == "__main__":
    print("\n".join(page()))
