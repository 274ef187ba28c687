"""Asks the twins and TLC what `specs/*.cfg` ask, and compares with what `specs/manifest.toml` expects.

    python -m check.specs [--small] [NAME...]     a line for each configuration and side
    python -m check.specs --trace NAME...         the behaviours that violate them, a column for each client
    python -m check.specs --table                 what is expected, as docs/tla.md has it

Units:   wall time in seconds.
Errors:  exit status 0 if all is as expected, else 1; 2 for a name that is no configuration.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from check import tlc
from check.questions import (
    SPECS,
    Answer,
    Expected,
    Holds,
    Undecided,
    Violates,
    constants_for,
    manifest,
    read_config,
    twin_of,
)
from check.traces import columns
from check.twins import search


def answer_of_twin(entry: Expected) -> Answer:
    """What the search over the twin finds."""
    config = read_config(SPECS / f"{entry.name}.cfg")
    twin = twin_of(config.module)
    return search(twin, constants_for(config, twin), config.invariants, config.properties).answer


def trace_of(name: str) -> list[str]:
    """The shortest behaviour that violates a configuration, as lines; of one that holds, only who the clients are."""
    config = read_config(SPECS / f"{name}.cfg")
    twin = twin_of(config.module)
    k = constants_for(config, twin)
    return columns(k, search(twin, k, config.invariants, config.properties).trace)


def table() -> str:
    """The manifest, in Markdown."""
    rows = ["| configuration | comes to | generated | distinct | depth |", "|---|---|---:|---:|---:|"]
    for entry in manifest():
        answer = entry.answer
        if isinstance(answer, Holds):
            counts = answer.counts
            cells = ["holds", f"{counts.generated:,}", f"{counts.distinct:,}", str(counts.depth)]
        else:
            cells = [f"{'reaches' if entry.probe else 'violates'} {answer.name}", "", "", str(answer.trace_length)]
        rows.append(f"| {entry.name}{'' if entry.small else ' *'} | {' | '.join(cells)} |")
    return "\n".join(rows)


def answer_of_tlc(entry: Expected) -> Answer:
    """What TLC finds."""
    return tlc.run(read_config(SPECS / f"{entry.name}.cfg"), quick=entry.small)


SIDES = (("twin", answer_of_twin), ("TLC", answer_of_tlc))


def in_words(answer: Answer) -> str:
    """An answer on a line."""
    if isinstance(answer, Holds):
        counts = answer.counts
        return f"holds: {counts.generated:,} generated, {counts.distinct:,} distinct, depth {counts.depth}"
    if isinstance(answer, Violates):
        return f"violates {answer.name} in {answer.trace_length} states"
    assert isinstance(answer, Undecided)
    return f"undecided: {answer.reason}"


def main(arguments: Sequence[str]) -> int:
    """Run what is asked for, print a line for each; the exit status."""
    names = [argument for argument in arguments if not argument.startswith("--")]
    expected = manifest()
    unknown = set(names) - {entry.name for entry in expected}
    if unknown:
        print(f"no such configuration: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    if "--table" in arguments:
        print(table())
        return 0
    if "--trace" in arguments:
        for name in names:
            print("\n".join(trace_of(name)))
        return 0
    wrong = 0
    for entry in expected:
        if (names and entry.name not in names) or ("--small" in arguments and not entry.small):
            continue
        for side, ask in SIDES:
            began = time.monotonic()
            answer = ask(entry)
            right = answer == entry.answer
            wrong += not right
            note = "" if right else f"; EXPECTED {in_words(entry.answer)}"
            print(f"{time.monotonic() - began:6.1f} s  {side:4}  {entry.name} {in_words(answer)}{note}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
