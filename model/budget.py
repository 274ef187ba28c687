"""What a search may spend, and whether it has: steps, seconds and remembered configurations.

A search that may be exponential asks its meter within its innermost loop, so that a limit holds to the step and not
only between parts. When a limit is reached, the answer is "unknown", never one of the other two.

Errors:  Spent, for those who do not want to ask at every turn.
Units:   seconds of wall time; steps and entries as counts.
Omits:   the space that one remembered configuration takes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

# The clock is read once in so many steps: reading it costs more than a step.
STEPS_PER_LOOK = 64
# Steps may be long. What is looked at in them is counted too, and the clock is read once in so many.
WORK_PER_LOOK = 50_000


class Spent(Exception):
    """A budget has run out, in the middle of something."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of one decision."""

    steps: int = 5_000_000
    seconds: float = 60.0
    entries: int = 2_000_000


@dataclass(slots=True)
class Meter:
    """What has been spent of a budget. `spent` says which limit was reached, or is empty."""

    budget: Budget
    steps: int = 0
    entries: int = 0
    spent: str = ""
    deadline: float = field(init=False)
    unlooked: int = 0

    def __post_init__(self) -> None:
        self.deadline = time.monotonic() + self.budget.seconds

    def step(self) -> bool:
        """Count one step; whether there may be another."""
        self.steps += 1
        if self.steps > self.budget.steps:
            self.spent = f"{self.budget.steps} steps"
        elif self.steps % STEPS_PER_LOOK == 1:
            self.in_time()
        return not self.spent

    def work(self, count: int) -> None:
        """Count what has been looked at within a step; Spent if that took the time there was."""
        self.unlooked += count
        if self.unlooked > WORK_PER_LOOK:
            self.unlooked = 0
            if not self.in_time():
                raise Spent

    def in_time(self) -> bool:
        """Look at the clock; whether there is anything left."""
        if time.monotonic() > self.deadline:
            self.spent = f"{self.budget.seconds:g} seconds"
        return not self.spent

    def remember(self) -> bool:
        """Count one remembered configuration; whether there may be another."""
        self.entries += 1
        if self.entries > self.budget.entries:
            self.spent = f"{self.budget.entries} remembered configurations"
        return not self.spent
