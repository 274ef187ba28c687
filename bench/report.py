"""Results as text: a table for each row, what was asked and whether it was met, and where a peer is ahead.

Of a series, it is one table of all its rows, and how cost grows along it.

Units:   as `bench.results.FIGURES` has them; latencies in microseconds or milliseconds.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bench.results import MIB, Results, RowResult, Series, ServerResult, Spread
from bench.trend import servers_of, trends
from bench.wanted import OURS, ahead, marks

HEADINGS = ("", "median", "least", "most", "ratio", "server", "client", "p50", "p99", "MiB")
WIDTH = 110

SERVERS_EXPLAINED = """\
Ratio: how many times better cowproof's median is than that server's; above 1, cowproof is ahead. Server and client:
processor time (all threads and children) for a GiB, for 100,000 requests, or for the whole row; the client's start and
end are in its time. MiB: anonymous memory of the server when the row was done. p50 and p99: medians over the
rounds, as the client saw them."""

GROWTH_EXPLAINED = """\
CPU: the server's processor time for 100,000 requests (all threads and children), a median of the rounds, as is the
number of requests a second before it. Ratio: how many times more requests cowproof answered; above 1, it is ahead.
Exponent: the slope of a line through the logarithms of that processor time. At 0 a request costs the same all along,
at 1 its cost is proportional, below 0 it falls. Requests a second are bounded by the client, too, and not judged."""

CHECKERS_EXPLAINED = """\
Transitions of the explorer and requests of a history, for a second of processor time. Ratio: how many times less of it
cowproof's checker takes than another for the same verdict on the same input; above 1, cowproof is ahead. CPU: processor
time for 100,000 of them. MiB: the peak of the process."""


def head(results: Results) -> list[str]:
    """Where and how."""
    settings = results.settings
    told = f"{settings['rounds']} rounds after one that warms up"
    if "size" in settings:
        told += f"; base of {settings['size']}; {settings['seconds']:g} s where a row has no end of its own"
    return [", ".join(results.machine.values()), ", ".join(results.versions), told]


def row_lines(row: RowResult) -> list[str]:
    """A row, to be read without the others."""
    table = [_cells(row, server) for server in row.servers if server.samples]
    heading = [*HEADINGS[:5], f"{row.shape.whose} {row.shape.cost_unit}".strip(), "client", *HEADINGS[7:]]
    lines = [
        f"{row.name}: {row.meaning} [{row.shape.unit}, {'more' if row.shape.more_is_better else 'less'} is better]"
    ]
    lines += [f"  {line}" for line in aligned([heading, *table])] if table else []
    lines += [f"  {server.name}: not measured: {server.cannot}" for server in row.servers if server.cannot]
    lines += [f"  {server.name}: {server.remark}" for server in row.servers if server.samples and server.remark]
    lines += [f"  {line}" for line in verdicts(row)]
    return [*lines, ""]


def verdicts(row: RowResult) -> list[str]:
    """What was asked, who is ahead, what makes it doubtful."""
    return [*map(str, marks(row)), *ahead(row), *(f"noisy: {n}" for n in row.noise())]


def _cells(row: RowResult, server: ServerResult) -> list[str]:
    value, cost = row.value(server), row.cost(server)
    assert value is not None and cost is not None, server
    client = server.of(row.shape.client_cost)
    ours = row.server(OURS)
    ratio = None if ours is None or ours is server else row.ratio(ours, server)
    return [
        server.name,
        *(number(found) for found in (value.median, value.least, value.most)),
        "" if ratio is None else f"{ratio:.2f}",
        number(cost.median),
        number(client.median) if client and client.median else "",
        _latency(server.of(lambda sample: sample.p50_s)),
        _latency(server.of(lambda sample: sample.p99_s)),
        _median(server.of(lambda sample: sample.memory_bytes / MIB or None)),
    ]


def number(value: float) -> str:
    """With as many digits as anyone would compare."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _median(found: Spread | None) -> str:
    return "" if found is None else number(found.median)


def _latency(found: Spread | None) -> str:
    if found is None:
        return ""
    return f"{number(found.median * 1e3)} ms" if found.median >= 1e-3 else f"{found.median * 1e6:.0f} us"


def aligned(table: list[list[str]]) -> list[str]:
    """The first column to the left, the others to the right; no column that is empty."""
    columns = [column for column in zip(*table, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in zip(*columns, strict=True)
    ]


# A series.


def series_lines(series: Series, results: Results) -> list[str]:
    """A series, to be read without the others."""
    shape = results.rows_of(series)[0].shape
    lines = [f"{series.name}: {series.meaning} [{shape.unit}, more is better; {shape.cost_unit}, less is better]"]
    lines += [f"  {line}" for line in series_table(series, results)]
    lines += [f"  {line}" for line in textwrap.wrap(f"expected: {series.expected}", WIDTH, subsequent_indent="  ")]
    return [*lines, *(f"  {line}" for line in series_verdicts(series, results)), ""]


def series_table(series: Series, results: Results) -> list[str]:
    """A line for each row: its number, and of each server what it did, what that cost, and the ratio."""
    names = [name for name in servers_of(series, results) if any(row.server(name) for row in results.rows_of(series))]
    heading = [series.axis, *(cell for name in names for cell in (name, "CPU", "" if name == OURS else "ratio"))]
    table = [[series.shown(row.name), *_series_cells(row, names)] for row in results.rows_of(series)]
    return aligned([heading, *table]) if names else []


def _series_cells(row: RowResult, names: list[str]) -> list[str]:
    ours, cells = row.server(OURS), []
    for name in names:
        server = row.server(name)
        value, cost = (None, None) if server is None else (row.value(server), row.cost(server))
        ratio = None if server is None or ours is None or server is ours else row.ratio(ours, server)
        cells += [_median(value), _median(cost), "" if ratio is None else f"{ratio:.2f}"]
    return cells


def series_verdicts(series: Series, results: Results) -> list[str]:
    """How cost grows, what was not measured, and what makes it doubtful."""
    rows = results.rows_of(series)
    remarks = {f"{one.name}: {one.remark}": "" for row in rows for one in row.servers if one.samples and one.remark}
    missing: dict[str, list[str]] = {}
    for row in rows:
        for server in row.servers:
            if server.cannot:
                missing.setdefault(f"{server.name}: not measured: {server.cannot}", []).append(series.shown(row.name))
    return [
        *map(str, trends(series, results)),
        *(f"{why} (at {', '.join(at)})" for why, at in missing.items()),
        *remarks,
        *(f"noisy at {series.shown(row.name)}: {note}" for row in rows for note in row.noise()),
    ]


# All of it.


def body(results: Results) -> list[str]:
    """Every row by itself, or in its series."""
    lines = [line for row in results.rows if results.series_of(row) is None for line in row_lines(row)]
    return lines + [line for series in measured_series(results) for line in series_lines(series, results)]


def measured_series(results: Results) -> list[Series]:
    """Those that have any row."""
    return [series for series in results.series if results.rows_of(series)]


def conclusion(results: Results) -> list[str]:
    """What came of a run, and what its words mean."""
    kind = KINDS[results.kind]
    return [*kind.summary(results), *kind.explained.splitlines()]


def growth_summary(results: Results) -> list[str]:
    """How many series grow as expected, of each server that was measured, and which do not."""
    found = [(series.name, trend) for series in measured_series(results) for trend in trends(series, results)]
    lines = []
    for name in dict.fromkeys(trend.server for _, trend in found):
        own = [trend for _, trend in found if trend.server == name]
        fast, unknown = (sum(flags) for flags in zip(*((t.is_too_fast, not t.is_known) for t in own), strict=True))
        tail = f", {unknown} cannot be told" if unknown else ""
        lines.append(f"{name}: {len(own) - fast - unknown} of {len(own)} series grow as expected{tail}.")
    return [*lines, *(f"  {series}: {trend}" for series, trend in found if trend.is_too_fast)]


def summary(rows: Iterable[RowResult]) -> list[str]:
    """All rows in a line each: what was missed, and what was not measured."""
    rows = list(rows)
    asked = {row.name: marks(row) for row in rows}
    total, met = sum(map(len, asked.values())), sum(mark.met for found in asked.values() for mark in found)
    lines = [f"{met} of {total} things that are asked of cowproof were met."] if total else []
    lines += [f"  {name}: {mark}" for name, found in asked.items() for mark in found if not mark.met]
    return [*lines, *(f"  {row.name}: {line}" for row in rows for line in ahead(row))]


@dataclass(frozen=True, slots=True)
class Kind:
    """What a run was about: its heading, what came of it, and what its words mean."""

    title: str
    explained: str
    summary: Callable[[Results], list[str]]


KINDS = {
    "servers": Kind("cowproof beside other servers", SERVERS_EXPLAINED, lambda results: summary(results.rows)),
    "growth": Kind("How the cost of a request grows", GROWTH_EXPLAINED, growth_summary),
    "checkers": Kind("The checkers of cowproof", CHECKERS_EXPLAINED, lambda results: []),
}
