"""`make serve`, `make test`, `make fuzz`, `make clean`: what they install, say where they may not, and remove.

Source:  README, "Two commands".
"""

import os
import shutil
import subprocess
from dataclasses import dataclass

import pytest
from servers import CLIENT_LIMIT_S, ROOT, need

# Programs that are nobody's: each tells what it was asked for, as far as anybody wants to know.
MACHINE = {
    "id": "echo $USER_ID",
    "dpkg-query": "exit 1",
    "apt-get": 'echo "apt-get $*" >> log',
    "python3": """
        case $* in
            *version_info*) exit 0 ;;
            *ensurepip*) exit $WITHOUT_VENV ;;
            "-m venv .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
        esac
        echo "python $*" >> log""",
}
CLIENTS = "libnbd-bin qemu-utils"
PEERS = (
    "file nbdkit libnbd-bin python3-libnbd qemu-utils nbd-server nbd-client fio mtools dosfstools default-jre-headless "
    "chromium chromium-driver openssl strace"
)
INSTALL = "apt-get install -y -q --no-install-recommends"
PIP = "python -m pip install -q --disable-pip-version-check -e"
VENV = "python -m venv .venv"


@dataclass
class Machine:
    """A bare one: who runs the script there, and whether its Python can make virtual environments."""

    root: bool
    without_venv: bool


NOBODY, NOBODY_WITHOUT_VENV = Machine(False, False), Machine(False, True)
ROOT_USER, ROOT_USER_WITHOUT_VENV = Machine(True, False), Machine(True, True)

# (machine, what for, exit status, programs it ran, what it says after `type:`)
SETUPS = [
    (NOBODY, "serve", 0, [VENV, f"{PIP} ."], None),
    (NOBODY, "test", 0, [VENV, f"{PIP} .[test]"], f"sudo apt-get install {PEERS}"),
    (NOBODY_WITHOUT_VENV, "serve", 1, [], f"sudo apt-get install python3-venv {CLIENTS}"),
    (NOBODY_WITHOUT_VENV, "test", 1, [], f"sudo apt-get install python3-venv {PEERS}"),
    (ROOT_USER, "serve", 0, [f"{INSTALL} {CLIENTS}", VENV, f"{PIP} ."], None),
    (ROOT_USER_WITHOUT_VENV, "serve", 0, [f"{INSTALL} python3-venv {CLIENTS}", VENV, f"{PIP} ."], None),
    (ROOT_USER_WITHOUT_VENV, "test", 0, [f"{INSTALL} python3-venv {PEERS}", VENV, f"{PIP} .[test]"], None),
]


class Checkout:
    """A new one, on such a machine."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "tools").mkdir()
        (folder / "bin").mkdir()
        shutil.copy(ROOT / "tools" / "setup.sh", folder / "tools")
        for name in ("Makefile", "pyproject.toml"):
            shutil.copy(ROOT / name, folder)
        for name, body in MACHINE.items():
            program = folder / "bin" / name
            program.write_text(f"#!/bin/sh\n{body}\n")
            program.chmod(0o755)

    def run(self, machine, *command):
        """A command's exit status, the programs it ran, and what it said."""
        log = self.folder / "log"
        log.write_text("")
        env = {
            "PATH": f"{self.folder}/bin:/usr/bin:/bin",
            "TMPDIR": str(self.folder / "tmp"),
            "USER_ID": "0" if machine.root else "1000",
            "WITHOUT_VENV": str(int(machine.without_venv)),
        }
        done = subprocess.run(
            command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=CLIENT_LIMIT_S, check=False
        )
        return done.returncode, [line.rstrip() for line in log.read_text().splitlines()], done.stderr


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


@pytest.mark.parametrize(("machine", "what", "status", "ran", "to_type"), SETUPS)
def test_all_that_is_missing_is_installed_or_named_at_once(checkout, machine, what, status, ran, to_type):
    found_status, found_ran, said = checkout.run(machine, "tools/setup.sh", what)
    assert (found_status, found_ran) == (status, ran), said
    told = [line.partition("type: ")[2].rstrip() for line in said.splitlines() if "type: " in line]
    assert told == ([] if to_type is None else [to_type])


def test_a_second_time_nothing_is_set_up(checkout):
    checkout.run(ROOT_USER, "tools/setup.sh", "serve")
    assert checkout.run(ROOT_USER, "tools/setup.sh", "serve") == (0, [], "")


def test_make_serve_hands_the_servers_options_on_and_says_how(checkout):
    """The server itself does not know of make: its hint to take another port would be of no use."""
    make = need("make", package="make")
    status, ran, said = checkout.run(ROOT_USER, make, "serve", "ARGS=--port 10810 disk.img")
    assert (status, ran[-1]) == (0, "python -m impl.server --port 10810 disk.img")
    assert "ARGS" not in said
    status, ran, said = checkout.run(ROOT_USER, make, "serve")
    assert (status, ran) == (0, ["python -m impl.server"])
    assert "make serve ARGS='--port 10810'" in said


def test_make_fuzz_installs_the_fuzzer_where_there_is_none_and_runs_it_as_long_as_is_said(checkout):
    make = need("make", package="make")
    fuzzing = "python -m check.fuzz all --seconds"
    checkout.run(ROOT_USER, "tools/setup.sh", "serve")
    status, ran, said = checkout.run(ROOT_USER, make, "fuzz", "FUZZ_SECONDS=3")
    assert (status, ran) == (0, ["python -c import atheris", f"{fuzzing} 3"]), said
    python = checkout.folder / ".venv" / "bin" / "python"
    python.write_text(python.read_text().replace("case $*", 'case $* in *"import atheris") exit 1 ;; esac; case $*'))
    status, ran, said = checkout.run(ROOT_USER, make, "fuzz")
    assert (status, ran) == (0, [f"{PIP} .[fuzz]", f"{fuzzing} 60"]), said


def test_make_clean_removes_what_killed_tests_left_and_nothing_else(checkout):
    """What is young may belong to tests that run; what has another name is none of theirs."""
    make = need("make", package="make")
    id_program = checkout.folder / "bin" / "id"
    id_program.unlink()  # the files are those of who runs this test
    tmp = checkout.folder / "tmp"
    for name in ("cowproof-test-old", "cowproof-test-young", "cowproof-server"):
        (tmp / name / "inside").mkdir(parents=True)
        if not name.endswith("young"):
            os.utime(tmp / name, (0, 0))
    cache = checkout.folder / "tests" / "__pycache__"
    cache.mkdir(parents=True)
    state = checkout.folder / "local-verify-0-verify.state"
    state.touch()
    status, _, said = checkout.run(NOBODY, make, "clean")
    assert (status, said) == (0, "")
    assert sorted(os.listdir(tmp)) == ["cowproof-server", "cowproof-test-young"]
    assert not cache.exists()
    assert not state.exists()
