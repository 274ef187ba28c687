"""Orders that take in constraints, and choices between constraints: against trying everything.

Source:  model/timeline.py, model/clauses.py.
"""

import random
from itertools import permutations, product

import pytest
from test_history_mutants import load

from model.budget import Budget, Meter, Spent
from model.clauses import Choices, NoOrder

COUNT = 5  # Operations in a case.
CASES = 1500
# One that would never end is ended.
BUDGET = Budget(steps=1000)
# How a mutant shows itself.
EXPECTED = (AssertionError, LookupError, TypeError, ValueError, AttributeError, Spent)


def timeline_of(loaded, intervals, known=()):
    """Operations by invocation, with constraints that hold from the beginning; None if they have no order."""
    call, ret = [call for call, _ in intervals], [ret for _, ret in intervals]
    follows, leads = [[] for _ in call], [[] for _ in call]
    for earlier, later in known:
        follows[later].append(earlier)
        leads[earlier].append(later)
    order = next((order for order in permutations(range(len(call))) if obeys(order, intervals, known)), None)
    return None if order is None else loaded["timeline"].Timeline(call, ret, follows, leads, list(order))


def obeys(order, intervals, constraints):
    """Whether an order is one of all that real time and the constraints allow."""
    place = {operation: at for at, operation in enumerate(order)}
    if any(place[earlier] > place[later] for earlier, later in constraints):
        return False
    return not any(
        intervals[later][1] < intervals[earlier][0] for at, earlier in enumerate(order) for later in order[at + 1 :]
    )


def has_order(intervals, constraints):
    return any(obeys(order, intervals, constraints) for order in permutations(range(len(intervals))))


def is_cycle(operations, intervals, said):
    """Whether each has to come before the next, and the last before the first."""
    steps = zip(operations, [*operations[1:], operations[0]], strict=True)
    return all((one, other) in said or intervals[one][1] < intervals[other][0] for one, other in steps)


def check_timeline(loaded, intervals, known, wanted, taken_back):
    """A constraint is taken in exactly if it contradicts nothing, and else there is a cycle."""
    timeline = timeline_of(loaded, intervals, known)
    if timeline is None:
        return
    there = {}
    for tag, (earlier, later) in enumerate(wanted, 1):
        before = list(timeline.order)
        timeline.changed_from = len(intervals)
        cycle = timeline.add(earlier, later, tag)
        assert (cycle is None) == has_order(intervals, [*known, *there.values(), (earlier, later)])
        if cycle is None:
            there[tag] = (earlier, later)
        else:
            said = {*known, (earlier, later), *(there[tag] for tag in cycle.tags)}
            assert is_cycle(cycle.operations, intervals, said)
        assert obeys(timeline.order, intervals, [*known, *there.values()])
        assert [timeline.order[place] for place in timeline.place] == list(range(len(intervals)))
        assert timeline.order[: timeline.changed_from] == before[: timeline.changed_from]
        if tag in taken_back and there:
            gone = max(there)
            timeline.remove(*there.pop(gone), gone)


# A variable is (its constraints when true, those when false); a clause is literals, by the variables' numbers from 1.
# Names of variables and clauses among those of operations.
VARIABLE, CLAUSE = 100, 200


def solvable(intervals, operations, of_variables, of_clauses):
    """Whether all that is named can be had at once: every variable true or false, in one order of the operations."""
    numbers = sorted(of_variables)
    at = {operation: place for place, operation in enumerate(sorted(operations))}
    there = [intervals[operation] for operation in sorted(operations)]
    for values in product((True, False), repeat=len(numbers)):
        value = dict(zip(numbers, values, strict=True))
        if not all(any(value.get(number) is wanted for number, wanted in clause) for clause in of_clauses):
            continue
        said = [pair for number in numbers for pair in of_variables[number][not value[number]]]
        if has_order(there, [(at[one], at[other]) for one, other in said if one in at and other in at]):
            return True
    return False


def check_move(loaded):
    """What is moved takes with it what real time puts before it: 4 returned before 5 was invoked."""
    intervals = [(0, 9), (0, 9), (0, 9), (0, 9), (0, 4), (5, 9), (0, 9)]
    check_timeline(loaded, intervals, [(0, 1), (0, 2), (0, 3)], [(5, 6), (6, 0)], set())


def check_choices(loaded, intervals, wanted, required, numbers):
    """Choices end in an order if there is one, and name what has none if not."""
    choices = loaded["clauses"].Choices(timeline_of(loaded, intervals), Meter(BUDGET))
    of_variables = dict(enumerate(wanted, 1))
    for number, (true_pairs, false_pairs) in of_variables.items():
        assert choices.variable(true_pairs, false_pairs, {VARIABLE + number}) == number
    try:
        for number, clause in enumerate(required):
            choices.require([at if yes else -at for at, yes in clause], {CLAUSE + number})
        while left := [number for number in of_variables if not choices.value(number)]:
            choices.choose(numbers.choice(left) * numbers.choice((1, -1)))
    except loaded["clauses"].NoOrder as reason:
        assert not solvable(
            intervals,
            {operation for operation in reason.origin if operation < VARIABLE},
            {number: pairs for number, pairs in of_variables.items() if VARIABLE + number in reason.origin},
            [clause for number, clause in enumerate(required) if CLAUSE + number in reason.origin],
        )
        return
    said = [pair for number, both in of_variables.items() for pair in both[choices.value(number) < 0]]
    assert obeys(choices.timeline.order, intervals, said)
    assert all(any((choices.value(number) > 0) is yes for number, yes in clause) for clause in required)


def check_facts(loaded, intervals, facts, wanted):
    """What holds in any case is kept, whatever is chosen."""
    choices = loaded["clauses"].Choices(timeline_of(loaded, intervals), Meter(BUDGET))
    for true_pairs, false_pairs in wanted:
        choices.variable(true_pairs, false_pairs, ())
    try:
        for number, (earlier, later) in enumerate(facts):
            if number < len(wanted) and not choices.value(number + 1):
                choices.choose(number + 1)
            choices.fact(earlier, later)
    except loaded["clauses"].NoOrder:
        assert not solvable_with(intervals, facts, wanted)
        return
    said = [
        pair
        for number, both in enumerate(wanted, 1)
        if choices.value(number)
        for pair in both[choices.value(number) < 0]
    ]
    assert obeys(choices.timeline.order, intervals, [*facts, *said])


def solvable_with(intervals, facts, wanted):
    everything = dict(enumerate([*wanted, (facts, facts)], 1))
    return solvable(intervals, set(range(COUNT)), everything, [])


# What the checks are made of.


def some_spans(numbers):
    return [sorted((numbers.randrange(7), numbers.randrange(7))) for _ in range(COUNT)]


def some_pairs(numbers, most):
    return [tuple(numbers.sample(range(COUNT), 2)) for _ in range(numbers.randint(0, most))]


def some_variables(numbers, count):
    return [(some_pairs(numbers, 2), some_pairs(numbers, 2)) for _ in range(count)]


def some_clause(numbers):
    return [(numbers.randint(1, 5), numbers.random() < 0.5) for _ in range(numbers.randint(1, 3))]


CHECKS = {
    check_timeline: lambda numbers: (
        some_spans(numbers),
        some_pairs(numbers, 2),
        some_pairs(numbers, 12),
        set(numbers.sample(range(1, 13), 4)),
    ),
    check_move: lambda _: (),
    check_choices: lambda numbers: (
        some_spans(numbers),
        some_variables(numbers, 5),
        [some_clause(numbers) for _ in range(numbers.randint(0, 6))],
        numbers,
    ),
    check_facts: lambda numbers: (some_spans(numbers), some_pairs(numbers, 6), some_variables(numbers, 2)),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_an_order_is_kept_that_obeys_what_it_must(check):
    search(check, load())


def search(check, loaded):
    """Check many cases."""
    numbers = random.Random(11)
    for _ in range(1 if check is check_move else CASES):
        check(loaded, *CHECKS[check](numbers))


def test_a_search_whose_meter_is_spent_says_so():
    """Two operations at one time; each choice is to have them both ways."""
    both = [(0, 1), (1, 0)]
    for entries, error in ((0, Spent), (1, NoOrder)):
        choices = Choices(timeline_of(load(), [(0, 1), (0, 1)]), Meter(Budget(entries=entries)))
        with pytest.raises(error):
            choices.choose(choices.variable(both, both, ()))


MUTANTS = [  # (module, what stands there, what the mutant has)
    ("timeline", "if call[operation] > earliest:", "if call[operation] >= earliest:"),
    ("timeline", "if call[operation] > earliest:", "if False:"),
    ("timeline", "for other in follows[operation]:", "for other in ():"),
    ("timeline", "for other, tag in before.get(operation, ()):", "for other, tag in ():"),
    ("timeline", "            if ret[operation] < earliest:", "            if False:"),
    ("timeline", "            if earlier in behind:", "            if False:"),
    ("timeline", "                ret[operation] < latest\n", "                False\n"),
    ("timeline", "or not found.isdisjoint(leads[operation])", ""),
    ("timeline", "or (operation in after and", "or (False and"),
    ("timeline", "                latest = max(latest, call[operation])\n", ""),
    ("timeline", "self.changed_from = min(self.changed_from, first)", "pass"),
    ("timeline", "            if tag != FACT:\n                tags.append(tag)", "            pass"),
    ("timeline", "        _remove_last(self._before[later], (earlier, tag))\n", ""),
    ("timeline", "        _remove_last(self._after[earlier], (later, tag))\n", ""),
    ("timeline", "        self._before.setdefault(later, []).append((earlier, tag))\n", ""),
    ("timeline", "        self._after.setdefault(earlier, []).append((later, tag))\n", ""),
    ("clauses", "*(self._variables[abs(other)].because for other in reason)", ""),
    ("clauses", "if value > 0 or (value == 0 and unsettled):", "if value == 0 and unsettled:"),
    ("clauses", "if value > 0 or (value == 0 and unsettled):", "if value > 0:"),
    ("clauses", "                    self.timeline.remove(earlier, later, literal)\n", "                    pass\n"),
    ("clauses", "reversed(pairs[: variable.added])", "reversed(pairs)"),
    ("clauses", "            origin |= variable.because\n            for", "            for"),
    ("clauses", "            origin |= variable.because\n        else", "            pass\n        else"),
    ("clauses", "        origin |= variable.origin\n        if", "        if"),
    ("clauses", "clause = (-last, *others)", "clause = (-last,)"),
    ("clauses", "self._assign(-last, back, others", "self._assign(-last, 0, others"),
    ("clauses", "        self._take_back(level - 1)\n", ""),
    ("clauses", "                if variable.level <= level:\n", "                if False:\n"),
    ("clauses", "self._conflict([*cycle.tags, literal]", "self._conflict(cycle.tags"),
    ("clauses", "[literal for literal in self._todo if self.value(literal) > 0]", "[]"),
    (
        "clauses",
        "                    break  # If",
        "                    self._todo.remove(literal)\n                    break  # If",
    ),
    (
        "clauses",
        "                if cycle is None:\n                    self._facts.pop()\n",
        "                self._facts.pop()\n                if cycle is None:\n                    pass\n",
    ),
]


@pytest.mark.parametrize(("module", "old", "new"), MUTANTS)
def test_what_keeps_an_order_with_one_thing_wrong_is_caught(module, old, new):
    loaded = load(module, old, new)
    with pytest.raises(EXPECTED):
        for check in CHECKS:
            search(check, loaded)
