"""The script behind `make serve` and `make test`: what it installs, and what it says where it may not.

Source:  README, "Two commands".
"""

import shutil
import subprocess
from dataclasses import dataclass

import pytest
from servers import CLIENT_LIMIT_S, ROOT

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
    "file nbdkit libnbd-bin python3-libnbd qemu-utils nbd-server nbd-client fio mtools dosfstools default-jre-headless"
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


@pytest.fixture
def set_up(tmp_path):
    """set_up(machine, what): its exit status, the programs it ran, and what it said, in a checkout that is new."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "bin").mkdir()
    shutil.copy(ROOT / "tools" / "setup.sh", tmp_path / "tools")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name, body in MACHINE.items():
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
    log = tmp_path / "log"

    def run_it(machine, what):
        log.write_text("")
        env = {
            "PATH": f"{tmp_path}/bin:/usr/bin:/bin",
            "USER_ID": "0" if machine.root else "1000",
            "WITHOUT_VENV": str(int(machine.without_venv)),
        }
        done = subprocess.run(
            [tmp_path / "tools" / "setup.sh", what],
            env=env,
            capture_output=True,
            text=True,
            timeout=CLIENT_LIMIT_S,
            check=False,
        )
        return done.returncode, [line.rstrip() for line in log.read_text().splitlines()], done.stderr

    return run_it


@pytest.mark.parametrize(("machine", "what", "status", "ran", "to_type"), SETUPS)
def test_all_that_is_missing_is_installed_or_named_at_once(set_up, machine, what, status, ran, to_type):
    found_status, found_ran, said = set_up(machine, what)
    assert (found_status, found_ran) == (status, ran), said
    told = [line.partition("type: ")[2].rstrip() for line in said.splitlines() if "type: " in line]
    assert told == ([] if to_type is None else [to_type])


def test_a_second_time_nothing_is_set_up(set_up):
    set_up(ROOT_USER, "serve")
    assert set_up(ROOT_USER, "serve") == (0, [], "")
