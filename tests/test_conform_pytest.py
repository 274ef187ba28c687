"""The plugin for other projects' tests: a rule is a test of the server that they name."""

import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from conform_servers import serving

from check.conform.run import chosen

CHECKOUT = Path(__file__).parent.parent
LIMIT_S = 120


@pytest.fixture
def uri(short_path):
    with serving(short_path / "s") as target:
        yield target.uri


def run_pytest(folder, *arguments):
    """pytest in a folder of somebody else's, who has this plugin and no other."""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "check.conform.pytest_plugin", "-rsxf", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


def test_pytest_does_not_find_it_by_itself():
    """Or it would rewrite the assertions of all that we ship, and what is tried would not be what is shipped."""
    ours = [entry.value for entry in entry_points(group="pytest11") if entry.value.startswith("check.")]
    assert ours == []


def test_without_a_server_it_does_nothing(tmp_path):
    (tmp_path / "test_own.py").write_text("def test_own():\n    assert True\n")
    done = run_pytest(tmp_path)
    assert done.returncode == 0
    assert "1 passed" in done.stdout


def test_each_rule_is_a_test_and_what_is_not_offered_is_skipped(tmp_path, uri):
    done = run_pytest(tmp_path, "--nbd-uri", uri, "--nbd-only", "tls handshake/list")
    assert done.returncode == 0, done.stdout
    assert "2 passed, 8 skipped" in done.stdout
    assert "not offered: no TLS" in done.stdout


def test_they_have_names_by_which_they_are_chosen(tmp_path, uri):
    (tmp_path / "test_own.py").write_text("def test_list(): assert True\ndef test_other(): assert True\n")
    server = ["--nbd-uri", uri, "--nbd-only", "handshake"]
    done = run_pytest(tmp_path, *server, "-v", "-k", "greeting or other")
    count = 2 + len(chosen(["handshake"]))
    assert f"collected {count} items / {count - 3} deselected / 3 selected" in done.stdout
    assert re.findall(r"^(\S+) PASSED", done.stdout, re.MULTILINE) == [
        *("test_own.py::test_other", "nbd::handshake/greeting", "nbd::handshake/greeting-flags"),
    ]
    for chosen_by, passed in (("test_own", 2), ("nbd and greeting", 2), ("not nbd", 2), ("nbd and not handshake", 0)):
        count_told = f"{passed} passed" if passed else f"{count} deselected"
        assert count_told in run_pytest(tmp_path, *server, "-k", chosen_by).stdout, chosen_by


def test_the_rules_come_with_the_tests_that_a_project_always_runs(tmp_path, uri):
    (tmp_path / "test_own.py").write_text("def test_own(): assert True\n")
    settings = f"[pytest]\ntestpaths = test_own.py\nnbd_uri = {uri}\nnbd_only = handshake/list\n"
    (tmp_path / "pytest.ini").write_text(settings)
    assert "2 passed" in run_pytest(tmp_path).stdout
    assert "1 passed" in run_pytest(tmp_path, "test_own.py").stdout


def test_no_server_is_wanted_for_tests_that_need_none(tmp_path):
    (tmp_path / "test_own.py").write_text("def test_own(): assert True\n")
    gone = ["--nbd-start", "false $unixsocket"]
    for arguments in (["-k", "test_own"], ["test_own.py"], ["test_own.py::test_own"]):
        done = run_pytest(tmp_path, *gone, *arguments)
        assert (done.returncode, "1 passed" in done.stdout) == (0, True), done.stdout + done.stderr
    done = run_pytest(tmp_path, *gone, "--collect-only", "-q")
    assert "nbd::handshake/greeting\n" in done.stdout
    assert done.returncode == 0


def test_a_full_disk_of_the_kit_ends_it_and_fails_no_rule(tmp_path, uri):
    (tmp_path / "conftest.py").write_text(FULL)
    done = run_pytest(tmp_path, "--nbd-uri", uri, "--nbd-only", "tls handshake/list")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "Exit: there is no room here" in done.stdout
    assert "failed" not in done.stdout


FULL = """
import check.conform.run
from check.conform.room import NoRoom

def full(rule, subject):
    raise NoRoom("there is no room here")

check.conform.run.verdict_of = full
"""


def test_the_settings_of_a_project_do_as_well(tmp_path, uri):
    (tmp_path / "pytest.ini").write_text(f"[pytest]\nnbd_uri = {uri}\nnbd_only = handshake/greeting handshake/list\n")
    assert "2 passed" in run_pytest(tmp_path).stdout


# Closes after it has greeted, so that it breaks whatever there is.
RUDE = """
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
while True:
    connection, _ = listener.accept()
    connection.sendall(b"NBDMAGICIHAVEOPT\\0\\3")
    connection.close()
"""


def test_a_must_fails_and_a_should_is_expected_to_unless_strict(tmp_path):
    (tmp_path / "rude.py").write_text(RUDE)
    server = ["--nbd-start", f"exec {sys.executable} {tmp_path / 'rude.py'} $unixsocket"]
    server += ["--nbd-only", "handshake/abort handshake/list-with-data"]
    done = run_pytest(tmp_path, *server)
    assert done.returncode == 1
    assert "1 failed, 1 xfailed" in done.stdout
    assert "NBD_OPT_ABORT is acknowledged" in done.stdout
    assert "2 failed" in run_pytest(tmp_path, *server, "--nbd-strict").stdout


WRONG = [
    (["--nbd-uri", "nbd://localhost", "--nbd-only", "no/such"], "--list shows their names"),
    (["--nbd-uri", "nbd://localhost", "--nbd-claim", "sectors"], "expected some of sector, block"),
    (["--nbd-start", "false $unixsocket"], "does not listen"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG)
def test_wrong_usage_is_said_in_a_line(arguments, said, tmp_path):
    done = run_pytest(tmp_path, *arguments)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert said in done.stderr
    assert "Traceback" not in done.stderr
