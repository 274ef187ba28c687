"""How fast cost grows along a series, and whether that is faster than it should.

A cost that goes with the n-th power of a number lies on a line of slope n when both are drawn on logarithmic axes. That
slope, by least squares, is the growth exponent: 0 for a cost that stays, 1 for one that is proportional, below 0 for
one that falls. One line through all points would hide a cost that turns up only at the end, so the last points are
held against the same bound by themselves, with more room, as there are few of them.

Units:   cost is processor time of the server for 100,000 requests, the medians of rounds.
Errors:  where nothing can be said, the verdict is so: never "as expected".
Omits:   requests per second: they are shown, but what bounds them is often the client.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bench.results import Results, Series

POINTS_MIN = 3
LATE_POINTS = 3
# What rounds differ by makes a slope, too: a tenth over all points, less than a third over the last.
TOLERANCE, LATE_TOLERANCE = 0.1, 0.3

Point = tuple[float, float]  # the series' number, and the cost


@dataclass(frozen=True, slots=True)
class Trend:
    """One server's cost along a series. The exponents, of all points and of the last, are None if there are too few."""

    server: str
    bound: float
    exponent: float | None
    late: float | None

    @property
    def is_known(self) -> bool:
        """Whether there is anything to judge."""
        return self.exponent is not None and self.late is not None

    @property
    def is_too_fast(self) -> bool:
        """Whether cost grows faster than expected, all along or at the end."""
        if self.exponent is None or self.late is None:
            return False
        return self.exponent > self.bound + TOLERANCE or self.late > self.bound + LATE_TOLERANCE

    def __str__(self) -> str:
        if self.exponent is None or self.late is None:
            return f"{self.server}: cannot be told: fewer than {POINTS_MIN} points above 0, or one without a cost"
        verdict = "grows faster than expected" if self.is_too_fast else "as expected"
        found = f"{_signed(self.exponent)}, over the last {LATE_POINTS} points {_signed(self.late)}"
        return f"{self.server}: {verdict}: exponent {found}; expected at most {self.bound:g}"


def _signed(exponent: float) -> str:
    return f"{round(exponent, 2) + 0.0:.2f}"  # no "-0.00"


def slope(points: Sequence[Point]) -> float | None:
    """By least squares, of logarithms; None if the points do not determine it. A point at 0 has no logarithm."""
    logs = [(math.log(at), math.log(cost)) for at, cost in points if at > 0 and cost > 0]
    if len(logs) < 2:
        return None
    middle_x, middle_y = (sum(values) / len(logs) for values in zip(*logs, strict=True))
    spread = sum((x - middle_x) ** 2 for x, _ in logs)
    return sum((x - middle_x) * (y - middle_y) for x, y in logs) / spread if spread else None


def trend(server: str, points: Sequence[Point], bound: float) -> Trend:
    """Of points in any order. A cost of nothing is none: nothing was measured there, and nothing can be told."""
    usable = sorted(point for point in points if point[0] > 0)
    if len(usable) < POINTS_MIN or any(cost <= 0 for _, cost in usable):
        return Trend(server, bound, None, None)
    return Trend(server, bound, slope(usable), slope(usable[-LATE_POINTS:]))


def servers_of(series: Series, results: Results) -> list[str]:
    """All that were asked, in the order in which they were."""
    return list(dict.fromkeys(server.name for row in results.rows_of(series) for server in row.servers))


def costs(series: Series, results: Results, name: str) -> list[Point]:
    """What a request cost a server at each number."""
    found = []
    for row in results.rows_of(series):
        server = row.server(name)
        cost = None if server is None else row.cost(server)
        if cost is not None:
            found.append((series.at[row.name], cost.median))
    return found


def trends(series: Series, results: Results) -> list[Trend]:
    """Of every server that was measured anywhere in the series."""
    measured = {name: costs(series, results, name) for name in servers_of(series, results)}
    return [trend(name, points, series.bound) for name, points in measured.items() if points]
