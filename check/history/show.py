"""What a verdict says to people, and to programs: the few requests that have no order, side by side.

Units:   milliseconds since the first of the requests that are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from check.history.format import answer, invocation
from model.certificate import Conflict
from model.history import OK, PENDING, History, Operation, Runs
from model.linearizability import Decision, name_of
from model.wgl import Verdict

NS_PER_MS = 1e6
TIME_WIDTH = 12
COLUMN_MIN_WIDTH = 34


def verdict_lines(history: History, decision: Decision) -> list[str]:
    """All that is told of a verdict."""
    told = f"{decision.verdict.value} at level {decision.level}: {decision.why}"
    if decision.verdict is not Verdict.NOT_LINEARIZABLE:
        return [told]
    assert isinstance(decision.certificate, Conflict)
    return [told, "", *conflict_lines(history, decision.certificate), *reason_lines(decision)]


def reason_lines(decision: Decision) -> list[str]:
    """Why they have no order, sentence by sentence; nothing where the first line has said it."""
    return ["", "Why:", *(f"  {line}" for line in decision.reasons)] if decision.reasons else []


def conflict_lines(history: History, conflict: Conflict) -> list[str]:
    """The requests of a conflict, a column for each client, time downwards."""
    operations = [history.operation(index) for index in conflict.operations]
    clients = list(dict.fromkeys(operation.client for operation in operations))
    events = sorted(
        [
            *((operation.call, 0, number) for number, operation in enumerate(operations)),
            *(
                (operation.ret, 1, number)
                for number, operation in enumerate(operations)
                if operation.outcome != PENDING
            ),
        ]
    )
    begun = events[0][0]
    rows = [("ms", [f"connection {client}" for client in clients])]
    for t, is_answer, number in events:
        operation = operations[number]
        texts = _answered(operation, conflict) if is_answer else [_invoked(operation)]
        for line, text in enumerate(texts):
            cells = [text if client == operation.client else "" for client in clients]
            rows.append(("" if line else f"{(t - begun) / NS_PER_MS:.3f}", cells))
    never = [operation for operation in operations if operation.outcome == PENDING]
    lines = [
        f"{_these(operations)}, as to bytes [{conflict.start}, {conflict.end}):",
        "",
        *_columns(rows),
        *(f"{name_of(operation)} was never answered" for operation in never),
    ]
    return [line.rstrip() for line in lines]


def _these(operations: Sequence[Operation]) -> str:
    if len(operations) == 1:
        return "This request has no place in any order"
    return f"These {len(operations)} requests have no order"


def _columns(rows: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    widths = [max(COLUMN_MIN_WIDTH, *map(len, column)) for column in zip(*(cells for _, cells in rows), strict=True)]
    return [
        f"{time:>{TIME_WIDTH}}  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))
        for time, cells in rows
    ]


def _invoked(operation: Operation) -> str:
    flags = "".join(f" {flag}" for flag in operation.flags)
    return f"{operation.op.upper()} {operation.offset}+{operation.length}{flags} ({name_of(operation)})"


def _answered(operation: Operation, conflict: Conflict) -> list[str]:
    """Lines, one for each of those who wrote what was read: with all in one, columns would leave the screen."""
    name = name_of(operation)
    if operation.outcome != OK:
        return [f"{name} failed: {operation.outcome}"]
    if operation.op != "read" or not isinstance(operation.value, tuple):
        return [f"{name} answered"]
    returned = f"{name} returned "
    seen = _within(operation.offset, operation.value, conflict.start, conflict.end)
    lines = [returned + seen[0], *(" " * len(returned) + each for each in seen[1:])]
    return [f"{line}," for line in lines[:-1]] + lines[-1:]


def _within(offset: int, runs: Runs, start: int, end: int) -> list[str]:
    """Who wrote what was read of [start, end); if several did, where."""
    seen = []
    for who, length in runs:
        first, last = max(offset, start), min(offset + length, end)
        if first < last:
            seen.append((who, first, last))
        offset += length
    if len(seen) == 1:
        return [seen[0][0]]
    return [f"{who} in [{first}, {last})" for who, first, last in seen]


def as_json(history: History, decision: Decision) -> dict[str, Any]:
    """The same for programs. `operations` are events as in a file, each invocation before its answer."""
    told: dict[str, Any] = {
        "verdict": decision.verdict.value,
        "level": decision.level,
        "why": decision.why,
        "requests": len(history),
        "counts": decision.counts,
    }
    if isinstance(decision.certificate, Conflict):
        conflict = decision.certificate
        told["start"], told["end"] = conflict.start, conflict.end
        told["reasons"] = list(decision.reasons)
        told["operations"] = [_events(history.operation(index)) for index in conflict.operations]
    return told


def _events(operation: Operation) -> list[dict[str, object]]:
    events = [invocation(operation)]
    return events if operation.outcome == PENDING else [*events, answer(operation)]
