"""A schedule of the explorer as a history: each request from its first step to its answer, with the steps between.

Source:  the one-line replay of check/explore/replay.py, played again; nothing is taken from what it once led to.
Shapes:  the clients are A, B, ..., and where what the device holds in the end is wrong, one more, that reads all of it
         then. A step is a line of the columns that `cowproof explore` prints.
Units:   times are steps, counted from 1; offsets and lengths are real bytes.
Errors:  UsageError for a line that cannot be read, or whose moves cannot be made.
"""

from __future__ import annotations

import errno
import shlex
from dataclasses import replace

from check.explore.programs import Ask
from check.explore.replay import Answered, Sent, Story, Wrong, parse_replay, play
from check.explore.search import Machine, letter
from check.explore.show import Line, Namer, ending, lines
from check.view.finding import NOT_CHECKED, NOT_LINEARIZABLE, Finding
from check.view.page import Picture, Step
from check.view.partial import longest
from impl.sizes import format_size
from model.device import Data, Read
from model.history import BASE, NEVER, OK, PENDING, ZERO, History, Operation, Runs

IN_THE_END = "in the end"

# The names of `check/explore/show.py` in a history's words.
NAMES = {"zeroes": ZERO, "base": BASE}


def picture_of(text: str) -> Picture:
    """What a replay shows."""
    question, moves = parse_replay(text)
    machine = Machine(question)
    story = play(machine, moves)
    told = lines(machine, story)
    history, steps = _Telling(machine, told).told()
    facts = _facts(machine, len(history), len(steps))
    if story.wrong and machine.question.kind.is_device and not isinstance(told[-1].happening, Wrong):
        history.append(_in_the_end(machine, story, len(told) + 1))
    return Picture(
        title=f"{question.kind.name}: {text.strip().split(':')[-2]}",
        history=history,
        finding=_finding(machine, story, history),
        steps=tuple(steps),
        notes=(
            *(line.strip() for line in ending(machine, story).splitlines()[1:]),
            f"cowproof explore --replay {shlex.quote(text.strip())}",
        ),
        unit="step",
        facts=facts,
    )


def _facts(machine: Machine, requests: int, steps: int) -> str:
    program = machine.question.program
    scale = program.disk.scale
    return (
        f"{len(program.requests)} clients, {requests} requests, {steps} steps, on {format_size(scale.size)} "
        f"in blocks of {format_size(scale.block_size)}, level {machine.question.level}"
    )


class _Telling:
    """Goes along the lines, and keeps where each client's request stands."""

    def __init__(self, machine: Machine, told: list[Line]) -> None:
        self._machine = machine
        self._namer = Namer(machine.question.program, machine.question.kind.two_bits)
        self._told = told
        self._operations: list[Operation] = []
        self._current: dict[int, int] = {}
        self._steps: list[Step] = []

    def told(self) -> tuple[History, list[Step]]:
        """The requests as a history, and their steps."""
        for at, line in enumerate(self._told, 1):
            if isinstance(line.happening, Sent):
                self._sent(at, line.client, line.happening.request)
            if isinstance(line.happening, Answered):
                self._answered(at, line.client, line.happening)
            if line.client in self._current:
                is_end, is_wrong = isinstance(line.happening, Sent | Answered), isinstance(line.happening, Wrong)
                self._steps.append(Step(self._current[line.client], at, line.text.strip(), is_end, is_wrong))
        disk = self._machine.question.program.disk
        history = History(disk.scale.size, disk.scale.block_size, 1)
        for operation in self._operations:
            history.append(operation)
        return history, self._steps

    def _sent(self, at: int, client: int, request: int) -> None:
        ask: Ask = self._machine.question.program.asks[client][request]
        value = f"{letter(client)}{request + 1}" if ask.verb == "write" else None
        self._current[client] = len(self._operations)
        self._operations.append(
            Operation(
                letter(client),
                request + 1,
                ask.verb,  # type: ignore[arg-type]  # the verbs of programs are those of histories
                ask.offset,
                ask.length,
                at,
                NEVER,
                PENDING,
                value,
                ask.flags,
            )
        )

    def _answered(self, at: int, client: int, answer: Answered) -> None:
        index = self._current[client]
        asked = self._operations[index]
        if isinstance(answer.said, int):
            outcome = errno.errorcode.get(answer.said, str(answer.said))
            self._operations[index] = replace(asked, ret=at, outcome=outcome)
            return
        value = asked.value
        request = self._machine.question.program.requests[client][answer.request]
        if isinstance(answer.said, Data) and isinstance(request, Read):
            value = _runs(self._machine, self._namer, request.offset, answer.said.data)
        self._operations[index] = replace(asked, ret=at, outcome=OK, value=value)


def _runs(machine: Machine, namer: Namer, start: int, data: bytes) -> Runs:
    """Small bytes as runs of real ones."""
    real = machine.question.program.disk.scale.real
    return tuple((NAMES.get(name, name), real(end) - real(first)) for name, first, end in namer.runs(start, data))


def _in_the_end(machine: Machine, story: Story, at: int) -> Operation:
    """A read of all that is there when all have been answered: the judge looks at it like at one."""
    program = machine.question.program
    found, _ = machine.question.kind.seen(program.disk, story.world)
    value = _runs(machine, Namer(program), 0, found)
    return Operation(IN_THE_END, 1, "read", 0, program.disk.scale.size, at, at + 1, OK, value)


def _finding(machine: Machine, story: Story, history: History) -> Finding:
    question = machine.question
    if not story.wrong:
        return Finding(NOT_CHECKED, question.level, "Nothing is wrong with this one schedule; others are not shown.")
    words = story.wrong[0].upper() + story.wrong[1:] + "."
    finding = Finding(NOT_LINEARIZABLE, question.level, words, conflict=tuple(range(len(history))))
    if question.level != "request" or not question.kind.is_device or any(question.program.disk.initial):
        return finding
    return replace(finding, partials=longest(history, finding))
