"""Results as one HTML page that needs no network and runs no script: a plot and a table for each row, or each series.

The plot of a row has a bar for each server, as long as its median, a line from the least to the most, and a dot for
each round; `bench.curves` draws those of a series.

Source:  HTML Living Standard; SVG 2; Content Security Policy 3, "hash-source".
Units:   the plot's own: WIDTH stands for the largest value.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape

from bench.curves import curves
from bench.report import (
    KINDS,
    conclusion,
    head,
    measured_series,
    number,
    row_lines,
    series_table,
    series_verdicts,
    verdicts,
)
from bench.results import Results, RowResult, Series, ServerResult
from bench.trend import Trend, trends
from bench.wanted import OURS, marks

WIDTH, NAMES, NUMBERS = 420, 130, 90
BAR, GAP = 14, 8

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1f; --paper: #fdfdfb; --faint: #63636d; --ours: #1f6feb; --peer: #a9b0ba;
  --line: #d8d8de; --missed: #b42318; --met: #1a7f37; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6ea; --paper: #16171a; --faint: #9a9aa6; --ours: #58a6ff;
  --peer: #59616c; --line: #34363c; --missed: #ff7b72; --met: #56d364; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; }
h2 { font-size: 1.05rem; margin: 2.2rem 0 0.2rem; border-top: 1px solid var(--line); padding-top: 1rem; }
p, ul { margin: 0.3rem 0; } ul { padding-left: 1.2rem; } .faint { color: var(--faint); }
svg { max-width: 100%; height: auto; display: block; margin: 0.6rem 0; } text { font: 12px system-ui, sans-serif;
  fill: var(--ink); } .ours { fill: var(--ours); } .peer { fill: var(--peer); } .range { stroke: var(--ink); }
.round { fill: var(--ink); fill-opacity: 0.45; } .met { color: var(--met); } .missed { color: var(--missed); }
.frame { fill: none; stroke: var(--line); } .grid { stroke: var(--line); } .curve { fill: none; stroke-width: 2; }
.curve.ours { stroke: var(--ours); } .curve.peer { stroke: var(--peer); }
.side { display: flex; flex-wrap: wrap; gap: 1rem; }
pre { overflow-x: auto; font-size: 12.5px; } nav { columns: 3 14rem; font-size: 0.9rem; } a { color: inherit; }
"""


def page(results: Results) -> str:
    """The whole page."""
    policy = f"default-src 'none'; style-src {_hash(STYLE)}"
    kind = KINDS[results.kind]
    rows = [row for row in results.rows if results.series_of(row) is None]
    series = measured_series(results)
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">',
        f"<title>cowproof bench</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(kind.title)}</h1>",
        *(f"<p>{escape(line)}</p>" for line in head(results)),
        f'<p class="faint">{escape(kind.explained)}</p>',
        "<nav>",
        *(f'<a href="#{escape(row.name)}">{escape(row.name)}</a>{_sign(row)}<br>' for row in rows),
        *(f'<a href="#{escape(s.name)}">{escape(s.name)}</a>{_series_sign(s, results)}<br>' for s in series),
        "</nav>",
        *(line for row in rows for line in _section(row)),
        *(line for one in series for line in _series_section(one, results)),
        "<h2>All of it</h2>",
        f"<pre>{escape(chr(10).join(conclusion(results)))}</pre>",
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _sign(row: RowResult) -> str:
    found = marks(row)
    if not found:
        return ""
    missed = sum(not mark.met for mark in found)
    return f' <span class="missed">{missed} missed</span>' if missed else ' <span class="met">met</span>'


def _section(row: RowResult) -> list[str]:
    better = "more" if row.shape.more_is_better else "less"
    return [
        f'<h2 id="{escape(row.name)}">{escape(row.name)}</h2>',
        f'<p>{escape(row.meaning)} <span class="faint">({escape(row.shape.unit)}, {better} is better)</span></p>',
        plot(row),
        "<ul>",
        *(f"<li{_class(line)}>{escape(line)}</li>" for line in verdicts(row)),
        *(f"<li>{escape(server.name)}: {escape(server.remark)}</li>" for server in row.servers if server.remark),
        *(
            f'<li class="faint">{escape(server.name)} was not measured: {escape(server.cannot)}</li>'
            for server in row.servers
            if server.cannot
        ),
        "</ul>",
        f"<details><summary>figures</summary><pre>{escape(chr(10).join(row_lines(row)))}</pre></details>",
    ]


def _series_sign(series: Series, results: Results) -> str:
    ours = next((trend for trend in trends(series, results) if trend.server == OURS and trend.is_known), None)
    if ours is None:
        return ""
    return ' <span class="missed">too fast</span>' if ours.is_too_fast else ' <span class="met">as expected</span>'


def _series_section(series: Series, results: Results) -> list[str]:
    shape = results.rows_of(series)[0].shape
    judged = {str(trend): trend for trend in trends(series, results)}
    figures = "\n".join(series_table(series, results))
    return [
        f'<h2 id="{escape(series.name)}">{escape(series.name)}</h2>',
        f"<p>{escape(series.meaning)}</p>",
        f"<p><em>Expected:</em> {escape(series.expected)}</p>",
        '<div class="side">',
        curves(series, results, f"{shape.whose} {shape.cost_unit}", lambda row, server: row.cost(server)),
        curves(series, results, f"requests{shape.unit}", lambda row, server: row.value(server)),
        "</div>",
        "<ul>",
        *(f"<li{_verdict(judged.get(line))}>{escape(line)}</li>" for line in series_verdicts(series, results)),
        "</ul>",
        f"<details><summary>figures</summary><pre>{escape(figures)}</pre></details>",
    ]


def _verdict(trend: Trend | None) -> str:
    if trend is None or not trend.is_known:
        return ""
    return ' class="missed"' if trend.is_too_fast else ' class="met"'


def _class(line: str) -> str:
    kind = line.partition(":")[0].partition(" ")[0]
    return f' class="{kind}"' if kind in ("met", "missed") else ""


def plot(row: RowResult) -> str:
    """An SVG element."""
    servers = [server for server in row.servers if server.samples]
    most = max((row.shape.value(sample) for server in servers for sample in server.samples), default=0.0) or 1.0
    height = len(servers) * (BAR + GAP) + GAP
    width = NAMES + WIDTH + NUMBERS
    bars = [
        line for at, server in enumerate(servers) for line in _bar(row, server, GAP + at * (BAR + GAP), WIDTH / most)
    ]
    label = escape(f"{row.meaning}: medians of {', '.join(server.name for server in servers)}")
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{label}">{"".join(bars)}</svg>'


def _bar(row: RowResult, server: ServerResult, top: int, scale: float) -> list[str]:
    value = row.value(server)
    assert value is not None
    kind = "ours" if server.name.startswith(OURS) else "peer"
    middle, text = top + BAR / 2, top + BAR - 3
    dots = [
        f'<circle class="round" cx="{NAMES + row.shape.value(sample) * scale:.1f}" cy="{middle}" r="2"/>'
        for sample in server.samples
    ]
    return [
        f'<text x="{NAMES - 8}" y="{text}" text-anchor="end">{escape(server.name)}</text>',
        f'<rect class="{kind}" x="{NAMES}" y="{top}" width="{value.median * scale:.1f}" height="{BAR}" rx="2"/>',
        f'<line class="range" x1="{NAMES + value.least * scale:.1f}" x2="{NAMES + value.most * scale:.1f}" '
        f'y1="{middle}" y2="{middle}"/>',
        *dots,
        f'<text x="{NAMES + value.most * scale + 8:.1f}" y="{text}">{number(value.median)}</text>',
    ]
