"""Why whole requests have no order, in sentences.  Source: model/reasons.py.

What is explained is what `model/certificate.py` has refuted; of what has an order, no sentences come to an end.
"""

import random

import pytest
from history_cases import KINDS, PLAIN, histories, history_of, judge, made_of
from hypothesis import HealthCheck, assume, given, settings
from test_history_whole import CASES

from check.history.show import verdict_lines
from model.certificate import Conflict, looked_at
from model.history import OK, PENDING
from model.linearizability import Verdict, decide
from model.reasons import PARTS_MAX, Reasons, why_no_order

MANY = settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))

W, R = "write", "read"
TORN = [(W, 0, 4, 0, 9, "a"), (W, 0, 4, 0, 9, "b"), (R, 0, 4, 10, 11, (("a", 2), ("b", 2)))]

EXPLAINED = [  # (rows, sentences)
    (
        [(R, 0, 4, 0, 9, (("base", 2), ("a", 2))), (W, 0, 4, 0, 9, "a")],
        [
            "r0 before a: r0 returned base at 0, which a overwrites",
            "a before r0: r0 returned a at 2",
            "so r0 and a would each have to come before the other",
        ],
    ),
    (
        TORN,
        [
            "a before r2: it was answered before r2 was sent",
            "a before b: r2 returned b at 2, not a",
            "b before r2: it was answered before r2 was sent",
            "b before a: r2 returned a at 0, not b",
            "so a and b would each have to come before the other",
        ],
    ),
    (
        [(W, 0, 2, 0, 1, "a"), (W, 1, 2, 2, 3, "b"), (R, 0, 3, 0, 9, (("base", 1), ("b", 2)))],
        [
            "a before b: it was answered before b was sent",
            "b before r2: r2 returned b at 1",
            "r2 before a: r2 returned base at 0, which a overwrites",
            "so each of a, b, r2 would have to come before the next, and the last before the first",
        ],
    ),
    (
        [("zero", 0, 2, 0, 9), ("zero", 0, 2, 0, 9), (R, 0, 2, 0, 9, (("base", 1), ("zero", 1)))],
        [
            "r2 before z0: r2 returned base at 0, which z0 overwrites",
            "r2 before z1: r2 returned base at 0, which z1 overwrites",
            "but r2 returned zero at 1, and that cannot be of z0 or z1",
        ],
    ),
    (
        [("zero", 0, 2, 0, 9), (R, 0, 2, 0, 9, (("base", 1), ("zero", 1)))],
        [
            "z0 before r1: r1 returned zero at 1, and nobody else can have written it",
            "r1 before z0: r1 returned base at 0, which z0 overwrites",
            "so z0 and r1 would each have to come before the other",
        ],
    ),
    (  # one that is known to have happened, and when, only by who read it
        [(W, 0, 2, 0, 1, "a"), (W, 0, 2, 2, 1 << 40, "b", PENDING), (R, 0, 2, 5, 6, (("b", 1), ("a", 1)))],
        [
            "a before b: it was answered before b was sent",
            "b before r2: r2 returned b at 0",
            "b before a: r2 returned a at 1, not b",
            "so a and b would each have to come before the other",
        ],
    ),
]


@pytest.mark.parametrize(("rows", "sentences"), EXPLAINED)
def test_each_sentence_rests_on_times_on_what_was_read_or_on_those_before_it(rows, sentences):
    assert list(decide(history_of(*rows), "request").reasons) == sentences


def test_a_circle_is_of_requests_each_of_which_has_to_come_before_the_next():
    decision = decide(history_of(*TORN), "request")
    assert decision.circle == ((0, 1, "r2 returned b at 2, not a"), (1, 0, "r2 returned a at 0, not b"))
    assert decide(history_of(*CASES), "request").circle == ()


def test_where_only_cases_help_each_of_them_is_told():
    told = decide(history_of(*CASES), "request").reasons
    assert [line for line in told if line.startswith("If")] == ["If a comes before b:", "If b comes before a:"]
    assert told.count("  so c and d would each have to come before the other") == 2


@pytest.mark.parametrize(("granules", "kinds"), [(4, PLAIN), (3, KINDS), (6, PLAIN)])
def test_all_that_is_refuted_as_a_whole_is_explained(granules, kinds):
    numbers, refuted = random.Random(granules), 0
    for _ in range(3000):
        some = [numbers.randrange(1 << 60) for _ in range(numbers.randint(3, 10))]
        decision = decide(made_of(some, granules, 20, kinds, base_is_zero=numbers.random() < 0.3), "request")
        if decision.verdict == Verdict.NOT_LINEARIZABLE and "as a whole" in decision.why:
            refuted += 1
            assert decision.reasons
            assert decision.reasons[-1].lstrip().startswith(("so ", "but "))
    assert refuted > 10


@MANY
@given(histories(3, 6))
def test_what_has_an_order_is_never_explained_away(history):
    assume(judge(history, "request") == Verdict.LINEARIZABLE)
    says = [at for at, it in enumerate(history) if it.op in (R, W, "zero", "trim") and it.outcome != "EINVAL"]
    says = [at for at in says if history.op[at] != R or history.outcome[at] == OK]
    assume(says)
    parts, at_first, bytes_of = looked_at(history, Conflict(tuple(says), 0, history.size))
    assert why_no_order(parts, at_first, [str(part.request) for part in parts], bytes_of) == Reasons()


def test_what_is_too_much_to_be_told_is_not():
    rows = [(W, 0, 4, 0, 9, f"w{at}") for at in range(PARTS_MAX)]
    history = history_of(*rows, (R, 0, 4, 10, 11, (("w0", 2), ("w1", 2))))
    parts, at_first, bytes_of = looked_at(history, Conflict(tuple(range(len(history))), 0, 4))
    assert why_no_order(parts, at_first, [str(part.request) for part in parts], bytes_of) == Reasons()


def test_the_sentences_are_shown_below_the_requests():
    history = history_of(*TORN)
    lines = verdict_lines(history, decide(history, "request"))
    assert lines[-6:-4] == ["Why:", "  a before r2: it was answered before r2 was sent"]
    at = next(at for at, line in enumerate(lines) if "r2 returned a in [0, 2)," in line)
    assert lines[at + 1].strip() == "b in [2, 4)"
    assert lines[at + 1].index("b in") == lines[at].index("a in")


def test_what_is_wrong_with_one_cell_is_said_in_the_first_line_and_needs_no_more():
    history = history_of((W, 0, 1, 0, 1, "a"), (R, 0, 1, 2, 3, "base"))
    decision = decide(history, "request")
    assert decision.reasons == ()
    assert "Why:" not in verdict_lines(history, decision)
