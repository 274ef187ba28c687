"""What a checker found, as the viewer needs it: words, indices of requests, places and times.

Source:  Gibbons and Korach, "Testing shared memories", SIAM J. Comput. 26(4), 1997, for the spans of values.
Shapes:  a request is its index in the history. `Chain.requests` are in the order in which they take effect; its points
         are as many, do not decrease, and each lies within its request.
Units:   times as in the history; offsets and lengths in bytes.
Errors:  ValueError where an order is asked for that real time does not allow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Final, Literal

from model.history import NEVER, History

Verdict = Literal["linearizable", "not linearizable", "unknown", "not checked"]
LINEARIZABLE: Final = "linearizable"
NOT_LINEARIZABLE: Final = "not linearizable"
UNKNOWN: Final = "unknown"
NOT_CHECKED: Final = "not checked"


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes of the device."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class Chain:
    """Requests in the order in which they take effect on a range; None is the whole device."""

    requests: tuple[int, ...]
    range: Range | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """From the first response to the last invocation of a value's requests: there, the device must hold it."""

    name: str
    start: int
    end: int
    requests: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Edge:
    """One request has to take effect before another, and why."""

    before: int
    after: int
    why: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that cannot come next, and why."""

    request: int
    why: str


@dataclass(frozen=True, slots=True)
class Partial:
    """An order that gets as far as any, and what stops it there."""

    requests: tuple[int, ...]
    refused: tuple[Refusal, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """The verdict.

    words:     one sentence for people: why
    where:     the bytes that it is about, if not all
    chains:    for what is linearizable, an order for each part of the device that has one of its own
    conflict:  else, the requests that no order explains
    spans:     the values that would have to be there at one time
    edges:     what has to come before what, in a circle
    reasons:   sentences that say why no order explains them, where there are any
    partials:  the orders of the conflicting requests that get furthest
    """

    verdict: Verdict
    level: str
    words: str
    where: Range | None = None
    chains: tuple[Chain, ...] = ()
    conflict: tuple[int, ...] = ()
    spans: tuple[Span, ...] = ()
    edges: tuple[Edge, ...] = ()
    partials: tuple[Partial, ...] = ()
    reasons: tuple[str, ...] = ()


def points(history: History, requests: Sequence[int]) -> list[int]:
    """An instant for each request, in this order: as far from its ends, and from its neighbours, as there is room.

    A point can be no earlier than any invocation before it in the order, and no later than any response after it.
    """
    last = last_time(history)
    calls = [history.call[each] for each in requests]
    rets = [min(history.ret[each], last) for each in requests]
    earliest = list(accumulate(calls, max))
    latest = list(accumulate(reversed(rets), min))[::-1]
    for each, first, end in zip(requests, earliest, latest, strict=True):
        if first > end:
            raise ValueError(f"request {each} cannot take effect here: it would be at {first} at least, {end} at most")
    found: list[int] = []
    for (first, end), same in groupby(zip(earliest, latest, strict=True)):
        count = len(list(same))
        for number in range(1, count + 1):
            even = first + (end - first) * number // (count + 1)
            found.append(max(even, found[-1]) if found else even)
    return found


def last_time(history: History) -> int:
    """When the last thing happened that the history knows of; what never returned goes on to there."""
    return max((*history.call, *(ret for ret in history.ret if ret != NEVER)), default=0)


def around(history: History, finding: Finding, margin: int = 2) -> list[int]:
    """What is cropped to: the conflict, and a few requests to the same blocks before and behind each of its own.

    To the same blocks, because what harmed some bytes of a block is often a request to others of it.
    """
    if not finding.conflict:
        return []
    places = [finding.where] if finding.where is not None else [_range(history, each) for each in finding.conflict]
    blocks = [_whole_blocks(each, history.block_size) for each in places]
    touching = [index for index in range(len(history)) if any(_meet(_range(history, index), each) for each in blocks)]
    touching.sort(key=lambda index: (history.call[index], index))
    place = {index: at for at, index in enumerate(touching)}
    chosen = set(finding.conflict)
    for index in finding.conflict:
        if index in place:
            at = place[index]
            chosen.update(touching[max(0, at - margin) : at + margin + 1])
    return sorted(chosen)


def _range(history: History, index: int) -> Range:
    return Range(history.offset[index], history.length[index])


def _whole_blocks(each: Range, block_size: int) -> Range:
    start = each.offset // block_size * block_size
    return Range(start, -(-each.end // block_size) * block_size - start)


def _meet(one: Range, other: Range) -> bool:
    return one.offset < other.end and other.offset < one.end
