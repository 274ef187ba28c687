"""Checkers with one thing wrong each are caught: by the verifier, or by the search, which decides otherwise.

Source:  model/zones.py, model/whole.py, model/cells.py and model/certificate.py, each with one piece of text replaced.
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
from model.history import LEVELS

# In the order in which they import each other.
CHAIN = ("cells", "zones", "whole", "certificate", "linearizability")

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
    ("cells", "found.ret[part] + 1)", "found.ret[part])"),
    ("cells", "found.edges[number] % unit != 0", "True"),
    ("cells", "            _fill_failed(history, found, index, trims)\n            continue", "            pass"),
    ("cells", "since <= found.ret[read] and until >= found.call[read]", "False"),
    ("cells", "since <= found.ret[read] and until >= found.call[read]", "until >= found.call[read]"),
    # Requests as a whole.
    (
        "whole",
        "        if isinstance(decided, Refutation):\n            return replace",
        "        if False:\n            return replace",
    ),
    ("whole", "found[number] = second if whose == number else best", "found[number] = best"),
    ("whole", "f[by_f[where]] < limit", "f[by_f[where]] <= limit"),
    ("whole", "write not in (other, NOBODY) and", "write != NOBODY and"),
    ("whole", "        self._forget_what_may_be_left_out()\n", ""),
    ("whole", "        if self.ret[part] < self.latest:\n            return False", ""),
    ("whole", "self._read_fits(part) and self._keeps_optional(part)", "self._read_fits(part)"),
    ("whole", "self._read_fits(part) and self._keeps_optional(part)", "self._keeps_optional(part)"),
    ("whole", "return self.low_call, beyond, used, live", "return self.low_call, live"),
    ("whole", "if there == at and cluster_there != number", "if cluster_there != number"),
    ("whole", "later = after[write] & others", "later = others"),
    ("whole", "if after[other] & members and", "if"),
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
            if decide(history, level).verdict != verdict:
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
    ("assert trims.explain(order.edges[cell], index),", "assert True,"),
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
