"""What may be found after the overlay's own storage has failed in the middle of a request.

A full disk or an I/O error comes when it likes, so `device.apply` cannot foretell it. What is promised is this: each
whole block is entirely as before the request or entirely as after it, whichever, and no block that the request left
alone has changed. The same holds for a copying read that was answered, though its copies could not all be stored.

There is one exception: after an I/O error, a block that was ALLOCATED and would be so still may hold a part of either.
It had its space, so a full disk could not stop its write half way; and there is no second copy to go back to.

A test that drives a device and the model side by side goes on after a failure like this:

    after, _ = apply(before, request)                    # what success would have been
    seen = observe(ask, before, changed_blocks(before, after))
    device = adopt(before, after, seen)                  # None: the promise is broken
    device = adopt(before, after, seen, torn=True)       # the same after an I/O error

Source:  design notes, promise P7.
Shapes:  observations by block index; a block that was not observed is taken to be as before.
Units:   bytes; blocks by index.
Errors:  none: a broken promise is None, False or Outcome.NEITHER.
Omits:   no other outcome: elsewhere a block half old and half new breaks the promise, and so does one that reads as
         before but has gained or lost its storage. Where nothing seen tells old from new, `adopt` takes the old. That
         does no harm to a block copied up from a base of plain data: it can never be told apart. A block that was
         trimmed over a base which itself reports a hole of zeroes can, by a later fast zero: there, give `state` if
         you can.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto

from model import block as one
from model.block import Block, State
from model.device import (
    Cache,
    Data,
    Device,
    Extents,
    Flush,
    Read,
    Reply,
    Request,
    Status,
    Trim,
    Write,
    Zero,
    apply,
    base_of,
)
from model.extents import Extent, clip


@dataclass(frozen=True, slots=True)
class Observed:
    """What was seen of one block after a failure; None is what was not looked at."""

    contents: bytes | None = None
    extents: tuple[Extent, ...] | None = None
    state: State | None = None
    unreadable: bool = False  # The block was read, and the base under it could not be.


class Outcome(Enum):
    """What became of one block."""

    UNCHANGED = auto()
    HAPPENED = auto()
    EITHER = auto()  # Nothing that was seen tells old from new.
    TORN = auto()  # Each byte is the old one or the new one, and the block may be torn.
    NEITHER = auto()  # The promise is broken.


def may_be_told(request: Request, block_size: int, size: int) -> frozenset[int]:
    """The errnos that a request may be answered with because an operation on base or store failed (promise P7).

    Only where the request needs what failed: a read that cannot keep its copy has its bytes, space that is not given
    back fails nobody, and a fast zero is decided by state, with no look at the base.
    """
    match request:
        case Read():
            return frozenset({errno.EIO})
        case Zero(fast=True) | Status() | Flush():
            return frozenset()
        case Zero(offset, length, False) | Trim(offset, length):
            return _STORED if _covers_a_part(offset, length, block_size, size) else frozenset()
        case Write() | Zero() | Cache():
            return _STORED


# Something has to be stored: there may be no room for it, or what is there may be broken.
_STORED = frozenset({errno.ENOSPC, errno.EIO})


def _covers_a_part(offset: int, length: int, block_size: int, size: int) -> bool:
    """Whether a range covers a block in part."""
    end = offset + length
    return offset % block_size != 0 or (end % block_size != 0 and end != size)


def changed_blocks(before: Device, after: Device) -> list[int]:
    """The blocks that success would have changed: those that a failure leaves open."""
    pairs = enumerate(zip(before.blocks, after.blocks, strict=True))
    return [index for index, (old, new) in pairs if old != new]


def observe(ask: Callable[[Request], Reply], device: Device, indices: Iterable[int]) -> dict[int, Observed]:
    """Look at blocks through a client's eyes: status first, since reading may copy a block up."""
    seen: dict[int, Observed] = {}
    for index in indices:
        offset, length = index * device.block_size, len(base_of(device, index))
        status, read = ask(Status(offset, length)), ask(Read(offset, length))
        seen[index] = Observed(
            contents=read.data if isinstance(read, Data) else None,
            extents=status.extents if isinstance(status, Extents) else None,
            unreadable=not isinstance(read, Data),
        )
    return seen


def fits(device: Device, index: int, block: Block, seen: Observed) -> bool:
    """Whether `block`, in its place on the device, would have looked like this."""
    base = base_of(device, index)
    unreadable = index in device.bad and one.reading_needs_base(block)
    if seen.unreadable != unreadable and (seen.unreadable or seen.contents is not None):
        return False
    if seen.contents is not None and seen.contents != one.contents(block, base):
        return False
    if seen.state is not None and seen.state != block.state:
        return False
    if seen.extents is None:
        return True
    blocks = (*device.blocks[:index], block, *device.blocks[index + 1 :])
    _, reply = apply(replace(device, blocks=blocks), Status(index * device.block_size, len(base)))
    return reply == Extents(seen.extents)


def torn_block(before: Device, after: Device, index: int, seen: Observed) -> Block | None:
    """The block as an I/O error has torn it; None if what was seen is not that."""
    old, new = before.blocks[index], after.blocks[index]
    if old.state != State.ALLOCATED or new.state != State.ALLOCATED or seen.contents is None:
        return None
    if len(seen.contents) != len(old.data):
        return None
    if not all(byte in (was, would) for byte, was, would in zip(seen.contents, old.data, new.data, strict=True)):
        return None
    block = one.allocated(seen.contents)
    return block if fits(before, index, block, seen) else None


def outcome(before: Device, after: Device, index: int, seen: Observed, *, torn: bool = False) -> Outcome:
    """What became of one block, going by what was seen of it; `torn` says that an I/O error may have torn it."""
    old = fits(before, index, before.blocks[index], seen)
    new = fits(before, index, after.blocks[index], seen)
    if before.blocks[index] == after.blocks[index]:
        return Outcome.UNCHANGED if old else Outcome.NEITHER
    if old and new:
        return Outcome.EITHER
    if new:
        return Outcome.HAPPENED
    if old:
        return Outcome.UNCHANGED
    return Outcome.TORN if torn and torn_block(before, after, index, seen) is not None else Outcome.NEITHER


def adopt(before: Device, after: Device, seen: Mapping[int, Observed], *, torn: bool = False) -> Device | None:
    """The device as it must now be: `after` where the request has happened, else `before`; None if it is neither.

    With `torn`, after an I/O error, a block may also be as it was seen, if that is a part of either.
    """
    blocks = list(before.blocks)
    for index in sorted(seen):
        found = outcome(before, after, index, seen[index], torn=torn)
        if found == Outcome.NEITHER:
            return None
        if found == Outcome.HAPPENED:
            blocks[index] = after.blocks[index]
        if found == Outcome.TORN:
            blocks[index] = torn_block(before, after, index, seen[index]) or blocks[index]
    return replace(before, blocks=tuple(blocks))


def seen_of_all(device: Device, contents: bytes, extents: tuple[Extent, ...] | None = None) -> dict[int, Observed]:
    """What each block showed in one read, and perhaps one status, of the whole device; all of its base is readable."""
    seen: dict[int, Observed] = {}
    for index in range(len(device.blocks)):
        start = index * device.block_size
        end = min(start + device.block_size, device.size)
        seen[index] = Observed(contents[start:end], None if extents is None else clip(extents, start, end))
    return seen


def permitted_after_failure(
    before: Device, after: Device, contents: bytes, extents: tuple[Extent, ...] | None = None
) -> bool:
    """Whether a device that now reads as `contents`, all of it, has kept the promise."""
    return len(contents) == before.size and adopt(before, after, seen_of_all(before, contents, extents)) is not None
