"""The checker's decision as the viewer's finding: its certificate, and what of it can be drawn.

Source:  model/linearizability.py, whose certificates have been replayed before it tells them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import get_args

from check.view.circle import circle, clusters_at, value_at
from check.view.finding import Chain, Edge, Finding, Range, Span, Verdict, last_time
from check.view.partial import longest
from model.certificate import Conflict, Order
from model.history import History, Level
from model.linearizability import Decision


def finding_of(history: History, decision: Decision) -> Finding:
    """A decision with what can be drawn of it."""
    verdict = next(each for each in get_args(Verdict) if each == decision.verdict.value)
    finding = Finding(verdict, decision.level, sentence(decision.why), reasons=decision.reasons)
    if isinstance(decision.certificate, Order):
        chains = _chains(decision.certificate)
        return replace(finding, chains=chains, words=_in_order(decision.level, len(chains), decision.certificate))
    if isinstance(decision.certificate, Conflict):
        edges = tuple(Edge(*edge) for edge in decision.circle)
        return _with_conflict(history, replace(finding, edges=edges), decision.certificate)
    return replace(finding, words=f"No answer was found: {finding.words}")


def sentence(text: str) -> str:
    """With a full stop."""
    return text if text.endswith(".") else f"{text}."


# What takes effect at an instant.
UNITS: dict[Level, str] = {
    "request": "Each request as a whole",
    "block": "What each request does to a block",
    "sector": "What each request does to a sector",
}


def _in_order(level: Level, parts: int, order: Order) -> str:
    orders = ("there is nothing to put in order", "here is an order")[min(parts, 1)]
    if parts > 1:
        orders = f"here are orders, one for each of {parts:,} parts of the device"
    words = f"{UNITS[level]} takes effect at an instant between its invocation and its answer: {orders}."
    unchecked = len({request for _, request in order.unchecked})
    if unchecked:
        words += f" Of {unchecked:,} reads, what a trim that promises nothing may have left was not looked at."
    return words


def _chains(order: Order) -> tuple[Chain, ...]:
    """The orders; if there is but one, it is of all that was touched."""
    edges = order.edges
    chains = [
        Chain(tuple(each.operations), Range(edges[each.first], edges[each.end] - edges[each.first]))
        for each in order.sequences
        if each.operations
    ]
    return (replace(chains[0], range=None),) if len(chains) == 1 else tuple(chains)


def _with_conflict(history: History, finding: Finding, conflict: Conflict) -> Finding:
    where = Range(conflict.start, conflict.end - conflict.start)
    found = replace(finding, where=where, conflict=conflict.operations)
    spans = _spans(history, conflict.operations, where)
    edges = () if spans else finding.edges or circle(history, conflict.operations, where)
    return replace(found, spans=spans, edges=edges, partials=longest(history, found))


def _spans(history: History, requests: Sequence[int], where: Range) -> tuple[Span, ...]:
    """Two values that each have to be there before the other goes. Only where all say one thing of all bytes."""
    if any(value_at(history, each, where.offset) != value_at(history, each, where.end - 1) for each in requests):
        return ()
    first, last = min(history.call), last_time(history)
    spans = [
        Span(
            each.name,
            max(first, min(each.first_response(history), last)),
            each.last_call(history),
            (*([] if each.write is None else [each.write]), *each.reads),
        )
        for each in clusters_at(history, requests, where.offset)
    ]
    for one, other in combinations(spans, 2):
        if one.start < other.end and other.start < one.end:
            return one, other
    return ()
