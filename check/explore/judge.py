"""Whether what clients have seen is allowed: a monitor that goes along with the search.

A monitor is the set of all explanations that are left: each a state of the device, and for every request in flight
whether it has taken effect, and with what reply. When a request is answered, the explanations in which it has not, or
not with that reply, are gone; when none is left, no order of the requests explains what was seen.

A level is the unit that takes effect at an instant: the whole request, its part in each block, or in each byte of the
small device, which stands for a sector. Linearizability is local (Herlihy and Wing, 1990, theorem 1): so for the finer
levels there is a monitor for each block or sector, and each sees its part of every request.

Source:  `model/device.py` is the judge of a request at an instant; `model/failures.py` of what a failed one may leave.
Shapes:  monitors, explanations and device states are interned: a number stands for each, and equal ones are one.
Omits:   whether a block that reads as its base has a copy of it: no reply tells, if the base has no extents of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from errno import EIO
from itertools import product
from typing import Literal, NamedTuple

from check.explore.programs import Disk
from model.block import Block, State, allocated
from model.device import (
    ERRNO,
    Cache,
    Data,
    Device,
    Done,
    Error,
    Extents,
    Failed,
    Flush,
    Read,
    Reply,
    Request,
    Status,
    Write,
    Zero,
    apply,
    base_of,
    contents,
)
from model.failures import may_be_told

Level = Literal["request", "block", "sector"]
LEVELS: tuple[Level, ...] = ("request", "block", "sector")

# A reply in an explanation; an errno is what a failure, injected or not, was answered with.
Said = Reply | int


class Pending(NamedTuple):
    """The part of a request in flight that one monitor sees: `effect` is its reply once it has taken effect."""

    client: int
    request: Request
    effect: Said | None


class Explanation(NamedTuple):
    """A device, and the requests in flight."""

    device: Device
    pending: tuple[Pending, ...]


Monitor = frozenset[Explanation]


@dataclass(frozen=True)
class Part:
    """The part of the device that one monitor watches: `start` to `end` in small bytes."""

    start: int
    end: int


def parts_of(disk: Disk, level: Level) -> list[Part]:
    """What is watched apart."""
    step = {"request": disk.size, "block": disk.block_size, "sector": 1}[level]
    return [Part(start, min(start + step, disk.size)) for start in range(0, disk.size, step)]


def cut(request: Request, part: Part) -> Request | None:
    """What a request asks of one part; None for nothing."""
    if isinstance(request, Flush):
        return None
    start, end = max(request.offset, part.start), min(request.offset + request.length, part.end)
    if start >= end:
        return None
    at = start - part.start
    if isinstance(request, Write):
        return Write(at, request.data[start - request.offset : end - request.offset])
    return replace(request, offset=at, length=end - start)


def cut_reply(said: Said, request: Request, part: Part) -> Said:
    """What a reply says of one part."""
    if isinstance(said, Data) and isinstance(request, Read):
        start, end = max(request.offset, part.start), min(request.offset + request.length, part.end)
        return Data(said.data[start - request.offset : end - request.offset])
    return said


def settled(device: Device) -> Device:
    """The device with every block that shows its base holding it: nobody can tell the difference."""
    blocks = tuple(
        allocated(base_of(device, index)) if block.state == State.NOT_ALLOCATED else block
        for index, block in enumerate(device.blocks)
    )
    return replace(device, blocks=blocks)


def device_of(disk: Disk, part: Part) -> Device:
    """One part of the device as it is at first."""
    block_size = min(disk.block_size, part.end - part.start)
    base = disk.base[part.start : part.end]
    blocks = []
    for start in range(part.start, part.end, block_size):
        state = disk.initial[start // disk.block_size]
        held = disk.stored[start : min(start + block_size, part.end)] if state == State.ALLOCATED else b""
        blocks.append(Block(state, held))
    return settled(Device(len(base), block_size, base, tuple(blocks)))


class Judge:
    """The monitors of all programs on one disk at one level.

    faults:  whether requests may fail because an operation did.
    holes:   whether it is judged, too, which blocks are holes in the end; only a whole request can tell.
    """

    def __init__(self, disk: Disk, level: Level, faults: bool = False, holes: bool = True) -> None:
        self.parts = parts_of(disk, level)
        self._block_size = disk.block_size
        self._faults = faults
        self._whole_only = level == "request"
        self._holes = holes and self._whole_only
        self._closures: dict[Monitor, Monitor] = {}
        self._steps: dict[tuple[Device, Request], tuple[tuple[Device, Said], ...]] = {}
        self._ids: dict[tuple[Monitor, ...], int] = {}
        self._all: list[tuple[Monitor, ...]] = []
        self.first = self._id(tuple(frozenset({Explanation(device_of(disk, part), ())}) for part in self.parts))

    def _id(self, monitors: tuple[Monitor, ...]) -> int:
        found = self._ids.get(monitors)
        if found is None:
            found = self._ids[monitors] = len(self._all)
            self._all.append(monitors)
        return found

    def explanations(self, monitor: int) -> tuple[Monitor, ...]:
        """What is left, part by part; for people."""
        return self._all[monitor]

    def invoked(self, monitor: int, client: int, request: Request) -> int:
        """A request has been sent."""
        return self._id(
            tuple(
                monitors if (asked := cut(request, part)) is None else _with_pending(monitors, client, asked)
                for part, monitors in zip(self.parts, self._all[monitor], strict=True)
            )
        )

    def answered(self, monitor: int, client: int, request: Request, said: Said) -> int | None:
        """A request has been answered; None when nothing explains the answer."""
        left = tuple(
            monitors if cut(request, part) is None else self._answered(monitors, client, cut_reply(said, request, part))
            for part, monitors in zip(self.parts, self._all[monitor], strict=True)
        )
        return self._id(left) if all(left) else None

    def _answered(self, monitors: Monitor, client: int, heard: Said) -> Monitor:
        if isinstance(heard, Extents) and not self._whole_only:
            heard = Done()
        return frozenset(
            each._replace(pending=tuple(p for p in each.pending if p.client != client))
            for each in self._closed(monitors)
            if any(p.client == client and p.effect == heard for p in each.pending)
        )

    def _closed(self, monitors: Monitor) -> Monitor:
        """The explanations, and all in which some of what is in flight has taken effect besides."""
        if monitors not in self._closures:
            found = set(monitors)
            left = list(monitors)
            while left:
                for each in self._with_one_more(left.pop()):
                    if each not in found:
                        found.add(each)
                        left.append(each)
            self._closures[monitors] = frozenset(found)
        return self._closures[monitors]

    def _with_one_more(self, each: Explanation) -> Iterator[Explanation]:
        for position, pending in enumerate(each.pending):
            if pending.effect is None:
                for device, said in self._effects(each.device, pending.request):
                    done = pending._replace(effect=said)
                    yield Explanation(device, (*each.pending[:position], done, *each.pending[position + 1 :]))

    def _effects(self, device: Device, request: Request) -> tuple[tuple[Device, Said], ...]:
        """What a request may do at an instant, and be answered with."""
        key = (device, request)
        if key not in self._steps:
            after, said = at_an_instant(device, request)
            if isinstance(request, Status) and not self._whole_only:
                said = Done()
            found = [(after, said)]
            if isinstance(request, Zero) and request.fast and not self._whole_only:
                # Whether a zero is fast is a matter of all its blocks: either answer is allowed here.
                after, said = at_an_instant(device, replace(request, fast=False))
                found = [(after, said), (device, ERRNO[Error.NOT_FAST])]
            if self._faults:
                told = may_be_told(request, device.block_size, device.size) if self._whole_only else _FAULTS
                found += [
                    (each, number) for number in sorted(told) for each in some_blocks(device, after, torn=number == EIO)
                ]
            self._steps[key] = tuple(dict.fromkeys(found))
        return self._steps[key]

    def ended(self, monitor: int, found: bytes, trimmed: tuple[bool, ...]) -> bool:
        """Whether the device may hold what it holds in the end, nothing being in flight any more."""
        for part, monitors in zip(self.parts, self._all[monitor], strict=True):
            size = self._block_size
            holes = trimmed[part.start // size : -(-part.end // size)]
            if not any(_is(each.device, found[part.start : part.end], holes, self._holes) for each in monitors):
                return False
        return True


def at_an_instant(device: Device, request: Request) -> tuple[Device, Said]:
    """The device after a request, and the reply or the errno of its refusal."""
    after, reply = apply(device, request)
    return settled(after), ERRNO[reply.error] if isinstance(reply, Failed) else reply


# What any failed request may be told, where only a part of it is seen: which one it needs, the whole range says.
_FAULTS = may_be_told(Cache(0, 1), 1, 1)


def some_blocks(before: Device, after: Device, torn: bool = False) -> list[Device]:
    """The device with each of the blocks that changed as before or as after (promise P7).

    torn:  also with blocks that were ALLOCATED, and would be, as a write left them that broke half way.
    """
    choices = [
        (old,) if old == new else (old, new, *(_half_written(old, new) if torn else ()))
        for old, new in zip(before.blocks, after.blocks, strict=True)
    ]
    return [replace(before, blocks=blocks) for blocks in product(*choices)]


def _half_written(old: Block, new: Block) -> Iterator[Block]:
    if old.state == new.state == State.ALLOCATED:
        for end in range(1, len(old.data)):
            yield replace(old, data=new.data[:end] + old.data[end:])


def _with_pending(monitors: Monitor, client: int, request: Request) -> Monitor:
    new = Pending(client, request, None)
    return frozenset(
        each._replace(pending=tuple(sorted((*each.pending, new), key=lambda pending: pending.client)))
        for each in monitors
    )


def _is(device: Device, found: bytes, trimmed: tuple[bool, ...], with_holes: bool) -> bool:
    if contents(device) != found:
        return False
    return not with_holes or tuple(block.state == State.TRIMMED for block in device.blocks) == trimmed
