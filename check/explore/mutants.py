"""What the explorer finds in overlays with one thing wrong, and how much of it it has to see first.

    python -m check.explore.mutants > docs/mutants.md

Errors:  AssertionError for a mutant that is not found: then something is not needed, or the explorer is blind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from check.explore.bounds import MENU_OF_THREE, Bound, Tally, explore_all
from check.explore.search import Verdict
from check.explore.subjects import PLAIN, Kind, lock_kind, overlay_kind
from check.lock_mutants import LOCK_MUTANTS
from check.mutants import MUTANTS

SMALLEST = "any two requests"
SHORT = "any two requests, the last block short"
THREE = "any two requests, three blocks"
FAILS = "any two requests, one operation fails"
BOUNDS = {
    SMALLEST: Bound((1, 1)),
    SHORT: Bound((1, 1), size=(64 << 10) + 1024),
    THREE: Bound((1, 1), MENU_OF_THREE, size=192 << 10),
    FAILS: Bound((1, 1), faults=1),
}
# The mutants that are right in the smallest bound, each with one in which it is not.
TAKES_MORE = {
    **dict.fromkeys(["LongLastBlock", "LastBlockNeverWhole"], SHORT),
    **dict.fromkeys(["note: FirstBlockOnly", "note: LastBlockOnly"], THREE),
    **dict.fromkeys(["StatesBeforeData", "ZeroesStateBeforeData", "GivesAllBack"], FAILS),
    **dict.fromkeys(["WritesGiveNothingBack", "ZeroesGiveNothingBack", "TrimsGiveBackWhatWasHeld"], FAILS),
    **dict.fromkeys(["PunchesOrFails", "CopiesOrFails", "KeepsAsItFetches", "FetchesForFastZeroes"], FAILS),
}
# Of a range lock by itself: with less, `if` where `while` belongs cannot be told from it.
LOCK_MENU = (
    *("read 0+64K", "write 0+64K", "write 64K+64K", "read 0+128K"),  # in a thread
    *("trim 0+64K", "status 0+64K", "trim 0+128K"),  # without
)
LOCK_BOUNDS = {
    "any three requests": Bound((1, 1, 1), LOCK_MENU, initial=("NN",), modes=(PLAIN,)),
    "any two requests each of two clients": Bound((2, 2), LOCK_MENU, initial=("NN",), modes=(PLAIN,)),
}


@dataclass(frozen=True)
class Finding:
    """A bound in which a mutant is found, and all that was looked at up to then."""

    name: str
    bound: str
    tally: Tally


def explore_mutant(kind: Kind, name: str, bound: Bound) -> Finding:
    """Until it is found, in the bound of this name."""
    return Finding(kind.name, name, explore_all(kind, bound))


def findings() -> Iterator[Finding]:
    """Of the overlay's mutants."""
    for mutant in MUTANTS:
        kind = overlay_kind(mutant.name, "a mutant", mutant.overlay, fault=mutant.fault or (lambda same: same))
        name = TAKES_MORE.get(mutant.name, SMALLEST)
        yield explore_mutant(kind, name, BOUNDS[name])


def lock_findings() -> Iterator[Finding]:
    """Of the range lock's."""
    for mutant in LOCK_MUTANTS:
        kind = lock_kind(mutant.__name__, "a mutant", mutant)
        yield explore_mutant(kind, *next(iter(LOCK_BOUNDS.items())))


def page() -> Iterator[str]:
    """The page, line by line."""
    yield "# What the explorer finds in mutants of the overlay"
    yield ""
    yield "Written by `python -m check.explore.mutants`: for each mutant of `check/mutants.py`, a bound in which the"
    yield "explorer finds it, how many programs it goes through up to then, how many schedules they have, and what it"
    yield "says."
    yield ""
    yield from table(findings())
    yield ""
    yield "## The range lock by itself"
    yield ""
    yield "The mutants of `check/lock_mutants.py`, down to mutex and condition."
    yield ""
    yield from table(lock_findings())


def table(found: Iterable[Finding]) -> Iterator[str]:
    """A row for each."""
    yield "| mutant | found among | programs | schedules | as |"
    yield "|---|---|---:|---:|---|"
    for each in found:
        tally = each.tally
        assert tally.verdict is Verdict.VIOLATED, each.name
        yield f"| {each.name} | {each.bound} | {tally.programs:,} | {tally.schedules:,} | {tally.why} |"


if __name__ == "__main__":
    print("\n".join(page()))
