"""Requests over several granules and blocks at once, beside the search.  Source: model/whole.py, model/wgl.py."""

import random

import pytest
from history_cases import PLAIN, histories, history_of, judge
from hypothesis import HealthCheck, given, settings

from model import budget, certificate, few, mending, zones
from model.budget import Budget
from model.history import NEVER, PENDING
from model.linearizability import Verdict, decide

MANY = settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))


@MANY
@given(histories(2, 7))
def test_two_granules_are_decided_as_the_search_does(history):
    assert decide(history, "request").verdict == judge(history, "request")


@MANY
@given(histories(4, 8, PLAIN))
def test_four_granules_are_decided_as_the_search_does(history):
    assert decide(history, "request").verdict == judge(history, "request")


@MANY
@given(histories(3, 8))
def test_with_zeroes_and_trims_too(history):
    assert decide(history, "request").verdict == judge(history, "request")


@MANY
@given(histories(4, 8))
def test_blocks_are_decided_as_the_search_does(history):
    assert decide(history, "block").verdict == judge(history, "block")


def chain(count, last):
    """Writes of two granules one after another, each read half from it and half from the one before, `last` torn."""
    rows = [("read", 0, 1, 0, 5, "base")]
    for at in range(count):
        rows.append(("write", 0, 2, 10 * at, 10 * at + 15, f"w{at}"))
        rows.append(("read", 0, 2, 10 * at + 2, 10 * at + 18, f"w{at}"))
    if last:
        rows[-1] = (*rows[-1][:5], ((f"w{count - 1}", 1), (f"w{count - 2}", 1)))
    return history_of(*rows, size=2)


def test_a_long_history_is_right_until_something_in_it_is_wrong():
    assert decide(chain(2000, last=False), "request").verdict == Verdict.LINEARIZABLE
    decision = decide(chain(2000, last=True), "request")
    assert decision.verdict == Verdict.NOT_LINEARIZABLE
    assert len(decision.certificate.operations) <= 4
    assert decide(chain(2000, last=True), "sector").verdict == Verdict.LINEARIZABLE


def test_a_spent_budget_is_unknown_and_has_no_certificate():
    decision = decide(history_of(*CASES), "request", Budget(steps=1))
    assert decision.verdict == Verdict.UNKNOWN
    assert decision.certificate is None
    assert "1 steps" in decision.why


@pytest.mark.parametrize("entries", range(4))
def test_a_search_that_may_remember_nothing_more_does_not_say_that_there_is_no_order(entries):
    for count in (3, 6):
        decision = decide(history_of(*CASES[:count]), "request", Budget(entries=entries))
        assert decision.verdict in (Verdict.UNKNOWN, judge(history_of(*CASES[:count]), "request"))
    assert decide(history_of(*CASES), "request", Budget(entries=entries)).verdict != Verdict.LINEARIZABLE


def test_time_may_end_within_the_first_order_too(monkeypatch):
    """With all in flight at once, each write is a reason to look at all that wait."""
    monkeypatch.setattr(budget, "WORK_PER_LOOK", 0)
    decision = decide(history_of(*crowd(*CROWDS[0]), size=6), "request", Budget(seconds=-1))
    assert (decision.verdict, decision.counts["steps"]) == (Verdict.UNKNOWN, 0)
    assert "-1 seconds" in decision.why


def test_without_time_to_find_fewer_what_was_found_is_shown(monkeypatch):
    monkeypatch.setattr(few, "ALL", Budget(seconds=-1))
    decision = decide(history_of(*CASES), "request")
    assert decision.verdict == Verdict.NOT_LINEARIZABLE


@pytest.mark.parametrize(("work", "count"), [(0, 25), (2_000_000, 21)])
def test_of_one_block_too_the_search_for_fewer_is_ended(monkeypatch, work, count):
    """Five zero writes without an answer, and six times that zeroes were read after something else."""
    monkeypatch.setattr(zones, "_WORK_MAX", work)
    rows = [("write", 0, 1, 0, 1, "first"), ("read", 0, 1, 2, 3, "first")]
    rows += [("zero", 0, 1, 4, NEVER, None, PENDING) for _ in range(5)]
    for at in range(6):
        rows += [
            ("write", 0, 1, 10 * at + 5, 10 * at + 6, f"w{at}"),
            ("read", 0, 1, 10 * at + 7, 10 * at + 8, f"w{at}"),
        ]
        rows += [("read", 0, 1, 10 * at + 9, 10 * at + 10, "zero")]
    decision = decide(history_of(*rows), "request")
    assert decision.verdict == Verdict.NOT_LINEARIZABLE
    assert len(decision.certificate.operations) == count


def test_a_conflict_that_takes_too_long_to_replay_is_unknown(monkeypatch):
    monkeypatch.setattr(certificate, "LOOKS_MAX", 1)
    decision = decide(history_of(*CASES), "request")
    assert decision.verdict == Verdict.UNKNOWN
    assert "too many orders" in decision.why


# An order that only cases show: of two writes either order leads, over reads of other cells, to the contrary.
CASES = [
    ("write", 0, 2, 0, 100, "a"),
    ("write", 0, 2, 0, 100, "b"),
    ("write", 2, 2, 0, 100, "c"),
    ("write", 2, 2, 0, 100, "d"),
    ("read", 1, 2, 0, 100, (("a", 1), ("c", 1))),
    ("read", 1, 2, 0, 100, (("b", 1), ("d", 1))),
    ("read", 1, 2, 0, 100, (("a", 1), ("d", 1))),
    ("read", 1, 2, 0, 100, (("b", 1), ("c", 1))),
]


@pytest.mark.parametrize("left_out", [None, *range(4, 8)])
def test_what_no_implied_order_shows_is_searched(left_out):
    rows = [row for at, row in enumerate(CASES) if at != left_out]
    history = history_of(*rows)
    assert decide(history, "request").verdict == judge(history, "request")
    expected = Verdict.NOT_LINEARIZABLE if left_out is None else Verdict.LINEARIZABLE
    assert decide(history, "request").verdict == expected


# Histories of many at a time: (requests, granules, how long the longest takes, kinds). Two begin at each tick.
CROWDS = [
    (3000, 6, 20, ("read", "write")),
    (1000, 16, 100, ("read", "read", "read", "write")),
    (1000, 6, 30, ("read", "read", "write", "zero")),
    (2000, 16, 60, ("read", "read", "write", "zero", "trim")),
    (600, 4, 150, ("read", "write", "zero")),
]


def crowd(count, granules, ticks, kinds):
    """Requests that take effect at an instant each, and what they saw."""
    numbers = random.Random(count)
    rows, instants = [], []
    for index in range(count):
        first = numbers.randrange(granules)
        length = numbers.randint(1, granules - first)
        call = index // 2
        ret = call + numbers.randrange(ticks)
        rows.append([numbers.choice(kinds), first, length, call, ret, None])
        instants.append((numbers.uniform(call, ret), index))
    held = ["base"] * granules
    for _, index in sorted(instants):
        op, first, length, *_ = row = rows[index]
        if op == "read":
            row[5] = tuple((value, 1) for value in held[first : first + length])
        else:
            value = f"w{index}" if op == "write" else "zero"
            row[5] = value if op == "write" else None
            held[first : first + length] = [value] * length
    return rows


@pytest.mark.parametrize(("count", "granules", "ticks", "kinds"), CROWDS)
def test_dozens_in_flight_on_a_few_granules_are_decided(count, granules, ticks, kinds):
    rows = crowd(count, granules, ticks, kinds)
    history = history_of(*rows, size=granules)
    assert max(sum(row[3] <= at <= row[4] for row in rows) for at in range(0, count // 2, 50)) > ticks // 2
    assert decide(history, "request").verdict == Verdict.LINEARIZABLE


@pytest.mark.parametrize(("count", "granules", "ticks", "kinds"), CROWDS)
def test_a_torn_read_among_dozens_in_flight_is_shown_by_a_handful(count, granules, ticks, kinds):
    """Two writes one after the other, and a read that saw some of each though it began when both had ended."""
    rows = crowd(count, granules, ticks, kinds)
    late = count // 2 + ticks
    rows += [
        ("write", 0, granules, late + 1, late + 2, "first"),
        ("write", 0, granules, late + 1, late + 2, "second"),
        ("read", 0, granules, late + 3, late + 4, (("first", 1), ("second", granules - 1))),
    ]
    decision = decide(history_of(*rows, size=granules), "request")
    assert decision.verdict == Verdict.NOT_LINEARIZABLE
    assert len(decision.certificate.operations) == 3
    assert decide(history_of(*rows, size=granules), "sector").verdict == Verdict.LINEARIZABLE


@pytest.mark.parametrize("count", [1, 2])
def test_it_does_not_matter_how_many_zero_writes_are_named_at_once(monkeypatch, count):
    monkeypatch.setattr(mending, "FEW", count)

    @settings(MANY, max_examples=500)
    @given(histories(2, 9, ("read", "zero", "read", "write", "zero")))
    def are_decided(history):
        assert decide(history, "request").verdict == judge(history, "request")

    are_decided()


def test_what_was_not_named_at_first_need_not_have_been_read(monkeypatch):
    """That it was one of the others is one more choice; it is taken back like any other."""
    monkeypatch.setattr(mending, "FEW", 1)
    history = history_of(
        ("zero", 1, 2, 2, NEVER, None, PENDING),
        ("zero", 0, 2, 14, NEVER, None, PENDING),
        ("write", 0, 2, 3, 28, "a"),
        ("read", 0, 2, 0, 26, (("a", 1), ("zero", 1))),
        ("read", 0, 2, 5, 22, (("base", 1), ("zero", 1))),
        ("read", 0, 2, 25, 30, (("a", 1), ("zero", 1))),
    )
    assert decide(history, "request").verdict == judge(history, "request") == Verdict.NOT_LINEARIZABLE


def pending_zeroes(count, right):
    """Two blocks, zero writes of both without an answer, one for each time that they are read after something else."""
    rows = [("zero", 0, 2, at, NEVER, None, PENDING) for at in range(count)]
    for at in range(count if right else count + 1):
        call = count + 10 * at
        rows.append(("write", 0, 2, call, call + 1, f"w{at}"))
        rows.append(("read", 0, 2, call + 2, call + 3, "zero"))
    return history_of(*rows, size=2)


@pytest.mark.parametrize("count", [3, 7, 8, 9, 30])
def test_any_of_many_zero_writes_without_an_answer_may_have_been_read(count):
    assert decide(pending_zeroes(count, right=True), "request").verdict == Verdict.LINEARIZABLE
    assert decide(pending_zeroes(count, right=False), "request").verdict == Verdict.NOT_LINEARIZABLE


def test_a_zero_write_that_failed_does_not_stand_for_zeroes_below_reads_of_the_base():
    """Of few requests, the base is what they hold at first if somebody read it, whatever was written before them."""
    history = history_of(
        ("zero", 0, 1, 0, 1, None, "EIO"),
        ("zero", 0, 2, 5, 11),
        ("read", 1, 1, 5, 11, "zero"),
        ("read", 0, 2, 7, 11, (("zero", 1), ("base", 1))),
        ("read", 0, 2, 5, 11, "base"),
        size=2,
    )
    assert judge(history, "request") == Verdict.NOT_LINEARIZABLE
    assert decide(history, "request").verdict == Verdict.NOT_LINEARIZABLE
