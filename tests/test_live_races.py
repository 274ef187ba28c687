"""`cowproof races`: nbdkit and qemu-nbd do lose writes, cowproof does not, and the verdict can tell these apart.

Source:  design notes, section 7; the command's own help for the exit statuses.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint

import click
import pytest
from servers import END_LIMIT_S, ROOT, START_LIMIT_S, eventually, need

import impl.cli
from check.live import play, servers
from check.live.command import NOT_SHOWN, SHOWN, VIOLATED, demonstrate, main, private_folder, races, status_of
from check.live.play import Outcome, Trial, conclude, try_out
from check.live.programs import BLOCK_BYTES, NAMES, RACES, Source, base_block, device_before, masked, request_of
from check.live.show import Result
from check.live.verdict import (
    Run,
    Verdict,
    allowed_contents,
    contents_after,
    in_words,
    judge,
    lost_byte_count,
    runs_of,
)
from impl.errors import StartError
from impl.server.command import serve
from model.device import Zero

pytestmark = pytest.mark.timeout(120)

COMMAND = [sys.executable, "-m", "check.live"]
TRIES = 8
RUN_LIMIT_S = 100.0
BY_NAME = {race.name: race for race in RACES}
BASE = base_block(0)
A, B = masked(BASE, Source.A), masked(BASE, Source.B)


def command(*arguments, **environment):
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=RUN_LIMIT_S,
        check=False,
    )


# The verdict. Contents are written as (how many bytes, whose).


def block(*parts):
    """A block with these parts, one after the other, and the base's bytes behind them."""
    sources = {"base": BASE, "A": A, "B": B, "zeroes": bytes(WHOLE), "nobody": bytes(byte ^ 0x0F for byte in BASE)}
    made = b""
    for length, whose in parts:
        made += sources[whose][len(made) : len(made) + length]
    return made + BASE[len(made) :]


WHOLE = BLOCK_BYTES
# Beside the 512 bytes that A writes: where the base itself is zero, no byte of it can come back.
OUTSIDE = BASE[:4096] + BASE[4608:]
COMES_BACK = len(OUTSIDE) - OUTSIDE.count(0)
OUTCOMES = [  # race, what is read afterwards, the verdict, how many bytes no order leaves there
    ("part-beside-whole", [(WHOLE, "B")], Verdict.HOLDS, 0),
    ("part-beside-whole", [(4096, "B"), (512, "A"), (60928, "B")], Verdict.HOLDS, 0),
    ("part-beside-whole", [(4096, "base"), (512, "A"), (60928, "base")], Verdict.LOST, WHOLE - 512),
    ("part-beside-whole", [(WHOLE, "base")], Verdict.LOST, WHOLE),
    ("part-beside-whole", [(WHOLE, "A")], Verdict.LOST, WHOLE - 512),
    ("part-beside-whole", [(WHOLE - 1, "B")], Verdict.LOST, 1),
    ("part-beside-whole", [(WHOLE - 1, "B"), (1, "nobody")], Verdict.LOST, 1),
    ("part-beside-whole", [(4096, "B"), (256, "A"), (61184, "B")], Verdict.TORN, 0),
    ("part-beside-trim", [(WHOLE, "zeroes")], Verdict.HOLDS, 0),
    ("part-beside-trim", [(4096, "zeroes"), (512, "A"), (60928, "zeroes")], Verdict.HOLDS, 0),
    ("part-beside-trim", [(4096, "base"), (512, "A"), (60928, "base")], Verdict.LOST, COMES_BACK),
    ("part-beside-trim", [(4096, "zeroes"), (256, "A"), (61184, "zeroes")], Verdict.TORN, 0),
    ("copy-on-read", [(WHOLE, "B")], Verdict.HOLDS, 0),
    ("copy-on-read", [(WHOLE, "base")], Verdict.LOST, WHOLE),
    ("copy-on-read", [(512, "base"), (WHOLE - 512, "B")], Verdict.LOST, 512),
    ("copy-on-read-elsewhere", [(32768, "base"), (4096, "B")], Verdict.HOLDS, 0),
    ("copy-on-read-elsewhere", [(WHOLE, "base")], Verdict.LOST, 4096),
    ("copy-on-read-elsewhere", [(WHOLE, "B")], Verdict.LOST, WHOLE - 4096),
    ("copy-on-cache", [(WHOLE, "B")], Verdict.HOLDS, 0),
    ("copy-on-cache", [(WHOLE, "base")], Verdict.LOST, WHOLE),
    ("part-beside-zero", [(WHOLE, "zeroes")], Verdict.HOLDS, 0),
    ("part-beside-zero", [(4096, "zeroes"), (512, "A"), (60928, "zeroes")], Verdict.HOLDS, 0),
    ("part-beside-zero", [(4096, "base"), (512, "A"), (60928, "base")], Verdict.LOST, COMES_BACK),
    ("part-beside-zero", [(4096, "zeroes"), (256, "A"), (61184, "zeroes")], Verdict.TORN, 0),
]


def allowed_of(race, have_met=True):
    a, b = request_of(race.a, BASE, Source.A), request_of(race.b, BASE, Source.B)
    return allowed_contents(device_before(race, BASE), a, b, have_met=have_met)


@pytest.mark.parametrize(("name", "parts", "verdict", "lost_bytes"), OUTCOMES)
def test_an_outcome_is_judged_by_the_two_orders_of_the_requests(name, parts, verdict, lost_bytes):
    allowed = allowed_of(BY_NAME[name])
    found = block(*parts)
    assert judge(found, allowed) is verdict
    assert lost_byte_count(found, allowed) == lost_bytes


def test_of_two_requests_that_have_not_met_the_second_comes_second():
    race, a_over_b = BY_NAME["part-beside-whole"], block((4096, "B"), (512, "A"), (60928, "B"))
    assert judge(a_over_b, allowed_of(race)) is Verdict.HOLDS
    assert judge(a_over_b, allowed_of(race, have_met=False)) is Verdict.LOST


@pytest.mark.parametrize("race", RACES, ids=NAMES)
def test_no_order_leaves_the_block_as_if_b_had_never_been(race):
    without_b = contents_after(device_before(race, BASE), [request_of(race.a, BASE, Source.A)])
    assert judge(without_b, allowed_of(race)) is Verdict.LOST


def test_a_short_read_is_no_outcome():
    with pytest.raises(AssertionError, match="100 bytes were read"):
        judge(BASE[:100], [BASE])


def test_every_byte_tells_whose_it_is():
    assert runs_of(block((10, "A"), (20, "B"), (5, "nobody")), BASE) == [
        Run(0, 10, Source.A),
        Run(10, 20, Source.B),
        Run(30, 5, Source.NOBODY),
        Run(35, WHOLE - 35, Source.BASE),
    ]
    assert in_words(runs_of(B, BASE)) == "B's everywhere"
    assert in_words(runs_of(bytes(WHOLE), BASE)) == "zeroes everywhere"
    assert in_words(runs_of(BASE, BASE)) == "the base's everywhere", "though some of its bytes are zero"
    assert in_words(runs_of(block((WHOLE - 1, "A")), BASE)) == "A's in [0, 65535), the base's in [65535, 65536)"


def test_what_is_nobodys_is_told_as_one_piece_whatever_its_bytes_look_like_by_chance():
    """As a server does that reads another page, or memory that it never wrote."""
    noise = random.Random(6).randbytes(WHOLE)
    assert len(runs_of(noise, BASE)) > 1000
    assert re.fullmatch(r"(\S+ in \[0, \d\), )?nobody's (everywhere|in \[\d, 65536\))", in_words(runs_of(noise, BASE)))
    mixed = noise[:4096] + B[4096:8192] + noise[8192:]
    assert "nobody's in [0, 4096), B's in [4096, 8192), nobody's in [8192, 65536)" in in_words(runs_of(mixed, BASE))


def test_pieces_without_end_are_not_told_one_by_one():
    told = in_words(runs_of(block(*[(8, "A"), (8, "B")] * 100), BASE))
    assert told.startswith("A's in [0, 8), B's in [8, 16), ")
    assert told.endswith(", B's in [120, 128), and 185 pieces more")


# What tries show together


def outcome(verdict, have_met=True, b_was_first=True):
    return Outcome([], have_met, b_was_first, BASE, BASE, [BASE], verdict)


TRIALS = [  # (tries, the verdict on all)
    ([outcome(Verdict.HOLDS), outcome(Verdict.LOST)], Verdict.LOST),
    ([outcome(Verdict.TORN)], Verdict.TORN),
    ([outcome(Verdict.HOLDS, have_met=False), outcome(Verdict.HOLDS)], Verdict.HOLDS),
    ([outcome(Verdict.HOLDS, have_met=False)] * 3, Verdict.UNKNOWN),
    ([outcome(Verdict.LOST, have_met=False)], Verdict.LOST),
]


@pytest.mark.parametrize(("outcomes", "verdict"), TRIALS)
def test_requests_that_never_met_show_nothing(outcomes, verdict):
    assert conclude(outcomes, ()).verdict is verdict


def test_of_tries_that_hold_the_one_is_shown_in_which_b_overtook_a():
    plain, overtaking = outcome(Verdict.HOLDS, b_was_first=False), outcome(Verdict.HOLDS)
    trial = conclude([plain, overtaking, plain], ())
    assert trial.outcome is overtaking
    assert (trial.tries, trial.met, trial.b_was_first) == (3, 3, 1)


NOT_TRIED = None
STATUSES = [  # (what the other server did, what cowproof did) in each race, and the exit status
    ([(Verdict.LOST, Verdict.HOLDS)] * 2, SHOWN),
    ([(Verdict.LOST, Verdict.HOLDS), (Verdict.HOLDS, Verdict.HOLDS)], NOT_SHOWN),
    ([(Verdict.TORN, Verdict.HOLDS)], NOT_SHOWN),
    ([(Verdict.UNKNOWN, Verdict.HOLDS)], NOT_SHOWN),
    ([(Verdict.LOST, Verdict.UNKNOWN)], NOT_SHOWN),
    ([(Verdict.LOST, Verdict.LOST), (Verdict.LOST, Verdict.HOLDS)], VIOLATED),
    ([(Verdict.LOST, Verdict.TORN)], VIOLATED),
    ([(Verdict.HOLDS, Verdict.LOST)], VIOLATED),
    ([(Verdict.LOST, Verdict.HOLDS), NOT_TRIED], NOT_SHOWN),
    ([(Verdict.LOST, Verdict.LOST), NOT_TRIED], VIOLATED),
    ([NOT_TRIED], NOT_SHOWN),
    ([], NOT_SHOWN),
]


@pytest.mark.parametrize(("pairs", "status"), STATUSES)
def test_the_exit_status_is_0_only_if_all_has_been_shown(pairs, status):
    assert status_of([result(pair) for pair in pairs]) == status


def result(pair):
    if pair is NOT_TRIED:
        return Result(RACES[0], {}, missing="nbdkit is not installed")
    other, ours = pair
    return Result(RACES[0], {"nbdkit": trial(other), "cowproof": trial(ours)})


def trial(verdict):
    return Trial(1, 1, 1, verdict, outcome(verdict), ())


# The demonstration itself


@pytest.fixture(scope="module")
def shown():
    """All races, once."""
    need("nbdkit", package="nbdkit")
    need("qemu-nbd", package="qemu-utils")
    done = command("--json", "--tries", str(TRIES))
    assert done.returncode == SHOWN, done.stdout + done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_the_other_server_loses_a_write_that_it_has_acknowledged(shown, name):
    found = next(race[race["other"]] for race in shown[0]["races"] if race["name"] == name)
    assert found["verdict"] == "lost"
    assert found["lost_bytes"] > 0
    assert not {run["source"] for run in found["read_back"]} & {"b", "zeroes"}, "of what B did nothing is left"
    answers = [event["connection"] for event in found["events"] if event["what"] == "answered"]
    assert sorted(answers) == ["A", "B"]
    assert found["events"][-1]["what"] == "answered: see below", "it is read after both have been answered"


@pytest.mark.parametrize("name", NAMES)
def test_cowproof_loses_none_over_a_base_of_the_same_latency(shown, name):
    found = next(race["cowproof"] for race in shown[0]["races"] if race["name"] == name)
    assert (found["verdict"], found["tries"], found["lost_bytes"]) == ("holds", TRIES, 0)
    assert found["tries_in_flight_together"] > 0
    assert found["tries_b_answered_first"] > 0, "B overtakes A here, too, and is kept"


def test_progress_goes_to_standard_error_so_that_json_can_be_read(shown):
    told, progress = shown
    assert all(version.startswith(f"{server} ") for server, version in told["versions"].items())
    assert list(told["versions"]) == ["nbdkit", "qemu-nbd"]
    assert all(f"{race.name}: {server}" in progress for race in RACES for server in (race.other, "cowproof"))


def test_one_race_is_told_in_two_columns(capsys):
    need("nbdkit", package="nbdkit")
    assert demonstrate([BY_NAME["part-beside-whole"]], TRIES, is_json=False) == SHOWN
    lines = capsys.readouterr().out.splitlines()
    assert "    connection A                      connection B" in lines
    assert "       0 ms  WRITE 4096+512" in lines
    assert any(line.startswith(" " * 38) and line.endswith("ms  WRITE 0+65536") for line in lines)
    assert "    read back  the base's in [0, 4096), A's in [4096, 4608), the base's in [4608, 65536)" in lines
    assert any(line.startswith("    verdict    LOST: ") for line in lines)
    assert any(line.startswith("    verdict    HOLDS: ") for line in lines)
    assert not any("copy-on-read" in line for line in lines)


def test_a_server_that_does_lose_writes_in_the_place_of_cowproof_is_a_violation(monkeypatch, capsys):
    need("nbdkit", package="nbdkit")
    monkeypatch.setitem(servers.SERVERS, "cowproof", servers.nbdkit)
    assert demonstrate([BY_NAME["copy-on-read"]], TRIES, is_json=False) == VIOLATED
    assert "That must never happen" in capsys.readouterr().out


def test_a_server_that_loses_nothing_in_the_place_of_nbdkit_leaves_the_matter_open(monkeypatch, capsys):
    monkeypatch.setitem(servers.SERVERS, "nbdkit", servers.cowproof)
    monkeypatch.setattr(servers, "path_of", lambda program: program)
    monkeypatch.setattr(servers, "version_of", lambda program: f"{program} 0.0")
    assert demonstrate([BY_NAME["copy-on-cache"]], 2, is_json=False) == NOT_SHOWN
    told = capsys.readouterr().out
    assert "lost nothing in 2" in told
    assert "Not all has been shown" in told


def test_a_request_that_is_refused_shows_nothing():
    race = replace(BY_NAME["copy-on-read"], cowproof_options=("-r",))
    with private_folder() as folder, pytest.raises(StartError, match=r"B's WRITE 0\+65536 failed: .*[Rr]ead.only"):
        try_out(race, servers.cowproof, 1, folder, lambda number: None)


# The command


NOTHING_TO_SHOW_IT_ON = [  # arguments, and all that is said
    ([], "nbdkit and qemu-nbd are not installed; on Debian: sudo apt-get install nbdkit qemu-utils"),
    (["--only", "copy-on-read"], "nbdkit is not installed; on Debian: sudo apt-get install nbdkit"),
    (["--only", "part-beside-zero"], "qemu-nbd is not installed; on Debian: sudo apt-get install qemu-utils"),
]


@pytest.mark.parametrize(("arguments", "said"), NOTHING_TO_SHOW_IT_ON)
def test_without_the_other_servers_one_line_says_what_to_install(arguments, said, tmp_path):
    done = command(*arguments, PATH=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (NOT_SHOWN, "", f"cowproof: {said}\n")


MISSING = [  # the program that is, a race that is shown on it, and one that is not
    ("qemu-nbd", "part-beside-zero", "copy-on-cache"),
    ("nbdkit", "part-beside-whole", "part-beside-zero"),
]


@pytest.mark.parametrize(("program", "left_out", "tried"), MISSING)
def test_without_one_of_them_the_races_of_the_other_are_shown(program, left_out, tried, monkeypatch, capsys):
    need(BY_NAME[tried].other, package=servers.PACKAGES[BY_NAME[tried].other])
    monkeypatch.setattr(servers, "path_of", without(program, servers.path_of))
    assert demonstrate([BY_NAME[left_out], BY_NAME[tried]], TRIES, is_json=False) == NOT_SHOWN
    lines = capsys.readouterr().out.splitlines()
    assert f"  not tried: {servers.missing([program])}" in lines
    assert [line.split(maxsplit=1) for line in lines if line.startswith(f"  {left_out} ")] == [
        [left_out, f"{'not tried':<30}not tried"]
    ]
    assert any(line.startswith(f"  {tried} ") and f"holds in {TRIES} of {TRIES}" in line for line in lines)


@pytest.mark.parametrize(("program", "left_out", "tried"), MISSING)
def test_programs_are_told_which_races_are_left_out(program, left_out, tried, monkeypatch, capsys):
    need(BY_NAME[tried].other, package=servers.PACKAGES[BY_NAME[tried].other])
    monkeypatch.setattr(servers, "path_of", without(program, servers.path_of))
    assert demonstrate([BY_NAME[left_out], BY_NAME[tried]], TRIES, is_json=True) == NOT_SHOWN
    told = json.loads(capsys.readouterr().out)
    assert list(told["versions"]) == [BY_NAME[tried].other]
    assert told["races"][0]["missing"] == servers.missing([program])
    assert "cowproof" not in told["races"][0], "with nothing to compare it with, it is not tried either"
    assert "missing" not in told["races"][1]


def without(missing, path_of):
    """Where programs are, on a machine that lacks one of them."""
    return lambda program: None if program == missing else path_of(program)


@pytest.mark.parametrize("no_hole", [False, True])
def test_qemu_nbd_loses_zeroes_whether_or_not_they_may_be_holes(no_hole, monkeypatch):
    need("qemu-nbd", package="qemu-utils")
    race = BY_NAME["part-beside-zero"]

    def with_no_hole(action, base, source):
        request = request_of(action, base, source)
        return replace(request, no_hole=no_hole) if isinstance(request, Zero) else request

    monkeypatch.setattr(play, "request_of", with_no_hole)
    with private_folder() as folder:
        tried = try_out(race, servers.qemu_nbd, TRIES, folder, lambda number: None)
    assert tried.verdict is Verdict.LOST


def test_a_qemu_nbd_that_does_not_start_is_quoted_in_one_line(tmp_path):
    need("qemu-img", package="qemu-utils")
    fake = tmp_path / "qemu-nbd"
    fake.write_text('#!/bin/sh\n[ "$1" = --version ] && exec echo qemu-nbd 0.0\necho "no cow today" >&2\nexit 9\n')
    fake.chmod(0o755)
    done = command("--only", "part-beside-zero", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == NOT_SHOWN
    assert done.stderr.splitlines()[-1] == "cowproof: qemu-nbd ended with status 9: no cow today"


def test_an_nbdkit_that_does_not_start_is_quoted_in_one_line(tmp_path):
    fake = tmp_path / "nbdkit"
    fake.write_text('#!/bin/sh\n[ "$1" = --version ] && exec echo nbdkit 0.0\necho "no cow today" >&2\nexit 9\n')
    fake.chmod(0o755)
    done = command("--only", "copy-on-cache", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == NOT_SHOWN
    assert done.stderr.splitlines()[-1] == "cowproof: nbdkit ended with status 9: no cow today"


WRONG = [["--only", "no-such-race"], ["--tries", "0"], ["--tries", "many"], ["something"]]


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_wrong_usage_is_status_2_and_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    told = capsys.readouterr()
    assert (left.value.code, told.out, told.err.count("\n")) == (2, "", 1)


def test_help_names_every_race_and_every_exit_status(capsys):
    main(["--help"])
    told = capsys.readouterr().out
    assert all(race.name in told and race.title in told for race in RACES)
    assert all(f"\n    {status}  " in told for status in range(4))


def test_told_to_stop_it_ends_its_servers_and_leaves_nothing_behind(short_path):
    need("nbdkit", package="nbdkit")
    running = subprocess.Popen(
        [*COMMAND, "--tries", "1000"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(short_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        pidfiles = eventually(lambda: list(short_path.glob("*/cowproof.pid")), "a server runs", START_LIMIT_S)
        pid = int(pidfiles[0].read_text())
        running.send_signal(signal.SIGTERM)
        assert running.wait(END_LIMIT_S) == 128 + signal.SIGTERM
    finally:
        running.kill()
        running.wait()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert list(short_path.iterdir()) == []


@pytest.mark.parametrize("race", RACES, ids=NAMES)
def test_a_race_that_is_shown_live_has_a_page_that_shows_it(race):
    page = (ROOT / "docs" / "races" / f"{race.name}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {race.title[0].upper()}{race.title[1:]}\n")
    assert f"    cowproof races --only {race.name}\n" in page
    assert f"  {race.a}\n" in page
    assert f"  {race.b}\n" in page
    assert race.commit.split(",")[0] in page


ON_QEMU = ROOT / "docs" / "races" / "part-beside-zero.md"
CONSOLES = re.findall(r"^```console\n(.*?)^```$", ON_QEMU.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("console", CONSOLES, ids=["data", "metadata"])
def test_what_a_page_shows_of_qemu_io_is_what_happens(console, tmp_path):
    need("qemu-io", package="qemu-utils")
    for asked in re.split(r"^\$ ", console.replace("\\\n", " "), flags=re.MULTILINE)[1:]:
        typed, *told = asked.splitlines()
        done = subprocess.run(
            typed,
            shell=True,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        end = told.index("...") if "..." in told else None
        assert done.stdout.splitlines()[:end] == told[:end], typed


def test_the_page_shows_what_becomes_of_data_and_of_metadata():
    assert [("break cow_read" in console, "refcount=0" in console) for console in CONSOLES] == [
        (True, False),
        (False, True),
    ]


# The installed command finds it


def test_the_installed_command_has_it_and_says_so():
    context = click.Context(impl.cli.cowproof)
    names = ["bench", "conform", "explore", "history", "races", "serve", "view"]
    assert impl.cli.cowproof.list_commands(context) == names
    assert impl.cli.cowproof.get_command(context, "races") is races
    assert impl.cli.cowproof.get_command(context, "no-such-command") is None


def test_nobody_can_take_the_place_of_a_command_of_ours(monkeypatch):
    other = EntryPoint(name="serve", value="nowhere:serve", group=impl.cli.COMMANDS)
    monkeypatch.setattr(impl.cli, "entry_points", lambda group: [other])
    assert impl.cli.cowproof.get_command(click.Context(impl.cli.cowproof), "serve") is serve


WITHOUT_GREENLET = "import sys; sys.modules['greenlet'] = None; from impl.cli import main; main()"


def cowproof_without_greenlet(*arguments):
    command = [sys.executable, "-c", WITHOUT_GREENLET, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_a_command_whose_packages_are_missing_says_what_to_install():
    done = cowproof_without_greenlet("explore", "--program", "write 0+1")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "cowproof explore needs greenlet" in done.stderr
    assert "pip install 'cowproof[check]'" in done.stderr


def test_a_command_whose_packages_are_missing_harms_no_other():
    """Whoever only serves installs no more than that needs."""
    done = cowproof_without_greenlet("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "serve" in done.stdout
    assert "explore" in done.stdout
