"""Times our explorer beside frontrun, on the same programs of the same algorithms, and compares their verdicts.

One function builds an algorithm for both: for us of parts that hand every operation to the explorer, for frontrun of
the locks of `threading` and of lists in memory, which move a block in as many parts as ours do. Both ask whether some
order of the requests explains the answers and what the device holds in the end.

Source:  frontrun's README and docstrings, 0.7.0; that a time limit ends it with `property_holds=True` was measured.
Units:   seconds of processor time of all threads, and of wall time where that is said.
Errors:  exit status 2 and what to do, where frontrun is not installed or its command has not been used.
Omits:   for frontrun, that a request answered before another was sent comes before it; our search knows. No program
         here is wrong in that way only.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from check.explore.judge import device_of, parts_of
from check.explore.programs import Disk, format_program, make_program, parse_program
from check.explore.search import Machine, Question, Verdict, search_all
from check.explore.stateless import Call, Live, after, is_explained, orders
from check.explore.subjects import PLAIN, Algorithm, Modes, Parts, algorithm_kind, ask_algorithm
from check.explore.world import World, first_world
from impl.overlay.rangelock import RangeLock
from impl.sync import THREADING
from model.block import State
from model.device import Reply, Request, contents
from specs.subjects.bitmap_lock import BitmapLock
from specs.subjects.global_lock import GlobalLock
from specs.subjects.range_lock import RangeLocked
from specs.subjects.seam import TRIMMED, Lock, Map, TwoBitMap, packed

FRONTRUN = "frontrun==0.7.0"
LIMIT_S = 20.0
# So that milliseconds are measured more than once in a round, and an execution by itself long enough.
SEARCHES = 5
ALONE = 200

HELP = f"""Time our explorer beside frontrun, on the same programs, and compare their verdicts.

Ours is measured in three ways: the search that gives its verdicts; the same search again, which has no code left to
run; and, for the price of one execution, random schedules that are run whole, one by one, in greenlets. frontrun is
measured with three settings. Each exploration ends with the first violation; those of frontrun end after --limit
seconds, too.

\b
frontrun is no part of cowproof's own environment, and wants to be started by its command:
  python3 -m venv /tmp/explorers
  /tmp/explorers/bin/pip install {FRONTRUN} 'click>=8.2' 'greenlet>=3.0'
  /tmp/explorers/bin/frontrun python -m bench.explorers

\b
Examples:
  frontrun python -m bench.explorers
  frontrun python -m bench.explorers --rows torn,two-bits --rounds 9 --json result.json
  frontrun python -m bench.explorers --settings thorough --limit 5
"""

# What both explore.

COPYING = Modes(copy_on_read=True, copy_on_cache=True)


class MemoryStore:
    """A store in memory; a transfer takes a step for each small byte, as in our explorer."""

    def __init__(self, data: bytes) -> None:
        self.bytes = list(data)

    def pread(self, offset: int, length: int) -> bytes:
        found = []
        for at in range(offset, offset + length):
            found.append(self.bytes[at])
        return bytes(found)

    def pwrite(self, offset: int, buffers: Sequence[bytes]) -> None:
        for at, value in enumerate(b"".join(buffers), offset):
            self.bytes[at] = value


class MemoryMap:
    """A map in memory: a byte for each block, or for four."""

    def __init__(self, data: bytes) -> None:
        self.bytes = list(data)

    def get(self, block: int) -> int:
        return self.bytes[block]

    def set(self, block: int, state: int) -> None:
        self.bytes[block] = state


class MemoryBase:
    """A base in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def pread(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]


class Memory:
    """What an algorithm is made of for real threads; `Parts` is the same for our explorer."""

    def __init__(self, disk: Disk, modes: Modes, two_bits: bool) -> None:
        self.disk = disk
        self.modes = modes
        self.sync = THREADING
        self._first = first_world(disk.initial, disk.stored, disk.block_size, faults=0)
        self.base = MemoryBase(disk.base)
        self.store = MemoryStore(self._first.store)
        self.map = MemoryMap(packed(self._first.states) if two_bits else self._first.states)

    def world(self) -> World:
        """What is shared, as our explorer writes it down."""
        return replace(self._first, store=bytes(self.store.bytes), states=bytes(self.map.bytes))


@dataclass(frozen=True)
class LockThenNot:
    """Trims two blocks whose states are in one byte: the first one's under the lock, the other's after it."""

    map: Map
    lock: Lock
    block_size: int

    def trim(self, offset: int, length: int) -> None:
        """One whole block."""
        block = offset // self.block_size
        with self.lock:
            if block == 0:
                self.map.set(block, TRIMMED)
        if block != 0:
            self.map.set(block, TRIMMED)


Made = Parts | Memory


def bitmap_lock(parts: Made) -> BitmapLock:
    lock, rmw = parts.sync.lock(), parts.sync.lock()
    block_size, modes = parts.disk.block_size, parts.modes
    return BitmapLock(
        parts.base, parts.store, parts.map, lock, rmw, block_size, modes.copy_on_read, modes.copy_on_cache
    )


def bitmap_lock_two_bits(parts: Made) -> Algorithm:
    return replace(bitmap_lock(parts), map=TwoBitMap(parts.map))


def global_lock(parts: Made) -> Algorithm:
    return GlobalLock(parts.base, parts.store, parts.map, parts.sync.lock(), parts.disk.block_size)


def range_lock(parts: Made) -> Algorithm:
    """With the range lock that is shipped, down to its mutex and its conditions."""
    ranges = RangeLock(parts.sync)
    if isinstance(parts, Parts):
        parts.stage.fix("ranges", ranges)  # it is named in what the clients share
    block_size, modes = parts.disk.block_size, parts.modes
    return RangeLocked(parts.base, parts.store, parts.map, ranges, block_size, modes.copy_on_read, modes.copy_on_cache)


def lock_then_not(parts: Made) -> Algorithm:
    return LockThenNot(TwoBitMap(parts.map), parts.sync.lock(), parts.disk.block_size)  # type: ignore[return-value]


@dataclass(frozen=True)
class Row:
    """A program: what our explorer is asked, and the function that builds the algorithm for both."""

    name: str
    build: Callable[[Made], Algorithm]
    question: Question

    @property
    def requests(self) -> list[Request]:
        """One for each client."""
        return [request for [request] in self.question.program.requests]

    def __str__(self) -> str:
        initial = ", ALLOCATED at first" if State.ALLOCATED in self.question.program.disk.initial else ""
        copying = ", copying" if self.question.modes == COPYING else ""
        return f"{self.question.kind.name}, {format_program(self.question.program.asks)}{initial}{copying}"


BUILDERS = {
    "bitmap-lock": bitmap_lock,
    "bitmap-lock-two-bits": bitmap_lock_two_bits,
    "global-lock": global_lock,
    "range-lock": range_lock,
    "lock-then-not": lock_then_not,
}
TWO_BITS = (bitmap_lock_two_bits, lock_then_not)


def _row(name: str, subject: str, program: str, initial: str = "", modes: Modes = PLAIN) -> Row:
    build = BUILDERS[subject]
    kind = algorithm_kind(subject, "", build, two_bits=build in TWO_BITS)
    return Row(name, build, Question(kind, make_program(parse_program(program), initial), modes=modes))


def _both_orders(name: str, subject: str, program: str, initial: str = "", modes: Modes = PLAIN) -> list[Row]:
    """The program, and the same with its two clients swapped."""
    one, other = program.split(" | ")
    swapped = f"{other} | {one}"
    return [_row(name, subject, program, initial, modes), _row(f"{name}-swapped", subject, swapped, initial, modes)]


ROWS = [
    *_both_orders("part-whole", "bitmap-lock", "write 0+512 | write 0+64K"),
    *_both_orders("part-trim", "bitmap-lock", "write 0+512 | trim 0+64K"),
    *_both_orders("copy-read", "bitmap-lock", "read 0+512 | write 0+64K", modes=COPYING),
    *_both_orders("copy-cache", "bitmap-lock", "cache 0+512 | write 0+64K", modes=COPYING),
    *_both_orders("disjoint", "bitmap-lock", "read 0+512 | write 32K+512", modes=COPYING),
    *_both_orders("two-bits", "bitmap-lock-two-bits", "read 0+64K | write 64K+64K", modes=COPYING),
    *_both_orders("torn", "bitmap-lock", "read 0+64K | write 0+64K", "A"),
    *_both_orders("lock-then-not", "lock-then-not", "trim 0+64K | trim 64K+64K"),
    _row("global", "global-lock", "write 0+512 | write 0+64K"),
    _row("range", "range-lock", "write 0+512 | write 0+64K"),
    _row("range-copy-read", "range-lock", "read 0+512 | write 0+64K", modes=COPYING),
    _row("global-three", "global-lock", "write 0+512 | write 0+64K | trim 0+64K"),
    _row("range-three", "range-lock", "write 0+512 | write 0+64K | trim 0+64K"),
]

# Ours.


@dataclass
class Ours:
    """What our explorer said of a row.

    cpu_s:    of a search with nothing learned.
    again_s:  of the same search after it, which has only to look into the tables that the first has filled.
    alone_s:  of one execution by itself.
    """

    verdict: str = ""
    states: int = 0
    transitions: int = 0
    schedules: int | None = None  # known only if all states were seen
    runs: int = 0
    cpu_s: list[float] = field(default_factory=list)
    again_s: list[float] = field(default_factory=list)
    alone_s: list[float] = field(default_factory=list)


def measure_ours(row: Row, seed: int, into: Ours) -> None:
    """One round: some searches, each with nothing learned and once more, and some executions by themselves."""
    for _ in range(SEARCHES):
        started_s = time.process_time()
        machine = Machine(row.question)
        found = search_all(machine)
        found_s = time.process_time()
        search_all(machine)
        into.cpu_s.append(found_s - started_s)
        into.again_s.append(time.process_time() - found_s)
    into.verdict = found.verdict.value
    into.states, into.transitions, into.runs = found.states, found.transitions, found.runs
    into.schedules = found.schedules if found.verdict is Verdict.HOLDS else None
    into.alone_s.append(execution_s(row.question, seed))


def execution_s(question: Question, seed: int) -> float:
    """Processor time for the code to be run once, under a random schedule, and its outcome judged."""
    learner = Machine(question).learner
    choose = random.Random(seed)
    started_s = time.process_time()
    for _ in range(ALONE):
        live = Live(question, learner)
        while enabled := live.enabled():
            live.step(choose.choice(enabled))
        is_explained(question, live, *question.kind.seen(question.program.disk, live.world))
    return (time.process_time() - started_s) / ALONE


# frontrun.

# Verdicts of frontrun's beside `Verdict`: an execution did not end; its time was over, and it says "holds"; it does not
# look at everything.
GAVE_UP = "gave up"
OUT_OF_TIME = "out of time"
NOTHING_FOUND = "nothing found"


@dataclass(frozen=True)
class Setting:
    """How frontrun is asked."""

    name: str
    meaning: str
    options: dict[str, Any]


SETTINGS = [
    Setting(
        "thorough",
        "DPOR without a bound on preemptions, without a look at I/O, with a virtual clock",
        {"preemption_bound": None, "detect_io": False, "clock": "virtual"},
    ),
    Setting("default", "DPOR with nothing asked for but the limit", {}),
    Setting("random", "200 random schedules, which is its default number", {"strategy": "random", "detect_io": False}),
]


@dataclass
class Theirs:
    """What frontrun said of a row: in every round its verdict, as it is to be read and as it was given."""

    verdicts: list[str] = field(default_factory=list)
    said: list[bool | None] = field(default_factory=list)
    executions: list[int] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)


class Threads:
    """The state of one execution: an algorithm in memory, and the clients' answers."""

    def __init__(self, row: Row) -> None:
        question = row.question
        self.memory = Memory(question.program.disk, question.modes, question.kind.two_bits)
        self.algorithm = row.build(self.memory)
        self.answers: list[Reply | None] = [None] * len(row.requests)


def worker(client: int, request: Request) -> Callable[[Threads], None]:
    """What one thread does."""

    def work(state: Threads) -> None:
        state.answers[client] = ask_algorithm(state.algorithm, request)

    return work


def is_right(row: Row, state: Threads) -> bool:
    """Whether some order of the requests gives these answers, and leaves the device as it is."""
    disk = row.question.program.disk
    found, _ = row.question.kind.seen(disk, state.memory.world())
    [part] = parts_of(disk, "request")
    answers = [said for said in state.answers if said is not None]
    calls = [Call(request, 0, 0, said) for request, said in zip(row.requests, answers, strict=True)]
    return any(contents(device) == found for order in orders(calls) for device in after(device_of(disk, part), order))


def measure_theirs(row: Row, setting: Setting, seed: int, limit_s: float, into: Theirs) -> None:
    """One round."""
    import frontrun  # noqa: PLC0415 - optional: see `require_frontrun`

    options = dict(setting.options, **({"seed": seed} if setting.name == "random" else {}))
    started_s, cpu_before_s = time.monotonic(), time.process_time()
    result = frontrun.explore(
        setup=lambda: Threads(row),
        workers=[worker(client, request) for client, request in enumerate(row.requests)],
        invariant=lambda state: is_right(row, state),
        reproduce_on_failure=0,
        total_timeout=limit_s,
        **options,
    )
    wall_s = time.monotonic() - started_s
    into.cpu_s.append(time.process_time() - cpu_before_s)
    into.wall_s.append(wall_s)
    into.executions.append(result.num_explored)
    into.said.append(result.property_holds)
    into.verdicts.append(verdict_of(setting, result.property_holds, wall_s >= limit_s))


def verdict_of(setting: Setting, said: bool | None, is_cut: bool) -> str:
    """frontrun's answer as it is to be read: where it has not looked at everything, it has not shown that all holds."""
    if said is False:
        return Verdict.VIOLATED.value
    if said is None:
        return GAVE_UP
    if is_cut:
        return OUT_OF_TIME
    return NOTHING_FOUND if setting.name == "random" else Verdict.HOLDS.value


def require_frontrun(module: str = "bench.explorers") -> None:
    """Exit status 2 where frontrun cannot be used, and what to do. `module`: what is run, as `python -m` wants it."""
    if importlib.util.find_spec("frontrun") is None:
        raise NotHere(f"frontrun is not here; install it: {sys.executable} -m pip install {FRONTRUN}")
    from frontrun.cli import is_active  # noqa: PLC0415

    if not is_active():
        command = Path(sys.executable).parent / "frontrun"
        raise NotHere(f"frontrun has to start this itself: {command} python -m {module}")


class NotHere(click.ClickException):
    """Something is missing that whoever runs this can provide."""

    exit_code = 2


# Figures.


@dataclass
class Result:
    """A row's figures."""

    program: str
    ours: Ours = field(default_factory=Ours)
    theirs: dict[str, Theirs] = field(default_factory=dict)

    @property
    def is_wrong(self) -> bool:
        """Whether anybody has shown a violation."""
        violated = Verdict.VIOLATED.value
        return self.ours.verdict == violated or any(violated in theirs.verdicts for theirs in self.theirs.values())


def spread(values: Sequence[float]) -> str:
    """Median, and least and most, in milliseconds."""
    low, middle, high = (f"{value * 1000:,.2f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ms ({low} to {high})"


def verdicts(found: Sequence[str]) -> str:
    """What was said in all rounds, or what in how many."""
    each = dict.fromkeys(found)
    return found[0] if len(each) == 1 else ", ".join(f"{found.count(one)} times {one}" for one in each)


def report(row: Row, result: Result) -> None:
    """A row's figures, for people."""
    click.echo(f"\r{row.name}: {row}")
    report_ours(result.ours)
    for name, theirs in result.theirs.items():
        report_theirs(name, theirs, result.ours)


def report_ours(ours: Ours) -> None:
    """Our search, the same with all learned, and one execution after the other."""
    rate = ours.transitions / statistics.median(ours.cpu_s)
    rate_again = ours.transitions / statistics.median(ours.again_s)
    covered = "" if ours.schedules is None else f"{ours.schedules:,} schedules covered, "
    click.echo(
        f"  ours      {ours.verdict}: {ours.states:,} states, {covered}{ours.runs:,} runs of the code, ", nl=False
    )
    click.echo(f"{spread(ours.cpu_s)}, {rate:,.0f} transitions/s")
    click.echo(f"            again: {spread(ours.again_s)}, {rate_again:,.0f} transitions/s")
    click.echo(f"            one by one: {1 / statistics.median(ours.alone_s):,.0f} executions/s")


def report_theirs(name: str, theirs: Theirs, ours: Ours) -> None:
    """One setting of frontrun."""
    executions = statistics.median(theirs.executions)
    rate = executions / statistics.median(theirs.cpu_s)
    click.echo(
        f"  {name:9} {verdicts(theirs.verdicts)}: {executions:,.0f} executions, {spread(theirs.cpu_s)}, ", nl=False
    )
    click.echo(f"{rate:,.0f} executions/s, {statistics.median(theirs.wall_s):.2f} s of wall time, ", nl=False)
    click.echo(f"{verdict_ratio(ours, theirs):,.1f} times ours")


def our_summary(results: dict[str, Result]) -> None:
    """What our search finds and what it misses."""
    wrong = {name: result.ours.verdict for name, result in results.items() if result.is_wrong}
    right = {name: result.ours.verdict for name, result in results.items() if not result.is_wrong}
    click.echo("\nours")
    share("finds", [name for name, verdict in wrong.items() if verdict == Verdict.VIOLATED.value], list(wrong))
    share("shows to hold", [name for name, verdict in right.items() if verdict == Verdict.HOLDS.value], list(right))


def summary(results: dict[str, Result], setting: Setting) -> None:
    """What one setting of frontrun finds and what it misses, and what it costs."""
    click.echo(f"\nfrontrun {setting.name}: {setting.meaning}")
    theirs = {name: result.theirs[setting.name] for name, result in results.items()}
    summary_of_verdicts(results, theirs)
    summary_of_ratios(results, theirs)


def summary_of_verdicts(results: dict[str, Result], theirs: dict[str, Theirs]) -> None:
    """What it finds in every round, and what it says of the rest."""
    wrong = [name for name, result in results.items() if result.is_wrong]
    right = [name for name in results if name not in wrong]
    share("finds", [name for name in wrong if set(theirs[name].said) == {False}], wrong)
    listed("says that these hold, which do not", [name for name in wrong if True in theirs[name].said])
    share("shows to hold", [name for name in right if set(theirs[name].verdicts) == {Verdict.HOLDS.value}], right)
    listed("gives up on", [name for name in results if GAVE_UP in theirs[name].verdicts])
    listed("says that these hold when its time is out", [n for n in results if OUT_OF_TIME in theirs[n].verdicts])


def summary_of_ratios(results: dict[str, Result], theirs: dict[str, Theirs]) -> None:
    """What it costs, to ours; executions that did not come to an end are none."""
    whole = [name for name in results if GAVE_UP not in theirs[name].verdicts]
    ratios("an execution takes", [execution_ratio(results[name].ours, theirs[name]) for name in whole])
    for verdict in (Verdict.VIOLATED.value, Verdict.HOLDS.value):
        same = [n for n, result in results.items() if {result.ours.verdict, *theirs[n].verdicts} == {verdict}]
        ratios(f"the verdict {verdict!r} takes", [verdict_ratio(results[name].ours, theirs[name]) for name in same])


def share(what: str, some: list[str], of: list[str]) -> None:
    """How many of how many."""
    click.echo(f"  {what} {len(some)} of {len(of)}")


def listed(what: str, names: list[str]) -> None:
    """Which, if any."""
    if names:
        click.echo(f"  {what}: {', '.join(names)}")


def ratios(what: str, values: list[float]) -> None:
    """Median, and least and most."""
    if values:
        middle = statistics.median(values)
        click.echo(f"  {what} {middle:,.1f} times as long as ours ({min(values):,.1f} to {max(values):,.1f})")


def execution_ratio(ours: Ours, theirs: Theirs) -> float:
    """An execution of frontrun's, to one of ours by itself."""
    each_s = [cpu_s / count for cpu_s, count in zip(theirs.cpu_s, theirs.executions, strict=True)]
    return statistics.median(each_s) / statistics.median(ours.alone_s)


def verdict_ratio(ours: Ours, theirs: Theirs) -> float:
    """A whole exploration of frontrun's, to our search."""
    return statistics.median(theirs.cpu_s) / statistics.median(ours.cpu_s)


def chosen(names: str, known: Sequence[Any], what: str) -> list[Any]:
    """Those of a kind that are named, in their order."""
    wanted = names.split(",")
    if unknown := set(wanted) - {each.name for each in known}:
        expected = ", ".join(each.name for each in known)
        raise click.BadParameter(f"no {what} {', '.join(sorted(unknown))}: expected {expected}")
    return [each for each in known if each.name in wanted]


def measure(row: Row, settings: list[Setting], rounds: int, limit_s: float) -> Result:
    """All rounds of a row, in turn."""
    result = Result(str(row), theirs={setting.name: Theirs() for setting in settings})
    for seed in range(rounds):
        click.echo(f"\r{row.name} {seed + 1}/{rounds}{'':20}", nl=False, err=True)
        measure_ours(row, seed, result.ours)
        for setting in settings:
            measure_theirs(row, setting, seed, limit_s, result.theirs[setting.name])
    return result


def versions() -> str:
    """What runs this."""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"frontrun {version('frontrun')}, {python}, {os.cpu_count()} processors"


@click.command(help=HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--rows", default=",".join(row.name for row in ROWS), help="Which rows, by name, with commas.")
@click.option(
    "--settings",
    default=",".join(setting.name for setting in SETTINGS),
    help=f"Which of frontrun's: {'; '.join(f'{each.name}, {each.meaning}' for each in SETTINGS)}.",
)
@click.option("--rounds", type=click.IntRange(1), default=3, help="How often each is measured; default 3.")
@click.option(
    "--limit",
    "limit_s",
    type=click.FloatRange(0, min_open=True),
    default=LIMIT_S,
    help="Seconds that an exploration of frontrun's may take; default 20. An execution that has begun is ended.",
)
@click.option("--json", "json_path", type=click.Path(dir_okay=False), help="Write the samples here, too.")
def main(rows: str, settings: str, rounds: int, limit_s: float, json_path: str | None) -> None:
    """Measure."""
    asked: list[Row] = chosen(rows, ROWS, "row")
    used: list[Setting] = chosen(settings, SETTINGS, "setting")
    require_frontrun()
    measure(ROWS[0], used, 1, limit_s)  # a round that warms up and is not counted
    results = {}
    for row in asked:
        results[row.name] = measure(row, used, rounds, limit_s)
        report(row, results[row.name])
    our_summary(results)
    for setting in used:
        summary(results, setting)
    click.echo(f"\n{versions()}; {rounds} rounds, medians of processor time, least and most")
    if json_path:
        Path(json_path).write_text(json.dumps({name: asdict(r) for name, r in results.items()}, indent=1), "utf-8")


if __name__ == "__main__":
    main()
