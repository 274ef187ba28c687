"""What clients ask for, so that races show: the same few blocks at the same time, overlapping in every way.

The clients' attention moves over the device, the same for all at any time, and stays on a few blocks for a moment only:
many a race is over once a block has been copied, or written, for the first time.

Shapes:  a `Mix` says how often each kind of request is made; a `Wish` is a request before it has content.
Units:   offsets and lengths in bytes, whole granules, and whole multiples of what the server asks for.
Errors:  UsageError for a mix that makes no sense.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from impl.client import Client
from impl.errors import UsageError
from impl.history_tags import GRANULE
from impl.sizes import quoted
from model.history import OPS

Mix = Mapping[str, int]
MIX: Final[Mix] = {"read": 70, "write": 19, "zero": 3, "trim": 3, "cache": 3, "flush": 1, "status": 1}

ATTENTION_BLOCKS: Final = 4
CHANGING: Final = ("write", "zero", "trim")
# Out of a hundred requests that may have the flag.
FUA_PERCENT: Final = 10
NO_HOLE_PERCENT: Final = 30
FAST_PERCENT: Final = 10


class Wish(NamedTuple):
    """A request to be made."""

    op: str
    offset: int = 0
    length: int = 0
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Offer:
    """What a server lets its clients ask for.

    unit:        offsets and lengths are multiples of it
    length_max:  of one request
    """

    ops: frozenset[str]
    flags: frozenset[str]
    unit: int
    length_max: int


def offer_of(client: Client) -> Offer:
    """What this connection may ask for."""
    may_write = not client.read_only
    ops = {
        "read": True,
        "write": may_write,
        "zero": may_write and client.can_zero,
        "trim": may_write and client.can_trim,
        "cache": client.can_cache,
        "flush": client.can_flush,
        "status": client.can_block_status,
    }
    flags = {"fua": client.can_fua, "no_hole": client.can_zero, "fast": client.can_fast_zero}
    return Offer(
        frozenset(op for op, offered in ops.items() if offered),
        frozenset(flag for flag, offered in flags.items() if offered),
        max(GRANULE, client.block_min),
        client.payload_max,
    )


def parse_mix(text: str) -> Mix:
    """`read=70,write=30` as a mix; UsageError says what is wrong."""
    mix: dict[str, int] = {}
    for part in text.split(","):
        op, _, weight = part.partition("=")
        if op not in OPS or not weight.isascii() or not weight.isdecimal() or len(weight) > 6 or op in mix:
            raise UsageError(
                f"mix {quoted(text)}: expected each of {', '.join(OPS)} at most once, such as read=70,write=30"
            )
        mix[op] = int(weight)
    if not mix.get("read") or not any(mix.get(op) for op in CHANGING):
        raise UsageError(f"mix {quoted(text)}: expected reads, and something for them to see: {', '.join(CHANGING)}")
    return mix


class Workload:
    """One connection's wishes."""

    def __init__(self, rng: random.Random, offer: Offer, mix: Mix, size: int, block_size: int) -> None:
        assert size % offer.unit == 0, f"{size} bytes are not whole units of {offer.unit}"
        self._random = rng
        self._flags = offer.flags
        self._unit = offer.unit
        self._length_max = min(offer.length_max, size)
        self._size = size
        self._block = max(block_size, offer.unit)
        possible = {op: weight for op, weight in mix.items() if weight and op in offer.ops}
        self._ops = list(possible)
        self._weights = list(possible.values())

    def wish(self, moment: int) -> Wish:
        """The next one; `moment` counts where all clients' attention is."""
        (op,) = self._random.choices(self._ops, self._weights)
        if op == "flush":
            return Wish(op)
        offset, length = self._range(moment)
        return Wish(op, offset, length, self._chosen_flags(op))

    def _range(self, moment: int) -> tuple[int, int]:
        """A few granules; a whole block; several blocks, from the middle of one on; or a piece of any size."""
        rng, unit, block = self._random, self._unit, self._block
        place_count = -(-self._size // (ATTENTION_BLOCKS * block))
        first = moment % place_count * ATTENTION_BLOCKS
        blocks = min(ATTENTION_BLOCKS, -(-self._size // block) - first)
        # The first blocks more often than the others.
        start = (first + min(rng.randrange(blocks), rng.randrange(blocks))) * block
        # No request reaches from one place to the next: what is asked for at a place is all there is to look at there.
        end = min((first + ATTENTION_BLOCKS) * block, self._size)
        kind = rng.randrange(20)
        if kind < 8:
            offset, length = start + rng.randrange(block // unit) * unit, rng.randint(1, 8) * unit
        elif kind < 12:
            offset, length = start, block
        elif kind < 17:
            offset = start + rng.randrange(block // unit) * unit
            length = rng.randint(1, 2 * block // unit) * unit
        else:
            offset, length = start, rng.randint(1, block // unit) * unit
        offset = min(offset, end - unit)
        return offset, min(length, self._length_max // unit * unit, end - offset)

    def _chosen_flags(self, op: str) -> tuple[str, ...]:
        flags = []
        for flag, ops, percent in (
            ("fua", CHANGING, FUA_PERCENT),
            ("no_hole", ("zero",), NO_HOLE_PERCENT),
            ("fast", ("zero",), FAST_PERCENT),
        ):
            if op in ops and flag in self._flags and self._random.randrange(100) < percent:
                flags.append(flag)
        return tuple(flags)
