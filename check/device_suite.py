"""What is true of any device, said once: the same claims for the model, the overlay and the server.

    for claim in CLAIMS:
        if claim.concerns(OverlaySubject):
            claim(OverlaySubject)

Each claim asks requests of devices that it makes, and raises AssertionError. They are small and by hand, for a
reader; the breadth comes from `check/stateful.py`. A claim that needs a store to break, or a subject that judges
requests by itself, says so, and is not asked of others: a claim that returned early would seem to hold.

Source:  the table of requests and states in `model/block.py`; NBD protocol, "Request types".
Units:   bytes; BLOCK is the block size of every device here.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, overload

from check.subjects import Damage, Operation, Setup, Subject
from model.block import CacheMode, State
from model.device import (
    Cache,
    Data,
    Done,
    Extents,
    Flush,
    Read,
    Reply,
    Request,
    Status,
    Trim,
    Write,
    Zero,
)
from model.extents import Extent

BLOCK = 4096
Make = Callable[[Setup], Subject]
Check = Callable[[Make], None]
Need = Literal["nothing", "store", "validation"]


@dataclass(frozen=True)
class Claim:
    """A claim, and what a subject has to have for it to say anything."""

    name: str
    check: Check
    needs: Need

    def __call__(self, make: Make) -> None:
        """Raise AssertionError if it does not hold."""
        self.check(make)

    def concerns(self, subject: type[Subject]) -> bool:
        """Whether the claim can be asked of such subjects."""
        return {"nothing": True, "store": subject.has_store, "validation": subject.validates}[self.needs]


CLAIMS: list[Claim] = []


@overload
def claim(check: Check) -> Check: ...


@overload
def claim(*, needs: Need) -> Callable[[Check], Check]: ...


def claim(check: Check | None = None, *, needs: Need = "nothing") -> Check | Callable[[Check], Check]:
    """Register a claim."""

    def register(check: Check) -> Check:
        CLAIMS.append(Claim(check.__name__, check, needs))
        return check

    return register if check is None else register(check)


def base_bytes(size: int) -> bytes:
    """Bytes none of which is zero, and whose blocks all differ."""
    return bytes(1 + (index + index // BLOCK * 7) % 251 for index in range(size))


class _Asked:
    """A subject made for one claim, closed at its end."""

    def __init__(self, make: Make, setup: Setup) -> None:
        self.base = setup.base
        self.subject = make(setup)

    def __enter__(self) -> _Asked:
        return self

    def __exit__(self, *_: object) -> None:
        self.subject.close()

    def ask(self, request: Request) -> Reply:
        """The reply of a request that must not fail."""
        try:
            return self.subject.ask(request)
        except OSError as error:
            raise AssertionError(f"{type(request)} failed: {error}") from error

    def done(self, request: Request) -> None:
        assert self.ask(request) == Done(), request

    def reads(self, offset: int, expected: bytes) -> None:
        reply = self.ask(Read(offset, len(expected)))
        assert isinstance(reply, Data), reply
        assert reply.data == expected, f"[{offset}, +{len(expected)}) does not read as expected"

    def contents(self) -> bytes:
        reply = self.ask(Read(0, len(self.base)))
        assert isinstance(reply, Data), reply
        return reply.data

    def fails(self, request: Request, expected: int, *, readable: bool = True) -> None:
        """Assert the errno, and that nothing has changed, as far as all of the device can be read."""
        readable = readable and expected != errno.EIO
        before = self.contents() if readable else b""
        try:
            self.subject.ask(request)
        except OSError as error:
            assert error.errno == expected, f"{type(request)} failed with {error.errno}, expected {expected}"
        else:
            raise AssertionError(f"{type(request)} succeeded, expected errno {expected}")
        changed = readable and self.contents() != before
        assert not changed, f"{type(request)} failed and changed something"

    def states(self, *expected: State) -> None:
        found = tuple(self.subject.state_of(block) for block in range(len(expected)))
        assert found == expected, found


def _device(
    make: Make,
    size: int = 4 * BLOCK,
    *,
    bad: frozenset[int] = frozenset(),
    copy_on_read: bool = False,
    cache_mode: CacheMode = CacheMode.IGNORE,
    read_only: bool = False,
    base_extents: tuple[Extent, ...] | None = None,
) -> _Asked:
    return _Asked(make, Setup(base_bytes(size), BLOCK, bad, copy_on_read, cache_mode, read_only, base_extents))


N, A, T = State.NOT_ALLOCATED, State.ALLOCATED, State.TRIMMED


@claim
def a_device_nobody_wrote_to_reads_as_its_base(make: Make) -> None:
    """All of it, and any part."""
    with _device(make) as device:
        device.reads(0, device.base)
        device.reads(BLOCK - 3, device.base[BLOCK - 3 : 2 * BLOCK + 5])
        device.states(N, N, N, N)


@claim
def a_write_reads_back_and_leaves_the_rest(make: Make) -> None:
    """Whatever its ends: within a block, across blocks, whole blocks."""
    for offset, length in ((0, 1), (100, 70), (BLOCK - 1, 2), (0, BLOCK), (BLOCK, 2 * BLOCK), (7, 3 * BLOCK)):
        with _device(make) as device:
            device.done(Write(offset, b"\xfe" * length))
            device.reads(0, device.base[:offset] + b"\xfe" * length + device.base[offset + length :])


@claim
def a_second_write_to_a_block_keeps_what_the_first_left(make: Make) -> None:
    """The block is ALLOCATED by then, and the base plays no part."""
    with _device(make) as device:
        device.done(Write(10, b"first"))
        device.done(Write(13, b"SECOND"))
        device.reads(0, device.base[:10] + b"firSECOND" + device.base[19:BLOCK])


@claim
def a_device_of_any_size_is_served_to_its_last_byte(make: Make) -> None:
    """One byte, a byte less or more than a block, and sizes that are nothing in particular."""
    for size in (1, 511, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 1234):
        with _device(make, size) as device:
            device.reads(0, device.base)
            device.done(Write(size - 1, b"\xff"))
            device.reads(0, device.base[:-1] + b"\xff")
            device.done(Zero(0, size))
            device.reads(0, bytes(size))


@claim
def the_last_short_block_is_a_block_like_any_other(make: Make) -> None:
    """Covered to the end of the device, it is covered whole."""
    size = BLOCK + 100
    with _device(make, size) as device:
        device.done(Trim(BLOCK, 100))
        device.states(N, T)
        device.reads(0, device.base[:BLOCK] + bytes(100))
        device.done(Write(BLOCK + 10, b"new"))
        device.states(N, A)
        device.reads(BLOCK, bytes(10) + b"new" + bytes(87))
        device.done(Write(BLOCK, b"\x11" * 100))
        device.reads(BLOCK, b"\x11" * 100)


@claim
def a_write_to_part_of_the_last_short_block_keeps_its_other_part(make: Make) -> None:
    """The part of the base that is merged ends where the device does."""
    size = 2 * BLOCK + 777
    with _device(make, size) as device:
        device.done(Write(2 * BLOCK + 5, b"abc"))
        device.reads(2 * BLOCK, device.base[2 * BLOCK : 2 * BLOCK + 5] + b"abc" + device.base[2 * BLOCK + 8 :])
        device.done(Write(BLOCK - 2, b"X" * 4))
        device.reads(0, device.base[: BLOCK - 2] + b"XXXX" + device.base[BLOCK + 2 : 2 * BLOCK])


@claim
def zeroes_and_trims_read_as_zeroes_whatever_their_ends(make: Make) -> None:
    """A promise stronger than the protocol's, which says nothing of what a trimmed range holds."""
    for offset, length in ((0, BLOCK), (5, 10), (BLOCK - 5, 10), (5, 2 * BLOCK), (0, 4 * BLOCK)):
        for request in (Zero(offset, length), Trim(offset, length), Zero(offset, length, no_hole=True)):
            with _device(make) as device:
                device.done(request)
                device.reads(0, device.base[:offset] + bytes(length) + device.base[offset + length :])


@claim
def whole_blocks_that_are_zeroed_are_trimmed_unless_no_hole_is_asked_for(make: Make) -> None:
    """And a block covered in part is written, unless it is zeroes already."""
    with _device(make) as device:
        device.done(Zero(0, BLOCK + 10))
        device.states(T, A, N, N)
        device.done(Zero(0, 2 * BLOCK, no_hole=True))
        device.states(A, A, N, N)
        device.done(Trim(0, 4 * BLOCK))
        device.states(T, T, T, T)
        device.done(Trim(10, 10))
        device.states(T, T, T, T)
        device.done(Zero(10, 10, no_hole=True))
        device.states(A, T, T, T)
        device.reads(0, bytes(4 * BLOCK))


@claim
def a_fast_zero_succeeds_exactly_where_no_data_has_to_be_written(make: Make) -> None:
    """By state, not by what the data is; refused, it has changed nothing."""
    with _device(make) as device:
        device.done(Zero(0, BLOCK, fast=True))
        device.done(Zero(100, 100, fast=True))
        device.states(T, N, N, N)
        device.fails(Zero(BLOCK + 1, 10, fast=True), errno.ENOTSUP)
        device.fails(Zero(0, BLOCK + 1, fast=True), errno.ENOTSUP)
        device.fails(Zero(0, BLOCK, no_hole=True, fast=True), errno.ENOTSUP)
        device.done(Zero(2 * BLOCK, BLOCK, no_hole=True))
        device.fails(Zero(2 * BLOCK, 10, fast=True), errno.ENOTSUP)
        device.states(T, N, A, N)


@claim
def extents_say_what_is_a_hole_and_what_is_zero(make: Make) -> None:
    """The base's own where nobody has written, data where somebody has, a hole of zeroes where it was trimmed."""
    hole = Extent(BLOCK, hole=True, zero=True)
    known = (Extent(2 * BLOCK + 512, False, False), Extent(BLOCK - 512, True, True), Extent(BLOCK, False, True))
    with _device(make, base_extents=known) as device:
        assert device.ask(Status(0, 4 * BLOCK)) == Extents(known)
        device.done(Trim(0, BLOCK))
        device.done(Write(3 * BLOCK, b"x"))
        expected = (hole, Extent(BLOCK + 512, False, False), known[1], Extent(BLOCK, False, False))
        assert device.ask(Status(0, 4 * BLOCK)) == Extents(expected)
        assert device.ask(Status(100, 50)) == Extents((Extent(50, True, True),))
        device.done(Trim(3 * BLOCK, BLOCK))
        # One hole, of which the base has the first part and the overlay the last.
        assert device.ask(Status(2 * BLOCK + 512, 2 * BLOCK - 512)) == Extents((Extent(2 * BLOCK - 512, True, True),))


@claim
def a_block_that_was_trimmed_keeps_nothing_of_what_it_held(make: Make) -> None:
    """Even where the store could not give the space back, a later write to a part finds zeroes around it."""
    with _device(make) as device:
        device.done(Write(0, b"\xaa" * 2 * BLOCK))
        device.done(Trim(0, 2 * BLOCK))
        device.done(Write(10, b"new"))
        device.reads(0, bytes(10) + b"new" + bytes(2 * BLOCK - 13))


@claim(needs="store")
def a_full_store_fails_what_needs_space_and_nothing_else(make: Make) -> None:
    """What failed is not seen, not even in part; what was acknowledged stays, and can be written over."""
    with _device(make) as device:
        device.done(Write(0, b"\xaa" * BLOCK))
        device.subject.break_store(BLOCK + 512)
        for request in (Write(BLOCK, b"x" * 3 * BLOCK), Write(BLOCK + 5, b"y" * (2 * BLOCK))):
            device.fails(request, errno.ENOSPC)
        device.fails(Zero(BLOCK, 2 * BLOCK, no_hole=True), errno.ENOSPC)
        device.states(A, N, N, N)
        device.done(Write(100, b"again"))
        device.done(Trim(3 * BLOCK, BLOCK))
        device.reads(0, b"\xaa" * 100 + b"again" + b"\xaa" * (BLOCK - 105) + device.base[BLOCK : 3 * BLOCK])
        device.subject.break_store(None)
        device.done(Write(BLOCK, b"x" * BLOCK))
        device.reads(BLOCK, b"x" * BLOCK)


@claim(needs="store")
def a_full_store_gives_back_what_a_failed_request_left_in_it(make: Make) -> None:
    """There is as much room after it as before: for a request that needs all of it."""
    for request in (Write(0, b"x" * 3 * BLOCK), Zero(0, 3 * BLOCK, no_hole=True)):
        with _device(make) as device:
            device.subject.break_store(2 * BLOCK)
            device.fails(request, errno.ENOSPC)
            device.done(Write(2 * BLOCK, b"y" * 2 * BLOCK))
            device.reads(0, device.base[: 2 * BLOCK] + b"y" * 2 * BLOCK)


@claim(needs="store")
def a_full_store_keeps_the_space_of_what_was_acknowledged(make: Make) -> None:
    """A failed request over blocks that hold something takes none of it away, though it may have happened to them."""
    for request in (Write(0, b"x" * 3 * BLOCK), Zero(0, 3 * BLOCK, no_hole=True)):
        with _device(make) as device:
            device.done(Write(0, b"\xaa" * BLOCK))
            device.subject.break_store(BLOCK)
            try:
                device.subject.ask(request)
            except OSError as error:
                assert error.errno == errno.ENOSPC, error
            happened = request.data[:BLOCK] if isinstance(request, Write) else bytes(BLOCK)
            found = device.contents()
            assert found[:BLOCK] in (b"\xaa" * BLOCK, happened), "what was acknowledged is lost"
            assert found[BLOCK:] == device.base[BLOCK:], "a failed request is seen in blocks that held nothing"
            device.states(A, N, N, N)


@claim(needs="store")
def a_trim_makes_room_in_a_full_store(make: Make) -> None:
    """As much as the blocks that it covers had."""
    with _device(make) as device:
        device.done(Write(0, b"\xaa" * 2 * BLOCK))
        device.subject.break_store(0)
        device.fails(Write(2 * BLOCK, b"x" * BLOCK), errno.ENOSPC)
        device.done(Trim(0, BLOCK))
        device.done(Write(2 * BLOCK, b"x" * BLOCK))
        device.reads(0, bytes(BLOCK) + b"\xaa" * BLOCK + b"x" * BLOCK + device.base[3 * BLOCK :])


@claim(needs="store")
def a_trim_gives_back_what_a_copy_left_that_could_not_be_kept(make: Make) -> None:
    """Though its blocks never held anything."""
    with _device(make, copy_on_read=True) as device:
        device.subject.break_store(2 * BLOCK + 512)
        device.reads(0, device.base)
        device.states(N, N, N, N)
        device.done(Trim(0, 4 * BLOCK))
        device.done(Write(2 * BLOCK, b"x" * 2 * BLOCK))
        device.reads(0, bytes(2 * BLOCK) + b"x" * 2 * BLOCK)


@claim(needs="store")
def an_overlay_that_cannot_be_written_changes_no_block_that_held_nothing(make: Make) -> None:
    """However far the request got before its disk gave up; the client is told EIO."""
    requests = (
        Write(BLOCK, b"x" * 2 * BLOCK),
        Write(5, b"y" * 2 * BLOCK),
        Write(BLOCK + 5, b"z"),
        Zero(BLOCK, 2 * BLOCK, no_hole=True),
        Zero(BLOCK + 5, 10),
        Zero(5, 10, no_hole=True),
    )
    for request in requests:
        for after_bytes in (0, 1000):
            with _device(make) as device:
                device.done(Trim(0, BLOCK))
                device.subject.damage_store(Damage(frozenset((Operation.WRITE, Operation.ZERO)), after_bytes))
                device.fails(request, errno.EIO)
                device.states(T, N, N, N)
                device.reads(0, bytes(BLOCK) + device.base[BLOCK:])
                device.subject.damage_store(None)
                device.done(request)


@claim(needs="store")
def an_overlay_that_breaks_may_leave_a_part_of_either_in_a_block_that_held_something(make: Make) -> None:
    """The one exception to the rule for failures, and it ends with the blocks that the request touched."""
    old = b"\xaa" * 3 * BLOCK
    requests = (
        Write(BLOCK, b"x" * BLOCK),
        Write(BLOCK + 5, b"y" * 2000),
        Zero(BLOCK, BLOCK, no_hole=True),
        Zero(BLOCK + 5, 2000),
    )
    for request in requests:
        for after_bytes in (0, 1, 1000):
            with _device(make) as device:
                device.done(Write(0, old))
                device.subject.damage_store(Damage(frozenset((Operation.WRITE, Operation.ZERO)), after_bytes))
                device.fails(request, errno.EIO)
                device.subject.damage_store(None)
                device.states(A, A, A, N)
                new = request.data if isinstance(request, Write) else bytes(request.length)
                start, end = request.offset, request.offset + request.length
                found = device.contents()
                assert found[:start] + found[end:] == old[:start] + old[end:] + device.base[3 * BLOCK :], "harm outside"
                either = all(byte in (was, would) for byte, was, would in zip(found[start:end], old, new, strict=False))
                assert either, "a byte is neither the old one nor the new one"
                device.done(request)
                device.reads(start, new)


@claim(needs="store")
def an_overlay_that_cannot_be_read_fails_what_reads_it_and_nothing_else(make: Make) -> None:
    """With EIO; the bytes are there again when it can."""
    for copy_on_read in (False, True):
        with _device(make, copy_on_read=copy_on_read) as device:
            device.done(Write(BLOCK, b"\xaa" * BLOCK))
            device.done(Trim(2 * BLOCK, BLOCK))
            device.subject.damage_store(Damage(frozenset((Operation.READ,))))
            device.fails(Read(BLOCK, 1), errno.EIO)
            device.fails(Read(0, 4 * BLOCK), errno.EIO)
            device.states(N, A, T, N)
            device.reads(2 * BLOCK, bytes(BLOCK) + device.base[3 * BLOCK :])
            device.done(Write(BLOCK + 1, b"new"))
            device.subject.damage_store(None)
            device.reads(BLOCK, b"\xaanew" + b"\xaa" * (BLOCK - 4))


@claim(needs="store")
def a_trim_is_done_though_its_space_cannot_be_given_back(make: Make) -> None:
    """No state names what is left there; a write to a part finds zeroes around it."""
    for after_bytes in (0, 1000):
        with _device(make) as device:
            device.done(Write(0, b"\xaa" * 2 * BLOCK))
            device.subject.damage_store(Damage(frozenset((Operation.PUNCH,)), after_bytes))
            device.done(Trim(0, BLOCK))
            device.done(Zero(BLOCK, BLOCK))
            device.states(T, T, N, N)
            device.done(Write(10, b"new"))
            device.reads(0, bytes(10) + b"new" + bytes(2 * BLOCK - 13))


@claim(needs="store")
def a_request_that_fails_says_why_though_its_space_cannot_be_given_back(make: Make) -> None:
    """The disk is full, and broken on top of it."""
    for request in (Write(0, b"x" * 3 * BLOCK), Zero(0, 3 * BLOCK, no_hole=True)):
        with _device(make) as device:
            device.subject.break_store(2 * BLOCK)
            device.subject.damage_store(Damage(frozenset((Operation.PUNCH,))))
            device.fails(request, errno.ENOSPC)
            device.states(N, N, N, N)


@claim(needs="store")
def copy_on_read_succeeds_though_its_copy_cannot_be_kept(make: Make) -> None:
    """The client asked for bytes, and they are there: whether the store is full, or broken."""
    with _device(make, copy_on_read=True) as device:
        device.subject.break_store(0)
        device.reads(0, device.base)
        device.subject.break_store(None)
        device.subject.damage_store(Damage(frozenset((Operation.WRITE,)), 1000))
        device.reads(0, device.base)
        device.states(N, N, N, N)


@claim
def copy_on_read_copies_nothing_when_a_part_cannot_be_read(make: Make) -> None:
    """A read that fails has changed nothing: not before the part that failed, nor after it."""
    with _device(make, bad=frozenset({2}), copy_on_read=True) as device:
        device.done(Write(BLOCK, b"\xaa" * BLOCK))
        device.fails(Read(0, 4 * BLOCK), errno.EIO)
        device.states(N, A, N, N)


@claim
def copy_on_read_keeps_whole_blocks_and_changes_nothing_one_can_read(make: Make) -> None:
    """Only the blocks that were touched; after that the base is not asked again."""
    with _device(make, copy_on_read=True) as device:
        device.reads(BLOCK + 1, device.base[BLOCK + 1 : BLOCK + 2])
        device.states(N, A, N, N)
        device.reads(0, device.base)
        device.states(A, A, A, A)


@claim
def a_cache_request_changes_nothing_one_can_read(make: Make) -> None:
    """In any mode; only `cow` keeps what it read."""
    for mode in CacheMode:
        with _device(make, cache_mode=mode) as device:
            device.done(Write(0, b"mine"))
            device.done(Trim(BLOCK, BLOCK))
            device.done(Cache(1, 3 * BLOCK - 2))
            device.states(A, T, A if mode is CacheMode.COW else N, N)
            device.reads(0, b"mine" + device.base[4:BLOCK] + bytes(BLOCK) + device.base[2 * BLOCK :])


@claim
def a_base_that_cannot_be_read_fails_only_what_needs_it(make: Make) -> None:
    """With EIO, and without a trace; what covers a block whole never asks the base, nor does what is refused."""
    with _device(make, bad=frozenset({1})) as device:
        device.fails(Read(0, 4 * BLOCK), errno.EIO)
        device.fails(Write(BLOCK + 1, b"part"), errno.EIO)
        device.fails(Write(BLOCK - 1, b"part"), errno.EIO)
        device.fails(Trim(BLOCK, 10), errno.EIO)
        device.fails(Zero(BLOCK - 10, 20), errno.EIO)
        device.fails(Zero(BLOCK - 10, 20, fast=True), errno.ENOTSUP, readable=False)
        device.states(N, N, N, N)
        device.reads(2 * BLOCK, device.base[2 * BLOCK :])
        device.done(Write(BLOCK, b"\xee" * BLOCK))
        device.reads(0, device.base[:BLOCK] + b"\xee" * BLOCK + device.base[2 * BLOCK :])
        device.done(Write(BLOCK + 1, b"part"))
        device.done(Zero(BLOCK + 5, BLOCK - 5))
        device.reads(BLOCK, b"\xeepart" + bytes(BLOCK - 5))


@claim
def a_base_that_cannot_be_read_is_cached_where_it_is_not_seen(make: Make) -> None:
    """Under a block that was written or trimmed there is nothing to bring closer."""
    for mode in (CacheMode.READ, CacheMode.COW):
        with _device(make, bad=frozenset({1, 2}), cache_mode=mode) as device:
            device.fails(Cache(0, 4 * BLOCK), errno.EIO)
            device.done(Write(BLOCK, b"\xee" * BLOCK))
            device.done(Trim(2 * BLOCK, BLOCK))
            device.done(Cache(0, 4 * BLOCK))
            device.reads(BLOCK, b"\xee" * BLOCK + bytes(BLOCK))


@claim(needs="validation")
def a_read_only_device_can_be_read_and_refuses_to_change(make: Make) -> None:
    """EPERM, the protocol's word."""
    with _device(make, read_only=True) as device:
        for request in (Write(0, b"x"), Zero(0, 10), Trim(0, 10)):
            device.fails(request, errno.EPERM)
        device.reads(0, device.base)


@claim(needs="validation")
def what_is_beyond_the_end_is_refused(make: Make) -> None:
    """ENOSPC for what would write there, EINVAL for the rest; not one byte of it is done."""
    with _device(make, BLOCK + 1) as device:
        for request in (Write(BLOCK, b"xy"), Zero(0, BLOCK + 2), Zero(BLOCK + 1, 1, fast=True)):
            device.fails(request, errno.ENOSPC)
        for other in (Read(BLOCK, 2), Trim(BLOCK, 2), Cache(0, BLOCK + 2), Status(BLOCK, 2), Status(0, 0)):
            device.fails(other, errno.EINVAL)


@claim(needs="validation")
def a_request_of_no_bytes_does_nothing(make: Make) -> None:
    """And succeeds, even at the very end."""
    with _device(make) as device:
        for offset in (0, 5, 4 * BLOCK):
            for request in (Write(offset, b""), Zero(offset, 0), Trim(offset, 0), Cache(offset, 0)):
                device.done(request)
        device.states(N, N, N, N)


@claim
def a_flush_is_always_in_order(make: Make) -> None:
    """Before anything and after everything."""
    with _device(make) as device:
        device.done(Flush())
        device.done(Write(3, b"abc", fua=True))
        device.done(Flush())
        device.reads(3, b"abc")
