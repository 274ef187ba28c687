"""The checker's decision as the viewer's finding."""

from __future__ import annotations

from check.view.finding import NOT_CHECKED, Finding
from model.history import History, Level


def judged(history: History, level: Level, no_check: bool = False) -> Finding:
    """What the checker says of a history."""
    return Finding(NOT_CHECKED, level, "No checker has looked at this history.")
