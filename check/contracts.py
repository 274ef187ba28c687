"""Runs CrossHair over the contracts of the model, and believes only what it says in so many words.

Its exit status is 0 for "confirmed", for "ran out of time" and for "no argument meets the precondition" alike, so
each contract is run by itself and its text is read. Every one must be confirmed over all paths. One that may stay
undecided is on the list UNDECIDED, with the reason.

    python -m check.contracts [NAME...]

Source:  `model/contracts.py`; CrossHair 0.0.112, `crosshair check --help`.
Shapes:  a contract is a function with one `post:` line in its docstring; each gets one Finding.
Units:   seconds; CrossHair's limits are processor time, so a busy machine does not shorten them.
Errors:  a run that says nothing we know, or speaks of another file, is Verdict.SILENT, which is a failure. Exit
         status 0 if all is as it must be, else 1; 2 for a name that is no contract.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULE = "model.contracts"

# The defaults give up after five dull paths, and give each path the square root of the whole.
LIMITS = ("--per_condition_timeout", "60", "--per_path_timeout", "10")
WALL_LIMIT_S = 600.0
ATTEMPTS_MAX = 2

# Contract -> why it may be undecided. None is.
UNDECIDED: dict[str, str] = {}


class Verdict(Enum):
    """What CrossHair found out about one contract."""

    CONFIRMED = "confirmed"
    REFUTED = "refuted"
    UNDECIDED = "undecided"
    UNMET = "no argument meets the precondition"
    SILENT = "no verdict"


# What a line of its output means, the most serious first.
MEANINGS = (
    (": error: ", Verdict.REFUTED),
    ("Unable to meet precondition", Verdict.UNMET),
    ("Not confirmed", Verdict.UNDECIDED),
    ("Confirmed over all paths.", Verdict.CONFIRMED),
)


@dataclass(frozen=True)
class Finding:
    """One contract's verdict, how long it took, and the tool's own words."""

    contract: str
    verdict: Verdict
    elapsed_s: float
    text: str

    def is_as_it_must_be(self) -> bool:
        """Confirmed, or undecided with leave."""
        return self.verdict is Verdict.CONFIRMED or (self.verdict is Verdict.UNDECIDED and self.contract in UNDECIDED)


def contracts_in(path: Path) -> list[str]:
    """The functions of a module that have a contract, in the order they are written."""
    names = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            posts = [line for line in (ast.get_docstring(node) or "").splitlines() if line.startswith("post:")]
            assert len(posts) <= 1, f"{node.name} has {len(posts)} post: lines, and one verdict can be read"
            names += [node.name] * len(posts)
    return names


def crosshair(arguments: Iterable[str], root: Path = ROOT) -> str:
    """All that CrossHair says when it is run on the packages under `root`."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "crosshair", *arguments],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=WALL_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"nothing after {WALL_LIMIT_S:.0f} s"
    return done.stdout.strip()


def meaning(text: str) -> Verdict:
    """The verdict in the tool's words; of several, the worst."""
    return next((verdict for words, verdict in MEANINGS if words in text), Verdict.SILENT)


def examine(contract: str, root: Path = ROOT, attempts_max: int = ATTEMPTS_MAX) -> Finding:
    """One contract, tried again if there was no clear answer: a limit may have been hit by bad luck."""
    started = time.monotonic()
    for _ in range(attempts_max):
        text = crosshair(["check", "--analysis_kind=PEP316", "--report_all", *LIMITS, f"{MODULE}.{contract}"], root)
        verdict = meaning(text)
        if verdict is Verdict.CONFIRMED and f"{root / 'model' / 'contracts.py'}:" not in text:
            verdict = Verdict.SILENT
        if verdict not in (Verdict.UNDECIDED, Verdict.SILENT):
            break
    return Finding(contract, verdict, time.monotonic() - started, text)


def examine_all(contracts: Sequence[str], root: Path = ROOT) -> Iterator[Finding]:
    """One after the other: side by side, they would spend each other's limits."""
    for contract in contracts:
        yield examine(contract, root)


def main(arguments: Sequence[str]) -> int:
    """Print a line for each contract, and the tool's words for each that is not as it must be."""
    known = contracts_in(ROOT / "model" / "contracts.py")
    unknown = [name for name in arguments if name not in known]
    if unknown:
        print(f"no such contract: {', '.join(unknown)}", file=sys.stderr)
        return 2
    wrong = 0
    for finding in examine_all(list(arguments) or known):
        print(f"{finding.elapsed_s:6.1f} s  {finding.verdict.value:10}  {finding.contract}", flush=True)
        if not finding.is_as_it_must_be():
            wrong += 1
            print(f"          {finding.text}")
        elif finding.verdict is Verdict.UNDECIDED:
            print(f"          may be: {UNDECIDED[finding.contract]}")
    print(f"{wrong} wrong" if wrong else "all as they must be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
