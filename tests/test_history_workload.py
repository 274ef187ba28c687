"""What recording clients ask for: within what the server offers, in whole granules, all at the same place, seeded."""

import random
from collections import Counter

import pytest

from check.history.workload import ATTENTION_BLOCKS, MIX, Offer, Workload, parse_mix
from impl.errors import UsageError
from impl.history_tags import GRANULE
from model.history import OPS

BLOCK = 64 << 10
ALL = Offer(frozenset(OPS), frozenset({"fua", "no_hole", "fast"}), GRANULE, 32 << 20)


def wishes(count=2000, offer=ALL, mix=MIX, size=1 << 20, block=BLOCK, seed=1, moment=0):
    workload = Workload(random.Random(seed), offer, mix, size, block)
    return [workload.wish(moment) for _ in range(count)]


DEVICES = [  # (bytes, the server's unit)
    (GRANULE, GRANULE),
    (8 * GRANULE, GRANULE),
    (BLOCK, GRANULE),
    (3 * BLOCK + GRANULE, GRANULE),
    (1 << 20, GRANULE),
    (4096, 4096),
    (BLOCK + 4096, 4096),
    (1 << 20, 4096),
]


@pytest.mark.parametrize(("size", "unit"), DEVICES)
def test_ranges_are_whole_units_within_the_device(size, unit):
    for moment in range(20):
        for wish in wishes(200, Offer(ALL.ops, ALL.flags, unit, 2 * BLOCK), size=size, moment=moment):
            assert wish.offset % unit == wish.length % unit == 0
            assert 0 <= wish.offset <= wish.offset + wish.length <= size
            assert wish.length <= 2 * BLOCK
            assert (wish.length > 0) == (wish.op != "flush")


def test_everything_is_asked_for_as_often_as_the_mix_says():
    found = Counter(wish.op for wish in wishes(20_000))
    assert set(found) == set(OPS)
    for op, weight in MIX.items():
        assert found[op] == pytest.approx(200 * weight, rel=0.3)


def test_what_a_server_does_not_offer_is_not_asked_for():
    modest = Offer(frozenset({"read", "write"}), frozenset(), GRANULE, BLOCK)
    for wish in wishes(offer=modest):
        assert wish.op in ("read", "write")
        assert wish.flags == ()


def test_flags_are_those_of_the_request():
    found = {(wish.op, flag) for wish in wishes(20_000) for flag in wish.flags}
    assert found == {("write", "fua"), ("zero", "fua"), ("trim", "fua"), ("zero", "no_hole"), ("zero", "fast")}


def test_one_seed_asks_for_the_same_again():
    assert wishes(seed=5) == wishes(seed=5)
    assert wishes(seed=5) != wishes(seed=6)


def test_attention_is_on_a_few_blocks_and_moves():
    for moment in range(4):
        starts = {wish.offset // BLOCK for wish in wishes(moment=moment) if wish.op != "flush"}
        assert starts == set(range(moment * ATTENTION_BLOCKS, (moment + 1) * ATTENTION_BLOCKS))


def test_requests_are_of_parts_of_blocks_of_blocks_and_of_several():
    found = Counter()
    for wish in wishes():
        if wish.op != "flush":
            first, last = wish.offset // BLOCK, (wish.offset + wish.length - 1) // BLOCK
            found["several" if last > first else "whole" if wish.length == BLOCK else "part"] += 1
    assert min(found.values()) > 100
    assert len(found) == 3


def test_a_mix_is_read_as_it_is_written():
    assert parse_mix("read=70,write=30,trim=0") == {"read": 70, "write": 30, "trim": 0}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "read",
        "read=",
        "read=x",
        "read=-1",
        "read=1,read=2",
        "scan=1,write=1",
        "write=1",
        "read=1",
        "read=1,write=0",
    ],
)
def test_a_mix_that_makes_no_sense_is_refused(text):
    with pytest.raises(UsageError, match="expected"):
        parse_mix(text)
