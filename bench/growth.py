"""How cost grows: rows that differ in one number, and by how much the cost of a request may grow with it.

They are rows as those of `bench.rows`, and measured in the same way; `bench.trend` holds what they cost against what is
expected here. Expected is what the server's design says: a request touches the state of its own blocks and nothing
else, and what is in flight together shares the system calls.

Units:   bytes, per cent and counts, as a series says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from bench import clients
from bench.clients import Load, Outcome
from bench.results import KIB, MIB, Series
from bench.rows import FILLED_PERCENT, GROWING_BYTES, PLACES, TIB, Row, Task, Work
from impl.sizes import format_size

COUNTS = tuple(1 << power for power in range(9))  # 1 to 256
IN_FLIGHT = 256
DEPTH = 32
FILLED = (0, *FILLED_PERCENT)
BLOCK_BYTES = (4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 2 * MIB)
PARTS_MAX = 16384
# Those whose growth is shown, unless others are asked for.
SERVERS = ("cowproof", "nbdkit", "qemu-nbd")


@dataclass(frozen=True, slots=True)
class Growth:
    """A series, and its rows."""

    series: Series
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """One row before it has a name: the number and its name, what is done, and how the row differs from others."""

    at: float
    label: str
    work: Work
    meaning: str
    more: dict[str, object]


def growth(
    name: str, meaning: str, axis: str, bound: float, expected: str, points: Sequence[Point], unit: str = ""
) -> Growth:
    """Rows are named after their series. The least, one in the middle and the most are quick; so is 0, beside them."""
    above = [at for at, point in enumerate(points) if point.at > 0]
    quick = {0, above[0], above[len(above) // 2], above[-1]}
    rows = tuple(
        Row(f"{name}-{point.label}", point.meaning, "rate", point.work, quick=at in quick, **point.more)  # type: ignore[arg-type]
        for at, point in enumerate(points)
    )
    at = {row.name: float(point.at) for row, point in zip(rows, points, strict=True)}
    return Growth(Series(name, meaning, axis, unit, expected, bound, at), rows)


def _fio(load: Load) -> Work:
    return lambda task: clients.random_requests(task.uri, load, task.seconds, task.size_bytes)


# Connections and what is in flight.


def _load_point(at: int, depth: int, connections: int) -> Point:
    meaning = f"random 4k read, depth {depth}, connections: {connections}"
    load = Load("randread", 4 * KIB, depth, connections)
    # Shaking hands, and a thread for each connection, would else be the larger part of a short round.
    aside = _fio(replace(load, requests=connections))
    return Point(at, str(at), _fio(load), meaning, {"connections": connections, "aside": aside})


def _connections() -> Iterator[Growth]:
    yield growth(
        "connections",
        "random 4k read of the base, one request in flight on each connection",
        "connections",
        0.0,
        "The cost stays or falls: for a request of one connection, nothing is done with the others. Where connections "
        "share a thread, one system call finds all that are ready, and the more are ready, the more share it; where "
        "each has its own, to wake it takes as long however many there are.",
        [_load_point(count, 1, count) for count in COUNTS],
    )
    yield growth(
        "shared",
        f"random 4k read of the base, {IN_FLIGHT} requests in flight, shared by the connections",
        "connections",
        1.0,
        "The cost grows, but less than in proportion. What is in flight on one connection is received and answered by "
        "few system calls; each connection needs its own, until there is a pair for each request. All else that a "
        "request costs stays.",
        [_load_point(count, IN_FLIGHT // count, count) for count in COUNTS],
    )
    yield growth(
        "depth",
        "random 4k read of the base, one connection",
        "depth",
        0.0,
        "The cost falls, and then stays: requests that are in flight together are received by one system call and "
        "answered by one, until the work that no request shares is all that is left.",
        [_load_point(count, count, 1) for count in COUNTS],
    )


# The size of the device.


def _size() -> Iterator[Growth]:
    def points(kind: str, verb: str, prepared: str) -> list[Point]:
        return [
            Point(
                size_bytes,
                format_size(size_bytes).lower(),
                _at_places(Load(kind, 4 * KIB, DEPTH)),
                f"random 4k {verb}, depth {DEPTH}, at {PLACES:,} places all over a device of {format_size(size_bytes)}",
                {
                    "base": f"places-{format_size(size_bytes)}",
                    "prepared": prepared,
                    "traits": frozenset({"8T"} if size_bytes == 8 * TIB else ()),
                },
            )
            for size_bytes in GROWING_BYTES
        ]

    yield growth(
        "size-read",
        f"random 4k read of the base, depth {DEPTH}, at {PLACES:,} places all over the device",
        "device",
        0.0,
        "The cost stays. A request looks up the state of its own blocks, at an index into a map that is never gone "
        "through as a whole, and nothing is kept for blocks that nobody has touched. The places are as many on every "
        "device, so that as much is in the page cache.",
        points("randread", "read", "fresh"),
        "bytes",
    )
    yield growth(
        "size-write",
        f"random 4k write, depth {DEPTH}, at {PLACES:,} places all over the device, which are in the overlay",
        "device",
        0.0,
        "The cost stays, for the same reason: a block's place in the overlay is its own offset, in a sparse file, so "
        "that no table has to be read or cached to find it. What grows is the file system's own tree of extents, by "
        "a level at most.",
        points("randwrite", "write", "places"),
        "bytes",
    )


def _at_places(load: Load) -> Work:
    """Each request at the start of one of as many places, whatever the size of the device."""

    def work(task: Task) -> Outcome:
        apart = replace(load, each_block_bytes=task.size_bytes // PLACES)
        return clients.random_requests(task.uri, apart, task.seconds, task.size_bytes)

    return work


# How much of the device is in the overlay.


def _fill() -> Iterator[Growth]:
    def points(load: Load, what: str) -> list[Point]:
        return [
            Point(
                percent,
                str(percent),
                _fio(load),
                f"random {what} read, depth {load.depth}, {percent} % of the blocks in the overlay",
                {"prepared": f"filled-{percent}" if percent else "fresh"},
            )
            for percent in FILLED
        ]

    yield growth(
        "fill-4k",
        f"random 4k read, depth {DEPTH}, some of the blocks in the overlay, scattered",
        "in the overlay",
        0.3,
        "The cost goes from that of reading the base to that of reading the overlay, whose bytes are copied under the "
        "lock, and no further: how many other blocks are in the overlay is of no concern to a request.",
        points(Load("randread", 4 * KIB, DEPTH), "4k"),
        "%",
    )
    yield growth(
        "fill-1m",
        "random 1M read, depth 4, some of the blocks in the overlay, scattered",
        "in the overlay",
        0.3,
        "The cost is highest at 50 %, where no two neighbours are alike and a request has as many pieces as blocks, "
        "and lower on both sides. It depends on the pieces of the request, not on those of the disk.",
        points(Load("randread", MIB, 4), "1M"),
        "%",
    )


# The unit that is copied.


def _block() -> Iterator[Growth]:
    def points(work: Callable[[int], Work], meaning: str, **more: object) -> list[Point]:
        return [
            Point(
                block_bytes,
                format_size(block_bytes).lower(),
                work(block_bytes),
                f"{meaning}, blocks of {format_size(block_bytes)}",
                {"block_bytes": block_bytes, **more},
            )
            for block_bytes in BLOCK_BYTES
        ]

    yield growth(
        "block-read",
        f"random 4k read of the base, depth {DEPTH}",
        "block",
        0.0,
        "The cost stays: what is read is what was asked for, and not the block around it.",
        points(lambda _: _fio(Load("randread", 4 * KIB, DEPTH)), f"random 4k read, depth {DEPTH}"),
        "bytes",
    )
    yield growth(
        "block-part",
        f"random 4k write, depth {DEPTH}, each into a fresh block",
        "block",
        1.0,
        "The cost grows, at most in proportion: the first write of a part of a block copies the rest of it. "
        "Where a block is no larger than the request, nothing is copied.",
        points(_parts, f"random 4k write, depth {DEPTH}, each into a fresh block", anew=True),
        "bytes",
    )


def _parts(block_bytes: int) -> Work:
    """As many requests as half the disk has blocks, up to a bound, each at the start of a random one."""

    def work(task: Task) -> Outcome:
        requests = min(PARTS_MAX, task.size_bytes // block_bytes // 2)
        load = Load("randwrite", 4 * KIB, DEPTH, each_block_bytes=block_bytes, requests=requests)
        return clients.random_requests(task.uri, load, task.seconds, task.size_bytes)

    return work


GROWTHS = (*_connections(), *_size(), *_fill(), *_block())
SERIES = tuple(one.series for one in GROWTHS)
ROWS = tuple(row for one in GROWTHS for row in one.rows)
