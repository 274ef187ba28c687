"""A schedule for people: a column for each client, as reviews write it, and what is wrong with the end of it.

Units:   real offsets and lengths, as in the program; bytes are named after who wrote them: `base`, `stored` before the
         program began, `A1` by client A's first request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import NamedTuple

from check.explore.judge import Monitor, Part
from check.explore.programs import Program
from check.explore.replay import Answered, Did, Happening, Sent, Story, Wrong
from check.explore.search import Machine, letter
from check.explore.world import HOLE, Fault
from impl.sizes import format_size
from model.block import State
from model.device import Data, Read, Write, contents
from specs.subjects.seam import STATES_PER_BYTE, unpacked

COLUMN_MIN = 38
STATE_NAMES = {int(state): state.name for state in State}


class Namer:
    """Real names for small things."""

    def __init__(self, program: Program, two_bits: bool = False) -> None:
        self._disk = program.disk
        self._two_bits = two_bits
        self._names: dict[int, str] = {HOLE: "nothing", 0: "zeroes", **dict.fromkeys(program.disk.base, "base")}
        self._names.update(dict.fromkeys(filter(None, program.disk.stored), "stored"))
        for client, requests in enumerate(program.requests):
            for index, request in enumerate(requests):
                if isinstance(request, Write):
                    self._names.update(dict.fromkeys(request.data, f"{letter(client)}{index + 1}"))

    def range(self, start: int, end: int) -> str:
        """A small range by its real offset and length."""
        real = self._disk.scale.real(start)
        return f"{format_size(real)}+{format_size(self._disk.scale.real(end) - real)}"

    def block(self, at: int) -> int:
        """The block of a small offset."""
        return at // self._disk.block_size

    def runs(self, start: int, data: bytes) -> list[tuple[str, int, int]]:
        """Who wrote what: name, small start and end."""
        runs = []
        at = start
        for name, same in groupby(self._names.get(value, "?") for value in data):
            end = at + len(list(same))
            runs.append((name, at, end))
            at = end
        return runs

    def written(self, start: int, data: bytes) -> str:
        """The same in words."""
        runs = self.runs(start, data)
        if len(runs) == 1:
            return runs[0][0]
        return ", ".join(f"{name} in {self.range(first, last)}" for name, first, last in runs)

    def states(self, at: int, value: int) -> tuple[str, str]:
        """What a byte of the map is of, and what it says: one block's state, or those of four."""
        if not self._two_bits:
            return f"state of block {at}", STATE_NAMES[value]
        count = min(STATES_PER_BYTE, len(self._disk.initial) - STATES_PER_BYTE * at)
        named = [STATE_NAMES[state] for state in unpacked(bytes([value]), count)]
        return f"byte {at} of the map", " and ".join(named)


class Line(NamedTuple):
    """What a line of a client's column says, and the happening that it begins with."""

    client: int
    happening: Happening
    text: str


def columns(machine: Machine, story: Story) -> str:
    """What happened, a column for each client."""
    shown = lines(machine, story)
    width = max([COLUMN_MIN, *(len(line.text) + 2 for line in shown)])
    count = len(machine.question.program.requests)
    heads = "".join(f"client {letter(client)}".ljust(width) for client in range(count))
    return "\n".join([heads.rstrip(), *(" " * width * line.client + line.text for line in shown)])


def lines(machine: Machine, story: Story) -> list[Line]:
    """What happened, line by line."""
    program = machine.question.program
    return list(_lines(program, Namer(program, machine.question.kind.two_bits), story.happenings))


def _lines(program: Program, namer: Namer, happenings: list[Happening]) -> Iterator[Line]:
    at = 0
    while at < len(happenings):
        each = happenings[at]
        end = at + 1
        if isinstance(each, Did) and each.op[0] in _TRANSFERS:
            while end < len(happenings) and _goes_on(happenings[end - 1], happenings[end]):
                end += 1
            moved = [did for did in happenings[at:end] if isinstance(did, Did)]
            yield Line(each.client, each, "  " + _transfer(namer, moved))
        elif isinstance(each, Did):
            yield Line(each.client, each, "  " + _operation(namer, each))
        elif isinstance(each, Sent):
            asked = str(program.asks[each.client][each.request]).upper().replace("ZERO ", "WRITE_ZEROES ")
            yield Line(each.client, each, asked)
        elif isinstance(each, Answered):
            yield Line(each.client, each, _answer(program, namer, each))
        elif isinstance(each, Wrong):
            yield Line(each.client, each, f"  !! {each.what}")
        at = end


_TRANSFERS = {"read": "read from the overlay", "write": "write to the overlay", "punch": "give back"}


def _goes_on(before: Happening, after: Happening) -> bool:
    """Whether two operations are parts of one transfer."""
    if not isinstance(before, Did) or not isinstance(after, Did):
        return False
    if before.client != after.client or before.op[0] != after.op[0] or isinstance(before.result, Fault):
        return False
    first, second = before.op[1], after.op[1]
    return isinstance(first, int) and isinstance(second, int) and second == first + 1


def _transfer(namer: Namer, dids: list[Did]) -> str:
    kind, start = dids[0].op[0], dids[0].op[1]
    assert isinstance(kind, str)
    assert isinstance(start, int)
    text = f"{_TRANSFERS[kind]} {namer.range(start, start + len(dids))}"
    if isinstance(dids[-1].result, Fault):
        return f"{text}: fails"
    moved = [did.op[2] if kind == "write" else did.result for did in dids if kind != "punch"]
    data = bytes(value for value in moved if isinstance(value, int))
    return f"{text}: {namer.written(start, data)}" if data else text


def _operation(namer: Namer, did: Did) -> str:
    kind, *arguments = did.op
    assert isinstance(kind, str)
    text = _WORDS[kind](namer, arguments, did.result) if kind in _WORDS else " ".join(map(str, did.op))
    return f"{text}: fails" if isinstance(did.result, Fault) else text


def _locks(_: Namer, arguments: list[object], result: object) -> str:
    first, last, exclusive = arguments
    blocks = f"block {first}" if first == last else f"blocks {first} to {last}"
    return f"lock {blocks} to {'change' if exclusive else 'look'}{'' if result else ': waits'}"


def _from_base(namer: Namer, arguments: list[object], _: object) -> str:
    offset, length = arguments
    assert isinstance(offset, int)
    assert isinstance(length, int)
    return f"read from the base {namer.range(offset, offset + length)}"


_WORDS: dict[str, Callable[[Namer, list[object], object], str]] = {
    "enqueue": _locks,
    "try": lambda namer, arguments, result: _locks(namer, arguments, True) + ("" if result else ": not now"),
    "granted": lambda *_: "has the lock",
    "release": lambda *_: "unlock",
    "get": lambda namer, arguments, result: " is ".join(namer.states(_number(arguments[0]), _number(result))),
    "set": lambda namer, arguments, _: " := ".join(namer.states(_number(arguments[0]), _number(arguments[1]))),
    "base": _from_base,
    "extents": lambda namer, arguments, _: _from_base(namer, arguments, None).replace("read from", "ask extents of"),
    "ready": lambda _, __, result: f"the base is {'' if result else 'not '}said to be ready",
    "arrive": lambda namer, arguments, _: _locks(namer, arguments, True).replace("lock", "ask for"),
    "inside": lambda *_: "hold it",
    "tell": lambda _, arguments, __: f"say that it is held to {arguments[0]}",
    "hear": lambda *_: "hears that it is held",
    "outside": lambda *_: "let go of it",
    "lock": lambda _, arguments, __: f"take {arguments[0]}",
    "unlock": lambda _, arguments, __: f"give {arguments[0]} back",
    "wait": lambda _, arguments, __: f"give {arguments[1]} back, and wait",
    "wake": lambda *_: "is woken",
    "notify": lambda *_: "wake the next",
    "load": lambda _, arguments, __: f"look at {arguments[0]}",
    "store": lambda _, arguments, __: f"change {arguments[0]}",
}


def _number(value: object) -> int:
    return value if isinstance(value, int) else -1


def _answer(program: Program, namer: Namer, each: Answered) -> str:
    if isinstance(each.said, int):
        return f"failed, errno {each.said}"
    if isinstance(each.said, Data):
        request = program.requests[each.client][each.request]
        assert isinstance(request, Read)
        return f"done: {namer.written(request.offset, each.said.data)}"
    return "done"


def ending(machine: Machine, story: Story) -> str:
    """What is there in the end, and what could have been."""
    program = machine.question.program
    namer = Namer(program)
    found, _ = machine.question.kind.seen(program.disk, story.world)
    lines = [f"=> {story.wrong or 'nothing is wrong with this'}"]
    if not machine.question.kind.is_device:
        return lines[0]
    lines.append(f"   the device holds:  {namer.written(0, found)}")
    if story.wrong and not any(isinstance(each, Wrong) for each in story.happenings):
        lines += _allowed(namer, machine.judge.parts, machine.judge.explanations(story.monitor), found)
    return "\n".join(lines)


def _allowed(namer: Namer, parts: list[Part], monitors: tuple[Monitor, ...], found: bytes) -> Iterator[str]:
    """Where what is there is not what could be."""
    for part, explanations in zip(parts, monitors, strict=True):
        could = {contents(each.device) for each in explanations}
        if found[part.start : part.end] not in could:
            names = " or ".join(sorted({namer.written(part.start, data) for data in could}))
            yield f"   {namer.range(part.start, part.end)} could hold: {names}"
