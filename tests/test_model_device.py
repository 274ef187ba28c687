"""The device: replies, contents against a plain array of bytes, and the named invariants.

Source:  NBD protocol, "Request types" and "Error values"; design notes, sections 1 and 3.
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
from dataclasses import replace

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

import model.device
from model.block import NOT_ALLOCATED, TRIMMED, CacheMode, State, allocated
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
    Status,
    Trim,
    Write,
    Zero,
    apply,
    contents,
    new_device,
)
from model.extents import Extent, clip, coalesce
from model.failures import (
    Observed,
    Outcome,
    adopt,
    changed_blocks,
    observe,
    outcome,
    permitted_after_failure,
)
from model.invariants import INVARIANTS, STEP_INVARIANTS, broken, broken_by_step

# A device of eleven bytes: two blocks of four and a short one of three.
BASE = b"abcdefghijk"
DATA, HOLE = (False, False), (True, True)


def fresh(**options):
    return new_device(len(BASE), 4, BASE, **options)


def after(device, *requests):
    """The device when the requests are done."""
    for request in requests:
        device, reply = apply(device, request)
        assert not isinstance(reply, Failed), (request, reply)
    return device


def extents(*runs):
    return Extents(tuple(Extent(length, *flags) for length, flags in runs))


# What a client sees, one example for each sentence.

EXAMPLES = [  # requests before, request, reply, contents then
    ("a fresh device reads as its base", [], Read(2, 7), Data(b"cdefghi"), BASE),
    ("a read of nothing is nothing", [], Read(11, 0), Data(b""), BASE),
    ("a write of nothing is done", [], Write(11, b""), Done(), BASE),
    ("zeroes of no length are done", [], Zero(4, 0, no_hole=True, fast=True), Done(), BASE),
    ("a write may have a head, a body and a tail", [], Write(3, b"XXXXXXX"), Done(), b"abcXXXXXXXk"),
    ("a write with FUA writes the same", [], Write(3, b"XY", fua=True), Done(), b"abcXYfghijk"),
    ("zeroes may start and end anywhere", [], Zero(3, 6), Done(), b"abc\0\0\0\0\0\0jk"),
    ("what is trimmed reads as zeroes", [], Trim(7, 4), Done(), b"abcdefg\0\0\0\0"),
    ("a part written to a trimmed block has zeroes around", [Trim(4, 4)], Write(5, b"X"), Done(), b"abcd\0X\0\0ijk"),
    ("caching changes nothing to be read", [], Cache(0, 11), Done(), BASE),
    ("a flush is done", [Write(0, b"X")], Flush(), Done(), b"Xbcdefghijk"),
    ("a fresh device is data", [], Status(0, 11), extents((11, DATA)), BASE),
    ("a trimmed block is a hole", [Trim(4, 4)], Status(0, 11), extents((4, DATA), (4, HOLE), (3, DATA)), None),
    ("a short block is trimmed too", [Trim(8, 3)], Status(6, 5), extents((2, DATA), (3, HOLE)), None),
    ("trimmed neighbours are one hole", [Trim(4, 4), Trim(8, 3)], Status(0, 11), extents((4, DATA), (7, HOLE)), None),
    ("status covers the range and no more", [Trim(4, 4)], Status(5, 2), extents((2, HOLE)), None),
    ("a part trimmed is data", [Trim(5, 3)], Status(0, 11), extents((11, DATA)), None),
    ("a part trimmed twice stays a hole", [Trim(4, 4), Trim(5, 3)], Status(4, 4), extents((4, HOLE)), None),
    ("NO_HOLE leaves no hole", [Trim(4, 4), Zero(5, 1, no_hole=True)], Status(0, 11), extents((11, DATA)), None),
    ("a fast zero of a whole block is done", [], Zero(4, 4, fast=True), Done(), b"abcd\0\0\0\0ijk"),
    ("a fast zero of the short block is done", [], Zero(8, 3, fast=True), Done(), b"abcdefgh\0\0\0"),
    ("a fast zero in a trimmed block is done", [Trim(4, 4)], Zero(5, 6, fast=True), Done(), b"abcd" + bytes(7)),
    ("a fast zero of a part is refused", [], Zero(4, 3, fast=True), Failed(Error.NOT_FAST), BASE),
    ("a fast zero refused in one block is refused in all", [], Zero(4, 5, fast=True), Failed(Error.NOT_FAST), BASE),
    ("a fast zero with NO_HOLE is refused", [], Zero(4, 4, no_hole=True, fast=True), Failed(Error.NOT_FAST), BASE),
    ("a read beyond the end is refused", [], Read(11, 1), Failed(Error.OUT_OF_RANGE), BASE),
    ("a read across the end is refused", [], Read(0, 12), Failed(Error.OUT_OF_RANGE), BASE),
    ("a read of nothing beyond the end is refused", [], Read(12, 0), Failed(Error.OUT_OF_RANGE), BASE),
    ("a trim beyond the end is refused", [], Trim(1 << 63, 1), Failed(Error.OUT_OF_RANGE), BASE),
    ("a cache beyond the end is refused", [], Cache(10, 2), Failed(Error.OUT_OF_RANGE), BASE),
    ("a status beyond the end is refused", [], Status(10, 2), Failed(Error.OUT_OF_RANGE), BASE),
    ("a status of nothing is refused", [], Status(0, 0), Failed(Error.EMPTY_STATUS), BASE),
    ("a write across the end is refused", [], Write(10, b"XY"), Failed(Error.NO_SPACE_BEYOND_END), BASE),
    ("zeroes across the end are refused", [], Zero(10, 2), Failed(Error.NO_SPACE_BEYOND_END), BASE),
]


@pytest.mark.parametrize(
    ("requests", "request_", "reply", "data"), [e[1:] for e in EXAMPLES], ids=[e[0] for e in EXAMPLES]
)
def test_of_a_device(requests, request_, reply, data):
    before = after(fresh(), *requests)
    device, replied = apply(before, request_)
    assert replied == reply
    assert data is None or contents(device) == data
    assert not broken(device)
    assert not broken_by_step(before, request_, device, replied)


def test_errors_have_the_numbers_of_the_protocol():
    assert set(ERRNO) == set(Error)
    assert {error.name: errno.errorcode[number] for error, number in ERRNO.items()} == {
        "READ_ONLY": "EPERM",
        "OUT_OF_RANGE": "EINVAL",
        "NO_SPACE_BEYOND_END": "ENOSPC",
        "EMPTY_STATUS": "EINVAL",
        "NOT_FAST": errno.errorcode[errno.ENOTSUP],
        "BASE_UNREADABLE": "EIO",
    }


@pytest.mark.parametrize("request_", [Write(0, b"X"), Write(0, b""), Zero(0, 1), Trim(0, 1), Write(99, b"X")])
def test_a_read_only_device_permits_no_change(request_):
    device = fresh(read_only=True)
    assert apply(device, request_) == (device, Failed(Error.READ_ONLY))


@pytest.mark.parametrize("request_", [Read(0, 11), Cache(0, 11), Flush(), Status(0, 11)])
def test_a_read_only_device_does_the_rest(request_):
    assert not isinstance(apply(fresh(read_only=True), request_)[1], Failed)


def test_the_base_is_reported_as_it_reports_itself_until_a_block_is_stored_or_trimmed():
    sparse = b"abcd\0\0\0\0\0jk"
    says = (Extent(4, False, False), Extent(5, True, True), Extent(2, False, False))
    device = new_device(11, 4, sparse, base_extents=says)
    assert apply(device, Status(0, 11))[1] == Extents(says)
    assert apply(device, Status(3, 3))[1] == extents((1, DATA), (2, HOLE))
    device = after(device, Write(4, b"X"))
    assert apply(device, Status(0, 11))[1] == extents((8, DATA), (1, HOLE), (2, DATA))
    device = after(device, Trim(8, 3))
    assert apply(device, Status(0, 11))[1] == extents((8, DATA), (3, HOLE))


def test_copy_on_read_copies_the_blocks_it_touches_whole():
    device = after(fresh(copy_on_read=True), Trim(8, 3), Read(5, 4))
    assert device.blocks == (NOT_ALLOCATED, allocated(b"efgh"), TRIMMED)


@pytest.mark.parametrize("mode", CacheMode)
def test_caching_copies_in_mode_cow_only(mode):
    device = after(fresh(cache_mode=mode), Cache(5, 1))
    assert device.blocks[1] == (allocated(b"efgh") if mode is CacheMode.COW else NOT_ALLOCATED)


def test_only_what_is_touched_is_replaced():
    """The same objects, not equal ones: a request on one block of many costs as much as on one of few."""
    device = after(new_device(1 << 20, 1 << 12), Write(0, bytes(1 << 20)))
    changed = after(device, Write(5 << 12, b"X"))
    same = [old is new for old, new in zip(device.blocks, changed.blocks, strict=True)]
    assert same.count(False) == 1
    assert not same[5]


def test_nothing_can_be_changed_in_place():
    kinds = [kind for kind in vars(model.device).values() if dataclasses.is_dataclass(kind)]
    assert {Device, Read, Write, Zero, Trim, Cache, Status, Flush, Data, Done, Extents, Failed} <= set(kinds)
    assert all(kind.__dataclass_params__.frozen for kind in kinds)
    assert hash(fresh()) == hash(fresh())


BAD = [  # the base of block 1 cannot be read: requests before, request, whether it is done
    ([], Read(4, 1), False),
    ([], Read(0, 11), False),
    ([], Read(0, 4), True),
    ([], Write(0, b"ABCDEFGH"), True),
    ([], Write(0, b"ABCDE"), False),
    ([], Write(5, b"X"), False),
    ([], Zero(4, 4), True),
    ([], Zero(4, 4, no_hole=True), True),
    ([], Zero(3, 4), False),
    ([], Trim(0, 8), True),
    ([], Trim(7, 4), False),
    ([], Status(0, 11), True),
    ([], Flush(), True),
    ([Trim(4, 4)], Read(0, 11), True),
    ([Trim(4, 4)], Write(5, b"X"), True),
    ([Write(4, b"WXYZ")], Trim(5, 1), True),
]


@pytest.mark.parametrize("copy_on_read", [False, True])
@pytest.mark.parametrize(("requests", "request_", "done"), BAD)
def test_a_base_that_cannot_be_read_fails_what_has_to_read_it_and_nothing_else(requests, request_, done, copy_on_read):
    device = after(fresh(bad=frozenset({1}), copy_on_read=copy_on_read), *requests)
    changed, reply = apply(device, request_)
    assert isinstance(reply, Failed) != done
    if not done:
        assert (changed, reply) == (device, Failed(Error.BASE_UNREADABLE))


@pytest.mark.parametrize("mode", CacheMode)
def test_caching_fails_on_a_bad_base_if_it_reads_it(mode):
    _, reply = apply(fresh(bad=frozenset({1}), cache_mode=mode), Cache(0, 11))
    assert (reply == Failed(Error.BASE_UNREADABLE)) == (mode in (CacheMode.READ, CacheMode.COW))


def test_a_slow_zero_is_refused_before_the_base_is_asked():
    device = fresh(bad=frozenset({1}))
    assert apply(device, Zero(5, 1, fast=True))[1] == Failed(Error.NOT_FAST)


# Against a plain array of bytes, which knows of no blocks.


def expected_contents(data, request):
    """What a disk that reads back what was written would now contain."""
    if isinstance(request, Write):
        return data[: request.offset] + request.data + data[request.offset + request.length :]
    if isinstance(request, Zero | Trim):
        return data[: request.offset] + bytes(request.length) + data[request.offset + request.length :]
    return data


def base_extents_of(base):
    """Runs that tell the truth: zeroes are holes."""
    return coalesce(Extent(1, byte == 0, byte == 0) for byte in base)


@st.composite
def devices(draw):
    size = draw(st.integers(1, 40) | st.sampled_from([511, 512, 513, 4096]))
    block_size = draw(st.sampled_from([1, 2, 3, 4, 8, 16, 64, 512]))
    base = draw(st.binary(min_size=size, max_size=size) if size <= 40 else st.just(bytes(range(256)) * 16))[:size]
    count = -(-size // block_size)
    return new_device(
        size,
        block_size,
        base,
        bad=draw(st.frozensets(st.integers(0, count - 1), max_size=2)) if draw(st.booleans()) else frozenset(),
        copy_on_read=draw(st.booleans()),
        cache_mode=draw(st.sampled_from(CacheMode)),
        read_only=draw(st.integers(0, 9)) == 9,
        base_extents=base_extents_of(base) if draw(st.booleans()) else None,
    )


@st.composite
def requests(draw, device):
    """Any request, the ends of the device and of its blocks more often than other places, a few beyond the end."""
    edges = [edge + n for edge in range(0, device.size + 1, device.block_size)[:9] for n in (-1, 0, 1) if edge + n >= 0]
    places = st.integers(0, device.size + 2) | st.sampled_from([*edges, device.size - 1, device.size])
    start, end = sorted((draw(places), draw(places)))
    offset, length = start, end - start
    flags = st.booleans()
    return draw(
        st.one_of(
            st.just(Read(offset, length)),
            st.builds(lambda byte, fua: Write(offset, bytes([byte]) * length, fua), st.integers(0, 255), flags),
            st.builds(lambda no_hole, fast: Zero(offset, length, no_hole, fast), flags, flags),
            st.just(Trim(offset, length)),
            st.just(Cache(offset, length)),
            st.just(Status(offset, length)),
            st.just(Flush()),
        )
    )


@given(st.data())
@settings(deadline=None)
def test_any_program_reads_as_a_plain_array_of_bytes_and_keeps_the_invariants(data):
    device = data.draw(devices())
    plain = contents(device)
    for _ in range(data.draw(st.integers(1, 12))):
        request = data.draw(requests(device))
        before = device
        device, reply = apply(device, request)
        event(f"{type(request).__name__} {reply.error.name if isinstance(reply, Failed) else 'done'}")
        if not isinstance(reply, Failed):
            plain = expected_contents(plain, request)
        if isinstance(reply, Data):
            assert reply.data == plain[request.offset : request.offset + request.length]
        assert contents(device) == plain
        assert not broken(device)
        assert not broken_by_step(before, request, device, reply)


def small_devices():
    """Three bytes in blocks of two, in every state, over a base of which any part may be unreadable."""
    shown = {State.NOT_ALLOCATED: lambda _: NOT_ALLOCATED, State.ALLOCATED: allocated, State.TRIMMED: lambda _: TRIMMED}
    for first, second in itertools.product(State, State):
        blocks = (shown[first](b"ow"), shown[second](b"n"))
        for bad in ((), (0,), (1,), (0, 1)):
            yield Device(3, 2, b"b\0s", blocks, frozenset(bad))


def small_requests():
    """Every request with every flag and every range that is on the device or one byte beyond."""
    for offset, length in itertools.product(range(5), range(5)):
        if offset + length <= 4:
            yield Read(offset, length)
            yield Write(offset, b"new!"[:length])
            for no_hole, fast in itertools.product((False, True), (False, True)):
                yield Zero(offset, length, no_hole, fast)
            yield Trim(offset, length)
            yield Cache(offset, length)
            yield Status(offset, length)
    yield Flush()


@pytest.mark.parametrize(
    ("copy_on_read", "mode"), [(False, CacheMode.IGNORE), (False, CacheMode.READ), (True, CacheMode.COW)]
)
def test_every_request_on_every_small_device_keeps_the_invariants(copy_on_read, mode):
    for made, request in itertools.product(small_devices(), small_requests()):
        before = replace(made, copy_on_read=copy_on_read, cache_mode=mode)
        device, reply = apply(before, request)
        assert not broken(device), (before, request)
        assert not broken_by_step(before, request, device, reply), (before, request, reply)


# Invariants that cannot fail would prove nothing.

NEW = fresh()
STORED = after(NEW, Write(0, b"ABCDEFGHIJK"))
EMPTY = after(NEW, Trim(0, 11))
UNREADABLE = fresh(bad=frozenset({0}))


def with_block(device, index, block):
    return replace(device, blocks=(*device.blocks[:index], block, *device.blocks[index + 1 :]))


WRONG_STATES = {
    "EveryBlockIsWellFormed": with_block(NEW, 2, allocated(b"four")),
    "ExtentsCoverTheDevice": replace(NEW, base_extents=(Extent(10, False, False),)),
    "ZeroExtentReadsZero": replace(NEW, base_extents=(Extent(11, True, True),)),
}

WRONG_MODELS = [  # function of model/block.py, what it is instead, the invariant that some state then breaks
    ("contents", lambda block, base: block.data or base, "TrimmedReadsZero"),
    ("contents", lambda block, base: block.data or bytes(len(base)), "UnallocatedReadsBase"),
    ("extents", lambda block, length, said: (Extent(length, True, True),), "HoleExtentHoldsNoData"),
    ("extents", lambda block, length, said: (Extent(length, True, True),), "ZeroExtentReadsZero"),
    ("extents", lambda block, length, said: (Extent(1, False, False),), "ExtentsCoverTheDevice"),
]

WRONG_STEPS = {  # before, request, after, reply
    "ReplyFitsRequest": (NEW, Read(0, 2), NEW, Data(b"a")),
    "FailureChangesNothing": (NEW, Write(0, b"ABCDEFGHIJK"), STORED, Failed(Error.READ_ONLY)),
    "NeverUnallocatedAgain": (STORED, Write(0, BASE), NEW, Done()),
    "BaseNeverChanges": (NEW, Write(0, b"X"), replace(NEW, base=b"X" + BASE[1:]), Done()),
    "OnlyTouchedBytesChange": (NEW, Write(0, b"ABCD"), after(NEW, Write(0, b"ABCDE")), Done()),
    "OnlyTouchedBlocksChange": (NEW, Write(0, b"ABCD"), with_block(NEW, 1, allocated(b"efgh")), Done()),
    "ReadGivesTheContents": (NEW, Read(0, 2), NEW, Data(b"ba")),
    "DoneWriteReadsBack": (NEW, Write(0, b"XY"), after(NEW, Write(0, b"X")), Done()),
    "FastZeroWritesNothing": (NEW, Zero(0, 2, fast=True), after(NEW, Zero(0, 2)), Done()),
    "SlowZeroIsRefusedForAReason": (NEW, Zero(0, 4, fast=True), NEW, Failed(Error.NOT_FAST)),
    "NoHoleProvisions": (EMPTY, Zero(0, 2, no_hole=True), EMPTY, Done()),
    "CoveredBlocksAreGivenBack": (NEW, Trim(0, 4), with_block(NEW, 0, allocated(bytes(4))), Done()),
    "OnlyCopyingAllocatesWithoutAWrite": (NEW, Read(0, 1), with_block(NEW, 0, allocated(b"abcd")), Data(b"a")),
    "AnUnreadableBaseIsNeverShown": (UNREADABLE, Read(0, 1), UNREADABLE, Data(b"a")),
    "AnUnreadableBaseFailsOnlyWhatReadsIt": (UNREADABLE, Trim(0, 4), UNREADABLE, Failed(Error.BASE_UNREADABLE)),
}


@pytest.mark.parametrize("name", WRONG_STATES)
def test_an_invariant_rejects_a_wrong_state(name):
    assert name in broken(WRONG_STATES[name])


@pytest.mark.parametrize("name", STEP_INVARIANTS)
def test_a_step_invariant_rejects_a_wrong_step(name):
    assert name in broken_by_step(*WRONG_STEPS[name])


def test_every_invariant_has_a_case_it_rejects():
    assert set(WRONG_STATES) | {name for *_, name in WRONG_MODELS} == set(INVARIANTS)
    assert set(WRONG_STEPS) == set(STEP_INVARIANTS)


@pytest.mark.parametrize(("function", "instead", "name"), WRONG_MODELS)
def test_an_invariant_rejects_a_broken_model(monkeypatch, function, instead, name):
    monkeypatch.setattr(f"model.block.{function}", instead)
    if function == "contents":
        monkeypatch.setattr("model.invariants.block_contents", instead)
    assert any(name in broken(device) for device in (NEW, STORED, EMPTY))


# When the overlay's own storage fails.


@pytest.mark.parametrize("happened", list(itertools.product([False, True], repeat=3)))
def test_after_a_failure_each_block_may_be_old_or_new(happened):
    before, success = NEW, after(NEW, Write(2, b"CDEFGHIJK"))
    blocks = tuple(new if done else old for done, old, new in zip(happened, before.blocks, success.blocks, strict=True))
    found = replace(before, blocks=blocks)
    assert permitted_after_failure(before, success, contents(found))
    assert adopt(before, success, observe(lambda r: apply(found, r)[1], before, range(3))) == found


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"abCdefghijk", id="half a block"),
        pytest.param(b"ABCDefghijk", id="more than was asked"),
        pytest.param(b"abcd\0\0\0\0ijk", id="zeroes for a block in between"),
        pytest.param(b"abcdefghij", id="a byte less"),
    ],
)
def test_after_a_failure_nothing_else_is_permitted(data):
    assert not permitted_after_failure(NEW, after(NEW, Write(2, b"CDEFGHIJK")), data)


TORN = [  # what was done before, a request, what is read then, whether an I/O error may leave that
    ("a part of either", [Write(0, BASE)], Write(0, b"ABCD"), b"ABcd", True),
    ("a part of either in the middle", [Write(0, BASE)], Write(0, b"ABCD"), b"aBCd", True),
    ("a part of zeroes with storage", [Write(0, BASE)], Zero(0, 4, no_hole=True), b"\0\0cd", True),
    ("a third thing", [Write(0, BASE)], Write(0, b"ABCD"), b"ABXd", False),
    ("a byte less", [Write(0, BASE)], Write(0, b"ABCD"), b"ABc", False),
    ("a part of either where nothing was stored", [], Write(0, b"ABCD"), b"ABcd", False),
    ("a part of either where it was trimmed", [Trim(0, 4)], Write(0, b"ABCD"), b"AB\0\0", False),
    ("a part of a trim", [Write(0, BASE)], Trim(0, 4), b"\0\0cd", False),
]


@pytest.mark.parametrize(("requests", "request_", "data", "permitted"), [t[1:] for t in TORN], ids=[t[0] for t in TORN])
def test_an_io_error_may_tear_a_block_that_was_stored_and_no_other(requests, request_, data, permitted):
    before = after(fresh(), *requests)
    success = after(before, request_)
    seen = {0: Observed(data)}
    torn = with_block(before, 0, allocated(data))
    assert adopt(before, success, seen) is None, "a full disk tears nothing"
    assert adopt(before, success, seen, torn=True) == (torn if permitted else None)
    assert outcome(before, success, 0, seen[0], torn=True) is (Outcome.TORN if permitted else Outcome.NEITHER)


def test_a_torn_block_has_its_storage_still():
    success = after(STORED, Write(0, b"abcd"))
    for extents_seen, state, permitted in (
        ((Extent(4, *DATA),), State.ALLOCATED, True),
        ((Extent(4, *HOLE),), None, False),
        (None, State.TRIMMED, False),
    ):
        seen = {0: Observed(b"abCD", extents_seen, state)}
        assert (adopt(STORED, success, seen, torn=True) is not None) == permitted


def test_blocks_a_failed_request_left_alone_are_as_before():
    success = after(NEW, Write(0, b"ABCD"))
    assert not permitted_after_failure(NEW, success, b"abcdefghijX")
    assert changed_blocks(NEW, success) == [0]


def test_where_contents_are_equal_extents_tell_old_from_new():
    before = after(NEW, Write(0, bytes(4)))
    success = after(before, Trim(0, 4))
    plain = Observed(bytes(4))
    assert outcome(before, success, 0, plain) is Outcome.EITHER
    assert outcome(before, success, 0, replace(plain, extents=(Extent(4, *DATA),))) is Outcome.UNCHANGED
    assert outcome(before, success, 0, replace(plain, extents=(Extent(4, *HOLE),))) is Outcome.HAPPENED
    assert outcome(before, success, 0, replace(plain, extents=(Extent(4, True, False),))) is Outcome.NEITHER
    assert permitted_after_failure(before, success, bytes(4) + BASE[4:], extents((4, HOLE), (7, DATA)).extents)


def test_where_extents_are_equal_too_the_state_tells_old_from_new():
    before = new_device(4, 4, bytes(4), base_extents=(Extent(4, *HOLE),))
    success = after(before, Trim(0, 4))
    seen = observe(lambda request: apply(success, request)[1], before, [0])
    assert outcome(before, success, 0, seen[0]) is Outcome.EITHER
    assert adopt(before, success, seen) == before
    assert adopt(before, success, {0: replace(seen[0], state=State.TRIMMED)}) == success


def test_a_block_that_cannot_be_read_still_shows_its_base():
    before = fresh(bad=frozenset({1}))
    success = after(before, Trim(4, 4))
    for found in (before, success):
        assert adopt(before, success, observe(lambda r, found=found: apply(found, r)[1], before, range(3))) == found
    assert outcome(before, success, 0, Observed(unreadable=True)) is Outcome.NEITHER


@given(st.data())
@settings(deadline=None)
def test_whatever_part_of_a_request_has_happened_the_model_goes_on_from_there(data):
    """Adopted and found device may differ where nothing seen tells them apart; then the adopted block is the old."""
    before = replace(data.draw(devices()), read_only=False)
    for _ in range(data.draw(st.integers(0, 6))):
        before, _ = apply(before, data.draw(requests(before)))
    success, _ = apply(before, data.draw(requests(before)))
    blocks = tuple(
        data.draw(st.sampled_from([old, new])) if old != new else old
        for old, new in zip(before.blocks, success.blocks, strict=True)
    )
    found = replace(before, blocks=blocks)

    def ask(request):
        return apply(found, request)[1]

    seen = observe(ask, before, changed_blocks(before, success))
    adopted = adopt(before, success, seen)
    assert adopted is not None
    assert contents(adopted) == contents(found)
    assert observe(lambda request: apply(adopted, request)[1], before, seen) == seen
    exact = {index: replace(look, state=found.blocks[index].state) for index, look in seen.items()}
    assert adopt(before, success, exact) == found


def test_clipped_extents_cover_the_part_and_no_more():
    runs = (Extent(3, False, False), Extent(2, True, True), Extent(6, False, True))
    for start in range(11):
        for end in range(start + 1, 12):
            cut = clip(runs, start, end)
            flags = [extent[1:] for extent in runs for _ in range(extent.length)]
            assert [extent[1:] for extent in cut for _ in range(extent.length)] == flags[start:end]
