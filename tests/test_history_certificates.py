"""The verifier accepts what proves a verdict, and nothing else.  Source: model/certificate.py.

Each certificate here is right but for one thing.
"""

from dataclasses import replace

import pytest
from history_cases import histories, history_of, judge
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from model import certificate
from model.certificate import Conflict, GroupOrder, Order, verify_conflict, verify_order
from model.history import LEVELS, PENDING
from model.linearizability import Verdict, decide

MANY = settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))

HISTORY = history_of(
    ("write", 0, 2, 0, 1, "a"),
    ("read", 0, 2, 2, 3, "a"),
    ("write", 0, 2, 2, 9, "b", "EIO"),
    ("read", 0, 2, 10, 11, (("b", 1), ("a", 1))),
    ("write", 2, 2, 0, 20, "c", PENDING),
    ("read", 2, 2, 5, 6, "c"),
    ("flush", 0, 0, 0, 1),
    ("write", 0, 1, 0, 1, "d", "EPERM"),
    ("read", 0, 2, 4, 5, "a"),
    ("write", 0, 1, 2, 30, "e", "EIO"),
)
EDGES = [0, 1, 2, 4]
RIGHT = Order(EDGES, [GroupOrder(0, 2, [0, 1, 8, 2, 3], [-1, -1, -1, 0, -1]), GroupOrder(2, 3, [4, 5], [-1, -1])])
APART = [
    GroupOrder(0, 1, [0, 1, 8, 2, 3], [-1, -1, -1, 0, -1]),
    GroupOrder(1, 2, [0, 1, 8, 3]),
    RIGHT.sequences[1],
]


def with_first(**changes):
    return replace(RIGHT, sequences=[replace(RIGHT.sequences[0], **changes), RIGHT.sequences[1]])


WRONG_ORDERS = [
    ("a read that does not fit", with_first(operations=[1, 0, 8, 2, 3])),
    ("a read before what it saw", replace(RIGHT, sequences=[RIGHT.sequences[0], GroupOrder(2, 3, [5, 4])])),
    ("an operation that is missing", with_first(operations=[0, 8, 2, 3], only=[-1, -1, 0, -1])),
    ("an operation that is there twice", with_first(operations=[0, 1, 1, 8, 2, 3], only=[-1, -1, -1, -1, 0, -1])),
    ("one twice in the place of another", with_first(operations=[0, 1, 1, 2, 3])),
    ("one twice, once counted from behind", with_first(operations=[0, 1, 1 - len(HISTORY), 2, 3])),
    ("an order against real time", with_first(operations=[0, 8, 1, 2, 3])),
    ("a failed request on another cell", with_first(only=[-1, -1, -1, 1, -1])),
    ("a failed request where it was not", with_first(operations=[0, 1, 8, 2, 3, 9], only=[-1, -1, -1, 0, -1, 1])),
    ("a failed request as a whole", with_first(only=[-1, -1, -1, -1, -1])),
    ("a refused request", with_first(operations=[7, 0, 1, 8, 2, 3], only=[0, -1, -1, -1, 0, -1])),
    ("a group that is missing", replace(RIGHT, sequences=RIGHT.sequences[:1])),
    ("requests torn between two groups", replace(RIGHT, sequences=APART)),
    ("groups that overlap", replace(RIGHT, sequences=[*RIGHT.sequences, GroupOrder(2, 3, [4], [-1])])),
    ("edges out of order", replace(RIGHT, edges=[0, 2, 1, 4])),
    ("a read that is said to be unchecked", replace(RIGHT, unchecked=[(0, 3)])),
]


def test_the_right_order_is_accepted():
    verify_order(HISTORY, "request", RIGHT)


@pytest.mark.parametrize(("_what", "order"), WRONG_ORDERS, ids=[what for what, _ in WRONG_ORDERS])
def test_an_order_with_one_thing_wrong_is_not(_what, order):
    with pytest.raises(AssertionError):
        verify_order(HISTORY, "request", order)


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_it_does_not_matter_how_many_operations_are_looked_up_at_once(monkeypatch, chunk):
    monkeypatch.setattr(certificate, "CHUNK", chunk)
    verify_order(HISTORY, "request", RIGHT)
    for _, order in WRONG_ORDERS:
        with pytest.raises(AssertionError):
            verify_order(HISTORY, "request", order)


def test_cells_may_be_apart_where_the_level_allows_it():
    verify_order(HISTORY, "sector", Order(EDGES, APART))
    for level in ("block", "request"):
        with pytest.raises(AssertionError, match="torn"):
            verify_order(HISTORY, level, Order(EDGES, APART))


STALE = history_of(
    ("write", 0, 2, 0, 1, "a"),
    ("zero", 0, 2, 2, 3),
    ("write", 0, 2, 4, 5, "b"),
    ("read", 0, 2, 6, 7, "zero"),
    ("zero", 0, 2, 8, 9),
    ("read", 0, 2, 6, 7, "b"),
    ("zero", 2, 2, 2, 9),
    ("write", 2, 2, 3, 4, "c"),
    ("read", 2, 2, 5, 6, "zero"),
    ("read", 2, 2, 5, 6, "c"),
)
CONFLICTS = [  # (operations, bytes, whether they prove it)
    ((2, 3), (0, 2), True),  # the zero before is over, the one behind too late
    ((2, 3, 1, 4), (0, 2), True),
    ((3,), (0, 2), False),  # without the write that came between
    ((0, 1, 3), (0, 2), False),
    ((7, 8), (2, 4), False),  # a zero write that matters is not named
    ((6, 7, 8), (2, 4), False),
    ((2, 3), (2, 4), False),  # on other bytes
    ((), (0, 2), False),
]


@pytest.mark.parametrize(("operations", "span", "proves"), CONFLICTS)
def test_a_conflict_has_to_name_what_matters(operations, span, proves):
    conflict = Conflict(operations, *span)
    if proves:
        verify_conflict(STALE, "request", conflict)
    else:
        with pytest.raises(AssertionError):
            verify_conflict(STALE, "request", conflict)


def test_a_writer_of_what_was_read_has_to_be_named():
    history = history_of(("write", 0, 1, 0, 1, "a"), ("write", 0, 1, 2, 3, "b"), ("read", 0, 1, 4, 5, "a"))
    verify_conflict(history, "sector", Conflict((0, 1, 2), 0, 1))
    with pytest.raises(AssertionError, match="not named"):
        verify_conflict(history, "sector", Conflict((1, 2), 0, 1))


def test_a_conflict_may_not_reach_over_what_the_level_promises():
    rows = [("write", 0, 4, 0, 9, "a"), ("read", 0, 4, 0, 9, (("a", 2), ("base", 2)))]
    verify_conflict(history_of(*rows), "request", Conflict((0, 1), 0, 4))
    with pytest.raises(AssertionError, match="over the end"):
        verify_conflict(history_of(*rows), "block", Conflict((0, 1), 0, 4))


# Right histories, and operations of them that might seem to have no order.
RIGHT_AFTER_ALL = [
    (
        "the base is read after a zero write that failed and has not happened",
        [
            ("zero", 0, 1, 0, 1, None, "EIO"),
            ("read", 0, 1, 5, 6, "base"),
            ("zero", 0, 1, 7, 8),
            ("read", 0, 1, 9, 10, "zero"),
        ],
        (1, 2, 3),
    ),
    (
        "of two zero writes the one that ends first begins too late for a failed write to come after it",
        [
            ("zero", 0, 1, 0, 100),
            ("zero", 0, 1, 10, 50),
            ("write", 0, 1, 0, 5, "x", "EIO"),
            ("write", 1, 1, 0, 100, "y"),
            ("read", 0, 2, 0, 100, (("zero", 1), ("base", 1))),
            ("read", 0, 2, 0, 100, (("x", 1), ("y", 1))),
        ],
        (0, 1, 2, 3, 4, 5),
    ),
]


@pytest.mark.parametrize(("_what", "rows", "operations"), RIGHT_AFTER_ALL, ids=[what for what, *_ in RIGHT_AFTER_ALL])
def test_what_has_an_order_is_not_refuted(_what, rows, operations):
    history = history_of(*rows, size=2)
    assert decide(history, "request").verdict == judge(history, "request") == Verdict.LINEARIZABLE
    with pytest.raises(AssertionError, match="has an order"):
        verify_conflict(history, "request", Conflict(operations, 0, 2))


def test_of_a_failed_request_only_the_cells_on_which_it_was_read_are_tried():
    """Each of its cells may have happened or not: with all of them there would be millions of orders."""
    torn = tuple(("ab"[at % 2], 1) for at in range(24))
    history = history_of(
        ("write", 0, 24, 0, 9, "a"),
        ("write", 0, 24, 0, 9, "b"),
        ("write", 0, 24, 0, 9, "c", "EIO"),
        ("read", 0, 1, 0, 9, "c"),
        ("read", 0, 24, 10, 11, torn),
        size=24,
    )
    verify_conflict(history, "request", Conflict((0, 1, 2, 3, 4), 0, 24))


@pytest.mark.parametrize("unchecked", [(1, 1), (1, 3), (1, 2), (-1, 1), (1, 1 - 4)])
def test_only_reads_of_a_cell_go_unchecked_there(unchecked):
    """Else one could make up for an operation that is not in the order, such as a read that nothing explains."""
    stale = history_of(
        ("write", 0, 1, 0, 1, "a"),
        ("read", 0, 1, 4, 5, "base"),
        ("trim", 1, 1, 0, 1),
        ("flush", 0, 0, 3, 9),
        size=2,
        trim_reads_zero=False,
    )
    orders = [GroupOrder(0, 1, [0]), GroupOrder(1, 2, [2])]
    with pytest.raises(AssertionError):
        verify_order(stale, "request", Order([0, 1, 2], orders, [unchecked]))


@MANY
@given(histories(3, 6), st.sampled_from(LEVELS), st.data())
def test_no_few_operations_refute_what_is_linearizable(history, level, data):
    assume(judge(history, level) == Verdict.LINEARIZABLE)
    some = tuple(data.draw(st.sets(st.integers(0, len(history) - 1), min_size=1)))
    start = data.draw(st.integers(0, 2))
    with pytest.raises(AssertionError):
        verify_conflict(history, level, Conflict(some, start, data.draw(st.integers(start + 1, 3))))


@MANY
@given(histories(2, 5), st.sampled_from(LEVELS), st.data())
def test_no_order_proves_what_is_not_linearizable(history, level, data):
    assume(judge(history, level) == Verdict.NOT_LINEARIZABLE)
    operations = data.draw(st.permutations(range(len(history))))
    kept = operations[: data.draw(st.integers(0, len(history)))]
    with pytest.raises(AssertionError):
        verify_order(history, level, Order([0, 1, 2], [GroupOrder(0, 2, kept, [-1] * len(kept))]))


@MANY
@given(histories(2, 6), st.sampled_from(LEVELS), st.data())
def test_an_order_loses_its_worth_with_any_two_operations_exchanged_that_real_time_orders(history, level, data):
    decision = decide(history, level)
    assume(decision.verdict == Verdict.LINEARIZABLE)
    group = data.draw(st.sampled_from(decision.certificate.sequences)) if decision.certificate.sequences else None
    assume(group is not None)
    pairs = [
        at
        for at, (one, other) in enumerate(zip(group.operations, group.operations[1:], strict=False))
        if history.outcome[one] != PENDING and history.ret[one] < history.call[other]
    ]
    assume(pairs)
    at = data.draw(st.sampled_from(pairs))
    group.operations[at : at + 2] = reversed(group.operations[at : at + 2])
    if group.only is not None:
        group.only[at : at + 2] = reversed(group.only[at : at + 2])
    with pytest.raises(AssertionError):
        verify_order(history, level, decision.certificate)
