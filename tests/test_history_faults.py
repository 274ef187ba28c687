"""What a wrong server shows: each fault as a small history, the levels that reject it, and its closest sibling.

Source:  specification of the levels: model/cells.py. Blocks are of two granules.
Shapes:  rows are (kind, offset, granules, invoked, returned, value, outcome).
"""

import pytest
from history_cases import history_of, judge

from model.history import LEVELS, PENDING, Operation
from model.linearizability import Verdict, decide, name_of

W = "write"
R = "read"

FAULTS = [  # (name, rows of the fault, rows of its sibling, levels that reject the fault, words of the reason)
    (
        "a lost update: acknowledged, and never seen",
        [(W, 0, 1, 0, 1, "a"), (W, 0, 1, 2, 3, "b"), (R, 0, 1, 4, 5, "a")],
        [(W, 0, 1, 0, 1, "a"), (W, 0, 1, 1, 3, "b"), (R, 0, 1, 4, 5, "a")],
        "request block sector",
        "r2 returned a, but b began after a ended and ended before r2 began in [0, 1)",
    ),
    (
        "a stale read: new, then old",
        [(W, 0, 1, 0, 9, "a"), (R, 0, 1, 1, 2, "a"), (R, 0, 1, 3, 4, "base")],
        [(W, 0, 1, 0, 9, "a"), (R, 0, 1, 1, 3, "a"), (R, 0, 1, 3, 4, "base")],
        "request block sector",
        "r2 returned base, but r1 returned a, and ended before r2 began",
    ),
    (
        "a torn block: half of either write",
        [(W, 0, 2, 0, 9, "a"), (W, 0, 2, 0, 9, "b"), (R, 0, 2, 10, 11, (("a", 1), ("b", 1)))],
        [(W, 0, 2, 0, 9, "a"), (W, 1, 1, 0, 9, "b"), (R, 0, 2, 10, 11, (("a", 1), ("b", 1)))],
        "request block",
        "have no order in which each takes effect as a whole",
    ),
    (
        "a torn request: whole blocks of either write",
        [(W, 0, 4, 0, 9, "a"), (W, 0, 4, 0, 9, "b"), (R, 0, 4, 10, 11, (("a", 2), ("b", 2)))],
        [(W, 0, 4, 0, 9, "a"), (W, 2, 2, 0, 9, "b"), (R, 0, 4, 10, 11, (("a", 2), ("b", 2)))],
        "request",
        "have no order in which each takes effect as a whole",
    ),
    (
        "a torn read: half before a write and half after it",
        [(W, 0, 4, 0, 9, "a"), (R, 0, 4, 0, 9, (("a", 2), ("base", 2)))],
        [(W, 0, 2, 0, 9, "a"), (R, 0, 4, 0, 9, (("a", 2), ("base", 2)))],
        "request",
        "a, r1 have no order",
    ),
    (
        "a torn granule: bytes of nobody",
        [(W, 0, 1, 0, 9, "a"), (R, 0, 1, 0, 9, "?")],
        [(W, 0, 1, 0, 9, "a"), (R, 0, 1, 0, 9, "a")],
        "request block sector",
        "r1 returned bytes that nobody wrote",
    ),
    (
        "a write that came back after a trim",
        [(W, 0, 1, 0, 1, "a"), ("trim", 0, 1, 2, 3), (R, 0, 1, 4, 5, "a")],
        [(W, 0, 1, 0, 1, "a"), ("trim", 0, 1, 2, 4), (R, 0, 1, 4, 5, "a")],
        "request block sector",
        "r2 returned a, but t1 began after a ended and ended before r2 began",
    ),
    (
        "zeroes that came back after a write",
        [("zero", 0, 1, 0, 1), (W, 0, 1, 2, 3, "a"), (R, 0, 1, 4, 5, "zero")],
        [("zero", 0, 1, 0, 2), (W, 0, 1, 2, 3, "a"), (R, 0, 1, 4, 5, "zero")],
        "request block sector",
        "r2 returned zero, but no zeroes had been written since a",
    ),
    (
        "zeroes that nobody wrote",
        [(R, 0, 1, 0, 1, "zero"), ("zero", 0, 1, 2, 3)],
        [(R, 0, 1, 0, 2, "zero"), ("zero", 0, 1, 2, 3)],
        "request block sector",
        "r0 returned zero, but no zeroes had been written in [0, 1)",
    ),
    (
        "zeroes twice, written once",
        [("zero", 0, 1, 0, 9), (R, 0, 1, 1, 2, "zero"), (W, 0, 1, 3, 4, "a"), (R, 0, 1, 5, 6, "zero")],
        [("zero", 0, 1, 0, 9), (R, 0, 1, 1, 3, "zero"), (W, 0, 1, 3, 4, "a"), (R, 0, 1, 3, 6, "zero")],
        "request block sector",
        "r3 returned zero, but z0 cannot have come between r1, a and it",
    ),
    (
        "a read from the future",
        [(R, 0, 1, 0, 1, "a"), (W, 0, 1, 2, 3, "a")],
        [(R, 0, 1, 0, 2, "a"), (W, 0, 1, 2, 3, "a")],
        "request block sector",
        "r0 returned a, but ended before a began",
    ),
    (
        "an old value that came back when a client had connected again",
        [
            (W, 0, 1, 0, 1, "a"),
            (W, 0, 1, 2, 1 << 40, "b", PENDING),
            (R, 0, 1, 5, 6, "b"),
            (R, 0, 1, 7, 8, "a"),
        ],
        [
            (W, 0, 1, 0, 1, "a"),
            (W, 0, 1, 2, 1 << 40, "b", PENDING),
            (R, 0, 1, 5, 6, "a"),
            (R, 0, 1, 7, 8, "b"),
        ],
        "request block sector",
        "r3 returned a, but r2 returned b, and began after a ended and ended before r3 began",
    ),
    (
        "a flush that lied, as far as it shows without a crash: another connection does not see what was flushed",
        [(W, 0, 1, 0, 1, "a"), ("flush", 0, 0, 2, 3), (R, 0, 1, 4, 5, "base")],
        [(W, 0, 1, 0, 4, "a"), ("flush", 0, 0, 2, 3), (R, 0, 1, 4, 5, "base")],
        "request block sector",
        "r2 returned base, but a ended before r2 began",
    ),
    (
        "a refused write that happened",
        [(W, 0, 1, 0, 1, "a", "EINVAL"), (R, 0, 1, 2, 3, "a")],
        [(W, 0, 1, 0, 1, "a", "EIO"), (R, 0, 1, 2, 3, "a")],
        "request block sector",
        "r1 returned a, whose write failed with EINVAL",
    ),
    (
        "a write to another place",
        [(W, 2, 1, 0, 1, "a"), (R, 0, 1, 2, 3, "a")],
        [(W, 0, 1, 0, 1, "a"), (R, 0, 1, 2, 3, "a")],
        "request block sector",
        "r1 returned a, which was written to [2, 3) only",
    ),
]
NAMES = [name for name, *_ in FAULTS]


@pytest.mark.parametrize(("_name", "rows", "_sibling", "levels", "why"), FAULTS, ids=NAMES)
def test_a_fault_is_rejected_at_the_levels_that_forbid_it(_name, rows, _sibling, levels, why):
    history = history_of(*rows)
    rejected = [level for level in LEVELS if decide(history, level).verdict == Verdict.NOT_LINEARIZABLE]
    assert " ".join(rejected) == levels
    assert [level for level in LEVELS if judge(history, level) == Verdict.NOT_LINEARIZABLE] == rejected
    assert why in decide(history, "request").why


@pytest.mark.parametrize(("_name", "_rows", "sibling", "_levels", "_why"), FAULTS, ids=NAMES)
def test_its_closest_sibling_is_accepted_at_every_level(_name, _rows, sibling, _levels, _why):
    for level in LEVELS:
        assert decide(history_of(*sibling), level).verdict == Verdict.LINEARIZABLE


FAILED = [(W, 0, 4, 0, 9, "a", "EIO"), (R, 0, 4, 10, 11, (("a", 1), ("base", 2), ("a", 1)))]


def test_a_failed_request_may_have_happened_granule_by_granule():
    assert decide(history_of(*FAILED), "request").verdict == Verdict.LINEARIZABLE


def test_a_pending_one_happens_as_a_whole_or_not_at_all():
    pending = (*FAILED[0][:6], PENDING)
    assert decide(history_of(pending, FAILED[1]), "request").verdict == Verdict.NOT_LINEARIZABLE
    assert decide(history_of(pending, (R, 0, 4, 10, 11, "a")), "request").verdict == Verdict.LINEARIZABLE
    assert decide(history_of(pending, (R, 0, 4, 10, 11, "base")), "request").verdict == Verdict.LINEARIZABLE


def test_a_failed_request_has_happened_by_its_answer_if_at_all():
    rows = [(W, 0, 1, 0, 1, "a", "EIO"), (R, 0, 1, 2, 3, "base"), (R, 0, 1, 4, 5, "a")]
    assert decide(history_of(*rows), "sector").verdict == Verdict.NOT_LINEARIZABLE
    rows[0] = (*rows[0][:6], PENDING)
    assert decide(history_of(*rows), "sector").verdict == Verdict.LINEARIZABLE


TRIMMED = [(W, 0, 1, 0, 1, "a"), ("trim", 0, 1, 2, 3), (R, 0, 1, 4, 5, "?"), (W, 0, 1, 6, 7, "b")]


def test_after_a_trim_that_promises_nothing_anything_is_read_until_it_is_overwritten():
    assert decide(history_of(*TRIMMED, trim_reads_zero=False)).verdict == Verdict.LINEARIZABLE
    assert decide(history_of(*TRIMMED, trim_reads_zero=True)).verdict == Verdict.NOT_LINEARIZABLE
    late = history_of(*TRIMMED, (R, 0, 1, 8, 9, "a"), trim_reads_zero=False)
    assert decide(late).verdict == Verdict.NOT_LINEARIZABLE
    decision = decide(history_of(*TRIMMED, trim_reads_zero=False))
    assert decision.counts["unchecked"] == 1


def test_a_base_of_zeroes_is_as_if_zeroes_had_been_written():
    zero_first = [(R, 0, 1, 0, 1, "zero"), (W, 0, 1, 2, 3, "a")]
    assert decide(history_of(*zero_first, base_is_zero=True)).verdict == Verdict.LINEARIZABLE
    assert decide(history_of(*zero_first)).verdict == Verdict.NOT_LINEARIZABLE
    assert decide(history_of((R, 0, 1, 0, 1, "base"), base_is_zero=True)).verdict == Verdict.NOT_LINEARIZABLE
    assert decide(history_of(*zero_first, (R, 0, 1, 4, 5, "zero"), base_is_zero=True)).verdict == (
        Verdict.NOT_LINEARIZABLE
    )


def test_requests_that_say_nothing_are_left_out_and_counted():
    rows = [("flush", 0, 0, 0, 1), ("cache", 0, 4, 0, 1), ("status", 1, 2, 0, 1), (R, 0, 1, 0, 1, "a", PENDING)]
    decision = decide(history_of(*rows, (R, 0, 1, 2, 3, "?", "EIO")))
    assert decision.verdict == Verdict.LINEARIZABLE
    assert decision.counts["left_out"] == 5


def test_requests_of_one_block_make_one_cell_for_a_block():
    history = history_of(
        (W, 0, 65536, 0, 1, "a"), (R, 0, 65536, 2, 3, "a"), size=1 << 20, block_size=65536, granule=512
    )
    for level in LEVELS:
        assert decide(history, level).counts["cells"] == 1


IMPOSSIBLE = [
    ([(W, 0, 1, 0, 1, "a"), (W, 0, 1, 2, 3, "a")], "value 'a' is written by two requests"),
    ([(W, 0, 1, 0, 1, "base")], "a write cannot have the value 'base'"),
    ([(W, 0, 1, 0, 1, "?")], "a write cannot have the value '?'"),
    ([(R, 0, 2, 0, 1, (("base", 1),))], "does not come to its length"),
    ([(R, 0, 2, 0, 1, (("base", 1), ("zero", 2)))], "does not come to its length"),
    ([(R, 0, 2, 0, 1)], "read 0 was answered without a value"),
    ([(W, 0, 1, 2, 1, "a")], "request 0 returned before it was invoked"),
]


@pytest.mark.parametrize(("rows", "said"), IMPOSSIBLE)
def test_what_cannot_have_been_recorded_is_an_error(rows, said):
    with pytest.raises(ValueError, match=said.replace("?", r"\?")):
        decide(history_of(*rows))


def test_progress_is_told_from_the_beginning_to_the_end():
    told = []
    decide(
        history_of((W, 0, 1, 0, 1, "a"), (W, 2, 1, 0, 1, "b")), progress=lambda done, total: told.append((done, total))
    )
    assert told == [(0, 1), (2, 6), (3, 6), (4, 6), (5, 6), (6, 6)]  # Both are cut; each is decided, then replayed.


@pytest.mark.parametrize(("op", "name"), [("read", "r7"), ("zero", "z7"), ("trim", "t7"), ("write", "w-seven")])
def test_requests_are_called_by_what_they_are(op, name):
    assert name_of(Operation("c", 7, op, 0, 1, 0, 1, "ok", "w-seven" if op == "write" else None)) == name


NOT_NEEDED = [  # (rows, which of them are the conflict)
    ([(W, 0, 1, 0, 1, "a"), (R, 0, 1, 2, 3, "a"), (R, 0, 1, 4, 5, "base")], [0, 2]),
    ([(W, 0, 1, 0, 1, "a"), (W, 0, 1, 2, 3, "b"), (R, 0, 1, 4, 5, "a"), (R, 0, 1, 4, 9, "b")], [0, 1, 2]),
    ([(W, 0, 1, 0, 9, "a"), (R, 0, 1, 1, 2, "a"), (R, 0, 1, 3, 4, "base"), (R, 0, 1, 5, 6, "a")], [0, 1, 2]),
    ([(W, 0, 1, 0, 1, "a"), ("zero", 0, 1, 2, 3), (R, 0, 1, 2, 9, "a"), (R, 0, 1, 4, 5, "a")], [0, 1, 3]),
    # A read says that what was never answered has happened.
    ([(W, 0, 1, 0, 1 << 40, "a", PENDING), (R, 0, 1, 1, 2, "a"), (R, 0, 1, 3, 4, "base")], [0, 1, 2]),
]


@pytest.mark.parametrize(("rows", "needed"), NOT_NEEDED)
def test_of_a_conflict_between_two_values_only_the_reads_that_are_needed_are_named(rows, needed):
    assert sorted(decide(history_of(*rows)).certificate.operations) == needed
