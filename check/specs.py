"""Asks the twins and TLC what `specs/*.cfg` ask, and compares with what `specs/manifest.toml` expects.

    python -m check.specs [--small] [NAME...]     a line for each configuration and side
    python -m check.specs --trace NAME...         the behaviours that violate them, a column for each client
    python -m check.specs --table                 what is expected, as docs/tla.md has it

Units:   wall time in seconds.
Errors:  exit status 0 if all is as expected, else 1; 2 for a name or an option that is none.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence

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


def compare(entries: Iterable[Expected]) -> bool:
    """Ask both sides, print a line for each answer; whether all are as expected."""
    all_right = True
    for entry in entries:
        for side, ask in SIDES:
            began = time.monotonic()
            answer = ask(entry)
            note = "" if answer == entry.answer else f"; EXPECTED {in_words(entry.answer)}"
            all_right = all_right and not note
            print(f"{time.monotonic() - began:6.1f} s  {side:4}  {entry.name} {in_words(answer)}{note}", flush=True)
    return all_right


def main(arguments: Sequence[str]) -> int:
    """Do what is asked for; the exit status."""
    options = {argument for argument in arguments if argument.startswith("--")}
    names = set(arguments) - options
    expected = manifest()
    unknown = (names - {entry.name for entry in expected}) | (options - {"--small", "--table", "--trace"})
    if unknown:
        print(f"neither a configuration nor an option: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    chosen = [
        entry for entry in expected if (not names or entry.name in names) and (entry.small or "--small" not in options)
    ]
    if "--table" in options:
        print(table())
        return 0
    if "--trace" in options:
        for entry in chosen:
            print(f"{entry.name} {in_words(entry.answer)}", *trace_of(entry.name), "", sep="\n")
        return 0
    try:
        return 0 if compare(chosen) else 1
    except tlc.Missing as missing:
        print(missing, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
