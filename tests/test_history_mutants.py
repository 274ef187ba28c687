"""Checkers with one thing wrong each are caught: by the verifier, or by the search, which decides otherwise.

Source:  the modules of `CHAIN`, each with one piece of text replaced.
"""

import random
import sys
import types
from functools import cache

import pytest
from history_cases import KINDS, PLAIN, every_history, history_of, judge, made_of
from servers import ROOT
from test_history_certificates import CONFLICTS, HISTORY, STALE, WRONG_ORDERS

import model
from model.budget import Budget
from model.history import LEVELS

# One that would never end is ended.
BUDGET = Budget(steps=5_000)
# In the order in which they import each other.
CHAIN = (
    "cells",
    "zones",
    "timeline",
    "clauses",
    "group",
    "schedule",
    "mending",
    "few",
    "whole",
    "certificate",
    "linearizability",
)

MUTANTS = [  # (module, what stands there, what the mutant has)
    # Zones.
    ("zones", "if returned < f[at]:", "if returned > f[at]:"),
    ("zones", "if called > s[at]:", "if called < s[at]:"),
    ("zones", "map(lt, f, began)", "(first <= start for first, start in zip(f, began))"),
    ("zones", "map(lt, f, began)", "()"),
    ("zones", "if begins[at] < ends[at - 1]:", "if begins[at] <= ends[at - 1]:"),
    ("zones", "if begins[at] < ends[at - 1]:", "if False:"),
    ("zones", "if begin < end], key", "if begin <= end], key"),
    ("zones", "if point > begin:", "if point >= begin:"),
    ("zones", "if point > begin:", "if False:"),
    ("zones", "                point = ends[around]\n", "                pass\n"),
    ("zones", "2 * begin + 1", "2 * begin"),
    ("zones", "part not in optional or names[part] in wanted", "True"),
    ("zones", "if NOBODY in number_of:", "if False:"),
    # Zero epochs.
    ("zones", "            ret = begins[around]\n", "            pass\n"),
    ("zones", "ret < ends[around]:\n            return", "ret <= ends[around]:\n            return"),
    ("zones", "not (kind == ZERO_WRITE and items.optional[at])", "True"),
    ("zones", "(items.writes[at][1], at)", "(-items.writes[at][1], at)"),
    ("zones", "            if not spent[at]:", "            if False:"),
    ("zones", "_ARRIVE, _PLACE, _EXPIRE, _NEED, _BARRIER =", "_PLACE, _ARRIVE, _EXPIRE, _NEED, _BARRIER ="),
    ("zones", "_ARRIVE, _PLACE, _EXPIRE, _NEED, _BARRIER =", "_BARRIER, _ARRIVE, _PLACE, _EXPIRE, _NEED ="),
    ("zones", "                place_clusters()\n                is_zero = False", "                place_clusters()"),
    (
        "zones",
        "            steps.append((CLUSTER, at))\n            is_zero = False",
        "            steps.append((CLUSTER, at))",
    ),
    ("zones", "    is_zero = items.zero_at_first", "    is_zero = False"),
    ("zones", "    is_zero = items.zero_at_first", "    is_zero = True"),
    ("zones", "        place_clusters()\n        spent[at] = True", "        spent[at] = True"),
    # What is refuted, and how little of it is named.
    ("zones", "    if write in cut.optional:\n        named.append(reads[0])", ""),
    ("zones", "items.zero_at_first or left_out", "items.zero_at_first"),
    ("zones", "if cut.call[part] <= last and cut.ret[part] >= first]", "if cut.call[part] <= first]"),
    # Cells.
    ("cells", "            ret[index] = NEVER", "            pass"),
    ("cells", "outcome in NOT_DONE or", "False or"),
    ("cells", "(calls, found.ret[part])", "(calls, found.ret[part] - 1)"),
    ("cells", "(since, found.ret[part])", "(since, found.ret[part] - 1)"),
    ("cells", "found.edges[number] % unit != 0", "True"),
    ("cells", "            _fill_failed(history, found, index, trims)\n            continue", "            pass"),
    ("cells", "until[bisect_right(since, found.ret[part])] >= found.call[part]", "False"),
    ("cells", "until[bisect_right(since, found.ret[part])] >=", "until[-1] >="),
    # Requests as a whole.
    (
        "whole",
        "        if isinstance(decided, Refutation):\n            return replace",
        "        if False:\n            return replace",
    ),
    ("timeline", "if call[operation] > earliest:", "if call[operation] >= earliest:"),
    ("timeline", "if call[operation] > earliest:", "if False:"),
    ("timeline", "for other in follows[operation]:", "for other in ():"),
    ("timeline", "            if earlier in behind:", "            if False:"),
    ("timeline", "                ret[operation] < latest\n", "                False\n"),
    ("timeline", "or not found.isdisjoint(leads[operation])", ""),
    ("timeline", "or (operation in after and", "or (False and"),
    ("timeline", "self.changed_from = min(self.changed_from, first)", "pass"),
    ("clauses", "if variable.level <= level:", "if False:"),
    ("clauses", "*(self._variables[abs(other)].because for other in reason)", ""),
    ("clauses", "if value > 0 or (value == 0 and unsettled):", "if value > 0:"),
    ("clauses", "                    self.timeline.remove(earlier, later, literal)\n", "                    pass\n"),
    ("clauses", "self._unsure += variable.clauses[literal < 0]", "pass"),
    ("clauses", "clause = (-last, *others)", "clause = (-last,)"),
    ("mending", "            if read == other or start >= end or seen is None:\n                continue", ""),
    ("mending", "                pairs.append((read, other))", "                pass"),
    ("mending", "if is_value else [(other, write)]", "if False else [(other, write)]"),
    ("mending", "if ret[zero] >= since", "if ret[zero] > since"),
    ("mending", "bisect_left(latest, since)", "bisect_right(latest, since)"),
    ("mending", "bisect_right(returned, until", "bisect_left(returned, until"),
    ("mending", "never[: bisect_right(never, until", "never[: bisect_left(never, until"),
    ("mending", "[*behind, (zero, read)]", "[(zero, read)]"),
    ("mending", "[*behind, (zero, read)]", "behind"),
    ("mending", "ways.append((place[read] - place[held], -self._pair(held, read)))", "pass"),
    ("mending", "changed = counted ^ self.counted", "changed = set()"),
    ("mending", "self.choices.require([-self.sources[about], self._has_happened(zero)], (zero,))", "pass"),
    ("mending", "literals = [-self._has_happened(zero)]", "literals = []"),
    ("mending", "self._source(zero, wanted, ANYTHING, [(zero, wanted)])", "-self._has_happened(zero)"),
    (
        "mending",
        "return [operation for operation in self.timeline.order if self._counts(operation)]",
        "return self.timeline.order",
    ),
    ("group", "part in found.optional and part not in wanted", "part in found.optional"),
    ("group", "part in found.optional and part not in wanted", "False"),
    ("group", "            group.optional.add(operation)\n    zero_reads", "            pass\n    zero_reads"),
    ("group", "base_is_zero or at in zero_at_first", "base_is_zero"),
    ("group", "            _make_up(group, at)", "            pass"),
    ("group", "            seen.extend([ANYTHING] * (at - behind[operation]))\n", ""),
    ("few", "                    there.add(readers[0])", "                    pass"),
    (
        "few",
        "            there.update([group.parts[write] for write in group.writers[number[part]]])",
        "            pass",
    ),
    ("few", "                    free.add(len(cells))", "                    pass"),
]


# Histories, by whether the base is zero, that show what few others do.
RARE = [
    (
        False,
        ("zero", 0, 1, 0, 9),
        ("zero", 0, 1, 0, 3),
        ("read", 0, 1, 1, 1, "zero"),
        ("write", 0, 1, 4, 4, "a"),
        ("read", 0, 1, 6, 6, "zero"),
    ),
    (
        False,
        ("read", 0, 1, 4, 19, "zero"),
        ("trim", 0, 1, 6, 10),
        ("zero", 0, 1, 0, 2, None, "EIO"),
        ("read", 0, 1, 4, 5, "base"),
    ),
    (
        False,
        ("write", 0, 2, 9, 10, "a", "EIO"),
        ("read", 1, 2, 14, 15, "base"),
        ("read", 1, 2, 0, 12, (("a", 1), ("base", 1))),
        ("read", 2, 1, 9, 13, "base"),
    ),
    (
        False,
        ("read", 2, 1, 1, 4, "zero"),
        ("zero", 1, 2, 3, 4, None, "EIO"),
        ("write", 2, 1, 0, 2, "a"),
        ("read", 2, 1, 5, 5, "a"),
    ),
    (
        True,
        ("write", 0, 2, 1, 2, "a", "EIO"),
        ("write", 1, 1, 2, 3, "b", "pending"),
        ("write", 0, 2, 3, 5, "c"),
        ("zero", 0, 1, 0, 0, None, "EIO"),
        ("read", 0, 1, 4, 5, "c"),
        ("read", 0, 2, 1, 5, (("zero", 1), ("b", 1))),
    ),
    (
        False,
        ("read", 1, 2, 3, 4, (("zero", 1), ("base", 1))),
        ("read", 2, 1, 3, 5, "base"),
        ("read", 2, 1, 3, 3, "base"),
        ("read", 0, 2, 0, 0, "base"),
        ("trim", 1, 1, 2, 2, None, "EIO"),
    ),
    (
        False,
        ("write", 1, 2, 3, 15, "a", "pending"),
        ("write", 0, 1, 8, 19, "b"),
        ("read", 0, 3, 7, 11, (("b", 1), ("a", 2))),
        ("read", 0, 2, 1, 8, (("b", 1), ("base", 1))),
    ),
]
# The same of whole requests: what keeps the order busy. (Options, rows.)
HARD = [
    (
        {},
        ("read", 2, 1, 1, 1, "zero"),
        ("read", 0, 3, 0, 0, "base"),
        ("zero", 0, 1, 0, 1, None, "pending"),
        ("read", 2, 1, 0, 1, "w6"),
        ("read", 0, 1, 0, 0, "zero"),
        ("write", 1, 2, 0, 1, "w6", "EIO"),
        ("zero", 2, 1, 0, 1, None, "pending"),
        ("read", 2, 1, 0, 0, "base"),
        ("write", 2, 1, 0, 0, "w9"),
    ),
    (
        {"base_is_zero": True},
        ("read", 3, 3, 1, 2, (("zero", 2), ("w5", 1))),
        ("write", 1, 5, 0, 1, "w4"),
        ("write", 5, 1, 0, 1, "w5"),
        ("write", 2, 2, 0, 2, "w8"),
        ("read", 3, 3, 1, 2, (("w8", 1), ("w4", 2))),
    ),
    (
        {},
        ("read", 4, 2, 1, 2, "zero"),
        ("write", 2, 2, 0, 2, "w4"),
        ("trim", 3, 3, 1, 2, None),
        ("write", 3, 3, 0, 1, "w9"),
        ("read", 2, 4, 2, 2, (("w4", 1), ("zero", 3))),
    ),
    (
        {"base_is_zero": True},
        ("write", 4, 2, 0, 1, "w1"),
        ("read", 4, 2, 0, 1, (("w1", 1), ("zero", 1))),
        ("zero", 4, 2, 1, 1, None, "pending"),
        ("read", 2, 2, 1, 1, (("zero", 1), ("w7", 1))),
        ("zero", 5, 1, 1, 1, None),
        ("write", 3, 3, 0, 0, "w7"),
        ("write", 5, 1, 0, 1, "w8"),
    ),
    (
        {"base_is_zero": True},
        ("read", 0, 2, 11, 13, (("w12", 1), ("w3", 1))),
        ("read", 1, 2, 9, 14, (("w3", 1), ("w11", 1))),
        ("write", 1, 1, 3, 15, "w3", "EIO"),
        ("write", 1, 2, 16, 18, "w7"),
        ("write", 0, 3, 0, 19, "w11", "pending"),
        ("write", 0, 2, 5, 6, "w12", "EIO"),
        ("read", 1, 2, 9, 18, (("w7", 1), ("w11", 1))),
    ),
    (
        {},
        ("read", 3, 2, 0, 4, (("w11", 1), ("zero", 1))),
        ("trim", 2, 3, 1, 4, None),
        ("trim", 1, 1, 1, 2, None),
        ("write", 3, 1, 2, 2, "w11"),
        ("zero", 2, 3, 3, 3, None),
    ),
    (
        {},
        ("zero", 0, 1, 7, 8, None),
        ("write", 3, 1, 2, 12, "w1"),
        ("write", 0, 3, 5, 14, "w3"),
        ("read", 2, 3, 10, 15, (("w3", 1), ("w1", 1), ("base", 1))),
        ("read", 0, 4, 13, 16, (("zero", 1), ("w3", 2), ("w1", 1))),
    ),
    (
        {},
        ("read", 3, 1, 3, 4, "w10"),
        ("trim", 1, 4, 0, 2, None, "pending"),
        ("read", 0, 5, 1, 2, (("base", 1), ("zero", 4))),
        ("write", 2, 3, 2, 3, "w10"),
    ),
    (
        {},
        ("trim", 0, 1, 5, 7, None, "EIO"),
        ("write", 1, 1, 5, 8, "w3"),
        ("trim", 0, 2, 9, 14, None, "pending"),
        ("read", 0, 2, 6, 10, (("zero", 1), ("w3", 1))),
        ("read", 0, 1, 9, 15, "base"),
    ),
    (
        {"trim_reads_zero": False},
        ("read", 0, 3, 2, 2, (("base", 1), ("w8", 1), ("zero", 1))),
        ("read", 1, 2, 0, 1, (("w8", 1), ("zero", 1))),
        ("write", 3, 1, 1, 1, "w5"),
        ("read", 0, 4, 0, 2, (("base", 1), ("w8", 1), ("zero", 1), ("w5", 1))),
        ("write", 1, 4, 0, 2, "w8"),
        ("zero", 2, 3, 0, 0, None, "pending"),
    ),
    (
        {},
        ("trim", 1, 4, 3, 17, None),
        ("read", 2, 3, 12, 14, (("zero", 1), ("w10", 1), ("zero", 1))),
        ("read", 0, 5, 8, 18, (("zero", 1), ("w10", 3), ("zero", 1))),
        ("write", 1, 3, 9, 14, "w10", "pending"),
        ("trim", 0, 2, 2, 2, None),
    ),
    (
        {"trim_reads_zero": False},
        ("write", 3, 2, 0, 0, "w3", "pending"),
        ("read", 0, 6, 0, 2, (("base", 3), ("w3", 2), ("base", 1))),
        ("trim", 1, 2, 0, 1, None),
    ),
    (
        {},
        ("write", 2, 2, 1, 1, "w1"),
        ("write", 2, 2, 1, 1, "w2"),
        ("zero", 3, 1, 1, 1, None, "EIO"),
        ("write", 2, 2, 0, 0, "w6"),
        ("write", 1, 3, 0, 0, "w8", "pending"),
        ("zero", 3, 1, 0, 0),
        ("read", 2, 2, 1, 1, (("w2", 1), ("zero", 1))),
        ("read", 2, 2, 0, 1, (("w8", 1), ("zero", 1))),
    ),
    (
        {},
        ("read", 4, 1, 3, 4, "w4"),
        ("zero", 1, 3, 1, 4),
        ("write", 1, 3, 4, 5, "w2"),
        ("read", 3, 2, 4, 4, (("zero", 1), ("w4", 1))),
        ("write", 3, 2, 3, 3, "w4", "EIO"),
        ("read", 3, 2, 0, 5, (("w2", 1), ("base", 1))),
        ("trim", 1, 1, 2, 3),
    ),
]
UNPROMISED = [("trim", 0, 1, 2, 3), ("write", 0, 1, 3, 4, "b"), ("read", 0, 1, 5, 6, "?")]


@cache
def corpus():
    """Histories, each with a level and what the search says of it."""
    histories = [
        (history, "sector")
        for base_is_zero in (False, True)
        for count in (2, 3, 4)
        for history in every_history(count, "0BRWZ", base_is_zero=base_is_zero)
    ]
    for base_is_zero, *rows in RARE:
        histories += [(history_of(*rows, base_is_zero=base_is_zero), level) for level in LEVELS]
    for options, *rows in HARD:
        histories += [(history_of(*rows, size=6, **options), level) for level in LEVELS]
    histories.append((history_of(*UNPROMISED, trim_reads_zero=False), "sector"))
    numbers = random.Random(20)
    for at in range(3000):
        granules = 1 + at % 4
        made = made_of(
            [numbers.randrange(1 << 48) for _ in range(numbers.randint(2, 9))],
            granules,
            numbers.choice([3, 6, 20]),
            PLAIN if at % 3 == 0 else KINDS,
            trim_reads_zero=at % 5 != 0,
            base_is_zero=at % 7 == 0,
        )
        histories.append((made, LEVELS[at // 4 % len(LEVELS)]))
    return [(history, level, judge(history, level)) for history, level in histories]


def load(module="", old="", new=""):
    """The checker's modules, loaded anew, one of them with some text replaced."""
    names = [f"model.{name}" for name in CHAIN]
    kept = {name: sys.modules[name] for name in names}
    loaded = {}
    try:
        for name in CHAIN:
            path = ROOT / "model" / f"{name}.py"
            source = path.read_text(encoding="utf-8")
            if name == module:
                assert source.count(old) == 1, f"{source.count(old)} places in {path.name} have {old!r}"
                source = source.replace(old, new)
            loaded[name] = types.ModuleType(f"model.{name}")
            sys.modules[f"model.{name}"] = loaded[name]
            setattr(model, name, loaded[name])
            exec(compile(source, str(path), "exec"), loaded[name].__dict__)
    finally:
        for name in names:
            sys.modules[name] = kept[name]
            setattr(model, name.removeprefix("model."), kept[name])
    return loaded


def is_caught(decide):
    """Whether some history of the corpus is decided wrongly, or not at all."""
    for history, level, verdict in corpus():
        try:
            if decide(history, level, BUDGET).verdict != verdict:
                return True
        except (AssertionError, LookupError, TypeError, ValueError):
            return True
    return False


def test_the_checker_itself_is_not_caught():
    assert not is_caught(load()["linearizability"].decide)


@pytest.mark.parametrize(("module", "old", "new"), MUTANTS)
def test_a_checker_with_one_thing_wrong_is_caught(module, old, new):
    assert is_caught(load(module, old, new)["linearizability"].decide)


BLIND = [
    ("assert len(set(parts)) == len(operations),", "assert True,"),
    ("assert until >= latest,", "assert True,"),
    ("assert held[cell] == value,", "assert True,"),
    ("assert held[cell] == was[cell],", "assert True,"),
    ("assert covered == told.needed,", "assert True,"),
    ("assert group[cell] == NO_CELL,", "assert True,"),
    ("assert not torn,", "assert True,"),
    ("assert span[0] <= only < span[1],", "assert True,"),
    ("assert trims.explain(cell, index),", "assert True,"),
    ("or outcome in NOT_DONE or (outcome != OK", "or (outcome != OK"),
    ("            return None\n    return base", "            pass\n    return base"),
    ("            base = ZERO\n", "            pass\n"),
]


@pytest.mark.parametrize(("old", "new"), BLIND)
def test_a_verifier_with_one_thing_wrong_is_caught(old, new):
    verifier = load("certificate", old, new)["certificate"]
    wrong = [
        verifier.verify_order(HISTORY, "request", order) for _, order in WRONG_ORDERS if accepts_order(verifier, order)
    ]
    for operations, span, proves in CONFLICTS:
        if accepts_conflict(verifier, operations, span) != proves:
            wrong.append(operations)
    assert wrong


def accepts_order(verifier, order):
    try:
        verifier.verify_order(HISTORY, "request", order)
    except (AssertionError, LookupError):
        return False
    return True


def accepts_conflict(verifier, operations, span):
    try:
        verifier.verify_conflict(STALE, "request", verifier.Conflict(operations, *span))
    except (AssertionError, LookupError, ValueError):
        return False
    return True
