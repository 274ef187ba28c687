"""The specifications: each configuration comes to what the manifest expects, in its twin and in TLC, state for state.

Source:  `specs/manifest.toml`; docs/tla.md. Those that are large are for `make tla`.
"""

from __future__ import annotations

import importlib
import inspect
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from servers import refuse

from check import tlc
from check.questions import (
    DEADLOCK,
    SPECS,
    TWINS,
    Config,
    Counts,
    Holds,
    Undecided,
    Violates,
    constants_for,
    manifest,
    read_config,
    twin_of,
)
from check.specs import answer_of_tlc, answer_of_twin, main, table, trace_of
from check.twins import search
from model import block
from specs import bitmap_lock, device, disk, global_lock, range_lock
from specs.twin import Refinement, Twin, put

EXPECTED = manifest()
SMALL = [entry for entry in EXPECTED if entry.small]
BY_NAME = {entry.name: entry for entry in EXPECTED}
TLC_AT_ONCE = 2


def names(entries):
    return [entry.name for entry in entries]


@pytest.mark.parametrize("entry", SMALL, ids=names(SMALL))
def test_the_twin_comes_to_what_is_expected(entry):
    assert answer_of_twin(entry) == entry.answer


@pytest.fixture(scope="session")
def tlc_runs(request):
    """TLC's answers to all that this session asks it, as they come: much of a run is the start of a Java machine."""
    try:
        tlc.java()
        tlc.jar()
    except tlc.Missing as missing:
        refuse(str(missing))
    asked = [
        item.callspec.params["entry"]
        for item in request.session.items
        if getattr(item, "originalname", None) == WITH_TLC
    ]
    with ThreadPoolExecutor(TLC_AT_ONCE) as pool:
        yield {entry.name: pool.submit(answer_of_tlc, entry) for entry in asked}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("entry", SMALL, ids=names(SMALL))
def test_tlc_comes_to_what_is_expected(entry, tlc_runs):
    assert tlc_runs[entry.name].result() == entry.answer


WITH_TLC = test_tlc_comes_to_what_is_expected.__name__


# What is asked


def test_every_configuration_is_expected_to_come_to_something():
    assert sorted(names(EXPECTED)) == sorted(path.stem for path in SPECS.glob("*.cfg"))


@pytest.mark.parametrize("entry", EXPECTED, ids=names(EXPECTED))
def test_every_configuration_says_first_what_it_is_about(entry):
    assert (SPECS / f"{entry.name}.cfg").read_text(encoding="utf-8").startswith("\\* ")


@pytest.mark.parametrize("entry", EXPECTED, ids=names(EXPECTED))
def test_what_has_to_fail_is_something_that_was_asked(entry):
    config = read_config(SPECS / f"{entry.name}.cfg")
    asked = {*config.invariants, *config.properties}
    assert asked
    if isinstance(entry.answer, Violates):
        assert entry.answer.name in asked
        assert entry.answer.name.startswith("Never") == entry.probe


@pytest.mark.parametrize("module", TWINS)
def test_every_module_has_a_bound_that_is_shown_to_be_wide_enough(module):
    own = [entry for entry in EXPECTED if read_config(SPECS / f"{entry.name}.cfg").module == module]
    assert any(isinstance(entry.answer, Holds) for entry in own)
    assert any(entry.probe for entry in own)


# Twins


def text_of(module):
    return (SPECS / f"{module}.tla").read_text(encoding="utf-8")


def python_of(module):
    return importlib.import_module(TWINS[module])


def block_after(text, opening):
    """The lines that follow an opening, up to an empty one."""
    return text.split(opening, 1)[1].split("\n\n", 1)[0]


@pytest.mark.parametrize("module", TWINS)
def test_twins_have_the_same_variables(module):
    declared = re.findall(r"^    (\w+),? +\\\*", block_after(text_of(module), "\nVARIABLES\n"), re.MULTILINE)
    assert python_of(module).State._fields == tuple(declared)


@pytest.mark.parametrize("module", TWINS)
def test_twins_have_the_same_actions(module):
    actions = re.findall(r"(\w+)\(c[,)]", block_after(text_of(module), "\nNext == "))
    python = python_of(module)
    source = inspect.getsource(python.steps) + inspect.getsource(getattr(python, "steps_of", python.steps))
    assert set(actions) == set(re.findall(r'"([A-Z]\w+)", \w+\(', source))
    assert {"Finished"} == set(re.findall(r'yield "([A-Z]\w+)", s$', source, re.MULTILINE))
    for action in actions:
        assert callable(getattr(python, re.sub(r"(?<!^)(?=[A-Z])", "_", action).lower())), action


@pytest.mark.parametrize("module", TWINS)
def test_twins_have_the_same_properties(module):
    twin = twin_of(module)
    assert twin.module == module
    for name in (*twin.invariants, *twin.action_properties, *twin.refinements):
        assert f"\n{name} == " in text_of(module), name


def test_twins_have_the_same_sets_of_requests():
    named = re.findall(r"^(\w+) ==", text_of("Disk").split("Each(kinds, ranges) ==", 1)[1], re.MULTILINE)
    assert list(disk.REQUESTS) == named


# A twin that is not one is found out

MUTANTS = [  # (what is broken, module, function, what it becomes, configuration that shows it)
    ("a client is told more than the device held", device, "respond",
     lambda s, c: s._replace(status=put(s.status, c, "done"), contents=put(s.contents, 0, disk.ZERO)), "Device"),
    ("an effect takes its time to be seen", device, "take_effect",
     lambda k, s, c, unit: s._replace(todo=put(s.todo, c, s.todo[c] - {unit})), "Device"),
    ("nobody is in anybody's way", range_lock, "conflict", lambda k, s, c, d: False, "RangeLockSpanning"),
    ("only those who change wait", range_lock, "conflict",
     lambda k, s, c, d: range_lock.exclusive(s, c) and range_lock.exclusive(s, d), "RangeLockSpanning"),
    ("whoever asked last is first", range_lock, "arrive",
     lambda s, c: s._replace(queue=(c, *s.queue), pc=put(s.pc, c, "waiting" if s.pc[c] == "asked" else "returning")),
     "RangeLockSpanning"),
    ("a glance is all it takes", range_lock, "glance",
     lambda k, s, c: s._replace(seen=put(s.seen, c, s.state)), "RangeLock"),
    ("a read looks at its first block only", range_lock, "to_glance",
     lambda k, s, c: frozenset(b for b in (
         disk.partly_covered(k, s.req[c]) if disk.changes(s.req[c])
         else {min(disk.blocks_of(k, s.req[c]))} if range_lock.may_show_base(k, s, c) else ()
     ) if s.seen[c][b] == disk.NONE), "RangeLockFreely"),
    ("the range is given back with the reply", range_lock, "respond",
     lambda s, c: s._replace(pc=put(s.pc, c, "done"), req=put(s.req, c, disk.NO_REQUEST)), "RangeLockSpanning"),
    ("states are set with the first data", range_lock, "to_store",
     lambda k, s, c: disk.EMPTY.union(*[range_lock.stored_in(k, s, c, b) for b in range_lock.range_of(k, s, c)])
     if not s.moved[c] else disk.EMPTY, "RangeLock"),
    ("a trimmed block's bytes in the store mean something", range_lock, "stored_in",
     lambda k, s, c, b: disk.in_block(k, s.req[c], b) if range_lock.exclusive(s, c) else disk.EMPTY, "RangeLock"),
    ("merges are not excluded", bitmap_lock, "lock_rmw",
     lambda s, c: s._replace(pc=put(s.pc, c, "looking")), "BitmapLockRmwBesideTrim"),
    ("the byte of the map is not shared", bitmap_lock, "store_byte",
     lambda k, s, c: s._replace(state=put(s.state, bitmap_lock.at(s, c), disk.ALLOCATED),
                                byte=put(s.byte, c, bitmap_lock.no_byte(k)),
                                pc=put(s.pc, c, bitmap_lock.after_reading(s, c))), "BitmapLockNeighbours"),
    ("the lock is given back before the state is set", global_lock, "mark",
     lambda k, s, c: s._replace(holder=global_lock.NOBODY, pc=put(s.pc, c, "unlocking")), "GlobalLockSpanning"),
    ("the base is read with the lock given back", global_lock, "fetch",
     lambda k, s, c: s._replace(pc=put(s.pc, c, "locking"), holder=global_lock.NOBODY), "GlobalLockSpanning"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("module", "function", "broken", "name"), [m[1:] for m in MUTANTS], ids=[m[0] for m in MUTANTS]
)
def test_a_twin_with_another_action_is_told_from_the_module(monkeypatch, module, function, broken, name):
    monkeypatch.setattr(module, function, broken)
    assert answer_of_twin(BY_NAME[name]) != BY_NAME[name].answer


def test_counts_alone_tell_a_twin_that_moves_blocks_whole():
    """Nothing is violated by it: only the numbers say that it is another algorithm."""
    config = read_config(SPECS / "RangeLockSpanning.cfg")
    twin = twin_of("RangeLock")
    whole = Config(config.name, config.module, {**config.constants, "Torn": False}, config.invariants, ())
    found = search(twin, constants_for(whole, twin), whole.invariants).answer
    assert isinstance(found, Holds)
    assert found != BY_NAME["RangeLockSpanning"].answer


BROKEN_MODULES = [  # (what is broken, text of RangeLock.tla, what it becomes, what TLC then says is violated)
    ("readers do not wait", "(Exclusive(c) \\/ Exclusive(d))", "Exclusive(c) /\\ Exclusive(d)", "WritersAreAlone"),
    ("a lock is never given back", "/\\ pc[c] = \"leaving\"\n                   /\\ queue' = Without(c)",
     "/\\ pc[c] = \"leaving\"\n                   /\\ queue' = queue", DEADLOCK),
    ("nothing is kept of a block that shows the base", "[] OTHER -> SectorsOf(b)", "[] OTHER -> InBlock(r, b)",
     "RefinesDevice"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "violated"), [b[1:] for b in BROKEN_MODULES], ids=[b[0] for b in BROKEN_MODULES]
)
def test_a_broken_module_is_refuted_by_tlc(tlc_runs, tmp_path, old, new, violated):
    folder = shutil.copytree(SPECS, tmp_path / "specs", ignore=shutil.ignore_patterns("__pycache__"))
    text = text_of("RangeLock")
    assert text.count(old) == 1
    (folder / "RangeLock.tla").write_text(text.replace(old, new), encoding="utf-8")
    found = tlc.run(read_config(folder / "RangeLock.cfg"), folder)
    assert isinstance(found, Violates), found
    assert found.name == violated


# The search

SMALL_STEPS = [1, 2]


@dataclass(frozen=True)
class Nothing:
    """No constants."""


def climb(_k: Nothing, n: int) -> Iterator[tuple[str, int]]:
    """Up by one or two, as far as four; then it stays."""
    for step in SMALL_STEPS:
        if n + step <= 4:
            yield "Climb", n + step
    if n == 4:
        yield "Finished", n


def stairs(steps=climb, **more) -> Twin[Nothing, int]:
    return Twin("Stairs", Nothing, lambda _k: iter([0, 0]), steps,
                invariants={"BelowThree": lambda _k, n: n < 3, "NotFour": lambda _k, n: n != 4},
                action_properties={"ByOne": lambda _k, before, after: after - before <= 1}, **more)  # fmt: skip


def test_states_are_counted_as_by_hand():
    """Init twice, from 0: 1 2, from 1: 2 3, from 2: 3 4, from 3: 4, and 4 once more."""
    assert search(stairs(), Nothing()).answer == Holds(Counts(generated=10, distinct=5, depth=3))


def test_the_shortest_behaviour_comes_first():
    found = search(stairs(), Nothing(), ["NotFour"])
    assert found.answer == Violates("NotFour", 3)
    assert found.trace == (("Init", 0), ("Climb", 2), ("Climb", 4))


def test_a_step_that_a_property_forbids_is_found():
    assert search(stairs(), Nothing(), [], ["ByOne"]).answer == Violates("ByOne", 2)


def test_a_state_that_goes_nowhere_is_found():
    stuck = stairs(lambda k, n: (step for step in climb(k, n) if step[0] != "Finished"))
    assert search(stuck, Nothing()).answer == Violates(DEADLOCK, 3)


@pytest.mark.parametrize(
    ("mapping", "answer"),
    [
        (lambda _k, n: n, Holds(Counts(10, 5, 3))),
        (lambda _k, _n: 0, Holds(Counts(10, 5, 3))),  # it stutters all the time
        (lambda _k, n: n + 1, Violates("Refines", 1)),  # does not begin as it should
        (lambda _k, n: 2 * n, Violates("Refines", 2)),  # 0 to 4 is no step
        (lambda _k, n: -n if n > 1 else n, Violates("Refines", 2)),
    ],
)
def test_what_refines_begins_and_goes_on_as_what_it_refines(mapping, answer):
    twin = stairs(refinements={"Refines": Refinement(stairs(), mapping)})
    assert search(twin, Nothing(), [], ["Refines"]).answer == answer


def test_what_a_twin_does_not_have_cannot_hold():
    for invariants, properties in ((["NoSuchThing"], []), ([], ["NoSuchThing"])):
        with pytest.raises(KeyError):
            search(stairs(), Nothing(), invariants, properties)


# What clients see

W_WHOLE = disk.Request("write", frozenset({0, 1}))
R_WHOLE = disk.Request("read", frozenset({0, 1}))


@pytest.mark.parametrize(
    ("held", "told", "before", "is_explained"),
    [
        (("a", "a"), ("base", "base"), (set(), set()), True),  # the read first
        (("a", "a"), ("a", "a"), (set(), set()), True),
        (("a", "a"), ("a", "base"), (set(), set()), False),  # half of the write
        (("base", "a"), ("a", "a"), (set(), set()), False),  # half of it lost
        (("a", "a"), ("base", "base"), (set(), {0}), False),  # the read began when the write had been acknowledged
        (("a", "a"), ("a", "a"), ({1}, set()), False),  # the read had ended when the write began
    ],
)
def test_an_order_of_the_requests_has_to_explain_what_was_seen(held, told, before, is_explained):
    k = disk.Constants(("a", "b"), 1, 2, "request", ("NOT_ALLOCATED",), ())
    before = tuple(map(frozenset, before))
    none = ("none", "none")
    assert disk.explained(k, ("base", "base"), before, (W_WHOLE, R_WHOLE), (none, told), held) == is_explained


def test_sectors_may_each_have_an_order_of_their_own():
    k = disk.Constants(("a", "b"), 1, 2, "sector", ("NOT_ALLOCATED",), ())
    before = (disk.EMPTY, disk.EMPTY)
    replies = (("none", "none"), ("a", "base"))
    assert disk.explained(k, ("base", "base"), before, (W_WHOLE, R_WHOLE), replies, ("a", "a"))


# One client alone

CONTENT = {disk.BASE: b"\x01", disk.OLD: b"\x02", disk.ZERO: b"\x00", "a": b"\x03"}
BASE_BYTES = CONTENT[disk.BASE] * 2
BLOCKS = {
    disk.NOT_ALLOCATED: block.NOT_ALLOCATED,
    disk.ALLOCATED: block.allocated(CONTENT[disk.OLD] * 2),
    disk.TRIMMED: block.TRIMMED,
}


def content(told):
    return b"".join(CONTENT[value] for value in told)


def by_the_model(old, request):
    """The block after a request, and what a read is told, as `model/block.py` has it."""
    start, end = (min(request.at), max(request.at) + 1) if request.at else (0, 0)
    if request.kind == "read":
        return block.read_copying(old, BASE_BYTES, start, end)
    if request.kind == "write":
        return block.write(old, BASE_BYTES, start, CONTENT["a"] * (end - start)), None
    if request.kind == "zero":
        return block.zero(old, BASE_BYTES, start, end, no_hole=True), None
    if request.kind == "trim":
        return block.trim(old, BASE_BYTES, start, end), None
    return (block.cache(old, BASE_BYTES, block.CacheMode.COW) if request.kind == "cache" else old), None


@pytest.mark.parametrize("state", sorted(BLOCKS))
@pytest.mark.parametrize("request_", disk.REQUESTS["OneBlock"], ids=lambda r: f"{r.kind}-{sorted(r.at)}")
def test_alone_a_client_finds_what_the_model_says(state, request_):
    """What the specification calls a state and a store is the model's block."""
    k = range_lock.Constants(("a",), 1, 2, "request", (state,), (request_,), True, True, True, 2, True)
    (s,) = range_lock.initial(k)
    while not range_lock.all_done(s):
        ((_, s),) = range_lock.steps(k, s)
    after, told = by_the_model(BLOCKS[state], request_)
    assert s.state == (after.state.name,)
    assert content(range_lock.contents(k, s)) == block.contents(after, BASE_BYTES)
    if told is not None:
        assert content(s.reply[0][a] for a in sorted(request_.at)) == told


# What is read

CONFIG = Config("RangeLock", "RangeLock", {}, ("TypeOK",), ("StatesNeverGoBack", "RefinesDevice"))
HELD = """Model checking completed. No error has been found.
3 states generated, 2 distinct states found, 0 states left on queue.
The depth of the complete state graph search is 2.
"""
PLACE = "line 66, col 9 to line 66, col 28 of module"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (HELD, Holds(Counts(3, 2, 2))),
        ("Error: Invariant TypeOK is violated.\nState 1: <Init>\nState 2: <Next>\n", Violates("TypeOK", 2)),
        ("Error: Invariant TypeOK is violated by the initial state:\n/\\ pc = 1\n", Violates("TypeOK", 1)),
        (f"Error: Action property {PLACE} Device is violated.\nState 1: <Init>\n", Violates("RefinesDevice", 1)),
        (f"Error: Action property {PLACE} RangeLock is violated.\nState 1: <I>\n", Violates("StatesNeverGoBack", 1)),
        ("Error: Deadlock reached.\nState 1: <Init>\nState 2: <Next>\nState 3: <Next>\n", Violates(DEADLOCK, 3)),
        ("Error: Attempted to check equality of string with integer.\n", None),
        ("Error: The behavior up to this point is:\n" + HELD, None),
        ("***Parse Error***\n", None),
        ("", None),
        (HELD.replace("0 states left", "7 states left"), None),
        (HELD.split("\n", 1)[1], None),
        (HELD.rsplit("\n", 2)[0], None),
    ],
)
def test_tlc_is_believed_word_for_word(text, answer):
    found = tlc.meaning(text, CONFIG)
    assert found == answer if answer is not None else isinstance(found, Undecided)


def test_a_run_leaves_alone_the_variables_that_other_threads_change(tlc_runs, monkeypatch):
    """EFAULT from execve, once in some thousand runs, was how this showed: vfork shares the table of variables."""
    given = []
    run = subprocess.run

    def noted(command, **how):  # other runs go on beside this one
        given.append(how["env"])
        return run(command, **how)

    monkeypatch.setattr(subprocess, "run", noted)
    tlc.run(read_config(SPECS / "RangeLock.cfg"), limit_s=0.1)
    assert given
    assert all(isinstance(table, dict) for table in given)  # a table of its own: os.environ is none


def test_a_run_that_is_cut_short_decides_nothing(tlc_runs):
    assert isinstance(tlc.run(read_config(SPECS / "RangeLock.cfg"), limit_s=0.1), Undecided)


def test_another_program_than_the_pinned_one_is_not_run(monkeypatch):
    monkeypatch.setattr(tlc, "JAR_SHA256", "0" * 64)
    tlc.jar.cache_clear()
    try:
        with pytest.raises(tlc.Missing, match=r"sha256|install"):
            tlc.jar()
    finally:
        tlc.jar.cache_clear()


GOOD = (SPECS / "Device.cfg").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SPECIFICATION Spec", "SPECIFICATION Other"),
        ("SPECIFICATION Spec", "SYMMETRY Clients\nSPECIFICATION Spec"),
        ("BlockCount = 1", "BlockCount = -1"),
        ("BlockCount = 1", "BlockCount = x"),
        ("INVARIANTS", "INVARIANTS TypeOK\nINVARIANTS"),
    ],
)
def test_a_configuration_that_is_not_understood_is_refused(tmp_path, old, new):
    assert old in GOOD
    path = tmp_path / "Device.cfg"
    path.write_text(GOOD.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=r"Device\.cfg"):
        read_config(path)


@pytest.mark.parametrize(
    ("old", "new"), [("    BlockCount = 1\n", ""), ("BlockCount = 1", "BlockCount = 1\n Deep = 2")]
)
def test_a_constant_that_only_one_side_has_is_refused(tmp_path, old, new):
    path = tmp_path / "Device.cfg"
    path.write_text(GOOD.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match="one side only"):
        constants_for(read_config(path), device.TWIN)


@pytest.mark.parametrize(
    "entry",
    [
        'size = "small"',
        'size = "small"\nholds = { generated = 1, distinct = 1, depth = 1 }\nviolates = "A"\nstates = 1',
        'size = "huge"\nviolates = "A"\nstates = 1',
        'size = "small"\nviolates = "A"\nstates = 1\nwhy = ""',
    ],
)
def test_an_expectation_that_is_not_understood_is_refused(tmp_path, entry):
    path = tmp_path / "manifest.toml"
    path.write_text(f"[Device]\n{entry}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="Device"):
        manifest(path)


@pytest.mark.parametrize("argument", ["NoSuchThing", "--no-such-thing"])
def test_the_command_says_what_it_does_not_know(capsys, argument):
    assert main([argument]) == 2
    assert argument in capsys.readouterr().err


def test_the_command_says_what_is_missing(monkeypatch, capsys):
    def no_java(_entry):
        raise tlc.Missing("no java here")

    monkeypatch.setattr("check.specs.SIDES", (("TLC", no_java),))
    assert main(["BitmapLockRmwBesideWrite"]) == 1
    assert "no java here" in capsys.readouterr().err


def test_the_command_fails_if_anything_is_not_as_expected(monkeypatch, capsys):
    monkeypatch.setattr("check.specs.SIDES", (("twin", answer_of_twin),))
    assert main(["BitmapLockRmwBesideWrite"]) == 0
    monkeypatch.setattr("check.specs.SIDES", (("twin", lambda _name: Undecided("not asked")),))
    assert main(["BitmapLockRmwBesideWrite"]) == 1
    assert "EXPECTED violates SomeOrderExplains" in capsys.readouterr().out


# What is written about them


TLA_PAGE = (SPECS.parent / "docs" / "tla.md").read_text(encoding="utf-8")


def test_the_page_has_the_table_of_what_is_expected():
    assert table() in TLA_PAGE


def test_the_page_shows_the_shortest_way_to_lose_a_write():
    lines = trace_of("BitmapLockRmwBesideWrite")
    assert "\n".join(f"    {line}" for line in lines) in TLA_PAGE


def test_a_trace_has_a_line_for_each_step_and_one_for_the_clients():
    for name in ("RangeLockWaiters", "GlobalLockSpanning", "DeviceSectors", "BitmapLockNeighbours"):
        assert len(trace_of(name)) == BY_NAME[name].answer.trace_length
