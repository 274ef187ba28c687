"""A series as a plot: a line for each server over the series' number, both axes logarithmic.

On such axes a cost that grows with a power of the number is a straight line, and its slope is the growth exponent that
`bench.trend` computes. Where numbers begin at 0, or are per cent, their axis is linear: a zero has no logarithm.

Source:  SVG 2.
Units:   the plot's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from bench.report import number
from bench.results import Results, RowResult, Series, ServerResult, Spread
from bench.trend import servers_of
from bench.wanted import OURS

WIDTH, HEIGHT = 300, 180
LEFT, RIGHT, TOP, BOTTOM = 62, 92, 22, 36
LABEL_HEIGHT = 13
RANGE_MIN = 10.0
DASHES = ("", "6 3", "2 3", "9 3 2 3", "12 4", "1 2")

Value = Callable[[RowResult, ServerResult], Spread | None]


@dataclass(frozen=True, slots=True)
class Axis:
    """Numbers to places between `low_at` and `high_at`."""

    low: float
    high: float
    low_at: float
    high_at: float
    is_log: bool = True

    def place(self, value: float) -> float:
        """Where a number is."""
        low, high, value = (math.log(one) if self.is_log else one for one in (self.low, self.high, value))
        part = (value - low) / (high - low) if high > low else 0.5
        return self.low_at + part * (self.high_at - self.low_at)


def decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 of every power of ten within the range, and of these only the ones if there are too many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1,)):
        found = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if len(found) <= 6:
            break
    return found


def widened(low: float, high: float) -> tuple[float, float]:
    """With room on both sides, and at least a power of ten, so that what hardly differs does not look as if it did."""
    room = max(1.2, math.sqrt(RANGE_MIN * low / high))
    return low / room, high * room


def curves(series: Series, results: Results, title: str, value: Value) -> str:
    """An SVG element, or nothing where nothing was measured."""
    rows = results.rows_of(series)
    lines = {name: _points(series, rows, name, value) for name in servers_of(series, results)}
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return ""
    spreads = [spread for points in lines.values() for _, spread in points]
    low, high = widened(min(spread.least for spread in spreads), max(spread.most for spread in spreads))
    ats = [series.at[row.name] for row in rows]
    x = Axis(min(ats), max(ats), LEFT, LEFT + WIDTH, is_log=series.unit != "%" and min(ats) > 0)
    y = Axis(low, high, TOP + HEIGHT, TOP)
    parts = [*_frame(series, rows, title, x, y), *_lines(lines, x, y)]
    width, height = LEFT + WIDTH + RIGHT, TOP + HEIGHT + BOTTOM
    label = escape(f"{series.meaning}: {title} by {series.axis}, of {', '.join(lines)}")
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _points(series: Series, rows: Sequence[RowResult], name: str, value: Value) -> list[tuple[float, Spread]]:
    """Those that can be drawn: nothing has no logarithm."""
    found = []
    for row in rows:
        server = row.server(name)
        spread = None if server is None else value(row, server)
        if spread is not None and spread.least > 0:
            found.append((series.at[row.name], spread))
    return found


def _frame(series: Series, rows: Sequence[RowResult], title: str, x: Axis, y: Axis) -> list[str]:
    bottom = TOP + HEIGHT
    parts = [f'<text x="{LEFT}" y="{TOP - 8}">{escape(title)}</text>']
    for tick in decades(y.low, y.high):
        at = f"{y.place(tick):.1f}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y.place(tick) + 4:.1f}" text-anchor="end">{_tick(tick)}</text>')
    for row in rows:
        at, shown = f"{x.place(series.at[row.name]):.1f}", escape(series.shown(row.name))
        parts.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text x="{at}" y="{bottom + 16}" text-anchor="middle">{shown}</text>')
    middle = LEFT + WIDTH / 2
    parts.append(f'<text x="{middle}" y="{bottom + 31}" text-anchor="middle">{escape(series.axis)}</text>')
    parts.append(f'<rect class="frame" x="{LEFT}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}"/>')
    return parts


def _tick(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _lines(lines: dict[str, list[tuple[float, Spread]]], x: Axis, y: Axis) -> list[str]:
    labels = _apart({name: y.place(points[-1][1].median) for name, points in lines.items()})
    parts = []
    for at, (name, points) in enumerate(lines.items()):
        kind = "ours" if name.startswith(OURS) else "peer"
        path = " ".join(f"{x.place(place):.1f},{y.place(spread.median):.1f}" for place, spread in points)
        parts.append(f'<polyline class="curve {kind}" stroke-dasharray="{DASHES[at % len(DASHES)]}" points="{path}"/>')
        parts += [_mark(name, kind, x.place(place), spread, y) for place, spread in points]
        parts.append(f'<text x="{LEFT + WIDTH + 8}" y="{labels[name] + 4:.1f}">{escape(name)}</text>')
    return parts


def _mark(name: str, kind: str, at: float, spread: Spread, y: Axis) -> str:
    told = escape(f"{name}: {number(spread.median)} ({number(spread.least)} to {number(spread.most)})")
    return (
        f'<line class="range" x1="{at:.1f}" x2="{at:.1f}" y1="{y.place(spread.least):.1f}" '
        f'y2="{y.place(spread.most):.1f}"/>'
        f'<circle class="{kind}" cx="{at:.1f}" cy="{y.place(spread.median):.1f}" r="3"><title>{told}</title></circle>'
    )


def _apart(wanted: dict[str, float]) -> dict[str, float]:
    """Labels at their line's end, or as far below the one above as a line of text is high."""
    found: dict[str, float] = {}
    free = float(TOP)
    for name, at in sorted(wanted.items(), key=lambda item: item[1]):
        found[name] = max(at, free)
        free = found[name] + LABEL_HEIGHT
    return found
