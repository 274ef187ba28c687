"""What every module here speaks of: a disk of blocks of sectors, and what clients may ask of it.

Twin:    specs/Disk.tla, which says what the names mean.
Shapes:  an address is the number of a sector; a value is a string that says who put it there. Sets that TLA+ names
         for a client's index here hold indices.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import permutations, product
from typing import NamedTuple

BASE = "base"
OLD = "old"
ZERO = "zero"
NONE = "none"

NOT_ALLOCATED = "NOT_ALLOCATED"
ALLOCATED = "ALLOCATED"
TRIMMED = "TRIMMED"
STATES = frozenset({NOT_ALLOCATED, ALLOCATED, TRIMMED})

Addresses = frozenset[int]
Blocks = frozenset[int]
Clients = frozenset[int]
Values = tuple[str, ...]
EMPTY: frozenset[int] = frozenset()


class Request(NamedTuple):
    """What a client asks: a kind, and the addresses it concerns."""

    kind: str
    at: Addresses


NO_REQUEST = Request(NONE, EMPTY)
FLUSH = Request("flush", EMPTY)
CHANGING = frozenset({"write", "zero", "trim"})


@dataclass(frozen=True, slots=True)
class Constants:
    """The constants of Disk.tla, checked as it assumes them to be."""

    client: tuple[str, ...]
    block_count: int
    sectors_per_block: int
    unit: str
    initially: tuple[str, ...]
    requests: tuple[Request, ...]

    def __post_init__(self) -> None:
        assert not set(self.client) & ({BASE, OLD, ZERO, NONE} | STATES)
        assert self.unit in ("request", "block", "sector")
        assert set(self.initially) <= STATES


def clients(k: Constants) -> range:
    """Client, as indices."""
    return range(len(k.client))


def values(k: Constants) -> frozenset[str]:
    """Value."""
    return frozenset({*k.client, BASE, OLD, ZERO})


def blocks(k: Constants) -> range:
    """Block."""
    return range(k.block_count)


def addresses(k: Constants) -> range:
    """Address."""
    return range(k.block_count * k.sectors_per_block)


def block_of(k: Constants, address: int) -> int:
    """The block an address is in."""
    return address // k.sectors_per_block


def sectors_of(k: Constants, block: int) -> Addresses:
    """The addresses in a block."""
    return frozenset(range(block * k.sectors_per_block, (block + 1) * k.sectors_per_block))


def shown(state: str, stored: str) -> str:
    """What a sector reads as, given the state of its block and what is stored."""
    if state == NOT_ALLOCATED:
        return BASE
    return stored if state == ALLOCATED else ZERO


def next_part(k: Constants, torn: bool, of: Addresses) -> Addresses:
    """One step of a transfer: a sector if transfers are torn, else all that goes to or comes from one block."""
    first = min(of)
    if torn:
        return frozenset({first})
    return of & sectors_of(k, block_of(k, first))


# Requests


def changes(request: Request) -> bool:
    """Whether it is of a kind that changes what the disk holds."""
    return request.kind in CHANGING


@cache
def _blocks_of(sectors_per_block: int, at: Addresses) -> Blocks:
    return frozenset(address // sectors_per_block for address in at)


def blocks_of(k: Constants, request: Request) -> Blocks:
    """The blocks a request touches."""
    return _blocks_of(k.sectors_per_block, request.at)


def in_block(k: Constants, request: Request, block: int) -> Addresses:
    """The addresses of a request in a block."""
    return request.at & sectors_of(k, block)


def covers_all(k: Constants, request: Request, block: int) -> bool:
    """Whether a request leaves nothing of a block out."""
    return sectors_of(k, block) <= request.at


def partly_covered(k: Constants, request: Request) -> Blocks:
    """The blocks of which a request leaves something out."""
    return frozenset(block for block in blocks_of(k, request) if not covers_all(k, request, block))


def new_value(k: Constants, client: int, request: Request) -> str:
    """What a client leaves in the sectors that its request changes."""
    return k.client[client] if request.kind == "write" else ZERO


def after(k: Constants, held: Values, client: int, request: Request, at: Addresses) -> Values:
    """The disk after a request has taken effect on some addresses."""
    if not changes(request):
        return held
    value = new_value(k, client, request)
    return tuple(value if address in at else old for address, old in enumerate(held))


def groups(k: Constants) -> tuple[Addresses, ...]:
    """The addresses that a request may find at different instants are in different groups."""
    if k.unit == "request":
        return (frozenset(addresses(k)),)
    if k.unit == "block":
        return tuple(sectors_of(k, block) for block in blocks(k))
    return tuple(frozenset({address}) for address in addresses(k))


def units(k: Constants, request: Request) -> frozenset[Addresses]:
    """The parts of a request that take effect at one instant each."""
    if not request.at:
        return frozenset({EMPTY})
    return frozenset(request.at & group for group in groups(k)) - {EMPTY}


def starting_states(k: Constants) -> Iterator[Values]:
    """[Block -> Initially]."""
    return product(k.initially, repeat=k.block_count)


def shown_at_first(k: Constants, state: Values) -> Values:
    """What the disk holds at first."""
    return tuple(shown(state[block_of(k, address)], OLD) for address in addresses(k))


# Linearizability


def orders(k: Constants) -> Iterator[tuple[int, ...]]:
    """Every order of the clients."""
    return permutations(clients(k))


def respects(order: tuple[int, ...], before: tuple[Clients, ...]) -> bool:
    """Whether nobody is after one who asked when they had their reply."""
    return not any(later in before[earlier] for i, earlier in enumerate(order) for later in order[i + 1 :])


def explained_by(
    k: Constants,
    order: tuple[int, ...],
    group: Addresses,
    start: Values,
    req: tuple[Request, ...],
    reply: tuple[Values, ...],
    held: Values,
) -> bool:
    """Whether requests in this order give, on these addresses, these replies and this disk."""
    holds = start
    for client in order:
        touched = req[client].at & group
        if req[client].kind == "read" and any(reply[client][address] != holds[address] for address in touched):
            return False
        holds = after(k, holds, client, req[client], touched)
    return all(held[address] == holds[address] for address in group)


def explained(
    k: Constants,
    start: Values,
    before: tuple[Clients, ...],
    req: tuple[Request, ...],
    reply: tuple[Values, ...],
    held: Values,
) -> bool:
    """Whether each group has an order that explains it."""
    return all(
        any(respects(order, before) and explained_by(k, order, group, start, req, reply, held) for order in orders(k))
        for group in groups(k)
    )


# Sets of requests, by the names they have in Disk.tla; a range is (first, last).


def each(kinds: Iterable[str], ranges: Iterable[tuple[int, int]]) -> tuple[Request, ...]:
    """Every kind on every range."""
    return tuple(Request(kind, frozenset(range(first, last + 1))) for kind, (first, last) in product(kinds, ranges))


ONE_BLOCK_CORE = (
    *each(("read", "trim", "cache"), [(0, 1)]),
    *each(("write",), [(0, 0), (1, 1), (0, 1)]),
)
REQUESTS = {
    "OneBlock": (
        *each(("read", "write", "zero", "trim"), [(0, 0), (0, 1)]),
        *each(("read", "write"), [(1, 1)]),
        *each(("cache",), [(0, 1)]),
        FLUSH,
    ),
    "OneBlockCore": ONE_BLOCK_CORE,
    "EachKind": (*ONE_BLOCK_CORE, *each(("zero",), [(0, 0)]), FLUSH),
    "TwoBlocks": (
        *each(("read",), [(0, 0), (1, 2), (0, 3)]),
        *each(("write",), [(0, 0), (2, 3), (1, 2), (0, 2), (0, 3)]),
        *each(("trim",), [(1, 2), (0, 2)]),
        *each(("cache",), [(0, 3)]),
    ),
    "PartAndWhole": each(("write",), [(0, 0), (0, 1)]),
    "PartAndTrim": (*each(("write",), [(0, 0)]), *each(("trim",), [(0, 1)])),
    "ReadPartWriteWhole": (*each(("read",), [(0, 0)]), *each(("write",), [(0, 1)])),
    "ReadPartWriteOther": (*each(("read",), [(0, 0)]), *each(("write",), [(1, 1)])),
    "ReadAndWriteWhole": each(("read", "write"), [(0, 1)]),
    "CacheAndWrite": each(("cache", "write"), [(0, 1)]),
    "Neighbours": (*each(("read",), [(0, 1)]), *each(("write",), [(2, 3)])),
    "ReadAndWriteBoth": each(("read", "write"), [(0, 3)]),
}
