"""Stamped bytes: who wrote what was read is what was written, and a mixture is nobody's.

Source:  impl/history_tags.py.
"""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from impl.base.pattern import pattern
from impl.history_tags import (
    BASE,
    GRANULE,
    NUMBER_MAX,
    TORN,
    UNKNOWN,
    ZERO,
    Attribution,
    is_plain,
    may_be_stamped,
    stamped,
    write_name,
    written,
)

RUN = 0xC0
BASE_BYTES = pattern(1, 0, 64 * GRANULE)
NUMBERS = st.integers(0, NUMBER_MAX)


def wrote(sequence, first, count, run=RUN, writer=3):
    return stamped(run, writer, sequence, first * GRANULE, count * GRANULE)


def base(first, count):
    return BASE_BYTES[first * GRANULE : (first + count) * GRANULE]


def runs_of(data, first=0, **known):
    return Attribution(**{"run": RUN, "base": BASE_BYTES, **known}).of(data, first * GRANULE).runs


@given(NUMBERS, NUMBERS, NUMBERS, st.integers(0, 2**40), st.integers(1, 20))
def test_what_was_stamped_names_its_write_at_its_place(run, writer, sequence, first, count):
    data = stamped(run, writer, sequence, first * GRANULE, count * GRANULE)
    name = write_name(run, sequence)
    assert len(data) == count * GRANULE
    assert Attribution(run=run).of(data, first * GRANULE).runs == ((name, len(data)),)
    assert written(data, first * GRANULE) == name


def test_runs_are_in_order_and_neighbours_by_the_same_are_one():
    data = wrote(7, 0, 2) + wrote(8, 2, 1) + base(3, 2) + bytes(3 * GRANULE) + wrote(7, 8, 1)
    assert runs_of(data) == (("w7.c0", 1024), ("w8.c0", 512), (BASE, 1024), (ZERO, 1536), ("w7.c0", 512))


@pytest.mark.parametrize("data", [bytes(GRANULE * 3), b""])
def test_zeroes_are_zeroes(data):
    assert runs_of(data) == (((ZERO, len(data)),) if data else ())


# Where the last byte of a granule's number, or more of them, begin anew.
AROUND_CARRIES = [(0, 256), (1, 256), (250, 20), (255, 2), (256, 257), (2**16 - 3, 300), (2**32 - 1, 600)]


@pytest.mark.parametrize(("first", "count"), AROUND_CARRIES)
def test_a_write_is_one_wherever_the_numbers_of_its_granules_carry(first, count):
    data = wrote(7, first, count)
    assert written(data, first * GRANULE) == "w7.c0"
    assert written(memoryview(bytearray(data)), first * GRANULE) == "w7.c0"


@pytest.mark.parametrize(("first", "count"), AROUND_CARRIES)
def test_a_write_with_a_byte_of_any_granule_changed_is_not_one(first, count):
    data = bytearray(wrote(7, first, count))
    for granule in {
        0,
        1,
        count // 2,
        count - 2,
        count - 1,
        *[at for at in range(count) if (first + at) % 256 in (0, 255)],
    }:
        for byte in (0, 15, 31, 479, 480, 495, 511):
            data[granule * GRANULE + byte] ^= 1
            assert written(data, first * GRANULE) is None, (granule, byte)
            data[granule * GRANULE + byte] ^= 1
    assert written(data, first * GRANULE) == "w7.c0"


@pytest.mark.parametrize(("first", "count"), AROUND_CARRIES)
def test_a_write_that_another_one_goes_on_with_is_not_one(first, count):
    for at in {1, 256 - first % 256, count - 1} & set(range(1, count)):
        data = wrote(7, first, at) + wrote(8, first + at, count - at)
        assert written(data, first * GRANULE) is None
        assert runs_of(data, first, base=None) == (("w7.c0", at * GRANULE), ("w8.c0", (count - at) * GRANULE))


@pytest.mark.parametrize("shift", [1, 128, 256, 512])
def test_a_write_with_granules_of_it_from_elsewhere_is_not_one(shift):
    """Also from where the last byte of the number is the same."""
    for moved in (0, 3, 7):
        data = wrote(7, 1024, moved) + wrote(7, 1024 + moved + shift, 1) + wrote(7, 1025 + moved, 7 - moved)
        assert written(data, 1024 * GRANULE) is None
        assert (TORN, GRANULE) in runs_of(data, 1024, base=None)


KINDS = {
    "a write": lambda at: wrote(7, at, 1),
    "another write": lambda at: wrote(8, at, 1),
    "the same number in another run": lambda at: wrote(7, at, 1, run=RUN + 1),
    "the base": lambda at: base(at, 1),
    "the base, which begins with zeroes": lambda at: bytes(8) + base(at, 1)[8:],
    "bytes that are magic's first": lambda at: b"c" * GRANULE,
    "zeroes": lambda at: bytes(GRANULE),
    "torn": lambda at: wrote(7, at, 1)[:64] + wrote(8, at, 1)[64:],
    "torn from the base": lambda at: base(at, 1)[:64] + wrote(8, at, 1)[64:],
    "misdirected": lambda at: wrote(7, at + 1, 1),
}
KNOWN = {
    "all": {"run": RUN, "base": BASE_BYTES},
    "not the base": {"run": RUN, "base": None},
    "neither": {"run": None, "base": None},
}


@pytest.mark.parametrize("known", KNOWN.values(), ids=KNOWN)
@given(st.lists(st.tuples(st.sampled_from(list(KINDS)), st.integers(1, 12)), min_size=1, max_size=5))
def test_what_is_said_of_many_granules_is_what_is_said_of_each(known, kinds):
    kinds = [kind for kind, count in kinds for _ in range(count)]
    granules = [KINDS[kind](at) for at, kind in enumerate(kinds)]
    of_each = [Attribution(**known).of(granule, at * GRANULE) for at, granule in enumerate(granules)]
    of_all = Attribution(**known).of(b"".join(granules), 0)
    assert [who for who, length in of_all.runs for _ in range(length // GRANULE)] == [
        each.runs[0][0] for each in of_each
    ]
    assert all(left[0] != right[0] for left, right in pairwise(of_all.runs))
    assert of_all.notes == tuple(note for each in of_each for note in each.notes)


# (of each kind: whether it may be stamped, and whether it is plain); a false alarm is allowed, its opposite is not
LOOKS = {
    "a write": (True, False),
    "the base": (False, True),
    "bytes that are magic's first": (False, True),
    "zeroes": (False, False),
    "torn": (True, False),
    "torn from the base": (False, False),
    "misdirected": (True, False),
}


@pytest.mark.parametrize("kind", LOOKS)
def test_a_look_at_many_granules_sees_the_one_that_is_not_plain(kind):
    may_be, plain = LOOKS[kind]
    for at in (0, 31, 63):
        data = base(0, at) + KINDS[kind](at) + base(at + 1, 63 - at)
        assert (may_be_stamped(data), is_plain(data)) == (may_be, plain)


TORN_GRANULES = {
    "two writes": wrote(7, 0, 1)[:256] + wrote(8, 0, 1)[256:],
    "a write and the base": wrote(7, 0, 1)[:32] + base(0, 1)[32:],
    "the base and a write": base(0, 1)[:480] + wrote(7, 0, 1)[480:],
    "a write and zeroes": wrote(7, 0, 1)[:256] + bytes(256),
    "zeroes and a write": bytes(256) + wrote(7, 0, 1)[256:],
    "a write that lost a byte": wrote(7, 0, 1)[:300] + b"\xff" + wrote(7, 0, 1)[301:],
    "a stamp whose checksum is wrong": (wrote(7, 0, 1)[:31] + b"\0") * 16,
    "the base of another place": base(1, 1),
    "bytes that nobody wrote": b"\xee" * GRANULE,
    "a write of another run": wrote(7, 0, 1, run=RUN + 1),
}


@pytest.mark.parametrize("granule", TORN_GRANULES.values(), ids=TORN_GRANULES)
def test_what_no_write_and_no_base_left_there_is_nobodys(granule):
    content = Attribution(RUN, BASE_BYTES).of(wrote(6, 0, 1)[:0] + granule + wrote(9, 1, 1), 0)
    assert content.runs == ((TORN, GRANULE), ("w9.c0", GRANULE))
    assert len(content.notes) == 1
    assert content.notes[0].startswith("0: ")


def test_a_tear_at_any_byte_is_seen():
    old, new = wrote(7, 0, 1), wrote(8, 0, 1)
    changed = [at for at in range(1, GRANULE) if old[:at] != new[:at] and old[at:] != new[at:]]
    assert len(changed) > GRANULE - 32 - 32
    for at in changed:
        assert runs_of(new[:at] + old[at:]) == ((TORN, GRANULE),)


def test_what_was_written_elsewhere_is_said_to_be_misdirected():
    content = Attribution(RUN, BASE_BYTES).of(wrote(7, 4, 1), 0)
    assert content.runs == ((TORN, GRANULE),)
    assert content.notes == ("0: misdirected: w7.c0 wrote this at 2048",)


def test_of_a_tear_the_writers_are_named():
    content = Attribution(RUN, BASE_BYTES).of(wrote(7, 0, 1)[:256] + wrote(8, 0, 1)[256:], 0)
    assert content.notes == ("0: torn: parts are w7.c0 and w8.c0's",)


@pytest.mark.parametrize("unstamped", [BASE, UNKNOWN])
def test_where_the_base_is_not_known_what_has_no_stamp_is_what_the_caller_says(unstamped):
    known = {"base": None, "unstamped": unstamped}
    assert runs_of(base(0, 3), **known) == ((unstamped, 1536),)
    assert runs_of(base(0, 1) + wrote(7, 1, 1) + bytes(GRANULE), **known) == (
        (unstamped, 512),
        ("w7.c0", 512),
        (ZERO, 512),
    )
    assert runs_of(wrote(7, 0, 1)[:256] + base(0, 1)[256:], **known) == ((TORN, 512),)


NOT_ONE_WRITE = [
    wrote(7, 0, 1) + wrote(8, 1, 1),
    wrote(7, 0, 2) + base(2, 1),
    wrote(7, 1, 2),
    base(0, 1),
    bytes(GRANULE),
    wrote(7, 0, 1)[:-1] + b"\xff",
    b"cowproof",
]


@pytest.mark.parametrize("data", NOT_ONE_WRITE)
def test_what_is_not_one_write_at_its_place_has_no_name(data):
    assert written(data, 0) is None
