"""Runs of bytes with equal allocation, as block status reports them.

Source:  NBD protocol, "base:allocation metadata context": hole and zero are independent flags.
Shapes:  an iterable of Extent, each longer than 0, covering the range asked for exactly and in order.
Units:   lengths in bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Extent(NamedTuple):
    """`length` bytes that are all alike: not allocated (`hole`), known to read as zeroes (`zero`)."""

    length: int
    hole: bool
    zero: bool


def coalesce(extents: Iterable[Extent]) -> Iterator[Extent]:
    """The same runs with equal neighbours joined, as the protocol says a server SHOULD."""
    pending: Extent | None = None
    for extent in extents:
        if pending is None:
            pending = extent
        elif (pending.hole, pending.zero) == (extent.hole, extent.zero):
            pending = pending._replace(length=pending.length + extent.length)
        else:
            yield pending
            pending = extent
    if pending is not None:
        yield pending
