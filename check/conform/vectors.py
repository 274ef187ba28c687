"""Vectors: sequences of requests with the answers that the model gives, for anyone who can read JSON and open a socket.

Each vector begins with a fresh overlay over the same base. Requests of `setup` bring its blocks into states, those of
`steps` are what it is about; each has the answers that are allowed. In the end, `content` says of every byte of the
disk what a read has to find.

What is promised, and what is legal: the model says what cowproof promises. Where the protocol asks less, the vector
says so: bytes that were trimmed are of kind `trimmed`, zeroes for those who promise that (as cowproof does), anything
for those who do not; an answer that is one of several is in a list of these; extents may always say less.

Source:  model/device.py for answers, states and extents; NBD protocol, "Request types", for what else is legal;
         specs/vectors/schema.json for the form.
Shapes:  bytes are runs, [kind, length] and, of `byte`, its value; of `base`, the offset in the base they begin at.
Units:   offsets and lengths in bytes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, product
from pathlib import Path

from model import device as model
from model.block import State
from model.device import Cache, Device, Flush, Read, Request, Status, Trim, Write, Zero

VERSION = 1
FOLDER = Path(__file__).resolve().parents[2] / "specs" / "vectors"
BLOCK = 4096
# Four blocks, and one that is short: of an odd size; and of two sectors, for servers that know nothing less.
SIZE = 4 * BLOCK + 1001
SECTORS_SIZE = 4 * BLOCK + 1024
PAGES_SIZE = 5 * BLOCK
BASE_RULE = "byte i is 1 + i % 251"
STATES = "NAT"  # as `State` numbers them: not allocated, allocated, trimmed
ERRNO = {
    model.Error.OUT_OF_RANGE: "EINVAL",
    model.Error.NO_SPACE_BEYOND_END: "ENOSPC",
    model.Error.NOT_FAST: "ENOTSUP",
    model.Error.READ_ONLY: "EPERM",
}

Run = tuple[str | int, ...]


@dataclass
class Shadow:
    """Where every byte of the disk comes from, noted beside the model: it says as much as a client may know."""

    device: Device
    kinds: list[tuple[str, int]] = field(init=False)  # of each byte; with its value, where it is `byte`

    def __post_init__(self) -> None:
        self.kinds = [("base", 0)] * self.device.size

    def apply(self, request: Request) -> model.Reply:
        """Do a request in the model, and note what became of the bytes."""
        self.device, reply = model.apply(self.device, request)
        if isinstance(reply, model.Done) and isinstance(request, Write | Zero | Trim):
            self._note(request)
        assert self._bytes() == model.contents(self.device), request
        return reply

    def _note(self, request: Write | Zero | Trim) -> None:
        for at in range(request.offset, request.offset + request.length):
            if isinstance(request, Write):
                self.kinds[at] = ("byte", request.data[at - request.offset])
            else:
                self.kinds[at] = ("trimmed" if isinstance(request, Trim) else "zero", 0)

    def _bytes(self) -> bytes:
        base = self.device.base
        return bytes(base[at] if kind == "base" else value for at, (kind, value) in enumerate(self.kinds))

    def runs(self, offset: int, length: int) -> list[Run]:
        """What a range consists of."""
        found: list[Run] = []
        at = offset
        for (kind, value), group in groupby(self.kinds[offset : offset + length]):
            count = len(list(group))
            more = {"base": (at,), "byte": (value,)}
            found.append((kind, count, *more.get(kind, ())))
            at += count
        return found

    def states(self) -> str:
        """One letter for each block."""
        return "".join(STATES[int(block.state)] for block in self.device.blocks)


def byte(value: int, offset: int, length: int) -> Write:
    """A write of equal bytes."""
    return Write(offset, bytes([value]) * length)


def bring_to(states: str, size: int = SIZE) -> list[Request]:
    """Requests that bring the first blocks of a fresh device into these states."""
    make: dict[str, Callable[[int], list[Request]]] = {
        "N": lambda block: [],
        "A": lambda block: [byte(7, block * BLOCK, min(BLOCK, size - block * BLOCK))],
        "T": lambda block: [Trim(block * BLOCK, min(BLOCK, size - block * BLOCK))],
    }
    return [request for block, state in enumerate(states) for request in make[state](block)]


# Ranges that are worth asking about, by name: within a block, across two, and at the short end.
RANGES = {
    "a whole block": (0, BLOCK),
    "the head of a block": (0, 1000),
    "the middle of a block": (511, 1025),
    "the tail of a block": (BLOCK - 1000, 1000),
    "one byte": (5, 1),
    "two whole blocks": (0, 2 * BLOCK),
    "the tail of one block and the head of the next": (BLOCK - 1, 2),
    "the tail of one block, and a whole one": (BLOCK - 512, BLOCK + 512),
    "a whole block, and the head of the next": (0, BLOCK + 512),
}


def end_ranges(size: int) -> dict[str, tuple[int, int]]:
    """Ranges at the end of a disk, and all of it."""
    short = size - 4 * BLOCK
    return {
        "the short last block, whole": (4 * BLOCK, short),
        "the head of the short last block": (4 * BLOCK, short - 1),
        "the last byte": (size - 1, 1),
        "all of the disk": (0, size),
    }


def requests_about(offset: int, length: int) -> Iterator[tuple[str, Request]]:
    """Every kind of request for a range."""
    yield "read", Read(offset, length)
    yield "write", byte(9, offset, length)
    yield "write with FUA", Write(offset, bytes([9]) * length, fua=True)
    for no_hole, fast in product((False, True), repeat=2):
        flags = " and ".join(name for name, on in (("NO_HOLE", no_hole), ("FAST_ZERO", fast)) if on)
        yield f"write zeroes{' with ' if flags else ''}{flags}", Zero(offset, length, no_hole, fast)
    yield "trim", Trim(offset, length)
    yield "cache", Cache(offset, length)
    yield "block status", Status(offset, length)


def cases(size: int = SIZE) -> Iterator[tuple[str, str, Sequence[Request]]]:
    """Name, the states to begin with, and the requests that it is about."""
    for (name, (offset, length)), states in product(RANGES.items(), map("".join, product(STATES, repeat=2))):
        if offset + length <= BLOCK and states[1] != "N":
            continue  # the second block is not concerned
        for what, request in requests_about(offset, length):
            yield f"{what}, {name}, {states}", states, [request]
    for (name, (offset, length)), state in product(end_ranges(size).items(), STATES):
        for what, request in requests_about(offset, length):
            yield f"{what}, {name}, NNNN{state}", f"NNNN{state}", [request]
    yield from sequences(size)
    for what, request in beyond_the_end(size):
        yield f"{what}, beyond the end", "", [request]
    for what, request in requests_about(BLOCK, 0):
        if not isinstance(request, Status):  # of no bytes: "the behavior of a server is unspecified"
            yield f"{what}, of no bytes", "", [request]
    yield "flush", "A", [Flush()]


def beyond_the_end(size: int) -> Iterator[tuple[str, Request]]:
    """Ranges that are not on the disk, by a byte, or altogether."""
    for offset, length in ((size - 1, 2), (size, 1), (0, size + 1), (1 << 40, 512)):
        for what, request in requests_about(offset, length):
            yield f"{what} of {length} bytes at {offset}", request


def sequences(size: int) -> list[tuple[str, str, Sequence[Request]]]:
    """Several requests, one after the other."""
    return [
        ("a part written over a part of the base shows both", "", [byte(1, 100, 50), Read(0, BLOCK)]),
        ("a part written into a trimmed block leaves zeroes", "T", [byte(1, 100, 50), Read(0, BLOCK)]),
        ("two parts of one block keep each other", "", [byte(1, 0, 10), byte(2, 4000, 96), Read(0, BLOCK)]),
        ("a trim of a part does not show the base again", "A", [Trim(0, 100), Read(0, BLOCK)]),
        ("a trimmed block that is written shows no old bytes", "A", [Trim(0, BLOCK), byte(3, 10, 1), Read(0, BLOCK)]),
        ("zeroes over two blocks leave their neighbours", "AAA", [Zero(BLOCK - 1, 2), Read(0, 3 * BLOCK)]),
        ("a cache changes nothing that is read", "NAT", [Cache(0, 3 * BLOCK), Read(0, 3 * BLOCK)]),
        ("a write over all of the disk hides all of the base", "NAT", [byte(5, 0, size), Read(0, size)]),
        ("a fast zero that is refused changes nothing", "A", [Zero(1, 10, fast=True), Read(0, BLOCK)]),
        ("a write that is refused changes nothing", "A", [byte(8, size - 1, 2), Read(size - 10, 10)]),
        ("a trim of all of the disk, and a byte in it", "", [Trim(0, size), byte(1, 2 * BLOCK, 1), Read(0, size)]),
    ]


def vectors(size: int = SIZE) -> list[dict[str, object]]:
    """All of them, of a disk of this size."""
    usual = [vector(name, states, requests, size) for name, states, requests in cases(size)]
    return usual + [misplaced(command, flag, size) for command, flag in MISPLACED]


def read_only_vectors(size: int = SIZE) -> list[dict[str, object]]:
    """Those of a disk that must not be written to."""
    ranges = [("a whole block", 0, BLOCK), ("a part", 100, 50), ("the end", size - 10, 10), ("two blocks", 10, BLOCK)]
    requests = [(f"{what}, {name}", one) for name, *range_ in ranges for what, one in requests_about(*range_)]
    return [vector(f"{name}, read-only", "", [request], size, read_only=True) for name, request in requests]


# A flag that is not for the command.
MISPLACED = [
    ("read", "NO_HOLE"),
    ("read", "FAST_ZERO"),
    ("write", "DF"),
    ("write", "NO_HOLE"),
    ("flush", "REQ_ONE"),
    ("trim", "NO_HOLE"),
    ("trim", "FAST_ZERO"),
    ("cache", "DF"),
    ("write_zeroes", "REQ_ONE"),
    ("block_status", "NO_HOLE"),
]


def misplaced(command: str, flag: str, size: int) -> dict[str, object]:
    """A request that the model has no word for: it is refused, and changes nothing ("Error values")."""
    nothing = vector(f"{command} with {flag}, which is not for it", "AT", [Read(0, 1)], size)
    place = {} if command == "flush" else {"offset": 0, "length": BLOCK}
    data = {"byte": 9} if command == "write" else {}
    request = {"command": command, **place, "flags": [flag], **data}
    return {**nothing, "need": "SHOULD", "steps": [{"request": request, "answers": [{"error": "EINVAL"}]}]}


def vector(
    name: str, states: str, requests: Sequence[Request], size: int = SIZE, read_only: bool = False
) -> dict[str, object]:
    """One, played in the model."""
    shadow = Shadow(model.new_device(size, BLOCK, read_only=read_only))
    setup = bring_to(states, size)
    for request in setup:
        assert shadow.apply(request) == model.Done(), (name, request)
    assert shadow.states().startswith(states), (name, shadow.states())
    steps = [step(shadow, request) for request in requests]
    whole = model.apply(shadow.device, Status(0, size))[1]
    assert isinstance(whole, model.Extents)
    return {
        "name": name,
        "need": need_of(requests, size),
        "setup": [told(request) for request in setup],
        "steps": steps,
        "content": shadow.runs(0, size),
        "states": shadow.states(),
        "extents": [list(extent) for extent in whole.extents],
    }


def need_of(requests: Sequence[Request], size: int) -> str:
    """How binding the answers are: what a client MUST NOT ask for, or SHOULD NOT, is answered as a server SHOULD."""
    ranges = [(request.offset, request.length) for request in requests if not isinstance(request, Flush)]
    is_usual = all(length and offset + length <= size for offset, length in ranges)
    return "MUST" if is_usual else "SHOULD"


def step(shadow: Shadow, request: Request) -> dict[str, object]:
    """A request, and the answers to it that are allowed, ours first."""
    before = shadow.runs(request.offset, request.length) if isinstance(request, Read) else []
    reply = shadow.apply(request)
    return {"request": told(request), "answers": [ours(request, reply, before), *others(request, reply)]}


def ours(request: Request, reply: model.Reply, read: Sequence[Run]) -> dict[str, object]:
    """What cowproof answers."""
    if isinstance(reply, model.Failed):
        return {"error": ERRNO[reply.error]}
    if isinstance(reply, model.Extents):
        return {"extents": [list(extent) for extent in reply.extents]}
    return {"data": list(read)} if isinstance(request, Read) else {}


def others(request: Request, reply: model.Reply) -> list[dict[str, object]]:
    """What else the protocol lets a server answer."""
    if isinstance(reply, model.Failed):
        # Of what is beyond the end, ENOSPC or EINVAL SHOULD be said; of a fast zero, a server may find it fast.
        if reply.error is model.Error.NOT_FAST:
            return [{}]
        if reply.error is model.Error.READ_ONLY:  # "the server MUST error subsequent write operations"
            return [{"error": error} for error in ("EINVAL", "EIO", "ENOTSUP")]
        return [{"error": "EINVAL"}] if ERRNO[reply.error] != "EINVAL" else []
    if isinstance(request, Status):
        return [{"legal_extents": request.length}]  # "a server MAY always safely report a status of 0"
    if isinstance(request, Zero) and request.fast:
        return [{"error": "ENOTSUP"}]
    if isinstance(request, Cache):  # "even if the command has no effect or always fails with NBD_EINVAL"
        unspecified: list[dict[str, object]] = [] if request.length else [{"unspecified": True}]
        return [{"error": "EINVAL"}, *unspecified]
    if not isinstance(request, Flush) and not request.length:
        return [{"unspecified": True}]  # "the behavior of a server on such a request is unspecified"
    return []


NAMES = {Read: "read", Write: "write", Zero: "write_zeroes", Trim: "trim", Cache: "cache", Status: "block_status"}


def told(request: Request) -> dict[str, object]:
    """A request as it stands in a vector."""
    if isinstance(request, Flush):
        return {"command": "flush"}
    found: dict[str, object] = {"command": NAMES[type(request)], "offset": request.offset, "length": request.length}
    flags = {
        "FUA": isinstance(request, Write) and request.fua,
        "NO_HOLE": isinstance(request, Zero) and request.no_hole,
        "FAST_ZERO": isinstance(request, Zero) and request.fast,
    }
    named = [flag for flag, on in flags.items() if on]
    if named:
        found["flags"] = named
    if isinstance(request, Write):
        found["byte"] = request.data[0] if request.data else 0
    return found


def document(size: int, read_only: bool = False) -> dict[str, object]:
    """A file."""
    return {
        "format": "cowproof-vectors",
        "version": VERSION,
        "disk": {"size": size, "block_size": BLOCK, "base": BASE_RULE, "read_only": read_only},
        "vectors": read_only_vectors(size) if read_only else vectors(size),
    }


def as_text(value: dict[str, object]) -> str:
    """A line for each vector, so that what changes can be seen."""
    head = {name: part for name, part in value.items() if name != "vectors"}
    listed = value["vectors"]
    assert isinstance(listed, list)
    lines = ",\n".join(json.dumps(each) for each in listed)
    return f'{json.dumps(head)[:-1]}, "vectors": [\n{lines}\n]}}\n'


def files() -> dict[str, str]:
    """The vectors as they are committed: name and text."""
    return {
        "device.json": as_text(document(SIZE)),
        "sectors.json": as_text(document(SECTORS_SIZE)),
        "read-only.json": as_text(document(SIZE, read_only=True)),
    }


def main(arguments: Iterable[str]) -> int:
    """`python -m check.conform.vectors`: write the files anew."""
    if list(arguments):
        print("usage: python -m check.conform.vectors (writes specs/vectors/*.json anew)", file=sys.stderr)
        return 2
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(f"{FOLDER / name}: {text.count(chr(10)) - 2} vectors")
    return 0


assert [int(state) for state in State] == [0, 1, 2]

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
