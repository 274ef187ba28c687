"""A schedule as data: written on one line, read back, and played again step by step.

    bitmap-lock:sector:N:0:cow-on-read:write 0+512 | write 0+64K:A3B9A2

Shapes:  subject, level, initial states, faults, modes, block size and size where they are not the usual ones, program,
         moves. A move is a client's letter and how often it moves; `A!1` is one move that takes outcome 1, not 0.
Errors:  UsageError for a line that cannot be read, or whose moves cannot be made.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from check.explore.judge import LEVELS
from check.explore.learn import Raised, Returned
from check.explore.programs import STATES, format_program, make_program, parse_program
from check.explore.search import DONE, Machine, Move, Question, State, letter
from check.explore.subjects import KINDS, Kind, Modes
from check.explore.world import Misuse, Op, Outcome, Result, World
from impl.errors import UsageError

_MOVES = re.compile(r"([A-Z])(?:!([0-9]{1,4})|([0-9]{1,6}))?")
MODES = ("cow-on-read", "cow-on-cache")
_LETTERS = {state: text for text, state in STATES.items()}


def format_moves(moves: Sequence[Move]) -> str:
    """The moves, those of one client that follow each other counted."""
    parts = []
    for (client, choice), same in groupby(moves):
        count = len(list(same))
        if choice:
            parts.append(f"{letter(client)}!{choice}" * count)
        else:
            parts.append(letter(client) + (str(count) if count > 1 else ""))
    return "".join(parts)


def parse_moves(text: str) -> tuple[Move, ...]:
    """The moves that `format_moves` wrote."""
    moves: list[Move] = []
    at = 0
    while at < len(text):
        match = _MOVES.match(text, at)
        if match is None:
            raise UsageError(f"schedule {text!r} cannot be read at {text[at:]!r}: expected a letter and a number")
        client, choice, count = match.groups()
        moves += [(ord(client) - ord("A"), int(choice or 0))] * (1 if choice else int(count or 1))
        at = match.end()
    return tuple(moves)


def format_replay(question: Question, moves: Sequence[Move]) -> str:
    """One line that says all."""
    program = question.program
    modes = [name for name, on in (("cow-on-read", question.modes.copy_on_read),) if on]
    modes += ["cow-on-cache"] * question.modes.copy_on_cache
    scale = program.disk.scale
    fields = (
        question.kind.name,
        question.level,
        "".join(_LETTERS[state] for state in program.disk.initial),
        str(question.faults),
        ",".join(modes),
        f"{scale.block_size},{scale.size}",
        format_program(program.asks),
        format_moves(moves),
    )
    return ":".join(fields)


def parse_replay(text: str, kinds: dict[str, Kind] | None = None) -> tuple[Question, tuple[Move, ...]]:
    """What `format_replay` was given."""
    fields = text.strip().split(":")
    if len(fields) != 8:
        raise UsageError(f"a replay has 8 fields with colons between them, this one has {len(fields)}")
    subject, level, initial, faults, modes, sizes, program, moves = fields
    found = (kinds or KINDS).get(subject)
    if found is None:
        raise UsageError(f"subject {subject!r} is unknown: expected one of {', '.join(kinds or KINDS)}")
    if level not in LEVELS:
        raise UsageError(f"level {level!r} is unknown: expected one of {', '.join(LEVELS)}")
    if not re.fullmatch(r"[0-9]", faults) or not re.fullmatch(r"[0-9]{1,15},[0-9]{1,15}", sizes):
        raise UsageError(f"a replay with {faults!r} faults and sizes {sizes!r} cannot be read: expected numbers")
    block_size, size = map(int, sizes.split(","))
    on = modes.split(",") if modes else []
    if wrong := set(on) - set(MODES):
        raise UsageError(f"mode {min(wrong)!r} is unknown: expected {' or '.join(MODES)}")
    return (
        Question(
            found,
            make_program(parse_program(program), initial, block_size, size),
            next(known for known in LEVELS if known == level),
            Modes("cow-on-read" in on, "cow-on-cache" in on),
            int(faults),
        ),
        parse_moves(moves),
    )


class Sent(NamedTuple):
    """A client sends a request."""

    client: int
    request: int


class Did(NamedTuple):
    """An operation, and what came of it."""

    client: int
    op: Op
    result: Result


class Answered(NamedTuple):
    """A client is answered."""

    client: int
    request: int
    said: object


class Wrong(NamedTuple):
    """Here it went wrong."""

    client: int
    what: str


Happening = Sent | Did | Answered | Wrong


@dataclass
class Story:
    """What happened, and what it led to: the last world, the last monitor."""

    happenings: list[Happening]
    world: World
    monitor: int
    wrong: str


def play(machine: Machine, moves: Sequence[Move]) -> Story:
    """Make the moves one after the other; the machine's own steps have to agree."""
    state = machine.first
    story: list[Happening] = []
    wrong = ""
    for client, choice in moves:
        world, places, monitor = state
        if client >= len(places) or places[client] == DONE:
            raise UsageError(f"client {letter(client)} cannot move: it has nothing left to do")
        steps = machine.steps(world, places[client])
        if choice >= len(steps):
            raise UsageError(f"client {letter(client)} cannot move so: it has {len(steps)} ways to go on here")
        story += _happenings(machine, state, client, choice)
        step = steps[choice]
        after, wrong = machine.judged(monitor, step.events)
        wrong = wrong or step.wrong
        node = machine.after(client, places[client], step.node)
        state = (step.world, (*places[:client], node, *places[client + 1 :]), after)
        if wrong:
            story.append(Wrong(client, wrong))
            break
    wrong = wrong or machine.waits(state)
    if not wrong and not _can_move(machine, state):
        wrong = machine.at_end(state)
    return Story(story, machine.worlds[state[0]], state[2], wrong)


def _can_move(machine: Machine, state: State) -> bool:
    world, places, _ = state
    return any(node != DONE and machine.steps(world, node) for node in places)


def _happenings(machine: Machine, state: State, client: int, choice: int) -> Iterator[Happening]:
    """One move in detail: the operation, and what was done at once with it."""
    world, node = machine.worlds[state[0]], state[1][client]
    learner, physics = machine.learner, machine.physics
    _, index, _ = learner.place[node]
    if learner.is_root[node]:
        yield Sent(client, index)
    is_first = True
    while (op := learner.op[node]) is not None and (is_first or op[0] in machine.question.kind.left_movers):
        try:
            outcomes: list[Outcome] = physics.outcomes(world, client, op)
        except Misuse:
            return
        result, world = outcomes[choice if is_first else 0]
        yield Did(client, op, result)
        node = learner.child(node, result)
        is_first = False
    end = learner.end[node]
    if isinstance(end, Returned):
        yield Answered(client, index, end.reply)
    elif isinstance(end, Raised):
        return
