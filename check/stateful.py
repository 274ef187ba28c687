"""A device and the model side by side, through whatever hypothesis can think of.

Every request goes to both; the replies must be equal, errors by their errno. A store that is full or broken fails a
request in its middle, with an errno that the client must be told: but only a request that did use what failed, and
not one whose copies or freed space are a courtesy. It leaves blocks that are each as before or as after (promise P7);
the model is then told which, by contents, extents and states, and goes on.

Shapes:  sizes of 1 byte up, odd ones included; block sizes of 4 KiB to 1 MiB; ranges drawn around block borders.
Source:  `model/device.py` for what is right, `model/failures.py` for what a failure may leave.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from check.subjects import Damage, Operation, Setup, Subject
from model.block import CacheMode
from model.device import (
    ERRNO,
    Cache,
    Data,
    Device,
    Done,
    Error,
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
from model.failures import adopt, changed_blocks, observe
from model.invariants import broken, broken_by_step

KIB = 1 << 10
BLOCK_SIZES = (4 * KIB, 8 * KIB, 64 * KIB, 1024 * KIB)
BLOCKS_MAX = 5
FEW_BYTES = st.one_of(st.just(0), st.integers(0, 1 << 17))
PATTERN = bytes((7 * index + index // 251) % 255 + 1 for index in range(BLOCKS_MAX << 20))


@st.composite
def setups(draw: st.DrawFn) -> Setup:
    """A device: its size, blocks, modes, and what is wrong with its base."""
    block_size = draw(st.sampled_from(BLOCK_SIZES))
    blocks = draw(st.integers(1, BLOCKS_MAX if block_size < 1 << 20 else 2))
    size = max(1, blocks * block_size - draw(st.sampled_from((0, 0, 1, 511, 512, block_size - 1))))
    base = bytearray(PATTERN[:size])
    extents = None
    if draw(st.booleans()):
        runs = draw(st.lists(st.tuples(st.integers(1, size), st.booleans()), max_size=4))
        extents = tuple(base_extents(base, runs))
    return Setup(
        base=bytes(base),
        block_size=block_size,
        bad=frozenset(draw(st.sets(st.integers(0, blocks - 1), max_size=3))),
        copy_on_read=draw(st.booleans()),
        cache_mode=draw(st.sampled_from(CacheMode)),
        read_only=draw(st.sampled_from((False,) * 7 + (True,))),
        base_extents=extents,
    )


def base_extents(base: bytearray, runs: list[tuple[int, bool]]) -> tuple[Extent, ...]:
    """Extents that cover the base, with zeroes put where they say so."""
    found: list[Extent] = []
    position = 0
    for wanted, zero in [*runs, (len(base), False)]:
        length = min(wanted, len(base) - position)
        if length == 0:
            break
        if zero:
            base[position : position + length] = bytes(length)
        found.append(Extent(length, zero, zero))
        position += length
    return coalesce(found)


def write_of(offset: int, length: int) -> Request:
    """Some bytes."""
    return Write(offset, b"\x5a" * length)


def fast_zero_of(offset: int, length: int) -> Request:
    """A zero that may be refused for two reasons."""
    return Zero(offset, length, fast=True)


KINDS: tuple[Callable[[int, int], Request], ...] = (Read, write_of, Zero, fast_zero_of, Trim, Cache, Status)


class DeviceMachine(RuleBasedStateMachine):
    """Subclass it with `make`."""

    make: ClassVar[Callable[[Setup], Subject]]

    def __init__(self) -> None:
        super().__init__()
        self.subject: Subject | None = None
        self.device: Device | None = None
        self.store_errno: int | None = None  # What a request that the store fails must fail with.

    @initialize(setup=setups())
    def start(self, setup: Setup) -> None:
        """A new device; read-only only where somebody sees to it."""
        self.subject = type(self).make(setup)
        self.device = replace(setup, read_only=setup.read_only and self.subject.validates).device()

    def teardown(self) -> None:
        """Read all that can be read once more, and let go."""
        if self.subject is None:
            return
        try:
            # After a difference there is nothing to compare with, and what follows from it would hide it.
            if self.device is not None:
                self.mend_store()
                for index in range(len(self.now.blocks)):
                    self.both(Read(index * self.now.block_size, len(base_of(self.now, index))))
        finally:
            self.subject.close()

    @property
    def now(self) -> Device:
        """The model's device."""
        assert self.device is not None
        return self.device

    # What is asked

    def range(self, data: st.DataObject) -> tuple[int, int]:
        """A range on the device, its ends near block borders more often than not."""
        size, block = self.now.size, self.now.block_size
        borders = sorted(
            {
                min(size, index * block + nudge)
                for index in range(len(self.now.blocks) + 1)
                for nudge in (-513, -1, 0, 1, 512)
                if index * block + nudge >= 0
            }
        )
        points = st.one_of(st.sampled_from(borders), st.integers(0, size))
        first, second = sorted((data.draw(points), data.draw(points)))
        if first == second:
            first, second = (first, first + 1) if first < size else (first - 1, first)
        return first, second - first

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        """Read a range."""
        self.both(Read(*self.range(data)))

    @rule(data=st.data(), shift=st.integers(0, 250), fua=st.booleans())
    def write(self, data: st.DataObject, shift: int, fua: bool) -> None:
        """Write a range."""
        offset, length = self.range(data)
        self.both(Write(offset, PATTERN[shift : shift + length].ljust(length, b"\x55"), fua))

    @rule(data=st.data(), no_hole=st.booleans(), fast=st.booleans())
    def zero(self, data: st.DataObject, no_hole: bool, fast: bool) -> None:
        """Zero a range."""
        self.both(Zero(*self.range(data), no_hole, fast))

    @rule(data=st.data())
    def trim(self, data: st.DataObject) -> None:
        """Trim a range."""
        self.both(Trim(*self.range(data)))

    @rule(data=st.data())
    def cache(self, data: st.DataObject) -> None:
        """Cache a range."""
        self.both(Cache(*self.range(data)))

    @rule(data=st.data())
    def status(self, data: st.DataObject) -> None:
        """Ask for the extents of a range."""
        self.both(Status(*self.range(data)))

    @rule()
    def flush(self) -> None:
        """Flush."""
        self.both(Flush())

    @precondition(lambda self: self.subject is not None and self.subject.validates)
    @rule(data=st.data(), beyond=st.integers(1, 1 << 20), kind=st.sampled_from(KINDS))
    def ask_beyond_the_end(self, data: st.DataObject, beyond: int, kind: Callable[[int, int], Request]) -> None:
        """Ask for a range that is not there, or not all of it."""
        offset, _ = self.range(data)
        self.both(kind(offset, self.now.size - offset + beyond))

    @precondition(lambda self: self.subject is not None and self.subject.validates)
    @rule(data=st.data(), beyond=st.sampled_from((0, 0, 0, 1)), kind=st.sampled_from(KINDS))
    def ask_for_nothing(self, data: st.DataObject, beyond: int, kind: Callable[[int, int], Request]) -> None:
        """Ask for no bytes: somewhere, at the very end, or beyond it."""
        offset = data.draw(st.one_of(st.just(self.now.size), st.integers(0, self.now.size)))
        self.both(kind(self.now.size + beyond if beyond else offset, 0))

    @precondition(lambda self: self.store_errno is None)
    @rule(after_bytes=FEW_BYTES)
    def fill_store(self, after_bytes: int) -> None:
        """From now on the store has room for so many bytes only."""
        assert self.subject is not None
        self.subject.break_store(after_bytes)
        self.store_errno = errno.ENOSPC

    @precondition(lambda self: self.store_errno is None)
    @rule(operations=st.frozensets(st.sampled_from(Operation), min_size=1), after_bytes=FEW_BYTES)
    def damage_store(self, operations: frozenset[Operation], after_bytes: int) -> None:
        """From now on the store does so many bytes of these operations only."""
        assert self.subject is not None
        self.subject.damage_store(Damage(operations, after_bytes))
        self.store_errno = errno.EIO

    @precondition(lambda self: self.store_errno is not None)
    @rule()
    def mend_store(self) -> None:
        """The store is as good as new."""
        assert self.subject is not None
        self.subject.break_store(None)
        self.subject.damage_store(None)
        self.store_errno = None

    # What must come back

    @invariant()
    def the_model_is_well_formed(self) -> None:
        """In every state."""
        if self.device is not None and len(contents(self.device)) < 1 << 18:
            assert not broken(self.device), broken(self.device)

    def both(self, request: Request) -> None:
        """Ask both, and compare."""
        before, self.device = self.now, None
        self.device = self.asked_of_both(before, request)

    def asked_of_both(self, before: Device, request: Request) -> Device:
        """The device after the request; AssertionError if the subject does not agree."""
        assert self.subject is not None
        after, expected = apply(before, request)
        failures_before = len(self.subject.store_failures())
        try:
            reply: Reply | int = self.subject.ask(request)
        except OSError as error:
            reply = error.errno or errno.EIO
        failed = set(self.subject.store_failures()[failures_before:])
        if isinstance(reply, int) and failed & MUST_FAIL[type(request)]:
            assert may_use_the_store(expected), f"{request} was to be refused, and used the store"
            assert reply == self.store_errno, f"{request}: the store's error became {reply}"
            return self.after_failure(before, after if expected == Done() else copied(before, request))
        assert failed <= MAY_FAIL[type(request)], f"{request}: {brief(reply)}, though the store failed to {failed}"
        if isinstance(expected, Failed):
            assert reply == ERRNO[expected.error], f"{request}: {brief(reply)}, expected {expected}"
            return self.after_failure(before, copied(before, request))
        assert reply == expected, f"{request}: {brief(reply)}, expected {brief(expected)}"
        if before.size < 1 << 18:
            wrong = broken_by_step(before, request, after, expected)
            assert not wrong, wrong
        # A read is answered even though its copies could not be kept.
        return self.after_failure(before, after) if failed and isinstance(request, Read) else after

    def after_failure(self, before: Device, after: Device) -> Device:
        """The device as a failure left it: each block as before or as after, or the promise is broken."""
        subject = self.subject
        assert subject is not None
        changed = changed_blocks(before, after)
        if not changed:
            return before
        torn = self.store_errno == errno.EIO
        self.mend_store()
        # The states before anything is read: a read may copy.
        states = {index: subject.state_of(index) for index in changed}
        seen = {
            index: replace(looked, state=states[index])
            for index, looked in observe(self.answer, before, changed).items()
        }
        device = adopt(before, after, seen, torn=torn)
        assert device is not None, f"of blocks {changed}, one is neither as before nor as after"
        for index in changed:
            device, _ = apply(device, Read(index * before.block_size, len(base_of(before, index))))
        return device

    def answer(self, request: Request) -> Reply:
        """The subject's reply to one who only looks; the base under what is looked at may be unreadable."""
        assert self.subject is not None
        try:
            return self.subject.ask(request)
        except OSError as error:
            assert error.errno == errno.EIO, f"{request} failed with {error.errno}"
            return Failed(Error.BASE_UNREADABLE)


# What the store may fail at with the request done all the same, and what must fail the request.
NOTHING: frozenset[Operation] = frozenset()
STORING = frozenset((Operation.WRITE, Operation.ZERO))
PUNCHING = frozenset((Operation.PUNCH,))
MAY_FAIL = {
    Read: STORING,  # its copies
    Write: NOTHING,
    Zero: PUNCHING,
    Trim: PUNCHING,
    Cache: NOTHING,
    Status: NOTHING,
    Flush: NOTHING,
}
MUST_FAIL = {
    Read: frozenset((Operation.READ,)),
    Write: STORING,
    Zero: STORING,
    Trim: STORING,
    Cache: STORING,
    Status: NOTHING,
    Flush: NOTHING,
}


def may_use_the_store(expected: Reply) -> bool:
    """Whether a request gets as far as the store: one that is refused for what it asks does not."""
    return not isinstance(expected, Failed) or expected.error is Error.BASE_UNREADABLE


def copied(device: Device, request: Request) -> Device:
    """What a failed cache request may have copied of what could be read; for all others, nothing."""
    if not isinstance(request, Cache) or request.offset + request.length > device.size:
        return device
    first = request.offset // device.block_size
    last = (request.offset + request.length - 1) // device.block_size
    for block in range(first, last + 1):
        device, _ = apply(device, Cache(block * device.block_size, len(base_of(device, block))))
    return device


def brief(reply: Reply | int) -> str:
    """A reply for a message, without its megabytes."""
    if isinstance(reply, Data):
        return f"Data({len(reply.data)} bytes, {reply.data[:16].hex()}...)"
    return str(reply)
