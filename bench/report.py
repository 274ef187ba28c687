"""Results as text: a table for each row, what was asked and whether it was met, and where a peer is ahead.

Units:   as `bench.results.FIGURES` has them; latencies in microseconds or milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable

from bench.results import MIB, Results, RowResult, ServerResult, Spread
from bench.wanted import OURS, ahead, marks

HEADINGS = ("", "median", "least", "most", "ratio", "server", "client", "p50", "p99", "MiB")

EXPLAINED = """\
Ratio: how many times better cowproof's median is than that server's; above 1, cowproof is ahead. Server and client:
processor time (all threads and children) for a GiB, for 100,000 requests, or for the whole row; the client's start and
end are in its time. MiB: anonymous memory of the server when the row was done. p50 and p99: medians over the
rounds, as the client saw them."""


def head(results: Results) -> list[str]:
    """Where and how."""
    settings = results.settings
    return [
        ", ".join(results.machine.values()),
        ", ".join(results.versions),
        f"{settings['rounds']} rounds after one that warms up; base of {settings['size']}; "
        f"{settings['seconds']:g} s where a row has no end of its own",
    ]


def row_lines(row: RowResult) -> list[str]:
    """A row, to be read without the others."""
    table = [_cells(row, server) for server in row.servers if server.samples]
    heading = [*HEADINGS[:5], f"server {row.shape.cost_unit}", "client", *HEADINGS[7:]]
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
        _median(server.of(lambda sample: sample.memory_bytes / MIB)),
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


def summary(rows: Iterable[RowResult]) -> list[str]:
    """All rows in a line each: what was missed, and what was not measured."""
    rows = list(rows)
    asked = {row.name: marks(row) for row in rows}
    total, met = sum(map(len, asked.values())), sum(mark.met for found in asked.values() for mark in found)
    lines = [f"{met} of {total} things that are asked of cowproof were met."] if total else []
    lines += [f"  {name}: {mark}" for name, found in asked.items() for mark in found if not mark.met]
    lines += [f"  {row.name}: {line}" for row in rows for line in ahead(row)]
    return [*lines, *EXPLAINED.splitlines()]
