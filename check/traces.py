"""Writes a behaviour of a twin as a review would: a column for each client, a line for each step.

Shapes:  a trace as `check/twins.py` has it: (name of the action, state) from an initial state on.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from specs.disk import Constants, Request

WIDTH = 26

# Variables that are functions of a client; every action changes one of them, at its client.
OF_CLIENTS = ("pc", "status", "req", "seen", "fetched", "moved", "buffer", "byte", "todo", "reply")


def columns(k: Constants, trace: Sequence[tuple[str, Any]]) -> list[str]:
    """The lines, without what the states are."""
    lines = ["".join(f"client {name}".ljust(WIDTH) for name in k.client).rstrip()]
    for (_, before), (action, after) in pairwise(trace):
        client = _who(before, after)
        text = _asked(after.req[client]) if action == "Invoke" else f"  {action}"
        lines.append(" " * (WIDTH * client) + text)
    return lines


def _who(before: object, after: object) -> int:
    """The client whose step it is."""
    for name in OF_CLIENTS:
        old, new = getattr(before, name, ()), getattr(after, name, ())
        for client, (was, now) in enumerate(zip(old, new, strict=True)):
            if was != now:
                return client
    raise AssertionError(f"nobody did anything: {before}")


def _asked(request: Request) -> str:
    """A request in a word and its sectors."""
    return request.kind if not request.at else f"{request.kind} {min(request.at)}..{max(request.at)}"
