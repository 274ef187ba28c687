"""The checkers as rows: who is asked what, what counts, and that a wrong verdict counts for nothing. No speed.

Source:  docs/benchmarks.md, bench/explorers.py, bench/histories.py.
"""

import subprocess
import sys
from dataclasses import replace

import pytest
from click.testing import CliRunner
from servers import ROOT

from bench import checkers, explorers, histories
from bench.checkers import CHECKERS, CHECKS, Blocks, Check, Checker, ahead, calls_of, measured
from bench.command import bench, failures
from bench.explorers import NotHere
from bench.own_client import CannotError
from bench.report import row_lines
from bench.results import FIGURES, Results, RowResult, Sample, ServerResult, load
from bench.wanted import OURS, marks
from impl.errors import StartError, UsageError
from model.linearizability import decide
from model.wgl import search, verify_order

HISTORY = histories.Row(200, 4, 4, 1, "request", faulty=False, budget_s=10.0)
PROGRAM = next(row for row in explorers.ROWS if row.name == "global")
WRONG = next(row for row in explorers.ROWS if row.name == "torn")


def checker_named(name):
    return next(checker for checker in CHECKERS if checker.name == name)


def measure(name, row):
    """One round."""
    return checker_named(name).measures[type(row)](row, 1)


# The rows

NAMES = [
    *("explore-range", "explore-range-copy-read", "explore-global-three", "explore-range-three"),
    *(f"history-{size}k-b{blocks}-span{span}" for size in (10, 100) for span in (1, 4) for blocks in (16, 1024)),
]


def test_the_rows_are_programs_that_hold_and_histories_of_one_block_and_of_four():
    assert [check.name for check in CHECKS] == NAMES
    assert {check.asked.span for check in CHECKS if check.kind is histories.Row} == {1, 4}
    assert not any(check.asked.faulty for check in CHECKS if check.kind is histories.Row)


FITTING = [  # (row, who is asked)
    ("explore-range", ["cowproof", "cowproof-again", "frontrun"]),
    ("history-100k-b16-span4", ["cowproof", "wgl", "porcupine"]),
]


@pytest.mark.parametrize(("row", "names"), FITTING)
def test_each_row_has_its_own_peers(row, names):
    check = next(check for check in CHECKS if check.name == row)
    assert [checker.name for checker in CHECKERS if checker.fits(check)] == names


# The explorer


@pytest.mark.parametrize("name", ["cowproof", "cowproof-again"])
def test_our_search_counts_the_transitions_that_it_made(name):
    ours = explorers.Ours()
    explorers.measure_ours(PROGRAM, 0, ours)
    sample = measure(name, PROGRAM)
    assert sample.requests == ours.transitions
    assert sample.server_s > 0


@pytest.mark.parametrize("name", ["cowproof", "cowproof-again"])
def test_a_search_that_does_not_show_its_program_to_hold_is_no_measurement(name):
    with pytest.raises(CannotError, match="it says: violated; right is: holds"):
        measure(name, WRONG)


def frontrun_says(monkeypatch, verdict, cpu_s=2.0):
    def measure_theirs(row, setting, seed, limit_s, into):
        into.verdicts.append(verdict)
        into.cpu_s.append(cpu_s)

    monkeypatch.setattr(checkers, "require_frontrun", lambda module: None)
    monkeypatch.setattr(checkers, "measure_theirs", measure_theirs)


def test_frontrun_is_credited_with_our_transitions_for_the_same_verdict(monkeypatch):
    frontrun_says(monkeypatch, "holds")
    sample = measure("frontrun", PROGRAM)
    assert (sample.requests, sample.server_s) == (measure("cowproof", PROGRAM).requests, 2.0)


@pytest.mark.parametrize("verdict", [explorers.OUT_OF_TIME, explorers.GAVE_UP, "violated"])
def test_frontrun_is_credited_with_nothing_for_another(verdict, monkeypatch):
    frontrun_says(monkeypatch, verdict)
    with pytest.raises(CannotError, match=f"it says: {verdict}"):
        measure("frontrun", PROGRAM)


def test_where_frontrun_cannot_be_used_the_row_says_what_to_do(monkeypatch):
    def require(module):
        raise NotHere(f"install it, and run {module}")

    monkeypatch.setattr(checkers, "require_frontrun", require)
    with pytest.raises(CannotError, match="install it, and run bench --checkers"):
        measure("frontrun", PROGRAM)


# Histories

SPANS = [(1, 1), (1, 4), (4, 4)]  # (blocks of a request at most, blocks)


@pytest.mark.parametrize(("span", "blocks"), SPANS)
@pytest.mark.parametrize("faulty", [False, True])
def test_the_search_beside_it_comes_to_the_same_verdict(span, blocks, faulty):
    row = replace(HISTORY, span=span, blocks=blocks, faulty=faulty)
    history, model = row.history(), Blocks(blocks, span == 1)
    found = search(model, calls_of(history))
    assert found.verdict.value == decide(history, "request").verdict.value == row.expected
    if not faulty:
        verify_order(model, calls_of(history), found.order)


def test_the_search_is_shown_what_each_block_of_a_request_held():
    history = histories.make_history(50, 2, 4, 4, faulty=False)
    calls = calls_of(history)
    assert {len(call.op[2]) for call in calls} == {1, 2, 3, 4}
    assert [call.op[2] for call, op in zip(calls, history.op, strict=True) if op == "write"] == [
        (value,) * (length // histories.BLOCK_BYTES)
        for value, length, op in zip(history.value, history.length, history.op, strict=True)
        if op == "write"
    ]


@pytest.mark.parametrize("name", ["cowproof", "wgl"])
@pytest.mark.parametrize("span", [1, 4])
def test_a_history_is_decided_in_a_process_of_its_own(name, span):
    sample = measure(name, replace(HISTORY, span=span))
    assert sample.requests == HISTORY.requests
    assert sample.memory_bytes > 0


def test_what_is_not_decided_within_its_budget_is_no_measurement():
    with pytest.raises(CannotError, match="it says: unknown, after 0 seconds; right is: linearizable"):
        measure("wgl", replace(HISTORY, requests=20_000, budget_s=0.0))


@pytest.mark.parametrize("name", ["cowproof", "wgl"])
def test_a_wrong_verdict_is_no_measurement(name, monkeypatch):
    monkeypatch.setattr(checkers, "apart", lambda function, row: replace(row, verdict="not linearizable"))
    with pytest.raises(CannotError, match="it says: not linearizable; right is: linearizable"):
        measure(name, HISTORY)


CITED = [  # (requests, blocks, span, seconds, or why there are none)
    (100_000, 16, 1, 0.212),
    (100_000, 1024, 1, 0.126),
    (100_000, 1, 1, "out of memory"),
    (100_000, 16, 4, "no figure to cite"),
    (12_345, 16, 1, "no figure to cite"),
]


@pytest.mark.parametrize(("requests", "blocks", "span", "told"), CITED)
def test_porcupine_is_cited_as_it_stands_in_the_document(requests, blocks, span, told):
    row = histories.Row(requests, 16, blocks, span, "request", False, 1.0)
    if isinstance(told, str):
        with pytest.raises(CannotError, match=told):
            measure("porcupine", row)
    else:
        assert measure("porcupine", row) == Sample(told, requests=requests, server_s=told)
        assert f"| {told} s |" in (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")


def test_what_is_cited_is_said_to_be_so():
    assert "not measured in this run" in checker_named("porcupine").remark


# Turns, and what is said of them


class Scripted:
    """Checkers whose samples are written down."""

    def __init__(self, **samples):
        self.samples, self.asked = samples, []

    def checkers(self):
        return [Checker(name, name, {histories.Row: self.sampler(name)}) for name in self.samples]

    def sampler(self, name):
        def sample(row, round_):
            self.asked.append((name, round_))
            found = self.samples[name].pop(0)
            if isinstance(found, Exception):
                raise found
            return found

        return sample


CHECK = Check("row", "a row", HISTORY)


def taking(cpu_s):
    return Sample(9.0, requests=1000, server_s=cpu_s)


def test_checkers_take_turns_and_the_first_round_does_not_count():
    scripted = Scripted(cowproof=[taking(9), taking(1), taking(2)], wgl=[taking(8), taking(4), taking(8)])
    row = measured(CHECK, scripted.checkers(), rounds=2)
    assert scripted.asked == [(name, round_) for round_ in range(3) for name in ("cowproof", "wgl")]
    assert [[sample.server_s for sample in one.samples] for one in row.servers] == [[1, 2], [4, 8]]
    assert row.ratio(*row.servers) == pytest.approx(4.0)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_checker_that_cannot_is_shown_with_why_and_not_asked_again(at):
    samples = [taking(1)] * at + [CannotError("it gave up")]
    scripted = Scripted(cowproof=[taking(1)] * 3, wgl=samples)
    row = measured(CHECK, scripted.checkers(), rounds=2)
    assert (row.servers[1].cannot, row.servers[1].samples) == ("it gave up", [])
    assert scripted.asked.count(("wgl", at)) == 1
    assert ("wgl", at + 1) not in scripted.asked
    assert "  wgl: not measured: it gave up" in row_lines(row)


def test_a_wrong_verdict_of_ours_fails_the_run():
    scripted = Scripted(cowproof=[CannotError("it says: unknown")])
    row = measured(CHECK, scripted.checkers(), rounds=1)
    assert failures(Results({}, [], {}, [row], kind="checkers")) == "row: it says: unknown"


AHEAD = [(1.0, "wgl", 2.0, ""), (1.0, "wgl", 0.5, "ahead, 2.00 times"), (1.0, "cowproof-again", 0.5, "")]


@pytest.mark.parametrize(("ours", "name", "theirs", "said"), AHEAD)
def test_who_is_ahead_is_told(ours, name, theirs, said):
    row = RowResult(
        "row", "", "work", "", [ServerResult(OURS, "", [taking(ours)]), ServerResult(name, "", [taking(theirs)])]
    )
    assert ahead(row, row.servers[1]) == said
    found = measured(CHECK, Scripted(cowproof=[taking(ours)] * 2, **{name: [taking(theirs)] * 2}).checkers(), 1)
    assert found.servers[1].remark == said


def test_a_rate_is_of_processor_time_and_nothing_that_is_asked_of_servers_is_asked_here():
    assert FIGURES["work"].value(taking(0.5)) == 2000.0
    row = measured(CHECK, Scripted(cowproof=[taking(1)] * 2, wgl=[taking(2)] * 2).checkers(), 1)
    assert marks(row) == []
    heading, *_ = (line for line in row_lines(row) if "median" in line)
    assert "CPU s/100k" in heading
    assert "server" not in heading


# The command


def called(*arguments):
    return CliRunner().invoke(bench, arguments)


def test_the_list_names_every_row_and_every_checker():
    shown = called("--checkers", "--list").output
    assert all(f"  {name} " in shown for name in [*NAMES, *(checker.name for checker in CHECKERS)])


def test_the_quick_rows_are_those_that_take_little():
    shown = called("--checkers", "--list", "--quick").output
    assert "8 rows" in shown
    assert "100k" not in shown
    assert "cowproof-again" not in shown


ERRORS = [  # (arguments, what the one line names)
    (["--size", "1G"], "--size does not go with --checkers"),
    (["--seconds", "1"], "--seconds does not go with --checkers"),
    (["--repeats", "1"], "--repeats does not go with --checkers"),
    (["--directory", "/tmp"], "--directory does not go with --checkers"),
    (["--rows", "trim"], "no row is named 'trim'"),
    (["--servers", "nbdkit"], "no server is named 'nbdkit'"),
]


@pytest.mark.parametrize(("arguments", "names"), ERRORS)
def test_what_has_no_meaning_here_is_refused(arguments, names):
    done = called("--checkers", *arguments)
    assert isinstance(done.exception, UsageError)
    assert names in str(done.exception)


def test_without_the_packages_of_the_checkers_it_says_which_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "bench.checkers", None)
    monkeypatch.delattr("bench.checkers")
    done = called("--checkers", "--list")
    assert isinstance(done.exception, StartError)
    assert "which is not installed" in str(done.exception)


def test_checkers_are_measured_kept_and_shown_again(tmp_path):
    kept, shown = tmp_path / "run.json", tmp_path / "run.html"
    rows = "explore-global-three,history-10k-b16-span1"
    told = ["--checkers", "--rows", rows, "--rounds", "1", "--json", str(kept), "--html", str(shown)]
    done = subprocess.run(
        [sys.executable, "-m", "bench", *told], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found = load(kept)
    assert [row.name for row in found.rows] == rows.split(",")
    assert all(row.server(OURS) for row in found.rows)
    assert found.rows[1].server("wgl").samples[0].requests == 10_000
    assert "<h1>The checkers of cowproof</h1>" in shown.read_text(encoding="utf-8")
    assert done.stdout == called("--show", str(kept)).output
