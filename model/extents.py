"""Runs of bytes with the same status, as a client of block status sees them.

Source:  NBD protocol, "base:allocation metadata context": hole and zero are independent flags.
Shapes:  a tuple of Extent, each longer than 0, that covers a range exactly and in order.
Units:   lengths and offsets in bytes.
Errors:  none: `clip` is asked only for ranges that the extents cover.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Extent(NamedTuple):
    """`length` bytes that are all alike: without storage of their own (`hole`), known to be zeroes (`zero`)."""

    length: int
    hole: bool
    zero: bool


def data(length: int) -> Extent:
    """Stored bytes of which nothing more is known."""
    return Extent(length, hole=False, zero=False)


def coalesce(extents: Iterable[Extent]) -> tuple[Extent, ...]:
    """The same runs, equal neighbours joined."""
    joined: list[Extent] = []
    for extent in extents:
        if joined and joined[-1][1:] == extent[1:]:
            joined[-1] = Extent(joined[-1].length + extent.length, extent.hole, extent.zero)
        else:
            joined.append(extent)
    return tuple(joined)


def clip(extents: Iterable[Extent], start: int, end: int) -> tuple[Extent, ...]:
    """What `extents`, laid out from offset 0, say of the bytes from `start` to `end`."""
    inside: list[Extent] = []
    position = 0
    for extent in extents:
        length = min(end, position + extent.length) - max(start, position)
        if length > 0:
            inside.append(extent._replace(length=length))
        position += extent.length
        if position >= end:
            break
    return tuple(inside)
