"""Random ways through what is too big to see all of.

Errors:  ways that found nothing show nothing: the verdict is INCONCLUSIVE, with how many there were.
"""

from __future__ import annotations

import random
import time

from check.explore.search import DONE, Found, Machine, Move, Question, State, Verdict, Violation


def walk(question: Question, ways: int, seed: int = 0) -> Found:
    """So many random schedules, or fewer if one is wrong."""
    machine = Machine(question)
    choose = random.Random(seed)
    started_s = time.monotonic()
    transitions = deepest = 0
    seen: set[State] = set()
    for way in range(ways):
        state, moves, wrong = machine.first, [], ""
        while not wrong:
            if wrong := machine.waits(state):
                break
            enabled = enabled_moves(machine, state)
            if not enabled:
                wrong = machine.at_end(state)
                break
            move = choose.choice(enabled)
            state, wrong = take(machine, state, move)
            moves.append(move)
            seen.add(state)
        transitions += len(moves)
        deepest = max(deepest, len(moves))
        if wrong:
            violation = Violation(wrong, tuple(moves))
            return _found(machine, Verdict.VIOLATED, len(seen), transitions, way + 1, deepest, started_s, violation)
    return _found(machine, Verdict.INCONCLUSIVE, len(seen), transitions, ways, deepest, started_s, None)


def enabled_moves(machine: Machine, state: State) -> list[Move]:
    """What may happen next."""
    world, places, _ = state
    return [
        (client, choice)
        for client, node in enumerate(places)
        if node != DONE
        for choice in range(len(machine.steps(world, node)))
    ]


def take(machine: Machine, state: State, move: Move) -> tuple[State, str]:
    """The state after a move, and what is wrong with it."""
    world, places, monitor = state
    client, choice = move
    step = machine.steps(world, places[client])[choice]
    after, wrong = machine.judged(monitor, step.events)
    node = machine.after(client, places[client], step.node)
    return (step.world, (*places[:client], node, *places[client + 1 :]), after), wrong or step.wrong


def _found(
    machine: Machine,
    verdict: Verdict,
    states: int,
    transitions: int,
    ways: int,
    depth: int,
    started_s: float,
    violation: Violation | None,
) -> Found:
    why = "" if violation else f"{ways} random schedules, not all of them"
    elapsed_s = time.monotonic() - started_s
    return Found(verdict, states, transitions, ways, depth, machine.learner.runs, elapsed_s, violation, why)
