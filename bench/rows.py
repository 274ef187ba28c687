"""The rows: what each server is asked to do, over which base, with which overlay, and what of it counts.

A row's overlay is fresh or was filled before; where the row changes what it measures (`anew`), each round has a server
and an overlay of its own, else one server stays for all rounds, and for further rows that want the same.

Units:   bytes, milliseconds and seconds, where a name says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product

from bench import clients
from bench.clients import Load, Outcome
from bench.results import GIB, KIB
from bench.servers import COPY_ON_READ, TLS, Base, Running
from impl.sizes import format_size

TIB = 1 << 40
SLOW_BYTES = 16 * GIB
BLOCK_BYTES = 64 * KIB  # what the peers copy at once by default
MEMORY_LOAD_REQUESTS = 20_000
IDLE_BESIDE = 64
PLACES = 4096
GROWING_BYTES = (GIB, 16 * GIB, 128 * GIB, TIB, 8 * TIB)
FILLED_PERCENT = (25, 50, 75, 100)


@dataclass(frozen=True, slots=True)
class Task:
    """What a row's work is given. `seconds`: how long work lasts that could last for ever."""

    running: Running
    base: Base
    seconds: float

    @property
    def uri(self) -> str:
        """Of the server."""
        return self.running.uri

    @property
    def size_bytes(self) -> int:
        """Of the disk."""
        return self.base.size_bytes


Work = Callable[[Task], Outcome]
Stand = tuple[str, str, str, int]


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    base:       a name of BASES
    prepared:   a name of PREPARATIONS
    mode:       what servers have to be started with
    block_bytes: and with which unit of copying; 0, each with its default
    needs:      the client
    traits:     what a server may lack, or a setting may be made for; further ones follow from the fields
    wanted:     under which name `bench.wanted` says what is asked of it
    is_about_start: the server's time counts from its start
    aside:      the same work with hardly any requests: what it takes the server is no part of what they cost
    settings:   whether other settings of the same program are shown, too
    """

    name: str
    meaning: str
    figure: str
    work: Work
    needs: str = "fio"
    base: str = "file"
    prepared: str = "fresh"
    anew: bool = False
    mode: str = ""
    block_bytes: int = 0
    connections: int = 1
    idle_beside: int = 0
    wanted: str = ""
    traits: frozenset[str] = frozenset()
    is_about_start: bool = False
    aside: Work | None = None
    settings: bool = True
    quick: bool = False

    @property
    def all_traits(self) -> frozenset[str]:
        """With those that follow."""
        following = {
            "several": self.connections > 1,
            "kept": self.prepared != "fresh",
            "overlay": (self.anew and not self.is_about_start) or self.prepared != "fresh",
            "slow": self.base.startswith("slow"),
            "block size": self.block_bytes > 0,
            self.mode: bool(self.mode),
            self.base: True,
        }
        return self.traits | {trait for trait, has in following.items() if has}

    @property
    def stand(self) -> Stand:
        """Rows with the same one can use the same servers, if none of them is anew."""
        return self.base, self.prepared, self.mode, self.block_bytes


@dataclass(frozen=True, slots=True)
class BaseKind:
    """A base before it is made.

    size_bytes:  0, as large as asked for, and full of random bytes; else sparse
    places:      at which a sparse one has data, at equal distances
    """

    size_bytes: int = 0
    latency_ms: int = 0
    places: int = 0


BASES: dict[str, BaseKind] = {
    "file": BaseKind(),
    "slow1": BaseKind(SLOW_BYTES, 1),
    "slow10": BaseKind(SLOW_BYTES, 10),
    "1T": BaseKind(TIB),
    "8T": BaseKind(8 * TIB),
    **{f"places-{format_size(size_bytes)}": BaseKind(size_bytes, places=PLACES) for size_bytes in GROWING_BYTES},
}

# What is done to an overlay before anything is measured.


def _nothing(task: Task) -> Outcome:
    return Outcome(task.running.start_s)


def _fill(task: Task) -> Outcome:
    return clients.copy(str(task.base.path), task.uri, 4, task.size_bytes)


def _own(name: str, *arguments: object) -> Work:
    return lambda task: clients.own(task.uri, name, *arguments)


PREPARATIONS: dict[str, Work] = {
    "fresh": _nothing,
    "allocated": _fill,
    "mixed": _own("mix"),
    "scattered": _own("scatter"),
    "places": _own("places", PLACES),
    **{f"filled-{percent}": _own("fill", percent) for percent in FILLED_PERCENT},
}

# What is measured.


def _copy_out(connections: int) -> Work:
    return lambda task: clients.copy(task.uri, "null:", connections, task.size_bytes)


def _copy_in(connections: int) -> Work:
    return lambda task: clients.copy(str(task.base.path), task.uri, connections, task.size_bytes)


def _connect(connections: int) -> Work:
    return lambda task: clients.own(task.uri, "connect", connections, task.seconds)


def _fio(load: Load) -> Work:
    return lambda task: clients.random_requests(task.uri, load, task.seconds, task.size_bytes)


def _half_of_the_blocks(load: Load) -> Work:
    """As many requests as half the disk has blocks, each at the start of a random one."""

    def work(task: Task) -> Outcome:
        limited = replace(load, each_block_bytes=BLOCK_BYTES, requests=task.size_bytes // BLOCK_BYTES // 2)
        return clients.random_requests(task.uri, limited, task.seconds, task.size_bytes)

    return work


def _told(connections: int) -> str:
    return "1 connection" if connections == 1 else f"{connections} connections"


# The rows.


def _bulk() -> Iterator[Row]:
    def row(name: str, meaning: str, work: Work, connections: int, wanted: str, **more: object) -> Row:
        return Row(
            f"{name}-c{connections}",
            f"{meaning}, {_told(connections)}",
            "throughput",
            work,
            "nbdcopy",
            connections=connections,
            wanted=wanted,
            **more,  # type: ignore[arg-type]
        )

    for c in (1, 4):
        yield row("read-base", "nbdcopy of the base to null:", _copy_out(c), c, "bulk read", quick=c == 4)
    for c in (1, 4):
        meaning = "nbdcopy of a whole overlay to null:"
        yield row("read-allocated", meaning, _copy_out(c), c, "bulk read, allocated", prepared="allocated")
    for c in (1, 4):
        meaning = "nbdcopy to null:, every other MiB in the overlay"
        yield row("read-mixed", meaning, _copy_out(c), c, "", prepared="mixed")
    for c in (1, 4):
        meaning = "nbdcopy into a fresh overlay"
        yield row("write-fresh", meaning, _copy_in(c), c, "bulk write, fresh", anew=True, quick=c == 4)
    for c in (1, 4):
        meaning = "nbdcopy over a whole overlay"
        yield row("write-allocated", meaning, _copy_in(c), c, "", prepared="allocated")


KINDS = {"read": "randread", "write": "randwrite", "mix": "randrw"}
LENGTHS = {"4k": 4 * KIB, "64k": 64 * KIB}


def _wanted_of_random(length: str, kind: str, overlay: str, depth: int, connections: int) -> str:
    if length == "64k":
        return f"64k, {_told(connections)}"
    return f"4k read, depth {depth}" if kind == "read" else f"4k {kind}, {overlay}"


QUICK = {"4k-read-d1-c1-fresh", "4k-read-d32-c1-fresh", "4k-write-d32-c1-allocated"}


def _random() -> Iterator[Row]:
    for overlay, length, kind, depth, connections in product(("fresh", "allocated"), LENGTHS, KINDS, (1, 32), (1, 4)):
        load = Load(KINDS[kind], LENGTHS[length], depth, connections)
        changes = overlay == "fresh" and kind != "read"
        meaning = f"random {length} {kind}, depth {depth}, {_told(connections)}, {overlay} overlay"
        work = _fio(load)
        if changes and length == "4k":
            work = _half_of_the_blocks(load)
            meaning += ", each in a random 64k block, half as many as there are"
        elif changes:
            work = _fio(replace(load, once=True))
            meaning += ", each block once"
        name = f"{length}-{kind}-d{depth}-c{connections}-{overlay}"
        yield Row(
            name,
            meaning,
            "rate",
            work,
            prepared=overlay,
            anew=changes,
            connections=connections,
            wanted=_wanted_of_random(length, kind, overlay, depth, connections),
            quick=name in QUICK,
        )


def _beside_idle() -> Iterator[Row]:
    for depth in (1, 32):
        yield Row(
            f"4k-read-d{depth}-idle{IDLE_BESIDE}",
            f"random 4k read, depth {depth}, 1 connection, {IDLE_BESIDE} idle ones beside",
            "rate",
            _fio(Load("randread", 4 * KIB, depth)),
            idle_beside=IDLE_BESIDE,
            wanted=f"4k read, depth {depth}",
        )


def _tls() -> Iterator[Row]:
    """The same, encrypted. By nbdcopy alone: fio does not let libnbd read certificates."""

    def row(name: str, meaning: str, work: Work, connections: int, anew: bool = False) -> Row:
        told = f"{meaning}, {_told(connections)}, with TLS"
        name = f"tls-{name}-c{connections}"
        return Row(name, told, "throughput", work, "nbdcopy", connections=connections, anew=anew, mode=TLS)

    for c in (1, 4):
        yield row("read-base", "nbdcopy of the base to null:", _copy_out(c), c)
    yield row("write-fresh", "nbdcopy to a fresh overlay", _copy_in(4), 4, anew=True)


def _copy_on_read() -> Iterator[Row]:
    load = Load("randread", 4 * KIB, 32)
    yield Row(
        "4k-read-d32-copy",
        "random 4k read, depth 32, fresh overlay, copy-on-read, half as many as there are 64k blocks",
        "rate",
        _half_of_the_blocks(load),
        mode=COPY_ON_READ,
        anew=True,
    )
    yield Row(
        "slow1-read-d32-copy",
        "random 4k read, depth 32, copy-on-read, base of 1 ms",
        "rate",
        _fio(replace(load, each_block_bytes=BLOCK_BYTES)),
        base="slow1",
        mode=COPY_ON_READ,
        anew=True,
    )


def _slow() -> Iterator[Row]:
    for latency_ms, depth in product((1, 10), (16, 64)):
        yield Row(
            f"slow{latency_ms}-read-d{depth}",
            f"random 4k read, depth {depth}, 1 connection, base of {latency_ms} ms",
            "rate",
            _fio(Load("randread", 4 * KIB, depth)),
            base=f"slow{latency_ms}",
            wanted="slow reads",
        )
    for latency_ms, depth in product((1, 10), (16, 64)):
        yield Row(
            f"slow{latency_ms}-parts-d{depth}",
            f"2k writes of parts of fresh blocks, depth {depth}, 1 connection, base of {latency_ms} ms",
            "rate",
            _fio(Load("randwrite", 2 * KIB, depth, each_block_bytes=BLOCK_BYTES)),
            base=f"slow{latency_ms}",
            anew=True,
            wanted="slow parts",
            quick=(latency_ms, depth) == (10, 64),
        )


def _whole_disk() -> Iterator[Row]:
    for name in ("trim", "zero"):
        yield Row(
            name,
            f"{name} of the whole disk, which is all in the overlay, in pieces of 32 MiB, 16 in flight",
            "time",
            _own(name),
            "own",
            prepared="allocated",
            anew=True,
            wanted="trim",
            traits=frozenset({name}),
        )
    yield Row(
        "block-status",
        "block status of 1 TiB, 64k written in every 16 MiB: 131,072 extents",
        "time",
        _own("status"),
        "own",
        base="1T",
        prepared="scattered",
        wanted="block status",
        settings=False,
    )


def _connections() -> Iterator[Row]:
    for c in (1, 4):
        yield Row(
            f"connect-c{c}",
            f"connections with handshake, {c} at a time",
            "rate",
            _connect(c),
            "own",
        )
    yield Row("start", "from its start to its first handshake", "time", _nothing, "own", anew=True, is_about_start=True)


def _memory() -> Iterator[Row]:
    for size in ("1T", "8T"):
        told = f"{size[0]} TiB"
        yield Row(
            f"memory-idle-{size.lower()}",
            f"anonymous memory of a server of {told} with one connection that has asked for nothing",
            "memory",
            _nothing,
            "own",
            base=size,
            anew=True,
            is_about_start=True,
            idle_beside=1,
            wanted="memory, idle" if size == "1T" else "",
        )
        load = Load("randrw", 4 * KIB, 32, requests=MEMORY_LOAD_REQUESTS)
        yield Row(
            f"memory-load-{size.lower()}",
            f"anonymous memory of a server of {told} after {MEMORY_LOAD_REQUESTS:,} random 4k reads and writes",
            "memory",
            _fio(load),
            base=size,
            anew=True,
            wanted="memory, after load" if size == "1T" else "",
            traits=frozenset({"kept"}),
            settings=False,
        )


def _in_order(rows: list[Row]) -> list[Row]:
    """Those that can share servers next to each other; a row that changes its overlay comes by itself."""
    first: dict[tuple[bool, Stand], int] = {}
    for at, row in enumerate(rows):
        first.setdefault((row.anew, row.stand), at)
    return sorted(rows, key=lambda row: first[row.anew, row.stand])


ROWS = _in_order(
    [
        *_bulk(),
        *_random(),
        *_beside_idle(),
        *_connections(),
        *_copy_on_read(),
        *_tls(),
        *_slow(),
        *_whole_disk(),
        *_memory(),
    ]
)
