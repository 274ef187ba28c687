"""What the clients do: a few requests each, written on one line, on a device small enough to see all of.

    write 0+512 | write 0+64K ; read 0+64K

A bar stands between clients, a semicolon between the requests of one. Offsets and lengths are those of a real device;
they are explored on one whose blocks have as few bytes as the program tells apart, at least two, so that a block moves
in parts. That changes nothing for code that compares offsets with each other and with block borders, for the map keeps
their order. What depends on a number of bytes is out of reach: how much is cached at a time, or is too long to be done
at once.

Shapes:  a Program's requests are the model's, in small bytes; `Scale` maps them back for people.
Units:   real bytes in the text, small bytes everywhere else.
Errors:  UsageError, one line, for a text that makes no sense.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from impl.errors import UsageError
from impl.sizes import format_size, parse_size
from model.block import State
from model.device import Cache, Flush, Read, Request, Status, Trim, Write, Zero

DEFAULT_BLOCK_SIZE = 64 << 10
UNITS_MIN = 2  # a block that moves in one piece would hide every torn transfer
VALUES_MAX = 250
BLOCK_SIZE_MIN = 512

_REQUEST = re.compile(r"(?P<verb>[a-z]+)(?:\s+(?P<offset>\w+)\+(?P<length>\w+))?(?P<flags>(?:\s+[a-z-]+)*)")
_FLAGS = {"zero": ("no-hole", "fast")}
_RANGED = ("read", "write", "zero", "trim", "cache", "status")
STATES = {"N": State.NOT_ALLOCATED, "A": State.ALLOCATED, "T": State.TRIMMED}


@dataclass(frozen=True)
class Ask:
    """A request as people write it."""

    verb: str
    offset: int = 0
    length: int = 0
    flags: tuple[str, ...] = ()

    @property
    def end(self) -> int:
        """Where the range ends."""
        return self.offset + self.length

    def __str__(self) -> str:
        where = f" {format_size(self.offset)}+{format_size(self.length)}" if self.verb in _RANGED else ""
        return " ".join([self.verb + where, *self.flags])


Asks = tuple[tuple[Ask, ...], ...]


def parse_program(text: str) -> Asks:
    """The clients' requests; UsageError says what is wrong with the text."""
    clients = tuple(tuple(_parse_request(part) for part in client.split(";")) for client in text.split("|"))
    if not 1 <= len(clients) <= 26:
        raise UsageError(f"{len(clients)} clients: expected 1 to 26")
    return clients


def format_program(asks: Asks) -> str:
    """The text that `parse_program` gives the same requests for."""
    return " | ".join(" ; ".join(map(str, client)) for client in asks)


def _parse_request(text: str) -> Ask:
    match = _REQUEST.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text.strip()!r} is not a request: expected, for example, write 0+512 or zero 0+64K no-hole")
    verb, flags = match["verb"], tuple(match["flags"].split())
    if verb == "flush" and match["offset"] is None and not flags:
        return Ask("flush")
    if verb not in _RANGED or match["offset"] is None:
        raise UsageError(
            f"{text.strip()!r} is not a request: expected flush, or one of {', '.join(_RANGED)} with a range"
        )
    if wrong := [flag for flag in flags if flag not in _FLAGS.get(verb, ())]:
        raise UsageError(f"{text.strip()!r}: {verb} has no flag {wrong[0]!r}")
    length = parse_size(match["length"], "length")
    if length == 0:
        raise UsageError(f"{text.strip()!r} is of no bytes: expected at least one")
    return Ask(verb, parse_size(match["offset"], "offset"), length, flags)


@dataclass(frozen=True)
class Scale:
    """Real bytes to small ones, block by block.

    cuts:  for each block, the real offsets that its small bytes begin at, ascending; and at the end where it ends.
    """

    block_size: int
    units: int
    size: int
    cuts: tuple[tuple[int, ...], ...]

    def small(self, offset: int) -> int:
        """The small offset of a real one that some request, or a block, begins or ends at."""
        if offset == self.size:
            return self.small_size
        block = offset // self.block_size
        return block * self.units + self.cuts[block].index(offset)

    def real(self, small: int) -> int:
        """The real offset of a small one."""
        if small == self.small_size:
            return self.size
        block, unit = divmod(small, self.units)
        return self.cuts[block][unit]

    @property
    def small_size(self) -> int:
        """Of the device."""
        return (len(self.cuts) - 1) * self.units + len(self.cuts[-1]) - 1


def scale_for(asks: Asks, block_size: int, size: int | None = None) -> Scale:
    """The smallest device on which the program says the same; by default of as many whole blocks as it touches."""
    asked = [ask for client in asks for ask in client if ask.verb in _RANGED]
    furthest = max((ask.end for ask in asked), default=1)
    if block_size < BLOCK_SIZE_MIN:
        raise UsageError(f"block size {block_size} is too small to have parts: expected at least {BLOCK_SIZE_MIN}")
    size = -(-furthest // block_size) * block_size if size is None else size
    if furthest > size:
        raise UsageError(f"the program goes up to byte {furthest}, beyond the device's {size}")
    points = sorted({0, size, *(point for ask in asked for point in (ask.offset, ask.end))})
    blocks = range(-(-size // block_size))
    inside = [[p for p in points if b * block_size < p < min((b + 1) * block_size, size)] for b in blocks]
    short = size % block_size != 0
    units = max(UNITS_MIN, *(len(found) + 1 + (short and b == blocks[-1]) for b, found in enumerate(inside)))
    cuts = []
    for block, found in enumerate(inside):
        start, end = block * block_size, min((block + 1) * block_size, size)
        wanted = units if end - start == block_size else len(found) + 1
        cuts.append((*_filled([start, *found], end, wanted), end))
    return Scale(block_size, units, size, tuple(cuts))


def _filled(points: list[int], end: int, count_: int) -> list[int]:
    """The points, and others halfway in the widest gaps, until there are enough."""
    points = list(points)
    while len(points) < count_:
        gaps = [(right - left, -at) for at, (left, right) in enumerate(pairwise([*points, end]))]
        width, at = max(gaps)
        assert width > 1, f"a block of {end - points[0]} bytes has no {count_} parts"
        points.insert(-at + 1, points[-at] + width // 2)
    return points


@dataclass(frozen=True)
class Disk:
    """A small device before anybody has asked anything of it: its blocks are in the states `initial`."""

    scale: Scale
    initial: tuple[State, ...]

    @property
    def size(self) -> int:
        """Small bytes."""
        return self.scale.small_size

    @property
    def block_size(self) -> int:
        """Small bytes."""
        return self.scale.units

    @property
    def base(self) -> bytes:
        """A value of its own for every byte."""
        return bytes(range(1, self.size + 1))

    @property
    def stored(self) -> bytes:
        """What the overlay holds where it is ALLOCATED, a value of its own for every byte; zeroes elsewhere."""
        return bytes(
            self.size + 1 + at if self.initial[at // self.block_size] == State.ALLOCATED else 0
            for at in range(self.size)
        )


@dataclass(frozen=True)
class Program:
    """Clients' requests on a disk."""

    asks: Asks
    disk: Disk
    requests: tuple[tuple[Request, ...], ...]


def make_disk(scale: Scale, initial: str = "") -> Disk:
    """A disk whose blocks are in the states that the letters N, A and T stand for; what they do not say is N."""
    if wrong := set(initial) - set(STATES):
        raise UsageError(f"initial state {min(wrong)!r} is unknown: expected N, A or T for each block")
    if len(initial) > len(scale.cuts):
        raise UsageError(f"initial states {initial!r} are for {len(initial)} blocks, the device has {len(scale.cuts)}")
    return Disk(scale, tuple(STATES[letter] for letter in initial.ljust(len(scale.cuts), "N")))


def make_program(
    asks: Asks, initial: str = "", block_size: int = DEFAULT_BLOCK_SIZE, size: int | None = None
) -> Program:
    """A program on the smallest disk for it."""
    return on_disk(asks, make_disk(scale_for(asks, block_size, size), initial))


def on_disk(asks: Asks, disk: Disk) -> Program:
    """A program whose writes have a value of their own in every byte: after who writes, which of its own, and where.

    So programs of one shape on one disk have requests in common, and what is learned of one serves the others.
    """
    most = max(map(len, asks))
    if (2 + len(asks) * most) * disk.size > VALUES_MAX:
        raise UsageError(f"the program has more than {VALUES_MAX} bytes that have to be told apart: make it smaller")
    requests = tuple(
        tuple(_request(ask, disk.scale, (2 + client * most + index) * disk.size + 1) for index, ask in enumerate(mine))
        for client, mine in enumerate(asks)
    )
    return Program(asks, disk, requests)


def _request(ask: Ask, scale: Scale, first_value: int) -> Request:
    if ask.verb == "flush":
        return Flush()
    offset = scale.small(ask.offset)
    length = scale.small(ask.end) - offset
    if ask.verb == "write":
        return Write(offset, bytes(range(first_value + offset, first_value + offset + length)))
    if ask.verb == "zero":
        return Zero(offset, length, "no-hole" in ask.flags, "fast" in ask.flags)
    others: dict[str, Callable[[int, int], Request]] = {"read": Read, "trim": Trim, "cache": Cache, "status": Status}
    return others[ask.verb](offset, length)
