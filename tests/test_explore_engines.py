"""Two engines that share little but the subject say the same: `search`, and `stateless` with and without sleep sets."""

import random

import pytest

from check.explore.bounds import ALL_MODES, MENU, PLAIN_MENU
from check.explore.programs import make_program, parse_program
from check.explore.search import Machine, Question, Verdict, search
from check.explore.stateless import TooMany, ends_of, independent, run_all, touches
from check.explore.subjects import KINDS, OVERLAY

PROGRAMS = 420
SCHEDULES_MAX = 60
NAIVE_MAX = 120


def random_question(seed):
    """A program of two clients on some subject, in some states: the same for the same seed."""
    choose = random.Random(seed)
    kind = choose.choice([kind for kind in KINDS.values() if kind.is_device])
    menu = MENU if kind.knows_all else PLAIN_MENU
    shape = choose.choice([(1, 1), (1, 1), (1, 1), (2, 1)])
    text = " | ".join(" ; ".join(choose.choice(menu) for _ in range(length)) for length in shape)
    initial = choose.choice(["NN", "NA", "AN", "TA", "AA", "TN", "NT", "TT"])
    modes = choose.choice(ALL_MODES)
    return Question(kind, make_program(parse_program(text), initial, size=128 << 10), modes=modes)


def test_the_engines_agree_on_hundreds_of_random_programs():
    """Whether something is wrong, and what the device may hold in the end."""
    compared = wrong = 0
    for seed in range(PROGRAMS):
        question = random_question(seed)
        try:
            summary = run_all(question, schedules_max=SCHEDULES_MAX)
        except TooMany:
            continue
        found = search(question)
        assert (found.verdict is Verdict.VIOLATED) == summary.is_wrong, question.program.asks
        assert ends_of(Machine(question)) == summary.ends, question.program.asks
        compared += 1
        wrong += summary.is_wrong
    assert compared >= 200
    assert wrong >= 15


def test_sleep_sets_leave_out_nothing_that_naive_enumeration_finds_and_schedules_are_counted_right():
    compared = 0
    for seed in range(PROGRAMS):
        question = random_question(seed)
        found = search(question)
        if found.verdict is not Verdict.HOLDS or found.schedules > NAIVE_MAX:
            continue
        naive, few = run_all(question, sleep=False), run_all(question)
        assert naive.schedules == found.schedules, question.program.asks
        assert (naive.ends, naive.is_wrong) == (few.ends, few.is_wrong), question.program.asks
        assert few.schedules <= naive.schedules
        compared += 1
    assert compared >= 20


def test_requests_that_touch_nothing_in_common_need_few_schedules():
    question = Question(OVERLAY, make_program(parse_program("write 0+64K | write 64K+64K")))
    assert run_all(question).schedules * 3 < run_all(question, sleep=False).schedules


@pytest.mark.parametrize(
    ("one", "other", "are_independent"),
    [
        (("get", 0), ("get", 0), True),
        (("get", 0), ("set", 0, 1), False),
        (("get", 0), ("set", 1, 1), True),
        (("write", 0, 7), ("write", 0, 8), False),
        (("write", 0, 7), ("read", 1), True),
        (("base", 0, 2), ("base", 0, 2), True),
        (("enqueue", 0, 0, True), ("enqueue", 5, 5, True), False),
        (("lock", "a"), ("lock", "b"), True),
        (("lock", "a"), ("unlock", "a"), False),
        (("load", "a"), ("load", "a"), True),
        (("load", "a"), ("store", "a", 1), False),
    ],
)
def test_two_operations_are_independent_if_neither_changes_what_the_other_touches(one, other, are_independent):
    assert independent(frozenset(touches(one)), frozenset(touches(other))) == are_independent


def test_an_engine_that_takes_dependent_steps_for_independent_misses_races(monkeypatch):
    """The comparison can fail: with a wrong notion of independence, it does."""
    monkeypatch.setattr("check.explore.stateless.independent", lambda one, other: True)
    question = Question(KINDS["bitmap-lock"], make_program(parse_program("write 0+512 | write 0+64K")))
    assert search(question).verdict is Verdict.VIOLATED
    assert not run_all(question).is_wrong
