"""The races of nbdkit's cow filter that the explorer finds, and the page that shows them.

    python -m check.explore.races > docs/races/explored.md

Source:  the algorithms of `specs/subjects`, which say where they are from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from textwrap import fill

from check.explore.judge import Level
from check.explore.programs import format_program, make_program, parse_program
from check.explore.replay import format_replay, play
from check.explore.search import Machine, Question, Verdict, search
from check.explore.show import columns, ending
from check.explore.subjects import (
    BITMAP_LOCK,
    BITMAP_LOCK_TWO_BITS,
    GLOBAL_LOCK,
    OLD_TAIL,
    PLAIN,
    RANGE_LOCK_TWO_BITS,
    Kind,
    Modes,
)

COPYING = Modes(copy_on_read=True, copy_on_cache=True)


@dataclass(frozen=True)
class Race:
    """A program that a subject does wrong, after so many steps at the earliest; and why, for people."""

    name: str
    question: Question
    steps: int
    why: str


def _race(
    name: str,
    kind: Kind,
    program: str,
    level: Level,
    steps: int,
    why: str,
    initial: str = "",
    modes: Modes = PLAIN,
) -> Race:
    return Race(name, Question(kind, make_program(parse_program(program), initial), level, modes), steps, why)


RACES = [
    _race(
        "A write of part of a block beside a write of the whole block",
        BITMAP_LOCK,
        "write 0+512 | write 0+64K",
        "sector",
        12,
        "A has the RMW lock, and B does not ask for it. A stores the block that it read before B wrote, over what B "
        "wrote.",
    ),
    _race(
        "A write of part of a block beside a trim",
        BITMAP_LOCK,
        "write 0+512 | trim 0+64K",
        "sector",
        10,
        "The same with a trim: bytes that were trimmed come back with their neighbours. NBD promises nothing of "
        "trimmed bytes; the filter does, for they read as zeroes.",
    ),
    _race(
        "Copy-on-read beside a write",
        BITMAP_LOCK,
        "read 0+512 | write 0+64K",
        "sector",
        10,
        "A, which only reads, keeps what it read without looking at the state again.",
        modes=COPYING,
    ),
    _race(
        "Copy-on-cache beside a write",
        BITMAP_LOCK,
        "cache 0+512 | write 0+64K",
        "sector",
        10,
        "A holds the map's lock all the time. B stores its data before it asks for that lock.",
        modes=COPYING,
    ),
    _race(
        "Copy-on-read beside a write of other bytes",
        BITMAP_LOCK,
        "read 0+512 | write 32K+512",
        "sector",
        23,
        "No byte is asked for by both. A copies the whole block, B's bytes included.",
        modes=COPYING,
    ),
    _race(
        "Two states in one byte",
        BITMAP_LOCK_TWO_BITS,
        "read 0+64K | write 64K+64K",
        "sector",
        12,
        "Not even the blocks are the same. Copy-on-read sets the state of its block without the map's lock, and puts "
        "back the state of the neighbour that it loaded before.",
        modes=COPYING,
    ),
    _race(
        "Two states in one byte, under range locks",
        RANGE_LOCK_TWO_BITS,
        "write 0+64K | write 64K+64K",
        "sector",
        12,
        "The reason for one byte a block: locks over ranges do not cover a byte that two ranges share.",
    ),
    _race(
        "A torn read",
        BITMAP_LOCK,
        "read 0+64K | write 0+64K",
        "block",
        5,
        "The review counts on the system to read or write a block at once. It does not: on ext4 and tmpfs, a read "
        "beside a write returns parts of both. At level `sector` this is allowed.",
        initial="A",
    ),
    _race(
        "The zeroed tail",
        OLD_TAIL,
        "zero 0+512",
        "sector",
        6,
        "One client is enough: a zero that ends inside a block zeroed the rest of the block, not the part (nbdkit "
        "commit a0ae7b21 mended it).",
    ),
    _race(
        "A request over two blocks",
        GLOBAL_LOCK,
        "read 0+128K | write 0+128K",
        "request",
        11,
        "No race of the patch: before it, too, the lock was given back between two blocks. NBD promises no more; whole "
        "requests are what this project adds.",
    ),
]


INTRODUCTION = """
Written by `python -m check.explore.races`. Each is the shortest way there is to what no order of the requests
explains, found among all interleavings; each can be shown again with the line below it. The algorithms are those of
`specs/subjects`, written from their description; [README.md](README.md) shows four of the races on the real nbdkit,
says which commits they concern, and what a fix must do. `A1` is what client A's first request wrote; a block begins
NOT_ALLOCATED where nothing else is said.
"""
WIDTH = 118


def page() -> Iterator[str]:
    """The page, line by line."""
    yield "# What the explorer finds in nbdkit's algorithms"
    yield ""
    yield from fill(INTRODUCTION, WIDTH).splitlines()
    for race in RACES:
        yield from _section(race)


def _section(race: Race) -> Iterator[str]:
    question = race.question
    found = search(question)
    assert found.verdict is Verdict.VIOLATED, race.name
    assert found.violation is not None
    machine = Machine(question)
    story = play(machine, found.violation.moves)
    initial = {"A": ", the block ALLOCATED at first"}.get(question.program.disk.initial[0].name[0], "")
    yield ""
    yield f"## {race.name}"
    yield ""
    yield f"{question.kind.name}: {question.kind.meaning}. Level {question.level}{initial}."
    steps = f"after {len(found.violation.moves)} steps, among {found.states} states"
    yield f"`{format_program(question.program.asks)}`: {steps}."
    yield ""
    yield from fill(race.why, WIDTH).splitlines()
    yield ""
    yield "```"
    yield from (line.rstrip() for line in columns(machine, story).splitlines())
    yield from ending(machine, story).splitlines()
    yield "```"
    yield ""
    yield f"    cowproof explore --replay '{format_replay(question, found.violation.moves)}'"


if __name__ == "__main__":
    print("\n".join(page()))
