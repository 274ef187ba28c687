"""A schedule on real threads, so that a debugger can stop in any of them, and prints come in order.

One thread of many runs at any time: who does, is handed the baton, and gives it back before its next operation.

Errors:  Disagreement when the threads come to something else than the search did.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue

from check.explore.learn import End
from check.explore.replay import play
from check.explore.seam import Run
from check.explore.search import Machine, Move
from check.explore.stateless import Code, Disagreement, Live
from check.explore.world import Op, Result, World


class ThreadCode:
    """A request's code in a thread of its own, with the interface of a greenlet."""

    def __init__(self, name: str, call: Callable[[], End]) -> None:
        self._results: SimpleQueue[tuple[Result, ...]] = SimpleQueue()
        self._reached: SimpleQueue[Op | End] = SimpleQueue()
        self._call = call
        threading.Thread(target=self._run, name=f"request {name}", daemon=True).start()

    def _run(self) -> None:
        self._results.get()
        self._reached.put(self._call())

    def switch(self, *result: Result) -> Op | End:
        """Let it run, with what came of its operation, to the next one."""
        self._results.put(result)
        return self._reached.get()

    def hand_over(self, op: Op) -> Result:
        """Called in the thread: an operation, and what came of it."""
        self._reached.put(op)
        [result] = self._results.get()
        return result


def in_thread(name: str, call: Callable[[], End]) -> tuple[Code, Run]:
    """A thread for a request."""
    code = ThreadCode(name, call)
    return code, Run(name, code.hand_over)


def play_on_threads(machine: Machine, moves: Sequence[Move]) -> World:
    """Make the moves; the world they lead to, which is the one that the search was in."""
    expected = play(machine, moves).world
    live = Live(machine.question, machine.learner, in_thread)
    for client, choice in moves:
        live.step(client, choice)
    if live.world != expected:
        raise Disagreement(f"the threads came to {live.world}, the search to {expected}")
    return live.world
