"""`cowproof explore` as people use it: what it prints, and its exit status."""

import json
import subprocess
import sys

import pytest
from servers import ROOT

HOLDS, VIOLATED, WRONG_USAGE, INCONCLUSIVE = 0, 1, 2, 3
RACE = ["--subject", "bitmap-lock", "--program", "write 0+512 | write 0+64K"]


def explore(*arguments, status):
    done = subprocess.run(
        [sys.executable, "-m", "check.explore", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status != WRONG_USAGE else done.stderr


def test_a_race_is_shown_as_two_columns_with_a_line_that_shows_it_again():
    printed = explore(*RACE, status=VIOLATED)
    lines = printed.splitlines()
    assert lines[0].split() == ["client", "A", "client", "B"]
    column = lines[0].index("client B")
    assert lines[1] == "WRITE 0+512"
    assert lines[8] == " " * column + "WRITE 0+64K"
    assert "   the device holds:  B1 in 0+512, base in 512+65024" in lines
    replay = next(line for line in lines if line.startswith("replay: "))
    string = replay.partition("'")[2].rpartition("'")[0]
    again = explore("--replay", string, status=VIOLATED)
    assert printed.startswith(again.rstrip())


@pytest.mark.parametrize("subject", ["range-lock", "overlay"])
def test_what_holds_says_so_and_how_much_was_looked_at(subject):
    printed = explore("--subject", subject, "--program", "write 0+512 | write 0+64K", status=HOLDS)
    assert f"{subject} at level request: holds" in printed
    assert "states" in printed
    assert "schedules covered" in printed


def test_what_is_too_big_is_not_called_good():
    assert "inconclusive" in explore("--program", "write 0+1 | write 0+2", "--states", "5", status=INCONCLUSIVE)


def test_random_ways_do_not_show_that_something_holds():
    assert "10 random schedules" in explore("--program", "write 0+1 | write 0+2", "--walks", "10", status=INCONCLUSIVE)


def test_the_result_comes_as_json_too():
    found = json.loads(explore(*RACE, "--json", status=VIOLATED))
    assert found["verdict"] == "violated"
    assert found["replay"].startswith("bitmap-lock:request:N:")
    assert json.loads(explore("--replay", found["replay"], "--json", status=VIOLATED))["wrong"] == found["why"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no program"),
        (["--program", "wrote 0+1"], "is not a request"),
        (["--program", "read 0+1", "--initial", "Q"], "initial state"),
        (["--program", "read 0+1", "--subject", "nothing"], "nothing"),
        (["--program", "read 0+1", "--cow-block-size", "big"], "is not a size"),
        (["--program", "status 0+1", "--subject", "range-lock"], "knows neither"),
        (["--replay", "x"], "8 fields"),
    ],
)
def test_wrong_usage_is_one_line(arguments, said):
    printed = explore(*arguments, status=WRONG_USAGE)
    assert len(printed.splitlines()) == 1
    assert said in printed


def test_help_teaches_the_subjects_and_the_program():
    printed = explore("--help", status=HOLDS)
    for word in ("bitmap-lock", "overlay-with-lock", "--cow-on-read", "Examples:", "OFFSET+LENGTH"):
        assert word in printed


# What is wrong only with an option, and what option that is.
OPTIONS = [
    (["--subject", "bitmap-lock", "--program", "read 0+512 | write 0+64K"], ["--cow-on-read"]),
    (["--subject", "bitmap-lock", "--program", "cache 0+512 | write 0+64K", "--level", "sector"], ["--cow-on-cache"]),
    (
        ["--subject", "global-lock", "--program", "read 0+128K | write 0+128K", "--level", "block"],
        ["--level", "request"],
    ),
    (["--subject", "bitmap-lock", "--program", "read 0+64K | write 0+64K", "--level", "block"], ["--initial", "A"]),
    (["--subject", "bitmap-lock", "--program", "read 0+64K", "--cow-on-read"], ["--faults", "1"]),
]


@pytest.mark.parametrize(("program", "option"), OPTIONS)
def test_an_option_makes_the_difference_that_it_is_there_for(program, option):
    explore(*program, status=HOLDS)
    found = json.loads(explore(*program, *option, "--json", status=VIOLATED))
    explore("--replay", found["replay"], status=VIOLATED)


def test_a_replay_runs_on_threads_where_that_is_asked():
    replay = json.loads(explore(*RACE, "--json", status=VIOLATED))["replay"]
    program = (
        "import sys; import check.explore.command as command\n"
        "command.play_on_threads = lambda *_: print('on threads')\n"
        "command.explore(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "--replay", replay, "--on-threads"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.startswith("on threads\n"), done.stderr
