"""Whether what was read afterwards is what some order of two requests leaves there. Logic only; nothing is sent.

Source:  model/device.py, `apply`: the device on which a request takes effect at one instant.
Shapes:  contents are all the bytes of one block.
Units:   offsets and lengths in bytes.

LOST is said byte by byte, so that nobody is accused of losing what is merely mixed: some byte has a value that no
order leaves at that place. TORN: every byte is right in some order, but no one order makes all of them right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from check.live.programs import MASKS, Request, Source
from model.device import Device, Failed, apply, contents

# Fewer bytes than any request has: what is nobody's may look like somebody's for as long as that.
TELLING_BYTES = 8
SHOWN_MAX_COUNT = 16

SOURCE_OF = {mask: source for source, mask in MASKS.items()}


class Verdict(Enum):
    """What one try, or all tries against one server, have shown."""

    HOLDS = "holds"
    TORN = "torn"
    LOST = "lost"
    UNKNOWN = "unknown"  # nothing: the requests never met


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive bytes of one source."""

    offset: int
    length: int
    source: Source


def contents_after(device: Device, requests: Sequence[Request]) -> bytes:
    """What the device holds when the requests have been done one after the other."""
    for request in requests:
        device, reply = apply(device, request)
        assert not isinstance(reply, Failed), f"{request} is refused by the model: {reply}"
    return contents(device)


def allowed_contents(device: Device, a: Request, b: Request, *, have_met: bool) -> list[bytes]:
    """What may be there once both are answered. A was sent first: if it was answered before B was sent, they have
    not met, and there is but one order.
    """
    orders = [(a, b), (b, a)] if have_met else [(a, b)]
    found = [contents_after(device, order) for order in orders]
    return list(dict.fromkeys(found))


def judge(found: bytes, allowed: Sequence[bytes]) -> Verdict:
    """HOLDS, TORN or LOST."""
    assert allowed, "some order has to be possible"
    assert all(len(found) == len(each) for each in allowed), f"{len(found)} bytes were read"
    if found in allowed:
        return Verdict.HOLDS
    return Verdict.LOST if lost_byte_count(found, allowed) else Verdict.TORN


def lost_byte_count(found: bytes, allowed: Sequence[bytes]) -> int:
    """How many bytes have a value that no order leaves at their place."""
    return sum(value not in possible for value, *possible in zip(found, *allowed, strict=True))


def runs_of(found: bytes, base: bytes) -> list[Run]:
    """Whose bytes they are, as few runs as possible: a byte that may be of several goes with those before it."""
    assert len(found) == len(base), (len(found), len(base))
    runs: list[Run] = []
    start, possible = 0, ANYBODY
    for at, (value, beneath) in enumerate(zip(found, base, strict=True)):
        sources = sources_of(value, beneath)
        if not possible & sources:
            runs.append(Run(start, at - start, first_of(possible)))
            start, possible = at, ANYBODY
        possible &= sources
    return [*runs, Run(start, len(found) - start, first_of(possible))]


ANYBODY = frozenset(Source)


def sources_of(value: int, beneath: int) -> frozenset[Source]:
    """Whose a byte may be that lies over a byte of the base."""
    masked = {SOURCE_OF[value ^ beneath]} if value ^ beneath in SOURCE_OF else set()
    return frozenset(masked | ({Source.ZEROES} if value == 0 else set())) or frozenset({Source.NOBODY})


def first_of(sources: frozenset[Source]) -> Source:
    """The one to be named, where a run is too short to tell."""
    return next(source for source in Source if source in sources)


def without_chance(runs: Sequence[Run]) -> list[Run]:
    """The same, but that a few bytes among nobody's are nobody's, too: one of 64 is somebody's by chance."""
    told: list[Run] = []
    for run in runs:
        last = told[-1] if told else None
        if last is None or last.source is not Source.NOBODY:
            told.append(run)
        elif run.source is Source.NOBODY or run.length < TELLING_BYTES:
            told[-1] = Run(last.offset, last.length + run.length, Source.NOBODY)
        else:
            told.append(run)
    return told


def in_words(runs: Sequence[Run]) -> str:
    """For people: `B's everywhere`, or a list of ranges."""
    told = without_chance(runs)
    if len(told) == 1:
        return f"{told[0].source.value} everywhere"
    shown = [f"{run.source.value} in [{run.offset}, {run.offset + run.length})" for run in told[:SHOWN_MAX_COUNT]]
    left = len(told) - len(shown)
    return ", ".join([*shown, f"and {left} pieces more"] if left else shown)
