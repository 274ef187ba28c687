"""The search for an order, for any model.  Source: Wing and Gong 1993; Lowe 2017.

It is compared with trying all orders, which is the definition itself.
"""

import pytest
from history_cases import Device, calls_of, digits, histories, judge_by_all_orders
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.budget import Budget
from model.history import LEVELS
from model.wgl import Call, Verdict, search, verify_order

MANY = settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
LINEARIZABLE, NOT_LINEARIZABLE, UNKNOWN = Verdict.LINEARIZABLE, Verdict.NOT_LINEARIZABLE, Verdict.UNKNOWN


class Register:
    """A register that can be read, written, and compared with a value before it is set."""

    def init(self):
        return 0

    def step(self, state, op):
        match op:
            case ("read", value):
                return state == value, state
            case ("write", value):
                return True, value
            case ("cas", old, new, done):
                return (state == old) == done, new if done else state
        raise AssertionError(op)

    def is_read(self, op):
        return op[0] == "read"

    def part_of(self, op):
        return None


class Map:
    """Keys with values of their own; each key is a part."""

    def init(self):
        return ""

    def step(self, state, op):
        kind, _, value = op
        if kind == "get":
            return state == value, state
        return True, value if kind == "put" else state + value

    def is_read(self, op):
        return op[0] == "get"

    def part_of(self, op):
        return op[1]


REGISTERS = [  # (operations, verdict)
    ([], LINEARIZABLE),
    ([(("write", 1), 0, 1), (("read", 1), 2, 3)], LINEARIZABLE),
    ([(("write", 1), 0, 1), (("read", 0), 2, 3)], NOT_LINEARIZABLE),
    ([(("write", 1), 0, 2), (("read", 0), 1, 3)], LINEARIZABLE),
    ([(("write", 1), 0, 1), (("read", 0), 1, 3)], LINEARIZABLE),  # a tie is no order
    ([(("cas", 0, 1, True), 0, 9), (("cas", 0, 2, True), 0, 9)], NOT_LINEARIZABLE),
    ([(("cas", 0, 1, True), 0, 9), (("cas", 0, 2, False), 0, 9)], LINEARIZABLE),
    ([(("cas", 0, 1, True), 0, 9), (("cas", 1, 0, True), 0, 9), (("cas", 0, 2, True), 0, 9)], LINEARIZABLE),
    ([(("cas", 0, 1, True), 0, 1), (("read", 0), 2, 3), (("cas", 1, 0, True), 4, 5)], NOT_LINEARIZABLE),
]


@pytest.mark.parametrize(("rows", "verdict"), REGISTERS)
def test_a_register_with_compare_and_set_is_decided(rows, verdict):
    calls = [Call(*row) for row in rows]
    assert search(Register(), calls).verdict == verdict
    assert judge_by_all_orders(Register(), calls) == verdict


MAPS = [
    ([(("put", "a", "x"), 0, 1), (("append", "a", "y"), 2, 3), (("get", "a", "xy"), 4, 5)], LINEARIZABLE),
    ([(("append", "a", "x"), 0, 9), (("append", "a", "y"), 0, 9), (("get", "a", "yx"), 10, 11)], LINEARIZABLE),
    ([(("append", "a", "x"), 0, 1), (("append", "a", "y"), 2, 3), (("get", "a", "yx"), 10, 11)], NOT_LINEARIZABLE),
    ([(("put", "a", "x"), 0, 1), (("get", "b", "x"), 2, 3)], NOT_LINEARIZABLE),
]


@pytest.mark.parametrize(("rows", "verdict"), MAPS)
def test_a_map_is_decided_key_by_key(rows, verdict):
    assert search(Map(), [Call(*row) for row in rows]).verdict == verdict


def test_one_key_that_is_wrong_is_found_beside_one_that_is_hard():
    hard = [Call(("append", "hard", str(at % 10)), 0, 100) for at in range(14)] + [Call(("get", "hard", "?"), 101, 102)]
    wrong = [Call(("get", "wrong", "never"), 0, 1)]
    found = search(Map(), hard + wrong, Budget(steps=20_000))
    assert found.verdict == NOT_LINEARIZABLE


@MANY
@given(st.lists(st.integers(0, 1 << 24), max_size=6))
def test_the_search_agrees_with_all_orders_on_registers(numbers):
    calls = []
    for number in numbers:
        kind, one, other, call, length, done, optional = digits(number, 3, 3, 3, 6, 4, 2, 4)
        op = (("read", one), ("write", one), ("cas", one, other, bool(done)))[kind]
        calls.append(Call(op, call, call + length, optional == 0))
    assert search(Register(), calls).verdict == judge_by_all_orders(Register(), calls)


@MANY
@given(histories(2, 5), st.sampled_from(LEVELS))
def test_the_search_agrees_with_all_orders_on_devices(history, level):
    calls = calls_of(history, level)
    by_unit = {}
    for call in calls:
        by_unit.setdefault(call.op[1], []).append(call)
    verdicts = {judge_by_all_orders(Device(history), of) for of in by_unit.values()}
    expected = NOT_LINEARIZABLE if NOT_LINEARIZABLE in verdicts else LINEARIZABLE
    assert search(Device(history), calls).verdict == expected


def test_the_order_found_is_one():
    calls = [Call(("write", 2), 0, 9), Call(("write", 1), 0, 9), Call(("read", 1), 0, 9), Call(("read", 2), 10, 11)]
    assert search(Register(), calls).order == (1, 2, 0, 3)


REPLAYED = [  # (order, what is wrong with it)
    ((0, 1, 2, 4), None),
    ((4, 0, 1, 2), None),  # another part
    ((0, 1, 3, 2, 4), "3 cannot have gone so"),
    ((0, 2, 1, 4), "2 cannot have gone so"),
    ((1, 0, 2, 4), "0 returned before"),
    ((0, 1, 4), r"not in the order: \[2\]"),
    ((0, 0, 1, 2, 4), "twice"),
]


@pytest.mark.parametrize(("order", "wrong"), REPLAYED)
def test_an_order_is_replayed_before_anybody_is_told(order, wrong):
    calls = [
        Call(("put", "a", "x"), 0, 1),
        Call(("append", "a", "y"), 2, 5),
        Call(("get", "a", "xy"), 3, 6),
        Call(("get", "a", "x"), 3, 6, True),
        Call(("get", "b", ""), 0, 9),
    ]
    if wrong is None:
        verify_order(Map(), calls, order)
    else:
        with pytest.raises(AssertionError, match=wrong):
            verify_order(Map(), calls, order)


def test_what_is_optional_may_be_left_out_or_taken():
    maybe = Call(("write", 1), 0, 1 << 62, True)
    assert search(Register(), [maybe, Call(("read", 0), 5, 6)]).verdict == LINEARIZABLE
    assert search(Register(), [maybe, Call(("read", 1), 5, 6)]).verdict == LINEARIZABLE
    assert search(Register(), [maybe, Call(("read", 1), 5, 6), Call(("read", 0), 7, 8)]).verdict == NOT_LINEARIZABLE


def test_a_read_is_not_taken_before_what_would_then_come_too_late():
    early = Call(("write", 1), 0, 3, True)
    calls = [Call(("write", 0), 0, 9), early, Call(("read", 0), 5, 9), Call(("read", 1), 4, 9)]
    assert search(Register(), calls).verdict == judge_by_all_orders(Register(), calls) == LINEARIZABLE


HARD = [Call(("write", at), 0, 100) for at in range(1, 20)] + [Call(("read", 99), 101, 102)]
BUDGETS = [(Budget(steps=100), "steps"), (Budget(entries=100), "remembered"), (Budget(seconds=0.0), "seconds")]


@pytest.mark.parametrize(("budget", "said"), BUDGETS)
def test_a_budget_that_is_spent_is_unknown_and_says_which(budget, said):
    found = search(Register(), HARD, budget)
    assert found.verdict == UNKNOWN
    assert said in found.spent


def test_the_window_makes_long_histories_easy():
    calls = []
    for at in range(5000):
        calls += [Call(("write", at), 3 * at, 3 * at + 4), Call(("read", at), 3 * at + 1, 3 * at + 4)]
    assert search(Register(), calls, Budget(steps=100_000)).verdict == LINEARIZABLE
