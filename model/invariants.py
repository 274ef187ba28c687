"""What is always true of a device, and of every step it takes: sentences with names.

INVARIANTS hold in every state; STEP_INVARIANTS hold between the state before a request and the state and reply after
it. None of them repeats how the model computes its answer: each says what a client, or a reader of the table, may
rely on, and most could be asked of any device whatever. Specifications use the same names.

Source:  design notes, sections 1 and 3; NBD protocol, "Request types".
Shapes:  name -> predicate(device), and name -> predicate(before, request, after, reply).
Units:   bytes; blocks by index.
Errors:  none: a predicate is True or False; `broken` and `broken_by_step` name the false ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from model.block import Block, CacheMode, State
from model.block import contents as block_contents
from model.device import (
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
    Trim,
    Write,
    Zero,
    apply,
    base_of,
    contents,
)
from model.extents import Extent, coalesce

# In every state.


def every_block_is_well_formed(device: Device) -> bool:
    """One block for every block_size bytes; an ALLOCATED one holds as many bytes as it covers, others hold none."""
    return len(device.blocks) == -(-device.size // device.block_size) and all(
        len(block.data) == (len(base_of(device, index)) if block.state == State.ALLOCATED else 0)
        for index, block in enumerate(device.blocks)
    )


def trimmed_reads_zero(device: Device) -> bool:
    """A TRIMMED block reads as zeroes."""
    return all(
        not any(block_contents(block, base_of(device, index)))
        for index, block in enumerate(device.blocks)
        if block.state == State.TRIMMED
    )


def unallocated_reads_base(device: Device) -> bool:
    """A NOT_ALLOCATED block reads as the base does."""
    return all(
        block_contents(block, base_of(device, index)) == base_of(device, index)
        for index, block in enumerate(device.blocks)
        if block.state == State.NOT_ALLOCATED
    )


def extents_cover_the_device(device: Device) -> bool:
    """Extents are longer than zero, differ from their neighbours, and together are as long as the device."""
    extents = _extents(device)
    return (
        all(extent.length > 0 for extent in extents)
        and extents == coalesce(extents)
        and sum(extent.length for extent in extents) == device.size
    )


def zero_extent_reads_zero(device: Device) -> bool:
    """What is reported as zero reads as zeroes, if the base's own extents tell the truth."""
    data, position = contents(device), 0
    for extent in _extents(device):
        if extent.zero and any(data[position : position + extent.length]):
            return False
        position += extent.length
    return True


def hole_extent_holds_no_data(device: Device) -> bool:
    """Where the overlay holds bytes of its own, no hole is reported."""
    size = device.block_size
    return all(
        not extent.hole
        for index, block in enumerate(device.blocks)
        if block.state == State.ALLOCATED
        for extent in _extents(device, index * size, len(base_of(device, index)))
    )


def _extents(device: Device, offset: int = 0, length: int | None = None) -> tuple[Extent, ...]:
    """The status of a range, by default of all there is."""
    _, reply = apply(device, Status(offset, device.size if length is None else length))
    assert isinstance(reply, Extents), reply
    return reply.extents


INVARIANTS: dict[str, Callable[[Device], bool]] = {
    "EveryBlockIsWellFormed": every_block_is_well_formed,
    "TrimmedReadsZero": trimmed_reads_zero,
    "UnallocatedReadsBase": unallocated_reads_base,
    "ExtentsCoverTheDevice": extents_cover_the_device,
    "ZeroExtentReadsZero": zero_extent_reads_zero,
    "HoleExtentHoldsNoData": hole_extent_holds_no_data,
}

# Between the state before a request and the state and reply after it.


def _range(request: Request) -> tuple[int, int]:
    """Where the request begins and ends, in bytes."""
    return (0, 0) if isinstance(request, Flush) else (request.offset, request.offset + request.length)


def _touched(before: Device, request: Request) -> list[int]:
    """The blocks of which at least one byte is in the range."""
    start, end = _range(request)
    size = before.block_size
    return [i for i in range(len(before.blocks)) if max(start, i * size) < min(end, (i + 1) * size)]


def _covered(before: Device, request: Request) -> list[int]:
    """The blocks of which every byte is in the range."""
    start, end = _range(request)
    size = before.block_size
    return [i for i in _touched(before, request) if start <= i * size and min((i + 1) * size, before.size) <= end]


def reply_fits_request(before: Device, request: Request, after: Device, reply: Reply) -> bool:
    """A read that is done gives as many bytes as were asked for, a status covers the range, others just say so."""
    if isinstance(reply, Failed):
        return not isinstance(request, Flush)
    if isinstance(request, Read):
        return isinstance(reply, Data) and len(reply.data) == request.length
    if isinstance(request, Status):
        return isinstance(reply, Extents) and sum(extent.length for extent in reply.extents) == request.length
    return isinstance(reply, Done)


def failure_changes_nothing(before: Device, request: Request, after: Device, reply: Reply) -> bool:
    """A request that failed has left the device as it was."""
    return not isinstance(reply, Failed) or after == before


def never_unallocated_again(before: Device, request: Request, after: Device, reply: Reply) -> bool:
    """A block that has stopped showing the base never does again."""
    return all(
        new.state != State.NOT_ALLOCATED or old.state == State.NOT_ALLOCATED
        for old, new in zip(before.blocks, after.blocks, strict=True)
    )


def base_never_changes(before: Device, request: Request, after: Device, reply: Reply) -> bool:
    """Nothing about the device changes but its blocks: not the base, and not how the device was made."""
    return replace(after, blocks=before.blocks) == before


def only_touched_bytes_change(before: Device, request: Request, after: Device, reply: Reply) -> bool:
    """Bytes outside the range read as before; and all of them do, unless the request is to write, zero or trim."""
    start, end = _range(request) if isinstance(request, Write | Zero | Trim) else (0, 0)
    old, new = contents(before), contents(after)
    return len(new) == len(old) and new[:start] == old[:start] and new[end:] == old[end:]


def only_touched_blocks_change(before: Device, request: Request, after: Device, reply: Reply) -> bool:
    """A block of which no byte is in the range keeps its state."""
    touched = _touched(before, request)
    return all(
        new == old or index in touched for index, (old, new) in enumerate(zip(before.blocks, after.blocks, strict=True))
    )


def read_gives_the_contents(before: Device, request: Request, after: Device, reply: Reply) -> bool:
    """A read gives what the device contains."""
    if not (isinstance(request, Read) and isinstance(reply, Data)):
        return True
    return reply.data == contents(before)[request.offset : request.offset + request.length]


def done_write_reads_back(before: Device, request: Request, after: Device, reply: Reply) -> bool:
    """What was written is there; what was zeroed or trimmed is zeroes."""
    if not (isinstance(request, Write | Zero | Trim) and isinstance(reply, Done)):
        return True
    wanted = request.data if isinstance(request, Write) else bytes(request.length)
    return contents(after)[request.offset : request.offset + request.length] == wanted


def fast_zero_writes_nothing(before: Device, request: Request, after: Device, reply: Reply) -> bool:
    """A fast zero that is done has turned blocks to TRIMMED, or left them, and stored nothing."""
    if not (isinstance(request, Zero) and request.fast and isinstance(reply, Done)):
        return True
    return all(after.blocks[index] == Block(State.TRIMMED) for index in _touched(before, request))


def slow_zero_is_refused_for_a_reason(before: Device, request: Request, after: Device, reply: Reply) -> bool:
    """A fast zero is refused only if the same zero, not fast, stores something, or has to read what it cannot."""
    if not (isinstance(request, Zero) and reply == Failed(Error.NOT_FAST)):
        return True
    slow, answer = apply(before, replace(request, fast=False))
    touched = _touched(before, request)
    return isinstance(answer, Failed) or any(slow.blocks[index].state == State.ALLOCATED for index in touched)


def no_hole_provisions(before: Device, request: Request, after: Device, reply: Reply) -> bool:
    """After a zero with no_hole, storage is behind every block of the range."""
    if not (isinstance(request, Zero) and request.no_hole and isinstance(reply, Done)):
        return True
    return all(after.blocks[index].state == State.ALLOCATED for index in _touched(before, request))


def covered_blocks_are_given_back(before: Device, request: Request, after: Device, reply: Reply) -> bool:
    """A trim, or a zero that allows holes, gives back the space of each block it covers whole."""
    if not (isinstance(request, Trim | Zero) and isinstance(reply, Done)):
        return True
    if isinstance(request, Zero) and request.no_hole:
        return True
    return all(after.blocks[index].state == State.TRIMMED for index in _covered(before, request))


def only_copying_allocates_without_a_write(before: Device, request: Request, after: Device, reply: Reply) -> bool:
    """Reading, caching, asking and flushing leave every block, unless copying was asked for; then it is whole."""
    if isinstance(request, Write | Zero | Trim):
        return True
    copies = (isinstance(request, Read) and before.copy_on_read) or (
        isinstance(request, Cache) and before.cache_mode == CacheMode.COW
    )
    if not copies or isinstance(reply, Failed):
        return after == before
    return all(after.blocks[index].state != State.NOT_ALLOCATED for index in _touched(before, request))


def an_unreadable_base_is_never_shown(before: Device, request: Request, after: Device, reply: Reply) -> bool:
    """What cannot be read of the base gets into no reply, and into no block that is stored."""
    if isinstance(request, Read) and isinstance(reply, Data):
        return all(
            before.blocks[index].state != State.NOT_ALLOCATED or index not in before.bad
            for index in _touched(before, request)
        )
    covered = _covered(before, request)
    return all(
        before.blocks[index].state != State.NOT_ALLOCATED or after.blocks[index] == before.blocks[index]
        for index in _touched(before, request)
        if index in before.bad and (index not in covered or not isinstance(request, Write | Zero | Trim))
    )


def an_unreadable_base_fails_only_what_reads_it(before: Device, request: Request, after: Device, reply: Reply) -> bool:
    """Unless a bad part of the base is shown in the range, and is not about to be covered whole, it harms nobody."""
    if reply != Failed(Error.BASE_UNREADABLE):
        return True
    covered = _covered(before, request) if isinstance(request, Write | Zero | Trim) else []
    return any(
        index in before.bad and before.blocks[index].state == State.NOT_ALLOCATED and index not in covered
        for index in _touched(before, request)
    )


STEP_INVARIANTS: dict[str, Callable[[Device, Request, Device, Reply], bool]] = {
    "ReplyFitsRequest": reply_fits_request,
    "FailureChangesNothing": failure_changes_nothing,
    "NeverUnallocatedAgain": never_unallocated_again,
    "BaseNeverChanges": base_never_changes,
    "OnlyTouchedBytesChange": only_touched_bytes_change,
    "OnlyTouchedBlocksChange": only_touched_blocks_change,
    "ReadGivesTheContents": read_gives_the_contents,
    "DoneWriteReadsBack": done_write_reads_back,
    "FastZeroWritesNothing": fast_zero_writes_nothing,
    "SlowZeroIsRefusedForAReason": slow_zero_is_refused_for_a_reason,
    "NoHoleProvisions": no_hole_provisions,
    "CoveredBlocksAreGivenBack": covered_blocks_are_given_back,
    "OnlyCopyingAllocatesWithoutAWrite": only_copying_allocates_without_a_write,
    "AnUnreadableBaseIsNeverShown": an_unreadable_base_is_never_shown,
    "AnUnreadableBaseFailsOnlyWhatReadsIt": an_unreadable_base_fails_only_what_reads_it,
}


def broken(device: Device) -> list[str]:
    """The names of the invariants that this state breaks: none, if all is well."""
    return [name for name, holds in INVARIANTS.items() if not holds(device)]


def broken_by_step(before: Device, request: Request, after: Device, reply: Reply) -> list[str]:
    """The names of the step invariants that this step breaks: none, if all is well."""
    return [name for name, holds in STEP_INVARIANTS.items() if not holds(before, request, after, reply)]
