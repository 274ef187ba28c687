"""The races of `docs/races/` as programs that the explorer finds them in, and the part of each page that shows it.

    python -m check.explore.races           # writes that part of every page anew

Source:  the algorithms of `specs/subjects`, which say where they are from.
Shapes:  a page is written by hand, but for what stands between the two MARKS.
Omits:   qemu's race, `part-beside-zero`: qcow2 is not written down there, and it is shown live only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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
PAGES = Path(__file__).parents[2] / "docs" / "races"
MARKS = ("<!-- found by the explorer: begin -->", "<!-- found by the explorer: end -->")


@dataclass(frozen=True)
class Race:
    """A program that a subject does wrong, after so many steps at the earliest; `name` is its page's."""

    name: str
    question: Question
    steps: int

    @property
    def page(self) -> Path:
        """Where it is told."""
        return PAGES / f"{self.name}.md"


def _race(
    name: str, kind: Kind, program: str, level: Level, steps: int, initial: str = "", modes: Modes = PLAIN
) -> Race:
    return Race(name, Question(kind, make_program(parse_program(program), initial), level, modes), steps)


RACES = [
    _race("part-beside-whole", BITMAP_LOCK, "write 0+512 | write 0+64K", "sector", 12),
    _race("part-beside-trim", BITMAP_LOCK, "write 0+512 | trim 0+64K", "sector", 10),
    _race("copy-on-read", BITMAP_LOCK, "read 0+512 | write 0+64K", "sector", 10, modes=COPYING),
    _race("copy-on-read-elsewhere", BITMAP_LOCK, "read 0+512 | write 32K+512", "sector", 23, modes=COPYING),
    _race("copy-on-cache", BITMAP_LOCK, "cache 0+512 | write 0+64K", "sector", 10, modes=COPYING),
    _race("states-in-one-byte", BITMAP_LOCK_TWO_BITS, "read 0+64K | write 64K+64K", "sector", 12, modes=COPYING),
    _race("states-in-one-byte-under-range-locks", RANGE_LOCK_TWO_BITS, "write 0+64K | write 64K+64K", "sector", 12),
    _race("torn-read", BITMAP_LOCK, "read 0+64K | write 0+64K", "block", 5, initial="A"),
    _race("zeroed-tail", OLD_TAIL, "trim 0+512", "sector", 6),
    _race("two-blocks", GLOBAL_LOCK, "read 0+128K | write 0+128K", "request", 11),
]


def shown(race: Race) -> Iterator[str]:
    """The part of its page that the explorer writes, line by line."""
    question = race.question
    found = search(question)
    assert found.verdict is Verdict.VIOLATED, race.name
    assert found.violation is not None
    machine = Machine(question)
    story = play(machine, found.violation.moves)
    initial = {"A": ", the block ALLOCATED at first"}.get(question.program.disk.initial[0].name[0], "")
    yield f"`{format_program(question.program.asks)}` on `{question.kind.name}`, level `{question.level}`{initial}:"
    yield f"{len(found.violation.moves)} steps, found among {found.states} states."
    yield ""
    yield "```"
    yield from (line.rstrip() for line in columns(machine, story).splitlines())
    yield from ending(machine, story).splitlines()
    yield "```"
    yield ""
    yield f"    cowproof explore --replay '{format_replay(question, found.violation.moves)}'"


def with_shown(text: str, race: Race) -> str:
    """A page with that part as it is found now."""
    begin, end = MARKS
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return "\n".join([f"{before}{begin}", *shown(race), f"{end}{after}"])


def main() -> None:
    """Write all pages."""
    for race in RACES:
        race.page.write_text(with_shown(race.page.read_text(encoding="utf-8"), race), encoding="utf-8")


if __name__ == "__main__":
    main()
