"""stub"""

from __future__ import annotations

from model.budget import Meter
from model.cells import Cut
from model.zones import Refutation


def decide_group(found: Cut, first: int, end: int, base_is_zero: bool, meter: Meter) -> list[int] | Refutation | None:
    """Stub."""
    meter.spent = "nothing"
    return None
