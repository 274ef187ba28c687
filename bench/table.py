"""Results as a table of Markdown, a line for each row: for pages that are read without the program.

Units:   as `bench.results.FIGURES` has them; processor time as the row's figure counts it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.report import number
from bench.results import Results, RowResult, ServerResult
from bench.wanted import OURS, PEERS, best, marks

EXPLAINED = (
    "A line says what cowproof did with its defaults, and how many times better that is than each peer's best",
    "setting; bold where the peer is ahead. In brackets: seconds of the server's processor time for a GiB, or for",
    "100,000 requests. *Missed* is what was asked and not met; what was asked is in `bench/wanted.py`.",
)


def table(results: Results) -> list[str]:
    """The rows that cowproof did."""
    return [
        f"| row | cowproof | {' | '.join(PEERS)} | missed |",
        "|---|---|" + "---|" * len(PEERS) + "---|",
        *(line for row in results.rows for line in _line(row)),
    ]


def page(results: Results) -> list[str]:
    """The table, and what is needed to read it."""
    settings = results.settings
    told = f"{settings['rounds']} rounds, a base of {settings['size']}, {settings['seconds']:g} s a round"
    where = f"{', '.join(results.machine.values())}; {', '.join(results.versions)}; {told}."
    return [where, "", *EXPLAINED, "", *table(results), "", *_sum(results.rows)]


def _line(row: RowResult) -> Iterator[str]:
    ours = row.server(OURS)
    if ours is None:
        return
    value = row.value(ours)
    assert value is not None
    cells = [row.name, f"{number(value.median)} {row.shape.unit}{_cost(row, ours)}"]
    cells += [_peer(row, ours, best(row, peer)) for peer in PEERS]
    missed = [mark.asked for mark in marks(row) if not mark.met]
    yield f"| {' | '.join([*cells, '; '.join(missed)])} |"


def _peer(row: RowResult, ours: ServerResult, theirs: ServerResult | None) -> str:
    found = None if theirs is None else row.ratio(ours, theirs)
    if theirs is None or found is None:
        return ""
    told = f"{found:.2f}" if found < 1 or found >= 1.005 else "1.00"
    return (f"**{told}**" if found < 1 else told) + _cost(row, theirs)


def _cost(row: RowResult, server: ServerResult) -> str:
    cost = row.cost(server)
    return f" ({number(cost.median)})" if cost is not None and row.figure in ("throughput", "rate") else ""


def _sum(rows: Sequence[RowResult]) -> list[str]:
    """Of how many things that are asked how many were met, and in how many rows we are ahead of each peer."""
    asked = [mark for row in rows for mark in marks(row)]
    lines = [f"{sum(mark.met for mark in asked)} of {len(asked)} things that are asked were met."]
    for peer in PEERS:
        found = [
            ratio
            for row in rows
            if (ours := row.server(OURS)) and (theirs := best(row, peer)) and (ratio := row.ratio(ours, theirs))
        ]
        if found:
            lines.append(f"Ahead of {peer} in {sum(ratio >= 1 for ratio in found)} of {len(found)} rows.")
    return lines
