"""`cowproof history`: exit statuses, and what is shown.

Source:  specs: exit status 0 linearizable, 1 not, 2 a file that is none, 3 unknown; never 0 for unknown.
"""

import json
import pty
import subprocess
import sys

import pytest
from click.testing import CliRunner
from servers import CLIENT_LIMIT_S, ROOT

from check.history import command
from check.history.command import history as history_command
from check.history.format import save
from check.history.show import conflict_lines
from model.certificate import Conflict
from model.history import NEVER, OK, PENDING, History, Operation
from model.linearizability import Decision
from model.wgl import Verdict


def history(*operations):
    made = History(size=1 << 20)
    for operation in operations:
        made.append(operation)
    return made


WRITE = Operation("a", 1, "write", 0, 65536, 1_000_000, 2_000_000, OK, "w1")
STALE = Operation("b", 2, "read", 0, 1024, 3_000_000, 4_500_000, OK, (("w1", 512), ("base", 512)))
FRESH = Operation("b", 2, "read", 0, 1024, 3_000_000, 4_500_000, OK, (("w1", 1024),))

FINE = history(WRITE, FRESH)
STALE_READ = history(WRITE, STALE)


@pytest.fixture
def file(tmp_path):
    def write(made):
        path = tmp_path / "seen.jsonl"
        if isinstance(made, History):
            save(made, path)
        else:
            path.write_text(made, encoding="utf-8")
        return path

    return write


def run(*arguments):
    """The command as a process of its own."""
    command_line = [sys.executable, "-m", "check.history", *map(str, arguments)]
    return subprocess.run(command_line, cwd=ROOT, capture_output=True, text=True, timeout=CLIENT_LIMIT_S, check=False)


TORN_READ = Operation("b", 2, "read", 0, 1024, 3_000_000, 4_500_000, OK, (("w1", 512), ("?", 512)))


@pytest.mark.parametrize(
    ("notes", "said"),
    [
        (("0: nothing", "512: misdirected: w1 wrote this at 8192"), "wrote (misdirected: w1 wrote this at 8192) in"),
        (("512 torn", "1024: elsewhere"), "wrote in [512, 1024)"),
        ((), "wrote in [512, 1024)"),
    ],
)
def test_bytes_that_nobody_wrote_are_said_to_be_what_the_recorder_found(file, notes, said):
    made = history(WRITE, TORN_READ)
    if notes:
        made.notes["b", 2] = notes
    done = run("check", file(made))
    assert done.returncode == 1
    assert f"r2 returned bytes that nobody {said}" in done.stdout


def test_a_history_that_is_linearizable_is_said_to_be(file):
    done = run("check", file(FINE))
    assert done.returncode == 0, done.stderr
    assert "2 requests\nlinearizable at level request: " in done.stdout


def test_a_history_that_is_not_is_shown_in_words_and_side_by_side(file):
    done = run("check", file(STALE_READ))
    assert done.returncode == 1, done.stderr
    assert "not linearizable at level request: " in done.stdout
    for expected in (
        "These 2 requests have no order, as to bytes [",
        "connection a",
        "connection b",
        "WRITE 0+65536 (w1)",
        "READ 0+1024 (r2)",
        "r2 returned ",
    ):
        assert expected in done.stdout


def test_on_a_terminal_both_loading_and_deciding_are_seen(file):
    leader, follower = pty.openpty()
    command_line = [sys.executable, "-m", "check.history", "check", str(file(FINE))]
    with open(leader, "rb", buffering=0) as terminal:
        with open(follower, "wb", buffering=0) as stderr:
            done = subprocess.run(command_line, cwd=ROOT, stderr=stderr, timeout=CLIENT_LIMIT_S, check=False)
        assert done.returncode == 0
        shown = terminal.read(4096)
    assert b"\rreading: 100 % " in shown
    assert b"\rdeciding: 0 % " in shown


@pytest.mark.parametrize("level", ["request", "block", "sector"])
def test_the_level_that_is_asked_for_is_the_one_that_is_judged(file, level):
    done = run("check", file(STALE_READ), "--level", level, "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["level"] == level
    assert told["verdict"] == "not linearizable"
    assert told["operations"][0][0]["value"] == "w1"
    assert (told["requests"], told["start"], told["end"] <= 1024) == (2, told["start"], True)


def test_a_history_that_is_linearizable_is_said_to_be_for_programs(file):
    done = run("check", file(FINE), "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["verdict"] == "linearizable"


def test_unknown_is_a_status_of_its_own(file, monkeypatch):
    monkeypatch.setattr(
        command, "decide", lambda *_: Decision(Verdict.UNKNOWN, "request", None, "the budget was spent")
    )
    done = CliRunner().invoke(history_command, ["check", str(file(FINE))])
    assert done.exit_code == 3
    assert "unknown at level request: the budget was spent" in done.output


BAD = ["", "garbage\n", '{"format": "cowproof-history", "version": 1, "size": 512}\n{"t": 1']


@pytest.mark.parametrize("text", BAD)
def test_a_file_that_is_no_history_is_refused_in_one_line_that_names_the_line(file, text):
    path = file(text)
    done = run("check", path)
    assert done.returncode == 2
    assert f"{path}: line {max(1, text.count(chr(10)) * (len(text) > 20) + (len(text) > 20))}: expected" in done.stderr
    assert "linearizable" not in done.stdout
    assert done.stderr.splitlines()[-1].startswith("cowproof: ")


def test_a_cut_line_is_the_end_only_if_that_is_asked_for(file):
    path = file(FINE)
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole[:-10], encoding="utf-8")
    assert run("check", path).returncode == 2
    assert run("check", path, "--allow-truncated").returncode == 0


WRONG_USAGE = [
    ("check",),
    ("check", "/nowhere"),
    ("check", "x", "--level", "galaxy"),
    ("record", "nbd://localhost"),
    ("record", "nbd://localhost", "-o", "/tmp/x", "--mix", "read=1"),
    ("record", "nbd://localhost", "-o", "/tmp/x", "--size", "1"),
    ("record", "http://localhost", "-o", "/dev/null"),
    ("scribble",),
]


@pytest.mark.parametrize("arguments", WRONG_USAGE)
def test_what_makes_no_sense_is_refused_in_one_line(arguments):
    done = run(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("cowproof: ")
    assert "Traceback" not in done.stderr


def test_a_server_that_is_not_there_is_one_line_and_status_1(tmp_path):
    done = run("record", f"nbd+unix:///?socket={tmp_path}/s", "-o", tmp_path / "seen.jsonl")
    assert done.returncode == 1
    assert "cannot connect" in done.stderr.splitlines()[-1]


def test_what_is_recorded_can_be_checked(serve, tmp_path):
    server, path = serve("pattern:4M"), tmp_path / "seen.jsonl"
    options = ["--seconds", "0.2", "--quiet", "0.1", "--size", "1M", "--base", "pattern:4M", "--clients", "2"]
    done = run("record", server.uri, "-o", path, *options)
    assert done.returncode == 0, done.stderr
    assert " requests, " in done.stderr
    assert run("check", path, "--level", "sector").returncode == 0


def test_a_conflict_is_shown_in_the_order_of_time_with_what_never_came():
    pending = Operation("b", 3, "trim", 0, 512, 1_500_000, NEVER, PENDING)
    failed = Operation("c", 4, "zero", 0, 512, 1_600_000, 5_000_000, "EIO", None, ("fast",))
    shown = conflict_lines(history(WRITE, STALE, pending, failed), Conflict((0, 1, 2, 3), 0, 1024))
    times = [row[0] for line in shown[3:-1] if (row := line.split()) and row[0][0].isdigit()]
    assert times == ["0.000", "0.500", "0.600", "1.000", "2.000", "3.500", "4.000"]
    answered = next(at for at, line in enumerate(shown) if "r2 returned w1 in [0, 512)," in line)
    assert shown[answered + 1].strip() == "base in [512, 1024)"
    assert "ZERO 0+512 fast (z4)" in "\n".join(shown)
    assert "z4 failed: EIO" in "\n".join(shown)
    assert shown[-1] == "t3 was never answered"
