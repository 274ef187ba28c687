"""The races that are shown live: two requests for one block, each, and what there is to know about them.

Connection A sends its request first. It has to read the base, which is slow. Connection B sends a write meanwhile, or
a trim, or zeroes. Whatever order a server gives the two, what B did is there afterwards, but for bytes that A wrote
over it.

Source:  design notes, section 7; nbdkit's and qemu's git histories for the commits.
Shapes:  every race is about one block of BLOCK_BYTES; offsets in it are counted from its start.
Units:   offsets and lengths in bytes; latencies in milliseconds.
Omits:   interleavings that need a stop inside the server (`check/races.py` has them): here nothing is stopped, and
         all that is seen goes over a socket.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from impl.base.pattern import pattern
from model.block import CacheMode
from model.device import Cache, Device, Read, Trim, Write, Zero, new_device

BLOCK_BYTES = 64 << 10  # the default of all three servers; qcow2's is called a cluster
SEED = 7

LATENCY_MS = 60  # of one read of the base
GAP_MS = 15  # from A's request to B's: enough for A's to reach the base, and far less than the base takes

Request = Read | Write | Zero | Trim | Cache


class Source(Enum):
    """Whose bytes these are."""

    BASE = "the base's"
    A = "A's"
    B = "B's"
    ZEROES = "zeroes"
    NOBODY = "nobody's"


# What A and B write differs from the base, and from each other, in every byte: so each byte tells whose it is.
MASKS = {Source.BASE: 0x00, Source.A: 0x55, Source.B: 0xAA}


@dataclass(frozen=True, slots=True)
class Action:
    """A request before it is known for which block: READ, WRITE, ZERO, TRIM or CACHE, and where in the block."""

    verb: str
    offset: int = 0
    length: int = BLOCK_BYTES

    def __str__(self) -> str:
        return f"{self.verb} {self.offset}+{self.length}"


@dataclass(frozen=True, slots=True)
class Race:
    """Two requests, how the servers are set up for them, and why the other server loses one of them.

    other:     the server that does, a key of `servers.SERVERS`
    jitter_ms: how much longer than LATENCY_MS a read of the base may take, at random; 0 means that all take as long.
    """

    name: str
    title: str
    a: Action
    b: Action
    why: str
    commit: str
    other: str = "nbdkit"
    jitter_ms: int = 0
    nbdkit_options: tuple[str, ...] = ()
    cowproof_options: tuple[str, ...] = ()
    copy_on_read: bool = False
    cache_mode: CacheMode = CacheMode.IGNORE


FINER_LOCKS = "9355a41d, 'cow: Use more fine-grained locking', February 2021, first in 1.25.3"
COPY_ON_READ = "bd93b3f2, 'cow: Implement cow-on-read', July 2021, first in 1.27.4"
ZERO_CLUSTERS = "621f0589, 'qcow2: Zero write support', March 2012, first in 1.1"

RACES = [
    Race(
        name="part-beside-whole",
        title="a write of part of a block beside a write of the whole block",
        a=Action("WRITE", 4096, 512),
        b=Action("WRITE"),
        why="cow_pwrite holds rmw_lock while it reads the base, merges and stores; a write of a whole block does not "
        "take that lock. A stores the block it read before B's write, over B's write.",
        commit=FINER_LOCKS,
    ),
    Race(
        name="part-beside-trim",
        title="a write of part of a block beside a trim of the whole block",
        a=Action("WRITE", 4096, 512),
        b=Action("TRIM"),
        why="The same with a trim, which does not take rmw_lock for whole blocks either. What B trimmed read as "
        "zeroes, and comes back. NBD promises nothing of trimmed bytes; the filter means them to read as zeroes.",
        commit=FINER_LOCKS,
    ),
    Race(
        name="copy-on-read",
        title="copy-on-read beside a write of the whole block",
        a=Action("READ", 0, 512),
        b=Action("WRITE"),
        why="blk_read_multiple looks at the state, reads the base with no lock, and stores what it read without "
        "looking at the state again. A, which only reads, stores old bytes over B's write.",
        commit=COPY_ON_READ,
        nbdkit_options=("cow-on-read=true",),
        cowproof_options=("--cow-on-read", "on"),
        copy_on_read=True,
    ),
    Race(
        name="copy-on-read-elsewhere",
        title="copy-on-read beside a write of other bytes of the block",
        a=Action("READ", 0, 4096),
        b=Action("WRITE", 32768, 4096),
        why="The same code. A's copy is of the whole block, so it destroys what no request of A's ever named: clients "
        "that never overlap lose data. B, too, has to read the base; it must be through first, so this takes a "
        "base of which some reads are slower than others.",
        commit=COPY_ON_READ,
        jitter_ms=150,
        nbdkit_options=("cow-on-read=true",),
        cowproof_options=("--cow-on-read", "on"),
        copy_on_read=True,
    ),
    Race(
        name="copy-on-cache",
        title="copy-on-cache beside a write of the whole block",
        a=Action("CACHE"),
        b=Action("WRITE"),
        why="blk_cache holds the lock from the look at the state to the end, but blk_write stores its data before it "
        "takes that lock. A stores the base's bytes over B's; then B gets the lock, and is answered.",
        commit=FINER_LOCKS,
        nbdkit_options=("cow-on-cache=true",),
        cowproof_options=("--cow-on-cache",),
        cache_mode=CacheMode.COW,
    ),
    Race(
        name="part-beside-zero",
        title="a write of part of a block beside zeroes over the whole block",
        a=Action("WRITE", 4096, 512),
        b=Action("ZERO"),
        why="perform_cow gives qcow2's lock away while it reads the rest of the cluster from the backing file. "
        "Zeroing whole clusters takes that lock, sets the cluster's entry and is answered; it waits for no write in "
        "flight. A then sets the entry to its own cluster, without another look at it.",
        commit=ZERO_CLUSTERS,
        other="qemu-nbd",
    ),
]

NAMES = [race.name for race in RACES]


def base_block(block: int) -> bytes:
    """What the base holds under one block."""
    return pattern(SEED, block * BLOCK_BYTES, BLOCK_BYTES)


def masked(base: bytes, source: Source) -> bytes:
    """The bytes that `source` would have in the place of the base's."""
    mask = MASKS[source]
    return base.translate(bytes(value ^ mask for value in range(256)))


ZEROING = ("TRIM", "ZERO")


def left_by_b(race: Race, base: bytes) -> bytes:
    """What B's request by itself leaves in the part that it names."""
    if race.b.verb in ZEROING:
        return bytes(race.b.length)
    return masked(base, Source.B)[race.b.offset : race.b.offset + race.b.length]


def device_before(race: Race, base: bytes) -> Device:
    """The model of the one block, that nobody has written to."""
    return new_device(len(base), len(base), base, copy_on_read=race.copy_on_read, cache_mode=race.cache_mode)


def request_of(action: Action, base: bytes, source: Source) -> Request:
    """The action as a request of the model, a write with the data that its sender writes there."""
    offset, length = action.offset, action.length
    if action.verb == "WRITE":
        return Write(offset, masked(base[offset : offset + length], source))
    if action.verb == "READ":
        return Read(offset, length)
    if action.verb == "ZERO":
        return Zero(offset, length)
    if action.verb == "TRIM":
        return Trim(offset, length)
    assert action.verb == "CACHE", action
    return Cache(offset, length)
