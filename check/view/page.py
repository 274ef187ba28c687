"""What is shown, to the text of one HTML page that needs nothing else: no network, and no script to read the verdict.

The template is viewer.html, whose places in {{braces}} are filled; viewer.css and viewer.js are put into it. The page's
content security policy permits the hashes of just these two, and nothing from anywhere.

Shapes:  the history is JSON in an element that no browser executes; see columns.py. Equal pictures give equal pages.
Units:   as in the history.
Errors:  UsageError from columns.py, for numbers that a script cannot hold exactly.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Literal

from check.view.columns import columns
from check.view.finding import NOT_LINEARIZABLE, Chain, Finding, Partial, Range, around, points
from impl.sizes import format_size
from model.history import PENDING, RANGED, History, Operation, Value
from model.linearizability import name_of

# A text of the page lists no more requests than this; the picture shows all.
LISTED_MAX = 40
# An order for each of many small parts comes to more than the requests themselves: those with most requests are kept.
CHAINED_MAX = 500_000


Unit = Literal["ns", "step"]


@dataclass(frozen=True, slots=True)
class Step:
    """Something that a request did on its way. `is_end`: its first or last step. `is_wrong`: here it went wrong."""

    request: int
    at: int
    text: str
    is_end: bool = False
    is_wrong: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """What a page shows.

    title:  what it is, such as the file's name
    steps:  what each request did, where that is known
    notes:  lines for people, below the verdict
    unit:   of the history's times: nanoseconds, or steps that were counted
    facts:  how much there is of what; by default counted here
    """

    title: str
    history: History
    finding: Finding
    steps: tuple[Step, ...] = ()
    notes: tuple[str, ...] = ()
    unit: Unit = "ns"
    facts: str = ""


def page(picture: Picture) -> str:
    """The whole page."""
    style, script = _part("viewer.css"), _part("viewer.js")
    return _filled(
        _part("viewer.html"),
        {
            "policy": f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}",
            "title": escape(picture.title),
            "style": style,
            "script": script,
            "verdict": escape(picture.finding.verdict),
            "kind": picture.finding.verdict.replace(" ", "-"),
            "words": escape(picture.finding.words),
            "facts": escape(picture.facts or _facts(picture)),
            "why": "\n".join(_why(picture)),
            "data": _json(_data(picture)),
        },
    )


def _part(name: str) -> str:
    return files("check.view").joinpath(name).read_text(encoding="utf-8")


def _filled(template: str, values: dict[str, str]) -> str:
    """The template with each place filled once: what is put in is not looked at again."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)


def _hash(text: str) -> str:
    """A source for a content security policy: an inline element with just this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(data: object) -> str:
    """JSON that can stand in an HTML element: without `<`, no value can end it or begin a comment."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _data(picture: Picture) -> dict[str, object]:
    history, finding = picture.history, picture.finding
    origin = min(history.call, default=0)
    return {
        "device": {"size": history.size, "block_size": history.block_size, "granule": history.granule},
        "requests": columns(history),
        "unit": picture.unit,
        "verdict": finding.verdict,
        "where": _range(finding.where),
        "conflict": list(finding.conflict),
        "around": around(history, finding),
        "chains": [_chain(history, chain, origin) for chain in _largest(finding.chains)],
        "partials": [
            _chain(history, Chain(partial.requests), origin)
            | {"refused": [[each.request, each.why] for each in partial.refused]}
            for partial in finding.partials
        ],
        "spans": [[span.name, span.start - origin, span.end - origin, list(span.requests)] for span in finding.spans],
        "edges": [[edge.before, edge.after, edge.why] for edge in finding.edges],
        "steps": {
            "request": [step.request for step in picture.steps],
            "at": [step.at - origin for step in picture.steps],
            "text": [step.text for step in picture.steps],
            "wrong": [at for at, step in enumerate(picture.steps) if step.is_wrong],
        },
    }


def _range(where: Range | None) -> list[int] | None:
    return None if where is None else [where.offset, where.length]


def _chain(history: History, chain: Chain, origin: int) -> dict[str, object]:
    return {
        "range": _range(chain.range),
        "order": list(chain.requests),
        "points": [
            point - history.call[each]
            for each, point in zip(chain.requests, points(history, chain.requests), strict=True)
        ],
    }


def _largest(chains: Sequence[Chain]) -> list[Chain]:
    """As many as fit, those of most requests first chosen; in their own order."""
    left = CHAINED_MAX
    kept = set()
    for at in sorted(range(len(chains)), key=lambda at: -len(chains[at].requests)):
        left -= len(chains[at].requests)
        if left < 0:
            break
        kept.add(at)
    return [chain for at, chain in enumerate(chains) if at in kept]


# What stands in the page without a script.


def _facts(picture: Picture) -> str:
    history = picture.history
    clients = len(set(history.client))
    return (
        f"{_counted(len(history), 'request')} of {_counted(clients, 'client')} on {format_size(history.size)} "
        f"in blocks of {format_size(history.block_size)}, level {picture.finding.level}"
    )


def _counted(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def _why(picture: Picture) -> Iterable[str]:
    """The certificate as text: the requests, what has to come before what, how far an order gets."""
    history, finding = picture.history, picture.finding
    if picture.notes:
        yield f"<pre>{escape(chr(10).join(picture.notes))}</pre>"
    if picture.steps:
        yield "<h3>Step by step</h3>"
        yield from _steps(picture)
    if finding.conflict:
        yield "<h3>The requests that no order explains</h3>"
        yield from _table(history, finding.conflict)
    if finding.reasons:
        yield "<h3>Why they have no order</h3>"
        yield f"<pre>{escape(chr(10).join(finding.reasons))}</pre>"
    elif finding.edges:
        yield "<h3>What has to come first</h3>"
        lines = [
            f"{_name(history, each.before)} before {_name(history, each.after)}: {each.why}" for each in finding.edges
        ]
        yield from _list(lines)
    if finding.partials:
        yield f"<h3>{'The longest order' if len(finding.partials) == 1 else 'The longest orders'}</h3>"
        yield from _list(_partial(history, each) for each in finding.partials)
    elif finding.conflict and not picture.steps:
        yield "<p>How far an order of these gets is not shown: there are too many to try.</p>"
    if finding.verdict != NOT_LINEARIZABLE and finding.chains:
        longest = max(finding.chains, key=lambda chain: len(chain.requests))
        yield "<h3>An order that explains all</h3>"
        if longest.range is not None:
            yield f"<p>Of bytes {longest.range.offset} to {longest.range.end - 1}; others have their own.</p>"
        yield from _table(history, longest.requests)
        if left_out := len(finding.chains) - len(_largest(finding.chains)):
            yield f"<p>The orders of {left_out:,} parts of the device, those of fewest requests, are left out.</p>"


HEADS = ("request", "what", "bytes", "value", "outcome")


def _table(history: History, requests: Sequence[int]) -> Iterable[str]:
    """A row for each request; a script makes them lead to the picture."""
    yield "<table><thead><tr>" + "".join(f'<th scope="col">{head}</th>' for head in HEADS) + "</tr></thead><tbody>"
    for index in requests[:LISTED_MAX]:
        each = history.operation(index)
        where = f"{format_size(each.offset)}+{format_size(each.length)}" if each.op in RANGED else ""
        yield (
            f'<tr data-request="{index}"><th scope="row">{escape(_name(history, index))}</th><td>{_what(each)}</td>'
            f'<td>{where}</td><td class="value">{escape(_value(each.value))}</td><td>{escape(_outcome(each))}</td></tr>'
        )
    yield "</tbody></table>"
    if len(requests) > LISTED_MAX:
        yield f"<p>and {len(requests) - LISTED_MAX:,} more.</p>"


def _what(operation: Operation) -> str:
    """Its kind, and what the checker calls it where that is not its value."""
    return operation.op if operation.op == "write" else f"{operation.op} {name_of(operation)}"


def _name(history: History, index: int) -> str:
    return f"{history.client[index]} #{history.id[index]}"


def _value(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if len(value) == 1:
        return value[0][0]
    shown = [f"{name} for {format_size(length)}" for name, length in value[:8]]
    return ", ".join(shown + ["..."] * (len(value) > 8))


def _outcome(operation: Operation) -> str:
    return "no answer" if operation.outcome == PENDING else operation.outcome


def _list(lines: Iterable[str]) -> Iterable[str]:
    yield "<ul>"
    yield from (f"<li>{escape(line)}</li>" for line in lines)
    yield "</ul>"


def _partial(history: History, partial: Partial) -> str:
    order = ", then ".join(_name(history, each) for each in partial.requests) or "nothing"
    refused = "; ".join(f"{_name(history, each.request)} cannot: {each.why}" for each in partial.refused)
    return f"{order}. Next, {refused}." if refused else f"{order}."


def _steps(picture: Picture) -> Iterable[str]:
    """A column for each client, as reviews write it."""
    history = picture.history
    clients = list(dict.fromkeys(history.client[step.request] for step in picture.steps))
    yield '<table class="steps"><thead><tr><th scope="col">step</th>'
    yield "".join(f'<th scope="col">{escape(client)}</th>' for client in clients) + "</tr></thead><tbody>"
    for at, step in enumerate(picture.steps):
        column = clients.index(history.client[step.request])
        cells = ["<td></td>"] * len(clients)
        cells[column] = f"<td>{escape(step.text)}</td>"
        kind = "wrong" if step.is_wrong else "ends" if step.is_end else "within"
        yield f'<tr data-step="{at}" class="{kind}"><th scope="row">{at + 1}</th>{"".join(cells)}</tr>'
    yield "</tbody></table>"
